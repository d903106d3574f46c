//! From forwardings to batches: what to tell the kernel so that it holds what is wanted.
//!
//! The [`Compiler`] remembers what the kernel is believed to hold, as far as needed to tell rows: frontends and slots,
//! not the rows themselves. Changes are staged, taken as one [`Batch`], and then confirmed or rolled back. It never
//! looks at the kernel itself and never fails; what cannot be programmed becomes a [`Limit`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use rustc_hash::FxHashMap;

use super::schema::{AddressPort, Batch, Handle, Key, ObservedTable, Op, Owner, SetName, Value};
use super::skeleton::Program;
use crate::forward::ServiceForwarding;
use crate::model::Family;
use groups::Groups;
use pending::Pending;
use plan::{Planner, Unclaimed};
use programmed::{Claim, Programmed};
use rows::{RowId, is_shared, rows};
use table::TableState;

mod counts;
mod groups;
mod pending;
mod plan;
mod programmed;
mod rows;
mod table;
#[cfg(test)]
mod tests;

pub use counts::RowCounts;
pub use plan::{Limit, LimitReason};

/// See the module.
#[derive(Debug)]
pub struct Compiler {
    program: Program,
    tables: BTreeMap<Family, TableState>,
    /// Tables of families that are not proxied (any more).
    doomed: BTreeSet<Family>,
    services: FxHashMap<Owner, Programmed>,
    claims: FxHashMap<Claim, Owner>,
    /// How many Services have a shared row.
    shared: FxHashMap<(SetName, IpAddr), u32>,
    /// How many Service ports have that affinity timeout.
    timeouts: BTreeMap<(Family, u32), u32>,
    groups: BTreeMap<Family, Groups>,
    /// Rows of sets that no Service owns.
    plain: BTreeMap<(Family, SetName), BTreeSet<Key>>,
    /// After a restart: rows in the kernel that nobody has asked for so far.
    unclaimed: Unclaimed,
    /// Whether `unclaimed` has been dealt with.
    pruned: bool,
    counts: RowCounts,
    pending: Pending,
    undo: Vec<Undo>,
    limits: Vec<Limit>,
}

/// What takes a staged change back.
#[derive(Debug)]
enum Undo {
    Service(Owner, Option<Programmed>),
    Claim(Claim, Option<Owner>),
    Shared((SetName, IpAddr), u32),
    Timeout((Family, u32), u32),
    Plain((Family, SetName), BTreeSet<Key>),
    Unclaimed(RowId, Value),
    Pruned,
}

impl Compiler {
    /// The kernel has none of our tables.
    pub fn new(program: Program) -> Compiler {
        let mut compiler = Compiler::adopt(program, BTreeMap::new());
        compiler.pruned = true;
        compiler
    }

    /// After a restart: the kernel has what `observed` says. Rows keep their slots; rows that no staged Service
    /// claims stay until [`Compiler::stage_prune`].
    pub fn adopt(program: Program, observed: BTreeMap<Family, ObservedTable>) -> Compiler {
        let families = program.families.clone();
        let mut compiler = Compiler {
            tables: families.iter().map(|it| (*it, TableState::default())).collect(),
            groups: families.iter().map(|it| (*it, Groups::default())).collect(),
            program,
            doomed: BTreeSet::new(),
            services: FxHashMap::default(),
            claims: FxHashMap::default(),
            shared: FxHashMap::default(),
            timeouts: BTreeMap::new(),
            plain: BTreeMap::new(),
            unclaimed: Unclaimed::new(),
            pruned: false,
            counts: RowCounts::default(),
            pending: Pending::default(),
            undo: Vec::new(),
            limits: Vec::new(),
        };
        for (family, table) in observed {
            compiler.adopt_table(family, table);
        }
        compiler
    }

    /// Stages what the tables lack but for rows; nothing if all is there. `expected` rows give the sets' sizes: twice
    /// that, because a set that grows later keeps the hash buckets it started with.
    pub fn stage_skeleton(&mut self, expected: &RowCounts) {
        for (family, table) in &mut self.tables {
            table.stage(&self.program, *family, expected);
        }
    }

    /// Whether the kernel has things under our name that cannot be brought in line piece by piece. Then everything
    /// must be staged before the one batch is taken that deletes the table and makes it anew.
    pub fn needs_rebuild(&self) -> bool {
        self.tables.values().any(|it| it.rebuild)
    }

    /// Makes `forwarding` what the Service shall have; without ports the Service is removed.
    ///
    /// An address and port that another Service still holds goes over to this one.
    pub fn stage(&mut self, owner: Owner, forwarding: &ServiceForwarding) {
        self.take_over_claims(owner, forwarding);
        let old = self.services.get(&owner).cloned().unwrap_or_default();
        let mut planner = Planner {
            owner,
            unclaimed: &self.unclaimed,
            groups: &mut self.groups,
            limits: &mut self.limits,
        };
        let new = planner.service(forwarding, &old);
        if old != new {
            self.replace(owner, &old, new);
        }
    }

    /// The node's addresses that accept NodePorts (only used by programs with `NodePortAddresses::Listed`).
    pub fn stage_node_port_ips(&mut self, family: Family, addresses: &BTreeSet<IpAddr>) {
        let keys = addresses.iter().map(|it| Key::Address(*it)).collect();
        self.stage_plain(family, SetName::NodePortIps, keys);
    }

    /// The ranges that cluster IPs come from. They may overlap.
    pub fn stage_service_cidrs(&mut self, family: Family, cidrs: &[IpNet]) {
        let keys = IpNet::aggregate(&cidrs.to_vec()).into_iter().map(Key::Range).collect();
        self.stage_plain(family, SetName::ServiceCidrs, keys);
    }

    /// Deletes what the kernel has and nobody asked for. To be called when everything was staged once after `adopt`.
    pub fn stage_prune(&mut self) {
        if self.pruned {
            return;
        }
        self.pruned = true;
        self.undo.push(Undo::Pruned);
        for (id, value) in std::mem::take(&mut self.unclaimed) {
            self.drop_unclaimed(id, value);
        }
        self.groups.values_mut().for_each(Groups::prune);
    }

    /// About the number of staged operations.
    pub fn staged_len(&self) -> usize {
        self.pending.len()
            + self.doomed.len()
            + self.tables.values().map(TableState::len).sum::<usize>()
    }

    /// What is staged, in an order that the kernel takes: sets and chains, rows that go, rows that come, and then
    /// chains that nothing leads to any more.
    pub fn batch(&self) -> Batch {
        let mut ops = Vec::new();
        for family in &self.doomed {
            ops.extend([Op::AddTable(*family), Op::DeleteTable(*family)]);
        }
        for (family, table) in &self.tables {
            let resizes = self.resizes(*family);
            table.before_rows(*family, &resizes, &self.timeouts_in_use(*family), &mut ops);
        }
        ops.extend(self.pending.deletions());
        ops.extend(self.pending.additions());
        if self.pruned {
            for (family, table) in &self.tables {
                table.after_rows(*family, &self.timeouts_in_use(*family), &mut ops);
            }
        }
        Batch(ops)
    }

    /// The kernel took the batch. An empty batch is confirmed, too: what was staged may have needed no operation.
    pub fn confirm(&mut self) {
        for family in self.program.families.clone() {
            let (resizes, timeouts) = (self.resizes(family), self.timeouts_in_use(family));
            if !self.is_in_kernel(family) {
                // Its rows went with the table.
                self.unclaimed.retain(|id, _| id.family != family);
            }
            if let Some(table) = self.tables.get_mut(&family) {
                table.confirm(&resizes, &timeouts, self.pruned);
            }
        }
        for (id, growth) in self.pending.growth() {
            self.counts.grow(id.family, id.set, growth);
        }
        self.doomed.clear();
        self.pending.clear();
        self.undo = Vec::new();
        self.groups.values_mut().for_each(Groups::confirm);
    }

    /// The kernel took nothing: believes again what it did before the first stage since the last confirm. What was
    /// staged since then is to be staged again.
    pub fn rollback(&mut self) {
        for step in std::mem::take(&mut self.undo).into_iter().rev() {
            self.take_back(step);
        }
        self.pending.clear();
        self.tables.values_mut().for_each(TableState::rollback);
        self.groups.values_mut().for_each(Groups::rollback);
    }

    /// Rows that the kernel is believed to have.
    pub fn row_counts(&self) -> &RowCounts {
        &self.counts
    }

    /// What could not be programmed, since the last call.
    pub fn take_limits(&mut self) -> Vec<Limit> {
        std::mem::take(&mut self.limits)
    }

    fn adopt_table(&mut self, family: Family, observed: ObservedTable) {
        let Some(groups) = self.groups.get_mut(&family) else {
            self.doomed.insert(family);
            return;
        };
        let table = TableState::adopt(&observed);
        let rebuild = table.rebuild;
        self.tables.insert(family, table);
        for (set, key, value) in observed.elements {
            for handle in [group_of_key(&key), group_of_value(&value)].into_iter().flatten() {
                groups.observe(handle);
            }
            if !rebuild {
                self.counts.grow(family, set, 1);
            }
            self.unclaimed.insert(RowId { family, set, key }, value);
        }
    }

    /// Takes frontends from Services that have not been staged yet since they lost them.
    fn take_over_claims(&mut self, owner: Owner, forwarding: &ServiceForwarding) {
        for port in &forwarding.ports {
            for frontend in &port.frontends {
                let claim = Claim { family: port.family, protocol: port.protocol, at: frontend.at };
                let holder = self.claims.get(&claim).copied().filter(|it| *it != owner);
                if let Some(holder) = holder {
                    let old = self.services.get(&holder).cloned().unwrap_or_default();
                    let new = old.clone().without(claim);
                    self.replace(holder, &old, new);
                }
            }
        }
    }

    fn replace(&mut self, owner: Owner, old: &Programmed, new: Programmed) {
        self.change_rows(owner, old, &new);
        self.change_claims(owner, old, &new);
        self.change_timeouts(old, &new);
        let kept: BTreeSet<_> = new.groups().collect();
        for (family, handle) in old.groups().filter(|it| !kept.contains(it)) {
            if let Some(groups) = self.groups.get_mut(&family) {
                groups.free(handle);
            }
        }
        let before = match new.is_empty() {
            true => self.services.remove(&owner),
            false => self.services.insert(owner, new),
        };
        self.undo.push(Undo::Service(owner, before));
    }

    /// Stages the difference of the rows. Both lists are sorted, so it is one walk along the two.
    fn change_rows(&mut self, owner: Owner, old: &Programmed, new: &Programmed) {
        let (old, new) = (rows(old), rows(new));
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

    fn drop_unclaimed(&mut self, id: RowId, value: Value) {
        self.undo.push(Undo::Unclaimed(id, value));
        if self.is_in_kernel(id.family) {
            self.pending.remove(id, value, None);
        }
    }

    /// A table that is made anew has no rows to begin with.
    fn is_in_kernel(&self, family: Family) -> bool {
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

    fn timeouts_in_use(&self, family: Family) -> BTreeSet<u32> {
        let of_family = self.timeouts.range((family, 0)..=(family, u32::MAX));
        of_family.map(|((_, seconds), _)| *seconds).collect()
    }

    fn stage_plain(&mut self, family: Family, set: SetName, wanted: BTreeSet<Key>) {
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

    /// Sets that the staged rows do not fit into, and their new sizes.
    fn resizes(&self, family: Family) -> Vec<(SetName, u32)> {
        let mut after = self.counts.clone();
        let mut changed = BTreeSet::new();
        for (id, growth) in self.pending.growth().filter(|(id, _)| id.family == family) {
            after.grow(family, id.set, growth);
            changed.insert(id.set);
        }
        let table = self.tables.get(&family);
        let outgrown = |set: SetName| {
            let size = table?.outgrown(set, after.get(family, set))?;
            Some((set, size))
        };
        changed.into_iter().filter_map(outgrown).collect()
    }

    fn take_back(&mut self, step: Undo) {
        match step {
            Undo::Service(owner, Some(before)) => drop(self.services.insert(owner, before)),
            Undo::Service(owner, None) => drop(self.services.remove(&owner)),
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

fn group_of_key(key: &Key) -> Option<Handle> {
    if let Key::Group(handle) | Key::GroupSlot(handle, _) = *key { Some(handle) } else { None }
}

fn group_of_value(value: &Value) -> Option<Handle> {
    match *value {
        Value::Handle(handle) => Some(handle),
        Value::None | Value::Verdict(_) | Value::Endpoint(..) => None,
    }
}
