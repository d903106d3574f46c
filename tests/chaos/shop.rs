//! The objects that change: Services with endpoints of their own, so that an answer tells whose it is.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::record::Record;
use crate::support::apiserver::ApiServer;
use crate::support::dice::Dice;
use crate::support::world::{POD_PORTS, twin};

/// Services by number. No two of them share an endpoint.
pub(super) const SERVICES: usize = 2 * POD_PORTS.len();

/// These never change.
pub(super) const FIXED: [usize; 2] = [0, POD_PORTS.len()];

/// Pods of Services with numbers below 8, and of the others: two on this node each. The first anchors its Service.
const PODS: [[&str; 6]; 2] = [
    ["pod-1a", "pod-1b", "pod-2a", "pod-2b", "pod-2c", "pod-2d"],
    ["pod-1c", "pod-1d", "pod-2e", "pod-2f", "pod-2g", "pod-2h"],
];

pub(super) const NODE: &str = "node-1";

/// Changes objects, one at a time, and tells the record.
pub(super) struct Shop<'s> {
    server: &'s ApiServer,
    record: &'s Record,
    /// How often a Service was made anew: it has another name each time.
    generations: [u32; SERVICES],
}

impl<'s> Shop<'s> {
    /// Everything that is there at the beginning.
    pub(super) fn open(server: &'s ApiServer, record: &'s Record, dice: &mut Dice) -> Shop<'s> {
        let shop = Shop { server, record, generations: [0; SERVICES] };
        server.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "2001:db8::1"}]},
        }));
        server.put(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.0/16", "fd00:10:96::/112"]},
        }));
        for number in 0..SERVICES {
            let is_fixed = FIXED.contains(&number);
            shop.put_service(number, if is_fixed { None } else { Some(&mut *dice) });
            for part in 0..2 {
                shop.put_slice(number, part, if is_fixed { None } else { Some(&mut *dice) });
            }
        }
        record.settled(server);
        shop
    }

    /// Some change; what it was.
    pub(super) fn change(&mut self, dice: &mut Dice) -> String {
        let number = loop {
            let number = dice.below(SERVICES);
            if !FIXED.contains(&number) {
                break number;
            }
        };
        let part = dice.below(2);
        let name = self.name(number);
        match dice.below(20) {
            0..=9 => {
                self.put_slice(number, part, Some(dice));
                format!("endpoints {part} of {name} change")
            }
            10..=13 => {
                self.put_service(number, Some(dice));
                format!("{name} changes")
            }
            14 | 15 => {
                self.delete(number);
                format!("{name} is deleted")
            }
            16 | 17 => {
                // Another Service gets the addresses, at once.
                self.delete(number);
                self.generations[number] += 1;
                self.put_service(number, Some(dice));
                (0..2).for_each(|part| self.put_slice(number, part, Some(&mut *dice)));
                format!("{} takes the addresses of {name}", self.name(number))
            }
            18 => {
                let slice = self.slice_name(number, part);
                self.record.delete(self.server, "endpointslices", &slice);
                format!("endpoints {part} of {name} are deleted")
            }
            _ => {
                // Nothing that matters.
                let services = self.server.objects("services", "", "");
                if let Some(mut object) =
                    services.into_iter().find(|it| it["metadata"]["name"] == *name)
                {
                    object["metadata"]["annotations"] =
                        json!({ "note": dice.below(1_000).to_string() });
                    self.server.put(object);
                }
                format!("{name} gets a note")
            }
        }
    }

    fn delete(&self, number: usize) {
        let name = self.name(number);
        self.record.delete(self.server, "services", &name);
        for part in 0..2 {
            let slice = self.slice_name(number, part);
            self.record.delete(self.server, "endpointslices", &slice);
        }
    }

    /// Without dice: everything at its plainest.
    fn put_service(&self, number: usize, dice: Option<&mut Dice>) {
        let object = service(number, &self.name(number), dice);
        self.record.put(self.server, object);
    }

    /// Part 0 is the anchor's slice, part 1 has endpoints of the other family, or both of the first.
    fn put_slice(&self, number: usize, part: usize, dice: Option<&mut Dice>) {
        let object = slice(number, part, &self.name(number), &self.slice_name(number, part), dice);
        self.record.put(self.server, object);
    }

    fn name(&self, number: usize) -> String {
        format!("s{number}-{}", self.generations[number])
    }

    /// Slices 0 and 1 of the two families.
    fn slice_name(&self, number: usize, part: usize) -> String {
        format!("{}-part{part}", self.name(number))
    }
}

/// The first address that a Service has in a network.
fn address(network: [u8; 3], number: usize) -> Ipv4Addr {
    let [a, b, c] = network;
    Ipv4Addr::new(a, b, c, u8::try_from(100 + number).unwrap())
}

fn service(number: usize, name: &str, dice: Option<&mut Dice>) -> Value {
    let cluster_ip = address([10, 96, 0], number);
    let both = vec![cluster_ip.to_string(), twin(cluster_ip).to_string()];
    let mut spec = json!({
        "type": "LoadBalancer", "clusterIPs": both, "ports": [port("http", 80, "TCP", 30_100 + number)],
        "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
    });
    spec["ports"].as_array_mut().unwrap().push(port("dns", 53, "UDP", 30_200 + number));
    if let Some(dice) = dice {
        vary(&mut spec, number, dice);
    } else if number != FIXED[0] {
        spec["sessionAffinity"] = "ClientIP".into();
        spec["externalTrafficPolicy"] = "Local".into();
        spec["healthCheckNodePort"] = (32_000 + number).into();
    }
    if spec["type"] == "ClusterIP" {
        for port in spec["ports"].as_array_mut().unwrap() {
            port.as_object_mut().unwrap().remove("nodePort");
        }
    }
    spec["clusterIP"] = spec["clusterIPs"][0].clone();
    let ingress = address([198, 51, 100], number);
    let ingress = match spec["type"].as_str() {
        Some("LoadBalancer") => {
            json!([{ "ip": ingress.to_string() }, { "ip": twin(ingress).to_string() }])
        }
        _ => json!([]),
    };
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": name, "uid": format!("u-{name}")},
        "spec": spec, "status": {"loadBalancer": {"ingress": ingress}},
    })
}

fn vary(spec: &mut Value, number: usize, dice: &mut Dice) {
    let kind = dice.of(&["ClusterIP", "ClusterIP", "NodePort", "LoadBalancer"]);
    spec["type"] = kind.into();
    if dice.percent(30) {
        let kept = spec["clusterIPs"][dice.below(2)].clone();
        spec["clusterIPs"] = json!([kept]);
    }
    if dice.percent(30) {
        spec["ports"].as_array_mut().unwrap().pop();
    }
    if dice.percent(25) {
        spec["sessionAffinity"] = "ClientIP".into();
        spec["sessionAffinityConfig"] =
            json!({"clientIP": {"timeoutSeconds": dice.of(&[1, 60, 10_800])}});
    }
    if dice.percent(15) {
        spec["internalTrafficPolicy"] = "Local".into();
    }
    if kind != "ClusterIP" && dice.percent(40) {
        spec["externalTrafficPolicy"] = "Local".into();
        if kind == "LoadBalancer" {
            spec["healthCheckNodePort"] = (32_000 + number).into();
        }
    }
}

fn port(name: &str, number: u16, protocol: &str, node_port: usize) -> Value {
    json!({"name": name, "port": number, "protocol": protocol, "nodePort": node_port, "targetPort": name})
}

fn slice(number: usize, part: usize, service: &str, name: &str, dice: Option<&mut Dice>) -> Value {
    // Slice 0 is IPv4, slice 1 IPv6: both families of one Service change at different times.
    let kind = ["IPv4", "IPv6"][part];
    let pods = PODS[number / POD_PORTS.len()];
    let target = POD_PORTS[number % POD_PORTS.len()];
    let endpoints: Vec<Value> = match dice {
        None => pods[..3].iter().map(|pod| endpoint(pod, kind, [true, true, false])).collect(),
        Some(dice) => {
            // Every other Service keeps its first endpoint: it must be served all the time.
            let anchored = number.is_multiple_of(2);
            let mut endpoints = Vec::new();
            for (position, pod) in pods.iter().enumerate() {
                let conditions = dice.of(&[
                    [true, true, false],
                    [true, true, false],
                    [false, true, true],
                    [false, false, true],
                    [false, false, false],
                ]);
                let is_there = dice.percent(50);
                if anchored && position == 0 {
                    endpoints.push(endpoint(pod, kind, [true, true, false]));
                } else if is_there {
                    endpoints.push(endpoint(pod, kind, conditions));
                }
            }
            endpoints
        }
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": kind,
        "ports": [
            {"name": "http", "port": target, "protocol": "TCP"},
            {"name": "dns", "port": target, "protocol": "UDP"},
        ],
        "endpoints": endpoints,
    })
}

fn endpoint(pod: &str, kind: &str, [ready, serving, terminating]: [bool; 3]) -> Value {
    let actor = crate::support::world::Actor::find(pod).unwrap();
    let address = if kind == "IPv4" { IpAddr::from(actor.v4) } else { twin(actor.v4).into() };
    json!({
        "addresses": [address.to_string()],
        "nodeName": if actor.is_local() { NODE } else { "node-2" },
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
    })
}
