//! Finds Services, and the owners of slices, by name, without keeping the names a second time.

use std::hash::{DefaultHasher, Hash, Hasher};

use hashbrown::HashTable;

use super::cluster::ServiceId;
use super::name::ObjectName;

/// For each name that was put in the id it stands under. The caller, who has the names, says whether an id is the one.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(HashTable<Place>);

/// Eight bytes, where a table with names as keys takes forty.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Of the name; kept because one id may stand for several names.
    hash: u32,
    id: ServiceId,
}

impl Places {
    pub(super) fn get(
        &self,
        name: &ObjectName,
        is_it: impl Fn(ServiceId) -> bool,
    ) -> Option<ServiceId> {
        let hash = hash(name);
        let found = self.0.find(spread(hash), |it| it.hash == hash && is_it(it.id));
        found.map(|it| it.id)
    }

    /// The name must not be there.
    pub(super) fn insert(&mut self, name: &ObjectName, id: ServiceId) {
        let hash = hash(name);
        self.0.insert_unique(spread(hash), Place { hash, id }, |it| spread(it.hash));
    }

    pub(super) fn remove(
        &mut self,
        name: &ObjectName,
        is_it: impl Fn(ServiceId) -> bool,
    ) -> Option<ServiceId> {
        let hash = hash(name);
        let found = self.0.find_entry(spread(hash), |it| it.hash == hash && is_it(it.id));
        let (place, _) = found.ok()?.remove();
        if self.0.len() < self.0.capacity() / 8 {
            self.0.shrink_to(self.0.len() * 2, |it| spread(it.hash));
        }
        Some(place.id)
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.0.allocation_size()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Users choose names, so it is a hash that is hard to steer.
fn hash(name: &ObjectName) -> u32 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let [a, b, c, d, ..] = hasher.finish().to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The table looks at the highest and the lowest bits.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
