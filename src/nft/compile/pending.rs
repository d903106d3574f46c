//! Row changes that the kernel has not confirmed yet.

use std::collections::{BTreeMap, BTreeSet};

use super::rows::RowId;
use crate::model::Family;
use crate::nft::schema::{Op, Owner, SetName, Slots, Value};

/// For each changed row what the kernel has and what it shall have. A row that went and came back is no change.
#[derive(Debug, Default)]
pub(super) struct Pending(BTreeMap<RowId, Delta>);

#[derive(Clone, Copy, Debug)]
struct Delta {
    removed: Option<Value>,
    added: Option<Value>,
    owner: Option<Owner>,
}

impl Pending {
    pub(super) fn add(&mut self, id: RowId, value: Value, owner: Option<Owner>) {
        let delta = self.entry(id, owner);
        if delta.removed == Some(value) {
            self.0.remove(&id);
        } else {
            delta.added = Some(value);
        }
    }

    pub(super) fn remove(&mut self, id: RowId, value: Value, owner: Option<Owner>) {
        let delta = self.entry(id, owner);
        match (delta.added.take(), delta.removed) {
            (Some(_), None) => drop(self.0.remove(&id)),
            (Some(_), Some(_)) => {}
            (None, _) => delta.removed = Some(value),
        }
    }

    /// The number of changed rows.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn deletions(&self) -> impl Iterator<Item = Op> + '_ {
        self.0.iter().filter(|(_, delta)| delta.removed.is_some()).map(|(id, delta)| {
            Op::DeleteElement { family: id.family, set: id.set, key: id.key, owner: delta.owner }
        })
    }

    pub(super) fn additions(&self) -> impl Iterator<Item = Op> + '_ {
        self.0.iter().filter_map(|(id, delta)| {
            let (value, owner) = (delta.added?, delta.owner);
            Some(Op::AddElement { family: id.family, set: id.set, key: id.key, value, owner })
        })
    }

    /// Sets with changed rows, in order, and how many rows more each gets.
    pub(super) fn growth(&self) -> Vec<(Family, SetName, i64)> {
        let mut all: Vec<(Family, SetName, i64)> = Vec::new();
        for (RowId { family, set, .. }, delta) in &self.0 {
            let by = i64::from(delta.added.is_some()) - i64::from(delta.removed.is_some());
            match all.last_mut() {
                Some((of, last, growth)) if (&*of, &*last) == (family, set) => *growth += by,
                Some(_) | None => all.push((*family, *set, by)),
            }
        }
        all
    }

    /// Numbers of slots whose chains the added rows lead to.
    pub(super) fn slots(&self, family: Family) -> BTreeSet<Slots> {
        let of_family = self.0.iter().filter(|(id, _)| id.family == family);
        of_family.filter_map(|(_, delta)| delta.added?.chain()?.slots()).collect()
    }

    /// For each row that goes (-1) or comes (1), its value.
    pub(super) fn values(&self) -> impl Iterator<Item = (RowId, Value, i32)> + '_ {
        self.0.iter().flat_map(|(id, delta)| {
            let gone = delta.removed.map(|value| (*id, value, -1));
            gone.into_iter().chain(delta.added.map(|value| (*id, value, 1)))
        })
    }

    fn entry(&mut self, id: RowId, owner: Option<Owner>) -> &mut Delta {
        let delta = self.0.entry(id).or_insert(Delta { removed: None, added: None, owner });
        delta.owner = owner;
        delta
    }
}
