//! Waiting for a condition, with a bound. Nothing in the tests sleeps and hopes.

#![expect(clippy::disallowed_methods, reason = "tests bound their waits by the real clock")]

use std::time::{Duration, Instant};

/// How long a condition may take that will come true: generous, because a loaded machine is no defect, nor is an
/// emulated one.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(4);

/// Asks until there is an answer; the last refusal if there is none in time.
pub(crate) fn poll<T>(
    limit: Duration,
    mut ask: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let deadline = Instant::now() + limit;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(why) if Instant::now() >= deadline => {
                return Err(format!("not within {limit:?}: {why}"));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Time left until `limit` has passed since `start`, never zero: sockets take zero for "no limit".
pub(crate) fn left(start: Instant, limit: Duration) -> Duration {
    limit.saturating_sub(start.elapsed()).max(Duration::from_millis(1))
}
