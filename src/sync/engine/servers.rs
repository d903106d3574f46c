//! What the engine remembers about virtual servers; see [`crate::ipvs`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv6Net};

use crate::forward::ServiceForwarding;
use crate::ipvs::compile::{Compiler, Differences, Failure, FoundScheduler, MissingScheduler};
use crate::ipvs::schema::{Batch, Observed, ObservedDestinations, Op, Outline, ServerKey};
use crate::ipvs::split::{self, Split};
use crate::kernel::ipvs::advice;
use crate::kernel::{ObservedConnections, Refused, Rejection};
use crate::model::{Family, ServiceId};
use crate::nft::schema::Owner;

/// `EAFNOSUPPORT`: the kernel's IPVS was built without IPv6 (`ip_vs_genl_parse_service` in ip_vs_ctl.c).
const EAFNOSUPPORT: i32 = 97;

/// How often in a row a refusal makes us look again before it is taken for what it says.
const MOST_LOOKS: u32 = 2;

pub(super) struct Servers {
    compiler: Compiler,
    /// `None` in nftables mode: what is left of IPVS mode drains.
    split: Option<split::Settings>,
    /// What the kernel holds is known.
    known: bool,
    pruned: bool,
    looks: u32,
    /// Rows of `ipvs-draining` in a committed batch; `None` if they are not known.
    draining: Option<BTreeSet<IpAddr>>,
    /// The same for the batch that is under way.
    planned: Option<BTreeSet<IpAddr>>,
    /// Who was told that nft serves them alone.
    excluded: BTreeSet<(ServiceId, IpAddr)>,
    told: Vec<ServerLimit>,
    /// The kernel's IPVS knows no IPv6.
    without_ipv6: bool,
    /// Staged, and to be staged for nft as well.
    picked: Vec<Picked>,
}

/// A Service whose virtual servers are staged.
pub(super) struct Picked {
    pub(super) service: ServiceId,
    /// As it is.
    pub(super) original: ServiceForwarding,
    /// For nft.
    pub(super) derived: ServiceForwarding,
}

/// What the user should know about a Service in IPVS mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerLimit {
    /// nft serves it alone: the cluster IP is inside `excludeCIDRs`.
    Excluded { service: ServiceId, address: IpAddr },
    /// The kernel does not have its scheduler.
    Scheduler { service: ServiceId, wanted: String, used: String },
    /// The kernel's IPVS knows no IPv6: nft serves all cluster IPs of that family alone.
    NoIpv6,
    /// The kernel has it now.
    SchedulerFound { service: ServiceId, scheduler: String },
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// These Services are left out.
    pub(super) refused: BTreeMap<ServiceId, Rejection>,
    /// These are to be tried again at once, in another form or after another look.
    pub(super) again: BTreeSet<ServiceId>,
}

impl Servers {
    pub(super) fn new(split: Option<split::Settings>, bound: Duration) -> Servers {
        let scheduler = split.as_ref().map(|it| it.scheduler).unwrap_or_default();
        Servers {
            compiler: Compiler::new(scheduler, bound),
            split,
            known: false,
            pruned: false,
            looks: 0,
            draining: None,
            planned: None,
            excluded: BTreeSet::new(),
            told: Vec::new(),
            without_ipv6: false,
            picked: Vec::new(),
        }
    }

    pub(super) fn serves(&self) -> bool {
        self.split.is_some()
    }

    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    /// It is not known what of the batch was carried out.
    pub(super) fn lost(&mut self, batch: &Batch) -> Vec<ServiceId> {
        self.known = false;
        self.compiler.uncertain(batch);
        self.put_back()
    }

    /// Picked Services are to be picked again.
    pub(super) fn put_back(&mut self) -> Vec<ServiceId> {
        std::mem::take(&mut self.picked).into_iter().map(|it| it.service).collect()
    }

    /// nft's rows are not known any more.
    pub(super) fn rows_lost(&mut self) -> Vec<ServiceId> {
        self.draining = None;
        self.put_back()
    }

    /// Returns whether that is something else than believed, and the Services that have to be written for it.
    pub(super) fn observed(&mut self, observed: Observed) -> (bool, Vec<ServiceId>) {
        self.known = true;
        told(self.compiler.observe(observed))
    }

    /// As [`Servers::observed`], but for destinations.
    pub(super) fn outlined(&mut self, outline: Outline) -> (bool, Vec<ServiceId>) {
        told(self.compiler.outline(outline))
    }

    /// As [`Servers::observed`], the destinations of a few virtual servers.
    pub(super) fn compared(
        &mut self,
        seen: BTreeMap<ServerKey, ObservedDestinations>,
    ) -> (bool, Vec<ServiceId>) {
        told(self.compiler.compare(seen))
    }

    /// Schedulers that were missing may be there now. Returns the Services that want them.
    pub(super) fn retry_schedulers(&mut self) -> Vec<ServiceId> {
        self.compiler.retry_schedulers().into_iter().map(|it| ServiceId(it.0)).collect()
    }

    pub(super) fn prune(&mut self) {
        if !self.pruned {
            self.pruned = true;
            self.compiler.prune();
        }
    }

    pub(super) fn split(&self, families: &[Family], forwarding: &ServiceForwarding) -> Split {
        match &self.split {
            Some(settings) => split::split(settings, families, forwarding),
            None => Split { forwarding: forwarding.clone(), ..Split::default() },
        }
    }

    /// Stages a Service; returns about how many operations that can take.
    pub(super) fn stage(
        &mut self,
        families: &[Family],
        service: ServiceId,
        original: ServiceForwarding,
    ) -> usize {
        let Split { forwarding, servers, excluded } = self.split(families, &original);
        for address in excluded {
            if !(self.without_ipv6 && address.is_ipv6()) && self.excluded.insert((service, address))
            {
                self.told.push(ServerLimit::Excluded { service, address });
            }
        }
        let size = servers.iter().map(|it| 2 + it.destinations.len()).sum();
        self.compiler.stage(Owner(service.0), servers);
        self.picked.push(Picked { service, original, derived: forwarding });
        size
    }

    pub(super) fn before(&self, led_to: impl Fn(IpAddr) -> bool) -> Batch {
        self.compiler.before(self.picked.iter().map(|it| Owner(it.service.0)), led_to)
    }

    /// The picked Services, whose virtual servers are ready.
    pub(super) fn take_picked(&mut self) -> Vec<Picked> {
        std::mem::take(&mut self.picked)
    }

    pub(super) fn drop_picked(&mut self, service: ServiceId) {
        self.picked.retain(|it| it.service != service);
    }

    pub(super) fn after(&self, services: &[ServiceId]) -> Batch {
        self.compiler.after(services.iter().map(|it| Owner(it.0)))
    }

    /// Both batches are done.
    pub(super) fn finished(&mut self, services: &[ServiceId]) {
        self.draining = self.planned.take();
        self.compiler.finished(services.iter().map(|it| Owner(it.0)));
    }

    /// Takes note of what was done of a batch and what was refused.
    pub(super) fn committed(
        &mut self,
        batch: &Batch,
        refused: &[Refused],
        is_local: impl Fn(IpAddr) -> bool,
    ) -> Judged {
        let errnos: BTreeMap<usize, i32> = refused.iter().map(|it| (it.op, it.errno)).collect();
        let mut judged = Judged::default();
        for (position, (owner, op)) in batch.0.iter().enumerate() {
            let Some(&errno) = errnos.get(&position) else {
                self.compiler.done(op);
                continue;
            };
            let without_ipv6 = errno == EAFNOSUPPORT
                && matches!(op, Op::AddServer(key, _) if key.address.is_ipv6());
            let failure = if without_ipv6 {
                self.do_without_ipv6();
                Failure::Again
            } else {
                self.compiler.failed(op, errno, &is_local)
            };
            let look = failure == Failure::Look && self.looks < MOST_LOOKS;
            if look {
                self.known = false;
            }
            let Some(service) = owner.map(|it| ServiceId(it.0)) else { continue };
            if look || failure == Failure::Again {
                judged.again.insert(service);
            } else {
                let rejection = || rejection(*owner, op, errno);
                judged.refused.entry(service).or_insert_with(rejection);
            }
        }
        if !self.known {
            self.looks += 1;
        } else if refused.is_empty() && !batch.0.is_empty() {
            self.looks = 0;
        }
        judged.refused.retain(|it, _| !judged.again.contains(it));
        judged
    }

    /// The other family's half of a Service is not to suffer for it.
    fn do_without_ipv6(&mut self) {
        let Some(split) = self.split.as_mut().filter(|_| !self.without_ipv6) else { return };
        self.without_ipv6 = true;
        split.exclude_cidrs.push(IpNet::V6(Ipv6Net::default()));
        self.told.push(ServerLimit::NoIpv6);
    }

    /// Rows of `ipvs-draining` for a batch after which the rows of these Services are as wanted; `None` as long as they
    /// are unknown.
    pub(super) fn plan_draining(&mut self, services: &[ServiceId]) -> Option<&BTreeSet<IpAddr>> {
        self.planned = self.draining_addresses(services);
        self.planned.as_ref()
    }

    fn draining_addresses(&self, services: &[ServiceId]) -> Option<BTreeSet<IpAddr>> {
        let owners = services.iter().map(|it| Owner(it.0)).collect();
        (self.serves() && self.pruned).then(|| self.compiler.draining_addresses(&owners))
    }

    /// Something is to be done that no change of a Service asks for.
    pub(super) fn has_work(&self) -> bool {
        !self.known || self.compiler.has_work() || self.draining_addresses(&[]) != self.draining
    }

    pub(super) fn has_draining(&self) -> bool {
        self.known && !self.compiler.draining().is_empty()
    }

    /// Virtual servers whose connections have to be asked for from time to time.
    pub(super) fn draining(&self) -> Vec<ServerKey> {
        if self.known { self.compiler.draining().servers() } else { Vec::new() }
    }

    pub(super) fn look(&mut self, now: Instant, seen: &[ObservedConnections]) {
        self.compiler.look(now, seen);
    }

    /// Nothing is left, in nftables mode.
    pub(super) fn is_over(&self) -> bool {
        !self.serves() && self.known && self.pruned && self.compiler.is_empty()
    }

    /// Each once, since the last call.
    pub(super) fn take_limits(&mut self) -> Vec<ServerLimit> {
        let missing = |it: MissingScheduler| ServerLimit::Scheduler {
            service: ServiceId(it.owner.0),
            wanted: it.wanted.name().to_owned(),
            used: it.used.name().to_owned(),
        };
        let mut told = std::mem::take(&mut self.told);
        told.extend(self.compiler.take_missing_schedulers().into_iter().map(missing));
        let found = |it: FoundScheduler| ServerLimit::SchedulerFound {
            service: ServiceId(it.owner.0),
            scheduler: it.scheduler.name().to_owned(),
        };
        told.extend(self.compiler.take_found_schedulers().into_iter().map(found));
        told
    }

    pub(super) fn compiler(&self) -> &Compiler {
        &self.compiler
    }
}

fn rejection(owner: Option<Owner>, op: &Op, errno: i32) -> Rejection {
    let advice = advice(op, errno).map(|it| format!(" ({it})")).unwrap_or_default();
    Rejection { op: None, owner, errno, what: format!("IPVS {op}{advice}") }
}

fn told(differences: Differences) -> (bool, Vec<ServiceId>) {
    let Differences { by_others, owners } = differences;
    (by_others, owners.into_iter().map(|it| ServiceId(it.0)).collect())
}
