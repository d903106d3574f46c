//! Which version of each object was seen last, so that late and repeated events do no harm.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;

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

/// What to do about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Something newer of this object has been seen.
    Outdated,
    /// Newer, but it says what was known: another annotation, a Node's heartbeat.
    Unchanged,
    Changed,
}

/// The newest version of every object of one resource, and a fingerprint of what it said: 24 bytes each, no names.
///
/// Two names with equal 64-bit hashes share an entry; an event of the older one would then be taken for outdated until
/// the next list. At 60,000 objects the chance of one such pair is about one in ten billion.
#[derive(Debug, Default)]
pub(super) struct Versions {
    seen: FxHashMap<Key, Seen>,
    deleted: VecDeque<(Key, u64)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// 0: opaque.
    version: u64,
    /// `None`: deleted.
    content: Option<NonZeroU64>,
}

impl Versions {
    /// Bytes on the heap, about.
    pub(super) fn heap_bytes(&self) -> usize {
        self.seen.capacity() * size_of::<(Key, Seen)>()
            + self.deleted.capacity() * size_of::<(Key, u64)>()
    }

    /// Takes note of an object that exists. Versions that are not numbers are opaque, as API servers before 1.35 reserve
    /// the right to send; they are never outdated.
    pub(super) fn applied(&mut self, key: Key, version: &str, content: NonZeroU64) -> News {
        self.note(key, version, Some(content))
    }

    /// Takes note of a deletion, like [`Versions::applied`].
    pub(super) fn deleted(&mut self, key: Key, version: &str) -> News {
        let Ok(number) = version.parse::<u64>() else {
            self.seen.remove(&key);
            return News::Changed;
        };
        if self.note(key, version, None) == News::Outdated {
            return News::Outdated;
        }
        self.deleted.push_back((key, number));
        if self.deleted.len() > REMEMBERED_DELETIONS
            && let Some((oldest, version)) = self.deleted.pop_front()
            && self.seen.get(&oldest).is_some_and(|it| it.version == version)
        {
            self.seen.remove(&oldest);
        }
        News::Changed
    }

    /// A list begins: what it says is the truth, even where versions went back (a restored etcd), and all of it has to be
    /// told again.
    pub(super) fn clear(&mut self) {
        self.seen.clear();
        self.deleted.clear();
    }

    fn note(&mut self, key: Key, version: &str, content: Option<NonZeroU64>) -> News {
        let version = version.parse::<u64>().ok();
        let known = self.seen.entry(key).or_default();
        if version.is_some_and(|version| version <= known.version) {
            return News::Outdated;
        }
        known.version = version.unwrap_or(known.version);
        if known.content == content {
            return News::Unchanged;
        }
        known.content = content;
        News::Changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_and_late_events_are_no_news() {
        check("+a5x +a5x +a4y +a6y", "changed outdated outdated changed");
    }

    #[test]
    fn a_late_event_does_not_bring_a_deleted_object_back() {
        check("+a5x -a9 +a6x -a9 +a10x", "changed changed outdated outdated changed");
    }

    #[test]
    fn other_objects_have_their_own_order() {
        check("+a9x +b3x +b2x", "changed changed outdated");
    }

    #[test]
    fn a_newer_version_that_says_the_same_is_unchanged() {
        check("+a5x +a6x +a7y +a8x", "changed unchanged changed changed");
        check("+a5x +a6x +a5y", "changed unchanged outdated");
    }

    #[test]
    fn what_is_created_anew_is_told_though_it_says_the_same() {
        check("+a5x -a6 +a7x", "changed changed changed");
    }

    #[test]
    fn opaque_versions_are_never_outdated() {
        check("+a?x +a?x -a? +a?x +a?y", "changed unchanged changed changed changed");
    }

    #[test]
    fn a_list_tells_everything_again() {
        let mut versions = Versions::default();
        let (key, content) = (Key::of("default", "a"), NonZeroU64::MIN);
        assert_eq!(versions.applied(key, "5", content), News::Changed);
        versions.clear();
        assert_eq!(versions.applied(key, "5", content), News::Changed);
    }

    #[test]
    fn memory_of_deletions_is_bounded() {
        let mut versions = Versions::default();
        for version in 1..10_000_u64 {
            let key = Key::of("default", &version.to_string());
            assert_eq!(versions.deleted(key, &version.to_string()), News::Changed);
        }
        assert_eq!(versions.seen.len(), REMEMBERED_DELETIONS);
    }

    /// Events as sign, object, version, content; the version `?` is opaque.
    #[track_caller]
    fn check(events: &str, expected: &str) {
        let mut versions = Versions::default();
        let news = events.split(' ').map(|event| {
            let key = Key::of("default", &event[1..2]);
            let told = match &event[..1] {
                "+" => {
                    let (version, content) = event[2..].split_at(event.len() - 3);
                    let content = NonZeroU64::new(content.as_bytes()[0].into()).unwrap();
                    versions.applied(key, version, content)
                }
                _ => versions.deleted(key, &event[2..]),
            };
            format!("{told:?}").to_lowercase()
        });
        assert_eq!(news.collect::<Vec<_>>().join(" "), expected);
    }
}
