//! What the kernel holds against what it is believed to hold: all at once at the start and when nobody knows, otherwise
//! piece by piece, so that changes need not wait for the end.
//!
//! A comparison begins with an outline: addresses and virtual servers. Then come the destinations, of a few virtual servers
//! at a time. Between two pieces anything may be staged and carried out; since a piece is read and compared in one go,
//! it is what was believed at that very moment that it is compared with. Of the outline, only what has not been touched since
//! is used ([`Compiler::done`] sees to that).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Compiler, State};
use crate::ipvs::schema::{
    Destination, Observed, ObservedDestinations, ObservedServer, Outline, ServerKey,
};
use crate::model::Protocol;
use crate::nft::schema::Owner;

/// What an observation showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// The kernel holds something else than believed.
    pub by_others: bool,
    /// Whose virtual servers are not as wanted.
    pub owners: BTreeSet<Owner>,
}

impl Differences {
    fn add(&mut self, others: Differences) {
        self.by_others |= others.by_others;
        self.owners.extend(others.owners);
    }
}

impl Compiler {
    /// Believes what was observed, whatever was believed before, and tells who has to be staged again for that. At the
    /// start nobody is: then everything is staged once, and what nobody wants goes with [`Compiler::prune`].
    pub fn observe(&mut self, observed: Observed) -> Differences {
        let Observed { interface, servers } = observed;
        let (mut outline, mut destinations) = (BTreeMap::new(), BTreeMap::new());
        for (key, seen) in servers {
            outline.insert(key, seen.server);
            destinations.insert(key, seen.destinations);
        }
        let mut differences = self.outline(Outline { interface, servers: outline });
        differences.add(self.compare(destinations));
        differences.owners.extend(self.dirty.keys());
        differences
    }

    /// Begins a comparison: addresses, and virtual servers that are gone. The others follow with [`Compiler::compare`].
    pub fn outline(&mut self, outline: Outline) -> Differences {
        let bound = outline.interface.map(|it| it.addresses).unwrap_or_default();
        let mut differences =
            Differences { by_others: bound != self.bound, ..Differences::default() };
        self.bound = bound;
        // What is at a bound address has been seen now.
        self.hidden.retain(|it| !self.bound.contains(&it.address));
        self.uncompared = outline.servers;
        let absent = self.servers.keys().filter(|it| !self.uncompared.contains_key(it));
        for key in absent.copied().collect::<Vec<_>>() {
            differences.add(self.not_listed(key));
        }
        if self.pruned {
            self.leave_unwanted();
        } else {
            self.loose.clear();
        }
        differences
    }

    /// The next virtual servers whose destinations are to be read for the comparison that is under way; none: it has
    /// ended.
    pub fn uncompared(&self, most: usize) -> Vec<ServerKey> {
        self.uncompared.keys().take(most).copied().collect()
    }

    /// Goes on with a comparison: the destinations of some virtual servers, as they are at this moment.
    pub fn compare(&mut self, seen: BTreeMap<ServerKey, ObservedDestinations>) -> Differences {
        let mut differences = Differences::default();
        for (key, destinations) in seen {
            // Deleted by us since it was listed.
            let Some(server) = self.uncompared.remove(&key) else { continue };
            let seen = ObservedServer { server, destinations };
            let state = self.servers.entry(key).or_default();
            if !state.holds(&seen) {
                differences.by_others = true;
                self.held.remove(state.counts());
                state.observe(&seen);
                self.held.add(state.counts());
            }
            self.judge(key, &mut differences.owners);
        }
        differences
    }

    /// A virtual server is gone, unless it cannot be listed because somebody has unbound its address; then it is there
    /// all the same.
    fn not_listed(&mut self, key: ServerKey) -> Differences {
        let Some(state) = self.servers.get_mut(&key) else { return Differences::default() };
        // One whose Service was refused halfway waits at an address that was never bound: nobody has changed that.
        let is_gone = self.bound.contains(&key.address);
        let by_others = is_gone && state.held.is_some();
        let mut differences = Differences { by_others, owners: BTreeSet::new() };
        if is_gone {
            self.held.remove(state.counts());
            state.lose();
        }
        if state.wanted.is_none() && state.held.is_none() {
            self.servers.remove(&key);
            self.drains.restart(key, &BTreeSet::new());
        } else {
            self.judge(key, &mut differences.owners);
        }
        differences
    }

    /// What there is to do for a virtual server that was just seen.
    fn judge(&mut self, key: ServerKey, owners: &mut BTreeSet<Owner>) {
        let Some(state) = self.servers.get(&key) else { return };
        let draining: BTreeSet<Destination> = match key.protocol {
            Protocol::Udp => BTreeSet::new(),
            Protocol::Tcp | Protocol::Sctp => state.draining().collect(),
        };
        self.drains.restart(key, &draining);
        if self.is_settled(key, state) {
            return;
        }
        match state.owner {
            Some(owner) => {
                self.dirty.entry(owner).or_default().insert(key);
                owners.insert(owner);
            }
            None if self.pruned => drop(self.loose.insert(key)),
            None => (),
        }
    }

    fn is_settled(&self, key: ServerKey, state: &State) -> bool {
        let unbound = state.wanted.is_some() && !self.bound.contains(&key.address);
        !unbound && state.is_settled(key.protocol)
    }

    /// Addresses on the interface that no virtual server needs.
    pub(super) fn leave_unwanted(&mut self) {
        let unwanted: Vec<IpAddr> =
            self.bound.iter().copied().filter(|it| !self.is_wanted(*it)).collect();
        self.leaving.extend(unwanted);
    }
}
