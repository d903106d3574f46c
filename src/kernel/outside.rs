//! Answers of a kernel as bytes that anybody may have made up: where fuzzers come in. Not in the program.
//!
//! Each function takes any bytes, and must come back without a panic and without more memory than the bytes are worth.

use std::collections::BTreeMap;

use super::{address, channel, conntrack, legacy, others};
use crate::ipvs::codec::{generic, link, server};
use crate::model::Family;
use crate::nft::codec::wire::Messages;
use crate::nft::codec::{Ending, Observation, Ownership, encode, query};
use crate::nft::schema::{Batch, Op};
use crate::nft::skeleton::Program;
use crate::nft::{Compiler, RowCounts};

/// Messages of all protocols that are spoken: errors, addresses, flows, interfaces, virtual servers, others' tables.
pub fn messages(bytes: &[u8]) {
    for message in Messages(bytes) {
        channel::judge_any(&message);
        let (kind, payload) = (message.kind, message.payload);
        let _ = address::decode(payload);
        conntrack::read_any(kind, payload);
        let _ = link::read(kind, payload);
        let _ = generic::read_family(payload);
        let _ = server::read_server(payload);
        let _ = Family::ALL.map(|family| server::read_destination(family, payload));
        let _ = query::read_generation(kind, payload);
        let _ = query::read_table(kind, payload);
        others::read_any(kind, payload);
    }
}

/// A dump of our own table, taken over and set right: what results must be a batch that turns what was observed into
/// what is wanted. The first byte chooses the family.
pub fn tables(mut program: Program, bytes: &[u8]) {
    let Some((choice, dump)) = bytes.split_first() else { return };
    let family = if choice & 1 == 0 { Family::V4 } else { Family::V6 };
    let head = query::TableHead {
        objects: u32::from(choice >> 3),
        dormant: choice & 2 != 0,
        owner: query::TableOwner::Nobody,
    };
    program.families = vec![family];
    let mut observation = Observation::new(family, &program, head, choice & 4 != 0);
    for message in Messages(dump) {
        let (kind, payload) = (message.kind, message.payload);
        observation.set(kind, payload);
        observation.chain(kind, payload);
        observation.rule(kind, payload);
        for set in observation.readable_sets().into_iter().take(64) {
            observation.elements(set, kind, payload);
        }
    }
    let observed = observation.finish();
    // 64 sets may each take the same message; nothing else may multiply.
    assert!(observed.elements.len() <= 64 * dump.len(), "{}", observed.elements.len());
    let is_foreign = !observed.unknown.is_empty();
    let mut compiler = Compiler::adopt(program.clone(), BTreeMap::from([(family, observed)]));
    compiler.stage_skeleton(&RowCounts::default());
    compiler.stage_prune();
    let batch = compiler.batch();
    compiler.confirm();
    // Rules are the same whatever was observed, and take most of the time.
    let is_rule = |op: &Op| matches!(op, Op::AddRule { .. });
    let others = Batch(batch.0.iter().filter(|it| !is_rule(it)).cloned().collect());
    drop(encode(&others, 1, None, Ending::Commit, Ownership::Shared));
    // What is unknown would stay in force in a table that is not made anew.
    let anew = batch.0.iter().any(|op| matches!(op, Op::DeleteTable(of) if *of == family));
    assert!(anew || !is_foreign, "a table with something unknown stays");
}

/// A table of iptables-legacy: its description, and its entries from byte 128 on.
pub fn legacy_table(bytes: &[u8]) {
    legacy::read_any(bytes);
}

/// Bytes to begin with: what we send is built like what the kernel answers.
#[must_use]
pub fn seeds(program: &Program) -> Vec<(&'static str, Vec<u8>)> {
    let mut compiler = Compiler::new(program.clone());
    compiler.stage_skeleton(&RowCounts::default());
    let batch = compiler.batch();
    let bytes = |batch: &Batch| encode(batch, 1, None, Ending::Commit, Ownership::Socket).bytes;
    let all = bytes(&batch);
    let of_family = |choice: u8| [&[choice][..], &all].concat();
    vec![("messages", all.clone()), ("tables", of_family(0)), ("tables", of_family(1))]
}
