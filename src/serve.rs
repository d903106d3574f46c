//! What the outside can ask: metrics, health, and the answers to load balancers' health checks.
//!
//! In come facts from the sync loop, as method calls on [`Metrics`] and [`SharedHealth`] from any thread; out go HTTP
//! answers. Nothing here decides anything about forwarding. [`health`] and [`readiness`] are pure, [`http`] serves them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

pub mod health;
pub mod http;
pub mod listen;
pub mod metrics;
pub mod node_port_health;
pub mod readiness;

use self::health::{Answer, Health, Now, Report};
pub use self::metrics::Metrics;
pub use self::node_port_health::{HealthCheck, ListenFailure, ListenOn, NodePortHealth};
pub use self::readiness::Start;
use crate::model::{Family, Node};

/// [`Health`] with a clock, and how far the start is, for all threads.
#[derive(Clone, Debug)]
pub struct SharedHealth {
    state: Arc<Mutex<(Health, Start)>>,
    /// Where the steady clock starts.
    start: Instant,
}

impl SharedHealth {
    /// `sync_period` as configured.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the shell's side of health: it reads the clock"
    )]
    pub fn new(sync_period: Duration) -> Self {
        let state = (Health::new(sync_period), Start::default());
        SharedHealth { state: Arc::new(Mutex::new(state)), start: Instant::now() }
    }

    /// A sync of this family was asked for.
    pub fn queued(&self, family: Family) {
        let now = self.now();
        self.lock().0.queued(family, now);
    }

    /// A sync of this family succeeded, or its loop has just started.
    pub fn updated(&self, family: Family) {
        let now = self.now();
        self.lock().0.updated(family, now);
    }

    /// The own Node as it is now; not to be called when it is deleted.
    pub fn node(&self, node: &Node) {
        self.lock().0.node(node);
    }

    /// Whether another copy is at work, and this one waits for its turn.
    pub fn standing_by(&self, yes: bool) {
        self.lock().0.standing_by(yes);
        if yes {
            self.started(Start::StandingBy);
        }
    }

    pub fn report(&self) -> Report {
        let now = self.now();
        self.lock().0.report(now)
    }

    /// Another sync period from now on.
    pub fn set_sync_period(&self, sync_period: Duration) {
        self.lock().0.set_sync_period(sync_period);
    }

    /// How far the start is. Once it is done it stays so.
    pub fn started(&self, start: Start) {
        let (_, known) = &mut *self.lock();
        if *known != Start::Done {
            *known = start;
        }
    }

    /// What `/readyz` names as missing; empty while it is 200.
    pub fn missing(&self) -> Vec<String> {
        let now = self.now();
        let (health, start) = &*self.lock();
        readiness::missing(start, &health.report(now))
    }

    /// The answer of `/readyz`.
    pub fn readyz(&self) -> Answer {
        let now = self.now();
        let (health, start) = &*self.lock();
        readiness::readyz(start, &health.report(now))
    }

    fn now(&self) -> Now {
        Now { wall: Timestamp::now(), steady: self.start.elapsed() }
    }

    /// A thread that panicked in here left plain data behind that is good enough to go on with.
    fn lock(&self) -> MutexGuard<'_, (Health, Start)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
