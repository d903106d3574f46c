//! Keeps every Service's forwarding up to date, recomputing only what was touched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::claims::{Claims, Rank};
use super::ports;
use super::{Conflict, ServiceForwarding, Settings};
use crate::model::{Cluster, ServiceId};

/// The forwarding of all Services, as of the last update.
///
/// It depends on the Cluster alone, not on the updates that led there, as long as each Service that differs was among
/// the touched ones of some update since.
#[derive(Clone, Debug, Default)]
pub struct Forwarder {
    settings: Settings,
    claims: Claims,
    /// Without Services that forward nothing and lost nothing.
    known: BTreeMap<ServiceId, Known>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    forwarding: Arc<ServiceForwarding>,
    /// Sorted.
    lost: Box<[Conflict]>,
}

/// What an update altered; everything in a stable order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Services whose forwarding differs now, each once. Empty forwarding: the Service is gone.
    pub changed: Vec<(ServiceId, Arc<ServiceForwarding>)>,
    pub conflicts_began: Vec<Conflict>,
    pub conflicts_ended: Vec<Conflict>,
}

impl Forwarder {
    pub fn new(settings: Settings) -> Self {
        Forwarder { settings, ..Forwarder::default() }
    }

    /// Recomputes the touched Services, and those that win or lose an address to them.
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
            let old = self.known.remove(&id).unwrap_or_default();
            ended.extend(old.lost);
            began.extend(lost.iter().cloned());
            let differs = *old.forwarding != forwarding;
            let forwarding = if differs { Arc::new(forwarding) } else { old.forwarding };
            if differs {
                changed.push((id, Arc::clone(&forwarding)));
            }
            let known = Known { forwarding, lost: lost.into() };
            if known != Known::default() {
                self.known.insert(id, known);
            }
        }
        Update {
            changed,
            conflicts_began: began.difference(&ended).cloned().collect(),
            conflicts_ended: ended.difference(&began).cloned().collect(),
        }
    }

    /// The forwarding of one Service; `None`: it forwards nothing.
    pub fn forwarding(&self, id: ServiceId) -> Option<&Arc<ServiceForwarding>> {
        self.known.get(&id).map(|it| &it.forwarding)
    }

    /// The forwarding of all Services, in the order of their ids.
    pub fn forwardings(&self) -> impl Iterator<Item = (ServiceId, &Arc<ServiceForwarding>)> {
        self.known.iter().map(|(id, it)| (*id, &it.forwarding))
    }

    /// All present conflicts.
    pub fn conflicts(&self) -> BTreeSet<&Conflict> {
        self.known.values().flat_map(|it| &it.lost).collect()
    }
}

#[cfg(test)]
mod tests;
