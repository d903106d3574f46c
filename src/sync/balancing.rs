//! The loop's part that concerns virtual servers.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::engine::Engine;
use super::{Pass, Sync, now};
use crate::ipvs::schema::{Batch, Observed, Outline};
use crate::kernel::{Ipvs, IpvsError, IpvsSettings, Kernel};

/// A comparison reads destinations for this long at a time, and then lets changes go first.
const PIECE: Duration = Duration::from_millis(3);

/// How many virtual servers it asks about before it looks at the time: 10 microseconds each, as a rule.
const SERVERS_AT_ONCE: usize = 32;

/// After a piece it rests this many times its length, so that a comparison takes a fiftieth of the time however many
/// virtual servers there are: IPVS lists their destinations one virtual server at a time.
const REST: u32 = 49;

/// But not longer than this. Only an outline of very many virtual servers takes longer than a fiftieth of it, and that is one
/// piece in a hundred.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// How often connections of what drains are counted.
const COUNT_EVERY: Duration = Duration::from_secs(2);

/// IPVS, and how it is looked after.
pub struct Balancing {
    pub(super) ipvs: Box<dyn Ipvs>,
    /// `None` in nftables mode, where what is left of IPVS mode only drains.
    pub(super) settings: Option<IpvsSettings>,
    /// How long a destination that is not wanted any more may keep its connections.
    pub(super) drain: Duration,
    /// `ipvs.syncPeriod`: IPVS tells nobody what is changed, so everything is read and compared this often. Zero: never.
    sync_period: Duration,
    /// When to begin the next comparison, or to go on with the one that is under way.
    compare_at: Option<Instant>,
    under_way: Option<Comparison>,
    count_at: Option<Instant>,
}

/// A comparison of everything, piece by piece.
struct Comparison {
    began: Instant,
    differs: bool,
}

impl Balancing {
    pub fn new(
        ipvs: Box<dyn Ipvs>,
        settings: Option<IpvsSettings>,
        drain: Duration,
        sync_period: Duration,
    ) -> Balancing {
        let (compare_at, under_way, count_at) = (None, None, None);
        Balancing { ipvs, settings, drain, sync_period, compare_at, under_way, count_at }
    }

    /// Everything has been read at once, beginning then.
    fn observed(&mut self, began: Instant) {
        self.under_way = None;
        self.rest(began, now().checked_add(self.sync_period));
        // What drained before a restart needs no operation, and has to be counted all the same.
        self.count_at.get_or_insert(began + COUNT_EVERY);
    }

    /// Goes on at that time, but not before it has rested from what began at `began`. `None`: never.
    fn rest(&mut self, began: Instant, at: Option<Instant>) {
        let rest = began.elapsed().saturating_mul(REST).min(LONGEST_REST);
        let rested = now().checked_add(rest);
        self.compare_at = rested.zip(at).map(|(rested, at)| rested.max(at));
    }

    /// The next piece has ended, which began at `began`. If it was the `last` one: whether the comparison showed that
    /// others had changed something.
    fn compared(&mut self, began: Instant, differs: bool, last: bool) -> Option<bool> {
        let mut comparison = self.under_way.take().unwrap_or(Comparison { began, differs: false });
        comparison.differs |= differs;
        if last {
            self.rest(began, comparison.began.checked_add(self.sync_period));
            return Some(comparison.differs);
        }
        self.under_way = Some(comparison);
        self.rest(began, Some(began));
        None
    }

    /// What there is, at once and completely.
    fn observe(&mut self) -> Result<Observed, IpvsError> {
        self.ensure_interface(|ipvs| {
            let observed = ipvs.observe()?;
            let ours = observed.interface.as_ref().map(|it| it.ours);
            Ok((observed, ours))
        })
    }

    /// What there is but for destinations.
    fn outline(&mut self) -> Result<Outline, IpvsError> {
        self.ensure_interface(|ipvs| {
            let outline = ipvs.outline()?;
            let ours = outline.interface.as_ref().map(|it| it.ours);
            Ok((outline, ours))
        })
    }

    /// Reads something and whether the interface is ours, if there is one. It is made if it is missing, or taken over if
    /// it is kube-proxy's.
    fn ensure_interface<T: Default>(
        &mut self,
        read: impl Fn(&mut dyn Ipvs) -> Result<(T, Option<bool>), IpvsError>,
    ) -> Result<T, IpvsError> {
        let (seen, ours) = read(&mut *self.ipvs)?;
        match &self.settings {
            Some(settings) if ours != Some(true) => {
                self.ipvs.prepare(settings)?;
                Ok(read(&mut *self.ipvs)?.0)
            }
            // Somebody else's, in nftables mode.
            None if ours == Some(false) => Ok(T::default()),
            _ => Ok(seen),
        }
    }

    /// Destinations of virtual servers, for as long as a piece takes. Whether they differ, and whether none are left.
    fn compare(&mut self, engine: &mut Engine) -> Result<(bool, bool), IpvsError> {
        let (began, mut differs) = (now(), false);
        loop {
            let servers = engine.uncompared_servers(SERVERS_AT_ONCE);
            if servers.is_empty() || began.elapsed() >= PIECE {
                return Ok((differs, servers.is_empty()));
            }
            differs |= engine.servers_compared(self.ipvs.destinations(&servers)?);
        }
    }
}

impl<K: Kernel> Sync<K> {
    /// Reads virtual servers if they are not known.
    pub(super) fn observe_servers(&mut self) -> Result<(), Pass> {
        let Some(ipvs) = self.ipvs.as_mut().filter(|_| self.engine.needs_servers()) else {
            return Ok(());
        };
        let began = now();
        match ipvs.observe() {
            Ok(observed) => {
                let (servers, took) = (observed.servers.len(), began.elapsed());
                debug!(servers, ?took, "read the virtual servers");
                self.engine.servers_observed(observed);
                ipvs.observed(began);
                Ok(())
            }
            Err(failure) => self.give_up_servers(&failure),
        }
    }

    /// Carries out operations on virtual servers and addresses.
    pub(super) fn change_servers(&mut self, batch: &Batch) -> Result<(), Pass> {
        let Some(ipvs) = self.ipvs.as_mut().filter(|_| !batch.0.is_empty()) else { return Ok(()) };
        let began = now();
        match ipvs.ipvs.commit(batch) {
            Ok(refused) => {
                self.reporter.servers_changed(batch, &refused, began.elapsed());
                let left_out = self.engine.servers_changed(batch, &refused);
                if !left_out.is_empty() {
                    self.refused_since.get_or_insert_with(now);
                }
                for (service, rejection) in left_out {
                    self.reporter.left_out(self.engine.cluster(), service, &rejection);
                }
                // Whoever drains from now on is counted soon.
                ipvs.count_at.get_or_insert(began + COUNT_EVERY);
                Ok(())
            }
            Err(failure) => {
                self.engine.servers_lost(batch);
                self.give_up_servers(&failure)
            }
        }
    }

    /// In nftables mode nothing else waits for what is left of IPVS mode.
    fn give_up_servers(&mut self, failure: &IpvsError) -> Result<(), Pass> {
        if self.ipvs.as_ref().is_some_and(|it| it.settings.is_none()) {
            warn!(%failure, "what is left of IPVS mode stays until the next start, or kube-ferry --cleanup");
            self.ipvs = None;
            self.engine.forget_servers();
            return Ok(());
        }
        self.reporter.start_failed(failure.to_string());
        match failure {
            IpvsError::Failed { .. } => info!(%failure, "the virtual servers will be read again"),
            IpvsError::Unsupported(_) => {
                warn!(%failure, "virtual servers could not be brought up to date");
            }
        }
        Err(Pass::Failed)
    }

    /// When [`Sync::look_at_servers`] has something to do.
    pub(super) fn next_look_at_servers(&self) -> Option<Instant> {
        let looks = self.engine.servers().is_some() && !self.engine.needs_servers();
        let ipvs = self.ipvs.as_ref().filter(|_| looks)?;
        let compare = ipvs.compare_at.filter(|_| !ipvs.sync_period.is_zero());
        let count = ipvs.count_at.filter(|_| self.engine.has_draining_servers());
        compare.into_iter().chain(count).min()
    }

    /// Counts the connections of what drains, and compares a piece of what is believed with what the kernel has, each in
    /// its time.
    pub(super) fn look_at_servers(&mut self) {
        if self.next_look_at_servers().is_none_or(|at| at > now()) {
            return;
        }
        let Some(ipvs) = self.ipvs.as_mut() else { return };
        let counts = self.engine.has_draining_servers();
        if counts && ipvs.count_at.is_some_and(|at| at <= now()) {
            ipvs.count_at = now().checked_add(COUNT_EVERY);
            match ipvs.ipvs.connections(&self.engine.draining_servers()) {
                Ok(seen) => self.engine.servers_drained(now(), &seen),
                Err(failure) => debug!(%failure, "cannot count connections"),
            }
        }
        if ipvs.compare_at.is_some_and(|at| at <= now()) {
            self.compare_servers();
        }
    }

    /// One piece of a comparison: the outline, or destinations of some virtual servers.
    fn compare_servers(&mut self) {
        let Some(ipvs) = self.ipvs.as_mut() else { return };
        let began = now();
        let piece = match ipvs.under_way.is_some() {
            false => ipvs.outline().map(|outline| {
                self.engine.retry_schedulers();
                let differs = self.engine.servers_outlined(outline);
                (differs, self.engine.uncompared_servers(1).is_empty())
            }),
            true => ipvs.compare(&mut self.engine),
        };
        let (differs, last) = piece.unwrap_or_else(|failure| {
            debug!(%failure, "cannot compare virtual servers");
            (false, true)
        });
        let Some(differed) = ipvs.compared(began, differs, last) else { return };
        debug!(differed, "compared the virtual servers");
        if differed {
            warn!("somebody else had changed our virtual servers; they are set right");
            self.reporter.servers_drifted();
        }
    }

    /// In nftables mode, once everything of IPVS mode has drained.
    pub(super) fn end_servers(&mut self) {
        if !self.engine.take_end_of_servers() {
            return;
        }
        let Some(mut ipvs) = self.ipvs.take() else { return };
        match ipvs.ipvs.remove_interface() {
            Ok(()) => info!("nothing of IPVS mode is left"),
            Err(failure) => warn!(%failure, "the interface of IPVS mode could not be removed"),
        }
    }
}
