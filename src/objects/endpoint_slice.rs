//! `discovery.k8s.io/v1` EndpointSlice, reference sections 1.2, 1.3 and 3.

use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;

use super::lenient::Field;
use super::report::{Report, excerpt, is_label_value, is_name};
use super::service::{port_name, port_number, protocol, usable_ip};
use super::{Context, Converted, Interner, PRODUCT_LIMIT, address, raw};
use crate::model::{Change, Endpoint, EndpointSlice, Family, NodeHint, ObjectName, Resource, SlicePort};

/// Judges an EndpointSlice: whose endpoints it holds and which of them can be used.
///
/// There may be up to [`super::LIST_LIMIT`] endpoints although the API admits 1,000: people who write manifests by
/// hand have no controller that splits them, and the model does not care.
pub fn endpoint_slice(context: &Context, raw: &raw::EndpointSlice, interner: &mut Interner) -> Converted {
    let mut report = match Report::new(Resource::EndpointSlice, &raw.metadata, interner) {
        Ok(report) => report,
        Err(skipped) => return Converted::unusable(skipped),
    };
    let labels = raw.metadata.labels.given();
    if labels.is_some_and(|it| it.headless != Field::Absent) {
        return Converted::ignored(Change::SliceDeleted(report.name), "headless");
    }
    let service = labels.map_or("", |it| it.service_name.text());
    if service.is_empty() {
        return Converted::ignored(Change::SliceDeleted(report.name), "no-service-name");
    }
    let family = match raw.address_type.text() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return Converted::ignored(Change::SliceDeleted(report.name), "fqdn"),
        other => {
            let message = format!("addressType {:?} is unknown; the slice is left out", excerpt(other));
            return Converted::unusable(report.whole("invalid-address-type", message));
        }
    };
    if !is_name(service, 253) {
        let message = format!("label kubernetes.io/service-name {:?} is no name", excerpt(service));
        return Converted::unusable(report.whole("invalid-name", message));
    }
    let service = ObjectName { namespace: Arc::clone(&report.name.namespace), name: interner.text(service) };
    let ports = ports(raw, interner, &mut report);
    let endpoints = endpoints(context, family, raw, interner, &mut report);
    if ports.len().saturating_mul(endpoints.len()) > PRODUCT_LIMIT {
        let message = format!("{} endpoints with {} ports are too many", endpoints.len(), ports.len());
        return Converted::unusable(report.whole("too-large", message));
    }
    let (name, trigger_time) = (report.name.clone(), trigger_time(raw));
    let slice = EndpointSlice { name, service, family, ports, endpoints, trigger_time };
    Converted { change: Change::SliceApplied(slice), skipped: report.finish(), ignored: None }
}

fn trigger_time(raw: &raw::EndpointSlice) -> Option<i128> {
    let text = raw.metadata.annotations.given()?.last_change_trigger_time.given()?;
    Timestamp::from_str(text).ok().map(Timestamp::as_nanosecond)
}

/// A port without name or number means "no port" here, not "all ports", and is nobody's mistake (reference 1.2).
fn ports(raw: &raw::EndpointSlice, interner: &mut Interner, report: &mut Report) -> Vec<SlicePort> {
    let mut ports = Vec::new();
    for (index, raw) in report.list("ports", &raw.ports) {
        if raw.name == Field::Absent || matches!(raw.port, Field::Absent | Field::Given(0)) {
            continue;
        }
        let path = format!("ports[{index}]");
        let Some(name) = port_name(&path, &raw.name, interner, report) else { continue };
        let Some(protocol) = protocol(&path, &raw.protocol, report) else { continue };
        match raw.port.given().copied().and_then(port_number) {
            Some(port) => ports.push(SlicePort { name, protocol, port }),
            None => report.skip("invalid-port", || format!("{path}.port is no port number; the port is left out")),
        }
    }
    ports.shrink_to_fit();
    ports
}

fn endpoints(
    context: &Context,
    family: Family,
    raw: &raw::EndpointSlice,
    interner: &mut Interner,
    report: &mut Report,
) -> Vec<Endpoint> {
    let raw_endpoints = report.list("endpoints", &raw.endpoints);
    let mut endpoints = Vec::with_capacity(raw_endpoints.len());
    for (index, raw) in raw_endpoints {
        endpoints.extend(endpoint(context, family, index, raw, interner, report));
    }
    endpoints.shrink_to_fit();
    endpoints
}

/// Only the first address is ever used: the API says that all of one endpoint lead to the same place.
fn endpoint(
    context: &Context,
    family: Family,
    index: usize,
    raw: &raw::Endpoint,
    interner: &mut Interner,
    report: &mut Report,
) -> Option<Endpoint> {
    let text = match raw.addresses.items().first() {
        Some(first) => first.text(),
        None if raw.addresses.is_wrong() => "",
        None => return None,
    };
    let path = || format!("endpoints[{index}]");
    let address = usable_ip(&path(), text, address::special, report)?;
    if Family::of(address) != family {
        report.skip("family-mismatch", || format!("{}: {address} is not of the slice's addressType", path()));
        return None;
    }
    let Some((ready, serving, terminating)) = conditions(raw) else {
        // Taking a condition that we cannot read as good might send traffic to a pod that is not up.
        report.skip("wrong-type", || format!("{}: conditions are not booleans; it is left out", path()));
        return None;
    };
    let local = !context.node_name.is_empty() && raw.node_name.given().is_some_and(|it| **it == *context.node_name);
    let hints = report.field("hints", &raw.hints);
    let node_hint = hints.map_or(NodeHint::Absent, |it| node_hint(context, it, report));
    let zone_hints = hints.and_then(|it| zone_hints(it, interner, report));
    Some(Endpoint { address, ready, serving, terminating, local, node_hint, zone_hints })
}

/// Ready, serving, terminating; missing ones count as good (reference 3.1). `None` if one is no boolean.
fn conditions(raw: &raw::Endpoint) -> Option<(bool, bool, bool)> {
    let conditions = match &raw.conditions {
        Field::Given(conditions) => conditions,
        Field::Absent => return Some((true, true, false)),
        Field::Wrong => return None,
    };
    let or = |field: &Field<bool>, missing| match field {
        Field::Given(flag) => Some(*flag),
        Field::Absent => Some(missing),
        Field::Wrong => None,
    };
    Some((or(&conditions.ready, true)?, or(&conditions.serving, true)?, or(&conditions.terminating, false)?))
}

fn node_hint(context: &Context, hints: &raw::EndpointHints, report: &mut Report) -> NodeHint {
    let nodes = report.list("hints.forNodes", &hints.for_nodes);
    if nodes.is_empty() {
        return NodeHint::Absent;
    }
    let ours = |name: &str| !name.is_empty() && name == &*context.node_name;
    match nodes.iter().any(|(_, it)| ours(it.name.text())) {
        true => NodeHint::ThisNode,
        false => NodeHint::OtherNodes,
    }
}

fn zone_hints(hints: &raw::EndpointHints, interner: &mut Interner, report: &mut Report) -> Option<Arc<[Arc<str>]>> {
    let mut zones = Vec::new();
    for (_, hint) in report.list("hints.forZones", &hints.for_zones) {
        let zone = hint.name.text();
        match is_label_value(zone) {
            true => zones.push(interner.text(zone)),
            false => report.skip("invalid-hint", || format!("hints.forZones: {:?} is no zone", excerpt(zone))),
        }
    }
    zones.sort_unstable();
    zones.dedup();
    (!zones.is_empty()).then(|| interner.list(&zones))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn some_slices_are_ignored() {
        check_ignored(json!({"metadata": {"labels": {"service.kubernetes.io/headless": ""}}}), "headless");
        check_ignored(json!({"metadata": {"labels": {"kubernetes.io/service-name": null}}}), "no-service-name");
        check_ignored(json!({"metadata": {"labels": {"kubernetes.io/service-name": ""}}}), "no-service-name");
        check_ignored(json!({"addressType": "FQDN"}), "fqdn");
    }

    #[test]
    fn unknown_address_types_are_unusable() {
        let Change::Unusable(skipped) = run(json!({"addressType": "IPX"})).change else { panic!() };
        assert_eq!(skipped.reason, "invalid-address-type");
    }

    #[test]
    fn a_slice_is_read() {
        let slice = applied(json!({
            "metadata": {"annotations": {
                "endpoints.kubernetes.io/last-change-trigger-time": "1970-01-01T00:00:01.000000005Z", "other": "x"}},
            "ports": [{"name": "", "port": 80}, {"name": "dns", "protocol": "UDP", "port": 53}],
            "endpoints": [{"addresses": ["010.0.0.1", "10.0.0.9"], "nodeName": "node-1"},
                          {"addresses": ["10.0.0.2"], "nodeName": "node-2", "conditions": {"ready": false}},
                          {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": false, "terminating": true}}],
        }));
        assert_eq!(slice.service, ObjectName::new("ns", "svc"));
        assert_eq!(slice.trigger_time, Some(1_000_000_005));
        let ports: Vec<String> = slice.ports.iter().map(|it| format!("{}/{}/{}", it.name, it.protocol, it.port)).collect();
        assert_eq!(ports, ["/tcp/80", "dns/udp/53"]);
        let shown: Vec<String> = slice.endpoints.iter().map(show).collect();
        assert_eq!(shown, ["10.0.0.1 ready serving local", "10.0.0.2 serving", "10.0.0.3 terminating"]);
    }

    /// TestEndpointInfoByServicePort: nil port is harmless. TestEndpointsMapFromESC.
    #[test]
    fn ports_without_name_or_number_are_no_ports() {
        let slice = applied(json!({"ports": [{"port": 80}, {"name": "a"}, {"name": "b", "port": 0}, {"name": "c", "port": null}]}));
        assert_eq!(slice.ports, []);
        assert_eq!(applied(json!({"ports": null})).ports, []);
    }

    #[test]
    fn bad_endpoints_are_left_out_one_by_one() {
        let converted = run(json!({"endpoints": [
            {"addresses": ["10.0.0.1"]}, {"addresses": ["fd00::1"]}, {"addresses": ["x"]}, {"addresses": []},
            {"addresses": ["127.0.0.1"]}, {"addresses": ["169.254.1.1"]}, {"addresses": ["0.0.0.0"]},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": "false"}}, {"addresses": "10.0.0.3"}, 4,
        ]}));
        let reasons: Vec<&str> = converted.skipped.iter().map(|it| it.reason).collect();
        let special = ["special-address"; 3];
        let expected = [&["wrong-type", "family-mismatch", "invalid-address"], &special[..], &["wrong-type", "invalid-address"]];
        assert_eq!(reasons, expected.concat());
        let Change::SliceApplied(slice) = converted.change else { panic!() };
        assert_eq!(slice.endpoints.iter().map(show).collect::<Vec<_>>(), ["10.0.0.1 ready serving"]);
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let v4 = applied(json!({"endpoints": [{"addresses": ["::ffff:10.0.0.1"]}]}));
        assert_eq!(v4.endpoints.len(), 1);
        let v6 = applied(json!({"addressType": "IPv6", "endpoints": [{"addresses": ["::ffff:10.0.0.1"]}]}));
        assert_eq!(v6.endpoints, []);
    }

    #[test]
    fn thousands_of_bad_endpoints_make_few_messages() {
        let bad: Vec<Value> = (0..5000).map(|_| json!({"addresses": ["x"]})).collect();
        let skipped = run(json!({"endpoints": bad})).skipped;
        assert_eq!(skipped.len(), 9);
        assert_eq!(skipped[8].message, "4992 more parts of this object are left out");
    }

    #[test]
    fn five_thousand_endpoints_are_fine_and_a_million_backends_are_not() {
        let endpoints: Vec<Value> = (0..5000).map(|n| json!({"addresses": [format!("10.1.{}.{}", n / 250, n % 250)]})).collect();
        let ports: Vec<Value> = (1..=201).map(|n| json!({"name": format!("p{n}"), "port": n})).collect();
        assert_eq!(applied(json!({"endpoints": endpoints, "ports": ports[..200]})).endpoints.len(), 5000);
        let Change::Unusable(skipped) = run(json!({"endpoints": endpoints, "ports": ports})).change else { panic!() };
        assert_eq!(skipped.reason, "too-large");
    }

    #[test]
    fn hints_are_resolved_sorted_and_shared() {
        let endpoint = |ip: &str, hints: Value| json!({"addresses": [ip], "hints": hints});
        let slice = applied(json!({"endpoints": [
            endpoint("10.0.0.1", json!({"forZones": [{"name": "b"}, {"name": "a"}], "forNodes": [{"name": "node-2"}]})),
            endpoint("10.0.0.2", json!({"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "node-2"}, {"name": "node-1"}]})),
            endpoint("10.0.0.3", json!({"forZones": [], "forNodes": []})),
            endpoint("10.0.0.4", json!(null)),
        ]}));
        let [a, b, c, d] = &slice.endpoints[..] else { panic!() };
        assert_eq!([a, b, c, d].map(|it| it.node_hint), [NodeHint::OtherNodes, NodeHint::ThisNode, NodeHint::Absent, NodeHint::Absent]);
        assert!(Arc::ptr_eq(a.zone_hints.as_ref().unwrap(), b.zone_hints.as_ref().unwrap()));
        assert_eq!(a.zone_hints.as_deref().unwrap().concat(), "ab");
        assert_eq!((&c.zone_hints, &d.zone_hints), (&None, &None));
    }

    #[test]
    fn nothing_is_local_to_a_nameless_node() {
        let raw: raw::EndpointSlice = serde_json::from_value(with(json!({"endpoints": [{"addresses": ["10.0.0.1"], "nodeName": ""}]}))).unwrap();
        let context = Context { node_name: "".into(), external_ips_allowed: true };
        let Change::SliceApplied(slice) = endpoint_slice(&context, &raw, &mut Interner::default()).change else { panic!() };
        assert!(!slice.endpoints[0].local);
    }

    fn show(endpoint: &Endpoint) -> String {
        let flags = [(endpoint.ready, " ready"), (endpoint.serving, " serving"), (endpoint.terminating, " terminating"), (endpoint.local, " local")];
        let flags: String = flags.iter().filter(|it| it.0).map(|it| it.1).collect();
        format!("{}{flags}", endpoint.address)
    }

    #[track_caller]
    fn check_ignored(changes: Value, why: &str) {
        let converted = run(changes);
        assert_eq!(converted.ignored, Some(why));
        assert_eq!(converted.change, Change::SliceDeleted(ObjectName::new("ns", "svc-1")));
    }

    #[track_caller]
    fn applied(changes: Value) -> EndpointSlice {
        match run(changes).change {
            Change::SliceApplied(slice) => slice,
            other => panic!("{other:?}"),
        }
    }

    fn run(changes: Value) -> Converted {
        let raw: raw::EndpointSlice = serde_json::from_value(with(changes)).unwrap();
        let context = Context { node_name: "node-1".into(), external_ips_allowed: true };
        endpoint_slice(&context, &raw, &mut Interner::default())
    }

    /// A good slice with some fields replaced.
    fn with(changes: Value) -> Value {
        let mut object = json!({
            "metadata": {"namespace": "ns", "name": "svc-1", "labels": {"kubernetes.io/service-name": "svc"}},
            "addressType": "IPv4",
        });
        for (key, value) in changes.as_object().unwrap() {
            match key.as_str() {
                "metadata" => object["metadata"].as_object_mut().unwrap().extend(value.as_object().unwrap().clone()),
                _ => object[key] = value.clone(),
            }
        }
        object
    }
}
