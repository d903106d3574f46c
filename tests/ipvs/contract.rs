//! The twin in memory does what the kernel does, whatever it is told.

use kube_ferry::ipvs::schema::{
    Batch, Destination, ObservedInterface, Op, Scheduler, ServerKey, VirtualServer,
};
use kube_ferry::kernel::memory::MemoryIpvs;
use kube_ferry::kernel::{Ipvs as _, IpvsSettings, NetlinkIpvs};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use super::witness::*;

const SERVERS: [&str; 5] = [
    "tcp 10.96.0.10:80",
    "udp 10.96.0.10:80",
    "tcp 10.96.0.11:80",
    "sctp [fd00::a]:80",
    "tcp [fd00::b]:80",
];
const ENDS: [&str; 4] = ["10.1.1.2:80", "10.1.1.2:81", "10.1.1.3:80", "[fd01::2]:80"];

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn memory_and_kernel_agree() {
    let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
    let batches = prop::collection::vec(prop::collection::vec(op(), 0..40), 1..6);
    TestRunner::new(config)
        .run(&batches, |batches| {
            isolated(|| agree(&batches));
            Ok(())
        })
        .unwrap();
}

fn agree(batches: &[Vec<Op>]) {
    let mut kernel = NetlinkIpvs::new(Vec::new()).unwrap();
    let mut memory = MemoryIpvs::default();
    let settings = IpvsSettings {
        exclude_cidrs: vec!["10.96.0.11/32".parse().unwrap()],
        ..IpvsSettings::default()
    };
    kernel.prepare(&settings).unwrap();
    memory.prepare(&settings).unwrap();
    for ops in batches {
        let batch: Batch = batch(ops);
        assert_eq!(kernel.commit(&batch).unwrap(), memory.commit(&batch).unwrap());
        let observed = kernel.observe().unwrap();
        assert_eq!(observed, memory.observe().unwrap());
        assert_eq!(kernel.outline().unwrap(), memory.outline().unwrap());
        let servers: Vec<ServerKey> = SERVERS.iter().map(|it| key(it)).collect();
        let sorted = |mut all: Vec<_>| {
            all.sort_by_key(|(key, end, _)| (*key, *end));
            all
        };
        assert_eq!(
            sorted(kernel.connections(&servers).unwrap()),
            sorted(memory.connections(&servers).unwrap())
        );
    }
    kernel.remove_interface().unwrap();
    memory.remove_interface().unwrap();
    let there: fn(Option<ObservedInterface>) -> bool = |it| it.is_some();
    assert_eq!(
        there(kernel.observe().unwrap().interface),
        there(memory.observe().unwrap().interface)
    );
}

fn op() -> impl Strategy<Value = Op> {
    let server = select(&SERVERS[..]).prop_map(key);
    let end = select(&ENDS[..]).prop_map(destination);
    let weight = select(&[0, 1, 65_535, 1 << 31][..]);
    (0usize..8, server, virtual_server(), end, weight).prop_map(operation)
}

fn operation(
    (kind, key, server, end, weight): (usize, ServerKey, VirtualServer, Destination, u32),
) -> Op {
    match kind {
        0 => Op::BindAddress(key.address),
        1 => Op::UnbindAddress(key.address),
        2 => Op::AddServer(key, server),
        3 => Op::SetServer(key, server),
        4 => Op::DeleteServer(key),
        5 => Op::AddDestination(key, end, weight),
        6 => Op::SetDestination(key, end, weight),
        _ => Op::DeleteDestination(key, end),
    }
}

fn virtual_server() -> impl Strategy<Value = VirtualServer> {
    let scheduler = select(&["rr", "wlc", "mh", "fastest"][..]);
    let persistence = select(&[None, Some(1), Some(86_400)][..]);
    (scheduler, persistence, 0u32..8).prop_map(|(name, persistence, flags)| VirtualServer {
        scheduler: Scheduler::new(name).unwrap(),
        persistence,
        scheduler_flags: flags << 3,
    })
}
