//! Addresses as `ip` changes them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kube_ferry::kernel::Addresses;

use super::namespace::{isolated, run};

fn ip(arguments: &str) {
    run("ip", &arguments.split(' ').collect::<Vec<_>>(), "");
}

fn addresses(all: &[&str]) -> BTreeSet<IpAddr> {
    all.iter().map(|it| it.parse().unwrap()).collect()
}

#[test]
fn addresses_are_read_and_changes_are_heard() {
    isolated(|| {
        ip("addr add 192.0.2.1/24 dev lo");
        let mut watched = Addresses::new().unwrap();
        assert_eq!(*watched.current(), addresses(&["192.0.2.1"]));
        assert!(!watched.refresh().unwrap());
        ip("link add v0 type veth peer name v1");
        ip("addr add 198.51.100.1/32 peer 198.51.100.2 dev v0");
        ip("addr add 2001:db8::1/64 dev v1 nodad");
        let expected = ["192.0.2.1", "198.51.100.1", "2001:db8::1"];
        assert_eq!(*watched.changed().unwrap(), addresses(&expected));
        ip("addr del 192.0.2.1/24 dev lo");
        assert!(watched.refresh().unwrap());
        ip("link del v0");
        assert!(watched.changed().unwrap().is_empty());
    });
}

#[test]
fn an_address_on_two_interfaces_is_there_until_both_have_lost_it() {
    isolated(|| {
        ip("link add v0 type veth peer name v1");
        ip("addr add 192.0.2.1/32 dev v0");
        ip("addr add 192.0.2.1/32 dev v1");
        let mut watched = Addresses::new().unwrap();
        ip("addr del 192.0.2.1/32 dev v0");
        assert!(!watched.refresh().unwrap());
        assert_eq!(*watched.current(), addresses(&["192.0.2.1"]));
        ip("addr del 192.0.2.1/32 dev v1");
        assert!(watched.refresh().unwrap());
    });
}

#[test]
fn lost_notifications_do_no_harm() {
    isolated(|| {
        let mut watched = Addresses::new().unwrap();
        let flap = "addr add 192.0.2.1/32 dev lo\naddr del 192.0.2.1/32 dev lo\n".repeat(100);
        while dropped() == 0 {
            run("ip", &["-batch", "-"], &flap);
        }
        ip("addr add 192.0.2.2/32 dev lo");
        assert!(watched.refresh().unwrap());
        assert_eq!(*watched.current(), addresses(&["192.0.2.2"]));
        assert!(!watched.refresh().unwrap());
    });
}

/// Ten thousand addresses of Services come at once in IPVS mode, and between them one of the node's own.
#[test]
fn notifications_that_were_lost_among_those_of_services_do_no_harm() {
    isolated(|| {
        ip("link add kube-ipvs0 type veth peer name v1");
        ip("addr add 10.96.0.10/32 dev kube-ipvs0");
        let mut watched = Addresses::new().unwrap();
        assert!(watched.current().is_empty());
        let (add, delete) = ("addr add 10.96.0.11/32", "addr del 10.96.0.11/32");
        let flap = format!("{add} dev kube-ipvs0\n{delete} dev kube-ipvs0\n").repeat(100);
        while dropped() == 0 {
            run("ip", &["-batch", "-"], &flap);
        }
        ip("addr add 192.0.2.2/32 dev lo");
        watched.wait().unwrap();
        assert!(watched.refresh().unwrap());
        assert_eq!(*watched.current(), addresses(&["192.0.2.2"]));
        assert!(!watched.refresh().unwrap());
    });
}

/// Notifications that sockets in this namespace had no room for.
fn dropped() -> u64 {
    // The namespace of the thread, not of the process.
    let sockets = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let drops = sockets.lines().skip(1).map(|line| line.split_whitespace().nth(8).unwrap());
    drops.map(|it| it.parse::<u64>().unwrap()).sum()
}
