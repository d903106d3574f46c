//! The loop's part that concerns virtual servers.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::{Pass, Sync, now};
use crate::ipvs::schema::{Batch, Observed};
use crate::kernel::{Ipvs, IpvsError, IpvsSettings, Kernel};

/// A comparison rests this many times its own length, so that it takes a fiftieth of the time however many virtual
/// servers there are: IPVS lists their destinations one virtual server at a time.
const COMPARE_REST: u32 = 49;

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
    compare_at: Option<Instant>,
    count_at: Option<Instant>,
}

impl Balancing {
    pub fn new(
        ipvs: Box<dyn Ipvs>,
        settings: Option<IpvsSettings>,
        drain: Duration,
        sync_period: Duration,
    ) -> Balancing {
        Balancing { ipvs, settings, drain, sync_period, compare_at: None, count_at: None }
    }

    /// A look at everything has ended that began then.
    fn looked(&mut self, began: Instant) {
        let rest = (began.elapsed() * COMPARE_REST).max(self.sync_period);
        self.compare_at = now().checked_add(rest);
        // What drained before a restart needs no operation, and has to be counted all the same.
        self.count_at.get_or_insert(began + COUNT_EVERY);
    }

    /// What there is. The interface is made if it is missing, or taken over if it is kube-proxy's.
    fn observe(&mut self) -> Result<Observed, IpvsError> {
        let observed = self.ipvs.observe()?;
        match &self.settings {
            Some(settings) if observed.interface.as_ref().is_none_or(|it| !it.ours) => {
                self.ipvs.prepare(settings)?;
                self.ipvs.observe()
            }
            // Somebody else's, in nftables mode.
            None if observed.interface.as_ref().is_some_and(|it| !it.ours) => {
                Ok(Observed::default())
            }
            _ => Ok(observed),
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
                ipvs.looked(began);
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
        let count = ipvs.count_at.filter(|_| !self.engine.draining_servers().is_empty());
        compare.into_iter().chain(count).min()
    }

    /// Counts the connections of what drains, and compares everything with what the kernel has, each in its time.
    pub(super) fn look_at_servers(&mut self) {
        if self.next_look_at_servers().is_none_or(|at| at > now()) {
            return;
        }
        let draining = self.engine.draining_servers();
        let Some(ipvs) = self.ipvs.as_mut() else { return };
        if !draining.is_empty() && ipvs.count_at.is_some_and(|at| at <= now()) {
            ipvs.count_at = now().checked_add(COUNT_EVERY);
            match ipvs.ipvs.connections(&draining) {
                Ok(seen) => self.engine.servers_drained(now(), &seen),
                Err(failure) => debug!(%failure, "cannot count connections"),
            }
        }
        if ipvs.compare_at.is_some_and(|at| at <= now()) {
            self.compare_servers();
        }
    }

    fn compare_servers(&mut self) {
        let Some(ipvs) = self.ipvs.as_mut() else { return };
        let began = now();
        let observed = ipvs.observe();
        ipvs.looked(began);
        match observed {
            Ok(observed) => {
                let servers = observed.servers.len();
                let differs = self.engine.servers_observed(observed);
                let took = began.elapsed();
                debug!(servers, ?took, "compared the virtual servers");
                if differs {
                    warn!("somebody else had changed our virtual servers; they are set right");
                    self.reporter.servers_drifted();
                }
            }
            Err(failure) => debug!(%failure, "cannot compare virtual servers"),
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
