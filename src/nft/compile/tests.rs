//! Laws and examples of the compiler, against the kernel in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::forward::{
    Backend, Frontend, FrontendAddress, FrontendKind, PortForwarding, WithoutBackend,
};
use crate::kernel::Kernel;
use crate::kernel::memory::MemoryKernel;
use crate::model::{Protocol, TrafficPolicy};
use crate::nft::render;
use crate::nft::schema::{Chain, Slots, Verdict};
use crate::nft::skeleton::tests::program;

#[test]
fn nothing_is_staged_twice() {
    let mut world = World::new();
    world.stage(1, &web(&[1, 2, 3], None));
    world.commit();
    world.stage(1, &web(&[1, 2, 3], None));
    assert_eq!(world.compiler.staged_len(), 0);
    assert!(world.compiler.batch().is_empty());
}

#[test]
fn one_endpoint_of_a_thousand_writes_three_rows_for_each_frontend() {
    let mut world = World::new();
    let thousand: Vec<u32> = (1..=1000).collect();
    world.stage(1, &web(&thousand, None));
    world.commit();
    for (affinity, gone) in [(None, 400), (Some(600), 500)] {
        world.stage(1, &web(&thousand, affinity));
        world.commit();
        let left: Vec<u32> = thousand.iter().copied().filter(|it| *it != gone).collect();
        world.stage(1, &web(&left, affinity));
        // Without affinity three frontends have endpoints; with it the one group has, and loses a handle.
        let expected = if affinity.is_none() { 9 } else { 4 };
        assert_eq!(world.commit(), expected, "{affinity:?}");
        world.stage(1, &web(&thousand, affinity));
        let expected = if affinity.is_none() { 3 } else { 2 };
        assert_eq!(world.commit(), expected, "{affinity:?}");
    }
}

#[test]
fn scaling_to_zero_and_back_touches_no_verdict() {
    for affinity in [None, Some(600)] {
        let mut world = World::new();
        world.stage(1, &web(&[1, 2, 3, 4, 5], affinity));
        world.commit();
        for endpoints in [&[][..], &[6, 7, 8, 9]] {
            world.stage(1, &web(endpoints, affinity));
            for op in world.compiler.batch().0 {
                let verdict = matches!(
                    op,
                    Op::AddElement { value: Value::Verdict(_), .. }
                        | Op::DeleteElement {
                            set: SetName::Frontends | SetName::NodePorts | SetName::StickyGroups,
                            ..
                        }
                );
                assert!(!verdict, "{}", render::command(&op));
            }
            world.commit();
        }
    }
}

#[test]
fn a_restart_with_nothing_changed_writes_nothing() {
    for endpoints in [&[][..], &[1, 2, 3, 4, 5]] {
        for affinity in [None, Some(600)] {
            let mut world = World::new();
            world.stage(1, &web(&[1, 2, 3, 4, 5, 6], affinity));
            world.stage(2, &service(2, &[9], affinity));
            world.commit();
            world.stage(1, &web(endpoints, affinity));
            world.commit();
            world.restart();
            assert_eq!(world.compiler.batch(), Batch::default());
        }
    }
}

#[test]
fn a_restart_prunes_what_is_gone() {
    let mut world = World::new();
    world.stage(1, &web(&[1, 2], Some(600)));
    world.stage(2, &service(2, &[9], None));
    world.compiler.stage_node_port_ips(Family::V4, &BTreeSet::from([address(200)]));
    world.commit();
    world.desired.remove(&1);
    world.restart();
    world.commit();
    let mut fresh = World::new();
    fresh.stage(2, &service(2, &[9], None));
    fresh.commit();
    assert_eq!(world.kernel.tables, fresh.kernel.tables);
}

#[test]
fn a_changed_restriction_is_no_overlap_after_a_restart() {
    let restricted = |ranges: &[&str]| {
        let mut web = web(&[1], None);
        let ranges: Vec<IpNet> = ranges.iter().map(|it| it.parse().unwrap()).collect();
        web.ports[0].frontends[1].source_ranges = Some(ranges.into());
        web
    };
    let mut world = World::new();
    world.stage(1, &restricted(&["10.0.0.0/8", "10.1.0.0/16"]));
    world.compiler.stage_service_cidrs(Family::V4, &["10.0.0.0/8".parse().unwrap()]);
    world.commit();
    let ranges = world.kernel.tables.rows(Family::V4, SetName::SourceRanges).count();
    assert_eq!(ranges, 1, "overlapping ranges are joined");
    world.desired.insert(1, restricted(&["10.1.0.0/16"]));
    world.adopt();
    world.stage(1, &restricted(&["10.1.0.0/16"]));
    let cidrs = ["10.1.0.0/16".parse().unwrap(), "10.1.2.0/24".parse().unwrap()];
    world.compiler.stage_service_cidrs(Family::V4, &cidrs);
    world.commit();
    world.restart();
    world.compiler.stage_service_cidrs(Family::V4, &cidrs);
    world.commit();
    assert_eq!(world.kernel.tables.rows(Family::V4, SetName::ServiceCidrs).count(), 1);
}

#[test]
fn a_tampered_table_is_made_anew_in_one_batch() {
    let mut world = World::new();
    world.stage(1, &web(&[1, 2, 3], Some(600)));
    world.stage(2, &service(2, &[9], None));
    world.commit();
    let wanted = world.kernel.tables.clone();
    let table = world.kernel.tables.0.get_mut(&Family::V4).unwrap();
    table.chains.get_mut(&Chain::Services).unwrap().clear();
    world.adopt();
    assert!(world.compiler.needs_rebuild());
    world.stage_everything();
    world.compiler.rollback();
    world.stage_everything();
    world.commit();
    assert!(!world.compiler.needs_rebuild());
    assert_eq!(world.kernel.tables, wanted, "endpoints even keep their slots");
    world.restart();
    assert!(world.compiler.batch().is_empty());
}

#[test]
fn a_missing_chain_and_set_are_added() {
    let mut world = World::new();
    let wanted = world.kernel.tables.clone();
    let table = world.kernel.tables.0.get_mut(&Family::V6).unwrap();
    table.chains.remove(&Chain::NatOutput);
    table.sets.remove(&SetName::NodePortIps);
    world.restart();
    assert_eq!(world.compiler.batch().len(), 4, "table, set, chain, rule");
    world.commit();
    assert_eq!(world.kernel.tables, wanted);
}

#[test]
fn a_family_that_is_switched_off_loses_its_table() {
    let mut world = World::new();
    let mut program = program();
    program.families = vec![Family::V4];
    let observed = world.kernel.observe(&program).unwrap();
    world.compiler = Compiler::adopt(program, observed);
    world.compiler.stage_prune();
    world.commit();
    assert!(!world.kernel.tables.0.contains_key(&Family::V6));
    assert!(world.compiler.batch().is_empty());
}

#[test]
fn full_sets_grow() {
    let mut world = World::new();
    let many: Vec<u32> = (1..=3000).collect();
    world.stage(1, &web(&many, None));
    world.commit();
    let size = |world: &World| world.kernel.tables.0[&Family::V4].sets[&SetName::Endpoints].0;
    assert_eq!(size(&world), Some(8192), "two frontends with addresses");
    world.stage(2, &service(2, &many, None));
    world.commit();
    assert_eq!(size(&world), Some(16384));
    world.restart();
    assert!(world.compiler.batch().is_empty());
}

#[test]
fn expected_rows_size_the_sets() {
    let mut expected = RowCounts::default();
    expected.expect(&web(&(1..=3000).collect::<Vec<_>>(), None));
    assert_eq!(expected.get(Family::V4, SetName::Endpoints), 6000);
    let mut compiler = Compiler::new(program());
    compiler.stage_skeleton(&expected);
    let size = compiler.batch().0.into_iter().find_map(|op| {
        let Op::AddSet { family: Family::V4, set: SetName::Endpoints, size } = op else {
            return None;
        };
        size
    });
    assert_eq!(size, Some(16384));
}

#[test]
fn a_claim_goes_over_before_the_loser_is_staged() {
    let mut world = World::new();
    world.stage(1, &web(&[1], None));
    world.commit();
    let mut thief = service(2, &[9], None);
    thief.ports[0].frontends.push(web(&[1], None).ports[0].frontends[1].clone());
    world.stage(2, &thief);
    world.commit();
    let mut loser = web(&[1], None);
    loser.ports[0].frontends.remove(1);
    world.stage(1, &loser);
    assert_eq!(world.compiler.staged_len(), 0, "already done");
    world.stage(2, &ServiceForwarding::default());
    world.stage(1, &web(&[1], None));
    world.commit();
    let mut fresh = World::new();
    fresh.stage(1, &web(&[1], None));
    fresh.commit();
    assert_eq!(world.kernel.tables, fresh.kernel.tables);
}

#[test]
fn limits_are_reported() {
    let mut world = World::new();
    let many: Vec<u32> = (1..=20_000).collect();
    world.stage(1, &web(&many, None));
    world.stage(2, &service(2, &many[..5000], Some(60)));
    let limits: Vec<_> = world.compiler.take_limits();
    let told: Vec<_> = limits.iter().map(|it| (it.owner.0, it.reason)).collect();
    let plain = LimitReason::Endpoints { wanted: 20_000, used: 16_384 };
    let sticky = LimitReason::Endpoints { wanted: 5000, used: 4095 };
    assert_eq!(told, [(1, plain), (2, sticky)]);
    assert!(world.compiler.take_limits().is_empty());
    world.commit();
    assert_eq!(world.kernel.tables.rows(Family::V4, SetName::StickyEndpoints).count(), 4095);
    // Every number is in use; who comes gets the number of who goes.
    world.stage(2, &service(2, &many[1..4096], Some(60)));
    assert!(world.compiler.take_limits().is_empty());
    world.commit();
}

#[test]
fn without_a_free_group_a_port_is_served_without_affinity() {
    let mut compiler = Compiler::new(program());
    for number in 0..=65_536 {
        compiler.stage(Owner(number), &service(number, &[1], Some(60)));
    }
    let limits = compiler.take_limits();
    assert_eq!(limits.len(), 1);
    assert_eq!((limits[0].owner, limits[0].reason), (Owner(65_536), LimitReason::AffinityGroups));
    compiler.stage(Owner(3), &ServiceForwarding::default());
    compiler.stage(Owner(65_536), &service(65_536, &[1], Some(60)));
    assert!(compiler.take_limits().is_empty());
}

#[test]
fn affinity_local_has_groups_of_its_own() {
    let mut world = World::new();
    let mut web = web(&[1, 2, 3], Some(60));
    web.ports[0].frontends[1].policy = TrafficPolicy::Local;
    web.ports[0].local = vec![backend(2)];
    world.stage(1, &web);
    world.commit();
    let text = render::ruleset(&world.kernel.tables);
    let has = |row: &str| assert!(text.contains(row), "{row} is missing in {text}");
    has("10.96.0.1 . tcp . 80 : goto sticky,");
    has("192.0.2.1 . tcp . 80 : goto sticky-external-local,");
    has("tcp . 30001 : goto sticky-nodeport,");
    assert_eq!(world.kernel.tables.rows(Family::V4, SetName::StickyGroups).count(), 2);
    assert_eq!(world.kernel.tables.rows(Family::V4, SetName::StickyLocalFrontends).count(), 1);
}

#[test]
fn an_unused_timeout_has_no_chain() {
    let remember = |world: &World| -> Vec<String> {
        let chains = world.kernel.tables.0[&Family::V4].chains.keys();
        chains.filter(|it| matches!(it, Chain::Remember(_))).map(Chain::to_string).collect()
    };
    let mut world = World::new();
    world.stage(1, &web(&[1], Some(60)));
    world.stage(2, &service(2, &[1], Some(60)));
    world.commit();
    world.stage(1, &web(&[1], Some(70)));
    world.commit();
    assert_eq!(remember(&world), ["remember-60", "remember-70"]);
    world.stage(2, &ServiceForwarding::default());
    world.commit();
    assert_eq!(remember(&world), ["remember-70"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever happens on the way, the kernel ends up as if everything had been staged at once.
    #[test]
    fn incremental_equals_from_scratch(steps in vec(step(), 1..24)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Stage(owner, forwarding) => world.stage(owner, &forwarding),
                Step::Commit => drop(world.commit()),
                Step::Reject => world.reject(),
                Step::Restart => {
                    // Whatever was staged and not committed is lost with the process.
                    world.desired = world.confirmed.clone();
                    world.restart();
                    assert_eq!(world.commit(), 0, "nothing has changed");
                }
                Step::RestartChanged => {
                    world.restart();
                    world.commit();
                }
            }
        }
        world.commit();
        keeps_invariants(&world.kernel);
        world.stage_everything();
        prop_assert_eq!(world.compiler.staged_len(), 0);
        let mut fresh = World::new();
        fresh.desired = world.desired.clone();
        fresh.stage_everything();
        fresh.commit();
        prop_assert_eq!(canonical(&world.kernel), canonical(&fresh.kernel));
        world.restart();
        prop_assert!(world.compiler.batch().is_empty());
        let counted: Vec<_> = world.compiler.row_counts().iter().collect();
        let held = world.kernel.tables.0.iter().flat_map(|(family, table)| {
            table.sets.iter().map(|(set, (_, rows))| (*family, *set, u32::try_from(rows.len()).unwrap()))
        });
        prop_assert_eq!(counted, held.filter(|(_, _, rows)| *rows > 0).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Rows that somebody has removed, added or exchanged are put right by a restart, in one batch.
    #[test]
    fn a_restart_repairs_rows(
        services in vec(0_u32..4, 3..4).prop_flat_map(|it| {
            it.into_iter().map(|owner| forwarding(owner).prop_map(move |it| (owner, it))).collect::<Vec<_>>()
        }),
        removed in vec(any::<prop::sample::Index>(), 0..20),
        exchanged in vec(any::<(prop::sample::Index, prop::sample::Index)>(), 0..20),
        added in vec((any::<prop::sample::Index>(), 0_u16..30), 0..20),
    ) {
        let mut world = World::new();
        for (owner, forwarding) in &services {
            world.stage(*owner, forwarding);
        }
        world.commit();
        let wanted = canonical(&world.kernel);
        tamper(&mut world.kernel, &removed, &exchanged, &added);
        world.restart();
        world.commit();
        keeps_invariants(&world.kernel);
        prop_assert_eq!(canonical(&world.kernel), wanted);
    }
}

fn tamper(
    kernel: &mut MemoryKernel,
    removed: &[prop::sample::Index],
    exchanged: &[(prop::sample::Index, prop::sample::Index)],
    added: &[(prop::sample::Index, u16)],
) {
    let rows: Vec<_> = v4_rows(kernel).collect();
    let table = kernel.tables.0.get_mut(&Family::V4).unwrap();
    for index in removed {
        let (set, key, _) = index.get(&rows);
        table.sets.get_mut(set).unwrap().1.remove(key);
    }
    for (one, other) in exchanged {
        let ((set, key, _), (of, _, value)) = (one.get(&rows), other.get(&rows));
        if set == of {
            table.sets.get_mut(set).unwrap().1.insert(*key, *value);
        }
    }
    for (index, slot) in added {
        let (set, key, value) = index.get(&rows);
        let key = match without_slot(*key) {
            Some((Key::Frontend(at), _)) => Key::FrontendSlot(at, *slot),
            Some((Key::NodePort(at), _)) => Key::NodePortSlot(at, *slot),
            Some((Key::Group(group), _)) => Key::GroupSlot(group, *slot),
            Some(_) | None => continue,
        };
        table.sets.get_mut(set).unwrap().1.insert(key, *value);
    }
}

/// A compiler, its kernel, and what both should know.
struct World {
    compiler: Compiler,
    kernel: MemoryKernel,
    desired: BTreeMap<u32, ServiceForwarding>,
    confirmed: BTreeMap<u32, ServiceForwarding>,
}

impl World {
    fn new() -> World {
        let mut world = World {
            compiler: Compiler::new(program()),
            kernel: MemoryKernel::default(),
            desired: BTreeMap::new(),
            confirmed: BTreeMap::new(),
        };
        world.compiler.stage_skeleton(&RowCounts::default());
        world.commit();
        world
    }

    fn stage(&mut self, owner: u32, forwarding: &ServiceForwarding) {
        self.compiler.stage(Owner(owner), forwarding);
        self.desired.insert(owner, forwarding.clone());
        self.desired.retain(|_, it| !it.ports.is_empty());
    }

    /// Returns the number of operations.
    fn commit(&mut self) -> usize {
        let batch = self.compiler.batch();
        if let Err(error) = self.kernel.commit(&batch) {
            panic!("{error}\n{}", render::batch(&batch));
        }
        self.compiler.confirm();
        self.confirmed = self.desired.clone();
        assert_eq!(self.compiler.staged_len(), 0);
        assert!(self.compiler.batch().is_empty());
        batch.len()
    }

    fn reject(&mut self) {
        self.compiler.rollback();
        self.desired = self.confirmed.clone();
        assert!(self.compiler.batch().is_empty());
    }

    fn adopt(&mut self) {
        let observed = self.kernel.observe(&program()).unwrap();
        self.compiler = Compiler::adopt(program(), observed);
    }

    fn restart(&mut self) {
        self.adopt();
        self.stage_everything();
    }

    fn stage_everything(&mut self) {
        self.compiler.stage_skeleton(&RowCounts::default());
        for (owner, forwarding) in &self.desired {
            self.compiler.stage(Owner(*owner), forwarding);
        }
        self.compiler.stage_prune();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Stage(u32, ServiceForwarding),
    Commit,
    Reject,
    /// The process restarts; what is wanted is what was committed.
    Restart,
    /// The process restarts; what is wanted has changed meanwhile.
    RestartChanged,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_u32..4).prop_flat_map(|owner| forwarding(owner).prop_map(move |it| Step::Stage(owner, it))),
        1 => (0_u32..4).prop_map(|owner| Step::Stage(owner, ServiceForwarding::default())),
        3 => Just(Step::Commit),
        1 => Just(Step::Reject),
        1 => Just(Step::Restart),
        1 => Just(Step::RestartChanged),
    ]
}

/// A random Service; owners never claim the same frontends, but share endpoints.
fn forwarding(owner: u32) -> impl Strategy<Value = ServiceForwarding> {
    let ports = vec((any::<[bool; 7]>(), 0..3_u8, endpoints(), endpoints(), 0..3_u8), 1..3);
    ports.prop_map(move |ports| {
        let ports = ports.into_iter().zip([80, 443]);
        let ports = ports.map(|((flags, affinity, cluster, local, without), number)| {
            random_port(owner, number, flags, affinity, (cluster, local), without)
        });
        ServiceForwarding { ports: ports.collect() }
    })
}

fn endpoints() -> impl Strategy<Value = Vec<Backend>> {
    btree_set(0_u32..24, 0..20).prop_map(|it| it.into_iter().map(backend).collect())
}

fn random_port(
    owner: u32,
    number: u16,
    flags: [bool; 7],
    affinity: u8,
    (cluster, local): (Vec<Backend>, Vec<Backend>),
    without: u8,
) -> PortForwarding {
    let [external, balanced, node_port, internal_local, external_local, ranges, _] = flags;
    let policy = |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    let mut port = web(&[], None).ports.remove(0);
    let [mut cluster_ip, mut load_balancer, mut node] =
        <[Frontend; 3]>::try_from(std::mem::take(&mut port.frontends)).unwrap();
    let without = match without {
        0 => WithoutBackend::Served,
        1 => WithoutBackend::Reject,
        _ => WithoutBackend::Drop,
    };
    for frontend in [&mut cluster_ip, &mut load_balancer, &mut node] {
        frontend.policy = policy(external_local);
        frontend.without_backend = without;
    }
    cluster_ip.policy = policy(internal_local);
    let mut external_ip = load_balancer.clone();
    external_ip.kind = FrontendKind::ExternalIp;
    let nonzero = |it: u16| NonZeroU16::new(it).unwrap();
    let at = |host| FrontendAddress::Address(address(host), nonzero(number));
    cluster_ip.at = at(0x0a60_0000 + owner);
    external_ip.at = at(0xc000_0200 + owner);
    load_balancer.at = at(0xc000_0280 + owner);
    node.at = FrontendAddress::NodePort(nonzero(30_000 + number + u16::try_from(owner).unwrap()));
    if ranges {
        let nets = ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/25", "192.0.2.128/25"];
        load_balancer.source_ranges = Some(nets.map(|it| it.parse().unwrap()).into());
    }
    port.frontends.push(cluster_ip);
    port.frontends.extend(external.then_some(external_ip));
    port.frontends.extend(balanced.then_some(load_balancer));
    port.frontends.extend(node_port.then_some(node));
    port.hairpin = local.iter().map(|it| it.address).collect();
    port.affinity = [None, Some(60), Some(600)][usize::from(affinity)];
    PortForwarding { cluster, local, ..port }
}

/// A TCP port with a cluster IP, a load-balancer address and a NodePort.
fn web(endpoints: &[u32], affinity: Option<u32>) -> ServiceForwarding {
    let frontend = |at, kind| Frontend {
        at,
        kind,
        policy: TrafficPolicy::Cluster,
        without_backend: WithoutBackend::Served,
        source_ranges: None,
    };
    let port = NonZeroU16::new(80).unwrap();
    let at = |address: &str| FrontendAddress::Address(address.parse().unwrap(), port);
    let frontends = vec![
        frontend(at("10.96.0.1"), FrontendKind::ClusterIp),
        frontend(at("192.0.2.1"), FrontendKind::LoadBalancerIp),
        frontend(
            FrontendAddress::NodePort(NonZeroU16::new(30_001).unwrap()),
            FrontendKind::NodePort,
        ),
    ];
    let port = PortForwarding {
        family: Family::V4,
        port_name: "http".into(),
        protocol: Protocol::Tcp,
        frontends,
        cluster: endpoints.iter().copied().map(backend).collect(),
        local: Vec::new(),
        hairpin: Vec::new(),
        affinity,
    };
    ServiceForwarding { ports: vec![port] }
}

/// With a cluster IP only.
fn service(number: u32, endpoints: &[u32], affinity: Option<u32>) -> ServiceForwarding {
    let mut service = web(endpoints, affinity);
    service.ports[0].frontends.truncate(1);
    let port = NonZeroU16::new(80).unwrap();
    service.ports[0].frontends[0].at =
        FrontendAddress::Address(address(0x0a70_0000 + number), port);
    service
}

fn backend(number: u32) -> Backend {
    Backend { address: address(0x0a01_0000 + number), port: NonZeroU16::new(8080).unwrap() }
}

fn address(number: u32) -> IpAddr {
    IpAddr::V4(number.into())
}

/// Everything that slots and groups stand for, without their numbers.
fn canonical(kernel: &MemoryKernel) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for (set, key, value) in v4_rows(kernel) {
        if matches!(key, Key::Group(_) | Key::GroupSlot(..)) {
            continue;
        }
        let value = match value {
            Value::Handle(group) => format!("{:?}", group_content(kernel, group)),
            Value::Verdict(verdict) => without_slots(verdict),
            Value::None | Value::Endpoint(..) => format!("{value:?}"),
        };
        let key = without_slot(key).map_or(key, |(of, _)| of);
        let key = format!("{key:?}");
        lines.insert(format!("{set:?} {key} {value}"));
    }
    let chains = kernel.tables.0[&Family::V4].chains.keys();
    lines.extend(chains.map(Chain::to_string));
    lines
}

fn without_slot(key: Key) -> Option<(Key, u16)> {
    if let Key::FrontendSlot(at, slot) = key {
        Some((Key::Frontend(at), slot))
    } else if let Key::NodePortSlot(at, slot) = key {
        Some((Key::NodePort(at), slot))
    } else if let Key::GroupSlot(group, slot) = key {
        Some((Key::Group(group), slot))
    } else {
        None
    }
}

fn without_slots(verdict: Verdict) -> String {
    let text = verdict.to_string();
    text.trim_end_matches(|it: char| it.is_ascii_digit()).to_owned()
}

/// Endpoints and timeout of a group.
fn group_content(kernel: &MemoryKernel, group: Handle) -> (BTreeSet<Value>, Value) {
    let value = |set, key| *kernel.tables.0[&Family::V4].sets[&set].1.get(&key).unwrap();
    let slots = kernel.tables.rows(Family::V4, SetName::StickySlots);
    let handles = slots.filter_map(|(key, value)| match (key, value) {
        (Key::GroupSlot(of, _), Value::Handle(handle)) if *of == group => Some(*handle),
        _ => None,
    });
    let endpoints = handles.map(|it| value(SetName::StickyEndpoints, Key::Group(it))).collect();
    (endpoints, value(SetName::AffinityTimeouts, Key::Group(group)))
}

/// Slots are filled without gaps, and enough of those that chains draw from; every group has a user.
fn keeps_invariants(kernel: &MemoryKernel) {
    let mut filled: BTreeMap<(SetName, String), Vec<u16>> = BTreeMap::new();
    for (set, key, _) in v4_rows(kernel) {
        let Some((of, slot)) = without_slot(key) else { continue };
        let verdicts = BTreeMap::from([
            (SetName::Endpoints, SetName::Frontends),
            (SetName::LocalEndpoints, SetName::LocalFrontends),
            (SetName::NodePortEndpoints, SetName::NodePorts),
            (SetName::LocalNodePortEndpoints, SetName::LocalNodePorts),
            (SetName::StickySlots, SetName::StickyGroups),
        ])[&set];
        let verdict = kernel.tables.0[&Family::V4].sets[&verdicts].1[&of];
        let Value::Verdict(Verdict::Goto(chain)) = verdict else { panic!("{verdict:?}") };
        filled.entry((set, chain.to_string() + &format!(" {of:?}"))).or_default().push(slot);
    }
    for ((_, chain), slots) in filled {
        let expected: Vec<u16> = (0..u16::try_from(slots.len()).unwrap()).collect();
        assert_eq!(slots, expected, "{chain}");
        let name = chain.split(' ').next().unwrap();
        let count: usize = name.rsplit('-').next().unwrap().parse().unwrap();
        assert!(slots.len() <= count && 8 * slots.len() > 3 * count, "{chain}: {}", slots.len());
        assert!(Slots::all().any(|it| it.count() as usize == count));
    }
    let rows = |set| kernel.tables.rows(Family::V4, set).count();
    assert_eq!(rows(SetName::StickySlots), rows(SetName::StickyEndpoints));
    assert_eq!(rows(SetName::StickyGroups), rows(SetName::AffinityTimeouts));
    let used: BTreeSet<Value> =
        v4_rows(kernel).filter(|(set, ..)| *set != SetName::StickySlots).map(|it| it.2).collect();
    let used = used.into_iter().filter(|it| matches!(it, Value::Handle(_))).count();
    assert_eq!(used, rows(SetName::StickyGroups));
}

fn v4_rows(kernel: &MemoryKernel) -> impl Iterator<Item = (SetName, Key, Value)> + '_ {
    SetName::ALL.into_iter().flat_map(|set| {
        kernel.tables.rows(Family::V4, set).map(move |(key, value)| (set, *key, *value))
    })
}
