//! Sets of ipset, destroyed by name.

use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::KernelError;
use super::channel::{Channel, Failure};
use crate::nft::codec::wire::{NLM_F_ACK, NLM_F_REQUEST, Writer};
use crate::nft::codec::write_nfgenmsg;

const NFNL_SUBSYS_IPSET: u16 = 6;
const IPSET_CMD_DESTROY: u16 = 3;
/// `IPSET_ATTR_PROTOCOL`, `IPSET_ATTR_SETNAME`
const PROTOCOL: u16 = 1;
const SETNAME: u16 = 2;
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

    /// Destroys those of the sets that exist.
    pub fn destroy(&mut self, names: Vec<String>) -> Result<Destroyed, KernelError> {
        let mut outcome = Destroyed { destroyed: Vec::new(), in_use: names };
        for _ in 0..ATTEMPTS {
            for name in std::mem::take(&mut outcome.in_use) {
                match self.channel.ask(|seq| request(&name, seq), |_, _| ()) {
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

fn request(name: &str, seq: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let kind = NFNL_SUBSYS_IPSET << 8 | IPSET_CMD_DESTROY;
    writer.message(kind, NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL, seq, |writer| {
        write_nfgenmsg(writer, NFPROTO_IPV4, 0);
        writer.bytes(PROTOCOL, &[VERSION]);
        writer.string(SETNAME, name);
    });
    writer.into_bytes()
}
