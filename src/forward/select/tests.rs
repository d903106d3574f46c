use super::*;
use crate::model::EndpointSlice;
use crate::model::sample::{endpoint, port, slice};

/// Uses of the policies in upstream's names: C/C is internal Cluster with external Cluster, and so on; `C` and `L`
/// alone have no external destination.
const C: Uses = Uses { cluster: true, local: false };
const L: Uses = Uses { cluster: false, local: true };
const BOTH: Uses = Uses { cluster: true, local: true };

const ZONED: [&str; 4] =
    ["10.1.2.3 zone=a local", "10.1.2.4 zone=b local", "10.1.2.5 zone=c", "10.1.2.6 zone=a"];

/// TestCategorizeEndpoints: zones.
#[test]
fn zone_hints() {
    // Hints are used.
    check(C, Some("a"), &ZONED, "cluster 3 6, local -, hairpin 3, any");
    // External or internal policy Local: hints are ignored for local endpoints, reachable is the union.
    check(BOTH, Some("a"), &ZONED, "cluster 3 6, local 3 4, hairpin 3 4, any");
    // Only internal traffic, policy Local.
    check(L, Some("a"), &ZONED, "cluster -, local 3 4, hairpin 3 4, any");
    // Node without zone label.
    check(C, None, &ZONED, "cluster 3 4 5 6, local -, hairpin 3 4, any");
    // No endpoint for this zone.
    check(C, Some("d"), &ZONED, "cluster 3 4 5 6, local -, hairpin 3 4, any");
    // An unready endpoint of the zone is excluded.
    check(
        C,
        Some("a"),
        &["10.1.2.3 zone=a", "10.1.2.4 zone=b", "10.1.2.6 unready zone=a"],
        "cluster 3, local -, hairpin -, any",
    );
    // Only unready endpoints in the zone.
    check(
        C,
        Some("a"),
        &["10.1.2.3 unready zone=a", "10.1.2.4 zone=b", "10.1.2.5 zone=c"],
        "cluster 4 5, local -, hairpin -, any",
    );
    // One ready endpoint lacks hints.
    check(
        C,
        Some("a"),
        &["10.1.2.3 zone=a", "10.1.2.4 zone=b", "10.1.2.5"],
        "cluster 3 4 5, local -, hairpin -, any",
    );
    // Several zones per endpoint.
    check(
        C,
        Some("a"),
        &["10.1.2.3 zone=a", "10.1.2.4 zone=b", "10.1.2.5 zone=a,c", "10.1.2.6 zone=b,c"],
        "cluster 3 5, local -, hairpin -, any",
    );
}

/// TestCategorizeEndpoints: nodes.
#[test]
fn node_hints() {
    // Used, and preferred to zones.
    check(
        C,
        Some("a"),
        &["10.1.2.3 node=this zone=a", "10.1.2.4 node=other zone=a"],
        "cluster 3, local -, hairpin -, any",
    );
    // One endpoint lacks them: fall back to zones.
    check(
        C,
        Some("a"),
        &["10.1.2.3 node=this zone=b", "10.1.2.4 zone=a"],
        "cluster 4, local -, hairpin -, any",
    );
    // One endpoint lacks them, and there are no zones.
    check(
        C,
        Some("a"),
        &["10.1.2.3 node=this", "10.1.2.4"],
        "cluster 3 4, local -, hairpin -, any",
    );
    // None for this node: fall back to zones.
    check(
        C,
        Some("a"),
        &["10.1.2.3 node=other zone=a", "10.1.2.4 node=other zone=b"],
        "cluster 3, local -, hairpin -, any",
    );
    // Topology and locality contradict each other: reachable is the union.
    check(
        BOTH,
        Some("a"),
        &[
            "10.1.2.3 local node=other zone=b",
            "10.1.2.4 local zone=a node=other",
            "10.1.2.5 zone=b node=other",
            "10.1.2.6 zone=a node=other",
        ],
        "cluster 4 6, local 3 4, hairpin 3 4, any",
    );
}

/// TestCategorizeEndpoints: policies.
#[test]
fn policies() {
    // Internal Local, nothing else.
    check(L, None, &[], "cluster -, local -, hairpin -, none");
    check(L, None, &["10.0.0.1", "10.0.0.2"], "cluster -, local -, hairpin -, any");
    check(L, None, &["10.0.0.1 local", "10.0.0.2 local"], "cluster -, local 1 2, hairpin 1 2, any");
    check(L, None, &["10.0.0.1 local", "10.0.0.2"], "cluster -, local 1, hairpin 1, any");
    // Cluster, by readiness.
    check(
        C,
        None,
        &["10.0.0.1 unready", "10.0.0.2 unready"],
        "cluster -, local -, hairpin -, none",
    );
    check(C, None, &["10.0.0.1 unready", "10.0.0.2"], "cluster 2, local -, hairpin -, any");
    check(
        C,
        None,
        &["10.0.0.1 terminating local", "10.0.0.2 terminating"],
        "cluster 1 2, local -, hairpin 1, any",
    );
    // One of the policies is Local.
    check(BOTH, None, &["10.0.0.1 local", "10.0.0.2"], "cluster 1 2, local 1, hairpin 1, any");
    check(BOTH, None, &["10.0.0.1", "10.0.0.2"], "cluster 1 2, local -, hairpin -, any");
    check(
        BOTH,
        None,
        &["10.0.0.1 terminating", "10.0.0.2 terminating"],
        "cluster 1 2, local -, hairpin -, any",
    );
    // Local and cluster fall back to terminating endpoints independently.
    check(
        BOTH,
        None,
        &["10.0.0.1 terminating local", "10.0.0.2 dead local", "10.0.0.3", "10.0.0.4 terminating"],
        "cluster 3, local 1, hairpin 1, any",
    );
    // Nil, and a single useless endpoint.
    check(BOTH, None, &[], "cluster -, local -, hairpin -, none");
    check(BOTH, None, &["10.0.0.1 dead local"], "cluster -, local -, hairpin -, none");
    check(BOTH, None, &["10.0.0.1 unready local"], "cluster -, local -, hairpin -, none");
    check(L, None, &["10.0.0.1 dead"], "cluster -, local -, hairpin -, none");
    check(L, None, &["10.0.0.1 terminating"], "cluster -, local -, hairpin -, any");
}

/// TestTerminatingEndpointsTrafficPolicyLocal and ...Cluster.
#[test]
fn terminating_endpoints() {
    let a = [
        "10.0.1.1 local",
        "10.0.1.2 local",
        "10.0.1.3 terminating local",
        "10.0.1.4 dead local",
        "10.0.1.5",
    ];
    check(BOTH, None, &a, "cluster 1 2 5, local 1 2, hairpin 1 2, any");
    check(C, None, &a, "cluster 1 2 5, local -, hairpin 1 2, any");
    let b = [
        "10.0.1.2 terminating local",
        "10.0.1.3 terminating local",
        "10.0.1.4 dead local",
        "10.0.1.5",
    ];
    check(BOTH, None, &b, "cluster 5, local 2 3, hairpin 2 3, any");
    let b = [
        "10.0.1.2 terminating local",
        "10.0.1.3 terminating local",
        "10.0.1.4 dead local",
        "10.0.1.5 terminating",
    ];
    check(C, None, &b, "cluster 2 3 5, local -, hairpin 2 3, any");
    let c = ["10.0.1.4 dead local", "10.0.1.5 terminating"];
    check(BOTH, None, &c, "cluster 5, local -, hairpin -, any");
    check(C, None, &c, "cluster 5, local -, hairpin -, any");
    let d = ["10.0.1.4 dead local", "10.0.1.5 dead"];
    check(BOTH, None, &d, "cluster -, local -, hairpin -, none");
    check(C, None, &d, "cluster -, local -, hairpin -, none");
}

#[test]
fn hints_do_not_apply_to_the_terminating_fallback() {
    check(
        C,
        Some("a"),
        &["10.0.0.1 terminating zone=a", "10.0.0.2 terminating zone=b"],
        "cluster 1 2, local -, hairpin -, any",
    );
}

/// publishNotReadyAddresses makes terminating pods ready; they are used like others.
#[test]
fn ready_and_terminating_is_ready() {
    let mut both = endpoint("10.0.0.1 terminating local");
    both.ready = true;
    let other = endpoint("10.0.0.2 terminating local");
    let slices = [slice_of(vec![both, other])];
    assert_eq!(shown(&selected(&slices, BOTH, None)), "cluster 1, local 1, hairpin 1, any");
    assert_eq!(
        SlicePorts::of(slices.iter().map(EndpointSlice::content), Family::V4).count_local(),
        1
    );
}

/// TestEndpointInfoByServicePort: a non-terminating duplicate is preferred, whichever comes first.
#[test]
fn duplicates() {
    let pairs = [
        ("10.0.0.1", "10.0.0.1 terminating", "cluster 1, local -, hairpin -, any"),
        ("10.0.0.1 unready", "10.0.0.1 terminating", "cluster -, local -, hairpin -, none"),
        ("10.0.0.1 unready", "10.0.0.1", "cluster 1, local -, hairpin -, any"),
        ("10.0.0.1 dead", "10.0.0.1 terminating", "cluster 1, local -, hairpin -, any"),
        ("10.0.0.1 local", "10.0.0.1", "cluster 1, local 1, hairpin 1, any"),
        ("10.0.0.1", "10.0.0.1", "cluster 1, local -, hairpin -, any"),
    ];
    for (a, b, expected) in pairs {
        check(BOTH, None, &[a, b], expected);
        check(BOTH, None, &[b, a], expected);
        let slices = [slice("ns/1", "ns/a", &[b]), slice("ns/2", "ns/a", &[a])];
        assert_eq!(shown(&selected(&slices, BOTH, None)), expected);
    }
}

/// Different slices may map one name to different numbers: named targetPorts on unlike pods.
#[test]
fn ports_are_found_by_name_and_protocol() {
    let mut other = slice("ns/2", "ns/a", &["10.0.0.1", "10.0.0.2"]);
    other.ports[0].port = port(9090);
    other.ports.push(SlicePort { name: "p80".into(), protocol: Protocol::Udp, port: port(53) });
    other.ports.push(SlicePort { name: "".into(), protocol: Protocol::Tcp, port: port(1) });
    let slices = [slice("ns/1", "ns/a", &["10.0.0.1"]), other, slice("ns/3", "ns/a", &["fd00::1"])];
    let found = |family, name, protocol| -> Vec<String> {
        let candidates = SlicePorts::of(slices.iter().map(EndpointSlice::content), family)
            .candidates(name, protocol);
        candidates.iter().map(|it| format!("{} {}", it.backend.address, it.backend.port)).collect()
    };
    assert_eq!(
        found(Family::V4, "p80", Protocol::Tcp),
        ["10.0.0.1 8080", "10.0.0.1 9090", "10.0.0.2 9090"]
    );
    assert_eq!(found(Family::V4, "p80", Protocol::Udp), ["10.0.0.1 53", "10.0.0.2 53"]);
    assert_eq!(found(Family::V4, "", Protocol::Tcp), ["10.0.0.1 1", "10.0.0.2 1"]);
    assert_eq!(found(Family::V6, "p80", Protocol::Tcp), ["fd00::1 8080"]);
    assert_eq!(found(Family::V6, "p81", Protocol::Tcp), [] as [&str; 0]);
}

/// TestGetLocalEndpointIPs, TestHealthCheckNodePortWhenTerminating.
#[test]
fn local_ready_addresses_are_counted_once() {
    let count = |slices: &[EndpointSlice]| {
        SlicePorts::of(slices.iter().map(EndpointSlice::content), Family::V4).count_local()
    };
    let ready = slice(
        "ns/1",
        "ns/a",
        &[
            "10.0.0.1 local",
            "10.0.0.2 local",
            "10.0.0.3 local",
            "10.0.0.4 unready local",
            "10.0.0.5",
        ],
    );
    assert_eq!(count(std::slice::from_ref(&ready)), 3);
    let mut second_port = ready.clone();
    second_port.ports.push(SlicePort { name: "x".into(), protocol: Protocol::Tcp, port: port(1) });
    assert_eq!(count(&[second_port, ready.clone()]), 3);
    assert_eq!(
        count(&[slice(
            "ns/1",
            "ns/a",
            &["10.0.0.1 terminating local", "10.0.0.2 dead local", "10.0.0.3 unready local"]
        )]),
        0
    );
    assert_eq!(count(&[slice("ns/1", "ns/a", &["fd00::1 local"])]), 0);
    assert_eq!(count(&[EndpointSlice { ports: vec![], ..ready }]), 0);
}

#[track_caller]
fn check(uses: Uses, zone: Option<&str>, endpoints: &[&str], expected: &str) {
    let forward = slice_of(endpoints.iter().map(|it| endpoint(it)).collect());
    let backward = slice_of(endpoints.iter().rev().map(|it| endpoint(it)).collect());
    for slice in [forward, backward] {
        assert_eq!(shown(&selected(&[slice], uses, zone)), expected, "{endpoints:?}");
    }
}

fn selected(slices: &[EndpointSlice], uses: Uses, zone: Option<&str>) -> Selection {
    select(
        &SlicePorts::of(slices.iter().map(EndpointSlice::content), Family::V4)
            .candidates("p80", Protocol::Tcp),
        uses,
        zone,
    )
}

fn slice_of(endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice { endpoints, ..slice("ns/1", "ns/a", &[]) }
}

/// Endpoints by their last octet.
fn shown(selection: &Selection) -> String {
    let list = |addresses: &mut dyn Iterator<Item = IpAddr>| {
        let octets: Vec<String> =
            addresses.map(|it| it.to_string().rsplit('.').next().unwrap().to_owned()).collect();
        if octets.is_empty() { "-".to_owned() } else { octets.join(" ") }
    };
    format!(
        "cluster {}, local {}, hairpin {}, {}",
        list(&mut selection.cluster.iter().map(|it| it.address)),
        list(&mut selection.local.iter().map(|it| it.address)),
        list(&mut selection.hairpin.iter().copied()),
        if selection.has_any { "any" } else { "none" },
    )
}
