//! When something was committed: the generation number of nf_tables, asked for again and again.

use std::thread::sleep;
use std::time::{Duration, Instant};

use kube_ferry::kernel::NetlinkKernel;

use super::now;

/// Between two questions.
const EVERY: Duration = Duration::from_micros(50);
/// What has not happened by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was committed when this was made.
pub(crate) struct Committed {
    kernel: NetlinkKernel,
    generation: u32,
}

impl Committed {
    pub(crate) fn now() -> Committed {
        let mut kernel = NetlinkKernel::new().unwrap();
        let generation = kernel.generation().unwrap();
        Committed { kernel, generation }
    }

    /// When the next commit was seen, in nanoseconds since the epoch.
    pub(crate) fn next(mut self) -> u64 {
        let began = Instant::now();
        while self.kernel.generation().unwrap() == self.generation {
            assert!(began.elapsed() < PATIENCE, "nothing is committed");
            sleep(EVERY);
        }
        now()
    }

    /// When the last commit was seen, once there were none for `quiet` and `is_done` says so.
    pub(crate) fn last_after(mut self, quiet: Duration, is_done: impl Fn() -> bool) -> u64 {
        let (began, mut last, mut since) = (Instant::now(), None, Instant::now());
        loop {
            let generation = self.kernel.generation().unwrap();
            if generation != self.generation {
                self.generation = generation;
                (last, since) = (Some(now()), Instant::now());
            }
            if let Some(last) = last
                && since.elapsed() > quiet
            {
                if is_done() {
                    return last;
                }
                since = Instant::now();
            }
            assert!(began.elapsed() < PATIENCE, "it is never done");
            sleep(EVERY);
        }
    }

    /// How many commits there were since.
    pub(crate) fn commits_since(mut self) -> u32 {
        self.kernel.generation().unwrap() - self.generation
    }
}

/// Waits for something that is looked at every 5 ms.
pub(crate) fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}: never");
        sleep(Duration::from_millis(5));
    }
}
