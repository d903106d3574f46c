//! Rules and sets of mode ipvs. The virtual servers need another kernel: `tests/ipvs/`.

use super::leftovers::{
    Iptables, KUBE_PROXY_IPSETS, KUBE_PROXY_IPVS, OTHERS_IPSETS, OTHERS_IPTABLES,
};
use super::node::Node;

#[test]
fn exactly_kube_proxys_sets_go_with_the_rules_that_use_them() {
    for kind in [Iptables::Nft, Iptables::Legacy] {
        let node = Node::new();
        node.run("ipset", &["restore"], OTHERS_IPSETS);
        kind.restore(&node, "iptables", OTHERS_IPTABLES);
        let before = [node.run("ipset", &["save"], ""), kind.save(&node, "iptables")];
        node.run("ipset", &["restore"], KUBE_PROXY_IPSETS);
        kind.restore(&node, "iptables", KUBE_PROXY_IPVS);
        let cleaned = node.removes();
        assert!(cleaned.log.contains("KUBE-6-NODE-PORT-LOCAL-SCTP-HAS"), "{}", cleaned.log);
        let after = [node.run("ipset", &["save"], ""), kind.save(&node, "iptables")];
        assert_eq!(after, before, "{kind:?}");
        node.has_nothing_to_remove();
    }
}

#[test]
fn a_set_that_a_rule_of_others_uses_is_kept_and_told() {
    let node = Node::new();
    node.run("ipset", &["restore"], KUBE_PROXY_IPSETS);
    let mine = "*filter\n-A INPUT -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT\nCOMMIT\n";
    Iptables::Nft.restore(&node, "iptables", mine);
    let cleaned = node.cleanup(&["--cleanup-of=kube-proxy"]);
    assert!(!cleaned.success, "{}", cleaned.log);
    assert!(cleaned.log.contains("kept the ipset KUBE-CLUSTER-IP:"), "{}", cleaned.log);
    assert_eq!(node.run("ipset", &["list", "-n"], ""), "KUBE-CLUSTER-IP\n");
}
