//! Operations, several in one system call, each with its own outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rustc_hash::FxHashSet;

use super::{IpvsError, NetlinkIpvs, Refused, failed};
use crate::ipvs::codec::{address, server};
use crate::ipvs::schema::{Destination, Op, Scheduler, ServerKey};
use crate::kernel::channel::{Channel, ErrorMessage, Failure};
use crate::nft::codec::wire::{NLM_F_ACK, Writer};

/// Operations in one system call. Each may be refused, and a socket of default size has room for 256 refusals.
const PIECE: usize = 200;

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EADDRNOTAVAIL: i32 = 99;

const DOING: &str = "programming IPVS";

/// Operations that can be carried out with three looks at outcomes, one after each system call, with their places in the
/// batch: first those on virtual servers, then those on their destinations, then those on addresses.
#[derive(Default)]
struct Piece {
    servers: Vec<(usize, Op)>,
    destinations: Vec<(usize, Op)>,
    addresses: Vec<(usize, Op)>,
    /// Virtual servers that are added.
    made: FxHashSet<ServerKey>,
    /// Virtual servers whose destinations are changed.
    filled: FxHashSet<ServerKey>,
    /// Destinations that are added.
    added: FxHashSet<(ServerKey, Destination)>,
    moved: FxHashSet<IpAddr>,
}

impl Piece {
    /// Whether the operation can go along with the others.
    ///
    /// What becomes of a virtual server that was not added is only known afterwards, so nothing else may happen to it in
    /// the same call. A destination that cannot be added because it is there already is altered afterwards, so nothing
    /// else may happen to it in between. What is to happen to a virtual server after its destinations were changed, or to
    /// either after an address came or went, must not go before that.
    fn takes(&self, op: &Op) -> bool {
        if self.list(op).len() >= PIECE {
            return false;
        }
        match op {
            Op::BindAddress(_) | Op::UnbindAddress(_) => true,
            Op::AddServer(key, _) | Op::SetServer(key, _) | Op::DeleteServer(key) => {
                !self.made.contains(key)
                    && !self.filled.contains(key)
                    && !self.moved.contains(&key.address)
            }
            Op::AddDestination(key, destination, _)
            | Op::SetDestination(key, destination, _)
            | Op::DeleteDestination(key, destination) => {
                !self.added.contains(&(*key, *destination)) && !self.moved.contains(&key.address)
            }
        }
    }

    fn push(&mut self, place: usize, op: Op) {
        match op {
            Op::BindAddress(address) | Op::UnbindAddress(address) => {
                self.moved.insert(address);
                self.addresses.push((place, op));
            }
            Op::AddServer(key, _) => {
                self.made.insert(key);
                self.servers.push((place, op));
            }
            Op::SetServer(..) | Op::DeleteServer(_) => self.servers.push((place, op)),
            Op::AddDestination(key, destination, _) => {
                self.added.insert((key, destination));
                self.filled.insert(key);
                self.destinations.push((place, op));
            }
            Op::SetDestination(key, ..) | Op::DeleteDestination(key, _) => {
                self.filled.insert(key);
                self.destinations.push((place, op));
            }
        }
    }

    /// Those that it goes along with in one system call.
    fn list(&self, op: &Op) -> &[(usize, Op)] {
        match op {
            Op::BindAddress(_) | Op::UnbindAddress(_) => &self.addresses,
            Op::AddServer(..) | Op::SetServer(..) | Op::DeleteServer(_) => &self.servers,
            Op::AddDestination(..) | Op::SetDestination(..) | Op::DeleteDestination(..) => {
                &self.destinations
            }
        }
    }
}

/// What has been refused so far, and what follows from that.
#[derive(Default)]
struct Refusals {
    all: Vec<Refused>,
    /// Virtual servers that could not be added. If there is one of that name it is another one, perhaps somebody else's.
    not_ours: BTreeMap<ServerKey, i32>,
}

impl Refusals {
    fn add(&mut self, place: usize, op: &Op, errno: i32) {
        self.all.push(Refused { op: place, errno });
        if let Op::AddServer(key, _) = op {
            self.not_ours.insert(*key, errno);
        }
    }

    fn done(&mut self, op: &Op) {
        if let Op::AddServer(key, _) | Op::DeleteServer(key) = op {
            self.not_ours.remove(key);
        }
    }

    /// A virtual server that could not be added is not touched by what was to follow, and does not become ours by its
    /// address.
    fn foresee(&self, op: &Op) -> Option<Outcome> {
        match op {
            Op::SetServer(key, _)
            | Op::AddDestination(key, ..)
            | Op::SetDestination(key, ..)
            | Op::DeleteDestination(key, _) => {
                self.not_ours.contains_key(key).then(|| outcome(op, ESRCH))
            }
            Op::BindAddress(address) => {
                let mut others = self.not_ours.iter().filter(|(_, errno)| **errno == EEXIST);
                others.any(|(key, _)| key.address == *address).then_some(Outcome::Refused(EEXIST))
            }
            Op::AddServer(..) | Op::DeleteServer(_) | Op::UnbindAddress(_) => None,
        }
    }
}

/// Where the messages go.
#[derive(Clone, Copy)]
struct Numbers {
    family: Option<u16>,
    index: Option<u32>,
}

/// What an errno means for an operation.
enum Outcome {
    /// It is as it should be.
    Done,
    /// It is there already and may be another one.
    Alter(Op),
    Refused(i32),
}

impl NetlinkIpvs {
    /// Carries out one operation after the other.
    pub(super) fn carry_out(&mut self, ops: &[&Op]) -> Result<Vec<Refused>, IpvsError> {
        let numbers = self.numbers(ops)?;
        let missing = self.missing_schedulers(ops, numbers.family)?;
        let mut refusals = Refusals::default();
        let mut piece = Piece::default();
        for (place, op) in ops.iter().copied().enumerate() {
            match foreseen(op, numbers, &missing) {
                None => (),
                Some(Outcome::Refused(errno)) => {
                    // What came before it does not suffer for it.
                    if matches!(op, Op::AddServer(..)) {
                        self.send_piece(numbers, std::mem::take(&mut piece), &mut refusals)?;
                    }
                    refusals.add(place, op, errno);
                    continue;
                }
                Some(Outcome::Done | Outcome::Alter(_)) => continue,
            }
            if !piece.takes(op) {
                self.send_piece(numbers, std::mem::take(&mut piece), &mut refusals)?;
            }
            piece.push(place, *op);
        }
        self.send_piece(numbers, piece, &mut refusals)?;
        let mut refused = refusals.all;
        refused.sort_unstable_by_key(|it| it.op);
        Ok(refused)
    }

    fn numbers(&mut self, ops: &[&Op]) -> Result<Numbers, IpvsError> {
        let index = match ops.iter().any(|op| is_address(op)) {
            true => self.interface()?.filter(|it| it.dummy).map(|it| it.index),
            false => None,
        };
        let family = match ops.iter().any(|op| !is_address(op)) {
            true => self.load()?,
            false => None,
        };
        Ok(Numbers { family, index })
    }

    /// Schedulers that are wanted and that the kernel does not have.
    fn missing_schedulers(
        &mut self,
        ops: &[&Op],
        family: Option<u16>,
    ) -> Result<BTreeSet<Scheduler>, IpvsError> {
        let wanted: BTreeSet<Scheduler> = ops.iter().filter_map(|op| scheduler(op)).collect();
        let mut missing = BTreeSet::new();
        let Some(family) = family else { return Ok(missing) };
        for scheduler in wanted {
            if !self.has_scheduler(family, scheduler)? {
                missing.insert(scheduler);
            }
        }
        Ok(missing)
    }

    fn send_piece(
        &mut self,
        numbers: Numbers,
        piece: Piece,
        refusals: &mut Refusals,
    ) -> Result<(), IpvsError> {
        self.send_all(numbers, piece.servers, refusals)?;
        let again = self.send_all(numbers, piece.destinations, refusals)?;
        self.send_all(numbers, again, refusals)?;
        self.send_all(numbers, piece.addresses, refusals)?;
        Ok(())
    }

    /// Sends what need not be refused for what was refused before, and returns what is to be altered instead.
    fn send_all(
        &mut self,
        numbers: Numbers,
        ops: Vec<(usize, Op)>,
        refusals: &mut Refusals,
    ) -> Result<Vec<(usize, Op)>, IpvsError> {
        let mut sent = Vec::with_capacity(ops.len());
        for (place, op) in ops {
            match refusals.foresee(&op) {
                None => sent.push((place, op)),
                Some(Outcome::Refused(errno)) => refusals.add(place, &op, errno),
                Some(Outcome::Done | Outcome::Alter(_)) => (),
            }
        }
        let answers = self.send(numbers, &sent)?;
        sent.iter().for_each(|(_, op)| refusals.done(op));
        let mut again = Vec::new();
        for (at, outcome) in answers {
            let Some((place, op)) = sent.get(at) else { continue };
            match outcome {
                Outcome::Done => (),
                Outcome::Alter(it) => again.push((*place, it)),
                Outcome::Refused(errno) => refusals.add(*place, op, errno),
            }
        }
        Ok(again)
    }

    /// Sends operations that all go to the same socket; what is not in the answer was carried out, the rest is told by its
    /// position. Only the last one is acknowledged: answers come in order, and those that were refused come in any case.
    fn send(
        &mut self,
        numbers: Numbers,
        ops: &[(usize, Op)],
    ) -> Result<Vec<(usize, Outcome)>, IpvsError> {
        let Some((_, last)) = ops.last() else { return Ok(Vec::new()) };
        let channel = if is_address(last) { &mut self.route } else { &mut self.generic };
        let answers = transact(channel, ops.len(), |writer, seq| {
            for (at, (_, op)) in ops.iter().enumerate() {
                let flags = if at + 1 == ops.len() { NLM_F_ACK } else { 0 };
                write(writer, numbers, flags, number(seq, at), op);
            }
        })
        .map_err(|failure| failed(DOING, failure))?;
        let told = answers.into_iter().filter_map(|(at, errno)| {
            let (_, op) = ops.get(at)?;
            Some((at, outcome(op, errno)))
        });
        Ok(told.collect())
    }
}

/// Sends so many messages, of which the last one is to be acknowledged. The answer: which were refused, and why.
fn transact(
    channel: &mut Channel,
    messages: usize,
    fill: impl FnOnce(&mut Writer, u32),
) -> Result<Vec<(usize, i32)>, Failure> {
    channel.drain()?;
    let first = channel.next_seq();
    channel.set_next_seq(number(first, messages));
    let mut writer = Writer::default();
    fill(&mut writer, first);
    channel.send(&writer.into_bytes()).map_err(Failure::Socket)?;
    let place = |it: &ErrorMessage| usize::try_from(it.seq.wrapping_sub(first)).ok();
    let answers: Vec<(usize, i32)> =
        channel.errors()?.iter().filter_map(|it| Some((place(it)?, it.errno))).collect();
    if !answers.iter().any(|(at, _)| at + 1 == messages) {
        return Err(Failure::Lost("no acknowledgement came".to_owned()));
    }
    Ok(answers.into_iter().filter(|(_, errno)| *errno != 0).collect())
}

fn write(writer: &mut Writer, numbers: Numbers, flags: u16, seq: u32, op: &Op) {
    match (op, numbers) {
        (Op::BindAddress(it), Numbers { index: Some(index), .. }) => {
            address::write_add(writer, index, flags, seq, *it);
        }
        (Op::UnbindAddress(it), Numbers { index: Some(index), .. }) => {
            address::write_delete(writer, index, flags, seq, *it);
        }
        (_, Numbers { family: Some(family), .. }) => {
            server::write_op(writer, family, flags, seq, op)
        }
        (_, Numbers { family: None, .. }) => (),
    }
}

/// What becomes of an operation that need not be sent.
fn foreseen(op: &Op, numbers: Numbers, missing: &BTreeSet<Scheduler>) -> Option<Outcome> {
    if scheduler(op).is_some_and(|it| missing.contains(&it)) {
        return Some(Outcome::Refused(ENOENT));
    }
    let reachable = if is_address(op) { numbers.index.is_some() } else { numbers.family.is_some() };
    if reachable {
        return None;
    }
    Some(match op {
        // There is nothing, so what is to be gone is gone.
        Op::UnbindAddress(_) | Op::DeleteServer(_) | Op::DeleteDestination(..) => Outcome::Done,
        Op::BindAddress(_) => Outcome::Refused(ENODEV),
        Op::AddServer(..) | Op::SetServer(..) | Op::AddDestination(..) | Op::SetDestination(..) => {
            Outcome::Refused(ESRCH)
        }
    })
}

fn outcome(op: &Op, errno: i32) -> Outcome {
    match (*op, errno) {
        (Op::BindAddress(_), EEXIST)
        | (Op::UnbindAddress(_), EADDRNOTAVAIL | ENODEV)
        | (Op::DeleteServer(_), ESRCH)
        | (Op::DeleteDestination(..), ESRCH | ENOENT) => Outcome::Done,
        (Op::AddDestination(key, destination, weight), EEXIST) => {
            Outcome::Alter(Op::SetDestination(key, destination, weight))
        }
        _ => Outcome::Refused(errno),
    }
}

fn is_address(op: &Op) -> bool {
    matches!(op, Op::BindAddress(_) | Op::UnbindAddress(_))
}

fn scheduler(op: &Op) -> Option<Scheduler> {
    if let Op::AddServer(_, server) | Op::SetServer(_, server) = op {
        Some(server.scheduler)
    } else {
        None
    }
}

fn number(first: u32, offset: usize) -> u32 {
    // A piece is short.
    first.wrapping_add(u32::try_from(offset).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipvs::schema::VirtualServer;
    use crate::model::Protocol;

    #[test]
    fn services_go_along_with_each_other() {
        let services = (1..=50).flat_map(|it| [add(it), add_to(it), bind(it)]);
        check(services.collect(), 1);
        let going = (1..=200).flat_map(|it| [Op::DeleteServer(key(it)), unbind(it)]);
        check(going.collect(), 1);
    }

    #[test]
    fn what_may_be_altered_afterwards_is_altered_before_anything_else_happens_to_it() {
        check(vec![add(1), Op::SetServer(key(1), VirtualServer::default())], 2);
        check(vec![add(1), Op::DeleteServer(key(1))], 2);
        check(vec![add_to(1), Op::SetDestination(key(1), end(), 0)], 2);
        check(vec![add_to(1), Op::DeleteDestination(key(1), end())], 2);
        check(vec![add_to(1), Op::DeleteServer(key(1))], 2);
        check(vec![add_to(1), Op::SetDestination(key(2), end(), 0), Op::DeleteServer(key(1))], 2);
        check(vec![add_to(1), Op::DeleteServer(key(2))], 1);
        check(vec![Op::DeleteServer(key(1)), add(1), add_to(1)], 1);
    }

    #[test]
    fn destinations_wait_for_their_virtual_server_and_it_for_them() {
        check(vec![add(1), add_to(1), add(2), add_to(2)], 1);
        check(vec![Op::SetDestination(key(1), end(), 0), Op::DeleteServer(key(1)), add(1)], 2);
        check(vec![Op::DeleteDestination(key(1), end()), add(1)], 2);
    }

    #[test]
    fn what_comes_after_an_address_stays_after_it() {
        check(vec![add(1), bind(1), add_to(2)], 1);
        check(vec![bind(1), add(1)], 2);
        check(vec![unbind(1), Op::DeleteServer(key(1))], 2);
        check(vec![bind(1), unbind(1)], 1);
    }

    #[test]
    fn refusals_fit_a_socket() {
        check((1..=201).map(add).collect(), 2);
        check((1..=401).map(bind).collect(), 3);
    }

    /// So many pieces are made of the operations.
    #[track_caller]
    fn check(ops: Vec<Op>, expected: usize) {
        let mut pieces = vec![Piece::default()];
        for op in ops {
            if !pieces.last().unwrap().takes(&op) {
                pieces.push(Piece::default());
            }
            pieces.last_mut().unwrap().push(0, op);
        }
        assert_eq!(pieces.len(), expected);
    }

    fn key(number: u16) -> ServerKey {
        let [high, low] = number.to_be_bytes();
        let address = [10, 96, high, low].into();
        ServerKey { protocol: Protocol::Tcp, address, port: 80.try_into().unwrap() }
    }

    fn end() -> Destination {
        Destination { address: [10, 1, 1, 2].into(), port: 80.try_into().unwrap() }
    }

    fn add(number: u16) -> Op {
        Op::AddServer(key(number), VirtualServer::default())
    }

    fn add_to(number: u16) -> Op {
        Op::AddDestination(key(number), end(), 1)
    }

    fn bind(number: u16) -> Op {
        Op::BindAddress(key(number).address)
    }

    fn unbind(number: u16) -> Op {
        Op::UnbindAddress(key(number).address)
    }
}
