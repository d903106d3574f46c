//! What a change may have altered.

use std::collections::BTreeSet;

use super::cluster::ServiceId;
use super::name::Family;

/// What to look at again after one or several changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services whose forwarding may differ; each once.
    pub services: BTreeSet<ServiceId>,
    /// Something of the own Node or the host's addresses differs. Services that depend on it are in `services` already.
    pub node: bool,
    /// The union of all ServiceCIDRs may differ.
    pub service_cidrs: bool,
    /// When the cause of a change of endpoints happened: nanoseconds since the epoch, for the network programming
    /// latency. One for each slice event that altered something.
    pub triggers: Vec<(ServiceId, Family, i128)>,
    /// Services that lost a slice: triggers noted for them before no longer count (reference 9).
    pub triggers_void: BTreeSet<ServiceId>,
    /// With this change the last of the required first lists is complete.
    pub completed: bool,
}

impl Touched {
    /// Adds what a later change touched.
    pub fn merge(&mut self, later: Touched) {
        self.triggers.retain(|(id, _, _)| !later.triggers_void.contains(id));
        self.services.extend(later.services);
        self.triggers.extend(later.triggers);
        self.triggers_void.extend(later.triggers_void);
        self.node |= later.node;
        self.service_cidrs |= later.service_cidrs;
        self.completed |= later.completed;
    }

    /// Nothing needs to be done.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.node && !self.service_cidrs && !self.completed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TestLastChangeTriggerTime: add, delete, add leaves the last.
    #[test]
    fn a_lost_slice_voids_only_earlier_triggers() {
        let (a, b) = (ServiceId(1), ServiceId(2));
        let mut touched = Touched {
            triggers: vec![(a, Family::V4, 1), (b, Family::V6, 2)],
            ..Touched::default()
        };
        touched.merge(Touched { triggers_void: [a].into(), ..Touched::default() });
        touched.merge(Touched { triggers: vec![(a, Family::V4, 3)], ..Touched::default() });
        assert_eq!(touched.triggers, [(b, Family::V6, 2), (a, Family::V4, 3)]);
    }
}
