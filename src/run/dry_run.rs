//! `--dry-run`: what would be written, without writing it.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;

use super::print;
use super::start::{self, RESOURCES};
use crate::config::{Config, DryRun};
use crate::ipvs;
use crate::ipvs::schema::{Observed, Op};
use crate::kernel::netlink::NetlinkKernel;
use crate::kernel::{Addresses, Ipvs as _, IpvsError, Kernel as _, NetlinkIpvs};
use crate::model::{Change, Cluster, Family};
use crate::nft::render;
use crate::nft::schema::{Batch, ObservedTable};
use crate::nft::tables::Tables;
use crate::sync::engine::Engine;
use crate::watch::{self, Received, Stats, Watching};

/// Changes taken from the queue at once.
const MOST_CHANGES: usize = 1_024;

/// Reads all objects once and prints, or lets the kernel check, what follows from them.
pub(super) fn dry_run(config: &Config, kind: DryRun) -> anyhow::Result<()> {
    let mut engine = Engine::new(start::settings(config), Cluster::new(&RESOURCES));
    read_objects(config, &mut engine)?;
    match kind {
        DryRun::Ruleset => {
            let (batch, _) = whole_batch(&mut engine, BTreeMap::new(), Observed::default());
            let mut tables = Tables::default();
            tables.apply(&batch).map_err(|refusals| {
                anyhow::anyhow!("the ruleset contradicts itself: {refusals:?}")
            })?;
            print(&render::ruleset(&tables))?;
            print_servers(&engine)?;
        }
        DryRun::Diff => {
            let mut kernel = NetlinkKernel::new().context("cannot read nftables")?;
            let observed = kernel.observe(engine.program()).context("cannot read our tables")?;
            let servers = observed_servers(config).context("cannot read virtual servers")?;
            let (batch, servers) = whole_batch(&mut engine, observed, servers);
            print(&render::batch(&batch))?;
            print_ops(&servers)?;
        }
        DryRun::Kernel => {
            let mut kernel = NetlinkKernel::new().context("cannot ask nftables")?;
            let observed = kernel.observe(engine.program()).context("cannot read our tables")?;
            let servers = observed_servers(config).context("cannot read virtual servers")?;
            let (batch, servers) = whole_batch(&mut engine, observed, servers);
            kernel.validate(&batch).context("the kernel refuses the ruleset")?;
            print(&format!(
                "The kernel accepts all {} operations; nothing was changed.",
                batch.len()
            ))?;
            if !servers.is_empty() {
                print(&format!(
                    "IPVS cannot check anything beforehand: {} operations on virtual servers and addresses are not tried.",
                    servers.len()
                ))?;
            }
        }
    }
    Ok(())
}

/// Takes changes until every resource has been listed.
fn read_objects(config: &Config, engine: &mut Engine) -> anyhow::Result<()> {
    // Reading addresses needs no privileges, but a kernel with rtnetlink; a dump for another machine can do without.
    let addresses = Addresses::new().map(|it| it.current().clone()).unwrap_or_default();
    engine.apply(Change::HostAddresses(addresses));
    let (runtime, thread) = super::start_runtime()?;
    let source = start::open(config, &runtime, None)?;
    let (sender, mut changes) = watch::channel(MOST_CHANGES);
    let (recorder, outbox) = watch::recorder(config.node_name.clone());
    runtime.spawn(outbox.log());
    let watching = Watching {
        context: start::context(config),
        stats: Arc::new(Stats::default()),
        sender,
        recorder,
    };
    let watcher = runtime.spawn(start::watch_source(source, watching));
    let mut taken = Vec::new();
    while !engine.is_ready() {
        if changes.receive(&mut taken, MOST_CHANGES, None) == Received::Closed {
            runtime.block_on(watcher).context("the watcher panicked")??;
            anyhow::bail!("the objects could not be read completely");
        }
        taken.drain(..).for_each(|change| engine.apply(change));
    }
    thread.end();
    Ok(())
}

/// Everything in one batch, however large: nothing is written, so nobody waits for it. With what is to be done to
/// virtual servers and addresses, before it and after it.
fn whole_batch(
    engine: &mut Engine,
    observed: BTreeMap<Family, ObservedTable>,
    servers: Observed,
) -> (Batch, Vec<Op>) {
    engine.observed(observed);
    engine.servers_observed(servers);
    let (mut whole, mut ops) = (Batch::default(), Vec::new());
    loop {
        let before = engine.plan_servers();
        engine.servers_changed(&before, &[]);
        whole.0.extend(engine.plan().0);
        let after = engine.plan_servers_after();
        engine.servers_changed(&after, &[]);
        engine.committed();
        ops.extend(before.0.into_iter().chain(after.0).map(|(_, op)| op));
        if !engine.has_work() {
            return (whole, ops);
        }
    }
}

/// What is there now, in IPVS mode.
fn observed_servers(config: &Config) -> Result<Observed, IpvsError> {
    match &config.ipvs {
        Some(settings) => NetlinkIpvs::new(settings.exclude_cidrs.clone())?.observe(),
        None => Ok(Observed::default()),
    }
}

/// As comments, so that all of the output is input for nft. Without the prefixes they are input for `ipvsadm -R` and
/// `ip -batch -`.
fn print_servers(engine: &Engine) -> anyhow::Result<()> {
    let Some(servers) = engine.servers() else { return Ok(()) };
    let (servers, addresses) = servers.believed();
    let lines = ipvs::render::servers(&servers);
    let servers = lines.lines().map(|it| format!("#ipvsadm {it}"));
    let lines = ipvs::render::addresses(addresses);
    let addresses = lines.lines().map(|it| format!("#ip {it}"));
    servers.chain(addresses).try_for_each(|it| print(&it))
}

fn print_ops(ops: &[Op]) -> anyhow::Result<()> {
    for op in ops {
        let program = match op {
            Op::BindAddress(_) | Op::UnbindAddress(_) => "ip",
            Op::AddServer(..)
            | Op::SetServer(..)
            | Op::DeleteServer(_)
            | Op::AddDestination(..)
            | Op::SetDestination(..)
            | Op::DeleteDestination(..) => "ipvsadm",
        };
        print(&format!("#{program} {op}"))?;
    }
    Ok(())
}
