//! Leftovers of mode nftables, and whose leftovers go.

use super::leftovers::{Iptables, KUBE_PROXY_NFTABLES, OTHERS_NFTABLES};
use super::node::Node;

/// A table of ours, as small as can be.
const OURS: &str = "add table ip kube-ferry\nadd chain ip kube-ferry services\n";

#[test]
fn exactly_kube_proxys_tables_go() {
    let node = Node::new();
    node.run("nft", &["-f", "-"], OTHERS_NFTABLES);
    let before = node.ruleset();
    node.run("nft", &["-f", "-"], KUBE_PROXY_NFTABLES);
    node.removes();
    assert_eq!(node.ruleset(), before);
    node.has_nothing_to_remove();
    assert_eq!(node.ruleset(), before);
}

#[test]
fn one_family_alone_goes() {
    let node = Node::new();
    node.run("nft", &["add", "table", "ip6", "kube-proxy"], "");
    let cleaned = node.removes();
    assert!(cleaned.log.contains("removed table ip6 kube-proxy"), "{}", cleaned.log);
    assert_eq!(node.ruleset(), "");
}

#[test]
fn everything_goes_as_with_kube_proxys_own_flag() {
    let node = Node::new();
    node.run("nft", &["-f", "-"], &format!("{OURS}{KUBE_PROXY_NFTABLES}"));
    Iptables::Nft.kube_proxy(&node);
    let cleaned = node.cleanup(&[]);
    assert!(cleaned.success, "{}", cleaned.log);
    let left = node.ruleset();
    assert!(!left.contains("KUBE-") && !left.contains("kube-"), "{left}");
    let again = node.cleanup(&[]);
    assert!(again.success && again.log.contains("nothing to remove"), "{}", again.log);
}

#[test]
fn ours_go_while_kube_proxy_works_and_the_other_way_round() {
    let node = Node::new();
    node.run("nft", &["-f", "-"], OURS);
    let ours = node.ruleset();
    node.run("nft", &["-f", "-"], KUBE_PROXY_NFTABLES);
    assert!(node.cleanup(&["--cleanup-of=kube-proxy"]).success);
    assert_eq!(node.ruleset(), ours);

    let node = Node::new();
    node.run("nft", &["-f", "-"], KUBE_PROXY_NFTABLES);
    Iptables::Nft.kube_proxy(&node);
    let kube_proxys = node.ruleset();
    node.run("nft", &["-f", "-"], OURS);
    assert!(node.cleanup(&["--cleanup-of=kube-ferry"]).success);
    assert_eq!(node.ruleset(), kube_proxys);
}
