//! The objects of a scenario, as an API server would hold them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kube_ferry::model::Family;
use serde_json::{Map, Value, json};

use super::story::{ObjectRef, Row, Slices};

/// All objects by kind, namespace and name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    objects: BTreeMap<ObjectRef, Value>,
    /// The `endpoints` tables behind the EndpointSlices, by Service and suffix.
    tables: BTreeMap<(String, String), Slices>,
}

impl Objects {
    /// Starts with what every cluster has: the own Node and the default ServiceCIDR.
    pub(crate) fn new() -> Objects {
        let mut objects = Objects::default();
        let node = json!({"status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "2001:db8::1"},
            {"type": "Hostname", "address": "node-1"},
        ]}, "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]}});
        objects.apply(&cluster_scoped("Node", "node-1"), node);
        let ranges = json!({"spec": {"cidrs": ["10.96.0.0/16", "fd00:10:96::/112"]}});
        objects.apply(&cluster_scoped("ServiceCIDR", "kubernetes"), ranges);
        objects
    }

    /// Creates or replaces an object.
    pub(crate) fn apply(&mut self, name: &ObjectRef, mut body: Value) {
        let mut identity = json!({
            "apiVersion": api_version(&name.kind),
            "kind": name.kind,
            "metadata": {"name": name.name},
        });
        if !name.namespace.is_empty() {
            identity["metadata"]["namespace"] = json!(name.namespace);
        }
        merge(&mut body, identity);
        default(&name.kind, &mut body);
        self.objects.insert(name.clone(), body);
    }

    /// Changes an object by a merge patch (RFC 7386).
    pub(crate) fn change(&mut self, name: &ObjectRef, patch: Value) -> Result<(), String> {
        let object = self.objects.get_mut(name).ok_or(format!("there is no {name:?}"))?;
        merge(object, patch);
        default(&name.kind, object);
        Ok(())
    }

    pub(crate) fn delete(&mut self, name: &ObjectRef) -> Result<(), String> {
        if name.kind == "endpoints" {
            let service = format!("{}/{}", name.namespace, name.name);
            let mut mine = self.tables.keys().filter(|(of, _)| *of == service).cloned().collect();
            return self.delete_tables(&mut mine);
        }
        self.objects.remove(name).map(|_| ()).ok_or(format!("there is no {name:?}"))
    }

    fn delete_tables(&mut self, keys: &mut Vec<(String, String)>) -> Result<(), String> {
        if keys.is_empty() {
            return Err("there are no such endpoints".to_owned());
        }
        for key in keys.drain(..) {
            if let Some(slices) = self.tables.remove(&key) {
                for family in Family::ALL {
                    self.objects.remove(&slice_name(&slices, family));
                }
            }
        }
        Ok(())
    }

    /// Creates or replaces a pair of EndpointSlices.
    pub(crate) fn set_endpoints(&mut self, slices: &Slices) {
        for family in &slices.families {
            self.apply(&slice_name(slices, *family), slice(slices, *family));
        }
        self.tables.insert((slices.service.clone(), slices.suffix.clone()), slices.clone());
    }

    /// Takes an endpoint out of all slices of a Service.
    pub(crate) fn remove_endpoint(&mut self, service: &str, pod: &str) -> Result<(), String> {
        let mut found = false;
        for mut slices in
            self.tables.values().filter(|it| it.service == service).cloned().collect::<Vec<_>>()
        {
            let before = slices.rows.len();
            slices.rows.retain(|row| row.actor.name != pod);
            found |= slices.rows.len() < before;
            self.set_endpoints(&slices);
        }
        found.then_some(()).ok_or(format!("{service} has no endpoint {pod}"))
    }

    /// All objects as a multi-document file, Nodes and ServiceCIDRs first, EndpointSlices last. (JSON is YAML.)
    pub(crate) fn manifest(&self) -> String {
        let order = ["Node", "ServiceCIDR", "Service", "EndpointSlice"];
        let rank = |kind: &str| order.iter().position(|it| *it == kind).unwrap_or(order.len());
        let mut objects: Vec<(&ObjectRef, &Value)> = self.objects.iter().collect();
        objects.sort_by_key(|(name, _)| (rank(&name.kind), *name));
        objects.iter().map(|(_, object)| format!("---\n{object:#}\n")).collect()
    }
}

fn cluster_scoped(kind: &str, name: &str) -> ObjectRef {
    ObjectRef { kind: kind.to_owned(), namespace: String::new(), name: name.to_owned() }
}

fn api_version(kind: &str) -> &'static str {
    match kind {
        "Service" | "Node" => "v1",
        "EndpointSlice" => "discovery.k8s.io/v1",
        "ServiceCIDR" => "networking.k8s.io/v1",
        other => panic!("scenarios have no objects of kind {other}"),
    }
}

fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let fields = target.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            fields.remove(&key);
        } else {
            merge(fields.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// The defaults of the API server that the proxy relies on.
fn default(kind: &str, object: &mut Value) {
    if kind != "Service" {
        return;
    }
    let spec = &mut object["spec"];
    let addresses: Vec<String> = spec["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|it| it.as_str().map(str::to_owned))
        .collect();
    let family = |address: &String| if address.contains(':') { "IPv6" } else { "IPv4" };
    let mut defaults = json!({
        "type": "ClusterIP",
        "sessionAffinity": "None",
        "internalTrafficPolicy": "Cluster",
    });
    if let Some(first) = addresses.first() {
        defaults["clusterIP"] = json!(first);
        if first != "None" {
            defaults["ipFamilies"] = json!(addresses.iter().map(family).collect::<Vec<_>>());
        }
    }
    if spec["sessionAffinity"] == "ClientIP" {
        defaults["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10800}});
    }
    merge(&mut defaults, std::mem::take(spec));
    *spec = defaults;
    // Ingress without a mode is VIP, which is also the API server's default; both spellings occur.
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        let mut with_defaults = json!({"protocol": "TCP"});
        merge(&mut with_defaults, port.take());
        *port = with_defaults;
    }
}

fn slice_name(slices: &Slices, family: Family) -> ObjectRef {
    let (namespace, service) =
        slices.service.split_once('/').unwrap_or(("default", &slices.service));
    ObjectRef {
        kind: "EndpointSlice".to_owned(),
        namespace: namespace.to_owned(),
        name: format!("{service}-{}{}", slices.suffix, address_type(family).to_lowercase()),
    }
}

fn address_type(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn slice(slices: &Slices, family: Family) -> Value {
    let (_, service) = slices.service.split_once('/').unwrap_or(("", &slices.service));
    let ports = slices.ports.iter().map(|(name, port, protocol)| {
        json!({"name": name, "port": port, "protocol": protocol.name().to_uppercase()})
    });
    json!({
        "metadata": {"labels": {"kubernetes.io/service-name": service}},
        "addressType": address_type(family),
        "ports": ports.collect::<Vec<_>>(),
        "endpoints": slices.rows.iter().map(|row| endpoint(row, family)).collect::<Vec<_>>(),
    })
}

fn endpoint(row: &Row, family: Family) -> Value {
    let address: IpAddr = row.actor.addresses()[usize::from(family == Family::V6)];
    let mut endpoint = json!({
        "addresses": [address],
        "nodeName": if row.actor.is_local() { "node-1" } else { "node-2" },
        "conditions": {"ready": row.ready, "serving": row.serving, "terminating": row.terminating},
    });
    let named =
        |names: &[String]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
    if !row.zones.is_empty() {
        endpoint["hints"]["forZones"] = json!(named(&row.zones));
    }
    if !row.nodes.is_empty() {
        endpoint["hints"]["forNodes"] = json!(named(&row.nodes));
    }
    endpoint
}

#[test]
fn a_patch_removes_with_null_and_keeps_the_rest() {
    let mut object = json!({"spec": {"a": 1, "b": {"c": 2}}});
    merge(&mut object, json!({"spec": {"a": null, "b": {"d": 3}}}));
    assert_eq!(object, json!({"spec": {"b": {"c": 2, "d": 3}}}));
}

#[test]
fn services_get_what_the_api_server_would_default() {
    let mut service = json!({"spec": {
        "clusterIPs": ["10.96.0.1", "fd00:10:96::1"],
        "sessionAffinity": "ClientIP",
        "ports": [{"port": 80}],
    }});
    default("Service", &mut service);
    let spec = &service["spec"];
    assert_eq!(spec["clusterIP"], "10.96.0.1");
    assert_eq!(spec["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(spec["ports"], json!([{"port": 80, "protocol": "TCP"}]));
    assert_eq!(spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10800);
}
