//! Numbers for session affinity: endpoint groups, and endpoints within a group.
//!
//! A number that was given back is used again as late as possible: until then clients' remembered entries that
//! still carry it mean nothing, and time out.

use std::collections::{BTreeMap, BTreeSet};

use crate::nft::schema::Handle;

/// Which of a family's 65,536 groups are in use.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// Groups that are not free.
    used: BTreeMap<u16, Use>,
    next: u16,
    /// What was changed since the last `confirm`, with what it was before.
    log: Vec<(u16, Option<Use>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// The kernel has rows of it, no Service has claimed it so far.
    Observed,
    Taken,
}

impl Groups {
    pub(super) fn observe(&mut self, handle: Handle) {
        let group = handle.group();
        self.used.insert(group, Use::Observed);
        self.next = self.next.max(group.wrapping_add(1));
    }

    /// Claims a group that was observed. False if it was not, or if another Service was faster.
    pub(super) fn claim(&mut self, handle: Handle) -> bool {
        let observed = self.used.get(&handle.group()) == Some(&Use::Observed);
        if observed {
            self.set(handle.group(), Some(Use::Taken));
        }
        observed
    }

    /// A free group; `None` when all are in use.
    pub(super) fn take(&mut self) -> Option<Handle> {
        if self.used.len() > usize::from(u16::MAX) {
            return None;
        }
        while self.used.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let group = self.next;
        self.next = group.wrapping_add(1);
        self.set(group, Some(Use::Taken));
        Some(Handle::new(group, 0))
    }

    pub(super) fn free(&mut self, handle: Handle) {
        self.set(handle.group(), None);
    }

    /// Groups that nobody claimed are free.
    pub(super) fn prune(&mut self) {
        let observed = self.used.iter().filter(|(_, it)| **it == Use::Observed);
        let groups: Vec<u16> = observed.map(|(group, _)| *group).collect();
        for group in groups {
            self.set(group, None);
        }
    }

    pub(super) fn confirm(&mut self) {
        self.log.clear();
    }

    pub(super) fn rollback(&mut self) {
        for (group, before) in std::mem::take(&mut self.log).into_iter().rev() {
            match before {
                Some(before) => drop(self.used.insert(group, before)),
                None => drop(self.used.remove(&group)),
            }
        }
    }

    fn set(&mut self, group: u16, to: Option<Use>) {
        let before = match to {
            Some(to) => self.used.insert(group, to),
            None => self.used.remove(&group),
        };
        self.log.push((group, before));
    }
}

/// Endpoints of one group, by number `1..=4095`.
pub(super) const MAX_NUMBERS: usize = Handle::ENDPOINT_MASK as usize;

/// The next number after `last` that is not in `taken`, going round; `None` when all are taken.
pub(super) fn next_number(last: u16, taken: &BTreeSet<u16>) -> Option<u16> {
    let max = u16::try_from(MAX_NUMBERS).unwrap_or(u16::MAX);
    (last.saturating_add(1)..=max).chain(1..=last.min(max)).find(|number| !taken.contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_group_comes_back_last() {
        let mut groups = Groups::default();
        let first = groups.take().unwrap();
        groups.free(first);
        for _ in 0..u16::MAX {
            assert_ne!(groups.take(), Some(first));
        }
        assert_eq!(groups.take(), Some(first));
        assert_eq!(groups.take(), None);
    }

    #[test]
    fn rollback_gives_back_what_was_taken() {
        let mut groups = Groups::default();
        groups.observe(Handle::new(7, 0));
        assert!(groups.claim(Handle::new(7, 3)));
        assert!(!groups.claim(Handle::new(7, 0)));
        groups.rollback();
        assert!(groups.claim(Handle::new(7, 0)));
        groups.confirm();
        groups.prune();
        assert!(!groups.claim(Handle::new(7, 0)));
    }

    #[test]
    fn numbers_go_round() {
        let taken = BTreeSet::from([1, 4095]);
        assert_eq!(next_number(0, &taken), Some(2));
        assert_eq!(next_number(4094, &taken), Some(2));
        assert_eq!(next_number(u16::MAX, &taken), Some(2));
        assert_eq!(next_number(9, &(1..=4095).collect()), None);
    }
}
