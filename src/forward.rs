//! Which backends serve which address: endpoint selection, traffic policies, topology, address conflicts.
//!
//! In come the `Cluster` and the names of touched Services; out comes, for each Service port and family, a
//! [`PortForwarding`]. The words are Cilium's and the FIB's: a *frontend* is what clients connect to, a *backend* is
//! where they end up. Nothing here knows nftables or IPVS.

pub mod claims;
mod forwarder;
mod ports;
pub mod select;
pub mod topology;

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;

pub use forwarder::{Forwarder, Update};

use crate::model::{Family, ObjectName, Protocol, Scheduler, TrafficPolicy};

/// What the user decides about forwarding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// A concrete `--bind-address`: stands for the own Node's address of its family (reference 11.1).
    pub node_ip: Option<IpAddr>,
}

/// Everything that is forwarded for one Service, in a stable order: ports in the Service's order, V4 before V6.
/// Empty when the Service is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServiceForwarding {
    pub ports: Vec<PortForwarding>,
    /// Only for type LoadBalancer with externalTrafficPolicy Local.
    pub health_check: Option<HealthCheck>,
    /// The Service's own choice for IPVS mode.
    pub ipvs_scheduler: Option<Scheduler>,
}

/// What a health check node port answers (reference 3.6 and 10.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HealthCheck {
    pub node_port: NonZeroU16,
    /// Distinct addresses of ready endpoints on this node; `None`: the Service does not exist in this family.
    pub local_v4: Option<u32>,
    pub local_v6: Option<u32>,
}

impl HealthCheck {
    pub fn local(&self, family: Family) -> Option<u32> {
        match family {
            Family::V4 => self.local_v4,
            Family::V6 => self.local_v6,
        }
    }
}

/// One Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortForwarding {
    pub family: Family,
    /// Name of the Service port, possibly empty.
    pub port_name: Arc<str>,
    pub protocol: Protocol,
    /// Only frontends that this Service owns: a claim that lost against another Service is not here.
    pub frontends: Vec<Frontend>,
    /// Backends under the Cluster policy; sorted, without duplicates. Filled only if some frontend uses them.
    pub cluster: Vec<Backend>,
    /// Backends under the Local policy; sorted, without duplicates. Filled only if some frontend uses them.
    pub local: Vec<Backend>,
    /// Addresses of reachable backends on this node: they may meet themselves (hairpin). Sorted.
    pub hairpin: Vec<IpAddr>,
    /// UDP only: every endpoint that serves, chosen or not; flows to others are stale (reference 7.1). Sorted.
    pub serving: Vec<Backend>,
    /// Backends of `cluster` and `local` with a weight other than 1, for IPVS mode. Sorted.
    pub weights: Vec<(Backend, NonZeroU16)>,
    /// ClientIP affinity: timeout in seconds.
    pub affinity: Option<u32>,
}

impl PortForwarding {
    /// For the gauge `sync_proxy_rules_no_local_endpoints_total`: whether connections inside the cluster, and those
    /// from outside, are dropped because all endpoints are on other nodes (reference 9).
    pub fn lacks_local(&self) -> LacksLocal {
        let dropped = |internal| {
            let mut frontends =
                self.frontends.iter().filter(|it| (it.kind == FrontendKind::ClusterIp) == internal);
            frontends.any(|it| it.without_backend == WithoutBackend::Drop)
        };
        LacksLocal { internal: dropped(true), external: dropped(false) }
    }
}

/// Which traffic finds endpoints elsewhere but none here, although its policy is Local.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LacksLocal {
    pub internal: bool,
    pub external: bool,
}

/// Where clients connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

/// A claim on an address and port that another Service, or another port of the same one, holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conflict {
    pub loser: ObjectName,
    /// Name of the loser's Service port.
    pub port_name: Arc<str>,
    pub winner: ObjectName,
    pub family: Family,
    pub protocol: Protocol,
    pub at: FrontendAddress,
}
