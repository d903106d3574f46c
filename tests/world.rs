//! The packet harness proves itself, without the proxy: if these fail, no other packet test means anything.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use kube_ferry::model::Protocol;

use crate::support::client::{ANSWER, Answer, Open, Outcome, SILENCE, ask};
use crate::support::statistics::is_balanced;
use crate::support::witness::{self, Monitor, Objects};
use crate::support::world::{Actor, HOST_NETWORK_PORT, POD_PORTS, World, twin};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

#[test]
fn everybody_reaches_the_pods_directly() {
    let world = World::new();
    for client in ["client", "pod-1a", "node-1", "outside", "blocked", "remote-client"] {
        for pod in ["pod-1b", "pod-2a", "pod-2h"] {
            let pod = actor(pod);
            for (address, protocol) in pairs(pod) {
                let answer = answer(&world, client, address, 8080, protocol);
                assert_eq!((answer.by.as_str(), answer.port), (pod.name, 8080));
                assert!(answer.source_kept(), "{answer:?}");
                assert_eq!(answer.seen.ip(), actor(client).address(address), "{client}");
            }
        }
    }
}

#[test]
fn the_nodes_are_reached_from_outside() {
    let world = World::new();
    for node in ["node-1", "node-2"] {
        for (address, protocol) in pairs(actor(node)) {
            let answer = answer(&world, "outside", address, HOST_NETWORK_PORT, protocol);
            assert_eq!(answer.by, node);
        }
    }
}

#[test]
fn silence_is_not_a_refusal() {
    let world = World::new();
    for protocol in PROTOCOLS {
        // No rule and no listener: the reset or unreachable of the pod's own stack must not get through.
        let address = IpAddr::from([10, 244, 1, 11]);
        let outcome = if protocol == Protocol::Sctp {
            // Raw sockets hear all ports, so this one has to miss the pods altogether.
            connect(&world, "outside", IpAddr::from([10, 244, 1, 20]), 7, protocol)
        } else {
            connect(&world, "outside", address, 7, protocol)
        };
        assert_eq!(outcome, Outcome::TimedOut, "{protocol}");
    }
}

#[test]
fn what_nobody_handles_is_answered_behind_the_node() {
    let mut world = World::new();
    let vip = [IpAddr::from([198, 51, 100, 7]), twin([198, 51, 100, 7].into()).into()];
    let own = actor("node-1-alternate").addresses();
    let listeners: Vec<(IpAddr, u16)> = vip.into_iter().chain(own).map(|it| (it, 30080)).collect();
    world.listen_behind(&listeners);
    for (address, port) in listeners {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for client in ["outside", "client", "node-1"] {
                let answer = answer(&world, client, address, port, protocol);
                assert_eq!(answer.by, "host", "{client} -> {address}/{protocol}");
            }
        }
    }
}

/// A small Service by hand: translation, masquerade, hairpin, rejection and drop, as seen by every client.
const BY_HAND: &str = "
    table ip by-hand {
        chain services {
            ip daddr 10.96.0.10 th dport 80 meta mark set 0x4000
            meta l4proto { tcp, udp, sctp } dnat ip to ip daddr . th dport map { 10.96.0.10 . 80 : 10.244.1.10 . 8080, 10.96.0.11 . 80 : 10.244.2.10 . 8081 }
        }
        chain prerouting { type nat hook prerouting priority -100; jump services; }
        chain output { type nat hook output priority -100; jump services; }
        chain postrouting { type nat hook postrouting priority 100; meta mark 0x4000 masquerade fully-random; }
        chain checks {
            ip daddr 10.96.0.12 reject
            ip daddr 10.96.0.13 drop
        }
        chain forward { type filter hook forward priority 0; jump checks; }
        chain filter-output { type filter hook output priority 0; jump checks; }
    }
    table ip6 by-hand {
        chain services {
            ip6 daddr fd00:10:96::10 th dport 80 meta mark set 0x4000
            meta l4proto { tcp, udp, sctp } dnat ip6 to ip6 daddr . th dport map { fd00:10:96::10 . 80 : fd00:10:244:1::10 . 8080, fd00:10:96::11 . 80 : fd00:10:244:2::10 . 8081 }
        }
        chain prerouting { type nat hook prerouting priority -100; jump services; }
        chain output { type nat hook output priority -100; jump services; }
        chain postrouting { type nat hook postrouting priority 100; meta mark 0x4000 masquerade fully-random; }
        chain checks {
            ip6 daddr fd00:10:96::12 reject
            ip6 daddr fd00:10:96::13 drop
        }
        chain forward { type filter hook forward priority 0; jump checks; }
        chain filter-output { type filter hook output priority 0; jump checks; }
    }";

#[test]
fn clients_see_what_rules_do() {
    let world = World::new();
    world.node().command("nft", &["-f", "-"], BY_HAND);
    thread::scope(|scope| {
        // pod-1a also meets itself: masqueraded, because else it would answer itself directly.
        for client in ["client", "outside", "node-1", "remote-client", "pod-1a"] {
            let world = &world;
            scope.spawn(move || sees_what_rules_do(world, client));
        }
    });
}

fn sees_what_rules_do(world: &World, client: &str) {
    for protocol in PROTOCOLS {
        for family in [0, 1] {
            let service = |last| [v4_service(last), twin_of(v4_service(last))][family];
            let reach = |last| answer(world, client, service(last), 80, protocol);
            let marked = reach(10);
            assert_eq!((marked.by.as_str(), marked.port), ("pod-1a", 8080), "{client}");
            assert!(!marked.source_kept(), "{client} {protocol} {marked:?}");
            let plain = reach(11);
            assert_eq!((plain.by.as_str(), plain.port), ("pod-2a", 8081), "{client}");
            assert!(plain.source_kept(), "{client} {protocol} {plain:?}");
            let rejected = connect_within(ANSWER, world, client, service(12), 80, protocol);
            assert_eq!(rejected, Outcome::Refused, "{client} {protocol}");
            let dropped = connect(world, client, service(13), 80, protocol);
            assert_eq!(dropped, Outcome::TimedOut, "{client} {protocol}");
        }
    }
}

#[test]
fn conntrack_tells_where_a_connection_went() {
    let world = World::new();
    world.node().command("nft", &["-f", "-"], BY_HAND);
    for protocol in PROTOCOLS {
        for address in [v4_service(10), twin_of(v4_service(10))] {
            let answer = answer(&world, "client", address, 80, protocol);
            let flows = witness::flows(world.node());
            let flow = flows.iter().find(|it| it.original.source == answer.sent);
            let flow = flow.unwrap_or_else(|| panic!("no flow of {answer:?} in {flows:?}"));
            assert_eq!(flow.protocol, protocol.name());
            assert_eq!(flow.original.destination, SocketAddr::new(address, 80));
            let pod = SocketAddr::new(actor("pod-1a").address(address), 8080);
            assert_eq!((flow.reply.source, flow.reply.destination), (pod, answer.seen));
        }
    }
}

#[test]
fn open_connections_keep_their_answer() {
    let world = World::new();
    world.node().command("nft", &["-f", "-"], BY_HAND);
    for protocol in PROTOCOLS {
        let client = actor("client");
        let to = SocketAddr::new(v4_service(11), 80);
        let open = world.home(client).run(|| Open::connect(client.v4.into(), to, protocol, ANSWER));
        let mut open = open.unwrap();
        let first = open.ask(ANSWER);
        assert_eq!(answered(&first).by, "pod-2a");
        assert_eq!(open.ask(ANSWER), first);
    }
}

#[test]
fn a_random_draw_is_balanced_and_a_slanted_one_is_not() {
    let world = World::new();
    world.node().command(
        "nft",
        &["-f", "-"],
        "table ip by-hand {
            chain prerouting { type nat hook prerouting priority -100
                ip daddr 10.96.0.10 tcp dport 80 dnat to numgen random mod 3 map { 0 : 10.244.1.10, 1 : 10.244.1.11, 2 : 10.244.2.10 }
                ip daddr 10.96.0.11 tcp dport 80 dnat to numgen random mod 4 map { 0 : 10.244.1.10, 1 : 10.244.1.11, 2 : 10.244.2.10, 3 : 10.244.2.10 }
            }
        }",
    );
    let counts = |last| -> Vec<u32> {
        let names: Vec<String> = world.home(actor("client")).run(|| {
            let to = SocketAddr::new(v4_service(last), 80);
            let one = || ask(actor("client").v4.into(), to, Protocol::Tcp, ANSWER);
            (0..600).map(|_| answered(&one()).by).collect()
        });
        let count =
            |pod: &str| u32::try_from(names.iter().filter(|it| *it == pod).count()).unwrap();
        ["pod-1a", "pod-1b", "pod-2a"].map(count).to_vec()
    };
    assert!(is_balanced(&counts(10)));
    assert!(!is_balanced(&counts(11)));
}

#[test]
fn the_monitor_hears_every_write_and_nothing_else() {
    let world = World::new();
    let mut monitor = Monitor::start(world.node());
    assert_eq!(monitor.heard(), Vec::<String>::new());
    world.node().command("nft", &["add", "table", "ip", "noise"], "");
    assert_eq!(monitor.heard(), ["add table ip noise"]);
    assert_eq!(monitor.heard(), Vec::<String>::new());
}

#[test]
fn objects_and_rows_are_counted_by_table() {
    let world = World::new();
    world.node().command(
        "nft",
        &["-f", "-"],
        "table ip counted {
            set addresses { type ipv4_addr; elements = { 10.0.0.2, 10.0.0.1 } }
            map ports { type inet_service : verdict; elements = { 80 : accept } }
            chain one { ip daddr @addresses accept; tcp dport vmap @ports; }
        }
        table ip6 counted { }",
    );
    let expected = Objects { tables: 2, chains: 1, rules: 2, sets: 2 };
    assert_eq!(witness::objects(world.node(), "counted"), expected);
    let rows = |set| witness::rows(world.node(), "ip", "counted", set);
    assert_eq!(rows("addresses"), ["\"10.0.0.1\"", "\"10.0.0.2\""]);
    assert_eq!(rows("ports"), ["[80,{\"accept\":null}]"]);
    let holds =
        |last| witness::contains(world.node(), "counted", "addresses", [10, 0, 0, last].into());
    assert!(holds(1) && !holds(3));
}

#[test]
fn every_pod_port_answers_once() {
    let mut ports = POD_PORTS.to_vec();
    ports.dedup();
    assert_eq!(ports.len(), POD_PORTS.len());
}

fn actor(name: &str) -> Actor {
    Actor::find(name).unwrap_or_else(|| panic!("no actor {name}"))
}

fn v4_service(last: u8) -> IpAddr {
    IpAddr::from([10, 96, 0, last])
}

fn twin_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => twin(v4).into(),
        IpAddr::V6(_) => address,
    }
}

fn pairs(actor: Actor) -> impl Iterator<Item = (IpAddr, Protocol)> {
    let addresses = actor.addresses();
    addresses.into_iter().flat_map(|address| PROTOCOLS.map(|protocol| (address, protocol)))
}

/// Waits as long as an answer may take on a busy machine.
#[track_caller]
fn answer(world: &World, client: &str, to: IpAddr, port: u16, protocol: Protocol) -> Answer {
    let outcome = connect_within(ANSWER, world, client, to, port, protocol);
    let Outcome::Answered(answer) = outcome else {
        panic!("{client} -> {to}:{port}/{protocol}: {outcome}")
    };
    answer
}

/// Waits only as long as it takes to call it silence.
fn connect(world: &World, client: &str, to: IpAddr, port: u16, protocol: Protocol) -> Outcome {
    connect_within(SILENCE, world, client, to, port, protocol)
}

fn connect_within(
    patience: Duration,
    world: &World,
    client: &str,
    to: IpAddr,
    port: u16,
    protocol: Protocol,
) -> Outcome {
    let client = actor(client);
    let to = SocketAddr::new(to, port);
    world.home(client).run(|| ask(client.address(to.ip()), to, protocol, patience))
}

#[track_caller]
fn answered(outcome: &Outcome) -> Answer {
    let Outcome::Answered(answer) = outcome else { panic!("{outcome}") };
    answer.clone()
}
