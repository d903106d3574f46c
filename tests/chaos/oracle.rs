//! What the API server's objects mean, worked out from their JSON by code that shares nothing with the proxy's.
//!
//! Only for objects as [`super::shop`] makes them: no external IPs, no hints, named ports with numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::slice::from_ref;

use serde_json::Value;

/// Where clients connect to: a Service address, or a NodePort of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Front {
    Address(IpAddr, u16, Protocol),
    NodePort(Family, u16, Protocol),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

/// Who answers at a [`Front`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Backends {
    pub(super) all: BTreeSet<SocketAddr>,
    /// For clients from outside, if that is another set: externalTrafficPolicy Local.
    pub(super) outside: Option<BTreeSet<SocketAddr>>,
}

/// All that matters of a node's forwarding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Forwarding {
    pub(super) fronts: BTreeMap<Front, Backends>,
    pub(super) cluster_ips: BTreeSet<IpAddr>,
    /// Answered with a rejection.
    pub(super) rejected: BTreeSet<Front>,
    /// Dropped: the policy is Local and there is nobody on this node.
    pub(super) dropped: BTreeSet<Front>,
}

/// One endpoint of a Service port.
struct Endpoint {
    at: SocketAddr,
    ready: bool,
    /// Terminating and still serving: used while nobody is ready.
    fallback: bool,
    local: bool,
}

/// What the objects mean on the node called `node`.
pub(super) fn forwarding(services: &[Value], slices: &[Value], node: &str) -> Forwarding {
    let mut forwarding = Forwarding::default();
    for service in services {
        let name = text(&service["metadata"]["name"]);
        let own: Vec<&Value> = slices
            .iter()
            .filter(|it| it["metadata"]["labels"]["kubernetes.io/service-name"] == name)
            .collect();
        for address in addresses(&service["spec"]["clusterIPs"]) {
            forwarding.cluster_ips.insert(address);
        }
        for port in service["spec"]["ports"].as_array().unwrap() {
            for family in [Family::V4, Family::V6] {
                let endpoints = endpoints(&own, text(&port["name"]), family, node);
                for (front, local_policy, is_external) in fronts(service, port, family) {
                    forwarding.add(front, local_policy, is_external, &endpoints);
                }
            }
        }
    }
    forwarding
}

impl Forwarding {
    fn add(&mut self, front: Front, is_local: bool, is_external: bool, endpoints: &[Endpoint]) {
        let all = choose(endpoints, |_| true);
        let local = choose(endpoints, |it| it.local);
        if all.is_empty() {
            self.rejected.insert(front);
        } else if is_local && local.is_empty() {
            self.dropped.insert(front);
        }
        let backends = match (is_local, is_external) {
            (false, _) => Backends { all, outside: None },
            (true, false) => Backends { all: local, outside: None },
            (true, true) => Backends { all, outside: Some(local) },
        };
        self.fronts.insert(front, backends);
    }
}

/// Those that are ready, or else those that terminate and still serve.
fn choose(endpoints: &[Endpoint], admitted: impl Fn(&Endpoint) -> bool) -> BTreeSet<SocketAddr> {
    let those = |wanted: fn(&Endpoint) -> bool| -> BTreeSet<SocketAddr> {
        endpoints.iter().filter(|it| wanted(it) && admitted(it)).map(|it| it.at).collect()
    };
    let ready = those(|it| it.ready);
    if ready.is_empty() { those(|it| it.fallback) } else { ready }
}

/// The addresses and NodePorts of a Service port, whether its policy is Local, and whether it is an external one.
fn fronts(service: &Value, port: &Value, family: Family) -> Vec<(Front, bool, bool)> {
    let spec = &service["spec"];
    let number = |key: &str| u16::try_from(port[key].as_u64().unwrap_or_default()).unwrap();
    let protocol = if port["protocol"] == "UDP" { Protocol::Udp } else { Protocol::Tcp };
    let (internal, external) =
        (spec["internalTrafficPolicy"] == "Local", spec["externalTrafficPolicy"] == "Local");
    let of_family = |it: &IpAddr| it.is_ipv4() == (family == Family::V4);
    let at = |address: IpAddr| Front::Address(address, number("port"), protocol);
    let cluster_ips = addresses(&spec["clusterIPs"]).into_iter().filter(of_family);
    let mut fronts: Vec<_> = cluster_ips.map(|it| (at(it), internal, false)).collect();
    // A family that the Service does not have has no NodePort either.
    if fronts.is_empty() || spec["type"] == "ClusterIP" {
        return fronts;
    }
    fronts.push((Front::NodePort(family, number("nodePort"), protocol), external, true));
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    let balancers = ingress.map(|it| text(&it["ip"]).parse().unwrap()).filter(of_family);
    fronts.extend(balancers.map(|it| (at(it), external, true)));
    fronts
}

/// The endpoints of a port by its name; the same address in two slices is ready if one of them says so.
fn endpoints(slices: &[&Value], port: &str, family: Family, node: &str) -> Vec<Endpoint> {
    let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
    let mut endpoints = Vec::new();
    for slice in slices.iter().filter(|it| it["addressType"] == kind) {
        let ports = slice["ports"].as_array().unwrap();
        let Some(port) = ports.iter().find(|it| it["name"] == port) else { continue };
        let number = u16::try_from(port["port"].as_u64().unwrap()).unwrap();
        for endpoint in slice["endpoints"].as_array().unwrap() {
            let address: IpAddr = text(&endpoint["addresses"][0]).parse().unwrap();
            let is = |condition: &str| endpoint["conditions"][condition] == true;
            endpoints.push(Endpoint {
                at: SocketAddr::new(address, number),
                ready: is("ready"),
                fallback: is("serving") && is("terminating"),
                local: endpoint["nodeName"] == node,
            });
        }
    }
    endpoints
}

fn addresses(list: &Value) -> Vec<IpAddr> {
    list.as_array().into_iter().flatten().map(|it| text(it).parse().unwrap()).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

impl Forwarding {
    /// Where two of them differ, for people.
    pub(super) fn differences(&self, expected: &Forwarding) -> String {
        let fronts: BTreeSet<&Front> = self.fronts.keys().chain(expected.fronts.keys()).collect();
        let mut told: Vec<String> = fronts
            .into_iter()
            .map(|it| (it, self.fronts.get(it), expected.fronts.get(it)))
            .filter(|(_, found, wanted)| found != wanted)
            .map(|(front, found, wanted)| format!("{front:?}: {found:?} instead of {wanted:?}"))
            .collect();
        for (what, found, wanted) in [
            ("rejected", &self.rejected, &expected.rejected),
            ("dropped", &self.dropped, &expected.dropped),
        ] {
            let one_only: Vec<&Front> = found.symmetric_difference(wanted).collect();
            told.extend(
                (!one_only.is_empty()).then(|| format!("{what} on one side: {one_only:?}")),
            );
        }
        let ips: Vec<_> = self.cluster_ips.symmetric_difference(&expected.cluster_ips).collect();
        told.extend((!ips.is_empty()).then(|| format!("cluster IPs on one side: {ips:?}")));
        told.join("\n")
    }
}

impl Front {
    pub(super) fn protocol(self) -> Protocol {
        match self {
            Front::Address(_, _, protocol) | Front::NodePort(_, _, protocol) => protocol,
        }
    }
}

#[test]
fn policies_conditions_and_families() {
    use serde_json::json;
    let service = json!({
        "metadata": {"name": "a"},
        "spec": {
            "type": "NodePort", "clusterIPs": ["10.96.0.1"], "externalTrafficPolicy": "Local",
            "ports": [{"name": "p", "port": 80, "protocol": "TCP", "nodePort": 30000}],
        },
    });
    let endpoint = |address: &str, node: &str, ready: bool| {
        json!({
            "addresses": [address], "nodeName": node,
            "conditions": {"ready": ready, "serving": true, "terminating": !ready},
        })
    };
    let mut slice = json!({
        "metadata": {"labels": {"kubernetes.io/service-name": "a"}},
        "addressType": "IPv4", "ports": [{"name": "p", "port": 8080}],
        "endpoints": [endpoint("10.0.0.1", "n1", false), endpoint("10.0.0.2", "n2", true)],
    });
    let at = |text: &str| BTreeSet::from([text.parse().unwrap()]);
    let node_port = Front::NodePort(Family::V4, 30_000, Protocol::Tcp);
    let cluster_ip = Front::Address([10, 96, 0, 1].into(), 80, Protocol::Tcp);
    let found = forwarding(from_ref(&service), from_ref(&slice), "n1");
    let split = Backends { all: at("10.0.0.2:8080"), outside: Some(at("10.0.0.1:8080")) };
    let whole = Backends { all: at("10.0.0.2:8080"), outside: None };
    assert_eq!(found.fronts, BTreeMap::from([(node_port, split), (cluster_ip, whole)]));
    assert!(found.rejected.is_empty() && found.dropped.is_empty());
    let elsewhere = forwarding(from_ref(&service), from_ref(&slice), "n3");
    assert_eq!(elsewhere.dropped, BTreeSet::from([node_port]));
    slice["endpoints"] = json!([]);
    let rejected = forwarding(&[service], &[slice], "n1").rejected;
    assert_eq!(rejected, BTreeSet::from([node_port, cluster_ip]));
}
