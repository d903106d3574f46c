//! The loop: decides when, never what.
//!
//! It takes changes from the watchers, lets the [`Engine`] say what to write, has the kernel write it, and tells the
//! rest of the program how it went. It runs on a thread of its own, because a commit blocks; retries live here alone.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::kernel::{Kernel, KernelError};
use crate::model::Change;
use crate::serve::metrics::BatchResult;
use crate::watch::{ChangeReceiver, Received};

mod balancing;
mod drift;
pub mod engine;
pub mod facts;
pub mod pace;
mod report;
pub mod results;

pub use balancing::Balancing;
use drift::{Drift, Next};
use engine::{Engine, Refusal};
use facts::Live;
use pace::Pace;
use report::Reporter;
pub use report::{HealthChecks, Ports};

/// Changes taken at once before the next look at whether it is time to write.
const MOST_CHANGES: usize = 4_096;

/// How often a copy that stands by asks whether its turn has come.
const ASK_FOR_TURN_EVERY: Duration = Duration::from_millis(100);

/// The loop and everything it needs.
pub struct Sync<K> {
    engine: Engine,
    kernel: K,
    pace: Pace,
    changes: ChangeReceiver,
    reporter: Reporter,
    /// Services that the kernel refused are tried again this long after the last time.
    retry_refused: Duration,
    refused_since: Option<Instant>,
    drift: Drift,
    /// Until then nothing is written as long as the own Node's addresses are not known.
    node_deadline: Option<Instant>,
    /// Asks whether the kernel is ours to program; until it is, changes are taken and nothing else. `None`: it is.
    turn: Option<Box<dyn FnMut() -> bool>>,
    /// Settings that may change meanwhile.
    live: Option<watch::Receiver<Live>>,
    ipvs: Option<Balancing>,
}

/// How a pass ended.
enum Pass {
    /// Go on at once: more is to be written, or the rest of a refused batch.
    Again,
    /// Everything is written.
    Done,
    /// Wait, then look at the kernel again.
    Failed,
}

impl<K: Kernel> Sync<K> {
    /// `sync_period` bounds the back-off after failures and spaces retries of refused Services.
    pub fn new(
        engine: Engine,
        kernel: K,
        pace: Pace,
        changes: ChangeReceiver,
        ports: Ports,
        sync_period: Duration,
    ) -> Self {
        let reporter = Reporter::new(ports);
        Sync {
            engine,
            kernel,
            pace,
            changes,
            reporter,
            retry_refused: sync_period,
            refused_since: None,
            drift: Drift::default(),
            node_deadline: None,
            turn: None,
            live: None,
            ipvs: None,
        }
    }

    /// With virtual servers: those of IPVS mode, or what is left of it in nftables mode.
    pub fn balance(mut self, ipvs: Balancing) -> Self {
        if ipvs.settings.is_none() {
            self.engine.drain_servers(ipvs.drain);
        }
        self.ipvs = Some(ipvs);
        self
    }

    /// Neither reads nor writes the kernel's tables until `turn` has said so once.
    pub fn wait_for_turn(mut self, turn: impl FnMut() -> bool + 'static) -> Self {
        self.turn = Some(Box::new(turn));
        self
    }

    /// Follows settings while it runs: they count from the next look at the kernel on, half a second at most.
    pub fn follow(mut self, live: watch::Receiver<Live>) -> Self {
        self.live = Some(live);
        self
    }

    /// Holds back the first write until the own Node has addresses, but no longer than this: what accepts NodePorts
    /// depends on them (reference 11.1).
    pub fn wait_for_node(mut self, patience: Duration) -> Self {
        self.node_deadline = now().checked_add(patience);
        self
    }

    /// Runs until all watchers have ended. The rules stay in the kernel.
    pub fn run(mut self) {
        let families = self.engine.program().families.clone();
        self.reporter.started(&families);
        if self.has_turn() {
            self.reporter.waiting(&self.engine, false);
        }
        let mut changes = Vec::new();
        loop {
            let wait = self.wait();
            match self.changes.receive(&mut changes, MOST_CHANGES, wait) {
                Received::Closed => return,
                Received::Timeout => (),
                Received::Changes(_) => self.take(&mut changes),
            }
            self.take_settings();
            self.reporter.doubt(self.engine.doubt());
            if !self.has_turn() {
                continue;
            }
            self.retry_refused();
            self.look_for_drift();
            self.look_at_servers();
            if self.may_work() {
                self.reporter.queued(&self.engine);
                if self.pace.wait(now()).is_zero() {
                    self.passes();
                }
            }
        }
    }

    fn has_turn(&mut self) -> bool {
        let Some(turn) = self.turn.as_mut() else { return true };
        let come = turn();
        if come {
            self.turn = None;
        }
        come
    }

    fn take_settings(&mut self) {
        let Some(live) = self.live.as_mut().filter(|it| it.has_changed().unwrap_or(false)) else {
            return;
        };
        let Live { settings, min_sync_period, sync_period } = live.borrow_and_update().clone();
        self.engine.set_settings(settings);
        self.pace.set_periods(min_sync_period, sync_period);
        self.retry_refused = sync_period;
    }

    /// How long to wait for changes before doing something anyway; `None`: nothing else is to be done.
    fn wait(&self) -> Option<Duration> {
        if self.turn.is_some() {
            return Some(ASK_FOR_TURN_EVERY);
        }
        let node =
            self.node_deadline.map_or(Duration::ZERO, |it| it.saturating_duration_since(now()));
        let pass = self.engine.has_work().then(|| self.pace.wait(now()).max(node));
        let retry =
            self.refused_since.map(|since| self.retry_refused.saturating_sub(since.elapsed()));
        let look = self.drift.look_at().map(|at| at.saturating_duration_since(now()));
        let servers = self.next_look_at_servers().map(|at| at.saturating_duration_since(now()));
        pass.into_iter().chain(retry).chain(look).chain(servers).min()
    }

    fn may_work(&mut self) -> bool {
        let node = self.engine.cluster().node();
        if node.is_some_and(|node| !node.addresses.is_empty()) {
            self.node_deadline = None;
        } else if self.node_deadline.is_some_and(|deadline| deadline <= now()) {
            self.node_deadline = None;
            warn!(
                "the own Node object has no addresses or does not exist (--hostname-override?); going on without"
            );
        }
        self.reporter.waiting(&self.engine, self.node_deadline.is_some());
        self.engine.has_work() && self.node_deadline.is_none()
    }

    fn take(&mut self, changes: &mut Vec<Change>) {
        self.reporter.received(changes);
        for change in changes.drain(..) {
            self.engine.apply(change);
        }
        if let Some(node) = self.engine.cluster().node() {
            self.reporter.node(node);
        }
    }

    fn retry_refused(&mut self) {
        if self.refused_since.is_some_and(|since| since.elapsed() >= self.retry_refused) {
            self.refused_since = None;
            self.engine.retry_refused();
        }
    }

    /// Asks whether others have changed some table, and whether ours; if so, everything is compared with what is wanted,
    /// and repaired.
    fn look_for_drift(&mut self) {
        if self.drift.look_at().is_none_or(|at| at > now()) {
            return;
        }
        let changed = self.kernel.changed_by_others().unwrap_or_else(|failure| {
            debug!(%failure, "cannot ask whether others have changed tables");
            false
        });
        let mut next = self.drift.asked(changed, now());
        if next == Next::Survey {
            let began = now();
            let damage = self.survey();
            next = self.drift.surveyed(damage.is_some(), began, now());
            if let Some(what) = damage {
                info!(what, "somebody else has changed our tables: comparing everything");
            }
        }
        if next == Next::Compare {
            self.reporter.verifying();
            self.engine.lost();
        }
    }

    fn survey(&mut self) -> Option<String> {
        match self.kernel.survey(self.engine.program()) {
            Ok(shapes) => self.engine.damage(&shapes),
            Err(failure) => {
                debug!(%failure, "cannot look at the tables");
                None
            }
        }
    }

    /// Passes until everything is written, something fails, or changes have come that should go first.
    fn passes(&mut self) {
        let began = now();
        loop {
            match self.pass() {
                Pass::Done => {
                    self.drift.compared(self.reporter.verified(), began, now());
                    self.pace.succeeded(began, now());
                    self.reporter.done(&self.engine);
                    return;
                }
                Pass::Failed => {
                    let wait = self.pace.failed(now(), spread());
                    self.reporter.failed(wait, self.pace.failures());
                    return;
                }
                // A long first sync must not hold up changes: they are taken in between and written first.
                Pass::Again => {
                    self.reporter.waiting(&self.engine, false);
                    let mut changes = Vec::new();
                    match self.changes.receive(&mut changes, MOST_CHANGES, Some(Duration::ZERO)) {
                        Received::Closed => return,
                        Received::Timeout => (),
                        Received::Changes(_) => self.take(&mut changes),
                    }
                }
            }
        }
    }

    /// One batch.
    fn pass(&mut self) -> Pass {
        if self.engine.needs_observation() {
            match self.kernel.observe(self.engine.program()) {
                Ok(tables) => {
                    self.reporter.observed(&tables);
                    self.engine.observed(tables);
                }
                Err(failure) => return self.give_up(&failure),
            }
        }
        if let Err(pass) = self.observe_servers() {
            return pass;
        }
        let servers = self.engine.plan_servers();
        if let Err(pass) = self.change_servers(&servers) {
            return pass;
        }
        if self.engine.waits_for_servers() {
            return Pass::Again;
        }
        let batch = self.engine.plan();
        self.report_oddities();
        if !batch.is_empty() {
            let began = now();
            let result = self.kernel.commit(&batch);
            self.reporter.batch(&batch, outcome_of(&result), began.elapsed());
            match result {
                Ok(()) => (),
                Err(KernelError::Rejected(rejections)) => {
                    let refusal = self.engine.refused(rejections);
                    return self.refused(refusal);
                }
                Err(failure @ KernelError::NoRoom { .. }) => {
                    return match self.engine.postponed() {
                        Some(refusal) => self.refused(refusal),
                        None => self.give_up(&failure),
                    };
                }
                Err(failure) => {
                    self.engine.lost();
                    return self.give_up(&failure);
                }
            }
        }
        let servers = self.engine.plan_servers_after();
        let changed = self.change_servers(&servers);
        let outcome = self.engine.committed();
        self.reporter.committed(outcome, &self.engine);
        self.end_servers();
        if let Err(pass) = changed {
            return pass;
        }
        if self.engine.has_work() { Pass::Again } else { Pass::Done }
    }

    fn refused(&mut self, refusal: Refusal) -> Pass {
        match refusal {
            Refusal::LeftOut(services) => {
                self.refused_since.get_or_insert_with(now);
                for (service, rejection) in services {
                    self.reporter.left_out(self.engine.cluster(), service, &rejection);
                }
                Pass::Again
            }
            Refusal::Bisecting => {
                debug!(
                    "the kernel refuses a batch without saying why; looking for the Service with smaller ones"
                );
                Pass::Again
            }
            Refusal::Stale(rejection) => {
                warn!(%rejection, "the kernel does not hold what it should; the tables will be read again");
                Pass::Again
            }
            Refusal::Full(rejection) => {
                warn!(%rejection, "a set is full and this kernel does not make it larger (Linux 6.5 does); making the tables anew, with larger sets");
                Pass::Again
            }
            Refusal::Program(rejections) => {
                let first = rejections.first().map(ToString::to_string).unwrap_or_default();
                self.reporter.start_failed(format!("the kernel refuses the program: {first}"));
                error!(
                    refused = rejections.len(),
                    first,
                    "the kernel refuses the program itself; does it lack an nf_tables feature?"
                );
                Pass::Failed
            }
        }
    }

    fn give_up(&mut self, failure: &KernelError) -> Pass {
        self.reporter.start_failed(failure.to_string());
        match failure {
            KernelError::Unknown(_) | KernelError::Interrupted(_) | KernelError::Unread(_) => {
                info!(%failure, "the tables will be read again")
            }
            KernelError::Rejected(_)
            | KernelError::Unsupported(_)
            | KernelError::Owned { .. }
            | KernelError::NoRoom { .. }
            | KernelError::Socket { .. }
            | KernelError::Protocol { .. } => {
                warn!(%failure, "the kernel's tables could not be brought up to date");
            }
        }
        Pass::Failed
    }

    fn report_oddities(&mut self) {
        let conflicts = self.engine.take_conflicts();
        // Counting walks all Services, which one changed endpoint must not cost.
        if !conflicts.is_empty() {
            self.reporter.conflicts(self.engine.cluster(), conflicts, self.engine.conflict_count());
        }
        for limit in self.engine.take_limits() {
            self.reporter.limit(self.engine.cluster(), &limit);
        }
        for limit in self.engine.take_server_limits() {
            self.reporter.server_limit(self.engine.cluster(), &limit);
        }
    }
}

fn outcome_of(result: &Result<(), KernelError>) -> BatchResult {
    match result {
        Ok(()) => BatchResult::Committed,
        Err(KernelError::Rejected(_)) => BatchResult::Rejected,
        Err(KernelError::Unknown(_) | KernelError::Interrupted(_) | KernelError::Unread(_)) => {
            BatchResult::Uncertain
        }
        Err(
            KernelError::Unsupported(_)
            | KernelError::Owned { .. }
            | KernelError::NoRoom { .. }
            | KernelError::Socket { .. }
            | KernelError::Protocol { .. },
        ) => BatchResult::Failed,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the loop is the shell that tells the pure pace the time"
)]
fn now() -> Instant {
    Instant::now()
}

/// Something between 0 and 1 that differs from node to node and time to time; spreads retries.
fn spread() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0) >> 40;
    f64::from(u32::try_from(random).unwrap_or_default()) / f64::from(1_u32 << 24)
}
