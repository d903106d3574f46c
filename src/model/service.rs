//! Services as the proxy needs them: validated, canonical, without what is never consulted.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;

use super::name::{Family, ObjectName, Protocol, Uid};
use super::scheduler::Scheduler;

/// A Service that is to be proxied; headless, ExternalName and foreign ones never get this far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    pub name: ObjectName,
    /// `metadata.uid`, only to let Events refer to the object.
    pub uid: Option<Uid>,
    /// `metadata.creationTimestamp` in seconds since the epoch; the older of two claimants of one address wins.
    pub created: i64,
    pub v4: Option<Box<ServiceFamily>>,
    pub v6: Option<Box<ServiceFamily>>,
    pub ports: Vec<ServicePort>,
    /// ClientIP affinity: timeout in seconds.
    pub affinity: Option<u32>,
    pub internal_policy: TrafficPolicy,
    /// Already `Cluster` for Services that are not externally accessible (reference 2.3).
    pub external_policy: TrafficPolicy,
    /// Only for type LoadBalancer with externalTrafficPolicy Local (reference 2.7).
    pub health_check_node_port: Option<NonZeroU16>,
    /// Annotation `kube-ferry/ipvs-scheduler`: who picks the endpoint in IPVS mode.
    pub ipvs_scheduler: Option<Scheduler>,
}

impl Service {
    /// Bytes on the heap, about.
    pub(super) fn heap_bytes(&self) -> usize {
        let families = [&self.v4, &self.v6].into_iter().flatten();
        let addresses = |it: &ServiceFamily| it.external_ips.len() + it.load_balancer_ips.len();
        let families =
            families.map(|it| size_of::<ServiceFamily>() + addresses(it) * size_of::<IpAddr>());
        self.ports.capacity() * size_of::<ServicePort>() + families.sum::<usize>()
    }

    pub fn family(&self, family: Family) -> Option<&ServiceFamily> {
        match family {
            Family::V4 => self.v4.as_deref(),
            Family::V6 => self.v6.as_deref(),
        }
    }
}

/// The addresses of a Service in one family. A Service without a cluster IP in a family does not exist in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceFamily {
    pub cluster_ip: IpAddr,
    /// Sorted, without duplicates.
    pub external_ips: Vec<IpAddr>,
    /// Load-balancer ingress addresses in VIP mode. Sorted, without duplicates.
    pub load_balancer_ips: Vec<IpAddr>,
    pub source_ranges: SourceRanges,
}

/// Who may reach the load-balancer addresses (reference 2.5).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceRanges {
    Unrestricted,
    /// Host bits masked off, sorted, never empty, no prefix of length zero.
    Only(Vec<IpNet>),
}

/// One port of a Service. Identity within the Service is (name, protocol).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Empty for the unnamed port.
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: NonZeroU16,
    pub node_port: Option<NonZeroU16>,
}

/// internalTrafficPolicy or externalTrafficPolicy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}
