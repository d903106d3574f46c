//! What may happen to the cluster.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::Arc;

use super::endpoint::EndpointSlice;
use super::name::{ObjectName, Uid};
use super::node::{Node, ServiceCidr};
use super::service::Service;

/// One event from the outside.
///
/// A (re)list arrives as `Listing`, the objects as `...Applied`, then `Listed`; what was known before and did not
/// come again in between is gone at `Listed`. That is how deletions missed during a disconnect are noticed.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Listing(Resource),
    Listed(Resource),
    ServiceApplied(Service),
    /// Deleted, or still there and not (any more) to be proxied.
    ServiceDeleted(ObjectName),
    SliceApplied(EndpointSlice),
    SliceDeleted(ObjectName),
    NodeApplied(Node),
    NodeDeleted,
    ServiceCidrApplied(ServiceCidr),
    ServiceCidrDeleted(Arc<str>),
    /// The host's own addresses, loopback included, as its interfaces have them now.
    HostAddresses(BTreeSet<IpAddr>),
    /// An object that cannot be used at all. What was known of it before is forgotten.
    Unusable(Skipped),
}

impl Change {
    /// Stands for everything that the change says: two of the same object that say different things have the same once
    /// in 2^64 cases. Trigger times are left out, since a slice that differs in nothing else is no change.
    pub fn fingerprint(&self) -> NonZeroU64 {
        let mut hasher = DefaultHasher::new();
        std::mem::discriminant(self).hash(&mut hasher);
        match self {
            Change::Listing(resource) | Change::Listed(resource) => resource.hash(&mut hasher),
            Change::ServiceApplied(service) => service.hash(&mut hasher),
            Change::SliceApplied(slice) => {
                let EndpointSlice {
                    name,
                    service,
                    family,
                    ports,
                    endpoints,
                    ipvs_weight,
                    trigger_time: _,
                } = slice;
                (name, service, family, ports, endpoints, ipvs_weight).hash(&mut hasher);
            }
            Change::ServiceDeleted(name) | Change::SliceDeleted(name) => name.hash(&mut hasher),
            Change::NodeApplied(node) => node.hash(&mut hasher),
            Change::NodeDeleted => (),
            Change::ServiceCidrApplied(cidr) => cidr.hash(&mut hasher),
            Change::ServiceCidrDeleted(name) => name.hash(&mut hasher),
            Change::HostAddresses(addresses) => addresses.hash(&mut hasher),
            Change::Unusable(skipped) => skipped.hash(&mut hasher),
        }
        NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN)
    }
}

/// The kinds of objects that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
}

/// An object, or a part of one, that is left out, and why: counted, logged once, shown as an Event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Skipped {
    pub resource: Resource,
    /// Empty namespace for cluster-scoped objects.
    pub name: ObjectName,
    /// `metadata.uid`, for the Event.
    pub uid: Option<Uid>,
    /// A few words, bounded cardinality; label of the metric, e.g. `invalid-address`.
    pub reason: &'static str,
    /// One sentence for a person: what is wrong, where, what is done about it.
    pub message: String,
}
