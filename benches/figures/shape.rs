//! Clusters of a given size, as an API server has them: JSON with all that real objects carry along.

use std::fmt;
use std::net::Ipv4Addr;

use kube_ferry::config::{DetectLocal, NodePortSelector};
use kube_ferry::model::{Change, Cluster, Family, Resource};
use kube_ferry::nft::Batch;
use kube_ferry::objects::{self, Context, Interner, raw};
use kube_ferry::sync::engine::Engine;
use kube_ferry::sync::facts::Settings;
use serde_json::{Value, json};

/// Pods of all benchmarks are in here.
pub(crate) const POD_CIDR: &str = "10.128.0.0/9";
/// The node that everything runs on.
pub(crate) const NODE: &str = "node-1";
/// Kubernetes puts no more endpoints into one slice unless told to.
const SLICE: u32 = 100;

/// So many Services with one port, each with so many endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) services: u32,
    pub(crate) endpoints: u32,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thousands = match self.services {
            small @ ..1_000 => small.to_string(),
            large => format!("{},{:03}", large / 1_000, large % 1_000),
        };
        write!(f, "{thousands} × {}", self.endpoints)
    }
}

impl Shape {
    pub(crate) const fn new(services: u32, endpoints: u32) -> Shape {
        Shape { services, endpoints }
    }

    /// Everything that the API server holds.
    pub(crate) fn objects(self) -> impl Iterator<Item = Value> {
        let services = (0..self.services).map(service);
        let slices = (0..self.services).flat_map(move |it| slices(it, self.endpoints));
        std::iter::once(node()).chain(services).chain(slices)
    }

    /// The changes that a first list brings, the ends of the lists included.
    pub(crate) fn changes(self) -> Vec<Change> {
        let all =
            [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr];
        let mut changes: Vec<Change> = all.map(Change::Listing).into();
        let mut interner = Interner::default();
        changes.extend(self.objects().filter_map(|it| change(it, &mut interner)));
        changes.extend(all.map(Change::Listed));
        changes
    }

    /// An engine that knows everything and has written nothing.
    pub(crate) fn engine(self) -> Engine {
        let mut engine = Engine::new(settings(), Cluster::default());
        self.changes().into_iter().for_each(|it| engine.apply(it));
        engine
    }
}

/// The batches with which an engine fills an empty kernel; `carry_out` is called for each.
pub(crate) fn fill(engine: &mut Engine, mut carry_out: impl FnMut(Batch)) {
    engine.observed(Default::default());
    while engine.has_work() {
        let batch = engine.plan();
        if !batch.is_empty() {
            carry_out(batch);
        }
        engine.committed();
    }
}

/// As the program's defaults are, with a range of pods.
pub(crate) fn settings() -> Settings {
    Settings {
        masquerade_mark: 0x4000,
        masquerade_all: false,
        ipvs: None,
        families: Family::ALL.to_vec(),
        detect_local: DetectLocal::ClusterCidr(vec![POD_CIDR.parse().unwrap()]),
        node_ports: NodePortSelector::All,
        node_ip: None,
    }
}

/// What an object becomes on arrival.
pub(crate) fn change(object: Value, interner: &mut Interner) -> Option<Change> {
    let context = Context { node_name: NODE.into(), external_ips_allowed: false };
    let converted = match object["kind"].as_str().unwrap_or_default() {
        "Service" => {
            let object: raw::Service = serde_json::from_value(object).unwrap();
            objects::service(&context, &object, interner)
        }
        "EndpointSlice" => {
            let object: raw::EndpointSlice = serde_json::from_value(object).unwrap();
            objects::endpoint_slice(&context, &object, interner)
        }
        _ => {
            let object: raw::Node = serde_json::from_value(object).unwrap();
            return objects::node(&context, &object, interner).map(|it| it.change);
        }
    };
    Some(converted.change)
}

fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": NODE, "labels": { "topology.kubernetes.io/zone": "a" } },
        "spec": { "podCIDR": "10.128.0.0/24", "podCIDRs": ["10.128.0.0/24"] },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
    })
}

pub(crate) fn service_name(number: u32) -> String {
    format!("service-{number:05}")
}

/// A Service as kubectl applied it, with what the API server adds to it.
fn service(number: u32) -> Value {
    let name = service_name(number);
    let address =
        Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + number + 1).to_string();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "namespace": "shop", "name": name, "uid": uid(number), "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": { "app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "shop", "team": "checkout" },
            "managedFields": [{
                "apiVersion": "v1", "fieldsType": "FieldsV1", "manager": "kubectl-client-side-apply",
                "operation": "Update", "time": "2026-01-01T00:00:00Z",
                "fieldsV1": {
                    "f:metadata": { "f:labels": { ".": {}, "f:app.kubernetes.io/name": {},
                        "f:app.kubernetes.io/part-of": {}, "f:team": {} } },
                    "f:spec": { "f:internalTrafficPolicy": {}, "f:ports": { ".": {},
                        "k:{\"port\":80,\"protocol\":\"TCP\"}": { ".": {}, "f:name": {}, "f:port": {},
                            "f:protocol": {}, "f:targetPort": {} } },
                        "f:selector": {}, "f:sessionAffinity": {}, "f:type": {} },
                },
            }],
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080 }],
            "selector": { "app.kubernetes.io/name": name }, "sessionAffinity": "None",
        },
        "status": { "loadBalancer": {} },
    })
}

/// The slices of a Service that has so many endpoints now.
pub(crate) fn slices(number: u32, endpoints: u32) -> impl Iterator<Item = Value> {
    (0..endpoints.div_ceil(SLICE)).map(move |slice| {
        let first = slice * SLICE;
        let last = endpoints.min(first + SLICE);
        let endpoints: Vec<Value> = (first..last).map(|it| endpoint(number, it)).collect();
        endpoint_slice(number, slice, &endpoints)
    })
}

/// Endpoints of the one big Service.
pub(crate) const BIG: u32 = 1_000;
/// Its number; no shape has so many.
const BIG_NUMBER: u32 = 60_000;

/// A Service with many endpoints, and its slices.
pub(crate) fn big_service() -> impl Iterator<Item = Value> {
    let slices = (0..BIG / SLICE).map(|it| big_slice(it, 0));
    std::iter::once(service(BIG_NUMBER)).chain(slices)
}

/// One of its slices when the first `replaced` of all its endpoints were replaced by others.
pub(crate) fn big_slice(slice: u32, replaced: u32) -> Value {
    let first = slice * SLICE;
    let endpoints = (first..first + SLICE).map(|it| {
        let number = if it < replaced { it + BIG } else { it };
        at(BIG_NUMBER, number, u32::from(Ipv4Addr::new(10, 192, 0, 0)) + number)
    });
    endpoint_slice(BIG_NUMBER, slice, &endpoints.collect::<Vec<_>>())
}

fn endpoint_slice(number: u32, slice: u32, endpoints: &[Value]) -> Value {
    let service = service_name(number);
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "shop", "name": format!("{service}-{slice:05}"), "uid": uid(number), "generation": 7,
            "generateName": format!("{service}-"), "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "app.kubernetes.io/name": service, "app.kubernetes.io/part-of": "shop",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service, "team": "checkout",
            },
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Service", "name": service, "uid": uid(number),
                "blockOwnerDeletion": true, "controller": true }],
            "managedFields": [{
                "apiVersion": "discovery.k8s.io/v1", "fieldsType": "FieldsV1", "manager": "kube-controller-manager",
                "operation": "Update", "time": "2026-01-01T00:00:00Z",
                "fieldsV1": { "f:addressType": {}, "f:endpoints": {}, "f:metadata": { "f:annotations": {},
                    "f:generateName": {}, "f:labels": {}, "f:ownerReferences": {} }, "f:ports": {} },
            }],
        },
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

fn endpoint(service: u32, endpoint: u32) -> Value {
    // Room for 64 endpoints each, more than any shape has.
    at(service, endpoint, u32::from(Ipv4Addr::new(10, 128, 0, 0)) + service * 64 + endpoint)
}

fn at(service: u32, endpoint: u32, address: u32) -> Value {
    json!({
        "addresses": [Ipv4Addr::from_bits(address).to_string()],
        "conditions": { "ready": true, "serving": true, "terminating": false },
        "nodeName": format!("node-{}", (service + endpoint) % 500 + 2),
        "targetRef": { "kind": "Pod", "namespace": "shop", "uid": uid(address),
            "name": format!("{}-7d4b9c6f5-{endpoint:05}", service_name(service)) },
        "zone": "a",
    })
}

fn uid(number: u32) -> String {
    format!("4f6a2c1e-9b7d-4e3a-8c5f-{number:012x}")
}
