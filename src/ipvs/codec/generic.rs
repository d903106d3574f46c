//! Generic netlink: which number IPVS has, and the frame of its requests.

use crate::nft::codec::wire::{NLM_F_DUMP, NLM_F_REQUEST, Writer, find, find_string, ne16};

/// `GENL_ID_CTRL`
const CONTROLLER: u16 = 0x10;
/// `CTRL_CMD_GETFAMILY`
const GETFAMILY: u8 = 3;
/// `CTRL_ATTR_FAMILY_ID`
const FAMILY_ID: u16 = 1;
/// `CTRL_ATTR_FAMILY_NAME`
const FAMILY_NAME: u16 = 2;

/// `IPVS_GENL_NAME`
const IPVS: &str = "IPVS";
/// `IPVS_GENL_VERSION`, and that of the controller is no other.
const VERSION: u8 = 1;

/// Length of `struct genlmsghdr`.
pub(crate) const GENLMSGHDR: usize = 4;

/// Asks for the number of IPVS by name. If it is a module that is not loaded, this loads it.
pub(crate) fn family(seq: u32) -> Vec<u8> {
    request(CONTROLLER, GETFAMILY, 0, seq, |writer| writer.string(FAMILY_NAME, IPVS))
}

/// Asks for all numbers. This loads nothing.
pub(crate) fn families(seq: u32) -> Vec<u8> {
    request(CONTROLLER, GETFAMILY, NLM_F_DUMP, seq, |_| ())
}

/// The number of IPVS, if this part of an answer is about IPVS.
pub(crate) fn read_family(payload: &[u8]) -> Option<u16> {
    let attributes = payload.get(GENLMSGHDR..)?;
    (find_string(attributes, FAMILY_NAME)? == IPVS).then_some(())?;
    find(attributes, FAMILY_ID).and_then(ne16)
}

/// One request as bytes.
pub(crate) fn request(
    family: u16,
    command: u8,
    flags: u16,
    seq: u32,
    fill: impl FnOnce(&mut Writer),
) -> Vec<u8> {
    let mut writer = Writer::default();
    write(&mut writer, family, command, flags, seq, fill);
    writer.into_bytes()
}

/// Adds a request to those that are there.
pub(crate) fn write(
    writer: &mut Writer,
    family: u16,
    command: u8,
    flags: u16,
    seq: u32,
    fill: impl FnOnce(&mut Writer),
) {
    writer.message(family, NLM_F_REQUEST | flags, seq, |writer| {
        writer.raw(&[command, VERSION, 0, 0]);
        fill(writer);
    });
}
