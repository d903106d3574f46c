//! Tables that the kernel lets nobody but us change.
//!
//! A table with the flags owner and persist (Linux 6.9) belongs to the socket that made it: changes by others fail with
//! EPERM, and `nft flush ruleset` leaves it out. When the socket is closed, however that comes, the table stays as it
//! is and belongs to nobody, until a socket takes it over. The flags are given at birth: a table without them cannot
//! get them, one with them cannot lose them.

use std::io;

use super::{EINVAL, EOPNOTSUPP, EPERM, NetlinkKernel};
use crate::kernel::KernelError;
use crate::model::Family;
use crate::nft::codec::query::TableOwner;
use crate::nft::codec::{Ownership, probe_ownership};
use crate::nft::schema::{Batch, Op};

impl NetlinkKernel {
    /// From now on tables are made as this kernel's own, and those that belong to nobody are taken over when they are
    /// observed. Returns whether the kernel knows of such tables; if not, nothing changes.
    ///
    /// Ownership ends with this value.
    pub fn own_tables(&mut self) -> Result<bool, KernelError> {
        const DOING: &str = "asking whether tables can be owned";
        self.channel.drain().map_err(|failure| failure.into_error(DOING))?;
        let seq = self.channel.next_seq();
        self.channel.set_next_seq(seq.wrapping_add(2));
        // A name that nobody else uses, although the table never comes to be.
        let name = format!("kube-ferry-probe-{}", self.channel.port());
        let failed = |error| KernelError::Socket { doing: DOING, error };
        self.channel.send(&probe_ownership(&name, seq)).map_err(failed)?;
        let answers = self.channel.errors().map_err(|failure| failure.into_error(DOING))?;
        let answer = answers.iter().find(|it| it.seq == seq || it.seq == seq.wrapping_add(1));
        match answer.map(|it| it.errno) {
            Some(0) => {
                self.ownership = Ownership::Socket;
                Ok(true)
            }
            // Before 5.12 unknown flags are EINVAL.
            Some(EOPNOTSUPP | EINVAL) => Ok(false),
            Some(errno) => Err(failed(io::Error::from_raw_os_error(errno))),
            None => Err(KernelError::Unread("the probe was not answered".to_owned())),
        }
    }

    /// Takes over tables that belong to nobody, and makes sure that no table belongs to somebody else. Returns families
    /// whose table cannot be owned as it is.
    pub(super) fn claim_tables(&mut self) -> Result<Vec<Family>, KernelError> {
        self.owned.clear();
        let mut unownable = Vec::new();
        if self.ownership == Ownership::Shared {
            return Ok(unownable);
        }
        for family in Family::ALL {
            let Some(head) = self.look_at_table(family)? else { continue };
            let ours = match head.owner {
                TableOwner::Port(port) if port == self.channel.port() => true,
                TableOwner::Port(port) => return Err(KernelError::Owned { family, port }),
                TableOwner::Gone => self.take_over(family)?,
                TableOwner::Nobody => false,
            };
            if ours {
                self.owned.insert(family);
            } else {
                unownable.push(family);
            }
        }
        Ok(unownable)
    }

    /// `false`: this kernel cannot.
    fn take_over(&mut self, family: Family) -> Result<bool, KernelError> {
        match self.commit_once(&Batch(vec![Op::AddTable(family)])) {
            Ok(()) => Ok(true),
            Err(KernelError::Rejected(told)) if told.iter().any(|it| it.errno == EOPNOTSUPP) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether all tables that we own are still ours. Then whatever others have changed is not in them.
    pub(super) fn still_owns_all(&mut self) -> Result<bool, KernelError> {
        if self.owned.is_empty() {
            return Ok(false);
        }
        let ours = TableOwner::Port(self.channel.port());
        for family in self.owned.clone() {
            if self.look_at_table(family)?.is_none_or(|it| it.owner != ours || it.dormant) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A batch was carried out.
    pub(super) fn remember_owned(&mut self, batch: &Batch) {
        for op in &batch.0 {
            match op {
                Op::AddTable(family) if self.ownership == Ownership::Socket => {
                    self.owned.insert(*family);
                }
                Op::DeleteTable(family) => {
                    self.owned.remove(family);
                }
                Op::AddTable(_)
                | Op::AddSet { .. }
                | Op::ResizeSet { .. }
                | Op::AddChain { .. }
                | Op::FlushChain { .. }
                | Op::DeleteChain { .. }
                | Op::AddRule { .. }
                | Op::AddElement { .. }
                | Op::DeleteElement { .. } => (),
            }
        }
    }
}

/// What a refusal for lack of permission means.
pub(super) fn not_permitted(doing: &'static str) -> KernelError {
    KernelError::Socket { doing, error: io::Error::from_raw_os_error(EPERM) }
}
