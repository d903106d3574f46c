//! Addresses of the dummy interface; layout and numbers are those of linux/if_addr.h.

use std::net::IpAddr;

use super::server::af;
use crate::model::Family;
use crate::nft::codec::wire::{NLM_F_CREATE, NLM_F_REQUEST, Writer};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;

/// `NLM_F_EXCL`: the kernel says EEXIST if the address is there already.
const NLM_F_EXCL: u16 = 0x200;

/// `IFA_*`
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const FLAGS: u16 = 8;

/// Nobody is asked whether somebody else has the address: everybody has it.
const IFA_F_NODAD: u32 = 0x02;
/// No route but the local one.
const IFA_F_NOPREFIXROUTE: u32 = 0x200;

/// `RT_SCOPE_UNIVERSE`, as `ip address add` has it.
const UNIVERSE: u8 = 0;

/// Adds the request to give the interface the address, as /32 or /128.
pub(crate) fn write_add(writer: &mut Writer, index: u32, flags: u16, seq: u32, address: IpAddr) {
    let flags = flags | NLM_F_CREATE | NLM_F_EXCL;
    write(writer, RTM_NEWADDR, flags, seq, index, address);
}

/// Adds the request to take it away.
pub(crate) fn write_delete(writer: &mut Writer, index: u32, flags: u16, seq: u32, address: IpAddr) {
    write(writer, RTM_DELADDR, flags, seq, index, address);
}

fn write(writer: &mut Writer, kind: u16, flags: u16, seq: u32, index: u32, address: IpAddr) {
    writer.message(kind, NLM_F_REQUEST | flags, seq, |writer| {
        let family = af(Family::of(address));
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        writer.raw(&[family, prefix, 0, UNIVERSE]);
        writer.raw(&index.to_ne_bytes());
        match address {
            IpAddr::V4(address) => both(writer, &address.octets()),
            IpAddr::V6(address) => {
                both(writer, &address.octets());
                let flags = IFA_F_NODAD | IFA_F_NOPREFIXROUTE;
                if kind == RTM_NEWADDR {
                    writer.bytes(FLAGS, &flags.to_ne_bytes());
                }
            }
        }
    });
}

fn both(writer: &mut Writer, octets: &[u8]) {
    writer.bytes(LOCAL, octets);
    writer.bytes(ADDRESS, octets);
}
