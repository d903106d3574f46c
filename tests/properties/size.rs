//! 10,000 Services with five endpoints each, in a real kernel: nothing grows but rows, and a change writes only itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use kube_ferry::config::{DetectLocal, NodePortSelector};
use kube_ferry::kernel::{Kernel, KernelError, NetlinkKernel};
use kube_ferry::model::{
    Change, Cluster, Endpoint, EndpointSlice, Family, NodeHint, ObjectName, Protocol, Resource,
    Service, ServiceFamily, ServicePort, SlicePort, SourceRanges, TrafficPolicy,
};
use kube_ferry::nft::schema::TABLE;
use kube_ferry::nft::{Batch, Op, SetName};
use kube_ferry::sync::engine::{Engine, Refusal};
use kube_ferry::sync::facts::Settings;

use crate::support::namespace::create;
use crate::support::witness::{objects, rows};

const MANY: u16 = 10_000;

const RESOURCES: [Resource; 4] =
    [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr];

#[test]
fn ten_thousand_services_cost_no_object_and_an_endpoint_costs_its_rows() {
    let host = create(&["host"]).pop().unwrap();
    let mut node = host.run(Node::new);
    let sync = |node: &mut Node| host.run(|| node.sync());
    node.set(0, 1..=5);
    sync(&mut node);
    let with_one = objects(&host, TABLE);
    assert!(with_one.tables == 2 && with_one.chains > 0 && with_one.rules > 0, "{with_one:?}");

    (1..MANY).for_each(|n| node.set(n, 1..=5));
    let written = sync(&mut node);
    assert!(written.len() >= 7 * usize::from(MANY - 1), "{}", written.len());
    assert_eq!(objects(&host, TABLE), with_one);

    // One endpoint more: one row, and nothing but that row.
    node.set_endpoints(4_321, 1..=6);
    assert_eq!(rows_only(&sync(&mut node)), (1, 0));
    // The last goes, or one out of the middle, whose slot the last one takes.
    node.set_endpoints(4_321, 1..=5);
    let (added, deleted) = rows_only(&sync(&mut node));
    assert!((1..=3).contains(&(added + deleted)), "{added} + {deleted}");
    node.set_endpoints(4_321, 2..=5);
    let (added, deleted) = rows_only(&sync(&mut node));
    assert!((1..=3).contains(&(added + deleted)), "{added} + {deleted}");
    // A rolling update: one comes and one goes.
    node.set_endpoints(4_321, 3..=6);
    let (added, deleted) = rows_only(&sync(&mut node));
    assert!((2..=4).contains(&(added + deleted)), "{added} + {deleted}");
    assert_eq!(objects(&host, TABLE), with_one);

    // A process that starts anew finds everything as it should be.
    node.engine.lost();
    assert!(sync(&mut node).is_empty());
}

/// Sets grow, or are made anew where the kernel cannot do that: no Service is left out either way.
#[test]
fn there_is_always_room() {
    const MORE: u16 = 1_200;
    let host = create(&["host"]).pop().unwrap();
    let mut node = host.run(Node::new);
    node.set(0, 1..=1);
    host.run(|| node.sync());
    (1..MORE).for_each(|n| node.set(n, 1..=1));
    host.run(|| node.sync());
    assert_eq!(node.engine.refused_count(), 0);
    for set in ["cluster-ips", "frontends", "endpoints"] {
        assert_eq!(rows(&host, "ip", TABLE, set).len(), usize::from(MORE), "{set}");
    }
}

/// Numbers of rows added and deleted; panics if anything but endpoints' rows was written.
#[track_caller]
fn rows_only(batch: &Batch) -> (usize, usize) {
    let (mut added, mut deleted) = (0, 0);
    for op in &batch.0 {
        let add = matches!(op, Op::AddElement { set: SetName::Endpoints, .. });
        let delete = matches!(op, Op::DeleteElement { set: SetName::Endpoints, .. });
        assert!(add || delete, "{op:?}");
        added += usize::from(add);
        deleted += usize::from(delete);
    }
    (added, deleted)
}

/// The engine and the kernel of a namespace.
struct Node {
    engine: Engine,
    kernel: NetlinkKernel,
}

impl Node {
    /// Call it inside the namespace.
    fn new() -> Node {
        let settings = Settings {
            masquerade_mark: 0x4000,
            masquerade_all: false,
            ipvs: None,
            families: Family::ALL.to_vec(),
            detect_local: DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]),
            node_ports: NodePortSelector::Primary,
            node_ip: None,
        };
        let mut engine = Engine::new(settings, Cluster::new(&RESOURCES));
        engine.apply(Change::HostAddresses(BTreeSet::from([Ipv4Addr::LOCALHOST.into()])));
        for resource in RESOURCES {
            engine.apply(Change::Listing(resource));
            engine.apply(Change::Listed(resource));
        }
        Node { engine, kernel: NetlinkKernel::new().unwrap() }
    }

    fn set(&mut self, n: u16, endpoints: std::ops::RangeInclusive<u8>) {
        self.engine.apply(Change::ServiceApplied(service(n)));
        self.set_endpoints(n, endpoints);
    }

    fn set_endpoints(&mut self, n: u16, endpoints: std::ops::RangeInclusive<u8>) {
        self.engine.apply(Change::SliceApplied(slice(n, endpoints)));
    }

    /// Writes until nothing is left to do; all that was written.
    fn sync(&mut self) -> Batch {
        let mut written = Batch::default();
        while self.engine.has_work() {
            if self.engine.needs_observation() {
                let tables = self.kernel.observe(self.engine.program()).unwrap();
                self.engine.observed(tables);
            }
            let batch = self.engine.plan();
            match self.kernel.commit(&batch) {
                Ok(()) => (),
                // Before Linux 6.5 sets do not grow; then the tables are made anew.
                Err(KernelError::Rejected(told)) => {
                    let refusal = self.engine.refused(told);
                    assert!(matches!(refusal, Refusal::Full(_)), "{refusal:?}");
                    continue;
                }
                Err(error) => panic!("{error}"),
            }
            self.engine.committed();
            written.0.extend(batch.0);
        }
        written
    }
}

fn service(n: u16) -> Service {
    let [high, low] = n.to_be_bytes();
    let family = ServiceFamily {
        cluster_ip: IpAddr::from([10, 96, high, low]),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: SourceRanges::Unrestricted,
    };
    let port = ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: NonZeroU16::new(80).unwrap(),
        node_port: None,
    };
    Service {
        name: ObjectName::new("ns", &format!("s{n}")),
        uid: None,
        created: 0,
        v4: Some(Box::new(family)),
        v6: None,
        ports: vec![port],
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        ipvs_scheduler: None,
    }
}

fn slice(n: u16, hosts: std::ops::RangeInclusive<u8>) -> EndpointSlice {
    let [high, low] = n.to_be_bytes();
    let endpoint = |host: u8| Endpoint {
        address: IpAddr::from([11 + host, 1, high, low]),
        ready: true,
        serving: true,
        terminating: false,
        local: false,
        node_hint: NodeHint::Absent,
        zone_hints: None,
    };
    let port = SlicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: NonZeroU16::new(8080).unwrap(),
    };
    EndpointSlice {
        name: ObjectName::new("ns", &format!("s{n}-1")),
        service: ObjectName::new("ns", &format!("s{n}")),
        family: Family::V4,
        ports: vec![port],
        endpoints: hosts.map(endpoint).collect(),
        ipvs_weight: None,
        trigger_time: None,
    }
}
