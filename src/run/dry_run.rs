//! `--dry-run`: what would be written, without writing it.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;

use super::print;
use super::start::{self, RESOURCES};
use crate::config::{Config, DryRun};
use crate::kernel::netlink::NetlinkKernel;
use crate::kernel::{Addresses, Kernel as _};
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
            let batch = whole_batch(&mut engine, BTreeMap::new());
            let mut tables = Tables::default();
            tables.apply(&batch).map_err(|refusals| {
                anyhow::anyhow!("the ruleset contradicts itself: {refusals:?}")
            })?;
            print(&render::ruleset(&tables));
        }
        DryRun::Diff => {
            let mut kernel = NetlinkKernel::new().context("cannot read nftables")?;
            let observed = kernel.observe(engine.program()).context("cannot read our tables")?;
            print(&render::batch(&whole_batch(&mut engine, observed)));
        }
        DryRun::Kernel => {
            let mut kernel = NetlinkKernel::new().context("cannot ask nftables")?;
            let observed = kernel.observe(engine.program()).context("cannot read our tables")?;
            let batch = whole_batch(&mut engine, observed);
            kernel.validate(&batch).context("the kernel refuses the ruleset")?;
            print(&format!(
                "The kernel accepts all {} operations; nothing was changed.",
                batch.len()
            ));
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

/// Everything in one batch, however large: nothing is written, so nobody waits for it.
fn whole_batch(engine: &mut Engine, observed: BTreeMap<Family, ObservedTable>) -> Batch {
    engine.observed(observed);
    let mut whole = Batch::default();
    loop {
        whole.0.extend(engine.plan().0);
        engine.committed();
        if !engine.has_work() {
            return whole;
        }
    }
}
