//! `--cleanup`: removes our tables, and what kube-proxy left, from the kernel.
//!
//! Connections that are established go on: their translation is in conntrack. Only those that IPVS balances end with
//! their virtual server.
//!
//! A step that fails is told and does not keep the next ones from being tried.

mod ipvs;
mod tell;

use std::fmt::Display;

use tracing::{error, info, warn};

use crate::config::{CleanupOf, Config};
use crate::kernel::lock::NamespaceLock;
use crate::kernel::{Ipsets, LegacyTables, OtherTables};
use crate::leftovers::{self, Removal, Table};
use crate::model::Family;
use crate::nft::schema::TABLE;

pub(super) use tell::tell_of_leftovers;

/// Removes what was asked for. An error if something of it is left.
pub(super) fn cleanup(whose: CleanupOf, config: &Config) -> anyhow::Result<()> {
    let mut cleanup = Cleanup::default();
    let (ours, kube_proxys) = match whose {
        CleanupOf::All => (true, true),
        CleanupOf::KubeProxy => (false, true),
        CleanupOf::KubeFerry => (true, false),
    };
    let _alone = if ours { lock()? } else { None };
    let excluded = config.ipvs.as_ref().map(|it| it.exclude_cidrs.clone());
    cleanup.virtual_servers(whose, excluded.unwrap_or_default());
    if kube_proxys {
        cleanup.kube_proxys();
    }
    // Last: with it, nobody's rules are left.
    if ours {
        cleanup.tables(TABLE);
    }
    cleanup.finish()
}

/// What came of the steps so far.
#[derive(Debug, Default)]
struct Cleanup {
    removed: usize,
    failed: usize,
    kept: usize,
}

impl Cleanup {
    fn kube_proxys(&mut self) {
        self.iptables();
        self.legacy_iptables();
        self.tables(leftovers::NFTABLES_TABLE);
        // Rules refer to them, so they come after the chains.
        self.ipsets();
    }

    fn ipsets(&mut self) {
        let names = Family::ALL.into_iter().flat_map(leftovers::ipsets).collect();
        match Ipsets::new().and_then(|mut it| it.destroy(names)) {
            Ok(destroyed) => {
                if !destroyed.destroyed.is_empty() {
                    let names = destroyed.destroyed.join(" ");
                    self.removed(&format!("the ipsets {names}"));
                }
                for name in destroyed.in_use {
                    self.kept += 1;
                    warn!(
                        "kept the ipset {name}: a rule that is not kube-proxy's uses it; remove that one first"
                    );
                }
            }
            Err(error) => self.failed("ipsets", &error),
        }
    }

    /// The tables of that name.
    fn tables(&mut self, name: &str) {
        let Some(mut tables) = self.open() else { return };
        for family in Family::ALL {
            let what = format!("table {} {name}", word(family));
            match tables.delete_table(family, name) {
                Ok(true) => self.removed(&what),
                Ok(false) => (),
                Err(error) => self.failed(&what, &error),
            }
        }
    }

    /// Chains that were written by iptables-nft, and the jumps to them.
    fn iptables(&mut self) {
        let Some(mut tables) = self.open() else { return };
        for family in Family::ALL {
            for table in Table::ALL {
                let what = format!("table {} {}", word(family), table.name());
                let choose = |found: &_| leftovers::remove(table, found);
                match tables.remove(family, table.name(), choose) {
                    Ok(removal) => self.chains(&what, &removal),
                    Err(error) => self.failed(&what, &error),
                }
            }
        }
    }

    /// Chains that were written by iptables-legacy, and the jumps to them.
    fn legacy_iptables(&mut self) {
        for family in Family::ALL {
            let names = match LegacyTables::names(family) {
                Ok(names) => names,
                Err(error) => {
                    self.failed("iptables-legacy", &error);
                    continue;
                }
            };
            for table in Table::ALL.iter().filter(|it| names.iter().any(|name| name == it.name())) {
                let what = format!("table {} {} of iptables-legacy", word(family), table.name());
                let choose = |found: &_| leftovers::remove(*table, found);
                match LegacyTables::new(family).and_then(|it| it.remove(table.name(), choose)) {
                    Ok(removal) => self.chains(&what, &removal),
                    Err(error) => self.failed(&what, &error),
                }
            }
        }
    }

    fn open(&mut self) -> Option<OtherTables> {
        match OtherTables::new() {
            Ok(tables) => Some(tables),
            Err(error) => {
                self.failed("nf_tables", &error);
                None
            }
        }
    }

    fn chains(&mut self, what: &str, removal: &Removal) {
        if !removal.is_empty() {
            let (chains, jumps) = (removal.chains.len(), removal.rules.len());
            self.removed(&format!(
                "{chains} chains of kube-proxy and {jumps} jumps to them in {what}"
            ));
        }
        for kept in &removal.kept {
            self.kept += 1;
            warn!(
                "kept chain {} in {what}: a rule in {} that is not kube-proxy's jumps to it; remove that one first",
                kept.chain, kept.used_by
            );
        }
    }

    fn removed(&mut self, what: &str) {
        self.removed += 1;
        info!("removed {what}");
    }

    fn failed(&mut self, what: &str, error: &dyn Display) {
        self.failed += 1;
        error!("{what}: {error}");
    }

    fn finish(self) -> anyhow::Result<()> {
        if self.failed > 0 {
            anyhow::bail!(
                "not everything could be removed ({} errors, see above); run it again when their cause is gone",
                self.failed
            );
        }
        if self.kept > 0 {
            anyhow::bail!("what others use was kept ({} references)", self.kept);
        }
        if self.removed == 0 {
            info!("there was nothing to remove");
        }
        Ok(())
    }
}

fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// A running proxy would make the tables anew, and where it owns them the kernel would refuse.
fn lock() -> anyhow::Result<Option<NamespaceLock>> {
    match NamespaceLock::attempt() {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => {
            let holder = NamespaceLock::holder().ok().flatten();
            let holder = holder.map(|it| format!(" ({it})")).unwrap_or_default();
            anyhow::bail!(
                "kube-ferry still runs in this network namespace{holder}: end it first, or it brings its tables back; \
                 beside it, --cleanup-of=kube-proxy removes what kube-proxy left"
            )
        }
        Err(why) => {
            warn!("{why}; going on without being sure that no kube-ferry runs");
            Ok(None)
        }
    }
}
