//! Leftovers of mode iptables.

use super::leftovers::{Iptables, KUBE_PROXY_IPTABLES, OTHERS_IPTABLES};
use super::node::Node;

const KINDS: [Iptables; 2] = [Iptables::Nft, Iptables::Legacy];

#[test]
fn exactly_kube_proxys_rules_and_chains_go() {
    for kind in KINDS {
        let node = Node::new();
        kind.restore(&node, "iptables", OTHERS_IPTABLES);
        let before = [kind.save(&node, "iptables"), node.ruleset()];
        kind.kube_proxy(&node);
        assert_ne!(kind.save(&node, "iptables"), before[0], "{kind:?}");
        count_packets(&node);
        let others = others(&kind.save(&node, "iptables"), &before[0]);
        node.removes();
        let after = kind.save(&node, "iptables");
        assert_eq!(after, others, "{kind:?}");
        assert_eq!(uncounted(&after), uncounted(&before[0]), "{kind:?}");
        // By their handles these are the very rules that were there before, not copies of them.
        let (now, then) = (node.ruleset(), &before[1]);
        assert_eq!(uncounted(&without_ip6(&now)), uncounted(&without_ip6(then)), "{kind:?}");
        assert!(!kind.save(&node, "ip6tables").contains("KUBE-"), "{kind:?}");
        node.has_nothing_to_remove();
        assert_eq!(kind.save(&node, "iptables"), others, "{kind:?}");
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

/// As in the DaemonSet's container: one capability, and a file system that cannot be written.
#[test]
fn cap_net_admin_is_enough() {
    for kind in KINDS {
        let node = Node::new();
        kind.kube_proxy(&node);
        let script = "set -e; mount --make-rprivate /; mount -o remount,bind,ro /
            exec setpriv --no-new-privs --bounding-set=-all,+net_admin -- \"$1\" --cleanup --cleanup-of=kube-proxy";
        let program = env!("CARGO_BIN_EXE_kube-ferry");
        node.run("unshare", &["--mount", "sh", "-c", script, "sh", program], "");
        for family in ["iptables", "ip6tables"] {
            assert!(!kind.save(&node, family).contains("KUBE-"), "{kind:?}");
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

/// Counters of others have to go on as they are, which says nothing while they are zero.
fn count_packets(node: &Node) {
    // Nobody listens; what counts is that packets pass the hooks.
    node.run("socat", &["-u", "-", "UDP:127.0.0.1:9"], "x");
}

/// The lines, with the counters they have now, that were there before.
#[track_caller]
fn others(now: &str, before: &str) -> String {
    let before = by_table(before);
    let were_there = |(table, line): &(&str, &str)| {
        before.iter().any(|it| it.0 == *table && uncounted(it.1) == uncounted(line))
    };
    let lines = by_table(now).into_iter().filter(were_there);
    let others: String = lines.map(|(_, line)| format!("{line}\n")).collect();
    assert!(others.lines().any(|line| line.contains("[2:")), "packets were counted: {others}");
    others
}

/// Each line with the table it is in.
fn by_table(saved: &str) -> Vec<(&str, &str)> {
    let mut table = "";
    let lines = saved.lines().map(|line| {
        if line.starts_with('*') {
            table = line;
        }
        (table, line)
    });
    lines.collect()
}

/// Without the values of counters, as iptables-save and nft print them.
fn uncounted(text: &str) -> String {
    let mut plain = String::new();
    for word in text.split_inclusive([' ', '\n']) {
        let number = word.trim_end().chars().all(|it| it.is_ascii_digit() || "[:]".contains(it));
        let counter =
            word.starts_with('[') || plain.ends_with("packets ") || plain.ends_with("bytes ");
        plain += if number && counter { "" } else { word };
    }
    plain
}

/// The jumps kube-proxy adds to IPv6 make tables that were not there; they stay, empty.
fn without_ip6(ruleset: &str) -> String {
    let mut ours = true;
    let mut kept = String::new();
    for line in ruleset.lines() {
        if line.starts_with("table ") {
            ours = !line.starts_with("table ip6 ");
        }
        if ours {
            kept += line;
            kept.push('\n');
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
