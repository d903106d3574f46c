//! The traffic matrix of kube-proxy's nftables mode, walked through compiled tables.

use proptest::prelude::*;

use super::*;
use crate::forward::{
    Backend, Frontend, FrontendAddress, FrontendKind, PortForwarding, ServiceForwarding,
    WithoutBackend,
};
use crate::model::TrafficPolicy;
use crate::nft::compile::tests::laws::forwarding;
use crate::nft::compile::{Compiler, RowCounts};
use crate::nft::schema::{Key, Owner, SetName, Value};
use crate::nft::skeleton::tests::program;
use crate::nft::skeleton::{LocalDetector, NodePortAddresses, Program};

const POD: &str = "10.0.0.2";
const NODE: &str = "192.168.0.2";
const CLIENT: &str = "203.0.113.2";
const CLUSTER: &str = "10.0.1.1:8080 10.0.1.2:8080 10.0.1.3:8080";
const MASQUERADED: &str = "10.0.1.1:8080 10.0.1.2:8080 10.0.1.3:8080 masqueraded";
const LOCAL: &str = "10.0.1.2:8080";

#[test]
fn cluster_policy() {
    for affinity in [None, Some(60)] {
        let world = World::new(program(), &web(TrafficPolicy::Cluster, affinity));
        world.check(
            "cluster ip",
            [POD, NODE, CLIENT],
            "172.30.0.41:80",
            [CLUSTER, MASQUERADED, MASQUERADED],
        );
        for external in ["192.0.2.1:80", "192.168.0.2:30080"] {
            world.check("external", [POD, NODE, CLIENT], external, [MASQUERADED; 3]);
        }
    }
}

#[test]
fn local_policy() {
    for affinity in [None, Some(60)] {
        let world = World::new(program(), &web(TrafficPolicy::Local, affinity));
        world.check(
            "cluster ip",
            [POD, NODE, CLIENT],
            "172.30.0.41:80",
            [LOCAL, "10.0.1.2:8080 masqueraded", "10.0.1.2:8080 masqueraded"],
        );
        for external in ["192.0.2.1:80", "192.168.0.2:30080"] {
            world.check("external", [POD, NODE, CLIENT], external, [CLUSTER, MASQUERADED, LOCAL]);
        }
    }
}

#[test]
fn without_endpoints() {
    for affinity in [None, Some(60)] {
        for (without, fate) in [(WithoutBackend::Reject, "reject"), (WithoutBackend::Drop, "drop")]
        {
            let mut service = web(TrafficPolicy::Cluster, affinity);
            service.ports[0].cluster.clear();
            for frontend in &mut service.ports[0].frontends {
                frontend.without_backend = without;
            }
            let world = World::new(program(), &service);
            for to in ["172.30.0.41:80", "192.0.2.1:80", "192.168.0.2:30080"] {
                world.check("nobody", [POD, NODE, CLIENT], to, [fate; 3]);
            }
        }
    }
}

#[test]
fn local_policy_without_local_endpoint() {
    for affinity in [None, Some(60)] {
        let mut service = web(TrafficPolicy::Local, affinity);
        service.ports[0].local.clear();
        for frontend in &mut service.ports[0].frontends {
            frontend.without_backend = WithoutBackend::Drop;
        }
        let world = World::new(program(), &service);
        world.check("cluster ip", [POD, NODE, CLIENT], "172.30.0.41:80", ["drop"; 3]);
        for external in ["192.0.2.1:80", "192.168.0.2:30080"] {
            world.check(
                "short circuit",
                [POD, NODE, CLIENT],
                external,
                [CLUSTER, MASQUERADED, "drop"],
            );
        }
    }
}

#[test]
fn destinations_that_are_nobodys() {
    let world = World::new(program(), &web(TrafficPolicy::Cluster, None));
    world.check("another port", [POD, NODE, CLIENT], "172.30.0.41:81", ["reject"; 3]);
    world.check("no such cluster ip", [POD, NODE, CLIENT], "172.30.9.9:80", ["drop"; 3]);
    world.check("external, another port", [POD, NODE, CLIENT], "192.0.2.1:81", ["untouched"; 3]);
    world.check("nodeport elsewhere", [POD, NODE, CLIENT], "192.168.1.2:30080", ["untouched"; 3]);
    world.check("loopback", [NODE], "127.0.0.1:30080", ["untouched"]);
}

#[test]
fn all_local_addresses_accept_node_ports() {
    let mut program = program();
    program.v4.node_ports = NodePortAddresses::All;
    let mut service = web(TrafficPolicy::Cluster, None);
    let world = World::new(program.clone(), &service);
    world.check("any", [CLIENT, NODE], "192.168.1.2:30080", [MASQUERADED; 2]);
    world.check("loopback", [NODE], "127.0.0.1:30080", ["untouched"]);
    world.check("elsewhere", [NODE], "192.168.99.1:30080", ["untouched"]);
    service.ports[0].cluster.clear();
    service.ports[0].frontends[2].without_backend = WithoutBackend::Reject;
    let world = World::new(program, &service);
    world.check("nobody", [CLIENT, NODE], "192.168.1.2:30080", ["reject"; 2]);
}

#[test]
fn source_ranges() {
    let mut service = web(TrafficPolicy::Cluster, None);
    service.ports[0].frontends[1].source_ranges =
        Some(["203.0.113.0/25", "203.0.113.0/28"].map(|it| it.parse().unwrap()).into());
    let world = World::new(program(), &service);
    world.check("allowed", [CLIENT], "192.0.2.1:80", [MASQUERADED]);
    world.check("blocked", ["203.0.113.130", POD, NODE], "192.0.2.1:80", ["drop"; 3]);
    world.check("cluster ip", ["203.0.113.130"], "172.30.0.41:80", [MASQUERADED]);
}

#[test]
fn hairpin() {
    let mut service = web(TrafficPolicy::Cluster, None);
    service.ports[0].hairpin = vec!["10.0.1.2".parse().unwrap()];
    let world = World::new(program(), &service);
    let itself = "10.0.1.1:8080 10.0.1.2:8080 masqueraded 10.0.1.3:8080";
    world.check("local pod", ["10.0.1.2", "10.0.1.3"], "172.30.0.41:80", [itself, CLUSTER]);
}

#[test]
fn masquerade_all_and_no_detector() {
    let mut program = program();
    program.v4.detector = None;
    let service = web(TrafficPolicy::Local, None);
    let world = World::new(program.clone(), &service);
    world.check("nobody is marked", [POD, NODE, CLIENT], "172.30.0.41:80", [LOCAL; 3]);
    world.check(
        "pods are outside",
        [POD, NODE, CLIENT],
        "192.0.2.1:80",
        [LOCAL, MASQUERADED, LOCAL],
    );
    program.masquerade_all = true;
    let world = World::new(program, &service);
    world.check(
        "all are marked",
        [POD, NODE, CLIENT],
        "172.30.0.41:80",
        ["10.0.1.2:8080 masqueraded"; 3],
    );
}

#[test]
fn detectors_by_interface() {
    let mut program = program();
    for (detector, pod) in [
        (LocalDetector::Interface("eth0".to_owned()), true),
        (LocalDetector::InterfacePrefix("eth".to_owned()), true),
        (LocalDetector::Interface("eth".to_owned()), false),
    ] {
        program.v4.detector = Some(detector);
        let world = World::new(program.clone(), &web(TrafficPolicy::Cluster, None));
        let expected = if pod { CLUSTER } else { MASQUERADED };
        world.check("by interface", [CLIENT, NODE], "172.30.0.41:80", [expected, MASQUERADED]);
    }
}

#[test]
fn a_client_stays_with_its_endpoint_until_that_is_gone() {
    let mut world = World::new(program(), &web(TrafficPolicy::Cluster, Some(60)));
    let first = world.walk(CLIENT, "172.30.0.41:80");
    assert_eq!(first.remembered.len(), 3, "one for each endpoint that may be drawn");
    let memory = first.remembered.iter().nth(1).copied().unwrap();
    assert_eq!(memory.timeout, 60);
    world.remember(memory);
    // The one memory serves all addresses of the Service port.
    for to in ["172.30.0.41:80", "192.0.2.1:80", "192.168.0.2:30080"] {
        let outcome = world.walk(CLIENT, to);
        assert_eq!(outcome.backends().len(), 1, "{outcome}");
        assert_eq!(outcome.remembered, BTreeSet::from([memory]), "the timeout starts again");
    }
    world.check("others draw", [POD], "172.30.0.41:80", [CLUSTER]);
    let endpoints = world.tables.0.get_mut(&Family::V4).unwrap();
    let (_, rows) = endpoints.sets.get_mut(&SetName::StickyEndpoints).unwrap();
    rows.remove(&Key::Group(memory.endpoint));
    let (_, slots) = endpoints.sets.get_mut(&SetName::StickySlots).unwrap();
    slots.retain(|_, value| *value != Value::Handle(memory.endpoint));
    let outcome = world.walk(CLIENT, "172.30.0.41:80");
    assert_eq!(outcome.backends().len(), 2, "{outcome}");
    assert!(!outcome.remembered.contains(&memory), "what is stale is forgotten");
}

#[test]
fn every_number_of_endpoints_is_served_by_every_endpoint() {
    for count in (1..=70).chain([1000, 4096, 5000]) {
        let mut service = web(TrafficPolicy::Cluster, None);
        service.ports[0].cluster = (1..=count).map(|it| backend(0x0a01_0000 + it)).collect();
        let world = World::new(program(), &service);
        let outcome = world.walk(POD, "172.30.0.41:80");
        assert_eq!(outcome.fates.len(), count as usize);
        assert_eq!(outcome.backends().len(), count as usize, "no draw is lost");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever a Service is like, packets end up where the traffic matrix says.
    #[test]
    fn the_traffic_matrix_holds(service in forwarding(0)) {
        let world = World::new(program(), &service);
        for port in &service.ports {
            for frontend in &port.frontends {
                let to = match frontend.at {
                    FrontendAddress::Address(address, port) => format!("{address}:{port}"),
                    FrontendAddress::NodePort(port) => format!("{NODE}:{port}"),
                };
                for from in [POD, NODE, CLIENT] {
                    let outcome = world.walk(from, &to);
                    prop_assert_eq!(outcome.fates, expected(port, frontend, from), "{} -> {}", from, to);
                }
            }
        }
    }
}

/// The traffic matrix in other words than the program's.
fn expected(port: &PortForwarding, frontend: &Frontend, from: &str) -> BTreeSet<Fate> {
    let cluster_ip = frontend.kind == FrontendKind::ClusterIp;
    let local_policy = frontend.policy == TrafficPolicy::Local;
    if frontend.source_ranges.is_some() && from != POD {
        return BTreeSet::from([Fate::Dropped]);
    }
    let short_circuit = !cluster_ip && from != CLIENT;
    let backends = if local_policy && !short_circuit { &port.local } else { &port.cluster };
    let masqueraded = match (cluster_ip, local_policy) {
        (true, _) => from != POD,
        (false, false) => true,
        (false, true) => from == NODE,
    };
    if !backends.is_empty() {
        let fate = |it: &Backend| Fate::Backend { address: it.address, port: it.port, masqueraded };
        return backends.iter().map(fate).collect();
    }
    BTreeSet::from([match frontend.without_backend {
        WithoutBackend::Reject => Fate::Rejected,
        WithoutBackend::Drop => Fate::Dropped,
        // Does not happen; but then the address is nobody's.
        WithoutBackend::Served if cluster_ip => Fate::Rejected,
        WithoutBackend::Served => Fate::Untouched {
            // The mark comes before the draws.
            masqueraded: !stays_unmasqueraded(frontend, from) && masqueraded,
        },
    }])
}

/// What comes from elsewhere to the node itself never gets to postrouting.
fn stays_unmasqueraded(frontend: &Frontend, from: &str) -> bool {
    frontend.kind == FrontendKind::NodePort && from != NODE
}

struct World {
    tables: Tables,
    local: BTreeSet<IpAddr>,
}

impl World {
    fn new(program: Program, service: &ServiceForwarding) -> World {
        let mut compiler = Compiler::new(program);
        compiler.stage_skeleton(&RowCounts::default());
        compiler.stage(Owner(1), service);
        compiler.stage_node_port_ips(Family::V4, &BTreeSet::from([NODE.parse().unwrap()]));
        compiler.stage_service_cidrs(Family::V4, &["172.30.0.0/16".parse().unwrap()]);
        let mut tables = Tables::default();
        tables.apply(&compiler.batch()).unwrap();
        let local = [NODE, "192.168.1.2", "127.0.0.1"].map(|it| it.parse().unwrap()).into();
        World { tables, local }
    }

    #[track_caller]
    fn check<const N: usize>(&self, what: &str, from: [&str; N], to: &str, expected: [&str; N]) {
        let outcomes = from.map(|from| self.walk(from, to).to_string());
        assert_eq!(outcomes, expected, "{what}: {from:?} -> {to}");
    }

    fn walk(&self, from: &str, to: &str) -> Outcome {
        let to: std::net::SocketAddr = to.parse().unwrap();
        let source: IpAddr = from.parse().unwrap();
        let from = match self.local.contains(&source) {
            true => Origin::ThisNode,
            false => Origin::Interface("eth0".to_owned()),
        };
        let port = NonZeroU16::new(to.port()).unwrap();
        let packet = Packet { source, destination: to.ip(), protocol: Protocol::Tcp, port, from };
        walk(&self.tables, &self.local, &packet)
    }

    fn remember(&mut self, memory: Memory) {
        let table = self.tables.0.get_mut(&Family::V4).unwrap();
        let (_, rows) = table.sets.get_mut(&SetName::Affinity).unwrap();
        rows.insert(Key::Client(memory.client, memory.group), Value::Handle(memory.endpoint));
    }
}

/// A cluster IP, a load-balancer address and a NodePort, all under one policy; three endpoints, one of them local.
fn web(policy: TrafficPolicy, affinity: Option<u32>) -> ServiceForwarding {
    let frontend = |at, kind| Frontend {
        at,
        kind,
        policy,
        without_backend: WithoutBackend::Served,
        source_ranges: None,
    };
    let port = NonZeroU16::new(80).unwrap();
    let at = |address: &str| FrontendAddress::Address(address.parse().unwrap(), port);
    let node_port = FrontendAddress::NodePort(NonZeroU16::new(30_080).unwrap());
    let port = PortForwarding {
        family: Family::V4,
        port_name: "".into(),
        protocol: Protocol::Tcp,
        frontends: vec![
            frontend(at("172.30.0.41"), FrontendKind::ClusterIp),
            frontend(at("192.0.2.1"), FrontendKind::LoadBalancerIp),
            frontend(node_port, FrontendKind::NodePort),
        ],
        cluster: [1, 2, 3].map(|it| backend(0x0a00_0100 + it)).to_vec(),
        local: vec![backend(0x0a00_0102)],
        hairpin: Vec::new(),
        serving: Vec::new(),
        weights: Vec::new(),
        affinity,
    };
    ServiceForwarding { ports: vec![port], health_check: None, ipvs_scheduler: None }
}

fn backend(address: u32) -> Backend {
    Backend { address: IpAddr::V4(address.into()), port: NonZeroU16::new(8080).unwrap() }
}
