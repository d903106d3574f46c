//! `--cleanup`: removes everything of ours from the kernel.

use anyhow::Context as _;
use tracing::{info, warn};

use crate::kernel::Kernel as _;
use crate::kernel::lock::NamespaceLock;
use crate::kernel::netlink::NetlinkKernel;
use crate::model::Family;
use crate::nft::schema::{Batch, Op};

/// Deletes our tables of both families, in one transaction. Connections that are established go on: their
/// translation is in conntrack.
pub(super) fn cleanup() -> anyhow::Result<()> {
    let _alone = lock()?;
    let mut kernel = NetlinkKernel::new().context("cannot program nftables")?;
    let both = Family::ALL.map(Op::DeleteTable);
    kernel.commit(&Batch(both.to_vec())).context("cannot delete our tables")?;
    info!("removed the tables ip kube-ferry and ip6 kube-ferry");
    Ok(())
}

/// A running proxy would make the tables anew, and where it owns them the kernel would refuse.
fn lock() -> anyhow::Result<Option<NamespaceLock>> {
    match NamespaceLock::attempt() {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => {
            let holder = NamespaceLock::holder().ok().flatten();
            let holder = holder.map(|it| format!(" ({it})")).unwrap_or_default();
            anyhow::bail!(
                "kube-ferry still runs in this network namespace{holder}: end it first, or it brings its tables back"
            )
        }
        Err(why) => {
            warn!("{why}; going on without being sure that no kube-ferry runs");
            Ok(None)
        }
    }
}
