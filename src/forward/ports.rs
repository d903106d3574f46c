//! One Service: its frontends, and what serves them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::claims::{Claim, Claims, Title};
use super::select::{Candidate, Selection, SlicePorts, Uses, select};
use super::{
    Backend, Conflict, Frontend, FrontendAddress, FrontendKind, HealthCheck, PortForwarding,
    ServiceForwarding, Settings, WithoutBackend,
};
use crate::model::range::disjoint;
use crate::model::{
    Cluster, Family, Protocol, Service, ServiceFamily, ServiceId, ServicePort, SourceRanges,
    TrafficPolicy,
};

/// Everything that a Service claims, in the order of its ports.
pub(super) fn claims(service: &Service) -> Vec<(Claim, Title)> {
    let wanted = service.ports.iter().flat_map(|port| wanted(service, port));
    wanted.map(|it| (it.claim, it.title())).collect()
}

/// A frontend that a Service port asks for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    claim: Claim,
    kind: FrontendKind,
}

impl Wanted {
    fn title(self) -> Title {
        match self.kind {
            FrontendKind::ClusterIp => Title::Allocated,
            FrontendKind::ExternalIp | FrontendKind::LoadBalancerIp | FrontendKind::NodePort => {
                Title::Chosen
            }
        }
    }
}

fn wanted(service: &Service, port: &ServicePort) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for family in Family::ALL {
        let Some(addresses) = service.family(family) else { continue };
        let ask = |at, kind| Wanted { claim: Claim { family, protocol: port.protocol, at }, kind };
        let at = |address: IpAddr, kind| ask(FrontendAddress::Address(address, port.port), kind);
        wanted.push(at(addresses.cluster_ip, FrontendKind::ClusterIp));
        wanted.extend(addresses.external_ips.iter().map(|it| at(*it, FrontendKind::ExternalIp)));
        wanted.extend(
            addresses.load_balancer_ips.iter().map(|it| at(*it, FrontendKind::LoadBalancerIp)),
        );
        wanted.extend(
            port.node_port.map(|it| ask(FrontendAddress::NodePort(it), FrontendKind::NodePort)),
        );
    }
    wanted
}

/// Which port, and as what, gets an address that one Service asks for more than once. The first port by name; within
/// a port the cluster IP, then the load balancer's: its source ranges must hold on that address, as upstream's do.
fn winners_within(service: &Service) -> BTreeMap<Claim, (&str, u8)> {
    let mut winners = BTreeMap::new();
    for port in &service.ports {
        for wanted in wanted(service, port) {
            let bid = (&*port.name, precedence(wanted.kind));
            winners.entry(wanted.claim).and_modify(|it| *it = bid.min(*it)).or_insert(bid);
        }
    }
    winners
}

fn precedence(kind: FrontendKind) -> u8 {
    match kind {
        FrontendKind::ClusterIp => 0,
        FrontendKind::LoadBalancerIp => 1,
        FrontendKind::ExternalIp => 2,
        FrontendKind::NodePort => 3,
    }
}

/// Computes one Service's forwarding, and what it asks for but others have.
pub(super) fn forward(
    settings: &Settings,
    cluster: &Cluster,
    claims: &Claims,
    id: ServiceId,
) -> (ServiceForwarding, Vec<Conflict>) {
    let Some(service) = cluster.service(id) else { return Default::default() };
    let within = winners_within(service);
    let scope = Scope { cluster, claims, id, service, within: &within };
    let families = Family::ALL.map(|family| FamilyScope::of(settings, &scope, family));
    let (mut ports, mut conflicts) = (Vec::new(), Vec::new());
    for port in &service.ports {
        let won = scope.won(port, &mut conflicts);
        for family in families.iter().flatten() {
            let won: Vec<Wanted> =
                won.iter().copied().filter(|it| it.claim.family == family.family).collect();
            if !won.is_empty() {
                ports.push(family.port(service, port, &won));
            }
        }
    }
    // It is kept for as long as the Service lives, and most have one port.
    ports.shrink_to_fit();
    conflicts.sort_unstable();
    conflicts.dedup();
    let [v4, v6] = &families;
    let count = |it: &Option<FamilyScope<'_>>| it.as_ref().map(|it| it.slices.count_local());
    let health_check = service.health_check_node_port.map(|node_port| HealthCheck {
        node_port,
        local_v4: count(v4),
        local_v6: count(v6),
    });
    let ipvs_scheduler = service.ipvs_scheduler;
    (ServiceForwarding { ports, health_check, ipvs_scheduler }, conflicts)
}

/// What is looked at for one Service.
struct Scope<'a> {
    cluster: &'a Cluster,
    claims: &'a Claims,
    id: ServiceId,
    service: &'a Service,
    within: &'a BTreeMap<Claim, (&'a str, u8)>,
}

impl Scope<'_> {
    /// What a port gets of what it asks for; the rest becomes conflicts.
    fn won(&self, port: &ServicePort, conflicts: &mut Vec<Conflict>) -> Vec<Wanted> {
        let mut won = wanted(self.service, port);
        won.retain(|wanted| {
            let winner = self.claims.winner(&wanted.claim).unwrap_or(self.id);
            let (name, kind) = self.within.get(&wanted.claim).copied().unwrap_or_default();
            if winner != self.id || name != &*port.name {
                conflicts.extend(self.conflict(port, wanted.claim, winner));
                return false;
            }
            // The same port asks for the address twice, say as an external IP too: nothing is lost.
            kind == precedence(wanted.kind)
        });
        won
    }

    fn conflict(&self, port: &ServicePort, claim: Claim, winner: ServiceId) -> Option<Conflict> {
        Some(Conflict {
            loser: self.service.name.clone(),
            port_name: Arc::clone(&port.name),
            winner: self.cluster.name(winner)?.clone(),
            family: claim.family,
            protocol: claim.protocol,
            at: claim.at,
        })
    }
}

/// What all ports of a Service share in one family.
struct FamilyScope<'a> {
    family: Family,
    slices: SlicePorts<'a>,
    source_ranges: Option<Arc<[IpNet]>>,
    zone: Option<&'a str>,
    /// Who reaches these is restricted by `source_ranges`.
    load_balancer_ips: &'a [IpAddr],
}

impl<'a> FamilyScope<'a> {
    /// `None`: the Service does not exist in this family.
    fn of(settings: &Settings, scope: &Scope<'a>, family: Family) -> Option<Self> {
        let addresses = scope.service.family(family)?;
        let node_ip = settings
            .node_ip
            .filter(|it| Family::of(*it) == family)
            .or(scope.cluster.node_ip(family));
        Some(FamilyScope {
            family,
            slices: SlicePorts::of(scope.cluster.slices(scope.id), family),
            source_ranges: source_ranges(addresses, node_ip),
            zone: scope.cluster.node().and_then(|it| it.zone.as_deref()),
            load_balancer_ips: &addresses.load_balancer_ips,
        })
    }

    fn port(&self, service: &Service, port: &ServicePort, won: &[Wanted]) -> PortForwarding {
        let policies = |policy| won.iter().any(|it| policy_of(service, it.kind) == policy);
        let external = won.iter().any(|it| it.kind != FrontendKind::ClusterIp);
        // Every external destination needs the cluster set: under the Local policy pods and the node use it.
        let uses = Uses {
            cluster: policies(TrafficPolicy::Cluster) || external,
            local: policies(TrafficPolicy::Local),
        };
        let candidates = self.slices.candidates(&port.name, port.protocol);
        let selection = select(&candidates, uses, self.zone);
        PortForwarding {
            family: self.family,
            port_name: Arc::clone(&port.name),
            protocol: port.protocol,
            frontends: won.iter().map(|it| self.frontend(service, *it, &selection)).collect(),
            cluster: selection.cluster,
            local: selection.local,
            hairpin: selection.hairpin,
            weights: selection.weights,
            serving: serving(port.protocol, &candidates),
            affinity: service.affinity,
        }
    }

    fn frontend(&self, service: &Service, wanted: Wanted, selection: &Selection) -> Frontend {
        let policy = policy_of(service, wanted.kind);
        // Also where the load balancer has been given the Service's own cluster IP, which then is a cluster IP in all else.
        let restricted = match wanted.claim.at {
            FrontendAddress::Address(address, _) => self.load_balancer_ips.contains(&address),
            FrontendAddress::NodePort(_) => false,
        };
        Frontend {
            at: wanted.claim.at,
            kind: wanted.kind,
            policy,
            without_backend: without_backend(policy, selection),
            source_ranges: self.source_ranges.clone().filter(|_| restricted),
        }
    }
}

/// Every endpoint that serves, ready or terminating, near or far: UDP flows to it go on.
fn serving(protocol: Protocol, candidates: &[Candidate<'_>]) -> Vec<Backend> {
    let udp = candidates.iter().filter(|_| protocol == Protocol::Udp);
    udp.filter(|it| it.endpoint.serving).map(|it| it.backend).collect()
}

fn policy_of(service: &Service, kind: FrontendKind) -> TrafficPolicy {
    match kind {
        FrontendKind::ClusterIp => service.internal_policy,
        FrontendKind::ExternalIp | FrontendKind::LoadBalancerIp | FrontendKind::NodePort => {
            service.external_policy
        }
    }
}

/// Reference 4.1: outcome when the chosen set is empty.
fn without_backend(policy: TrafficPolicy, selection: &Selection) -> WithoutBackend {
    let chosen = match policy {
        TrafficPolicy::Cluster => &selection.cluster,
        TrafficPolicy::Local => &selection.local,
    };
    match (chosen.is_empty(), selection.has_any) {
        (false, _) => WithoutBackend::Served,
        (true, false) => WithoutBackend::Reject,
        (true, true) => WithoutBackend::Drop,
    }
}

/// Who may reach the load-balancer addresses (reference 2.5).
///
/// If the node's own address may, then so may the addresses themselves: the node's connections to one that it has
/// assigned locally carry that address as their source.
fn source_ranges(addresses: &ServiceFamily, node_ip: Option<IpAddr>) -> Option<Arc<[IpNet]>> {
    let SourceRanges::Only(ranges) = &addresses.source_ranges else { return None };
    let mut allowed = ranges.clone();
    if node_ip.is_some_and(|ip| ranges.iter().any(|it| it.contains(&ip))) {
        allowed.extend(addresses.load_balancer_ips.iter().map(|it| IpNet::from(*it)));
    }
    Some(disjoint(allowed).into())
}

#[cfg(test)]
mod tests;
