use proptest::prelude::*;

use super::*;
use crate::forward::FrontendKind;
use crate::model::sample::*;
use crate::model::{Change, Service};

#[test]
fn only_what_differs_is_reported() {
    let mut world = World::new();
    assert_eq!(world.apply(applied("a", 1, "10.0.0.1")), ["a: 10.0.0.1"]);
    assert_eq!(world.apply(applied("b", 2, "10.0.0.2")), ["b: 10.0.0.2"]);
    let mut older = service("ns/a", "10.0.0.1");
    older.created = 0;
    assert_eq!(
        world.apply(Change::ServiceApplied(older)),
        [] as [&str; 0],
        "age alone moves nothing"
    );
    assert_eq!(
        world.apply(Change::SliceApplied(slice("ns/x", "ns/b", &["10.1.0.1"]))),
        ["b: 10.0.0.2"]
    );
    assert_eq!(
        world.apply(Change::SliceApplied(slice("ns/x", "ns/b", &["10.1.0.1", "10.1.0.2 unready"]))),
        [] as [&str; 0]
    );
    assert_eq!(world.apply(Change::ServiceDeleted(name("ns/b"))), ["b: gone"]);
    assert_eq!(world.forwarder.services().count(), 1);
}

#[test]
fn the_older_service_keeps_the_address_and_the_younger_takes_over() {
    let mut world = World::new();
    world.apply(external("young", 2, "10.0.0.2", "192.0.2.1"));
    assert_eq!(
        world.apply(external("old", 1, "10.0.0.1", "192.0.2.1")),
        ["young: 10.0.0.2", "old: 10.0.0.1 192.0.2.1", "+ young loses to old"],
    );
    assert_eq!(
        world.apply(external("mid", 1, "10.0.0.3", "192.0.2.1")),
        [
            "old: 10.0.0.1",
            "mid: 10.0.0.3 192.0.2.1",
            "+ old loses to mid",
            "+ young loses to mid",
            "- young loses to old"
        ]
    );
    assert_eq!(
        world.apply(Change::ServiceDeleted(name("ns/mid"))),
        [
            "old: 10.0.0.1 192.0.2.1",
            "mid: gone",
            "+ young loses to old",
            "- old loses to mid",
            "- young loses to mid"
        ]
    );
    assert_eq!(
        world.apply(Change::ServiceDeleted(name("ns/old"))),
        ["young: 10.0.0.2 192.0.2.1", "old: gone", "- young loses to old"]
    );
    assert_eq!(world.forwarder.conflicts().len(), 0);
}

#[test]
fn a_cluster_ip_may_clash_with_anothers_external_ip() {
    let mut world = World::new();
    world.apply(external("thief", 2, "10.0.0.2", "10.0.0.1"));
    let told = world.apply(applied("victim", 1, "10.0.0.1"));
    assert_eq!(told, ["thief: 10.0.0.2", "victim: 10.0.0.1", "+ thief loses to victim"]);
}

#[test]
fn a_change_in_one_family_leaves_the_other_alone() {
    let mut dual = service("ns/a", "10.0.0.1");
    dual.v6 = Some(family("fd00::1"));
    let mut world = World::new();
    world.apply(Change::ServiceApplied(dual));
    world.apply(Change::SliceApplied(slice("ns/6", "ns/a", &["fd00:1::1"])));
    let of = |world: &World| world.forwarder.forwarding(&world.cluster, ServiceId(0)).ports;
    let before = of(&world);
    world.apply(Change::SliceApplied(slice("ns/4", "ns/a", &["10.1.0.1"])));
    let after = of(&world);
    assert_ne!(before[0], after[0]);
    assert_eq!(before[1], after[1]);
}

#[test]
fn an_id_that_passes_on_between_two_updates_is_one_change() {
    let mut world = World::new();
    world.apply(applied("a", 1, "10.0.0.1"));
    let mut touched = world.cluster.apply(Change::ServiceDeleted(name("ns/a")));
    touched.merge(world.cluster.apply(applied("b", 1, "10.0.0.9")));
    assert_eq!(world.update(&touched.services), ["b: 10.0.0.9"]);
}

fn applied(title: &str, created: i64, cluster_ip: &str) -> Change {
    Change::ServiceApplied(Service { created, ..service(&format!("ns/{title}"), cluster_ip) })
}

fn external(title: &str, created: i64, cluster_ip: &str, external_ip: &str) -> Change {
    let mut service = Service { created, ..service(&format!("ns/{title}"), cluster_ip) };
    if let Some(v4) = &mut service.v4 {
        v4.external_ips.push(ip(external_ip));
    }
    Change::ServiceApplied(service)
}

/// A cluster and its forwarder.
struct World {
    cluster: Cluster,
    forwarder: Forwarder,
    names: BTreeMap<ServiceId, String>,
}

impl World {
    fn new() -> Self {
        World {
            cluster: Cluster::new(&[]),
            forwarder: Forwarder::default(),
            names: BTreeMap::new(),
        }
    }

    /// Applies a change and tells what came of it: Services with their addresses, conflicts that began or ended.
    fn apply(&mut self, change: Change) -> Vec<String> {
        let touched = self.cluster.apply(change);
        self.update(&touched.services)
    }

    fn update(&mut self, touched: &BTreeSet<ServiceId>) -> Vec<String> {
        for id in self.cluster.ids() {
            self.names.insert(id, self.cluster.name(id).unwrap().name.to_string());
        }
        let update = self.forwarder.update(&self.cluster, touched);
        let changed = update.changed.iter().map(|id| {
            let forwarding = self.forwarder.forwarding(&self.cluster, *id);
            let frontends = forwarding.ports.iter().flat_map(|it| &it.frontends);
            let addresses: Vec<String> = frontends
                .filter(|it| it.kind != FrontendKind::NodePort)
                .map(|it| match it.at {
                    crate::forward::FrontendAddress::Address(address, _) => address.to_string(),
                    crate::forward::FrontendAddress::NodePort(port) => port.to_string(),
                })
                .collect();
            let addresses =
                if addresses.is_empty() { "gone".to_owned() } else { addresses.join(" ") };
            format!("{}: {addresses}", self.names[id])
        });
        let show =
            |sign, it: &Conflict| format!("{sign} {} loses to {}", it.loser.name, it.winner.name);
        let began = update.conflicts_began.iter().map(|it| show("+", it));
        let ended = update.conflicts_ended.iter().map(|it| show("-", it));
        changed.chain(began).chain(ended).collect()
    }
}

proptest! {
    /// Any history, updated in portions of any size, ends where its final state begins.
    #[test]
    fn incremental_equals_from_scratch(history in steps(), portion in 1..5_usize) {
        let (mut world, mut cluster) = (sample_world(), Cluster::default());
        let mut forwarder = Forwarder::default();
        let mut told = BTreeMap::new();
        let mut conflicts = BTreeSet::new();
        let changes: Vec<Change> = history.into_iter().flat_map(|it| world.step(it)).collect();
        for portion in changes.chunks(portion) {
            let mut touched = crate::model::Touched::default();
            for change in portion {
                touched.merge(cluster.apply(change.clone()));
            }
            let update = forwarder.update(&cluster, &touched.services);
            for conflict in &update.conflicts_ended {
                prop_assert!(conflicts.remove(conflict), "ended without having begun: {:?}", conflict);
            }
            for conflict in update.conflicts_began {
                prop_assert!(conflicts.insert(conflict), "began twice");
            }
            for id in update.changed {
                let forwarding = forwarder.forwarding(&cluster, id);
                let before = told.insert(id, forwarding.clone()).unwrap_or_default();
                prop_assert_ne!(before, forwarding, "told without need");
            }
            let mut fresh = Forwarder::default();
            fresh.update(&cluster, &cluster.ids().collect());
            prop_assert!(forwarder.services().eq(fresh.services()));
            prop_assert_eq!(&forwarder.lost, &fresh.lost);
            told.retain(|_, it| *it != ServiceForwarding::default());
            prop_assert_eq!(&told, &forwardings(&fresh, &cluster).collect());
            prop_assert_eq!(&conflicts, &fresh.conflicts().into_iter().cloned().collect());
            check_invariants(&forwarder, &cluster)?;
        }
    }

    /// The same objects in another order get the same addresses.
    #[test]
    fn order_does_not_matter(history in steps(), turn in any::<usize>()) {
        let mut world = sample_world();
        for step in history {
            world.step(step);
        }
        let by_name = |changes: &[Change]| {
            let mut cluster = Cluster::default();
            for change in changes {
                cluster.apply(change.clone());
            }
            let mut forwarder = Forwarder::default();
            forwarder.update(&cluster, &cluster.ids().collect());
            let named = |id| cluster.name(id).unwrap().clone();
            let forwardings = forwardings(&forwarder, &cluster).map(|(id, it)| (named(id), it));
            let lost = forwarder.lost.iter().map(|(id, it)| (named(*id), it.clone()));
            (forwardings.collect::<BTreeMap<_, _>>(), lost.collect::<BTreeMap<_, _>>())
        };
        let mut changes = world.objects();
        let expected = by_name(&changes);
        let length = changes.len().max(1);
        changes.rotate_left(turn % length);
        prop_assert_eq!(&by_name(&changes), &expected);
        changes.reverse();
        prop_assert_eq!(&by_name(&changes), &expected);
    }
}

fn sample_world() -> crate::model::sample::World {
    crate::model::sample::World::default()
}

fn forwardings(
    forwarder: &Forwarder,
    cluster: &Cluster,
) -> impl Iterator<Item = (ServiceId, ServiceForwarding)> {
    forwarder.services().map(|id| (id, forwarder.forwarding(cluster, id)))
}

/// No two frontends share an address; lists are sorted and only as full as needed.
fn check_invariants(forwarder: &Forwarder, cluster: &Cluster) -> Result<(), TestCaseError> {
    let mut taken = BTreeSet::new();
    for (_, forwarding) in forwardings(forwarder, cluster) {
        for port in &forwarding.ports {
            prop_assert!(!port.frontends.is_empty());
            for frontend in &port.frontends {
                prop_assert!(
                    taken.insert((port.family, port.protocol, frontend.at)),
                    "{:?} is claimed twice",
                    frontend
                );
                if let Some(ranges) = &frontend.source_ranges {
                    let kinds = [FrontendKind::LoadBalancerIp, FrontendKind::ClusterIp];
                    prop_assert!(!ranges.is_empty() && kinds.contains(&frontend.kind));
                }
            }
            for list in [&port.cluster, &port.local] {
                prop_assert!(list.is_sorted_by(|a, b| a < b));
            }
            prop_assert!(port.hairpin.is_sorted_by(|a, b| a < b));
        }
    }
    Ok(())
}
