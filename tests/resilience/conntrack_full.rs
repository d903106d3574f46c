//! A full connection tracking table: the kernel drops what is new, and the proxy goes on with its work.
//!
//! The limit is that of the whole machine, so this needs one of its own: `make test-ipvs` runs it in one.

use std::net::SocketAddr;

use kube_ferry::model::Protocol;
use rustix::process::Signal;

use super::node::{Node, fickle, steady};
use crate::support::client::{ANSWER, Open, Outcome, SILENCE, ask};
use crate::support::command;
use crate::support::patience::{LONG, poll};
use crate::support::witness::rows;
use crate::support::world::Actor;

const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// Established connections, which the kernel does not drop to make room for others. More than fit.
const CONNECTIONS: usize = 100;
const ROOM: u32 = 60;

#[test]
#[ignore = "needs a kernel of its own: make test-ipvs"]
fn old_connections_go_on_new_ones_wait_and_the_proxy_writes() {
    let node = Node::new();
    let mut proxy = node.proxy("log", &[]);
    let client = Actor::find("client").unwrap();
    let home = node.world.home(client);
    let source = client.address(steady().ip());
    let connect = || home.run(|| Open::connect(source, steady(), Protocol::Tcp, SILENCE));
    let new = |to: SocketAddr, patience| home.run(|| ask(source, to, Protocol::Tcp, patience));
    let mut old = connect().unwrap();
    assert!(answered(&home.run(|| old.ask(ANSWER))));

    // During: it is full of connections that live.
    let before = std::fs::read_to_string(LIMIT).unwrap();
    std::fs::write(LIMIT, ROOM.to_string()).unwrap();
    let open: Vec<Open> = (0..CONNECTIONS).map_while(|_| connect().ok()).collect();
    assert!((10..CONNECTIONS).contains(&open.len()), "{} connections", open.len());
    assert!(!answered(&new(steady(), SILENCE)));
    assert!(answered(&home.run(|| old.ask(ANSWER))));
    node.write("change", &[fickle(1, &[10])]);
    poll(LONG, || {
        let frontends = rows(node.host(), "ip", "kube-ferry", "frontends").join("\n");
        frontends.contains("10.96.4.1").then_some(()).ok_or(frontends)
    })
    .unwrap();
    assert!(answered(&home.run(|| old.ask(ANSWER))));

    // After: with room again everything is as it should be, without a restart.
    std::fs::write(LIMIT, before.trim()).unwrap();
    drop(open);
    poll(LONG, || {
        let outcome = new(SocketAddr::from(([10, 96, 4, 1], 80)), ANSWER);
        answered(&outcome).then_some(()).ok_or_else(|| outcome.to_string())
    })
    .unwrap();
    assert!(answered(&new(steady(), ANSWER)));
    assert!(answered(&home.run(|| old.ask(ANSWER))));
    let kernel = node.host().run(|| command::run("conntrack", &["-C"], ""));
    assert!(kernel.trim().parse::<usize>().unwrap() > 0, "{kernel}");
    assert!(proxy.stop(Signal::TERM).success());
}

fn answered(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Answered(_))
}
