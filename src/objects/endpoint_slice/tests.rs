use serde_json::{Value, json};

use super::*;

#[test]
fn some_slices_are_ignored() {
    check_ignored(
        json!({"metadata": {"labels": {"service.kubernetes.io/headless": ""}}}),
        "headless",
    );
    check_ignored(
        json!({"metadata": {"labels": {"kubernetes.io/service-name": null}}}),
        "no-service-name",
    );
    check_ignored(
        json!({"metadata": {"labels": {"kubernetes.io/service-name": ""}}}),
        "no-service-name",
    );
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
                      {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": false, "terminating": true}},
                      {"addresses": ["10.0.0.4"], "conditions": {"serving": false}},
                      {"addresses": ["10.0.0.5"], "conditions": {"ready": null, "serving": null, "terminating": null}}],
    }));
    assert_eq!(slice.service, ObjectName::new("ns", "svc"));
    assert_eq!(slice.trigger_time, Some(1_000_000_005));
    let ports: Vec<String> =
        slice.ports.iter().map(|it| format!("{}/{}/{}", it.name, it.protocol, it.port)).collect();
    assert_eq!(ports, ["/tcp/80", "dns/udp/53"]);
    let shown: Vec<String> = slice.endpoints.iter().map(show).collect();
    assert_eq!(
        shown,
        [
            "10.0.0.1 ready serving local",
            "10.0.0.2 serving",
            "10.0.0.3 terminating",
            "10.0.0.4 ready",
            "10.0.0.5 ready serving"
        ]
    );
}

/// TestEndpointInfoByServicePort: nil port is harmless. TestEndpointsMapFromESC.
#[test]
fn ports_without_name_or_number_are_no_ports() {
    let slice = applied(
        json!({"ports": [{"port": 80}, {"name": "a"}, {"name": "b", "port": 0}, {"name": "c", "port": null}]}),
    );
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
    let expected = [
        &["wrong-type", "family-mismatch", "invalid-address"],
        &special[..],
        &["wrong-type", "invalid-address"],
    ];
    assert_eq!(reasons, expected.concat());
    let Change::SliceApplied(slice) = converted.change else { panic!() };
    assert_eq!(slice.endpoints.iter().map(show).collect::<Vec<_>>(), ["10.0.0.1 ready serving"]);
}

#[test]
fn mapped_addresses_are_ipv4() {
    let v4 = applied(json!({"endpoints": [{"addresses": ["::ffff:10.0.0.1"]}]}));
    assert_eq!(v4.endpoints.len(), 1);
    let v6 =
        applied(json!({"addressType": "IPv6", "endpoints": [{"addresses": ["::ffff:10.0.0.1"]}]}));
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
    let endpoints: Vec<Value> = (0..5000)
        .map(|n| json!({"addresses": [format!("10.1.{}.{}", n / 250, n % 250)]}))
        .collect();
    let ports: Vec<Value> =
        (1..=201).map(|n| json!({"name": format!("p{n}"), "port": n})).collect();
    assert_eq!(
        applied(json!({"endpoints": endpoints, "ports": ports[..200]})).endpoints.len(),
        5000
    );
    let Change::Unusable(skipped) = run(json!({"endpoints": endpoints, "ports": ports})).change
    else {
        panic!()
    };
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
    assert_eq!(
        [a, b, c, d].map(|it| it.node_hint),
        [NodeHint::OtherNodes, NodeHint::ThisNode, NodeHint::Absent, NodeHint::Absent]
    );
    assert!(Arc::ptr_eq(a.zone_hints.as_ref().unwrap(), b.zone_hints.as_ref().unwrap()));
    assert_eq!(a.zone_hints.as_deref().unwrap().concat(), "ab");
    assert_eq!((&c.zone_hints, &d.zone_hints), (&None, &None));
}

#[test]
fn nothing_is_local_to_a_nameless_node() {
    let raw: raw::EndpointSlice = serde_json::from_value(with(
        json!({"endpoints": [{"addresses": ["10.0.0.1"], "nodeName": ""}]}),
    ))
    .unwrap();
    let context = Context { node_name: "".into(), external_ips_allowed: true };
    let Change::SliceApplied(slice) =
        endpoint_slice(&context, &raw, &mut Interner::default()).change
    else {
        panic!()
    };
    assert!(!slice.endpoints[0].local);
}

fn show(endpoint: &Endpoint) -> String {
    let flags = [
        (endpoint.ready, " ready"),
        (endpoint.serving, " serving"),
        (endpoint.terminating, " terminating"),
        (endpoint.local, " local"),
    ];
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
    let converted = run(changes).change;
    let Change::SliceApplied(slice) = converted else { panic!("{converted:?}") };
    slice
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
            "metadata" => object["metadata"]
                .as_object_mut()
                .unwrap()
                .extend(value.as_object().unwrap().clone()),
            _ => object[key] = value.clone(),
        }
    }
    object
}
