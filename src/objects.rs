//! Kubernetes objects as they arrive (slim serde types), and their conversion into the model's nouns.
//!
//! In comes JSON or YAML that may hold anything; out come [`crate::model::Change`]s and
//! [`crate::model::Skipped`]. Pure: which node this is arrives as an argument.
//!
//! Deserialising never fails over a field of a wrong type: [`lenient::Field`] remembers that something else was there
//! and the conversion judges it, because one odd object in a list of thousands must not cost the whole list.

pub mod address;
pub mod intern;
pub mod lenient;
pub mod manifest;
pub mod raw;
mod report;

mod endpoint_slice;
mod node;
mod service;
mod service_cidr;

use std::sync::Arc;

pub use endpoint_slice::endpoint_slice;
pub use intern::Interner;
pub use node::node;
pub use service::service;
pub use service_cidr::service_cidr;

use crate::model::{Change, Skipped};

/// What the conversion must know of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The own node's name, lower case. Empty: no endpoint is local (reference 3.2).
    pub node_name: Arc<str>,
    /// Feature gate `AllowServiceExternalIPs`.
    pub external_ips_allowed: bool,
}

/// One object, judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    pub change: Change,
    /// Parts that are left out while the rest of the object is used.
    pub skipped: Vec<Skipped>,
    /// Why an object that is in order is not proxied, for counting; a closed set of words.
    pub ignored: Option<&'static str>,
}

impl Converted {
    fn ignored(change: Change, why: &'static str) -> Self {
        Converted { change, skipped: Vec::new(), ignored: Some(why) }
    }

    fn unusable(skipped: Skipped) -> Self {
        Converted { change: Change::Unusable(skipped), skipped: Vec::new(), ignored: None }
    }
}

/// Elements of one list that are read at most: the longest list that the API admits (ports of an EndpointSlice).
pub const LIST_LIMIT: usize = 20_000;

/// Rows that one object may stand for at most (ports times addresses). The API's own limits allow no object that is
/// larger and fits into etcd's 1.5 MiB; a hostile manifest may try.
pub const PRODUCT_LIMIT: usize = 1_000_000;
