//! Which backend sits in which slot, moved as little as possible.
//!
//! Slots `0..N` are filled without gaps; the chain of a frontend draws among `capacity` slots. A backend that goes
//! leaves its slot to a new one or to the last one, so other backends' rows are not touched.

use std::collections::BTreeSet;

use super::schema::Slots;
use crate::forward::Backend;

/// Backends by slot.
///
/// Invariants: no backend twice; never more backends than slots; unless it is empty, more than 3/8 of the slots are
/// filled, so that the last draw of a chain, among a quarter of the slots, always hits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotTable {
    backends: Box<[Backend]>,
    capacity: Slots,
}

impl Default for SlotTable {
    fn default() -> Self {
        SlotTable { backends: Box::default(), capacity: Slots::MIN }
    }
}

impl SlotTable {
    /// More backends than this cannot be had; the excess is left out.
    pub const MAX_BACKENDS: usize = 1 << 14;

    /// Takes over what a kernel holds, as far as it is wanted, and completes it to `wanted`.
    ///
    /// `observed` may be anything: backends twice, gaps, slots out of range, backends that are long gone.
    pub fn adopt(
        observed: &[(u16, Backend)],
        capacity: Option<Slots>,
        wanted: &[Backend],
    ) -> SlotTable {
        let mut places = vec![None; Self::MAX_BACKENDS.min(highest(observed))];
        let mut seen = BTreeSet::new();
        for (slot, backend) in observed {
            if let Some(place) = places.get_mut(usize::from(*slot))
                && place.is_none()
                && seen.insert(*backend)
            {
                *place = Some(*backend);
            }
        }
        arranged(places, capacity.unwrap_or(Slots::MIN), wanted)
    }

    /// Makes `wanted` (without duplicates) the content; returns how many of its last ones did not fit.
    pub fn update(&mut self, wanted: &[Backend]) -> usize {
        let places = self.backends.iter().copied().map(Some).collect();
        *self = arranged(places, self.capacity, wanted);
        wanted.len().saturating_sub(Self::MAX_BACKENDS)
    }

    /// Backends in the order of their slots.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Backends with their slots.
    pub fn rows(&self) -> impl Iterator<Item = (u16, Backend)> + '_ {
        (0..=u16::MAX).zip(self.backends.iter().copied())
    }

    /// Among how many slots a chain must draw.
    pub fn capacity(&self) -> Slots {
        self.capacity
    }
}

fn highest(observed: &[(u16, Backend)]) -> usize {
    observed.iter().map(|(slot, _)| usize::from(*slot) + 1).max().unwrap_or(0)
}

fn arranged(mut places: Vec<Option<Backend>>, capacity: Slots, wanted: &[Backend]) -> SlotTable {
    let wanted: BTreeSet<Backend> = wanted.iter().take(SlotTable::MAX_BACKENDS).copied().collect();
    for place in &mut places {
        *place = place.filter(|backend| wanted.contains(backend));
    }
    let present: BTreeSet<Backend> = places.iter().flatten().copied().collect();
    let mut new = wanted.difference(&present).copied();
    fill_holes(&mut places, &mut new);
    let backends: Box<[Backend]> = places.into_iter().flatten().chain(new).collect();
    SlotTable { capacity: capacity_for(backends.len(), capacity), backends }
}

/// Puts new backends into holes, lowest first; when there are none left, the last backend moves into the hole.
fn fill_holes(places: &mut Vec<Option<Backend>>, new: &mut impl Iterator<Item = Backend>) {
    let mut position = 0;
    while position < places.len() {
        if places.get(position).is_some_and(Option::is_none) {
            let filler = new.next().or_else(|| last_backend(places, position));
            if let Some(place) = places.get_mut(position) {
                *place = filler;
            }
        }
        position += 1;
    }
}

/// Takes off the last backend behind `hole`, with the holes behind it.
fn last_backend(places: &mut Vec<Option<Backend>>, hole: usize) -> Option<Backend> {
    while places.len() > hole + 1 {
        if let Some(backend) = places.pop().flatten() {
            return Some(backend);
        }
    }
    None
}

/// Grows when there are too few slots, shrinks late, and stays when there is nothing: a Service that is scaled to
/// zero and back keeps its chain.
fn capacity_for(filled: usize, current: Slots) -> Slots {
    let slots = current.count() as usize;
    let fits = filled <= slots && 8 * filled > 3 * slots;
    if filled == 0 || fits { current } else { Slots::for_count(filled) }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::num::NonZeroU16;

    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_one_moves_into_the_hole() {
        check(&[1, 2, 3, 4], &[1, 3, 4], &[1, 4, 3], 4);
    }

    #[test]
    fn a_new_one_takes_the_hole() {
        check(&[1, 2, 3, 4], &[1, 3, 4, 9], &[1, 9, 3, 4], 4);
    }

    #[test]
    fn several_holes_at_the_end_just_go() {
        check(&[1, 2, 3, 4], &[1, 2], &[1, 2], 4);
    }

    #[test]
    fn nothing_keeps_the_capacity() {
        check(&[1, 2, 3, 4, 5], &[], &[], 8);
    }

    #[test]
    fn few_shrink_it() {
        check(&[1, 2, 3, 4, 5, 6, 7, 8], &[1, 2, 3], &[1, 2, 3], 4);
        check(&[1, 2, 3, 4, 5, 6, 7, 8], &[1, 2, 3, 4], &[1, 2, 3, 4], 8);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let wanted: Vec<Backend> = (0..20_000).map(backend).collect();
        let mut table = SlotTable::default();
        assert_eq!(table.update(&wanted), 20_000 - 16_384);
        assert_eq!(table.backends(), &wanted[..16_384]);
        assert_eq!(table.capacity(), Slots::MAX);
    }

    #[test]
    fn observed_garbage_is_repaired() {
        let observed = [(0, backend(7)), (1, backend(1)), (4, backend(1)), (9, backend(2))];
        let observed = [&observed[..], &[(60_000, backend(3))]].concat();
        let wanted = [1, 2, 3].map(backend);
        let table = SlotTable::adopt(&observed, Slots::from_log2(9), &wanted);
        assert_eq!(table.backends(), &[backend(3), backend(1), backend(2)]);
        assert_eq!(table.capacity().count(), 4);
    }

    fn check(before: &[u32], wanted: &[u32], after: &[u32], capacity: u32) {
        let backends = |numbers: &[u32]| numbers.iter().copied().map(backend).collect::<Vec<_>>();
        let mut table = SlotTable::default();
        table.update(&backends(before));
        assert_eq!(table.update(&backends(wanted)), 0);
        assert_eq!(table.backends(), backends(after));
        assert_eq!(table.capacity().count(), capacity);
    }

    fn backend(number: u32) -> Backend {
        let address = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number));
        Backend { address, port: NonZeroU16::new(8080).unwrap() }
    }

    fn some_backends() -> impl Strategy<Value = Vec<Backend>> {
        btree_set(0_u32..60, 0..50).prop_map(|it| it.into_iter().map(backend).collect())
    }

    fn keeps_invariants(table: &SlotTable, wanted: &[Backend]) {
        let content: BTreeSet<Backend> = table.backends().iter().copied().collect();
        assert_eq!(content, wanted.iter().copied().collect(), "the right set");
        assert_eq!(content.len(), table.backends().len(), "nothing twice");
        let (filled, slots) = (table.backends().len(), table.capacity().count() as usize);
        assert!(filled <= slots);
        assert!(filled == 0 || 8 * filled > 3 * slots);
    }

    proptest! {
        #[test]
        fn any_history_keeps_the_invariants_and_moves_little(steps in vec(some_backends(), 1..8)) {
            let mut table = SlotTable::default();
            for wanted in steps {
                let before = table.clone();
                table.update(&wanted);
                keeps_invariants(&table, &wanted);
                let old: BTreeSet<_> = before.backends().iter().copied().collect();
                let new: BTreeSet<_> = wanted.iter().copied().collect();
                let changed = old.symmetric_difference(&new).count();
                let rows = |table: &SlotTable| table.rows().collect::<BTreeSet<_>>();
                let moved = rows(&before).symmetric_difference(&rows(&table)).count();
                // An endpoint that goes: its row, the last one's row, and the last one's new row.
                prop_assert!(moved <= 3 * changed, "{} rows for {} endpoints", moved, changed);
                let slots = before.capacity().count() as usize;
                if wanted.len() <= slots && 8 * wanted.len() > 3 * slots {
                    prop_assert_eq!(before.capacity(), table.capacity());
                }
            }
        }

        #[test]
        fn whatever_was_observed_becomes_what_is_wanted(
            observed in vec((0_u16..80, 0_u32..60), 0..60),
            log2 in 0_u8..14,
            wanted in some_backends(),
        ) {
            let observed: Vec<_> = observed.into_iter().map(|(slot, it)| (slot, backend(it))).collect();
            let table = SlotTable::adopt(&observed, Slots::from_log2(log2), &wanted);
            if wanted.is_empty() {
                prop_assert!(table.backends().is_empty());
            } else {
                keeps_invariants(&table, &wanted);
            }
        }

        #[test]
        fn an_intact_observation_is_taken_as_it_is(steps in vec(some_backends(), 1..5)) {
            let mut table = SlotTable::default();
            for wanted in &steps {
                table.update(wanted);
            }
            let observed: Vec<_> = table.rows().collect();
            let adopted = SlotTable::adopt(&observed, Some(table.capacity()), steps.last().unwrap());
            prop_assert_eq!(adopted, table);
        }
    }
}
