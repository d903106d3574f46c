//! From forwardings to batches: what to tell the kernel so that it holds what is wanted.
//!
//! The [`Compiler`] remembers what the kernel is believed to hold, as far as needed to tell rows: frontends and slots,
//! not the rows themselves. Changes are staged, taken as one [`Batch`], and then confirmed or rolled back. It never
//! looks at the kernel itself and never fails; what cannot be programmed becomes a [`Limit`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use super::schema::{Batch, Handle, Key, ObservedTable, Op, Owner, SetName, Value};
use super::skeleton::Program;
use crate::forward::ServiceForwarding;
use crate::model::Family;
use change::Undo;
use groups::Groups;
use intact::Leads;
use pending::Pending;
use plan::{Planner, Unclaimed};
use programmed::{Claim, Services};
use rows::RowId;
use table::{Demand, TableState};

mod change;
mod counts;
mod groups;
mod intact;
mod pending;
mod plan;
mod programmed;
mod rows;
mod table;
#[cfg(test)]
pub(crate) mod tests;

pub use counts::RowCounts;
pub use plan::{Limit, LimitReason};

/// See the module.
#[derive(Debug)]
pub struct Compiler {
    program: Program,
    tables: BTreeMap<Family, TableState>,
    /// Tables of families that are not proxied (any more).
    doomed: BTreeSet<Family>,
    services: Services,
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
    leads: Leads,
    pending: Pending,
    undo: Vec<Undo>,
    limits: Vec<Limit>,
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
            services: Services::default(),
            claims: FxHashMap::default(),
            shared: FxHashMap::default(),
            timeouts: BTreeMap::new(),
            plain: BTreeMap::new(),
            unclaimed: Unclaimed::new(),
            pruned: false,
            counts: RowCounts::default(),
            leads: Leads::default(),
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
        let old = self.services.get(owner);
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

    /// The node's own addresses.
    pub fn stage_node_ips(&mut self, family: Family, addresses: &BTreeSet<IpAddr>) {
        let keys = addresses.iter().map(|it| Key::Address(*it)).collect();
        self.stage_plain(family, SetName::NodeIps, keys);
    }

    /// The ranges that cluster IPs come from. They may overlap.
    pub fn stage_service_cidrs(&mut self, family: Family, cidrs: &[IpNet]) {
        let keys = IpNet::aggregate(&cidrs.to_vec()).into_iter().map(Key::Range).collect();
        self.stage_plain(family, SetName::ServiceCidrs, keys);
    }

    /// Addresses that are local although no Service has them any more (only used by programs for IPVS).
    pub fn stage_ipvs_draining(&mut self, family: Family, addresses: &BTreeSet<IpAddr>) {
        let of_family = addresses.iter().filter(|it| Family::of(**it) == family);
        let keys = of_family.map(|it| Key::Address(*it)).collect();
        self.stage_plain(family, SetName::IpvsDraining, keys);
    }

    /// Whether the kernel is believed to know this for a cluster IP; to be asked before anything is staged.
    pub fn has_cluster_ip(&self, address: IpAddr) -> bool {
        let set = SetName::ClusterIps;
        let id = RowId { family: Family::of(address), set, key: Key::Address(address) };
        self.shared.contains_key(&(set, address)) || self.unclaimed.contains_key(&id)
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
        let mut ops = Vec::with_capacity(self.staged_len());
        for family in &self.doomed {
            ops.push(Op::DeleteTable(*family));
        }
        for (family, table) in &self.tables {
            table.before_rows(&self.program, *family, &self.demand(*family), &mut ops);
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
            let demand = self.demand(family);
            if !self.is_in_kernel(family) {
                // Its rows went with the table.
                self.unclaimed.retain(|id, _| id.family != family);
            }
            if let Some(table) = self.tables.get_mut(&family) {
                table.confirm(&self.program, family, &demand, self.pruned);
            }
        }
        for (family, set, growth) in self.pending.growth() {
            self.counts.grow(family, set, growth);
        }
        for (id, value, by) in self.pending.values() {
            self.leads.count(id.family, &value, by);
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

    /// Bytes on the heap, about: of what is programmed for Services, which is nearly all of it.
    pub fn heap_bytes(&self) -> usize {
        self.services.heap_bytes() + self.claims.capacity() * size_of::<(Claim, Owner)>()
    }

    /// Every set of the tables that has a limit.
    pub fn sets(&self) -> impl Iterator<Item = (Family, SetName)> + '_ {
        let tables = self.tables.iter();
        tables.flat_map(|(family, table)| table.limited().map(|set| (*family, set)))
    }

    /// How many elements the set is believed to have, and how many fit; `None` if it has no limit.
    pub fn fill(&self, family: Family, set: SetName) -> Option<(u32, u32)> {
        let size = self.tables.get(&family)?.size(set)?;
        Some((RowCounts::elements(set, self.counts.get(family, set)), size))
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
                self.leads.count(family, &value, 1);
            }
            self.unclaimed.insert(RowId { family, set, key }, value);
        }
    }

    fn timeouts_in_use(&self, family: Family) -> BTreeSet<u32> {
        let of_family = self.timeouts.range((family, 0)..=(family, u32::MAX));
        of_family.map(|((_, seconds), _)| *seconds).collect()
    }

    fn demand(&self, family: Family) -> Demand {
        let table = self.tables.get(&family);
        let growth = self.pending.growth().into_iter().filter(|(of, ..)| *of == family);
        let outgrown = growth.filter_map(|(_, set, growth)| {
            let rows = self.counts.after(family, set, growth);
            table?.outgrown(set, rows).map(|size| (set, size))
        });
        Demand {
            resizes: outgrown.collect(),
            slots: self.pending.slots(family),
            timeouts: self.timeouts_in_use(family),
        }
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
