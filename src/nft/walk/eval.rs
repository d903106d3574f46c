//! The chain interpreter: all states a packet can be in, rule by rule.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use super::{Memory, Origin, Packet};
use crate::model::Protocol;
use crate::nft::schema::{self};
use crate::nft::schema::{
    AddressPort, Chain, Field, Handle, Key, NodePortKey, Rule, SetName, Statement, Value,
};
use crate::nft::tables::Table;

/// What rules can change about a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct State {
    pub(super) destination: IpAddr,
    pub(super) port: NonZeroU16,
    pub(super) translated: bool,
    pub(super) masqueraded: bool,
    pub(super) remembered: BTreeSet<Memory>,
    forgotten: BTreeSet<(IpAddr, Handle)>,
    mark: u32,
    priority: u32,
}

impl State {
    pub(super) fn new(packet: &Packet) -> State {
        State {
            destination: packet.destination,
            port: packet.port,
            translated: false,
            masqueraded: false,
            remembered: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            mark: 0,
            priority: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Reject,
}

/// How packets leave a chain.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// At its end, to the chain that jumped here.
    pub(super) returned: BTreeSet<State>,
    pub(super) finished: BTreeSet<(State, Verdict)>,
}

/// What a statement does with a packet.
enum Step {
    /// The next statement.
    Go(State),
    /// The next rule.
    Break(State),
    Jump(State, Chain),
    Goto(State, Chain),
    Finish(State, Verdict),
}

pub(super) struct Evaluator<'a> {
    pub(super) table: &'a Table,
    pub(super) local: &'a BTreeSet<IpAddr>,
    pub(super) packet: &'a Packet,
}

impl Evaluator<'_> {
    pub(super) fn chain(&self, chain: Chain, mut states: BTreeSet<State>) -> Ends {
        let mut ends = Ends::default();
        for rule in self.table.chains.get(&chain).into_iter().flatten() {
            let mut next = BTreeSet::new();
            for state in states {
                self.rule(rule, state, &mut next, &mut ends);
            }
            states = next;
        }
        ends.returned.extend(states);
        ends
    }

    fn rule(&self, rule: &Rule, state: State, next: &mut BTreeSet<State>, ends: &mut Ends) {
        let mut active = vec![state];
        for statement in &rule.0 {
            let steps: Vec<Step> =
                active.drain(..).flat_map(|state| self.statement(statement, state)).collect();
            for step in steps {
                match step {
                    Step::Go(state) => active.push(state),
                    Step::Break(state) => drop(next.insert(state)),
                    Step::Jump(state, target) => {
                        let inner = self.chain(target, BTreeSet::from([state]));
                        next.extend(inner.returned);
                        ends.finished.extend(inner.finished);
                    }
                    Step::Goto(state, target) => {
                        let inner = self.chain(target, BTreeSet::from([state]));
                        ends.returned.extend(inner.returned);
                        ends.finished.extend(inner.finished);
                    }
                    Step::Finish(state, verdict) => drop(ends.finished.insert((state, verdict))),
                }
            }
        }
        next.extend(active);
    }

    fn statement(&self, statement: &Statement, mut state: State) -> Vec<Step> {
        let step = match statement {
            Statement::CtStateNew => Step::Go(state),
            Statement::CtStatusDnat { negated } => matches_if(state.translated != *negated, state),
            Statement::AddressIn { field, net, negated } => {
                let address = self.address(*field, &state);
                matches_if(net.contains(&address) != *negated, state)
            }
            Statement::InputInterface { name, prefix, negated } => {
                matches_if(self.came_in_by(name, *prefix) != *negated, state)
            }
            Statement::FibLocal { field } => {
                matches_if(self.local.contains(&self.address(*field, &state)), state)
            }
            Statement::InSet { key, set, negated } => {
                matches_if(self.contains(*set, key, &state) != *negated, state)
            }
            Statement::L4Proto(protocol) => matches_if(*protocol == self.packet.protocol, state),
            Statement::MarkIsSet(mark) => matches_if(state.mark & mark != 0, state),
            Statement::PriorityHas(mask) => matches_if(state.priority & mask != 0, state),
            Statement::PriorityAtLeast(value) => matches_if(state.priority >= *value, state),
            Statement::Vmap { key, map } => return self.vmap(key, *map, state),
            Statement::Dnat { key, map } => return self.dnat(key, *map, state),
            Statement::PrioritySetFromMap { key, map } => {
                return self.priority_from(key, *map, state);
            }
            Statement::MarkOr(mark) => {
                state.mark |= mark;
                Step::Go(state)
            }
            Statement::MarkXor(mark) => {
                state.mark ^= mark;
                Step::Go(state)
            }
            Statement::PriorityMask(mask) => {
                state.priority &= mask;
                Step::Go(state)
            }
            Statement::PriorityReset => {
                state.priority = 0;
                Step::Go(state)
            }
            Statement::Update { timeout, .. } => {
                let (client, endpoint) = (self.packet.source, Handle(state.priority));
                let group = Handle(state.priority & Handle::GROUP_MASK);
                state.forgotten.remove(&(client, group));
                let memory = Memory { client, group, endpoint, timeout: *timeout };
                state.remembered.insert(memory);
                Step::Go(state)
            }
            Statement::Forget { .. } => {
                let group = Handle(state.priority & Handle::GROUP_MASK);
                state.remembered.retain(|it| it.group != group);
                state.forgotten.insert((self.packet.source, group));
                Step::Go(state)
            }
            Statement::Masquerade => {
                state.masqueraded = true;
                Step::Finish(state, Verdict::Accept)
            }
            Statement::Reject => Step::Finish(state, Verdict::Reject),
            Statement::Drop => Step::Finish(state, Verdict::Drop),
            Statement::Jump(chain) => Step::Jump(state, *chain),
            Statement::Goto(chain) => Step::Goto(state, *chain),
        };
        vec![step]
    }

    fn vmap(&self, key: &[Field], map: SetName, state: State) -> Vec<Step> {
        let found = self.lookup(map, key, &state);
        let step = |value: Option<Value>| match value {
            Some(Value::Verdict(schema::Verdict::Goto(chain))) => Step::Goto(state.clone(), chain),
            Some(Value::Verdict(schema::Verdict::Jump(chain))) => Step::Jump(state.clone(), chain),
            _ => Step::Break(state.clone()),
        };
        found.into_iter().map(step).collect()
    }

    fn dnat(&self, key: &[Field], map: SetName, state: State) -> Vec<Step> {
        let found = self.lookup(map, key, &state);
        let step = |value: Option<Value>| match value {
            Some(Value::Endpoint(destination, port)) => {
                let state = State { destination, port, translated: true, ..state.clone() };
                Step::Finish(state, Verdict::Accept)
            }
            _ => Step::Break(state.clone()),
        };
        found.into_iter().map(step).collect()
    }

    fn priority_from(&self, key: &[Field], map: SetName, state: State) -> Vec<Step> {
        let found = self.lookup(map, key, &state);
        let step = |value: Option<Value>| match value {
            Some(Value::Handle(handle)) => Step::Go(State { priority: handle.0, ..state.clone() }),
            _ => Step::Break(state.clone()),
        };
        found.into_iter().map(step).collect()
    }

    /// All values that the draw of a slot may find, `None` for a miss.
    fn lookup(&self, map: SetName, key: &[Field], state: &State) -> BTreeSet<Option<Value>> {
        let Some((_, rows)) = self.table.sets.get(&map) else { return BTreeSet::from([None]) };
        let Some(Field::Random(modulus)) = key.last() else {
            let found = self.key(key, 0, state).and_then(|key| rows.get(&key));
            let forgotten = map == SetName::Affinity
                && state.forgotten.contains(&(self.packet.source, Handle(state.priority)));
            return BTreeSet::from([found.copied().filter(|_| !forgotten)]);
        };
        let last = u16::try_from(modulus.saturating_sub(1)).unwrap_or(u16::MAX);
        let (Some(from), Some(to)) = (self.key(key, 0, state), self.key(key, last, state)) else {
            return BTreeSet::from([None]);
        };
        let found: Vec<Value> = rows.range(from..=to).map(|(_, value)| *value).collect();
        let missed = found.len() <= usize::from(last);
        found.into_iter().map(Some).chain(missed.then_some(None)).collect()
    }

    fn contains(&self, set: SetName, key: &[Field], state: &State) -> bool {
        let Some((_, rows)) = self.table.sets.get(&set) else { return false };
        let source = self.packet.source;
        if set == SetName::ServiceCidrs {
            return rows
                .keys()
                .any(|row| matches!(row, Key::Range(net) if net.contains(&state.destination)));
        }
        if set == SetName::SourceRanges {
            return rows.keys().any(|row| {
                matches!(row, Key::FrontendSource(at, net)
                    if *at == self.frontend(state) && net.contains(&source))
            });
        }
        self.key(key, 0, state).is_some_and(|key| rows.contains_key(&key))
    }

    /// The row key that the fields make; `None` for a combination that no set of ours has.
    fn key(&self, fields: &[Field], slot: u16, state: &State) -> Option<Key> {
        use Field::{Daddr, Dport, L4Proto, Priority, PriorityMasked, Random, Saddr};
        let group = Handle(state.priority);
        let masked = |mask: u32| Handle(state.priority & mask);
        Some(match *fields {
            [Daddr] => Key::Address(state.destination),
            [Saddr] => Key::Address(self.packet.source),
            [Saddr, Daddr] => Key::Pair(self.packet.source, state.destination),
            [Daddr, L4Proto, Dport] => Key::Frontend(self.frontend(state)),
            [Daddr, L4Proto, Dport, Random(_)] => Key::FrontendSlot(self.frontend(state), slot),
            [L4Proto, Dport] => Key::NodePort(self.node_port(state)),
            [L4Proto, Dport, Random(_)] => Key::NodePortSlot(self.node_port(state), slot),
            [Priority] => Key::Group(group),
            [PriorityMasked(mask)] => Key::Group(masked(mask)),
            [Priority, Random(_)] => Key::GroupSlot(group, slot),
            [Saddr, Priority] => Key::Client(self.packet.source, group),
            _ => return None,
        })
    }

    fn frontend(&self, state: &State) -> AddressPort {
        AddressPort { address: state.destination, protocol: self.protocol(), port: state.port }
    }

    fn node_port(&self, state: &State) -> NodePortKey {
        NodePortKey { protocol: self.protocol(), port: state.port }
    }

    fn protocol(&self) -> Protocol {
        self.packet.protocol
    }

    fn address(&self, field: Field, state: &State) -> IpAddr {
        if field == Field::Saddr { self.packet.source } else { state.destination }
    }

    /// Locally made packets have come in by no interface.
    fn came_in_by(&self, name: &str, prefix: bool) -> bool {
        match &self.packet.from {
            Origin::Interface(interface) if prefix => interface.starts_with(name),
            Origin::Interface(interface) => interface == name,
            Origin::ThisNode => false,
        }
    }
}

fn matches_if(matched: bool, state: State) -> Step {
    if matched { Step::Go(state) } else { Step::Break(state) }
}
