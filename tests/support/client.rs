//! Clients: open a connection from somewhere to somewhere and tell what became of it.

#![expect(clippy::disallowed_methods, reason = "tests bound their waits by the real clock")]

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use kube_ferry::model::Protocol;
use socket2::{Domain, Socket, Type};

use super::icmp::Rejections;
use super::patience;
use super::sctp;

/// How long silence must last to count as a drop. Longer than any delay seen between namespaces, shorter than the
/// first retransmission of TCP (1 s).
pub(crate) const SILENCE: Duration = Duration::from_millis(300);

/// How long an answer may take that is expected: a retransmission or two on a busy machine is no defect, nor is a
/// standstill of some seconds. What is lost for good is never answered.
pub(crate) const ANSWER: Duration = Duration::from_secs(20);

/// What became of a connection attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered(Answer),
    /// ICMP port unreachable; in a [`super::world::World`] only the proxy under test sends these.
    Refused,
    TimedOut,
    /// Anything else, such as "no route to host"; never expected.
    Failed(String),
}

/// A server's answer, and where the question came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) by: String,
    /// The port on which the server listens.
    pub(crate) port: u16,
    /// What the server saw as source.
    pub(crate) seen: SocketAddr,
    /// What the client had as source.
    pub(crate) sent: SocketAddr,
}

impl Answer {
    /// No address translation of the source on the way.
    pub(crate) fn source_kept(&self) -> bool {
        self.seen == self.sent
    }

    fn parse(line: &str, sent: SocketAddr) -> Result<Answer, String> {
        let mut words = line.split_ascii_whitespace();
        let mut word = || words.next().ok_or(format!("answer `{line}` is cut short"));
        let by = word()?.to_owned();
        let port = word()?.parse().map_err(|_| format!("no port in `{line}`"))?;
        let seen = word()?.parse().map_err(|_| format!("no source in `{line}`"))?;
        Ok(Answer { by, port, seen, sent })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Answered(it) => {
                write!(f, "{}:{} saw {} (sent from {})", it.by, it.port, it.seen, it.sent)
            }
            Outcome::Refused => f.write_str("refused"),
            Outcome::TimedOut => f.write_str("silence"),
            Outcome::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// Opens a connection from `source` (any port) to `to`, asks once and closes.
///
/// Call it inside the client's namespace.
pub(crate) fn ask(
    source: IpAddr,
    to: SocketAddr,
    protocol: Protocol,
    patience: Duration,
) -> Outcome {
    match Open::connect(source, to, protocol, patience) {
        Ok(mut open) => open.ask(patience),
        Err(error) => refusal(&error),
    }
}

/// A connection that stays open. For UDP and SCTP it is a pair of ports.
pub(crate) struct Open {
    channel: Channel,
    sent: SocketAddr,
}

enum Channel {
    Tcp(TcpStream),
    Udp(UdpSocket),
    Sctp(UdpSocket, sctp::Init),
}

impl Open {
    pub(crate) fn connect(
        source: IpAddr,
        to: SocketAddr,
        protocol: Protocol,
        patience: Duration,
    ) -> io::Result<Open> {
        match protocol {
            Protocol::Tcp => Open::tcp(SocketAddr::new(source, 0), to, patience),
            Protocol::Udp => Open::udp(source, to),
            Protocol::Sctp => Open::sctp(source, to),
        }
    }

    /// From any port if that of `source` is 0; another one may have been used a moment ago.
    pub(crate) fn tcp(source: SocketAddr, to: SocketAddr, patience: Duration) -> io::Result<Open> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(source.port() != 0)?;
        socket.bind(&source.into())?;
        socket.set_nonblocking(true)?;
        let sent = socket.local_addr()?.as_socket().ok_or(ErrorKind::InvalidData)?;
        let rejections = Rejections::listen(sent)?;
        if let Err(error) = socket.connect(&to.into()) {
            // EINPROGRESS; std has no kind for it.
            if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) {
                return Err(error);
            }
            wait_for_connection(&socket, &rejections, sent, to, patience)?;
        }
        socket.set_nonblocking(false)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        Ok(Open { channel: Channel::Tcp(stream), sent })
    }

    fn udp(source: IpAddr, to: SocketAddr) -> io::Result<Open> {
        let socket = UdpSocket::bind(SocketAddr::new(source, 0))?;
        socket.connect(to)?;
        let sent = socket.local_addr()?;
        Ok(Open { channel: Channel::Udp(socket), sent })
    }

    fn sctp(source: IpAddr, to: SocketAddr) -> io::Result<Open> {
        // Raw sockets have no ports of their own to be given.
        static NEXT_PORT: AtomicU16 = AtomicU16::new(0);
        let source_port = 40_000 + NEXT_PORT.fetch_add(1, Ordering::Relaxed) % 20_000;
        let socket = sctp::socket(source);
        socket.set_nonblocking(false)?;
        // Connected, the socket hears of ICMP errors.
        socket.connect(SocketAddr::new(to.ip(), 0))?;
        let [high, low] = source_port.to_be_bytes();
        let init = sctp::Init { source_port, destination_port: to.port(), tag: [1, 0, high, low] };
        let sent = SocketAddr::new(source, source_port);
        Ok(Open { channel: Channel::Sctp(socket, init), sent })
    }

    /// Ends a TCP connection by a reset; others just end.
    pub(crate) fn reset(self) {
        if let Channel::Tcp(stream) = self.channel {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }

    /// Ends a TCP connection from both sides; returns when the server has ended its half too.
    pub(crate) fn finish(self, patience: Duration) -> io::Result<()> {
        let Channel::Tcp(mut stream) = self.channel else { return Ok(()) };
        stream.shutdown(Shutdown::Write)?;
        stream.set_read_timeout(Some(patience))?;
        stream.read_to_end(&mut Vec::new()).map(|_| ())
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn ask(&mut self, patience: Duration) -> Outcome {
        match self.exchange(patience) {
            Ok(line) => {
                Answer::parse(&line, self.sent).map_or_else(Outcome::Failed, Outcome::Answered)
            }
            Err(error) => refusal(&error),
        }
    }

    fn exchange(&mut self, limit: Duration) -> io::Result<String> {
        match &mut self.channel {
            Channel::Tcp(stream) => {
                stream.set_read_timeout(Some(limit))?;
                stream.write_all(b"who?\n")?;
                read_line(stream)
            }
            Channel::Udp(socket) => {
                socket.set_read_timeout(Some(limit))?;
                sent_or_filtered(socket.send(b"who?\n"))?;
                let mut answer = [0; 128];
                let length = uninterrupted(|| socket.recv(&mut answer))?;
                Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
            }
            Channel::Sctp(socket, init) => initiate(socket, *init, limit),
        }
    }
}

/// Waits until the handshake is over, one way or the other.
fn wait_for_connection(
    socket: &Socket,
    rejections: &Rejections,
    sent: SocketAddr,
    to: SocketAddr,
    limit: Duration,
) -> io::Result<()> {
    let start = Instant::now();
    while socket.peer_addr().is_err() {
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        if rejections.hear(sent, to, Duration::from_millis(2))? {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        if start.elapsed() >= limit {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

fn initiate(socket: &UdpSocket, init: sctp::Init, limit: Duration) -> io::Result<String> {
    let start = Instant::now();
    let is_ipv4 = socket.local_addr()?.is_ipv4();
    sent_or_filtered(socket.send(&init.encode()))?;
    let mut packet = [0; 512];
    // Every raw socket gets a copy of every packet of its peer, also those of other attempts.
    loop {
        socket.set_read_timeout(Some(patience::left(start, limit)))?;
        let length = uninterrupted(|| socket.recv(&mut packet))?;
        if let Some(line) = init.answer(&packet[..length], is_ipv4) {
            return Ok(line);
        }
    }
}

/// A receive with a time limit is not started again by the kernel when the thread is stopped in between.
fn uninterrupted(mut receive: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match receive() {
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            result => return result,
        }
    }
}

/// A packet that the sender's own host filters fails to be sent. What a remote client would see is told by what
/// arrives then: a rejection or silence.
fn sent_or_filtered(sent: io::Result<usize>) -> io::Result<()> {
    match sent {
        Err(error) if error.kind() != ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

/// The answers are so short that they come in one piece.
fn read_line(stream: &mut TcpStream) -> io::Result<String> {
    let mut answer = [0; 128];
    let length = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

fn refusal(error: &io::Error) -> Outcome {
    let kind = error.kind();
    if kind == ErrorKind::ConnectionRefused {
        Outcome::Refused
    } else if kind == ErrorKind::TimedOut || kind == ErrorKind::WouldBlock {
        Outcome::TimedOut
    } else {
        Outcome::Failed(error.to_string())
    }
}
