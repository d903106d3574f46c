//! IPVS in memory, as strict as the real one, that can be told to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::Failure;
use crate::ipvs::schema::{
    Batch, Connections, Destination, ObservedDestination, ObservedDestinations, ObservedInterface,
    ObservedServer, Op, Outline, Scheduler, ServerKey, VirtualServer,
};
use crate::kernel::{Ipvs, IpvsError, IpvsSettings, Refused};
use crate::model::Family;
use crate::nft::schema::Owner;

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EAFNOSUPPORT: i32 = 97;
const EINVAL: i32 = 22;
const ERANGE: i32 = 34;

/// The schedulers of Linux 6.
const SCHEDULERS: [&str; 14] =
    ["rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "twos"];

/// Holds everything as values. Its fields are for tests to look at and to tamper with.
#[derive(Clone, Debug)]
pub struct MemoryIpvs {
    pub interface: Option<ObservedInterface>,
    /// Those of others as well. The connections in it are what tests say they are; a destination that goes takes its own
    /// with it.
    pub servers: BTreeMap<ServerKey, ObservedServer>,
    pub schedulers: BTreeSet<Scheduler>,
    pub exclude_cidrs: Vec<IpNet>,
    /// As a kernel without CONFIG_IP_VS_IPV6.
    pub without_ipv6: bool,
    /// What [`Ipvs::prepare`] was last asked for.
    pub prepared: Option<IpvsSettings>,
    /// Batches that were carried out, whatever the caller was told.
    pub committed: usize,
    /// Operations that were carried out.
    pub operations: usize,
    /// The last batch that was carried out.
    pub last: Option<Batch>,
    failures: BTreeMap<usize, Failure>,
    refused: BTreeMap<Owner, i32>,
    refused_servers: BTreeMap<ServerKey, i32>,
    commits: usize,
    turns: BTreeMap<ServerKey, usize>,
    /// Who is remembered for a client of a virtual server with persistence.
    templates: BTreeMap<(ServerKey, IpAddr), Destination>,
}

impl Default for MemoryIpvs {
    fn default() -> MemoryIpvs {
        MemoryIpvs {
            interface: None,
            servers: BTreeMap::new(),
            schedulers: SCHEDULERS.iter().filter_map(|it| Scheduler::new(it)).collect(),
            exclude_cidrs: Vec::new(),
            without_ipv6: false,
            prepared: None,
            committed: 0,
            operations: 0,
            last: None,
            failures: BTreeMap::new(),
            refused: BTreeMap::new(),
            refused_servers: BTreeMap::new(),
            commits: 0,
            turns: BTreeMap::new(),
            templates: BTreeMap::new(),
        }
    }
}

impl MemoryIpvs {
    /// Lets a later commit fail: 1 is the next one. Of a commit that is `Rejected`, the first operation is refused.
    pub fn fail_commit(&mut self, nth: usize, failure: Failure) {
        self.failures.insert(self.commits + nth, failure);
    }

    /// From now on refuses all operations of that owner.
    pub fn refuse_owner(&mut self, owner: Owner, errno: i32) {
        self.refused.insert(owner, errno);
    }

    /// From now on refuses all operations on that virtual server and its destinations.
    pub fn refuse_server(&mut self, key: ServerKey, errno: i32) {
        self.refused_servers.insert(key, errno);
    }

    /// Refuses nothing any more, and no later commit fails.
    pub fn recover(&mut self) {
        self.refused.clear();
        self.refused_servers.clear();
        self.failures.clear();
    }

    /// Says how many connections a destination has. Returns whether there is such a destination.
    pub fn set_connections(
        &mut self,
        key: ServerKey,
        destination: Destination,
        connections: Connections,
    ) -> bool {
        let server = self.servers.get_mut(&key);
        let observed = server.and_then(|it| it.destinations.get_mut(&destination));
        observed.map(|it| it.connections = connections).is_some()
    }

    /// Where a new connection of that client would go: to each destination with a weight in turn, whatever the scheduler;
    /// with persistence to the same one again, as long as it is there and has a weight. `None`: refused by the virtual
    /// server, or there is none.
    pub fn pick(&mut self, key: &ServerKey, client: IpAddr) -> Option<Destination> {
        let server = self.servers.get(key)?;
        let usable = |it: &Destination| server.destinations.get(it).is_some_and(|it| it.weight > 0);
        let remembered = self.templates.get(&(*key, client)).copied().filter(usable);
        if let Some(destination) = remembered.filter(|_| server.server.persistence.is_some()) {
            return Some(destination);
        }
        let turn = self.turns.entry(*key).or_default();
        let all: Vec<Destination> = server.destinations.keys().copied().filter(usable).collect();
        let destination = *all.get(*turn % all.len().max(1))?;
        *turn += 1;
        self.templates.insert((*key, client), destination);
        Some(destination)
    }

    /// All destinations that new connections can go to.
    pub fn picks(&self, key: &ServerKey) -> BTreeSet<Destination> {
        let destinations = self.servers.get(key).into_iter().flat_map(|it| &it.destinations);
        destinations.filter(|(_, it)| it.weight > 0).map(|(it, _)| *it).collect()
    }

    fn carry_out(&mut self, batch: &Batch) -> Vec<Refused> {
        let mut refused = Vec::new();
        // Virtual servers that could not be added: nothing else happens to them.
        let mut not_ours = BTreeMap::new();
        for (place, (owner, op)) in batch.0.iter().enumerate() {
            if matches!(op, Op::DeleteDestination(key, _) if not_ours.contains_key(key)) {
                continue;
            }
            // Whether there is a scheduler is asked before anything else.
            let lacks = || {
                let Op::SetServer(_, server) = op else { return None };
                self.check_scheduler(server).err()
            };
            let refusal = self.refusal(*owner, op).or_else(lacks);
            let refusal = refusal.or_else(|| follows(&not_ours, op));
            match refusal.map_or_else(|| self.apply(op), Err) {
                Ok(()) => self.operations += 1,
                Err(errno) => refused.push(Refused { op: place, errno }),
            }
            if let Op::AddServer(key, _) | Op::DeleteServer(key) = op {
                not_ours.remove(key);
            }
            if let (Op::AddServer(key, _), Some(last)) = (op, refused.last())
                && last.op == place
            {
                not_ours.insert(*key, last.errno);
            }
        }
        self.committed += 1;
        self.last = Some(batch.clone());
        refused
    }

    fn refusal(&self, owner: Option<Owner>, op: &Op) -> Option<i32> {
        if self.without_ipv6 && server_of(op).is_some_and(|it| it.address.is_ipv6()) {
            return Some(EAFNOSUPPORT);
        }
        let by_owner = owner.and_then(|it| self.refused.get(&it));
        let by_server = server_of(op).and_then(|it| self.refused_servers.get(&it));
        by_owner.or(by_server).copied()
    }

    /// What the kernel does, and what the port makes of its answer.
    fn apply(&mut self, op: &Op) -> Result<(), i32> {
        match *op {
            Op::BindAddress(address) => {
                self.interface.as_mut().ok_or(ENODEV)?.addresses.insert(address);
            }
            Op::UnbindAddress(address) => {
                if let Some(interface) = &mut self.interface {
                    interface.addresses.remove(&address);
                }
            }
            Op::AddServer(key, server) => {
                self.check_scheduler(&server)?;
                if self.servers.contains_key(&key) {
                    return Err(EEXIST);
                }
                self.servers.insert(key, ObservedServer { server, destinations: BTreeMap::new() });
            }
            Op::SetServer(key, server) => {
                self.check_scheduler(&server)?;
                self.servers.get_mut(&key).ok_or(ESRCH)?.server = server;
            }
            Op::DeleteServer(key) => {
                self.servers.remove(&key);
                self.templates.retain(|(it, _), _| *it != key);
            }
            Op::AddDestination(key, destination, weight) => {
                self.put_destination(key, destination, weight, true)?;
            }
            Op::SetDestination(key, destination, weight) => {
                self.put_destination(key, destination, weight, false)?;
            }
            Op::DeleteDestination(key, destination) => {
                if let Some(server) = self.servers.get_mut(&key) {
                    server.destinations.remove(&destination);
                }
            }
        }
        Ok(())
    }

    fn check_scheduler(&self, server: &VirtualServer) -> Result<(), i32> {
        self.schedulers.contains(&server.scheduler).then_some(()).ok_or(ENOENT)
    }

    fn put_destination(
        &mut self,
        key: ServerKey,
        destination: Destination,
        weight: u32,
        add: bool,
    ) -> Result<(), i32> {
        let server = self.servers.get_mut(&key).ok_or(ESRCH)?;
        if key.family() != Family::of(destination.address) {
            // Only tunnels go from one family to the other.
            return Err(EINVAL);
        }
        if i32::try_from(weight).is_err() {
            return Err(ERANGE);
        }
        if add {
            server.destinations.entry(destination).or_default();
        }
        let observed = server.destinations.get_mut(&destination).ok_or(ENOENT)?;
        *observed = ObservedDestination { weight, masquerades: true, ..*observed };
        Ok(())
    }

    fn is_excluded(&self, address: IpAddr) -> bool {
        self.exclude_cidrs.iter().any(|it| it.contains(&address))
    }
}

impl Ipvs for MemoryIpvs {
    fn prepare(&mut self, settings: &IpvsSettings) -> Result<(), IpvsError> {
        if !self.schedulers.contains(&settings.scheduler) {
            let name = settings.scheduler.name();
            return Err(IpvsError::Unsupported(format!("this kernel has no scheduler {name}")));
        }
        self.interface.get_or_insert_default().ours = true;
        self.exclude_cidrs.clone_from(&settings.exclude_cidrs);
        self.prepared = Some(settings.clone());
        Ok(())
    }

    fn outline(&mut self) -> Result<Outline, IpvsError> {
        let Some(mut interface) = self.interface.clone() else { return Ok(Outline::default()) };
        interface.addresses.retain(|it| !self.is_excluded(*it));
        let ours = self.servers.iter().filter(|(it, _)| interface.addresses.contains(&it.address));
        let servers = ours.map(|(key, it)| (*key, it.server)).collect();
        Ok(Outline { interface: Some(interface), servers })
    }

    fn destinations(
        &mut self,
        servers: &[ServerKey],
    ) -> Result<BTreeMap<ServerKey, ObservedDestinations>, IpvsError> {
        let of = |key: &ServerKey| self.servers.get(key).map(|it| it.destinations.clone());
        Ok(servers.iter().map(|key| (*key, of(key).unwrap_or_default())).collect())
    }

    fn commit(&mut self, batch: &Batch) -> Result<Vec<Refused>, IpvsError> {
        let failed =
            |why: &str| IpvsError::Failed { doing: "programming IPVS", why: why.to_owned() };
        self.commits += 1;
        match self.failures.remove(&self.commits) {
            None => Ok(self.carry_out(batch)),
            Some(Failure::Rejected(errno)) => {
                let Some((_, rest)) = batch.0.split_first() else { return Ok(Vec::new()) };
                let first = Refused { op: 0, errno };
                let others = self.carry_out(&Batch(rest.to_vec()));
                let others = others.into_iter().map(|it| Refused { op: it.op + 1, ..it });
                Ok(std::iter::once(first).chain(others).collect())
            }
            Some(Failure::Socket(errno)) => {
                Err(failed(&std::io::Error::from_raw_os_error(errno).to_string()))
            }
            Some(Failure::NoRoom) => Err(failed("there is no memory, or no room in the socket")),
            Some(Failure::UnknownApplied) => {
                self.carry_out(batch);
                Err(failed("told to lose the acknowledgement"))
            }
            Some(Failure::UnknownLost | Failure::Interrupted) => {
                // Half of it was carried out.
                let half = batch.0.get(..batch.0.len() / 2).unwrap_or_default();
                self.carry_out(&Batch(half.to_vec()));
                Err(failed("told to lose the second half of the batch"))
            }
        }
    }

    fn remove_interface(&mut self) -> Result<(), IpvsError> {
        self.interface.take_if(|it| it.ours && it.addresses.is_empty());
        Ok(())
    }
}

/// What the port refuses because of what was refused before.
fn follows(not_ours: &BTreeMap<ServerKey, i32>, op: &Op) -> Option<i32> {
    match op {
        Op::SetServer(key, _) | Op::AddDestination(key, ..) | Op::SetDestination(key, ..) => {
            not_ours.contains_key(key).then_some(ESRCH)
        }
        Op::BindAddress(address) => {
            let is_there =
                |(key, errno): (&ServerKey, &i32)| key.address == *address && *errno == EEXIST;
            not_ours.iter().any(is_there).then_some(EEXIST)
        }
        Op::AddServer(..)
        | Op::DeleteServer(_)
        | Op::DeleteDestination(..)
        | Op::UnbindAddress(_) => None,
    }
}

fn server_of(op: &Op) -> Option<ServerKey> {
    match op {
        Op::BindAddress(_) | Op::UnbindAddress(_) => None,
        Op::AddServer(key, _)
        | Op::SetServer(key, _)
        | Op::DeleteServer(key)
        | Op::AddDestination(key, ..)
        | Op::SetDestination(key, ..)
        | Op::DeleteDestination(key, _) => Some(*key),
    }
}
