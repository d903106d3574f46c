//! Operations and virtual servers as a person writes them: lines that `ipvsadm -R` and `ip -batch -` read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::schema::{Destination, INTERFACE, ObservedServer, Op, ServerKey, VirtualServer};

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::BindAddress(address) => write!(f, "address add {address} dev {INTERFACE}"),
            Op::UnbindAddress(address) => write!(f, "address del {address} dev {INTERFACE}"),
            Op::AddServer(key, server) => write!(f, "-A {key}{}", Options(server)),
            Op::SetServer(key, server) => write!(f, "-E {key}{}", Options(server)),
            Op::DeleteServer(key) => write!(f, "-D {key}"),
            Op::AddDestination(key, to, weight) => write!(f, "-a {key}{}", To(*to, *weight)),
            Op::SetDestination(key, to, weight) => write!(f, "-e {key}{}", To(*to, *weight)),
            Op::DeleteDestination(key, to) => write!(f, "-d {key} -r {to}"),
        }
    }
}

/// Everything, as `ipvsadm -S -n` would save it.
pub fn servers(servers: &BTreeMap<ServerKey, ObservedServer>) -> String {
    let mut lines = String::new();
    for (key, observed) in servers {
        lines.push_str(&format!("-A {key}{}\n", Options(&observed.server)));
        for (to, destination) in &observed.destinations {
            lines.push_str(&format!("-a {key}{}\n", To(*to, destination.weight)));
        }
    }
    lines
}

/// Addresses, as `ip -batch -` would add them.
pub fn addresses(addresses: &BTreeSet<IpAddr>) -> String {
    let line = |it: &IpAddr| format!("{}\n", Op::BindAddress(*it));
    addresses.iter().map(line).collect()
}

struct Options<'a>(&'a VirtualServer);

impl fmt::Display for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VirtualServer { scheduler, persistence, scheduler_flags } = self.0;
        write!(f, " -s {}", scheduler.name())?;
        if let Some(seconds) = persistence {
            write!(f, " -p {seconds}")?;
        }
        if *scheduler_flags != 0 {
            let flags = [(0x08, "flag-1"), (0x10, "flag-2"), (0x20, "flag-3")];
            let names: Vec<&str> = flags
                .iter()
                .filter(|(bit, _)| scheduler_flags & bit != 0)
                .map(|(bit, name)| match (scheduler.name(), bit) {
                    ("mh", 0x08) => "mh-fallback",
                    ("mh", 0x10) => "mh-port",
                    ("sh", 0x08) => "sh-fallback",
                    ("sh", 0x10) => "sh-port",
                    _ => *name,
                })
                .collect();
            write!(f, " -b {}", names.join(","))?;
        }
        Ok(())
    }
}

struct To(Destination, u32);

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " -r {} -m -w {}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipvs::schema::{ObservedDestination, Scheduler};
    use crate::model::Protocol;

    #[test]
    fn lines_are_those_of_ipvsadm() {
        let key = |protocol, address: &str| ServerKey {
            protocol,
            address: address.parse().unwrap(),
            port: 80.try_into().unwrap(),
        };
        let to = |address: &str| Destination {
            address: address.parse().unwrap(),
            port: 8080.try_into().unwrap(),
        };
        let server = |scheduler, persistence, scheduler_flags| VirtualServer {
            scheduler: Scheduler::new(scheduler).unwrap(),
            persistence,
            scheduler_flags,
        };
        let seen = ObservedDestination { weight: 3, masquerades: true, ..Default::default() };
        let all = BTreeMap::from([
            (
                key(Protocol::Tcp, "10.96.0.1"),
                ObservedServer {
                    server: server("mh", Some(600), 0x10),
                    destinations: [(to("10.1.0.1"), seen)].into(),
                },
            ),
            (
                key(Protocol::Sctp, "fd00::1"),
                ObservedServer {
                    server: server("rr", None, 0),
                    destinations: [(to("fd01::1"), seen)].into(),
                },
            ),
        ]);
        assert_eq!(
            servers(&all),
            "-A -t 10.96.0.1:80 -s mh -p 600 -b mh-port\n\
             -a -t 10.96.0.1:80 -r 10.1.0.1:8080 -m -w 3\n\
             -A --sctp-service [fd00::1]:80 -s rr\n\
             -a --sctp-service [fd00::1]:80 -r [fd01::1]:8080 -m -w 3\n"
        );
        assert_eq!(
            addresses(&["10.96.0.1".parse().unwrap()].into()),
            "address add 10.96.0.1 dev kube-ipvs0\n"
        );
    }
}
