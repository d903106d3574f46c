//! Starts everything around the sync loop, and the loop.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel as queue};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::turn::Turn;
use super::{Ending, Shell, cleanup};
use crate::config::{Config, NodePortSelector, Source};
use crate::conntrack::Sweep;
use crate::kernel::netlink::NetlinkKernel;
use crate::kernel::{Addresses, Conntrack, Ipvs as _, IpvsError, KernelError, NetlinkIpvs};
use crate::model::{Change, Cluster, Family, Resource};
use crate::objects::Context;
use crate::serve::{Metrics, NodePortHealth, SharedHealth, Start};
use crate::sync::engine::Engine;
use crate::sync::facts::{Live, Settings};
use crate::sync::pace::Pace;
use crate::sync::{Balancing, HealthChecks, Ports, Sync};
use crate::watch::{
    self as watching, ApiClient, ConnectionPace, Notice, NoticeKind, Outbox, Recorder, Regarding,
    RequestSeen, Server, SideSender, WatchPace, Watching,
};

/// Changes that wait at most between the watchers and the loop; a fuller queue stops the reading from the network.
const QUEUE: usize = 1_024;

/// Health check node ports are looked after this often while there are any: one that could not be opened is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// How long the first write waits for the own Node's addresses if NodePorts depend on them, as kube-proxy does.
const NODE_PATIENCE: Duration = Duration::from_secs(30);

/// Pauses between attempts to delete stale flows, or to follow the host's addresses.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Runs the loop on this thread until the end is asked for.
pub(super) fn sync(shell: &Shell, outbox: Outbox) -> anyhow::Result<()> {
    let config = &shell.config;
    let step = |step| {
        // Each of these asks the kernel or reads files: under load, or behind a lock of the kernel, it may take long.
        debug!(step, "starting");
        shell.health.started(Start::Step(step));
    };
    step("opening nf_tables");
    let mut kernel = NetlinkKernel::new().context("cannot program nftables")?;
    if config.own_tables {
        own_tables(&mut kernel).context("cannot program nftables")?;
    }
    tell_of_families(&shell.live.borrow().settings);
    step("looking for what kube-proxy left");
    cleanup::tell_of_leftovers();
    step("preparing IPVS");
    let balancing = balancing(config).context("cannot program IPVS")?;
    step("reading the host's addresses");
    let addresses = Addresses::new().context("cannot read the host's addresses")?;
    step("reading the credentials for the API server, or the directory of manifests");
    let source = open_source(config, shell)?;
    step("starting the watches");
    let (sender, changes) = watching::channel(QUEUE);
    let recorder = shell.recorder.clone();
    start_events(shell, &source, outbox, &recorder);
    // The addresses are queued before anything else: nothing is written before all lists are there, so the loop knows
    // them by then.
    let side = sender.side();
    side.send(Change::HostAddresses(addresses.current().clone()));
    follow_addresses(addresses, side)?;
    let (sweeps, sweeper) = start_sweeper(shell.metrics.clone())?;
    let health_checks = start_health_checks(shell, recorder.clone());
    let watching = Watching {
        context: context(config),
        stats: shell.watch_stats.clone(),
        sender,
        recorder: recorder.clone(),
    };
    start_watchers(shell, source, watching);
    let mut turn = Turn::new(shell, recorder.clone());
    let ports = Ports {
        metrics: shell.metrics.clone(),
        health: shell.health.clone(),
        recorder,
        sweeps,
        health_checks,
    };
    let pace = Pace::new(config.min_sync_period, config.sync_period);
    let engine = Engine::new(shell.live.borrow().settings.clone(), Cluster::new(&RESOURCES));
    let mut sync = Sync::new(engine, kernel, pace, changes, ports, config.sync_period)
        .wait_for_turn(move || turn.has_come())
        .follow(shell.live.subscribe());
    if let Some(balancing) = balancing {
        sync = sync.balance(balancing);
    }
    match (&config.source, &config.node_ports) {
        (Source::ApiServer(_), NodePortSelector::Primary) => {
            sync.wait_for_node(NODE_PATIENCE).run()
        }
        _ => sync.run(),
    }
    if sweeper.join().is_err() {
        error!("the thread that deletes stale conntrack entries panicked");
    }
    Ok(())
}

/// In IPVS mode the host is made ready for it; in nftables mode what is left of IPVS mode drains, if there is anything.
fn balancing(config: &Config) -> Result<Option<Balancing>, IpvsError> {
    let (drain, period) = (config.ipvs_drain, config.ipvs_sync_period);
    if let Some(settings) = &config.ipvs {
        let mut ipvs = NetlinkIpvs::new(settings.exclude_cidrs.clone())?;
        ipvs.prepare(settings)?;
        return Ok(Some(Balancing::new(Box::new(ipvs), Some(settings.clone()), drain, period)));
    }
    let left = || -> Result<Option<NetlinkIpvs>, IpvsError> {
        let mut ipvs = NetlinkIpvs::new(Vec::new())?;
        Ok(ipvs.interface_is_ours()?.is_some_and(|ours| ours).then_some(ipvs))
    };
    match left() {
        Ok(Some(ipvs)) => {
            info!("the interface kube-ipvs0 is left of IPVS mode; its virtual servers drain");
            Ok(Some(Balancing::new(Box::new(ipvs), None, drain, period)))
        }
        Ok(None) => Ok(None),
        Err(failure) => {
            warn!(%failure, "it is not known whether something of IPVS mode is left");
            Ok(None)
        }
    }
}

/// What may surprise who thinks of one family only.
fn tell_of_families(settings: &Settings) {
    if settings.families == [Family::V4] {
        info!("this host has no IPv6, or it is switched off: IPv4 alone is programmed");
    }
    for family in settings.node_ports.forgotten(&settings.families) {
        info!(
            ?family,
            "nodePortAddresses has no range of this family: NodePorts are accepted on all its addresses"
        );
    }
}

fn own_tables(kernel: &mut NetlinkKernel) -> Result<(), KernelError> {
    if kernel.own_tables()? {
        info!("the kernel lets nobody else change our tables while this process runs");
    } else {
        info!(
            "the kernel cannot keep others from changing our tables (Linux 6.9 can); changes are looked for"
        );
    }
    Ok(())
}

/// What has to be listed before anything is written.
pub(super) const RESOURCES: [Resource; 4] =
    [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr];

/// What the conversion of objects depends on.
pub(super) fn context(config: &Config) -> Context {
    Context {
        node_name: config.node_name.clone(),
        external_ips_allowed: config.feature_gates.enabled("AllowServiceExternalIPs"),
    }
}

/// What may change while the loop runs.
pub(super) fn live(config: &Config) -> Live {
    Live::of(config, families())
}

/// What the kernel's tables depend on.
pub(super) fn settings(config: &Config) -> Settings {
    Settings::of(config, families())
}

/// IPv6 may be compiled out or switched off (reference 5.1).
fn families() -> Vec<Family> {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    let v6 = Path::new("/proc/net/if_inet6").exists() && disabled.is_ok_and(|it| it.trim() != "1");
    if v6 { Family::ALL.to_vec() } else { vec![Family::V4] }
}

/// Where objects come from, opened.
pub(super) enum OpenSource {
    ApiServer(Arc<ApiClient>),
    Manifests(std::path::PathBuf),
}

fn open_source(config: &Config, shell: &Shell) -> anyhow::Result<OpenSource> {
    open(config, &shell.runtime, Some(shell.metrics.clone()))
}

/// Opens the source on a runtime; nothing is asked of the API server yet. Requests are counted if there are metrics.
pub(super) fn open(
    config: &Config,
    runtime: &tokio::runtime::Handle,
    metrics: Option<Metrics>,
) -> anyhow::Result<OpenSource> {
    match &config.source {
        Source::Manifests(path) => {
            std::fs::read_dir(path).with_context(|| {
                format!("--manifests {}: not a directory that can be read", path.display())
            })?;
            Ok(OpenSource::Manifests(path.clone()))
        }
        Source::ApiServer(client) => {
            let server = Server::from_flags(client.kubeconfig.clone(), client.master.clone());
            let client = runtime.block_on(ApiClient::new(server, ConnectionPace::default()))?;
            info!(address = &*client.address(), "objects come from the API server");
            let observe = move |seen: &RequestSeen<'_>| {
                if let Some(metrics) = &metrics {
                    metrics.request(seen.method, seen.host, seen.code, seen.took);
                }
            };
            Ok(OpenSource::ApiServer(Arc::new(client.observed_by(Box::new(observe)))))
        }
    }
}

fn start_events(shell: &Shell, source: &OpenSource, outbox: Outbox, recorder: &Recorder) {
    match source {
        OpenSource::ApiServer(client) => {
            let client = client.clone();
            shell.runtime.spawn(outbox.post(client));
        }
        OpenSource::Manifests(_) => {
            shell.runtime.spawn(outbox.log());
        }
    }
    recorder.record(Notice {
        kind: NoticeKind::Normal,
        reason: "Starting",
        action: "StartKubeProxy",
        note: String::new(),
        regarding: Regarding::Node,
    });
}

fn start_watchers(shell: &Shell, source: OpenSource, watching: Watching) {
    let stop = shell.stop.clone();
    shell.runtime.spawn(async move {
        let asked = stop.clone();
        let watched = watch_source(source, watching);
        tokio::select! {
            _ = asked.wait() => (),
            ended = watched => if let Err(failure) = ended {
                stop.ask(Ending::Failed(failure.to_string()));
            },
        }
    });
}

/// Follows the source until nobody receives any more.
pub(super) async fn watch_source(
    source: OpenSource,
    watching: Watching,
) -> Result<(), watching::ManifestsError> {
    match source {
        OpenSource::ApiServer(client) => {
            watching::watch_api_server(client, WatchPace::default(), watching).await;
            Ok(())
        }
        OpenSource::Manifests(path) => watching::watch_manifests(&path, watching).await,
    }
}

/// Tells the loop the host's addresses whenever they change.
fn follow_addresses(addresses: Addresses, side: SideSender) -> anyhow::Result<()> {
    let follow = move || {
        tell_addresses(addresses, FIRST_RETRY, |now| side.send(Change::HostAddresses(now.clone())))
    };
    // Nobody joins this thread: it waits for the kernel, and ends with the process.
    let thread = std::thread::Builder::new().name("addresses".to_owned()).spawn(follow);
    thread.map(drop).context("cannot start the thread that follows the host's addresses")
}

/// Tells the addresses whenever they change, until `tell` returns `false`.
///
/// What the kernel has no memory for now, or no descriptor, it may have later; until then those that were read last are
/// good for nearly everything. It is tried again with other sockets, in case it is they that are broken.
fn tell_addresses(
    mut addresses: Addresses,
    first_retry: Duration,
    mut tell: impl FnMut(&BTreeSet<IpAddr>) -> bool,
) {
    let mut wait = first_retry;
    loop {
        match addresses.changed() {
            Ok(now) if !tell(now) => return,
            Ok(_) => wait = first_retry,
            Err(failure) => {
                warn!(%failure, ?wait, "the host's addresses cannot be followed; going on with those that are known");
                std::thread::sleep(wait);
                wait = (wait * 2).min(LONGEST_RETRY);
                if let Ok(opened) = Addresses::new() {
                    addresses = opened;
                    if !tell(addresses.current()) {
                        return;
                    }
                }
            }
        }
    }
}

/// The thread that looks for stale UDP flows, off the loop's path; it ends when the loop does.
fn start_sweeper(metrics: Metrics) -> anyhow::Result<(Sender<Sweep>, JoinHandle<()>)> {
    let (sender, sweeps) = queue();
    let mut conntrack = Conntrack::new().context("cannot look at connection tracking")?;
    let work = move || sweep_all(&sweeps, &mut conntrack, &metrics);
    let thread = std::thread::Builder::new().name("conntrack".to_owned()).spawn(work);
    Ok((sender, thread.context("cannot start the thread that deletes stale conntrack entries")?))
}

/// Takes sweeps until nobody sends any more. What fails is tried again, together with what came meanwhile.
fn sweep_all(sweeps: &Receiver<Sweep>, conntrack: &mut Conntrack, metrics: &Metrics) {
    while let Ok(mut todo) = sweeps.recv() {
        let mut wait = FIRST_RETRY;
        loop {
            sweeps.try_iter().for_each(|later| todo.merge(later));
            if sweep(&todo, conntrack, metrics) {
                break;
            }
            match sweeps.recv_timeout(wait) {
                Ok(later) => todo.merge(later),
                Err(RecvTimeoutError::Timeout) => (),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            wait = (wait * 2).min(LONGEST_RETRY);
        }
    }
}

/// Looks through the flows of all families concerned. `false`: not everything could be done.
fn sweep(todo: &Sweep, conntrack: &mut Conntrack, metrics: &Metrics) -> bool {
    let mut complete = true;
    for family in todo.families() {
        let began = now();
        match conntrack.sweep(family, |flow| todo.is_stale(flow)) {
            Ok(swept) => {
                metrics.conntrack_reconciled(family, swept.deleted, began.elapsed());
                if swept.deleted > 0 {
                    info!(
                        ?family,
                        seen = swept.seen,
                        deleted = swept.deleted,
                        "deleted stale UDP conntrack entries"
                    );
                }
            }
            Err(failure) => {
                warn!(?family, %failure, "stale UDP conntrack entries could not be deleted; trying again");
                complete = false;
            }
        }
    }
    complete
}

/// Opens and closes health check node ports as the loop says.
fn start_health_checks(shell: &Shell, recorder: Recorder) -> watch::Sender<HealthChecks> {
    let (sender, wanted) = watch::channel(HealthChecks::default());
    shell.runtime.spawn(keep_health_checks(shell.health.clone(), wanted, recorder));
    sender
}

async fn keep_health_checks(
    health: SharedHealth,
    mut wanted: watch::Receiver<HealthChecks>,
    recorder: Recorder,
) {
    let mut servers = NodePortHealth::new(health);
    let mut looked_after = false;
    loop {
        let again = async {
            if looked_after {
                tokio::time::sleep(LISTEN_AGAIN).await
            } else {
                std::future::pending().await
            }
        };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = again => (),
        }
        let now = wanted.borrow_and_update().clone();
        let failures = servers.reconcile(&now.wanted, &now.v4, &now.v6).await;
        for failure in failures {
            warn!(%failure, "a health check node port cannot be opened");
            recorder.record(Notice {
                kind: NoticeKind::Warning,
                reason: "FailedToStartServiceHealthcheck",
                action: "Listen",
                note: failure.to_string(),
                regarding: Regarding::Object {
                    resource: Resource::Service,
                    name: failure.service.clone(),
                    uid: now
                        .wanted
                        .iter()
                        .find(|it| it.service == failure.service)
                        .and_then(|it| it.uid),
                },
            });
        }
        looked_after = servers.has_failures() || !now.wanted.is_empty();
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a sweep takes is a metric")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::io;

    use netlink_sys::Socket;

    use super::*;
    use crate::kernel::channel::Link;

    /// Notifications for which the kernel has no memory.
    struct NoMemory;

    impl Link for NoMemory {
        fn receive(&mut self, _: &Socket, _: &mut Vec<u8>) -> io::Result<usize> {
            const ENOMEM: i32 = 12;
            Err(io::Error::from_raw_os_error(ENOMEM))
        }
    }

    #[test]
    fn addresses_that_cannot_be_followed_for_a_while_are_read_anew() {
        let addresses = Addresses::new().unwrap();
        let known = addresses.current().clone();
        let mut told = Vec::new();
        tell_addresses(addresses.through(NoMemory), Duration::from_millis(1), |now| {
            told.push(now.clone());
            false
        });
        assert_eq!(told, [known]);
    }
}
