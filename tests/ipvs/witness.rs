//! A network namespace for one test, and what `ipvsadm` and `ip` say in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kube_ferry::ipvs::schema::{
    Batch, Destination, Observed, ObservedInterface, Op, Scheduler, ServerKey, VirtualServer,
};
use kube_ferry::kernel::{Ipvs, IpvsSettings, NetlinkIpvs, Refused};
use kube_ferry::model::Protocol;

use crate::support::{command, namespace};

/// Runs `body` in a new network namespace whose loopback interface is up.
pub(super) fn isolated<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let mut worlds = namespace::create(&["ipvs"]);
    let world = worlds.pop().unwrap();
    world.ip("link set lo up\n");
    world.run(body)
}

/// As [`isolated`], on a host that was made ready.
pub(super) fn prepared<T: Send>(body: impl FnOnce(&mut NetlinkIpvs) -> T + Send) -> T {
    isolated(|| {
        let mut ipvs = NetlinkIpvs::new(Vec::new()).unwrap();
        ipvs.prepare(&IpvsSettings::default()).unwrap();
        body(&mut ipvs)
    })
}

#[track_caller]
pub(super) fn ipvsadm(arguments: &str) -> String {
    command::run("ipvsadm", &arguments.split(' ').collect::<Vec<_>>(), "")
}

#[track_caller]
pub(super) fn ip(arguments: &str) -> String {
    command::run("ip", &arguments.split(' ').collect::<Vec<_>>(), "")
}

/// `ipvsadm -Sn`, each line with its virtual server, in order.
pub(super) fn saved() -> Vec<String> {
    let text = ipvsadm("-Sn");
    let mut lines: Vec<String> = text.lines().map(|it| it.trim().to_owned()).collect();
    lines.sort();
    lines
}

#[track_caller]
pub(super) fn check_saved(expected: &[&str]) {
    let mut expected: Vec<String> = expected.iter().map(|it| (*it).to_owned()).collect();
    expected.sort();
    assert_eq!(saved(), expected);
}

/// Addresses of kube-ipvs0 as `ip` lists them, e.g. `10.96.0.10/32`.
pub(super) fn bound() -> BTreeSet<String> {
    let text = ip("-o address show dev kube-ipvs0");
    text.lines().map(|it| it.split_whitespace().nth(3).unwrap().to_owned()).collect()
}

pub(super) fn batch(ops: &[Op]) -> Batch {
    Batch(ops.iter().map(|it| (None, *it)).collect())
}

/// Commits operations of which none may be refused.
#[track_caller]
pub(super) fn commit(ipvs: &mut dyn Ipvs, ops: &[Op]) {
    check_refused(ipvs, ops, &[]);
}

/// Commits operations of which those are refused, by position and errno.
#[track_caller]
pub(super) fn check_refused(ipvs: &mut dyn Ipvs, ops: &[Op], expected: &[(usize, i32)]) {
    let expected: Vec<Refused> =
        expected.iter().map(|(op, errno)| Refused { op: *op, errno: *errno }).collect();
    assert_eq!(ipvs.commit(&batch(ops)).unwrap(), expected);
}

/// `tcp 10.96.0.10:80`
pub(super) fn key(text: &str) -> ServerKey {
    let (protocol, end) = text.split_once(' ').unwrap();
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => panic!("{other}"),
    };
    let end: std::net::SocketAddr = end.parse().unwrap();
    ServerKey { protocol, address: end.ip(), port: end.port().try_into().unwrap() }
}

pub(super) fn destination(text: &str) -> Destination {
    let end: std::net::SocketAddr = text.parse().unwrap();
    Destination { address: end.ip(), port: end.port().try_into().unwrap() }
}

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn scheduled(name: &str) -> VirtualServer {
    let scheduler = Scheduler::new(name).unwrap();
    VirtualServer { scheduler, persistence: None, scheduler_flags: 0 }
}

pub(super) fn add(server: &str) -> Op {
    Op::AddServer(key(server), scheduled("rr"))
}

pub(super) fn add_to(server: &str, end: &str, weight: u32) -> Op {
    Op::AddDestination(key(server), destination(end), weight)
}

pub(super) fn bind(text: &str) -> Op {
    Op::BindAddress(address(text))
}

/// Virtual servers, each with destinations and their weights, for comparisons.
pub(super) fn weights(observed: &Observed) -> BTreeMap<ServerKey, BTreeMap<Destination, u32>> {
    let all = observed.servers.iter();
    all.map(|(key, server)| {
        (*key, server.destinations.iter().map(|(it, seen)| (*it, seen.weight)).collect())
    })
    .collect()
}

pub(super) fn addresses(all: &[&str]) -> BTreeSet<IpAddr> {
    all.iter().map(|it| address(it)).collect()
}

pub(super) fn ours(all: &[&str]) -> ObservedInterface {
    ObservedInterface { ours: true, addresses: addresses(all) }
}
