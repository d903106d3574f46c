//! When something was committed: the generation number of nf_tables, asked for again and again.

use std::thread::sleep;
use std::time::{Duration, Instant};

use kube_ferry::kernel::NetlinkKernel;

use super::now;

/// Between two questions about the next commit.
const EVERY: Duration = Duration::from_micros(50);
/// Between two questions about the last one of many: a hundred times less than what is measured so, and the processor that asks
/// is one that the proxy and the API server could use.
const NOW_AND_THEN: Duration = Duration::from_micros(200);
/// What has not happened by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sees commits.
///
/// One for many of them: when a socket of nf_tables is closed, the kernel waits for what is to be destroyed, holding the
/// mutex that a commit needs (`nft_rcv_nl_event` in nf_tables_api.c), some milliseconds. The next commit would be late by that.
pub(crate) struct Commits {
    kernel: NetlinkKernel,
    generation: u32,
}

impl Commits {
    /// Those from now on.
    pub(crate) fn watch() -> Commits {
        let mut kernel = NetlinkKernel::new().unwrap();
        let generation = kernel.generation().unwrap();
        Commits { kernel, generation }
    }

    /// What was committed so far does not count any more.
    pub(crate) fn forget(&mut self) {
        self.generation = self.kernel.generation().unwrap();
    }

    /// When the next commit was seen, in nanoseconds since the epoch.
    pub(crate) fn next(&mut self) -> u64 {
        let began = Instant::now();
        while self.kernel.generation().unwrap() == self.generation {
            assert!(began.elapsed() < PATIENCE, "nothing is committed");
            sleep(EVERY);
        }
        now()
    }

    /// When the last commit was seen, once there were none for `quiet` and `is_done` says so.
    pub(crate) fn last_after(&mut self, quiet: Duration, is_done: impl Fn() -> bool) -> u64 {
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
            sleep(NOW_AND_THEN);
        }
    }

    /// How many there were.
    pub(crate) fn count(&mut self) -> u32 {
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
