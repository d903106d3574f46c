//! Requests for what the kernel holds, and the parts of answers that are needed to go on asking.

use super::NFNL_SUBSYS_NFTABLES;
use super::batch::write_nfgenmsg;
use super::uapi::{chain, element, generation, msg, nfproto, rule, set, table};
use super::wire::{NLM_F_DUMP, NLM_F_REQUEST, Writer, find_be32, find_string};
use crate::model::Family;
use crate::nft::schema::{SetName, TABLE};

/// Length of `struct nfgenmsg`, which begins every payload.
const NFGENMSG: usize = 4;

/// Asks for the number that grows with every change of any table in the network namespace.
pub(crate) fn generation(seq: u32) -> Vec<u8> {
    request(msg::GETGEN, 0, seq, 0, |_| ())
}

/// Asks for our table; the kernel answers ENOENT if there is none.
pub(crate) fn table(family: Family, seq: u32) -> Vec<u8> {
    request(msg::GETTABLE, 0, seq, nfproto(family), |writer| writer.string(table::NAME, TABLE))
}

/// Asks for all sets of our table.
pub(crate) fn sets(family: Family, seq: u32) -> Vec<u8> {
    request(msg::GETSET, NLM_F_DUMP, seq, nfproto(family), |writer| {
        writer.string(set::TABLE, TABLE);
    })
}

/// Asks for all chains of the family; the kernel cannot tell tables apart here.
pub(crate) fn chains(family: Family, seq: u32) -> Vec<u8> {
    request(msg::GETCHAIN, NLM_F_DUMP, seq, nfproto(family), |_| ())
}

/// Asks for all rules of our table.
pub(crate) fn rules(family: Family, seq: u32) -> Vec<u8> {
    request(msg::GETRULE, NLM_F_DUMP, seq, nfproto(family), |writer| {
        writer.string(rule::TABLE, TABLE);
    })
}

/// Asks for all elements of a set.
pub(crate) fn elements(family: Family, set: SetName, seq: u32) -> Vec<u8> {
    request(msg::GETSETELEM, NLM_F_DUMP, seq, nfproto(family), |writer| {
        writer.string(element::LIST_TABLE, TABLE);
        writer.string(element::LIST_SET, set.name());
    })
}

fn request(kind: u8, flags: u16, seq: u32, family: u8, fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    let kind = NFNL_SUBSYS_NFTABLES << 8 | u16::from(kind);
    writer.message(kind, NLM_F_REQUEST | flags, seq, |writer| {
        write_nfgenmsg(writer, family, 0);
        fill(writer);
    });
    writer.into_bytes()
}

/// The attributes of a message of nf_tables; `None` for messages of others.
pub(super) fn attributes(kind: u16, expected: u8, payload: &[u8]) -> Option<&[u8]> {
    (kind == NFNL_SUBSYS_NFTABLES << 8 | u16::from(expected)).then_some(())?;
    payload.get(NFGENMSG..)
}

/// The generation in an answer to [`generation`].
pub(crate) fn read_generation(kind: u16, payload: &[u8]) -> Option<u32> {
    find_be32(attributes(kind, msg::NEWGEN, payload)?, generation::ID)
}

/// What the kernel says of a table as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableHead {
    /// The number of sets, chains and other objects in it.
    pub(crate) objects: u32,
    /// Somebody has switched it off: no packet passes its chains.
    pub(crate) dormant: bool,
    pub(crate) owner: TableOwner,
}

/// Who may change a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableOwner {
    /// Everybody, for ever.
    Nobody,
    /// Everybody, until somebody takes it over: its owner has gone.
    Gone,
    /// The socket with this netlink port.
    Port(u32),
}

/// The table in an answer to [`table`].
pub(crate) fn read_table(kind: u16, payload: &[u8]) -> Option<TableHead> {
    let attributes = attributes(kind, msg::NEWTABLE, payload)?;
    let flags = find_be32(attributes, table::FLAGS).unwrap_or_default();
    let owner = if flags & table::OWNER != 0 {
        TableOwner::Port(find_be32(attributes, table::OWNER_PORT)?)
    } else if flags & table::PERSIST != 0 {
        TableOwner::Gone
    } else {
        TableOwner::Nobody
    };
    let objects = find_be32(attributes, table::USE)?;
    Some(TableHead { objects, dormant: flags & table::DORMANT != 0, owner })
}

/// Whether a chain of a dump belongs to our table.
pub(super) fn is_in_our_table(attributes: &[u8]) -> bool {
    find_string(attributes, chain::TABLE) == Some(TABLE)
}
