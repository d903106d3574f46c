//! One batch to the bytes of one nfnetlink transaction, and errors of the kernel back to the operation they are about.

use super::uapi::{element, msg, nfproto, rule, table};
use super::wire::{ATTRIBUTE_MAX, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, Writer};
use super::{chain, element as rows, expression, lower, set, userdata};
use crate::model::Family;
use crate::nft::schema::{Batch, Chain, Key, Op, Rule, SetName, TABLE, Value};
use crate::nft::skeleton;

pub(crate) const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(crate) const NFNL_MSG_BATCH_BEGIN: u16 = 16;
pub(crate) const NFNL_MSG_BATCH_END: u16 = 17;
/// `NFNL_BATCH_GENID`
pub(crate) const BATCH_GENID: u16 = 1;

/// What the kernel does with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Carries it out.
    Commit,
    /// Checks it and throws it away: a batch without an end is aborted after the checks.
    Validate,
}

/// Who may change the tables that a batch makes or names with [`Op::AddTable`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ownership {
    /// Everybody with the capability. What another process left is taken as it is.
    #[default]
    Shared,
    /// The socket that sends the batch; they stay when it is closed, and belong to nobody then (kernel 6.9).
    Socket,
}

impl Ownership {
    /// The flags of such a table.
    pub(crate) fn flags(self) -> Option<u32> {
        match self {
            // Without flags a table that is there keeps those that it has; any others would be refused.
            Ownership::Shared => None,
            Ownership::Socket => Some(table::OWNER | table::PERSIST),
        }
    }
}

/// A batch as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// To be sent in one piece.
    pub bytes: Vec<u8>,
    first_seq: u32,
    messages: Vec<MessagePlace>,
    elements: Vec<ElementPlace>,
}

/// What an error of the kernel is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Position in the batch.
    Op(usize),
    /// The batch as a whole: its generation, or a check that is made when all of it is known.
    Batch,
    /// One of several operations; the kernel did not say which.
    Unknown,
    /// No message of this batch has that number.
    Elsewhere,
}

/// A message, and the first of its operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MessagePlace {
    op: usize,
    /// Where its elements begin in `Encoded::elements`; they end where the next message's begin.
    elements: usize,
}

/// An element's offset in its message, and its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ElementPlace {
    offset: usize,
    op: usize,
}

impl Encoded {
    /// Number of the message that the kernel acknowledges.
    pub(crate) fn acknowledged(&self) -> u32 {
        // The beginning has the first number, the operations follow.
        self.first_seq.wrapping_add(u32::try_from(self.messages.len()).unwrap_or(u32::MAX))
    }

    /// The first number that was not used.
    pub(crate) fn next_seq(&self) -> u32 {
        self.acknowledged().wrapping_add(2)
    }

    /// What an error for message `seq` is about; `offset` is where in it the kernel saw the mistake.
    pub(crate) fn locate(&self, seq: u32, offset: Option<u32>) -> Place {
        let Ok(index) = usize::try_from(seq.wrapping_sub(self.first_seq)) else {
            return Place::Elsewhere;
        };
        let Some(index) = index.checked_sub(1) else { return Place::Batch };
        let Some(message) = self.messages.get(index) else { return Place::Elsewhere };
        let end = self.messages.get(index + 1).map_or(self.elements.len(), |it| it.elements);
        match self.elements.get(message.elements..end).unwrap_or_default() {
            [] => Place::Op(message.op),
            elements => locate_element(elements, offset),
        }
    }
}

fn locate_element(elements: &[ElementPlace], offset: Option<u32>) -> Place {
    if let Some(offset) = offset.and_then(|it| usize::try_from(it).ok()) {
        let before = elements.partition_point(|it| it.offset <= offset);
        if let Some(place) = before.checked_sub(1).and_then(|it| elements.get(it)) {
            return Place::Op(place.op);
        }
    }
    match (elements.first(), elements.last()) {
        (Some(first), Some(last)) if first.op == last.op => Place::Op(first.op),
        _ => Place::Unknown,
    }
}

/// Bytes that an operation mostly takes at most. A first load is made of thousands; growing step by step would hold most of
/// them twice.
const USUAL_LENGTH: usize = 96;

/// Encodes a batch. With `generation` the kernel refuses it (ERESTART) unless that is still its generation.
///
/// Messages are numbered from `first_seq` on. Only the last operation asks for an acknowledgement: one for each would
/// overflow the receive buffer, and before 6.10 the kernel does not answer for the end of a batch.
pub fn encode(
    batch: &Batch,
    first_seq: u32,
    generation: Option<u32>,
    ending: Ending,
    ownership: Ownership,
) -> Encoded {
    let mut encoder = Encoder {
        writer: Writer::with_capacity(batch.len() * USUAL_LENGTH),
        first_seq,
        messages: Vec::new(),
        elements: Vec::new(),
        last: 0,
        ownership,
    };
    encoder.delimiter(NFNL_MSG_BATCH_BEGIN, first_seq, generation);
    let mut ops = batch.0.iter().enumerate().peekable();
    while let Some((index, op)) = ops.next() {
        let Some(run) = Run::of(op) else {
            encoder.operation(index, op);
            continue;
        };
        let mut message = encoder.begin_run(index, &run);
        encoder.row(&mut message, index, &run, op);
        while let Some((index, op)) = ops.next_if(|(_, op)| Run::of(op).as_ref() == Some(&run)) {
            encoder.row(&mut message, index, &run, op);
        }
        encoder.end_run(&message);
    }
    encoder.finish(ending)
}

/// Consecutive operations on elements that can share a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    family: Family,
    set: SetName,
    adds: bool,
}

impl Run {
    fn of(op: &Op) -> Option<Run> {
        match op {
            Op::AddElement { family, set, .. } => {
                Some(Run { family: *family, set: *set, adds: true })
            }
            Op::DeleteElement { family, set, .. } => {
                Some(Run { family: *family, set: *set, adds: false })
            }
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
}

/// An element message under construction: where it and its list of elements begin.
struct OpenMessage {
    start: usize,
    list: usize,
}

struct Encoder {
    writer: Writer,
    first_seq: u32,
    messages: Vec<MessagePlace>,
    elements: Vec<ElementPlace>,
    /// Where the last message begins.
    last: usize,
    ownership: Ownership,
}

impl Encoder {
    fn operation(&mut self, index: usize, op: &Op) {
        match op {
            Op::AddTable(family) => self.add_table(index, *family, self.ownership),
            Op::DeleteTable(family) => {
                self.add_table(index, *family, Ownership::Shared);
                self.message(index, msg::DELTABLE, 0, *family, |writer| {
                    writer.string(table::NAME, TABLE);
                });
            }
            Op::AddSet { family, set, size } => self.add_set(index, *family, *set, *size),
            Op::ResizeSet { family, set, size } => self.add_set(index, *family, *set, Some(*size)),
            Op::AddChain { family, chain } => {
                self.message(index, msg::NEWCHAIN, NLM_F_CREATE, *family, |writer| {
                    chain::write(writer, *chain);
                });
            }
            Op::FlushChain { family, chain } => {
                self.message(index, msg::DELRULE, 0, *family, |writer| {
                    writer.string(rule::TABLE, TABLE);
                    writer.string(rule::CHAIN, &chain.to_string());
                });
            }
            Op::DeleteChain { family, chain } => {
                self.message(index, msg::DELCHAIN, 0, *family, |writer| {
                    chain::write_name(writer, *chain);
                });
            }
            Op::AddRule { family, chain, rule } => self.add_rule(index, *family, *chain, rule),
            // Runs of rows.
            Op::AddElement { .. } | Op::DeleteElement { .. } => (),
        }
    }

    fn add_table(&mut self, index: usize, family: Family, ownership: Ownership) {
        self.message(index, msg::NEWTABLE, NLM_F_CREATE, family, |writer| {
            writer.string(table::NAME, TABLE);
            if let Some(flags) = ownership.flags() {
                writer.be32(table::FLAGS, flags);
            }
            writer.bytes(table::USERDATA, &userdata::comment(skeleton::TABLE_COMMENT));
        });
    }

    fn add_set(&mut self, index: usize, family: Family, name: SetName, size: Option<u32>) {
        let id = u32::try_from(self.messages.len() + 1).unwrap_or(u32::MAX);
        self.message(index, msg::NEWSET, NLM_F_CREATE, family, |writer| {
            set::write(writer, family, name, size, id);
        });
    }

    fn add_rule(&mut self, index: usize, family: Family, chain: Chain, wanted: &Rule) {
        let expressions = lower::lower(family, wanted);
        self.message(index, msg::NEWRULE, NLM_F_CREATE | NLM_F_APPEND, family, |writer| {
            writer.string(rule::TABLE, TABLE);
            writer.string(rule::CHAIN, &chain.to_string());
            writer.nest(rule::EXPRESSIONS, |writer| expression::write_all(writer, &expressions));
        });
    }

    fn message(
        &mut self,
        op: usize,
        kind: u8,
        flags: u16,
        family: Family,
        fill: impl FnOnce(&mut Writer),
    ) {
        let start = self.begin(op, kind, flags, family);
        fill(&mut self.writer);
        self.writer.end_message(start);
    }

    fn begin(&mut self, op: usize, kind: u8, flags: u16, family: Family) -> usize {
        self.messages.push(MessagePlace { op, elements: self.elements.len() });
        let number = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        let seq = self.first_seq.wrapping_add(number);
        let kind = NFNL_SUBSYS_NFTABLES << 8 | u16::from(kind);
        let start = self.writer.begin_message(kind, NLM_F_REQUEST | flags, seq);
        write_nfgenmsg(&mut self.writer, nfproto(family), 0);
        self.last = start;
        start
    }

    fn begin_run(&mut self, op: usize, run: &Run) -> OpenMessage {
        let (kind, flags) =
            if run.adds { (msg::NEWSETELEM, NLM_F_CREATE) } else { (msg::DELSETELEM, 0) };
        let start = self.begin(op, kind, flags, run.family);
        self.writer.string(element::LIST_TABLE, TABLE);
        self.writer.string(element::LIST_SET, run.set.name());
        OpenMessage { start, list: self.writer.begin_nest(element::LIST_ELEMENTS) }
    }

    fn end_run(&mut self, message: &OpenMessage) {
        self.writer.end_attribute(message.list);
        self.writer.end_message(message.start);
    }

    /// Writes a row; one that does not fit begins a new message.
    fn row(&mut self, message: &mut OpenMessage, index: usize, run: &Run, op: &Op) {
        let (key, value) = match op {
            Op::AddElement { key, value, .. } => (key, value),
            Op::DeleteElement { key, .. } => (key, &Value::None),
            Op::AddTable(_)
            | Op::DeleteTable(_)
            | Op::AddSet { .. }
            | Op::ResizeSet { .. }
            | Op::AddChain { .. }
            | Op::FlushChain { .. }
            | Op::DeleteChain { .. }
            | Op::AddRule { .. } => return,
        };
        if self.writer.len() - message.list + row_length(key, value) > ATTRIBUTE_MAX {
            self.end_run(message);
            *message = self.begin_run(index, run);
        }
        let offset = self.writer.len() - message.start;
        self.elements.push(ElementPlace { offset, op: index });
        rows::write_row(&mut self.writer, key, value);
    }

    fn finish(mut self, ending: Ending) -> Encoded {
        if !self.messages.is_empty() {
            self.writer.add_flags(self.last, NLM_F_ACK);
        }
        if ending == Ending::Commit {
            let number = u32::try_from(self.messages.len() + 1).unwrap_or(u32::MAX);
            self.delimiter(NFNL_MSG_BATCH_END, self.first_seq.wrapping_add(number), None);
        }
        Encoded {
            bytes: self.writer.into_bytes(),
            first_seq: self.first_seq,
            messages: self.messages,
            elements: self.elements,
        }
    }

    fn delimiter(&mut self, kind: u16, seq: u32, generation: Option<u32>) {
        self.writer.message(kind, NLM_F_REQUEST, seq, |writer| {
            write_nfgenmsg(writer, 0, NFNL_SUBSYS_NFTABLES);
            if let Some(generation) = generation {
                writer.be32(BATCH_GENID, generation);
            }
        });
    }
}

/// Asks whether the kernel knows tables that belong to a socket and outlive it: a transaction that makes one called
/// `name`, without an end, so that it is checked and thrown away.
pub(crate) fn probe_ownership(name: &str, seq: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, seq, |writer| {
        write_nfgenmsg(writer, 0, NFNL_SUBSYS_NFTABLES);
    });
    let kind = NFNL_SUBSYS_NFTABLES << 8 | u16::from(msg::NEWTABLE);
    let flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK;
    writer.message(kind, flags, seq.wrapping_add(1), |writer| {
        write_nfgenmsg(writer, nfproto(Family::V4), 0);
        writer.string(table::NAME, name);
        writer.be32(table::FLAGS, table::OWNER | table::PERSIST);
    });
    writer.into_bytes()
}

/// An upper bound for what a row takes, in bytes.
fn row_length(key: &Key, value: &Value) -> usize {
    let chain = match value {
        Value::Verdict(_) => 64,
        Value::None | Value::Endpoint(..) | Value::Handle(_) => 0,
    };
    let keys = match key {
        Key::Range(_) | Key::FrontendSource(..) => 2,
        Key::Address(_)
        | Key::Pair(..)
        | Key::Frontend(_)
        | Key::FrontendSlot(..)
        | Key::NodePort(_)
        | Key::NodePortSlot(..)
        | Key::Group(_)
        | Key::GroupSlot(..)
        | Key::Client(..) => 1,
    };
    // The longest key has 40 bytes, the longest data 20; headers are 4 each.
    keys * 64 + 32 + chain
}

/// `struct nfgenmsg`
pub(crate) fn write_nfgenmsg(writer: &mut Writer, family: u8, resource: u16) {
    writer.raw(&[family, 0]);
    writer.raw(&resource.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nft::codec::element::samples::any_row;
    use crate::nft::codec::wire::{Attributes, Messages, find};
    use crate::nft::schema::Chain;

    /// Type without the subsystem and flags of each message.
    fn outline(encoded: &Encoded) -> Vec<(u16, u16)> {
        Messages(&encoded.bytes).map(|it| (it.kind & 0xff, it.flags)).collect()
    }

    #[test]
    fn only_the_last_operation_is_acknowledged() {
        let family = Family::V4;
        let batch = Batch(vec![
            Op::AddTable(family),
            Op::AddChain { family, chain: Chain::Services },
            Op::DeleteTable(family),
        ]);
        let encoded = encode(&batch, 7, None, Ending::Commit, Ownership::Shared);
        let create = NLM_F_REQUEST | NLM_F_CREATE;
        assert_eq!(
            outline(&encoded),
            [
                (NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST),
                (u16::from(msg::NEWTABLE), create),
                (u16::from(msg::NEWCHAIN), create),
                (u16::from(msg::NEWTABLE), create),
                (u16::from(msg::DELTABLE), NLM_F_REQUEST | NLM_F_ACK),
                (NFNL_MSG_BATCH_END, NLM_F_REQUEST),
            ]
        );
        assert_eq!((encoded.acknowledged(), encoded.next_seq()), (11, 13));
        let places = (6..14).map(|seq| encoded.locate(seq, None)).collect::<Vec<_>>();
        let (before, after) = (Place::Elsewhere, Place::Elsewhere);
        let [first, second, third] = [0, 1, 2].map(Place::Op);
        // The end is no operation; nothing is ever said about it.
        assert_eq!(places, [before, Place::Batch, first, second, third, third, after, after]);
    }

    #[test]
    fn a_validation_has_no_end() {
        let batch = Batch(vec![Op::AddTable(Family::V6)]);
        let commit = encode(&batch, 1, Some(5), Ending::Commit, Ownership::Shared).bytes;
        let validate = encode(&batch, 1, Some(5), Ending::Validate, Ownership::Shared).bytes;
        assert!(commit.starts_with(&validate));
        assert_eq!(Messages(&validate).count(), 2);
        let begin = Messages(&validate).next().unwrap();
        assert_eq!(find(&begin.payload[4..], BATCH_GENID), Some(&[0, 0, 0, 5][..]));
    }

    proptest! {
        /// However many rows there are, each is where it is said to be, and no list is too long.
        #[test]
        fn every_row_is_found_by_its_offset(
            rows in prop::collection::vec((any_row(), any::<bool>()), 1..40),
            times in 1usize..200,
        ) {
            let ops = rows.iter().flat_map(|((family, set, key, value), adds)| {
                let (family, set, key, value, owner) = (*family, *set, *key, *value, None);
                let op = match adds {
                    true => Op::AddElement { family, set, key, value, owner },
                    false => Op::DeleteElement { family, set, key, owner },
                };
                std::iter::repeat_n(op, times)
            });
            let batch = Batch(ops.collect());
            let encoded = encode(&batch, u32::MAX - 2, None, Ending::Commit, Ownership::Shared);
            let mut next = 0;
            for message in Messages(&encoded.bytes) {
                let Some(list) = find(message.payload.get(4..).unwrap(), element::LIST_ELEMENTS)
                else { continue };
                prop_assert!(list.len() + 4 <= ATTRIBUTE_MAX);
                let base = list.as_ptr() as usize - message.payload.as_ptr() as usize + 16;
                let mut offset = 0;
                for (_, item) in Attributes(list) {
                    let at = u32::try_from(base + offset).unwrap();
                    let Place::Op(op) = encoded.locate(message.seq, Some(at)) else {
                        panic!("{at} is nowhere")
                    };
                    let is_end = find(item, element::FLAGS).is_some();
                    prop_assert_eq!(op, if is_end { next - 1 } else { next });
                    next = op + 1;
                    offset += (item.len() + 4).next_multiple_of(4);
                }
            }
            prop_assert_eq!(next, batch.len());
        }
    }
}
