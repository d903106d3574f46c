//! What the loop remembers between passes: pure, it is told what happened and says what to do next.
//!
//! [`Engine::apply`] takes changes and only notes which Services they touch; [`Engine::plan`] computes those once,
//! however many changes touched them, and returns the next batch. Whoever carried the batch out says how it ended
//! with [`Engine::committed`], [`Engine::refused`] or [`Engine::lost`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::forward::{Forwarder, ServiceForwarding};
use crate::kernel::Rejection;
use crate::model::{Change, Cluster, Family, ServiceId};
use crate::nft::compile::Compiler;
use crate::nft::schema::{Batch, ObservedTable, Owner};
use crate::nft::skeleton::Program;

/// Rows in one batch while a lot is to be written. Other users of nf_tables on the host wait while a batch commits
/// (it holds the namespace's commit mutex), so one batch should take some ten milliseconds at most.
const BATCH_ROWS: usize = 8_000;

/// The state between events and batches.
pub struct Engine {
    program: Program,
    cluster: Cluster,
    forwarder: Forwarder,
    /// `None`: what the kernel holds is not known, look first.
    compiler: Option<Compiler>,
    /// Touched by changes, not recomputed yet.
    touched: BTreeSet<ServiceId>,
    /// Recomputed (or to be written again), not in a committed batch yet.
    unwritten: BTreeSet<ServiceId>,
    /// In the batch that is under way.
    in_flight: Vec<ServiceId>,
    /// Services whose rows the kernel refused; left as they were until they change or are tried again.
    refused: BTreeMap<ServiceId, Rejection>,
    /// At most that many Services in the next batch; shrinks to find a Service that the kernel refuses without
    /// telling which one.
    bisect: Option<usize>,
    /// Everything has to be compared with the kernel once; rows nobody claims are deleted at the end.
    adopting: bool,
    node_addresses: BTreeSet<IpAddr>,
    facts_changed: bool,
    /// Trigger times (nanoseconds since the epoch) of endpoint changes that no committed batch contains yet.
    triggers: BTreeMap<ServiceId, Vec<i128>>,
    taken_triggers: Vec<i128>,
}

/// What became of a refused batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// These Services are left out from now on; the others are tried again.
    LeftOut(Vec<(ServiceId, Rejection)>),
    /// The next batches are smaller, to find the culprit.
    Bisecting,
    /// It was not about any Service: the program or the node's facts. Everything is looked at again.
    Program,
}

impl Engine {
    pub fn new(program: Program, cluster: Cluster, forwarder: Forwarder) -> Engine {
        Engine {
            program,
            cluster,
            forwarder,
            compiler: None,
            touched: BTreeSet::new(),
            unwritten: BTreeSet::new(),
            in_flight: Vec::new(),
            refused: BTreeMap::new(),
            bisect: None,
            adopting: false,
            node_addresses: BTreeSet::new(),
            facts_changed: true,
            triggers: BTreeMap::new(),
            taken_triggers: Vec::new(),
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
        let touched = self.cluster.apply(change);
        for service in touched.services {
            // What the kernel refused may be good now.
            self.refused.remove(&service);
            self.touched.insert(service);
        }
        self.facts_changed |= touched.node || touched.service_cidrs;
        for (service, time) in touched.triggers {
            self.triggers.entry(service).or_default().push(time);
        }
    }

    /// The host's own addresses, without loopback.
    pub fn set_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        if self.node_addresses != addresses {
            self.node_addresses = addresses;
            self.facts_changed = true;
        }
    }

    /// Nothing may be written before every watch has delivered its first list.
    pub fn is_ready(&self) -> bool {
        self.cluster.is_complete()
    }

    /// There is something to write, or to look at.
    pub fn has_work(&self) -> bool {
        self.is_ready()
            && (self.compiler.is_none()
                || self.adopting
                || self.facts_changed
                || !self.touched.is_empty()
                || !self.unwritten.is_empty())
    }

    pub fn needs_observation(&self) -> bool {
        self.compiler.is_none()
    }

    /// What the kernel holds now. Every Service is compared with it from here on; equal rows are not written.
    pub fn observed(&mut self, tables: BTreeMap<Family, ObservedTable>) {
        self.recompute();
        let mut compiler = Compiler::adopt(self.program.clone(), tables);
        compiler.stage_skeleton(&Compiler::expected(self.forwarder.all()));
        self.compiler = Some(compiler);
        self.unwritten = self.cluster.ids().collect();
        self.in_flight.clear();
        self.adopting = true;
        self.facts_changed = true;
    }

    /// The next batch; empty if nothing has to be written.
    pub fn plan(&mut self) -> Batch {
        self.recompute();
        let Some(compiler) = self.compiler.as_mut() else { return Batch::default() };
        stage_facts(compiler, &self.cluster, &self.program, &self.node_addresses);
        let most_services = self.bisect.unwrap_or(usize::MAX);
        while self.in_flight.len() < most_services && (compiler.needs_rebuild() || compiler.staged_len() < BATCH_ROWS) {
            let Some(service) = self.unwritten.pop_first() else { break };
            if self.refused.contains_key(&service) {
                continue;
            }
            compiler.stage(Owner(service.0), self.forwarder.get(service).unwrap_or(&ServiceForwarding::default()));
            self.in_flight.push(service);
        }
        if self.adopting && self.unwritten.is_empty() && self.refused.is_empty() {
            compiler.stage_prune();
        }
        compiler.batch()
    }

    /// Computes what touched Services forward to now; a Service touched a hundred times is computed once.
    fn recompute(&mut self) {
        if self.touched.is_empty() {
            return;
        }
        let touched: Vec<ServiceId> = std::mem::take(&mut self.touched).into_iter().collect();
        self.unwritten.extend(self.forwarder.update(&self.cluster, &touched));
    }

    /// The kernel took the batch.
    pub fn committed(&mut self) {
        if let Some(compiler) = self.compiler.as_mut() {
            compiler.confirm();
        }
        for service in self.in_flight.drain(..) {
            self.taken_triggers.extend(self.triggers.remove(&service).unwrap_or_default());
        }
        self.facts_changed = false;
        self.bisect = None;
        if self.unwritten.is_empty() {
            self.adopting = false;
        }
    }

    /// The kernel took nothing of the batch and named these operations.
    pub fn refused(&mut self, rejections: Vec<Rejection>) -> Refusal {
        if let Some(compiler) = self.compiler.as_mut() {
            compiler.rollback();
        }
        let staged = std::mem::take(&mut self.in_flight);
        self.unwritten.extend(&staged);
        let mut culprits: Vec<(ServiceId, Rejection)> = Vec::new();
        for rejection in rejections {
            if let Some(owner) = rejection.owner {
                let service = ServiceId(owner.0);
                if culprits.iter().all(|(known, _)| *known != service) {
                    culprits.push((service, rejection));
                }
            } else if let [only] = staged[..] {
                culprits.push((only, rejection));
            }
        }
        if !culprits.is_empty() {
            self.refused.extend(culprits.iter().cloned());
            return Refusal::LeftOut(culprits);
        }
        if staged.len() > 1 {
            self.bisect = Some(staged.len() / 2);
            return Refusal::Bisecting;
        }
        self.lost();
        Refusal::Program
    }

    /// It is not known what the kernel holds: look again before the next batch.
    pub fn lost(&mut self) {
        self.compiler = None;
        self.bisect = None;
        self.in_flight.clear();
    }

    /// Gives Services that the kernel refused another chance.
    pub fn retry_refused(&mut self) {
        self.unwritten.extend(std::mem::take(&mut self.refused).into_keys());
    }

    /// How many Services the kernel refuses.
    pub fn refused_count(&self) -> usize {
        self.refused.len()
    }

    /// Trigger times of the endpoint changes that committed batches brought into the kernel since the last call.
    pub fn take_triggers(&mut self) -> Vec<i128> {
        std::mem::take(&mut self.taken_triggers)
    }
}

fn stage_facts(compiler: &mut Compiler, cluster: &Cluster, program: &Program, node_addresses: &BTreeSet<IpAddr>) {
    for &family in &program.families {
        let selected = node_addresses.iter().copied().filter(|&it| Family::of(it) == family).collect();
        compiler.stage_node_port_ips(family, &selected);
        compiler.stage_service_cidrs(family, &cluster.service_cidrs(family));
    }
}
