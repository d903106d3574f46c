//! What the loop remembers between passes: pure, it is told what happened and says what to do next.
//!
//! [`Engine::apply`] takes changes and only notes which Services they touch; [`Engine::plan`] computes those once,
//! however many changes touched them, and returns the next batch. Whoever carried the batch out says how it ended
//! with [`Engine::committed`], [`Engine::refused`] or [`Engine::lost`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use self::servers::{Picked, Servers};
use super::facts::{self, Settings};
use super::report::HealthChecks;
use super::results::{Lacking, Outcome, Results};
use crate::forward::{Conflict, Forwarder};
use crate::ipvs::compile::Compiler as ServerCompiler;
use crate::ipvs::schema::{
    Batch as ServerBatch, Observed, ObservedDestinations, Outline, ServerKey,
};
use crate::kernel::{ObservedConnections, Refused, Rejection};
use crate::model::{Change, Cluster, Family, ServiceId, Touched};
use crate::nft::compile::{Compiler, Limit, RowCounts};
use crate::nft::schema::{Batch, ObservedTable, Owner, SetName};
use crate::nft::shape::TableShape;
use crate::nft::skeleton::{NodePortAddresses, Program};
use crate::serve::HealthCheck;

pub use self::refusal::Refusal;
pub use self::servers::ServerLimit;

mod refusal;
mod servers;

/// Rows in one batch while a lot is to be written. Other users of nf_tables on the host wait while a batch commits
/// (it holds the namespace's commit mutex), so one batch should take some ten milliseconds at most.
const BATCH_ROWS: usize = 8_000;

/// Operations on IPVS between two batches, about; each is carried out on its own, so this is no longer pause for anybody,
/// but changes wait for it.
const BATCH_SERVERS: usize = 4_000;

/// The state between events and batches.
pub struct Engine {
    settings: Settings,
    program: Program,
    /// What the settings and the own Node leave open, see [`Settings::doubt`].
    doubt: Option<&'static str>,
    cluster: Cluster,
    forwarder: Forwarder,
    /// `None`: what the kernel holds is not known, look first.
    compiler: Option<Compiler>,
    /// The tables themselves are not known to be complete: the next batch brings what they lack, made for this many
    /// rows.
    skeleton: Option<RowCounts>,
    /// Touched by changes, not recomputed yet.
    touched: Touched,
    /// Recomputed, not in a committed batch yet; written before anything that is merely to be compared.
    urgent: BTreeSet<ServiceId>,
    /// To be compared with what the kernel was seen to hold.
    unwritten: BTreeSet<ServiceId>,
    /// In the batch that is under way.
    in_flight: Vec<ServiceId>,
    /// Virtual servers: in IPVS mode, and in nftables mode while there are any left of it.
    servers: Option<Servers>,
    /// Services whose rows the kernel refused; left as they were until they change or are tried again.
    refused: BTreeMap<ServiceId, Rejection>,
    /// At most that many Services in the next batch; shrinks to find a Service that the kernel refuses without
    /// telling which one.
    bisect: Option<usize>,
    /// About that many rows go into a batch; fewer while the kernel has no room for more.
    batch_rows: usize,
    /// There was no room for this Service alone, so many times in a row.
    cramped: Option<(ServiceId, u32)>,
    /// Batches were committed since the tables were read: what they hold is believed, not seen.
    believed: bool,
    /// The tables did not hold what they should and were read again; not everything has been compared with that yet.
    stale: bool,
    /// Sets did not grow when they were to: before 6.5 a kernel takes the new size and forgets it. All tables are made
    /// anew then, with sets that are large enough, in one transaction.
    remaking: bool,
    /// Everything is being compared with the kernel; rows nobody claims are deleted at the end.
    adopting: bool,
    /// The node's addresses or the ServiceCIDRs may differ from what the kernel has.
    facts_changed: bool,
    /// Trigger times (nanoseconds since the epoch) of endpoint changes that no committed batch contains yet.
    triggers: BTreeMap<ServiceId, Vec<(Family, i128)>>,
    results: Results,
    conflicts: Conflicts,
}

/// Conflicts that began and ended since they were last asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Conflicts {
    pub began: Vec<Conflict>,
    pub ended: Vec<Conflict>,
}

impl Conflicts {
    pub fn is_empty(&self) -> bool {
        self.began.is_empty() && self.ended.is_empty()
    }
}

impl Engine {
    pub fn new(settings: Settings, cluster: Cluster) -> Engine {
        let forwarder = Forwarder::new(crate::forward::Settings { node_ip: settings.node_ip });
        Engine {
            program: settings.program(cluster.node()),
            doubt: settings.doubt(cluster.node(), cluster.host_addresses()),
            servers: settings
                .ipvs
                .as_ref()
                .map(|it| Servers::new(Some(it.split.clone()), it.drain)),
            settings,
            cluster,
            forwarder,
            compiler: None,
            skeleton: None,
            touched: Touched::default(),
            urgent: BTreeSet::new(),
            unwritten: BTreeSet::new(),
            in_flight: Vec::new(),
            refused: BTreeMap::new(),
            bisect: None,
            batch_rows: BATCH_ROWS,
            cramped: None,
            believed: false,
            stale: false,
            remaking: false,
            adopting: false,
            facts_changed: true,
            triggers: BTreeMap::new(),
            results: Results::default(),
            conflicts: Conflicts::default(),
        }
    }

    pub fn program(&self) -> &Program {
        &self.program
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Takes a change. Nothing is computed yet.
    pub fn apply(&mut self, change: Change) {
        let mut touched = self.cluster.apply(change);
        // What the kernel refused may be good now; it is written even if it forwards as before.
        let again = touched.services.iter().filter(|it| self.refused.remove(it).is_some());
        self.urgent.extend(again);
        self.facts_changed |= touched.node || touched.service_cidrs;
        // They wait here: thousands of slices that come at once would have to be looked through with each of them otherwise.
        for service in std::mem::take(&mut touched.triggers_void) {
            self.triggers.remove(&service);
        }
        for (service, family, time) in std::mem::take(&mut touched.triggers) {
            self.triggers.entry(service).or_default().push((family, time));
        }
        if touched.node {
            self.set_program();
        }
        self.touched.merge(touched);
    }

    /// Other settings from now on. Other rules are written by comparing everything, in one transaction.
    ///
    /// Which Services the node itself is an exception for (`node_ip`) and the families do not change with them: those
    /// take a new process.
    pub fn set_settings(&mut self, settings: Settings) {
        if self.settings != settings {
            self.settings = settings;
            self.facts_changed = true;
            self.set_program();
        }
    }

    /// The own Node's pod CIDRs or addresses may call for other rules; those are written by comparing everything.
    fn set_program(&mut self) {
        self.doubt = self.settings.doubt(self.cluster.node(), self.cluster.host_addresses());
        let program = self.settings.program(self.cluster.node());
        if self.program != program {
            self.program = program;
            self.lost();
        }
    }

    /// Nothing may be written before every watch has delivered its first list.
    pub fn is_ready(&self) -> bool {
        self.cluster.is_complete()
    }

    /// What keeps the settings from having their effect, see [`Settings::doubt`]; known once everything is listed.
    pub fn doubt(&self) -> Option<&'static str> {
        self.doubt.filter(|_| self.is_ready())
    }

    /// There is something to write, or to look at.
    pub fn has_work(&self) -> bool {
        self.is_ready()
            && (self.compiler.is_none()
                || self.adopting && self.refused.is_empty()
                || self.facts_changed
                || !self.touched.services.is_empty()
                || !self.urgent.is_empty()
                || !self.unwritten.is_empty()
                || self.servers.as_ref().is_some_and(Servers::has_work))
    }

    /// Services that wait to be written.
    pub fn waiting(&self) -> usize {
        self.touched.services.len() + self.urgent.len() + self.unwritten.len()
    }

    pub fn needs_observation(&self) -> bool {
        self.compiler.is_none()
    }

    /// Everything is being compared with what the kernel holds, at start or after an error.
    pub fn is_adopting(&self) -> bool {
        self.adopting
    }

    /// What the kernel holds now. Every Service is compared with it from here on; equal rows are not written.
    pub fn observed(&mut self, mut tables: BTreeMap<Family, ObservedTable>) {
        self.recompute();
        if self.remaking {
            let unfit = || "sets that do not grow".to_owned();
            tables.values_mut().for_each(|table| table.unknown.push(unfit()));
        }
        self.compiler = Some(Compiler::adopt(self.program.clone(), tables));
        let mut expected = RowCounts::default();
        for service in self.forwarder.services() {
            let forwarding = self.forwarder.forwarding(&self.cluster, service);
            let families = &self.program.families;
            match &self.servers {
                Some(servers) => {
                    let split = servers.split(families, &forwarding);
                    expected.expect(&split.forwarding, self.program.ipvs);
                }
                None => expected.expect(&forwarding, false),
            }
        }
        self.skeleton = Some(expected);
        self.unwritten = self.forwarder.services().collect();
        // Services that are gone have no forwarding, but what they meant to others has to end.
        self.unwritten.extend(self.results.services());
        self.unwritten.append(&mut self.urgent);
        if let Some(servers) = self.servers.as_mut() {
            self.unwritten.extend(servers.rows_lost());
        }
        self.in_flight.clear();
        self.believed = false;
        self.adopting = true;
        self.facts_changed = true;
    }

    /// The next batch; empty if nothing has to be written. Must be followed by [`Engine::committed`],
    /// [`Engine::refused`] or [`Engine::lost`], also when it is empty.
    pub fn plan(&mut self) -> Batch {
        self.recompute();
        let Some(compiler) = self.compiler.as_mut() else { return Batch::default() };
        // Again after a refusal, which took it back together with the rows.
        if let Some(expected) = &self.skeleton {
            compiler.stage_skeleton(expected);
        }
        // A rollback forgets these as well; nothing is staged that the kernel has already.
        for &family in self.program.families.iter().filter(|_| self.facts_changed) {
            let (node, host) = (self.cluster.node(), self.cluster.host_addresses());
            let listed = match self.program.family(family).node_ports {
                NodePortAddresses::Listed => self.settings.node_port_ips(family, node, host),
                // Such a program asks the kernel which addresses are local.
                NodePortAddresses::All => BTreeSet::new(),
            };
            compiler.stage_node_port_ips(family, &listed);
            compiler.stage_node_ips(family, &facts::own_addresses(family, host));
            compiler.stage_service_cidrs(family, &self.cluster.service_cidrs(family));
        }
        let most_services = self.bisect.unwrap_or(usize::MAX);
        let whole = compiler.needs_rebuild();
        for Picked { service, original, derived } in
            self.servers.as_mut().map(Servers::take_picked).unwrap_or_default()
        {
            compiler.stage(Owner(service.0), &derived);
            self.results.stage(service, self.cluster.name(service), &original);
            self.in_flight.push(service);
        }
        let serves = self.servers.as_ref().is_some_and(Servers::serves);
        while !serves
            && self.in_flight.len() < most_services
            && (whole || compiler.staged_len() < self.batch_rows)
        {
            let Some(service) = self.urgent.pop_first().or_else(|| self.unwritten.pop_first())
            else {
                break;
            };
            if self.refused.contains_key(&service) {
                continue;
            }
            let forwarding = self.forwarder.forwarding(&self.cluster, service);
            compiler.stage(Owner(service.0), &forwarding);
            self.results.stage(service, self.cluster.name(service), &forwarding);
            self.in_flight.push(service);
        }
        // A refused Service has claimed none of its rows: they are left until it is good again.
        if self.adopting
            && self.urgent.is_empty()
            && self.unwritten.is_empty()
            && self.refused.is_empty()
        {
            compiler.stage_prune();
            if let Some(servers) = self.servers.as_mut().filter(|it| it.is_known()) {
                servers.prune();
            }
        }
        if let Some(servers) = self.servers.as_mut()
            && let Some(draining) = servers.plan_draining(&self.in_flight)
        {
            for &family in &self.program.families {
                compiler.stage_ipvs_draining(family, draining);
            }
        }
        compiler.batch()
    }

    /// What virtual servers need before the next batch; empty if nothing, as always in nftables mode. To be called
    /// before [`Engine::plan`], and followed by [`Engine::servers_changed`] or [`Engine::servers_lost`].
    pub fn plan_servers(&mut self) -> ServerBatch {
        self.recompute();
        let (Some(compiler), Some(servers)) = (self.compiler.as_ref(), self.servers.as_mut())
        else {
            return ServerBatch::default();
        };
        let most_services = self.bisect.unwrap_or(usize::MAX);
        let whole = compiler.needs_rebuild();
        // A Service has about eight rows, since endpoints are none.
        let most_rows = if whole { usize::MAX } else { (self.batch_rows / 8).max(1) };
        let (mut picked, mut size) = (0, 0);
        while servers.serves()
            && picked < most_services.min(most_rows)
            && (whole || size < BATCH_SERVERS)
        {
            let Some(service) = self.urgent.pop_first().or_else(|| self.unwritten.pop_first())
            else {
                break;
            };
            if self.refused.contains_key(&service) {
                continue;
            }
            let forwarding = self.forwarder.forwarding(&self.cluster, service);
            size += servers.stage(&self.program.families, service, forwarding);
            picked += 1;
        }
        servers.before(|address| compiler.has_cluster_ip(address))
    }

    /// The tables are about to be made anew, and not every Service's virtual servers are settled yet: a batch now would be
    /// a table without those Services, if only for a moment.
    pub fn waits_for_servers(&self) -> bool {
        let whole = self.compiler.as_ref().is_some_and(Compiler::needs_rebuild);
        let serves = self.servers.as_ref().is_some_and(Servers::serves);
        whole && serves && self.bisect.is_none() && !self.urgent.is_empty()
    }

    /// What virtual servers need after [`Engine::plan`]'s batch was taken, before [`Engine::committed`].
    pub fn plan_servers_after(&mut self) -> ServerBatch {
        self.servers.as_ref().map(|it| it.after(&self.in_flight)).unwrap_or_default()
    }

    /// A batch for virtual servers was carried out but for these operations. Returns the Services that are left out.
    pub fn servers_changed(
        &mut self,
        batch: &ServerBatch,
        refused: &[Refused],
    ) -> Vec<(ServiceId, Rejection)> {
        let host = self.cluster.host_addresses();
        let Some(servers) = self.servers.as_mut() else { return Vec::new() };
        let judged = servers.committed(batch, refused, |it| host.contains(&it));
        for service in judged.again.iter().chain(judged.refused.keys()) {
            servers.drop_picked(*service);
        }
        self.urgent.extend(judged.again);
        let refused: Vec<_> = judged.refused.into_iter().collect();
        self.refused.extend(refused.iter().cloned());
        refused
    }

    /// Whether virtual servers have to be looked at before the next batch.
    pub fn needs_servers(&self) -> bool {
        self.servers.as_ref().is_some_and(|it| !it.is_known())
    }

    /// In nftables mode: what is left of IPVS mode shall drain.
    pub fn drain_servers(&mut self, bound: Duration) {
        self.servers.get_or_insert_with(|| Servers::new(None, bound));
    }

    /// What IPVS holds now. Whether it is something else than believed.
    pub fn servers_observed(&mut self, observed: Observed) -> bool {
        let Some(servers) = self.servers.as_mut() else { return false };
        let (differs, services) = servers.observed(observed);
        self.urgent.extend(services);
        differs
    }

    /// Begins a comparison of what IPVS holds with what it is believed to hold, piece by piece. Whether they differ.
    pub fn servers_outlined(&mut self, outline: Outline) -> bool {
        let Some(servers) = self.servers.as_mut() else { return false };
        let (differs, services) = servers.outlined(outline);
        self.urgent.extend(services);
        differs
    }

    /// Schedulers that were missing may have been loaded meanwhile: gives Services that want them another chance.
    pub fn retry_schedulers(&mut self) {
        let again = self.servers.as_mut().map(Servers::retry_schedulers);
        self.urgent.extend(again.unwrap_or_default());
    }

    /// The next virtual servers to read for that comparison; none: it has ended.
    pub fn uncompared_servers(&self, most: usize) -> Vec<ServerKey> {
        self.servers.as_ref().map(|it| it.compiler().uncompared(most)).unwrap_or_default()
    }

    /// Their destinations. Whether they differ.
    pub fn servers_compared(&mut self, seen: BTreeMap<ServerKey, ObservedDestinations>) -> bool {
        let Some(servers) = self.servers.as_mut() else { return false };
        let (differs, services) = servers.compared(seen);
        self.urgent.extend(services);
        differs
    }

    /// It is not known what of the batch IPVS has carried out: look again before the next one.
    pub fn servers_lost(&mut self, batch: &ServerBatch) {
        if let Some(servers) = self.servers.as_mut() {
            self.urgent.extend(servers.lost(batch));
        }
    }

    /// Something drains; the question comes up with every change, when there may be very many.
    pub fn has_draining_servers(&self) -> bool {
        self.servers.as_ref().is_some_and(Servers::has_draining)
    }

    /// Virtual servers with destinations that drain: their connections are of interest.
    pub fn draining_servers(&self) -> Vec<ServerKey> {
        self.servers.as_ref().map(Servers::draining).unwrap_or_default()
    }

    /// The connections of those.
    pub fn servers_drained(&mut self, now: Instant, seen: &[ObservedConnections]) {
        if let Some(servers) = self.servers.as_mut() {
            servers.look(now, seen);
        }
    }

    /// In nftables mode, nothing is left of IPVS mode but the interface. True once.
    pub fn take_end_of_servers(&mut self) -> bool {
        let over = self.servers.as_ref().is_some_and(Servers::is_over);
        if over {
            self.servers = None;
        }
        over
    }

    /// In nftables mode: what is left of IPVS mode is left alone.
    pub fn forget_servers(&mut self) {
        self.servers = None;
    }

    /// What users should know about virtual servers, each once since the last call.
    pub fn take_server_limits(&mut self) -> Vec<ServerLimit> {
        self.servers.as_mut().map(Servers::take_limits).unwrap_or_default()
    }

    /// Virtual servers as they are believed to be; `None` if there are none to look after.
    pub fn servers(&self) -> Option<&ServerCompiler> {
        self.servers.as_ref().map(Servers::compiler)
    }

    /// What others have done to our tables since they were read or written last, as far as a survey shows it.
    pub fn damage(&self, shapes: &BTreeMap<Family, TableShape>) -> Option<String> {
        self.compiler.as_ref()?.damage(shapes)
    }

    /// Computes what touched Services forward to now; a Service touched a hundred times is computed once.
    fn recompute(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        if touched.services.is_empty() {
            return;
        }
        let update = self.forwarder.update(&self.cluster, &touched.services);
        self.urgent.extend(update.changed);
        self.conflicts.began.extend(update.conflicts_began);
        self.conflicts.ended.extend(update.conflicts_ended);
        // A change that alters nothing is programmed already: its trigger time would wait for ever.
        self.triggers
            .retain(|service, _| self.urgent.contains(service) || self.unwritten.contains(service));
    }

    /// The kernel took the batch, or it was empty. Returns what follows from it.
    pub fn committed(&mut self) -> Outcome {
        if let Some(compiler) = self.compiler.as_mut() {
            compiler.confirm();
        }
        if let Some(servers) = self.servers.as_mut() {
            servers.finished(&self.in_flight);
        }
        self.skeleton = None;
        if self.cramped.is_some_and(|(service, _)| self.in_flight.contains(&service)) {
            self.cramped = None;
        }
        let mut outcome = self.results.take(&mut self.in_flight);
        for service in &outcome.services {
            outcome.triggers.extend(self.triggers.remove(service).unwrap_or_default());
        }
        // To gather a node's addresses, of which it may have thousands, is nothing to do for every endpoint.
        if !outcome.sweep.is_empty() {
            outcome.sweep.set_node_addresses(self.node_port_ips());
        }
        outcome.health_checks_changed |= self.facts_changed;
        self.facts_changed = false;
        self.bisect = None;
        self.batch_rows = (self.batch_rows * 2).min(BATCH_ROWS);
        self.believed = true;
        self.remaking = false;
        if self.urgent.is_empty() && self.unwritten.is_empty() {
            self.stale = false;
            self.adopting &= !self.refused.is_empty();
        }
        outcome
    }

    fn node_port_ips(&self) -> BTreeSet<IpAddr> {
        let node = self.cluster.node();
        let of = |family| self.settings.node_port_ips(family, node, self.cluster.host_addresses());
        Family::ALL.into_iter().flat_map(of).collect()
    }

    /// It is not known what the kernel holds: look again before the next batch.
    pub fn lost(&mut self) {
        self.compiler = None;
        self.bisect = None;
        self.results.forget();
        if let Some(servers) = self.servers.as_mut() {
            self.urgent.extend(servers.rows_lost());
        }
        self.urgent.extend(self.in_flight.drain(..));
    }

    /// All health check node ports, as the committed batches left them; none of a family that the host lacks.
    pub fn health_checks(&self) -> HealthChecks {
        let mut wanted = Vec::new();
        for (service, check) in self.results.health_checks() {
            let known = self.cluster.id(service).and_then(|it| self.cluster.service(it));
            let uid = known.and_then(|it| it.uid);
            for &family in &self.program.families {
                let Some(local) = check.local(family) else { continue };
                let local_endpoints = usize::try_from(local).unwrap_or(usize::MAX);
                wanted.push(HealthCheck {
                    service: service.clone(),
                    uid,
                    family,
                    port: check.node_port,
                    local_endpoints,
                });
            }
        }
        let listen = |family| {
            self.settings.health_check_addresses(
                family,
                self.cluster.node(),
                self.cluster.host_addresses(),
            )
        };
        HealthChecks { wanted, v4: listen(Family::V4), v6: listen(Family::V6) }
    }

    /// Service ports with a Local policy, endpoints elsewhere and none here.
    pub fn lacking_local(&self) -> Lacking {
        self.results.lacking_local()
    }

    /// How many claims on addresses are lost at present.
    pub fn conflict_count(&self) -> usize {
        self.forwarder.conflicts().len()
    }

    /// Conflicts that began and ended since the last call.
    pub fn take_conflicts(&mut self) -> Conflicts {
        std::mem::take(&mut self.conflicts)
    }

    /// What could not be programmed for its size, since the last call.
    pub fn take_limits(&mut self) -> Vec<Limit> {
        self.compiler.as_mut().map(Compiler::take_limits).unwrap_or_default()
    }

    /// Bytes on the heap, about, by room. Walks over everything.
    pub fn heap_bytes(&self) -> [(&'static str, usize); 3] {
        [
            ("model", self.cluster.heap_bytes()),
            ("forward", self.forwarder.heap_bytes()),
            ("nft", self.compiler.as_ref().map_or(0, Compiler::heap_bytes)),
        ]
    }

    /// Every set of the tables that has a limit.
    pub fn sets(&self) -> impl Iterator<Item = (Family, SetName)> + '_ {
        self.compiler.iter().flat_map(Compiler::sets)
    }

    /// How many elements the set is believed to have, and how many fit; `None` if it has no limit.
    pub fn fill(&self, family: Family, set: SetName) -> Option<(u32, u32)> {
        self.compiler.as_ref()?.fill(family, set)
    }
}

#[cfg(test)]
mod tests;
