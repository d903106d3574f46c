//! Staging one change: its rows against those before, what it claims, and how to take it back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use rustc_hash::FxHashMap;

use super::Compiler;
use super::programmed::{Claim, Programmed};
use super::rows::{RowId, is_shared, rows};
use crate::forward::ServiceForwarding;
use crate::model::Family;
use crate::nft::schema::{AddressPort, Key, Owner, SetName, Value};

/// What takes a staged change back.
#[derive(Debug)]
pub(super) enum Undo {
    Service(Owner, Programmed),
    Claim(Claim, Option<Owner>),
    Shared((SetName, IpAddr), u32),
    Timeout((Family, u32), u32),
    Plain((Family, SetName), BTreeSet<Key>),
    Unclaimed(RowId, Value),
    Pruned,
}

impl Compiler {
    /// Takes frontends from Services that have not been staged yet since they lost them.
    pub(super) fn take_over_claims(&mut self, owner: Owner, forwarding: &ServiceForwarding) {
        for port in &forwarding.ports {
            for frontend in &port.frontends {
                let claim = Claim { family: port.family, protocol: port.protocol, at: frontend.at };
                let holder = self.claims.get(&claim).copied().filter(|it| *it != owner);
                if let Some(holder) = holder {
                    let old = self.services.get(holder);
                    let new = old.clone().without(claim);
                    self.replace(holder, &old, new);
                }
            }
        }
    }

    pub(super) fn replace(&mut self, owner: Owner, old: &Programmed, new: Programmed) {
        self.change_rows(owner, old, &new);
        self.change_claims(owner, old, &new);
        self.change_timeouts(old, &new);
        let kept: BTreeSet<_> = new.groups().collect();
        for (family, handle) in old.groups().filter(|it| !kept.contains(it)) {
            if let Some(groups) = self.groups.get_mut(&family) {
                groups.free(handle);
            }
        }
        let before = self.services.put(owner, new);
        self.undo.push(Undo::Service(owner, before));
    }

    /// Stages the difference of the rows. Both lists are sorted, so it is one walk along the two.
    fn change_rows(&mut self, owner: Owner, old: &Programmed, new: &Programmed) {
        let (old, new) = (rows(old, self.program.ipvs), rows(new, self.program.ipvs));
        self.drop_overlapping(owner, &new);
        let gone = old.iter().filter(|row| new.binary_search(row).is_err());
        for (id, value) in gone {
            if !is_shared(id.set) || self.count_shared(id, -1) == 0 {
                self.pending.remove(*id, *value, Some(owner));
            }
        }
        let come = new.iter().filter(|row| old.binary_search(row).is_err());
        for (id, value) in come {
            if !is_shared(id.set) || self.count_shared(id, 1) == 1 {
                self.add_row(*id, *value, Some(owner));
            }
        }
    }

    fn add_row(&mut self, id: RowId, value: Value, owner: Option<Owner>) {
        if let Some(present) = self.unclaimed.remove(&id) {
            self.undo.push(Undo::Unclaimed(id, present));
            if self.is_in_kernel(id.family) {
                self.pending.remove(id, present, owner);
            }
        }
        self.pending.add(id, value, owner);
    }

    /// Unclaimed rows of the Service's frontends must not wait for the prune: source ranges would overlap, and the
    /// kernel refuses that.
    fn drop_overlapping(&mut self, owner: Owner, wanted: &[(RowId, Value)]) {
        if self.unclaimed.is_empty() {
            return;
        }
        let firewalled = wanted.iter().filter(|(id, _)| id.set == SetName::Firewalled);
        for (id, _) in firewalled {
            let Key::Frontend(at) = id.key else { continue };
            let stale: Vec<(RowId, Value)> = self
                .unclaimed
                .range(
                    RowId { family: id.family, set: SetName::SourceRanges, key: first_range(at) }..,
                )
                .take_while(|(it, _)| matches!(it.key, Key::FrontendSource(of, _) if of == at))
                .filter(|(it, value)| wanted.binary_search(&(**it, **value)).is_err())
                .map(|(it, value)| (*it, *value))
                .collect();
            for (id, value) in stale {
                self.unclaimed.remove(&id);
                self.undo.push(Undo::Unclaimed(id, value));
                if self.is_in_kernel(id.family) {
                    self.pending.remove(id, value, Some(owner));
                }
            }
        }
    }

    pub(super) fn drop_unclaimed(&mut self, id: RowId, value: Value) {
        self.undo.push(Undo::Unclaimed(id, value));
        if self.is_in_kernel(id.family) {
            self.pending.remove(id, value, None);
        }
    }

    /// A table that is made anew has no rows to begin with.
    pub(super) fn is_in_kernel(&self, family: Family) -> bool {
        self.tables.get(&family).is_some_and(|it| !it.rebuild)
    }

    fn count_shared(&mut self, id: &RowId, by: i32) -> u32 {
        let (Key::Address(address) | Key::Pair(address, _)) = id.key else { return 0 };
        let key = (id.set, address);
        let before = self.shared.get(&key).copied().unwrap_or(0);
        self.undo.push(Undo::Shared(key, before));
        let after = before.saturating_add_signed(by);
        put_count(&mut self.shared, key, after);
        after
    }

    fn change_claims(&mut self, owner: Owner, old: &Programmed, new: &Programmed) {
        for claim in old.claims() {
            if self.claims.get(&claim) == Some(&owner) {
                let before = self.claims.remove(&claim);
                self.undo.push(Undo::Claim(claim, before));
            }
        }
        for claim in new.claims() {
            let before = self.claims.insert(claim, owner);
            self.undo.push(Undo::Claim(claim, before));
        }
    }

    fn change_timeouts(&mut self, old: &Programmed, new: &Programmed) {
        let changes = old.timeouts().map(|it| (it, -1)).chain(new.timeouts().map(|it| (it, 1)));
        for (key, by) in changes.collect::<Vec<_>>() {
            let before = self.timeouts.get(&key).copied().unwrap_or(0);
            self.undo.push(Undo::Timeout(key, before));
            put_timeout(&mut self.timeouts, key, before.saturating_add_signed(by));
        }
    }

    pub(super) fn stage_plain(&mut self, family: Family, set: SetName, wanted: BTreeSet<Key>) {
        if !self.tables.contains_key(&family) {
            return;
        }
        let id = |key: &Key| RowId { family, set, key: *key };
        let held = self.unclaimed.range(RowId { family, set, key: FIRST_KEY }..);
        let held = held.take_while(|(it, _)| it.family == family && it.set == set);
        let stale: Vec<RowId> =
            held.map(|(it, _)| *it).filter(|it| !wanted.contains(&it.key)).collect();
        for id in stale {
            self.unclaimed.remove(&id);
            self.drop_unclaimed(id, Value::None);
        }
        let before = self.plain.insert((family, set), wanted.clone()).unwrap_or_default();
        for key in before.difference(&wanted) {
            self.pending.remove(id(key), Value::None, None);
        }
        for key in wanted.difference(&before) {
            self.add_row(id(key), Value::None, None);
        }
        self.undo.push(Undo::Plain((family, set), before));
    }

    pub(super) fn take_back(&mut self, step: Undo) {
        match step {
            Undo::Service(owner, before) => drop(self.services.put(owner, before)),
            Undo::Claim(claim, Some(owner)) => drop(self.claims.insert(claim, owner)),
            Undo::Claim(claim, None) => drop(self.claims.remove(&claim)),
            Undo::Shared(key, before) => put_count(&mut self.shared, key, before),
            Undo::Timeout(key, before) => put_timeout(&mut self.timeouts, key, before),
            Undo::Plain(key, before) => drop(self.plain.insert(key, before)),
            Undo::Unclaimed(id, value) => drop(self.unclaimed.insert(id, value)),
            Undo::Pruned => self.pruned = false,
        }
    }
}

/// No key sorts before it.
const FIRST_KEY: Key = Key::Address(IpAddr::V4(Ipv4Addr::UNSPECIFIED));

/// No source range of the frontend sorts before it.
fn first_range(at: AddressPort) -> Key {
    Key::FrontendSource(at, IpNet::V4(Ipv4Net::default()))
}

fn put_count(counts: &mut FxHashMap<(SetName, IpAddr), u32>, key: (SetName, IpAddr), count: u32) {
    match count {
        0 => drop(counts.remove(&key)),
        count => drop(counts.insert(key, count)),
    }
}

fn put_timeout(counts: &mut BTreeMap<(Family, u32), u32>, key: (Family, u32), count: u32) {
    match count {
        0 => drop(counts.remove(&key)),
        count => drop(counts.insert(key, count)),
    }
}
