//! The metrics registry: kube-proxy's names where the meaning exists here (reference 9), ours with `kubeferry_`.
//!
//! Callers say what happened in the words of the trade; names, labels and buckets are known here alone. Labels are
//! bounded: families, sets of the schema, kinds of objects, reasons; never names of objects. Times come in as
//! arguments.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus::{Encoder, TextEncoder};

use crate::config::FeatureGates;
use crate::model::{Family, Resource};
use crate::watch::{Recorder, Stats};

mod families;
mod process;
mod watches;

use families::Families;

/// A handle on the registry; cheap to clone, usable from every thread.
#[derive(Clone, Debug)]
pub struct Metrics {
    families: Arc<Families>,
    /// Who counts for himself.
    counting: Arc<Mutex<Counting>>,
}

/// Figures that are copied when somebody asks.
#[derive(Debug, Default)]
struct Counting {
    watches: Option<Arc<Stats>>,
    events: Option<Recorder>,
}

/// How much a sync looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncKind {
    /// Everything, against what the kernel holds.
    Full,
    /// What was touched.
    Partial,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchResult {
    Committed,
    /// The kernel refused operations.
    Rejected,
    /// Not known, or interrupted; looked at again.
    Uncertain,
    /// The socket failed.
    Failed,
}

/// What is done to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOp {
    Add,
    Delete,
}

impl Metrics {
    /// An error means that two metrics share a name or a name is malformed: a mistake in this file's neighbours.
    pub fn new(gates: &FeatureGates) -> Result<Self, prometheus::Error> {
        let families = Families::register(gates)?;
        // The file that the process started with was.
        families.config_usable.set(1);
        Ok(Metrics { families: Arc::new(families), counting: Arc::default() })
    }

    /// From now on the figures of these watches are shown, too.
    pub fn show_watches(&self, stats: Arc<Stats>) {
        self.counting().watches = Some(stats);
    }

    /// From now on it is shown how many Events were dropped.
    pub fn show_events(&self, recorder: Recorder) {
        self.counting().events = Some(recorder);
    }

    fn counting(&self) -> MutexGuard<'_, Counting> {
        self.counting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything in Prometheus' text format.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        {
            // The lock also keeps scrapes from copying at the same moment.
            let counting = self.counting();
            counting.watches.iter().for_each(|stats| watches::copy(stats, &self.families));
            if let Some(recorder) = &counting.events {
                self.families.events_dropped.reset();
                self.families.events_dropped.inc_by(recorder.dropped());
            }
        }
        let mut bytes = Vec::new();
        TextEncoder::new().encode(&self.families.registry.gather(), &mut bytes)?;
        String::from_utf8(bytes).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }

    // Syncs.

    /// A sync of this family was asked for. Also to be called once when the sync loop starts.
    pub fn sync_queued(&self, family: Family, now: Timestamp) {
        let gauge = self.families.queued_timestamp.with_label_values(&[label(family)]);
        gauge.set(now.as_duration().as_secs_f64());
    }

    /// A sync of this family has ended, well or badly.
    pub fn sync_done(&self, family: Family, kind: SyncKind, took: Duration) {
        let family = [label(family)];
        let took = took.as_secs_f64();
        self.families.sync_duration.with_label_values(&family).observe(took);
        let by_kind = match kind {
            SyncKind::Full => &self.families.full_sync_duration,
            SyncKind::Partial => &self.families.partial_sync_duration,
        };
        by_kind.with_label_values(&family).observe(took);
    }

    /// A sync of this family has ended well.
    pub fn sync_succeeded(&self, family: Family, now: Timestamp) {
        let gauge = self.families.last_timestamp.with_label_values(&[label(family)]);
        gauge.set(now.as_duration().as_secs_f64());
    }

    /// The kernel did not take what a sync of this family had to write.
    pub fn sync_failed(&self, family: Family) {
        self.families.sync_failures.with_label_values(&[label(family)]).inc();
    }

    /// From the change of an endpoint, as its controller noted it, until it was programmed.
    pub fn programmed(&self, family: Family, latency: Duration) {
        let histogram = self.families.network_programming.with_label_values(&[label(family)]);
        histogram.observe(latency.as_secs_f64());
    }

    // Changes.

    /// Events of EndpointSlices have arrived.
    pub fn endpoint_changes(&self, events: u64) {
        self.families.endpoint_changes.inc_by(events);
    }

    /// EndpointSlice changes that no sync has taken up yet.
    pub fn endpoint_changes_pending(&self, changes: usize) {
        self.families.endpoint_changes_pending.set(number(changes));
    }

    /// Events of Services have arrived.
    pub fn service_changes(&self, events: u64) {
        self.families.service_changes.inc_by(events);
    }

    /// Services with a change that no sync has taken up yet.
    pub fn service_changes_pending(&self, services: usize) {
        self.families.service_changes_pending.set(number(services));
    }

    /// Events that joined others in one sync: all but the first.
    pub fn events_coalesced(&self, events: u64) {
        self.families.coalesced.inc_by(events);
    }

    // What the forwarding state looks like.

    /// Service ports whose policy is Local, with endpoints elsewhere and none on this node.
    pub fn no_local_endpoints(&self, family: Family, policy: PolicyKind, ports: usize) {
        let labels = [label(family), policy.label()];
        self.families.no_local_endpoints.with_label_values(&labels).set(number(ports));
    }

    /// Whether another copy runs, and this one waits for its end.
    pub fn standing_by(&self, yes: bool) {
        self.families.standing_by.set(i64::from(yes));
    }

    /// Claims on an address and port that another Service holds.
    pub fn conflicts(&self, claims: usize) {
        self.families.conflicts.set(number(claims));
    }

    /// Services whose rules the kernel refuses.
    pub fn refused_services(&self, services: usize) {
        self.families.refused_services.set(number(services));
    }

    // The kernel.

    /// Rows of a set were written in a committed batch.
    pub fn rows_written(&self, family: Family, set: &str, op: RowOp, rows: u64) {
        let op = match op {
            RowOp::Add => "add",
            RowOp::Delete => "delete",
        };
        self.families.elements.with_label_values(&[label(family), set, op]).inc_by(rows);
    }

    /// How many elements a set holds.
    pub fn set_elements(&self, family: Family, set: &str, elements: u32) {
        let gauge = self.families.rows.with_label_values(&[label(family), set]);
        gauge.set(i64::from(elements));
    }

    /// How many elements fit into a set.
    pub fn set_size(&self, family: Family, set: &str, size: u32) {
        let gauge = self.families.rows_limit.with_label_values(&[label(family), set]);
        gauge.set(i64::from(size));
    }

    /// A batch was sent to the kernel.
    pub fn batch(&self, result: BatchResult, operations: usize, took: Duration) {
        let result_label = match result {
            BatchResult::Committed => "committed",
            BatchResult::Rejected => "rejected",
            BatchResult::Uncertain => "uncertain",
            BatchResult::Failed => "failed",
        };
        self.families.batches.with_label_values(&[result_label]).inc();
        self.families.commit_duration.observe(took.as_secs_f64());
        if result == BatchResult::Committed {
            self.families.operations.inc_by(u64::try_from(operations).unwrap_or(u64::MAX));
        }
    }

    /// A look at the kernel found something that we had not left so, and it was set right.
    pub fn drift_repaired(&self, family: Family) {
        self.families.drift_repairs.with_label_values(&[label(family)]).inc();
    }

    /// A batch of operations on virtual servers was carried out, but for those that were refused.
    pub fn ipvs_operations(&self, done: usize, refused: usize, took: Duration) {
        for (result, operations) in [("done", done), ("refused", refused)] {
            let operations = u64::try_from(operations).unwrap_or(u64::MAX);
            self.families.ipvs_operations.with_label_values(&[result]).inc_by(operations);
        }
        self.families.ipvs_duration.observe(took.as_secs_f64());
    }

    /// What IPVS has of ours.
    pub fn ipvs_servers(&self, servers: usize, destinations: usize, draining: usize) {
        self.families.ipvs_servers.set(number(servers));
        self.families.ipvs_destinations.set(number(destinations));
        self.families.ipvs_draining.set(number(draining));
    }

    /// A Service has the default scheduler because the kernel lacks its own.
    pub fn ipvs_scheduler_missing(&self) {
        self.families.ipvs_schedulers_missing.inc();
    }

    /// Stale flows of this family were looked for.
    pub fn conntrack_reconciled(&self, family: Family, deleted: u64, took: Duration) {
        let family = [label(family)];
        self.families.conntrack_duration.with_label_values(&family).observe(took.as_secs_f64());
        self.families.conntrack_deleted.with_label_values(&family).inc_by(deleted);
    }

    // The program itself.

    /// A changed configuration file was usable, or not.
    pub fn config_reloaded(&self, usable: bool) {
        let result = if usable { "usable" } else { "invalid" };
        self.families.config_reloads.with_label_values(&[result]).inc();
        self.families.config_usable.set(i64::from(usable));
    }

    /// The API server was asked something. `code` is the HTTP status, `None` without an answer.
    pub fn request(&self, method: &str, host: &str, code: Option<u16>, took: Duration) {
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        self.families.requests.with_label_values(&[code.as_str(), host, method]).inc();
        let duration = self.families.request_duration.with_label_values(&[host, method]);
        duration.observe(took.as_secs_f64());
    }

    // Answers.

    /// How much a room of the program has on the heap, about.
    pub fn memory(&self, room: &str, bytes: usize) {
        self.families.memory.with_label_values(&[room]).set(number(bytes));
    }

    /// `/healthz` was answered with this HTTP status.
    pub fn healthz_answered(&self, code: u16) {
        self.families.healthz.with_label_values(&[code.to_string().as_str()]).inc();
    }

    /// `/livez` was answered with this HTTP status.
    pub fn livez_answered(&self, code: u16) {
        self.families.livez.with_label_values(&[code.to_string().as_str()]).inc();
    }
}

/// Which policy of a Service is Local.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    Internal,
    External,
}

impl PolicyKind {
    fn label(self) -> &'static str {
        match self {
            PolicyKind::Internal => "internal",
            PolicyKind::External => "external",
        }
    }
}

fn label(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn resource_label(resource: Resource) -> &'static str {
    match resource {
        Resource::Service => "services",
        Resource::EndpointSlice => "endpointslices",
        Resource::Node => "nodes",
        Resource::ServiceCidr => "servicecidrs",
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
