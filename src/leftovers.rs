//! What kube-proxy leaves in the kernel when it ends, told from what others have.
//!
//! In come names and rules as the kernel lists them, out comes a [`Removal`]. Whatever is not known to be kube-proxy's
//! stays: names are compared whole, never by a prefix that others may use too.

mod chains;
mod ipset;

pub use chains::{Chains, Kept, Removal, Rule, remove};
pub use ipset::{KnownServers, Member, ipsets};

/// kube-proxy's table of nftables mode, in the families ip and ip6.
pub const NFTABLES_TABLE: &str = "kube-proxy";

/// The chain of the table nat that modes iptables and ipvs both begin with.
pub const SERVICES_CHAIN: &str = "KUBE-SERVICES";

/// The tables of iptables in which kube-proxy has chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Nat,
    Filter,
    Mangle,
}

impl Table {
    pub const ALL: [Table; 3] = [Table::Nat, Table::Filter, Table::Mangle];

    /// As iptables and the kernel call it.
    pub const fn name(self) -> &'static str {
        match self {
            Table::Nat => "nat",
            Table::Filter => "filter",
            Table::Mangle => "mangle",
        }
    }
}

/// Chains of kube-proxy by the modes iptables and ipvs. Not among them, although they begin with KUBE-: kubelet's
/// KUBE-FIREWALL (which kube-proxy makes as well, but never removes), KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT and
/// KUBE-MARK-DROP, and the chains of kube-router.
const fn chains(table: Table) -> &'static [&'static str] {
    match table {
        Table::Nat => &[
            "KUBE-SERVICES",
            "KUBE-NODEPORTS",
            "KUBE-POSTROUTING",
            "KUBE-MARK-MASQ",
            "KUBE-PROXY-CANARY",
            "KUBE-NODE-PORT",
            "KUBE-LOAD-BALANCER",
        ],
        Table::Filter => &[
            "KUBE-SERVICES",
            "KUBE-EXTERNAL-SERVICES",
            "KUBE-FORWARD",
            "KUBE-NODEPORTS",
            "KUBE-PROXY-FIREWALL",
            "KUBE-PROXY-CANARY",
            "KUBE-NODE-PORT",
            "KUBE-SOURCE-RANGES-FIREWALL",
            "KUBE-IPVS-FILTER",
            "KUBE-IPVS-OUT-FILTER",
        ],
        Table::Mangle => &["KUBE-PROXY-CANARY"],
    }
}

/// Chains of Services and endpoints in the table nat: one of these and a hash. KUBE-XLB- was used before Kubernetes 1.24.
const HASHED: [&str; 6] =
    ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"];

/// Characters of base 32 that kube-proxy takes of a hash.
const HASH_LENGTH: usize = 16;

/// The comments of the rules by which kube-proxy hooks its chains into the built-in ones.
const JUMP_COMMENTS: [&str; 9] = [
    "kubernetes service portals",
    "kubernetes externally-visible service portals",
    "kubernetes health check service ports",
    "kubernetes forwarding rules",
    "kubernetes load balancer firewall",
    "kubernetes postrouting rules",
    "kubernetes health check rules",
    "kube-proxy firewall rules",
    "kubernetes ipvs access filter",
];

/// Whether kube-proxy makes a chain of this name in this table.
pub fn is_chain(table: Table, name: &str) -> bool {
    chains(table).contains(&name) || (table == Table::Nat && is_hashed(name))
}

fn is_hashed(name: &str) -> bool {
    let hash = HASHED.iter().find_map(|prefix| name.strip_prefix(prefix));
    hash.is_some_and(|hash| {
        hash.len() == HASH_LENGTH && hash.bytes().all(|it| matches!(it, b'A'..=b'Z' | b'2'..=b'7'))
    })
}

/// Whether kube-proxy comments its jumps so.
pub fn is_jump_comment(comment: &str) -> bool {
    JUMP_COMMENTS.contains(&comment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_known_by_their_whole_name_and_table() {
        let nat = |name| is_chain(Table::Nat, name);
        assert!(
            nat("KUBE-SERVICES")
                && nat("KUBE-SVC-TCOU7JCQXEZGVUNU")
                && nat("KUBE-FW-TCOU7JCQXEZGVUNU")
        );
        for foreign in [
            "KUBE-FIREWALL",
            "KUBE-KUBELET-CANARY",
            "KUBE-MARK-DROP",
            "KUBE-IPTABLES-HINT",
            "KUBE-ROUTER-SERVICES",
            "KUBE-POD-FW-TCOU7JCQXEZGVUNU",
            "KUBE-NWPLCY-TCOU7JCQXEZGVUNU",
            "KUBE-SVC-MINE",
            "KUBE-SVC-TCOU7JCQXEZGVUN1",
            "KUBE-SVC-TCOU7JCQXEZGVUNUA",
            "KUBE-SVC-tcou7jcqxezgvunu",
            "MY-KUBE-SVC-TCOU7JCQXEZGVUNU",
            "KUBERNETES-SERVICES",
            "PREROUTING",
            "",
        ] {
            assert!(!nat(foreign), "{foreign}");
        }
        assert!(!is_chain(Table::Filter, "KUBE-SVC-TCOU7JCQXEZGVUNU"));
        assert!(!is_chain(Table::Filter, "KUBE-FIREWALL"));
        assert!(!is_chain(Table::Mangle, "KUBE-IPTABLES-HINT"));
    }
}
