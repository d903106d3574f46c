//! Which chains and rules of an iptables table go.

use std::collections::{BTreeMap, BTreeSet};

use super::{Table, is_chain, is_jump_comment};

/// A table of iptables, be it of iptables-nft or of iptables-legacy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chains {
    /// Each chain's name, and whether packets enter it by a hook.
    pub chains: BTreeMap<String, bool>,
    /// In the table's order.
    pub rules: Vec<Rule>,
}

/// As much of a rule as says whose it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub chain: String,
    /// What the kernel knows it by within its table.
    pub handle: u64,
    /// The chain it jumps or goes to.
    pub target: Option<String>,
    pub comment: Option<String>,
}

/// What has to go, and what would have to but cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// kube-proxy's rules in chains of others: chain and handle.
    pub rules: Vec<(String, u64)>,
    /// Chains that go with all their rules. Others among them may jump to them.
    pub chains: BTreeSet<String>,
    pub kept: Vec<Kept>,
}

impl Removal {
    /// Whether there is nothing to remove.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.chains.is_empty()
    }
}

/// A chain of kube-proxy that others still use: it stays as it is, with whatever it jumps to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kept {
    pub chain: String,
    /// The chain with the rule that jumps to it.
    pub used_by: String,
}

/// Decides what of a table is removed.
///
/// kube-proxy's own are its chains, and the rules of built-in chains that jump there with one of kube-proxy's comments.
/// To delete any other rule is not ours, and a chain to which a rule jumps cannot be deleted: such chains are kept.
pub fn remove(table: Table, found: &Chains) -> Removal {
    let mut removal = Removal::default();
    let ours = |name: &String| is_chain(table, name) && found.chains.get(name) == Some(&false);
    removal.chains = found.chains.keys().filter(|name| ours(name)).cloned().collect();
    for rule in &found.rules {
        let Some(target) = rule.target.as_ref().filter(|it| removal.chains.contains(*it)) else {
            continue;
        };
        if removal.chains.contains(&rule.chain) {
            continue;
        }
        let hooked = found.chains.get(&rule.chain) == Some(&true);
        if hooked && rule.comment.as_deref().is_some_and(is_jump_comment) {
            removal.rules.push((rule.chain.clone(), rule.handle));
        } else {
            removal.kept.push(Kept { chain: target.clone(), used_by: rule.chain.clone() });
        }
    }
    keep(found, &mut removal);
    removal.kept.sort_unstable();
    removal.kept.dedup();
    removal
}

/// Takes the kept chains, and what is reached from them, out of those that go.
fn keep(found: &Chains, removal: &mut Removal) {
    let mut jumps: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for rule in &found.rules {
        if let Some(target) = &rule.target {
            jumps.entry(&rule.chain).or_default().push(target);
        }
    }
    let mut waiting: Vec<&str> = Vec::new();
    for kept in &removal.kept {
        if removal.chains.remove(&kept.chain) {
            waiting.push(&kept.chain);
        }
    }
    while let Some(chain) = waiting.pop() {
        for target in jumps.get(chain).into_iter().flatten() {
            if removal.chains.remove(*target) {
                waiting.push(target);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTALS: &str = "kubernetes service portals";

    #[test]
    fn chains_go_with_the_jumps_to_them() {
        let rules =
            ["PREROUTING>KUBE-SERVICES:kubernetes service portals", "KUBE-SERVICES>KUBE-MARK-MASQ"];
        check(&rules, &["PREROUTING/0"], "KUBE-MARK-MASQ KUBE-SERVICES", &[]);
    }

    #[test]
    fn chains_without_rules_or_jumps_go() {
        check(&["KUBE-PROXY-CANARY>", "PREROUTING>DOCKER"], &[], "KUBE-PROXY-CANARY", &[]);
    }

    #[test]
    fn others_stay() {
        let rules = [
            "PREROUTING>DOCKER",
            "OUTPUT>KUBE-FIREWALL:kubernetes service portals",
            "DOCKER>KUBERNETES-FOO",
            "MY-KUBE-SVC>",
        ];
        check(&rules, &[], "", &[]);
    }

    #[test]
    fn what_others_use_stays_with_all_it_needs() {
        let rules = [
            "PREROUTING>KUBE-SERVICES:kubernetes service portals",
            "PREROUTING>KUBE-NODEPORTS:mine",
            "KUBE-NODEPORTS>KUBE-SVC-AAAAAAAAAAAAAAAA",
            "KUBE-SVC-AAAAAAAAAAAAAAAA>KUBE-SEP-AAAAAAAAAAAAAAAA",
            "KUBE-SEP-AAAAAAAAAAAAAAAA>KUBE-MARK-MASQ",
            "CNI-X>KUBE-MARK-MASQ",
            "CNI-X>KUBE-MARK-MASQ",
            "KUBE-SERVICES>KUBE-SVC-BBBBBBBBBBBBBBBB",
        ];
        let kept = ["KUBE-MARK-MASQ by CNI-X", "KUBE-NODEPORTS by PREROUTING"];
        check(&rules, &["PREROUTING/0"], "KUBE-SERVICES KUBE-SVC-BBBBBBBBBBBBBBBB", &kept);
    }

    #[test]
    fn a_comment_of_kube_proxy_in_a_chain_of_others_does_not_make_the_rule_kube_proxys() {
        let rules = ["MINE>KUBE-SERVICES:kubernetes service portals"];
        check(&rules, &[], "", &["KUBE-SERVICES by MINE"]);
    }

    #[test]
    fn a_base_chain_stays_whatever_its_name() {
        let chains = BTreeMap::from([("KUBE-SERVICES".to_owned(), true)]);
        let found = Chains { chains, rules: Vec::new() };
        assert_eq!(remove(Table::Nat, &found), Removal::default());
    }

    /// Rules are `CHAIN>TARGET:COMMENT`, numbered from 0; chains in capitals without a hyphen are built in.
    #[track_caller]
    fn check(
        rules: &[&str],
        expected_rules: &[&str],
        expected_chains: &str,
        expected_kept: &[&str],
    ) {
        let mut found = Chains::default();
        for (handle, rule) in (0..).zip(rules) {
            let (chain, rest) = rule.split_once('>').unwrap();
            let (target, comment) = rest.split_once(':').unwrap_or((rest, ""));
            for name in [chain, target].into_iter().filter(|it| !it.is_empty()) {
                let built_in = ["PREROUTING", "OUTPUT"].contains(&name);
                found.chains.insert(name.to_owned(), built_in);
            }
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let (chain, target, comment) = (chain.to_owned(), some(target), some(comment));
            found.rules.push(Rule { chain, handle, target, comment });
        }
        let removal = remove(Table::Nat, &found);
        let rules: Vec<String> =
            removal.rules.iter().map(|(chain, it)| format!("{chain}/{it}")).collect();
        assert_eq!(rules, expected_rules);
        assert_eq!(Vec::from_iter(removal.chains).join(" "), expected_chains);
        let kept: Vec<String> =
            removal.kept.iter().map(|it| format!("{} by {}", it.chain, it.used_by)).collect();
        assert_eq!(kept, expected_kept);
        assert!(is_jump_comment(PORTALS));
    }
}
