//! `--cleanup`: removes everything of ours from the kernel.

use anyhow::Context as _;
use tracing::info;

use crate::kernel::Kernel as _;
use crate::kernel::netlink::NetlinkKernel;
use crate::model::Family;
use crate::nft::schema::{Batch, Op};

/// Deletes our tables of both families, in one transaction. Connections that are established go on: their
/// translation is in conntrack.
pub(super) fn cleanup() -> anyhow::Result<()> {
    let mut kernel = NetlinkKernel::new().context("cannot program nftables")?;
    let both =
        Family::ALL.into_iter().flat_map(|family| [Op::AddTable(family), Op::DeleteTable(family)]);
    kernel.commit(&Batch(both.collect())).context("cannot delete our tables")?;
    info!("removed the tables ip kube-ferry and ip6 kube-ferry");
    Ok(())
}
