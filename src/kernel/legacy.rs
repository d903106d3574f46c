//! Tables of iptables-legacy: looked at, and rid of what is said to go.
//!
//! The kernel's interface knows whole tables only: one is read, written anew without some of its entries, and put in the
//! place of the old one, at once for all packets.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::KernelError;
use crate::leftovers::{Chains, Removal};
use crate::model::Family;

mod request;
mod sockopt;
mod table;

/// How often a table is looked at anew when others change it meanwhile.
const ATTEMPTS: usize = 5;

/// Held by iptables-legacy while it reads and writes. Where the host's file is not to be seen, a change by others is still
/// found out if the number of entries is another one then.
const LOCK: &str = "/run/xtables.lock";
const LOCK_ATTEMPTS: usize = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

const EAGAIN: i32 = 11;

/// The tables of one family of the network namespace in which it was made.
pub struct LegacyTables {
    family: Family,
    socket: OwnedFd,
}

impl LegacyTables {
    /// The names of the tables that iptables-legacy has made. To ask for another one would make it.
    pub fn names(family: Family) -> Result<Vec<String>, KernelError> {
        let path = match family {
            Family::V4 => "/proc/thread-self/net/ip_tables_names",
            Family::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        match std::fs::read_to_string(path) {
            Ok(names) => Ok(names.lines().map(str::to_owned).collect()),
            // The kernel has no iptables-legacy, or has not loaded it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => {
                Err(KernelError::Socket { doing: "listing the tables of iptables-legacy", error })
            }
        }
    }

    pub fn new(family: Family) -> Result<LegacyTables, KernelError> {
        let any = match family {
            Family::V4 => "0.0.0.0:0",
            Family::V6 => "[::]:0",
        };
        let socket = UdpSocket::bind(any).map_err(|error| KernelError::Socket {
            doing: "opening a socket for iptables-legacy",
            error,
        })?;
        Ok(LegacyTables { family, socket: socket.into() })
    }

    /// Takes out of a table what `choose` says, all of it or nothing. Counters of what stays go on.
    pub fn remove(
        &self,
        table: &str,
        choose: impl Fn(&Chains) -> Removal,
    ) -> Result<Removal, KernelError> {
        let _lock = lock()?;
        for _ in 0..ATTEMPTS {
            let result = self.remove_once(table, &choose);
            let changed = matches!(&result, Err(KernelError::Socket { error, .. })
                if error.raw_os_error() == Some(EAGAIN));
            if !changed {
                return result;
            }
        }
        Err(KernelError::Interrupted(format!("{ATTEMPTS} times")))
    }

    /// The chains and rules of a table that there is.
    pub fn chains(&self, table: &str) -> Result<Chains, KernelError> {
        Ok(self.read(table)?.1.chains())
    }

    fn remove_once(
        &self,
        table: &str,
        choose: &impl Fn(&Chains) -> Removal,
    ) -> Result<Removal, KernelError> {
        let (info, parsed) = self.read(table)?;
        let removal = choose(&parsed.chains());
        if !removal.is_empty() {
            self.replace(table, &info, &parsed.without(&removal))?;
        }
        Ok(removal)
    }

    fn read(&self, table: &str) -> Result<(request::Info, table::Table), KernelError> {
        const READING: &str = "reading a table of iptables-legacy";
        let read = |error| KernelError::Socket { doing: READING, error };
        let mut info = request::info_request(table);
        sockopt::info(&self.socket, self.family, &mut info).map_err(read)?;
        let info =
            request::Info::read(&info).ok_or_else(|| protocol(READING, "it is too short"))?;
        let mut entries = request::entries_request(table, &info);
        sockopt::entries(&self.socket, self.family, &mut entries).map_err(read)?;
        let entries = entries.split_off(request::ENTRIES);
        let parsed = table::Table::parse(self.family, &info, entries)
            .map_err(|why| protocol(READING, why))?;
        Ok((info, parsed))
    }

    fn replace(
        &self,
        table: &str,
        old: &request::Info,
        new: &request::Rewritten,
    ) -> Result<(), KernelError> {
        let mut counters = vec![0; old.counters_length()];
        sockopt::replace(&self.socket, self.family, &mut new.request(table, old), &mut counters)
            .map_err(|error| KernelError::Socket {
                doing: "changing a table of iptables-legacy",
                error,
            })?;
        sockopt::add_counters(&self.socket, self.family, &new.counters(table, &counters)).map_err(
            |error| KernelError::Socket {
                doing: "setting the counters of iptables-legacy, which begin at zero now",
                error,
            },
        )
    }
}

fn protocol(doing: &'static str, why: &str) -> KernelError {
    KernelError::Protocol { doing, why: why.to_owned() }
}

/// Keeps iptables-legacy from writing at the same time; `None` where the lock cannot be made.
fn lock() -> Result<Option<File>, KernelError> {
    // A read-only root filesystem, or no /run: then this process is in a container and does not see the host's file.
    let Ok(file) = File::options().create(true).append(true).open(LOCK) else { return Ok(None) };
    for _ in 0..LOCK_ATTEMPTS {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(error) => {
                return Err(KernelError::Socket {
                    doing: "locking /run/xtables.lock",
                    error: error.into(),
                });
            }
        }
    }
    Err(KernelError::Interrupted(format!("somebody holds {LOCK}")))
}

/// Takes any bytes for the description of a table, 84 of them, and its entries; removes every other chain and rule, and looks
/// at what stays.
#[cfg(any(test, fuzzing))]
pub(super) fn read_any(bytes: &[u8]) {
    const DESCRIPTION: usize = 84;
    let Some(info) = request::Info::read(bytes) else { return };
    let entries = bytes.get(DESCRIPTION..).unwrap_or_default();
    for family in Family::ALL {
        let Ok(table) = table::Table::parse(family, &info, entries.to_vec()) else { continue };
        let found = table.chains();
        let rules = found.rules.iter().step_by(2).map(|it| (it.chain.clone(), it.handle));
        let chains = found.chains.iter().filter(|(_, built_in)| !**built_in).step_by(2);
        let removal = Removal {
            rules: rules.collect(),
            chains: chains.map(|(name, _)| name.clone()).collect(),
            ..Removal::default()
        };
        for removal in [removal, Removal::default()] {
            let new = table.without(&removal);
            let _ = new.request("nat", &info);
            let _ = new.counters("nat", &[]);
            assert!(new.bytes.len() <= entries.len() && new.kept.len() <= info.count);
            // What stays is a table again.
            assert!(table::Table::parse(family, &new.info, new.bytes).is_ok());
        }
    }
}
