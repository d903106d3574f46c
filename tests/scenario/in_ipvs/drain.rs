//! Endpoints that are gone keep their connections for a while, and get no new ones.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use kube_ferry::model::Family;
use socket2::{Domain, Protocol, Socket, Type};

use super::scene::{Scene, scene};
use crate::support::world::{Actor, twin};

const HTTP: &str = "-t 10.96.0.10:80";

/// A Service whose one endpoint is pod-1b, with a connection, and then pod-2a as well. Nobody but that connection has
/// been at pod-1b.
const OPEN: &str = "\
apply Service default/web
  spec:
    clusterIPs: [10.96.0.10, \"fd00:10:96::10\"]
    ports: [{name: http, port: 80}]
endpoints default/web http=8080/tcp
  pod-1b
open old: client -> 10.96.0.10:80/tcp = pod-1b
endpoints default/web http=8080/tcp
  pod-1b
  pod-2a
";

const GONE: &str = "\
gone default/web pod-1b
again old = pod-1b
flow client -> 10.96.0.10:80/tcp = pod-2a
flow node-1 -> 10.96.0.10:80/tcp = pod-2a
again old = pod-1b
";

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn an_endpoint_that_is_gone_keeps_its_connection_and_goes_with_it() {
    scene("", |scene| {
        scene.play(OPEN);
        scene.lists(HTTP, &["pod-1b 1", "pod-2a 1"]);
        scene.play(GONE);
        scene.lists(HTTP, &["pod-1b 0", "pod-2a 1"]);
        has_one_connection(scene);
        scene.hang_up("old");
        scene.lists(HTTP, &["pod-2a 1"]);
        scene.play("flow client -> 10.96.0.10:80/tcp = pod-2a\n");
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn it_goes_at_the_bound_although_the_connection_is_open() {
    let bound = 4;
    scene(&format!("--ipvs-drain-timeout={bound}s"), |scene| {
        scene.play(OPEN);
        let began = now();
        scene.play("gone default/web pod-1b\n");
        scene.lists(HTTP, &["pod-2a 1"]);
        assert!(began.elapsed() >= Duration::from_secs(bound), "{:?}", began.elapsed());
        scene.play("flow client -> 10.96.0.10:80/tcp = pod-2a\n");
    });
}

/// nft translates these to the cluster IP, so IPVS sees their first packet and the replies, and conntrack alone carries
/// the rest: IPVS counts them, and they go on even beyond the bound.
#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn connections_from_outside_go_on_beyond_the_bound() {
    scene("", |scene| {
        scene.play(
            "apply Service default/web\n  spec: {type: NodePort, clusterIPs: [10.96.0.10, \"fd00:10:96::10\"], \
             externalIPs: [198.51.100.8, \"2001:db8:100::8\"], ports: [{name: http, port: 80, nodePort: 30080}]}\n\
             endpoints default/web http=8080/tcp\n  pod-1b\n\
             open port: outside -> 192.0.2.1:30080/tcp = pod-1b\n\
             open address: outside -> 198.51.100.8:80/tcp = pod-1b\n\
             endpoints default/web http=8080/tcp\n  pod-2a\n",
        );
        const GO_ON: &str = "again port = pod-1b\nagain address = pod-1b\n";
        scene.play(GO_ON);
        scene.lists(HTTP, &["pod-1b 0", "pod-2a 1"]);
        for family in Family::ALL {
            let listed = scene.destination(HTTP, "pod-1b", family);
            assert_eq!((listed.active, listed.inactive), (2, 0), "{family:?}");
        }
        scene.play(
            "flow outside -> 192.0.2.1:30080/tcp = pod-2a\nflow outside -> 198.51.100.8:80/tcp = pod-2a\n",
        );
        scene.play(GO_ON);
        scene.play("upgrade --ipvs-drain-timeout=2s\n");
        scene.lists(HTTP, &["pod-2a 1"]);
        scene.play(GO_ON);
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_restart_in_between_changes_nothing() {
    scene("", |scene| {
        scene.play(OPEN);
        scene.play(GONE);
        for restart in ["restart\n", "restart killed\n"] {
            scene.play(restart);
            scene.play(
                "again old = pod-1b\nflow client -> 10.96.0.10:80/tcp = pod-2a\nagain old = pod-1b\n",
            );
            scene.lists(HTTP, &["pod-1b 0", "pod-2a 1"]);
            has_one_connection(scene);
        }
        scene.hang_up("old");
        scene.lists(HTTP, &["pod-2a 1"]);
    });
}

/// While the proxy was away nobody counted; the bound counts from its return.
#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn the_bound_holds_after_a_restart() {
    scene("", |scene| {
        scene.play(OPEN);
        scene.play(GONE);
        scene.lists(HTTP, &["pod-1b 0", "pod-2a 1"]);
        let bound = 3;
        let began = now();
        scene.play(&format!("upgrade --ipvs-drain-timeout={bound}s\n"));
        scene.lists(HTTP, &["pod-2a 1"]);
        assert!(began.elapsed() >= Duration::from_secs(bound), "{:?}", began.elapsed());
        scene.play("flow client -> 10.96.0.10:80/tcp = pod-2a\n");
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn one_that_returns_keeps_its_connection_and_gets_new_ones() {
    scene("", |scene| {
        scene.play(OPEN);
        // A second one that does not return.
        scene.play(
            "endpoints default/web http=8080/tcp\n  pod-2a\nopen other: client -> 10.96.0.10:80/tcp = pod-2a\n",
        );
        scene.lists(HTTP, &["pod-1b 0", "pod-2a 1"]);
        scene.play("endpoints default/web http=8080/tcp\n  pod-1b\n  pod-2b\n");
        scene.lists(HTTP, &["pod-1b 1", "pod-2a 0", "pod-2b 1"]);
        has_one_connection(scene);
        scene.play(
            "again old = pod-1b\nagain other = pod-2a\nflow client -> 10.96.0.10:80/tcp = pod-1b pod-2b\n",
        );
        // The other one has had its time soon; the one that returned has none.
        scene.play("upgrade --ipvs-drain-timeout=2s\n");
        scene.lists(HTTP, &["pod-1b 1", "pod-2b 1"]);
        scene.play("again old = pod-1b\nflow client -> 10.96.0.10:80/tcp = pod-1b pod-2b\n");
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_service_that_is_deleted_keeps_its_connections_too() {
    scene("", |scene| {
        scene.play(OPEN);
        scene.play(
            "delete Service default/web\ndelete endpoints default/web\nagain old = pod-1b\n\
             flow client -> 10.96.0.10:80/tcp = drop\nagain old = pod-1b\n",
        );
        // Where nobody was there is nothing to wait for.
        scene.lists(HTTP, &["pod-1b 0"]);
        scene.hang_up("old");
        scene.lists(HTTP, &[]);
        let bound = scene.world.node().command("ip", &["address", "show", "dev", "kube-ipvs0"], "");
        assert!(!bound.contains("10.96.0.10/") && !bound.contains("fd00:10:96::10/"), "{bound}");
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_flow_of_udp_stays_while_its_endpoint_serves_and_then_moves() {
    const DNS: &str = "-u 10.96.0.53:53";
    scene("", |scene| {
        scene.play(
            "apply Service default/dns\n  spec: {clusterIPs: [10.96.0.53, \"fd00:10:96::53\"], \
             ports: [{name: dns, port: 53, protocol: UDP}]}\n\
             endpoints default/dns dns=5353/udp\n  pod-1b\n\
             open flow: client -> 10.96.0.53:53/udp = pod-1b\n\
             endpoints default/dns dns=5353/udp\n  pod-1b terminating\n  pod-2a\n\
             again flow = pod-1b\nflow client -> 10.96.0.53:53/udp = pod-2a\nagain flow = pod-1b\n",
        );
        scene.lists(DNS, &["pod-1b 0", "pod-2a 1"]);
        scene.play("restart killed\nagain flow = pod-1b\ngone default/dns pod-1b\n");
        // At once: there was a connection just now.
        scene.lists(DNS, &["pod-2a 1"]);
        scene.play("again flow = pod-2a, eventually\nagain flow = pod-2a\n");
    });
}

/// With SCTP of the kernel, since IPVS waits for the end of associations that were really made.
#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn sctp_drains_as_tcp_does() {
    const SIGNAL: &str = "--sctp-service 10.96.0.38:38";
    scene("", |scene| {
        let (first, second) = ("client", "remote-client");
        let listeners: Vec<(&str, Socket)> = [first, second]
            .into_iter()
            .flat_map(|pod| Family::ALL.map(|family| (pod, listen(scene, pod, family))))
            .collect();
        let accept = |pod: &str, family| accepted(&listeners, pod, family);
        scene.play(
            "apply Service default/signal\n  spec: {clusterIPs: [10.96.0.38, \"fd00:10:96::38\"], \
             ports: [{name: m3ua, port: 38, protocol: SCTP}]}\n\
             endpoints default/signal m3ua=2905/sctp\n  client\n",
        );
        let mut old = Family::ALL.map(|family| {
            let near = connect(scene, family);
            (near, accept(first, family))
        });
        scene.play("endpoints default/signal m3ua=2905/sctp\n  remote-client\n");
        scene.lists(SIGNAL, &["client 0", "remote-client 1"]);
        for (family, (near, far)) in Family::ALL.into_iter().zip(&mut old) {
            let listed = scene.destination(SIGNAL, first, family);
            assert_eq!((listed.active, listed.inactive), (1, 0), "{family:?}");
            converse(near, far);
            let mut new = connect(scene, family);
            converse(&mut new, &mut accept(second, family));
            converse(near, far);
        }
        scene.play("restart killed\n");
        old.iter_mut().for_each(|(near, far)| converse(near, far));
        // IPVS remembers an association for a minute after its end; that is not waited for.
        scene.play("upgrade --ipvs-drain-timeout=2s\n");
        scene.lists(SIGNAL, &["remote-client 1"]);
    });
}

fn has_one_connection(scene: &Scene<'_, '_>) {
    for family in Family::ALL {
        let listed = scene.destination(HTTP, "pod-1b", family);
        assert_eq!((listed.active, listed.inactive), (1, 0), "{family:?}");
    }
}

const M3UA: u16 = 2905;

fn sctp(domain: Domain) -> Socket {
    Socket::new(domain, Type::STREAM, Some(Protocol::from(132))).unwrap()
}

fn domain(family: Family) -> Domain {
    match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    }
}

fn address(name: &str, family: Family) -> IpAddr {
    Actor::find(name).unwrap().addresses()[usize::from(family == Family::V6)]
}

fn listen(scene: &Scene<'_, '_>, pod: &str, family: Family) -> Socket {
    scene.world.home(Actor::find(pod).unwrap()).run(|| {
        let socket = sctp(domain(family));
        socket.bind(&SocketAddr::new(address(pod, family), M3UA).into()).unwrap();
        socket.listen(8).unwrap();
        socket
    })
}

/// From pod-1a. An address of its own, so that the association has no other ones.
fn connect(scene: &Scene<'_, '_>, family: Family) -> TcpStream {
    let service = Ipv4Addr::new(10, 96, 0, 38);
    let to: IpAddr = match family {
        Family::V4 => service.into(),
        Family::V6 => twin(service).into(),
    };
    scene.world.home(Actor::find("pod-1a").unwrap()).run(|| {
        let socket = sctp(domain(family));
        socket.bind(&SocketAddr::new(address("pod-1a", family), 0).into()).unwrap();
        socket.connect(&SocketAddr::new(to, 38).into()).unwrap();
        socket.into()
    })
}

fn accepted(listeners: &[(&str, Socket)], pod: &str, family: Family) -> TcpStream {
    let is_it = |it: &&(&str, Socket)| it.0 == pod && it.1.domain().unwrap() == domain(family);
    listeners.iter().find(is_it).unwrap().1.accept().unwrap().0.into()
}

/// Bytes both ways.
fn converse(near: &mut TcpStream, far: &mut TcpStream) {
    let tell = |from: &mut TcpStream, to: &mut TcpStream| {
        from.write_all(b"?").unwrap();
        let mut byte = [0];
        to.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"?");
    };
    tell(near, far);
    tell(far, near);
}

#[expect(clippy::disallowed_methods, reason = "a lower limit of what passes by itself")]
fn now() -> Instant {
    Instant::now()
}
