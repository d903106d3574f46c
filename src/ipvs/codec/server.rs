//! Virtual servers and destinations; layout and numbers are those of linux/ip_vs.h. Ports are big-endian, everything
//! else has the host's byte order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use super::generic::{GENLMSGHDR, request, write};
use crate::ipvs::schema::{
    Connections, Destination, ObservedDestination, Op, Scheduler, ServerKey, VirtualServer,
};
use crate::model::{Family, Protocol};
use crate::nft::codec::wire::{
    Attributes, NLM_F_DUMP, Writer, be16, find, find_string, ne16, ne32,
};

/// `IPVS_CMD_*`
const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DEL_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_DEST: u8 = 5;
const SET_DEST: u8 = 6;
const DEL_DEST: u8 = 7;
const GET_DEST: u8 = 8;
const SET_CONFIG: u8 = 12;

/// `IPVS_CMD_ATTR_*`
const SERVICE: u16 = 1;
const DEST: u16 = 2;
const TIMEOUT_TCP: u16 = 4;
const TIMEOUT_TCP_FIN: u16 = 5;
const TIMEOUT_UDP: u16 = 6;

/// `IPVS_SVC_ATTR_*`
const AF: u16 = 1;
const PROTOCOL: u16 = 2;
const ADDR: u16 = 3;
const PORT: u16 = 4;
const SCHED_NAME: u16 = 6;
const FLAGS: u16 = 7;
const TIMEOUT: u16 = 8;
const NETMASK: u16 = 9;

/// `IPVS_DEST_ATTR_*`
const DEST_ADDR: u16 = 1;
const DEST_PORT: u16 = 2;
const FWD_METHOD: u16 = 3;
const WEIGHT: u16 = 4;
const U_THRESH: u16 = 5;
const L_THRESH: u16 = 6;
const ACTIVE_CONNS: u16 = 7;
const INACT_CONNS: u16 = 8;
const PERSIST_CONNS: u16 = 9;
const ADDR_FAMILY: u16 = 11;

/// `IP_VS_SVC_F_PERSISTENT` and `IP_VS_SVC_F_ONEPACKET`
const PERSISTENT: u32 = 0x01;
const ONEPACKET: u32 = 0x04;
/// `IP_VS_SVC_F_SCHED1` to `3`
const SCHEDULER_FLAGS: u32 = 0x38;

/// `IP_VS_CONN_F_MASQ` out of `IP_VS_CONN_F_FWD_MASK`
const MASQUERADING: u32 = 0;

/// `AF_INET` and `AF_INET6`
pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;

/// `union nf_inet_addr`: IPv4 addresses are at its start.
const ADDRESS: usize = 16;

/// IPVS' own timeouts in seconds; 0 keeps what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timeouts {
    pub(crate) tcp: u32,
    pub(crate) tcp_fin: u32,
    pub(crate) udp: u32,
}

/// Adds the request that carries out the operation. Those about addresses are not for IPVS and write nothing.
pub(crate) fn write_op(writer: &mut Writer, family: u16, flags: u16, seq: u32, op: &Op) {
    let mut on_server = |command, key: &ServerKey, server: Option<&VirtualServer>| {
        write(writer, family, command, flags, seq, |writer| write_server(writer, key, server));
    };
    match op {
        Op::BindAddress(_) | Op::UnbindAddress(_) => (),
        Op::AddServer(key, server) => on_server(NEW_SERVICE, key, Some(server)),
        Op::SetServer(key, server) => on_server(SET_SERVICE, key, Some(server)),
        Op::DeleteServer(key) => on_server(DEL_SERVICE, key, None),
        Op::AddDestination(key, destination, weight) => {
            let weight = Some(*weight);
            write(writer, family, NEW_DEST, flags, seq, |writer| {
                write_destination(writer, key, destination, weight);
            });
        }
        Op::SetDestination(key, destination, weight) => {
            let weight = Some(*weight);
            write(writer, family, SET_DEST, flags, seq, |writer| {
                write_destination(writer, key, destination, weight);
            });
        }
        Op::DeleteDestination(key, destination) => {
            write(writer, family, DEL_DEST, flags, seq, |writer| {
                write_destination(writer, key, destination, None);
            });
        }
    }
}

/// Asks for all virtual servers.
pub(crate) fn servers(family: u16, seq: u32) -> Vec<u8> {
    request(family, GET_SERVICE, NLM_F_DUMP, seq, |_| ())
}

/// Asks for the destinations of one.
pub(crate) fn destinations(family: u16, key: &ServerKey, seq: u32) -> Vec<u8> {
    request(family, GET_DEST, NLM_F_DUMP, seq, |writer| write_server(writer, key, None))
}

pub(crate) fn set_timeouts(family: u16, flags: u16, seq: u32, timeouts: &Timeouts) -> Vec<u8> {
    request(family, SET_CONFIG, flags, seq, |writer| {
        ne(writer, TIMEOUT_TCP, timeouts.tcp);
        ne(writer, TIMEOUT_TCP_FIN, timeouts.tcp_fin);
        ne(writer, TIMEOUT_UDP, timeouts.udp);
    })
}

/// Without `server` only what identifies it.
fn write_server(writer: &mut Writer, key: &ServerKey, server: Option<&VirtualServer>) {
    writer.nest(SERVICE, |writer| {
        writer.bytes(AF, &u16::from(af(key.family())).to_ne_bytes());
        writer.bytes(PROTOCOL, &u16::from(key.protocol.number()).to_ne_bytes());
        writer.bytes(ADDR, &address(key.address));
        writer.bytes(PORT, &key.port.get().to_be_bytes());
        let Some(server) = server else { return };
        writer.string(SCHED_NAME, server.scheduler.name());
        let persistent = if server.persistence.is_some() { PERSISTENT } else { 0 };
        let flags = persistent | (server.scheduler_flags & SCHEDULER_FLAGS);
        let mask = PERSISTENT | ONEPACKET | SCHEDULER_FLAGS;
        writer.bytes(FLAGS, &[flags.to_ne_bytes(), mask.to_ne_bytes()].concat());
        ne(writer, TIMEOUT, server.persistence.unwrap_or(0));
        // A mask for IPv4, the length of a prefix for IPv6: every client counts for itself.
        ne(writer, NETMASK, if key.address.is_ipv4() { u32::MAX } else { 128 });
    });
}

/// Without a weight only what identifies it.
fn write_destination(
    writer: &mut Writer,
    key: &ServerKey,
    destination: &Destination,
    weight: Option<u32>,
) {
    write_server(writer, key, None);
    writer.nest(DEST, |writer| {
        writer.bytes(DEST_ADDR, &address(destination.address));
        writer.bytes(DEST_PORT, &destination.port.get().to_be_bytes());
        let family = u16::from(af(Family::of(destination.address)));
        if let Some(weight) = weight {
            ne(writer, FWD_METHOD, MASQUERADING);
            ne(writer, WEIGHT, weight);
            ne(writer, U_THRESH, 0);
            ne(writer, L_THRESH, 0);
        }
        writer.bytes(ADDR_FAMILY, &family.to_ne_bytes());
    });
}

/// A virtual server with address and port. Those with a firewall mark, or for all ports, are none.
pub(crate) fn read_server(payload: &[u8]) -> Option<(ServerKey, VirtualServer)> {
    let attributes = find(payload.get(GENLMSGHDR..)?, SERVICE)?;
    let family = find(attributes, AF).and_then(ne16)?;
    let key = ServerKey {
        protocol: protocol(find(attributes, PROTOCOL).and_then(ne16)?)?,
        address: read_address(family, find(attributes, ADDR)?)?,
        port: NonZeroU16::new(find(attributes, PORT).and_then(be16)?)?,
    };
    let flags = find(attributes, FLAGS)?.get(0..4).and_then(ne32)?;
    let timeout = find(attributes, TIMEOUT).and_then(ne32)?;
    // A name that no scheduler of ours can have is not the one that is wanted, that is all that matters.
    let scheduler = find_string(attributes, SCHED_NAME).and_then(Scheduler::new);
    let server = VirtualServer {
        scheduler: scheduler.or_else(|| Scheduler::new("none"))?,
        persistence: (flags & PERSISTENT != 0).then_some(timeout),
        scheduler_flags: flags & SCHEDULER_FLAGS,
    };
    Some((key, server))
}

/// A destination of a virtual server of that family; one without a port is none.
pub(crate) fn read_destination(
    family: Family,
    payload: &[u8],
) -> Option<(Destination, ObservedDestination)> {
    let attributes = find(payload.get(GENLMSGHDR..)?, DEST)?;
    let mut all = [None; ADDR_FAMILY as usize + 1];
    for (kind, value) in Attributes(attributes) {
        if let Some(place) = all.get_mut(usize::from(kind)) {
            *place = Some(value);
        }
    }
    let get = |kind: u16| all.get(usize::from(kind)).copied().flatten();
    let number = |kind| get(kind).and_then(ne32);
    let family = get(ADDR_FAMILY).and_then(ne16).unwrap_or(u16::from(af(family)));
    let destination = Destination {
        address: read_address(family, get(DEST_ADDR)?)?,
        port: NonZeroU16::new(get(DEST_PORT).and_then(be16)?)?,
    };
    let observed = ObservedDestination {
        weight: number(WEIGHT)?,
        masquerades: number(FWD_METHOD)? == MASQUERADING,
        connections: Connections {
            active: number(ACTIVE_CONNS)?,
            inactive: number(INACT_CONNS)?,
            persistent: number(PERSIST_CONNS)?,
        },
    };
    Some((destination, observed))
}

fn ne(writer: &mut Writer, kind: u16, value: u32) {
    writer.bytes(kind, &value.to_ne_bytes());
}

pub(crate) fn af(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

fn address(address: IpAddr) -> [u8; ADDRESS] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn read_address(family: u16, value: &[u8]) -> Option<IpAddr> {
    if family == u16::from(AF_INET) {
        let octets: [u8; 4] = value.get(0..4)?.try_into().ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(octets)))
    } else if family == u16::from(AF_INET6) {
        let octets: [u8; ADDRESS] = value.get(0..ADDRESS)?.try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(octets)))
    } else {
        None
    }
}

fn protocol(number: u16) -> Option<Protocol> {
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    all.into_iter().find(|it| u16::from(it.number()) == number)
}
