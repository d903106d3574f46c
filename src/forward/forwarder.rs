//! Keeps track of every Service's forwarding, recomputing only what was touched.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;

use super::claims::{Claims, Rank};
use super::ports;
use super::{Conflict, ServiceForwarding, Settings};
use crate::model::{Cluster, ServiceId};

/// The forwarding of all Services, as of the last update.
///
/// It depends on the Cluster alone, not on the updates that led there, as long as each Service that differs was among
/// the touched ones of some update since. Remembered is a fingerprint of each Service's forwarding, enough to tell
/// whether it differs; the forwarding itself takes a microsecond to compute and would double the room that endpoints
/// take.
#[derive(Clone, Debug, Default)]
pub struct Forwarder {
    settings: Settings,
    claims: Claims,
    /// By `ServiceId`; `None`: forwards nothing.
    known: Vec<Option<Fingerprint>>,
    /// What Services ask for but others have; sorted, never empty.
    lost: BTreeMap<ServiceId, Box<[Conflict]>>,
}

/// Stands for a forwarding. That two of one Service have the same happens once in 2^64 changes.
type Fingerprint = NonZeroU64;

/// What an update altered; everything in a stable order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Services whose forwarding differs now, each once. One that forwards nothing any more is gone.
    pub changed: Vec<ServiceId>,
    pub conflicts_began: Vec<Conflict>,
    pub conflicts_ended: Vec<Conflict>,
}

impl Forwarder {
    /// Bytes on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        self.claims.heap_bytes() + self.known.capacity() * size_of::<Option<Fingerprint>>()
    }

    pub fn new(settings: Settings) -> Self {
        Forwarder { settings, ..Forwarder::default() }
    }

    /// Looks at the touched Services again, and at those that win or lose an address to them.
    pub fn update(&mut self, cluster: &Cluster, touched: &BTreeSet<ServiceId>) -> Update {
        let mut dirty = touched.clone();
        for id in touched {
            let service = cluster.service(*id);
            dirty.extend(
                self.claims.replace(*id, service.map(|it| (Rank::of(it), ports::claims(it)))),
            );
        }
        let (mut changed, mut ended, mut began) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        for id in dirty {
            let (forwarding, lost) = ports::forward(&self.settings, cluster, &self.claims, id);
            if self.note(id, fingerprint(&forwarding)) {
                changed.push(id);
            }
            ended.extend(self.lost.remove(&id).unwrap_or_default());
            began.extend(lost.iter().cloned());
            if !lost.is_empty() {
                self.lost.insert(id, lost.into());
            }
        }
        Update {
            changed,
            conflicts_began: began.difference(&ended).cloned().collect(),
            conflicts_ended: ended.difference(&began).cloned().collect(),
        }
    }

    /// Computes the forwarding of one Service, empty if it forwards nothing. The Cluster must be that of the last update.
    pub fn forwarding(&self, cluster: &Cluster, id: ServiceId) -> ServiceForwarding {
        ports::forward(&self.settings, cluster, &self.claims, id).0
    }

    /// The Services that forward something, in the order of their ids.
    pub fn services(&self) -> impl Iterator<Item = ServiceId> {
        (0..).map(ServiceId).zip(&self.known).filter_map(|(id, known)| known.map(|_| id))
    }

    /// All present conflicts.
    pub fn conflicts(&self) -> BTreeSet<&Conflict> {
        self.lost.values().flatten().collect()
    }

    /// Returns whether it differs from what was known.
    fn note(&mut self, id: ServiceId, now: Option<Fingerprint>) -> bool {
        if self.known.len() <= id.index() {
            self.known.resize(id.index() + 1, None);
        }
        self.known.get_mut(id.index()).is_some_and(|known| std::mem::replace(known, now) != now)
    }
}

fn fingerprint(forwarding: &ServiceForwarding) -> Option<Fingerprint> {
    (*forwarding != ServiceForwarding::default()).then(|| {
        let mut hasher = DefaultHasher::new();
        forwarding.hash(&mut hasher);
        NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN)
    })
}

#[cfg(test)]
mod tests;
