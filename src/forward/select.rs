//! Which endpoints of a Service port are used (reference 3.3 and 3.4).

use std::cmp::Reverse;
use std::net::IpAddr;
use std::num::NonZeroU16;

use super::Backend;
use super::topology::topology;
use crate::model::{Endpoint, Family, Protocol, SliceContent, SlicePort};

/// An endpoint under one port number.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub backend: Backend,
    pub endpoint: &'a Endpoint,
    /// Of its slice.
    pub weight: Option<NonZeroU16>,
}

/// Which sets a port needs (reference 2.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uses {
    /// Some destination follows the Cluster policy, or lets pods and the node itself do so.
    pub cluster: bool,
    /// Some destination follows the Local policy.
    pub local: bool,
}

/// The usable endpoints of one Service port in one family. Lists are sorted, without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub cluster: Vec<Backend>,
    pub local: Vec<Backend>,
    /// Addresses of usable endpoints on this node.
    pub hairpin: Vec<IpAddr>,
    /// Those of `cluster` and `local` that have a weight other than 1.
    pub weights: Vec<(Backend, NonZeroU16)>,
    /// There are usable endpoints, perhaps only on other nodes and out of reach from here.
    pub has_any: bool,
}

/// The ports of a Service's slices in one family, found by name and protocol.
#[derive(Clone, Debug)]
pub struct SlicePorts<'a>(Vec<SlicePortOf<'a>>);

#[derive(Clone, Copy, Debug)]
struct SlicePortOf<'a> {
    key: (&'a str, Protocol),
    number: NonZeroU16,
    endpoints: &'a [Endpoint],
    weight: Option<NonZeroU16>,
}

impl<'a> SlicePorts<'a> {
    pub fn of(slices: impl Iterator<Item = SliceContent<'a>>, family: Family) -> Self {
        let slices = slices.filter(|it| it.family == family);
        let mut ports: Vec<SlicePortOf<'a>> = slices
            .flat_map(|slice| {
                let of = |port: &'a SlicePort| (&*port.name, port.protocol);
                slice.ports.iter().map(move |port| SlicePortOf {
                    key: of(port),
                    number: port.port,
                    endpoints: slice.endpoints,
                    weight: slice.ipvs_weight,
                })
            })
            .collect();
        ports.sort_unstable_by_key(|it| it.key);
        SlicePorts(ports)
    }

    /// All endpoints of a port, sorted by address and port, each pair once.
    ///
    /// If a pair occurs more than once, one that does not terminate wins (reference 3.3). Kubernetes leaves the
    /// choice open between others; here the better condition decides, so that the order of slices does not matter.
    pub fn candidates(&self, name: &str, protocol: Protocol) -> Vec<Candidate<'a>> {
        let key = (name, protocol);
        let begin = self.0.partition_point(|it| it.key < key);
        let those = self.0.iter().skip(begin).take_while(|it| it.key == key);
        let mut candidates: Vec<Candidate<'a>> = those
            .flat_map(|port| {
                let backend = |it: &Endpoint| Backend { address: it.address, port: port.number };
                port.endpoints.iter().map(move |endpoint| Candidate {
                    backend: backend(endpoint),
                    endpoint,
                    weight: port.weight,
                })
            })
            .collect();
        candidates
            .sort_unstable_by_key(|it| (it.backend, Reverse((preference(it.endpoint), it.weight))));
        candidates.dedup_by_key(|it| it.backend);
        candidates
    }

    /// Number of distinct addresses of ready endpoints on this node, over all ports (reference 3.6).
    pub fn count_local(&self) -> u32 {
        let ports = self.0.chunk_by(|a, b| a.key == b.key).filter_map(|it| it.first());
        let candidates = ports.flat_map(|it| self.candidates(it.key.0, it.key.1));
        let mut addresses: Vec<IpAddr> = candidates
            .filter(|it| it.endpoint.local && it.endpoint.ready)
            .map(|it| it.backend.address)
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        u32::try_from(addresses.len()).unwrap_or(u32::MAX)
    }
}

/// Orders contradicting statements about one endpoint. Total, up to statements that are equal.
fn preference(endpoint: &Endpoint) -> impl Ord + use<'_> {
    let Endpoint { address: _, ready, serving, terminating, local, node_hint, zone_hints } =
        endpoint;
    (!terminating, ready, serving, local, node_hint, zone_hints)
}

/// Chooses among the endpoints of one port.
pub fn select(candidates: &[Candidate<'_>], uses: Uses, zone: Option<&str>) -> Selection {
    let cluster = if uses.cluster { cluster(candidates, zone) } else { Vec::new() };
    let local = if uses.local { local(candidates) } else { Vec::new() };
    let chosen = || cluster.iter().chain(&local);
    // Reachable is the union of both sets, whichever way reference 3.4 spells it: what it leaves out of the union
    // is in the cluster set already.
    let mut hairpin: Vec<IpAddr> =
        chosen().filter(|it| it.endpoint.local).map(|it| it.backend.address).collect();
    hairpin.sort_unstable();
    hairpin.dedup();
    let weighted = |it: &Candidate<'_>| Some((it.backend, it.weight.filter(|it| it.get() != 1)?));
    let mut weights: Vec<_> = chosen().filter_map(weighted).collect();
    weights.sort_unstable();
    weights.dedup();
    let usable = |it: &Candidate<'_>| it.endpoint.ready || is_fallback(it.endpoint);
    let has_any = !cluster.is_empty() || (uses.local && candidates.iter().any(usable));
    let (cluster, local) = (backends(&cluster), backends(&local));
    Selection { cluster, local, hairpin, weights, has_any }
}

fn cluster<'a>(candidates: &[Candidate<'a>], zone: Option<&str>) -> Vec<Candidate<'a>> {
    let endpoints: Vec<&Endpoint> = candidates.iter().map(|it| it.endpoint).collect();
    let topology = topology(&endpoints, zone);
    ready_or_fallback(candidates, |it| topology.admits(it), |_| true)
}

fn local<'a>(candidates: &[Candidate<'a>]) -> Vec<Candidate<'a>> {
    ready_or_fallback(candidates, |it| it.local, |it| it.local)
}

/// Ready endpoints; only if there is none, those that terminate but still serve. Never a mixture.
fn ready_or_fallback<'a>(
    candidates: &[Candidate<'a>],
    ready: impl Fn(&Endpoint) -> bool,
    fallback: impl Fn(&Endpoint) -> bool,
) -> Vec<Candidate<'a>> {
    let those = |wanted: &dyn Fn(&Endpoint) -> bool| {
        candidates.iter().copied().filter(|it| wanted(it.endpoint)).collect::<Vec<_>>()
    };
    let chosen = those(&|it| it.ready && ready(it));
    if chosen.is_empty() { those(&|it| is_fallback(it) && fallback(it)) } else { chosen }
}

fn is_fallback(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

fn backends(candidates: &[Candidate<'_>]) -> Vec<Backend> {
    candidates.iter().map(|it| it.backend).collect()
}

#[cfg(test)]
mod tests;
