//! Flows as `conntrack` makes and lists them.

use std::collections::BTreeSet;

use kube_ferry::conntrack::{Flow, Tuple};
use kube_ferry::kernel::{Conntrack, Swept};
use kube_ferry::model::Family;

use super::namespace::{isolated, run};

/// A flow to a Service's address that an endpoint answers.
struct Sample<'a> {
    client: &'a str,
    service: &'a str,
    endpoint: &'a str,
    zone: u16,
    protocol: &'a str,
}

impl Sample<'_> {
    fn track(&self) {
        let zone = self.zone.to_string();
        let state: &[&str] = if self.protocol == "tcp" { &["--state", "ESTABLISHED"] } else { &[] };
        let arguments = [
            &["-I", "-p", self.protocol, "-t", "600", "-s", self.client, "-d", self.service][..],
            &["--sport", "5000", "--dport", "53", "-r", self.endpoint, "-q", self.client],
            &["--reply-port-src", "5353", "--reply-port-dst", "5000", "-w", &zone],
            state,
        ]
        .concat();
        run("conntrack", &arguments, "");
    }

    /// Without the kernel's number for it.
    fn flow(&self) -> Flow {
        let end = |address: &str, port| (address.parse::<std::net::IpAddr>().unwrap(), port).into();
        let tuple = |source, destination| Tuple { source, destination };
        Flow {
            original: tuple(end(self.client, 5000), end(self.service, 53)),
            reply: tuple(end(self.endpoint, 5353), end(self.client, 5000)),
            zone: self.zone,
            id: 0,
        }
    }
}

const fn udp<'a>(client: &'a str, service: &'a str, endpoint: &'a str, zone: u16) -> Sample<'a> {
    Sample { client, service, endpoint, zone, protocol: "udp" }
}

const V4: [Sample<'static>; 3] = [
    udp("10.0.0.1", "10.96.0.10", "10.1.0.1", 0),
    udp("10.0.0.2", "10.96.0.10", "10.1.0.2", 0),
    udp("10.0.0.1", "10.96.0.10", "10.1.0.1", 7),
];
const V6: [Sample<'static>; 2] =
    [udp("fd00::1", "fd00:96::10", "fd00:1::1", 0), udp("fd00::2", "fd00:96::10", "fd00:1::2", 0)];

fn flows(conntrack: &mut Conntrack, family: Family) -> BTreeSet<Flow> {
    let mut all = BTreeSet::new();
    conntrack.udp_flows(family, |flow| assert!(all.insert(*flow), "{flow:?} came twice")).unwrap();
    all
}

fn without_ids(flows: &BTreeSet<Flow>) -> BTreeSet<Flow> {
    flows.iter().map(|flow| Flow { id: 0, ..*flow }).collect()
}

fn expected(samples: &[Sample<'_>]) -> BTreeSet<Flow> {
    samples.iter().map(Sample::flow).collect()
}

fn track_all() {
    V4.iter().chain(&V6).for_each(Sample::track);
    let tcp = Sample { protocol: "tcp", ..udp("10.0.0.9", "10.96.0.10", "10.1.0.1", 0) };
    tcp.track();
}

#[test]
fn udp_flows_of_a_family_are_read_in_every_zone() {
    isolated(|| {
        let mut conntrack = Conntrack::new().unwrap();
        assert!(flows(&mut conntrack, Family::V4).is_empty());
        track_all();
        assert_eq!(without_ids(&flows(&mut conntrack, Family::V4)), expected(&V4));
        assert_eq!(without_ids(&flows(&mut conntrack, Family::V6)), expected(&V6));
    });
}

#[test]
fn a_flow_is_deleted_by_its_tuple_its_zone_and_its_number() {
    isolated(|| {
        track_all();
        let mut conntrack = Conntrack::new().unwrap();
        for family in Family::ALL {
            let before = flows(&mut conntrack, family);
            let victim = *before.first().unwrap();
            let later = Flow { id: victim.id.wrapping_add(1), ..victim };
            assert!(!conntrack.delete(&later).unwrap());
            assert_eq!(flows(&mut conntrack, family), before);
            assert!(conntrack.delete(&victim).unwrap());
            assert!(!conntrack.delete(&victim).unwrap());
            let mut rest = before;
            rest.remove(&victim);
            assert_eq!(flows(&mut conntrack, family), rest);
        }
        let listed = run("conntrack", &["-L"], "");
        assert_eq!(listed.lines().count(), V4.len() + V6.len() + 1 - Family::ALL.len(), "{listed}");
    });
}

#[test]
fn a_sweep_deletes_what_is_stale_and_nothing_else() {
    isolated(|| {
        track_all();
        // Enough for many datagrams, with deletions between them.
        for number in 0..1_500 {
            let client = format!("10.2.{}.{}", number / 250, number % 250);
            udp(&client, "10.96.0.10", "10.1.0.3", 0).track();
        }
        let mut conntrack = Conntrack::new().unwrap();
        let gone = "10.1.0.3:5353".parse().unwrap();
        let swept = conntrack.sweep(Family::V4, |flow| flow.reply.source == gone).unwrap();
        assert_eq!(swept, Swept { seen: 1_503, deleted: 1_500 });
        assert_eq!(without_ids(&flows(&mut conntrack, Family::V4)), expected(&V4));
        assert_eq!(without_ids(&flows(&mut conntrack, Family::V6)), expected(&V6));
    });
}
