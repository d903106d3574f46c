//! What follows from a committed batch for others: conntrack, health check node ports, gauges. Pure.

use std::collections::BTreeMap;

use crate::conntrack::{Sweep, UdpFrontends};
use crate::forward::{HealthCheck, ServiceForwarding};
use crate::model::{Family, ObjectName, ServiceId};

/// What a committed batch brought about.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// Services whose forwarding the kernel now has.
    pub services: Vec<ServiceId>,
    /// Nanoseconds since the epoch at which the causes of these endpoint changes happened.
    pub triggers: Vec<(Family, i128)>,
    /// UDP flows to look at; may be empty.
    pub sweep: Sweep,
    /// Whether a health check node port or a count of local endpoints differs.
    pub health_checks_changed: bool,
    /// Whether a number in [`Results::lacking_local`] differs.
    pub lacking_local_changed: bool,
}

/// What the kernel's forwarding of each Service means for others. Services without such a meaning take no room.
#[derive(Debug, Default)]
pub struct Results {
    known: BTreeMap<ServiceId, Meaning>,
    staged: Vec<(ServiceId, Meaning)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Meaning {
    udp: UdpFrontends,
    health_check: Option<(ObjectName, HealthCheck)>,
    lacking: Lacking,
}

/// Service ports with a Local policy, endpoints elsewhere and none on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    pub internal_v4: usize,
    pub internal_v6: usize,
    pub external_v4: usize,
    pub external_v6: usize,
}

impl Results {
    /// The batch under way contains this forwarding.
    pub fn stage(
        &mut self,
        service: ServiceId,
        name: Option<&ObjectName>,
        forwarding: &ServiceForwarding,
    ) {
        let meaning = Meaning {
            udp: UdpFrontends::of(forwarding),
            health_check: name.cloned().zip(forwarding.health_check),
            lacking: Lacking::of(forwarding),
        };
        if meaning != Meaning::default() || self.known.contains_key(&service) {
            self.staged.push((service, meaning));
        }
    }

    /// The batch under way came to nothing.
    pub fn forget(&mut self) {
        self.staged.clear();
    }

    /// The batch under way is in the kernel.
    pub fn take(&mut self, services: &mut Vec<ServiceId>) -> Outcome {
        let mut outcome = Outcome { services: std::mem::take(services), ..Outcome::default() };
        for (service, new) in self.staged.drain(..) {
            let old = self.known.remove(&service).unwrap_or_default();
            outcome.sweep.add(&old.udp, &new.udp);
            outcome.health_checks_changed |= old.health_check != new.health_check;
            outcome.lacking_local_changed |= old.lacking != new.lacking;
            if new != Meaning::default() {
                self.known.insert(service, new);
            }
        }
        outcome
    }

    /// The Services whose forwarding in the kernel means something to others.
    pub fn services(&self) -> impl Iterator<Item = ServiceId> {
        self.known.keys().copied()
    }

    /// All health check node ports. Walks all Services that mean something to others, a small part of all: it is
    /// asked only when one of them has changed.
    pub fn health_checks(&self) -> impl Iterator<Item = (&ObjectName, &HealthCheck)> {
        self.known
            .values()
            .filter_map(|it| it.health_check.as_ref())
            .map(|(name, check)| (name, check))
    }

    /// Sums over all Services, walked as for [`Results::health_checks`].
    pub fn lacking_local(&self) -> Lacking {
        self.known.values().fold(Lacking::default(), |sum, it| sum.plus(it.lacking))
    }
}

impl Lacking {
    fn of(forwarding: &ServiceForwarding) -> Lacking {
        let mut lacking = Lacking::default();
        for port in &forwarding.ports {
            let lacks = port.lacks_local();
            let (internal, external) = match port.family {
                Family::V4 => (&mut lacking.internal_v4, &mut lacking.external_v4),
                Family::V6 => (&mut lacking.internal_v6, &mut lacking.external_v6),
            };
            *internal += usize::from(lacks.internal);
            *external += usize::from(lacks.external);
        }
        lacking
    }

    fn plus(self, other: Lacking) -> Lacking {
        Lacking {
            internal_v4: self.internal_v4 + other.internal_v4,
            internal_v6: self.internal_v6 + other.internal_v6,
            external_v4: self.external_v4 + other.external_v4,
            external_v6: self.external_v6 + other.external_v6,
        }
    }
}
