//! From what is wanted for a Service to what the kernel shall have, staying close to what it has.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::groups::{Groups, MAX_NUMBERS, next_number};
use super::programmed::{Claim, Group, Pool, Port, Programmed, Which, is_external_local};
use super::programmed::{main_pool, uses};
use super::rows::{At, RowId};
use crate::forward::{Backend, Frontend, PortForwarding, ServiceForwarding};
use crate::model::Family;
use crate::nft::schema::{Handle, Key, Owner, SetName, Slots, Value};
use crate::nft::slots::SlotTable;

/// What of a Service could not be programmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    pub owner: Owner,
    pub family: Family,
    pub port_name: Arc<str>,
    pub reason: LimitReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitReason {
    /// Only the first `used` endpoints get traffic.
    Endpoints { wanted: usize, used: usize },
    /// All endpoint groups are taken: the port is served without session affinity.
    AffinityGroups,
}

/// Rows in the kernel that no Service has claimed so far.
pub(super) type Unclaimed = BTreeMap<RowId, Value>;

/// Plans one Service.
pub(super) struct Planner<'a> {
    pub(super) owner: Owner,
    pub(super) unclaimed: &'a Unclaimed,
    pub(super) groups: &'a mut BTreeMap<Family, Groups>,
    pub(super) limits: &'a mut Vec<Limit>,
}

impl Planner<'_> {
    /// Ports of families without a table are left out.
    pub(super) fn service(&mut self, wanted: &ServiceForwarding, old: &Programmed) -> Programmed {
        let mut ports = Vec::new();
        // Each old port has one successor, or two ports would share its endpoint groups.
        let mut succeeded = BTreeSet::new();
        for port in &wanted.ports {
            if self.groups.contains_key(&port.family) && !port.frontends.is_empty() {
                let old =
                    predecessor(old, ports.len(), port).filter(|(it, _)| succeeded.insert(*it));
                ports.push(self.port(port, old.map(|(_, port)| port)));
            }
        }
        Programmed { ports: ports.into() }
    }

    fn port(&mut self, wanted: &PortForwarding, old: Option<&Port>) -> Port {
        let groups = self.port_groups(wanted, old);
        let affinity = groups.and(wanted.affinity);
        let (cluster, local) = groups.unwrap_or_default();
        Port {
            family: wanted.family,
            protocol: wanted.protocol,
            frontends: wanted.frontends.as_slice().into(),
            cluster: self.pool(wanted, old, Which::Cluster, cluster),
            local: self.pool(wanted, old, Which::Local, local),
            hairpin: wanted.hairpin.as_slice().into(),
            affinity,
        }
    }

    /// The endpoint groups of the cluster and the local pool, where used; `None` without affinity.
    fn port_groups(
        &mut self,
        wanted: &PortForwarding,
        old: Option<&Port>,
    ) -> Option<(Option<Handle>, Option<Handle>)> {
        wanted.affinity?;
        let mut pair = [None; 2];
        for (group, which) in pair.iter_mut().zip([Which::Cluster, Which::Local]) {
            if uses(&wanted.frontends, which) {
                *group = self.group(wanted, old, which);
                if group.is_none() {
                    self.give_back(wanted.family, old, &pair);
                    self.limit(wanted, LimitReason::AffinityGroups);
                    return None;
                }
            }
        }
        let [cluster, local] = pair;
        Some((cluster, local))
    }

    fn group(
        &mut self,
        wanted: &PortForwarding,
        old: Option<&Port>,
        which: Which,
    ) -> Option<Handle> {
        if let Some(group) = old.and_then(|it| it.pool(which).group.as_ref()) {
            return Some(group.handle);
        }
        let observed = self.observed_group(wanted, which);
        let groups = self.groups.get_mut(&wanted.family)?;
        match observed {
            Some(handle) if groups.claim(handle) => Some(handle),
            _ => groups.take(),
        }
    }

    /// A group of the old port is freed later, with the port's other rows.
    fn give_back(&mut self, family: Family, old: Option<&Port>, groups: &[Option<Handle>]) {
        let pools = old.map(|it| [&it.cluster, &it.local]).into_iter().flatten();
        let kept: Vec<Handle> =
            pools.filter_map(|it| it.group.as_ref().map(|group| group.handle)).collect();
        if let Some(allocator) = self.groups.get_mut(&family) {
            for handle in groups.iter().flatten().filter(|it| !kept.contains(it)) {
                allocator.free(*handle);
            }
        }
    }

    fn pool(
        &mut self,
        wanted: &PortForwarding,
        old: Option<&Port>,
        which: Which,
        handle: Option<Handle>,
    ) -> Pool {
        if !uses(&wanted.frontends, which) {
            return Pool::default();
        }
        let backends = self.within_limits(wanted, which, handle.is_some());
        let seen = match old {
            Some(port) => Seen::Programmed(port.pool(which)),
            None => self.observed_pool(wanted, which, handle),
        };
        let slots = seen.slots(backends);
        let group = handle.map(|handle| Box::new(seen.group(handle, slots.backends())));
        Pool { slots, group }
    }

    fn within_limits<'b>(
        &mut self,
        wanted: &'b PortForwarding,
        which: Which,
        sticky: bool,
    ) -> &'b [Backend] {
        let backends = match which {
            Which::Cluster => wanted.cluster.as_slice(),
            Which::Local => wanted.local.as_slice(),
        };
        let max = if sticky { MAX_NUMBERS } else { SlotTable::MAX_BACKENDS };
        match backends.get(..max) {
            Some(used) if backends.len() > max => {
                let wanted_number = backends.len();
                self.limit(wanted, LimitReason::Endpoints { wanted: wanted_number, used: max });
                used
            }
            _ => backends,
        }
    }

    fn limit(&mut self, port: &PortForwarding, reason: LimitReason) {
        let (family, port_name) = (port.family, Arc::clone(&port.port_name));
        self.limits.push(Limit { owner: self.owner, family, port_name, reason });
    }

    fn observed_group(&self, wanted: &PortForwarding, which: Which) -> Option<Handle> {
        places(wanted, which).into_iter().find_map(|place| {
            match self.row(wanted.family, place.sticky, place.at.key()) {
                Some(Value::Handle(handle)) => Some(*handle),
                _ => None,
            }
        })
    }

    fn observed_pool(
        &self,
        wanted: &PortForwarding,
        which: Which,
        handle: Option<Handle>,
    ) -> Seen<'static> {
        match handle {
            Some(handle) => self.observed_sticky(wanted.family, handle),
            None => {
                let places = places(wanted, which).into_iter();
                let seen = places.map(|place| self.observed_place(wanted.family, place));
                // A frontend with endpoints says more than one whose endpoints are all gone, or a new one.
                seen.max_by_key(Seen::weight).unwrap_or_else(Seen::nothing)
            }
        }
    }

    fn observed_place(&self, family: Family, place: Place) -> Seen<'static> {
        let slots = place.at.slot(0)..=place.at.slot(u16::MAX);
        let rows = self.range(family, place.endpoints, slots).filter_map(|(key, value)| {
            let (Key::FrontendSlot(_, slot) | Key::NodePortSlot(_, slot)) = *key else {
                return None;
            };
            Some((slot, backend(value)?))
        });
        let rows = rows.collect();
        let verdict = self.row(family, place.dispatch, place.at.key());
        Seen::Observed { rows, numbers: Vec::new(), capacity: verdict.and_then(slots_of) }
    }

    fn observed_sticky(&self, family: Family, group: Handle) -> Seen<'static> {
        let keys = Key::GroupSlot(group, 0)..=Key::GroupSlot(group, u16::MAX);
        let (mut rows, mut numbers) = (Vec::new(), Vec::new());
        for (key, value) in self.range(family, SetName::StickySlots, keys) {
            let (Key::GroupSlot(_, slot), Value::Handle(handle)) = (*key, *value) else { continue };
            let endpoint = self.row(family, SetName::StickyEndpoints, Key::Group(handle));
            if let Some(backend) = endpoint.and_then(backend)
                && handle.group() == group.group()
            {
                rows.push((slot, backend));
                numbers.push((backend, handle.endpoint()));
            }
        }
        let verdict = self.row(family, SetName::StickyGroups, Key::Group(group));
        Seen::Observed { rows, numbers, capacity: verdict.and_then(slots_of) }
    }

    fn row(&self, family: Family, set: SetName, key: Key) -> Option<&Value> {
        self.unclaimed.get(&RowId { family, set, key })
    }

    fn range(
        &self,
        family: Family,
        set: SetName,
        keys: RangeInclusive<Key>,
    ) -> impl Iterator<Item = (&Key, &Value)> {
        let id = |key: &Key| RowId { family, set, key: *key };
        let rows = self.unclaimed.range(id(keys.start())..=id(keys.end()));
        rows.map(|(id, value)| (&id.key, value))
    }
}

/// The old port that has a frontend in common, and its position, which mostly is the same.
fn predecessor<'a>(
    old: &'a Programmed,
    position: usize,
    wanted: &PortForwarding,
) -> Option<(usize, &'a Port)> {
    let (family, protocol) = (wanted.family, wanted.protocol);
    let is_it = |port: &Port| {
        port.family == family
            && port.protocol == protocol
            && wanted
                .frontends
                .iter()
                .any(|it| port.claims().any(|claim| claim == Claim { family, protocol, at: it.at }))
    };
    let same_position = old.ports.get(position).filter(|it| is_it(it)).map(|it| (position, it));
    same_position.or_else(|| old.ports.iter().enumerate().find(|(_, it)| is_it(it)))
}

/// Where a pool's rows of one frontend are.
#[derive(Clone, Copy)]
struct Place {
    at: At,
    dispatch: SetName,
    endpoints: SetName,
    sticky: SetName,
}

fn places(port: &PortForwarding, which: Which) -> Vec<Place> {
    port.frontends.iter().filter_map(|it| place(port, it, which)).collect()
}

fn place(port: &PortForwarding, frontend: &Frontend, which: Which) -> Option<Place> {
    let at = At::new(port.protocol, frontend.at);
    let sets = at.sets();
    if main_pool(frontend) == which {
        let (dispatch, endpoints, sticky) = (sets.dispatch, sets.endpoints, sets.sticky);
        Some(Place { at, dispatch, endpoints, sticky })
    } else if is_external_local(frontend) {
        let (dispatch, endpoints) = (sets.local_dispatch, sets.local_endpoints);
        Some(Place { at, dispatch, endpoints, sticky: sets.sticky_local })
    } else {
        None
    }
}

fn backend(value: &Value) -> Option<Backend> {
    match *value {
        Value::Endpoint(address, port) => Some(Backend { address, port }),
        Value::None | Value::Verdict(_) | Value::Handle(_) => None,
    }
}

fn slots_of(value: &Value) -> Option<Slots> {
    value.chain()?.slots()
}

/// What a pool was so far.
enum Seen<'a> {
    Programmed(&'a Pool),
    Observed {
        rows: Vec<(u16, Backend)>,
        /// For session affinity.
        numbers: Vec<(Backend, u16)>,
        capacity: Option<Slots>,
    },
}

impl Seen<'_> {
    fn nothing() -> Self {
        Seen::Observed { rows: Vec::new(), numbers: Vec::new(), capacity: None }
    }

    /// The number of rows and whether the number of slots is known.
    fn weight(&self) -> (usize, bool) {
        match self {
            Seen::Programmed(pool) => (pool.slots.backends().len(), true),
            Seen::Observed { rows, capacity, .. } => (rows.len(), capacity.is_some()),
        }
    }

    fn slots(&self, wanted: &[Backend]) -> SlotTable {
        match self {
            Seen::Programmed(pool) => {
                let mut slots = pool.slots.clone();
                slots.update(wanted);
                slots
            }
            Seen::Observed { rows, capacity, .. } => SlotTable::adopt(rows, *capacity, wanted),
        }
    }

    /// Backends keep their numbers; new ones get numbers that nobody had for a long time.
    fn group(&self, handle: Handle, backends: &[Backend]) -> Group {
        let (known, mut last) = match self {
            Seen::Programmed(Pool { slots, group: Some(group) }) if group.handle == handle => {
                let numbers = group.numbers.iter().copied();
                (slots.backends().iter().copied().zip(numbers).collect(), group.last)
            }
            Seen::Programmed(_) => (Vec::new(), 0),
            Seen::Observed { numbers, .. } => {
                (numbers.clone(), numbers.iter().map(|(_, it)| *it).max().unwrap_or(0))
            }
        };
        let mut taken: BTreeSet<u16> = known.iter().map(|(_, number)| *number).collect();
        let known = distinct(known);
        let mut numbers = Vec::with_capacity(backends.len());
        for backend in backends {
            let number = known.get(backend).copied().or_else(|| {
                last = next_number(last, &taken).or_else(|| unused(&known, backends, &numbers))?;
                taken.insert(last);
                Some(last)
            });
            // There are never more backends than numbers.
            numbers.push(number.unwrap_or_default());
        }
        Group { handle, numbers: numbers.into(), last }
    }
}

/// Numbers by backend, without numbers that are invalid or stand for several backends.
fn distinct(known: Vec<(Backend, u16)>) -> BTreeMap<Backend, u16> {
    let mut seen = BTreeSet::from([0]);
    known.into_iter().filter(|(_, number)| seen.insert(*number)).collect()
}

/// When all numbers were in use just now, one of a backend that goes has to do.
fn unused(known: &BTreeMap<Backend, u16>, backends: &[Backend], given: &[u16]) -> Option<u16> {
    let mut kept: BTreeSet<u16> = backends.iter().filter_map(|it| known.get(it).copied()).collect();
    kept.extend(given);
    next_number(0, &kept)
}
