//! nf_tables through a netlink socket.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::channel::{Channel, ErrorMessage, Failure, Link};
use super::{Kernel, KernelError, Rejection};
use crate::model::Family;
use crate::nft::codec::query::{self, TableHead};
use crate::nft::codec::{Encoded, Ending, Observation, Ownership, Place, encode};
use crate::nft::render;
use crate::nft::schema::{Batch, ObservedTable, Op, Owner};
use crate::nft::shape::TableShape;
use crate::nft::skeleton::Program;

mod ownership;

/// How often tables are read anew when others change some meanwhile.
const READ_ATTEMPTS: usize = 5;

const EPERM: i32 = 1;
const ENOMEM: i32 = 12;
const EBUSY: i32 = 16;
const ENFILE: i32 = 23;
const EMSGSIZE: i32 = 90;
const ENOBUFS: i32 = 105;
const ENOENT: i32 = 2;
const EINTR: i32 = 4;
const EINVAL: i32 = 22;
const ERESTART: i32 = 85;
const EOPNOTSUPP: i32 = 95;

/// The tables of the network namespace in which it was made.
pub struct NetlinkKernel {
    channel: Channel,
    /// Takes dumps as they are although something was changed meanwhile.
    tolerant: bool,
    /// The generation after our last look or commit; another one means that somebody else has changed something.
    generation: Option<u32>,
    ownership: Ownership,
    /// Families whose table belongs to our socket.
    owned: BTreeSet<Family>,
}

impl NetlinkKernel {
    /// Connects to nf_tables, and fails if the kernel has none or the process may not change it.
    pub fn new() -> Result<NetlinkKernel, KernelError> {
        let channel = Channel::open(NETLINK_NETFILTER)
            .map_err(|error| KernelError::Socket { doing: "opening a netlink socket", error })?;
        let mut kernel = NetlinkKernel {
            channel,
            tolerant: false,
            generation: None,
            ownership: Ownership::default(),
            owned: BTreeSet::new(),
        };
        match kernel.generation() {
            Ok(_) => Ok(kernel),
            Err(error) => Err(explained(error)),
        }
    }

    /// Puts something between us and the kernel, which makes faults.
    pub fn through(mut self, link: impl Link + 'static) -> NetlinkKernel {
        self.channel.set_link(Box::new(link));
        self
    }

    /// The number that every change of any table in the namespace increases. One message there and one back.
    pub fn generation(&mut self) -> Result<u32, KernelError> {
        const DOING: &str = "asking for the generation of nf_tables";
        let mut generation = None;
        self.ask(DOING, query::generation, |kind, payload| {
            generation = query::read_generation(kind, payload);
        })?;
        generation.ok_or_else(|| KernelError::Protocol {
            doing: DOING,
            why: "there is no generation in it".to_owned(),
        })
    }

    /// As [`Kernel::commit`], but interrupted if the generation is not this one any more.
    pub fn commit_at(&mut self, batch: &Batch, generation: u32) -> Result<(), KernelError> {
        self.transact(batch, Some(generation), Ending::Commit)
    }

    fn ask(
        &mut self,
        doing: &'static str,
        request: impl FnOnce(u32) -> Vec<u8>,
        take: impl FnMut(u16, &[u8]),
    ) -> Result<(), KernelError> {
        match self.channel.ask(request, take) {
            Err(Failure::Interrupted) if self.tolerant => Ok(()),
            answer => answer.map_err(|failure| failure.into_error(doing)),
        }
    }

    fn transact(
        &mut self,
        batch: &Batch,
        generation: Option<u32>,
        ending: Ending,
    ) -> Result<(), KernelError> {
        const DOING: &str = "changing nf_tables";
        if batch.is_empty() {
            return Ok(());
        }
        self.channel.drain().map_err(|failure| failure.into_error(DOING))?;
        let encoded = encode(batch, self.channel.next_seq(), generation, ending, self.ownership);
        self.channel.set_next_seq(encoded.next_seq());
        self.channel.send(&encoded.bytes).map_err(|error| unsent(DOING, error))?;
        let answers = self.channel.errors().map_err(|failure| match failure {
            Failure::Lost(why) => KernelError::Unknown(why),
            other @ (Failure::Refused(_)
            | Failure::Interrupted
            | Failure::Aborted
            | Failure::Socket(_)) => other.into_error(DOING),
        })?;
        judge(batch, &encoded, &answers)
    }

    fn read_tables(
        &mut self,
        program: &Program,
        unownable: &[Family],
    ) -> Result<BTreeMap<Family, ObservedTable>, KernelError> {
        let mut tables = BTreeMap::new();
        for family in Family::ALL {
            if let Some(table) = self.read_table(program, family, unownable.contains(&family))? {
                tables.insert(family, table);
            }
        }
        Ok(tables)
    }

    fn read_table(
        &mut self,
        program: &Program,
        family: Family,
        unownable: bool,
    ) -> Result<Option<ObservedTable>, KernelError> {
        let Some(mut table) = self.read_frame(program, family, unownable)? else { return Ok(None) };
        self.ask(
            "reading rules",
            |seq| query::rules(family, seq),
            |kind, payload| table.rule(kind, payload),
        )?;
        for set in table.readable_sets() {
            self.ask(
                "reading elements",
                |seq| query::elements(family, set, seq),
                |kind, payload| table.elements(set, kind, payload),
            )?;
        }
        Ok(Some(table.finish()))
    }

    /// The sets and chains of a table.
    fn read_frame<'p>(
        &mut self,
        program: &'p Program,
        family: Family,
        unownable: bool,
    ) -> Result<Option<Observation<'p>>, KernelError> {
        let Some(head) = self.look_at_table(family)? else { return Ok(None) };
        let mut table = Observation::new(family, program, head, unownable);
        self.ask(
            "reading sets",
            |seq| query::sets(family, seq),
            |kind, payload| table.set(kind, payload),
        )?;
        self.ask(
            "reading chains",
            |seq| query::chains(family, seq),
            |kind, payload| table.chain(kind, payload),
        )?;
        Ok(Some(table))
    }

    fn read_shapes(
        &mut self,
        program: &Program,
    ) -> Result<BTreeMap<Family, TableShape>, KernelError> {
        let mut shapes = BTreeMap::new();
        for family in Family::ALL {
            let frame = self.read_frame(program, family, false)?;
            shapes.extend(frame.map(|it| (family, it.into_shape())));
        }
        Ok(shapes)
    }

    /// Reads until nobody has changed anything meanwhile.
    ///
    /// The generation is that of the whole namespace. Where others change their tables all the time, no look is ever
    /// undisturbed; ours, which nobody else changes, can be read all the same. If somebody did change them, the next
    /// commit is refused and they are read again.
    fn undisturbed<T>(
        &mut self,
        read: impl Fn(&mut Self) -> Result<T, KernelError>,
    ) -> Result<(T, Option<u32>), KernelError> {
        for _ in 0..READ_ATTEMPTS {
            let before = self.generation()?;
            match read(self) {
                // A table, or a set, that went between two questions.
                Err(KernelError::Interrupted(_) | KernelError::Unread(_)) => continue,
                Err(error) if is_absence(&error) && self.generation()? != before => continue,
                Err(error) => return Err(error),
                Ok(read) if self.generation()? == before => return Ok((read, Some(before))),
                Ok(_) => continue,
            }
        }
        self.tolerant = true;
        let answer = read(self);
        self.tolerant = false;
        Ok((answer?, None))
    }

    /// `None`: there is no table.
    fn look_at_table(&mut self, family: Family) -> Result<Option<TableHead>, KernelError> {
        const DOING: &str = "looking for our table";
        let mut head = None;
        let answer = self.channel.ask(
            |seq| query::table(family, seq),
            |kind, payload| head = query::read_table(kind, payload),
        );
        match answer {
            Err(Failure::Refused(error)) if error.raw_os_error() == Some(ENOENT) => Ok(None),
            Err(failure) => Err(failure.into_error(DOING)),
            Ok(()) if head.is_none() => Err(KernelError::Protocol {
                doing: DOING,
                why: "it has no count of objects, or an owner without a name".to_owned(),
            }),
            Ok(()) => Ok(head),
        }
    }
}

impl Kernel for NetlinkKernel {
    fn observe(
        &mut self,
        program: &Program,
    ) -> Result<BTreeMap<Family, ObservedTable>, KernelError> {
        let unownable = self.claim_tables()?;
        let (tables, generation) = self.undisturbed(|it| it.read_tables(program, &unownable))?;
        self.generation = generation.or(self.generation);
        Ok(tables)
    }

    fn survey(&mut self, program: &Program) -> Result<BTreeMap<Family, TableShape>, KernelError> {
        let (shapes, _) = self.undisturbed(|it| it.read_shapes(program))?;
        Ok(shapes)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), KernelError> {
        let before = batch.before();
        if !before.is_empty() {
            self.commit_once(&before)?;
        }
        self.commit_once(batch)
    }

    fn changed_by_others(&mut self) -> Result<bool, KernelError> {
        let now = self.generation()?;
        let known = self.generation.replace(now);
        if known.is_none_or(|known| known == now) {
            return Ok(false);
        }
        match self.still_owns_all() {
            Ok(owned) => Ok(!owned),
            Err(error) => {
                // Ask again: the change is not dealt with.
                self.generation = known;
                Err(error)
            }
        }
    }

    fn validate(&mut self, batch: &Batch) -> Result<(), KernelError> {
        let grown = batch.before().0;
        let full = |it: &Rejection| {
            let op = it.op.and_then(|op| batch.0.get(op));
            it.errno == ENFILE && op.is_some_and(|op| grown.iter().any(|it| same_set(it, op)))
        };
        match self.transact(batch, None, Ending::Validate) {
            // They would fit after the transaction that comes first.
            Err(KernelError::Rejected(told)) if told.iter().all(full) => Ok(()),
            Err(KernelError::Rejected(told)) => {
                Err(KernelError::Rejected(told.into_iter().filter(|it| !full(it)).collect()))
            }
            answer => answer,
        }
    }
}

impl NetlinkKernel {
    fn commit_once(&mut self, batch: &Batch) -> Result<(), KernelError> {
        let result = self.transact(batch, None, Ending::Commit);
        // A commit counts the generation up by one, and leaves out zero (nf_tables_commit in nf_tables_api.c).
        self.generation = match (&result, self.generation) {
            (Ok(()), Some(before)) if !batch.is_empty() => Some(before.checked_add(1).unwrap_or(1)),
            (_, generation) => generation,
        };
        if result.is_ok() {
            self.remember_owned(batch);
        }
        result
    }
}

/// Why a batch did not get to the kernel.
fn unsent(doing: &'static str, error: io::Error) -> KernelError {
    match error.raw_os_error() {
        Some(EINTR) => KernelError::Interrupted("a signal".to_owned()),
        Some(ENOMEM | ENOBUFS | EMSGSIZE) => KernelError::NoRoom { doing, error },
        None if error.kind() == io::ErrorKind::QuotaExceeded => {
            KernelError::NoRoom { doing, error }
        }
        _ => KernelError::Socket { doing, error },
    }
}

/// What an error of the very first question means.
pub(super) fn explained(error: KernelError) -> KernelError {
    if let KernelError::Socket { error, .. } = &error
        && error.raw_os_error() == Some(EINVAL)
    {
        // nfnetlink is there, but nobody has registered for nf_tables (nfnetlink_rcv_msg in nfnetlink.c).
        return KernelError::Unsupported(io::Error::from_raw_os_error(EINVAL));
    }
    error
}

/// Whether `row` is a new row of the set that `resize` is about.
fn same_set(resize: &Op, row: &Op) -> bool {
    let Op::ResizeSet { family, set, .. } = resize else { return false };
    matches!(row, Op::AddElement { family: its, set: of, .. } if its == family && of == set)
}

fn is_absence(error: &KernelError) -> bool {
    matches!(error, KernelError::Socket { error, .. } if error.raw_os_error() == Some(ENOENT))
}

/// What the kernel's answers to a batch mean. One error is enough: then nothing was carried out, even if the last
/// operation as such was acknowledged.
fn judge(batch: &Batch, encoded: &Encoded, answers: &[ErrorMessage]) -> Result<(), KernelError> {
    const DOING: &str = "changing nf_tables";
    let ours = |it: &&ErrorMessage| encoded.locate(it.seq, it.offset) != Place::Elsewhere;
    let errors: Vec<&ErrorMessage> =
        answers.iter().filter(ours).filter(|it| it.errno != 0).collect();
    if errors.is_empty() {
        let acknowledged = answers.iter().any(|it| it.seq == encoded.acknowledged());
        return if acknowledged {
            Ok(())
        } else {
            Err(KernelError::Unknown("no acknowledgement came".to_owned()))
        };
    }
    for error in &errors {
        match (error.errno, encoded.locate(error.seq, error.offset)) {
            (ERESTART | EINTR, _) => {
                let what = "the generation is another one";
                return Err(KernelError::Interrupted(what.to_owned()));
            }
            // No Service is to blame: every operation on a table that somebody else owns is refused like this.
            (EPERM, _) => return Err(ownership::not_permitted(DOING)),
            (ENOMEM | ENOBUFS, _) => {
                let error = io::Error::from_raw_os_error(error.errno);
                return Err(KernelError::NoRoom { doing: DOING, error });
            }
            // Not about an operation, so no Service is to blame.
            (EBUSY, Place::Batch) => {
                return Err(KernelError::Interrupted("the kernel is busy".to_owned()));
            }
            _ => (),
        }
    }
    Err(KernelError::Rejected(errors.into_iter().map(|it| rejection(batch, encoded, it)).collect()))
}

fn rejection(batch: &Batch, encoded: &Encoded, error: &ErrorMessage) -> Rejection {
    let (op, what) = match encoded.locate(error.seq, error.offset) {
        Place::Op(index) => {
            (Some(index), batch.0.get(index).map_or_else(String::new, render::command))
        }
        Place::Batch => (None, "the batch as a whole".to_owned()),
        Place::Unknown => (None, "one of several elements".to_owned()),
        Place::Elsewhere => (None, "another batch".to_owned()),
    };
    let owner = op.and_then(|index| batch.0.get(index)).and_then(owner);
    Rejection { op, owner, errno: error.errno, what }
}

fn owner(op: &Op) -> Option<Owner> {
    match op {
        Op::AddElement { owner, .. } | Op::DeleteElement { owner, .. } => *owner,
        Op::AddTable(_)
        | Op::DeleteTable(_)
        | Op::AddSet { .. }
        | Op::ResizeSet { .. }
        | Op::AddChain { .. }
        | Op::FlushChain { .. }
        | Op::DeleteChain { .. }
        | Op::AddRule { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_at_the_start_say_what_to_do() {
        check(EINVAL, "load the module nf_tables, or use a kernel with CONFIG_NF_TABLES");
        check(EPERM, "give the process CAP_NET_ADMIN in this network namespace");
        const EPROTONOSUPPORT: i32 = 93;
        check(EPROTONOSUPPORT, "this kernel has no nfnetlink: CONFIG_NETFILTER_NETLINK");
    }

    /// A process in a user namespace of its own may not have a larger buffer than the host allows.
    #[test]
    fn a_batch_that_the_send_buffer_does_not_take_is_tried_in_smaller_pieces() {
        let told = unsent("changing", crate::kernel::channel::no_room(500_000, 425_984));
        assert!(matches!(told, KernelError::NoRoom { .. }), "{told}");
        assert!(told.to_string().contains("net.core.wmem_max"), "{told}");
        let other = unsent("changing", io::Error::from_raw_os_error(EINVAL));
        assert!(matches!(other, KernelError::Socket { .. }), "{other}");
    }

    #[track_caller]
    fn check(errno: i32, advice: &str) {
        let error = io::Error::from_raw_os_error(errno);
        let told = explained(KernelError::Socket { doing: "asking", error }).to_string();
        assert!(told.contains(advice), "{told}");
    }
}
