//! Bytes from outside, for fuzzers and for a test that needs none: every parser by name, with bytes to begin with.
//!
//! Compiled for tests and fuzzing only. `make fuzz` runs the targets in `fuzz/`; the test below gives each of them some
//! thousand mutilated samples. A parser must neither panic nor make more of the bytes than they are worth, and what it
//! lets through must not make any later room panic either.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::config::{self, Args, DetectLocal, NodePortSelector};
use crate::kernel::memory::MemoryKernel;
use crate::kernel::{Kernel as _, outside as kernel};
use crate::model::{Change, Cluster, Family, Resource};
use crate::nft::schema::{ObservedTable, SetName};
use crate::nft::skeleton::Program;
use crate::nft::tables::Tables;
use crate::objects::Context;
use crate::sync::engine::Engine;
use crate::sync::facts::Settings;
use crate::watch::outside as watch;

/// What takes bytes from outside.
type Target = fn(&[u8]);

/// Every target, by the name that `fuzz/` has for it.
pub const TARGETS: [(&str, Target); 8] = [
    ("messages", kernel::messages),
    ("tables", |bytes| kernel::tables(program(), bytes)),
    ("legacy", kernel::legacy_table),
    ("watch", |bytes| apply(watch::watch(&context(), bytes))),
    ("list", |bytes| apply(watch::list(&context(), bytes))),
    ("manifests", |bytes| apply(watch::manifests(&context(), bytes))),
    ("config", config_file),
    ("flags", flags),
];

/// Gives bytes to the target of that name.
pub fn run(target: &str, bytes: &[u8]) {
    let run = TARGETS.iter().find(|(name, _)| *name == target).map(|(_, run)| run);
    assert!(run.is_some(), "there is no target {target}");
    run.into_iter().for_each(|run| run(bytes));
}

/// Changes all the way into a kernel, which must hold the same when everything is compared again, and nothing of it when all
/// objects are gone.
fn apply(changes: Vec<Change>) {
    if changes.is_empty() {
        return;
    }
    let mut host = Host::take();
    let mut engine = host.engine();
    let later = changes.len() / 2;
    for (number, change) in changes.into_iter().enumerate() {
        engine.apply(change);
        if number == later {
            write(&mut engine, &mut host.kernel);
        }
    }
    write(&mut engine, &mut host.kernel);
    let written = host.kernel.operations;
    engine.lost();
    write(&mut engine, &mut host.kernel);
    assert_eq!(host.kernel.operations, written, "a second look finds something to write");
    list_nothing(&mut engine);
    write(&mut engine, &mut host.kernel);
    for family in Family::ALL {
        for set in [SetName::ClusterIps, SetName::Frontends, SetName::Endpoints] {
            assert_eq!(
                host.kernel.tables.rows(family, set).count(),
                0,
                "{set:?} outlives Services"
            );
        }
    }
    host.put_back();
}

/// Every list has come, and is empty.
fn list_nothing(engine: &mut Engine) {
    RESOURCES.iter().for_each(|it| engine.apply(Change::Listing(*it)));
    RESOURCES.iter().for_each(|it| engine.apply(Change::Listed(*it)));
}

const RESOURCES: [Resource; 4] =
    [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr];

/// A kernel with our tables and no Services. They take much longer to make than most changes, so it is used again and
/// again, as long as it is as it was.
struct Host {
    kernel: MemoryKernel,
    /// The tables as they are made.
    fresh: Tables,
    /// What is to be seen of them.
    observed: BTreeMap<Family, ObservedTable>,
}

thread_local! {
    static HOST: RefCell<Option<Host>> = const { RefCell::new(None) };
}

impl Host {
    fn take() -> Host {
        HOST.take().unwrap_or_else(Host::new)
    }

    fn new() -> Host {
        let mut kernel = MemoryKernel::default();
        let mut engine = Engine::new(settings(), Cluster::new(&RESOURCES));
        list_nothing(&mut engine);
        write(&mut engine, &mut kernel);
        let observed = kernel.tables.observed(&program());
        Host { fresh: kernel.tables.clone(), kernel, observed }
    }

    /// One that knows the tables and has work all the same.
    fn engine(&self) -> Engine {
        let mut engine = Engine::new(settings(), Cluster::new(&RESOURCES));
        list_nothing(&mut engine);
        engine.observed(self.observed.clone());
        engine
    }

    fn put_back(self) {
        // Sets that have grown stay as they are.
        if self.kernel.tables == self.fresh {
            HOST.set(Some(self));
        }
    }
}

fn write(engine: &mut Engine, kernel: &mut MemoryKernel) {
    // Every pass writes something or ends it: a Service at a time would do.
    for _ in 0..1_000 {
        if !engine.has_work() {
            return;
        }
        if engine.needs_observation() {
            #[expect(clippy::expect_used, reason = "only a test ends here")]
            let tables = kernel.observe(engine.program()).expect("a kernel in memory can be read");
            engine.observed(tables);
        }
        let batch = engine.plan();
        let result = kernel.commit(&batch);
        assert!(result.is_ok(), "the kernel refuses: {result:?}");
        engine.committed();
    }
    unreachable!("there is always something to write");
}

/// A configuration file, and what is made of it: written out, it must mean the same.
fn config_file(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(args) = Args::parse_from(["kube-ferry"].map(OsString::from)) else { return };
    let _ = config::settings::resolve(&args, Some(text), "node");
    let Ok((mut object, _)) = config::file::read(text) else { return };
    object.set_defaults();
    let Ok(shown) = object.to_yaml() else { return };
    let again = config::file::read(&shown);
    assert!(again.as_ref().is_ok_and(|(it, _)| *it == object), "{shown}\n{again:?}\n{object:?}");
}

/// A command line, a word in each line of the text.
fn flags(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let line = std::iter::once("kube-ferry").chain(text.lines()).map(OsString::from);
    if let Ok(args) = Args::parse_from(line) {
        // Without the file that it may name.
        let _ = config::settings::resolve(&args, None, "node");
    }
}

fn context() -> Context {
    Context { node_name: "node".into(), external_ips_allowed: true }
}

fn settings() -> Settings {
    Settings {
        masquerade_mark: 0x4000,
        masquerade_all: false,
        ipvs: None,
        families: Family::ALL.to_vec(),
        detect_local: DetectLocal::ClusterCidr(Vec::new()),
        node_ports: NodePortSelector::Primary,
        node_ip: None,
    }
}

fn program() -> Program {
    settings().program(None)
}

#[cfg(test)]
mod tests;
