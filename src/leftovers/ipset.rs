//! The sets of addresses and ports of IPVS mode.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use crate::ipvs::schema::ServerKey;
use crate::model::{Family, Protocol};

/// Without the leading `KUBE-` or, for IPv6, `KUBE-6-`.
const NAMES: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-CIDR",
    "LOAD-BALANCER-SOURCE-IP",
    "NODE-PORT-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];

/// Those of them that together have every virtual server of kube-proxy, and the protocol of those that do not say it.
const SERVERS: [(&str, Option<Protocol>); 6] = [
    ("CLUSTER-IP", None),
    ("EXTERNAL-IP", None),
    ("EXTERNAL-IP-LOCAL", None),
    ("LOAD-BALANCER", None),
    ("NODE-PORT-TCP", Some(Protocol::Tcp)),
    ("NODE-PORT-UDP", Some(Protocol::Udp)),
];
const SCTP_NODE_PORTS: &str = "NODE-PORT-SCTP-HASH";

/// The longest name that ipset takes; kube-proxy cuts longer ones.
const LONGEST: usize = 31;

/// The names of all sets of a family.
pub fn ipsets(family: Family) -> impl Iterator<Item = String> {
    NAMES.iter().map(move |name| full(family, name))
}

fn full(family: Family, name: &str) -> String {
    let mut name = match family {
        Family::V4 => format!("KUBE-{name}"),
        Family::V6 => format!("KUBE-6-{name}"),
    };
    name.truncate(LONGEST);
    name
}

/// A member of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    pub address: Option<IpAddr>,
    pub protocol: Option<Protocol>,
    pub port: NonZeroU16,
}

/// The virtual servers that kube-proxy has made, as its sets tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownServers {
    servers: BTreeSet<ServerKey>,
    /// At every address of the node.
    node_ports: BTreeSet<(Family, Protocol, NonZeroU16)>,
}

impl KnownServers {
    /// The sets to be read for it, with whatever `members` finds in them.
    pub fn read<E>(
        mut members: impl FnMut(&str) -> Result<Vec<Member>, E>,
    ) -> Result<KnownServers, E> {
        let mut known = KnownServers::default();
        let sctp = (SCTP_NODE_PORTS, Some(Protocol::Sctp));
        for family in Family::ALL {
            for (name, protocol) in SERVERS.into_iter().chain([sctp]) {
                for member in members(&full(family, name))? {
                    known.add(family, member, protocol);
                }
            }
        }
        Ok(known)
    }

    fn add(&mut self, family: Family, member: Member, of_set: Option<Protocol>) {
        let Some(protocol) = member.protocol.or(of_set) else { return };
        let port = member.port;
        match member.address {
            Some(address) => {
                self.servers.insert(ServerKey { protocol, address, port });
            }
            None => {
                self.node_ports.insert((family, protocol, port));
            }
        }
    }

    /// Whether kube-proxy has made it, given that it has an address of the node if it is one of a node port.
    pub fn contains(&self, key: &ServerKey) -> bool {
        self.servers.contains(key)
            || self.node_ports.contains(&(key.family(), key.protocol, key.port))
    }

    /// Whether there are none of kube-proxy's sets, or nothing is in them.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty() && self.node_ports.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ipv6_are_cut() {
        let names: Vec<String> = ipsets(Family::V6).collect();
        assert!(names.contains(&"KUBE-6-LOAD-BALANCER-SOURCE-CID".to_owned()));
        assert!(names.iter().all(|it| it.len() <= LONGEST));
        assert!(ipsets(Family::V4).any(|it| it == "KUBE-LOAD-BALANCER-SOURCE-CIDR"));
    }

    #[test]
    fn servers_are_known_by_all_they_have() {
        let port = |port: u16| NonZeroU16::new(port).unwrap();
        let known = KnownServers::read(|name| {
            let (address, protocol) = (Some(IpAddr::from([10, 96, 0, 10])), Some(Protocol::Udp));
            Ok::<_, ()>(match name {
                "KUBE-CLUSTER-IP" => vec![Member { address, protocol, port: port(53) }],
                "KUBE-6-NODE-PORT-TCP" => {
                    vec![Member { address: None, protocol: None, port: port(30_080) }]
                }
                _ => Vec::new(),
            })
        });
        let known = known.unwrap();
        let has = |protocol, address: &str, of| {
            known.contains(&ServerKey {
                protocol,
                address: address.parse().unwrap(),
                port: port(of),
            })
        };
        assert!(has(Protocol::Udp, "10.96.0.10", 53) && has(Protocol::Tcp, "fd00::1", 30_080));
        assert!(!has(Protocol::Tcp, "10.96.0.10", 53) && !has(Protocol::Udp, "10.96.0.11", 53));
        assert!(!has(Protocol::Tcp, "192.0.2.1", 30_080) && !has(Protocol::Udp, "fd00::1", 30_080));
    }
}
