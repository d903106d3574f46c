//! Conntrack entries as netlink bytes; layout and numbers are those of linux/netfilter/nfnetlink_conntrack.h.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::conntrack::{Flow, Tuple};
use crate::model::{Family, Protocol};
use crate::nft::codec::wire::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Writer, be16, be32, find};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = 0;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;

/// Length of `struct nfgenmsg`; the family is its first byte.
const NFGENMSG: usize = 4;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// `CTA_*`
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;

/// `CTA_FILTER_ORIG_FLAGS`, `CTA_FILTER_REPLY_FLAGS`, and the bit for `CTA_PROTO_NUM` in them.
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;
const FILTER_PROTOCOL: u32 = 1 << 3;

/// `CTA_TUPLE_*`
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const TUPLE_ZONE: u16 = 3;

/// `CTA_IP_*`
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;

/// `CTA_PROTO_*`
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;

/// Asks for all entries of the family, with `filtered` only for those of UDP. Addresses are never part of the
/// filter: kernels match IPv6 addresses the wrong way round there.
pub(super) fn dump(family: Family, filtered: bool, seq: u32) -> Vec<u8> {
    request(IPCTNL_MSG_CT_GET, NLM_F_DUMP, seq, family, |writer| {
        if !filtered {
            return;
        }
        writer.nest(TUPLE_ORIG, |writer| {
            writer.nest(TUPLE_PROTO, |writer| {
                writer.bytes(PROTO_NUM, &[Protocol::Udp.number()]);
            });
        });
        // These two are in the host's byte order, unlike everything else.
        writer.nest(FILTER, |writer| {
            writer.bytes(FILTER_ORIG_FLAGS, &FILTER_PROTOCOL.to_ne_bytes());
            writer.bytes(FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
        });
    })
}

/// Deletes the entry with this original tuple, zone and number.
pub(super) fn delete(flow: &Flow, seq: u32) -> Vec<u8> {
    let family = Family::of(flow.original.destination.ip());
    request(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, seq, family, |writer| {
        writer.nest(TUPLE_ORIG, |writer| write_tuple(writer, &flow.original));
        if flow.zone != 0 {
            writer.bytes(ZONE, &flow.zone.to_be_bytes());
        }
        writer.be32(ID, flow.id);
    })
}

fn request(
    kind: u16,
    flags: u16,
    seq: u32,
    family: Family,
    fill: impl FnOnce(&mut Writer),
) -> Vec<u8> {
    let family = match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    };
    let mut writer = Writer::default();
    let kind = NFNL_SUBSYS_CTNETLINK << 8 | kind;
    writer.message(kind, NLM_F_REQUEST | flags, seq, |writer| {
        writer.raw(&[family, 0, 0, 0]);
        fill(writer);
    });
    writer.into_bytes()
}

fn write_tuple(writer: &mut Writer, tuple: &Tuple) {
    writer.nest(TUPLE_IP, |writer| {
        for (address, v4, v6) in [
            (tuple.source.ip(), IP_V4_SRC, IP_V6_SRC),
            (tuple.destination.ip(), IP_V4_DST, IP_V6_DST),
        ] {
            match address {
                IpAddr::V4(address) => writer.bytes(v4, &address.octets()),
                IpAddr::V6(address) => writer.bytes(v6, &address.octets()),
            }
        }
    });
    writer.nest(TUPLE_PROTO, |writer| {
        writer.bytes(PROTO_NUM, &[Protocol::Udp.number()]);
        writer.bytes(PROTO_SRC_PORT, &tuple.source.port().to_be_bytes());
        writer.bytes(PROTO_DST_PORT, &tuple.destination.port().to_be_bytes());
    });
}

/// The UDP flow in a message of a dump; `None` for flows of other protocols.
pub(super) fn read_udp(kind: u16, payload: &[u8]) -> Option<Flow> {
    (kind == NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW).then_some(())?;
    let attributes = payload.get(NFGENMSG..)?;
    let original = find(attributes, TUPLE_ORIG)?;
    // A zone that only sorts one direction is in that direction's tuple.
    let zone = find(attributes, ZONE).or_else(|| find(original, TUPLE_ZONE));
    Some(Flow {
        original: read_tuple(original)?,
        reply: read_tuple(find(attributes, TUPLE_REPLY)?)?,
        zone: zone.map_or(Some(0), be16)?,
        id: find(attributes, ID).and_then(be32)?,
    })
}

fn read_tuple(tuple: &[u8]) -> Option<Tuple> {
    let proto = find(tuple, TUPLE_PROTO)?;
    (find(proto, PROTO_NUM)? == [Protocol::Udp.number()]).then_some(())?;
    let ip = find(tuple, TUPLE_IP)?;
    let end = |v4, v6, port| {
        let address = read_address(ip, v4, v6)?;
        Some(SocketAddr::new(address, find(proto, port).and_then(be16)?))
    };
    Some(Tuple {
        source: end(IP_V4_SRC, IP_V6_SRC, PROTO_SRC_PORT)?,
        destination: end(IP_V4_DST, IP_V6_DST, PROTO_DST_PORT)?,
    })
}

fn read_address(ip: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    if let Some(address) = find(ip, v4) {
        return Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?)));
    }
    Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(find(ip, v6)?).ok()?)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_address(v6: bool) -> BoxedStrategy<IpAddr> {
        match v6 {
            false => any::<[u8; 4]>().prop_map(IpAddr::from).boxed(),
            true => any::<[u8; 16]>().prop_map(IpAddr::from).boxed(),
        }
    }

    fn any_flow() -> impl Strategy<Value = Flow> {
        any::<bool>().prop_flat_map(|v6| {
            let end = || (any_address(v6), any::<u16>()).prop_map(SocketAddr::from);
            let tuple =
                || (end(), end()).prop_map(|(source, destination)| Tuple { source, destination });
            (tuple(), tuple(), any::<u16>(), any::<u32>())
                .prop_map(|(original, reply, zone, id)| Flow { original, reply, zone, id })
        })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(flow in any_flow()) {
            let mut writer = Writer::default();
            writer.raw(&[0; NFGENMSG]);
            writer.nest(TUPLE_ORIG, |writer| write_tuple(writer, &flow.original));
            writer.nest(TUPLE_REPLY, |writer| write_tuple(writer, &flow.reply));
            writer.be32(ID, flow.id);
            writer.bytes(ZONE, &flow.zone.to_be_bytes());
            prop_assert_eq!(read_udp(0x100, &writer.into_bytes()), Some(flow));
        }

        #[test]
        fn any_bytes_are_a_flow_or_none(payload in prop::collection::vec(any::<u8>(), 0..160)) {
            let _ = read_udp(0x100, &payload);
        }
    }
}
