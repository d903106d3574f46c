//! What others do to the tables, seen without their rules and rows.

use super::*;
use crate::nft::schema::{Chain, Rule, Verdict};
use crate::nft::skeleton;
use crate::nft::tables::Table;

#[test]
fn a_survey_sees_whatever_is_gone_but_rows_on_every_kernel() {
    check(|table| drop(table.chains.remove(&Chain::Reject)), "chain reject-chain is gone");
    check(|table| drop(table.sets.remove(&SetName::Endpoints)), "set endpoints is gone");
    let flush = |table: &mut Table| table.chains.get_mut(&Chain::Services).unwrap().clear();
    check(flush, "chain services is used 2 times");
    let insert = |table: &mut Table| {
        table.chains.get_mut(&Chain::Services).unwrap().insert(0, Rule(Vec::new()));
    };
    check(insert, "chain services is used");
    let another = |table: &mut Table| drop(table.chains.insert(Chain::Remember(7), Vec::new()));
    check(another, "there is chain remember-7");
    let frontend = |table: &mut Table| {
        first_row(table, SetName::Frontends);
    };
    check(frontend, "is used");
    let elsewhere = |table: &mut Table| {
        let (key, _) = first_row(table, SetName::Frontends);
        let rows = &mut table.sets.get_mut(&SetName::Frontends).unwrap().1;
        rows.insert(key, Value::Verdict(Verdict::Goto(Chain::Reject)));
    };
    check(elsewhere, "is used");
}

#[test]
fn a_survey_sees_that_a_table_is_gone() {
    let mut host = host();
    host.kernel.tables.0.remove(&Family::V4);
    assert!(damage(&mut host).is_some_and(|it| it.contains("the table is gone")));
    host.engine.lost();
    host.settle();
    assert_eq!(damage(&mut host), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// A row that is gone is seen if it led to a chain, or if the kernel counts elements; once it is repaired, nothing is
    /// seen any more.
    #[test]
    fn rows_that_are_gone_are_seen_as_far_as_the_kernel_counts(
        steps in sample::steps(),
        set in select(&SetName::ALL),
        counting in any::<bool>(),
    ) {
        let mut host = host();
        let mut world = sample::World::default();
        for step in steps {
            world.step(step).into_iter().for_each(|change| host.engine.apply(change));
        }
        host.settle();
        host.kernel.silent_counts = !counting;
        prop_assert_eq!(damage(&mut host), None);
        let spec = skeleton::spec(set);
        let sees = spec.data == crate::nft::schema::Data::Verdict
            || counting && set != SetName::ServiceCidrs;
        let rows = host.kernel.tables.0.get_mut(&Family::V4).and_then(|it| it.sets.get_mut(&set));
        if rows.and_then(|(_, rows)| rows.pop_first()).is_some() && !spec.dynamic {
            prop_assert_eq!(damage(&mut host).is_some(), sees);
        }
        host.engine.lost();
        host.settle();
        prop_assert_eq!(damage(&mut host), None);
    }
}

/// Without counts of elements, as before Linux 6.16.
#[track_caller]
fn check(destroy: impl Fn(&mut Table), told: &str) {
    let mut host = host();
    host.kernel.silent_counts = true;
    assert_eq!(damage(&mut host), None);
    destroy(host.kernel.tables.0.get_mut(&Family::V4).unwrap());
    let seen = damage(&mut host);
    assert!(seen.as_ref().is_some_and(|it| it.contains(told)), "{seen:?}");
    host.engine.lost();
    host.settle();
    assert_eq!(damage(&mut host), None);
}

fn host() -> Host {
    let mut host = Host::started();
    host.engine.apply(Change::ServiceApplied(service("ns/a", "10.96.0.1")));
    host.engine.apply(endpoint("ns/a", 1, 1));
    host.settle();
    host
}

fn damage(host: &mut Host) -> Option<String> {
    let shapes = host.kernel.survey(host.engine.program()).unwrap();
    host.engine.damage(&shapes)
}

fn first_row(table: &mut Table, set: SetName) -> (Key, Value) {
    table.sets.get_mut(&set).unwrap().1.pop_first().unwrap()
}
