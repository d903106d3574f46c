//! What the outside can ask: metrics, health, and the answers to load balancers' health checks.
//!
//! In come facts from the sync loop, as method calls on [`Metrics`] and [`SharedHealth`] from any thread; out go HTTP
//! answers. Nothing here decides anything about forwarding. [`health`] is a pure state machine, [`http`] serves it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

pub mod health;
pub mod http;
pub mod listen;
pub mod metrics;
pub mod node_port_health;

use self::health::{Health, Now, Report};
pub use self::metrics::Metrics;
pub use self::node_port_health::{HealthCheck, ListenFailure, ListenOn, NodePortHealth};
use crate::model::{Family, Node};

/// [`Health`] with a clock, for all threads.
#[derive(Clone, Debug)]
pub struct SharedHealth {
    health: Arc<Mutex<Health>>,
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
        let health = Arc::new(Mutex::new(Health::new(sync_period)));
        SharedHealth { health, start: Instant::now() }
    }

    /// A sync of this family was asked for.
    pub fn queued(&self, family: Family) {
        let now = self.now();
        self.lock().queued(family, now);
    }

    /// A sync of this family succeeded, or its loop has just started.
    pub fn updated(&self, family: Family) {
        let now = self.now();
        self.lock().updated(family, now);
    }

    /// The own Node as it is now; not to be called when it is deleted.
    pub fn node(&self, node: &Node) {
        self.lock().node(node);
    }

    /// Whether another copy is at work, and this one waits for its turn.
    pub fn standing_by(&self, yes: bool) {
        self.lock().standing_by(yes);
    }

    pub fn report(&self) -> Report {
        let now = self.now();
        self.lock().report(now)
    }

    fn now(&self) -> Now {
        Now { wall: Timestamp::now(), steady: self.start.elapsed() }
    }

    /// A thread that panicked in here left plain data behind that is good enough to go on with.
    fn lock(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
