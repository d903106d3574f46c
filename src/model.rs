//! What is known of the cluster, as validated nouns.
//!
//! In come [`Change`]s, in any order and any number of times; out goes [`Touched`], the Services whose forwarding
//! may differ now. Nothing here knows how traffic is forwarded, what a kernel is or what Kubernetes' JSON looks like.

pub mod change;
pub mod cluster;
pub mod endpoint;
pub mod name;
pub mod node;
pub mod range;
pub mod scheduler;
pub mod service;
pub mod touched;

mod ledger;
mod places;
#[cfg(test)]
pub(crate) mod sample;

pub use change::{Change, Resource, Skipped};
pub use cluster::{Cluster, ServiceId};
pub use endpoint::{Endpoint, EndpointSlice, NodeHint, SliceContent, SlicePort};
pub use name::{Family, ObjectName, Protocol, Uid};
pub use node::{Node, ServiceCidr};
pub use scheduler::Scheduler;
pub use service::{Service, ServiceFamily, ServicePort, SourceRanges, TrafficPolicy};
pub use touched::Touched;
