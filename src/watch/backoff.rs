//! How long to wait, with jitter so that thousands of nodes do not come back in step.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Exponential backoff: `first`, doubled at every further failure, never above `most`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    pub first: Duration,
    pub most: Duration,
}

impl Backoff {
    /// The wait after that many failures in a row (1 is the first), shortened at random by up to a half.
    ///
    /// `random` is in 0.0 ..= 1.0. Shortened, not lengthened, so that `most` holds as promised.
    pub(super) fn delay(&self, failures: u32, random: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let full = self.first.saturating_mul(1 << doublings).min(self.most);
        full.mul_f64(0.5 + 0.5 * random)
    }
}

/// A random number in 0.0 ..= 1.0, good enough to spread requests.
///
/// The standard library seeds `RandomState` from the system's entropy and gives every instance other keys; that is all
/// that jitter needs, and spares a dependency.
pub(super) fn random() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 40;
    f64::from(u32::try_from(bits).unwrap_or(0)) / f64::from((1_u32 << 24) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff =
        Backoff { first: Duration::from_millis(800), most: Duration::from_secs(30) };

    #[test]
    fn it_doubles_up_to_the_limit() {
        check(1, 1.0, 800);
        check(2, 1.0, 1_600);
        check(5, 1.0, 12_800);
        check(6, 1.0, 25_600);
        check(7, 1.0, 30_000);
        check(u32::MAX, 1.0, 30_000);
    }

    #[test]
    fn jitter_takes_away_up_to_a_half() {
        check(1, 0.0, 400);
        check(7, 0.5, 22_500);
        check(0, 0.0, 400);
    }

    #[test]
    fn random_numbers_differ_and_stay_in_range() {
        let drawn: Vec<f64> = (0..64).map(|_| random()).collect();
        assert!(drawn.iter().all(|it| (0.0..=1.0).contains(it)), "{drawn:?}");
        assert!(drawn.iter().any(|it| *it < 0.5) && drawn.iter().any(|it| *it > 0.5), "{drawn:?}");
    }

    #[track_caller]
    fn check(failures: u32, random: f64, milliseconds: u64) {
        assert_eq!(BACKOFF.delay(failures, random), Duration::from_millis(milliseconds));
    }
}
