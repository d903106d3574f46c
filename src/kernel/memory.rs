//! A kernel in memory, as strict as the real one, that can be told to fail.

mod ipvs;

use std::collections::BTreeMap;

use super::{Kernel, KernelError, Rejection};
use crate::model::Family;
use crate::nft::render;
use crate::nft::schema::{Batch, ObservedTable, Op, Owner, SetName};
use crate::nft::shape::TableShape;
use crate::nft::skeleton::Program;
use crate::nft::tables::Tables;

pub use ipvs::MemoryIpvs;

/// Holds tables as values. Its fields are for tests to look at and to tamper with.
#[derive(Clone, Debug, Default)]
pub struct MemoryKernel {
    pub tables: Tables,
    /// Batches that were carried out, whatever the caller was told.
    pub committed: usize,
    /// Operations that were carried out.
    pub operations: usize,
    /// The last batch that was carried out.
    pub last: Option<Batch>,
    /// What [`Kernel::changed_by_others`] says next.
    pub changed_by_others: bool,
    /// As kernels before 6.5: a set keeps the size that it was made with, and nobody says so.
    pub fixed_sizes: bool,
    /// As kernels before 6.16: nobody is told how many elements a set has.
    pub silent_counts: bool,
    /// There is no room for a batch of more operations than these.
    pub room: Option<usize>,
    failures: BTreeMap<usize, Failure>,
    refused: BTreeMap<Owner, i32>,
    commits: usize,
}

/// How a commit fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The first operation is refused with this errno.
    Rejected(i32),
    /// The socket fails with this errno.
    Socket(i32),
    /// There is no memory, or no room in the socket.
    NoRoom,
    /// Carried out, but the acknowledgement is lost.
    UnknownApplied,
    /// Not carried out, and nothing is heard of it.
    UnknownLost,
    /// Somebody else committed in between.
    Interrupted,
}

impl MemoryKernel {
    /// Lets a later commit fail: 1 is the next one.
    pub fn fail_commit(&mut self, nth: usize, failure: Failure) {
        self.failures.insert(self.commits + nth, failure);
    }

    /// From now on refuses all rows of that owner.
    pub fn refuse_owner(&mut self, owner: Owner, errno: i32) {
        self.refused.insert(owner, errno);
    }

    /// Refuses no rows for their owner any more.
    pub fn refuse_nobody(&mut self) {
        self.refused.clear();
    }

    /// Refuses nothing any more, and no later commit fails.
    pub fn recover(&mut self) {
        self.refused.clear();
        self.failures.clear();
    }

    fn carry_out(&mut self, batch: &Batch) -> Result<(), KernelError> {
        self.refuse(batch)?;
        if !self.fixed_sizes {
            self.apply(&batch.before())?;
        }
        self.apply(batch)?;
        self.committed += 1;
        self.operations += batch.len();
        self.last = Some(batch.clone());
        Ok(())
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), KernelError> {
        let sizes = self.sizes();
        self.tables.apply(batch).map_err(|refusals| {
            let told = refusals.into_iter().map(|it| rejection(batch, it.op, it.errno));
            KernelError::Rejected(told.collect())
        })?;
        if self.fixed_sizes {
            let made_anew = |family: Family| batch.0.contains(&Op::DeleteTable(family));
            for (family, table) in self.tables.0.iter_mut().filter(|it| !made_anew(*it.0)) {
                for (set, (size, _)) in &mut table.sets {
                    *size = sizes.get(&(*family, *set)).copied().unwrap_or(*size);
                }
            }
        }
        Ok(())
    }

    fn sizes(&self) -> BTreeMap<(Family, SetName), Option<u32>> {
        let tables = self.tables.0.iter();
        let sets = tables.flat_map(|(family, table)| table.sets.iter().map(|it| (*family, it)));
        sets.map(|(family, (set, (size, _)))| ((family, *set), *size)).collect()
    }

    fn refuse(&self, batch: &Batch) -> Result<(), KernelError> {
        let errno = |op: &Op| owner_of(op).and_then(|owner| self.refused.get(&owner).copied());
        let told = batch.0.iter().enumerate();
        let told = told.filter_map(|(at, op)| Some(rejection(batch, at, errno(op)?)));
        let told: Vec<Rejection> = told.collect();
        if told.is_empty() { Ok(()) } else { Err(KernelError::Rejected(told)) }
    }
}

impl Kernel for MemoryKernel {
    fn observe(
        &mut self,
        program: &Program,
    ) -> Result<BTreeMap<Family, ObservedTable>, KernelError> {
        Ok(self.tables.observed(program))
    }

    fn survey(&mut self, program: &Program) -> Result<BTreeMap<Family, TableShape>, KernelError> {
        let mut shapes = self.tables.shapes(program);
        if self.silent_counts {
            shapes.values_mut().for_each(|it| it.elements.clear());
        }
        Ok(shapes)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), KernelError> {
        self.commits += 1;
        let failure = self.failures.remove(&self.commits);
        let overflows = self.room.is_some_and(|room| batch.len() > room);
        match failure.or(overflows.then_some(Failure::NoRoom)) {
            None => self.carry_out(batch),
            Some(Failure::Rejected(errno)) => {
                Err(KernelError::Rejected(vec![rejection(batch, 0, errno)]))
            }
            Some(Failure::Socket(errno)) => {
                let error = std::io::Error::from_raw_os_error(errno);
                Err(KernelError::Socket { doing: "sending a batch", error })
            }
            Some(Failure::NoRoom) => {
                let error = std::io::ErrorKind::OutOfMemory.into();
                Err(KernelError::NoRoom { doing: "sending a batch", error })
            }
            Some(Failure::UnknownApplied) => {
                self.carry_out(batch)?;
                Err(KernelError::Unknown("told to lose the acknowledgement".to_owned()))
            }
            Some(Failure::UnknownLost) => {
                Err(KernelError::Unknown("told to lose the batch".to_owned()))
            }
            Some(Failure::Interrupted) => {
                Err(KernelError::Interrupted("told that there was another change".to_owned()))
            }
        }
    }

    fn changed_by_others(&mut self) -> Result<bool, KernelError> {
        Ok(std::mem::take(&mut self.changed_by_others))
    }

    fn validate(&mut self, batch: &Batch) -> Result<(), KernelError> {
        self.refuse(batch)?;
        let mut tables = self.tables.clone();
        // Growing alone is never refused but for what is not there, which the batch itself tells.
        drop(tables.apply(&batch.before()));
        tables.check(batch).map_err(|refusals| {
            let told = refusals.into_iter().map(|it| rejection(batch, it.op, it.errno));
            KernelError::Rejected(told.collect())
        })
    }
}

fn rejection(batch: &Batch, position: usize, errno: i32) -> Rejection {
    let op = batch.0.get(position);
    Rejection {
        op: op.map(|_| position),
        owner: op.and_then(owner_of),
        errno,
        what: op.map_or_else(String::new, render::command),
    }
}

fn owner_of(op: &Op) -> Option<Owner> {
    if let Op::AddElement { owner, .. } | Op::DeleteElement { owner, .. } = op {
        *owner
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::schema::{Chain, Key, SetName, Value, Verdict};
    use crate::nft::skeleton::tests::program;
    use crate::nft::tables::{EBUSY, EEXIST, EINVAL, ENFILE, ENOENT};

    const FAMILY: Family = Family::V4;

    #[test]
    fn adding_what_is_there_is_fine() {
        check(&[add("192.0.2.1"), add("192.0.2.1")], &[]);
    }

    #[test]
    fn another_value_for_a_present_key_is_refused() {
        let frontend =
            |chain| row(SetName::StickyGroups, group(1), Value::Verdict(Verdict::Goto(chain)));
        check(&[frontend(Chain::Reject), frontend(Chain::Services)], &[(1, EEXIST)]);
    }

    #[test]
    fn a_verdict_to_a_missing_chain_is_refused() {
        let verdict = Value::Verdict(Verdict::Jump(Chain::Remember(7)));
        check(&[row(SetName::AffinityTimeouts, group(1), verdict)], &[(0, ENOENT)]);
    }

    #[test]
    fn deleting_an_absent_row_is_refused() {
        check(&[delete("192.0.2.1"), add("192.0.2.1"), delete("192.0.2.1")], &[(0, ENOENT)]);
    }

    #[test]
    fn a_full_set_is_refused_until_it_has_grown() {
        let grow = Op::ResizeSet { family: FAMILY, set: SetName::ClusterIps, size: 3 };
        let three = [add("192.0.2.1"), add("192.0.2.2"), add("192.0.2.3")];
        check(&three, &[(2, ENFILE)]);
        check(&[&[grow.clone()][..], &three].concat(), &[]);
        // In one transaction it would be too late: that is why there are two.
        let (mut tables, batch) = (kernel().tables, Batch([&[grow][..], &three].concat()));
        let refused = |tables: &mut Tables| tables.apply(&batch).unwrap_err()[0].errno;
        assert_eq!(refused(&mut tables), ENFILE);
        tables.apply(&batch.before()).unwrap();
        tables.apply(&batch).unwrap();
    }

    #[test]
    fn a_set_of_an_old_kernel_never_grows() {
        let mut kernel = kernel();
        kernel.fixed_sizes = true;
        let grow = Op::ResizeSet { family: FAMILY, set: SetName::ClusterIps, size: 3 };
        kernel.commit(&Batch(vec![grow.clone()])).unwrap();
        let rows = [add("192.0.2.1"), add("192.0.2.2"), add("192.0.2.3")];
        let Err(KernelError::Rejected(told)) = kernel.commit(&Batch([&[grow][..], &rows].concat()))
        else {
            panic!("not refused")
        };
        assert_eq!((told[0].op, told[0].errno), (Some(3), ENFILE));
    }

    #[test]
    fn overlapping_ranges_are_refused() {
        let range =
            |net: &str| row(SetName::ServiceCidrs, Key::Range(net.parse().unwrap()), Value::None);
        check(&[range("10.0.0.0/8"), range("10.1.0.0/16"), range("11.0.0.0/8")], &[(1, EEXIST)]);
    }

    #[test]
    fn a_row_of_another_type_is_refused() {
        check(
            &[row(SetName::ClusterIps, group(1), Value::None), add("2001:db8::1")],
            &[(0, EINVAL), (1, EINVAL)],
        );
    }

    #[test]
    fn a_chain_in_use_stays() {
        let verdict = Value::Verdict(Verdict::Goto(Chain::Reject));
        let delete = Op::DeleteChain { family: FAMILY, chain: Chain::Reject };
        check(&[row(SetName::StickyGroups, group(1), verdict), delete.clone()], &[(1, EBUSY)]);
        check(&[delete], &[]);
    }

    #[test]
    fn a_refused_batch_leaves_nothing_behind() {
        let mut kernel = kernel();
        let before = kernel.tables.clone();
        let batch = Batch(vec![Op::DeleteTable(FAMILY), Op::AddTable(FAMILY), add("192.0.2.1")]);
        assert!(kernel.commit(&batch).is_err());
        assert_eq!(kernel.tables, before);
    }

    #[test]
    fn failures_come_when_told() {
        let mut kernel = kernel();
        kernel.fail_commit(2, Failure::UnknownApplied);
        kernel.refuse_owner(Owner(1), ENOENT);
        assert!(kernel.commit(&Batch(vec![add("192.0.2.1")])).is_ok());
        assert!(matches!(
            kernel.commit(&Batch(vec![add("192.0.2.2")])),
            Err(KernelError::Unknown(_))
        ));
        assert_eq!(kernel.tables.rows(FAMILY, SetName::ClusterIps).count(), 2);
        let (set, key) = (SetName::ClusterIps, Key::Address("192.0.2.1".parse().unwrap()));
        let owned = Op::DeleteElement { family: FAMILY, set, key, owner: Some(Owner(1)) };
        let Err(KernelError::Rejected(told)) = kernel.commit(&Batch(vec![owned])) else {
            panic!("not refused")
        };
        assert_eq!(told[0].owner, Some(Owner(1)));
        assert_eq!(told[0].what, "delete element ip kube-ferry cluster-ips { 192.0.2.1 }");
    }

    #[test]
    fn chains_with_other_rules_are_stale() {
        let mut kernel = kernel();
        let table = kernel.tables.0.get_mut(&FAMILY).unwrap();
        table.chains.get_mut(&Chain::Reject).unwrap().clear();
        let observed = kernel.observe(&program()).unwrap();
        assert!(observed[&FAMILY].stale_chains.contains(&Chain::Reject));
    }

    /// A table with two chains and sets for two rows.
    fn kernel() -> MemoryKernel {
        let mut kernel = MemoryKernel::default();
        let sets = SetName::ALL.map(|set| Op::AddSet { family: FAMILY, set, size: Some(2) });
        let chains = [Chain::Reject, Chain::Services];
        let chains = chains.map(|chain| Op::AddChain { family: FAMILY, chain });
        let ops = [vec![Op::AddTable(FAMILY)], sets.to_vec(), chains.to_vec()];
        kernel.commit(&Batch(ops.concat())).unwrap();
        kernel.commits = 0;
        kernel
    }

    #[track_caller]
    fn check(ops: &[Op], refused: &[(usize, i32)]) {
        let mut kernel = kernel();
        let before = kernel.tables.clone();
        let batch = Batch(ops.to_vec());
        let answer = kernel.validate(&batch);
        assert_eq!(kernel.tables, before, "validating changes nothing");
        let told = match answer {
            Ok(()) => Vec::new(),
            Err(KernelError::Rejected(told)) => told,
            Err(error) => panic!("{error}"),
        };
        let told: Vec<_> = told.iter().map(|it| (it.op.unwrap(), it.errno)).collect();
        assert_eq!(told, refused);
        assert_eq!(kernel.commit(&batch).is_ok(), refused.is_empty());
        assert_eq!(kernel.tables == before, !refused.is_empty());
    }

    fn add(address: &str) -> Op {
        row(SetName::ClusterIps, Key::Address(address.parse().unwrap()), Value::None)
    }

    fn delete(address: &str) -> Op {
        let (set, key) = (SetName::ClusterIps, Key::Address(address.parse().unwrap()));
        Op::DeleteElement { family: FAMILY, set, key, owner: None }
    }

    fn row(set: SetName, key: Key, value: Value) -> Op {
        Op::AddElement { family: FAMILY, set, key, value, owner: None }
    }

    fn group(number: u16) -> Key {
        Key::Group(crate::nft::schema::Handle::new(number, 0))
    }
}
