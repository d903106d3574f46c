//! Which backends serve which address: endpoint selection, traffic policies, topology, address conflicts.
//!
//! In come the `Cluster` and the names of touched Services; out comes, for each Service port and family, a
//! [`PortForwarding`]. The words are Cilium's and the FIB's: a *frontend* is what clients connect to, a *backend* is
//! where they end up. Nothing here knows nftables or IPVS.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{Family, ObjectName, Protocol, TrafficPolicy};

/// Everything that is forwarded for one Service, in a stable order: ports in the Service's order, V4 before V6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceForwarding {
    pub ports: Vec<PortForwarding>,
}

/// One Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortForwarding {
    pub family: Family,
    /// Name of the Service port, possibly empty.
    pub port_name: Arc<str>,
    pub protocol: Protocol,
    /// Only frontends that this Service owns: a claim that lost against an older Service is not here.
    pub frontends: Vec<Frontend>,
    /// Backends under the Cluster policy; sorted, without duplicates. Filled only if some frontend uses them.
    pub cluster: Vec<Backend>,
    /// Backends under the Local policy; sorted, without duplicates. Filled only if some frontend uses them.
    pub local: Vec<Backend>,
    /// Addresses of reachable backends on this node: they may meet themselves (hairpin). Sorted.
    pub hairpin: Vec<IpAddr>,
    /// ClientIP affinity: timeout in seconds.
    pub affinity: Option<u32>,
}

/// Where clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    pub at: FrontendAddress,
    pub kind: FrontendKind,
    /// internalTrafficPolicy for a cluster IP, externalTrafficPolicy for everything else.
    pub policy: TrafficPolicy,
    /// What becomes of traffic that finds no backend under `policy`.
    pub without_backend: WithoutBackend,
    /// Load-balancer addresses only: who may connect. `None`: everybody.
    pub source_ranges: Option<Arc<[IpNet]>>,
}

/// Address and port, or a port on the node's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendAddress {
    Address(IpAddr, NonZeroU16),
    NodePort(NonZeroU16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    ClusterIp,
    ExternalIp,
    LoadBalancerIp,
    NodePort,
}

/// Verdict for new connections to a frontend whose policy leaves no backend (reference 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WithoutBackend {
    /// There are backends.
    Served,
    /// No usable endpoint anywhere in the cluster.
    Reject,
    /// Endpoints exist, none on this node, and the policy is Local.
    Drop,
}

/// Where connections end up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    pub address: IpAddr,
    pub port: NonZeroU16,
}

/// A claim on an address and port that an older Service already holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conflict {
    pub loser: ObjectName,
    pub winner: ObjectName,
    pub family: Family,
    pub protocol: Protocol,
    pub at: FrontendAddress,
}
