use std::net::IpAddr;

use serde_json::{Value, json};

use super::*;
use crate::model::SourceRanges;

/// TestServiceToServiceMap, TestBuildServiceMapServiceHeadless, ...TypeExternalName.
#[test]
fn some_services_are_not_proxied() {
    check_ignored(json!({"clusterIP": "None", "ports": [{"port": 80}]}), "headless");
    check_ignored(json!({"clusterIP": "None"}), "headless");
    check_ignored(json!({"clusterIP": "", "ports": [{"port": 80}]}), "no-cluster-ip");
    check_ignored(json!({"ports": [{"port": 80}]}), "no-cluster-ip");
    check_ignored(
        json!({"clusterIP": "10.0.0.1", "type": "ExternalName", "externalName": "x"}),
        "external-name",
    );
}

#[test]
fn the_proxy_name_label_takes_a_service_away_even_when_empty() {
    for value in [json!(""), json!("other"), json!(1)] {
        let mut object = object(json!({"clusterIP": "10.0.0.1"}));
        object["metadata"]["labels"] =
            json!({"service.kubernetes.io/service-proxy-name": value, "x": {}});
        let converted = run(true, object);
        assert_eq!(converted.ignored, Some("service-proxy-name"));
        assert_eq!(
            converted.change,
            Change::ServiceDeleted(crate::model::ObjectName::new("ns", "svc"))
        );
    }
}

#[test]
fn families() {
    let ips = |spec| {
        let service = applied(spec);
        [service.v4, service.v6].map(|it| it.map_or("-".to_owned(), |it| it.cluster_ip.to_string()))
    };
    assert_eq!(ips(json!({"clusterIP": "10.0.0.1"})), ["10.0.0.1", "-"]);
    assert_eq!(ips(json!({"clusterIP": "fd00::1"})), ["-", "fd00::1"]);
    let dual = json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"]});
    assert_eq!(ips(dual), ["10.0.0.1", "fd00::1"]);
    let swapped = json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.0.0.1"], "ipFamilies": ["IPv6", "IPv4"]});
    assert_eq!(ips(swapped), ["10.0.0.1", "fd00::1"]);
    let beyond = json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4"]});
    assert_eq!(ips(beyond), ["10.0.0.1", "-"]);
    let hand_written = json!({"clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"]});
    assert_eq!(ips(hand_written), ["10.0.0.1", "-"]);
}

#[test]
fn an_object_without_usable_cluster_ip_is_unusable() {
    check_unusable(json!({"clusterIP": "10.0.0.256"}), "invalid-address");
    check_unusable(json!({"clusterIP": 7}), "invalid-address");
    check_unusable(json!({"clusterIP": "127.0.0.1"}), "invalid-address");
    check_unusable(
        json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv6"]}),
        "invalid-address",
    );
    check_unusable(json!("text"), "wrong-type");
}

/// TestBadIPs.
#[test]
fn zero_padded_addresses_become_canonical() {
    let converted = run(
        true,
        json!({
            "metadata": {"namespace": "ns", "name": "svc"},
            "spec": {"clusterIP": "010.096.000.001", "externalIPs": ["192.168.099.022"], "type": "LoadBalancer",
                     "loadBalancerSourceRanges": ["203.000.113.000/025"], "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "001.002.003.004"}]}},
        }),
    );
    let Change::ServiceApplied(service) = converted.change else { panic!("{converted:?}") };
    let v4 = service.v4.unwrap();
    assert_eq!(v4.cluster_ip.to_string(), "10.96.0.1");
    assert_eq!(v4.external_ips, ["192.168.99.22".parse::<IpAddr>().unwrap()]);
    assert_eq!(v4.load_balancer_ips, ["1.2.3.4".parse::<IpAddr>().unwrap()]);
    assert_eq!(v4.source_ranges, SourceRanges::Only(vec!["203.0.113.0/25".parse().unwrap()]));
    assert_eq!(converted.skipped, []);
}

#[test]
fn bad_parts_are_left_out_one_by_one() {
    let converted = run(
        true,
        json!({
            "metadata": {"namespace": "ns", "name": "svc"},
            "spec": {
                "clusterIP": "10.0.0.1", "externalIPs": ["x", "", " ", "127.0.0.1", "169.254.0.1", 5, "192.0.2.1"],
                "loadBalancerSourceRanges": ["nonsense", " 10.0.0.7/8 "], "internalTrafficPolicy": "Sometimes",
                "ports": [{"name": "a", "port": 80}, {"name": "a", "port": 81}, {"name": "b", "port": 0},
                          {"name": "c", "port": 82, "protocol": "ICMP"}, {"name": "d", "port": "83"},
                          {"name": "E F", "port": 84}, {"name": "g", "port": 85, "nodePort": 70000}, 3],
            },
        }),
    );
    let reasons: Vec<&str> = converted.skipped.iter().map(|it| it.reason).collect();
    let ports = [
        "wrong-type",
        "duplicate-port",
        "invalid-port",
        "invalid-protocol",
        "invalid-port",
        "invalid-name",
    ];
    assert_eq!(reasons[..6], ports);
    assert_eq!(converted.skipped.len(), TOLD_AND_MORE, "{:#?}", converted.skipped);
    let Change::ServiceApplied(service) = converted.change else { panic!() };
    assert_eq!(service.v4.unwrap().external_ips, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    let ports: Vec<&str> = service.ports.iter().map(|it| &*it.name).collect();
    assert_eq!(ports, ["a", "g"]);
    assert_eq!(service.ports[1].node_port, None);
}

const TOLD_AND_MORE: usize = 9;

/// TestServiceToServiceMap: other families, blanks, ipMode.
#[test]
fn addresses_are_sorted_into_their_family() {
    let converted = run(
        true,
        json!({
            "metadata": {"namespace": "ns", "name": "svc"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.0.0.1", "ports": [{"port": 80}],
                "clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"],
                "externalIPs": ["192.0.2.2", "192.0.2.1", "192.0.2.1", "2001:db8::1"],
                "loadBalancerSourceRanges": [" 10.1.0.0/16", "fd00::/8", "::/0"],
            },
            "status": {"loadBalancer": {"ingress": [
                {"ip": "198.51.100.1", "ipMode": "VIP"}, {"ip": "198.51.100.2", "ipMode": "Proxy"},
                {"hostname": "lb.example"}, {"ip": "2001:db8::2"}, {"ip": "198.51.100.3", "ipMode": 5}]}},
        }),
    );
    let Change::ServiceApplied(service) = converted.change else { panic!() };
    let (v4, v6) = (service.v4.unwrap(), service.v6.unwrap());
    assert_eq!(v4.external_ips.len(), 2);
    assert!(v4.external_ips.is_sorted());
    assert_eq!(v4.load_balancer_ips, ["198.51.100.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(v4.source_ranges, SourceRanges::Only(vec!["10.1.0.0/16".parse().unwrap()]));
    assert_eq!((v6.external_ips.len(), v6.load_balancer_ips.len()), (1, 1));
    assert_eq!(
        v6.source_ranges,
        SourceRanges::Unrestricted,
        "a zero-length range opens the family"
    );
}

#[test]
fn only_unusable_ranges_mean_no_restriction() {
    let service =
        applied(json!({"clusterIP": "10.0.0.1", "loadBalancerSourceRanges": ["x", "fd00::/8"]}));
    assert_eq!(service.v4.unwrap().source_ranges, SourceRanges::Unrestricted);
}

#[test]
fn forbidden_external_ips_vanish_but_still_make_a_service_accessible() {
    let spec = json!({"clusterIP": "10.0.0.1", "externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local"});
    let Change::ServiceApplied(service) = run(false, object(spec)).change else { panic!() };
    assert_eq!(service.v4.unwrap().external_ips, [] as [IpAddr; 0]);
    assert_eq!(service.external_policy, TrafficPolicy::Local);
}

#[test]
fn the_external_policy_needs_an_externally_accessible_service() {
    let policy = |kind: &str, ips: Value| {
        let spec = json!({"clusterIP": "10.0.0.1", "type": kind, "externalIPs": ips, "externalTrafficPolicy": "Local"});
        applied(spec).external_policy
    };
    assert_eq!(policy("LoadBalancer", json!([])), TrafficPolicy::Local);
    assert_eq!(policy("NodePort", json!([])), TrafficPolicy::Local);
    assert_eq!(policy("ClusterIP", json!([])), TrafficPolicy::Cluster);
    assert_eq!(policy("ClusterIP", json!(["192.0.2.1"])), TrafficPolicy::Local);
}

/// TestBuildServiceMapAddRemove and ...ServiceUpdate: health check ports.
#[test]
fn only_local_load_balancers_have_a_health_check_port() {
    let port = |kind: &str, policy: &str| {
        let spec = json!({"clusterIP": "10.0.0.1", "type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": 345});
        applied(spec).health_check_node_port.map(NonZeroU16::get)
    };
    assert_eq!(port("LoadBalancer", "Local"), Some(345));
    assert_eq!(port("LoadBalancer", "Cluster"), None);
    assert_eq!(port("NodePort", "Local"), None);
    assert_eq!(port("ClusterIP", "Local"), None);
    let missing = run(
        true,
        object(
            json!({"clusterIP": "10.0.0.1", "type": "LoadBalancer", "externalTrafficPolicy": "Local"}),
        ),
    );
    assert_eq!(missing.skipped.first().map(|it| it.reason), Some("no-health-check-node-port"));
}

#[test]
fn affinity_timeouts() {
    let timeout = |config: Value| {
        applied(json!({"clusterIP": "10.0.0.1", "sessionAffinity": "ClientIP", "sessionAffinityConfig": config})).affinity
    };
    assert_eq!(timeout(json!({"clientIP": {"timeoutSeconds": 10}})), Some(10));
    for odd in [
        json!(null),
        json!({}),
        json!({"clientIP": {"timeoutSeconds": 0}}),
        json!({"clientIP": {"timeoutSeconds": 86_401}}),
    ] {
        assert_eq!(timeout(odd), Some(10_800));
    }
    assert_eq!(applied(json!({"clusterIP": "10.0.0.1", "sessionAffinity": "None"})).affinity, None);
}

#[test]
fn age_is_known_or_youngest() {
    let mut dated = object(json!({"clusterIP": "10.0.0.1"}));
    dated["metadata"]["creationTimestamp"] = json!("1970-01-01T00:01:00Z");
    let Change::ServiceApplied(service) = run(true, dated).change else { panic!() };
    assert_eq!(service.created, 60);
    assert_eq!(applied(json!({"clusterIP": "10.0.0.1"})).created, i64::MAX);
}

#[test]
fn absurd_products_are_refused() {
    let ports: Vec<Value> =
        (1..=2000).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
    let ips: Vec<String> =
        (0..2000).map(|n| format!("192.0.{}.{}", n / 250, n % 250 + 1)).collect();
    check_unusable(
        json!({"clusterIP": "10.0.0.1", "ports": ports, "externalIPs": ips}),
        "too-large",
    );
}

#[test]
fn names_that_no_api_server_admits_are_unusable() {
    for (namespace, name) in
        [("", "svc"), ("ns", ""), ("ns", "a b"), ("ns", "a\n"), ("n\"s", "svc")]
    {
        let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": {"clusterIP": "10.0.0.1"}});
        let Change::Unusable(skipped) = run(true, object).change else {
            panic!("{namespace}/{name}")
        };
        assert_eq!(skipped.reason, "invalid-name");
    }
    let Change::Unusable(_) = run(true, json!({"metadata": 3, "spec": {}})).change else {
        panic!()
    };
}

#[track_caller]
fn check_ignored(spec: Value, why: &str) {
    assert_eq!(run(true, object(spec)).ignored, Some(why));
}

#[track_caller]
fn check_unusable(spec: Value, reason: &str) {
    let converted = run(true, object(spec)).change;
    let Change::Unusable(skipped) = converted else { panic!("{converted:?}") };
    assert_eq!(skipped.reason, reason);
}

#[track_caller]
fn applied(spec: Value) -> Service {
    let converted = run(true, object(spec)).change;
    let Change::ServiceApplied(service) = converted else { panic!("{converted:?}") };
    service
}

fn object(spec: Value) -> Value {
    json!({"metadata": {"namespace": "ns", "name": "svc"}, "spec": spec})
}

fn run(external_ips_allowed: bool, object: Value) -> Converted {
    let raw: raw::Service = serde_json::from_value(object).unwrap();
    let context = Context { node_name: "node-1".into(), external_ips_allowed };
    service(&context, &raw, &mut Interner::default())
}
