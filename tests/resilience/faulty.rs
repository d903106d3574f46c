//! What lies between the proxy and the kernel when netlink has a bad day.
//!
//! Nothing here pretends that the kernel has done something: a batch that is answered in the kernel's stead does not
//! reach the kernel, and one whose answer is lost has been carried out by it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use kube_ferry::kernel::channel::Link;
use netlink_sys::Socket;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const BATCH_BEGIN: u16 = 16;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const MSG_DONTWAIT: i32 = 0x40;

pub(super) const EPERM: i32 = 1;
pub(super) const EINTR: i32 = 4;
pub(super) const EAGAIN: i32 = 11;
pub(super) const ENOMEM: i32 = 12;
pub(super) const EBUSY: i32 = 16;
pub(super) const EINVAL: i32 = 22;
pub(super) const ERESTART: i32 = 85;
pub(super) const EMSGSIZE: i32 = 90;
pub(super) const ENOBUFS: i32 = 105;

/// What is said to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A transaction.
    Batch,
    /// A question for many things.
    Dump,
    /// A question for one thing, such as the generation.
    Question,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It cannot be sent.
    SendFails(i32),
    /// It does not reach the kernel; the answer refuses the first message.
    Refused(i32),
    /// As `Refused`, but the second message of a batch, which is its first operation.
    OperationRefused(i32),
    /// The kernel does what it was asked, and its answers do not fit the queue.
    AnswerLost,
    /// The kernel does what it was asked, and nothing is heard of it.
    Silence,
    /// A signal comes while the answer is awaited.
    Signal,
    /// Something is changed while the kernel answers.
    ChangedMeanwhile,
}

/// Shared with the test.
#[derive(Default)]
pub(super) struct Weather {
    /// The next of each kind goes wrong like that, in this order.
    pub(super) plan: VecDeque<(Kind, Fault)>,
    /// Rows with this address cannot be read by the kernel, because their bytes are spoilt on the way.
    pub(super) spoilt: Option<[u8; 4]>,
    /// Batches with this address are refused as a whole, without saying why.
    pub(super) unwanted: Option<[u8; 4]>,
    pub(super) batches: usize,
}

#[derive(Clone, Default)]
pub(super) struct Faulty {
    weather: Arc<Mutex<Weather>>,
    answers: VecDeque<Vec<u8>>,
    pending: Option<Fault>,
}

impl Faulty {
    pub(super) fn weather(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().unwrap()
    }

    fn next(&mut self, kind: Kind) -> Option<Fault> {
        let plan = &mut self.weather.lock().unwrap().plan;
        plan.front().is_some_and(|(of, _)| *of == kind).then(|| plan.pop_front().unwrap().1)
    }

    /// A batch as it reaches the kernel; `None` if it does not.
    fn spoil(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut weather = self.weather.lock().unwrap();
        weather.batches += 1;
        if weather.unwanted.is_some_and(|address| !keys(bytes, address).is_empty()) {
            return None;
        }
        let mut bytes = bytes.to_vec();
        if let Some(address) = weather.spoilt {
            for key in keys(&bytes, address) {
                // A type of attribute that keys do not have.
                bytes[key + 2] = 0x33;
            }
        }
        Some(bytes)
    }
}

impl Link for Faulty {
    fn send(&mut self, socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
        self.answers.clear();
        let kind = kind(bytes);
        let seq = field(bytes, 8);
        let fault = self.next(kind);
        let refused = match fault {
            Some(Fault::SendFails(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Refused(errno)) => Some((seq, errno)),
            Some(Fault::OperationRefused(errno)) => Some((seq.wrapping_add(1), errno)),
            _ => None,
        };
        self.pending = fault;
        if let Some((seq, errno)) = refused {
            self.answers.push_back(refusal(seq, errno));
            return Ok(bytes.len());
        }
        if kind != Kind::Batch {
            return socket.send(bytes, MSG_DONTWAIT);
        }
        match self.spoil(bytes) {
            Some(spoilt) => socket.send(&spoilt, MSG_DONTWAIT),
            None => {
                self.answers.push_back(refusal(seq, EINVAL));
                Ok(bytes.len())
            }
        }
    }

    fn receive(&mut self, socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<usize> {
        if let Some(answer) = self.answers.pop_front() {
            buffer.extend(&answer);
            return Ok(answer.len());
        }
        let fails = match self.pending {
            Some(Fault::AnswerLost) => Some(ENOBUFS),
            Some(Fault::Silence) => Some(EAGAIN),
            Some(Fault::Signal) => {
                self.pending = None;
                return Err(io::Error::from_raw_os_error(EINTR));
            }
            _ => None,
        };
        if let Some(errno) = fails {
            self.pending = None;
            while socket.recv(buffer, MSG_DONTWAIT).is_ok() {
                buffer.clear();
            }
            return Err(io::Error::from_raw_os_error(errno));
        }
        let length = socket.recv(buffer, MSG_DONTWAIT)?;
        if self.pending == Some(Fault::ChangedMeanwhile) {
            mark_interrupted(buffer);
        }
        Ok(length)
    }
}

fn kind(bytes: &[u8]) -> Kind {
    if half(bytes, 4) == BATCH_BEGIN {
        Kind::Batch
    } else if half(bytes, 6) & NLM_F_DUMP == NLM_F_DUMP {
        Kind::Dump
    } else {
        Kind::Question
    }
}

/// Where attributes begin whose value is, or starts with, an address: keys of rows.
fn keys(bytes: &[u8], address: [u8; 4]) -> Vec<usize> {
    let is_key = |at: &usize| {
        let header = [half(bytes, *at), half(bytes, at + 2)];
        bytes[at + 4..at + 8] == address && matches!(header, [8 | 16 | 20, 1])
    };
    (0..bytes.len().saturating_sub(8)).step_by(4).filter(is_key).collect()
}

fn mark_interrupted(datagram: &mut [u8]) {
    let mut at = 0;
    while at + HEADER <= datagram.len() {
        let flags = half(datagram, at + 6) | NLM_F_DUMP_INTR;
        datagram[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
        let length = usize::try_from(field(datagram, at)).unwrap();
        at += length.next_multiple_of(4).max(HEADER);
    }
}

fn refusal(seq: u32, errno: i32) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(36_u32.to_ne_bytes());
    message.extend(NLMSG_ERROR.to_ne_bytes());
    message.extend(0x100_u16.to_ne_bytes());
    message.extend(seq.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend((-errno).to_ne_bytes());
    // The header of the refused message.
    message.extend([0; HEADER]);
    message
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn field(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}
