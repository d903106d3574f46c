//! What a kube-proxy in IPVS mode, or we ourselves, left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::{ALIAS, IpvsError, NetlinkIpvs, Refused, address, failed};
use crate::ipvs::codec::link::Link;
use crate::ipvs::schema::{ObservedServer, Op, ServerKey};

/// Whose interface is meant, as its alias tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    KubeFerry,
    KubeProxy,
    Anyone,
}

/// What was removed, and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Virtual servers that were deleted.
    pub servers: Vec<ServerKey>,
    /// The interface was there and was deleted, with its addresses.
    pub interface: bool,
    /// Virtual servers at the node's own addresses that may be kube-proxy's but need not. They were left alone.
    pub doubtful: Vec<ServerKey>,
    /// Virtual servers that could not be deleted, and why: positive errnos.
    pub refused: Vec<(ServerKey, i32)>,
}

impl NetlinkIpvs {
    /// Deletes the virtual servers at addresses of the interface, those that kube-proxy made for node ports, and then the
    /// interface. Connections through them end. Without such an interface nothing is done, not even a module loaded.
    pub fn remove_leftovers(
        &mut self,
        whose: Whose,
        node_ports: RangeInclusive<u16>,
    ) -> Result<Leftovers, IpvsError> {
        let Some(link) = self.interface()?.filter(|it| is_of(it, whose)) else {
            return Ok(Leftovers::default());
        };
        let found = self.find(&link, &node_ports)?;
        let servers: Vec<ServerKey> = found.services.into_keys().chain(found.node_ports).collect();
        let mut leftovers = self.delete_servers(servers)?;
        self.delete_interface(&link)?;
        leftovers.interface = true;
        leftovers.doubtful = found.doubtful;
        Ok(leftovers)
    }

    /// Deletes only the virtual servers that kube-proxy made for node ports: we need none, and one that nobody looks after
    /// sends connections to endpoints that are gone. To be called before any virtual server of the interface is altered,
    /// since it is by their destinations that those of node ports are told.
    ///
    /// A virtual server is one of them if it has the address of another interface, a port in `node_ports`, and only
    /// destinations of one virtual server at the interface's addresses: endpoints of a Service.
    pub fn remove_node_ports(
        &mut self,
        node_ports: RangeInclusive<u16>,
    ) -> Result<Leftovers, IpvsError> {
        let Some(link) = self.interface()?.filter(|it| is_of(it, Whose::Anyone)) else {
            return Ok(Leftovers::default());
        };
        let found = self.find(&link, &node_ports)?;
        let leftovers = self.delete_servers(found.node_ports)?;
        Ok(Leftovers { doubtful: found.doubtful, ..leftovers })
    }

    fn find(&mut self, link: &Link, node_ports: &RangeInclusive<u16>) -> Result<Found, IpvsError> {
        let mut found = Found::default();
        let own = self.own_addresses(link.index)?;
        let node = self.node_addresses(link.index)?;
        let Some(family) = self.family()? else { return Ok(found) };
        let near = |it: &ServerKey| own.contains(&it.address) || node.contains(&it.address);
        let observed = self.observe_servers(family, near)?;
        let (services, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            observed.into_iter().partition(|(key, _)| own.contains(&key.address));
        for (key, server) in others {
            let serves = serves_one_of(&services, &key, &server);
            match (serves, node_ports.contains(&key.port.get())) {
                (true, true) => found.node_ports.push(key),
                // An external IP that the node has, or nobody's any more.
                (true, false) | (false, true) => found.doubtful.push(key),
                (false, false) => (),
            }
        }
        found.services = services;
        Ok(found)
    }

    fn delete_servers(&mut self, servers: Vec<ServerKey>) -> Result<Leftovers, IpvsError> {
        let ops: Vec<Op> = servers.iter().map(|it| Op::DeleteServer(*it)).collect();
        let mut leftovers = Leftovers { servers, ..Leftovers::default() };
        let refused = self.carry_out(&ops.iter().collect::<Vec<_>>())?;
        for Refused { op, errno } in refused.into_iter().rev() {
            if op < leftovers.servers.len() {
                leftovers.refused.push((leftovers.servers.remove(op), errno));
            }
        }
        Ok(leftovers)
    }

    /// Those of all other interfaces, which may be on the interface as well.
    fn node_addresses(&mut self, index: u32) -> Result<BTreeSet<IpAddr>, IpvsError> {
        let mut addresses = address::read_all(&mut self.route, |it| it != index)
            .map_err(|failure| failed("reading addresses", failure))?;
        addresses.retain(|it| !self.is_excluded(*it));
        Ok(addresses)
    }
}

/// Virtual servers at the node's addresses.
#[derive(Default)]
struct Found {
    /// At the interface's.
    services: BTreeMap<ServerKey, ObservedServer>,
    /// At others, and surely kube-proxy's.
    node_ports: Vec<ServerKey>,
    doubtful: Vec<ServerKey>,
}

fn is_of(link: &Link, whose: Whose) -> bool {
    let ours = link.alias.as_deref() == Some(ALIAS);
    link.dummy
        && match whose {
            Whose::KubeFerry => ours,
            Whose::KubeProxy => !ours,
            Whose::Anyone => true,
        }
}

/// Whether a Service has all these destinations. kube-proxy gives a node port either all of them or the local ones.
fn serves_one_of(
    services: &BTreeMap<ServerKey, ObservedServer>,
    key: &ServerKey,
    server: &ObservedServer,
) -> bool {
    let masquerades = server.destinations.values().all(|it| it.masquerades);
    let has_all = |service: &ObservedServer| {
        server.destinations.keys().all(|it| service.destinations.contains_key(it))
    };
    masquerades
        && !server.destinations.is_empty()
        && services.iter().any(|(it, service)| it.protocol == key.protocol && has_all(service))
}
