//! What a kube-proxy in IPVS mode, or we ourselves, left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::{ALIAS, IpvsError, NetlinkIpvs, Refused};
use crate::ipvs::schema::{ObservedServer, Op, ServerKey};
use crate::leftovers::KnownServers;

/// What [`NetlinkIpvs::remove_leftovers`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Virtual servers that were deleted.
    pub servers: Vec<ServerKey>,
    /// The interface was there and was deleted.
    pub interface: bool,
    /// Virtual servers at node ports that may be kube-proxy's but need not: they have no destinations, or others than
    /// every Service. They were left alone.
    pub doubtful: Vec<ServerKey>,
    /// Virtual servers that could not be deleted.
    pub refused: Vec<(ServerKey, i32)>,
}

impl NetlinkIpvs {
    /// Deletes the virtual servers at addresses of the interface, those at addresses of the node that can be told for sure,
    /// and then the interface with its addresses, whoever made it. Nothing is loaded, and without such an interface
    /// nothing is done.
    ///
    /// A virtual server at an address of another interface is one that is `known`, or one of a node port: it has a port
    /// in `node_ports`, and destinations that are all those of one virtual server at the interface's addresses: pods of
    /// a Service.
    pub fn remove_leftovers(
        &mut self,
        node_ports: RangeInclusive<u16>,
        known: &KnownServers,
    ) -> Result<Leftovers, IpvsError> {
        let Some(link) = self.interface()?.filter(|it| it.dummy) else {
            return Ok(Leftovers::default());
        };
        let own = self.own_addresses(link.index)?;
        let node = self.node_addresses(link.index)?;
        let mut leftovers = Leftovers { interface: true, ..Leftovers::default() };
        if let Some(family) = self.family()? {
            let is_known = |it: &ServerKey| node.contains(&it.address) && known.contains(it);
            let is_service = |it: &ServerKey| own.contains(&it.address) || is_known(it);
            let is_node_port =
                |it: &ServerKey| node.contains(&it.address) && node_ports.contains(&it.port.get());
            let mut observed = BTreeMap::new();
            for (key, server) in self.servers(family)? {
                if is_service(&key) || is_node_port(&key) {
                    let destinations = self.destinations_of(family, &key)?;
                    observed.insert(key, ObservedServer { server, destinations });
                }
            }
            let (services, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
                observed.into_iter().partition(|(key, _)| is_service(key));
            leftovers.servers = services.keys().copied().collect();
            for (key, server) in others {
                let list = match serves_one_of(&services, &key, &server) {
                    true => &mut leftovers.servers,
                    false => &mut leftovers.doubtful,
                };
                list.push(key);
            }
            self.delete_servers(&mut leftovers)?;
        }
        self.delete_interface(&link)?;
        Ok(leftovers)
    }

    /// Whether the interface is ours, not kube-proxy's; `None`: there is none of its name and kind.
    pub fn interface_is_ours(&mut self) -> Result<Option<bool>, IpvsError> {
        let link = self.interface()?.filter(|it| it.dummy);
        Ok(link.map(|it| it.alias.as_deref() == Some(ALIAS)))
    }

    /// Deletes the known virtual servers at addresses of interfaces other than kube-ipvs0, and nothing else.
    pub fn remove_known(&mut self, known: &KnownServers) -> Result<Leftovers, IpvsError> {
        let mut leftovers = Leftovers::default();
        // Interfaces are numbered from 1 on.
        let index = self.interface()?.map_or(0, |it| it.index);
        let node = self.node_addresses(index)?;
        if let Some(family) = self.family()? {
            let servers = self.servers(family)?;
            let is_known = |it: &ServerKey| node.contains(&it.address) && known.contains(it);
            leftovers.servers = servers.into_keys().filter(is_known).collect();
            self.delete_servers(&mut leftovers)?;
        }
        Ok(leftovers)
    }

    fn delete_servers(&mut self, leftovers: &mut Leftovers) -> Result<(), IpvsError> {
        let ops: Vec<Op> = leftovers.servers.iter().map(|it| Op::DeleteServer(*it)).collect();
        let refused = self.carry_out(&ops.iter().collect::<Vec<_>>())?;
        for Refused { op, errno } in refused.into_iter().rev() {
            if op < leftovers.servers.len() {
                leftovers.refused.push((leftovers.servers.remove(op), errno));
            }
        }
        Ok(())
    }

    /// Those of all other interfaces, which may be on the interface as well.
    fn node_addresses(&mut self, index: u32) -> Result<BTreeSet<IpAddr>, IpvsError> {
        let mut addresses = super::address::read_all(&mut self.route, |it| it != index)
            .map_err(|failure| super::failed("reading addresses", failure))?;
        addresses.retain(|it| !self.is_excluded(*it));
        Ok(addresses)
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
