//! Dumps of one table to an [`ObservedTable`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::element::{self, Element};
use super::expression::{self, Expression};
use super::query::{TableHead, attributes, is_in_our_table};
use super::uapi::{element as nfta_element, msg, rule};
use super::wire::{Attributes, find, find_string};
use super::{chain, lower, set};
use crate::model::Family;
use crate::nft::schema::{Chain, Key, ObservedTable, SetName, Value};
use crate::nft::shape::TableShape;
use crate::nft::skeleton::{self, Program};

/// A table under observation: takes the messages of dumps, in any order of dumps.
#[derive(Debug)]
pub struct Observation<'a> {
    family: Family,
    program: &'a Program,
    sets: Vec<(SetName, Option<u32>)>,
    /// Ours by name and hook.
    chains: Vec<Chain>,
    /// The rules of a chain in order. `None`: one that we never write.
    rules: BTreeMap<String, Vec<Option<Vec<Expression>>>>,
    rows: Vec<(SetName, Key, Value)>,
    bounds: Vec<Bound>,
    unknown: Vec<String>,
    /// Sets, chains and whatever else the table has, by the kernel's own count.
    objects: u32,
    seen: u32,
    counts: BTreeMap<SetName, u32>,
    uses: BTreeMap<Chain, u32>,
}

/// Where a range starts or ends. An end comes before a start at the same address: ranges may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bound {
    address: IpAddr,
    starts: bool,
}

impl<'a> Observation<'a> {
    /// Begins to observe a table with this head. `unownable`: it is not ours and cannot become so.
    pub(crate) fn new(
        family: Family,
        program: &'a Program,
        head: TableHead,
        unownable: bool,
    ) -> Observation<'a> {
        let mut unknown = Vec::new();
        if head.dormant {
            unknown.push("the flag dormant".to_owned());
        }
        if unownable {
            unknown.push("a table that everybody may change".to_owned());
        }
        Observation {
            family,
            program,
            sets: Vec::new(),
            chains: Vec::new(),
            rules: BTreeMap::new(),
            rows: Vec::new(),
            bounds: Vec::new(),
            unknown,
            objects: head.objects,
            seen: 0,
            counts: BTreeMap::new(),
            uses: BTreeMap::new(),
        }
    }

    /// Sets whose elements are to be asked for: ours, but those that packets write.
    pub(crate) fn readable_sets(&self) -> Vec<SetName> {
        let written_by_packets = |name: &SetName| skeleton::spec(*name).dynamic;
        self.sets.iter().map(|(name, _)| *name).filter(|it| !written_by_packets(it)).collect()
    }

    /// Takes a message of the dump of sets.
    pub(crate) fn set(&mut self, kind: u16, payload: &[u8]) {
        let Some(payload) = attributes(kind, msg::NEWSET, payload) else { return };
        self.seen += 1;
        match set::read(self.family, payload) {
            Ok(known) if skeleton::is_used(known.0, self.program) => {
                self.sets.push(known);
                self.counts.extend(set::read_count(payload).map(|it| (known.0, it)));
            }
            Ok((other, _)) => self.unknown.push(format!("set {}", other.name())),
            Err(name) => self.unknown.push(format!("set {name}")),
        }
    }

    /// Takes a message of the dump of chains.
    pub(crate) fn chain(&mut self, kind: u16, payload: &[u8]) {
        let Some(payload) = attributes(kind, msg::NEWCHAIN, payload) else { return };
        if !is_in_our_table(payload) {
            return;
        }
        self.seen += 1;
        match chain::read(payload) {
            Ok(known) => {
                self.chains.push(known);
                self.uses.extend(chain::read_uses(payload).map(|it| (known, it)));
            }
            Err(name) => self.unknown.push(format!("chain {name}")),
        }
    }

    /// Takes a message of the dump of rules.
    pub(crate) fn rule(&mut self, kind: u16, payload: &[u8]) {
        let Some(payload) = attributes(kind, msg::NEWRULE, payload) else { return };
        let chain = find_string(payload, rule::CHAIN).unwrap_or_default();
        let expressions = find(payload, rule::EXPRESSIONS).unwrap_or_default();
        self.rules.entry(chain.to_owned()).or_default().push(expression::read_all(expressions));
    }

    /// Takes a message of the dump of a set's elements.
    pub(crate) fn elements(&mut self, set: SetName, kind: u16, payload: &[u8]) {
        let Some(payload) = attributes(kind, msg::NEWSETELEM, payload) else { return };
        let list = find(payload, nfta_element::LIST_ELEMENTS).unwrap_or_default();
        for (_, item) in Attributes(list) {
            match element::read(self.family, set, item) {
                Some(Element::Row(key, value)) => self.rows.push((set, key, value)),
                Some(Element::Start(address)) => self.bounds.push(Bound { address, starts: true }),
                Some(Element::End(address)) => self.bounds.push(Bound { address, starts: false }),
                None => self.unknown.push(format!("element of {}: {}", set.name(), hex(item))),
            }
        }
    }

    /// What was observed.
    pub(crate) fn finish(mut self) -> ObservedTable {
        self.ranges();
        let (chains, stale_chains) = self.judge_chains();
        self.count_others();
        self.rows.sort_unstable_by_key(|(set, key, _)| (*set, *key));
        self.sets.sort_unstable();
        self.unknown.sort_unstable();
        ObservedTable {
            sets: self.sets,
            chains,
            stale_chains,
            elements: self.rows,
            unknown: self.unknown,
        }
    }

    /// What was observed when neither rules nor elements were asked for.
    pub(crate) fn into_shape(mut self) -> TableShape {
        self.count_others();
        let sets = self.sets.into_iter().map(|(set, _)| set).collect();
        TableShape { sets, unknown: self.unknown, elements: self.counts, uses: self.uses }
    }

    fn count_others(&mut self) {
        if self.objects > self.seen {
            let others = self.objects - self.seen;
            self.unknown.push(format!("{others} object(s) other than sets and chains"));
        }
    }

    /// Sorts chains into those with the wanted rules and those with others.
    fn judge_chains(&mut self) -> (Vec<Chain>, Vec<Chain>) {
        let specs = skeleton::chains(self.program, self.family);
        let wanted: BTreeMap<Chain, Vec<Vec<Expression>>> =
            specs.into_iter().map(|spec| (spec.chain, lowered(self.family, &spec.rules))).collect();
        let (mut chains, mut stale, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        for chain in &self.chains {
            let remembering = if let Chain::Remember(seconds) = chain {
                Some(lowered(self.family, &skeleton::remember(*seconds).rules))
            } else {
                None
            };
            let wanted = remembering.as_ref().or_else(|| wanted.get(chain));
            let found = self.rules.get(&chain.to_string()).map_or(&[][..], Vec::as_slice);
            if wanted.is_some_and(|wanted| is_same(wanted, found)) {
                chains.push(*chain);
            } else if wanted.is_some() && remembering.is_none() {
                stale.push(*chain);
            } else {
                unknown.push(format!("chain {chain}"));
            }
        }
        self.unknown.append(&mut unknown);
        chains.sort_unstable();
        stale.sort_unstable();
        (chains, stale)
    }

    /// Puts the bounds of ranges together again.
    fn ranges(&mut self) {
        self.bounds.sort_unstable();
        let mut bounds = self.bounds.iter().peekable();
        while let Some(bound) = bounds.next() {
            if !bound.starts {
                // nft begins a list of ranges with an end where nothing has started.
                continue;
            }
            let end = bounds.next_if(|it| !it.starts).map(|it| it.address);
            match last_before(bound.address, end).and_then(|it| element::range(bound.address, it)) {
                Some(net) => {
                    self.rows.push((SetName::ServiceCidrs, Key::Range(net), Value::None));
                }
                None => self.unknown.push(format!(
                    "element of {}: from {}{}",
                    SetName::ServiceCidrs.name(),
                    bound.address,
                    end.map_or_else(String::new, |it| format!(" up to, without, {it}")),
                )),
            }
        }
    }
}

fn lowered(family: Family, rules: &[crate::nft::schema::Rule]) -> Vec<Vec<Expression>> {
    rules.iter().map(|rule| lower::lower(family, rule)).collect()
}

fn is_same(wanted: &[Vec<Expression>], found: &[Option<Vec<Expression>>]) -> bool {
    wanted.len() == found.len()
        && wanted.iter().zip(found).all(|(wanted, found)| Some(wanted) == found.as_ref())
}

/// The last address of a range that ends before `end`; without an end it reaches to the last address there is.
fn last_before(start: IpAddr, end: Option<IpAddr>) -> Option<IpAddr> {
    match (start, end) {
        (IpAddr::V4(_), None) => Some(IpAddr::from([255; 4])),
        (IpAddr::V6(_), None) => Some(IpAddr::from([255; 16])),
        (_, Some(IpAddr::V4(end))) => u32::from(end).checked_sub(1).map(|it| IpAddr::V4(it.into())),
        (_, Some(IpAddr::V6(end))) => {
            u128::from(end).checked_sub(1).map(|it| IpAddr::V6(it.into()))
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::*;
    use crate::nft::codec::element::samples::{any_family, any_net};
    use crate::nft::codec::query::TableOwner;
    use crate::nft::codec::wire::Writer;
    use crate::nft::codec::{Ending, Ownership, encode, wire::Messages};
    use crate::nft::schema::{Batch, Op};
    use crate::nft::skeleton::tests::program;
    use crate::nft::tables::Tables;

    /// A dump has the form of the messages that made the table, but for the address of what is dumped.
    #[test]
    fn a_whole_table_is_read_as_it_was_written() {
        let program = Program { ipvs: true, ..program() };
        for family in Family::ALL {
            let batch = Batch(
                std::iter::once(Op::AddTable(family))
                    .chain(SetName::ALL.map(|set| Op::AddSet { family, set, size: Some(9) }))
                    .chain(skeleton::chains(&program, family).into_iter().flat_map(|spec| {
                        let chain = spec.chain;
                        let rules = spec.rules.into_iter();
                        std::iter::once(Op::AddChain { family, chain })
                            .chain(rules.map(move |rule| Op::AddRule { family, chain, rule }))
                    }))
                    .collect(),
            );
            let mut tables = Tables::default();
            tables.apply(&batch).unwrap();
            let observed = observe(family, &batch);
            assert_eq!(Some(&observed), tables.observed(&program).get(&family));
        }
    }

    fn observe(family: Family, batch: &Batch) -> ObservedTable {
        let program = Program { ipvs: true, ..program() };
        let mut observation = Observation::new(family, &program, head(0), false);
        for message in Messages(&encode(batch, 1, None, Ending::Commit, Ownership::Shared).bytes) {
            observation.set(message.kind, message.payload);
            observation.chain(message.kind, message.payload);
            observation.rule(message.kind, message.payload);
            observation.elements(SetName::ServiceCidrs, message.kind, message.payload);
        }
        observation.finish()
    }

    /// Nets of which none contains another.
    fn disjoint(nets: Vec<IpNet>) -> BTreeSet<IpNet> {
        let mut chosen: BTreeSet<IpNet> = BTreeSet::new();
        for net in nets {
            if chosen.iter().all(|it| !it.contains(&net) && !net.contains(it)) {
                chosen.insert(net);
            }
        }
        chosen
    }

    proptest! {
        #[test]
        fn ranges_come_back_from_their_bounds(
            (family, nets) in any_family().prop_flat_map(|family| {
                (Just(family), prop::collection::vec(any_net(family), 0..30))
            }),
        ) {
            let set = SetName::ServiceCidrs;
            let nets = disjoint(nets);
            let add = |net: &IpNet| Op::AddElement {
                family, set, key: Key::Range(*net), value: Value::None, owner: None,
            };
            let observed = observe(family, &Batch(nets.iter().map(add).collect()));
            let read: BTreeSet<Key> = observed.elements.iter().map(|(_, key, _)| *key).collect();
            prop_assert_eq!(read, nets.into_iter().map(Key::Range).collect::<BTreeSet<_>>());
            prop_assert!(observed.unknown.is_empty());
        }

        #[test]
        fn any_bytes_are_survived(
            kind in 0xa00u16..0xa20,
            family in any_family(),
            set in prop::sample::select(&SetName::ALL),
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..6),
        ) {
            let program = program();
            let mut observation = Observation::new(family, &program, head(3), false);
            for payload in &payloads {
                observation.set(kind, payload);
                observation.chain(kind, payload);
                observation.rule(kind, payload);
                observation.elements(set, kind, payload);
            }
            prop_assert!(observation.finish().elements.len() <= payloads.len() * 100);
        }

        #[test]
        fn ranges_of_any_lists_of_elements_are_survived(family in any_family(), bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let program = program();
            let mut observation = Observation::new(family, &program, head(0), false);
            let mut writer = Writer::default();
            writer.raw(&[0; 4]);
            writer.nest(nfta_element::LIST_ELEMENTS, |writer| writer.raw(&bytes));
            observation.elements(SetName::ServiceCidrs, 0xa00 | u16::from(msg::NEWSETELEM), &writer.into_bytes());
            observation.finish();
        }
    }

    fn head(objects: u32) -> TableHead {
        TableHead { objects, dormant: false, owner: TableOwner::Nobody }
    }
}
