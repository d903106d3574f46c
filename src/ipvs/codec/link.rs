//! The dummy interface; layout and numbers are those of linux/if_link.h and linux/rtnetlink.h.

use crate::nft::codec::wire::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, Writer, find, find_string, ne32,
};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;

/// `NLM_F_EXCL`
const NLM_F_EXCL: u16 = 0x200;

/// Length of `struct ifinfomsg`: family, padding, type, index, flags, which flags are meant.
const IFINFOMSG: usize = 16;

/// `IFLA_*`
const IFNAME: u16 = 3;
const LINKINFO: u16 = 18;
const IFALIAS: u16 = 20;
/// `IFLA_INFO_KIND`
const INFO_KIND: u16 = 1;

const DUMMY: &str = "dummy";

/// What the kernel tells about an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) alias: Option<String>,
    /// `IFLA_INFO_KIND` is `dummy`.
    pub(crate) dummy: bool,
}

/// Asks for the interface of that name. The kernel says ENODEV if there is none.
pub(crate) fn get(name: &str, seq: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    write(&mut writer, RTM_GETLINK, 0, seq, 0, |writer| writer.string(IFNAME, name));
    writer.into_bytes()
}

/// Makes a dummy interface with an alias. It stays down: its addresses are local all the same, and nothing is sent
/// through it.
///
/// Two messages, numbered `seq` and the next, since the kernel takes no alias when it makes an interface.
pub(crate) fn create(name: &str, alias: &str, seq: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
    write(&mut writer, RTM_NEWLINK, flags, seq, 0, |writer| {
        writer.string(IFNAME, name);
        writer.nest(LINKINFO, |writer| writer.string(INFO_KIND, DUMMY));
    });
    write(&mut writer, RTM_SETLINK, NLM_F_ACK, seq.wrapping_add(1), 0, |writer| {
        writer.string(IFNAME, name);
        writer.bytes(IFALIAS, alias.as_bytes());
    });
    writer.into_bytes()
}

pub(crate) fn set_alias(index: u32, alias: &str, seq: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    write(&mut writer, RTM_SETLINK, NLM_F_ACK, seq, index, |writer| {
        writer.bytes(IFALIAS, alias.as_bytes());
    });
    writer.into_bytes()
}

pub(crate) fn delete(index: u32, seq: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    write(&mut writer, RTM_DELLINK, NLM_F_ACK, seq, index, |_| ());
    writer.into_bytes()
}

pub(crate) fn read(kind: u16, payload: &[u8]) -> Option<Link> {
    (kind == RTM_NEWLINK).then_some(())?;
    let attributes = payload.get(IFINFOMSG..)?;
    let info = find(attributes, LINKINFO).unwrap_or_default();
    Some(Link {
        index: payload.get(4..8).and_then(ne32)?,
        alias: find_string(attributes, IFALIAS).map(str::to_owned),
        dummy: find_string(info, INFO_KIND) == Some(DUMMY),
    })
}

fn write(
    writer: &mut Writer,
    kind: u16,
    flags: u16,
    seq: u32,
    index: u32,
    fill: impl FnOnce(&mut Writer),
) {
    writer.message(kind, NLM_F_REQUEST | flags, seq, |writer| {
        writer.raw(&[0; 4]);
        writer.raw(&index.to_ne_bytes());
        writer.raw(&[0; 8]);
        fill(writer);
    });
}
