//! From wanted virtual servers to operations: what to tell IPVS so that it has them.
//!
//! The [`Compiler`] knows for each virtual server what is wanted and what the kernel is believed to hold; operations are
//! the difference, so what was refused or altered by others simply differs on. IPVS has no transactions, so the order
//! keeps a served port served:
//!
//! * [`Compiler::before`] the nft rows change: virtual servers and destinations that are added.
//! * [`Compiler::after`] they have: addresses, whatever gets no new connections any more, and what has drained.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::drain::Drains;
use super::schema::{
    Batch, Connections, Destination, ObservedServer, Op, Scheduler, ServerKey, VirtualServer,
};
use super::split::WantedServer;
use crate::model::Protocol;
use crate::nft::schema::Owner;
use state::{Act, State};

mod compare;
mod state;

pub use compare::Differences;

/// `ENOENT`: the kernel has no such scheduler (`ip_vs_add_service`, `ip_vs_edit_service` in ip_vs_ctl.c).
const ENOENT: i32 = 2;
/// `EEXIST`: there is such a virtual server already.
const EEXIST: i32 = 17;

/// See the module.
#[derive(Debug)]
pub struct Compiler {
    /// For Services whose scheduler the kernel does not have.
    fallback: Scheduler,
    servers: BTreeMap<ServerKey, State>,
    /// What each owner wants.
    owners: FxHashMap<Owner, Box<[ServerKey]>>,
    /// Staged, and not all of it in the kernel yet.
    dirty: BTreeMap<Owner, BTreeSet<ServerKey>>,
    /// What the kernel is believed to hold of `servers`, counted along: to count them costs as much as they are many.
    held: Counts,
    /// Something about these is to be done that no owner waits for: they have drained, or nobody wants them.
    loose: BTreeSet<ServerKey>,
    /// Addresses on the interface.
    bound: BTreeSet<IpAddr>,
    /// Those of them that no virtual server needs any more.
    leaving: BTreeSet<IpAddr>,
    /// In the kernel, perhaps, and not to be seen, because the address is not bound: to be made anew, or to be deleted.
    hidden: BTreeSet<ServerKey>,
    missing: BTreeSet<Scheduler>,
    /// Seen in the outline of the comparison that is under way, and their destinations not yet.
    uncompared: BTreeMap<ServerKey, VirtualServer>,
    drains: Drains,
    pruned: bool,
    /// Who is not served by the scheduler that it wants.
    lacking: BTreeMap<Owner, Scheduler>,
    limits: Vec<MissingScheduler>,
    found: Vec<FoundScheduler>,
}

/// The kernel does not have a Service's scheduler; it is served by another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingScheduler {
    pub owner: Owner,
    pub wanted: Scheduler,
    pub used: Scheduler,
}

/// The kernel has got a Service's scheduler meanwhile, and it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundScheduler {
    pub owner: Owner,
    pub scheduler: Scheduler,
}

/// How many virtual servers and destinations there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub servers: usize,
    pub destinations: usize,
}

impl Counts {
    fn add(&mut self, others: Counts) {
        self.servers += others.servers;
        self.destinations += others.destinations;
    }

    fn remove(&mut self, others: Counts) {
        self.servers -= others.servers;
        self.destinations -= others.destinations;
    }
}

/// What follows from a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// What is wanted has been altered, so that it may work now.
    Again,
    /// The kernel holds something else than believed: look, then again.
    Look,
    /// It will be refused as long as nothing changes.
    Refused,
}

impl Compiler {
    /// The kernel has nothing. Drains take `bound` at most.
    pub fn new(fallback: Scheduler, bound: Duration) -> Compiler {
        Compiler {
            fallback,
            servers: BTreeMap::new(),
            owners: FxHashMap::default(),
            dirty: BTreeMap::new(),
            held: Counts::default(),
            loose: BTreeSet::new(),
            bound: BTreeSet::new(),
            leaving: BTreeSet::new(),
            hidden: BTreeSet::new(),
            missing: BTreeSet::new(),
            uncompared: BTreeMap::new(),
            drains: Drains::new(bound),
            pruned: false,
            lacking: BTreeMap::new(),
            limits: Vec::new(),
            found: Vec::new(),
        }
    }

    /// It is not known what of a batch was carried out. [`Compiler::observe`] shows it, but for virtual servers whose
    /// addresses are not bound yet.
    pub fn uncertain(&mut self, batch: &Batch) {
        for (_, op) in &batch.0 {
            if let Op::AddServer(key, _) = op
                && !self.bound.contains(&key.address)
            {
                self.hidden.insert(*key);
            }
        }
    }

    /// Nobody wants what nobody has staged so far.
    pub fn prune(&mut self) {
        self.pruned = true;
        let unowned = self.servers.iter().filter(|(_, it)| it.owner.is_none());
        self.loose.extend(unowned.map(|(key, _)| *key));
        self.leave_unwanted();
    }

    /// Makes these the owner's virtual servers. One that another owner still has goes over to this one.
    pub fn stage(&mut self, owner: Owner, wanted: Vec<WantedServer>) {
        let new: Box<[ServerKey]> = wanted.iter().map(|it| it.key).collect();
        if let Some(lacking) = self.lacking.get(&owner)
            && wanted.iter().all(|it| it.server.scheduler != *lacking)
        {
            self.lacking.remove(&owner);
        }
        let old = self.owners.remove(&owner).unwrap_or_default();
        for key in old.iter().filter(|it| new.binary_search(it).is_err()) {
            let Some(state) = self.servers.get_mut(key).filter(|it| it.owner == Some(owner)) else {
                continue;
            };
            state.want_nothing();
            self.dirty.entry(owner).or_default().insert(*key);
            if self.bound.contains(&key.address) && !self.is_wanted(key.address) {
                self.leaving.insert(key.address);
            }
        }
        for server in wanted {
            self.want(owner, server);
        }
        if !new.is_empty() {
            self.owners.insert(owner, new);
        }
    }

    fn want(&mut self, owner: Owner, wanted: WantedServer) {
        let WantedServer { key, mut server, destinations, serving } = wanted;
        if self.missing.contains(&server.scheduler) {
            let (wanted, used) = (server.scheduler, self.fallback);
            if self.lacking.insert(owner, wanted) != Some(wanted) {
                self.limits.push(MissingScheduler { owner, wanted, used });
            }
            server = VirtualServer { scheduler: used, scheduler_flags: 0, ..server };
        }
        let state = self.servers.entry(key).or_default();
        state.want(owner, server, &destinations, &serving);
        self.leaving.remove(&key.address);
        if !state.is_settled(key.protocol) || !self.bound.contains(&key.address) {
            self.dirty.entry(owner).or_default().insert(key);
        }
    }

    /// What these owners need before the nft rows change. `led_to`: addresses that nft rows lead to already. They are
    /// bound now, while those rows still take what comes; others are bound later, lest programs of this node be reached
    /// by them in between.
    pub fn before(
        &self,
        owners: impl IntoIterator<Item = Owner>,
        led_to: impl Fn(IpAddr) -> bool,
    ) -> Batch {
        let mut ops = Vec::new();
        let mut addresses = BTreeSet::new();
        for (owner, key, state) in self.staged(owners) {
            let Some(wanted) = state.wanted else { continue };
            let anew = self.hidden.contains(&key);
            if anew {
                ops.push((Some(owner), Op::DeleteServer(key)));
            }
            match state.held {
                None => ops.push((Some(owner), Op::AddServer(key, wanted))),
                Some(held) if held != wanted => ops.push((Some(owner), Op::SetServer(key, wanted))),
                Some(_) => (),
            }
            for it in &state.destinations {
                let to = it.destination;
                let act = if anew { it.anew() } else { it.act(key.protocol) };
                let op = match act {
                    Act::Add(weight) => Op::AddDestination(key, to, weight),
                    Act::Replace(weight) => {
                        ops.push((Some(owner), Op::DeleteDestination(key, to)));
                        Op::AddDestination(key, to, weight)
                    }
                    Act::Set(weight) => Op::SetDestination(key, to, weight),
                    Act::Quiesce | Act::Delete | Act::Nothing => continue,
                };
                ops.push((Some(owner), op));
            }
            let unbound = !self.bound.contains(&key.address) && led_to(key.address);
            if unbound && addresses.insert((owner, key.address)) {
                ops.push((Some(owner), Op::BindAddress(key.address)));
            }
        }
        Batch(ops)
    }

    /// What is to be done now that nft leads to what these owners want, and for what has drained.
    pub fn after(&self, owners: impl IntoIterator<Item = Owner>) -> Batch {
        let mut ops = Vec::new();
        let (mut addresses, mut deleted) = (BTreeSet::new(), BTreeSet::new());
        let mut done = BTreeSet::new();
        for (owner, key, state) in self.staged(owners) {
            let bind = state.wanted.is_some() && !self.bound.contains(&key.address);
            // Once for each owner: if it is refused, all of them wait for it. What is bound is bound again in vain.
            if bind && addresses.insert((owner, key.address)) {
                ops.push((Some(owner), Op::BindAddress(key.address)));
            }
            if state.dismiss(key, self.bound.contains(&key.address), Some(owner), &mut ops) {
                deleted.insert(key);
            }
            done.insert(key);
        }
        for key in self.loose.difference(&done) {
            let Some(state) = self.servers.get(key) else { continue };
            // Who waits for nft rows to change is served as before until then, but for what has drained.
            let waits = state.owner.is_some_and(|it| self.dirty.contains_key(&it));
            if waits {
                state.delete_ended(*key, &mut ops);
            } else if state.dismiss(*key, self.bound.contains(&key.address), state.owner, &mut ops)
            {
                deleted.insert(*key);
            }
        }
        let unwanted = |key: &ServerKey| self.servers.get(key).is_none_or(|it| it.wanted.is_none());
        let hidden = self.hidden.difference(&deleted).filter(|it| unwanted(it));
        ops.extend(hidden.map(|it| (None, Op::DeleteServer(*it))));
        let free = self
            .leaving
            .iter()
            .filter(|address| self.at(**address).all(|(key, _)| deleted.contains(key)));
        ops.extend(free.map(|it| (None, Op::UnbindAddress(*it))));
        Batch(ops)
    }

    /// An operation was carried out.
    pub fn done(&mut self, op: &Op) {
        match *op {
            Op::BindAddress(address) => drop(self.bound.insert(address)),
            Op::UnbindAddress(address) => {
                self.bound.remove(&address);
                self.leaving.remove(&address);
            }
            Op::AddServer(key, server) | Op::SetServer(key, server) => {
                self.hidden.remove(&key);
                if let Some(seen) = self.uncompared.get_mut(&key) {
                    *seen = server;
                }
                let Some(state) = self.servers.get_mut(&key) else { return };
                if state.held.replace(server).is_none() {
                    self.held.servers += 1;
                }
                if let Some(owner) = state.owner
                    && self.lacking.get(&owner) == Some(&server.scheduler)
                {
                    self.lacking.remove(&owner);
                    self.found.push(FoundScheduler { owner, scheduler: server.scheduler });
                }
            }
            Op::DeleteServer(key) => self.server_deleted(key),
            Op::AddDestination(key, to, weight) | Op::SetDestination(key, to, weight) => {
                if self.servers.get_mut(&key).is_some_and(|state| state.hold(to, weight)) {
                    self.held.destinations += 1;
                }
                if weight > 0 {
                    self.drains.end(key, to);
                } else if key.protocol != Protocol::Udp {
                    self.drains.begin(key, to);
                }
            }
            Op::DeleteDestination(key, to) => {
                self.drains.end(key, to);
                if self.servers.get_mut(&key).is_some_and(|state| state.destination_deleted(to)) {
                    self.held.destinations -= 1;
                }
            }
        }
    }

    fn server_deleted(&mut self, key: ServerKey) {
        self.hidden.remove(&key);
        self.uncompared.remove(&key);
        let Some(state) = self.servers.get_mut(&key) else { return };
        for it in &state.destinations {
            self.drains.end(key, it.destination);
        }
        self.held.remove(state.counts());
        state.lose();
        if state.wanted.is_none() {
            self.servers.remove(&key);
            self.loose.remove(&key);
        }
    }

    /// An operation was refused with a positive errno. What it was to change differs on.
    ///
    /// `is_local`: addresses of this node, so that a virtual server there may be somebody else's and in use.
    pub fn failed(&mut self, op: &Op, errno: i32, is_local: impl Fn(IpAddr) -> bool) -> Failure {
        match *op {
            Op::AddServer(_, server) | Op::SetServer(_, server)
                if errno == ENOENT && server.scheduler != self.fallback =>
            {
                self.missing.insert(server.scheduler);
                Failure::Again
            }
            // Made before a crash, and its address was not bound yet; nothing has ever got there.
            Op::AddServer(key, _)
                if errno == EEXIST
                    && !self.bound.contains(&key.address)
                    && !is_local(key.address)
                    && self.hidden.insert(key) =>
            {
                Failure::Again
            }
            Op::AddServer(..) if errno == EEXIST => Failure::Look,
            Op::AddServer(..) | Op::BindAddress(_) => Failure::Refused,
            Op::UnbindAddress(address) => {
                self.leaving.remove(&address);
                Failure::Look
            }
            // Nothing can be added to a virtual server that was refused itself. Otherwise somebody else was at work.
            Op::AddDestination(key, ..) | Op::SetDestination(key, ..) | Op::SetServer(key, _) => {
                match self.servers.get(&key).is_some_and(|it| it.held.is_some()) {
                    true => Failure::Look,
                    false => Failure::Refused,
                }
            }
            Op::DeleteServer(key) | Op::DeleteDestination(key, _) => {
                self.hidden.remove(&key);
                self.loose.remove(&key);
                Failure::Look
            }
        }
    }

    /// The batch of [`Compiler::after`] was carried out, so far as it was.
    pub fn finished(&mut self, owners: impl IntoIterator<Item = Owner>) {
        for owner in owners {
            for key in self.dirty.remove(&owner).unwrap_or_default() {
                let Some(state) = self.servers.get_mut(&key) else { continue };
                if state.wanted.is_none() && state.owner == Some(owner) {
                    state.owner = None;
                    if state.held.is_none() {
                        self.servers.remove(&key);
                    }
                }
            }
        }
        let dirty = &self.dirty;
        let servers = &self.servers;
        // Refused ones are tried again after the next look.
        self.loose.retain(|key| {
            servers.get(key).and_then(|it| it.owner).is_some_and(|it| dirty.contains_key(&it))
        });
        let bound = &self.bound;
        self.leaving.retain(|it| bound.contains(it));
    }

    /// What drains gets no new connections any more; these are the virtual servers to ask about their connections.
    pub fn draining(&self) -> &Drains {
        &self.drains
    }

    /// The connections of what drains. Whether there is something to do for that.
    pub fn look(&mut self, now: Instant, seen: &[(ServerKey, Destination, Connections)]) -> bool {
        let over = self.drains.look(now, seen);
        for (key, to) in &over {
            if let Some(state) = self.servers.get_mut(key) {
                state.end(*to);
                self.loose.insert(*key);
            }
        }
        !over.is_empty()
    }

    /// Whether [`Compiler::after`] has something to do for nobody's sake.
    pub fn has_work(&self) -> bool {
        !self.after([]).0.is_empty()
    }

    /// Addresses that stay bound although no virtual server on them is wanted, once the nft rows of these owners are
    /// as wanted.
    pub fn draining_addresses(&self, owners: &BTreeSet<Owner>) -> BTreeSet<IpAddr> {
        let is_over = |state: &State| {
            state.wanted.is_none() && state.owner.is_none_or(|it| owners.contains(&it))
        };
        let unwanted = self.leaving.iter().filter(|address| {
            self.bound.contains(*address) && self.at(**address).all(|(_, state)| is_over(state))
        });
        unwanted.copied().collect()
    }

    /// Nothing is left of us.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty() && self.bound.is_empty()
    }

    /// Virtual servers and destinations in the kernel.
    pub fn counts(&self) -> Counts {
        self.held
    }

    /// Each once as long as it is missing, since the last call.
    pub fn take_missing_schedulers(&mut self) -> Vec<MissingScheduler> {
        std::mem::take(&mut self.limits)
    }

    /// Schedulers that came late, since the last call.
    pub fn take_found_schedulers(&mut self) -> Vec<FoundScheduler> {
        std::mem::take(&mut self.found)
    }

    /// Missing schedulers may have been loaded meanwhile. Returns who has to be staged again to find out.
    pub fn retry_schedulers(&mut self) -> Vec<Owner> {
        self.missing.clear();
        self.lacking.keys().copied().collect()
    }

    /// How many owners are not served by the scheduler that they want.
    pub fn lacking_schedulers(&self) -> usize {
        self.lacking.len()
    }

    /// What the kernel is believed to have, in the form of an observation.
    pub fn believed(&self) -> (BTreeMap<ServerKey, ObservedServer>, &BTreeSet<IpAddr>) {
        let held = |(key, state): (&ServerKey, &State)| Some((*key, state.believed()?));
        (self.servers.iter().filter_map(held).collect(), &self.bound)
    }

    fn staged(
        &self,
        owners: impl IntoIterator<Item = Owner>,
    ) -> impl Iterator<Item = (Owner, ServerKey, &State)> {
        owners.into_iter().flat_map(move |owner| {
            let keys = self.dirty.get(&owner).into_iter().flatten();
            keys.filter_map(move |key| {
                let state = self.servers.get(key).filter(|it| it.owner == Some(owner))?;
                Some((owner, *key, state))
            })
        })
    }

    fn is_wanted(&self, address: IpAddr) -> bool {
        self.at(address).any(|(_, it)| it.wanted.is_some())
    }

    /// The virtual servers at an address.
    fn at(&self, address: IpAddr) -> impl Iterator<Item = (&ServerKey, &State)> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().flat_map(move |protocol| {
            let key = |port| ServerKey { protocol, address, port };
            self.servers.range(key(NonZeroU16::MIN)..=key(NonZeroU16::MAX))
        })
    }
}

#[cfg(test)]
mod tests;
