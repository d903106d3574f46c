//! Names of sets and chains as nft shows them, and back.

use crate::nft::schema::{Chain, SetName, Slots};

impl SetName {
    pub const ALL: [SetName; 30] = [
        SetName::ClusterIps,
        SetName::ServiceCidrs,
        SetName::NodePortIps,
        SetName::NodeIps,
        SetName::Hairpin,
        SetName::Firewalled,
        SetName::SourceRanges,
        SetName::NoEndpoints,
        SetName::NoLocalEndpoints,
        SetName::NodePortNoEndpoints,
        SetName::NodePortNoLocalEndpoints,
        SetName::Frontends,
        SetName::LocalFrontends,
        SetName::NodePorts,
        SetName::LocalNodePorts,
        SetName::Endpoints,
        SetName::LocalEndpoints,
        SetName::NodePortEndpoints,
        SetName::LocalNodePortEndpoints,
        SetName::StickyFrontends,
        SetName::StickyLocalFrontends,
        SetName::StickyNodePorts,
        SetName::StickyLocalNodePorts,
        SetName::StickyGroups,
        SetName::AffinityTimeouts,
        SetName::StickySlots,
        SetName::StickyEndpoints,
        SetName::Affinity,
        SetName::IpvsServices,
        SetName::IpvsDraining,
    ];

    /// The name in nft.
    pub fn name(self) -> &'static str {
        match self {
            SetName::ClusterIps => "cluster-ips",
            SetName::ServiceCidrs => "service-cidrs",
            SetName::NodePortIps => "nodeport-ips",
            SetName::NodeIps => "node-ips",
            SetName::Hairpin => "hairpin",
            SetName::Firewalled => "firewalled",
            SetName::SourceRanges => "source-ranges",
            SetName::NoEndpoints => "no-endpoints",
            SetName::NoLocalEndpoints => "no-local-endpoints",
            SetName::NodePortNoEndpoints => "nodeport-no-endpoints",
            SetName::NodePortNoLocalEndpoints => "nodeport-no-local-endpoints",
            SetName::Frontends => "frontends",
            SetName::LocalFrontends => "local-frontends",
            SetName::NodePorts => "nodeports",
            SetName::LocalNodePorts => "local-nodeports",
            SetName::Endpoints => "endpoints",
            SetName::LocalEndpoints => "local-endpoints",
            SetName::NodePortEndpoints => "nodeport-endpoints",
            SetName::LocalNodePortEndpoints => "local-nodeport-endpoints",
            SetName::StickyFrontends => "sticky-frontends",
            SetName::StickyLocalFrontends => "sticky-local-frontends",
            SetName::StickyNodePorts => "sticky-nodeports",
            SetName::StickyLocalNodePorts => "sticky-local-nodeports",
            SetName::StickyGroups => "sticky-groups",
            SetName::AffinityTimeouts => "affinity-timeouts",
            SetName::StickySlots => "sticky-slots",
            SetName::StickyEndpoints => "sticky-endpoints",
            SetName::Affinity => "affinity",
            SetName::IpvsServices => "ipvs-services",
            SetName::IpvsDraining => "ipvs-draining",
        }
    }

    /// Inverse of [`SetName::name`].
    pub fn parse(name: &str) -> Option<SetName> {
        SetName::ALL.into_iter().find(|it| it.name() == name)
    }
}

impl Chain {
    /// Chains whose name carries no number.
    const PLAIN: [Chain; 23] = [
        Chain::FilterPreroutingPreDnat,
        Chain::FilterOutputPreDnat,
        Chain::FilterInput,
        Chain::FilterForward,
        Chain::FilterOutput,
        Chain::NatPrerouting,
        Chain::NatOutput,
        Chain::NatPostrouting,
        Chain::Services,
        Chain::Masquerading,
        Chain::FirewallCheck,
        Chain::ServiceEndpointsCheck,
        Chain::NodePortEndpointsCheck,
        Chain::ClusterIpsCheck,
        Chain::LocalClusterIpsCheck,
        Chain::Reject,
        Chain::Sticky,
        Chain::StickyExternal,
        Chain::StickyExternalLocal,
        Chain::StickyNodePort,
        Chain::StickyNodePortCluster,
        Chain::StickyNodePortLocal,
        Chain::StickyLookup,
    ];

    /// The number of slots that it is one of the chains of.
    pub fn slots(self) -> Option<Slots> {
        if let Chain::Pick(slots)
        | Chain::External(slots)
        | Chain::ExternalLocal(slots)
        | Chain::LocalPick(slots)
        | Chain::NodePortPick(slots)
        | Chain::NodePort(slots)
        | Chain::NodePortLocal(slots)
        | Chain::NodePortLocalPick(slots)
        | Chain::StickyPick(slots) = self
        {
            Some(slots)
        } else {
            None
        }
    }

    /// Inverse of `Display`. What `Display` never writes, such as `pick-08` or `pick-3`, is no chain of ours.
    pub fn parse(name: &str) -> Option<Chain> {
        Chain::parse_plain(name).or_else(|| Chain::parse_numbered(name))
    }

    fn parse_plain(name: &str) -> Option<Chain> {
        Chain::PLAIN.into_iter().find(|it| it.to_string() == name)
    }

    fn parse_numbered(name: &str) -> Option<Chain> {
        let (stem, digits) = name.rsplit_once('-')?;
        let number: u32 = digits.parse().ok()?;
        let slots = || Slots::all().find(|it| it.count() == number);
        let chain = match stem {
            "pick" => Chain::Pick(slots()?),
            "external" => Chain::External(slots()?),
            "external-local" => Chain::ExternalLocal(slots()?),
            "local-pick" => Chain::LocalPick(slots()?),
            "nodeport-pick" => Chain::NodePortPick(slots()?),
            "nodeport" => Chain::NodePort(slots()?),
            "nodeport-local" => Chain::NodePortLocal(slots()?),
            "nodeport-local-pick" => Chain::NodePortLocalPick(slots()?),
            "sticky-pick" => Chain::StickyPick(slots()?),
            "remember" => Chain::Remember(number),
            _ => return None,
        };
        (chain.to_string() == name).then_some(chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;
    use crate::nft::skeleton::{chains, remember, tests::program};

    #[test]
    fn every_set_is_found_by_its_name() {
        for set in SetName::ALL {
            assert_eq!(SetName::parse(set.name()), Some(set));
        }
    }

    #[test]
    fn every_chain_is_found_by_its_name() {
        let all = chains(&program(), Family::V4).into_iter().chain([remember(10_800)]);
        for spec in all {
            assert_eq!(Chain::parse(&spec.chain.to_string()), Some(spec.chain));
        }
    }

    #[test]
    fn what_display_never_writes_is_no_chain() {
        for name in [
            "",
            "-",
            "pick",
            "pick-",
            "pick-08",
            "pick-+8",
            "pick-3",
            "pick-32768",
            "x-8",
            "remember-01",
        ] {
            assert_eq!(Chain::parse(name), None, "{name}");
        }
    }
}
