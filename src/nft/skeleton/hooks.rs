//! Where chains hang in the kernel, and what `nft list` says about them.

use crate::nft::schema::{BaseHook, Chain, ChainKind, Hook};

/// Shown by `nft list`: whose table it is.
pub const TABLE_COMMENT: &str = "Services of kube-ferry; changes by others are undone";

/// The hook of a base chain, with kube-proxy's types and priorities: other programs may rely on the order. `None`
/// for chains that are only jumped to.
pub fn base_hook(chain: Chain) -> Option<BaseHook> {
    let (kind, hook, priority) = match chain {
        Chain::FilterPreroutingPreDnat => (ChainKind::Filter, Hook::Prerouting, -110),
        Chain::FilterOutputPreDnat => (ChainKind::Filter, Hook::Output, -110),
        Chain::FilterInput => (ChainKind::Filter, Hook::Input, 0),
        Chain::FilterForward => (ChainKind::Filter, Hook::Forward, 0),
        Chain::FilterOutput => (ChainKind::Filter, Hook::Output, 0),
        Chain::NatPrerouting => (ChainKind::Nat, Hook::Prerouting, -100),
        Chain::NatOutput => (ChainKind::Nat, Hook::Output, -100),
        Chain::NatPostrouting => (ChainKind::Nat, Hook::Postrouting, 100),
        Chain::Services
        | Chain::Masquerading
        | Chain::FirewallCheck
        | Chain::ServiceEndpointsCheck
        | Chain::NodePortEndpointsCheck
        | Chain::ClusterIpsCheck
        | Chain::LocalClusterIpsCheck
        | Chain::Reject
        | Chain::Pick(_)
        | Chain::External(_)
        | Chain::ExternalLocal(_)
        | Chain::LocalPick(_)
        | Chain::NodePortPick(_)
        | Chain::NodePort(_)
        | Chain::NodePortLocal(_)
        | Chain::NodePortLocalPick(_)
        | Chain::Sticky
        | Chain::StickyExternal
        | Chain::StickyExternalLocal
        | Chain::StickyNodePort
        | Chain::StickyNodePortCluster
        | Chain::StickyNodePortLocal
        | Chain::StickyLookup
        | Chain::StickyPick(_)
        | Chain::Remember(_) => return None,
    };
    Some(BaseHook { kind, hook, priority })
}

/// One sentence on what the chain is for.
pub fn comment(chain: Chain) -> &'static str {
    match chain {
        Chain::FilterPreroutingPreDnat | Chain::FilterOutputPreDnat => {
            "Source ranges, while the Service address is still in the packet"
        }
        Chain::FilterInput | Chain::FilterForward | Chain::FilterOutput => {
            "Destinations that no endpoint serves"
        }
        Chain::NatPrerouting => "Service traffic from outside and from pods",
        Chain::NatOutput => "Service traffic of this node",
        Chain::NatPostrouting => "Source addresses",
        Chain::Services => "Dispatch by address and port, then NodePorts",
        Chain::Masquerading => "Masquerade marked connections and those of a pod to itself",
        Chain::FirewallCheck => "loadBalancerSourceRanges",
        Chain::ServiceEndpointsCheck => "Frontends without endpoint",
        Chain::NodePortEndpointsCheck => "NodePorts without endpoint",
        Chain::ClusterIpsCheck => "Cluster IPs and ports that no Service has",
        Chain::LocalClusterIpsCheck => "Programs of this node are no Services",
        Chain::Reject => "Port unreachable",
        Chain::Pick(_) | Chain::NodePortPick(_) => "Draw an endpoint",
        Chain::LocalPick(_) | Chain::NodePortLocalPick(_) => "Draw an endpoint on this node",
        Chain::External(_) | Chain::NodePort(_) => "External traffic, any endpoint",
        Chain::ExternalLocal(_) | Chain::NodePortLocal(_) => {
            "External traffic, endpoints on this node only"
        }
        Chain::Sticky | Chain::StickyNodePortCluster => {
            "Session affinity: the endpoint group of the frontend"
        }
        Chain::StickyExternal | Chain::StickyNodePort => {
            "Session affinity: external traffic, any endpoint"
        }
        Chain::StickyExternalLocal | Chain::StickyNodePortLocal => {
            "Session affinity: external traffic, endpoints on this node only"
        }
        Chain::StickyLookup => "Session affinity: go to the remembered endpoint or draw one",
        Chain::StickyPick(_) => "Session affinity: draw an endpoint of the group",
        Chain::Remember(_) => "Session affinity: remember the endpoint and go there",
    }
}
