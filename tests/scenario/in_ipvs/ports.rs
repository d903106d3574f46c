//! Clients that connect from one and the same port again and again.
//!
//! IPVS may drop the first packet of such a connection, and the client then waits a second before it sends another one
//! (reference 6.1: `conn_reuse_mode`). How long it took tells little on a busy machine. So packets are counted: every
//! first packet that comes in goes out to a pod as well.

use std::net::{Ipv4Addr, SocketAddr};

use kube_ferry::model::Family;

use super::super::datapath::Reach;
use super::super::run::classify;
use super::scene::{Scene, scene};
use crate::support::client::{ANSWER, Open};
use crate::support::patience::{LONG, poll};
use crate::support::world::{Actor, twin};

const PORT: u16 = 45_000;

/// Of each client, one after the other.
const CONNECTIONS: usize = 6;

const WEB: &str = "\
apply Service default/web
  spec:
    type: NodePort
    clusterIPs: [10.96.0.10, \"fd00:10:96::10\"]
    ports: [{name: http, port: 80, nodePort: 30080}]
endpoints default/web http=8080/tcp
  pod-1b
  pod-2a
";

/// Resets have to reach the pods, which would otherwise go on with a connection that the client has ended.
const COUNTERS: &str = "
    flush chain inet witness leaving
    table inet first-packets {
        counter come {}
        counter gone {}
        chain coming { type filter hook prerouting priority -300
            tcp sport 45000 tcp flags & (syn | ack) == syn counter name come
        }
        chain going { type filter hook postrouting priority 300
            tcp dport 8080 ct original proto-src 45000 tcp flags & (syn | ack) == syn counter name gone
        }
    }
";

/// How a client ends its connections.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Reset,
    Finished,
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_port_that_is_used_again_is_answered_at_once() {
    scene("--ipvs-drain-timeout=2s", |scene| {
        scene.play(WEB);
        scene.world.node().command("nft", &["-f", "-"], COUNTERS);
        let check_all = |scene: &Scene<'_, '_>, ending, pods: &[&str]| {
            routes().into_iter().for_each(|(client, to)| check(scene, client, to, ending, pods));
        };
        check_all(scene, Ending::Reset, &["pod-1b", "pod-2a"]);
        check_all(scene, Ending::Finished, &["pod-1b", "pod-2a"]);
        // From here on the only endpoint goes each time, so all clients have been there last: one that drains, one that
        // is deleted already, and one that drains again.
        scene.play("gone default/web pod-2a\n");
        check_all(scene, Ending::Finished, &["pod-1b"]);
        scene.play("endpoints default/web http=8080/tcp\n  pod-2a\n");
        scene.lists("-t 10.96.0.10:80", &["pod-2a 1"]);
        check_all(scene, Ending::Finished, &["pod-2a"]);
        scene.play("endpoints default/web http=8080/tcp\n  pod-1b\n");
        check_all(scene, Ending::Reset, &["pod-1b"]);
        scene.play("endpoints default/web http=8080/tcp\n  pod-2a\n");
        check_all(scene, Ending::Reset, &["pod-2a"]);
        assert!(packets(scene, "come") > 100, "they were counted");
    });
}

/// The cluster IP from a pod, a NodePort from outside, which is masqueraded.
fn routes() -> Vec<(Actor, SocketAddr)> {
    let mut routes = Vec::new();
    for (client, address, port) in [("client", "10.96.0.10", 80), ("outside", "192.0.2.1", 30080)] {
        let v4: Ipv4Addr = address.parse().unwrap();
        for family in Family::ALL {
            let to = match family {
                Family::V4 => SocketAddr::new(v4.into(), port),
                Family::V6 => SocketAddr::new(twin(v4).into(), port),
            };
            routes.push((Actor::find(client).unwrap(), to));
        }
    }
    routes
}

#[track_caller]
fn check(scene: &Scene<'_, '_>, client: Actor, to: SocketAddr, ending: Ending, pods: &[&str]) {
    let lost = packets(scene, "come") - packets(scene, "gone");
    let from = SocketAddr::new(client.address(to.ip()), PORT);
    let answered = scene.world.home(client).run(|| {
        (0..CONNECTIONS).map(|_| connect(from, to, ending)).collect::<Result<Vec<Reach>, String>>()
    });
    let answered = answered.unwrap_or_else(|why| panic!("{ending:?}, {from} to {to}: {why}"));
    for reach in answered {
        let Reach::Backend { pod, .. } = &reach else {
            panic!("{ending:?}, {from} to {to}: {reach}")
        };
        assert!(pods.contains(&pod.as_str()), "{ending:?}, {from} to {to}: {reach}");
    }
    let now = packets(scene, "come") - packets(scene, "gone");
    assert_eq!(now, lost, "{ending:?}, {from} to {to}: IPVS has dropped first packets");
}

fn connect(from: SocketAddr, to: SocketAddr, ending: Ending) -> Result<Reach, String> {
    const EADDRNOTAVAIL: i32 = 99;
    // The client's own half of the last connection may be there for another moment.
    let mut open = poll(LONG, || match Open::tcp(from, to, ANSWER) {
        Err(error) if error.raw_os_error() == Some(EADDRNOTAVAIL) => Err(error.to_string()),
        result => Ok(result),
    })?
    .map_err(|error| error.to_string())?;
    let reach = classify(&open.ask(ANSWER));
    match ending {
        Ending::Reset => open.reset(),
        Ending::Finished => open.finish(ANSWER).map_err(|error| error.to_string())?,
    }
    Ok(reach)
}

/// `packets 12 bytes 720`
fn packets(scene: &Scene<'_, '_>, counter: &str) -> i64 {
    let arguments = ["list", "counter", "inet", "first-packets", counter];
    let text = scene.world.node().command("nft", &arguments, "");
    let mut words = text.split_whitespace().skip_while(|it| *it != "packets").skip(1);
    words.next().and_then(|it| it.parse().ok()).unwrap_or_else(|| panic!("{text}"))
}
