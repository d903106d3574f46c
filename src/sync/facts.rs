//! What the settings and the own Node say about the program and the node's addresses: pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::config::{Config, DetectLocal, NodePortSelector};
use crate::ipvs::split;
use crate::model::{Family, Node};
use crate::nft::skeleton::{FamilyProgram, NodePortAddresses, Program};
use crate::serve::ListenOn;

/// The settings that the kernel's tables depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub masquerade_mark: u32,
    pub masquerade_all: bool,
    /// In IPVS mode.
    pub ipvs: Option<VirtualServers>,
    /// Families that the host supports.
    pub families: Vec<Family>,
    pub detect_local: DetectLocal,
    pub node_ports: NodePortSelector,
    /// A concrete `--bind-address`: stands for the node's address of its family (reference 11.1).
    pub node_ip: Option<IpAddr>,
}

/// What virtual servers depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualServers {
    pub split: split::Settings,
    /// How long a destination that is not wanted any more may keep its connections.
    pub drain: Duration,
}

/// What may change while the loop runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Live {
    /// All but the host's families and the node's own address.
    pub settings: Settings,
    /// Shortest time from the end of a sync to the next one.
    pub min_sync_period: Duration,
    /// Bounds the back-off after failures and spaces retries of refused Services.
    pub sync_period: Duration,
}

impl Live {
    /// What the configuration says for a host that supports `families`.
    pub fn of(config: &Config, families: Vec<Family>) -> Live {
        Live {
            settings: Settings::of(config, families),
            min_sync_period: config.min_sync_period,
            sync_period: config.sync_period,
        }
    }
}

impl Settings {
    /// What the configuration says for a host that supports `families`.
    pub fn of(config: &Config, families: Vec<Family>) -> Settings {
        Settings {
            masquerade_mark: config.masquerade_mark,
            masquerade_all: config.masquerade_all,
            ipvs: config.ipvs.as_ref().map(|it| VirtualServers {
                split: split::Settings {
                    scheduler: it.scheduler,
                    exclude_cidrs: it.exclude_cidrs.clone(),
                },
                drain: config.ipvs_drain,
            }),
            families,
            detect_local: config.detect_local.clone(),
            node_ports: config.node_ports.clone(),
            node_ip: Some(config.bind_address).filter(|it| !it.is_unspecified()),
        }
    }

    /// The constant program. It changes only with what the own Node says of itself.
    pub fn program(&self, node: Option<&Node>) -> Program {
        let family = |family| {
            let pod_cidrs = node.map_or(&[][..], |node| &node.pod_cidrs);
            FamilyProgram {
                detector: self.detect_local.detector(family, pod_cidrs),
                node_ports: match self.node_ports.ranges(family, &self.node_ips(node)) {
                    None => NodePortAddresses::All,
                    Some(_) => NodePortAddresses::Listed,
                },
            }
        };
        Program {
            masquerade_mark: self.masquerade_mark,
            masquerade_all: self.masquerade_all,
            ipvs: self.ipvs.is_some(),
            families: self.families.clone(),
            v4: family(Family::V4),
            v6: family(Family::V6),
        }
    }

    /// The host's addresses on which NodePorts are served. Loopback never is (reference 2.6).
    pub fn node_port_ips(
        &self,
        family: Family,
        node: Option<&Node>,
        host: &BTreeSet<IpAddr>,
    ) -> BTreeSet<IpAddr> {
        let own = host.iter().copied().filter(|it| Family::of(*it) == family && !it.is_loopback());
        match self.node_ports.ranges(family, &self.node_ips(node)) {
            None => own.collect(),
            Some(ranges) => {
                own.filter(|it| ranges.iter().any(|range| range.contains(it))).collect()
            }
        }
    }

    /// Why the proxy cannot do what the settings ask for, as far as the own Node and the host's addresses tell: kube-proxy
    /// waits for some of this, ends for some, and is silent about the rest. `None`: nothing is in the way.
    pub fn doubt(&self, node: Option<&Node>, host: &BTreeSet<IpAddr>) -> Option<&'static str> {
        let Some(node) = node else {
            return Some(
                "there is no Node object of this name: /healthz stays 503, and if the name is wrong, no endpoint counts as \
                 local (see --hostname-override)",
            );
        };
        self.doubt_of_local_pods(node).or_else(|| self.doubt_of_node_ports(node, host))
    }

    fn doubt_of_local_pods(&self, node: &Node) -> Option<&'static str> {
        let program = self.program(Some(node));
        if self.families.iter().any(|it| program.family(*it).detector.is_some()) {
            return None;
        }
        match &self.detect_local {
            // That it is not set was told at the start.
            DetectLocal::ClusterCidr(ranges) if ranges.is_empty() => None,
            DetectLocal::ClusterCidr(_) => Some(
                "clusterCIDR has no range of a family that this host supports; until it has, traffic of local Pods cannot be \
                 told from other traffic",
            ),
            DetectLocal::NodeCidr => Some(
                "the own Node has no podCIDRs of a family that this host supports, which detectLocalMode NodeCIDR needs; until \
                 it has, traffic of local Pods cannot be told from other traffic",
            ),
            DetectLocal::Bridge(_) | DetectLocal::InterfacePrefix(_) => None,
        }
    }

    /// One family may well have none: lists for dual-stack clusters are used on hosts with one family, too.
    fn doubt_of_node_ports(&self, node: &Node, host: &BTreeSet<IpAddr>) -> Option<&'static str> {
        let node_ips = self.node_ips(Some(node));
        let is_limited = |it: &&Family| self.node_ports.ranges(**it, &node_ips).is_some();
        let mut limited = self.families.iter().filter(is_limited).peekable();
        let nowhere = limited.peek().is_some()
            && limited.all(|it| self.node_port_ips(*it, Some(node), host).is_empty());
        nowhere.then_some(
            "no address of this host is among nodePortAddresses (loopback does not count; \"primary\" means the Node's own \
             addresses, which bindAddress overrides): until one is, NodePorts answer nowhere",
        )
    }

    /// Where health check node ports listen: on the same addresses as NodePorts (reference 10.2), but for loopback, which
    /// they may be asked for by.
    pub fn health_check_addresses(
        &self,
        family: Family,
        node: Option<&Node>,
        host: &BTreeSet<IpAddr>,
    ) -> ListenOn {
        match self.node_ports.ranges(family, &self.node_ips(node)) {
            None => ListenOn::All,
            Some(ranges) => {
                let listed = |ip: &IpAddr| ranges.iter().any(|range| range.contains(ip));
                ListenOn::These(host.iter().copied().filter(listed).collect())
            }
        }
    }

    /// The node's primary address of each family, as far as known (reference 11.1).
    pub fn node_ips(&self, node: Option<&Node>) -> Vec<IpAddr> {
        let of = |family| {
            let told = self.node_ip.filter(|it| Family::of(*it) == family);
            told.or_else(|| node?.addresses.iter().copied().find(|it| Family::of(*it) == family))
        };
        Family::ALL.into_iter().filter_map(of).collect()
    }
}

/// Those of the host's addresses that could be a cluster IP as well. Loopback cannot, nor can link-local ones, of which
/// each interface has one that comes and goes with every pod.
pub fn own_addresses(family: Family, host: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let is_link_local = |it: &IpAddr| match it {
        IpAddr::V4(it) => it.is_link_local(),
        IpAddr::V6(it) => it.is_unicast_link_local(),
    };
    let own = host.iter().filter(|it| Family::of(**it) == family);
    own.filter(|it| !it.is_loopback() && !is_link_local(it)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primary_means_the_nodes_own_addresses_and_everything_while_they_are_unknown() {
        let settings = settings(NodePortSelector::Primary);
        let node = Node { addresses: ips("192.0.2.1 192.0.2.7"), ..Node::default() };
        let program = settings.program(Some(&node));
        assert_eq!(program.v4.node_ports, NodePortAddresses::Listed);
        // As upstream: no address of a family known, no restriction in it.
        assert_eq!(program.v6.node_ports, NodePortAddresses::All);
        assert_eq!(settings.program(None).v4.node_ports, NodePortAddresses::All);
        check(&settings, Some(&node), "127.0.0.1 192.0.2.1 192.0.2.7 10.0.0.1", "192.0.2.1");
        check(&settings, None, "127.0.0.1 192.0.2.1 10.0.0.1", "192.0.2.1 10.0.0.1");
    }

    #[test]
    fn ranges_select_among_the_hosts_addresses_and_never_loopback() {
        let ranges = ["192.0.2.0/24", "127.0.0.0/8"].map(|it| it.parse().unwrap()).to_vec();
        let settings = settings(NodePortSelector::Within(ranges));
        check(
            &settings,
            None,
            "127.0.0.1 192.0.2.1 192.0.2.7 10.0.0.1 2001:db8::1",
            "192.0.2.1 192.0.2.7",
        );
    }

    /// TestServerWithSelectiveListeningAddress.
    #[test]
    fn health_check_node_ports_listen_on_loopback_if_it_is_listed() {
        let settings = settings(NodePortSelector::Within(vec!["127.0.0.0/8".parse().unwrap()]));
        let host = ips("127.0.0.1 192.0.2.1 ::1").into_iter().collect();
        let on = |family| settings.health_check_addresses(family, None, &host);
        assert_eq!(on(Family::V4), ListenOn::These(ips("127.0.0.1")));
        assert_eq!(on(Family::V6), ListenOn::All);
    }

    #[test]
    fn what_kube_proxy_would_wait_or_end_for_is_a_doubt() {
        let node = |cidr: &str| Node {
            pod_cidrs: cidr.split_whitespace().map(|it| it.parse().unwrap()).collect(),
            ..Node::default()
        };
        let check =
            |detect_local: DetectLocal, families: &[Family], node: Option<Node>, part: &str| {
                let families = families.to_vec();
                let settings =
                    Settings { detect_local, families, ..settings(NodePortSelector::All) };
                let doubt = settings.doubt(node.as_ref(), &BTreeSet::new()).unwrap_or_default();
                assert!(doubt.contains(part) && (part.is_empty() == doubt.is_empty()), "{doubt}");
            };
        let cluster = |cidr: &str| DetectLocal::ClusterCidr(node(cidr).pod_cidrs);
        check(cluster("10.0.0.0/8"), &Family::ALL, None, "no Node object");
        check(cluster("10.0.0.0/8"), &Family::ALL, Some(node("")), "");
        check(cluster(""), &Family::ALL, Some(node("")), "");
        check(cluster("fd00::/8"), &[Family::V4], Some(node("")), "clusterCIDR has no range");
        check(DetectLocal::NodeCidr, &Family::ALL, Some(node("")), "has no podCIDRs");
        check(DetectLocal::NodeCidr, &[Family::V4], Some(node("fd00::/64")), "has no podCIDRs");
        check(DetectLocal::NodeCidr, &Family::ALL, Some(node("fd00::/64")), "");
        check(DetectLocal::Bridge("br0".into()), &Family::ALL, Some(node("")), "");
    }

    #[test]
    fn node_ports_that_answer_nowhere_are_a_doubt() {
        let told = |node_ports: NodePortSelector, node: &str, host: &str| {
            let node = Node { addresses: ips(node), ..Node::default() };
            let host = ips(host).into_iter().collect();
            let doubt = settings(node_ports).doubt(Some(&node), &host);
            doubt.is_some_and(|it| it.contains("NodePorts answer nowhere"))
        };
        let within = |ranges: &str| {
            let ranges = ranges.split_whitespace().map(|it| it.parse().unwrap());
            NodePortSelector::Within(ranges.collect())
        };
        let host = "127.0.0.1 192.0.2.1 fe80::1";
        assert!(told(within("10.0.0.0/8"), "192.0.2.1", host));
        assert!(told(within("127.0.0.0/8"), "192.0.2.1", host), "loopback alone");
        assert!(told(NodePortSelector::Primary, "198.51.100.1", host), "behind NAT");
        assert!(
            !told(within("192.0.2.0/24 2001:db8::/32"), "192.0.2.1", host),
            "one family has one"
        );
        assert!(!told(within("10.0.0.0/8 192.0.2.0/24"), "192.0.2.1", host));
        assert!(!told(NodePortSelector::Primary, "192.0.2.1", host));
        assert!(!told(NodePortSelector::Primary, "", host), "all addresses, then");
        assert!(!told(NodePortSelector::All, "192.0.2.1", ""));
    }

    #[test]
    fn a_concrete_bind_address_is_the_nodes_address() {
        let settings = Settings {
            node_ip: Some("10.0.0.1".parse().unwrap()),
            ..settings(NodePortSelector::Primary)
        };
        let node = Node { addresses: ips("192.0.2.1 2001:db8::1"), ..Node::default() };
        assert_eq!(settings.node_ips(Some(&node)), ips("10.0.0.1 2001:db8::1"));
    }

    #[track_caller]
    fn check(settings: &Settings, node: Option<&Node>, host: &str, expected: &str) {
        let selected = settings.node_port_ips(Family::V4, node, &ips(host).into_iter().collect());
        assert_eq!(selected, ips(expected).into_iter().collect());
    }

    fn settings(node_ports: NodePortSelector) -> Settings {
        Settings {
            masquerade_mark: 0x4000,
            masquerade_all: false,
            ipvs: None,
            families: Family::ALL.to_vec(),
            detect_local: DetectLocal::ClusterCidr(Vec::new()),
            node_ports,
            node_ip: None,
        }
    }

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|it| it.parse().unwrap()).collect()
    }
}
