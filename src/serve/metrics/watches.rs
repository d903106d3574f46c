//! What the watches count of themselves, copied into the registry when somebody asks.

use std::sync::atomic::Ordering;

use prometheus::core::AtomicU64 as Count;
use prometheus::core::GenericCounterVec;

use super::families::Families;
use super::resource_label;
use crate::model::Resource;
use crate::watch::{Stats, Trouble};

const RESOURCES: [Resource; 4] =
    [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr];

/// Copies all figures. Not to be run by two threads at once: a counter is reset and counted up again.
pub(super) fn copy(stats: &Stats, families: &Families) {
    let memory =
        RESOURCES.iter().map(|it| stats.of(*it).memory.load(Ordering::Relaxed)).sum::<u64>();
    families.memory.with_label_values(&["watch"]).set(i64::try_from(memory).unwrap_or(i64::MAX));
    for resource in RESOURCES {
        let of = stats.of(resource);
        let unchanged = of.unchanged.load(Ordering::Relaxed);
        unchanged_are_changes_too(families, resource, unchanged);
        let resource = resource_label(resource);
        set(&families.watch_unchanged, &[resource], unchanged);
        set(&families.watch_events, &[resource], of.objects.load(Ordering::Relaxed));
        set(&families.watch_relists, &[resource], of.lists.load(Ordering::Relaxed));
        set(&families.watch_bytes, &[resource], of.bytes.load(Ordering::Relaxed));
        for trouble in Trouble::ALL {
            set(&families.watch_errors, &[resource, trouble.label()], of.errors(trouble));
        }
        let contact = of.last_contact.load(Ordering::Relaxed);
        if contact > 0 {
            // Milliseconds since the epoch are exact in a double for some hundred thousand years.
            #[expect(clippy::cast_precision_loss, reason = "see above")]
            let seconds = contact as f64 / 1000.0;
            families.watch_last_event.with_label_values(&[resource]).set(seconds);
        }
    }
    for ((resource, reason), count) in stats.skipped() {
        set(&families.skipped, &[resource_label(resource), reason], count);
    }
}

/// kube-proxy counts every event of a Service or slice, be anything changed or not. Those that are not get no further than
/// their watch, so they are added here.
fn unchanged_are_changes_too(families: &Families, resource: Resource, unchanged: u64) {
    let (changes, label) = match resource {
        Resource::Service => (&families.service_changes, resource_label(resource)),
        Resource::EndpointSlice => (&families.endpoint_changes, resource_label(resource)),
        Resource::Node | Resource::ServiceCidr => return,
    };
    let added = families.watch_unchanged.with_label_values(&[label]).get();
    changes.inc_by(unchanged.saturating_sub(added));
}

/// A combination of labels appears when it has something to tell.
fn set(counters: &GenericCounterVec<Count>, labels: &[&str], value: u64) {
    if value > 0 {
        let counter = counters.with_label_values(labels);
        counter.reset();
        counter.inc_by(value);
    }
}
