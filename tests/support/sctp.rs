//! As much SCTP as it takes to see where an association would go.
//!
//! Kernels without SCTP sockets still track and translate it. So the client sends an INIT chunk by a raw socket, and
//! the server answers with an INIT ACK whose state cookie is the usual line. Both carry a correct checksum and
//! verification tag, else conntrack calls them invalid and translates nothing. RFC 9260, sections 3.1, 3.3.2, 3.3.3.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

const SCTP: i32 = 132;
const COMMON_HEADER: usize = 12;
const FIXED_INIT: usize = 20;
const STATE_COOKIE: [u8; 2] = [0, 7];

/// A raw socket bound to `address`; a datagram socket in all but the bytes it carries.
pub(crate) fn socket(address: IpAddr) -> UdpSocket {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP))).unwrap();
    socket.bind(&SocketAddr::new(address, 0).into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

/// The first packet of an association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Init {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// The tag that the answer must carry.
    pub(crate) tag: [u8; 4],
}

impl Init {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut packet = header(self.source_port, self.destination_port, [0; 4]);
        packet.extend([1, 0, 0, 20]);
        packet.extend(self.tag);
        packet.extend(WINDOW_STREAMS_TSN);
        with_checksum(packet)
    }

    /// Reads a packet as a raw socket delivers it: IPv4 ones with the IP header.
    pub(crate) fn parse(packet: &[u8], has_ip_header: bool) -> Option<Init> {
        let (ports, chunk) = split(packet, has_ip_header)?;
        (chunk.first() == Some(&1)).then_some(())?;
        let tag = chunk.get(4..8)?.try_into().ok()?;
        Some(Init { source_port: ports.0, destination_port: ports.1, tag })
    }

    /// The INIT ACK, with `cookie` as its state cookie.
    pub(crate) fn acknowledge(self, cookie: &str) -> Vec<u8> {
        let mut packet = header(self.destination_port, self.source_port, self.tag);
        let cookie_length = 4 + cookie.len();
        packet.extend([2, 0]);
        packet.extend(length(FIXED_INIT + cookie_length));
        packet.extend([0, 0, 0, 1]);
        packet.extend(WINDOW_STREAMS_TSN);
        packet.extend(STATE_COOKIE);
        packet.extend(length(cookie_length));
        packet.extend(cookie.as_bytes());
        packet.resize(packet.len().next_multiple_of(4), 0);
        with_checksum(packet)
    }

    /// The cookie, if `packet` is the answer to this INIT.
    pub(crate) fn answer(self, packet: &[u8], has_ip_header: bool) -> Option<String> {
        let (ports, chunk) = split(packet, has_ip_header)?;
        let for_us =
            ports == (self.destination_port, self.source_port) && chunk.first() == Some(&2);
        for_us.then_some(())?;
        let parameter = chunk.get(FIXED_INIT..)?;
        parameter.starts_with(&STATE_COOKIE).then_some(())?;
        let length = u16::from_be_bytes(parameter.get(2..4)?.try_into().ok()?);
        String::from_utf8(parameter.get(4..usize::from(length))?.to_vec()).ok()
    }
}

/// Receiver window 65,536, one stream each way, first TSN 1.
const WINDOW_STREAMS_TSN: [u8; 12] = [0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap().to_be_bytes()
}

fn header(source_port: u16, destination_port: u16, tag: [u8; 4]) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(source_port.to_be_bytes());
    packet.extend(destination_port.to_be_bytes());
    packet.extend(tag);
    packet.extend([0; 4]);
    packet
}

fn with_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c(&packet).to_le_bytes();
    packet[8..COMMON_HEADER].copy_from_slice(&checksum);
    packet
}

/// Source and destination port, and the first chunk. Packets with a wrong checksum do not count.
fn split(packet: &[u8], has_ip_header: bool) -> Option<((u16, u16), &[u8])> {
    let skip = if has_ip_header { usize::from(packet.first()? & 0xf) * 4 } else { 0 };
    let sctp = packet.get(skip..)?;
    let (header, chunk) = sctp.split_at_checked(COMMON_HEADER)?;
    let mut unsigned = sctp.to_vec();
    unsigned[8..COMMON_HEADER].fill(0);
    (crc32c(&unsigned).to_le_bytes() == header[8..]).then_some(())?;
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    Some(((port(0), port(2)), chunk))
}

/// CRC-32C (Castagnoli), bit by bit: packets here have a few dozen bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let register = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 }
        })
    });
    !register
}

#[test]
fn the_checksum_is_castagnolis() {
    // Test vector of RFC 3720, appendix B.4, and the customary one.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn an_acknowledgement_answers_its_init_only() {
    let init = Init { source_port: 40000, destination_port: 9090, tag: [1, 2, 3, 4] };
    assert_eq!(Init::parse(&init.encode(), false), Some(init));
    let answer = init.acknowledge("pod-1a 9090 10.0.0.1:40000\n");
    assert_eq!(init.answer(&answer, false).as_deref(), Some("pod-1a 9090 10.0.0.1:40000\n"));
    assert_eq!(Init { source_port: 40001, ..init }.answer(&answer, false), None);
    let mut damaged = answer;
    damaged[30] ^= 1;
    assert_eq!(init.answer(&damaged, false), None);
}
