use crate::forward::*;
use crate::model::sample::{
    cluster, endpoint, family, ip, name, port, service, service_port, slice,
};
use crate::model::*;

const LOCAL_AND_REMOTE: [&str; 2] = ["10.180.0.1", "10.180.0.2 local"];

/// TestExternalTrafficPolicyLocal and ...Cluster, TestInternalTrafficPolicy.
#[test]
fn policies_of_frontends() {
    use TrafficPolicy::{Cluster, Local};
    check(
        everything(Cluster, Cluster),
        &LOCAL_AND_REMOTE,
        "
        p80/tcp v4 cluster 1 2, local -, hairpin 2
        ClusterIp 172.30.0.1:80 Cluster Served
        ExternalIp 192.168.99.11:80 Cluster Served
        LoadBalancerIp 1.2.3.4:80 Cluster Served
        NodePort 3001 Cluster Served",
    );
    check(
        everything(Cluster, Local),
        &LOCAL_AND_REMOTE,
        "
        p80/tcp v4 cluster 1 2, local 2, hairpin 2
        ClusterIp 172.30.0.1:80 Cluster Served
        ExternalIp 192.168.99.11:80 Local Served
        LoadBalancerIp 1.2.3.4:80 Local Served
        NodePort 3001 Local Served",
    );
    check(
        everything(Local, Cluster),
        &LOCAL_AND_REMOTE,
        "
        p80/tcp v4 cluster 1 2, local 2, hairpin 2
        ClusterIp 172.30.0.1:80 Local Served
        ExternalIp 192.168.99.11:80 Cluster Served
        LoadBalancerIp 1.2.3.4:80 Cluster Served
        NodePort 3001 Cluster Served",
    );
    // Nothing follows the Cluster policy, but pods and the node itself are let through to everything.
    check(
        everything(Local, Local),
        &LOCAL_AND_REMOTE,
        "
        p80/tcp v4 cluster 1 2, local 2, hairpin 2
        ClusterIp 172.30.0.1:80 Local Served
        ExternalIp 192.168.99.11:80 Local Served
        LoadBalancerIp 1.2.3.4:80 Local Served
        NodePort 3001 Local Served",
    );
}

/// TestNoEndpointsReject.
#[test]
fn without_endpoints_everything_is_rejected() {
    use TrafficPolicy::{Cluster, Local};
    for (internal, external) in
        [(Cluster, Cluster), (Cluster, Local), (Local, Cluster), (Local, Local)]
    {
        for endpoints in [&[][..], &["10.180.0.1 unready", "10.180.0.2 dead local"]] {
            let forwarding = forward(&everything(internal, external), endpoints);
            let frontends = &forwarding.ports[0].frontends;
            assert_eq!(frontends.len(), 4);
            assert!(
                frontends.iter().all(|it| it.without_backend == WithoutBackend::Reject),
                "{frontends:?}"
            );
        }
    }
}

/// Endpoints exist, but none is here: dropped where the policy is Local.
#[test]
fn without_local_endpoints_local_traffic_is_dropped() {
    use TrafficPolicy::{Cluster, Local};
    check(
        everything(Cluster, Local),
        &["10.180.0.1"],
        "
        p80/tcp v4 cluster 1, local -, hairpin -
        ClusterIp 172.30.0.1:80 Cluster Served
        ExternalIp 192.168.99.11:80 Local Drop
        LoadBalancerIp 1.2.3.4:80 Local Drop
        NodePort 3001 Local Drop",
    );
    check(
        everything(Local, Cluster),
        &["10.180.0.1"],
        "
        p80/tcp v4 cluster 1, local -, hairpin -
        ClusterIp 172.30.0.1:80 Local Drop
        ExternalIp 192.168.99.11:80 Cluster Served
        LoadBalancerIp 1.2.3.4:80 Cluster Served
        NodePort 3001 Cluster Served",
    );
    let internal_only = Service { internal_policy: Local, ..service("ns/a", "172.30.0.1") };
    check(
        internal_only,
        &["10.180.0.1"],
        "
        p80/tcp v4 cluster -, local -, hairpin -
        ClusterIp 172.30.0.1:80 Local Drop",
    );
}

/// TestCategorizeEndpoints: the external policy is ignored without an external destination.
#[test]
fn only_the_needed_sets_are_filled() {
    use TrafficPolicy::Local;
    let plain = Service { external_policy: Local, ..service("ns/a", "172.30.0.1") };
    check(
        plain,
        &LOCAL_AND_REMOTE,
        "
        p80/tcp v4 cluster 1 2, local -, hairpin 2
        ClusterIp 172.30.0.1:80 Cluster Served",
    );
    let internal = Service { internal_policy: Local, ..service("ns/a", "172.30.0.1") };
    check(
        internal,
        &LOCAL_AND_REMOTE,
        "
        p80/tcp v4 cluster -, local 2, hairpin 2
        ClusterIp 172.30.0.1:80 Local Served",
    );
}

/// Some ports of a Service may have a NodePort while others have none.
#[test]
fn sets_are_chosen_port_by_port() {
    let mut service =
        Service { external_policy: TrafficPolicy::Local, ..service("ns/a", "172.30.0.1") };
    service
        .ports
        .push(ServicePort { node_port: Some(port(3001)), ..service_port("q", Protocol::Udp, 53) });
    check(
        service,
        &LOCAL_AND_REMOTE,
        "
        p80/tcp v4 cluster 1 2, local -, hairpin 2
        ClusterIp 172.30.0.1:80 Cluster Served
        q/udp v4 cluster -, local -, hairpin -
        ClusterIp 172.30.0.1:53 Cluster Reject
        NodePort 3001 Local Reject",
    );
}

/// TestNoEndpointsMetric.
#[test]
fn the_gauge_counts_local_policies_with_endpoints_elsewhere() {
    use TrafficPolicy::{Cluster, Local};
    let lacks = |internal, external, endpoints: &[&str]| {
        let lacks = forward(&everything(internal, external), endpoints).ports[0].lacks_local();
        (lacks.internal, lacks.external)
    };
    assert_eq!(lacks(Local, Local, &LOCAL_AND_REMOTE), (false, false));
    assert_eq!(lacks(Cluster, Cluster, &["10.180.0.1"]), (false, false));
    assert_eq!(lacks(Local, Cluster, &["10.180.0.1"]), (true, false));
    assert_eq!(lacks(Cluster, Local, &["10.180.0.1"]), (false, true));
    assert_eq!(lacks(Local, Local, &["10.180.0.1"]), (true, true));
    assert_eq!(lacks(Local, Local, &[]), (false, false));
}

#[test]
fn families_are_served_from_their_own_slices() {
    let mut dual = service("ns/a", "172.30.0.1");
    dual.v6 = Some(family("fd00:172::1"));
    dual.health_check_node_port = Some(port(345));
    let slices = [
        slice("ns/4", "ns/a", &["10.180.0.1 local", "10.180.0.2 local"]),
        slice("ns/6", "ns/a", &["fd00:180::1"]),
    ];
    let cluster = cluster(&[dual], &slices);
    let forwarding = forward_in(&Settings::default(), &cluster);
    let shown: Vec<String> =
        forwarding.ports.iter().map(|it| format!("{:?} {}", it.family, it.cluster.len())).collect();
    assert_eq!(shown, ["V4 2", "V6 1"]);
    let check = forwarding.health_check.unwrap();
    assert_eq!((check.node_port, check.local_v4, check.local_v6), (port(345), Some(2), Some(0)));
}

/// TestLoadBalancer, and reference 2.5.
#[test]
fn source_ranges_guard_load_balancer_addresses_only() {
    let ranges = |node: &[&str], settings: Settings| {
        let mut service = everything(TrafficPolicy::Cluster, TrafficPolicy::Cluster);
        if let Some(v4) = &mut service.v4 {
            v4.load_balancer_ips = vec![ip("1.2.3.4"), ip("5.6.7.8")];
            let ranges = ["203.0.113.0/25", "192.168.0.0/24", "192.168.0.128/25"];
            v4.source_ranges = SourceRanges::Only(ranges.map(|it| it.parse().unwrap()).to_vec());
        }
        let mut cluster = cluster(&[service], &[slice("ns/1", "ns/a", &LOCAL_AND_REMOTE)]);
        let addresses = node.iter().map(|it| ip(it)).collect();
        cluster.apply(Change::NodeApplied(Node { addresses, ..Node::default() }));
        let forwarding = forward_in(&settings, &cluster);
        let frontends = forwarding.ports[0].frontends.iter();
        let (guarded, open): (Vec<_>, Vec<_>) =
            frontends.partition(|it| it.kind == FrontendKind::LoadBalancerIp);
        assert!(open.len() == 3 && open.iter().all(|it| it.source_ranges.is_none()));
        assert_eq!(guarded.len(), 2);
        let shown = guarded.iter().map(|it| {
            let ranges: Vec<String> =
                it.source_ranges.iter().flat_map(|it| it.iter()).map(ToString::to_string).collect();
            ranges.join(" ")
        });
        let shown: Vec<String> = shown.collect();
        assert_eq!(shown[0], shown[1]);
        shown[0].clone()
    };
    let plain = "192.168.0.0/24 203.0.113.0/25";
    let with_own = "1.2.3.4/32 5.6.7.8/32 192.168.0.0/24 203.0.113.0/25";
    assert_eq!(ranges(&[], Settings::default()), plain);
    assert_eq!(ranges(&["192.168.0.2"], Settings::default()), with_own);
    assert_eq!(
        ranges(&["2001:db8::1", "192.168.0.2"], Settings::default()),
        with_own,
        "the first of the family"
    );
    assert_eq!(
        ranges(&["10.0.0.1", "192.168.0.2"], Settings::default()),
        plain,
        "only the first of the family"
    );
    let bound = |address| Settings { node_ip: Some(ip(address)) };
    assert_eq!(ranges(&["10.0.0.1"], bound("192.168.0.2")), with_own, "the bind address overrides");
    assert_eq!(ranges(&["192.168.0.2"], bound("2001:db8::1")), with_own, "not the other family");
}

/// kube-proxy looks the address up among those of load balancers whatever else it is.
#[test]
fn source_ranges_hold_where_the_load_balancer_has_the_cluster_ip() {
    let mut service = service("ns/a", "172.30.0.1");
    if let Some(v4) = &mut service.v4 {
        v4.load_balancer_ips = vec![ip("172.30.0.1")];
        v4.source_ranges = SourceRanges::Only(vec!["203.0.113.0/25".parse().unwrap()]);
    }
    let frontends = &forward(&service, &LOCAL_AND_REMOTE).ports[0].frontends;
    let [only] = frontends.as_slice() else { panic!("{frontends:?}") };
    assert_eq!((only.kind, only.policy), (FrontendKind::ClusterIp, TrafficPolicy::Cluster));
    assert!(only.source_ranges.is_some());
}

/// One address asked for twice by one Service port: no conflict, and the source ranges hold.
#[test]
fn an_address_may_be_external_ip_and_load_balancer_ip_at_once() {
    let mut service = service("ns/a", "172.30.0.1");
    if let Some(v4) = &mut service.v4 {
        v4.external_ips = vec![ip("1.2.3.4"), ip("172.30.0.1")];
        v4.load_balancer_ips = vec![ip("1.2.3.4")];
    }
    check(
        service,
        &LOCAL_AND_REMOTE,
        "
        p80/tcp v4 cluster 1 2, local -, hairpin 2
        ClusterIp 172.30.0.1:80 Cluster Served
        LoadBalancerIp 1.2.3.4:80 Cluster Served",
    );
}

#[test]
fn two_ports_with_one_number_are_a_conflict_within_the_service() {
    let mut service = service("ns/a", "172.30.0.1");
    service.ports.push(service_port("b", Protocol::Tcp, 80));
    let cluster = cluster(&[service], &[]);
    let mut forwarder = Forwarder::new(Settings::default());
    let update = forwarder.update(&cluster, &cluster.ids().collect());
    let forwarding = forwarder.forwarding(&cluster, update.changed[0]);
    let names: Vec<&str> = forwarding.ports.iter().map(|it| &*it.port_name).collect();
    assert_eq!(names, ["b"], "the first by name");
    let [conflict] = &update.conflicts_began[..] else { panic!() };
    assert_eq!((&conflict.loser, &conflict.winner), (&name("ns/a"), &name("ns/a")));
    assert_eq!(&*conflict.port_name, "p80");
}

/// Conntrack: flows to endpoints that serve are kept, whether new connections are sent there or not.
#[test]
fn serving_endpoints_are_known_for_udp_only() {
    let endpoints =
        ["10.0.0.1", "10.0.0.2 terminating", "10.0.0.3 dead", "10.0.0.4 unready zone=b"];
    let mut udp = service("ns/a", "172.30.0.1");
    udp.ports.push(service_port("dns", Protocol::Udp, 53));
    let mut slice = slice("ns/1", "ns/a", &endpoints);
    slice.endpoints[3].serving = true;
    slice.ports.push(SlicePort { name: "dns".into(), protocol: Protocol::Udp, port: port(5353) });
    let forwarding = forward_in(&Settings::default(), &cluster(&[udp], &[slice]));
    let [tcp, udp] = &forwarding.ports[..] else { panic!("{forwarding:?}") };
    assert_eq!((tcp.cluster.len(), tcp.serving.len()), (1, 0));
    let expected = ["10.0.0.1", "10.0.0.2", "10.0.0.4"]
        .map(|it| Backend { address: ip(it), port: port(5353) });
    assert_eq!((udp.cluster.len(), &udp.serving[..]), (1, &expected[..]));
}

#[test]
fn affinity_reaches_every_port() {
    let forwarding = forward(&Service { affinity: Some(10), ..service("ns/a", "172.30.0.1") }, &[]);
    assert_eq!(forwarding.ports[0].affinity, Some(10));
}

#[test]
fn zone_of_the_node_is_followed() {
    let slices = [slice("ns/1", "ns/a", &["10.180.0.1 zone=a", "10.180.0.2 zone=b"])];
    let mut cluster = cluster(&[service("ns/a", "172.30.0.1")], &slices);
    for (zone, count) in [(None, 2), (Some("b"), 1), (Some("c"), 2)] {
        cluster.apply(Change::NodeApplied(Node { zone: zone.map(Into::into), ..Node::default() }));
        assert_eq!(
            forward_in(&Settings::default(), &cluster).ports[0].cluster.len(),
            count,
            "{zone:?}"
        );
    }
}

/// A Service with every kind of destination.
fn everything(internal_policy: TrafficPolicy, external_policy: TrafficPolicy) -> Service {
    let mut service = Service { internal_policy, external_policy, ..service("ns/a", "172.30.0.1") };
    service.ports[0].node_port = Some(port(3001));
    if let Some(v4) = &mut service.v4 {
        v4.external_ips = vec![ip("192.168.99.11")];
        v4.load_balancer_ips = vec![ip("1.2.3.4")];
    }
    service
}

#[track_caller]
fn check(service: Service, endpoints: &[&str], expected: &str) {
    let shown: Vec<String> = forward(&service, endpoints).ports.iter().flat_map(show).collect();
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|it| !it.is_empty()).collect();
    assert_eq!(shown, expected);
}

fn show(port: &PortForwarding) -> Vec<String> {
    let octets = |list: Vec<IpAddr>| {
        let octets: Vec<String> =
            list.iter().map(|it| it.to_string().rsplit('.').next().unwrap().to_owned()).collect();
        if octets.is_empty() { "-".to_owned() } else { octets.join(" ") }
    };
    let addresses = |list: &[Backend]| octets(list.iter().map(|it| it.address).collect());
    let (cluster, local) = (addresses(&port.cluster), addresses(&port.local));
    let family = if port.family == Family::V4 { "v4" } else { "v6" };
    let hairpin = octets(port.hairpin.clone());
    let head = format!(
        "{}/{} {family} cluster {cluster}, local {local}, hairpin {hairpin}",
        port.port_name, port.protocol
    );
    let frontends = port.frontends.iter().map(|it| {
        let at = match it.at {
            FrontendAddress::Address(address, port) => format!("{address}:{port}"),
            FrontendAddress::NodePort(port) => port.to_string(),
        };
        format!("{:?} {at} {:?} {:?}", it.kind, it.policy, it.without_backend)
    });
    [head].into_iter().chain(frontends).collect()
}

fn forward(service: &Service, endpoints: &[&str]) -> ServiceForwarding {
    let slice = EndpointSlice {
        endpoints: endpoints.iter().map(|it| endpoint(it)).collect(),
        ..slice("ns/1", "ns/a", &[])
    };
    forward_in(&Settings::default(), &cluster(std::slice::from_ref(service), &[slice]))
}

/// The forwarding of the only Service.
fn forward_in(settings: &Settings, cluster: &Cluster) -> ServiceForwarding {
    let mut forwarder = Forwarder::new(settings.clone());
    let update = forwarder.update(cluster, &cluster.ids().collect());
    assert_eq!((update.changed.len(), update.conflicts_began.len()), (1, 0));
    forwarder.forwarding(cluster, update.changed[0])
}
