//! Commits, refusals and observations on a real kernel.

use kube_ferry::kernel::{Kernel, KernelError, NetlinkKernel};
use kube_ferry::model::Family;
use kube_ferry::nft::schema::Owner;
use kube_ferry::nft::tables::Tables;
use kube_ferry::nft::{Batch, Chain, Key, Op, SetName, Slots, Value};

use super::namespace::{isolated, run};
use super::table::{add, address, endpoint_row, everything, program, rows, skeleton_of};

const EEXIST: i32 = 17;
const ENOENT: i32 = 2;

#[test]
fn what_was_committed_is_observed() {
    let batch = everything(&program(), true);
    let mut tables = Tables::default();
    tables.apply(&batch).unwrap();
    isolated(|| {
        let mut kernel = NetlinkKernel::new().unwrap();
        assert!(kernel.observe(&program()).unwrap().is_empty());
        kernel.commit(&batch).unwrap();
        assert_eq!(kernel.observe(&program()).unwrap(), tables.observed(&program()));
        let mut shapes = kernel.survey(&program()).unwrap();
        let mut expected = tables.shapes(&program());
        for (family, shape) in &mut expected {
            let told = shapes.get_mut(family).map(|it| &mut it.elements).unwrap();
            // Kernels before 6.16 do not count elements, others count those of ranges as they like.
            told.remove(&SetName::ServiceCidrs);
            shape.elements.retain(|it, _| told.contains_key(it));
        }
        assert_eq!(shapes, expected);
        assert!(shapes.values().all(|it| it.uses.values().any(|uses| *uses > 2)));
    });
}

#[test]
fn every_row_can_be_deleted_again() {
    let program = program();
    isolated(|| {
        let mut kernel = NetlinkKernel::new().unwrap();
        kernel.commit(&everything(&program, true)).unwrap();
        let mut ops = Vec::new();
        for family in Family::ALL {
            for set in SetName::ALL {
                let rows = rows(family, set).into_iter();
                ops.extend(rows.map(|(key, _)| Op::DeleteElement {
                    family,
                    set,
                    key,
                    owner: None,
                }));
            }
        }
        kernel.commit(&Batch(ops)).unwrap();
        for table in kernel.observe(&program).unwrap().values() {
            assert_eq!((table.elements.as_slice(), table.unknown.as_slice()), (&[][..], &[][..]));
        }
    });
}

#[test]
fn adjacent_ranges_come_and_go_one_by_one() {
    let program = program();
    isolated(|| {
        let mut kernel = NetlinkKernel::new().unwrap();
        let (family, set) = (Family::V4, SetName::ServiceCidrs);
        let mut first = skeleton_of(&program, family, false);
        let [low, high] = ["10.0.0.0/9", "10.128.0.0/9"].map(|it| Key::Range(it.parse().unwrap()));
        first.0.push(add(family, set, low, Value::None));
        kernel.commit(&first).unwrap();
        kernel.commit(&Batch(vec![add(family, set, high, Value::None)])).unwrap();
        assert_eq!(ranges(&mut kernel), [low, high]);
        let delete = |key| Batch(vec![Op::DeleteElement { family, set, key, owner: None }]);
        kernel.commit(&delete(low)).unwrap();
        assert_eq!(ranges(&mut kernel), [high]);
        kernel.commit(&Batch(vec![add(family, set, low, Value::None)])).unwrap();
        kernel.commit(&delete(high)).unwrap();
        assert_eq!(ranges(&mut kernel), [low]);
    });
}

fn ranges(kernel: &mut NetlinkKernel) -> Vec<Key> {
    let observed = kernel.observe(&program()).unwrap();
    let table = &observed[&Family::V4];
    assert!(table.unknown.is_empty(), "{:?}", table.unknown);
    table.elements.iter().map(|(_, key, _)| *key).collect()
}

#[test]
fn a_hundred_thousand_rows_are_one_transaction() {
    isolated(|| {
        let mut kernel = NetlinkKernel::new().unwrap();
        for family in Family::ALL {
            kernel.commit(&skeleton_of(&program(), family, true)).unwrap();
            let before = kernel.generation().unwrap();
            let rows = Batch((0..100_000).map(|it| endpoint_row(family, it, None)).collect());
            kernel.commit(&rows).unwrap();
            assert_eq!(kernel.generation().unwrap(), before + 1);
        }
        for (family, table) in kernel.observe(&program()).unwrap() {
            assert_eq!((table.elements.len(), table.unknown.len()), (100_000, 0), "{family:?}");
        }
    });
}

#[test]
fn refused_rows_are_told_by_position_and_owner() {
    isolated(|| {
        let mut kernel = NetlinkKernel::new().unwrap();
        let family = Family::V4;
        kernel.commit(&skeleton_of(&program(), family, false)).unwrap();
        let taken = |number| {
            let Op::AddElement { set, key, .. } = endpoint_row(family, number, None) else {
                panic!("it adds a row")
            };
            add(family, set, key, Value::Endpoint(address(family, 77), super::table::port(1)))
        };
        kernel.commit(&Batch(vec![taken(3_000), taken(19_999)])).unwrap();
        let rows = (0..20_000).map(|it| endpoint_row(family, it, Some(Owner(it)))).collect();
        let Err(KernelError::Rejected(rejections)) = kernel.commit(&Batch(rows)) else {
            panic!("was not refused")
        };
        let told: Vec<_> = rejections.iter().map(|it| (it.op, it.owner, it.errno)).collect();
        assert_eq!(
            told,
            [3_000usize, 19_999].map(|it| (
                Some(it),
                Some(Owner(u32::try_from(it).unwrap())),
                EEXIST
            ))
        );
        assert!(rejections[0].what.contains("10.0.11.184 . tcp . 443"), "{}", rejections[0].what);
        assert_eq!(kernel.observe(&program()).unwrap()[&family].elements.len(), 2);
    });
}

#[test]
fn a_deletion_of_what_is_absent_is_refused_and_so_is_a_missing_chain() {
    isolated(|| {
        let mut kernel = NetlinkKernel::new().unwrap();
        let family = Family::V6;
        kernel.commit(&skeleton_of(&program(), family, false)).unwrap();
        let (set, key) = (SetName::ServiceCidrs, Key::Range("fd00::/108".parse().unwrap()));
        let batch = Batch(vec![
            add(family, SetName::ClusterIps, Key::Address(address(family, 1)), Value::None),
            Op::DeleteElement { family, set, key, owner: Some(Owner(7)) },
            Op::DeleteChain { family, chain: Chain::Remember(10800) },
        ]);
        let Err(KernelError::Rejected(rejections)) = kernel.commit(&batch) else {
            panic!("was not refused")
        };
        let told: Vec<_> = rejections.iter().map(|it| (it.op, it.owner, it.errno)).collect();
        assert_eq!(told, [(Some(1), Some(Owner(7)), ENOENT), (Some(2), None, ENOENT)]);
    });
}

#[test]
fn validation_tells_refusals_and_changes_nothing() {
    isolated(|| {
        let mut kernel = NetlinkKernel::new().unwrap();
        let before = kernel.generation().unwrap();
        kernel.validate(&everything(&program(), true)).unwrap();
        assert!(kernel.observe(&program()).unwrap().is_empty());
        let family = Family::V4;
        let mut bad = skeleton_of(&program(), family, false);
        bad.0.push(Op::FlushChain { family, chain: Chain::Remember(1) });
        let position = bad.len() - 1;
        match kernel.validate(&bad) {
            Err(KernelError::Rejected(all)) => assert_eq!(all[0].op, Some(position)),
            other => panic!("{other:?}"),
        }
        assert_eq!(kernel.generation().unwrap(), before);
        assert_eq!(run("nft", &["list", "ruleset"], ""), "");
    });
}

#[test]
fn a_commit_at_an_old_generation_is_interrupted() {
    isolated(|| {
        let mut kernel = NetlinkKernel::new().unwrap();
        let batch = Batch(vec![Op::AddTable(Family::V4)]);
        let generation = kernel.generation().unwrap();
        kernel.commit_at(&batch, generation).unwrap();
        let again = kernel.commit_at(&batch, generation);
        assert!(matches!(again, Err(KernelError::Interrupted(_))), "{again:?}");
    });
}

#[test]
fn a_set_grows_and_a_table_goes_whether_it_is_there_or_not() {
    isolated(|| {
        let mut kernel = NetlinkKernel::new().unwrap();
        let (family, set) = (Family::V4, SetName::Endpoints);
        let size = Some(1);
        let table = vec![Op::AddTable(family), Op::AddSet { family, set, size }];
        kernel.commit(&Batch(table)).unwrap();
        let row = |number| endpoint_row(family, number, Some(Owner(number)));
        let two = Batch(vec![row(1), row(2)]);
        match kernel.commit(&two) {
            Err(KernelError::Rejected(all)) => {
                assert_eq!((all[0].owner, all[0].errno), (Some(Owner(2)), 23));
            }
            other => panic!("{other:?}"),
        }
        kernel.commit(&Batch(vec![Op::ResizeSet { family, set, size: 2 }])).unwrap();
        let sets = kernel.observe(&program()).unwrap().remove(&family).unwrap().sets;
        if sets == [(set, size)] {
            // Before 6.5 the new size is forgotten, so there is no more room; a new table has it.
            assert!(matches!(kernel.commit(&two), Err(KernelError::Rejected(_))));
            let size = Some(4);
            let again =
                [Op::DeleteTable(family), Op::AddTable(family), Op::AddSet { family, set, size }];
            let rows = [row(1), row(2), row(3), row(4)];
            kernel.commit(&Batch(again.into_iter().chain(rows).collect())).unwrap();
        } else {
            kernel.commit(&two).unwrap();
            // Rows may come with the room that they need.
            let resize = Op::ResizeSet { family, set, size: 4 };
            let more = Batch(vec![resize, row(3), row(4)]);
            kernel.validate(&more).unwrap();
            kernel.commit(&more).unwrap();
        }
        assert!(!kernel.changed_by_others().unwrap(), "all commits were our own");
        assert!(kernel.validate(&Batch(vec![row(5)])).is_err());
        let observed = kernel.observe(&program()).unwrap();
        assert_eq!(observed[&family].sets, [(set, Some(4))]);
        for _ in 0..2 {
            kernel.commit(&Batch(vec![Op::DeleteTable(family)])).unwrap();
            assert!(kernel.observe(&program()).unwrap().is_empty());
        }
    });
}

#[test]
fn what_others_put_into_the_table_is_named() {
    isolated(|| {
        let mut kernel = NetlinkKernel::new().unwrap();
        kernel.commit(&everything(&program(), true)).unwrap();
        let foreign = "
            add rule ip kube-ferry pick-8 counter drop
            insert rule ip kube-ferry reject-chain drop
            add chain ip kube-ferry theirs
            add set ip kube-ferry theirs { type ipv4_addr; }
            add counter ip kube-ferry theirs
            add element ip kube-ferry service-cidrs { 100.64.0.1-100.64.0.2 }
            delete chain ip kube-ferry filter-input
            add chain ip kube-ferry filter-input { type filter hook input priority 1; }
            add table ip theirs
            add chain ip theirs pick-8";
        run("nft", &["-f", "-"], foreign);
        let observed = kernel.observe(&program()).unwrap();
        assert_eq!(
            observed[&Family::V4].unknown,
            [
                "1 object(s) other than sets and chains",
                "chain filter-input",
                "chain theirs",
                "element of service-cidrs: from 100.64.0.1 up to, without, 100.64.0.3",
                "set theirs",
            ]
        );
        let pick = Chain::Pick(Slots::from_log2(3).unwrap());
        assert_eq!(observed[&Family::V4].stale_chains, [Chain::Reject, pick]);
        assert!(observed[&Family::V6].unknown.is_empty());
    });
}
