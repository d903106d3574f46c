//! From kube-proxy in IPVS mode to kube-ferry in either mode, under traffic, and back.
//!
//! In IPVS mode the virtual servers at cluster IPs become ours with their connections. In nftables mode, connections that IPVS balances are the exception to what `tests/cleanup/migration.rs` shows: they go on beside
//! kube-ferry, and end with their virtual server.

use rustix::process::Signal;

use crate::cleanup::leftovers::{KUBE_PROXY_IPSETS, KUBE_PROXY_IPVS};
use crate::cleanup::migration::{NEW, OLD, attempts, clean, proxy, proxy_with, reached, start};
use crate::scenario::datapath::Attempt;
use crate::scenario::traffic::Traffic;
use crate::support::client::{ANSWER, Open, Outcome};
use crate::support::world::World;
use kube_ferry::model::Protocol;

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn from_ipvs_and_back() {
    let world = World::new();
    let directory = tempfile::tempdir().unwrap();
    let attempts: Vec<Attempt> = attempts()
        .into_iter()
        .filter(|it| it.to.is_ipv4() && it.protocol == Protocol::Tcp)
        .collect();
    install(&world);
    assert_eq!(reached(&world, &attempts), [OLD]);
    let balanced_by_ipvs = start(&world, &attempts);
    let mut last = open(&world, &attempts[0]);

    let mut proxy = proxy(&world, directory.path());
    assert!(proxy.log().contains("the interface kube-ipvs0"), "{}", proxy.log());
    assert_eq!(reached(&world, &attempts), [OLD, NEW], "translation comes before IPVS");
    let translated_by_us = start(&world, &attempts);
    end(balanced_by_ipvs);
    assert!(matches!(last.ask(ANSWER), Outcome::Answered(_)));
    clean(&world, "kube-proxy");
    assert_eq!(world.node().command("ipvsadm", &["-Sn"], ""), "");
    assert_eq!(reached(&world, &attempts), [OLD, NEW]);
    // The kernel forgets a connection with its virtual server. What the client sends next is translated anew, in the middle
    // of the connection: it goes on if the draw falls on the same endpoint, and is reset otherwise.
    let forgotten = world.node().command("ipvsadm", &["-Lnc"], "");
    assert!(!forgotten.contains("ESTABLISHED"), "{forgotten}");
    drop(last);

    install(&world);
    proxy.stop(Signal::TERM);
    assert_eq!(reached(&world, &attempts), [OLD, NEW], "our rules hold as long as they are there");
    clean(&world, "kube-ferry");
    assert_eq!(reached(&world, &attempts), [OLD]);
    end(translated_by_us);
}

/// Only connections to NodePorts end, with kube-proxy's virtual servers for those, and only when they are removed.
#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn from_ipvs_to_our_ipvs_mode() {
    let world = World::new();
    let directory = tempfile::tempdir().unwrap();
    let attempts: Vec<Attempt> = attempts()
        .into_iter()
        .filter(|it| it.to.is_ipv4() && it.protocol == Protocol::Tcp)
        .collect();
    install(&world);
    assert_eq!(reached(&world, &attempts), [OLD]);
    let (outside, inside): (Vec<_>, Vec<_>) =
        attempts.iter().cloned().partition(|it| it.source.name == "outside");
    let (to_node_port, to_cluster_ip) = (start(&world, &outside), start(&world, &inside));

    let flags = ["--proxy-mode=ipvs", "--ipvs-scheduler=rr"];
    let _proxy = proxy_with(&world, directory.path(), &flags);
    assert_eq!(reached(&world, &attempts), [OLD, NEW]);
    let later = start(&world, &attempts);
    end(to_node_port);
    clean(&world, "kube-proxy");
    assert_eq!(reached(&world, &attempts), [OLD, NEW]);
    let saved = world.node().command("ipvsadm", &["-Sn"], "");
    let heads: Vec<&str> = saved
        .lines()
        .map(str::trim)
        .filter(|it| it.starts_with("-A -t") && !it.contains('['))
        .collect();
    assert_eq!(heads, ["-A -t 10.96.0.10:80 -s rr"], "{saved}");
    let rules = world.node().command("iptables-nft-save", &[], "");
    assert!(!rules.contains("KUBE-"), "{rules}");
    end(to_cluster_ip);
    end(later);
}

fn open(world: &World, attempt: &Attempt) -> Open {
    let source = attempt.source.address(attempt.to.ip());
    world.home(attempt.source).run(|| {
        let mut open = Open::connect(source, attempt.to, attempt.protocol, ANSWER).unwrap();
        assert!(matches!(open.ask(ANSWER), Outcome::Answered(_)));
        open
    })
}

fn end(traffic: Vec<Traffic>) {
    for flow in traffic {
        flow.end().unwrap();
    }
}

/// What kube-proxy has for the Service with one endpoint.
fn install(world: &World) {
    let node = world.node();
    node.sysctl(&[("ipv4/vs/conntrack", "1"), ("ipv4/vs/expire_nodest_conn", "1")]);
    node.ip("link add kube-ipvs0 type dummy\naddress add 10.96.0.10/32 dev kube-ipvs0\n");
    node.command("ipset", &["restore"], KUBE_PROXY_IPSETS);
    node.command("ipset", &["add", "KUBE-CLUSTER-IP", "10.96.0.10,tcp:80"], "");
    node.command("iptables-nft-restore", &["--noflush"], KUBE_PROXY_IPVS);
    for server in ["10.96.0.10:80", "192.0.2.1:30080"] {
        node.command("ipvsadm", &["-A", "-t", server, "-s", "rr"], "");
        node.command("ipvsadm", &["-a", "-t", server, "-r", "10.244.1.11:8080", "-m"], "");
    }
}
