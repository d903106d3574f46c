//! The interface and its addresses, as `ip` sees them.

use kube_ferry::ipvs::schema::Op;
use kube_ferry::kernel::{Addresses, Ipvs as _, IpvsSettings, NetlinkIpvs};

use super::witness::*;

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn the_interface_is_a_dummy_that_is_down_and_has_our_alias() {
    prepared(|ipvs| {
        let shown = ip("-d link show dev kube-ipvs0");
        for part in ["dummy", "state DOWN", "alias kube-ferry"] {
            assert!(shown.contains(part), "{shown}");
        }
        ipvs.prepare(&IpvsSettings::default()).unwrap();
        assert_eq!(ip("-d link show dev kube-ipvs0"), shown, "nothing is made twice");
        assert_eq!(ipvs.observe().unwrap().interface, Some(ours(&[])));
        ipvs.remove_interface().unwrap();
        assert!(!ip("-o link").contains("kube-ipvs0"));
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn kube_proxys_interface_is_taken_over_with_its_addresses() {
    isolated(|| {
        ip("link add kube-ipvs0 type dummy");
        ip("address add 10.96.0.10/32 dev kube-ipvs0");
        let mut ipvs = NetlinkIpvs::new(Vec::new()).unwrap();
        ipvs.prepare(&IpvsSettings::default()).unwrap();
        assert!(ip("link show dev kube-ipvs0").contains("alias kube-ferry"));
        assert_eq!(ipvs.observe().unwrap().interface, Some(ours(&["10.96.0.10"])));
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn an_interface_of_another_kind_is_not_touched() {
    isolated(|| {
        ip("link add kube-ipvs0 type bridge");
        ip("address add 10.96.0.10/32 dev kube-ipvs0");
        let mut ipvs = NetlinkIpvs::new(Vec::new()).unwrap();
        let error = ipvs.prepare(&IpvsSettings::default()).unwrap_err().to_string();
        assert!(error.contains("not of kind dummy") && error.contains("ip link delete"), "{error}");
        const ENODEV: i32 = 19;
        check_refused(&mut ipvs, &[bind("10.96.0.11")], &[(0, ENODEV)]);
        assert!(!ipvs.observe().unwrap().interface.unwrap().ours);
        ipvs.remove_interface().unwrap();
        assert!(ip("-d link show dev kube-ipvs0").contains("bridge"));
        assert_eq!(bound(), ["10.96.0.10/32".to_owned()].into());
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn addresses_are_bound_and_unbound_any_number_of_times() {
    prepared(|ipvs| {
        commit(ipvs, &[bind("10.96.0.10"), bind("fd00::a"), bind("10.96.0.10"), bind("fd00::a")]);
        commit(ipvs, &[bind("10.96.0.10"), bind("fd00::a"), bind("10.96.0.11")]);
        assert_eq!(
            bound(),
            ["10.96.0.10/32", "10.96.0.11/32", "fd00::a/128"].map(str::to_owned).into()
        );
        let shown = ip("address show dev kube-ipvs0");
        assert!(shown.contains("inet 10.96.0.10/32 scope global kube-ipvs0"), "{shown}");
        assert!(shown.contains("inet6 fd00::a/128 scope global nodad noprefixroute"), "{shown}");
        assert!(!shown.contains("tentative"), "{shown}");
        let local = ip("-6 route show table local") + &ip("route show table local");
        for address in ["fd00::a", "10.96.0.10", "10.96.0.11"] {
            assert!(local.contains(&format!("local {address} dev kube-ipvs0")), "{local}");
        }
        assert!(!ip("-6 route").contains("fd00::a"), "no route but the local one");
        let unbind = |text| Op::UnbindAddress(address(text));
        commit(
            ipvs,
            &[unbind("10.96.0.10"), unbind("fd00::a"), unbind("10.96.0.99"), unbind("fd00::99")],
        );
        commit(ipvs, &[unbind("10.96.0.10"), unbind("fd00::a")]);
        assert_eq!(bound(), ["10.96.0.11/32".to_owned()].into());
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn the_interface_goes_only_when_it_is_empty() {
    prepared(|ipvs| {
        commit(ipvs, &[bind("10.96.0.10")]);
        ipvs.remove_interface().unwrap();
        assert_eq!(bound().len(), 1);
        commit(ipvs, &[Op::UnbindAddress(address("10.96.0.10"))]);
        // Somebody sets it up: the kernel gives it an address of its own.
        ip("link set kube-ipvs0 up");
        assert_eq!(ipvs.observe().unwrap().interface, Some(ours(&[])));
        ipvs.remove_interface().unwrap();
        assert!(!ip("-o link").contains("kube-ipvs0"));
        ipvs.remove_interface().unwrap();
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn the_hosts_addresses_are_without_those_of_services() {
    isolated(|| {
        ip("address add 192.0.2.1/32 dev lo");
        ip("link add kube-ipvs0 type dummy");
        ip("address add 10.96.0.10/32 dev kube-ipvs0");
        ip("address add 192.0.2.1/32 dev kube-ipvs0");
        let mut watched = Addresses::new().unwrap();
        let host = addresses(&["127.0.0.1", "::1", "192.0.2.1"]);
        assert_eq!(*watched.current(), host);
        let mut ipvs = NetlinkIpvs::new(Vec::new()).unwrap();
        commit(&mut ipvs, &[bind("10.96.0.11"), bind("fd00::a")]);
        assert!(!watched.refresh().unwrap());
        assert_eq!(*watched.current(), host);
        ip("address add 192.0.2.2/32 dev lo");
        assert!(watched.refresh().unwrap());
        ip("link delete kube-ipvs0");
        assert!(!watched.refresh().unwrap());
        // Another interface of that name has another number.
        ip("link add kube-ipvs0 type dummy");
        ip("address add 10.96.0.12/32 dev kube-ipvs0");
        assert!(!watched.refresh().unwrap());
        assert_eq!(*watched.current(), addresses(&["127.0.0.1", "::1", "192.0.2.1", "192.0.2.2"]));
    });
}
