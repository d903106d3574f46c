//! What is known about each watch: plain atomics that the metrics page and the health check read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::model::{Resource, Skipped};

use super::trouble::Trouble;

/// Figures of all watches. Written by the watchers, read by anybody, never locked.
#[derive(Debug, Default)]
pub struct Stats {
    service: ResourceStats,
    endpoint_slice: ResourceStats,
    node: ResourceStats,
    service_cidr: ResourceStats,
    /// Objects, or parts of them, that were left out, by kind and reason; both are closed sets.
    skipped: Mutex<BTreeMap<(Resource, &'static str), u64>>,
}

impl Stats {
    /// Counts something that is left out.
    pub fn count_skipped(&self, skipped: &Skipped) {
        let mut counts = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((skipped.resource, skipped.reason)).or_default() += 1;
    }

    /// What was left out so far.
    pub fn skipped(&self) -> BTreeMap<(Resource, &'static str), u64> {
        self.skipped.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn of(&self, resource: Resource) -> &ResourceStats {
        match resource {
            Resource::Service => &self.service,
            Resource::EndpointSlice => &self.endpoint_slice,
            Resource::Node => &self.node,
            Resource::ServiceCidr => &self.service_cidr,
        }
    }
}

/// Where a watch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing tried yet.
    Starting = 0,
    /// Objects are being listed.
    Listing = 1,
    /// Complete and following.
    Watching = 2,
    /// The last attempt failed; waiting before the next.
    Waiting = 3,
    /// The server does not have this resource; complete and empty.
    Absent = 4,
}

/// Figures of one watch. Counters since the start of the process.
#[derive(Debug, Default)]
pub struct ResourceStats {
    state: AtomicU8,
    /// Lists begun, the first included.
    pub lists: AtomicU64,
    /// Objects that arrived, by lists and by watches.
    pub objects: AtomicU64,
    /// Objects left out because a newer version of them had been seen.
    pub outdated: AtomicU64,
    /// Objects left out because they differ from what was known in nothing that anybody here consults.
    pub unchanged: AtomicU64,
    /// Bytes of response bodies.
    pub bytes: AtomicU64,
    /// Milliseconds since the epoch when bytes last arrived; 0: never. The age of a healthy watch stays below the
    /// interval of bookmarks, about a minute.
    pub last_contact: AtomicI64,
    /// Bytes that are remembered of the objects, about.
    pub memory: AtomicU64,
    errors: [AtomicU64; Trouble::ALL.len()],
}

impl ResourceStats {
    pub fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            1 => State::Listing,
            2 => State::Watching,
            3 => State::Waiting,
            4 => State::Absent,
            _ => State::Starting,
        }
    }

    /// Failures of this kind.
    pub fn errors(&self, trouble: Trouble) -> u64 {
        self.errors.get(trouble as usize).map_or(0, |it| it.load(Ordering::Relaxed))
    }

    pub(super) fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub(super) fn count_object(&self) {
        self.objects.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remembers(&self, bytes: usize) {
        self.memory.store(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a failure.
    pub fn count_error(&self, trouble: Trouble) {
        if let Some(counter) = self.errors.get(trouble as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.last_contact.store(jiff::Timestamp::now().as_millisecond(), Ordering::Relaxed);
    }
}
