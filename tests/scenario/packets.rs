//! Stories carried out by the real binary, in a world of its own, with real packets.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use kube_ferry::model::{Family, Protocol};
use kube_ferry::nft::schema::TABLE;
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use super::datapath::{Attempt, Datapath, Reach, Wanted};
use super::in_ipvs;
use super::objects::Objects;
use super::run::{answers, classify, run};
use super::story::{Ending, Mode, ObjectRef, Step, Story};
use crate::support::client::{ANSWER, Outcome, SILENCE, ask};
use crate::support::patience::{LONG, poll};
use crate::support::proxy::Proxy;
use crate::support::witness::Monitor;
use crate::support::world::{Actor, POD_PORTS, World, twin};

/// Connections of one flow at least. A third backend that should not be there stays unseen once in 17,000 times.
const FEWEST_CONNECTIONS: usize = 24;

/// Connections of one flow while an expected backend is still missing: one in nine is missed once in 10^10 times.
const MOST_CONNECTIONS: usize = 200;

/// Connections of a `sticky` step: that four pods are always the same by chance happens once in 10^9.
const STICKY_CONNECTIONS: usize = 16;

/// Flows at one time. They mostly wait, but too many make silence out of a busy machine.
const FLOWS_AT_ONCE: usize = 8;

/// Cluster IP of the fence but for its last byte, a Service that changes with every change of a story: when it answers as it should, what
/// was written before it is in force too.
const FENCE: [u8; 3] = [10, 96, 0];

/// Runs a story; panics with the line of the file and the log of the proxy.
pub(crate) fn play(story: &Story) {
    play_and_look(story, |_| Ok(()));
}

/// As [`play`], with a look at the world at the end, while the proxy still runs.
pub(super) fn play_and_look(story: &Story, look: impl FnOnce(&World) -> Result<(), String>) {
    let mut world = World::new();
    world.listen_behind(&destinations(story));
    let mut packets = Packets::new(&world, story);
    if let Err(why) = run(story, &mut packets).and_then(|()| look(&world)) {
        panic!("tests/scenarios/{}.txt:{why}", story.name.replace('_', "-"));
    }
}

/// Where flows go: there the host answers what the proxy leaves alone.
fn destinations(story: &Story) -> Vec<(IpAddr, u16)> {
    let mut all = BTreeSet::new();
    for step in &story.steps {
        if let Step::Flow(flow) = &step.what {
            all.insert((IpAddr::from(flow.address), flow.port));
            all.insert((IpAddr::from(twin(flow.address)), flow.port));
        }
    }
    all.into_iter().collect()
}

/// The proxy under test in its world.
pub(crate) struct Packets<'w> {
    world: &'w World,
    directory: TempDir,
    arguments: Vec<String>,
    /// Not before the first objects.
    proxy: Option<Proxy<'w>>,
    mode: Mode,
    /// Listens while the proxy is away.
    monitor: Option<Monitor>,
    /// What IPVS had when the proxy went, in IPVS mode.
    virtual_servers: Vec<String>,
    /// Counts the changes of objects.
    changes: u16,
}

impl<'w> Packets<'w> {
    pub(super) fn new(world: &'w World, story: &Story) -> Packets<'w> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("manifests")).unwrap();
        let manifests = directory.path().join("manifests").display().to_string();
        let fixed = ["--hostname-override=node-1", &format!("--manifests={manifests}")];
        let mut arguments: Vec<String> = fixed.map(str::to_owned).to_vec();
        arguments.extend(story.arguments());
        Packets {
            world,
            directory,
            arguments,
            proxy: None,
            mode: story.mode,
            monitor: None,
            virtual_servers: Vec::new(),
            changes: 0,
        }
    }

    /// The sum of the values of a metric, as the proxy tells it.
    pub(super) fn metric(&self, name: &str) -> Option<f64> {
        self.proxy.as_ref()?.metric(name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes all objects as one file, in one step, with the fence as it is after this change.
    fn write(&self, objects: &Objects) {
        let mut objects = objects.clone();
        let [port, target] = self.fence_ports();
        objects.apply(
            &fence("Service"),
            json!({"spec": {
                "clusterIPs": self.fence_addresses(),
                "ports": [{"name": "fence", "port": port}],
            }}),
        );
        let pod = fence_pod();
        for (family, address) in Family::ALL.into_iter().zip(pod.addresses()) {
            let mut name = fence("EndpointSlice");
            name.name += if family == Family::V4 { "-v4" } else { "-v6" };
            objects.apply(
                &name,
                json!({
                    "metadata": {"labels": {"kubernetes.io/service-name": name_of_fence()}},
                    "addressType": if family == Family::V4 { "IPv4" } else { "IPv6" },
                    "ports": [{"name": "fence", "port": target, "protocol": "TCP"}],
                    "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
                }),
            );
        }
        let new = self.path("objects.new");
        std::fs::write(&new, objects.manifest()).unwrap();
        std::fs::rename(new, self.path("manifests/objects.yaml")).unwrap();
    }

    /// Port of the fence and of its pod after the current change: the one proves that Services are in force, the
    /// other EndpointSlices.
    fn fence_ports(&self) -> [u16; 2] {
        [1000 + self.changes, POD_PORTS[usize::from(self.changes) % POD_PORTS.len()]]
    }

    fn fence_addresses(&self) -> [IpAddr; 2] {
        self.fence_addresses_at(self.changes)
    }

    /// In IPVS mode another one with every change: of what comes, an address comes last.
    fn fence_addresses_at(&self, change: u16) -> [IpAddr; 2] {
        let last = match self.mode {
            Mode::Nftables => 254,
            Mode::Ipvs => 150 + u8::try_from(change % 100).unwrap_or_default(),
        };
        let [a, b, c] = FENCE;
        let address = [a, b, c, last].into();
        [IpAddr::V4(address), twin(address).into()]
    }

    fn wait_for_fence(&self) -> Result<(), String> {
        let client = Actor::find("client").ok_or("no client")?;
        let [port, target] = self.fence_ports();
        let log = || self.proxy.as_ref().map(Proxy::log).unwrap_or_default();
        for address in self.fence_addresses() {
            let to = SocketAddr::new(address, port);
            let passed = poll(LONG, || {
                let source = client.address(address);
                let outcome =
                    self.world.home(client).run(|| ask(source, to, Protocol::Tcp, SILENCE));
                let passed = matches!(&outcome, Outcome::Answered(it) if it.port == target);
                let why = || format!("a change is not in force, its fence {to}: {outcome}");
                passed.then_some(()).ok_or_else(why)
            });
            passed.map_err(|why| format!("{why}\nlog of the proxy:\n{}", log()))?;
        }
        if self.mode == Mode::Ipvs {
            self.wait_for_what_goes()?;
        }
        Ok(())
    }

    /// In IPVS mode endpoints that go lose their weight after all else, so what shows that they have is the fence of the
    /// change before.
    fn wait_for_what_goes(&self) -> Result<(), String> {
        let before = self.fence_addresses_at(self.changes.saturating_sub(1));
        poll(LONG, || {
            let serving = before.iter().find(|it| in_ipvs::is_served(self.world, **it));
            let why =
                |it| format!("a change is not in force, the fence before it, {it}, still serves");
            serving.map_or(Ok(()), |it| Err(why(it)))
        })
    }
}

impl Datapath for Packets<'_> {
    fn apply(&mut self, objects: &Objects) -> Result<(), String> {
        self.changes += 1;
        self.write(objects);
        if self.proxy.is_none() {
            let (node, log) = (self.world.node(), self.path("log"));
            self.proxy = Some(Proxy::start(node, self.arguments.clone(), log)?);
        }
        self.wait_for_fence()
    }

    fn reach(&self, attempts: &[Attempt]) -> Vec<BTreeSet<Reach>> {
        let next = AtomicUsize::new(0);
        let results = Mutex::new(vec![BTreeSet::new(); attempts.len()]);
        thread::scope(|scope| {
            for _ in 0..FLOWS_AT_ONCE.min(attempts.len()) {
                scope.spawn(|| {
                    while let Some((at, attempt)) = take(attempts, &next) {
                        let seen = reach(self.world, attempt);
                        results.lock().unwrap_or_else(PoisonError::into_inner)[at] = seen;
                    }
                });
            }
        });
        results.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_address(&mut self, address: IpAddr, present: bool) -> Result<(), String> {
        let (verb, length) =
            (if present { "add" } else { "del" }, if address.is_ipv4() { 32 } else { 128 });
        let nodad = if present && address.is_ipv6() { " nodad" } else { "" };
        self.world.node().ip(&format!("address {verb} {address}/{length} dev outside{nodad}\n"));
        Ok(())
    }

    fn stick(&self, attempt: &Attempt) -> Result<String, String> {
        let first = answers(self.world, attempt, 1)?.remove(0);
        let all = answers(self.world, attempt, STICKY_CONNECTIONS)?;
        if all.iter().any(|it| *it != first) {
            return Err(format!("first {first}, then {all:?}"));
        }
        Ok(first)
    }

    fn remembers(&self, source: Actor, family: Family) -> Option<Result<bool, String>> {
        let (table, at) = match family {
            Family::V4 => ("ip", 0),
            Family::V6 => ("ip6", 1),
        };
        if self.mode == Mode::Ipvs {
            return Some(Ok(in_ipvs::remembers(self.world, source.addresses()[at])));
        }
        let arguments = ["list", "map", table, TABLE, "affinity"];
        let listing = self.world.node().command("nft", &arguments, "");
        let address = source.addresses()[at].to_string();
        Some(Ok(listing.split([' ', '\t', '\n']).any(|word| word == address)))
    }

    fn pass(&mut self, time: Duration) {
        thread::sleep(time);
    }

    fn skip(&self, line: usize, what: &str) {
        panic!("line {line}: {what}, though there are packets");
    }

    fn stop(&mut self, ending: Ending) -> Result<(), String> {
        let proxy = self.proxy.as_mut().ok_or("the proxy has not been started")?;
        self.monitor = Some(Monitor::start(self.world.node()));
        if self.mode == Mode::Ipvs {
            self.virtual_servers = in_ipvs::virtual_servers(self.world);
        }
        match ending {
            Ending::Killed => {
                proxy.stop(Signal::KILL);
                Ok(())
            }
            Ending::Asked => {
                let status = proxy.stop(Signal::TERM);
                if status.success() {
                    Ok(())
                } else {
                    Err(format!("SIGTERM ended it with {status}"))
                }
            }
        }
    }

    fn start_again(&mut self) -> Result<Vec<String>, String> {
        self.proxy.as_mut().ok_or("the proxy has not been started")?.run()?;
        self.wait_for_fence()?;
        let mut monitor = self.monitor.take().ok_or("the proxy has not been stopped")?;
        let mut written = monitor.heard();
        if self.mode == Mode::Ipvs {
            written.extend(in_ipvs::differences(
                &self.virtual_servers,
                &in_ipvs::virtual_servers(self.world),
            ));
        }
        Ok(written)
    }

    fn upgrade(&mut self, flags: &[String]) -> Result<(), String> {
        let proxy = self.proxy.as_mut().ok_or("the proxy has not been started")?;
        proxy.stop(Signal::TERM);
        proxy.add_arguments(flags);
        proxy.run()?;
        self.wait_for_fence()
    }

    fn log(&self) -> Option<String> {
        self.proxy.as_ref().map(Proxy::log)
    }

    fn world(&self) -> Option<&World> {
        Some(self.world)
    }
}

fn take<'a>(attempts: &'a [Attempt], next: &AtomicUsize) -> Option<(usize, &'a Attempt)> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    attempts.get(at).map(|attempt| (at, attempt))
}

/// Opens connections until enough has been seen.
fn reach(world: &World, attempt: &Attempt) -> BTreeSet<Reach> {
    let source = attempt.source.address(attempt.to.ip());
    let (fewest, patience) = match &attempt.wanted {
        Wanted::Backends(..) => (FEWEST_CONNECTIONS, ANSWER),
        Wanted::Reject | Wanted::NotHandled => (2, ANSWER),
        Wanted::Drop => (1, SILENCE),
    };
    let mut seen = BTreeSet::new();
    world.home(attempt.source).run(|| {
        for count in 1..=MOST_CONNECTIONS {
            let reach = classify(&ask(source, attempt.to, attempt.protocol, patience));
            // Silence takes long; once is enough to know that the flow is not as it should be.
            let silent = matches!(reach, Reach::Dropped | Reach::Strange(_));
            seen.insert(reach);
            if silent || count >= fewest && attempt.wanted.has_all(&seen) {
                break;
            }
        }
    });
    seen
}

fn fence(kind: &str) -> ObjectRef {
    // Named to come last in every order.
    ObjectRef {
        kind: kind.to_owned(),
        namespace: "zz-fence".to_owned(),
        name: name_of_fence().to_owned(),
    }
}

fn name_of_fence() -> &'static str {
    "zz-fence"
}

fn fence_pod() -> Actor {
    Actor::find("pod-1b").unwrap_or_else(|| unreachable!("pod-1b is an actor"))
}
