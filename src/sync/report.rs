//! Tells metrics, health, logs and Events what the loop did.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::engine::{Conflicts, Engine, ServerLimit};
use super::now;
use super::results::{Lacking, Outcome};
use crate::conntrack::Sweep;
use crate::forward::{Conflict, FrontendAddress};
use crate::ipvs::compile::Counts;
use crate::ipvs::schema::Batch as ServerBatch;
use crate::kernel::{Refused, Rejection};
use crate::model::{Change, Cluster, Family, Node, ObjectName, Resource, ServiceId};
use crate::nft::compile::{Limit, LimitReason};
use crate::nft::schema::{Batch, ObservedTable, Op, SetName};
use crate::nft::tables::family_of;
use crate::serve::metrics::{BatchResult, PolicyKind, RowOp, SyncKind};
use crate::serve::{HealthCheck, ListenOn, Metrics, SharedHealth, Start};
use crate::watch::{Notice, NoticeKind, Recorder, Regarding};

/// Least time between two looks at the rooms' memory: milliseconds at a hundred thousand endpoints.
const WEIGH_EVERY: Duration = Duration::from_secs(60);

/// Whom the loop tells.
pub struct Ports {
    pub metrics: Metrics,
    pub health: SharedHealth,
    pub recorder: Recorder,
    /// Where stale UDP flows are looked for.
    pub sweeps: Sender<Sweep>,
    /// Where health check node ports are opened and closed.
    pub health_checks: watch::Sender<HealthChecks>,
}

/// Every health check node port, and the addresses it is to be reached on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthChecks {
    pub wanted: Vec<HealthCheck>,
    pub v4: ListenOn,
    pub v6: ListenOn,
}

impl Default for HealthChecks {
    fn default() -> Self {
        HealthChecks {
            wanted: Vec::new(),
            v4: ListenOn::These(Vec::new()),
            v6: ListenOn::These(Vec::new()),
        }
    }
}

/// Keeps what is needed to tell things once and in sum.
pub(super) struct Reporter {
    ports: Ports,
    node: Option<Node>,
    queued: bool,
    /// Everything was written once.
    ready: bool,
    /// The last attempt at the first sync failed: why is worth more than how much is to be written.
    start_failed: bool,
    families: Vec<Family>,
    work: Work,
    /// EndpointSlice events that no sync has taken up yet.
    slices_pending: usize,
    /// What was told last of what the own Node leaves open.
    doubt: Option<&'static str>,
    /// When the rooms' memory was last looked at.
    weighed: Option<Instant>,
    /// Nanoseconds since the epoch. Causes from before are not ours to answer for (reference 9).
    started: i128,
}

/// What happened since the last time everything was written.
#[derive(Default)]
struct Work {
    began: Option<Instant>,
    full: bool,
    /// Everything is compared because others have changed some table, perhaps not ours.
    verifying: bool,
    /// Families with rows or rules that were written.
    written: BTreeSet<Family>,
    /// Sets with rows that were written.
    sets: BTreeSet<(Family, SetName)>,
    events: u64,
    services: BTreeSet<ServiceId>,
    batches: usize,
    operations: usize,
}

impl Reporter {
    pub(super) fn new(ports: Ports) -> Reporter {
        let started = Timestamp::now().as_nanosecond();
        Reporter {
            ports,
            node: None,
            queued: false,
            ready: false,
            start_failed: false,
            families: Vec::new(),
            work: Work::default(),
            slices_pending: 0,
            doubt: None,
            weighed: None,
            started,
        }
    }

    /// The loop begins.
    pub(super) fn started(&mut self, families: &[Family]) {
        self.families = families.to_vec();
        for &family in families {
            self.ports.health.updated(family);
            self.ports.metrics.sync_queued(family, Timestamp::now());
        }
    }

    /// Until the first complete sync: what it waits for.
    pub(super) fn waiting(&self, engine: &Engine, for_node: bool) {
        if self.ready || self.start_failed {
            return;
        }
        let lists: Vec<Resource> = engine.cluster().unlisted().collect();
        self.ports.health.started(if !lists.is_empty() {
            Start::Lists(lists)
        } else if for_node {
            Start::NodeAddresses
        } else {
            Start::FirstSync(engine.waiting())
        });
    }

    /// Until the first complete sync: why it cannot be completed.
    pub(super) fn start_failed(&mut self, why: String) {
        self.start_failed = true;
        self.ports.health.started(Start::Failed(why));
    }

    /// Changes have come.
    pub(super) fn received(&mut self, changes: &[Change]) {
        let (mut services, mut slices) = (0, 0);
        for change in changes {
            match change {
                Change::ServiceApplied(_) | Change::ServiceDeleted(_) => services += 1,
                Change::SliceApplied(_) | Change::SliceDeleted(_) => slices += 1,
                Change::Unusable(_)
                | Change::Listing(_)
                | Change::Listed(_)
                | Change::NodeApplied(_)
                | Change::NodeDeleted
                | Change::ServiceCidrApplied(_)
                | Change::ServiceCidrDeleted(_)
                | Change::HostAddresses(_) => (),
            }
        }
        self.work.events += services + slices;
        self.ports.metrics.service_changes(services);
        self.ports.metrics.endpoint_changes(slices);
        self.slices_pending += usize::try_from(slices).unwrap_or(usize::MAX);
        self.ports.metrics.endpoint_changes_pending(self.slices_pending);
    }

    /// The own Node as it is now.
    pub(super) fn node(&mut self, node: &Node) {
        if self.node.as_ref() != Some(node) {
            self.ports.health.node(node);
            self.node = Some(node.clone());
        }
    }

    /// What keeps the proxy from doing what it is asked to, if anything; told when it begins.
    pub(super) fn doubt(&mut self, doubt: Option<&'static str>) {
        match std::mem::replace(&mut self.doubt, doubt) {
            before if before == doubt => (),
            Some(before) if doubt.is_none() => info!(before, "no longer so"),
            _ => doubt.into_iter().for_each(|why| warn!("{why}")),
        }
    }

    /// There is something to write.
    pub(super) fn queued(&mut self, engine: &Engine) {
        self.ports.metrics.service_changes_pending(engine.waiting());
        if !self.queued {
            self.queued = true;
            for &family in &self.families {
                self.ports.health.queued(family);
                self.ports.metrics.sync_queued(family, Timestamp::now());
            }
        }
        self.work.began.get_or_insert_with(now);
    }

    /// Others have changed some table: everything will be compared.
    pub(super) fn verifying(&mut self) {
        self.work.verifying = true;
    }

    /// Whether what was compared for that reason had to be written; `None` if nothing was compared for it.
    pub(super) fn verified(&self) -> Option<bool> {
        self.work.verifying.then_some(self.work.operations > 0)
    }

    /// The kernel's tables have been read.
    pub(super) fn observed(&mut self, tables: &BTreeMap<Family, ObservedTable>) {
        self.work.full = true;
        if self.work.verifying {
            return;
        }
        for (family, table) in tables {
            let rows = table.elements.len();
            info!(
                ?family,
                rows,
                unknown = table.unknown.len(),
                "taking over the table that is in the kernel"
            );
        }
    }

    /// A batch was sent.
    pub(super) fn batch(&mut self, batch: &Batch, result: BatchResult, took: Duration) {
        self.ports.metrics.batch(result, batch.len(), took);
        if result == BatchResult::Committed {
            self.work.batches += 1;
            self.work.operations += batch.len();
            self.work.written.extend(batch.0.iter().map(family_of));
            for ((family, set, added), rows) in count_rows(batch) {
                self.work.sets.insert((family, set));
                let op = if added { RowOp::Add } else { RowOp::Delete };
                self.ports.metrics.rows_written(family, set.name(), op, rows);
            }
        }
    }

    /// What was planned is in the kernel.
    pub(super) fn committed(&mut self, mut outcome: Outcome, engine: &Engine) {
        self.start_failed = false;
        let now = Timestamp::now().as_nanosecond();
        for (family, time) in outcome.triggers.drain(..) {
            if let Some(latency) = latency(time, self.started, now) {
                self.ports.metrics.programmed(family, latency);
            }
        }
        self.work.services.extend(&outcome.services);
        if !outcome.sweep.is_empty() {
            // Nobody receives any more only while the program ends.
            let _ = self.ports.sweeps.send(std::mem::take(&mut outcome.sweep));
        }
        if outcome.health_checks_changed {
            self.ports.health_checks.send_replace(engine.health_checks());
        }
        // Before the first complete sync: zero is a figure, too.
        if outcome.lacking_local_changed || !self.ready {
            self.lacking_local(engine.lacking_local());
        }
    }

    fn lacking_local(&self, lacking: Lacking) {
        for &family in &self.families {
            let (internal, external) = match family {
                Family::V4 => (lacking.internal_v4, lacking.external_v4),
                Family::V6 => (lacking.internal_v6, lacking.external_v6),
            };
            self.ports.metrics.no_local_endpoints(family, PolicyKind::Internal, internal);
            self.ports.metrics.no_local_endpoints(family, PolicyKind::External, external);
        }
    }

    /// Everything is written.
    pub(super) fn done(&mut self, engine: &Engine) {
        let work = std::mem::take(&mut self.work);
        self.queued = false;
        self.slices_pending = 0;
        if !std::mem::replace(&mut self.ready, true) {
            self.ports.health.started(Start::Done);
            info!("ready: everything that was listed is programmed");
        }
        let took = work.began.map(|began| began.elapsed()).unwrap_or_default();
        let kind = if work.full { SyncKind::Full } else { SyncKind::Partial };
        for &family in &self.families {
            self.ports.health.updated(family);
            self.ports.metrics.sync_done(family, kind, took);
            self.ports.metrics.sync_succeeded(family, Timestamp::now());
        }
        self.ports.metrics.service_changes_pending(0);
        self.ports.metrics.endpoint_changes_pending(0);
        self.ports.metrics.events_coalesced(work.events.saturating_sub(1));
        if work.verifying && work.operations > 0 {
            warn!(
                operations = work.operations,
                "somebody else had changed our tables; they are as wanted again"
            );
            work.written.iter().for_each(|family| self.ports.metrics.drift_repaired(*family));
        }
        self.ports.metrics.refused_services(engine.refused_count());
        if let Some(servers) = engine.servers().filter(|_| work.operations > 0) {
            let Counts { servers: count, destinations } = servers.counts();
            self.ports.metrics.ipvs_servers(count, destinations, servers.draining().len());
            self.ports.metrics.ipvs_schedulers_lacking(servers.lacking_schedulers());
        }
        self.fill(&work, engine);
        self.weigh(engine);
        if work.operations > 0 {
            let (events, services) = (work.events, work.services.len());
            let (operations, batches) = (work.operations, work.batches);
            if work.full {
                info!(trigger = "full", events, services, operations, batches, ?took, "synced");
            } else {
                // Hundreds a second in a busy cluster, each of which costs as much as to compute what it tells of.
                debug!(trigger = "changes", events, services, operations, batches, ?took, "synced");
            }
        } else if work.verifying {
            debug!(?took, "others changed tables, not ours");
        } else if work.full {
            info!(
                services = work.services.len(),
                ?took,
                "synced; the kernel had everything already"
            );
        }
    }

    /// How much memory the rooms have; looked at after a sync and not often, because it walks over everything.
    fn weigh(&mut self, engine: &Engine) {
        if self.weighed.is_none_or(|last| last.elapsed() >= WEIGH_EVERY) {
            self.weighed = Some(now());
            for (room, bytes) in engine.heap_bytes() {
                self.ports.metrics.memory(room, bytes);
            }
        }
    }

    /// How full the sets are: all of them after a full sync, else those that were written.
    fn fill(&self, work: &Work, engine: &Engine) {
        if work.full {
            engine.sets().for_each(|(family, set)| self.fill_of(family, set, engine));
        } else {
            work.sets.iter().for_each(|(family, set)| self.fill_of(*family, *set, engine));
        }
    }

    fn fill_of(&self, family: Family, set: SetName, engine: &Engine) {
        let Some((rows, size)) = engine.fill(family, set) else { return };
        self.ports.metrics.set_size(family, set.name(), size);
        // Remembered clients are written by packets: how many there are, the kernel alone knows.
        if set != SetName::Affinity {
            self.ports.metrics.set_elements(family, set.name(), rows);
        }
    }

    /// A pass failed; the next one waits.
    pub(super) fn failed(&mut self, wait: Duration, failures: u32) {
        let took = self.work.began.map(|began| began.elapsed()).unwrap_or_default();
        let kind = if self.work.full { SyncKind::Full } else { SyncKind::Partial };
        for &family in &self.families {
            self.ports.metrics.sync_done(family, kind, took);
            self.ports.metrics.sync_failed(family);
        }
        warn!(
            failures,
            ?wait,
            "sync failed; traffic goes by the rules of the last good sync until it is tried again"
        );
    }

    /// The kernel refuses a Service.
    pub(super) fn left_out(&self, cluster: &Cluster, service: ServiceId, rejection: &Rejection) {
        let Some(name) = cluster.name(service) else { return };
        let note = format!(
            "The kernel refuses the rules of this Service ({rejection}); what it had before stays in force, and it is \
             tried again regularly and when it changes."
        );
        warn!(service = %name, %rejection, "the kernel refuses the rules of a Service");
        self.notice(cluster, name, NoticeKind::Warning, "RulesRefused", note);
    }

    pub(super) fn conflicts(&self, cluster: &Cluster, conflicts: Conflicts, present: usize) {
        self.ports.metrics.conflicts(present);
        for conflict in conflicts.began {
            let note = format!(
                "Port {} is not served on {}/{}: Service {} has it (the older one, or the one whose cluster IP it is). \
                 Give one of them another address or port.",
                port_of(&conflict),
                place(&conflict.at),
                conflict.protocol,
                conflict.winner
            );
            warn!(service = %conflict.loser, winner = %conflict.winner, at = place(&conflict.at), "an address is claimed twice");
            self.notice(cluster, &conflict.loser, NoticeKind::Warning, "AddressConflict", note);
        }
        for conflict in conflicts.ended {
            info!(service = %conflict.loser, at = place(&conflict.at), "an address is no longer claimed twice");
        }
    }

    pub(super) fn limit(&self, cluster: &Cluster, limit: &Limit) {
        let Some(name) = cluster.name(ServiceId(limit.owner.0)) else { return };
        let note = match limit.reason {
            LimitReason::Endpoints { wanted, used } => {
                format!(
                    "Port {} has {wanted} endpoints; only the first {used} get traffic.",
                    limit.port_name
                )
            }
            LimitReason::AffinityGroups => {
                format!(
                    "Port {} is served without session affinity: too many Services have it.",
                    limit.port_name
                )
            }
        };
        warn!(service = %name, note);
        self.notice(cluster, name, NoticeKind::Warning, "LimitReached", note);
    }

    /// Something about the virtual servers of a Service.
    pub(super) fn server_limit(&self, cluster: &Cluster, limit: &ServerLimit) {
        let (service, reason, note) = match limit {
            ServerLimit::Excluded { service, address } => {
                let note = format!(
                    "{address} is inside --ipvs-exclude-cidrs (ipvs.excludeCIDRs), so there is no virtual server for it; \
                     it is served by nftables alone."
                );
                (service, "IPVSExcluded", note)
            }
            ServerLimit::Scheduler { service, wanted, used } => {
                self.ports.metrics.ipvs_scheduler_missing();
                let note = format!(
                    "The kernel has no scheduler {wanted} (module ip_vs_{wanted}); {used} is used until it has. It is looked \
                     for every ipvs.syncPeriod."
                );
                (service, "IPVSSchedulerMissing", note)
            }
            ServerLimit::NoIpv6 => {
                let note = "The kernel's IPVS knows no IPv6 (CONFIG_IP_VS_IPV6), so there are no virtual servers for cluster \
                            IPs of that family; they are served by nftables alone."
                    .to_owned();
                warn!("{note}");
                self.ports.recorder.record(Notice {
                    kind: NoticeKind::Warning,
                    reason: "IPVSWithoutIPv6",
                    action: "Sync",
                    note,
                    regarding: Regarding::Node,
                });
                return;
            }
            ServerLimit::SchedulerFound { service, scheduler } => {
                let Some(name) = cluster.name(*service) else { return };
                let note = format!("The kernel has the scheduler {scheduler} now; it is used.");
                info!(service = %name, note);
                let (kind, reason) = (NoticeKind::Normal, "IPVSSchedulerFound");
                return self.notice(cluster, name, kind, reason, note);
            }
        };
        let Some(name) = cluster.name(*service) else { return };
        warn!(service = %name, note);
        self.notice(cluster, name, NoticeKind::Warning, reason, note);
    }

    /// Operations on virtual servers were carried out, but for some.
    pub(super) fn servers_changed(
        &mut self,
        batch: &ServerBatch,
        refused: &[Refused],
        took: Duration,
    ) {
        self.work.operations += batch.0.len() - refused.len();
        self.ports.metrics.ipvs_operations(batch.0.len() - refused.len(), refused.len(), took);
    }

    /// Somebody else had changed virtual servers.
    pub(super) fn servers_drifted(&self) {
        self.families.iter().for_each(|family| self.ports.metrics.drift_repaired(*family));
    }

    fn notice(
        &self,
        cluster: &Cluster,
        name: &ObjectName,
        kind: NoticeKind,
        reason: &'static str,
        note: String,
    ) {
        let service = cluster.id(name).and_then(|it| cluster.service(it));
        let regarding = Regarding::Object {
            resource: Resource::Service,
            name: name.clone(),
            uid: service.and_then(|it| it.uid),
        };
        self.ports.recorder.record(Notice { kind, reason, action: "Sync", note, regarding });
    }
}

fn port_of(conflict: &Conflict) -> &str {
    if conflict.port_name.is_empty() { "(unnamed)" } else { &conflict.port_name }
}

fn place(at: &FrontendAddress) -> String {
    match at {
        FrontendAddress::Address(address, port) => {
            std::net::SocketAddr::new(*address, port.get()).to_string()
        }
        FrontendAddress::NodePort(port) => format!("node port {port}"),
    }
}

fn count_rows(batch: &Batch) -> BTreeMap<(Family, SetName, bool), u64> {
    let mut rows = BTreeMap::new();
    for op in &batch.0 {
        let key = match op {
            Op::AddElement { family, set, .. } => (*family, *set, true),
            Op::DeleteElement { family, set, .. } => (*family, *set, false),
            Op::AddTable(_)
            | Op::DeleteTable(_)
            | Op::AddSet { .. }
            | Op::ResizeSet { .. }
            | Op::AddChain { .. }
            | Op::FlushChain { .. }
            | Op::DeleteChain { .. }
            | Op::AddRule { .. } => continue,
        };
        *rows.entry(key).or_default() += 1;
    }
    rows
}

/// How long ago something was triggered; `None` if that was before this process started, whose fault it is not then.
///
/// The times, in nanoseconds since the epoch, are told by different clocks, each of which may jump: what seems to lie in
/// the future took no time.
fn latency(trigger: i128, started: i128, now: i128) -> Option<Duration> {
    let passed = u64::try_from(now.saturating_sub(trigger)).unwrap_or_default();
    (trigger > started).then_some(Duration::from_nanos(passed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_jump_give_no_impossible_latency() {
        let check = |trigger, now, expected: Option<u64>| {
            assert_eq!(latency(trigger, 100, now), expected.map(Duration::from_nanos));
        };
        check(150, 170, Some(20));
        // The clock was set back, or the one that set the trigger is ahead.
        check(150, 120, Some(0));
        check(150, -5, Some(0));
        check(i128::MAX, i128::MIN, Some(0));
        // From before the start, or by a clock that lags behind.
        check(100, 170, None);
        check(i128::MIN, i128::MAX, None);
        // Set forward by ages.
        check(150, i128::MAX, Some(0));
    }
}
