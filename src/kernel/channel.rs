//! A netlink socket that asks and takes answers.
//!
//! The kernel works off a request inside the system call that sends it, and a dump inside the calls that receive it.
//! So nothing here ever waits: when the receive queue is empty, there is no more answer to come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt;

use super::KernelError;
use crate::nft::codec::wire::{
    Message, Messages, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, find, ne32,
};

/// Room for one datagram: the kernel makes those of dumps no bigger than 32 KiB, whatever is offered.
const DATAGRAM: usize = 1 << 16;

/// Room for errors, one for each refused message; there may be thousands.
const RECEIVE_BUFFER: usize = 4 << 20;

const MSG_PEEK: i32 = 0x2;
const MSG_DONTWAIT: i32 = 0x40;
const MSG_TRUNC: i32 = 0x20;

/// `NLM_F_MULTI`: more messages follow, up to `NLMSG_DONE`.
const NLM_F_MULTI: u16 = 0x2;

/// `NLM_F_CAPPED` and `NLM_F_ACK_TLVS` in the flags of an error: the refused message is not repeated, and attributes
/// follow.
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;

/// `NLMSGERR_ATTR_OFFS`
const ERROR_OFFSET: u16 = 2;

const EINTR: i32 = 4;
const ENOBUFS: i32 = 105;

/// What lies between a channel and its socket: nothing. Tests of faults put something there.
pub trait Link: Send {
    /// Sends one datagram; returns how much of it was sent.
    fn send(&mut self, socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
        socket.send(bytes, MSG_DONTWAIT)
    }

    /// Puts the next datagram into an empty buffer; returns its whole length, even if that is more than fits.
    fn receive(&mut self, socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<usize> {
        socket.recv(buffer, MSG_DONTWAIT | MSG_TRUNC)
    }
}

/// The way it is outside of tests.
struct Straight;

impl Link for Straight {}

/// Why a question has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The kernel said no.
    Refused(io::Error),
    /// What was asked for changed meanwhile. The answer has come to its end, but may be of no moment in particular.
    Interrupted,
    /// What was asked for changed meanwhile, and the kernel has not gone on with its answer.
    Aborted,
    /// Answers were lost, or did not come.
    Lost(String),
    /// The socket failed.
    Socket(io::Error),
}

impl Failure {
    /// The error of a question that changes nothing.
    pub(super) fn into_error(self, doing: &'static str) -> KernelError {
        match self {
            Failure::Refused(error) | Failure::Socket(error) => {
                KernelError::Socket { doing, error }
            }
            Failure::Interrupted | Failure::Aborted => KernelError::Interrupted(doing.to_owned()),
            Failure::Lost(why) => KernelError::Unread(format!("{doing}: {why}")),
        }
    }
}

/// An `NLMSG_ERROR`, which may be an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ErrorMessage {
    pub(super) seq: u32,
    /// Positive; 0 for an acknowledgement.
    pub(super) errno: i32,
    /// Where in the refused message the mistake is.
    pub(super) offset: Option<u32>,
}

/// A socket connected to the kernel.
pub(super) struct Channel {
    socket: Socket,
    link: Box<dyn Link>,
    buffer: Vec<u8>,
    next_seq: u32,
    port: u32,
    /// The size of the send buffer, 0 if nobody has asked for it yet.
    room: usize,
    /// A wait was told that notifications were lost, which is told only once.
    lost: bool,
    /// There are notifications, which come at any time.
    subscribed: bool,
    /// Since the last request all there was has been received.
    empty: bool,
}

impl Channel {
    /// Opens a socket of that `NETLINK_*` protocol.
    pub(super) fn open(protocol: isize) -> io::Result<Channel> {
        let mut socket = Socket::new(protocol)?;
        let port = socket.bind_auto()?.port_number();
        // Nobody but the kernel can send to a connected socket.
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        // In a user namespace of its own the process may not exceed the host's limit; what does not fit is found
        // out when answers are lost.
        if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
        }
        let link = Box::new(Straight);
        Ok(Channel {
            socket,
            link,
            buffer: Vec::with_capacity(DATAGRAM),
            next_seq: 1,
            port,
            room: 0,
            lost: false,
            subscribed: false,
            empty: true,
        })
    }

    /// Puts something between this channel and its socket.
    pub(super) fn set_link(&mut self, link: Box<dyn Link>) {
        self.link = link;
    }

    /// The kernel's name for this socket.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// The number for the next message.
    pub(super) fn next_seq(&self) -> u32 {
        self.next_seq
    }

    /// Says that numbers before this one are used up.
    pub(super) fn set_next_seq(&mut self, next: u32) {
        self.next_seq = next;
    }

    /// Sends bytes in one piece, with a bigger send buffer if needed.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.make_room(bytes.len())?;
        self.empty = false;
        let sent = self.link.send(&self.socket, bytes)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::Error::other(format!("{sent} of {} bytes were sent", bytes.len())))
        }
    }

    /// The kernel takes a message that is somewhat smaller than the send buffer.
    fn make_room(&mut self, length: usize) -> io::Result<()> {
        /// `netlink_sendmsg` keeps 32 bytes for itself.
        const RESERVE: usize = 64;
        let needed = length + RESERVE;
        if self.room == 0 {
            self.room = sockopt::socket_send_buffer_size(&self.socket)?;
        }
        if self.room >= needed {
            return Ok(());
        }
        if sockopt::set_socket_send_buffer_size_force(&self.socket, needed).is_err() {
            sockopt::set_socket_send_buffer_size(&self.socket, needed)?;
        }
        self.room = sockopt::socket_send_buffer_size(&self.socket)?;
        if self.room >= needed {
            return Ok(());
        }
        Err(no_room(length, self.room))
    }

    /// The next datagram; `None` when there is none.
    fn receive(&mut self) -> Result<Option<&[u8]>, Failure> {
        let length = loop {
            self.buffer.clear();
            match self.link.receive(&self.socket, &mut self.buffer) {
                // A signal; nothing was taken from the queue.
                Err(error) if error.raw_os_error() == Some(EINTR) => (),
                result => break result,
            }
        };
        let length = match length {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.empty = true;
                return Ok(None);
            }
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => {
                return Err(Failure::Lost("the receive buffer overflowed".to_owned()));
            }
            Err(error) => return Err(Failure::Socket(error)),
        };
        if length > self.buffer.len() {
            let why = format!("an answer of {length} bytes does not fit {DATAGRAM}");
            return Err(Failure::Lost(why));
        }
        Ok(Some(&self.buffer))
    }

    /// Throws away what has come, be it left of answers to earlier questions. Returns whether anything had, or was
    /// lost.
    ///
    /// Nothing comes but answers and notifications, so where there can be neither no system call is spent on looking.
    pub(super) fn drain(&mut self) -> Result<bool, Failure> {
        if self.empty && !self.subscribed {
            return Ok(std::mem::take(&mut self.lost));
        }
        self.drain_and_look(|_, _| true)
    }

    /// As [`Channel::drain`], but messages that do not count, by type and payload, are nothing. Lost ones always count.
    pub(super) fn drain_and_look(
        &mut self,
        counts: impl Fn(u16, &[u8]) -> bool,
    ) -> Result<bool, Failure> {
        let mut any = std::mem::take(&mut self.lost);
        loop {
            match self.receive() {
                Ok(None) => return Ok(any),
                Ok(Some(datagram)) => {
                    any |= Messages(datagram).any(|it| counts(it.kind, it.payload));
                }
                Err(Failure::Lost(_)) => any = true,
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Wants to hear the notifications of a multicast group.
    pub(super) fn subscribe(&mut self, group: u32) -> io::Result<()> {
        self.subscribed = true;
        self.socket.add_membership(group)
    }

    /// Waits until there is something to receive, and leaves it there. A lost notification ends the wait as well.
    pub(super) fn wait(&mut self) -> Result<(), Failure> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer, MSG_PEEK) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(EINTR) => Ok(()),
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => {
                self.lost = true;
                Ok(())
            }
            Err(error) => Err(Failure::Socket(error)),
        }
    }

    /// All errors and acknowledgements that have come.
    pub(super) fn errors(&mut self) -> Result<Vec<ErrorMessage>, Failure> {
        let mut all = Vec::new();
        while let Some(datagram) = self.receive()? {
            all.extend(Messages(datagram).filter_map(read_error));
        }
        Ok(all)
    }

    /// Sends the question that `request` makes of a number and hands each message of the answer, by type and
    /// payload, to `take`.
    pub(super) fn ask(
        &mut self,
        request: impl FnOnce(u32) -> Vec<u8>,
        take: impl FnMut(u16, &[u8]),
    ) -> Result<(), Failure> {
        self.drain()?;
        self.ask_next(request, take)
    }

    /// As [`Channel::ask`], for the second and later ones of many questions, when the one before has an answer: then
    /// nothing is left of it, and no system call is spent on looking.
    pub(super) fn ask_next(
        &mut self,
        request: impl FnOnce(u32) -> Vec<u8>,
        mut take: impl FnMut(u16, &[u8]),
    ) -> Result<(), Failure> {
        let seq = self.next_seq;
        self.next_seq = seq.wrapping_add(1);
        self.send(&request(seq)).map_err(Failure::Socket)?;
        let mut interrupted = false;
        loop {
            let Some(datagram) = self.receive()? else {
                return Err(Failure::Lost("the answer has no end".to_owned()));
            };
            for message in Messages(datagram).filter(|it| it.seq == seq) {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match step(&message)? {
                    Step::Part => take(message.kind, message.payload),
                    Step::Whole => {
                        take(message.kind, message.payload);
                        return Ok(());
                    }
                    Step::End if interrupted => return Err(Failure::Interrupted),
                    Step::End => return Ok(()),
                }
            }
        }
    }
}

/// Told apart from other errors by its kind: something smaller may fit.
pub(super) fn no_room(length: usize, room: usize) -> io::Error {
    let what = format!(
        "a batch of {length} bytes does not fit the send buffer of {room}; \
         without CAP_NET_ADMIN on the host raise the sysctl net.core.wmem_max"
    );
    io::Error::new(io::ErrorKind::QuotaExceeded, what)
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

enum Step {
    /// More follows.
    Part,
    /// This was all.
    Whole,
    /// There was no more.
    End,
}

fn step(message: &Message<'_>) -> Result<Step, Failure> {
    match message.kind {
        NLMSG_DONE => {
            let status = message.payload.get(0..4).and_then(ne32).map_or(0, u32::cast_signed);
            if status < 0 { Err(refused(-status)) } else { Ok(Step::End) }
        }
        NLMSG_ERROR => match read_error(*message) {
            Some(ErrorMessage { errno: 0, .. }) => Ok(Step::End),
            Some(error) => Err(refused(error.errno)),
            None => Err(Failure::Lost("an error message was cut off".to_owned())),
        },
        _ if message.flags & NLM_F_MULTI != 0 => Ok(Step::Part),
        _ => Ok(Step::Whole),
    }
}

/// Takes whatever may be in a datagram.
#[cfg(any(test, fuzzing))]
pub(super) fn judge_any(message: &Message<'_>) {
    let _ = read_error(*message);
    let _ = step(message);
}

fn refused(errno: i32) -> Failure {
    match errno {
        EINTR => Failure::Aborted,
        _ => Failure::Refused(io::Error::from_raw_os_error(errno)),
    }
}

/// `struct nlmsgerr`, the refused message's header, perhaps the rest of it, perhaps attributes.
fn read_error(message: Message<'_>) -> Option<ErrorMessage> {
    (message.kind == NLMSG_ERROR).then_some(())?;
    let errno = ne32(message.payload.get(0..4)?)?.cast_signed().checked_neg()?;
    let refused_length = usize::try_from(ne32(message.payload.get(4..8)?)?).ok()?;
    let repeated = if message.flags & NLM_F_CAPPED != 0 { 16 } else { refused_length };
    let attributes = match message.flags & NLM_F_ACK_TLVS {
        0 => &[],
        _ => message.payload.get(4 + repeated.next_multiple_of(4)..).unwrap_or_default(),
    };
    let offset = find(attributes, ERROR_OFFSET).and_then(ne32);
    Some(ErrorMessage { seq: message.seq, errno, offset })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_capped_error_has_its_attributes_after_the_header() {
        let header = [40, 0, 0, 0, 1, 10, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0];
        let payload = [&(-17i32).to_ne_bytes()[..], &header, &[8, 0, 2, 0, 28, 0, 0, 0]].concat();
        let flags = NLM_F_CAPPED | NLM_F_ACK_TLVS;
        let message = Message { kind: NLMSG_ERROR, flags, seq: 7, payload: &payload };
        let expected = ErrorMessage { seq: 7, errno: 17, offset: Some(28) };
        assert_eq!(read_error(message), Some(expected));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(kind in 0u16..5, flags: u16, payload in prop::collection::vec(any::<u8>(), 0..80)) {
            let message = Message { kind, flags, seq: 1, payload: &payload };
            prop_assert!(read_error(message).is_none_or(|_| kind == NLMSG_ERROR));
            let _ = step(&message);
        }
    }
}
