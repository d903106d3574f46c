//! The vocabulary: virtual servers, destinations, and what can be done to them. Names are those of ipvsadm(8) and of
//! `linux/ip_vs.h`; a *destination* is what ipvsadm calls a real server.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

pub use crate::model::Scheduler;
use crate::model::{Family, Protocol};
use crate::nft::schema::Owner;

/// The dummy interface that holds the addresses of virtual servers (reference 6.3).
pub const INTERFACE: &str = "kube-ipvs0";

/// What identifies a virtual server. Those with a firewall mark are not ours and have no place here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerKey {
    pub protocol: Protocol,
    pub address: IpAddr,
    pub port: NonZeroU16,
}

impl ServerKey {
    pub fn family(&self) -> Family {
        Family::of(self.address)
    }
}

/// As ipvsadm writes it: `-t 10.96.0.10:80`, `-u [fd00::a]:53`, `--sctp-service ...`.
impl fmt::Display for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let option = match self.protocol {
            Protocol::Tcp => "-t",
            Protocol::Udp => "-u",
            Protocol::Sctp => "--sctp-service",
        };
        write!(f, "{option} {}", std::net::SocketAddr::new(self.address, self.port.get()))
    }
}

/// A virtual server but for what identifies it. Netmask /32 or /128, without exception.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtualServer {
    pub scheduler: Scheduler,
    /// Session affinity: seconds. Sets IP_VS_SVC_F_PERSISTENT.
    pub persistence: Option<u32>,
    /// IP_VS_SVC_F_SCHED1..3 (0x08, 0x10, 0x20), e.g. `mh-port`; everything else of the kernel's flags is not ours.
    pub scheduler_flags: u32,
}

/// Where a virtual server sends connections. Forwarding is always masquerading (IP_VS_CONN_F_MASQ, what nft calls DNAT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    pub address: IpAddr,
    pub port: NonZeroU16,
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::net::SocketAddr::new(self.address, self.port.get()))
    }
}

/// One thing to do. IPVS has no transactions: each is carried out or refused on its own, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// On [`INTERFACE`], /32 or /128. An address that is there already is no error.
    BindAddress(IpAddr),
    /// An address that is not there is no error.
    UnbindAddress(IpAddr),
    /// One that is there already is refused (EEXIST): it may be somebody else's. Then nothing of the batch that was to
    /// happen to it happens, and its address is not bound, which would make it ours.
    AddServer(ServerKey, VirtualServer),
    /// Keeps its connections. With another scheduler the kernel takes the old one away, waits for a grace period of RCU, some
    /// ten milliseconds, and only then sets the new one (`ip_vs_edit_service` in ip_vs_ctl.c): new connections are refused
    /// meanwhile. That cannot be avoided in place, and to delete the virtual server would end the old connections as well.
    /// A scheduler that is missing changes nothing: it is looked up first.
    SetServer(ServerKey, VirtualServer),
    /// Its destinations go with it. One that is not there is no error.
    DeleteServer(ServerKey),
    /// Weight 0: no new connections. One that is there already is altered.
    AddDestination(ServerKey, Destination, u32),
    /// A new weight; keeps its connections.
    SetDestination(ServerKey, Destination, u32),
    /// One that is not there is no error.
    DeleteDestination(ServerKey, Destination),
}

/// In order. What is refused does not keep the kernel port from trying what follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch(pub Vec<(Option<Owner>, Op)>);

/// What the kernel has, on [`INTERFACE`] and in IPVS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// `None`: there is no such interface, then there is nothing else either.
    pub interface: Option<ObservedInterface>,
    /// Virtual servers at addresses of the interface, but for those inside `excludeCIDRs`. All others are somebody
    /// else's and not even reported.
    pub servers: BTreeMap<ServerKey, ObservedServer>,
}

/// As [`Observed`], without destinations: the kernel lists those one virtual server at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    pub interface: Option<ObservedInterface>,
    pub servers: BTreeMap<ServerKey, VirtualServer>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedInterface {
    /// It has our alias (IFLA_IFALIAS); otherwise kube-proxy, or somebody else, made it.
    pub ours: bool,
    pub addresses: BTreeSet<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedServer {
    pub server: VirtualServer,
    pub destinations: ObservedDestinations,
}

/// The destinations of one virtual server.
pub type ObservedDestinations = BTreeMap<Destination, ObservedDestination>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObservedDestination {
    pub weight: u32,
    /// The forwarding method is masquerading. Others cannot be altered in place.
    pub masquerades: bool,
    pub connections: Connections,
}

/// How many connections a destination has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    pub active: u32,
    pub inactive: u32,
    /// Persistence templates.
    pub persistent: u32,
}
