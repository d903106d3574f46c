//! IPVS through generic netlink, and its interface through rtnetlink.
//!
//! Nothing is remembered that somebody else could change: the number of IPVS and that of the interface are asked for each
//! time, which costs two system calls.

mod commit;
mod interface;
mod leftovers;
mod prepare;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};

use super::channel::{Channel, Failure, Link};
use super::{Ipvs, IpvsError, IpvsSettings, Refused, address};
use crate::ipvs::codec::{generic, server};
use crate::ipvs::schema::{
    Batch, ObservedDestinations, ObservedInterface, Op, Outline, Scheduler, ServerKey,
    VirtualServer,
};

pub use leftovers::Leftovers;

/// What the interface is named as ours by (IFLA_IFALIAS).
pub const ALIAS: &str = "kube-ferry";

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EOPNOTSUPP: i32 = 95;
const EAFNOSUPPORT: i32 = 97;

/// IPVS and the interface of the network namespace in which it was made.
pub struct NetlinkIpvs {
    generic: Channel,
    route: Channel,
    exclude_cidrs: Vec<IpNet>,
    /// Schedulers that the kernel is known to have. It loads their modules itself, one program run for each attempt, so
    /// a missing one is asked for once per commit and not once per virtual server.
    schedulers: BTreeSet<Scheduler>,
}

impl NetlinkIpvs {
    /// Opens sockets, no more; a kernel without IPVS is found out later. What is inside `exclude_cidrs` is somebody
    /// else's.
    pub fn new(exclude_cidrs: Vec<IpNet>) -> Result<NetlinkIpvs, IpvsError> {
        let open = |protocol| {
            let failed = |error: std::io::Error| IpvsError::Failed {
                doing: "opening a netlink socket",
                why: error.to_string(),
            };
            Channel::open(protocol).map_err(failed)
        };
        let (generic, route) = (open(NETLINK_GENERIC)?, open(NETLINK_ROUTE)?);
        Ok(NetlinkIpvs { generic, route, exclude_cidrs, schedulers: BTreeSet::new() })
    }

    /// Puts something between us and IPVS, and between us and the interface, which makes faults.
    pub fn through(
        mut self,
        generic: impl Link + 'static,
        route: impl Link + 'static,
    ) -> NetlinkIpvs {
        self.generic.set_link(Box::new(generic));
        self.route.set_link(Box::new(route));
        self
    }

    /// Whether somebody else has the address, whatever it is used for.
    fn is_excluded(&self, address: IpAddr) -> bool {
        self.exclude_cidrs.iter().any(|it| it.contains(&address))
    }

    /// The number of IPVS; `None` if the kernel has none. Loads the module.
    fn load(&mut self) -> Result<Option<u16>, IpvsError> {
        let mut family = None;
        let answer = self.generic.ask(generic::family, |_, payload| {
            family = generic::read_family(payload);
        });
        match answer {
            Ok(()) => Ok(family),
            Err(Failure::Refused(error)) if error.raw_os_error() == Some(ENOENT) => Ok(None),
            Err(failure) => Err(failed("asking for the number of IPVS", failure)),
        }
    }

    /// As [`NetlinkIpvs::load`], but a module that is not loaded stays so.
    fn family(&mut self) -> Result<Option<u16>, IpvsError> {
        let mut family = None;
        let answer = self.generic.ask(generic::families, |_, payload| {
            family = family.or_else(|| generic::read_family(payload));
        });
        answer.map_err(|failure| failed("asking for the number of IPVS", failure))?;
        Ok(family)
    }

    /// All virtual servers of the namespace, whosever they are.
    fn servers(&mut self, family: u16) -> Result<BTreeMap<ServerKey, VirtualServer>, IpvsError> {
        let mut servers = BTreeMap::new();
        let answer = self.generic.ask(
            |seq| server::servers(family, seq),
            |_, payload| servers.extend(server::read_server(payload)),
        );
        answer.map_err(|failure| failed("reading virtual servers", failure))?;
        Ok(servers)
    }

    /// A virtual server that is gone has none. To be asked after another question that was answered.
    fn destinations_of(
        &mut self,
        family: u16,
        key: &ServerKey,
    ) -> Result<ObservedDestinations, IpvsError> {
        let mut destinations = BTreeMap::new();
        let answer = self.generic.ask_next(
            |seq| server::destinations(family, key, seq),
            |_, payload| destinations.extend(server::read_destination(key.family(), payload)),
        );
        answer
            .map_err(|failure| failed("reading the destinations of a virtual server", failure))?;
        Ok(destinations)
    }
}

impl Ipvs for NetlinkIpvs {
    fn prepare(&mut self, settings: &IpvsSettings) -> Result<(), IpvsError> {
        self.prepare_host(settings)
    }

    fn outline(&mut self) -> Result<Outline, IpvsError> {
        let Some(interface) = self.interface()? else { return Ok(Outline::default()) };
        let addresses = self.own_addresses(interface.index)?;
        let mut servers = match self.family()? {
            None => BTreeMap::new(),
            Some(family) => self.servers(family)?,
        };
        servers.retain(|it, _| addresses.contains(&it.address));
        let ours = interface.dummy && interface.alias.as_deref() == Some(ALIAS);
        Ok(Outline { interface: Some(ObservedInterface { ours, addresses }), servers })
    }

    fn destinations(
        &mut self,
        servers: &[ServerKey],
    ) -> Result<BTreeMap<ServerKey, ObservedDestinations>, IpvsError> {
        let Some(family) = self.family()? else { return Ok(BTreeMap::new()) };
        servers.iter().map(|key| Ok((*key, self.destinations_of(family, key)?))).collect()
    }

    fn commit(&mut self, batch: &Batch) -> Result<Vec<Refused>, IpvsError> {
        let ops: Vec<&Op> = batch.0.iter().map(|(_, op)| op).collect();
        self.carry_out(&ops)
    }

    fn remove_interface(&mut self) -> Result<(), IpvsError> {
        self.remove_own_interface()
    }
}

/// The error of something of which nobody knows how far it came.
fn failed(doing: &'static str, failure: Failure) -> IpvsError {
    let why = match failure {
        Failure::Refused(error) | Failure::Socket(error) => error.to_string(),
        Failure::Interrupted | Failure::Aborted => {
            "something else was changed at the same moment".to_owned()
        }
        Failure::Lost(why) => why,
    };
    IpvsError::Failed { doing, why }
}

/// What a person can do about an operation that was refused, where that is known.
pub fn advice(op: &Op, errno: i32) -> Option<String> {
    let advice = match (errno, op) {
        (ENOENT, Op::AddServer(_, server) | Op::SetServer(_, server)) => {
            return Some(prepare::missing_scheduler(server.scheduler));
        }
        (EEXIST, Op::AddServer(key, _)) => {
            return Some(format!(
                "somebody else has a virtual server there, at an address that this node has on another interface; \
                 take it away (ipvsadm -D {key}), or put the address into --ipvs-exclude-cidrs"
            ));
        }
        (ENODEV, Op::BindAddress(_)) => "there is no dummy interface kube-ipvs0",
        (EACCES, Op::BindAddress(IpAddr::V6(_))) => {
            "IPv6 is disabled on kube-ipvs0: set the sysctls net.ipv6.conf.all.disable_ipv6 and \
             net.ipv6.conf.kube-ipvs0.disable_ipv6 to 0"
        }
        (EAFNOSUPPORT | EOPNOTSUPP, _) => {
            "IPv6 needs a kernel with CONFIG_IPV6 and CONFIG_IP_VS_IPV6 that was not started with ipv6.disable=1"
        }
        (EPERM, _) => "give the process CAP_NET_ADMIN in this network namespace",
        _ => return None,
    };
    Some(advice.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    #[test]
    fn refusals_say_what_to_do() {
        let (v4, v6) = ("10.96.0.10".parse().unwrap(), "fd00::a".parse().unwrap());
        let key =
            |address| ServerKey { protocol: Protocol::Tcp, address, port: 80.try_into().unwrap() };
        let server = VirtualServer::default();
        check(Op::AddServer(key(v4), server), ENOENT, "modprobe ip_vs_rr");
        check(Op::AddServer(key(v6), server), EAFNOSUPPORT, "CONFIG_IP_VS_IPV6");
        check(Op::BindAddress(v6), EACCES, "net.ipv6.conf.kube-ipvs0.disable_ipv6");
        check(Op::BindAddress(v4), ENODEV, "no dummy interface kube-ipvs0");
        check(Op::DeleteServer(key(v4)), EPERM, "CAP_NET_ADMIN");
        check(Op::AddServer(key(v4), server), EEXIST, "ipvsadm -D -t 10.96.0.10:80");
        const ERANGE: i32 = 34;
        assert_eq!(advice(&Op::DeleteServer(key(v4)), ERANGE), None);
    }

    #[track_caller]
    fn check(op: Op, errno: i32, part: &str) {
        let told = advice(&op, errno).unwrap();
        assert!(told.contains(part), "{told}");
    }
}
