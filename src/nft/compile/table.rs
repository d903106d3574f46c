//! What one family's table is believed to be, apart from its rows, and what it lacks.

use std::collections::{BTreeMap, BTreeSet};

use super::counts::RowCounts;
use crate::model::Family;
use crate::nft::schema::{Chain, ObservedTable, Op, SetName, Slots};
use crate::nft::shape::TableShape;
use crate::nft::skeleton::{self, ChainSpec, Program};

/// How many clients' endpoints are remembered at most. kube-proxy has 65,535 for each endpoint of each Service.
const AFFINITY_SIZE: u32 = 1 << 18;

/// Smallest size of a set: room for a small cluster, so that growing is rare.
const MIN_SIZE: u32 = 1024;

/// What the staged rows want of their table.
pub(super) struct Demand {
    /// Sets that they do not fit into, and the new sizes.
    pub(super) resizes: Vec<(SetName, u32)>,
    /// Numbers of slots whose chains they lead to.
    pub(super) slots: BTreeSet<Slots>,
    /// Affinity timeouts in use, also by rows that stay.
    pub(super) timeouts: BTreeSet<u32>,
}

#[derive(Debug, Default)]
pub(super) struct TableState {
    exists: bool,
    /// What is there is not ours or not understood: the table is deleted and made anew, all in one batch.
    pub(super) rebuild: bool,
    /// `None`: no limit.
    sizes: BTreeMap<SetName, Option<u32>>,
    chains: BTreeSet<Chain>,
    /// There with other rules; filled anew, in the same batch as everything else that changes.
    stale: BTreeSet<Chain>,
    /// What `stage_skeleton` found missing.
    staged: Option<Staged>,
}

/// What is to be made.
#[derive(Debug, Default)]
struct Staged {
    sizes: BTreeMap<SetName, Option<u32>>,
    chains: Vec<ChainSpec>,
}

impl TableState {
    pub(super) fn adopt(observed: &ObservedTable) -> TableState {
        TableState {
            exists: true,
            rebuild: !observed.unknown.is_empty(),
            sizes: observed.sets.iter().copied().collect(),
            chains: observed.chains.iter().copied().collect(),
            stale: observed.stale_chains.iter().copied().collect(),
            staged: None,
        }
    }

    /// Whether the kernel has the table.
    pub(super) fn exists(&self) -> bool {
        self.exists
    }

    /// What is another way than it was left, in words. The sizes of sets are left out: a kernel before 6.5 keeps the first
    /// one.
    pub(super) fn damage(&self, found: &TableShape) -> Option<String> {
        let set = self.sizes.keys().find(|it| !found.sets.contains(it));
        let chain = self.chains.iter().find(|it| !found.uses.contains_key(it));
        let new_set = found.sets.iter().find(|it| !self.sizes.contains_key(it));
        let new_chain = found.uses.keys().find(|it| !self.chains.contains(it));
        let unknown = found.unknown.first().map(|it| format!("there is {it}"));
        unknown
            .or_else(|| set.map(|it| format!("set {} is gone", it.name())))
            .or_else(|| chain.map(|it| format!("chain {it} is gone")))
            .or_else(|| new_set.map(|it| format!("there is set {}", it.name())))
            .or_else(|| new_chain.map(|it| format!("there is chain {it}")))
    }

    pub(super) fn stage(&mut self, program: &Program, family: Family, expected: &RowCounts) {
        let anew = self.rebuild || !self.exists;
        let sets = skeleton::sets(program).into_iter().map(|it| it.name);
        let sizes = sets
            .filter(|set| anew || !self.sizes.contains_key(set))
            .map(|set| (set, Some(initial_size(set, expected.get(family, set)))));
        let chains = skeleton::chains_without_slots(program, family);
        let mut missing: Vec<ChainSpec> =
            chains.into_iter().filter(|it| anew || !self.chains.contains(&it.chain)).collect();
        if !anew {
            let slots: BTreeSet<Slots> = self.stale.iter().filter_map(|it| it.slots()).collect();
            let chains =
                slots.into_iter().flat_map(|it| skeleton::chains_of_slots(program, family, it));
            missing.extend(chains.filter(|it| self.stale.contains(&it.chain)));
        }
        let staged = Staged { sizes: sizes.collect(), chains: missing };
        if anew || !staged.sizes.is_empty() || !staged.chains.is_empty() {
            self.staged = Some(staged);
        }
    }

    /// The number of staged operations.
    pub(super) fn len(&self) -> usize {
        let staged = self.staged.as_ref();
        staged.map_or(0, |it| {
            it.sizes.len() + it.chains.iter().map(|chain| 1 + chain.rules.len()).sum::<usize>()
        })
    }

    /// Size of a set after the staged operations; `None` when it has no limit or is not there.
    pub(super) fn size(&self, set: SetName) -> Option<u32> {
        let staged = self.staged.as_ref().and_then(|it| it.sizes.get(&set));
        staged.or_else(|| self.sizes.get(&set)).copied().flatten()
    }

    /// Sets of the table as it is, but for those without a limit.
    pub(super) fn limited(&self) -> impl Iterator<Item = SetName> + '_ {
        self.sizes.iter().filter(|(_, size)| size.is_some()).map(|(set, _)| *set)
    }

    /// The new size if `rows` do not fit.
    pub(super) fn outgrown(&self, set: SetName, rows: u32) -> Option<u32> {
        let (size, elements) = (self.size(set)?, RowCounts::elements(set, rows));
        (elements > size).then(|| elements.checked_next_power_of_two().unwrap_or(elements))
    }

    /// The operations before those on rows.
    pub(super) fn before_rows(
        &self,
        program: &Program,
        family: Family,
        demand: &Demand,
        ops: &mut Vec<Op>,
    ) {
        let resizes = &demand.resizes;
        if self.staged.is_some() {
            if self.rebuild {
                ops.push(Op::DeleteTable(family));
            }
            ops.push(Op::AddTable(family));
        }
        let staged = self.staged.as_ref();
        for (set, size) in staged.iter().flat_map(|it| &it.sizes) {
            // A new set that outgrows its first guess in the same batch starts with the right size.
            let grown = resizes.iter().find(|(resized, _)| resized == set);
            let size = grown.map_or(*size, |(_, size)| Some(*size));
            ops.push(Op::AddSet { family, set: *set, size });
        }
        let old = resizes.iter().filter(|(set, _)| !self.is_staged(*set));
        ops.extend(old.map(|(set, size)| Op::ResizeSet { family, set: *set, size: *size }));
        let mut in_use = self.missing_of_slots(program, family, &demand.slots);
        in_use.extend(self.missing_remember(&demand.timeouts).map(skeleton::remember));
        let chains: Vec<&ChainSpec> =
            staged.iter().flat_map(|it| &it.chains).chain(&in_use).collect();
        ops.extend(chains.iter().map(|it| Op::AddChain { family, chain: it.chain }));
        for spec in chains {
            if self.stale.contains(&spec.chain) && !self.rebuild {
                ops.push(Op::FlushChain { family, chain: spec.chain });
            }
            let rules = spec.rules.iter().cloned();
            ops.extend(rules.map(|rule| Op::AddRule { family, chain: spec.chain, rule }));
        }
    }

    /// The operations after those on rows: chains of timeouts that nobody uses any more.
    pub(super) fn after_rows(&self, family: Family, timeouts: &BTreeSet<u32>, ops: &mut Vec<Op>) {
        for chain in self.stale_remember(timeouts) {
            ops.extend([Op::FlushChain { family, chain }, Op::DeleteChain { family, chain }]);
        }
    }

    /// The kernel took the operations; `pruned`: also those of `after_rows`.
    pub(super) fn confirm(
        &mut self,
        program: &Program,
        family: Family,
        demand: &Demand,
        pruned: bool,
    ) {
        let of_slots = self.missing_of_slots(program, family, &demand.slots);
        let missing: Vec<u32> = self.missing_remember(&demand.timeouts).collect();
        let stale: Vec<Chain> =
            if pruned { self.stale_remember(&demand.timeouts).collect() } else { Vec::new() };
        if let Some(staged) = self.staged.take() {
            if self.rebuild {
                *self = TableState::default();
            }
            self.exists = true;
            self.stale.clear();
            self.sizes.extend(staged.sizes);
            self.chains.extend(staged.chains.iter().map(|it| it.chain));
        }
        self.sizes.extend(demand.resizes.iter().map(|(set, size)| (*set, Some(*size))));
        self.chains.extend(of_slots.into_iter().map(|it| it.chain));
        self.chains.extend(missing.into_iter().map(Chain::Remember));
        for chain in stale {
            self.chains.remove(&chain);
        }
    }

    pub(super) fn rollback(&mut self) {
        self.staged = None;
    }

    fn is_staged(&self, set: SetName) -> bool {
        self.staged.as_ref().is_some_and(|it| it.sizes.contains_key(&set))
    }

    /// Chains of these numbers of slots that are neither there nor staged. One that is there stays, used or not: it does
    /// no harm, and a Service that grows and shrinks again would make and delete it all the time.
    fn missing_of_slots(
        &self,
        program: &Program,
        family: Family,
        slots: &BTreeSet<Slots>,
    ) -> Vec<ChainSpec> {
        let anew = self.rebuild && self.staged.is_some();
        let is_staged = |chain| {
            self.staged.as_ref().is_some_and(|it| it.chains.iter().any(|it| it.chain == chain))
        };
        let all = slots.iter().flat_map(|it| skeleton::chains_of_slots(program, family, *it));
        let missing = all.filter(|it| anew || !self.chains.contains(&it.chain));
        missing.filter(|it| !is_staged(it.chain)).collect()
    }

    fn missing_remember(&self, timeouts: &BTreeSet<u32>) -> impl Iterator<Item = u32> {
        let rebuild = self.rebuild && self.staged.is_some();
        timeouts
            .iter()
            .copied()
            .filter(move |it| rebuild || !self.chains.contains(&Chain::Remember(*it)))
    }

    fn stale_remember(&self, timeouts: &BTreeSet<u32>) -> impl Iterator<Item = Chain> {
        let rebuild = self.rebuild;
        self.chains.iter().copied().filter(
            move |it| matches!(it, Chain::Remember(seconds) if !rebuild && !timeouts.contains(seconds)),
        )
    }
}

fn initial_size(set: SetName, expected: u32) -> u32 {
    if set == SetName::Affinity {
        return AFFINITY_SIZE;
    }
    let wanted = RowCounts::elements(set, expected).saturating_mul(2).max(MIN_SIZE);
    wanted.checked_next_power_of_two().unwrap_or(wanted)
}
