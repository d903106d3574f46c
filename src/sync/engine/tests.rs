//! The engine against a kernel in memory that fails in every way a kernel may.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::refusal::{FEWEST_BATCH_ROWS, MOST_CRAMPED};
use super::*;
use crate::config::{DetectLocal, NodePortSelector};
use crate::kernel::memory::{Failure, MemoryIpvs, MemoryKernel};
use crate::kernel::{Ipvs, IpvsSettings, Kernel, KernelError};
use crate::model::sample::{self, Step, ip, name, service, slice};
use crate::model::{Resource, Service};
use crate::nft::compile::tests::laws::canonical_table;
use crate::nft::render;
use crate::nft::schema::{Key, Op, SetName, Value};
use crate::nft::tables::{EEXIST, ENFILE, ENOENT};
use crate::sync::facts::VirtualServers;

const RESOURCES: [Resource; 4] =
    [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr];

mod comparison;
mod damage;
mod servers;

const EPERM: i32 = 1;
const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;

/// More passes than this mean that the engine goes in circles.
const MOST_PASSES: usize = 200;

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    /// Whatever happens to the objects and whatever the kernel answers on the way: once it takes everything again, it
    /// holds what it would hold had it seen the last state only, and the rest of the program is told the same.
    #[test]
    fn any_history_with_any_failures_ends_as_from_scratch(
        ipvs in any::<bool>(),
        events in vec(event(), 0..40),
    ) {
        let settings = |choice| if ipvs { balanced(settings(choice)) } else { settings(choice) };
        let mut last = settings(0);
        let mut host = Host::started_with(last.clone());
        let mut world = sample::World::default();
        for event in events {
            match event {
                Event::Settings(choice) => {
                    last = settings(choice);
                    host.engine.set_settings(last.clone());
                }
                Event::Step(step) => {
                    world.step(step).into_iter().for_each(|change| host.engine.apply(change));
                }
                Event::Pass => drop(host.pass()),
                Event::Settle => host.settle(),
                Event::Fail(nth, failure) => host.kernel.fail_commit(nth, failure),
                Event::Refuse(owner) => host.kernel.refuse_owner(Owner(owner), EINVAL),
                Event::Anonymous(yes) => host.anonymous = yes,
                Event::Retry => host.engine.retry_refused(),
                Event::FailServers(nth, failure) => host.ipvs.fail_commit(nth, failure),
                Event::RefuseServers(owner) => host.ipvs.refuse_owner(Owner(owner), ENOMEM),
                Event::Compare => drop(host.engine.servers_observed(host.ipvs.observe().unwrap())),
                Event::Piece => drop(host.compare_piece()),
                Event::Drained => host.drain(),
            }
        }
        world.relist().into_iter().for_each(|change| host.engine.apply(change));
        host.forgive();
        host.settle();
        (0..3).for_each(|_| host.drain());
        prop_assert_eq!(host.engine.refused_count(), 0);
        let shapes = host.kernel.survey(host.engine.program()).unwrap();
        prop_assert_eq!(host.engine.damage(&shapes), None);
        prop_assert!(host.engine.triggers.is_empty(), "{:?}", host.engine.triggers);
        let mut fresh = Host::started_with(last.clone());
        world.relist().into_iter().for_each(|change| fresh.engine.apply(change));
        fresh.settle();
        for family in Family::ALL {
            prop_assert_eq!(host.rows(family), fresh.rows(family));
        }
        prop_assert_eq!(host.servers(), fresh.servers());
        prop_assert_eq!(health_checks(&host), health_checks(&fresh));
        prop_assert_eq!(host.engine.lacking_local(), fresh.engine.lacking_local());
        prop_assert_eq!(host.engine.conflict_count(), fresh.engine.conflict_count());
        // A restart finds nothing to write.
        let (kernel, ipvs) = (host.kernel.clone(), host.ipvs.clone());
        let mut restarted = Host { kernel, ipvs, ..Host::started_with(last) };
        (restarted.kernel.committed, restarted.kernel.last) = (0, None);
        restarted.ipvs.operations = 0;
        world.relist().into_iter().for_each(|change| restarted.engine.apply(change));
        restarted.settle();
        let written = restarted.kernel.last.as_ref().map(render::batch).unwrap_or_default();
        prop_assert_eq!(restarted.kernel.committed, 0, "{}", written);
    }
}

#[derive(Clone, Debug)]
enum Event {
    Step(Step),
    Pass,
    Settle,
    /// The commit after so many fails.
    Fail(usize, Failure),
    /// All rows of this Service are refused from now on.
    Refuse(u32),
    /// Whether the kernel tells which operation it refuses.
    Anonymous(bool),
    /// The configuration file has changed.
    Settings(u8),
    Retry,
    /// As `Fail` and `Refuse`, of IPVS.
    FailServers(usize, Failure),
    RefuseServers(u32),
    /// Virtual servers are compared with what is believed.
    Compare,
    /// The next piece of such a comparison.
    Piece,
    /// Nobody has connections any more.
    Drained,
}

fn event() -> impl Strategy<Value = Event> {
    let step = sample::steps()
        .prop_filter_map("no step", |steps| steps.into_iter().next())
        .prop_map(Event::Step);
    let failure = select(vec![
        Failure::Rejected(EINVAL),
        Failure::Rejected(EEXIST),
        Failure::NoRoom,
        Failure::Socket(EPERM),
        Failure::UnknownApplied,
        Failure::UnknownLost,
        Failure::Interrupted,
    ]);
    prop_oneof![
        12 => step,
        4 => Just(Event::Pass),
        1 => Just(Event::Settle),
        2 => (1..4_usize, failure).prop_map(|(nth, failure)| Event::Fail(nth, failure)),
        1 => (0..4_u32).prop_map(Event::Refuse),
        1 => any::<bool>().prop_map(Event::Anonymous),
        1 => (0..5_u8).prop_map(Event::Settings),
        1 => Just(Event::Retry),
        1 => (1..4_usize, server_failure()).prop_map(|(nth, it)| Event::FailServers(nth, it)),
        1 => (0..4_u32).prop_map(Event::RefuseServers),
        1 => Just(Event::Compare),
        3 => Just(Event::Piece),
        1 => Just(Event::Drained),
    ]
}

#[test]
fn nothing_is_planned_before_every_list_is_complete() {
    for last in RESOURCES {
        let mut host = Host::new();
        let objects = [
            Change::ServiceApplied(service("ns/a", "10.96.0.1")),
            Change::SliceApplied(slice("ns/a-1", "ns/a", &["10.1.0.1"])),
        ];
        RESOURCES.into_iter().for_each(|it| host.engine.apply(Change::Listing(it)));
        objects.into_iter().for_each(|it| host.engine.apply(it));
        for resource in RESOURCES.into_iter().filter(|it| *it != last) {
            host.engine.apply(Change::Listed(resource));
            assert!(!host.engine.has_work(), "{last:?} is missing");
        }
        host.engine.apply(Change::Listed(last));
        assert!(host.engine.has_work());
        host.settle();
        assert_eq!(host.kernel.tables.rows(Family::V4, SetName::Endpoints).count(), 1);
    }
}

#[test]
fn a_refused_service_delays_no_other_keeps_its_rows_and_comes_back() {
    for anonymous in [false, true] {
        for restarted in [false, true] {
            check_refused(anonymous, restarted);
        }
        check_refused_at_first(anonymous);
    }
}

/// `anonymous`: the kernel does not say what it refuses. `restarted`: the refusal begins with the first look at a
/// kernel that is programmed already.
#[track_caller]
fn check_refused(anonymous: bool, restarted: bool) {
    let mut host = Host::started();
    let services: Vec<String> = (1..=20).map(|n| format!("ns/s{n}")).collect();
    for (name, n) in services.iter().zip(1..) {
        host.engine.apply(Change::ServiceApplied(service(name, &format!("10.96.0.{n}"))));
        host.engine.apply(endpoint(name, n, 1));
    }
    host.settle();
    if restarted {
        host.engine.lost();
    }
    let bad = host.engine.cluster().id(&name("ns/s7")).unwrap();
    host.kernel.refuse_owner(Owner(bad.0), EINVAL);
    host.anonymous = anonymous;
    for (name, n) in services.iter().zip(1..) {
        host.engine.apply(endpoint(name, n, 2));
    }
    host.settle();
    for n in 1..=20 {
        let expected = if n == 7 { 1 } else { 2 };
        assert_eq!(host.backends(n), [ip(&format!("10.1.{n}.{expected}"))], "{n}");
    }
    assert_eq!(host.engine.refused_count(), 1);
    // A try in vain costs nobody anything.
    host.engine.retry_refused();
    assert!(host.engine.has_work());
    host.settle();
    assert_eq!((host.engine.refused_count(), host.backends(7)), (1, vec![ip("10.1.7.1")]));
    // It is tried again when it changes, and when it is time.
    host.kernel.refuse_nobody();
    host.engine.apply(endpoint("ns/s7", 7, 3));
    host.settle();
    assert_eq!((host.engine.refused_count(), host.backends(7)), (0, vec![ip("10.1.7.3")]));
    host.kernel.refuse_owner(Owner(bad.0), EINVAL);
    host.engine.apply(endpoint("ns/s7", 7, 4));
    host.settle();
    assert_eq!(host.backends(7), [ip("10.1.7.3")]);
    host.forgive();
    host.settle();
    assert_eq!(host.backends(7), [ip("10.1.7.4")]);
}

/// The first batch makes the tables too; refusing it must not cost the others their tables.
#[track_caller]
fn check_refused_at_first(anonymous: bool) {
    let mut host = Host::started();
    host.anonymous = anonymous;
    for n in 1..=9 {
        let name = format!("ns/s{n}");
        host.engine.apply(Change::ServiceApplied(service(&name, &format!("10.96.0.{n}"))));
        host.engine.apply(endpoint(&name, n, 1));
    }
    let bad = host.engine.cluster().id(&name("ns/s7")).unwrap();
    host.kernel.refuse_owner(Owner(bad.0), EINVAL);
    host.settle();
    assert_eq!(host.engine.refused_count(), 1);
    for n in 1..=9 {
        assert_eq!(host.backends(n).len(), usize::from(n != 7), "{n}");
    }
}

#[test]
fn an_address_that_a_refused_service_holds_delays_only_who_wants_it() {
    let mut host = Host::started();
    host.engine.apply(Change::ServiceApplied(service("ns/holder", "10.96.0.1")));
    host.engine.apply(endpoint("ns/holder", 1, 1));
    host.settle();
    let holder = host.engine.cluster().id(&name("ns/holder")).unwrap();
    host.kernel.refuse_owner(Owner(holder.0), EINVAL);
    host.engine.apply(Change::ServiceApplied(service("ns/holder", "10.96.0.9")));
    let mut wants = service("ns/wants", "10.96.0.2");
    wants.v4.as_mut().unwrap().external_ips = vec![ip("10.96.0.1")];
    host.engine.apply(Change::ServiceApplied(wants));
    host.engine.apply(endpoint("ns/wants", 2, 1));
    host.engine.apply(Change::ServiceApplied(service("ns/other", "10.96.0.3")));
    host.engine.apply(endpoint("ns/other", 3, 1));
    host.settle();
    assert_eq!(host.engine.refused_count(), 2);
    assert_eq!(host.backends(1), [ip("10.1.1.1")], "the old rows stay");
    assert_eq!(host.backends(3), [ip("10.1.3.1")]);
    host.forgive();
    host.settle();
    assert_eq!(host.engine.refused_count(), 0);
    assert_eq!(host.backends(1), [ip("10.1.2.1")]);
    assert_eq!(host.backends(9), [ip("10.1.1.1")]);
}

#[test]
fn a_service_that_goes_while_the_kernel_is_not_known_leaves_nothing() {
    let mut host = Host::started();
    let mut health_checked = service("ns/a", "10.96.0.1");
    health_checked.external_policy = crate::model::TrafficPolicy::Local;
    health_checked.health_check_node_port = Some(sample::port(30_000));
    let family = health_checked.v4.as_mut().unwrap();
    family.load_balancer_ips = vec![ip("192.0.2.1")];
    host.engine.apply(Change::ServiceApplied(health_checked));
    host.engine.apply(endpoint("ns/a", 1, 1));
    host.settle();
    assert!(!host.engine.health_checks().wanted.is_empty());
    host.kernel.fail_commit(1, Failure::UnknownApplied);
    host.engine.apply(endpoint("ns/a", 1, 2));
    drop(host.pass());
    assert!(host.engine.needs_observation());
    host.engine.apply(Change::ServiceDeleted(name("ns/a")));
    let outcomes = host.settle_telling();
    assert_eq!(host.engine.health_checks().wanted, []);
    assert!(outcomes.iter().any(|it| it.health_checks_changed), "{outcomes:?}");
    assert_eq!(host.kernel.tables.rows(Family::V4, SetName::Endpoints).count(), 0);
}

/// A listener of a family that the host lacks could not be opened, and would answer for rules that are not there.
#[test]
fn health_check_node_ports_are_of_the_hosts_families() {
    let v4_only = Settings { families: vec![Family::V4], ..settings(0) };
    for (settings, expected) in [(settings(0), &Family::ALL[..]), (v4_only, &[Family::V4])] {
        let mut host = Host::started_with(settings);
        let mut both = service("ns/a", "10.96.0.1");
        both.v6 = service("ns/a", "fd00::1").v6;
        both.health_check_node_port = Some(sample::port(30_000));
        host.engine.apply(Change::ServiceApplied(both));
        host.settle();
        let wanted = host.engine.health_checks().wanted;
        assert_eq!(wanted.iter().map(|it| it.family).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn trigger_times_are_told_once_and_only_when_the_kernel_has_what_they_caused() {
    let mut host = Host::started();
    host.engine.apply(Change::ServiceApplied(service("ns/a", "10.96.0.1")));
    host.settle();
    for (at, failure) in [
        (1_i128, None),
        (2, Some(Failure::Interrupted)),
        (3, Some(Failure::UnknownApplied)),
        (4, Some(Failure::Rejected(EINVAL))),
    ] {
        let mut slice = slice("ns/a-1", "ns/a", &[&format!("10.1.0.{at}")]);
        slice.trigger_time = Some(at);
        if let Some(failure) = failure {
            host.kernel.fail_commit(1, failure);
        }
        host.engine.apply(Change::SliceApplied(slice));
        assert_eq!(host.engine.touched.triggers, [], "each event would walk along all before it");
        if failure.is_some() {
            assert!(host.pass().is_none(), "{failure:?}");
        }
        host.engine.retry_refused();
        let told: Vec<_> = host.settle_telling().into_iter().flat_map(|it| it.triggers).collect();
        assert_eq!(told, [(Family::V4, at)], "{failure:?}");
    }
}

/// As upstream: nobody knows any more which of the Service's changes the slice that is gone was the cause of.
#[test]
fn a_slice_that_goes_takes_its_services_trigger_times_with_it() {
    let mut host = Host::started();
    host.engine.apply(Change::ServiceApplied(service("ns/a", "10.96.0.1")));
    for (n, title) in [(1, "ns/a-1"), (2, "ns/a-2")] {
        let mut slice = slice(title, "ns/a", &[&format!("10.1.0.{n}")]);
        slice.trigger_time = Some(n);
        host.engine.apply(Change::SliceApplied(slice));
    }
    host.engine.apply(Change::SliceDeleted(name("ns/a-1")));
    let told: Vec<_> = host.settle_telling().into_iter().flat_map(|it| it.triggers).collect();
    assert_eq!(told, []);
    assert_eq!(host.backends(1), [ip("10.1.0.2")]);
}

#[test]
fn a_kernel_without_room_is_given_smaller_batches_until_they_fit() {
    let mut host = Host::started();
    host.settle();
    for n in 0..200_u8 {
        host.engine
            .apply(Change::ServiceApplied(service(&format!("ns/a{n}"), &format!("10.96.1.{n}"))));
        host.engine.apply(endpoint(&format!("ns/a{n}"), n, 1));
    }
    let mut lengths = Vec::new();
    while lengths.len() < 8 {
        if lengths.len() < 7 {
            host.kernel.fail_commit(1, Failure::NoRoom);
        }
        let before = host.kernel.operations;
        assert_eq!(host.pass().is_some(), lengths.len() == 7);
        assert!(!host.engine.needs_observation(), "nothing was lost");
        lengths.push(host.kernel.operations - before);
    }
    assert!((1..=2 * FEWEST_BATCH_ROWS).contains(&lengths[7]), "{lengths:?}");
    host.settle();
    assert!((0..200).all(|n| {
        host.kernel
            .tables
            .rows(Family::V4, SetName::ClusterIps)
            .any(|(key, _)| *key == Key::Address(ip(&format!("10.96.1.{n}"))))
    }));
}

#[test]
fn a_service_for_which_there_is_never_room_delays_no_other() {
    let mut host = Host::started();
    host.settle();
    let hosts: Vec<String> = (0..3_000_u16)
        .map(|it| it.to_be_bytes())
        .map(|[high, low]| format!("10.2.{high}.{low}"))
        .collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    // The numbers of Services are given out in this order, and those are the order of writing.
    for n in 1..=9 {
        let name = format!("ns/s{n}");
        host.engine.apply(Change::ServiceApplied(service(&name, &format!("10.96.0.{n}"))));
        let few = endpoint(&name, n, 1);
        let many = || Change::SliceApplied(slice(&format!("{name}-1"), &name, &hosts));
        host.engine.apply(if n == 3 { many() } else { few });
    }
    host.kernel.room = Some(2_000);
    host.settle();
    for n in 1..=9 {
        assert_eq!(host.backends(n).len(), usize::from(n != 3), "{n}");
    }
    assert_eq!(host.engine.refused_count(), 1);
    host.engine.apply(endpoint("ns/s7", 7, 2));
    host.settle();
    assert_eq!(host.backends(7), [ip("10.1.7.2")]);
    host.kernel.room = None;
    host.forgive();
    host.settle();
    assert_eq!(host.backends(3).len(), 3_000);
}

#[test]
fn a_kernel_without_room_for_anybody_blames_nobody_at_once() {
    let mut host = Host::started();
    host.engine.apply(Change::ServiceApplied(service("ns/a", "10.96.0.1")));
    host.settle();
    host.kernel.room = Some(0);
    host.engine.apply(endpoint("ns/a", 1, 1));
    for _ in 1..MOST_CRAMPED {
        assert!(host.pass().is_none());
    }
    assert_eq!(host.engine.refused_count(), 0);
    host.kernel.room = None;
    host.settle();
    assert_eq!(host.backends(1), [ip("10.1.1.1")]);
}

#[test]
fn a_kernel_that_does_not_hold_what_is_believed_is_looked_at_before_a_service_is_blamed() {
    let mut host = Host::started();
    host.engine.apply(Change::ServiceApplied(service("ns/a", "10.96.0.1")));
    host.engine.apply(endpoint("ns/a", 1, 1));
    host.settle();
    // Somebody takes a row away that is to be replaced next.
    let (set, family) = (SetName::Endpoints, Family::V4);
    let row = host.kernel.tables.rows(family, set).next().map(|(key, _)| *key).unwrap();
    let gone = Batch(vec![Op::DeleteElement { family, set, key: row, owner: None }]);
    host.kernel.commit(&gone).unwrap();
    host.engine.apply(endpoint("ns/a", 1, 2));
    assert!(host.pass().is_none());
    assert_eq!(host.engine.refused_count(), 0);
    assert!(host.engine.needs_observation());
    host.settle();
    assert_eq!(host.backends(1), [ip("10.1.1.2")]);
    // One that is refused although everything was just looked at is to blame.
    host.engine.lost();
    host.kernel.refuse_owner(Owner(0), EEXIST);
    host.engine.apply(endpoint("ns/a", 1, 3));
    host.settle();
    assert_eq!(host.engine.refused_count(), 1);
}

/// Before Linux 6.5 a set has the size that it was made with.
#[test]
fn sets_that_do_not_grow_are_made_anew() {
    let mut host = Host::started();
    host.kernel.fixed_sizes = true;
    host.settle();
    let tables = host.kernel.committed;
    for n in 0..3_000_u16 {
        let [high, low] = n.to_be_bytes();
        let address = format!("10.97.{high}.{low}");
        host.engine.apply(Change::ServiceApplied(service(&format!("ns/a{n}"), &address)));
    }
    host.settle();
    assert_eq!(host.engine.refused_count(), 0);
    assert_eq!(host.kernel.tables.rows(Family::V4, SetName::ClusterIps).count(), 3_000);
    let anew = host.kernel.last.as_ref().unwrap();
    assert!(anew.0.contains(&Op::DeleteTable(Family::V4)), "in one transaction");
    assert!(host.kernel.committed <= tables + 2, "{} batches", host.kernel.committed - tables);
    // With room for as many again.
    host.engine.apply(Change::ServiceApplied(service("ns/more", "10.98.0.1")));
    host.settle();
    assert!(host.kernel.last.as_ref().is_some_and(|it| it.len() < 10));
    // Only sets that are as large as they can be made are a Service's fault.
    host.kernel.refuse_owner(Owner(0), ENFILE);
    host.engine.apply(Change::ServiceApplied(service("ns/a0", "10.97.99.99")));
    host.settle();
    assert_eq!(host.engine.refused_count(), 1);
}

#[test]
fn a_rolling_update_writes_what_it_replaces_and_no_verdict() {
    check_rolling(None, 20, &[SetName::Endpoints]);
    check_rolling(Some(10_800), 40, &[SetName::StickySlots, SetName::StickyEndpoints]);
}

/// A thousand endpoints, ten replaced at a time: at once, and with the new ones coming before the old ones go.
#[track_caller]
fn check_rolling(affinity: Option<u32>, operations: usize, sets: &[SetName]) {
    let mut host = Host::started();
    let service = Service { affinity, ..service("ns/a", "10.96.0.1") };
    host.engine.apply(Change::ServiceApplied(service));
    (0..10).for_each(|it| host.engine.apply(hundred(it, 0, 0)));
    host.settle();
    for (number, generation) in (0..100).zip([1, 2].into_iter().cycle()) {
        let step = number % 10;
        for (come, gone) in if generation == 1 { vec![(10, 10)] } else { vec![(10, 0), (10, 10)] } {
            host.engine.apply(hundred(number / 10, step * 10 + come, step * 10 + gone));
            host.settle();
            let written = host.kernel.last.take().unwrap();
            // A surge moves the last ones into the holes: three rows for each that goes instead of one.
            let most =
                if come == gone && generation == 2 { operations * 3 / 2 } else { operations };
            assert!(written.len() <= most, "{} operations", written.len());
            let only = |op: &Op| matches!(op, Op::AddElement { set, .. } | Op::DeleteElement { set, .. } if sets.contains(set));
            assert!(written.0.iter().all(only), "{}", render::batch(&written));
        }
    }
    assert_eq!(host.kernel.tables.rows(Family::V4, *sets.last().unwrap()).count(), 1_000);
}

/// A slice of a hundred endpoints; the first `come` are there in the new version, all but the first `gone` in the old.
fn hundred(slice_number: u32, come: u32, gone: u32) -> Change {
    let of = |version: u32, range: std::ops::Range<u32>| {
        range.map(move |it| format!("10.{version}.{slice_number}.{it}"))
    };
    let endpoints: Vec<String> = of(2, 0..come).chain(of(1, gone..100)).collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    Change::SliceApplied(slice(&format!("ns/a-{slice_number}"), "ns/a", &endpoints))
}

/// An engine and its kernel, with the loop's way of passing things between them.
struct Host {
    engine: Engine,
    kernel: MemoryKernel,
    /// The kernel does not tell which operations it refuses.
    anonymous: bool,
    ipvs: MemoryIpvs,
}

/// Settings that can follow each other in one process.
fn settings(choice: u8) -> Settings {
    let usual = Settings {
        masquerade_mark: 0x4000,
        masquerade_all: false,
        ipvs: None,
        families: Family::ALL.to_vec(),
        detect_local: DetectLocal::ClusterCidr(Vec::new()),
        node_ports: NodePortSelector::Primary,
        node_ip: None,
    };
    let range = |text: &str| vec![text.parse().unwrap()];
    match choice {
        0 => usual,
        1 => Settings { masquerade_all: true, ..usual },
        2 => Settings { node_ports: NodePortSelector::Within(range("192.168.9.0/24")), ..usual },
        3 => Settings { node_ports: NodePortSelector::All, masquerade_mark: 0x8000, ..usual },
        _ => Settings { detect_local: DetectLocal::ClusterCidr(range("10.0.0.0/8")), ..usual },
    }
}

/// In IPVS mode.
fn balanced(settings: Settings) -> Settings {
    let ipvs = VirtualServers { split: Default::default(), drain: Duration::from_secs(900) };
    Settings { ipvs: Some(ipvs), ..settings }
}

fn server_failure() -> impl Strategy<Value = Failure> {
    select(vec![
        Failure::Rejected(ENOMEM),
        Failure::Rejected(ENOENT),
        Failure::UnknownApplied,
        Failure::UnknownLost,
    ])
}

impl Host {
    fn new() -> Host {
        Host::with(settings(0))
    }

    fn with(settings: Settings) -> Host {
        let mut engine = Engine::new(settings, Cluster::new(&RESOURCES));
        let addresses = ["127.0.0.1", "192.168.0.2", "192.168.9.9", "2001:db8::5"].map(ip);
        engine.apply(Change::HostAddresses(addresses.into()));
        let mut ipvs = MemoryIpvs::default();
        ipvs.prepare(&IpvsSettings::default()).unwrap();
        Host { engine, kernel: MemoryKernel::default(), anonymous: false, ipvs }
    }

    /// With empty lists of everything.
    fn started() -> Host {
        Host::started_with(settings(0))
    }

    fn started_with(settings: Settings) -> Host {
        let mut host = Host::with(settings);
        for resource in RESOURCES {
            host.engine.apply(Change::Listing(resource));
            host.engine.apply(Change::Listed(resource));
        }
        host
    }

    /// One pass of the loop; `None` if the kernel did not take the batch.
    fn pass(&mut self) -> Option<Outcome> {
        if self.engine.needs_observation() {
            let tables = self.kernel.observe(self.engine.program()).unwrap();
            self.engine.observed(tables);
        }
        if self.engine.needs_servers() {
            self.engine.servers_observed(self.ipvs.observe().unwrap());
        }
        let batch = self.engine.plan_servers();
        if !self.change_servers(&batch) {
            return None;
        }
        if self.engine.waits_for_servers() {
            return None;
        }
        let batch = self.engine.plan();
        if !batch.is_empty() {
            match self.kernel.commit(&batch) {
                Ok(()) => (),
                Err(KernelError::Rejected(rejections)) => {
                    self.refused(rejections);
                    return None;
                }
                Err(KernelError::NoRoom { .. }) => {
                    drop(self.engine.postponed());
                    return None;
                }
                Err(_) => {
                    self.engine.lost();
                    return None;
                }
            }
        }
        let batch = self.engine.plan_servers_after();
        let changed = self.change_servers(&batch);
        let outcome = self.engine.committed();
        changed.then_some(outcome)
    }

    fn change_servers(&mut self, batch: &ServerBatch) -> bool {
        if batch.0.is_empty() {
            return true;
        }
        match self.ipvs.commit(batch) {
            Ok(refused) => drop(self.engine.servers_changed(batch, &refused)),
            Err(_) => {
                self.engine.servers_lost(batch);
                return false;
            }
        }
        true
    }

    fn refused(&mut self, rejections: Vec<Rejection>) {
        let anonymous = |it| Rejection { op: None, owner: None, ..it };
        let told = match self.anonymous {
            true => rejections.into_iter().map(anonymous).collect(),
            false => rejections,
        };
        drop(self.engine.refused(told));
    }

    fn settle(&mut self) {
        drop(self.settle_telling());
    }

    /// Passes until there is nothing left to do.
    #[track_caller]
    fn settle_telling(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for _ in 0..MOST_PASSES {
            if !self.engine.has_work() {
                return outcomes;
            }
            outcomes.extend(self.pass());
        }
        panic!("no end after {MOST_PASSES} passes");
    }

    /// The kernel takes everything from now on.
    fn forgive(&mut self) {
        self.kernel.recover();
        self.ipvs.recover();
        self.engine.retry_refused();
    }

    /// Some time later nobody has connections any more.
    fn drain(&mut self) {
        let draining = self.engine.draining_servers();
        let seen = self.ipvs.connections(&draining).unwrap();
        self.engine.servers_drained(now(), &seen);
        self.settle();
    }

    /// Addresses and virtual servers.
    fn servers(&self) -> (BTreeSet<IpAddr>, String) {
        let addresses = self.ipvs.interface.as_ref().map(|it| it.addresses.clone());
        // Two Services on one cluster IP, which Kubernetes never allocates, may have the same hidden port.
        let visible = self.ipvs.servers.iter().filter(|(it, _)| it.port.get() < 0x8000);
        let visible = visible.map(|(key, server)| (*key, server.clone())).collect();
        (addresses.unwrap_or_default(), crate::ipvs::render::servers(&visible))
    }

    fn rows(&self, family: Family) -> BTreeSet<String> {
        canonical_table(&self.kernel, family)
    }

    /// Where connections to 10.96.0.`n` go.
    fn backends(&self, n: u8) -> Vec<IpAddr> {
        let at = ip(&format!("10.96.0.{n}"));
        let rows = self.kernel.tables.rows(Family::V4, SetName::Endpoints);
        let mut found = Vec::new();
        for (key, value) in rows {
            if let (Key::FrontendSlot(frontend, _), Value::Endpoint(address, _)) = (key, value)
                && frontend.address == at
            {
                found.push(*address);
            }
        }
        found
    }
}

fn endpoint(service: &str, n: u8, host: u8) -> Change {
    let address = format!("10.1.{n}.{host}");
    Change::SliceApplied(slice(&format!("{service}-1"), service, &[&address]))
}

#[expect(clippy::disallowed_methods, reason = "only how instants differ matters")]
fn now() -> Instant {
    Instant::now()
}

fn health_checks(host: &Host) -> String {
    let mut wanted = host.engine.health_checks().wanted;
    wanted.sort_by_key(|it| format!("{it:?}"));
    format!("{wanted:?}")
}
