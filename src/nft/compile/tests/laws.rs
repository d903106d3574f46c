//! Laws of the compiler, with random Services.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::world::{World, address, backend, web};
use crate::forward::{
    Backend, Frontend, FrontendAddress, FrontendKind, PortForwarding, ServiceForwarding,
    WithoutBackend,
};
use crate::kernel::memory::MemoryKernel;
use crate::model::{Family, TrafficPolicy};
use crate::nft::schema::{Chain, Handle, Key, SetName, Slots, Value, Verdict};

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever happens on the way, the kernel ends up as if everything had been staged at once.
    #[test]
    fn incremental_equals_from_scratch(steps in vec(step(), 1..24)) {
        let mut world = World::new();
        // Whose addresses each owner has, as staged and as committed.
        let (mut identities, mut confirmed) = ([0, 1, 2, 3], [0, 1, 2, 3]);
        for step in steps {
            match step {
                Step::Stage(owner, recipe) => {
                    world.stage(owner, &of_recipe(identities[owner as usize], recipe));
                }
                Step::Remove(owner) => world.stage(owner, &ServiceForwarding::default()),
                Step::Exchange(pair, recipes) => {
                    identities.swap(pair[0] as usize, pair[1] as usize);
                    for (owner, recipe) in pair.into_iter().zip(recipes) {
                        world.stage(owner, &of_recipe(identities[owner as usize], recipe));
                    }
                }
                Step::Commit => {
                    world.commit();
                    confirmed = identities;
                }
                Step::Reject => {
                    world.reject();
                    identities = confirmed;
                }
                Step::Restart => {
                    // Whatever was staged and not committed is lost with the process.
                    world.desired = world.confirmed.clone();
                    identities = confirmed;
                    world.restart();
                    assert_eq!(world.commit(), 0, "nothing has changed");
                }
                Step::RestartChanged => {
                    world.restart();
                    world.commit();
                    confirmed = identities;
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
        let counted: Vec<_> = world.compiler.counts.iter().collect();
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

#[derive(Clone, Debug)]
enum Step {
    Stage(u32, Recipe),
    Remove(u32),
    /// Each takes over the addresses of the other.
    Exchange([u32; 2], [Recipe; 2]),
    Commit,
    Reject,
    /// The process restarts; what is wanted is what was committed.
    Restart,
    /// The process restarts; what is wanted has changed meanwhile.
    RestartChanged,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_u32..4, recipe()).prop_map(|(owner, recipe)| Step::Stage(owner, recipe)),
        1 => (0_u32..4).prop_map(Step::Remove),
        1 => ([0_u32..4, 0_u32..4], [recipe(), recipe()])
            .prop_map(|(pair, recipes)| Step::Exchange(pair, recipes)),
        3 => Just(Step::Commit),
        1 => Just(Step::Reject),
        1 => Just(Step::Restart),
        1 => Just(Step::RestartChanged),
    ]
}

/// All of a random Service but its addresses.
type Recipe = Vec<([bool; 7], u8, Vec<Backend>, Vec<Backend>, u8)>;

fn recipe() -> impl Strategy<Value = Recipe> {
    vec((any::<[bool; 7]>(), 0..3_u8, endpoints(), endpoints(), 0..3_u8), 1..3)
}

/// With the addresses of an identity; different ones never claim the same frontends, but share endpoints.
fn of_recipe(identity: u32, recipe: Recipe) -> ServiceForwarding {
    let ports = recipe.into_iter().zip([80, 443]);
    let ports = ports.map(|((flags, affinity, cluster, local, without), number)| {
        random_port(identity, number, flags, affinity, (cluster, local), without)
    });
    ServiceForwarding { ports: ports.collect(), health_check: None, ipvs_scheduler: None }
}

/// A random Service.
pub(crate) fn forwarding(owner: u32) -> impl Strategy<Value = ServiceForwarding> {
    recipe().prop_map(move |it| of_recipe(owner, it))
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

fn canonical(kernel: &MemoryKernel) -> BTreeSet<String> {
    canonical_table(kernel, Family::V4)
}

/// Everything that slots and groups stand for, without their numbers.
pub(crate) fn canonical_table(kernel: &MemoryKernel, family: Family) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for (set, key, value) in rows_of(kernel, family) {
        if matches!(key, Key::Group(_) | Key::GroupSlot(..)) {
            continue;
        }
        let value = match value {
            Value::Handle(group) => format!("{:?}", group_content(kernel, family, group)),
            Value::Verdict(verdict) => without_slots(verdict),
            Value::None | Value::Endpoint(..) => format!("{value:?}"),
        };
        let key = without_slot(key).map_or(key, |(of, _)| of);
        let key = format!("{key:?}");
        lines.insert(format!("{set:?} {key} {value}"));
    }
    // Which numbers of slots were ever used depends on the way.
    let chains = kernel.tables.0[&family].chains.keys().filter(|it| it.slots().is_none());
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
fn group_content(kernel: &MemoryKernel, family: Family, group: Handle) -> (BTreeSet<Value>, Value) {
    let value = |set, key| *kernel.tables.0[&family].sets[&set].1.get(&key).unwrap();
    let slots = kernel.tables.rows(family, SetName::StickySlots);
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
    rows_of(kernel, Family::V4)
}

fn rows_of(
    kernel: &MemoryKernel,
    family: Family,
) -> impl Iterator<Item = (SetName, Key, Value)> + '_ {
    SetName::ALL.into_iter().flat_map(move |set| {
        kernel.tables.rows(family, set).map(move |(key, value)| (set, *key, *value))
    })
}
