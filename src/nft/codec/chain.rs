//! Definitions of chains.

use super::uapi::{NF_ACCEPT, chain as nfta};
use super::userdata;
use super::wire::{Writer, be32, find, find_be32, find_string};
use crate::nft::schema::{BaseHook, Chain, ChainKind, TABLE};
use crate::nft::skeleton;

/// Writes the contents of `NEWCHAIN`.
pub(super) fn write(writer: &mut Writer, chain: Chain) {
    write_name(writer, chain);
    if let Some(base) = skeleton::base_hook(chain) {
        writer.nest(nfta::HOOK, |writer| {
            writer.be32(nfta::HOOK_HOOKNUM, base.hook as u32);
            writer.bytes(nfta::HOOK_PRIORITY, &base.priority.to_be_bytes());
        });
        writer.be32(nfta::POLICY, NF_ACCEPT);
        writer.string(nfta::TYPE, kind(base.kind));
    }
    writer.bytes(nfta::USERDATA, &userdata::comment(skeleton::comment(chain)));
}

/// Writes what names a chain.
pub(super) fn write_name(writer: &mut Writer, chain: Chain) {
    writer.string(nfta::TABLE, TABLE);
    writer.string(nfta::NAME, &chain.to_string());
}

/// Reads a `NEWCHAIN` of a dump. `Err`: the name of a chain that is not ours, or hooked in elsewhere.
pub(super) fn read(payload: &[u8]) -> Result<Chain, String> {
    let name = find_string(payload, nfta::NAME).unwrap_or("without a name");
    Chain::parse(name)
        .filter(|chain| has_base(payload, skeleton::base_hook(*chain)))
        .ok_or_else(|| name.to_owned())
}

/// How often it is used by rules and rows, in a `NEWCHAIN` of a dump.
pub(super) fn read_uses(payload: &[u8]) -> Option<u32> {
    find_be32(payload, nfta::USE)
}

fn has_base(payload: &[u8], expected: Option<BaseHook>) -> bool {
    let Some(hook) = find(payload, nfta::HOOK) else { return expected.is_none() };
    expected.is_some_and(|expected| {
        find_be32(hook, nfta::HOOK_HOOKNUM) == Some(expected.hook as u32)
            && find(hook, nfta::HOOK_PRIORITY).and_then(be32).map(u32::cast_signed)
                == Some(expected.priority)
            && find_be32(payload, nfta::POLICY) == Some(NF_ACCEPT)
            && find_string(payload, nfta::TYPE) == Some(kind(expected.kind))
    })
}

fn kind(kind: ChainKind) -> &'static str {
    match kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
    }
}
