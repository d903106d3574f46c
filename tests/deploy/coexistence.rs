//! What `deploy/docs/migration.md` says about two proxies on one node, asked of the kernel.
//!
//! The tables are cut down to one Service, with hooks, priorities and mark as the real ones have them: those decide
//! what happens when both are present.

use std::sync::atomic::{AtomicU32, Ordering};

use super::tool;

/// The Service: cluster IP and port.
const SERVICE: &str = "10.96.0.10:53";
/// Where kube-proxy's rules send it.
const OLD: &str = "10.0.0.1";
/// Where ours send it.
const NEW: &str = "10.0.0.2";

#[test]
fn our_table_wins_from_its_first_commit_over_each_kind_of_leftover() {
    for leftover in [Leftover::Nftables, Leftover::IptablesNft, Leftover::IptablesLegacy] {
        let node = Node::new();
        node.add(leftover);
        assert_eq!(node.connect(4000), OLD, "{leftover:?}");
        node.nft(&ours(NEW));
        assert_eq!(node.connect(4001), NEW, "{leftover:?}");
    }
}

#[test]
fn whoever_comes_last_wins_so_a_kube_proxy_that_makes_its_table_anew_takes_over() {
    for leftover in [Leftover::Nftables, Leftover::IptablesNft] {
        let node = Node::new();
        node.nft(&ours(NEW));
        assert_eq!(node.connect(4000), NEW, "{leftover:?}");
        node.add(leftover);
        assert_eq!(node.connect(4001), OLD, "{leftover:?}");
    }
}

#[test]
fn rewriting_rules_in_chains_that_are_there_does_not_change_the_order() {
    let node = Node::new();
    node.add(Leftover::Nftables);
    node.nft(&ours(NEW));
    node.nft("flush chain ip kube-proxy services\n");
    node.nft(&kube_proxy(OLD));
    assert_eq!(node.connect(4000), NEW);
}

#[test]
fn a_connection_outlives_the_rules_that_made_it() {
    for leftover in [Leftover::Nftables, Leftover::IptablesNft, Leftover::IptablesLegacy] {
        let node = Node::new();
        node.add(leftover);
        assert_eq!(node.connect(4000), OLD, "{leftover:?}");
        node.nft(&ours(NEW));
        assert_eq!(node.send_again(4000), OLD, "{leftover:?}: with both");
        node.remove(leftover);
        assert_eq!(node.send_again(4000), OLD, "{leftover:?}: with ours alone");
        assert_eq!(node.connect(4001), NEW, "{leftover:?}");
    }
}

#[test]
fn a_connection_of_ours_outlives_our_table_on_the_way_back() {
    let node = Node::new();
    node.nft(&ours(NEW));
    assert_eq!(node.connect(4000), NEW);
    node.add(Leftover::Nftables);
    node.nft("delete table ip kube-ferry\n");
    assert_eq!(node.send_again(4000), NEW);
    assert_eq!(node.connect(4001), OLD);
}

#[test]
fn a_leftover_that_thinks_there_are_no_endpoints_does_not_reject() {
    let node = Node::new();
    node.nft(
        "table ip kube-proxy {
            chain filter-output { type filter hook output priority 0; ct state new jump service-endpoints-check
            }
            chain service-endpoints-check { ip daddr 10.96.0.10 udp dport 53 reject
            }
        }\n",
    );
    node.nft(&ours(NEW));
    // Our address translation comes first: the filter sees the endpoint's address.
    assert_eq!(node.connect(4000), NEW);
}

#[test]
fn a_leftover_firewall_still_drops() {
    let node = Node::new();
    node.nft(
        "table ip kube-proxy {
            chain filter-output-pre-dnat { type filter hook output priority -110; ct state new jump firewall-check
            }
            chain firewall-check { ip daddr 10.96.0.10 udp dport 53 drop
            }
        }\n",
    );
    node.nft(&ours(NEW));
    assert_eq!(node.connect(4000), "nobody");
    node.nft("delete table ip kube-proxy\n");
    assert_eq!(node.connect(4001), NEW);
}

/// In which way kube-proxy had worked.
#[derive(Clone, Copy, Debug)]
enum Leftover {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

/// kube-proxy's table of nftables mode.
fn kube_proxy(endpoint: &str) -> String {
    table("kube-proxy", "services", endpoint)
}

/// Our table.
fn ours(endpoint: &str) -> String {
    table("kube-ferry", "services", endpoint)
}

fn table(name: &str, services: &str, endpoint: &str) -> String {
    format!(
        "table ip {name} {{
            chain {services} {{ ip daddr 10.96.0.10 udp dport 53 meta mark set mark or 0x4000 dnat to {endpoint}:53
            }}
            chain nat-prerouting {{ type nat hook prerouting priority -100; jump {services}
            }}
            chain nat-output {{ type nat hook output priority -100; jump {services}
            }}
            chain masquerading {{
                mark and 0x4000 != 0 meta mark set mark xor 0x4000 masquerade fully-random
            }}
            chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading
            }}
        }}\n"
    )
}

/// A network namespace with two endpoints and a route for Services; it goes away with this value.
struct Node(String);

impl Node {
    #[track_caller]
    fn new() -> Node {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let node = Node(format!("deploy-{}-{number}", std::process::id()));
        tool::succeed("ip", &["netns", "add", &node.0], "");
        let setup = format!(
            "link set lo up\naddr add {OLD}/24 dev lo\naddr add {NEW}/24 dev lo\nroute add 10.96.0.0/16 dev lo\n"
        );
        node.run("ip", &["-batch", "-"], &setup);
        node
    }

    #[track_caller]
    fn run(&self, program: &str, arguments: &[&str], input: &str) -> String {
        let arguments = [&["netns", "exec", &self.0, program], arguments].concat();
        tool::succeed("ip", &arguments, input)
    }

    #[track_caller]
    fn nft(&self, commands: &str) {
        self.run("nft", &["-f", "-"], commands);
    }

    #[track_caller]
    fn add(&self, leftover: Leftover) {
        let Some(restore) = leftover.restore() else {
            return self.nft(&kube_proxy(OLD));
        };
        let rules = format!(
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
             -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
             -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
             -A KUBE-SERVICES -d 10.96.0.10/32 -p udp --dport 53 -j KUBE-MARK-MASQ\n\
             -A KUBE-SERVICES -d 10.96.0.10/32 -p udp --dport 53 -j DNAT --to-destination {OLD}:53\n\
             -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
             -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
             -A KUBE-POSTROUTING -j MASQUERADE --random-fully\nCOMMIT\n"
        );
        self.run(restore, &["--noflush"], &rules);
    }

    #[track_caller]
    fn remove(&self, leftover: Leftover) {
        let Some(restore) = leftover.restore() else {
            return self.nft("delete table ip kube-proxy\n");
        };
        let rules = "*nat\n-D PREROUTING -j KUBE-SERVICES\n-D OUTPUT -j KUBE-SERVICES\n\
                     -D POSTROUTING -j KUBE-POSTROUTING\n-F KUBE-SERVICES\n-F KUBE-POSTROUTING\n-F KUBE-MARK-MASQ\n\
                     -X KUBE-SERVICES\n-X KUBE-POSTROUTING\n-X KUBE-MARK-MASQ\nCOMMIT\n";
        self.run(restore, &["--noflush"], rules);
    }

    /// Sends the first packet from this port to the Service and tells who got it.
    #[track_caller]
    fn connect(&self, port: u16) -> String {
        assert_eq!(self.flows(port), [""; 0], "the port was used before");
        self.send_again(port)
    }

    #[track_caller]
    fn send_again(&self, port: u16) -> String {
        let address = format!("UDP:{SERVICE},sourceport={port}");
        // Where a packet is dropped, sending itself fails (EPERM): that is told by the missing flow.
        tool::run("ip", &["netns", "exec", &self.0, "socat", "-t0", "-", &address], "x");
        match self.flows(port).as_slice() {
            [] => "nobody".to_owned(),
            [endpoint] => endpoint.clone(),
            several => panic!("one flow expected: {several:?}"),
        }
    }

    /// Sources of replies in connection tracking, for flows to the Service from this port.
    #[track_caller]
    fn flows(&self, port: u16) -> Vec<String> {
        let listing =
            self.run("conntrack", &["-L", "-p", "udp", "--orig-port-src", &port.to_string()], "");
        let replies = listing.lines().filter_map(|flow| flow.split("src=").nth(2));
        replies.filter_map(|reply| reply.split(' ').next()).map(str::to_owned).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        tool::run("ip", &["netns", "delete", &self.0], "");
    }
}

impl Leftover {
    /// The program that writes such rules; `None`: nft.
    fn restore(self) -> Option<&'static str> {
        match self {
            Leftover::Nftables => None,
            Leftover::IptablesNft => Some("iptables-nft-restore"),
            Leftover::IptablesLegacy => Some("iptables-legacy-restore"),
        }
    }
}
