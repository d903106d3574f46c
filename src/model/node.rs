//! The own Node, and the cluster's Service address ranges.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::name::Family;

/// What the proxy needs of its own Node object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Node {
    pub name: Arc<str>,
    /// InternalIPs in order, then ExternalIPs in order.
    pub addresses: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone`; `None` when missing or empty.
    pub zone: Option<Arc<str>>,
    /// Has a deletion timestamp or the taint `ToBeDeletedByClusterAutoscaler`: load balancers should move away.
    pub going_away: bool,
}

impl Node {
    /// The first address of a family (reference 11.1).
    pub fn primary(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|it| Family::of(*it) == family)
    }
}

/// One ServiceCIDR object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceCidr {
    pub name: Arc<str>,
    pub cidrs: Vec<IpNet>,
}
