//! When to look for changes that others made in our tables: pure, `now` in, deadline out.
//!
//! Nobody tells us of such changes: a listener on the group of nf_tables would be sent every element that anybody writes,
//! our own ones first of all. So there are three questions, each dearer than the one before:
//!
//! 1. Twice a second the generation of nf_tables, one message: has anybody changed anything in the namespace?
//! 2. If so, everything is compared: that finds any change, but reads every row. While others keep changing their own
//!    tables, such comparisons rest for [`REST`] times their own length, so that they take a twentieth of a core at most.
//! 3. While they rest, a survey: our sets and chains, and how many rules and rows there are by the numbers that the kernel
//!    keeps anyway. It costs less than a millisecond whatever the number of Services, and sees what does most harm: a
//!    table, set, chain or rule that is gone or new, and rows that are gone. What it finds is compared and repaired at once.
//!
//! What a survey cannot see, such as a rule in the place of another one, waits for the end of the rest: [`LONGEST_REST`]
//! at most.

use std::time::{Duration, Instant};

/// How often it is asked whether anybody has changed anything.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Rest after a comparison that may have been needless, in multiples of its length.
const REST: u32 = 19;
/// However long a comparison takes, the next one may come after this.
const LONGEST_REST: Duration = Duration::from_secs(10);

/// Rest after a survey, in multiples of its length; short ones need none beside the half second between looks. They are
/// long only if others have many chains, which the kernel lists together with ours.
const SURVEY_REST: u32 = 49;

/// Rest after a repair, before the next one, in multiples of its length: who fights over our tables gets a fifth of a
/// core, not all of it.
const REPAIR_REST: u32 = 4;

/// Decides what to ask. Not a clock: every method is told the time.
#[derive(Debug, Default)]
pub(super) struct Drift {
    /// When to ask next; `None` while everything is compared anyway.
    look_at: Option<Instant>,
    /// Somebody has changed some table, perhaps ours, since everything was compared last.
    suspicious: bool,
    /// Somebody has changed ours.
    damaged: bool,
    /// No comparison for a mere suspicion before this.
    rested: Option<Instant>,
    /// No comparison for damage before this.
    repaired: Option<Instant>,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    /// Read our tables without their rules and rows, and tell [`Drift::surveyed`].
    Survey,
    /// Compare everything, and tell [`Drift::compared`].
    Compare,
}

impl Drift {
    /// When the next question is due.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// The generation was asked for; `changed`: others have increased it.
    pub(super) fn asked(&mut self, changed: bool, now: Instant) -> Next {
        self.look_at = now.checked_add(LOOK_EVERY);
        self.suspicious |= changed;
        let next = self.compare_if_rested(now);
        if next == Next::Nothing && changed && !self.damaged { Next::Survey } else { next }
    }

    /// A survey has ended that began at `began`.
    pub(super) fn surveyed(&mut self, damaged: bool, began: Instant, now: Instant) -> Next {
        let rest = now.saturating_duration_since(began).saturating_mul(SURVEY_REST);
        self.look_at = now.checked_add(rest.clamp(LOOK_EVERY, LONGEST_REST));
        self.damaged |= damaged;
        self.compare_if_rested(now)
    }

    fn compare_if_rested(&mut self, now: Instant) -> Next {
        let over = |rest: Option<Instant>| rest.is_none_or(|it| it <= now);
        if self.damaged && over(self.repaired) || self.suspicious && over(self.rested) {
            self.look_at = None;
            return Next::Compare;
        }
        Next::Nothing
    }

    /// Everything is as wanted, as far as known, after work that began at `began`. `written`: whether a comparison that
    /// [`Next::Compare`] asked for found something to repair; `None` if it was other work.
    pub(super) fn compared(&mut self, written: Option<bool>, began: Instant, now: Instant) {
        if let Some(written) = written {
            let took = now.saturating_duration_since(began);
            let rest = |times| now.checked_add(took.saturating_mul(times).min(LONGEST_REST));
            self.rested = rest(REST);
            // Damage that a comparison does not confirm, somebody's unfinished transaction perhaps, is a mere suspicion.
            if self.damaged || written {
                self.repaired = rest(if written { REPAIR_REST } else { REST });
            }
            (self.suspicious, self.damaged) = (false, false);
        }
        if self.look_at.is_none() {
            self.look_at = now.checked_add(LOOK_EVERY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A neighbour that changes its tables all the time, and what becomes of damage to ours.
    struct World {
        drift: Drift,
        now: Instant,
        /// What a whole comparison takes, and a survey.
        costs: (Duration, Duration),
        busy: bool,
        /// Damage that a survey sees, and such that it does not.
        seen: bool,
        unseen: bool,
        worked: Duration,
    }

    impl World {
        fn new(comparison: Duration, survey: Duration) -> World {
            #[expect(
                clippy::disallowed_methods,
                reason = "an Instant can be had from the clock only; just an origin here"
            )]
            let now = Instant::now();
            let mut drift = Drift::default();
            drift.compared(None, now, now);
            let costs = (comparison, survey);
            let busy = true;
            World { drift, now, costs, busy, seen: false, unseen: false, worked: Duration::ZERO }
        }

        /// One turn of the loop, at the time it wants to be woken up.
        fn turn(&mut self) {
            self.now = self.now.max(self.drift.look_at().unwrap());
            let changed = self.busy || self.seen || self.unseen;
            let mut next = self.drift.asked(changed, self.now);
            if next == Next::Survey {
                let began = self.now;
                self.work(self.costs.1);
                next = self.drift.surveyed(self.seen, began, self.now);
            }
            if next == Next::Compare {
                let began = self.now;
                self.work(self.costs.0);
                self.drift.compared(Some(self.seen || self.unseen), began, self.now);
                (self.seen, self.unseen) = (false, false);
            }
        }

        fn work(&mut self, took: Duration) {
            self.now += took;
            self.worked += took;
        }

        fn run_for(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.turn();
            }
        }

        /// How long damage stays.
        fn repair(&mut self) -> Duration {
            let began = self.now;
            while self.seen || self.unseen {
                self.turn();
            }
            self.now - began
        }
    }

    #[test]
    fn any_damage_is_repaired_at_the_next_look_if_nobody_else_is_at_work() {
        let mut world = World::new(400 * MS, 2 * MS);
        world.busy = false;
        world.run_for(20_000 * MS);
        assert_eq!(world.worked, Duration::ZERO, "nobody has changed anything");
        world.unseen = true;
        assert!(world.repair() <= 900 * MS);
    }

    #[test]
    fn what_a_survey_sees_is_repaired_within_a_second_however_busy_others_are() {
        for at in 0..100 {
            let mut world = World::new(400 * MS, 2 * MS);
            world.run_for(30_000 * MS + 137 * MS * at);
            world.seen = true;
            assert!(world.repair() <= 1_000 * MS, "{at}");
        }
    }

    #[test]
    fn what_a_survey_does_not_see_is_repaired_within_the_longest_rest() {
        for comparison in [10, 400, 2_000] {
            let mut world = World::new(comparison * MS, 2 * MS);
            world.run_for(30_000 * MS);
            world.unseen = true;
            assert!(world.repair() <= LONGEST_REST + 2 * LOOK_EVERY + comparison * MS);
        }
    }

    #[test]
    fn a_busy_neighbour_costs_a_bounded_share_of_a_core() {
        for (comparison, survey) in [(1, 1), (100, 2), (400, 3), (500, 40)] {
            let mut world = World::new(comparison * MS, survey * MS);
            let began = world.now;
            world.run_for(600_000 * MS);
            let share = world.worked.as_secs_f64() / (world.now - began).as_secs_f64();
            assert!(share < 0.072, "{share} at {comparison}");
        }
    }

    #[test]
    fn a_fight_over_our_tables_takes_a_fifth_of_a_core_at_most() {
        let mut world = World::new(400 * MS, 2 * MS);
        let began = world.now;
        while world.now < began + 60_000 * MS {
            world.seen = true;
            world.turn();
        }
        let share = world.worked.as_secs_f64() / (world.now - began).as_secs_f64();
        assert!((0.1..0.25).contains(&share), "{share}");
    }

    #[test]
    fn a_false_alarm_is_not_believed_over_and_over() {
        let mut world = World::new(400 * MS, 2 * MS);
        world.run_for(20_000 * MS);
        let (mut comparisons, began) = (0, world.now);
        while world.now < began + 60_000 * MS {
            world.now = world.now.max(world.drift.look_at().unwrap());
            let mut next = world.drift.asked(true, world.now);
            if next == Next::Survey {
                next = world.drift.surveyed(true, world.now, world.now);
            }
            if next == Next::Compare {
                let began = world.now;
                world.now += 400 * MS;
                world.drift.compared(Some(false), began, world.now);
                comparisons += 1;
            }
        }
        assert!((6..=9).contains(&comparisons), "{comparisons}");
    }
}
