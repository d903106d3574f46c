//! What follows from a committed batch for others: conntrack, health check node ports, gauges. Pure.

use std::collections::BTreeMap;

use crate::conntrack::{Sweep, UdpFrontends};
use crate::forward::{FrontendAddress, HealthCheck, ServiceForwarding};
use crate::model::{Family, ObjectName, ServiceId};

/// What a committed batch brought about.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// Services whose forwarding the kernel now has.
    pub services: Vec<ServiceId>,
    /// Nanoseconds since the epoch at which the causes of these endpoint changes happened.
    pub triggers: Vec<(Family, i128)>,
    /// UDP flows to look at; may be empty.
    pub sweep: Sweep,
    /// Whether a health check node port or a count of local endpoints differs.
    pub health_checks_changed: bool,
    /// Whether a number in [`Results::lacking_local`] differs.
    pub lacking_local_changed: bool,
}

/// What the kernel's forwarding of each Service means for others. Services without such a meaning take no room.
#[derive(Debug, Default)]
pub struct Results {
    known: BTreeMap<ServiceId, Meaning>,
    /// Whose each UDP frontend is. One that passes from a Service to another may be staged with the new one first, even
    /// batches earlier; what the old one loses then says nothing about its flows.
    holders: BTreeMap<(Family, FrontendAddress), ServiceId>,
    staged: Vec<(ServiceId, Meaning)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Meaning {
    udp: UdpFrontends,
    health_check: Option<(ObjectName, HealthCheck)>,
    lacking: Lacking,
}

/// Service ports with a Local policy, endpoints elsewhere and none on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    pub internal_v4: usize,
    pub internal_v6: usize,
    pub external_v4: usize,
    pub external_v6: usize,
}

impl Results {
    /// The batch under way contains this forwarding.
    pub fn stage(
        &mut self,
        service: ServiceId,
        name: Option<&ObjectName>,
        forwarding: &ServiceForwarding,
    ) {
        let meaning = Meaning {
            udp: UdpFrontends::of(forwarding),
            health_check: name.cloned().zip(forwarding.health_check),
            lacking: Lacking::of(forwarding),
        };
        if meaning != Meaning::default() || self.known.contains_key(&service) {
            self.staged.push((service, meaning));
        }
    }

    /// The batch under way came to nothing.
    pub fn forget(&mut self) {
        self.staged.clear();
    }

    /// The batch under way is in the kernel.
    pub fn take(&mut self, services: &mut Vec<ServiceId>) -> Outcome {
        let mut outcome = Outcome { services: std::mem::take(services), ..Outcome::default() };
        for (service, new) in self.staged.drain(..) {
            let mut old = self.known.remove(&service).unwrap_or_default();
            let holders = &mut self.holders;
            old.udp.retain(|place| holders.get(place) == Some(&service));
            for place in old.udp.places() {
                holders.remove(&place);
            }
            holders.extend(new.udp.places().map(|place| (place, service)));
            outcome.sweep.add(&old.udp, &new.udp);
            outcome.health_checks_changed |= old.health_check != new.health_check;
            outcome.lacking_local_changed |= old.lacking != new.lacking;
            if new != Meaning::default() {
                self.known.insert(service, new);
            }
        }
        outcome
    }

    /// The Services whose forwarding in the kernel means something to others.
    pub fn services(&self) -> impl Iterator<Item = ServiceId> {
        self.known.keys().copied()
    }

    /// All health check node ports. Walks all Services that mean something to others, a small part of all: it is
    /// asked only when one of them has changed.
    pub fn health_checks(&self) -> impl Iterator<Item = (&ObjectName, &HealthCheck)> {
        self.known
            .values()
            .filter_map(|it| it.health_check.as_ref())
            .map(|(name, check)| (name, check))
    }

    /// Sums over all Services, walked as for [`Results::health_checks`].
    pub fn lacking_local(&self) -> Lacking {
        self.known.values().fold(Lacking::default(), |sum, it| sum.plus(it.lacking))
    }
}

impl Lacking {
    fn of(forwarding: &ServiceForwarding) -> Lacking {
        let mut lacking = Lacking::default();
        for port in &forwarding.ports {
            let lacks = port.lacks_local();
            let (internal, external) = match port.family {
                Family::V4 => (&mut lacking.internal_v4, &mut lacking.external_v4),
                Family::V6 => (&mut lacking.internal_v6, &mut lacking.external_v6),
            };
            *internal += usize::from(lacks.internal);
            *external += usize::from(lacks.external);
        }
        lacking
    }

    fn plus(self, other: Lacking) -> Lacking {
        Lacking {
            internal_v4: self.internal_v4 + other.internal_v4,
            internal_v6: self.internal_v6 + other.internal_v6,
            external_v4: self.external_v4 + other.external_v4,
            external_v6: self.external_v6 + other.external_v6,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::num::NonZeroU16;
    use std::sync::Arc;

    use super::*;
    use crate::conntrack::{Flow, Tuple};
    use crate::forward::{Backend, Frontend, FrontendKind, PortForwarding, WithoutBackend};
    use crate::model::{Protocol, TrafficPolicy};

    /// A Service is made anew under another name, with its cluster IP and its pods.
    #[test]
    fn a_frontend_that_passes_to_another_service_keeps_its_flows() {
        let endpoint = "10.1.0.1:53";
        for (old, new) in [(1, 2), (2, 1)] {
            for apart in [false, true] {
                let mut results = Results::default();
                stage(&mut results, old, Some(endpoint));
                results.take(&mut Vec::new());
                let mut sweep = Sweep::default();
                for id in [1, 2] {
                    stage(&mut results, id, (id == new).then_some(endpoint));
                    if apart {
                        sweep.merge(results.take(&mut Vec::new()).sweep);
                    }
                }
                sweep.merge(results.take(&mut Vec::new()).sweep);
                assert!(!sweep.is_stale(&flow(endpoint)), "{old} to {new}, apart: {apart}");
                assert!(sweep.is_stale(&flow("10.1.0.2:53")), "{old} to {new}, apart: {apart}");
                // Whoever has it now can lose it.
                stage(&mut results, new, None);
                let sweep = results.take(&mut Vec::new()).sweep;
                assert!(sweep.is_stale(&flow(endpoint)), "{old} to {new}, apart: {apart}");
                assert!(results.holders.is_empty());
            }
        }
    }

    fn stage(results: &mut Results, id: u32, endpoint: Option<&str>) {
        let ports = endpoint.map(|it| udp_port(it.parse().unwrap())).into_iter().collect();
        let forwarding = ServiceForwarding { ports, ..ServiceForwarding::default() };
        results.stage(ServiceId(id), None, &forwarding);
    }

    fn udp_port(endpoint: SocketAddr) -> PortForwarding {
        let port = |it: SocketAddr| NonZeroU16::new(it.port()).unwrap();
        let at = frontend();
        PortForwarding {
            family: Family::V4,
            port_name: Arc::from("dns"),
            protocol: Protocol::Udp,
            frontends: vec![Frontend {
                at: FrontendAddress::Address(at.ip(), port(at)),
                kind: FrontendKind::ClusterIp,
                policy: TrafficPolicy::Cluster,
                without_backend: WithoutBackend::Served,
                source_ranges: None,
            }],
            cluster: vec![],
            local: vec![],
            hairpin: vec![],
            serving: vec![Backend { address: endpoint.ip(), port: port(endpoint) }],
            weights: vec![],
            affinity: None,
        }
    }

    fn frontend() -> SocketAddr {
        "10.96.0.10:53".parse().unwrap()
    }

    fn flow(answered_by: &str) -> Flow {
        let client = "10.1.0.50:40000".parse().unwrap();
        let original = Tuple { source: client, destination: frontend() };
        let reply = Tuple { source: answered_by.parse().unwrap(), destination: client };
        Flow { original, reply, zone: 0, id: 1 }
    }
}
