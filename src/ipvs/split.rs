//! One Service's forwarding cut in two: what nft does with its frontends, and the virtual servers behind them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;

use super::schema::{Destination, Scheduler, ServerKey, VirtualServer};
use crate::forward::{
    Backend, Frontend, FrontendAddress, FrontendKind, PortForwarding, ServiceForwarding,
};
use crate::model::{Family, TrafficPolicy};

/// IP_VS_SVC_F_SCHED_MH_PORT of `linux/ip_vs.h`: the source port counts as well. kube-proxy sets it for `mh`.
const MH_PORT: u32 = 0x0010;

/// What the user decides about virtual servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// For Services that do not choose.
    pub scheduler: Scheduler,
    /// Virtual servers at these addresses are not ours.
    pub exclude_cidrs: Vec<IpNet>,
}

/// A Service's forwarding, cut in two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// What the nft program is told: backends are virtual servers.
    pub forwarding: ServiceForwarding,
    /// Sorted by their keys.
    pub servers: Vec<WantedServer>,
    /// Cluster IPs inside `excludeCIDRs`: nft serves them by itself.
    pub excluded: BTreeSet<IpAddr>,
}

/// A virtual server as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedServer {
    pub key: ServerKey,
    pub server: VirtualServer,
    /// With their weights; sorted, without duplicates, no weight of zero.
    pub destinations: Vec<(Destination, u32)>,
    /// UDP only: whose flows go on although they get no new ones. Sorted.
    pub serving: Vec<Destination>,
}

/// One of the two sets of endpoints that a port may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    Cluster,
    Local,
}

/// Cuts a Service's forwarding in two, in those families that are proxied.
pub fn split(settings: &Settings, families: &[Family], service: &ServiceForwarding) -> Split {
    let scheduler = service.ipvs_scheduler.unwrap_or(settings.scheduler);
    let mut split = Split {
        forwarding: ServiceForwarding { ports: Vec::new(), ..service.clone() },
        ..Split::default()
    };
    let mut hidden = Hidden::of(service);
    for port in &service.ports {
        let anchors = families.contains(&port.family).then(|| Anchors::of(port, &mut hidden));
        let Some(anchors) = anchors.flatten() else {
            split.forwarding.ports.push(port.clone());
            continue;
        };
        if settings.exclude_cidrs.iter().any(|it| it.contains(&anchors.address)) {
            split.excluded.insert(anchors.address);
            split.forwarding.ports.push(port.clone());
            continue;
        }
        split.forwarding.ports.push(anchors.forwarding(port));
        split.servers.extend(anchors.servers(port, scheduler));
    }
    split.servers.sort_unstable_by_key(|it| it.key);
    split
}

/// Where the virtual servers of a Service port are.
struct Anchors {
    address: IpAddr,
    /// The pool of the cluster IP itself, and its port.
    own: (Pool, NonZeroU16),
    /// The other pool, if external traffic uses it.
    other: Option<(Pool, NonZeroU16)>,
}

impl Anchors {
    /// `None`: the port has no cluster IP of its own, because another Service has it; or no port is left for a second
    /// virtual server. nft serves such a port by itself.
    fn of(port: &PortForwarding, hidden: &mut Hidden) -> Option<Anchors> {
        let (address, number, policy) = port.frontends.iter().find_map(cluster_ip)?;
        let (own, other) = match policy {
            TrafficPolicy::Cluster => (Pool::Cluster, Pool::Local),
            TrafficPolicy::Local => (Pool::Local, Pool::Cluster),
        };
        let other = match uses(&port.frontends, other) {
            true => Some((other, hidden.take(port.family, number)?)),
            false => None,
        };
        Some(Anchors { address, own: (own, number), other })
    }

    fn pools(&self) -> impl Iterator<Item = (Pool, NonZeroU16)> {
        [Some(self.own), self.other].into_iter().flatten()
    }

    fn forwarding(&self, port: &PortForwarding) -> PortForwarding {
        let anchor = |pool| {
            let number = self.pools().find(|(it, _)| *it == pool).map(|(_, number)| number);
            let backend = |port| Backend { address: self.address, port };
            let is_served = !backends(port, pool).is_empty();
            number.filter(|_| is_served).map(backend).into_iter().collect()
        };
        PortForwarding {
            cluster: anchor(Pool::Cluster),
            local: anchor(Pool::Local),
            serving: Vec::new(),
            weights: Vec::new(),
            // A virtual server remembers its clients by itself.
            affinity: None,
            ..port.clone()
        }
    }

    fn servers(
        &self,
        port: &PortForwarding,
        scheduler: Scheduler,
    ) -> impl Iterator<Item = WantedServer> {
        let server = VirtualServer {
            scheduler,
            persistence: port.affinity,
            scheduler_flags: if scheduler.name() == "mh" { MH_PORT } else { 0 },
        };
        self.pools().map(move |(pool, number)| WantedServer {
            key: ServerKey { protocol: port.protocol, address: self.address, port: number },
            server,
            destinations: weighted(port, backends(port, pool)),
            serving: port.serving.iter().copied().map(destination).collect(),
        })
    }
}

fn cluster_ip(frontend: &Frontend) -> Option<(IpAddr, NonZeroU16, TrafficPolicy)> {
    match (frontend.kind, frontend.at) {
        (FrontendKind::ClusterIp, FrontendAddress::Address(address, port)) => {
            Some((address, port, frontend.policy))
        }
        _ => None,
    }
}

/// Whether traffic from outside uses the pool. Pods and the node itself use the cluster pool whatever the policy.
fn uses(frontends: &[Frontend], pool: Pool) -> bool {
    let mut external = frontends.iter().filter(|it| it.kind != FrontendKind::ClusterIp);
    match pool {
        Pool::Cluster => external.next().is_some(),
        Pool::Local => external.any(|it| it.policy == TrafficPolicy::Local),
    }
}

fn backends(port: &PortForwarding, pool: Pool) -> &[Backend] {
    match pool {
        Pool::Cluster => &port.cluster,
        Pool::Local => &port.local,
    }
}

fn weighted(port: &PortForwarding, backends: &[Backend]) -> Vec<(Destination, u32)> {
    let weight = |backend: &Backend| {
        let position = port.weights.binary_search_by_key(backend, |(it, _)| *it).ok();
        position.and_then(|it| port.weights.get(it)).map_or(1, |(_, weight)| weight.get().into())
    };
    backends.iter().map(|it| (destination(*it), weight(it))).collect()
}

fn destination(backend: Backend) -> Destination {
    Destination { address: backend.address, port: backend.port }
}

/// Ports for second virtual servers.
struct Hidden {
    /// By family: visible ports of the Service, whatever their protocol, and hidden ones.
    taken: BTreeSet<(Family, NonZeroU16)>,
}

impl Hidden {
    fn of(service: &ServiceForwarding) -> Hidden {
        let visible = service.ports.iter().flat_map(|port| {
            let ports = port.frontends.iter().filter_map(cluster_ip);
            ports.map(|(_, number, _)| (port.family, number))
        });
        Hidden { taken: visible.collect() }
    }

    /// Far away from the visible port, where the first attempt mostly is good; `None` if all are taken.
    fn take(&mut self, family: Family, visible: NonZeroU16) -> Option<NonZeroU16> {
        let first = visible.get() ^ 0x8000;
        let candidates = (0..=u16::MAX).filter_map(|it| NonZeroU16::new(first.wrapping_add(it)));
        let port = candidates.into_iter().find(|it| !self.taken.contains(&(family, *it)))?;
        self.taken.insert((family, port));
        Some(port)
    }
}

#[cfg(test)]
mod tests;
