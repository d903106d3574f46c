//! Which version of each object was seen last, so that late and repeated events do no harm.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use rustc_hash::FxHashMap;

/// Deleted objects whose version is still remembered. An event that is late by more deletions than this would bring an
/// object back; API servers send a watch's events in order, so this guards against broken proxies in between.
const REMEMBERED_DELETIONS: usize = 1_024;

/// A hash of namespace and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(u64);

impl Key {
    pub(super) fn of(namespace: &str, name: &str) -> Key {
        let mut hasher = DefaultHasher::new();
        (namespace, name).hash(&mut hasher);
        Key(hasher.finish())
    }
}

/// The newest version of every object of one resource: 16 bytes each, no names.
///
/// Two names with equal 64-bit hashes share an entry; an event of the older one would then be taken for outdated until
/// the next list. At 60,000 objects the chance of one such pair is about one in ten billion.
#[derive(Debug, Default)]
pub(super) struct Versions {
    seen: FxHashMap<Key, u64>,
    deleted: VecDeque<(Key, u64)>,
}

impl Versions {
    /// Whether this is news. Versions that are not numbers are opaque, as API servers before 1.35 reserve the right to
    /// send; they are always news.
    pub(super) fn applied(&mut self, key: Key, version: &str) -> bool {
        let Ok(version) = version.parse::<u64>() else { return true };
        self.note(key, version)
    }

    /// Whether this is news, like [`Versions::applied`].
    pub(super) fn deleted(&mut self, key: Key, version: &str) -> bool {
        let Ok(version) = version.parse::<u64>() else {
            self.seen.remove(&key);
            return true;
        };
        if !self.note(key, version) {
            return false;
        }
        self.deleted.push_back((key, version));
        if self.deleted.len() > REMEMBERED_DELETIONS
            && let Some((oldest, version)) = self.deleted.pop_front()
            && self.seen.get(&oldest) == Some(&version)
        {
            self.seen.remove(&oldest);
        }
        true
    }

    /// A list begins: what it says is the truth, even where versions went back (a restored etcd).
    pub(super) fn clear(&mut self) {
        self.seen.clear();
        self.deleted.clear();
    }

    fn note(&mut self, key: Key, version: u64) -> bool {
        let known = self.seen.entry(key).or_insert(0);
        let news = version > *known;
        *known = version.max(*known);
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_and_late_events_are_no_news() {
        check("+a5 +a5 +a4 +a6", "yes no no yes");
    }

    #[test]
    fn a_late_event_does_not_bring_a_deleted_object_back() {
        check("+a5 -a9 +a6 -a9 +a10", "yes yes no no yes");
    }

    #[test]
    fn other_objects_have_their_own_order() {
        check("+a9 +b3 +b2", "yes yes no");
    }

    #[test]
    fn opaque_versions_are_always_news() {
        check("+ax +ax -ax +ax", "yes yes yes yes");
    }

    #[test]
    fn memory_of_deletions_is_bounded() {
        let mut versions = Versions::default();
        for version in 1..10_000_u64 {
            let key = Key::of("default", &version.to_string());
            assert!(versions.deleted(key, &version.to_string()));
        }
        assert_eq!(versions.seen.len(), REMEMBERED_DELETIONS);
    }

    #[track_caller]
    fn check(events: &str, expected: &str) {
        let mut versions = Versions::default();
        let news = events.split(' ').map(|event| {
            let key = Key::of("default", &event[1..2]);
            let news = match &event[..1] {
                "+" => versions.applied(key, &event[2..]),
                _ => versions.deleted(key, &event[2..]),
            };
            if news { "yes" } else { "no" }
        });
        assert_eq!(news.collect::<Vec<_>>().join(" "), expected);
    }
}
