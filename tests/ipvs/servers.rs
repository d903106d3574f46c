//! Every operation on virtual servers and destinations, as `ipvsadm` sees it.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};

use kube_ferry::ipvs::schema::{Connections, Op, VirtualServer};
use kube_ferry::kernel::{Ipvs as _, NetlinkIpvs};

use super::witness::*;
use crate::support::patience::{LONG, poll};

const SERVER: &str = "tcp 10.96.0.10:80";

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn every_operation_is_carried_out() {
    prepared(|ipvs| {
        let end = destination("10.1.1.2:8080");
        let sticky = VirtualServer { persistence: Some(10_800), ..scheduled("wlc") };
        check(ipvs, add(SERVER), &["-A -t 10.96.0.10:80 -s rr"]);
        check(ipvs, Op::SetServer(key(SERVER), sticky), &["-A -t 10.96.0.10:80 -s wlc -p 10800"]);
        check(ipvs, Op::SetServer(key(SERVER), scheduled("rr")), &["-A -t 10.96.0.10:80 -s rr"]);
        let server = "-A -t 10.96.0.10:80 -s rr";
        check(
            ipvs,
            add_to(SERVER, "10.1.1.2:8080", 1),
            &[server, "-a -t 10.96.0.10:80 -r 10.1.1.2:8080 -m -w 1"],
        );
        check(
            ipvs,
            Op::SetDestination(key(SERVER), end, 65_535),
            &[server, "-a -t 10.96.0.10:80 -r 10.1.1.2:8080 -m -w 65535"],
        );
        check(
            ipvs,
            Op::SetDestination(key(SERVER), end, 0),
            &[server, "-a -t 10.96.0.10:80 -r 10.1.1.2:8080 -m -w 0"],
        );
        check(ipvs, Op::DeleteDestination(key(SERVER), end), &[server]);
        check(ipvs, Op::DeleteDestination(key(SERVER), end), &[server]);
        check(
            ipvs,
            add_to(SERVER, "10.1.1.2:8080", 1),
            &[server, "-a -t 10.96.0.10:80 -r 10.1.1.2:8080 -m -w 1"],
        );
        check(ipvs, Op::DeleteServer(key(SERVER)), &[]);
        check(ipvs, Op::DeleteServer(key(SERVER)), &[]);
        check(ipvs, Op::DeleteDestination(key(SERVER), end), &[]);
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn every_protocol_of_both_families() {
    prepared(|ipvs| {
        let mut ops = Vec::new();
        for (server, end) in [
            ("tcp 10.96.0.10:53", "10.1.1.2:5353"),
            ("udp 10.96.0.10:53", "10.1.1.2:5353"),
            ("sctp 10.96.0.10:53", "10.1.1.2:5353"),
            ("tcp [fd00::a]:53", "[fd01::2]:5353"),
            ("udp [fd00::a]:53", "[fd01::2]:5353"),
            ("sctp [fd00::a]:53", "[fd01::2]:5353"),
        ] {
            let sticky = VirtualServer { persistence: Some(60), ..scheduled("rr") };
            ops.extend([Op::AddServer(key(server), sticky), add_to(server, end, 7)]);
        }
        ops.extend([bind("10.96.0.10"), bind("fd00::a")]);
        commit(ipvs, &ops);
        check_saved(&[
            "-A -t 10.96.0.10:53 -s rr -p 60",
            "-a -t 10.96.0.10:53 -r 10.1.1.2:5353 -m -w 7",
            "-A -u 10.96.0.10:53 -s rr -p 60",
            "-a -u 10.96.0.10:53 -r 10.1.1.2:5353 -m -w 7",
            "-A --sctp-service 10.96.0.10:53 -s rr -p 60",
            "-a --sctp-service 10.96.0.10:53 -r 10.1.1.2:5353 -m -w 7",
            "-A -t [fd00::a]:53 -s rr -p 60",
            "-a -t [fd00::a]:53 -r [fd01::2]:5353 -m -w 7",
            "-A -u [fd00::a]:53 -s rr -p 60",
            "-a -u [fd00::a]:53 -r [fd01::2]:5353 -m -w 7",
            "-A --sctp-service [fd00::a]:53 -s rr -p 60",
            "-a --sctp-service [fd00::a]:53 -r [fd01::2]:5353 -m -w 7",
        ]);
        let observed = ipvs.observe().unwrap();
        assert_eq!(observed.servers.len(), 6);
        for (key, server) in observed.servers {
            assert_eq!(server.server.persistence, Some(60), "{key}");
            let (_, end) = server.destinations.into_iter().next().unwrap();
            assert!(end.masquerades && end.weight == 7, "{key}");
        }
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn every_scheduler_works_and_is_seen_again() {
    const ALL: [&str; 14] = [
        "rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq",
        "twos",
    ];
    prepared(|ipvs| {
        commit(ipvs, &[bind("10.96.0.10")]);
        for name in ALL {
            let server = scheduled(name);
            commit(ipvs, &[Op::AddServer(key(SERVER), server), add_to(SERVER, "10.1.1.2:80", 2)]);
            let line = format!("-A -t 10.96.0.10:80 -s {name}");
            check_saved(&[&line, "-a -t 10.96.0.10:80 -r 10.1.1.2:80 -m -w 2"]);
            assert_eq!(ipvs.observe().unwrap().servers[&key(SERVER)].server, server);
            commit(ipvs, &[Op::DeleteServer(key(SERVER))]);
        }
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn flags_of_schedulers_are_set_and_those_of_others_cleared() {
    prepared(|ipvs| {
        commit(ipvs, &[add(SERVER), bind("10.96.0.10")]);
        for (name, flags, shown) in [
            ("mh", 0x10, " -b mh-port"),
            ("mh", 0x18, " -b mh-fallback,mh-port"),
            ("sh", 0x10, " -b sh-port"),
            ("sh", 0, ""),
            ("rr", 0x20, " -b flag-3"),
        ] {
            let server = VirtualServer { scheduler_flags: flags, ..scheduled(name) };
            commit(ipvs, &[Op::SetServer(key(SERVER), server)]);
            check_saved(&[&format!("-A -t 10.96.0.10:80 -s {name}{shown}")]);
            assert_eq!(ipvs.observe().unwrap().servers[&key(SERVER)].server, server);
        }
        let udp = "udp 10.96.0.10:80";
        commit(ipvs, &[Op::DeleteServer(key(SERVER)), add(udp)]);
        ipvsadm("-E -u 10.96.0.10:80 -s rr -o -p 5 -M 255.255.255.0");
        let altered = ipvsadm("-Sn");
        assert!(altered.contains("-p 5 -M 255.255.255.0"), "{altered}");
        commit(ipvs, &[Op::SetServer(key(udp), scheduled("rr"))]);
        check_saved(&["-A -u 10.96.0.10:80 -s rr"]);
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_destination_that_does_not_masquerade_is_told_and_put_right() {
    prepared(|ipvs| {
        commit(ipvs, &[add(SERVER), bind("10.96.0.10")]);
        ipvsadm("-a -t 10.96.0.10:80 -r 10.1.1.2:80 -g");
        let seen = |ipvs: &mut NetlinkIpvs| {
            ipvs.observe().unwrap().servers[&key(SERVER)].destinations[&destination("10.1.1.2:80")]
        };
        assert!(!seen(ipvs).masquerades);
        commit(ipvs, &[add_to(SERVER, "10.1.1.2:80", 3)]);
        assert!(seen(ipvs).masquerades);
        check_saved(&["-A -t 10.96.0.10:80 -s rr", "-a -t 10.96.0.10:80 -r 10.1.1.2:80 -m -w 3"]);
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn changes_keep_connections_and_connections_are_counted() {
    prepared(|ipvs| {
        for (server, local, real) in [
            (SERVER, "192.0.2.1", "192.0.2.1:8080"),
            ("tcp [fd00::a]:80", "2001:db8::1", "[2001:db8::1]:8080"),
        ] {
            let whole = if local.contains(':') { "128 dev lo nodad" } else { "32 dev lo" };
            ip(&format!("address add {local}/{whole}"));
            let listener = TcpListener::bind(real).unwrap();
            let server = key(server);
            let end = destination(real);
            let seen = |ipvs: &mut NetlinkIpvs| ipvs.connections(&[server]).unwrap();
            commit(
                ipvs,
                &[
                    Op::AddServer(server, scheduled("rr")),
                    Op::AddDestination(server, end, 1),
                    Op::BindAddress(server.address),
                ],
            );
            assert_eq!(seen(ipvs), [(server, end, Connections::default())]);
            // The interface is down, and its address is one to connect to all the same.
            let target = (server.address, server.port.get());
            // A worker of the kernel makes the route of a new IPv6 address, a moment later.
            let connect = || TcpStream::connect(target).map_err(|error| error.to_string());
            let mut client = poll(LONG, connect).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let one = Connections { active: 1, ..Connections::default() };
            assert_eq!(seen(ipvs), [(server, end, one)]);
            commit(
                ipvs,
                &[
                    Op::SetServer(server, scheduled("wrr")),
                    Op::SetDestination(server, end, 0),
                    // Is there already.
                    Op::AddDestination(server, end, 0),
                ],
            );
            assert_eq!(seen(ipvs), [(server, end, one)]);
            let listed = ipvsadm("-Ln");
            let row = listed.lines().find(|it| it.contains(real)).unwrap();
            let columns: Vec<&str> = row.split_whitespace().collect();
            assert_eq!(columns[3..], ["0", "1", "0"], "{listed}");
            // Weight 0: nothing new, but what there is goes on.
            assert!(TcpStream::connect(target).is_err());
            drop(accepted);
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            commit(ipvs, &[Op::SetDestination(server, end, 1)]);
            TcpStream::connect(target).unwrap();
        }
        assert_eq!(ipvs.connections(&[key("tcp 10.96.0.99:80")]).unwrap(), []);
    });
}

#[track_caller]
fn check(ipvs: &mut NetlinkIpvs, op: Op, expected: &[&str]) {
    commit(ipvs, &[op]);
    check_saved(expected);
}
