//! The validated settings, and how they come about.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::args::{Args, CleanupOf, DryRun};
use super::feature_gates::FeatureGates;
use super::file::{self, KubeProxyConfiguration};
use super::validate::Problems;
use super::{ConfigError, overlay};
use crate::kernel::IpvsSettings;
use crate::model::Family;
use crate::nft::skeleton::LocalDetector;

/// Everything the program was told, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub action: Action,
    pub source: Source,
    pub node_name: Arc<str>,
    pub logging: Logging,
    pub feature_gates: FeatureGates,
    /// Overrides the node's primary IP (reference 11.1) unless it is unspecified; nothing listens there.
    pub bind_address: IpAddr,
    /// Where the health server listens; `None`: nowhere.
    pub healthz: Option<SocketAddr>,
    pub metrics: SocketAddr,
    /// A server that cannot listen ends the process instead of trying again.
    pub bind_hard_fail: bool,
    /// The metrics server takes another verbosity at `/debug/flags/v`.
    pub profiling: bool,
    /// The one bit of the packet mark that is ours, e.g. `0x4000`.
    pub masquerade_mark: u32,
    pub masquerade_all: bool,
    pub detect_local: DetectLocal,
    pub node_ports: NodePortSelector,
    /// A failed sync is tried again after this; health is judged by twice this.
    pub sync_period: Duration,
    /// Shortest time from the end of a sync to the next one.
    pub min_sync_period: Duration,
    /// Let nobody else change our tables, if the kernel can see to that.
    pub own_tables: bool,
    /// Mode ipvs; `None`: nftables.
    pub ipvs: Option<IpvsSettings>,
    /// How long an endpoint that is gone may keep its connections in IPVS, also in those left of that mode.
    pub ipvs_drain: Duration,
    /// How often virtual servers are compared with what is wanted.
    pub ipvs_sync_period: Duration,
    pub conntrack: Conntrack,
    pub oom_score_adj: i32,
    /// What operators should know; to be logged once logging works.
    pub notices: Vec<Notice>,
    /// The object that is in force, for `/configz` and `--write-config-to`.
    pub object: KubeProxyConfiguration,
    /// The file it was read from, which is followed.
    pub file: Option<LoadedFile>,
    /// The flags that were typed, for `/flagz` and the log.
    pub flags: BTreeMap<String, String>,
}

/// The configuration file as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedFile {
    pub path: PathBuf,
    pub text: Arc<str>,
    /// The command line, some flags of which win over the file.
    pub args: Arc<Args>,
}

/// What the process is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Run,
    InitOnly,
    Cleanup(CleanupOf),
    WriteConfig(PathBuf),
    DryRun(DryRun),
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    ApiServer(Client),
    Manifests(PathBuf),
}

/// How the API server is reached. Both unset: as a Pod, by its ServiceAccount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    pub kubeconfig: Option<PathBuf>,
    /// URL that overrides the one in the kubeconfig.
    pub master: Option<String>,
}

/// How to log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logging {
    pub json: bool,
    /// Klog's scale; see [`crate::logging`].
    pub verbosity: u32,
    /// Patterns of source file names and their verbosity; the first that matches counts.
    pub vmodule: Vec<(String, u32)>,
    /// Informative messages to stdout, warnings and errors to stderr.
    pub split_stream: bool,
}

/// How traffic of local pods is recognised (reference 11.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// At most one range a family.
    ClusterCidr(Vec<IpNet>),
    /// The range is in the own Node object.
    NodeCidr,
    Bridge(String),
    InterfacePrefix(String),
}

/// Which of the node's addresses accept NodePorts (reference 11.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortSelector {
    All,
    /// The node's own IPs, as its Node object tells them.
    Primary,
    /// Those within these ranges; never empty.
    Within(Vec<IpNet>),
}

/// Kernel settings of connection tracking; `None` leaves the kernel's value alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conntrack {
    pub max_per_core: Option<u32>,
    pub min: u32,
    pub tcp_established: Option<Duration>,
    pub tcp_close_wait: Option<Duration>,
    pub tcp_be_liberal: bool,
    pub udp: Option<Duration>,
    pub udp_stream: Option<Duration>,
}

/// Something to be logged at start.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    Info(String),
    Warn(String),
}

impl DetectLocal {
    /// The detector of one family. `pod_cidrs` are those of the own Node.
    pub fn detector(&self, family: Family, pod_cidrs: &[IpNet]) -> Option<LocalDetector> {
        let first = |cidrs: &[IpNet]| {
            let mut own = cidrs.iter().filter(|cidr| Family::of(cidr.addr()) == family);
            own.next().copied().map(LocalDetector::Source)
        };
        match self {
            DetectLocal::ClusterCidr(cidrs) => first(cidrs),
            DetectLocal::NodeCidr => first(pod_cidrs),
            DetectLocal::Bridge(name) => Some(LocalDetector::Interface(name.clone())),
            DetectLocal::InterfacePrefix(prefix) => {
                Some(LocalDetector::InterfacePrefix(prefix.clone()))
            }
        }
    }
}

impl NodePortSelector {
    /// The families that none of the ranges is of: they are not limited, which who lists ranges may not expect.
    pub fn forgotten<'a>(&'a self, families: &'a [Family]) -> impl Iterator<Item = Family> + 'a {
        let ranges: &[IpNet] = match self {
            NodePortSelector::Within(ranges) => ranges,
            NodePortSelector::All | NodePortSelector::Primary => &[],
        };
        let has = |family| ranges.iter().any(|range| Family::of(range.addr()) == family);
        families.iter().copied().filter(move |family| !ranges.is_empty() && !has(*family))
    }

    /// The ranges that accept NodePorts in one family; `None`: all addresses do. `node_ips` are those of the own
    /// Node; loopback addresses among them stand for "not known".
    pub fn ranges(&self, family: Family, node_ips: &[IpAddr]) -> Option<Vec<IpNet>> {
        let ranges: Vec<IpNet> = match self {
            NodePortSelector::All => return None,
            NodePortSelector::Primary => {
                node_ips.iter().filter(|ip| !ip.is_loopback()).map(|ip| IpNet::from(*ip)).collect()
            }
            NodePortSelector::Within(ranges) => ranges.clone(),
        };
        let own = ranges.into_iter().filter(|range| Family::of(range.addr()) == family);
        let own: Vec<IpNet> = own.collect();
        let everything = own.is_empty() || own.iter().any(|range| range.prefix_len() == 0);
        (!everything).then_some(own)
    }
}

/// Resolves flags and file into settings; pure.
pub fn resolve(args: &Args, text: Option<&str>, hostname: &str) -> Result<Config, ConfigError> {
    let mut notices = Vec::new();
    let mut problems = Problems::default();
    let mut object = match (&args.config, text) {
        (Some(path), Some(text)) => {
            let (mut object, strict) = file::read(text)
                .map_err(|source| ConfigError::File { path: path.clone(), source })?;
            let told = |why: &String| Notice::Warn(format!("{}: {why}", path.display()));
            notices.extend(strict.iter().map(told));
            problems.strict = strict;
            notices.extend(overlay::file(args, &mut object));
            object
        }
        _ => overlay::flags(args),
    };
    set_platform_defaults(&mut object);
    problems.flags(args);
    let mut config = build(args, object, hostname, notices, &mut problems);
    if let (Some(path), Some(text)) = (&args.config, text) {
        let args = Arc::new(args.clone());
        config.file = Some(LoadedFile { path: path.clone(), text: text.into(), args });
    }
    problems.finish(config)
}

/// What kube-proxy fills in for Linux after parsing.
fn set_platform_defaults(object: &mut KubeProxyConfiguration) {
    if object.mode.is_empty() {
        "iptables".clone_into(&mut object.mode);
    }
    if object.mode == "nftables" && object.node_port_addresses.is_empty() {
        object.node_port_addresses.push("primary".to_owned());
    }
    if object.detect_local_mode.is_empty() {
        "ClusterCIDR".clone_into(&mut object.detect_local_mode);
    }
}

/// Judges every part. A part with a problem gets some value: it is never seen, because the problem ends the matter.
fn build(
    args: &Args,
    object: KubeProxyConfiguration,
    hostname: &str,
    notices: Vec<Notice>,
    problems: &mut Problems,
) -> Config {
    problems.notices = notices;
    problems.mode(&object);
    let (masquerade_bit, masquerade_all, sync) = problems.backend(&object);
    let feature_gates = problems.feature_gates(&object);
    Config {
        action: problems.action(args),
        source: problems.source(args, &object),
        node_name: problems.node_name(args, &object, hostname),
        logging: problems.logging(&object, &feature_gates),
        bind_address: problems.bind_address(&object),
        healthz: problems.healthz(&object),
        metrics: problems.metrics(&object),
        bind_hard_fail: object.bind_address_hard_fail,
        profiling: object.enable_profiling,
        masquerade_mark: 1 << masquerade_bit,
        masquerade_all,
        detect_local: problems.detect_local(&object),
        node_ports: problems.node_ports(&object),
        sync_period: sync.0,
        min_sync_period: sync.1,
        ipvs: problems.ipvs(&object),
        ipvs_drain: problems.ipvs_drain(args, &object),
        ipvs_sync_period: object.ipvs.sync_period.to_std(),
        own_tables: args.own_tables.unwrap_or(object.kube_ferry.own_tables),
        conntrack: problems.conntrack(&object),
        oom_score_adj: problems.oom_score_adj(&object),
        feature_gates,
        notices: problems.without_effect(args, &object),
        object: object.shown(),
        file: None,
        flags: args.given.clone(),
    }
}

#[cfg(test)]
mod tests;
