//! Small clusters for tests: builders, and random histories of objects as an API server would tell them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

pub(crate) fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName::new(namespace, name)
}

pub(crate) fn service_port(name: &str, protocol: Protocol, number: u16) -> ServicePort {
    ServicePort { name: name.into(), protocol, port: port(number), node_port: None }
}

pub(crate) fn family(cluster_ip: &str) -> Box<ServiceFamily> {
    let source_ranges = SourceRanges::Unrestricted;
    Box::new(ServiceFamily {
        cluster_ip: ip(cluster_ip),
        external_ips: vec![],
        load_balancer_ips: vec![],
        source_ranges,
    })
}

/// A ClusterIP Service with the port "p80" 80/TCP.
pub(crate) fn service(title: &str, cluster_ip: &str) -> Service {
    Service {
        name: name(title),
        uid: None,
        created: 0,
        v4: Some(cluster_ip).filter(|it| !it.contains(':')).map(family),
        v6: Some(cluster_ip).filter(|it| it.contains(':')).map(family),
        ports: vec![service_port("p80", Protocol::Tcp, 80)],
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        ipvs_scheduler: None,
    }
}

/// A slice with the port "p80" 8080/TCP. Endpoints as `address word word ...`; see [`endpoint`].
pub(crate) fn slice(title: &str, service: &str, endpoints: &[&str]) -> EndpointSlice {
    let endpoints: Vec<Endpoint> = endpoints.iter().map(|it| endpoint(it)).collect();
    EndpointSlice {
        name: name(title),
        service: name(service),
        family: endpoints.first().map_or(Family::V4, |it| Family::of(it.address)),
        ports: vec![SlicePort { name: "p80".into(), protocol: Protocol::Tcp, port: port(8080) }],
        endpoints,
        ipvs_weight: None,
        trigger_time: None,
    }
}

/// Ready and remote unless words say otherwise: `local`, `unready`, `terminating` (serving), `dead` (terminating, not
/// serving), `zone=a,b`, `node=this`, `node=other`.
pub(crate) fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split_whitespace();
    let mut endpoint = Endpoint {
        address: ip(words.next().unwrap()),
        ready: true,
        serving: true,
        terminating: false,
        local: false,
        node_hint: NodeHint::Absent,
        zone_hints: None,
    };
    for word in words {
        let (ready, serving, terminating) = match word {
            "unready" => (false, false, false),
            "terminating" => (false, true, true),
            "dead" => (false, false, true),
            _ => (endpoint.ready, endpoint.serving, endpoint.terminating),
        };
        (endpoint.ready, endpoint.serving, endpoint.terminating) = (ready, serving, terminating);
        match word.split_once('=') {
            Some(("zone", zones)) => {
                endpoint.zone_hints = Some(zones.split(',').map(Arc::from).collect())
            }
            Some(("node", "this")) => endpoint.node_hint = NodeHint::ThisNode,
            Some(("node", "other")) => endpoint.node_hint = NodeHint::OtherNodes,
            None if word == "local" => endpoint.local = true,
            None => assert!(matches!(word, "unready" | "terminating" | "dead"), "{word}"),
            Some(_) => panic!("{word}"),
        }
    }
    endpoint
}

/// A cluster with these objects.
pub(crate) fn cluster(services: &[Service], slices: &[EndpointSlice]) -> Cluster {
    let mut cluster = Cluster::new(&[]);
    for service in services {
        cluster.apply(Change::ServiceApplied(service.clone()));
    }
    for slice in slices {
        cluster.apply(Change::SliceApplied(slice.clone()));
    }
    cluster
}

/// Something that happens in the API server, and how the watch learns of it.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Set(Box<Change>),
    /// The host's interfaces have these addresses now.
    Addresses(BTreeSet<IpAddr>),
    Delete(Resource, usize),
    /// It becomes what no proxy can use, and is so in all lists from then on.
    Spoil(Resource, usize),
    /// The connection is down while it happens.
    DeleteUnseen(Resource, usize),
    /// `broken`: a first list breaks off after some objects. `turn`: where in the list the server begins.
    Relist {
        resource: Resource,
        broken: Option<usize>,
        turn: usize,
    },
}

/// What the API server has.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    objects: BTreeMap<(Resource, ObjectName), Change>,
    addresses: Option<Change>,
}

impl World {
    /// Makes a step and returns what the watch says about it.
    pub(crate) fn step(&mut self, step: Step) -> Vec<Change> {
        match step {
            Step::Set(change) => {
                self.objects.insert(key(&change), (*change).clone());
                vec![*change]
            }
            Step::Addresses(addresses) => {
                self.addresses = Some(Change::HostAddresses(addresses));
                self.addresses.iter().cloned().collect()
            }
            Step::Spoil(resource, at) => {
                self.delete(resource, at).map(unusable).into_iter().collect()
            }
            Step::Delete(resource, at) => {
                self.delete(resource, at).map(deletion).into_iter().collect()
            }
            Step::DeleteUnseen(resource, at) => {
                self.delete(resource, at);
                vec![]
            }
            Step::Relist { resource, broken, turn } => {
                let mut all = self.objects_of(resource);
                let length = all.len().max(1);
                all.rotate_left(turn % length);
                let first = broken.map(|it| all[..it % length.min(all.len() + 1)].to_vec());
                let first =
                    first.into_iter().flat_map(|it| [vec![Change::Listing(resource)], it].concat());
                let second =
                    [vec![Change::Listing(resource)], all.clone(), vec![Change::Listed(resource)]]
                        .concat();
                first.chain(second).collect()
            }
        }
    }

    /// Complete lists of everything.
    pub(crate) fn relist(&mut self) -> Vec<Change> {
        let step = |resource| Step::Relist { resource, broken: None, turn: 1 };
        let lists = RESOURCES.into_iter().flat_map(|it| self.step(step(it)));
        let lists: Vec<Change> = lists.collect();
        lists.into_iter().chain(self.addresses.clone()).collect()
    }

    /// The final objects, and nothing else.
    pub(crate) fn objects(&self) -> Vec<Change> {
        self.objects.values().chain(&self.addresses).cloned().collect()
    }

    fn objects_of(&self, resource: Resource) -> Vec<Change> {
        self.objects
            .iter()
            .filter(|((it, _), _)| *it == resource)
            .map(|(_, it)| it.clone())
            .collect()
    }

    fn delete(&mut self, resource: Resource, at: usize) -> Option<(Resource, ObjectName)> {
        // The own Node outlives its object in the cluster, so it never goes here.
        let keys: Vec<_> = self
            .objects
            .keys()
            .filter(|(it, _)| *it == resource && *it != Resource::Node)
            .cloned()
            .collect();
        let key = keys.get(at % keys.len().max(1))?.clone();
        self.objects.remove(&key);
        Some(key)
    }
}

const RESOURCES: [Resource; 4] =
    [Resource::EndpointSlice, Resource::Service, Resource::Node, Resource::ServiceCidr];

#[expect(clippy::wildcard_enum_match_arm, reason = "steps set objects, nothing else")]
fn key(change: &Change) -> (Resource, ObjectName) {
    match change {
        Change::ServiceApplied(it) => (Resource::Service, it.name.clone()),
        Change::SliceApplied(it) => (Resource::EndpointSlice, it.name.clone()),
        Change::NodeApplied(it) => (Resource::Node, ObjectName::new("", &it.name)),
        Change::ServiceCidrApplied(it) => (Resource::ServiceCidr, ObjectName::new("", &it.name)),
        other => panic!("{other:?}"),
    }
}

fn deletion((resource, name): (Resource, ObjectName)) -> Change {
    match resource {
        Resource::Service => Change::ServiceDeleted(name),
        Resource::EndpointSlice => Change::SliceDeleted(name),
        Resource::Node => Change::NodeDeleted,
        Resource::ServiceCidr => Change::ServiceCidrDeleted(name.name),
    }
}

fn unusable((resource, name): (Resource, ObjectName)) -> Change {
    Change::Unusable(Skipped {
        resource,
        name,
        uid: None,
        reason: "spoilt",
        message: String::new(),
    })
}

/// Random histories. Few names, addresses and ports, so that they meet.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let resource = || select(RESOURCES.to_vec());
    let set = prop_oneof![
        4 => services().prop_map(Change::ServiceApplied),
        5 => slices().prop_map(Change::SliceApplied),
        1 => nodes().prop_map(Change::NodeApplied),
        1 => cidrs().prop_map(Change::ServiceCidrApplied),
    ];
    let step = prop_oneof![
        12 => set.prop_map(|it| Step::Set(Box::new(it))),
        1 => addresses().prop_map(Step::Addresses),
        2 => (resource(), any::<usize>()).prop_map(|(resource, at)| Step::Delete(resource, at)),
        1 => (resource(), any::<usize>()).prop_map(|(resource, at)| Step::Spoil(resource, at)),
        1 => (resource(), any::<usize>()).prop_map(|(resource, at)| Step::DeleteUnseen(resource, at)),
        1 => (resource(), option::of(any::<usize>()), any::<usize>())
            .prop_map(|(resource, broken, turn)| Step::Relist { resource, broken, turn }),
    ];
    vec(step, 0..40)
}

/// Among the host's addresses are some that Services ask for.
fn addresses() -> impl Strategy<Value = BTreeSet<IpAddr>> {
    let all = ["127.0.0.1", "192.168.0.2", "192.0.2.1", "10.96.0.1", "fe80::1", "2001:db8::5"];
    subsequence(all.map(ip).to_vec(), 0..=all.len()).prop_map(|it| it.into_iter().collect())
}

/// One of few namespaces and names. The last one has another's name in another namespace.
fn object(number: u8, stem: &str) -> ObjectName {
    match number {
        0..=2 => name(&format!("ns/{stem}{number}")),
        _ => name(&format!("other/{stem}0")),
    }
}

fn services() -> impl Strategy<Value = Service> {
    let policy = || select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local]);
    let families = (
        option::weighted(0.9, family_of("10.96.0", "192.0.2")),
        option::of(family_of("fd00:96:", "2001:db8:")),
    );
    let ports = subsequence(vec!["", "a", "b"], 0..=3).prop_flat_map(|names| {
        let ports: Vec<_> = names.into_iter().map(ports).collect();
        ports
    });
    let health = option::of(select(vec![30000_u16, 30001]));
    let scalars = (0..4_u8, 0..3_i64, option::of(select(vec![10_u32, 20])), health);
    (scalars, families, ports, policy(), policy()).prop_map(
        |(
            (number, created, affinity, health),
            (v4, v6),
            ports,
            internal_policy,
            external_policy,
        )| Service {
            name: object(number, "s"),
            uid: None,
            created,
            v4: v4.map(Box::new),
            v6: v6.map(Box::new),
            ports,
            affinity,
            internal_policy,
            external_policy,
            health_check_node_port: health.map(port),
            ipvs_scheduler: None,
        },
    )
}

fn ports(name: &'static str) -> impl Strategy<Value = ServicePort> {
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    (protocol, select(vec![80_u16, 81]), option::of(select(vec![30080_u16, 30081]))).prop_map(
        move |(protocol, number, node_port)| ServicePort {
            node_port: node_port.map(port),
            ..service_port(name, protocol, number)
        },
    )
}

fn family_of(inside: &'static str, outside: &'static str) -> impl Strategy<Value = ServiceFamily> {
    let separator = if inside.contains(':') { ":" } else { "." };
    let address = move |net: &str, host: u8| ip(&format!("{net}{separator}{host}"));
    let outer: Vec<IpAddr> =
        (1..4).map(|it| address(outside, it)).chain([address(inside, 1)]).collect();
    let ranges = match separator {
        ":" => vec!["fd00:5::/64", "2001:db8::/32", "2001:db8::/64"],
        _ => vec!["203.0.113.0/25", "203.0.113.0/24", "192.168.0.0/24", "192.0.2.2/32"],
    };
    let ranges: Vec<ipnet::IpNet> = ranges.into_iter().map(|it| it.parse().unwrap()).collect();
    let few = || subsequence(outer.clone(), 0..=2);
    (1..6_u8, few(), few(), option::of(subsequence(ranges, 1..=3))).prop_map(
        move |(host, external, balancer, ranges)| ServiceFamily {
            cluster_ip: address(inside, host),
            external_ips: sorted(external),
            load_balancer_ips: sorted(balancer),
            source_ranges: ranges
                .map_or(SourceRanges::Unrestricted, |it| SourceRanges::Only(sorted(it))),
        },
    )
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort_unstable();
    list
}

fn slices() -> impl Strategy<Value = EndpointSlice> {
    let ports = vec(
        (
            select(vec!["", "a", "b"]),
            select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]),
            8080..8082_u16,
        ),
        0..3,
    );
    let header = (0..5_u8, 0..4_u8, select(Family::ALL.to_vec()), option::of(0..9_i128));
    (header, ports, vec(endpoints(), 0..5)).prop_map(
        |((number, owner, family, trigger_time), ports, endpoints)| {
            let ports = ports.into_iter().map(|(name, protocol, number)| SlicePort {
                name: name.into(),
                protocol,
                port: port(number),
            });
            let endpoints = endpoints.into_iter().map(|(host, endpoint)| Endpoint {
                address: match family {
                    Family::V4 => ip(&format!("10.1.0.{host}")),
                    Family::V6 => ip(&format!("fd00:1::{host}")),
                },
                ..endpoint
            });
            EndpointSlice {
                name: ObjectName { name: format!("slice-{number}").into(), ..object(owner, "s") },
                service: object(owner, "s"),
                family,
                ports: ports.collect(),
                endpoints: endpoints.collect(),
                // Slices of one number agree, whatever else changes.
                ipvs_weight: (number % 2 == 1).then(|| port(3)),
                trigger_time,
            }
        },
    )
}

fn endpoints() -> impl Strategy<Value = (u8, Endpoint)> {
    let state = select(vec!["", "", "", "unready", "terminating", "dead"]);
    let place = select(vec!["", "local"]);
    let node = select(vec!["", "node=this", "node=other"]);
    let zone = select(vec!["", "zone=a", "zone=b", "zone=a,b"]);
    (1..6_u8, state, place, node, zone).prop_map(|(host, state, place, node, zone)| {
        (host, endpoint(&format!("10.1.0.1 {state} {place} {node} {zone}")))
    })
}

fn nodes() -> impl Strategy<Value = Node> {
    let addresses = subsequence(vec!["192.168.0.2", "192.168.9.9", "2001:db8::5"], 0..=3);
    (option::of(select(vec!["a", "b"])), addresses, any::<bool>()).prop_map(
        |(zone, addresses, going_away)| Node {
            name: "node-1".into(),
            addresses: addresses.into_iter().map(ip).collect(),
            pod_cidrs: vec![],
            zone: zone.map(Arc::from),
            going_away,
        },
    )
}

fn cidrs() -> impl Strategy<Value = ServiceCidr> {
    let ranges = subsequence(vec!["10.96.0.0/16", "10.96.0.0/24", "fd00:96::/64"], 0..=3);
    (0..3_u8, ranges).prop_map(|(number, ranges)| ServiceCidr {
        name: format!("cidr-{number}").into(),
        cidrs: ranges.into_iter().map(|it| it.parse().unwrap()).collect(),
    })
}
