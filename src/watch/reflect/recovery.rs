//! What to do when a list or watch is over, and how long to wait before.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::Change;
use crate::watch::backoff::random;
use crate::watch::channel::Closed;
use crate::watch::stats::State;
use crate::watch::trouble::{ApiError, Trouble};

use super::{Freshness, Reflector};

/// Lines that make no sense, one after the other, before the version is given up and everything listed anew.
const GARBAGE_LIMIT: u32 = 3;

/// The longest `Retry-After` that is obeyed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(120);

impl Reflector<'_> {
    /// The watch ended in an orderly way. Waits only if it had hardly begun.
    pub(super) fn after_end(&mut self) -> Duration {
        if self.has_settled() {
            self.failures = 0;
            return Duration::ZERO;
        }
        self.failures = self.failures.saturating_add(1);
        self.pace.backoff.delay(self.failures, random())
    }

    pub(super) fn after_failure(&mut self, error: &ApiError) -> Duration {
        self.report(error);
        if self.has_settled() {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        let backoff = self.pace.backoff.delay(self.failures, random());
        match error.trouble {
            Trouble::Gone => {
                self.version = None;
                return backoff.max(self.pace.relist_spread.mul_f64(random()));
            }
            Trouble::Refused => self.version = None,
            Trouble::Garbage if self.garbage >= GARBAGE_LIMIT => self.version = None,
            Trouble::Connect
            | Trouble::Tls
            | Trouble::Silence
            | Trouble::Broken
            | Trouble::Garbage
            | Trouble::Unauthorized
            | Trouble::Forbidden
            | Trouble::NotFound
            | Trouble::TooManyRequests
            | Trouble::ServerError => (),
        }
        match error.retry_after {
            // Not all at the very moment that the server named.
            Some(asked) => {
                asked.min(LONGEST_RETRY_AFTER).mul_f64(1.0 + 0.2 * random()).max(backoff)
            }
            None => backoff,
        }
    }

    fn has_settled(&mut self) -> bool {
        self.following.take().is_some_and(|since| since.elapsed() >= self.pace.settled)
    }

    /// Whether the server or our role lacks an optional resource. What was there once is not taken away: a role loses it
    /// for a moment while an API server starts and has not read all roles yet, and one of several servers may be older
    /// than the others, or no API server at all but a load balancer that has none. Those are failures like others.
    pub(super) fn is_absent(&self, error: &ApiError) -> bool {
        let never_listed = self.freshness == Freshness::Cached;
        let absent = matches!(error.trouble, Trouble::NotFound | Trouble::Forbidden);
        self.spec.optional && absent && never_listed
    }

    /// The server or our role lacks an optional resource: that is a complete list of nothing.
    pub(super) async fn announce_absence(&mut self, error: &ApiError) -> Result<(), Closed> {
        self.report(error);
        self.version = None;
        self.following = None;
        if self.stats.state() == State::Absent {
            return Ok(());
        }
        self.sender.send(Change::Listing(self.spec.resource)).await?;
        self.sender.send(Change::Listed(self.spec.resource)).await?;
        self.stats.set_state(State::Absent);
        Ok(())
    }

    /// Counts every failure, logs a kind of failure once until it is over.
    fn report(&mut self, error: &ApiError) {
        self.stats.count_error(error.trouble);
        if self.stats.state() != State::Absent {
            self.stats.set_state(State::Waiting);
        }
        let resource = self.spec.resource;
        if self.reported == Some(error.trouble) || error.trouble == Trouble::Gone {
            tracing::debug!(?resource, %error, "the watch failed again");
            return;
        }
        self.reported = Some(error.trouble);
        tracing::warn!(?resource, %error, "the watch failed and will be tried again; forwarding goes on as it is");
    }

    pub(super) fn now_following(&mut self) {
        self.stats.set_state(State::Watching);
        self.following = Some(Instant::now());
        if self.reported.take().is_some() {
            tracing::info!(resource = ?self.spec.resource, "the watch works again");
        }
    }
}
