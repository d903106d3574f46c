//! A node with a thousand interfaces, each with an address of either family.

use std::net::{IpAddr, SocketAddr};

use serde_json::json;

use super::node::Node;
use super::traffic::Traffic;
use crate::support::patience::{LONG, poll};
use crate::support::witness::rows;

const INTERFACES: usize = 1_000;

/// Addresses of one network, 172.16.0.0/24 to 172.16.3.0/24.
const PER_NETWORK: usize = 250;

const NODE_PORT: u16 = 30_080;

#[test]
fn node_ports_are_served_on_the_addresses_that_are_asked_for() {
    let node = Node::new();
    node.write("steady", &[objects()]);
    // Pairs, because every kernel has these.
    let pairs = (0..INTERFACES)
        .step_by(2)
        .map(|n| format!("link add {} type veth peer name {}\n", interface(n), interface(n + 1)));
    let each = (0..INTERFACES).map(|n| {
        let (interface, address) = (interface(n), address(n));
        format!(
            "link set {interface} up\naddress add {address}/32 dev {interface}\n\
             address add fd00:172:16::{n:x}/128 dev {interface} nodad\n"
        )
    });
    node.host().ip(&pairs.chain(each).collect::<String>());
    let mut proxy = node.proxy("log", &["--nodeport-addresses=172.16.1.0/24"]);
    expect(&node, (PER_NETWORK..2 * PER_NETWORK).map(address).collect());
    // No range is of this family, so there all addresses accept NodePorts, and the kernel is asked which those are.
    assert!(rows(node.host(), "ip6", "kube-ferry", "nodeport-ips").is_empty());
    assert!(rows(node.host(), "ip6", "kube-ferry", "node-ips").len() > INTERFACES);
    let traffic = Traffic::start(&node.world, SocketAddr::new(address(PER_NETWORK + 7), NODE_PORT));

    // Others go, in a flood of notifications, and one comes.
    let gone = (2 * PER_NETWORK - 50..INTERFACES).step_by(2);
    let gone = gone.map(|n| format!("link del {}\n", interface(n)));
    node.host().ip(&gone.collect::<String>());
    node.host().ip("address add 172.16.1.254/32 dev i0\n");
    let new: IpAddr = [172, 16, 1, 254].into();
    expect(&node, (PER_NETWORK..2 * PER_NETWORK - 50).map(address).chain([new]).collect());
    traffic.go_on(20);
    assert!(traffic.end() > 20);
    Traffic::start(&node.world, SocketAddr::new(new, NODE_PORT)).end();

    proxy.stop(rustix::process::Signal::TERM);
    let _proxy = node.proxy("log-of-another", &["--nodeport-addresses=primary"]);
    expect(&node, vec![[192, 0, 2, 1].into()]);
    Traffic::start(&node.world, SocketAddr::from(([192, 0, 2, 1], NODE_PORT))).end();
}

fn interface(n: usize) -> String {
    format!("i{n}")
}

fn address(n: usize) -> IpAddr {
    let part = |n: usize| u8::try_from(n).unwrap();
    [172, 16, part(n / PER_NETWORK), part(1 + n % PER_NETWORK)].into()
}

/// Waits for these addresses to accept NodePorts.
#[track_caller]
fn expect(node: &Node, addresses: Vec<IpAddr>) {
    let mut expected: Vec<String> = addresses.iter().map(|it| format!("\"{it}\"")).collect();
    expected.sort();
    poll(LONG, || {
        let found = rows(node.host(), "ip", "kube-ferry", "nodeport-ips");
        if found == expected {
            Ok(())
        } else {
            Err(format!("{} addresses: {found:?}", found.len()))
        }
    })
    .unwrap();
}

fn objects() -> Vec<serde_json::Value> {
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    });
    let mut service = super::node::service("steady", "10.96.0.10", "fd00:10:96::10", &[10, 11]);
    service[0]["spec"]["type"] = "NodePort".into();
    service[0]["spec"]["ports"][0]["nodePort"] = NODE_PORT.into();
    service.push(node);
    service
}
