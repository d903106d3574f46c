//! Follows a packet through our tables: which backends it may end up at, or what else becomes of it.
//!
//! Rules are interpreted as values, every random draw with all its outcomes. The order of hooks is the kernel's for a
//! connection's first packet; only our own tables are looked at.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use super::schema::{Chain, Handle};
use super::tables::{Table, Tables};
use crate::model::{Family, Protocol};
use eval::{Ends, Evaluator, State, Verdict};

mod eval;

/// The first packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Protocol,
    pub port: NonZeroU16,
    pub from: Origin,
}

/// Where a packet starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It came in by this interface: from a pod or from outside.
    Interface(String),
    /// A process on this node.
    ThisNode,
}

/// What may become of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// All that may happen, one for each outcome of the draws.
    pub fates: BTreeSet<Fate>,
    /// What the packet would leave behind for session affinity.
    pub remembered: BTreeSet<Memory>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It goes to a backend, with this node's address as source if masqueraded.
    Backend {
        address: IpAddr,
        port: NonZeroU16,
        masqueraded: bool,
    },
    /// It goes on to its own destination.
    Untouched {
        masqueraded: bool,
    },
    Rejected,
    Dropped,
}

/// A remembered endpoint, as in [`super::SetName::Affinity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory {
    pub client: IpAddr,
    pub group: Handle,
    pub endpoint: Handle,
    /// In seconds.
    pub timeout: u32,
}

/// Sends the packet through the tables of a node with the addresses `local`.
///
/// Endpoints remembered so far are rows of [`super::SetName::Affinity`] in `tables`.
pub fn walk(tables: &Tables, local: &BTreeSet<IpAddr>, packet: &Packet) -> Outcome {
    let Some(table) = tables.0.get(&Family::of(packet.destination)) else {
        let fates = BTreeSet::from([Fate::Untouched { masqueraded: false }]);
        return Outcome { fates, remembered: BTreeSet::new() };
    };
    let mut journey = Journey { table, local, packet, outcome: Outcome::default() };
    let mut states = BTreeSet::from([State::new(packet)]);
    match packet.from {
        Origin::Interface(_) => {
            states = journey.hook(Chain::FilterPreroutingPreDnat, states);
            states = journey.hook(Chain::NatPrerouting, states);
            let (input, forward) = journey.routed(states);
            // What stays on the node never gets to postrouting.
            states = journey.hook(Chain::FilterInput, input);
            journey.arrive(states);
            states = journey.hook(Chain::FilterForward, forward);
            states = journey.hook(Chain::NatPostrouting, states);
        }
        Origin::ThisNode => {
            states = journey.hook(Chain::FilterOutputPreDnat, states);
            states = journey.hook(Chain::NatOutput, states);
            states = journey.hook(Chain::FilterOutput, states);
            states = journey.hook(Chain::NatPostrouting, states);
            let (looped, out) = journey.routed(states);
            // By the loopback interface it comes in again; the nat hooks see no connection twice.
            let looped = journey.hook(Chain::FilterPreroutingPreDnat, looped);
            let looped = journey.hook(Chain::FilterInput, looped);
            journey.arrive(looped);
            states = out;
        }
    }
    journey.arrive(states);
    journey.outcome
}

struct Journey<'a> {
    table: &'a Table,
    local: &'a BTreeSet<IpAddr>,
    packet: &'a Packet,
    outcome: Outcome,
}

impl Journey<'_> {
    /// Returns the states of packets that go on.
    fn hook(&mut self, chain: Chain, states: BTreeSet<State>) -> BTreeSet<State> {
        let evaluator = Evaluator { table: self.table, local: self.local, packet: self.packet };
        let Ends { returned: mut onward, finished } = evaluator.chain(chain, states);
        for (state, verdict) in finished {
            let fate = match verdict {
                // For a base chain running to its end and accepting are the same.
                Verdict::Accept => {
                    onward.insert(state);
                    continue;
                }
                Verdict::Drop => Fate::Dropped,
                Verdict::Reject => Fate::Rejected,
            };
            self.outcome.remembered.extend(&state.remembered);
            self.outcome.fates.insert(fate);
        }
        onward
    }

    /// Parts the packets for this node from those to be sent.
    fn routed(&self, states: BTreeSet<State>) -> (BTreeSet<State>, BTreeSet<State>) {
        states.into_iter().partition(|state| self.local.contains(&state.destination))
    }

    fn arrive(&mut self, states: BTreeSet<State>) {
        for state in states {
            let (address, port, masqueraded) = (state.destination, state.port, state.masqueraded);
            self.outcome.remembered.extend(&state.remembered);
            self.outcome.fates.insert(match state.translated {
                true => Fate::Backend { address, port, masqueraded },
                false => Fate::Untouched { masqueraded },
            });
        }
    }
}

impl Outcome {
    /// The backends that the packet may end up at.
    pub fn backends(&self) -> BTreeSet<(IpAddr, NonZeroU16)> {
        let backends = self.fates.iter().filter_map(|fate| match *fate {
            Fate::Backend { address, port, .. } => Some((address, port)),
            Fate::Untouched { .. } | Fate::Rejected | Fate::Dropped => None,
        });
        backends.collect()
    }

    /// Whether any of the possible connections is masqueraded.
    pub fn masquerades(&self) -> bool {
        self.fates.iter().any(|fate| {
            matches!(
                fate,
                Fate::Backend { masqueraded: true, .. } | Fate::Untouched { masqueraded: true }
            )
        })
    }
}

/// `10.0.0.1:80 10.0.0.2:80 masqueraded`, `reject`, `drop` or `untouched`.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all_alike = self.fates.iter().all(|fate| fate.masquerades());
        let words = self.fates.iter().map(|fate| {
            let each = if fate.masquerades() && !all_alike { " masqueraded" } else { "" };
            match fate {
                Fate::Backend { address: IpAddr::V6(address), port, .. } => {
                    format!("[{address}]:{port}{each}")
                }
                Fate::Backend { address, port, .. } => format!("{address}:{port}{each}"),
                Fate::Untouched { .. } => format!("untouched{each}"),
                Fate::Rejected => "reject".to_owned(),
                Fate::Dropped => "drop".to_owned(),
            }
        });
        f.write_str(&words.collect::<Vec<_>>().join(" "))?;
        f.write_str(if all_alike && !self.fates.is_empty() { " masqueraded" } else { "" })
    }
}

impl Fate {
    fn masquerades(&self) -> bool {
        matches!(
            self,
            Fate::Backend { masqueraded: true, .. } | Fate::Untouched { masqueraded: true }
        )
    }
}

#[cfg(test)]
mod tests;
