//! What nft says about the tables that we wrote.

use kube_ferry::kernel::{Kernel, NetlinkKernel};
use kube_ferry::model::Family;
use kube_ferry::nft::render;
use kube_ferry::nft::schema::{Handle, ObservedTable};
use kube_ferry::nft::tables::Tables;
use kube_ferry::nft::{Batch, Chain, Op, SetName};

use super::namespace::{isolated, run};
use super::table::{everything, fits, other_statements, program, rows};
use crate::support::nft_versions::{LISTING, LOADING};

#[test]
fn nft_prints_what_it_would_have_loaded_itself() {
    let batch = with_every_statement(false);
    let mut tables = Tables::default();
    tables.apply(&batch).unwrap();
    let text = render::ruleset(&tables);
    for nft in LISTING.iter() {
        let (listed, json) = isolated(|| {
            NetlinkKernel::new().unwrap().commit(&batch).unwrap();
            (run(nft, &["list", "ruleset"], ""), run(nft, &["-j", "list", "ruleset"], ""))
        });
        if LOADING.contains(nft) {
            let expected = isolated(|| {
                run(nft, &["-f", "-"], &text);
                run(nft, &["list", "ruleset"], "")
            });
            assert_same_text(&listed, &expected);
        }
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let objects = json["nftables"].as_array().unwrap();
        let rules = objects.iter().filter(|it| it["rule"].is_object());
        assert_eq!(rules.count(), count_rules(&batch));
    }
}

#[test]
fn nft_loads_again_what_it_printed() {
    let batch = with_every_statement(false);
    for nft in LOADING.iter() {
        let listed = isolated(|| {
            NetlinkKernel::new().unwrap().commit(&batch).unwrap();
            run(nft, &["list", "ruleset"], "")
        });
        let again = isolated(|| {
            run(nft, &["-f", "-"], &listed);
            run(nft, &["list", "ruleset"], "")
        });
        assert_same_text(&again, &listed);
    }
}

#[test]
fn the_statements_for_remembering_are_listed_in_both_families() {
    let batch = with_every_statement(true);
    let listed = isolated(|| {
        NetlinkKernel::new().unwrap().commit(&batch).unwrap();
        let chain = ["list", "chain", "ip6", "kube-ferry", "remember-10800"];
        LISTING.iter().map(|nft| run(nft, &chain, "")).collect::<Vec<_>>()
    });
    let mask = Handle::GROUP_MASK;
    let mask = format!("{:x}:{:x}", mask >> 16, mask & 0xffff);
    for statement in [
        format!(
            "update @affinity {{ ip6 saddr . meta priority & {mask} timeout 3h : meta priority }}"
        ),
        format!("delete @affinity {{ ip6 saddr . meta priority & {mask} : meta priority }}"),
        "meta l4proto udp dnat ip6 to meta priority map @sticky-endpoints".to_owned(),
    ] {
        for listed in &listed {
            assert!(listed.contains(&statement), "{statement}\nis not in\n{listed}");
        }
    }
}

/// What nft 1.0.6 writes otherwise: a conversion of one byte that does nothing in `source-ranges` keys, and another
/// register for the data of `update`.
#[test]
fn a_table_that_nft_loaded_is_read_as_ours() {
    let batch = everything(&program(), false);
    let mut tables = Tables::default();
    tables.apply(&batch).unwrap();
    let mut observed = isolated(|| {
        run(&LOADING[0], &["-f", "-"], &render::ruleset(&tables));
        NetlinkKernel::new().unwrap().observe(&program()).unwrap()
    });
    let mut expected = tables.observed(&program());
    for (family, chains) in [
        (Family::V4, &[Chain::FirewallCheck, Chain::Remember(10800)][..]),
        (Family::V6, &[Chain::FirewallCheck]),
    ] {
        let table = observed.get_mut(&family).unwrap();
        for chain in chains {
            table.unknown.retain(|it| *it != format!("chain {chain}"));
            table.stale_chains.retain(|it| it != chain);
        }
        for table in [table, expected.get_mut(&family).unwrap()] {
            table.chains.retain(|it| !chains.contains(it));
        }
        assert_eq!(table_lines(&observed[&family]), table_lines(&expected[&family]));
    }
}

fn table_lines(table: &ObservedTable) -> Vec<String> {
    let sets = table.sets.iter().map(|it| format!("{it:?}"));
    let chains = table.chains.iter().map(|it| format!("{it}"));
    let rows = table.elements.iter().map(|it| format!("{it:?}"));
    sets.chain(chains).chain(rows).chain(table.unknown.iter().cloned()).collect()
}

#[test]
fn the_sample_has_rows_for_every_set_but_the_one_that_packets_write() {
    for set in SetName::ALL {
        let rows = rows(Family::V4, set);
        assert_eq!(rows.is_empty(), set == SetName::Affinity, "{set:?}");
        assert!(rows.iter().all(|(_, value)| fits(set, value)), "{set:?}");
    }
}

fn with_every_statement(remember: bool) -> Batch {
    let mut batch = everything(&program(), remember);
    for family in Family::ALL {
        let chain = Chain::FirewallCheck;
        batch.0.extend(other_statements(family).into_iter().map(|rule| Op::AddRule {
            family,
            chain,
            rule,
        }));
    }
    batch
}

fn count_rules(batch: &Batch) -> usize {
    batch.0.iter().filter(|op| matches!(op, Op::AddRule { .. })).count()
}

/// Shows the first difference instead of thousands of lines.
#[track_caller]
fn assert_same_text(found: &str, expected: &str) {
    for (number, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "line {}", number + 1);
    }
    assert_eq!(found.lines().count(), expected.lines().count());
}
