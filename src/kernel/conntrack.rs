//! Tracked UDP flows: looked at one by one, deleted where somebody says so.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::KernelError;
use super::channel::{Channel, Failure};
use crate::conntrack::Flow;
use crate::model::Family;

mod codec;

const ENOENT: i32 = 2;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

/// The connection tracking of the network namespace in which it was made.
pub struct Conntrack {
    dumps: Channel,
    /// Deletions while a dump runs need a socket of their own.
    deletions: Channel,
    /// Whether the kernel can leave out other protocols (5.8); older ones ignore or refuse to be asked.
    filters: bool,
}

/// What a look at all flows of a family came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub seen: u64,
    pub deleted: u64,
}

impl Conntrack {
    pub fn new() -> Result<Conntrack, KernelError> {
        let open = || {
            Channel::open(NETLINK_NETFILTER)
                .map_err(|error| KernelError::Socket { doing: "opening a netlink socket", error })
        };
        Ok(Conntrack { dumps: open()?, deletions: open()?, filters: true })
    }

    /// Makes the kernel load connection tracking, with its settings below /proc, if it is a module that nobody needed yet:
    /// being asked is enough.
    pub fn load(&mut self) -> Result<(), KernelError> {
        self.udp_flows(Family::V4, |_| ())
    }

    /// Hands every UDP flow of the family to `take`, as the kernel tells them; no list of them is kept.
    ///
    /// Flows that come and go meanwhile may be left out or come twice.
    pub fn udp_flows(
        &mut self,
        family: Family,
        take: impl FnMut(&Flow),
    ) -> Result<(), KernelError> {
        dump(&mut self.dumps, &mut self.filters, family, take)
    }

    /// Deletes every UDP flow of the family that `is_stale`, while they are read.
    pub fn sweep(
        &mut self,
        family: Family,
        mut is_stale: impl FnMut(&Flow) -> bool,
    ) -> Result<Swept, KernelError> {
        let mut swept = Swept::default();
        let mut failure = None;
        let deletions = &mut self.deletions;
        dump(&mut self.dumps, &mut self.filters, family, |flow| {
            swept.seen += 1;
            if failure.is_some() || !is_stale(flow) {
                return;
            }
            match delete(deletions, flow) {
                Ok(deleted) => swept.deleted += u64::from(deleted),
                Err(error) => failure = Some(error),
            }
        })?;
        failure.map_or(Ok(swept), Err)
    }

    /// Deletes exactly this entry. Returns whether it was there: a later flow with the same addresses stays.
    pub fn delete(&mut self, flow: &Flow) -> Result<bool, KernelError> {
        delete(&mut self.deletions, flow)
    }
}

fn dump(
    channel: &mut Channel,
    filters: &mut bool,
    family: Family,
    mut take: impl FnMut(&Flow),
) -> Result<(), KernelError> {
    let mut ask = |filtered| {
        channel.ask(
            |seq| codec::dump(family, filtered, seq),
            |kind, payload| {
                if let Some(flow) = codec::read_udp(kind, payload) {
                    take(&flow);
                }
            },
        )
    };
    let mut answer = ask(*filters);
    if *filters && answer.as_ref().is_err_and(cannot_filter) {
        // The protocol is looked at in any case; without the filter there is just more to look at.
        *filters = false;
        answer = ask(false);
    }
    answer.map_err(|failure| failure.into_error("reading tracked flows"))
}

/// Takes any message.
#[cfg(any(test, fuzzing))]
pub(super) fn read_any(kind: u16, payload: &[u8]) {
    let _ = codec::read_udp(kind, payload);
}

fn cannot_filter(failure: &Failure) -> bool {
    let Failure::Refused(error) = failure else { return false };
    matches!(error.raw_os_error(), Some(EINVAL | EOPNOTSUPP))
}

fn delete(channel: &mut Channel, flow: &Flow) -> Result<bool, KernelError> {
    match channel.ask(|seq| codec::delete(flow, seq), |_, _| ()) {
        Ok(()) => Ok(true),
        Err(Failure::Refused(error)) if is_absent(&error) => Ok(false),
        Err(failure) => Err(failure.into_error("deleting a tracked flow")),
    }
}

fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(ENOENT)
}
