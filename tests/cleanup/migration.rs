//! From kube-proxy to kube-ferry and back, under traffic: no connection is lost on the way, and none is refused.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use kube_ferry::model::{Family, Protocol};
use rustix::process::Signal;
use serde_json::json;

use super::node;
use crate::scenario::datapath::{Attempt, Wanted};
use crate::scenario::run::answers;
use crate::scenario::traffic::Traffic;
use crate::support::proxy::Proxy;
use crate::support::world::{Actor, World, twin};

/// The Service: cluster IP, port and node port.
pub(crate) const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
pub(crate) const PORT: u16 = 80;
pub(crate) const NODE_PORT: u16 = 30_080;
pub(crate) const NODE: [u8; 4] = [192, 0, 2, 1];

/// The only endpoint that kube-proxy knew, and the one that came after it.
pub(crate) const OLD: &str = "pod-1b";
pub(crate) const NEW: &str = "pod-2a";
pub(crate) const TARGET: u16 = 8080;

/// Enough to see that not all go to one of two endpoints, but once in 10^9 times.
const CONNECTIONS: usize = 30;

#[test]
fn from_nftables_and_back() {
    there_and_back(Mode::Nftables);
}

#[test]
fn from_iptables_nft_and_back() {
    there_and_back(Mode::Iptables("nft"));
}

#[test]
fn from_iptables_legacy_and_back() {
    there_and_back(Mode::Iptables("legacy"));
}

fn there_and_back(mode: Mode) {
    let world = World::new();
    let directory = tempfile::tempdir().unwrap();
    mode.install(&world);
    assert_eq!(reached(&world, &attempts()), [OLD]);
    let mut traffic = start(&world, &attempts());

    let mut proxy = proxy(&world, directory.path());
    assert!(proxy.log().contains("--cleanup-of=kube-proxy"), "{}", proxy.log());
    assert_eq!(
        reached(&world, &attempts()),
        [OLD, NEW],
        "our rules hold although kube-proxy's are there"
    );
    traffic.extend(start(&world, &attempts()));
    clean(&world, "kube-proxy");
    assert!(!mode.is_installed(&world));
    assert_eq!(reached(&world, &attempts()), [OLD, NEW]);
    traffic.extend(start(&world, &attempts()));

    proxy.stop(Signal::TERM);
    mode.install(&world);
    let hold = if mode.makes_base_chains() { &[OLD][..] } else { &[OLD, NEW] };
    assert_eq!(
        reached(&world, &attempts()),
        hold,
        "kube-proxy's rules hold if it has made their base chains anew"
    );
    clean(&world, "kube-ferry");
    assert!(mode.is_installed(&world));
    assert_eq!(reached(&world, &attempts()), [OLD]);
    for flow in traffic {
        flow.end().unwrap();
    }
}

/// kube-ferry with the Service in a manifest; it has synchronised once.
pub(crate) fn proxy<'w>(world: &'w World, directory: &Path) -> Proxy<'w> {
    proxy_with(world, directory, &[])
}

/// As [`proxy`], with further flags.
pub(crate) fn proxy_with<'w>(world: &'w World, directory: &Path, more: &[&str]) -> Proxy<'w> {
    write_manifest(directory);
    let flags = ["--hostname-override=node-1", "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56"];
    let mut arguments: Vec<String> = flags.map(str::to_owned).to_vec();
    arguments.push(format!("--manifests={}", directory.display()));
    arguments.extend(more.iter().map(|it| (*it).to_owned()));
    Proxy::start(world.node(), arguments, directory.join("log")).unwrap()
}

#[track_caller]
pub(crate) fn clean(world: &World, whose: &str) {
    let flags = [&*format!("--cleanup-of={whose}")];
    let cleaned = node::cleanup(world.node(), &flags);
    assert!(cleaned.success && cleaned.log.contains("removed"), "{}", cleaned.log);
}

/// Clients of the cluster IP and of the node port, each with an old connection and always new ones.
pub(crate) fn start(world: &World, attempts: &[Attempt]) -> Vec<Traffic> {
    let each = attempts.iter().cloned();
    each.map(|attempt| Traffic::start(world, attempt).unwrap()).collect()
}

pub(crate) fn attempts() -> Vec<Attempt> {
    let mut all = Vec::new();
    for family in Family::ALL {
        for (client, address, port, protocol) in [
            ("client", CLUSTER_IP, PORT, Protocol::Tcp),
            ("client", CLUSTER_IP, PORT, Protocol::Udp),
            ("node-1", CLUSTER_IP, PORT, Protocol::Tcp),
            ("outside", NODE, NODE_PORT, Protocol::Tcp),
        ] {
            all.push(Attempt {
                source: Actor::find(client).unwrap(),
                to: SocketAddr::new(of(address, family), port),
                protocol,
                wanted: Wanted::Backends(BTreeSet::from([(OLD, None), (NEW, None)]), None),
            });
        }
    }
    all
}

/// Everybody whom all new connections reach, whoever opens them. By TCP only: a UDP source port that another client has
/// just used belongs to that one's flow.
#[track_caller]
pub(crate) fn reached(world: &World, attempts: &[Attempt]) -> Vec<String> {
    let mut seen = Vec::new();
    for attempt in attempts.iter().filter(|it| it.protocol == Protocol::Tcp) {
        let by: BTreeSet<String> =
            answers(world, attempt, CONNECTIONS).unwrap().into_iter().collect();
        let by = Vec::from_iter(by);
        assert!(seen.is_empty() || seen == by, "{attempt:?}: {by:?}, others {seen:?}");
        seen = by;
    }
    seen
}

fn of(v4: [u8; 4], family: Family) -> IpAddr {
    match family {
        Family::V4 => v4.into(),
        Family::V6 => twin(v4.into()).into(),
    }
}

/// The Service with both endpoints.
pub(crate) fn write_manifest(directory: &Path) {
    let port = |name: &str, protocol: &str| {
        let node_port = NODE_PORT + u16::from(protocol == "UDP");
        json!({"name": name, "protocol": protocol, "port": PORT, "nodePort": node_port})
    };
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": "web"},
        "spec": {
            "type": "NodePort",
            "clusterIP": of(CLUSTER_IP, Family::V4),
            "clusterIPs": Family::ALL.map(|family| of(CLUSTER_IP, family)),
            "ports": [port("http", "TCP"), port("udp", "UDP")],
        },
    });
    let mut objects = vec![service];
    for family in Family::ALL {
        let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
        let endpoint = |name: &str| {
            let address = Actor::find(name).unwrap().address(of(NODE, family));
            json!({"addresses": [address], "conditions": {"ready": true}})
        };
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
            "metadata": {
                "namespace": "ns", "name": format!("web-{}", kind.to_lowercase()),
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "ports": [
                {"name": "http", "protocol": "TCP", "port": TARGET},
                {"name": "udp", "protocol": "UDP", "port": TARGET},
            ],
            "endpoints": [endpoint(OLD), endpoint(NEW)],
        }));
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    std::fs::write(directory.join("objects.json"), list.to_string()).unwrap();
}

/// In which way kube-proxy works.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Nftables,
    /// With which kind of iptables.
    Iptables(&'static str),
}

impl Mode {
    /// Writes kube-proxy's rules, as they are for the Service with one endpoint.
    fn install(self, world: &World) {
        for family in Family::ALL {
            match self {
                Mode::Nftables => {
                    world.node().command("nft", &["-f", "-"], &nftables(family));
                }
                Mode::Iptables(kind) => {
                    let restore = format!("{}-{kind}-restore", program(family));
                    world.node().command(&restore, &["--noflush"], &iptables(family));
                }
            }
        }
    }

    /// Whether kube-proxy comes with base chains, or finds those of iptables, which stay when its rules are removed.
    fn makes_base_chains(self) -> bool {
        matches!(self, Mode::Nftables)
    }

    fn is_installed(self, world: &World) -> bool {
        let text = match self {
            Mode::Nftables => world.node().command("nft", &["list", "tables"], ""),
            Mode::Iptables(kind) => Family::ALL
                .map(|family| {
                    world.node().command(&format!("{}-{kind}-save", program(family)), &[], "")
                })
                .concat(),
        };
        text.contains("KUBE-") || text.contains("kube-proxy")
    }
}

fn program(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// Cluster IP, endpoint, its target in rules, and the Pods' range.
fn addresses(family: Family) -> (IpAddr, IpAddr, SocketAddr, &'static str) {
    let pod = Actor::find(OLD).unwrap().address(of(NODE, family));
    let pods = if family == Family::V4 { "10.244.0.0/16" } else { "fd00:10:244::/56" };
    (of(CLUSTER_IP, family), pod, SocketAddr::new(pod, TARGET), pods)
}

fn iptables(family: Family) -> String {
    let (service, pod, target, pods) = addresses(family);
    let mut ports = String::new();
    for (protocol, svc, ext, sep, node_port) in [
        (
            "tcp",
            "KUBE-SVC-XPGD46QRK7WJZT7O",
            "KUBE-EXT-XPGD46QRK7WJZT7O",
            "KUBE-SEP-SXIVWICOYRO3J4NJ",
            NODE_PORT,
        ),
        (
            "udp",
            "KUBE-SVC-TCOU7JCQXEZGVUNU",
            "KUBE-EXT-TCOU7JCQXEZGVUNU",
            "KUBE-SEP-IT2ZTR26TO4XFPTO",
            NODE_PORT + 1,
        ),
    ] {
        let of_port = format!("-p {protocol} -m comment --comment \"ns/web\" -m {protocol}");
        ports += &format!(
            ":{svc} - [0:0]\n:{ext} - [0:0]\n:{sep} - [0:0]\n\
             -A KUBE-SERVICES -d {service} {of_port} --dport {PORT} -j {svc}\n\
             -A KUBE-NODEPORTS {of_port} --dport {node_port} -j {ext}\n\
             -A {ext} -j KUBE-MARK-MASQ\n-A {ext} -j {svc}\n\
             -A {svc} ! -s {pods} -d {service} {of_port} --dport {PORT} -j KUBE-MARK-MASQ\n\
             -A {svc} -m comment --comment \"ns/web -> {target}\" -j {sep}\n\
             -A {sep} -s {pod} -j KUBE-MARK-MASQ\n\
             -A {sep} {of_port} -j DNAT --to-destination {target}\n"
        );
    }
    format!(
        "*mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n\
         *filter\n:KUBE-FORWARD - [0:0]\n\
         -I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n\
         *nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         -I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {ports}\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n"
    )
}

fn nftables(family: Family) -> String {
    let (service, pod, _, pods) = addresses(family);
    let (ip, kind) = match family {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    let mut ports = String::new();
    let (mut service_ips, mut node_ports) = (Vec::new(), Vec::new());
    for (protocol, hash, node_port) in
        [("tcp", "XPGD46QR", NODE_PORT), ("udp", "TCOU7JCQ", NODE_PORT + 1)]
    {
        let name = format!("{hash}-ns/web/{protocol}/");
        ports += &format!(
            "chain service-{name} {{
                {ip} daddr {service} {protocol} dport {PORT} {ip} saddr != {pods} jump mark-for-masquerade
                meta l4proto {protocol} dnat {ip} to numgen random mod 1 map {{ 0 : {pod} . {TARGET} }}
            }}
            chain external-{name} {{ jump mark-for-masquerade; goto service-{name};
            }}\n"
        );
        service_ips.push(format!("{service} . {protocol} . {PORT} : goto service-{name}"));
        node_ports.push(format!("{protocol} . {node_port} : goto external-{name}"));
    }
    format!(
        "table {ip} kube-proxy {{
            chain mark-for-masquerade {{ meta mark set meta mark or 0x4000
            }}
            {ports}
            map service-ips {{ type {kind} . inet_proto . inet_service : verdict
                elements = {{ {} }}
            }}
            map service-nodeports {{ type inet_proto . inet_service : verdict
                elements = {{ {} }}
            }}
            chain services {{
                {ip} daddr . meta l4proto . th dport vmap @service-ips
                fib daddr type local meta l4proto . th dport vmap @service-nodeports
            }}
            chain masquerading {{
                meta mark and 0x4000 == 0 return
                meta mark set meta mark xor 0x4000
                masquerade fully-random
            }}
            chain nat-prerouting {{ type nat hook prerouting priority -100; jump services
            }}
            chain nat-output {{ type nat hook output priority -100; jump services
            }}
            chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading
            }}
        }}\n",
        service_ips.join(", "),
        node_ports.join(", "),
    )
}
