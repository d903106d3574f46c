//! IPVS as a value, and a compiler that works on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::ipvs::compile::{Compiler, EEXIST, Failure};
use crate::ipvs::schema::{
    Batch, Connections, Destination, Observed, ObservedDestination, ObservedInterface,
    ObservedServer, Op, Scheduler, ServerKey, VirtualServer,
};
use crate::ipvs::split::WantedServer;
use crate::model::Protocol;
use crate::nft::schema::Owner;

/// `ESRCH` of IPVS for a virtual server, `ENOENT` for a destination; one is enough here.
const ABSENT: i32 = 3;

/// Virtual servers with their destinations' weights.
type Servers = BTreeMap<ServerKey, (VirtualServer, BTreeMap<Destination, u32>)>;

/// What a kernel holds.
pub(super) struct Node {
    pub(super) servers: Servers,
    pub(super) addresses: BTreeSet<IpAddr>,
    connections: BTreeMap<(ServerKey, Destination), u32>,
    pub(super) refuse: fn(&Op) -> Option<i32>,
}

impl Node {
    fn carry_out(&mut self, op: &Op) -> Result<(), i32> {
        if let Some(errno) = (self.refuse)(op) {
            return Err(errno);
        }
        match *op {
            Op::BindAddress(address) => drop(self.addresses.insert(address)),
            Op::UnbindAddress(address) => drop(self.addresses.remove(&address)),
            Op::AddServer(key, _) if self.servers.contains_key(&key) => return Err(EEXIST),
            Op::AddServer(key, server) => drop(self.servers.insert(key, (server, BTreeMap::new()))),
            Op::SetServer(key, server) => self.servers.get_mut(&key).ok_or(ABSENT)?.0 = server,
            Op::DeleteServer(key) => {
                self.servers.remove(&key);
                self.connections.retain(|(of, _), _| *of != key);
            }
            Op::AddDestination(key, to, weight) => {
                let (_, destinations) = self.servers.get_mut(&key).ok_or(ABSENT)?;
                if destinations.insert(to, weight).is_some() {
                    return Err(EEXIST);
                }
            }
            Op::SetDestination(key, to, weight) => {
                let (_, destinations) = self.servers.get_mut(&key).ok_or(ABSENT)?;
                *destinations.get_mut(&to).ok_or(ABSENT)? = weight;
            }
            Op::DeleteDestination(key, to) => {
                self.servers.get_mut(&key).ok_or(ABSENT)?.1.remove(&to);
                self.connections.remove(&(key, to));
            }
        }
        Ok(())
    }

    /// By somebody else.
    pub(super) fn alter(&mut self, op: &Op) {
        self.carry_out(op).unwrap();
    }

    pub(super) fn connect(&mut self, server: &str, to: u8, connections: u32) {
        self.connections.insert((World::key(1, server), World::to(to)), connections);
    }

    pub(super) fn connect_some(&mut self, seed: usize) {
        let all: Vec<_> = self
            .servers
            .iter()
            .flat_map(|(key, (_, to))| to.keys().map(|it| (*key, *it)))
            .collect();
        self.connections.extend(all.get(seed % all.len().max(1)).map(|it| (*it, 1)));
    }

    pub(super) fn disconnect(&mut self) {
        self.connections.clear();
    }

    /// Addresses of the interface and virtual servers on them.
    pub(super) fn observed(&self) -> Observed {
        let ours = |key: &ServerKey| self.addresses.contains(&key.address);
        let destination = |(to, weight): (&Destination, &u32)| {
            let seen = ObservedDestination {
                weight: *weight,
                masquerades: true,
                connections: Connections::default(),
            };
            (*to, seen)
        };
        let server = |(key, (server, to)): (&ServerKey, &(VirtualServer, BTreeMap<_, _>))| {
            let destinations = to.iter().map(destination).collect();
            (*key, ObservedServer { server: *server, destinations })
        };
        let interface = ObservedInterface { ours: true, addresses: self.addresses.clone() };
        Observed {
            interface: Some(interface),
            servers: self.servers.iter().filter(|(key, _)| ours(key)).map(server).collect(),
        }
    }
}

/// A compiler and its kernel.
pub(super) struct World {
    pub(super) compiler: Compiler,
    pub(super) node: Node,
    pub(super) desired: BTreeMap<Owner, Vec<WantedServer>>,
    /// What nft leads to.
    rows: BTreeMap<Owner, Vec<WantedServer>>,
    pub(super) touched: BTreeSet<Owner>,
    pub(super) led_to: bool,
    pub(super) serving: Vec<u8>,
    pub(super) scheduler: &'static str,
    now: Instant,
}

impl World {
    pub(super) fn new() -> World {
        #[expect(
            clippy::disallowed_methods,
            reason = "an Instant can be had from the clock only; just an origin here"
        )]
        let now = Instant::now();
        let node = Node {
            servers: BTreeMap::new(),
            addresses: BTreeSet::new(),
            connections: BTreeMap::new(),
            refuse: |_| None,
        };
        World {
            compiler: compiler(),
            node,
            desired: BTreeMap::new(),
            rows: BTreeMap::new(),
            touched: BTreeSet::new(),
            led_to: false,
            serving: Vec::new(),
            scheduler: "rr",
            now,
        }
    }

    pub(super) fn key(service: u8, server: &str) -> ServerKey {
        let (protocol, port) = server.split_once(' ').unwrap();
        let protocol = match protocol {
            "-t" => Protocol::Tcp,
            "-u" => Protocol::Udp,
            _ => Protocol::Sctp,
        };
        ServerKey { protocol, address: [10, 96, 0, service].into(), port: port.parse().unwrap() }
    }

    pub(super) fn to(host: u8) -> Destination {
        Destination { address: [10, 1, 0, host].into(), port: 8080.try_into().unwrap() }
    }

    pub(super) fn stage(&mut self, owner: u32, servers: &[(&str, &[(u8, u32)])]) {
        self.stage_at(owner, u8::try_from(owner).unwrap(), servers);
    }

    pub(super) fn stage_at(&mut self, owner: u32, at: u8, servers: &[(&str, &[(u8, u32)])]) {
        let mut wanted: Vec<WantedServer> = servers
            .iter()
            .map(|(server, destinations)| WantedServer {
                key: World::key(at, server),
                server: VirtualServer {
                    scheduler: Scheduler::new(self.scheduler).unwrap(),
                    ..VirtualServer::default()
                },
                destinations: destinations.iter().map(|(to, w)| (World::to(*to), *w)).collect(),
                serving: self.serving.iter().map(|it| World::to(*it)).collect(),
            })
            .collect();
        wanted.sort_unstable_by_key(|it| it.key);
        self.stage_all(owner, wanted);
    }

    pub(super) fn stage_all(&mut self, owner: u32, servers: Vec<WantedServer>) {
        self.compiler.stage(Owner(owner), servers.clone());
        self.touched.insert(Owner(owner));
        self.desired.insert(Owner(owner), servers);
    }

    pub(super) fn restage(&mut self) {
        for (owner, servers) in self.desired.clone() {
            self.stage_all(owner.0, servers);
        }
    }

    /// The process ends and starts anew; nothing is staged.
    pub(super) fn restart(&mut self) {
        self.compiler = compiler();
        self.touched.clear();
        self.desired.clear();
        let observed = self.node.observed();
        assert!(self.compiler.observe(observed).owners.is_empty());
    }

    pub(super) fn restart_with_everything(&mut self) {
        self.run();
        let desired = self.desired.clone();
        self.restart();
        self.desired = desired;
        self.restage();
        self.run();
        self.prune();
    }

    /// The process is killed after so many operations of what it was about to do, and starts anew. What it had staged and
    /// not done is still wanted.
    pub(super) fn crash(&mut self, operations: usize) {
        let owners: Vec<Owner> = self.touched.iter().copied().collect();
        let led_to = self.led_to;
        let before = self.compiler.before(owners.iter().copied(), |_| led_to);
        let (now, later) = before.0.split_at(operations.min(before.0.len()));
        self.commit(&Batch(now.to_vec()));
        if later.is_empty() {
            self.lead(&owners);
            let after = self.compiler.after(owners.iter().copied()).0;
            let rest = operations - now.len();
            self.commit(&Batch(after.into_iter().take(rest).collect()));
        }
        let desired = self.desired.clone();
        self.restart();
        self.desired = desired;
        self.restage();
        self.run();
        self.prune();
    }

    /// Nft leads to what is wanted.
    fn lead(&mut self, owners: &[Owner]) {
        for owner in owners {
            self.rows.insert(*owner, self.desired.get(owner).cloned().unwrap_or_default());
        }
    }

    /// Everything was staged; nft leads to nothing else any more.
    pub(super) fn prune(&mut self) {
        self.compiler.prune();
        self.rows.retain(|owner, _| self.desired.contains_key(owner));
    }

    /// Nft leads nowhere: what follows may leave ports without anything for a moment.
    pub(super) fn forget_rows(&mut self) {
        self.rows.clear();
    }

    /// Somebody deletes something, and it is noticed.
    pub(super) fn drift(&mut self, seed: usize) {
        self.restage();
        self.run();
        // What drains at an address that is not bound any more could not be found after a restart.
        let wanted = self.desired.values().flatten();
        let keys: Vec<ServerKey> = wanted.map(|it| it.key).collect();
        let Some(key) = keys.get(seed % keys.len().max(1)).copied() else { return };
        match seed % 3 {
            0 => self.node.alter(&Op::DeleteServer(key)),
            1 => self.node.alter(&Op::UnbindAddress(key.address)),
            _ => {
                let to = self.node.servers[&key].1.keys().next().copied();
                if let Some(to) = to {
                    self.node.alter(&Op::DeleteDestination(key, to));
                }
            }
        }
        // Nobody serves what is gone, until the repair has ended.
        self.rows.clear();
        let observed = self.node.observed();
        self.touched.extend(self.compiler.observe(observed).owners);
        self.run();
        self.restage();
        self.run();
    }

    /// What was done, as `ipvsadm` and `ip` write it.
    pub(super) fn run(&mut self) -> Vec<String> {
        loop {
            let (log, failures) = self.pass(true);
            if failures.is_empty() {
                return log;
            }
            assert_eq!(failures.first(), Some(&Failure::Again), "{log:?}");
        }
    }

    pub(super) fn run_refused(&mut self) -> Vec<String> {
        self.pass(false).0
    }

    /// What became of what was refused.
    pub(super) fn run_once(&mut self) -> Vec<Failure> {
        self.pass(false).1
    }

    #[track_caller]
    pub(super) fn check(&mut self, expected: &[&str]) {
        assert_eq!(self.run(), expected);
    }

    fn pass(&mut self, nft_accepts: bool) -> (Vec<String>, Vec<Failure>) {
        let owners: Vec<Owner> = self.touched.iter().copied().collect();
        let led_to = self.led_to;
        let batch = self.compiler.before(owners.iter().copied(), |_| led_to);
        let (mut log, mut failures) = self.commit(&batch);
        if nft_accepts && failures.is_empty() {
            log.push("-- nft".to_owned());
            self.lead(&owners);
            let batch = self.compiler.after(owners.iter().copied());
            let (more, failed) = self.commit(&batch);
            log.extend(more);
            failures.extend(failed);
            self.compiler.finished(owners);
            self.touched.clear();
            self.assert_served(true);
        }
        (log, failures)
    }

    fn commit(&mut self, batch: &Batch) -> (Vec<String>, Vec<Failure>) {
        let (mut log, mut failures) = (Vec::new(), Vec::new());
        for (_, op) in &batch.0 {
            match self.node.carry_out(op) {
                Ok(()) => self.compiler.done(op),
                Err(errno) => failures.push(self.compiler.failed(op, errno, |_| false)),
            }
            log.push(shown(op));
            self.assert_served(false);
        }
        (log, failures)
    }

    /// Whatever nft leads to can be reached, if it has endpoints at all. `bound`: on the interface, too.
    #[track_caller]
    fn assert_served(&self, bound: bool) {
        let all: BTreeMap<ServerKey, &WantedServer> =
            self.rows.values().flatten().map(|it| (it.key, it)).collect();
        for (key, wanted) in all {
            // Nobody gets there, so it may be made anew. When it is bound it has to be complete.
            if !bound && !self.node.addresses.contains(&key.address) {
                continue;
            }
            let held = self.node.servers.get(&key);
            let weight = |to: &Destination| held.and_then(|(_, them)| them.get(to)).copied();
            let mut usable = wanted.destinations.iter().filter(|(to, _)| weight(to) > Some(0));
            assert!(wanted.destinations.is_empty() || usable.next().is_some(), "{key} has nothing");
            assert!(!bound || self.node.addresses.contains(&key.address), "{key} is not bound");
        }
    }

    /// Some time later: whether something has drained.
    pub(super) fn look(&mut self) -> bool {
        self.now += Duration::from_secs(1);
        let seen: Vec<_> = self
            .node
            .connections
            .iter()
            .map(|((key, to), active)| {
                (*key, *to, Connections { active: *active, inactive: 0, persistent: 0 })
            })
            .collect();
        self.compiler.look(self.now, &seen)
    }

    pub(super) fn draining(&self, owners: &[u32]) -> Vec<String> {
        let owners = owners.iter().map(|it| Owner(*it)).collect();
        self.compiler.draining_addresses(&owners).iter().map(ToString::to_string).collect()
    }
}

fn compiler() -> Compiler {
    Compiler::new(Scheduler::default(), Duration::from_secs(900))
}

fn shown(op: &Op) -> String {
    match op {
        Op::BindAddress(address) => format!("address add {address}"),
        Op::UnbindAddress(address) => format!("address del {address}"),
        Op::AddServer(key, it) => format!("-A {key} -s {}", it.scheduler.name()),
        Op::SetServer(key, it) => format!("-E {key} -s {}", it.scheduler.name()),
        Op::DeleteServer(key) => format!("-D {key}"),
        Op::AddDestination(key, to, weight) => format!("-a {key} -r {to} -w {weight}"),
        Op::SetDestination(key, to, weight) => format!("-e {key} -r {to} -w {weight}"),
        Op::DeleteDestination(key, to) => format!("-d {key} -r {to}"),
    }
}
