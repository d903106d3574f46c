//! The world: a node with pods, a second node behind it, and an outside network in front of it.
//!
//! ```text
//!   outside ───────── node-1 ───────── node-2 (pod-2a … pod-2h)
//!   203.0.113.x       │ │ │ │
//!                     │ │ │ └ remote-client
//!                     │ │ └ client
//!                     │ └ pods-1 (pod-1b … pod-1d)
//!                     └ pod-1a
//! ```
//!
//! The proxy under test runs on node-1. Pods are addresses; pod-1a has a namespace of its own because it also meets
//! itself, and remote-client, a pod of node-2, because a host refuses packets from an address that it has itself. The links are routed, as those of a CNI's point-to-point plugin, so hairpin needs no bridge. Service and
//! load-balancer addresses that node-1 does not claim go on to node-2, which owns all of them: what the proxy leaves
//! alone is answered there. See [`World::listen_behind`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;

use super::namespace::{self, Namespace};
use super::server::{Listener, Servers};

/// Ports on which every pod answers TCP and UDP.
pub(crate) const POD_PORTS: [u16; 8] = [53, 80, 443, 5353, 8080, 8081, 8443, 9090];

/// Where connections come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Actor {
    pub(crate) name: &'static str,
    pub(crate) v4: Ipv4Addr,
    place: Place,
}

/// The namespaces, in the order of `ROLES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Node1,
    Node2,
    Outside,
    Client,
    Pod1a,
    Pods1,
    RemoteClient,
}

const PLACES: [Place; 7] = [
    Place::Node1,
    Place::Node2,
    Place::Outside,
    Place::Client,
    Place::Pod1a,
    Place::Pods1,
    Place::RemoteClient,
];

const ROLES: [&str; 7] =
    ["node-1", "node-2", "outside", "client", "pod-1a", "pods-1", "remote-client"];

const fn actor(name: &'static str, v4: [u8; 4], place: Place) -> Actor {
    Actor { name, v4: Ipv4Addr::new(v4[0], v4[1], v4[2], v4[3]), place }
}

/// Everybody who can open connections; pods also answer them.
pub(crate) const ACTORS: [Actor; 22] = [
    actor("node-1", [192, 0, 2, 1], Place::Node1),
    actor("node-1-alternate", [192, 0, 2, 11], Place::Node1),
    // A load-balancer address that node-1 also has on an interface, as some load balancers want it.
    actor("node-1-vip", [198, 51, 100, 99], Place::Node1),
    actor("node-2", [192, 0, 2, 2], Place::Node2),
    actor("outside", [203, 0, 113, 2], Place::Outside),
    actor("outside-2", [203, 0, 113, 3], Place::Outside),
    actor("outside-3", [203, 0, 113, 4], Place::Outside),
    // Not in the source ranges that scenarios allow.
    actor("blocked", [203, 0, 113, 130], Place::Outside),
    actor("client", [10, 244, 1, 20], Place::Client),
    actor("pod-1a", [10, 244, 1, 10], Place::Pod1a),
    actor("pod-1b", [10, 244, 1, 11], Place::Pods1),
    actor("pod-1c", [10, 244, 1, 12], Place::Pods1),
    actor("pod-1d", [10, 244, 1, 13], Place::Pods1),
    actor("remote-client", [10, 244, 2, 20], Place::RemoteClient),
    actor("pod-2a", [10, 244, 2, 10], Place::Node2),
    actor("pod-2b", [10, 244, 2, 11], Place::Node2),
    actor("pod-2c", [10, 244, 2, 12], Place::Node2),
    actor("pod-2d", [10, 244, 2, 13], Place::Node2),
    actor("pod-2e", [10, 244, 2, 14], Place::Node2),
    actor("pod-2f", [10, 244, 2, 15], Place::Node2),
    actor("pod-2g", [10, 244, 2, 16], Place::Node2),
    actor("pod-2h", [10, 244, 2, 17], Place::Node2),
];

/// The networks and their IPv6 twins; the last number of an address is spelled the same in both.
const TWINS: [([u8; 3], &str); 6] = [
    ([192, 0, 2], "2001:db8::"),
    ([203, 0, 113], "2001:db8:113::"),
    ([198, 51, 100], "2001:db8:100::"),
    ([10, 96, 0], "fd00:10:96::"),
    ([10, 244, 1], "fd00:10:244:1::"),
    ([10, 244, 2], "fd00:10:244:2::"),
];

/// The IPv6 address that plays the part of `v4`: `10.96.0.10` is `fd00:10:96::10`. Loopback is loopback.
pub(crate) fn twin(v4: Ipv4Addr) -> Ipv6Addr {
    if v4.is_loopback() {
        return Ipv6Addr::LOCALHOST;
    }
    let [a, b, c, last] = v4.octets();
    let network = TWINS.iter().find(|(network, _)| *network == [a, b, c]);
    let (_, prefix) = network.unwrap_or_else(|| panic!("{v4} is in no network of this world"));
    format!("{prefix}{last}").parse().unwrap()
}

impl Actor {
    /// Finds an actor by name.
    pub(crate) fn find(name: &str) -> Option<Actor> {
        ACTORS.into_iter().find(|actor| actor.name == name)
    }

    /// `pod-1a` and the like: those that answer on [`POD_PORTS`].
    pub(crate) fn is_pod(self) -> bool {
        self.name.starts_with("pod-")
    }

    /// On the node of the proxy under test.
    pub(crate) fn is_local(self) -> bool {
        matches!(self.place, Place::Node1 | Place::Client | Place::Pod1a | Place::Pods1)
    }

    /// The interface of node-1 by which its packets come in; `None` for node-1 itself.
    pub(crate) fn interface(self) -> Option<&'static str> {
        (self.place != Place::Node1).then_some(ROLES[self.place as usize])
    }

    pub(crate) fn addresses(self) -> [IpAddr; 2] {
        [self.v4.into(), twin(self.v4).into()]
    }

    /// The address of the family that `like` has.
    pub(crate) fn address(self, like: IpAddr) -> IpAddr {
        let [v4, v6] = self.addresses();
        if like.is_ipv4() { v4 } else { v6 }
    }
}

/// All addresses of node-1 at the beginning, loopback included.
pub(crate) fn node_addresses() -> BTreeSet<IpAddr> {
    let fixed = ["127.0.0.1", "::1", "10.244.1.1", "fd00:10:244:1::1"];
    let fixed = fixed.into_iter().map(|it| it.parse().unwrap());
    let own = ACTORS.into_iter().filter(|actor| actor.place == Place::Node1);
    own.flat_map(Actor::addresses).chain(fixed).collect()
}

/// All namespaces, with pods answering. Everything goes away with this value.
pub(crate) struct World {
    // Servers first: their threads must have left before the namespaces are removed.
    servers: Vec<Servers>,
    namespaces: Vec<Namespace>,
}

impl World {
    pub(crate) fn new() -> World {
        let mut world = World { servers: Vec::new(), namespaces: namespace::create(&ROLES) };
        world.set_sysctls();
        world.link();
        world.address();
        world.silence_resets();
        world.serve_pods();
        world
    }

    /// The namespace of the proxy under test.
    pub(crate) fn node(&self) -> &Namespace {
        self.place(Place::Node1)
    }

    /// The namespace in which `actor` lives.
    pub(crate) fn home(&self, actor: Actor) -> &Namespace {
        self.place(actor.place)
    }

    /// Answers behind the proxy's back, as `host`: on node-1 for its own addresses, on node-2 for all others.
    ///
    /// An answer of `host` means that the proxy did not handle the connection. Without such a listener a connection
    /// that the proxy leaves alone would be refused by the host, which looks like the proxy's own rejection.
    pub(crate) fn listen_behind(&mut self, addresses: &[(IpAddr, u16)]) {
        for place in [Place::Node1, Place::Node2] {
            let here = addresses.iter().filter(|(address, _)| self.owner(*address) == place);
            let listeners: Vec<Listener> =
                here.map(|(address, port)| Listener::new("host", *address, *port)).collect();
            if !listeners.is_empty() {
                let servers = Servers::start(self.place(place), listeners);
                self.servers.push(servers);
            }
        }
    }

    fn owner(&self, address: IpAddr) -> Place {
        let on_node =
            |actor: &&Actor| actor.place == Place::Node1 && actor.addresses().contains(&address);
        let local = address.is_loopback() || ACTORS.iter().any(|actor| on_node(&actor));
        if local { Place::Node1 } else { Place::Node2 }
    }

    fn place(&self, place: Place) -> &Namespace {
        &self.namespaces[place as usize]
    }

    fn set_sysctls(&self) {
        let settings = [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            // Limits on ICMP errors would turn rejections into silence.
            ("ipv4/icmp_ratemask", "0"),
            ("ipv6/icmp/ratelimit", "0"),
            ("ipv6/icmp/ratemask", "128"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/accept_dad", "0"),
            // IPv6 sockets do not count addresses of local routes as the host's own.
            ("ipv6/ip_nonlocal_bind", "1"),
            // Lets a client choose a source port again that its last connection has just left.
            ("ipv4/tcp_tw_reuse", "1"),
        ];
        thread::scope(|scope| {
            for namespace in &self.namespaces {
                scope.spawn(move || namespace.sysctl(&settings));
            }
        });
    }

    /// One link from node-1 to each other namespace; `eth0` at the far end.
    fn link(&self) {
        let mut batch = String::from("link set lo up\n");
        for (role, far) in ROLES.iter().zip(&self.namespaces).skip(1) {
            batch += &format!("link add {role} type veth peer name eth0 netns {}\n", far.name());
            batch += &format!("link set {role} up\n");
        }
        self.node().ip(&batch);
        for far in &self.namespaces[1..] {
            far.ip("link set lo up\nlink set eth0 up\n");
        }
    }

    fn address(&self) {
        thread::scope(|scope| {
            for place in PLACES {
                scope.spawn(move || self.place(place).ip(&addressing(place)));
            }
        });
    }

    /// Nobody but the proxy answers "refused" in this world: resets and unreachables of others end at node-1.
    ///
    /// So a connection that was sent to a wrong port or pod times out, instead of passing for a rejection.
    fn silence_resets(&self) {
        self.node().command("nft", &["-f", "-"], OWN_RULES);
    }

    fn serve_pods(&mut self) {
        for place in [Place::Node1, Place::Node2, Place::Pod1a, Place::Pods1] {
            let pods = ACTORS.into_iter().filter(|actor| actor.place == place && actor.is_pod());
            let mut listeners: Vec<Listener> = pods.flat_map(pod_listeners).collect();
            // Pods of the host network: they have the node's address.
            if let Some(node) = Actor::find(ROLES[place as usize]).filter(|it| !it.is_pod()) {
                listeners.extend(
                    node.addresses()
                        .map(|address| Listener::new(node.name, address, HOST_NETWORK_PORT)),
                );
            }
            self.servers.push(Servers::start(self.place(place), listeners));
        }
    }
}

/// What this world needs of node-1's nf_tables: resets and unreachables of others end there.
pub(crate) const OWN_RULES: &str = "
    table inet witness {
        chain leaving { type filter hook postrouting priority 300
            tcp flags & rst == rst drop
        }
        chain passing { type filter hook forward priority -300
            icmp type destination-unreachable drop
            icmpv6 type destination-unreachable drop
        }
    }
";

/// Where pods of the host network answer, on the main addresses of both nodes.
pub(crate) const HOST_NETWORK_PORT: u16 = 6443;

fn pod_listeners(pod: Actor) -> impl Iterator<Item = Listener> {
    pod.addresses()
        .into_iter()
        .flat_map(move |address| POD_PORTS.map(|port| Listener::new(pod.name, address, port)))
}

/// Addresses and routes of one namespace, as a batch for `ip`.
fn addressing(place: Place) -> String {
    let mut batch = String::new();
    // node-1 holds its addresses on the outside link; the ends of all links share one gateway address per family,
    // which is what the CNI's point-to-point plugin does.
    let device = if place == Place::Node1 { "outside" } else { "eth0" };
    let here = ACTORS.iter().filter(|actor| actor.place == place);
    for actor in here {
        batch += &format!("address add {}/32 dev {device}\n", actor.v4);
        batch += &format!("address add {}/128 dev {device} nodad\n", twin(actor.v4));
    }
    match place {
        Place::Node1 => node_routes(&mut batch),
        Place::Outside => {
            outside_addresses(&mut batch);
            via(&mut batch, "192.0.2.1", "2001:db8::1", "203.0.113.2", "2001:db8:113::2");
        }
        Place::Node2 => {
            // Every address that node-1 leaves alone belongs to node-2.
            for net in ["198.51.100.0/24", "10.96.0.0/16", "2001:db8:100::/64", "fd00:10:96::/112"]
            {
                batch += &format!("route add local {net} dev lo\n");
            }
            via(&mut batch, "10.244.1.1", "fd00:10:244:1::1", "192.0.2.2", "2001:db8::2");
        }
        Place::Client | Place::Pod1a | Place::Pods1 | Place::RemoteClient => {
            let main = ACTORS.iter().find(|actor| actor.place == place).unwrap();
            let (v4, v6) = (main.v4.to_string(), twin(main.v4).to_string());
            via(&mut batch, "10.244.1.1", "fd00:10:244:1::1", &v4, &v6);
        }
    }
    batch
}

/// Default routes by a gateway at the other end of the link.
fn via(batch: &mut String, v4: &str, v6: &str, source4: &str, source6: &str) {
    for (gateway, source) in [(v4, source4), (v6, source6)] {
        *batch += &format!("route add {gateway} dev eth0 src {source}\n");
        *batch += &format!("route add default via {gateway} dev eth0 src {source}\n");
    }
}

fn outside_addresses(batch: &mut String) {
    *batch += "address add 192.0.2.254/32 dev eth0\n";
    *batch += "address add 2001:db8::254/128 dev eth0 nodad\n";
}

fn node_routes(batch: &mut String) {
    for role in ROLES[1..].iter().filter(|role| **role != "outside") {
        *batch += &format!("address add 10.244.1.1/32 dev {role}\n");
        *batch += &format!("address add fd00:10:244:1::1/128 dev {role} nodad\n");
    }
    for actor in ACTORS {
        let role = ROLES[actor.place as usize];
        if actor.place != Place::Node1 && actor.place != Place::Outside {
            *batch += &format!("route add {} dev {role}\n", actor.v4);
            *batch += &format!("route add {} dev {role}\n", twin(actor.v4));
        }
    }
    for (peer, device, networks) in [
        ("192.0.2.2", "node-2", ["198.51.100.0/24", "10.96.0.0/16"]),
        ("2001:db8::2", "node-2", ["2001:db8:100::/64", "fd00:10:96::/112"]),
    ] {
        for network in networks {
            let source = if peer.contains(':') { "2001:db8::1" } else { "192.0.2.1" };
            *batch += &format!("route add {network} via {peer} dev {device} src {source}\n");
        }
    }
    for (router, source) in [("192.0.2.254", "192.0.2.1"), ("2001:db8::254", "2001:db8::1")] {
        *batch += &format!("route add {router} dev outside src {source}\n");
        *batch += &format!("route add default via {router} dev outside src {source}\n");
    }
}
