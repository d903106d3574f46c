//! `v1` Service, reference section 2.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

use super::report::{Report, excerpt, is_name};
use super::{Context, Converted, Interner, PRODUCT_LIMIT, address, raw};
use crate::model::{
    Change, Family, Protocol, Resource, Service, ServiceFamily, ServicePort, Skipped, SourceRanges, TrafficPolicy,
};

/// The API's default for ClientIP affinity, in seconds.
const DEFAULT_AFFINITY: u32 = 10_800;

/// The API's longest ClientIP affinity, in seconds.
const MAX_AFFINITY: i64 = 86_400;

/// Judges a Service: what of it is to be proxied.
pub fn service(context: &Context, raw: &raw::Service, interner: &mut Interner) -> Converted {
    let mut report = match Report::new(Resource::Service, &raw.metadata, interner) {
        Ok(report) => report,
        Err(skipped) => return Converted::unusable(skipped),
    };
    let Some(spec) = raw.spec.given() else {
        return Converted::unusable(report.whole("wrong-type", "spec is missing or no object".to_owned()));
    };
    if let Some(why) = not_proxied(raw, spec) {
        return Converted::ignored(Change::ServiceDeleted(report.name), why);
    }
    match convert(context, raw, spec, interner, &mut report) {
        Ok(service) => {
            Converted { change: Change::ServiceApplied(service), skipped: report.finish(), ignored: None }
        }
        Err(skipped) => Converted::unusable(skipped),
    }
}

/// Reference 1.2. The API server filters some of these already; manifests do not.
fn not_proxied(raw: &raw::Service, spec: &raw::ServiceSpec) -> Option<&'static str> {
    let labels = raw.metadata.labels.given();
    if labels.is_some_and(|it| it.service_proxy_name != super::lenient::Field::Absent) {
        return Some("service-proxy-name");
    }
    if spec.service_type.text() == "ExternalName" {
        return Some("external-name");
    }
    match spec.cluster_ip.text() {
        "None" => Some("headless"),
        "" if !spec.cluster_ip.is_wrong() => Some("no-cluster-ip"),
        _ => None,
    }
}

fn convert(
    context: &Context,
    raw: &raw::Service,
    spec: &raw::ServiceSpec,
    interner: &mut Interner,
    report: &mut Report,
) -> Result<Service, Skipped> {
    let cluster_ips = cluster_ips(spec, report);
    if cluster_ips.is_empty() {
        return Err(report.whole("invalid-address", "no usable cluster IP; the Service is left out".to_owned()));
    }
    let ports = ports(spec, interner, report);
    let external_policy = external_policy(spec, report);
    let addresses = Addresses::of(context, raw, spec, report);
    if ports.len().saturating_mul(addresses.len() + 2) > PRODUCT_LIMIT {
        let message = format!("{} ports on {} addresses are too many", ports.len(), addresses.len());
        return Err(report.whole("too-large", message));
    }
    let family = |wanted| {
        let cluster_ip = *cluster_ips.iter().find(|it| Family::of(**it) == wanted)?;
        Some(addresses.family(wanted, cluster_ip))
    };
    let (v4, v6) = (family(Family::V4), family(Family::V6));
    Ok(Service {
        name: report.name.clone(),
        uid: raw.metadata.uid.text().into(),
        created: created(&raw.metadata),
        v4,
        v6,
        ports,
        affinity: affinity(spec, report),
        internal_policy: policy("spec.internalTrafficPolicy", &spec.internal_traffic_policy, report),
        external_policy,
        health_check_node_port: health_check_node_port(spec, external_policy, report),
    })
}

/// One whose age is unknown (a hand-written manifest) is younger than all others: it takes no address from them.
fn created(meta: &raw::Meta) -> i64 {
    Timestamp::from_str(meta.creation_timestamp.text()).map_or(i64::MAX, Timestamp::as_second)
}

/// The cluster IPs, at most one of each family (reference 2.1).
///
/// `clusterIPs` defaults to `clusterIP` and `ipFamilies` to the families of what is there: the API server writes it
/// so, and hand-written manifests leave it out.
fn cluster_ips(spec: &raw::ServiceSpec, report: &mut Report) -> Vec<IpAddr> {
    let primary = report.field("spec.clusterIP", &spec.cluster_ip).cloned();
    let mut texts: Vec<(usize, String)> =
        report.list("spec.clusterIPs", &spec.cluster_ips).into_iter().map(|(at, it)| (at, it.clone())).collect();
    if texts.is_empty() {
        texts.extend(primary.map(|it| (0, it)));
    }
    let families: Vec<String> =
        report.list("spec.ipFamilies", &spec.ip_families).into_iter().map(|(_, it)| it.clone()).collect();
    let mut found: Vec<IpAddr> = Vec::new();
    for (at, text) in texts {
        let Some(ip) = usable_ip("spec.clusterIPs", &text, address::unroutable, report) else { continue };
        let declared = families.get(at).map(String::as_str);
        if !families.is_empty() && declared != Some(family_name(Family::of(ip))) {
            let declared = declared.unwrap_or("nothing");
            report.skip("family-mismatch", || format!("cluster IP {ip} is declared as {}", excerpt(declared)));
        } else if found.iter().any(|it| Family::of(*it) == Family::of(ip)) {
            report.skip("family-mismatch", || format!("cluster IP {ip} is the second of its family"));
        } else {
            found.push(ip);
        }
    }
    found
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn ports(spec: &raw::ServiceSpec, interner: &mut Interner, report: &mut Report) -> Vec<ServicePort> {
    let raw_ports = report.list("spec.ports", &spec.ports);
    let mut seen = rustc_hash::FxHashSet::default();
    let mut ports = Vec::with_capacity(raw_ports.len());
    for (index, raw) in raw_ports {
        let path = format!("spec.ports[{index}]");
        let Some(port) = port(&path, raw, interner, report) else { continue };
        match seen.insert((Arc::clone(&port.name), port.protocol)) {
            true => ports.push(port),
            false => report.skip("duplicate-port", || format!("{path} has the name and protocol of another port")),
        }
    }
    ports
}

fn port(path: &str, raw: &raw::ServicePort, interner: &mut Interner, report: &mut Report) -> Option<ServicePort> {
    let name = port_name(path, &raw.name, interner, report)?;
    let protocol = protocol(path, &raw.protocol, report)?;
    let Some(port) = raw.port.given().copied().and_then(port_number) else {
        report.skip("invalid-port", || format!("{path}.port is no port number; the port is left out"));
        return None;
    };
    let node_port = match report.field(&format!("{path}.nodePort"), &raw.node_port).copied().unwrap_or(0) {
        0 => None,
        number => match port_number(number) {
            Some(number) => Some(number),
            None => {
                report.skip("invalid-port", || format!("{path}.nodePort {number} is no port number; it is ignored"));
                None
            }
        },
    };
    Some(ServicePort { name, protocol, port, node_port })
}

/// The name of a Service's or slice's port; empty is a name too. `None`: unusable, and said so.
pub(super) fn port_name(
    path: &str,
    name: &super::lenient::Field<String>,
    interner: &mut Interner,
    report: &mut Report,
) -> Option<Arc<str>> {
    let text = name.text();
    if name.is_wrong() || !(text.is_empty() || is_name(text, 63)) {
        report.skip("invalid-name", || format!("{path}.name {:?} is no port name; the port is left out", excerpt(text)));
        return None;
    }
    Some(interner.text(text))
}

/// The protocol of a Service's or slice's port; the API's default is TCP. `None`: unusable, and said so.
pub(super) fn protocol(path: &str, field: &super::lenient::Field<String>, report: &mut Report) -> Option<Protocol> {
    match field.text() {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        "" if !field.is_wrong() => Some(Protocol::Tcp),
        other => {
            report.skip("invalid-protocol", || {
                format!("{path}.protocol {:?} is none of TCP, UDP, SCTP; the port is left out", excerpt(other))
            });
            None
        }
    }
}

pub(super) fn port_number(number: i64) -> Option<NonZeroU16> {
    u16::try_from(number).ok().and_then(NonZeroU16::new)
}

/// Everything that clients outside may connect to, of both families.
struct Addresses {
    external_ips: Vec<IpAddr>,
    load_balancer_ips: Vec<IpAddr>,
    ranges: Vec<IpNet>,
}

impl Addresses {
    fn of(context: &Context, raw: &raw::Service, spec: &raw::ServiceSpec, report: &mut Report) -> Self {
        let external_ips = match context.external_ips_allowed {
            true => external_ips(spec, report),
            false => Vec::new(),
        };
        Addresses { external_ips, load_balancer_ips: load_balancer_ips(raw, report), ranges: ranges(spec, report) }
    }

    fn len(&self) -> usize {
        self.external_ips.len() + self.load_balancer_ips.len() * (1 + self.ranges.len())
    }

    fn family(&self, family: Family, cluster_ip: IpAddr) -> ServiceFamily {
        ServiceFamily {
            cluster_ip,
            external_ips: of_family(&self.external_ips, family),
            load_balancer_ips: of_family(&self.load_balancer_ips, family),
            source_ranges: self.source_ranges(family),
        }
    }

    /// Reference 2.5: a range of length zero lifts all restrictions of its family, and so does having no range.
    fn source_ranges(&self, family: Family) -> SourceRanges {
        let mut ranges: Vec<IpNet> =
            self.ranges.iter().copied().filter(|it| Family::of(it.addr()) == family).collect();
        ranges.sort_unstable();
        ranges.dedup();
        if ranges.is_empty() || ranges.iter().any(|it| it.prefix_len() == 0) {
            return SourceRanges::Unrestricted;
        }
        SourceRanges::Only(ranges)
    }
}

fn of_family(addresses: &[IpAddr], family: Family) -> Vec<IpAddr> {
    let mut chosen: Vec<IpAddr> = addresses.iter().copied().filter(|it| Family::of(*it) == family).collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen.shrink_to_fit();
    chosen
}

fn external_ips(spec: &raw::ServiceSpec, report: &mut Report) -> Vec<IpAddr> {
    let texts = report.list("spec.externalIPs", &spec.external_ips);
    let texts = texts.into_iter().map(|(_, it)| it.trim()).filter(|it| !it.is_empty());
    texts.filter_map(|it| usable_ip("spec.externalIPs", it, address::special, report)).collect()
}

/// Ingress addresses in VIP mode; hostnames and mode Proxy are others' business (reference 2.4).
fn load_balancer_ips(raw: &raw::Service, report: &mut Report) -> Vec<IpAddr> {
    let status = report.field("status", &raw.status);
    let status = status.and_then(|it| report.field("status.loadBalancer", &it.load_balancer));
    let Some(status) = status else { return Vec::new() };
    let path = "status.loadBalancer.ingress";
    let mut found = Vec::new();
    for (index, ingress) in report.list(path, &status.ingress) {
        let mode = report.field(&format!("{path}[{index}].ipMode"), &ingress.ip_mode);
        let is_vip = !ingress.ip_mode.is_wrong() && mode.is_none_or(|it| it == "VIP");
        let text = report.field(&format!("{path}[{index}].ip"), &ingress.ip).map_or("", |it| it.trim());
        if is_vip && !text.is_empty() {
            found.extend(usable_ip(path, text, address::unroutable, report));
        }
    }
    found
}

fn ranges(spec: &raw::ServiceSpec, report: &mut Report) -> Vec<IpNet> {
    let path = "spec.loadBalancerSourceRanges";
    let mut found = Vec::new();
    for (_, text) in report.list(path, &spec.load_balancer_source_ranges) {
        let text = text.trim();
        match address::parse_cidr(text) {
            Some(net) => found.push(net),
            None if text.is_empty() => (),
            None => report.skip("invalid-cidr", || format!("{path}: {:?} is no CIDR; it is ignored", excerpt(text))),
        }
    }
    found
}

/// Reads an address that may be claimed or forwarded to; says so if it is none.
pub(super) fn usable_ip(
    path: &str,
    text: &str,
    refuse: fn(IpAddr) -> Option<&'static str>,
    report: &mut Report,
) -> Option<IpAddr> {
    let Some(ip) = address::parse_ip(text) else {
        report.skip("invalid-address", || format!("{path}: {:?} is no IP address; it is ignored", excerpt(text)));
        return None;
    };
    match refuse(ip) {
        None => Some(ip),
        Some(kind) => {
            report.skip("special-address", || format!("{path}: {ip} is a {kind} address; it is ignored"));
            None
        }
    }
}

fn policy(path: &str, field: &super::lenient::Field<String>, report: &mut Report) -> TrafficPolicy {
    match report.field(path, field).map_or("", String::as_str) {
        "Local" => TrafficPolicy::Local,
        "Cluster" | "" => TrafficPolicy::Cluster,
        other => {
            report.skip("invalid-policy", || format!("{path} {:?} is taken as Cluster", excerpt(other)));
            TrafficPolicy::Cluster
        }
    }
}

/// Reference 2.3. Whether there are external IPs is asked of the raw list, even if all of them are bad or forbidden.
fn external_policy(spec: &raw::ServiceSpec, report: &mut Report) -> TrafficPolicy {
    let accessible = match spec.service_type.text() {
        "LoadBalancer" | "NodePort" => true,
        _ => !spec.external_ips.items().is_empty(),
    };
    let policy = policy("spec.externalTrafficPolicy", &spec.external_traffic_policy, report);
    if accessible { policy } else { TrafficPolicy::Cluster }
}

fn health_check_node_port(
    spec: &raw::ServiceSpec,
    external_policy: TrafficPolicy,
    report: &mut Report,
) -> Option<NonZeroU16> {
    if spec.service_type.text() != "LoadBalancer" || external_policy != TrafficPolicy::Local {
        return None;
    }
    let number = report.field("spec.healthCheckNodePort", &spec.health_check_node_port).copied().unwrap_or(0);
    let port = port_number(number);
    if port.is_none() {
        report.skip("no-health-check-node-port", || {
            format!("spec.healthCheckNodePort {number} is no port number; load balancers cannot ask this node's health")
        });
    }
    port
}

fn affinity(spec: &raw::ServiceSpec, report: &mut Report) -> Option<u32> {
    match report.field("spec.sessionAffinity", &spec.session_affinity).map_or("", String::as_str) {
        "ClientIP" => Some(affinity_timeout(spec, report)),
        "None" | "" => None,
        other => {
            report.skip("invalid-affinity", || format!("spec.sessionAffinity {:?} is taken as None", excerpt(other)));
            None
        }
    }
}

fn affinity_timeout(spec: &raw::ServiceSpec, report: &mut Report) -> u32 {
    let path = "spec.sessionAffinityConfig";
    let config = report.field(path, &spec.session_affinity_config);
    let client_ip = config.and_then(|it| report.field("spec.sessionAffinityConfig.clientIP", &it.client_ip));
    let seconds = client_ip.and_then(|it| report.field("timeoutSeconds", &it.timeout_seconds)).copied();
    let Some(seconds) = seconds else { return DEFAULT_AFFINITY };
    match u32::try_from(seconds) {
        Ok(timeout) if (1..=MAX_AFFINITY).contains(&seconds) => timeout,
        Ok(_) | Err(_) => {
            report.skip("invalid-affinity", || {
                format!("{path}: {seconds} is outside 1..={MAX_AFFINITY} seconds; {DEFAULT_AFFINITY} are used")
            });
            DEFAULT_AFFINITY
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// TestServiceToServiceMap, TestBuildServiceMapServiceHeadless, ...TypeExternalName.
    #[test]
    fn some_services_are_not_proxied() {
        check_ignored(json!({"clusterIP": "None", "ports": [{"port": 80}]}), "headless");
        check_ignored(json!({"clusterIP": "None"}), "headless");
        check_ignored(json!({"clusterIP": "", "ports": [{"port": 80}]}), "no-cluster-ip");
        check_ignored(json!({"ports": [{"port": 80}]}), "no-cluster-ip");
        check_ignored(json!({"clusterIP": "10.0.0.1", "type": "ExternalName", "externalName": "x"}), "external-name");
    }

    #[test]
    fn the_proxy_name_label_takes_a_service_away_even_when_empty() {
        for value in [json!(""), json!("other"), json!(1)] {
            let mut object = object(json!({"clusterIP": "10.0.0.1"}));
            object["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": value, "x": {}});
            let converted = run(true, object);
            assert_eq!(converted.ignored, Some("service-proxy-name"));
            assert_eq!(converted.change, Change::ServiceDeleted(crate::model::ObjectName::new("ns", "svc")));
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
        check_unusable(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv6"]}), "invalid-address");
        check_unusable(json!("text"), "wrong-type");
    }

    /// TestBadIPs.
    #[test]
    fn zero_padded_addresses_become_canonical() {
        let converted = run(true, json!({
            "metadata": {"namespace": "ns", "name": "svc"},
            "spec": {"clusterIP": "010.096.000.001", "externalIPs": ["192.168.099.022"], "type": "LoadBalancer",
                     "loadBalancerSourceRanges": ["203.000.113.000/025"], "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "001.002.003.004"}]}},
        }));
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
        let converted = run(true, json!({
            "metadata": {"namespace": "ns", "name": "svc"},
            "spec": {
                "clusterIP": "10.0.0.1", "externalIPs": ["x", "", " ", "127.0.0.1", "169.254.0.1", 5, "192.0.2.1"],
                "loadBalancerSourceRanges": ["nonsense", " 10.0.0.7/8 "], "internalTrafficPolicy": "Sometimes",
                "ports": [{"name": "a", "port": 80}, {"name": "a", "port": 81}, {"name": "b", "port": 0},
                          {"name": "c", "port": 82, "protocol": "ICMP"}, {"name": "d", "port": "83"},
                          {"name": "E F", "port": 84}, {"name": "g", "port": 85, "nodePort": 70000}, 3],
            },
        }));
        let reasons: Vec<&str> = converted.skipped.iter().map(|it| it.reason).collect();
        let ports = ["wrong-type", "duplicate-port", "invalid-port", "invalid-protocol", "invalid-port", "invalid-name"];
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
        let converted = run(true, json!({
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
        }));
        let Change::ServiceApplied(service) = converted.change else { panic!() };
        let (v4, v6) = (service.v4.unwrap(), service.v6.unwrap());
        assert_eq!(v4.external_ips.len(), 2);
        assert!(v4.external_ips.is_sorted());
        assert_eq!(v4.load_balancer_ips, ["198.51.100.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(v4.source_ranges, SourceRanges::Only(vec!["10.1.0.0/16".parse().unwrap()]));
        assert_eq!((v6.external_ips.len(), v6.load_balancer_ips.len()), (1, 1));
        assert_eq!(v6.source_ranges, SourceRanges::Unrestricted, "a zero-length range opens the family");
    }

    #[test]
    fn only_unusable_ranges_mean_no_restriction() {
        let service = applied(json!({"clusterIP": "10.0.0.1", "loadBalancerSourceRanges": ["x", "fd00::/8"]}));
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
        let missing = run(true, object(json!({"clusterIP": "10.0.0.1", "type": "LoadBalancer", "externalTrafficPolicy": "Local"})));
        assert_eq!(missing.skipped.first().map(|it| it.reason), Some("no-health-check-node-port"));
    }

    #[test]
    fn affinity_timeouts() {
        let timeout = |config: Value| {
            applied(json!({"clusterIP": "10.0.0.1", "sessionAffinity": "ClientIP", "sessionAffinityConfig": config})).affinity
        };
        assert_eq!(timeout(json!({"clientIP": {"timeoutSeconds": 10}})), Some(10));
        for odd in [json!(null), json!({}), json!({"clientIP": {"timeoutSeconds": 0}}), json!({"clientIP": {"timeoutSeconds": 86_401}})] {
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
        let ports: Vec<Value> = (1..=2000).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
        let ips: Vec<String> = (0..2000).map(|n| format!("192.0.{}.{}", n / 250, n % 250 + 1)).collect();
        check_unusable(json!({"clusterIP": "10.0.0.1", "ports": ports, "externalIPs": ips}), "too-large");
    }

    #[test]
    fn names_that_no_api_server_admits_are_unusable() {
        for (namespace, name) in [("", "svc"), ("ns", ""), ("ns", "a b"), ("ns", "a\n"), ("n\"s", "svc")] {
            let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": {"clusterIP": "10.0.0.1"}});
            let Change::Unusable(skipped) = run(true, object).change else { panic!("{namespace}/{name}") };
            assert_eq!(skipped.reason, "invalid-name");
        }
        let Change::Unusable(_) = run(true, json!({"metadata": 3, "spec": {}})).change else { panic!() };
    }

    #[track_caller]
    fn check_ignored(spec: Value, why: &str) {
        assert_eq!(run(true, object(spec)).ignored, Some(why));
    }

    #[track_caller]
    fn check_unusable(spec: Value, reason: &str) {
        match run(true, object(spec)).change {
            Change::Unusable(skipped) => assert_eq!(skipped.reason, reason),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn applied(spec: Value) -> Service {
        match run(true, object(spec)).change {
            Change::ServiceApplied(service) => service,
            other => panic!("{other:?}"),
        }
    }

    fn object(spec: Value) -> Value {
        json!({"metadata": {"namespace": "ns", "name": "svc"}, "spec": spec})
    }

    fn run(external_ips_allowed: bool, object: Value) -> Converted {
        let raw: raw::Service = serde_json::from_value(object).unwrap();
        let context = Context { node_name: "node-1".into(), external_ips_allowed };
        service(&context, &raw, &mut Interner::default())
    }
}
