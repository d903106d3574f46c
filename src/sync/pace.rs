//! When the next pass may run: pure, `now` in, deadline out.
//!
//! The first change goes out at once, and so do those that follow as long as passes have not worked for long of late.
//! Under pressure changes wait for each other, so that passes take a bounded share of a core: all the work beyond an
//! allowance is made up for by rests of `REST` times its length, and meanwhile changes of the same Service merge.
//! The first sync brings everything, long as it takes, and is no pressure: what changes right after it goes out at once.
//! `minSyncPeriod` is the longest that a change waits for that reason; kube-proxy's meaning, a fixed pause after every
//! pass, exists to protect it from its own cost per pass, which is not ours.
//! After a failure the next pass waits for a back-off of its own, from 100 ms doubling up to `syncPeriod`.

use std::time::{Duration, Instant};

/// Rest after work, in multiples of its length: in the long run passes use at most a fifth of a core.
const REST: u32 = 4;
/// So much work needs no rest before the next pass: some hundred slices that change in one moment are written without
/// waiting for each other.
const ALLOWANCE: Duration = Duration::from_millis(40);
/// First wait after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// Paces passes. Not a clock: every method is told the time.
#[derive(Clone, Debug)]
pub struct Pace {
    min_sync_period: Duration,
    sync_period: Duration,
    /// No pass before this.
    rested: Option<Instant>,
    /// Work that was not rested from yet, and when that was so.
    owed: Option<(Duration, Instant)>,
    /// A pass has ended well.
    begun: bool,
    /// Failures in a row.
    failures: u32,
}

impl Pace {
    pub fn new(min_sync_period: Duration, sync_period: Duration) -> Pace {
        Pace { min_sync_period, sync_period, rested: None, owed: None, begun: false, failures: 0 }
    }

    /// Other settings from now on; a wait that is under way stays as it is.
    pub fn set_periods(&mut self, min_sync_period: Duration, sync_period: Duration) {
        self.min_sync_period = min_sync_period;
        self.sync_period = sync_period;
    }

    /// How long a pass has to wait; zero if it may run now.
    pub fn wait(&self, now: Instant) -> Duration {
        self.rested.map_or(Duration::ZERO, |rested| rested.saturating_duration_since(now))
    }

    /// A pass that began at `began` has ended well.
    pub fn succeeded(&mut self, began: Instant, now: Instant) {
        self.failures = 0;
        if !std::mem::replace(&mut self.begun, true) {
            self.rested = None;
            return;
        }
        let owed = self.owed_at(began) + now.saturating_duration_since(began);
        self.owed = Some((owed, now));
        let rest = owed.saturating_sub(ALLOWANCE).saturating_mul(REST).min(self.min_sync_period);
        self.rested = now.checked_add(rest);
    }

    /// What is left to be rested from; bounded, since no rest is longer than `minSyncPeriod` anyway.
    fn owed_at(&self, now: Instant) -> Duration {
        let (owed, since) = self.owed.unwrap_or((Duration::ZERO, now));
        let rested = now.saturating_duration_since(since) / REST;
        owed.saturating_sub(rested).min(ALLOWANCE + self.min_sync_period / REST)
    }

    /// A pass has failed; returns how long the retry waits.
    ///
    /// The wait is spread by `spread` in `0.0..1.0` (half to full length), so that nodes that failed together do not
    /// try again together.
    pub fn failed(&mut self, now: Instant, spread: f64) -> Duration {
        let doubled = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        let wait = doubled.min(self.sync_period).mul_f64(0.5 + spread.clamp(0.0, 1.0) / 2.0);
        self.rested = now.checked_add(wait);
        wait
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pace() -> (Pace, Instant) {
        #[expect(
            clippy::disallowed_methods,
            reason = "an Instant can be had from the clock only; just an origin here"
        )]
        let origin = Instant::now();
        let mut pace = Pace::new(Duration::from_secs(1), Duration::from_secs(30));
        pace.succeeded(origin, origin);
        (pace, origin)
    }

    #[test]
    fn the_first_pass_runs_at_once() {
        let (pace, now) = pace();
        assert_eq!(pace.wait(now), Duration::ZERO);
    }

    #[test]
    fn the_first_sync_delays_nothing() {
        let (_, now) = pace();
        let mut pace = Pace::new(Duration::from_secs(1), Duration::from_secs(30));
        pace.failed(now, 1.0);
        pace.succeeded(now, now + 900 * MS);
        assert_eq!(pace.wait(now + 900 * MS), Duration::ZERO);
        pace.succeeded(now + 900 * MS, now + 930 * MS);
        assert_eq!(pace.wait(now + 930 * MS), Duration::ZERO);
        pace.succeeded(now + 930 * MS, now + 960 * MS);
        assert_eq!(pace.wait(now + 960 * MS), 80 * MS, "the next ones count");
    }

    #[test]
    fn a_burst_of_short_passes_needs_no_rest() {
        let (mut pace, mut now) = pace();
        for _ in 0..20 {
            pace.succeeded(now, now + 2 * MS);
            now += 2 * MS;
            assert_eq!(pace.wait(now), Duration::ZERO);
        }
        pace.succeeded(now, now + 2 * MS);
        assert_eq!(pace.wait(now + 2 * MS), 8 * MS, "four times what is beyond 40 ms");
    }

    #[test]
    fn rest_is_in_proportion_to_the_work_and_bounded() {
        let (mut pace, now) = pace();
        pace.succeeded(now, now + 60 * MS);
        assert_eq!(pace.wait(now + 60 * MS), 80 * MS);
        assert_eq!(pace.wait(now + 140 * MS), Duration::ZERO);
        pace.succeeded(now + 140 * MS, now + 150 * MS);
        assert_eq!(pace.wait(now + 150 * MS), 40 * MS, "the allowance is used up");
        pace.succeeded(now, now + 900 * MS);
        assert_eq!(pace.wait(now + 900 * MS), Duration::from_secs(1));
    }

    #[test]
    fn under_steady_pressure_a_fifth_of_the_time_is_work() {
        let (mut pace, start) = pace();
        let (mut now, mut worked) = (start, Duration::ZERO);
        while now < start + Duration::from_secs(60) {
            now += pace.wait(now);
            pace.succeeded(now, now + 7 * MS);
            now += 7 * MS;
            worked += 7 * MS;
        }
        let share = worked.as_secs_f64() / now.duration_since(start).as_secs_f64();
        assert!((0.19..0.21).contains(&share), "{share}");
    }

    #[test]
    fn rest_restores_the_allowance() {
        let (mut pace, now) = pace();
        pace.succeeded(now, now + 40 * MS);
        let later = now + 40 * MS + 160 * MS;
        pace.succeeded(later, later + 40 * MS);
        assert_eq!(pace.wait(later + 40 * MS), Duration::ZERO);
    }

    #[test]
    fn a_zero_min_sync_period_never_waits() {
        let (_, now) = pace();
        let mut pace = Pace::new(Duration::ZERO, Duration::from_secs(30));
        pace.succeeded(now, now);
        pace.succeeded(now, now + 900 * MS);
        assert_eq!(pace.wait(now + 900 * MS), Duration::ZERO);
    }

    #[test]
    fn failures_back_off_up_to_the_sync_period_and_success_forgets_them() {
        let (mut pace, now) = pace();
        let waits: Vec<_> = (0..12).map(|_| pace.failed(now, 1.0).as_millis()).collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[11], 30_000);
        assert_eq!(pace.failed(now, 0.0), Duration::from_secs(15));
        pace.succeeded(now, now);
        assert_eq!(pace.failures(), 0);
        assert_eq!(pace.failed(now, 1.0), 100 * MS);
    }
}
