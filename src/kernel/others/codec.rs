//! Messages about tables of others: as much of chains and rules as says whose they are, and deletions.

use crate::leftovers::{Removal, Rule};
use crate::model::Family;
use crate::nft::codec::uapi::{
    VERDICT_GOTO, VERDICT_JUMP, chain, element, msg, nfproto, rule, table,
};
use crate::nft::codec::wire::{
    Attributes, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Writer, be64, find, find_be32, find_string,
    string,
};
use crate::nft::codec::{
    BATCH_GENID, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES, write_nfgenmsg,
};

/// Length of `struct nfgenmsg`, which begins every payload.
const NFGENMSG: usize = 4;

/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// `NFTA_IMMEDIATE_DATA`
const IMMEDIATE_DATA: u16 = 2;
/// `NFTA_MATCH_NAME`, `NFTA_MATCH_INFO`: extensions of iptables, opaque to nf_tables.
const MATCH_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;
/// `NFTNL_UDATA_RULE_COMMENT`
const USERDATA_COMMENT: u8 = 0;

/// Asks for a table, or for a chain of it; the kernel answers ENOENT if there is none.
pub(super) fn get(family: Family, name: &str, chain_name: Option<&str>, seq: u32) -> Vec<u8> {
    match chain_name {
        None => request(msg::GETTABLE, 0, family, seq, |writer| writer.string(table::NAME, name)),
        Some(chain_name) => request(msg::GETCHAIN, 0, family, seq, |writer| {
            writer.string(chain::TABLE, name);
            writer.string(chain::NAME, chain_name);
        }),
    }
}

/// Asks for all chains of the family; the kernel cannot tell tables apart here.
pub(super) fn list_chains(family: Family, seq: u32) -> Vec<u8> {
    request(msg::GETCHAIN, NLM_F_DUMP, family, seq, |_| ())
}

/// Asks for all rules of a table.
pub(super) fn list_rules(family: Family, name: &str, seq: u32) -> Vec<u8> {
    request(msg::GETRULE, NLM_F_DUMP, family, seq, |writer| writer.string(rule::TABLE, name))
}

fn request(
    kind: u8,
    flags: u16,
    family: Family,
    seq: u32,
    fill: impl FnOnce(&mut Writer),
) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.message(message_type(kind), NLM_F_REQUEST | flags, seq, |writer| {
        write_nfgenmsg(writer, nfproto(family), 0);
        fill(writer);
    });
    writer.into_bytes()
}

fn message_type(kind: u8) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | u16::from(kind)
}

/// A chain of that table in a dump: its name, and whether it is hooked in.
pub(super) fn read_chain(table: &str, kind: u16, payload: &[u8]) -> Option<(String, bool)> {
    let attributes = attributes(kind, msg::NEWCHAIN, payload)?;
    (find_string(attributes, chain::TABLE)? == table).then_some(())?;
    let name = find_string(attributes, chain::NAME)?.to_owned();
    Some((name, find(attributes, chain::HOOK).is_some()))
}

/// A rule in a dump.
pub(super) fn read_rule(kind: u16, payload: &[u8]) -> Option<Rule> {
    let attributes = attributes(kind, msg::NEWRULE, payload)?;
    let mut read = Rule {
        chain: find_string(attributes, rule::CHAIN)?.to_owned(),
        handle: be64(find(attributes, rule::HANDLE)?)?,
        target: None,
        comment: find(attributes, rule::USERDATA).and_then(userdata_comment),
    };
    for (_, expression) in Attributes(find(attributes, rule::EXPRESSIONS).unwrap_or_default()) {
        let data = find(expression, EXPRESSION_DATA).unwrap_or_default();
        match find_string(expression, EXPRESSION_NAME) {
            Some("immediate") => read.target = read.target.or_else(|| target(data)),
            Some("match") => read.comment = read.comment.or_else(|| match_comment(data)),
            _ => (),
        }
    }
    Some(read)
}

fn attributes(kind: u16, expected: u8, payload: &[u8]) -> Option<&[u8]> {
    (kind == message_type(expected)).then_some(())?;
    payload.get(NFGENMSG..)
}

/// Where an immediate verdict jumps or goes.
fn target(data: &[u8]) -> Option<String> {
    let verdict = find(find(data, IMMEDIATE_DATA)?, element::DATA_VERDICT)?;
    let code = find_be32(verdict, element::VERDICT_CODE)?;
    matches!(code, VERDICT_JUMP | VERDICT_GOTO).then_some(())?;
    find_string(verdict, element::VERDICT_CHAIN).map(str::to_owned)
}

/// `-m comment` of iptables: `struct xt_comment_info` is nothing but the text.
fn match_comment(data: &[u8]) -> Option<String> {
    (find_string(data, MATCH_NAME)? == "comment").then_some(())?;
    string(find(data, MATCH_INFO)?).map(str::to_owned)
}

/// nft's own kind of comments, which later versions of iptables-nft may use: type, length, value.
fn userdata_comment(mut userdata: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = userdata {
        let value = rest.get(..usize::from(*length))?;
        if *kind == USERDATA_COMMENT {
            return string(value).map(str::to_owned);
        }
        userdata = rest.get(usize::from(*length)..)?;
    }
    None
}

/// Stands for whatever else than a rule refers to this chain.
pub(super) fn reference(target: &str) -> Rule {
    let chain = "(a set or map)".to_owned();
    Rule { chain, target: Some(target.to_owned()), ..Rule::default() }
}

/// A transaction under construction.
#[derive(Debug)]
pub(super) struct Batch {
    writer: Writer,
    first_seq: u32,
    /// What each message is about.
    subjects: Vec<String>,
    /// Where the last message begins.
    last: usize,
}

/// A transaction as bytes.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) bytes: Vec<u8>,
    first_seq: u32,
    subjects: Vec<String>,
}

impl Batch {
    /// With `generation` the kernel refuses it unless that is still its generation.
    pub(super) fn new(first_seq: u32, generation: Option<u32>) -> Batch {
        let mut batch =
            Batch { writer: Writer::default(), first_seq, subjects: Vec::new(), last: 0 };
        batch.delimiter(NFNL_MSG_BATCH_BEGIN, first_seq, generation);
        batch
    }

    pub(super) fn delete_table(&mut self, family: Family, name: &str) {
        self.message(msg::DELTABLE, family, name, |writer| writer.string(table::NAME, name));
    }

    /// Jumps first, then the contents of chains, then chains: none is deleted while something refers to it.
    pub(super) fn remove(&mut self, family: Family, table: &str, removal: &Removal) {
        for (name, handle) in &removal.rules {
            self.message(msg::DELRULE, family, name, |writer| {
                writer.string(rule::TABLE, table);
                writer.string(rule::CHAIN, name);
                writer.be64(rule::HANDLE, *handle);
            });
        }
        for name in &removal.chains {
            self.message(msg::DELRULE, family, name, |writer| {
                writer.string(rule::TABLE, table);
                writer.string(rule::CHAIN, name);
            });
        }
        for name in &removal.chains {
            self.message(msg::DELCHAIN, family, name, |writer| {
                writer.string(chain::TABLE, table);
                writer.string(chain::NAME, name);
            });
        }
    }

    fn message(&mut self, kind: u8, family: Family, subject: &str, fill: impl FnOnce(&mut Writer)) {
        self.subjects.push(subject.to_owned());
        let seq = self.first_seq.wrapping_add(count(&self.subjects));
        self.last = self.writer.begin_message(message_type(kind), NLM_F_REQUEST, seq);
        write_nfgenmsg(&mut self.writer, nfproto(family), 0);
        fill(&mut self.writer);
        self.writer.end_message(self.last);
    }

    fn delimiter(&mut self, kind: u16, seq: u32, generation: Option<u32>) {
        self.writer.message(kind, NLM_F_REQUEST, seq, |writer| {
            write_nfgenmsg(writer, 0, NFNL_SUBSYS_NFTABLES);
            if let Some(generation) = generation {
                writer.be32(BATCH_GENID, generation);
            }
        });
    }

    /// Only the last operation is acknowledged: one for each would overflow the receive buffer.
    pub(super) fn finish(mut self) -> Sent {
        if !self.subjects.is_empty() {
            self.writer.add_flags(self.last, NLM_F_ACK);
        }
        let seq = self.first_seq.wrapping_add(count(&self.subjects)).wrapping_add(1);
        self.delimiter(NFNL_MSG_BATCH_END, seq, None);
        let Batch { writer, first_seq, subjects, .. } = self;
        Sent { bytes: writer.into_bytes(), first_seq, subjects }
    }
}

impl Sent {
    pub(super) fn acknowledged(&self) -> u32 {
        self.first_seq.wrapping_add(count(&self.subjects))
    }

    /// The first number that was not used.
    pub(super) fn next_seq(&self) -> u32 {
        self.acknowledged().wrapping_add(2)
    }

    /// What the message of that number is about; `None` for the transaction as a whole.
    pub(super) fn subject(&self, seq: u32) -> Option<&str> {
        let index = usize::try_from(seq.wrapping_sub(self.first_seq)).ok()?.checked_sub(1)?;
        self.subjects.get(index).map(String::as_str)
    }
}

fn count(subjects: &[String]) -> u32 {
    u32::try_from(subjects.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn comments_are_read_in_both_kinds() {
        let mut info = b"kubernetes service portals".to_vec();
        info.resize(256, 0);
        let mut writer = Writer::default();
        writer.string(MATCH_NAME, "comment");
        writer.bytes(MATCH_INFO, &info);
        let expected = Some("kubernetes service portals".to_owned());
        assert_eq!(match_comment(&writer.into_bytes()), expected);
        let userdata =
            [&[9, 1, 5, USERDATA_COMMENT, 27][..], b"kubernetes service portals\0"].concat();
        assert_eq!(userdata_comment(&userdata), expected);
    }

    #[test]
    fn errors_are_found_by_their_number() {
        let mut batch = Batch::new(u32::MAX, None);
        batch.delete_table(Family::V4, "a");
        batch.delete_table(Family::V6, "b");
        let sent = batch.finish();
        let subjects = [u32::MAX, 0, 1, 2].map(|seq| sent.subject(seq));
        assert_eq!(subjects, [None, Some("a"), Some("b"), None]);
        assert_eq!((sent.acknowledged(), sent.next_seq()), (1, 3));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(kind in 0xa00u16..0xa20, payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (read_chain("nat", kind, &payload), read_rule(kind, &payload));
            let _ = userdata_comment(&payload);
        }
    }
}
