//! Which conntrack entries send packets to endpoints that are gone.
//!
//! UDP clients that keep their source port keep their conntrack entry, and with it the endpoint that the first
//! packet got. Once that endpoint is gone nobody resets such a "connection", so its entry has to be deleted; the next
//! packet is balanced anew. TCP and SCTP notice by themselves and are never touched.
//!
//! In come the UDP frontends that changed; [`Sweep::is_stale`] judges flows one by one, so that no list of flows is
//! ever held. Pure: who reads and deletes flows is `kernel::conntrack`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::forward::{Backend, FrontendAddress, ServiceForwarding};
use crate::model::{Family, Protocol};

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// A tracked UDP flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    pub original: Tuple,
    pub reply: Tuple,
    /// Conntrack zone; 0 unless somebody sorts flows into zones.
    pub zone: u16,
    /// The kernel's number for the entry, so that a later flow with the same addresses is not mistaken for it.
    pub id: u32,
}

/// The UDP frontends of one Service, with everybody who may still answer for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpFrontends(BTreeMap<(Family, FrontendAddress), Arc<[Backend]>>);

impl UdpFrontends {
    pub fn of(forwarding: &ServiceForwarding) -> UdpFrontends {
        let udp = forwarding.ports.iter().filter(|port| port.protocol == Protocol::Udp);
        UdpFrontends(
            udp.flat_map(|port| {
                let serving: Arc<[Backend]> = port.serving.as_slice().into();
                port.frontends
                    .iter()
                    .map(move |frontend| ((port.family, frontend.at), serving.clone()))
            })
            .collect(),
        )
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where they are.
    pub fn places(&self) -> impl Iterator<Item = (Family, FrontendAddress)> + '_ {
        self.0.keys().copied()
    }

    /// Leaves out all but those places.
    pub fn retain(&mut self, keep: impl Fn(&(Family, FrontendAddress)) -> bool) {
        self.0.retain(|place, _| keep(place));
    }
}

/// Frontends whose flows have to be looked at, and who may keep theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    frontends: BTreeMap<(Family, FrontendAddress), Arc<[Backend]>>,
    node_addresses: BTreeSet<IpAddr>,
}

impl Sweep {
    /// A Service's frontends were `before` and are `after` now. Frontends that are the same need no look.
    ///
    /// A frontend without backends is looked at like any other: nobody may answer for it. That a Service has been
    /// scaled to zero is no reason to keep its flows.
    pub fn add(&mut self, before: &UdpFrontends, after: &UdpFrontends) {
        let gone = before.0.keys().filter(|at| !after.0.contains_key(at));
        self.frontends.extend(gone.map(|at| (*at, Arc::default())));
        let changed = after.0.iter().filter(|(at, serving)| before.0.get(at) != Some(serving));
        self.frontends.extend(changed.map(|(at, serving)| (*at, serving.clone())));
    }

    /// A NodePort is ours on these addresses only; the same number on another host is somebody else's.
    pub fn set_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        self.node_addresses = addresses;
    }

    /// Adds a later sweep to one that is not done yet; where both speak of a frontend the later one is right.
    pub fn merge(&mut self, later: Sweep) {
        self.frontends.extend(later.frontends);
        self.node_addresses = later.node_addresses;
    }

    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty()
    }

    pub fn families(&self) -> BTreeSet<Family> {
        self.frontends.keys().map(|(family, _)| *family).collect()
    }

    /// Whether the flow goes to one of the frontends and is answered by nobody who serves it now. A flow that was
    /// never translated (it began before the Service) is answered by the frontend's own address, so it counts.
    pub fn is_stale(&self, flow: &Flow) -> bool {
        let answers = flow.reply.source;
        self.serving(flow.original.destination).is_some_and(|serving| {
            serving.iter().all(|it| it.address != answers.ip() || it.port.get() != answers.port())
        })
    }

    fn serving(&self, destination: SocketAddr) -> Option<&[Backend]> {
        let address = destination.ip();
        let family = Family::of(address);
        let port = destination.port().try_into().ok()?;
        let exact = self.frontends.get(&(family, FrontendAddress::Address(address, port)));
        let node_port = || {
            let ours = self.node_addresses.contains(&address);
            self.frontends.get(&(family, FrontendAddress::NodePort(port))).filter(|_| ours)
        };
        exact.or_else(node_port).map(AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU16;

    #[test]
    fn a_flow_to_an_endpoint_that_is_gone_is_stale() {
        check(
            "10.96.0.10:53=10.1.0.1:53",
            "10.96.0.10:53=10.1.0.2:53",
            "10.96.0.10:53",
            "10.1.0.1:53",
            true,
        );
    }

    #[test]
    fn a_flow_to_an_endpoint_that_stays_is_kept() {
        let both = "10.96.0.10:53=10.1.0.1:53,10.1.0.2:53";
        check(both, "10.96.0.10:53=10.1.0.2:53", "10.96.0.10:53", "10.1.0.2:53", false);
    }

    #[test]
    fn a_flow_to_the_right_address_and_an_old_port_is_stale() {
        check(
            "10.96.0.10:53=10.1.0.1:53",
            "10.96.0.10:53=10.1.0.1:5353",
            "10.96.0.10:53",
            "10.1.0.1:53",
            true,
        );
    }

    #[test]
    fn scaling_to_zero_and_deleting_the_service_leave_nobody_to_answer() {
        check("10.96.0.10:53=10.1.0.1:53", "10.96.0.10:53=", "10.96.0.10:53", "10.1.0.1:53", true);
        check("10.96.0.10:53=10.1.0.1:53", "", "10.96.0.10:53", "10.1.0.1:53", true);
    }

    #[test]
    fn a_flow_that_began_before_the_service_is_stale() {
        check("", "10.96.0.10:53=10.1.0.1:53", "10.96.0.10:53", "10.96.0.10:53", true);
    }

    #[test]
    fn unchanged_frontends_and_other_services_are_not_looked_at() {
        let same = "10.96.0.10:53=10.1.0.1:53";
        check(same, same, "10.96.0.10:53", "10.1.0.9:53", false);
        check("", same, "10.96.0.11:53", "10.1.0.9:53", false);
    }

    #[test]
    fn a_node_port_is_ours_on_the_nodes_addresses_only() {
        check(":30053=10.1.0.1:53", ":30053=10.1.0.2:53", "192.0.2.1:30053", "10.1.0.1:53", true);
        check(
            ":30053=10.1.0.1:53",
            ":30053=10.1.0.2:53",
            "203.0.113.5:30053",
            "203.0.113.5:30053",
            false,
        );
    }

    #[test]
    fn the_later_of_two_sweeps_is_right() {
        let mut sweep = Sweep::default();
        sweep.add(&frontends("10.96.0.10:53=10.1.0.1:53"), &frontends("10.96.0.10:53="));
        let mut later = Sweep::default();
        later.add(&frontends("10.96.0.10:53="), &frontends("10.96.0.10:53=10.1.0.1:53"));
        sweep.merge(later);
        assert!(!sweep.is_stale(&flow("10.96.0.10:53", "10.1.0.1:53")));
    }

    /// Frontends as `ADDRESS:PORT=BACKEND,...`, separated by blanks; an empty address is a NodePort.
    #[track_caller]
    fn check(before: &str, after: &str, destination: &str, answered_by: &str, stale: bool) {
        let mut sweep = Sweep::default();
        sweep.add(&frontends(before), &frontends(after));
        sweep.set_node_addresses(["192.0.2.1".parse().unwrap()].into());
        assert_eq!(sweep.is_stale(&flow(destination, answered_by)), stale);
    }

    fn frontends(text: &str) -> UdpFrontends {
        UdpFrontends(text.split_whitespace().map(frontend).collect())
    }

    fn frontend(text: &str) -> ((Family, FrontendAddress), Arc<[Backend]>) {
        let (at, backends) = text.split_once('=').unwrap();
        let at = match at.strip_prefix(':') {
            Some(port) => FrontendAddress::NodePort(port.parse().unwrap()),
            None => {
                let at: SocketAddr = at.parse().unwrap();
                FrontendAddress::Address(at.ip(), NonZeroU16::new(at.port()).unwrap())
            }
        };
        let backends = backends.split(',').filter(|it| !it.is_empty()).map(|it| {
            let it: SocketAddr = it.parse().unwrap();
            Backend { address: it.ip(), port: NonZeroU16::new(it.port()).unwrap() }
        });
        ((Family::V4, at), backends.collect())
    }

    fn flow(destination: &str, answered_by: &str) -> Flow {
        let client: SocketAddr = "10.1.0.50:40000".parse().unwrap();
        let original = Tuple { source: client, destination: destination.parse().unwrap() };
        let reply = Tuple { source: answered_by.parse().unwrap(), destination: client };
        Flow { original, reply, zone: 0, id: 1 }
    }
}
