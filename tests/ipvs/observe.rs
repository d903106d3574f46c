//! What a process that has just started finds, and what it must not find.

use kube_ferry::ipvs::schema::{Observed, ObservedInterface};
use kube_ferry::kernel::{Ipvs as _, NetlinkIpvs};

use super::witness::*;

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_restart_finds_what_was_made() {
    prepared(|ipvs| {
        let (v4, v6) = ("tcp 10.96.0.10:80", "udp [fd00::a]:53");
        commit(
            ipvs,
            &[
                add(v4),
                add_to(v4, "10.1.1.2:8080", 1),
                add_to(v4, "10.1.1.3:8080", 0),
                add(v6),
                add_to(v6, "[fd01::2]:53", 9),
                bind("10.96.0.10"),
                bind("fd00::a"),
                bind("10.96.0.11"),
            ],
        );
        let observed = NetlinkIpvs::new(Vec::new()).unwrap().observe().unwrap();
        assert_eq!(observed.interface, Some(ours(&["10.96.0.10", "10.96.0.11", "fd00::a"])));
        let expected = [
            (
                key(v4),
                [(destination("10.1.1.2:8080"), 1), (destination("10.1.1.3:8080"), 0)].into(),
            ),
            (key(v6), [(destination("[fd01::2]:53"), 9)].into()),
        ];
        assert_eq!(weights(&observed), expected.into());
        assert_eq!(observed, ipvs.observe().unwrap());
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn servers_of_others_are_neither_told_nor_touched() {
    prepared(|ipvs| {
        ipvsadm("-A -t 192.0.2.1:80 -s wlc");
        ipvsadm("-a -t 192.0.2.1:80 -r 10.9.9.9:80 -g -w 3");
        ipvsadm("-A -f 7 -s rr");
        ipvsadm("-a -f 7 -r 10.9.9.9 -g");
        let foreign = saved();
        assert_eq!(foreign.len(), 4);
        commit(ipvs, &[add("tcp 10.96.0.10:80"), bind("10.96.0.10")]);
        let observed = ipvs.observe().unwrap();
        assert!(observed.servers.keys().eq([&key("tcp 10.96.0.10:80")]));
        commit(
            ipvs,
            &[
                kube_ferry::ipvs::schema::Op::DeleteServer(key("tcp 10.96.0.10:80")),
                kube_ferry::ipvs::schema::Op::UnbindAddress(address("10.96.0.10")),
            ],
        );
        ipvs.remove_interface().unwrap();
        assert_eq!(saved(), foreign);
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn excluded_addresses_are_somebody_elses_even_on_the_interface() {
    prepared(|ipvs| {
        commit(
            ipvs,
            &[
                add("tcp 10.96.0.10:80"),
                add("tcp 10.200.0.1:80"),
                add("tcp [fd00:200::1]:80"),
                bind("10.96.0.10"),
                bind("10.200.0.1"),
                bind("fd00:200::1"),
            ],
        );
        let cidrs = ["10.200.0.0/16", "fd00:200::/64"].map(|it| it.parse().unwrap());
        let observed = NetlinkIpvs::new(cidrs.to_vec()).unwrap().observe().unwrap();
        assert_eq!(observed.interface, Some(ours(&["10.96.0.10"])));
        assert!(observed.servers.keys().eq([&key("tcp 10.96.0.10:80")]));
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn no_interface_is_nothing_and_nothing_is_made() {
    isolated(|| {
        ipvsadm("-A -t 10.96.0.10:80 -s rr");
        let mut ipvs = NetlinkIpvs::new(Vec::new()).unwrap();
        assert_eq!(ipvs.observe().unwrap(), Observed::default());
        ipvs.remove_interface().unwrap();
        assert!(!ip("-o link").contains("kube-ipvs0"));
        assert_eq!(saved().len(), 1);
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn an_interface_of_kube_proxy_is_not_ours_but_told() {
    isolated(|| {
        ip("link add kube-ipvs0 type dummy");
        ip("address add 10.96.0.10/32 dev kube-ipvs0");
        ipvsadm("-A -t 10.96.0.10:80 -s rr -p 10800");
        ipvsadm("-a -t 10.96.0.10:80 -r 10.1.1.2:8080 -m");
        let mut ipvs = NetlinkIpvs::new(Vec::new()).unwrap();
        let observed = ipvs.observe().unwrap();
        let addresses = addresses(&["10.96.0.10"]);
        assert_eq!(observed.interface, Some(ObservedInterface { ours: false, addresses }));
        assert_eq!(observed.servers[&key("tcp 10.96.0.10:80")].server.persistence, Some(10_800));
        ipvs.remove_interface().unwrap();
        assert!(ip("-o link").contains("kube-ipvs0"), "somebody else's interface stays");
    });
}
