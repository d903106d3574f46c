//! The compiler, against the kernel in memory.

use super::*;
use crate::kernel::Kernel;
use crate::model::TrafficPolicy;
use crate::nft::render;
use crate::nft::schema::{Chain, Slots, Value};
use crate::nft::skeleton::tests::program;
use world::{World, address, backend, service, web};

pub(crate) mod laws;
mod world;

#[test]
fn nothing_is_staged_twice() {
    let mut world = World::new();
    world.stage(1, &web(&[1, 2, 3], None));
    world.commit();
    world.stage(1, &web(&[1, 2, 3], None));
    assert_eq!(world.compiler.staged_len(), 0);
    assert!(world.compiler.batch().is_empty());
    world.stage(1, &web(&[4, 5], Some(60)));
    world.stage(2, &service(2, &[9], None));
    world.stage(1, &web(&[1, 2, 3], None));
    world.stage(2, &ServiceForwarding::default());
    // Slots may differ after the detour, and so may the draws' range; rows of service 2 leave no trace.
    let of_2 = |op: &Op| matches!(op, Op::AddElement { owner: Some(Owner(2)), .. });
    assert!(!world.compiler.batch().0.iter().any(of_2));
    world.compiler.rollback();
    world.stage(2, &service(2, &[9], None));
    world.stage(2, &ServiceForwarding::default());
    assert_eq!(world.compiler.staged_len(), 0);
}

#[test]
fn a_port_that_is_split_gets_a_second_group() {
    let mut world = World::new();
    let mut split = web(&[1, 2], Some(60));
    world.stage(1, &split);
    world.commit();
    let mut second = split.ports[0].clone();
    second.frontends.remove(0);
    second.cluster = vec![backend(3)];
    split.ports[0].frontends.truncate(1);
    split.ports.push(second);
    world.stage(1, &split);
    world.commit();
    assert_eq!(world.kernel.tables.rows(Family::V4, SetName::StickyGroups).count(), 2);
    assert_eq!(world.kernel.tables.rows(Family::V4, SetName::StickyEndpoints).count(), 3);
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
    // Chains that were in use once stay.
    let two = Some(Slots::for_count(2));
    let tables = &mut world.kernel.tables.0;
    tables.values_mut().for_each(|table| table.chains.retain(|chain, _| chain.slots() != two));
    assert_eq!(world.kernel.tables, fresh.kernel.tables);
}

#[test]
fn chains_of_a_number_of_slots_come_with_the_first_row_that_leads_there() {
    let mut world = World::new();
    let held = |world: &World| -> BTreeSet<u32> {
        let chains = world.kernel.tables.0[&Family::V4].chains.keys();
        chains.filter_map(|it| Some(it.slots()?.count())).collect()
    };
    assert_eq!(held(&world), BTreeSet::new());
    world.stage(1, &web(&[1, 2, 3], None));
    world.reject();
    world.stage(1, &web(&[1, 2, 3], None));
    world.commit();
    assert_eq!(held(&world), BTreeSet::from([4]));
    world.stage(1, &web(&[1, 2, 3, 4, 5], None));
    world.stage(2, &service(2, &[9], Some(60)));
    world.commit();
    assert_eq!(held(&world), BTreeSet::from([1, 4, 8]));
    world.stage(1, &web(&[1, 2, 3], None));
    world.commit();
    world.restart();
    assert_eq!(world.commit(), 0);
    assert_eq!(held(&world), BTreeSet::from([1, 4, 8]), "what is there stays");
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

/// An upgrade of the program, or somebody's hand: rows and remembered clients stay where they are.
#[test]
fn a_chain_with_other_rules_is_filled_anew_and_nothing_else_is_written() {
    let mut world = World::new();
    world.stage(1, &web(&[1, 2, 3], Some(600)));
    world.commit();
    let wanted = world.kernel.tables.clone();
    let table = world.kernel.tables.0.get_mut(&Family::V4).unwrap();
    let rules = std::mem::take(table.chains.get_mut(&Chain::Services).unwrap()).len();
    world.restart();
    assert!(!world.compiler.needs_rebuild());
    let batch = world.compiler.batch();
    assert_eq!(batch.len(), 3 + rules, "table, chain, flush, rules: {batch:?}");
    world.commit();
    assert_eq!(world.kernel.tables, wanted);
}

#[test]
fn a_tampered_table_is_made_anew_in_one_batch() {
    let mut world = World::new();
    world.stage(1, &web(&[1, 2, 3], Some(600)));
    world.stage(2, &service(2, &[9], None));
    world.commit();
    let wanted = world.kernel.tables.clone();
    let table = world.kernel.tables.0.get_mut(&Family::V4).unwrap();
    table.chains.get_mut(&Chain::Remember(600)).unwrap().clear();
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
    expected.expect(&web(&(1..=3000).collect::<Vec<_>>(), None), false);
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

/// Otherwise all clients that are remembered for one endpoint that goes would be sent to the one that comes.
#[test]
fn an_endpoint_that_comes_gets_a_number_that_nobody_had() {
    let numbers = |world: &World| -> BTreeSet<u16> {
        let rows = world.kernel.tables.rows(Family::V4, SetName::StickyEndpoints);
        rows.filter_map(|(key, _)| group_of_key(key)).map(Handle::endpoint).collect()
    };
    let mut world = World::new();
    for endpoints in [&[1, 2][..], &[1], &[1, 3], &[3], &[3, 1]] {
        world.stage(1, &web(endpoints, Some(60)));
        world.commit();
    }
    assert_eq!(numbers(&world), [3, 4].into(), "1 and 2 are remembered by some still");
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
