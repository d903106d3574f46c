//! Sets of ipset, read and destroyed by name.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::KernelError;
use super::channel::{Channel, Failure};
use crate::leftovers::Member;
use crate::model::Protocol;
use crate::nft::codec::wire::{
    Attributes, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Writer, be16, find,
};
use crate::nft::codec::write_nfgenmsg;

const NFNL_SUBSYS_IPSET: u16 = 6;
const IPSET_CMD_DESTROY: u16 = 3;
const IPSET_CMD_LIST: u16 = 7;
/// Length of `struct nfgenmsg`, which begins every payload.
const NFGENMSG: usize = 4;
/// `IPSET_ATTR_PROTOCOL`, `IPSET_ATTR_SETNAME`, `IPSET_ATTR_ADT`
const PROTOCOL: u16 = 1;
const SETNAME: u16 = 2;
const MEMBERS: u16 = 8;
/// `IPSET_ATTR_IP`, `IPSET_ATTR_PORT`, `IPSET_ATTR_PROTO`
const IP: u16 = 1;
const PORT: u16 = 4;
const PROTO: u16 = 7;
/// `IPSET_ATTR_IPADDR_IPV4`, `IPSET_ATTR_IPADDR_IPV6`
const IPV4: u16 = 1;
const IPV6: u16 = 2;
/// `IPSET_PROTOCOL_MIN`: every kernel speaks it.
const VERSION: u8 = 6;
const NFPROTO_IPV4: u8 = 2;
/// `NLM_F_EXCL`: without it newer kernels take a set that is not there for a destroyed one.
const NLM_F_EXCL: u16 = 0x200;

const ENOENT: i32 = 2;
const EINVAL: i32 = 22;
/// `IPSET_ERR_BUSY`: a rule refers to the set.
const BUSY: i32 = 4100;

/// nf_tables lets go of deleted rules, and of the sets they refer to, some time after it has acknowledged the deletion.
const ATTEMPTS: usize = 40;
const PAUSE: Duration = Duration::from_millis(50);

/// The sets of the network namespace in which it was made.
pub struct Ipsets {
    channel: Channel,
}

/// What came of an attempt to destroy sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destroyed {
    pub destroyed: Vec<String>,
    /// There are rules that refer to these.
    pub in_use: Vec<String>,
}

impl Ipsets {
    pub fn new() -> Result<Ipsets, KernelError> {
        let channel = Channel::open(NETLINK_NETFILTER)
            .map_err(|error| KernelError::Socket { doing: "opening a netlink socket", error })?;
        Ok(Ipsets { channel })
    }

    /// The addresses and ports in a set; none if there is no such set.
    pub fn members(&mut self, name: &str) -> Result<Vec<Member>, KernelError> {
        let mut members = Vec::new();
        let answer = self.channel.ask(
            |seq| request(IPSET_CMD_LIST, NLM_F_DUMP, name, seq),
            |_, payload| members.extend(read(payload)),
        );
        match answer {
            Ok(()) => Ok(members),
            Err(Failure::Refused(error))
                if matches!(error.raw_os_error(), Some(ENOENT | EINVAL)) =>
            {
                Ok(Vec::new())
            }
            Err(failure) => Err(failure.into_error("reading an ipset")),
        }
    }

    /// Destroys those of the sets that exist.
    pub fn destroy(&mut self, names: Vec<String>) -> Result<Destroyed, KernelError> {
        let mut outcome = Destroyed { destroyed: Vec::new(), in_use: names };
        for _ in 0..ATTEMPTS {
            for name in std::mem::take(&mut outcome.in_use) {
                match self.channel.ask(|seq| destruction(&name, seq), |_, _| ()) {
                    Ok(()) => outcome.destroyed.push(name),
                    Err(Failure::Refused(error)) => match error.raw_os_error() {
                        Some(ENOENT) => (),
                        // Nobody has registered for sets: the kernel has none.
                        Some(EINVAL) => return Ok(outcome),
                        Some(BUSY) => outcome.in_use.push(name),
                        _ => return Err(Failure::Refused(error).into_error("destroying an ipset")),
                    },
                    Err(failure) => return Err(failure.into_error("destroying an ipset")),
                }
            }
            if outcome.in_use.is_empty() {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        Ok(outcome)
    }
}

fn destruction(name: &str, seq: u32) -> Vec<u8> {
    request(IPSET_CMD_DESTROY, NLM_F_ACK | NLM_F_EXCL, name, seq)
}

fn request(command: u16, flags: u16, name: &str, seq: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let kind = NFNL_SUBSYS_IPSET << 8 | command;
    writer.message(kind, NLM_F_REQUEST | flags, seq, |writer| {
        write_nfgenmsg(writer, NFPROTO_IPV4, 0);
        writer.bytes(PROTOCOL, &[VERSION]);
        writer.string(SETNAME, name);
    });
    writer.into_bytes()
}

fn read(payload: &[u8]) -> impl Iterator<Item = Member> {
    let attributes = payload.get(NFGENMSG..).unwrap_or_default();
    let members = find(attributes, MEMBERS).unwrap_or_default();
    Attributes(members).filter_map(|(_, member)| read_member(member))
}

fn read_member(member: &[u8]) -> Option<Member> {
    let protocol = match find(member, PROTO) {
        Some([6]) => Some(Protocol::Tcp),
        Some([17]) => Some(Protocol::Udp),
        Some([132]) => Some(Protocol::Sctp),
        _ => None,
    };
    let port = NonZeroU16::new(be16(find(member, PORT)?)?)?;
    Some(Member { address: find(member, IP).and_then(address), protocol, port })
}

fn address(nested: &[u8]) -> Option<IpAddr> {
    let v4 = find(nested, IPV4).and_then(|it| <[u8; 4]>::try_from(it).ok());
    let v6 = || find(nested, IPV6).and_then(|it| <[u8; 16]>::try_from(it).ok());
    v4.map(IpAddr::from).or_else(|| v6().map(IpAddr::from))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_survived(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read(&payload).count() <= payload.len());
            let _ = read_member(&payload);
        }
    }
}
