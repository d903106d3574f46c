//! The only room with sockets to the kernel: it carries out what others decided.
//!
//! In come [`Batch`]es, out come acknowledgements and what the kernel holds. It chooses nothing.

pub mod address;
pub mod channel;
pub mod conntrack;
mod ipset;
pub mod ipvs;
pub mod legacy;
pub mod lock;
pub mod memory;
pub mod netlink;
pub mod others;
#[cfg(any(test, fuzzing))]
pub mod outside;

use std::collections::BTreeMap;

use crate::ipvs::schema::{
    Batch as ServerBatch, Connections, Destination, Observed, ObservedDestinations, ObservedServer,
    Outline, Scheduler, ServerKey,
};
use crate::model::Family;
use crate::nft::schema::{Batch, ObservedTable, Owner, TABLE};
use crate::nft::shape::TableShape;
use crate::nft::skeleton::Program;

pub use address::Addresses;
pub use conntrack::{Conntrack, Swept};
pub use ipset::{Destroyed, Ipsets};
pub use ipvs::NetlinkIpvs;
pub use legacy::LegacyTables;
pub use netlink::NetlinkKernel;
pub use others::OtherTables;

/// What the sync loop asks of a kernel. Two real implementations: netlink, and memory for tests.
pub trait Kernel {
    /// Reads our tables. A family without a table is absent from the map.
    fn observe(
        &mut self,
        program: &Program,
    ) -> Result<BTreeMap<Family, ObservedTable>, KernelError>;

    /// Reads our tables but for rules and rows: what it costs does not grow with the number of Services.
    fn survey(&mut self, program: &Program) -> Result<BTreeMap<Family, TableShape>, KernelError>;

    /// Carries out the batch: all of it or nothing.
    fn commit(&mut self, batch: &Batch) -> Result<(), KernelError>;

    /// Whether somebody else has changed some table, perhaps one of ours, since the last look, commit or question. Cheap:
    /// it lists nothing.
    fn changed_by_others(&mut self) -> Result<bool, KernelError>;

    /// Lets the kernel check the batch and throws it away.
    fn validate(&mut self, batch: &Batch) -> Result<(), KernelError>;
}

/// What the sync loop asks of IPVS. Two real implementations: netlink, and memory for tests.
pub trait Ipvs {
    /// Makes the host ready (reference 6.1): modules, schedulers, sysctls, timeouts, the interface.
    fn prepare(&mut self, settings: &IpvsSettings) -> Result<(), IpvsError>;

    /// Reads the interface and the virtual servers on its addresses. An absent interface, or a kernel without IPVS, is an
    /// empty answer.
    fn observe(&mut self) -> Result<Observed, IpvsError> {
        let Outline { interface, servers } = self.outline()?;
        let keys: Vec<ServerKey> = servers.keys().copied().collect();
        let mut destinations = self.destinations(&keys)?;
        let whole = |(key, server)| {
            let destinations = destinations.remove(&key).unwrap_or_default();
            (key, ObservedServer { server, destinations })
        };
        Ok(Observed { interface, servers: servers.into_iter().map(whole).collect() })
    }

    /// As [`Ipvs::observe`], but for destinations, which take most of the time.
    fn outline(&mut self) -> Result<Outline, IpvsError>;

    /// The destinations of these virtual servers. One that is gone has none.
    fn destinations(
        &mut self,
        servers: &[ServerKey],
    ) -> Result<BTreeMap<ServerKey, ObservedDestinations>, IpvsError>;

    /// Carries out one operation after the other; the answer names those that were refused, all others are done.
    fn commit(&mut self, batch: &ServerBatch) -> Result<Vec<Refused>, IpvsError>;

    /// The connections of these virtual servers' destinations. A virtual server that is gone has none.
    fn connections(
        &mut self,
        servers: &[ServerKey],
    ) -> Result<Vec<ObservedConnections>, IpvsError> {
        let all = self.destinations(servers)?;
        let of = |(key, destinations): (ServerKey, ObservedDestinations)| {
            destinations.into_iter().map(move |(it, observed)| (key, it, observed.connections))
        };
        Ok(all.into_iter().flat_map(of).collect())
    }

    /// Deletes the interface with all its addresses, if it is ours and empty.
    fn remove_interface(&mut self) -> Result<(), IpvsError>;
}

/// The answer to [`Ipvs::connections`] for one destination.
pub type ObservedConnections = (ServerKey, Destination, Connections);

/// An operation that IPVS or the interface refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Position in the batch.
    pub op: usize,
    /// Positive errno.
    pub errno: i32,
}

/// What the user decides about the host in IPVS mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpvsSettings {
    /// `--ipvs-scheduler`: must exist, or the start fails.
    pub scheduler: Scheduler,
    /// `--ipvs-strict-arp`
    pub strict_arp: bool,
    /// `--ipvs-exclude-cidrs`
    pub exclude_cidrs: Vec<ipnet::IpNet>,
    /// Seconds; 0 keeps what the kernel has.
    pub tcp_timeout: u32,
    pub tcpfin_timeout: u32,
    pub udp_timeout: u32,
}

/// Why IPVS did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum IpvsError {
    /// Nothing can be programmed; the text says what to do.
    #[error("{0}")]
    Unsupported(String),
    /// Not known what was carried out: look again.
    #[error("{doing}: {why}")]
    Failed { doing: &'static str, why: String },
}

/// Why the kernel did not do what was asked. A message tells its cause itself, so there are no sources behind it.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel refused operations of the batch; nothing of it was carried out.
    #[error("the kernel refused {} operation(s), the first: {}", .0.len(), .0.first().map_or_else(String::new, |it| it.to_string()))]
    Rejected(Vec<Rejection>),
    /// Not known whether it was carried out (ENOBUFS, a lost acknowledgement): look again.
    #[error("it is unknown whether the kernel took the batch ({0}); the tables will be read again")]
    Unknown(String),
    /// Someone else changed tables at the same moment (ERESTART, EINTR): try again.
    #[error("another change to nf_tables came between ({0}); it will be tried again")]
    Interrupted(String),
    #[error("{doing}: {error}{}", hint(.error))]
    Socket { doing: &'static str, error: std::io::Error },
    /// There is nothing to program.
    #[error(
        "this kernel has no nf_tables: load the module nf_tables, or use a kernel with CONFIG_NF_TABLES, \
         CONFIG_NF_TABLES_IPV4 and CONFIG_NF_TABLES_IPV6 ({0})"
    )]
    Unsupported(std::io::Error),
    /// The kernel lets us not change a table, whatever we may do otherwise.
    #[error(
        "the table {} {TABLE} belongs to another program, whose netlink port is {port} (as a rule its process id): \
         only that one can change it until it ends", crate::nft::render::family_word(*family)
    )]
    Owned { family: Family, port: u32 },
    /// There was no room for the batch (ENOMEM, ENOBUFS, EMSGSIZE): nothing was carried out. A smaller one may fit.
    #[error("{doing}: {error}; it will be tried again in smaller batches")]
    NoRoom { doing: &'static str, error: std::io::Error },
    /// Answers were lost; what was asked is not known, and nothing was changed.
    #[error("answers of the kernel were lost ({0}); it will be asked again")]
    Unread(String),
    /// The kernel's answer made no sense.
    #[error("{doing}: the kernel's answer could not be read: {why}")]
    Protocol { doing: &'static str, why: String },
}

/// One refused operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Position in [`Batch`], when the kernel told it.
    pub op: Option<usize>,
    pub owner: Option<Owner>,
    /// Positive errno.
    pub errno: i32,
    /// The operation as a person would write it.
    pub what: String,
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, std::io::Error::from_raw_os_error(self.errno))
    }
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(1) => {
            " (give the process CAP_NET_ADMIN in this network namespace; if it has that, another program owns the table)"
        }
        Some(93) | Some(97) => " (this kernel has no nfnetlink: CONFIG_NETFILTER_NETLINK)",
        _ => "",
    }
}
