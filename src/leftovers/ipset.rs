//! The sets of addresses and ports of IPVS mode.

use crate::model::Family;

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
