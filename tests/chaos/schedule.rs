//! One run: changes and faults as the dice fall, and the reckoning at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::faults;
use super::listing::{Listing, list};
use super::oracle::{Backends, Front};
use super::probes::{Traffic, answerer, connect, fixed_targets, is_fixed, reachable};
use super::record::Record;
use super::shop::{NODE, Shop};
use crate::support::apiserver::ApiServer;
use crate::support::client::{ANSWER, Outcome, SILENCE};
use crate::support::dice::Dice;
use crate::support::patience::poll;
use crate::support::proxy::Proxy;
use crate::support::witness::{self, Flow};
use crate::support::world::{Actor, World};

/// Within this time the kernel must hold what the objects mean once nothing disturbs any more. A half-open connection is
/// noticed within 20 s, a list waits 5 s at most, and the machine is busy.
const RECOVERY: Duration = Duration::from_secs(90);

/// Between two looks at all tables.
const LOOK: Duration = Duration::from_millis(100);

/// How a run is set up, as the seed says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    tls: bool,
    /// The server does not know streaming lists.
    pages: bool,
    /// The kernel keeps others from our tables (where it can).
    owned: bool,
}

impl Setting {
    pub(super) fn of(seed: u64) -> Setting {
        let mut dice = Dice::new(!seed);
        let mut percent = |chance| dice.percent(chance);
        Setting { tls: percent(60), pages: percent(30), owned: percent(40) }
    }
}

/// What may happen besides changes of objects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Menu {
    /// Faults of the API server in a row: the more there are, the longer the proxy leaves it alone.
    pub(super) api_faults: usize,
    /// The process is killed or ended, and started again.
    pub(super) restarts: bool,
    /// At the end connections that hang are left alone, so that the proxy has to find out by itself.
    pub(super) patient: bool,
}

/// What is needed for a schedule; the same for all schedules of one run.
pub(super) struct Stage<'w> {
    pub(super) world: &'w World,
    pub(super) server: &'w ApiServer,
    pub(super) record: &'w Record,
    pub(super) traffic: &'w Traffic,
    pub(super) proxy: Proxy<'w>,
    pub(super) shop: Shop<'w>,
    /// Somebody else writes to nf_tables.
    pub(super) is_disturbed: &'w AtomicBool,
    api_faults: usize,
    /// In how many steps the stopped process goes on.
    stopped: Option<usize>,
    /// In how many steps the process that was ended starts again.
    ended: Option<usize>,
    began: std::time::Instant,
    story: Vec<String>,
    pub(super) tally: Tally,
}

/// What happened, in numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) changes: usize,
    pub(super) faults: BTreeMap<&'static str, usize>,
    pub(super) slowest_repair: Duration,
    pub(super) slowest_settling: Duration,
}

/// Plays in a world of its own: `body` gets the stage.
pub(super) fn on_stage<T>(
    seed: u64,
    setting: Setting,
    body: impl FnOnce(&mut Stage<'_>) -> T,
) -> T {
    let world = World::new();
    let start = if setting.tls { ApiServer::start_tls } else { ApiServer::start };
    let server = world.node().run(start);
    if setting.pages {
        server.refuse_streaming_lists();
    }
    let (record, traffic) = (Record::default(), Traffic::default());
    let shop = Shop::open(&server, &record, &mut Dice::new(seed));
    let directory = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(
        world.node(),
        arguments(&server, &directory, setting),
        directory.path().join("log"),
    );
    let (is_disturbed, end) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| faults::disturb(world.node(), &is_disturbed, &end));
        let _end = StoreOnDrop { busy: &is_disturbed, end: &end };
        let mut stage = Stage {
            world: &world,
            server: &server,
            record: &record,
            traffic: &traffic,
            proxy: proxy.unwrap(),
            shop,
            is_disturbed: &is_disturbed,
            api_faults: 0,
            stopped: None,
            ended: None,
            began: now(),
            story: Vec::new(),
            tally: Tally::default(),
        };
        traffic.during(&world, &record, seed, || body(&mut stage))
    })
}

/// Ends the thread of [`faults::disturb`], also in a panic.
struct StoreOnDrop<'a> {
    busy: &'a AtomicBool,
    end: &'a AtomicBool,
}

impl Drop for StoreOnDrop<'_> {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        self.busy.store(false, Ordering::SeqCst);
    }
}

fn arguments(server: &ApiServer, directory: &TempDir, setting: Setting) -> Vec<String> {
    let kubeconfig = server.kubeconfig(directory.path(), None);
    [
        "--proxy-mode=nftables".to_owned(),
        format!("--hostname-override={NODE}"),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--own-tables={}", setting.owned),
        "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48".to_owned(),
    ]
    .to_vec()
}

impl Stage<'_> {
    /// That many steps, and order in the end.
    pub(super) fn play(&mut self, dice: &mut Dice, steps: usize, menu: Menu) {
        for _ in 0..steps {
            self.step(dice, menu);
            self.must_be_well();
        }
        self.settle(menu.patient);
    }

    fn step(&mut self, dice: &mut Dice, menu: Menu) {
        self.go_on();
        match dice.below(100) {
            0..=59 => {
                for _ in 0..=dice.below(4) {
                    let told = self.shop.change(dice);
                    self.tally.changes += 1;
                    self.tell(told);
                }
            }
            60..=79 => {
                if self.api_faults < menu.api_faults {
                    self.api_faults += 1;
                    let told = faults::befall(self.server, dice);
                    self.note("API server", told);
                }
            }
            80..=86 => {
                let damage = faults::damage(dice);
                self.damage(&damage);
            }
            87..=90 => {
                let busy = !self.is_disturbed.load(Ordering::SeqCst);
                self.is_disturbed.store(busy, Ordering::SeqCst);
                self.note("foreign writer", format!("somebody else writes to nf_tables: {busy}"));
            }
            91..=94 => self.stop(1 + dice.below(6)),
            95..=97 => {
                let change = dice.of(&["add", "del"]);
                self.world.node().run(|| {
                    // It may be there already, or gone.
                    crate::support::command::output(
                        "ip",
                        &["address", change, "192.0.2.77/32", "dev", "lo"],
                        "",
                    );
                });
                self.note("addresses", format!("address {change} 192.0.2.77"));
            }
            _ => {
                let signal = dice.of(&[Signal::KILL, Signal::TERM]);
                let steps = dice.below(4);
                if menu.restarts {
                    self.end(signal, steps);
                }
            }
        }
        thread::sleep(Duration::from_millis(10 * dice.below(12) as u64));
    }

    fn tell(&mut self, told: String) {
        self.story.push(format!("{:>7.2} {told}", self.began.elapsed().as_secs_f64()));
    }

    fn note(&mut self, kind: &'static str, told: String) {
        *self.tally.faults.entry(kind).or_default() += 1;
        self.tell(told);
    }

    fn stop(&mut self, steps: usize) {
        if self.stopped.is_none() && self.ended.is_none() {
            self.proxy.signal(Signal::STOP);
            self.stopped = Some(steps);
            self.note("SIGSTOP", format!("the proxy is stopped for {steps} steps"));
        }
    }

    fn end(&mut self, signal: Signal, steps: usize) {
        if self.stopped.is_none() && self.ended.is_none() {
            self.proxy.stop(signal);
            self.ended = Some(steps);
            let kind = if signal == Signal::KILL { "SIGKILL" } else { "SIGTERM" };
            self.note(kind, format!("{kind}, and a new start in {steps} steps"));
        }
    }

    /// A process that is stopped or ended goes on when its time has come.
    fn go_on(&mut self) {
        match self.stopped.take() {
            Some(0) => self.proxy.signal(Signal::CONT),
            Some(left) => self.stopped = Some(left - 1),
            None => (),
        }
        match self.ended.take() {
            Some(0) => self.proxy.spawn().unwrap(),
            Some(left) => self.ended = Some(left - 1),
            None => (),
        }
    }

    /// Somebody damages our tables; waits until the Services that never change are whole again.
    ///
    /// Only while the proxy can repair it: it runs and has read the objects.
    fn damage(&mut self, damage: &str) {
        if self.stopped.is_some() || self.ended.is_some() || !self.has_synchronised() {
            return self.tell("no damage: the proxy could not repair it now".to_owned());
        }
        self.traffic.damaged();
        if !faults::inflict(self.world.node(), damage).unwrap() {
            self.traffic.repaired();
            return self.note("refused damage", format!("the kernel refuses {damage:?}"));
        }
        self.note("damage", format!("{damage:?}"));
        let whole = poll(RECOVERY, || {
            let found = list(self.world.node()).and_then(|it| it.forwarding());
            thread::sleep(if found.is_ok() { Duration::ZERO } else { LOOK });
            let found = found?;
            let now = self.record.now();
            let same = |front: &Front| found.fronts.get(front) == now.fronts.get(front);
            let all = now.fronts.keys().filter(|it| is_fixed(**it)).all(same);
            if all { self.everybody_fixed_answers() } else { Err(format!("{:?}", found.fronts)) }
        });
        let took = self.traffic.repaired();
        whole.unwrap_or_else(|why| panic!("{damage:?} is not repaired: {why}"));
        self.tally.slowest_repair = self.tally.slowest_repair.max(took);
        self.tell(format!("repaired in {took:?}"));
    }

    fn has_synchronised(&self) -> bool {
        let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}";
        self.proxy.metric(name).is_some_and(|it| it > 0.0)
    }

    pub(super) fn everybody_fixed_answers(&self) -> Result<(), String> {
        for front in fixed_targets(self.record) {
            let (client, to) = seen_from(front);
            let outcome = self.world.home(client).run(|| connect(client, front, to, SILENCE * 2));
            if !matches!(outcome, Outcome::Answered(_)) {
                return Err(format!("{front:?}: {outcome}"));
            }
        }
        Ok(())
    }

    /// Nothing has gone wrong yet that must not.
    pub(super) fn must_be_well(&mut self) {
        let failures = self.traffic.failures();
        assert!(failures.is_empty(), "{}\n{}", self.told(), failures.join("\n"));
        let ended = if self.ended.is_none() { self.proxy.exit_status() } else { None };
        assert_eq!(ended, None, "the proxy ended by itself\n{}", self.told());
    }

    pub(super) fn told(&self) -> String {
        self.story.join("\n")
    }

    /// Takes all faults away, waits for the kernel to hold what the objects mean, and looks whether it is so.
    pub(super) fn settle(&mut self, patient: bool) {
        self.stopped.iter_mut().chain(&mut self.ended).for_each(|it| *it = 0);
        self.go_on();
        self.is_disturbed.store(false, Ordering::SeqCst);
        self.server.forget_faults();
        self.server.come_up();
        if !patient {
            self.server.drop_connections();
        }
        self.api_faults = 0;
        let began = now();
        let expected = self.record.now();
        let settled = poll(RECOVERY, || {
            let found = list(self.world.node()).and_then(|it| it.forwarding());
            if found.as_ref() == Ok(&expected) {
                return Ok(());
            }
            thread::sleep(LOOK);
            Err(found?.differences(&expected))
        });
        settled.unwrap_or_else(|why| panic!("{}\n{why}", self.told()));
        self.tally.slowest_settling = self.tally.slowest_settling.max(began.elapsed());
        self.traffic.fence();
        self.record.settled(self.server);
        self.must_be_well();
        self.check_packets(&expected.fronts);
        self.check_flows(&expected.fronts);
        self.tell("settled".to_owned());
    }

    /// Every frontend answers as it should, or refuses, or is silent.
    fn check_packets(&self, fronts: &BTreeMap<Front, Backends>) {
        let fronts: Vec<(&Front, &Backends)> = fronts.iter().collect();
        thread::scope(|scope| {
            for part in fronts.chunks(fronts.len().div_ceil(4)) {
                scope.spawn(|| {
                    part.iter().for_each(|(front, backends)| self.check_front(**front, backends))
                });
            }
        });
    }

    fn check_front(&self, front: Front, backends: &Backends) {
        let (client, to) = seen_from(front);
        let expected = seen_by(client, backends);
        let is_rejected = self.record.now().rejected.contains(&front);
        let patience = if expected.is_empty() && !is_rejected { SILENCE } else { ANSWER };
        let outcome = self.world.home(client).run(|| connect(client, front, to, patience));
        let good = match &outcome {
            Outcome::Answered(answer) => expected.contains(&answerer(answer, to)),
            Outcome::Refused => is_rejected,
            Outcome::TimedOut => expected.is_empty() && !is_rejected,
            Outcome::Failed(_) => false,
        };
        assert!(
            good,
            "{}\n{} -> {front:?}: {outcome}, expected {expected:?}",
            self.told(),
            client.name
        );
    }

    /// No UDP flow is kept on its way to an endpoint that its frontend does not have.
    fn check_flows(&self, fronts: &BTreeMap<Front, Backends>) {
        let expected: BTreeMap<SocketAddr, BTreeSet<SocketAddr>> = fronts
            .iter()
            .map(|(front, it)| {
                let outside = it.outside.iter().flatten();
                (seen_from(*front).1, it.all.iter().chain(outside).copied().collect())
            })
            .collect();
        let is_stale = |flow: &Flow| {
            let (to, by) = (flow.original.destination, flow.reply.source);
            flow.protocol == "udp"
                && to != by
                && expected.get(&to).is_some_and(|it| !it.contains(&by))
        };
        let swept = poll(RECOVERY, || {
            let stale: Vec<Flow> =
                witness::flows(self.world.node()).into_iter().filter(is_stale).collect();
            thread::sleep(if stale.is_empty() { Duration::ZERO } else { LOOK });
            if stale.is_empty() { Ok(()) } else { Err(format!("{stale:#?}")) }
        });
        swept.unwrap_or_else(|why| panic!("{}\nstale flows stay: {why}", self.told()));
    }

    pub(super) fn listing(&self) -> Listing {
        poll(RECOVERY, || list(self.world.node())).unwrap()
    }
}

/// From where a frontend is tried, and at which address.
fn seen_from(front: Front) -> (Actor, SocketAddr) {
    ["client", "outside"]
        .map(|name| Actor::find(name).unwrap())
        .into_iter()
        .find_map(|client| Some((client, reachable(front, client)?)))
        .unwrap()
}

fn seen_by(client: Actor, backends: &Backends) -> &BTreeSet<SocketAddr> {
    match &backends.outside {
        Some(outside) if client.name == "outside" => outside,
        _ => &backends.all,
    }
}

#[expect(clippy::disallowed_methods, reason = "how long recovery takes is told")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}
