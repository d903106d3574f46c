//! Connections all the time: to Services that nobody changes, which must answer, and to those that change, which must
//! not be answered by anybody else.

#![expect(clippy::disallowed_methods, reason = "tests bound their waits by the real clock")]

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use kube_ferry::model;

use super::oracle::{Family, Front, Protocol};
use super::record::Record;
use super::shop::FIXED;
use crate::support::client::{ANSWER, Answer, Outcome, ask};
use crate::support::dice::Dice;
use crate::support::world::{Actor, World};

/// Between two connections of one prober: others want the processor too.
const PACE: Duration = Duration::from_millis(15);

/// How long a connection waits that need not be answered.
const BRIEF: Duration = Duration::from_millis(400);

/// What the probers share with the schedule.
#[derive(Default)]
pub(super) struct Traffic {
    end: AtomicBool,
    failures: Mutex<Vec<String>>,
    damages: Mutex<Vec<Damage>>,
    /// Read while a connection is under way.
    under_way: RwLock<()>,
    pub(super) answered: AtomicU64,
    /// Connections to a Service that changes, answered by one of its endpoints.
    pub(super) checked: AtomicU64,
    pub(super) excused: AtomicU64,
}

/// From when until when somebody else's damage to our tables excuses a failed connection.
struct Damage {
    from: Instant,
    until: Option<Instant>,
}

impl Traffic {
    /// Probes while `body` runs. Returns what `body` returns.
    pub(super) fn during<T>(
        &self,
        world: &World,
        record: &Record,
        seed: u64,
        body: impl FnOnce() -> T,
    ) -> T {
        thread::scope(|scope| {
            for client in ["client", "outside"] {
                let client = Actor::find(client).unwrap();
                let prober = Prober { traffic: self, world, record, client };
                scope.spawn(move || prober.home().run(|| prober.probe_fixed()));
                scope.spawn(move || prober.home().run(|| prober.probe_changing(seed)));
            }
            // Also when the body panics: else nobody would ever end the probers.
            let _end = EndOnDrop(&self.end);
            body()
        })
    }

    /// What went wrong so far.
    pub(super) fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until every connection that is under way has been judged.
    pub(super) fn fence(&self) {
        drop(self.under_way.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Damage is being done.
    pub(super) fn damaged(&self) {
        self.damages().push(Damage { from: Instant::now(), until: None });
    }

    /// Everything is repaired. Returns how long it took.
    pub(super) fn repaired(&self) -> Duration {
        let mut damages = self.damages();
        let last = damages.last_mut().unwrap();
        let now = Instant::now();
        last.until = Some(now);
        now - last.from
    }

    fn is_excused(&self, from: Instant, until: Instant) -> bool {
        let overlaps = |it: &Damage| it.from <= until && it.until.is_none_or(|end| end >= from);
        self.damages().iter().any(overlaps)
    }

    fn damages(&self) -> std::sync::MutexGuard<'_, Vec<Damage>> {
        self.damages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, why: String) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(why);
    }
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[derive(Clone, Copy)]
struct Prober<'a> {
    traffic: &'a Traffic,
    world: &'a World,
    record: &'a Record,
    client: Actor,
}

impl Prober<'_> {
    fn home(&self) -> &crate::support::namespace::Namespace {
        self.world.home(self.client)
    }

    fn is_over(&self) -> bool {
        self.traffic.end.load(Ordering::SeqCst)
    }

    fn probe_fixed(&self) {
        let targets = fixed_targets(self.record);
        for front in targets.iter().cycle() {
            if self.is_over() {
                return;
            }
            self.probe(*front, true);
            thread::sleep(PACE);
        }
    }

    fn probe_changing(&self, seed: u64) {
        let mut dice = Dice::new(seed ^ u64::from(u32::from(self.client.v4)));
        while !self.is_over() {
            let fronts = self.record.fronts();
            self.probe(fronts[dice.below(fronts.len())], false);
            thread::sleep(PACE);
        }
    }

    fn probe(&self, front: Front, must_answer: bool) {
        let Some(to) = reachable(front, self.client) else { return };
        let must_answer = must_answer || self.record.must_answer(front);
        let _under_way = self.traffic.under_way.read().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        let patience = if must_answer { ANSWER } else { BRIEF };
        let outcome = connect(self.client, front, to, patience);
        let ended = Instant::now();
        let told = || format!("{} -> {front:?} at {to}: {outcome}", self.client.name);
        match &outcome {
            Outcome::Answered(answer) if self.record.may_answer(front, answerer(answer, to)) => {
                let counter =
                    if must_answer { &self.traffic.answered } else { &self.traffic.checked };
                counter.fetch_add(1, Ordering::Relaxed);
            }
            // Nothing excuses the wrong endpoint.
            Outcome::Answered(_) => {
                self.traffic.fail(format!("{}, which is none of its endpoints", told()));
            }
            // Judged anew: what had to be served at the beginning may be gone by now.
            _ if must_answer && (is_fixed(front) || self.record.must_answer(front)) => {
                if self.traffic.is_excused(began, ended) {
                    self.traffic.excused.fetch_add(1, Ordering::Relaxed);
                } else {
                    self.traffic.fail(format!("{} after {:?}", told(), ended - began));
                }
            }
            Outcome::Refused | Outcome::TimedOut | Outcome::Failed(_) => (),
        }
    }
}

/// The frontends that never change.
pub(super) fn fixed_targets(record: &Record) -> Vec<Front> {
    record.fronts().into_iter().filter(|it| is_fixed(*it)).collect()
}

pub(super) fn is_fixed(front: Front) -> bool {
    let last = |number: &usize| u16::try_from(100 + number).unwrap();
    FIXED.iter().any(|number| match front {
        // Last byte or, spelled alike, last group.
        Front::Address(IpAddr::V4(v4), ..) => u16::from(v4.octets()[3]) == last(number),
        Front::Address(IpAddr::V6(v6), ..) => {
            format!("{:x}", v6.segments()[7]) == last(number).to_string()
        }
        Front::NodePort(_, port, _) => usize::from(port) % 100 == *number,
    })
}

/// Where `client` connects to; pods do not use NodePorts here, and addresses of load balancers are for outside.
pub(super) fn reachable(front: Front, client: Actor) -> Option<SocketAddr> {
    let outside = client.name == "outside";
    match front {
        Front::Address(address, port, _) => {
            let text = address.to_string();
            let cluster_ip = text.starts_with("10.96.") || text.starts_with("fd00:10:96:");
            (cluster_ip != outside).then_some(SocketAddr::new(address, port))
        }
        Front::NodePort(family, port, _) => {
            let [v4, v6] = node_addresses();
            let address = if family == Family::V4 { v4 } else { v6 };
            outside.then_some(SocketAddr::new(address, port))
        }
    }
}

fn node_addresses() -> [IpAddr; 2] {
    Actor::find("node-1").unwrap().addresses()
}

/// Connects once. Call it in the client's namespace.
pub(super) fn connect(client: Actor, front: Front, to: SocketAddr, patience: Duration) -> Outcome {
    let protocol = match front.protocol() {
        Protocol::Tcp => model::Protocol::Tcp,
        Protocol::Udp => model::Protocol::Udp,
    };
    let source = client.address(to.ip());
    let outcome = ask(source, to, protocol, patience);
    // Nobody repeats a lost packet of UDP but the client: its flow may have been forgotten under way.
    if outcome == Outcome::TimedOut && front.protocol() == Protocol::Udp {
        return ask(source, to, protocol, patience);
    }
    outcome
}

/// The endpoint behind an answer.
pub(super) fn answerer(answer: &Answer, to: SocketAddr) -> SocketAddr {
    let address = Actor::find(&answer.by).map(|it| it.address(to.ip()));
    SocketAddr::new(
        address.unwrap_or_else(|| panic!("nobody is called {}", answer.by)),
        answer.port,
    )
}
