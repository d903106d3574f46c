//! Leftovers of mode iptables.

use super::leftovers::{Iptables, KUBE_PROXY_IPTABLES, OTHERS_IPTABLES};
use super::node::Node;

const KINDS: [Iptables; 1] = [Iptables::Nft];

#[test]
fn exactly_kube_proxys_rules_and_chains_go() {
    for kind in KINDS {
        let node = Node::new();
        kind.restore(&node, "iptables", OTHERS_IPTABLES);
        count_packets(&node);
        let before = [kind.save(&node, "iptables"), node.ruleset()];
        kind.kube_proxy(&node);
        assert_ne!(kind.save(&node, "iptables"), before[0], "{kind:?}");
        node.removes();
        let after = kind.save(&node, "iptables");
        assert_eq!(after, before[0], "{kind:?}");
        // By their handles these are the very rules that were there before, not copies of them.
        assert_eq!(without_ip6(&node.ruleset()), without_ip6(&before[1]), "{kind:?}");
        assert!(!kind.save(&node, "ip6tables").contains("KUBE-"), "{kind:?}");
        node.has_nothing_to_remove();
        assert_eq!(kind.save(&node, "iptables"), before[0], "{kind:?}");
    }
}

#[test]
fn a_part_of_the_rules_goes_as_well() {
    let parts = [
        // Chains without the jumps to them.
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n-A KUBE-SERVICES -j KUBE-MARK-MASQ\nCOMMIT\n",
        // One table only, and an empty chain.
        "*mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n",
        // The same jump twice.
        "*filter\n:KUBE-FORWARD - [0:0]\n\
         -I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
         -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\nCOMMIT\n",
    ];
    for kind in KINDS {
        for part in parts {
            let node = Node::new();
            kind.restore(&node, "iptables", OTHERS_IPTABLES);
            let before = kind.save(&node, "iptables");
            kind.restore(&node, "iptables", part);
            node.removes();
            assert_eq!(kind.save(&node, "iptables"), before, "{kind:?} {part}");
            node.has_nothing_to_remove();
        }
    }
}

/// CNI plugins can be told to use KUBE-MARK-MASQ.
#[test]
fn chains_that_others_jump_to_are_kept_and_told() {
    let jumps = "*nat\n\
        -I OUTPUT -d 192.0.2.1/32 -j KUBE-SVC-TCOU7JCQXEZGVUNU\n\
        -A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ\nCOMMIT\n";
    for kind in KINDS {
        let node = Node::new();
        kind.restore(&node, "iptables", OTHERS_IPTABLES);
        let others = kind.save(&node, "iptables");
        kind.restore(&node, "iptables", KUBE_PROXY_IPTABLES);
        kind.restore(&node, "iptables", jumps);
        let before = kind.save(&node, "iptables");
        let cleaned = node.cleanup(&["--cleanup-of=kube-proxy"]);
        assert!(!cleaned.success, "{}", cleaned.log);
        for told in [
            "kept chain KUBE-MARK-MASQ",
            "CNI-HOSTPORT-SETMARK",
            "kept chain KUBE-SVC-TCOU7JCQXEZGVUNU",
        ] {
            assert!(cleaned.log.contains(told), "{kind:?} {}", cleaned.log);
        }
        let after = kind.save(&node, "iptables");
        for line in others.lines() {
            assert!(after.contains(line), "{kind:?} {line}\n{after}");
        }
        assert_eq!(after.matches("KUBE-MARK-MASQ\n").count(), 4, "{kind:?} {after}");
        // What is kept works as before: its rules are all there.
        for chain in ["KUBE-SVC-TCOU7JCQXEZGVUNU", "KUBE-SEP-6E7XQMQ4RAYOWTTM", "KUBE-MARK-MASQ"] {
            assert_eq!(rules_of(&after, chain), rules_of(&before, chain), "{kind:?}");
        }
        for gone in ["KUBE-SERVICES -d", "KUBE-NODEPORTS", "KUBE-SVC-XPGD46QRK7WJZT7O"] {
            assert!(!after.contains(gone), "{kind:?} {gone}\n{after}");
        }
        kind.restore(
            &node,
            "iptables",
            "*nat\n-D OUTPUT -d 192.0.2.1/32 -j KUBE-SVC-TCOU7JCQXEZGVUNU\n\
             -D CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ\nCOMMIT\n",
        );
        node.removes();
        let clean = kind.save(&node, "iptables");
        assert!(!clean.contains("KUBE-SEP-6E7XQMQ4RAYOWTTM") && !clean.contains("KUBE-MARK-MASQ"));
    }
}

/// nf_tables does not list in rules what a map refers to.
#[test]
fn a_chain_that_a_map_of_others_refers_to_is_kept() {
    let node = Node::new();
    Iptables::Nft.restore(&node, "iptables", KUBE_PROXY_IPTABLES);
    node.run(
        "nft",
        &["-f", "-"],
        "add map ip nat mine { type ipv4_addr : verdict; }\n\
         add element ip nat mine { 192.0.2.1 : jump KUBE-SVL-GNZBNJ2PO5MGZ6GT }\n",
    );
    let cleaned = node.cleanup(&["--cleanup-of=kube-proxy"]);
    assert!(!cleaned.success, "{}", cleaned.log);
    assert!(cleaned.log.contains("kept chain KUBE-SVL-GNZBNJ2PO5MGZ6GT"), "{}", cleaned.log);
    let left = Iptables::Nft.save(&node, "iptables");
    let chains: Vec<&str> = left.lines().filter(|line| line.starts_with(":KUBE")).collect();
    assert_eq!(chains.len(), 3, "the chain, its endpoint, the mark: {chains:?}");
    node.run("nft", &["delete", "map", "ip", "nat", "mine"], "");
    node.removes();
    node.has_nothing_to_remove();
}

/// Without rules of its own chains the counters of others are not zero.
fn count_packets(node: &Node) {
    // Nobody listens; what counts is that packets pass the hooks.
    node.run("socat", &["-u", "-", "UDP:127.0.0.1:9"], "x");
}

/// The jumps kube-proxy adds to IPv6 make tables that were not there; they stay, empty.
fn without_ip6(ruleset: &str) -> Vec<&str> {
    let mut ours = true;
    let mut kept = Vec::new();
    for line in ruleset.lines() {
        if line.starts_with("table ") {
            ours = !line.starts_with("table ip6 ");
        }
        if ours {
            kept.push(line);
        }
    }
    kept
}

fn rules_of<'a>(saved: &'a str, chain: &str) -> Vec<&'a str> {
    let start = format!("-A {chain} ");
    let rules: Vec<&str> = saved.lines().filter(|line| line.contains(&start)).collect();
    assert!(!rules.is_empty(), "{chain}");
    rules
}
