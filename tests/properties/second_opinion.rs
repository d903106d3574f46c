//! Which endpoints serve which address, by a second opinion: the rules of kube-proxy as they are written down, on objects
//! as the API server has them, against what comes out of the rooms `objects`, `model` and `forward`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kube_ferry::forward::{
    Backend, Forwarder, FrontendAddress, FrontendKind, PortForwarding, WithoutBackend,
};
use kube_ferry::model::{Cluster, Family, ObjectName, TrafficPolicy};
use kube_ferry::objects::{self, Context, Interner};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

const NODE: &str = "node-1";

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn endpoints_are_chosen_as_the_rules_say(bytes in vec(any::<u8>(), 0..400)) {
        let mut dice = Dice(bytes.into_iter());
        let (service, slices, zone) = (service(&mut dice), slices(&mut dice), dice.pick(&[None, Some("a"), Some("b")]));
        let expected = Opinion::of(&service, &slices, zone);
        let found = chosen(&service, &slices, zone);
        prop_assert_eq!(found, expected, "{} {} {:?}", service, json!(slices), zone);
    }
}

/// Where connections to one frontend go; endpoints as `ADDRESS PORT`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Destination {
    port: String,
    at: String,
    /// For whom the policy holds.
    outside: Vec<String>,
    /// Pods and the node itself, at addresses other than cluster IPs.
    inside: Vec<String>,
    without: &'static str,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Opinion {
    destinations: BTreeSet<Destination>,
    /// Of each port: local addresses that may meet themselves.
    hairpin: BTreeMap<String, BTreeSet<String>>,
    /// Of each UDP port: whose flows go on.
    serving: BTreeMap<String, BTreeSet<String>>,
    /// Health check node port, and local ready addresses of each family in which the Service exists.
    health: Option<(u64, [Option<usize>; 2])>,
}

// What the program says.

fn chosen(service: &Value, slices: &[Value], zone: Option<&str>) -> Opinion {
    let context = Context { node_name: NODE.into(), external_ips_allowed: true };
    let (mut cluster, mut interner) = (Cluster::new(&[]), Interner::default());
    let node = json!({"metadata": {"name": NODE, "labels": {"topology.kubernetes.io/zone": zone}}});
    let node = serde_json::from_value(node).unwrap();
    cluster.apply(objects::node(&context, &node, &mut interner).unwrap().change);
    let raw = serde_json::from_value(service.clone()).unwrap();
    cluster.apply(objects::service(&context, &raw, &mut interner).change);
    for slice in slices {
        let raw = serde_json::from_value(slice.clone()).unwrap();
        cluster.apply(objects::endpoint_slice(&context, &raw, &mut interner).change);
    }
    let mut forwarder = Forwarder::default();
    forwarder.update(&cluster, &cluster.ids().collect());
    let id = cluster.id(&ObjectName::new("ns", "svc")).unwrap();
    let forwarding = forwarder.forwarding(&cluster, id);
    let mut opinion = Opinion::default();
    for port in &forwarding.ports {
        let name = port_name(port.family, &port.port_name, &port.protocol.to_string());
        opinion.destinations.extend(destinations(port, &name));
        note(&mut opinion.hairpin, &name, port.hairpin.iter().map(ToString::to_string).collect());
        note(&mut opinion.serving, &name, shown(&port.serving).into_iter().collect());
    }
    opinion.health = forwarding.health_check.map(|it| {
        let count = |family| it.local(family).map(|it| usize::try_from(it).unwrap());
        (it.node_port.get().into(), Family::ALL.map(count))
    });
    opinion
}

fn destinations<'a>(
    port: &'a PortForwarding,
    name: &'a str,
) -> impl Iterator<Item = Destination> + 'a {
    port.frontends.iter().map(move |frontend| {
        let outside = match frontend.policy {
            TrafficPolicy::Cluster => shown(&port.cluster),
            TrafficPolicy::Local => shown(&port.local),
        };
        let cluster_ip = frontend.kind == FrontendKind::ClusterIp;
        Destination {
            port: name.to_owned(),
            at: match frontend.at {
                FrontendAddress::Address(address, port) => format!("{address} {port}"),
                FrontendAddress::NodePort(port) => format!("node {port}"),
            },
            inside: if cluster_ip { outside.clone() } else { shown(&port.cluster) },
            outside,
            without: match frontend.without_backend {
                WithoutBackend::Served => "served",
                WithoutBackend::Reject => "reject",
                WithoutBackend::Drop => "drop",
            },
        }
    })
}

fn shown(backends: &[Backend]) -> Vec<String> {
    let shown: BTreeSet<String> =
        backends.iter().map(|it| format!("{} {}", it.address, it.port)).collect();
    assert_eq!(shown.len(), backends.len(), "each once");
    shown.into_iter().collect()
}

fn port_name(family: Family, name: &str, protocol: &str) -> String {
    format!("{family:?} {} {name:?}", protocol.to_lowercase())
}

fn note(all: &mut BTreeMap<String, BTreeSet<String>>, port: &str, values: BTreeSet<String>) {
    if !values.is_empty() {
        all.insert(port.to_owned(), values);
    }
}

// What the rules say.

/// One endpoint under one port, by its key `ADDRESS PORT`.
#[derive(Clone, Debug, PartialEq)]
struct Endpoint {
    address: String,
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    nodes: Vec<String>,
    zones: Vec<String>,
}

type Endpoints = BTreeMap<String, Endpoint>;

impl Opinion {
    fn of(service: &Value, slices: &[Value], zone: Option<&str>) -> Opinion {
        let mut opinion = Opinion::default();
        let mut counts = [None, None];
        for (family, count) in Family::ALL.into_iter().zip(&mut counts) {
            let Some(cluster_ip) = cluster_ip(&service["spec"], family) else { continue };
            let by_port = endpoints_map(slices, family);
            let local = by_port.values().flat_map(BTreeMap::values);
            let local = local.filter(|it| it.local && it.ready).map(|it| &it.address);
            *count = Some(local.collect::<BTreeSet<_>>().len());
            for port in list(&service["spec"]["ports"]) {
                opinion.port(service, port, family, &cluster_ip, &by_port, zone);
            }
        }
        let spec = &service["spec"];
        if spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local" {
            let number = spec["healthCheckNodePort"].as_u64().filter(|it| *it != 0);
            opinion.health = number.map(|it| (it, counts));
        }
        opinion
    }

    fn port(
        &mut self,
        service: &Value,
        port: &Value,
        family: Family,
        cluster_ip: &str,
        by_port: &BTreeMap<(String, String), Endpoints>,
        zone: Option<&str>,
    ) {
        let spec = &service["spec"];
        let (name, protocol) = (text(&port["name"]), text(&port["protocol"]));
        let nothing = Endpoints::new();
        let all = by_port.get(&(name.clone(), protocol.clone())).unwrap_or(&nothing);
        let name = port_name(family, &name, &protocol);
        let own = |address: &&str| is_of(address, family);
        let externals: Vec<&str> =
            list(&spec["externalIPs"]).iter().filter_map(Value::as_str).filter(own).collect();
        let ingress = list(&service["status"]["loadBalancer"]["ingress"]).iter();
        let vip = |it: &&Value| it["ipMode"].is_null() || it["ipMode"] == "VIP";
        let vips: Vec<&str> =
            ingress.filter(vip).filter_map(|it| it["ip"].as_str()).filter(own).collect();
        let node_port = port["nodePort"].as_u64().filter(|it| *it != 0);
        let has_external = !externals.is_empty() || !vips.is_empty() || node_port.is_some();
        let accessible = spec["type"] == "LoadBalancer"
            || spec["type"] == "NodePort"
            || !list(&spec["externalIPs"]).is_empty();
        let internal_local = spec["internalTrafficPolicy"] == "Local";
        let external_local = accessible && spec["externalTrafficPolicy"] == "Local";

        let uses_cluster = !internal_local || has_external;
        let uses_local = internal_local || (external_local && has_external);
        let Categories { cluster, local, reachable, has_any } =
            categorize(all, uses_cluster, uses_local, zone);

        let without = |policy_local: bool| match (has_any, policy_local, local.is_empty()) {
            (false, _, _) => "reject",
            (true, true, true) => "drop",
            (true, _, _) => "served",
        };
        let number = &port["port"];
        let mut destination = |at: String, policy_local: bool, short_circuit: bool| {
            let outside = keys(if policy_local { &local } else { &cluster });
            let inside = if short_circuit { keys(&cluster) } else { outside.clone() };
            let (port, without) = (name.clone(), without(policy_local));
            self.destinations.insert(Destination { port, at, outside, inside, without });
        };
        destination(format!("{cluster_ip} {number}"), internal_local, false);
        for address in externals.into_iter().chain(vips) {
            destination(format!("{address} {number}"), external_local, true);
        }
        if let Some(number) = node_port {
            destination(format!("node {number}"), external_local, true);
        }
        let local = reachable.values().filter(|it| it.local).map(|it| it.address.clone());
        note(&mut self.hairpin, &name, local.collect());
        if protocol == "UDP" {
            let serving = all.iter().filter(|(_, it)| it.serving).map(|(key, _)| key.clone());
            note(&mut self.serving, &name, serving.collect());
        }
    }
}

/// Section 2.1.
fn cluster_ip(spec: &Value, family: Family) -> Option<String> {
    let families = list(&spec["ipFamilies"]);
    if families.is_empty() {
        return Some(text(&spec["clusterIP"])).filter(|it| is_of(it, family));
    }
    let name = if family == Family::V4 { "IPv4" } else { "IPv6" };
    let at = families.iter().position(|it| it == name)?;
    list(&spec["clusterIPs"]).get(at).map(text)
}

/// Sections 1.2 and 3.3: by port name and protocol, then by address and port number.
fn endpoints_map(slices: &[Value], family: Family) -> BTreeMap<(String, String), Endpoints> {
    let mut by_port: BTreeMap<(String, String), Endpoints> = BTreeMap::new();
    let address_type = if family == Family::V4 { "IPv4" } else { "IPv6" };
    for slice in slices {
        let service = &slice["metadata"]["labels"]["kubernetes.io/service-name"];
        if slice["addressType"] != address_type || service != "svc" {
            continue;
        }
        for port in list(&slice["ports"]) {
            let Some(number) = port["port"].as_u64().filter(|it| *it != 0) else { continue };
            let Some(name) = port["name"].as_str() else { continue };
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
            let endpoints = by_port.entry((name.to_owned(), protocol)).or_default();
            for endpoint in list(&slice["endpoints"]) {
                let Some(address) = list(&endpoint["addresses"]).first() else { continue };
                let key = format!("{} {number}", text(address));
                let new = endpoint_of(endpoint, &text(address));
                if !endpoints.contains_key(&key) || !new.terminating {
                    endpoints.insert(key, new);
                }
            }
        }
    }
    by_port
}

/// Sections 3.1 and 3.2.
fn endpoint_of(endpoint: &Value, address: &str) -> Endpoint {
    let conditions = &endpoint["conditions"];
    let hinted =
        |of: &str| list(&endpoint["hints"][of]).iter().map(|it| text(&it["name"])).collect();
    Endpoint {
        address: address.to_owned(),
        ready: conditions["ready"].as_bool().unwrap_or(true),
        serving: conditions["serving"].as_bool().unwrap_or(true),
        terminating: conditions["terminating"].as_bool().unwrap_or(false),
        local: endpoint["nodeName"] == NODE,
        nodes: hinted("forNodes"),
        zones: hinted("forZones"),
    }
}

struct Categories {
    cluster: Endpoints,
    local: Endpoints,
    reachable: Endpoints,
    has_any: bool,
}

/// Section 3.4, line by line.
fn categorize(
    all: &Endpoints,
    uses_cluster: bool,
    uses_local: bool,
    zone: Option<&str>,
) -> Categories {
    let those = |wanted: &dyn Fn(&Endpoint) -> bool| -> Endpoints {
        let those = all.iter().filter(|(_, it)| wanted(it));
        those.map(|(key, it)| (key.clone(), it.clone())).collect()
    };
    let fallback = |it: &Endpoint| it.serving && it.terminating;
    let (mut cluster, mut has_any) = (Endpoints::new(), false);
    let mode = topology_mode(all, zone);
    if uses_cluster {
        cluster = those(&|it| it.ready && mode.admits(it));
        if cluster.is_empty() {
            cluster = those(&fallback);
        }
        has_any = !cluster.is_empty();
    }
    if !uses_local {
        return Categories {
            reachable: cluster.clone(),
            local: Endpoints::new(),
            cluster,
            has_any,
        };
    }
    has_any |= all.values().any(|it| it.ready) || all.values().any(fallback);
    let mut local = those(&|it| it.local && it.ready);
    let only_ready = !local.is_empty();
    if local.is_empty() {
        local = those(&|it| it.local && fallback(it));
    }
    let reachable = if !uses_cluster {
        local.clone()
    } else if mode == Mode::None && only_ready {
        cluster.clone()
    } else {
        cluster.clone().into_iter().chain(local.clone()).collect()
    };
    Categories { cluster, local, reachable, has_any }
}

#[derive(PartialEq)]
enum Mode<'a> {
    None,
    SameNode,
    SameZone(&'a str),
}

impl Mode<'_> {
    fn admits(&self, endpoint: &Endpoint) -> bool {
        match self {
            Mode::None => true,
            Mode::SameNode => endpoint.nodes.iter().any(|it| it == NODE),
            Mode::SameZone(zone) => endpoint.zones.iter().any(|it| it == zone),
        }
    }
}

/// Section 3.5.
fn topology_mode<'a>(all: &Endpoints, zone: Option<&'a str>) -> Mode<'a> {
    let ready: Vec<&Endpoint> = all.values().filter(|it| it.ready).collect();
    let all_hinted = |hints: fn(&Endpoint) -> &[String]| {
        !ready.is_empty() && ready.iter().all(|it| !hints(it).is_empty())
    };
    if all_hinted(|it| &it.nodes) && ready.iter().any(|it| Mode::SameNode.admits(it)) {
        return Mode::SameNode;
    }
    let Some(zone) = zone else { return Mode::None };
    if all_hinted(|it| &it.zones) && ready.iter().any(|it| Mode::SameZone(zone).admits(it)) {
        return Mode::SameZone(zone);
    }
    Mode::None
}

fn keys(endpoints: &Endpoints) -> Vec<String> {
    endpoints.keys().cloned().collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn is_of(address: &str, family: Family) -> bool {
    Family::of(address.parse::<IpAddr>().unwrap()) == family
}

// Objects.

/// Decisions, the plainest first; none left is the plainest, so that examples shrink.
struct Dice(std::vec::IntoIter<u8>);

impl Dice {
    fn below(&mut self, count: usize) -> usize {
        usize::from(self.0.next().unwrap_or(0)) % count
    }

    fn pick<T: Clone>(&mut self, options: &[T]) -> T {
        options[self.below(options.len())].clone()
    }
}

fn service(dice: &mut Dice) -> Value {
    let (four, six) = ("10.96.0.1", "fd00:96::1");
    let (cluster_ips, families) = dice.pick(&[
        (json!([four]), json!(["IPv4"])),
        (json!([four, six]), json!(["IPv4", "IPv6"])),
        (json!([six, four]), json!(["IPv6", "IPv4"])),
        (json!([six]), json!(["IPv6"])),
        (json!([four]), json!(["IPv4", "IPv6"])),
        (json!([six]), Value::Null),
    ]);
    let names = dice.pick(&[&[""][..], &["a", "b"], &["a", "b", "c"]]);
    let ports: Vec<Value> = (80..)
        .zip(names)
        .map(|(number, name)| {
            json!({
                "name": name,
                "port": number,
                "protocol": dice.pick(&["TCP", "UDP"]),
                "nodePort": dice.pick(&[0, 30_000 + number]),
            })
        })
        .collect();
    json!({
        "metadata": {"namespace": "ns", "name": "svc"},
        "spec": {
            "type": dice.pick(&["ClusterIP", "NodePort", "LoadBalancer"]),
            "clusterIP": cluster_ips[0],
            "clusterIPs": cluster_ips,
            "ipFamilies": families,
            "ports": ports,
            "externalIPs": dice.pick(&[json!([]), json!(["192.0.2.1"]), json!(["192.0.2.1", "2001:db8::1"])]),
            "internalTrafficPolicy": dice.pick(&[Value::Null, json!("Cluster"), json!("Local")]),
            "externalTrafficPolicy": dice.pick(&[Value::Null, json!("Cluster"), json!("Local")]),
            "healthCheckNodePort": dice.pick(&[0, 32_000]),
        },
        "status": {"loadBalancer": {"ingress": dice.pick(&[
            json!([]),
            json!([{"ip": "192.0.2.2"}, {"ip": "2001:db8::2", "ipMode": "VIP"}]),
            json!([{"ip": "192.0.2.2", "ipMode": "Proxy"}, {"hostname": "a.example"}]),
        ])}},
    })
}

fn slices(dice: &mut Dice) -> Vec<Value> {
    let known: Vec<[Value; 2]> = (0..4).map(|_| endpoint(dice)).collect();
    (0..dice.below(5)).map(|number| slice(dice, number, &known)).collect()
}

/// What may be said of one endpoint in several slices. kube-proxy leaves open which of two that do not terminate, or of
/// two that do, is right: the second one differs only if it terminates and the first does not.
fn endpoint(dice: &mut Dice) -> [Value; 2] {
    let first = conditions(dice);
    let mut second = conditions(dice);
    second["conditions"]["terminating"] = json!(true);
    let terminates = first["conditions"]["terminating"] == true;
    [first.clone(), if terminates { first } else { second }]
}

fn conditions(dice: &mut Dice) -> Value {
    let flag = |dice: &mut Dice| dice.pick(&[Value::Null, json!(true), json!(false)]);
    json!({
        "nodeName": dice.pick(&[json!(NODE), json!("node-2"), Value::Null]),
        "conditions": {"ready": flag(dice), "serving": flag(dice), "terminating": flag(dice)},
        "hints": dice.pick(&[
            Value::Null,
            json!({}),
            json!({"forZones": [{"name": "a"}]}),
            json!({"forZones": [{"name": "a"}, {"name": "b"}]}),
            json!({"forNodes": [{"name": NODE}]}),
            json!({"forNodes": [{"name": "node-2"}], "forZones": [{"name": "b"}]}),
        ]),
    })
}

fn slice(dice: &mut Dice, number: usize, known: &[[Value; 2]]) -> Value {
    let (address_type, net) = dice.pick(&[("IPv4", "10.1.0."), ("IPv6", "fd00:1::")]);
    let ports: Vec<Value> = (0..=dice.below(3))
        .map(|_| {
            json!({
                "name": dice.pick(&[json!(""), json!("a"), json!("b"), Value::Null]),
                "port": dice.pick(&[json!(8080), json!(8081), json!(0), Value::Null]),
                "protocol": dice.pick(&[json!("TCP"), json!("UDP"), Value::Null]),
            })
        })
        .collect();
    let endpoints: Vec<Value> = (0..dice.below(6))
        .map(|_| {
            let which = dice.below(known.len());
            let mut endpoint = known[which][dice.below(2)].clone();
            let own = format!("{net}{}", which + 1);
            endpoint["addresses"] =
                dice.pick(&[json!([own]), json!([own, format!("{net}99")]), json!([])]);
            endpoint
        })
        .collect();
    let service =
        dice.pick(&[json!("svc"), json!("svc"), json!("svc"), json!("other"), Value::Null]);
    json!({
        "metadata": {
            "namespace": "ns",
            "name": format!("svc-{number}"),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": address_type,
        "ports": ports,
        "endpoints": endpoints,
    })
}
