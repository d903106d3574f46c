//! Tables as values: what a kernel holds after some batches, with the kernel's strictness.
//!
//! Dry runs render them, the packet walk looks rows up in them, the in-memory kernel is made of them.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net};

use super::schema::{
    Batch, Chain, Data, Field, Key, ObservedTable, Op, Rule, SetName, SetSpec, Statement, Value,
};
use super::shape::{TableShape, count_rules, led_to, target};
use super::skeleton::{self, Program};
use crate::model::Family;

/// The tables of a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables(pub BTreeMap<Family, Table>);

/// One family's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Sets and maps with the number of elements that fit, and their rows. `None`: no limit.
    pub sets: BTreeMap<SetName, (Option<u32>, BTreeMap<Key, Value>)>,
    pub chains: BTreeMap<Chain, Vec<Rule>>,
}

/// An operation that the kernel would refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Position in the batch.
    pub op: usize,
    /// Positive errno.
    pub errno: i32,
}

/// Something that the operation names is not there.
pub const ENOENT: i32 = 2;
/// A chain that rules or rows still lead to.
pub const EBUSY: i32 = 16;
/// The row is there with another value, or overlaps another one.
pub const EEXIST: i32 = 17;
/// The row's type is not the set's.
pub const EINVAL: i32 = 22;
/// The set is full.
pub const ENFILE: i32 = 23;

impl Tables {
    /// Carries out the whole batch, or nothing of it. As in the kernel, operations after a refused one are still
    /// tried, so that all refusals are told at once.
    pub fn apply(&mut self, batch: &Batch) -> Result<(), Vec<Refusal>> {
        let Attempt { undo, refusals, sizes } = self.attempt(batch);
        if !refusals.is_empty() {
            self.revert(undo);
            return Err(refusals);
        }
        for (family, set, size) in sizes {
            if let Some((old, _)) = self.0.get_mut(&family).and_then(|it| it.sets.get_mut(&set)) {
                *old = size;
            }
        }
        Ok(())
    }

    /// Whether `apply` would succeed.
    pub fn check(&mut self, batch: &Batch) -> Result<(), Vec<Refusal>> {
        let Attempt { undo, refusals, .. } = self.attempt(batch);
        self.revert(undo);
        if refusals.is_empty() { Ok(()) } else { Err(refusals) }
    }

    /// The rows of one set; empty when there is no such set.
    pub fn rows(&self, family: Family, set: SetName) -> impl Iterator<Item = (&Key, &Value)> {
        self.0.get(&family).and_then(|it| it.sets.get(&set)).into_iter().flat_map(|(_, rows)| rows)
    }

    /// The tables as [`crate::kernel::Kernel::observe`] tells them.
    pub fn observed(&self, program: &Program) -> BTreeMap<Family, ObservedTable> {
        self.0.iter().map(|(family, table)| (*family, table.observed(program, *family))).collect()
    }

    /// The tables as [`crate::kernel::Kernel::survey`] tells them.
    pub fn shapes(&self, program: &Program) -> BTreeMap<Family, TableShape> {
        self.0.iter().map(|(family, table)| (*family, table.shape(program, *family))).collect()
    }

    fn attempt(&mut self, batch: &Batch) -> Attempt {
        let mut attempt = Attempt::default();
        for (position, op) in batch.0.iter().enumerate() {
            match self.carry_out(op, &mut attempt.sizes) {
                Ok(step) => attempt.undo.extend(step),
                Err(errno) => attempt.refusals.push(Refusal { op: position, errno }),
            }
        }
        attempt
    }

    fn carry_out(&mut self, op: &Op, sizes: &mut Vec<NewSize>) -> Result<Option<Undo>, i32> {
        if let Op::AddTable(family) = *op {
            let new = !self.0.contains_key(&family);
            self.0.entry(family).or_default();
            return Ok(new.then_some(Undo::Table(family, None)));
        }
        if let Op::DeleteTable(family) = *op {
            let old = self.0.remove(&family);
            return Ok(old.map(|old| Undo::Table(family, Some(old))));
        }
        let family = family_of(op);
        self.0.get_mut(&family).ok_or(ENOENT)?.carry_out(family, op, sizes)
    }

    fn revert(&mut self, undo: Vec<Undo>) {
        for step in undo.into_iter().rev() {
            match step {
                Undo::Table(family, Some(table)) => drop(self.0.insert(family, table)),
                Undo::Table(family, None) => drop(self.0.remove(&family)),
                Undo::NewSet(family, set) => drop(self.table(family).sets.remove(&set)),
                Undo::Chain(family, chain, rules) => {
                    put_back(&mut self.table(family).chains, chain, rules);
                }
                Undo::Row(family, set, key, value) => {
                    put_back(&mut self.table(family).set(set).1, key, value);
                }
            }
        }
    }

    fn table(&mut self, family: Family) -> &mut Table {
        self.0.entry(family).or_default()
    }
}

/// A set that is there, and its size from the next transaction on: rows that need it are refused in the same one
/// (nft_trans_set_size in nf_tables_api.c).
type NewSize = (Family, SetName, Option<u32>);

/// What came of the operations of one batch.
#[derive(Default)]
struct Attempt {
    undo: Vec<Undo>,
    refusals: Vec<Refusal>,
    sizes: Vec<NewSize>,
}

/// What takes one operation back.
enum Undo {
    Table(Family, Option<Table>),
    NewSet(Family, SetName),
    Chain(Family, Chain, Option<Vec<Rule>>),
    Row(Family, SetName, Key, Option<Value>),
}

fn put_back<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

/// The family that an operation is about.
pub fn family_of(op: &Op) -> Family {
    match *op {
        Op::AddTable(family)
        | Op::DeleteTable(family)
        | Op::AddSet { family, .. }
        | Op::ResizeSet { family, .. }
        | Op::AddChain { family, .. }
        | Op::FlushChain { family, .. }
        | Op::DeleteChain { family, .. }
        | Op::AddRule { family, .. }
        | Op::AddElement { family, .. }
        | Op::DeleteElement { family, .. } => family,
    }
}

impl Table {
    fn set(&mut self, set: SetName) -> &mut (Option<u32>, BTreeMap<Key, Value>) {
        self.sets.entry(set).or_default()
    }

    fn carry_out(
        &mut self,
        family: Family,
        op: &Op,
        sizes: &mut Vec<NewSize>,
    ) -> Result<Option<Undo>, i32> {
        match op {
            // The caller has dealt with tables.
            Op::AddTable(_) | Op::DeleteTable(_) => Ok(None),
            // A set that is there keeps its rows.
            Op::AddSet { set, size, .. } if self.sets.contains_key(set) => {
                sizes.push((family, *set, *size));
                Ok(None)
            }
            Op::AddSet { set, size, .. } => {
                self.sets.insert(*set, (*size, BTreeMap::new()));
                Ok(Some(Undo::NewSet(family, *set)))
            }
            Op::ResizeSet { set, size, .. } => {
                let (_, rows) = self.sets.get(set).ok_or(ENOENT)?;
                if u32::try_from(rows.len()).is_ok_and(|rows| rows > *size) {
                    return Err(EINVAL);
                }
                sizes.push((family, *set, Some(*size)));
                Ok(None)
            }
            Op::AddChain { chain, .. } => {
                let new = !self.chains.contains_key(chain);
                self.chains.entry(*chain).or_default();
                Ok(new.then_some(Undo::Chain(family, *chain, None)))
            }
            Op::FlushChain { chain, .. } => {
                let rules = self.chains.get_mut(chain).ok_or(ENOENT)?;
                Ok(Some(Undo::Chain(family, *chain, Some(std::mem::take(rules)))))
            }
            Op::DeleteChain { chain, .. } => {
                if self.leads_to(*chain) {
                    return Err(EBUSY);
                }
                let rules = self.chains.remove(chain).ok_or(ENOENT)?;
                Ok(Some(Undo::Chain(family, *chain, Some(rules))))
            }
            Op::AddRule { chain, rule, .. } => {
                self.check_rule(rule)?;
                let rules = self.chains.get_mut(chain).ok_or(ENOENT)?;
                let old = rules.clone();
                rules.push(rule.clone());
                Ok(Some(Undo::Chain(family, *chain, Some(old))))
            }
            Op::AddElement { set, key, value, .. } => self.add_row(family, *set, *key, *value),
            Op::DeleteElement { set, key, .. } => {
                let (_, rows) = self.sets.get_mut(set).ok_or(ENOENT)?;
                let old = rows.remove(key).ok_or(ENOENT)?;
                Ok(Some(Undo::Row(family, *set, *key, Some(old))))
            }
        }
    }

    fn add_row(
        &mut self,
        family: Family,
        set: SetName,
        key: Key,
        value: Value,
    ) -> Result<Option<Undo>, i32> {
        if !fits(&skeleton::spec(set), family, &key, &value) {
            return Err(EINVAL);
        }
        if let Some(chain) = led_to(&value)
            && !self.chains.contains_key(&chain)
        {
            return Err(ENOENT);
        }
        let (size, rows) = self.sets.get_mut(&set).ok_or(ENOENT)?;
        match rows.get(&key) {
            Some(present) if *present == value => return Ok(None),
            Some(_) => return Err(EEXIST),
            None if overlaps(rows, &key) => return Err(EEXIST),
            None => {}
        }
        if size.is_some_and(|size| rows.len() >= size as usize) {
            return Err(ENFILE);
        }
        rows.insert(key, value);
        Ok(Some(Undo::Row(family, set, key, None)))
    }

    fn check_rule(&self, rule: &Rule) -> Result<(), i32> {
        let known = rule.0.iter().all(|statement| {
            target(statement).is_none_or(|chain| self.chains.contains_key(&chain))
                && referenced_set(statement).is_none_or(|set| self.sets.contains_key(&set))
        });
        if known { Ok(()) } else { Err(ENOENT) }
    }

    fn leads_to(&self, chain: Chain) -> bool {
        let rules = self.chains.values().flatten().flat_map(|rule| &rule.0);
        let mut targets = rules.filter_map(target);
        let mut values = self.sets.values().flat_map(|(_, rows)| rows.values());
        targets.any(|target| target == chain) || values.any(|value| led_to(value) == Some(chain))
    }

    fn shape(&self, program: &Program, family: Family) -> TableShape {
        let ObservedTable { sets, mut unknown, .. } = self.observed(program, family);
        // Rules are not looked at.
        unknown.retain(|it| !it.starts_with("chain "));
        let rows = self.sets.iter().filter(|(set, _)| skeleton::is_used(**set, program));
        let elements =
            rows.map(|(set, (_, rows))| (*set, u32::try_from(rows.len()).unwrap_or(u32::MAX)));
        let mut uses: BTreeMap<Chain, u32> = self.chains.keys().map(|it| (*it, 0)).collect();
        for (chain, rules) in &self.chains {
            count_rules(*chain, rules, &mut uses);
        }
        for chain in self.sets.values().flat_map(|(_, rows)| rows.values()).filter_map(led_to) {
            *uses.entry(chain).or_default() += 1;
        }
        uses.retain(|chain, _| self.chains.contains_key(chain));
        let sets = sets.into_iter().map(|(set, _)| set).collect();
        TableShape { sets, unknown, elements: elements.collect(), uses }
    }

    fn observed(&self, program: &Program, family: Family) -> ObservedTable {
        let mut wanted: BTreeMap<Chain, Vec<Rule>> =
            skeleton::chains(program, family).into_iter().map(|it| (it.chain, it.rules)).collect();
        for chain in self.chains.keys() {
            if let Chain::Remember(seconds) = *chain {
                wanted.insert(*chain, skeleton::remember(seconds).rules);
            }
        }
        let mut table = ObservedTable::default();
        for (chain, rules) in &self.chains {
            match wanted.get(chain) {
                Some(wanted) if wanted == rules => table.chains.push(*chain),
                Some(_) if !matches!(chain, Chain::Remember(_)) => table.stale_chains.push(*chain),
                _ => table.unknown.push(format!("chain {chain}")),
            }
        }
        for (set, (size, rows)) in &self.sets {
            if !skeleton::is_used(*set, program) {
                table.unknown.push(format!("set {}", set.name()));
                continue;
            }
            table.sets.push((*set, *size));
            if *set != SetName::Affinity {
                table.elements.extend(rows.iter().map(|(key, value)| (*set, *key, *value)));
            }
        }
        table
    }
}

/// The set that a statement names.
fn referenced_set(statement: &Statement) -> Option<SetName> {
    if let Statement::InSet { set, .. }
    | Statement::Vmap { map: set, .. }
    | Statement::Dnat { map: set, .. }
    | Statement::PrioritySetFromMap { map: set, .. }
    | Statement::Update { map: set, .. }
    | Statement::Forget { map: set, .. } = statement
    {
        Some(*set)
    } else {
        None
    }
}

/// Interval sets refuse a range that overlaps another one.
fn overlaps(rows: &BTreeMap<Key, Value>, key: &Key) -> bool {
    let meet = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    if let Key::Range(new) = key {
        return rows.keys().any(|it| matches!(it, Key::Range(old) if meet(old, new)));
    }
    let Key::FrontendSource(at, new) = key else { return false };
    let first = Key::FrontendSource(*at, IpNet::V4(Ipv4Net::default()));
    rows.range(first..)
        .map_while(|(it, _)| {
            if let Key::FrontendSource(of, old) = it { (of == at).then_some(old) } else { None }
        })
        .any(|old| meet(old, new))
}

/// Whether a row is of the set's type.
fn fits(spec: &SetSpec, family: Family, key: &Key, value: &Value) -> bool {
    let data = match (spec.data, value) {
        (Data::None, Value::None) | (Data::Verdict, Value::Verdict(_)) => true,
        (Data::Fields([Field::Priority]), Value::Handle(_)) => true,
        (Data::Fields([Field::Daddr, Field::Dport]), Value::Endpoint(address, _)) => {
            Family::of(*address) == family
        }
        _ => false,
    };
    let of_family = |addresses: &[std::net::IpAddr]| {
        addresses.iter().all(|address| Family::of(*address) == family)
    };
    let key_family = match key {
        Key::Address(address) | Key::Client(address, _) => of_family(&[*address]),
        Key::Range(net) => of_family(&[net.addr()]),
        Key::Pair(source, destination) => of_family(&[*source, *destination]),
        Key::Frontend(at) | Key::FrontendSlot(at, _) => of_family(&[at.address]),
        Key::FrontendSource(at, net) => of_family(&[at.address, net.addr()]),
        Key::NodePort(_) | Key::NodePortSlot(..) | Key::Group(_) | Key::GroupSlot(..) => true,
    };
    data && key_family && spec.key == key_fields(key, spec.interval)
}

/// The fields of a key, in the order of the set's definition.
fn key_fields(key: &Key, interval: bool) -> &'static [Field] {
    use Field::{Daddr, Dport, L4Proto, Priority, Random, Saddr};
    const SLOT: Field = Random(65_536);
    match (key, interval) {
        (Key::Address(_), false) | (Key::Range(_), true) => &[Daddr],
        (Key::Pair(..), false) => &[Saddr, Daddr],
        (Key::Frontend(_), false) => &[Daddr, L4Proto, Dport],
        (Key::FrontendSource(..), true) => &[Daddr, L4Proto, Dport, Saddr],
        (Key::FrontendSlot(..), false) => &[Daddr, L4Proto, Dport, SLOT],
        (Key::NodePort(_), false) => &[L4Proto, Dport],
        (Key::NodePortSlot(..), false) => &[L4Proto, Dport, SLOT],
        (Key::Group(_), false) => &[Priority],
        (Key::GroupSlot(..), false) => &[Priority, SLOT],
        (Key::Client(..), false) => &[Saddr, Priority],
        _ => &[],
    }
}
