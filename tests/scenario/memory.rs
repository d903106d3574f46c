//! Stories carried out without any kernel: the loop's engine writes to a kernel in memory, and packets are walked
//! through the tables that come of it.
//!
//! A walk finds all that may become of a connection, where packets only show what became of some. After every change a
//! second engine that knows nothing of the first adopts the tables and must find nothing to write.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use kube_ferry::config::settings::resolve;
use kube_ferry::config::{Args, Config};
use kube_ferry::kernel::Kernel as _;
use kube_ferry::kernel::memory::MemoryKernel;
use kube_ferry::model::{Change, Cluster, Family, Resource};
use kube_ferry::nft::render;
use kube_ferry::nft::schema::{Key, SetName, Value};
use kube_ferry::nft::tables::Table;
use kube_ferry::nft::walk::{Fate, Memory as Remembered, Origin, Outcome, Packet, walk};
use kube_ferry::objects::Context;
use kube_ferry::sync::engine::Engine;
use kube_ferry::sync::facts::Settings;
use kube_ferry::watch::load_manifests;

use super::datapath::{Attempt, Datapath, Reach};
use super::objects::Objects;
use super::run::run;
use super::story::{Ending, Story};
use crate::support::world::{ACTORS, Actor, World, node_addresses};

const RESOURCES: [Resource; 4] =
    [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr];

/// Walks a story; panics with the line of the file.
pub(crate) fn play(story: &Story) {
    let mut memory = Memory::new(story);
    if let Err(why) = run(story, &mut memory) {
        panic!("tests/scenarios/{}.txt:{why}", story.name.replace('_', "-"));
    }
}

/// A node of values.
pub(crate) struct Memory {
    story: String,
    flags: Vec<String>,
    config: Config,
    engine: Engine,
    /// Packets write to its affinity maps.
    kernel: RefCell<MemoryKernel>,
    /// What is left of remembered clients' timeouts, in seconds.
    remembered: RefCell<BTreeMap<(IpAddr, Key), u64>>,
    addresses: BTreeSet<IpAddr>,
    /// As they were last told.
    changes: Vec<Change>,
}

impl Memory {
    fn new(story: &Story) -> Memory {
        let flags = story.arguments();
        let config = config(&flags);
        let mut memory = Memory {
            story: story.name.clone(),
            engine: engine(&config),
            config,
            flags,
            kernel: RefCell::default(),
            remembered: RefCell::default(),
            addresses: node_addresses(),
            changes: Vec::new(),
        };
        let addresses = Change::HostAddresses(memory.addresses.clone());
        memory.engine.apply(addresses);
        memory
    }

    /// Writes until nothing is left to be written. Returns what was.
    fn sync(&mut self) -> Result<Vec<String>, String> {
        sync(&mut self.engine, self.kernel.get_mut())
    }

    /// What an engine writes that starts now, with the same objects.
    fn adopt(&mut self) -> Result<Vec<String>, String> {
        let mut engine = engine(&self.config);
        engine.apply(Change::HostAddresses(self.addresses.clone()));
        self.changes.iter().for_each(|change| engine.apply(change.clone()));
        let writes = sync(&mut engine, self.kernel.get_mut())?;
        self.engine = engine;
        Ok(writes)
    }

    fn walk(&self, attempt: &Attempt) -> Outcome {
        let destination = attempt.to.ip();
        let packet = Packet {
            source: attempt.source.address(destination),
            destination,
            protocol: attempt.protocol,
            port: NonZeroU16::new(attempt.to.port()).expect("scenarios name a port"),
            from: match attempt.source.interface() {
                Some(name) => Origin::Interface(name.to_owned()),
                None => Origin::ThisNode,
            },
        };
        walk(&self.kernel.borrow().tables, &self.addresses, &packet)
    }

    /// Does what the packets of one connection do to the affinity map.
    fn remember(&self, memory: Remembered) {
        let key = Key::Client(memory.client, memory.group);
        let mut kernel = self.kernel.borrow_mut();
        let (_, rows) = affinity(&mut kernel, memory.client);
        rows.insert(key, Value::Handle(memory.endpoint));
        self.remembered.borrow_mut().insert((memory.client, key), memory.timeout.into());
    }
}

impl Datapath for Memory {
    fn apply(&mut self, objects: &Objects) -> Result<(), String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        std::fs::write(directory.path().join("objects.yaml"), objects.manifest())
            .map_err(|error| error.to_string())?;
        let context = Context { node_name: "node-1".into(), external_ips_allowed: true };
        let loaded =
            load_manifests(directory.path(), context).map_err(|error| error.to_string())?;
        self.changes = loaded.changes;
        self.changes.iter().for_each(|change| self.engine.apply(change.clone()));
        self.sync()?;
        let writes = self.adopt()?;
        if writes.is_empty() {
            return Ok(());
        }
        Err(format!(
            "written step by step it is not what is written at once:\n    {}",
            writes.join("\n    ")
        ))
    }

    fn set_address(&mut self, address: IpAddr, present: bool) -> Result<(), String> {
        if present {
            self.addresses.insert(address);
        } else {
            self.addresses.remove(&address);
        }
        self.engine.apply(Change::HostAddresses(self.addresses.clone()));
        self.sync().map(|_| ())
    }

    fn reach(&self, attempts: &[Attempt]) -> Vec<BTreeSet<Reach>> {
        let one = |attempt| {
            let outcome = self.walk(attempt);
            // Which of several a client would be bound to is decided by `stick`.
            if let [memory] = Vec::from_iter(&outcome.remembered)[..] {
                self.remember(*memory);
            }
            outcome.fates.iter().map(classify).collect()
        };
        attempts.iter().map(one).collect()
    }

    fn stick(&self, attempt: &Attempt) -> Result<String, String> {
        let possible: BTreeSet<Reach> = self.walk(attempt).fates.iter().map(classify).collect();
        let memory = self.walk(attempt).remembered.first().copied();
        self.remember(memory.ok_or(format!("nothing is remembered of {possible:?}"))?);
        let fates = self.walk(attempt).fates;
        let reached: BTreeSet<Reach> = fates.iter().map(classify).collect();
        match Vec::from_iter(&reached)[..] {
            [Reach::Backend { pod, .. }] if possible.is_superset(&reached) => Ok(pod.clone()),
            _ => Err(format!("of {possible:?} was remembered {reached:?}")),
        }
    }

    fn remembers(&self, source: Actor, family: Family) -> Option<Result<bool, String>> {
        let address = source.addresses()[usize::from(family == Family::V6)];
        let kernel = self.kernel.borrow();
        let mut rows = kernel.tables.rows(family, SetName::Affinity);
        Some(Ok(rows.any(|(key, _)| matches!(key, Key::Client(client, _) if *client == address))))
    }

    fn pass(&mut self, time: Duration) {
        let mut kernel = self.kernel.borrow_mut();
        self.remembered.borrow_mut().retain(|(client, key), left| {
            *left = left.saturating_sub(time.as_secs());
            if *left == 0 {
                affinity(&mut kernel, *client).1.remove(key);
            }
            *left > 0
        });
    }

    fn skip(&self, line: usize, what: &str) {
        eprintln!("tests/scenarios/{}.txt:{line}: {what}", self.story.replace('_', "-"));
    }

    fn stop(&mut self, _: Ending) -> Result<(), String> {
        Ok(())
    }

    fn start_again(&mut self) -> Result<Vec<String>, String> {
        self.adopt()
    }

    fn upgrade(&mut self, flags: &[String]) -> Result<(), String> {
        self.flags.extend(flags.iter().cloned());
        self.config = config(&self.flags);
        self.adopt()?;
        // Now it is as if it had always been so.
        let writes = self.adopt()?;
        if writes.is_empty() { Ok(()) } else { Err(writes.join("\n    ")) }
    }

    fn log(&self) -> Option<String> {
        None
    }

    fn world(&self) -> Option<&World> {
        None
    }
}

#[test]
fn a_wrong_expectation_is_found_out() {
    let check = |flow: &str, but: &str| {
        let story = format!(
            "apply Service default/web\n  spec: {{clusterIPs: [10.96.0.10, 'fd00:10:96::10'], ports: [{{port: 80}}]}}\n\
             endpoints default/web =8080/tcp\n  pod-1b\n  pod-2a\nflow {flow}\n"
        );
        let story = Story::parse("test", &story).unwrap();
        let error = run(&story, &mut Memory::new(&story)).unwrap_err();
        assert!(error.starts_with("6: ") && error.contains(but), "{error}");
    };
    check("client -> 10.96.0.10:80/tcp = pod-1b", "pod-2a:8080 source kept");
    check("client -> 10.96.0.10:80/tcp = pod-1b pod-2a, masquerade", "pod-2a:8080 source kept");
    check("client -> 10.96.0.10:81/tcp = drop", "rejected");
    check("client -> 10.96.0.99:80/tcp = not handled", "dropped");
}

/// The rows of the affinity map of the client's family.
fn affinity(kernel: &mut MemoryKernel, client: IpAddr) -> &mut (Option<u32>, BTreeMap<Key, Value>) {
    let table: &mut Table = kernel.tables.0.get_mut(&Family::of(client)).expect("a table");
    table.sets.get_mut(&SetName::Affinity).expect("every table has the affinity map")
}

fn engine(config: &Config) -> Engine {
    Engine::new(Settings::of(config, Family::ALL.to_vec()), Cluster::new(&RESOURCES))
}

fn sync(engine: &mut Engine, kernel: &mut MemoryKernel) -> Result<Vec<String>, String> {
    let mut written = Vec::new();
    while engine.has_work() {
        if engine.needs_observation() {
            let tables = kernel.observe(engine.program()).map_err(|error| error.to_string())?;
            engine.observed(tables);
        }
        let batch = engine.plan();
        written.extend(batch.0.iter().map(render::command));
        kernel.commit(&batch).map_err(|error| error.to_string())?;
        engine.committed();
    }
    Ok(written)
}

/// The settings that flags come to.
fn config(flags: &[String]) -> Config {
    let arguments = flags.iter().map(OsString::from);
    let line = ["kube-ferry", "--manifests=/", "--hostname-override=node-1"].map(OsString::from);
    let args = Args::parse_from(line.into_iter().chain(arguments));
    let args = args.unwrap_or_else(|error| panic!("{flags:?}: {error}"));
    resolve(&args, None, "node-1").unwrap_or_else(|error| panic!("{flags:?}: {error}"))
}

fn classify(fate: &Fate) -> Reach {
    match *fate {
        Fate::Backend { address, port, masqueraded } => Reach::Backend {
            pod: ACTORS
                .into_iter()
                .find(|actor| actor.addresses().contains(&address))
                .map_or_else(|| address.to_string(), |actor| actor.name.to_owned()),
            port: port.get(),
            masqueraded,
        },
        Fate::Untouched { masqueraded: false } => Reach::NotHandled,
        Fate::Untouched { masqueraded: true } => {
            Reach::Strange("masqueraded, though not ours".to_owned())
        }
        Fate::Rejected => Reach::Rejected,
        Fate::Dropped => Reach::Dropped,
    }
}
