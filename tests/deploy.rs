//! What is in `deploy/`: manifests, alert rules, dashboard, and what the migration page says about the kernel.
//!
//! Needs kubectl, promtool, and for `coexistence` root with iproute2, nft, iptables, conntrack and socat;
//! `make deploy-tools` installs them. A missing tool is a failure, never a skipped test.

use std::path::{Path, PathBuf};

mod alerts;
mod coexistence;
mod configuration;
mod kustomize;
mod manifests;
pub(crate) mod metric_names;
mod metrics_page;
mod migration_page;
mod privileges;
mod tool;

/// The directory `deploy/` of the source tree.
fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// Text of a file in `deploy/`.
#[track_caller]
fn read(path: &str) -> String {
    let path = deploy().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
