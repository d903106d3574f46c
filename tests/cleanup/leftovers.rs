//! What kube-proxy and others have in the kernel, as text.

use super::node::Node;

pub(super) const KUBE_PROXY_IPTABLES: &str = include_str!("data/kube-proxy-iptables.txt");
pub(super) const KUBE_PROXY_IP6TABLES: &str = include_str!("data/kube-proxy-ip6tables.txt");
pub(super) const OTHERS_IPTABLES: &str = include_str!("data/others-iptables.txt");
pub(super) const KUBE_PROXY_NFTABLES: &str = include_str!("data/kube-proxy-nftables.nft");
pub(crate) const KUBE_PROXY_IPVS: &str = include_str!("data/kube-proxy-ipvs.txt");
pub(crate) const KUBE_PROXY_IPSETS: &str = include_str!("data/kube-proxy-ipsets.txt");
pub(crate) const OTHERS_IPSETS: &str = include_str!("data/others-ipsets.txt");
pub(super) const OTHERS_NFTABLES: &str = include_str!("data/others-nftables.nft");

/// Which of the two iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Iptables {
    Nft,
    Legacy,
}

impl Iptables {
    fn program(self, family: &str, verb: &str) -> String {
        let kind = match self {
            Iptables::Nft => "nft",
            Iptables::Legacy => "legacy",
        };
        format!("{family}-{kind}-{verb}")
    }

    /// Adds rules of one family (`iptables` or `ip6tables`) to what is there.
    #[track_caller]
    pub(super) fn restore(self, node: &Node, family: &str, rules: &str) {
        node.run(&self.program(family, "restore"), &["--noflush", "--counters"], rules);
    }

    /// The rules of one family with their counters.
    #[track_caller]
    pub(super) fn save(self, node: &Node, family: &str) -> String {
        let text = node.run(&self.program(family, "save"), &["--counters"], "");
        text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
    }

    /// Both families, as kube-proxy writes them.
    #[track_caller]
    pub(super) fn kube_proxy(self, node: &Node) {
        self.restore(node, "iptables", KUBE_PROXY_IPTABLES);
        self.restore(node, "ip6tables", KUBE_PROXY_IP6TABLES);
    }
}
