//! From what was typed and what is in the file to one validated [`Config`].
//!
//! In come [`Args`] and the text of a KubeProxyConfiguration; out comes a [`Config`] that every other room can
//! trust: nothing in it is checked a second time. Only [`load`] reads a file, and it and [`reload`] ask the host for its
//! name; the rest is values in, value out. What an operator should know but need not act on at once is a [`Notice`], logged once
//! logging works.

use std::path::PathBuf;

pub mod args;
pub mod changes;
pub mod duration;
pub mod feature_gates;
pub mod file;
mod overlay;
pub mod settings;
mod spelling;
mod validate;

pub use args::{Args, CleanupOf, DryRun, VersionFormat};
pub use duration::GoDuration;
pub use feature_gates::FeatureGates;
pub use file::KubeProxyConfiguration;
pub use settings::{
    Action, Client, Config, Conntrack, DetectLocal, LoadedFile, Logging, NodePortSelector, Notice,
    Source,
};

/// Why there is no configuration to work with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "cannot read the configuration file {}: {source} (--config names it; in a Pod, is the ConfigMap mounted there?)",
        path.display()
    )]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the configuration file {} is not usable: {source}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: file::FileError,
    },
    #[error("the configuration is invalid:\n  {}", .0.join("\n  "))]
    Invalid(Vec<String>),
}

/// Reads the file that `--config` names, and the host's name, and resolves everything.
pub fn load(args: &Args) -> Result<Config, ConfigError> {
    let text = match &args.config {
        None => None,
        Some(path) => Some(
            std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.clone(), source })?,
        ),
    };
    resolve(args, text.as_deref())
}

/// Resolves the file that a configuration came from anew, with other contents.
pub fn reload(file: &LoadedFile, text: &str) -> Result<Config, ConfigError> {
    resolve(&file.args, Some(text))
}

fn resolve(args: &Args, text: Option<&str>) -> Result<Config, ConfigError> {
    let uname = rustix::system::uname();
    settings::resolve(args, text, &uname.nodename().to_string_lossy())
}
