//! `kube-ferry --cleanup` where kube-proxy has worked in IPVS mode.

use super::witness::*;
use crate::cleanup::leftovers::{KUBE_PROXY_IPSETS, KUBE_PROXY_IPVS, OTHERS_IPSETS};
use crate::support::command;

/// Virtual servers of others: at an address of the node, at one that nobody has, and by a firewall mark.
const OTHERS: [&str; 7] = [
    "-A -t 192.0.2.1:443 -s rr",
    "-a -t 192.0.2.1:443 -r 10.9.9.9:443 -m -w 1",
    "-A -u 192.0.2.1:30080 -s rr",
    "-A -t 203.0.113.9:80 -s rr",
    "-A -t [2001:db8::1]:30080 -s rr",
    "-A -f 7 -s rr",
    "-a -f 7 -r 10.9.9.9:0 -m -w 1",
];

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn exactly_kube_proxys_state_goes() {
    isolated(|| {
        others();
        let before = state();
        kube_proxy();
        let log = clean("--cleanup-of=kube-proxy");
        assert!(log.contains("removed 5 virtual servers"), "{log}");
        assert!(log.contains("removed the interface kube-ipvs0"), "{log}");
        assert_eq!(state(), before);
        assert!(clean("--cleanup-of=kube-proxy").contains("nothing to remove"));
        assert_eq!(state(), before);
    });
}

/// A part of it is gone already: the sets, or the interface.
#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_part_of_it_goes_as_well() {
    isolated(|| {
        others();
        let before = state();
        kube_proxy();
        ip("link delete kube-ipvs0");
        let log = clean("--cleanup-of=kube-proxy");
        // Those at addresses of Services are told by the sets, but nobody can say whose address that is.
        assert!(log.contains("removed 2 virtual servers"), "{log}");
        ipvsadm("-D -t 10.96.0.20:80");
        ipvsadm("-D -u 10.96.0.10:53");
        ipvsadm("-D -t 198.51.100.7:80");
        assert_eq!(state(), before);
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn what_the_other_one_works_with_stays() {
    isolated(|| {
        kube_proxy();
        let kube_proxys = state();
        clean("--cleanup-of=kube-ferry");
        assert_eq!(state(), kube_proxys);
        ip("link set kube-ipvs0 alias kube-ferry");
        let log = clean("--cleanup-of=kube-ferry");
        assert!(log.contains("kube-proxy has taken them over"), "{log}");
        let _ = clean("--cleanup-of=kube-proxy");
        assert_eq!(bound().len(), 3, "the interface is ours");
        let servers: Vec<String> = saved().into_iter().filter(|it| it.starts_with("-A")).collect();
        assert_eq!(servers.len(), 3, "{servers:?}");
        let log = clean("--cleanup-of=kube-ferry");
        assert!(log.contains("removed the interface"), "{log}");
        assert_eq!(saved(), [""; 0]);
    });
}

fn others() {
    ip("address add 192.0.2.1/32 dev lo");
    ip("-6 address add 2001:db8::1/128 dev lo nodad");
    command::run("ipset", &["restore"], OTHERS_IPSETS);
    OTHERS.iter().for_each(|it| drop(ipvsadm(it)));
}

/// As kube-proxy leaves it, for the Services of its sets: two cluster IPs, a load balancer's address, a node port.
fn kube_proxy() {
    if !ip("-o address show dev lo").contains("192.0.2.1") {
        ip("address add 192.0.2.1/32 dev lo");
    }
    // A load balancer's address that the node has on another interface is not bound to kube-ipvs0.
    ip("address add 198.51.100.8/32 dev lo");
    ip("link add kube-ipvs0 type dummy");
    for address in ["10.96.0.10", "10.96.0.20", "198.51.100.7"] {
        ip(&format!("address add {address}/32 dev kube-ipvs0"));
    }
    command::run("ipset", &["restore"], KUBE_PROXY_IPSETS);
    command::run("ipset", &["add", "KUBE-LOAD-BALANCER", "198.51.100.8,tcp:80"], "");
    command::run("iptables-nft-restore", &["--noflush"], KUBE_PROXY_IPVS);
    for server in [
        "-u 10.96.0.10:53",
        "-t 10.96.0.20:80",
        "-t 198.51.100.7:80",
        "-t 198.51.100.8:80",
        "-t 192.0.2.1:30080",
    ] {
        ipvsadm(&format!("-A {server} -s rr"));
        ipvsadm(&format!("-a {server} -r 10.1.1.2:8080 -m"));
    }
}

/// All that kube-proxy and others have, but for tables of iptables-nft that stay empty, and addresses of `lo`.
fn state() -> [String; 4] {
    let rules = command::run("iptables-nft-save", &[], "");
    let rules = rules.lines().filter(|line| line.contains("KUBE-")).collect::<Vec<_>>().join("\n");
    [saved().join("\n"), ip("-o link"), command::run("ipset", &["save"], ""), rules]
}

#[track_caller]
fn clean(flag: &str) -> String {
    let output = command::output(env!("CARGO_BIN_EXE_kube-ferry"), &["--cleanup", flag], "");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    log
}
