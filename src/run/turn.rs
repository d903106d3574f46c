//! Two copies in one network namespace: the second waits for the end of the first.
//!
//! Both would write the same tables, each undoing what the other did. While it waits the second one follows the
//! objects, so that it can go on where the first has left off; it reads and writes no tables.

use std::convert::Infallible;
use std::thread::Builder;

use tracing::{info, warn};

use super::Shell;
use crate::kernel::lock::{Holder, LockError, NamespaceLock};
use crate::serve::{Metrics, SharedHealth};
use crate::watch::{Notice, NoticeKind, Recorder, Regarding};
use tokio::sync::watch;

/// Waits for the end of another copy, and tells the rest of the program about it.
pub(super) struct Turn {
    metrics: Metrics,
    health: SharedHealth,
    recorder: Recorder,
    turn: watch::Sender<bool>,
    standing_by: bool,
}

impl Turn {
    pub(super) fn new(shell: &Shell, recorder: Recorder) -> Turn {
        Turn {
            metrics: shell.metrics.clone(),
            health: shell.health.clone(),
            recorder,
            turn: shell.turn.clone(),
            standing_by: false,
        }
    }

    /// Whether this copy may program the kernel; once it may, it may for good.
    pub(super) fn has_come(&mut self) -> bool {
        match self.attempt() {
            Ok(false) => return false,
            Ok(true) => (),
            // Nobody is served by a proxy that does nothing. What two writers undo, the look for changes by others
            // brings back.
            Err(why) => warn!("{why}; going on without being sure that no other copy runs"),
        }
        if self.standing_by {
            info!("the other copy has ended; taking over");
            self.metrics.standing_by(false);
            self.health.standing_by(false);
        }
        self.turn.send_replace(true);
        true
    }

    fn attempt(&mut self) -> Result<bool, LockError> {
        if let Some(lock) = NamespaceLock::attempt()? {
            keep(lock);
            return Ok(true);
        }
        if !self.standing_by
            && let Some(holder) = NamespaceLock::holder()?
        {
            self.stand_by(&holder);
        }
        Ok(false)
    }

    fn stand_by(&mut self, holder: &Holder) {
        self.standing_by = true;
        self.metrics.standing_by(true);
        self.health.standing_by(true);
        let note = format!(
            "another kube-ferry runs in this network namespace ({holder}); standing by until it ends"
        );
        warn!("{note}");
        self.recorder.record(Notice {
            kind: NoticeKind::Warning,
            reason: "StandingBy",
            action: "Start",
            note,
            regarding: Regarding::Node,
        });
    }
}

/// Holds the lock until the process ends.
fn keep(lock: NamespaceLock) {
    // Nobody joins this thread: it waits for connections, and ends with the process.
    let kept = Builder::new().name("lock".to_owned()).spawn(move || -> Infallible { lock.keep() });
    if let Err(failure) = kept {
        warn!(%failure, "cannot keep the lock of the network namespace; another copy would not wait");
    }
}
