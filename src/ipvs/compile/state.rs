//! One virtual server: what is wanted, and what the kernel is believed to hold.

use std::collections::BTreeMap;

use super::Counts;
use crate::ipvs::schema::{
    Destination, ObservedDestination, ObservedServer, Op, ServerKey, VirtualServer,
};
use crate::model::Protocol;
use crate::nft::schema::Owner;

#[derive(Debug, Default)]
pub(super) struct State {
    /// Who wants it, or wanted it and still has nft rows that lead here.
    pub(super) owner: Option<Owner>,
    pub(super) wanted: Option<VirtualServer>,
    pub(super) held: Option<VirtualServer>,
    /// Sorted.
    pub(super) destinations: Vec<DestinationState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DestinationState {
    pub(super) destination: Destination,
    /// Weight; zero if it is not wanted.
    wanted: u32,
    /// Weight.
    pub(super) held: Option<u32>,
    /// In the kernel with another forwarding method than ours, which cannot be altered in place.
    foreign: bool,
    /// UDP: not wanted, but its flows go on.
    serving: bool,
    /// It has drained.
    ended: bool,
}

/// What there is to do about a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Add(u32),
    Replace(u32),
    Set(u32),
    /// No new connections.
    Quiesce,
    Delete,
    Nothing,
}

impl DestinationState {
    fn new(destination: Destination) -> DestinationState {
        let (held, foreign, serving, ended) = (None, false, false, false);
        DestinationState { destination, wanted: 0, held, foreign, serving, ended }
    }

    pub(super) fn act(&self, protocol: Protocol) -> Act {
        match (self.wanted, self.held) {
            (0, None) => Act::Nothing,
            (0, Some(_)) if self.foreign || self.is_over(protocol) => Act::Delete,
            (0, Some(0)) => Act::Nothing,
            (0, Some(_)) => Act::Quiesce,
            (weight, None) => Act::Add(weight),
            (weight, Some(_)) if self.foreign => Act::Replace(weight),
            (weight, Some(held)) if held != weight => Act::Set(weight),
            (_, Some(_)) => Act::Nothing,
        }
    }

    /// As `act`, for a virtual server that is deleted and made anew.
    pub(super) fn anew(&self) -> Act {
        if self.wanted == 0 { Act::Nothing } else { Act::Add(self.wanted) }
    }

    /// A connection ends by itself, a flow of UDP does not: it ends when its endpoint stops to serve.
    fn is_over(&self, protocol: Protocol) -> bool {
        self.ended || (protocol == Protocol::Udp && !self.serving)
    }
}

impl State {
    pub(super) fn want(
        &mut self,
        owner: Owner,
        server: VirtualServer,
        destinations: &[(Destination, u32)],
        serving: &[Destination],
    ) {
        self.owner = Some(owner);
        self.wanted = Some(server);
        self.want_destinations(destinations, serving);
    }

    pub(super) fn want_nothing(&mut self) {
        self.wanted = None;
        self.want_destinations(&[], &[]);
    }

    /// One walk along two sorted lists.
    fn want_destinations(&mut self, wanted: &[(Destination, u32)], serving: &[Destination]) {
        let mut old = std::mem::take(&mut self.destinations).into_iter().peekable();
        let mut new = Vec::with_capacity(wanted.len());
        let unwanted = |mut it: DestinationState| {
            it.wanted = 0;
            it.serving = serving.binary_search(&it.destination).is_ok();
            it.held.is_some().then_some(it)
        };
        for (to, weight) in wanted {
            while let Some(gone) = old.next_if(|it| it.destination < *to) {
                new.extend(unwanted(gone));
            }
            let mut state = old
                .next_if(|it| it.destination == *to)
                .unwrap_or_else(|| DestinationState::new(*to));
            (state.wanted, state.serving, state.ended) = (*weight, false, false);
            new.push(state);
        }
        new.extend(old.filter_map(unwanted));
        new.shrink_to_fit();
        self.destinations = new;
    }

    /// The kernel does not have it.
    pub(super) fn lose(&mut self) {
        self.held = None;
        for it in &mut self.destinations {
            (it.held, it.foreign, it.ended) = (None, false, false);
        }
        self.destinations.retain(|it| it.wanted > 0);
    }

    /// Whether it is believed to be so.
    pub(super) fn holds(&self, seen: &ObservedServer) -> bool {
        let held = || self.destinations.iter().filter(|it| it.held.is_some());
        let same = |it: &DestinationState| {
            let seen = seen.destinations.get(&it.destination);
            seen.is_some_and(|seen| it.held == Some(seen.weight) && it.foreign != seen.masquerades)
        };
        self.held == Some(seen.server)
            && held().count() == seen.destinations.len()
            && held().all(same)
    }

    /// The kernel has it so.
    pub(super) fn observe(&mut self, seen: &ObservedServer) {
        self.lose();
        self.held = Some(seen.server);
        for (to, destination) in &seen.destinations {
            let state = self.destination(*to);
            state.held = Some(destination.weight);
            state.foreign = !destination.masquerades;
        }
    }

    /// The kernel has the destination with that weight now. Whether it had not had it before.
    pub(super) fn hold(&mut self, to: Destination, weight: u32) -> bool {
        let state = self.destination(to);
        state.foreign = false;
        state.held.replace(weight).is_none()
    }

    /// Whether the kernel had it before.
    pub(super) fn destination_deleted(&mut self, to: Destination) -> bool {
        let state = self.destination(to);
        (state.foreign, state.ended) = (false, false);
        let was_held = state.held.take().is_some();
        self.destinations.retain(|it| it.wanted > 0 || it.held.is_some());
        was_held
    }

    /// What the kernel is believed to hold of it.
    pub(super) fn counts(&self) -> Counts {
        let destinations = self.destinations.iter().filter(|it| it.held.is_some()).count();
        Counts { servers: usize::from(self.held.is_some()), destinations }
    }

    /// It has drained, unless it was wanted again meanwhile.
    pub(super) fn end(&mut self, to: Destination) {
        let drained = self.destinations.iter_mut().find(|it| it.destination == to);
        if let Some(state) = drained.filter(|it| it.wanted == 0) {
            state.ended = true;
        }
    }

    fn destination(&mut self, to: Destination) -> &mut DestinationState {
        let position = match self.destinations.binary_search_by_key(&to, |it| it.destination) {
            Ok(position) => position,
            Err(position) => {
                self.destinations.insert(position, DestinationState::new(to));
                position
            }
        };
        #[expect(clippy::indexing_slicing, reason = "it was found, or put there")]
        &mut self.destinations[position]
    }

    /// What waits for its connections to end.
    pub(super) fn draining(&self) -> impl Iterator<Item = Destination> {
        let draining = self.destinations.iter().filter(|it| it.wanted == 0 && it.held == Some(0));
        draining.map(|it| it.destination)
    }

    /// Nothing is to be done about it, but to wait for connections to end.
    pub(super) fn is_settled(&self, protocol: Protocol) -> bool {
        let server = match self.wanted {
            Some(wanted) => self.held == Some(wanted),
            None => self.destinations.iter().any(|it| it.held.is_some()),
        };
        server && self.destinations.iter().all(|it| it.act(protocol) == Act::Nothing)
    }

    /// Stops and deletes what is not wanted. True if the virtual server itself is deleted; one whose address is not
    /// `bound` has no connections.
    pub(super) fn dismiss(
        &self,
        key: ServerKey,
        bound: bool,
        owner: Option<Owner>,
        ops: &mut Vec<(Option<Owner>, Op)>,
    ) -> bool {
        let held = || self.destinations.iter().filter(|it| it.held.is_some());
        let over = || held().all(|it| it.act(key.protocol) == Act::Delete);
        if self.wanted.is_none() && (!bound || over()) {
            if self.held.is_some() {
                ops.push((owner, Op::DeleteServer(key)));
            }
            return true;
        }
        for it in held() {
            match it.act(key.protocol) {
                Act::Quiesce => {
                    ops.push((owner, Op::SetDestination(key, it.destination, 0)));
                }
                Act::Delete => ops.push((owner, Op::DeleteDestination(key, it.destination))),
                Act::Add(_) | Act::Replace(_) | Act::Set(_) | Act::Nothing => (),
            }
        }
        false
    }

    pub(super) fn delete_ended(&self, key: ServerKey, ops: &mut Vec<(Option<Owner>, Op)>) {
        let ended = self.destinations.iter().filter(|it| it.ended && it.wanted == 0);
        ops.extend(ended.map(|it| (self.owner, Op::DeleteDestination(key, it.destination))));
    }

    pub(super) fn believed(&self) -> Option<ObservedServer> {
        let destination = |it: &DestinationState| {
            let (weight, masquerades) = (it.held?, !it.foreign);
            let seen = ObservedDestination { weight, masquerades, ..Default::default() };
            Some((it.destination, seen))
        };
        let destinations: BTreeMap<_, _> =
            self.destinations.iter().filter_map(destination).collect();
        Some(ObservedServer { server: self.held?, destinations })
    }
}
