//! What kube-proxy's IPVS mode left behind goes, and nothing else.

use kube_ferry::kernel::NetlinkIpvs;
use kube_ferry::leftovers::KnownServers;

use super::witness::*;

const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn leftovers_go_and_what_others_have_stays() {
    isolated(|| {
        ip("address add 192.0.2.1/32 dev lo");
        ip("link add kube-ipvs0 type dummy");
        ip("address add 10.96.0.10/32 dev kube-ipvs0");
        ip("address add 10.200.0.1/32 dev kube-ipvs0");
        // A Service with two endpoints and its node port, then one with the local policy.
        for server in ["-t 10.96.0.10:80", "-t 192.0.2.1:30080"] {
            ipvsadm(&format!("-A {server} -s rr"));
            for end in ["10.1.1.2:8080", "10.1.1.3:8080"] {
                ipvsadm(&format!("-a {server} -r {end} -m"));
            }
        }
        // Another endpoint than those of node ports, which go without one as well.
        ipvsadm("-a -t 10.96.0.10:80 -r 10.1.1.2:30083 -m");
        ipvsadm("-A -t 192.0.2.1:30081 -s rr");
        ipvsadm("-a -t 192.0.2.1:30081 -r 10.1.1.3:8080 -m");
        let others = [
            // Excluded, no node port, another protocol, other destinations, no masquerading, nothing to tell by.
            "-A -t 10.200.0.1:80 -s rr",
            "-A -t 192.0.2.1:443 -s rr",
            "-a -t 192.0.2.1:443 -r 10.1.1.2:8080 -m -w 1",
            "-A -u 192.0.2.1:30080 -s rr",
            "-a -u 192.0.2.1:30080 -r 10.1.1.2:8080 -m -w 1",
            "-A -t 192.0.2.1:30082 -s rr",
            "-a -t 192.0.2.1:30082 -r 10.1.1.2:8080 -m -w 1",
            "-a -t 192.0.2.1:30082 -r 10.9.9.9:8080 -m -w 1",
            "-A -t 192.0.2.1:30083 -s rr",
            "-a -t 192.0.2.1:30083 -r 10.1.1.2:30083 -g -w 1",
            "-A -t 192.0.2.1:30084 -s rr",
        ];
        others.iter().for_each(|it| drop(ipvsadm(it)));
        let excluded = vec!["10.200.0.0/16".parse().unwrap()];
        let mut ipvs = NetlinkIpvs::new(excluded).unwrap();
        let removed = ipvs.remove_leftovers(NODE_PORTS, &KnownServers::default()).unwrap();
        let gone = ["tcp 10.96.0.10:80", "tcp 192.0.2.1:30080", "tcp 192.0.2.1:30081"].map(key);
        assert_eq!(removed.servers, gone);
        let doubtful = [
            "tcp 192.0.2.1:30082",
            "tcp 192.0.2.1:30083",
            "tcp 192.0.2.1:30084",
            "udp 192.0.2.1:30080",
        ];
        assert_eq!(removed.doubtful, doubtful.map(key));
        assert!(removed.interface && removed.refused.is_empty());
        check_saved(&others);
        assert!(!ip("-o link").contains("kube-ipvs0"));
        let again = ipvs.remove_leftovers(NODE_PORTS, &KnownServers::default()).unwrap();
        assert_eq!(again, Default::default());
        check_saved(&others);
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn an_interface_of_another_kind_is_no_leftover() {
    isolated(|| {
        ip("link add kube-ipvs0 type bridge");
        let mut ipvs = NetlinkIpvs::new(Vec::new()).unwrap();
        assert!(!ipvs.remove_leftovers(NODE_PORTS, &KnownServers::default()).unwrap().interface);
        assert!(ip("-o link").contains("kube-ipvs0"));
    });
}
