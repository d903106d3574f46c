//! Hears rejections as they arrive.
//!
//! Between namespaces of one machine the rejection of a SYN comes back while `connect` is still sending it; the kernel
//! then only notes it, and the caller hears of it at the first retransmission, a second later. A raw socket hears it
//! at once.

#![expect(clippy::disallowed_methods, reason = "tests bound their waits by the real clock")]

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::patience::left;

/// ICMP errors that arrive at one address from now on.
pub(crate) struct Rejections(UdpSocket);

impl Rejections {
    pub(crate) fn listen(source: SocketAddr) -> io::Result<Rejections> {
        let (domain, protocol) = match source {
            SocketAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            SocketAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.bind(&SocketAddr::new(source.ip(), 0).into())?;
        Ok(Rejections(socket.into()))
    }

    /// Waits at most `limit` for "port unreachable" about a packet from `source` to `destination`.
    pub(crate) fn hear(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        limit: Duration,
    ) -> io::Result<bool> {
        self.0.set_read_timeout(Some(limit))?;
        let mut packet = [0; 256];
        match self.0.recv(&mut packet) {
            Ok(length) => {
                let ports = rejected_ports(&packet[..length], source.is_ipv4());
                Ok(ports == Some((source.port(), destination.port())))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What became of an echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Echo {
    Answered,
    /// Port unreachable, as the proxy rejects.
    Refused,
    Silence,
}

/// Sends one echo request and waits for what comes of it.
pub(crate) fn ping(source: IpAddr, to: IpAddr, patience: Duration) -> io::Result<Echo> {
    let Rejections(socket) = Rejections::listen(SocketAddr::new(source, 0))?;
    let [request, reply] = if to.is_ipv4() { [8, 0] } else { [128, 129] };
    let mut packet = [request, 0, 0, 0, 0x6b, 0x66, 0, 1];
    if to.is_ipv4() {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let start = Instant::now();
    match socket.send_to(&packet, SocketAddr::new(to, 0)) {
        // What the own host filters is told by what arrives.
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
        _ => {}
    }
    let mut buffer = [0; 256];
    loop {
        socket.set_read_timeout(Some(left(start, patience)))?;
        let (length, from) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Echo::Silence),
            Err(error) => return Err(error),
        };
        let header = if to.is_ipv4() { usize::from(buffer[0] & 0xf) * 4 } else { 0 };
        let icmp = buffer.get(header..length).unwrap_or_default();
        let about = if to.is_ipv4() { 16..20 } else { 24..40 };
        if icmp.first() == Some(&reply) && from.ip() == to && icmp.get(4..8) == Some(&packet[4..8])
        {
            return Ok(Echo::Answered);
        }
        let unreachable = icmp.starts_with(if to.is_ipv4() { &[3, 3] } else { &[1, 4] });
        let address = match to {
            IpAddr::V4(it) => it.octets().to_vec(),
            IpAddr::V6(it) => it.octets().to_vec(),
        };
        if unreachable && icmp.get(8..).and_then(|it| it.get(about)) == Some(&address[..]) {
            return Ok(Echo::Refused);
        }
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|it| u32::from(u16::from_be_bytes([it[0], it[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(folded & 0xffff).unwrap()
}

/// Source and destination port of the packet that a "port unreachable" is about.
///
/// IPv4 raw sockets deliver the IP header, IPv6 ones do not.
fn rejected_ports(packet: &[u8], is_ipv4: bool) -> Option<(u16, u16)> {
    let header_length = |packet: &[u8]| Some(usize::from(packet.first()? & 0xf) * 4);
    let (icmp, port_unreachable) =
        if is_ipv4 { (packet.get(header_length(packet)?..)?, [3, 3]) } else { (packet, [1, 4]) };
    icmp.starts_with(&port_unreachable).then_some(())?;
    let about = icmp.get(8..)?;
    let transport = about.get(if is_ipv4 { header_length(about)? } else { 40 }..)?;
    let port = |at: usize| Some(u16::from_be_bytes(transport.get(at..at + 2)?.try_into().ok()?));
    Some((port(0)?, port(2)?))
}

#[test]
fn only_port_unreachable_is_a_rejection() {
    let mut packet = vec![0x45; 20];
    packet.extend([3, 3, 0, 0, 0, 0, 0, 0]);
    packet.extend([0x45; 20]);
    packet.extend([0x9c, 0x40, 0, 80]);
    assert_eq!(rejected_ports(&packet, true), Some((40000, 80)));
    packet[21] = 1;
    assert_eq!(rejected_ports(&packet, true), None);
    assert_eq!(rejected_ports(&packet[..10], true), None);
    let mut packet = vec![1, 4, 0, 0, 0, 0, 0, 0];
    packet.extend([0; 40]);
    packet.extend([0x9c, 0x40, 0, 80]);
    assert_eq!(rejected_ports(&packet, false), Some((40000, 80)));
}
