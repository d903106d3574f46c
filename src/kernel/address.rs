//! The host's own addresses: read now, and told when they change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::net::netdevice::index_to_name_inlined;

use super::KernelError;
use super::channel::{Channel, Failure, Link};
use crate::ipvs::codec::link;
use crate::ipvs::schema::INTERFACE;
use crate::nft::codec::wire::{NLM_F_DUMP, NLM_F_REQUEST, Writer, find, ne32};

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

/// `RTNLGRP_IPV4_IFADDR` and `RTNLGRP_IPV6_IFADDR`
const GROUPS: [u32; 2] = [5, 9];

/// Length of `struct ifaddrmsg`; the family is its first byte.
const IFADDRMSG: usize = 8;

/// `AF_INET` and `AF_INET6`, one after the other: a question about all families at once waits for the lock under which
/// interfaces of all namespaces are made and removed, those about one do not (Linux 6.10).
const FAMILIES: [u8; 2] = [2, 10];

/// The peer's address where there is a peer, else the interface's own.
const IFA_ADDRESS: u16 = 1;
/// The interface's own address.
const IFA_LOCAL: u16 = 2;

/// Rest after so many failures in a row to read a list that keeps changing.
const PAUSE: Duration = Duration::from_millis(50);

/// That many pauses at the start: ten seconds.
const START_ATTEMPTS: usize = 200;

/// How often the list is read anew when it changes while it is read.
const READ_ATTEMPTS: usize = 5;

const ENODEV: i32 = 19;

/// The addresses of all interfaces of the network namespace in which it was made, but for those of [`INTERFACE`]: they
/// are Services', whoever of us or kube-proxy has put them there, and may be ten thousands.
///
/// A notification only says that something has changed; the whole list, which is short, is read again then. So
/// nothing can be missed or be taken into account twice, and notifications that were lost do no harm.
pub struct Addresses {
    /// Hears that something has changed.
    events: Channel,
    questions: Channel,
    /// The number of [`INTERFACE`] when the list was read.
    left_out: Option<u32>,
    current: BTreeSet<IpAddr>,
    /// A notification has come, and the list could not be read since.
    outdated: bool,
}

impl Addresses {
    /// Subscribes, then reads.
    pub fn new() -> Result<Addresses, KernelError> {
        let open = || Channel::open(NETLINK_ROUTE);
        let socket = |error| KernelError::Socket { doing: "opening a netlink socket", error };
        let mut events = open().map_err(socket)?;
        for group in GROUPS {
            events.subscribe(group).map_err(|error| KernelError::Socket {
                doing: "subscribing to changes of addresses",
                error,
            })?;
        }
        let questions = open().map_err(socket)?;
        let current = BTreeSet::new();
        let mut addresses =
            Addresses { events, questions, left_out: None, current, outdated: true };
        // Interfaces come and go fast while a node starts.
        for _ in 0..START_ATTEMPTS {
            if !addresses.refresh_in_peace()? {
                break;
            }
        }
        if addresses.outdated { Err(restless()) } else { Ok(addresses) }
    }

    /// Puts something between us and the kernel's notifications, which makes faults.
    pub fn through(mut self, link: impl Link + 'static) -> Addresses {
        self.events.set_link(Box::new(link));
        self
    }

    /// All addresses, loopback included, as they were last read.
    pub fn current(&self) -> &BTreeSet<IpAddr> {
        &self.current
    }

    /// Reads the addresses again if there was a notification. Returns whether they are others now; never waits.
    pub fn refresh(&mut self) -> Result<bool, KernelError> {
        let left_out = self.left_out;
        let counts = |_, payload: &[u8]| left_out.is_none() || interface(payload) != left_out;
        let notified = self
            .events
            .drain_and_look(counts)
            .map_err(|failure| failure.into_error("hearing of addresses"))?;
        self.outdated |= notified;
        if !self.outdated {
            return Ok(false);
        }
        let now = self.read()?;
        self.outdated = false;
        let changed = now != self.current;
        self.current = now;
        Ok(changed)
    }

    /// As [`Addresses::refresh`], but addresses that change faster than they can be read are no error: they are left as
    /// they were for a moment. Returns whether they are to be looked at again at once.
    fn refresh_in_peace(&mut self) -> Result<bool, KernelError> {
        match self.refresh() {
            Ok(_) => Ok(false),
            Err(KernelError::Interrupted(_) | KernelError::Unread(_)) => {
                std::thread::sleep(PAUSE);
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until the addresses are others, and returns them.
    pub fn changed(&mut self) -> Result<&BTreeSet<IpAddr>, KernelError> {
        let before = self.current.clone();
        loop {
            let again = self.refresh_in_peace()?;
            if self.current != before {
                return Ok(&self.current);
            }
            if !again {
                self.wait()?;
            }
        }
    }

    /// Waits until [`Addresses::refresh`] may have something to do.
    pub fn wait(&mut self) -> Result<(), KernelError> {
        self.events.wait().map_err(|failure| failure.into_error("waiting for addresses"))
    }

    fn read(&mut self) -> Result<BTreeSet<IpAddr>, KernelError> {
        let Addresses { events, questions, left_out, .. } = self;
        *left_out = None;
        let mut seen: BTreeMap<u32, bool> = BTreeMap::new();
        let wanted = |index| {
            *seen.entry(index).or_insert_with(|| {
                let services = is_for_services(&*events, index);
                *left_out = left_out.or(services.then_some(index));
                !services
            })
        };
        read_all(questions, wanted).map_err(|failure| failure.into_error("reading addresses"))
    }
}

fn restless() -> KernelError {
    KernelError::Interrupted("reading addresses, for ten seconds".to_owned())
}

/// Whether the interface of this number is [`INTERFACE`]; one that has gone meanwhile is not.
///
/// Asked for by number, which waits for no lock. A netlink question about an interface waits for the lock under which
/// interfaces of all namespaces are made and removed (Linux 6.12, not 7.2), long where many containers end at once;
/// an `ioctl` about a name that does not exist has the kernel run modprobe.
fn is_for_services(socket: impl AsFd, index: u32) -> bool {
    index_to_name_inlined(socket, index).is_ok_and(|name| name.as_str() == INTERFACE)
}

/// What the interface with the addresses of Services is, if it exists.
pub(super) fn find_link(channel: &mut Channel) -> Result<Option<link::Link>, Failure> {
    let mut found = None;
    let answer = channel
        .ask(|seq| link::get(INTERFACE, seq), |kind, payload| found = link::read(kind, payload));
    match answer {
        Ok(()) if found.is_none() => Err(Failure::Lost("there is no interface in it".to_owned())),
        Ok(()) => Ok(found),
        Err(Failure::Refused(error)) if error.raw_os_error() == Some(ENODEV) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// The addresses of all interfaces whose number is wanted.
pub(super) fn read_all(
    channel: &mut Channel,
    mut wanted: impl FnMut(u32) -> bool,
) -> Result<BTreeSet<IpAddr>, Failure> {
    let mut attempts = 1..READ_ATTEMPTS;
    loop {
        let mut all = BTreeSet::new();
        let answer = FAMILIES.iter().try_for_each(|family| {
            channel.ask(
                |seq| request(*family, seq),
                |kind, payload| {
                    let read = (kind == RTM_NEWADDR).then(|| decode(payload)).flatten();
                    all.extend(
                        read.filter(|(index, _)| wanted(*index)).map(|(_, address)| address),
                    );
                },
            )
        });
        match answer {
            Err(Failure::Interrupted | Failure::Aborted) if attempts.next().is_some() => (),
            answer => return answer.map(|()| all),
        }
    }
}

/// Readable when [`Addresses::refresh`] has something to do.
impl AsFd for Addresses {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

fn request(family: u8, seq: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.message(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, seq, |writer| {
        writer.raw(&[family, 0, 0, 0, 0, 0, 0, 0]);
    });
    writer.into_bytes()
}

/// The number of the interface that an `RTM_NEWADDR` or `RTM_DELADDR` is about.
fn interface(payload: &[u8]) -> Option<u32> {
    payload.get(4..IFADDRMSG).and_then(ne32)
}

/// The interface and its own address in an `RTM_NEWADDR`.
pub(super) fn decode(payload: &[u8]) -> Option<(u32, IpAddr)> {
    let attributes = payload.get(IFADDRMSG..)?;
    let address = find(attributes, IFA_LOCAL).or_else(|| find(attributes, IFA_ADDRESS))?;
    let address = <[u8; 4]>::try_from(address)
        .map(|it| IpAddr::V4(Ipv4Addr::from(it)))
        .or_else(|_| <[u8; 16]>::try_from(address).map(|it| IpAddr::V6(Ipv6Addr::from(it))))
        .ok()?;
    Some((interface(payload)?, address))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_own_end_of_a_pair_counts() {
        let mut writer = Writer::default();
        writer.raw(&[2, 32, 0, 0]);
        writer.raw(&7u32.to_ne_bytes());
        writer.bytes(IFA_ADDRESS, &[192, 0, 2, 1]);
        writer.bytes(IFA_LOCAL, &[192, 0, 2, 2]);
        assert_eq!(decode(&writer.into_bytes()), Some((7, IpAddr::from([192, 0, 2, 2]))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_address_or_none(payload in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&payload);
        }
    }
}
