//! Judges a configuration part by part: values out, problems and notices on the side.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;

use super::ConfigError;
use super::args::Args;
use super::duration::GoDuration;
use super::feature_gates::FeatureGates;
use super::file::{KubeProxyConfiguration, OutputRouting};
use super::settings::{
    Action, Client, Config, Conntrack, DetectLocal, Logging, NodePortSelector, Notice, Source,
};
use crate::kernel::IpvsSettings;
use crate::model::Scheduler;

/// The minor version whose hidden metrics may be asked for: the one before the version whose behaviour we follow.
const PREVIOUS_MINOR: &str = "1.35";

const WRONG_PORT: &str = "must be a valid port, inclusive range is 1..65535";

/// Stands for an address that is not usable, which is never seen.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// What is wrong so far; all of it is told at once.
#[derive(Debug, Default)]
pub(super) struct Problems {
    found: Vec<String>,
    /// What a strict reader would have refused in the file. No problem by itself, but perhaps the reason of one: a
    /// field that is missing may be there with a misspelt name.
    pub(super) strict: Vec<String>,
    pub(super) notices: Vec<Notice>,
}

impl Problems {
    pub(super) fn finish(self, config: Config) -> Result<Config, ConfigError> {
        if self.found.is_empty() {
            return Ok(config);
        }
        let besides = self.strict.into_iter().map(|why| format!("besides, {why}"));
        Err(ConfigError::Invalid(self.found.into_iter().chain(besides).collect()))
    }

    /// In the form of Kubernetes' own validation messages.
    fn invalid(&mut self, field: &str, value: impl Display, why: impl Display) {
        self.found.push(format!("KubeProxyConfiguration.{field}: Invalid value: {value}: {why}"));
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.notices.push(Notice::Warn(text.into()));
    }

    /// Flags that are wrong whatever else is set.
    pub(super) fn flags(&mut self, args: &Args) {
        let asked = [
            args.cleanup == Some(true),
            args.init_only == Some(true),
            args.write_config_to.is_some(),
            args.dry_run.is_some(),
        ];
        if asked.iter().filter(|asked| **asked).count() > 1 {
            self.found.push(
                "--cleanup, --init-only, --write-config-to and --dry-run exclude each other; give one of them".into(),
            );
        }
        if args.cleanup_of.is_some() && args.cleanup != Some(true) {
            self.found
                .push("--cleanup-of says whose leftovers --cleanup removes; give both".into());
        }
    }

    pub(super) fn action(&mut self, args: &Args) -> Action {
        if let Some(path) = &args.write_config_to {
            Action::WriteConfig(path.clone())
        } else if args.cleanup == Some(true) {
            Action::Cleanup(args.cleanup_of.unwrap_or_default())
        } else if let Some(what) = args.dry_run {
            Action::DryRun(what)
        } else if args.init_only == Some(true) {
            Action::InitOnly
        } else {
            Action::Run
        }
    }

    pub(super) fn mode(&mut self, object: &KubeProxyConfiguration) {
        match object.mode.as_str() {
            "nftables" | "ipvs" => {}
            "iptables" => self.warn(
                "mode iptables (also the meaning of no mode) is served by the nftables backend; \
                 NodePorts on 127.0.0.1 are not offered",
            ),
            other => {
                self.invalid("mode", format!("{other:?}"), "must be iptables, ipvs or nftables");
            }
        }
    }

    /// Bit, masqueradeAll and (syncPeriod, minSyncPeriod), from the block of the active mode.
    pub(super) fn backend(
        &mut self,
        object: &KubeProxyConfiguration,
    ) -> (u32, bool, (Duration, Duration)) {
        let (iptables, nftables) = (&object.iptables, &object.nftables);
        // iptables.masqueradeBit is validated in every mode, as kube-proxy does.
        let iptables_bit = self.bit("iptables.masqueradeBit", iptables.masquerade_bit);
        let nftables_bit = self.bit("nftables.masqueradeBit", nftables.masquerade_bit);
        if object.mode == "nftables" {
            let sync = self.sync("nftables", nftables.sync_period, nftables.min_sync_period);
            (nftables_bit, nftables.masquerade_all, sync)
        } else if object.mode == "ipvs" {
            // What is about masquerading is read from the block of iptables in this mode, as kube-proxy does.
            let sync = self.sync("ipvs", object.ipvs.sync_period, object.ipvs.min_sync_period);
            (iptables_bit, iptables.masquerade_all, sync)
        } else {
            let sync = self.sync("iptables", iptables.sync_period, iptables.min_sync_period);
            (iptables_bit, iptables.masquerade_all, sync)
        }
    }

    /// `None` in other modes, where the block means nothing.
    pub(super) fn ipvs(&mut self, object: &KubeProxyConfiguration) -> Option<IpvsSettings> {
        let ipvs = Some(&object.ipvs).filter(|_| object.mode == "ipvs")?;
        let scheduler = match ipvs.scheduler.as_str() {
            "" => Some(Scheduler::default()),
            name => Scheduler::new(name),
        };
        if scheduler.is_none() {
            let why = "must be the name of a scheduler: up to 15 of a-z, 0-9, - and _";
            self.invalid("ipvs.scheduler", format!("{:?}", ipvs.scheduler), why);
        }
        let exclude = ipvs.exclude_cidrs.iter().map(String::as_str);
        Some(IpvsSettings {
            scheduler: scheduler.unwrap_or_default(),
            strict_arp: ipvs.strict_arp,
            exclude_cidrs: self.cidrs("ipvs.excludeCIDRs", exclude),
            tcp_timeout: self.ipvs_timeout("tcpTimeout", ipvs.tcp_timeout),
            tcpfin_timeout: self.ipvs_timeout("tcpFinTimeout", ipvs.tcp_fin_timeout),
            udp_timeout: self.ipvs_timeout("udpTimeout", ipvs.udp_timeout),
        })
    }

    fn ipvs_timeout(&mut self, field: &str, timeout: GoDuration) -> u32 {
        if timeout < GoDuration::ZERO {
            let field = format!("ipvs.{field}");
            self.invalid(&field, timeout, "must be greater than or equal to 0");
        }
        // IPVS counts in seconds, and a fraction of one must not become "leave it alone".
        let timeout = timeout.to_std();
        let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    pub(super) fn ipvs_drain(&mut self, args: &Args, object: &KubeProxyConfiguration) -> Duration {
        let drain = args.ipvs_drain_timeout.unwrap_or(object.kube_ferry.ipvs_drain_timeout);
        if drain < GoDuration::ZERO {
            let why = "must be greater than or equal to 0";
            self.invalid("kubeFerry.ipvsDrainTimeout", drain, why);
        }
        drain.to_std()
    }

    fn bit(&mut self, field: &str, bit: Option<i32>) -> u32 {
        let bit = bit.unwrap_or(14);
        match u32::try_from(bit) {
            Ok(bit @ 0..=31) => bit,
            _ => {
                self.invalid(field, bit, "must be within the range [0, 31]");
                0
            }
        }
    }

    fn sync(&mut self, block: &str, period: GoDuration, min: GoDuration) -> (Duration, Duration) {
        if period <= GoDuration::ZERO {
            self.invalid(&format!("{block}.syncPeriod"), period, "must be greater than 0");
        } else if min < GoDuration::ZERO {
            let field = format!("{block}.minSyncPeriod");
            self.invalid(&field, min, "must be greater than or equal to 0");
        } else if min > period {
            let why =
                format!("must be greater than or equal to {block}.minSyncPeriod, which is {min}");
            self.invalid(&format!("{block}.syncPeriod"), period, why);
        }
        (period.to_std(), min.to_std())
    }

    pub(super) fn feature_gates(&mut self, object: &KubeProxyConfiguration) -> FeatureGates {
        match FeatureGates::new(&object.feature_gates) {
            Ok((gates, notices)) => {
                self.notices.extend(notices);
                gates
            }
            Err(problems) => {
                let problems = problems.into_iter();
                self.found.extend(
                    problems.map(|it| format!("KubeProxyConfiguration.featureGates: {it}")),
                );
                FeatureGates::default()
            }
        }
    }

    pub(super) fn source(&mut self, args: &Args, object: &KubeProxyConfiguration) -> Source {
        let client = &object.client_connection;
        if client.burst < 0 {
            self.invalid("clientConnection.burst", client.burst, "must be non-negative");
        }
        if object.config_sync_period <= GoDuration::ZERO {
            self.invalid("configSyncPeriod", object.config_sync_period, "must be greater than 0");
        }
        let in_file = Some(&object.kube_ferry.manifests).filter(|it| !it.is_empty());
        if let Some(dir) = args.manifests.clone().or_else(|| in_file.map(PathBuf::from)) {
            return Source::Manifests(dir);
        }
        Source::ApiServer(Client {
            kubeconfig: Some(&client.kubeconfig).filter(|it| !it.is_empty()).map(PathBuf::from),
            master: args.master.clone().filter(|it| !it.is_empty()),
        })
    }

    /// The flag wins over the file, the file over the host's name.
    pub(super) fn node_name(
        &mut self,
        args: &Args,
        object: &KubeProxyConfiguration,
        hostname: &str,
    ) -> Arc<str> {
        let flag = args.hostname_override.as_deref().filter(|name| !name.is_empty());
        let file = Some(object.hostname_override.as_str()).filter(|name| !name.is_empty());
        let (what, name) = match (flag, file) {
            (Some(name), _) => ("--hostname-override", name),
            (None, Some(name)) => ("KubeProxyConfiguration.hostnameOverride", name),
            (None, None) => ("the host's name", hostname),
        };
        let name = name.trim().to_lowercase();
        if name.is_empty() {
            self.found.push(format!("{what} is empty; name the Node with --hostname-override"));
        }
        name.into()
    }

    pub(super) fn bind_address(&mut self, object: &KubeProxyConfiguration) -> IpAddr {
        object.bind_address.parse().unwrap_or_else(|_| {
            let value = format!("{:?}", object.bind_address);
            self.invalid(
                "bindAddress",
                value,
                "not a valid textual representation of an IP address",
            );
            Ipv4Addr::UNSPECIFIED.into()
        })
    }

    pub(super) fn healthz(&mut self, object: &KubeProxyConfiguration) -> Option<SocketAddr> {
        let address = object.healthz_bind_address.as_str();
        (!address.is_empty()).then(|| self.address("healthzBindAddress", address))
    }

    pub(super) fn metrics(&mut self, object: &KubeProxyConfiguration) -> SocketAddr {
        let address = object.metrics_bind_address.as_str();
        if address.is_empty() {
            // Of a port 0 alone: an empty address means the default one.
            let why = "the metrics server cannot be switched off (--metrics-port=0); it may listen on loopback";
            self.invalid("metricsBindAddress", "\"\"", why);
            return NOWHERE;
        }
        self.address("metricsBindAddress", address)
    }

    fn address(&mut self, field: &str, text: &str) -> SocketAddr {
        let why = match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => return address,
            Ok(_) => WRONG_PORT,
            Err(_) if ip_of(text).is_some() => WRONG_PORT,
            Err(_) => "must be IP:port (names are not looked up)",
        };
        self.invalid(field, format!("{text:?}"), why);
        NOWHERE
    }

    pub(super) fn detect_local(&mut self, object: &KubeProxyConfiguration) -> DetectLocal {
        let names = &object.detect_local;
        match object.detect_local_mode.as_str() {
            "ClusterCIDR" => DetectLocal::ClusterCidr(self.cluster_cidr(&object.cluster_cidr)),
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => {
                self.interface("bridgeInterface", &names.bridge_interface);
                DetectLocal::Bridge(names.bridge_interface.clone())
            }
            "InterfaceNamePrefix" => {
                self.interface("interfaceNamePrefix", &names.interface_name_prefix);
                DetectLocal::InterfacePrefix(names.interface_name_prefix.clone())
            }
            other => {
                self.invalid(
                    "detectLocalMode",
                    format!("{other:?}"),
                    "must be one of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
                );
                DetectLocal::NodeCidr
            }
        }
    }

    /// The kernel's limit is 15 bytes (IFNAMSIZ with its closing zero).
    fn interface(&mut self, field: &str, name: &str) {
        let field = format!("detectLocal.{field}");
        if name.is_empty() {
            self.invalid(&field, "\"\"", "must not be empty in this detectLocalMode");
        } else if name.len() > 15 {
            self.invalid(&field, format!("{name:?}"), "must not be longer than 15 bytes");
        }
    }

    fn cluster_cidr(&mut self, list: &str) -> Vec<IpNet> {
        if list.is_empty() {
            self.warn(
                "clusterCIDR is not set: traffic of local Pods cannot be told from other traffic; \
                 off-cluster traffic to cluster IPs is not masqueraded (masqueradeAll would do it for all)",
            );
            return Vec::new();
        }
        let cidrs = self.cidrs("clusterCIDR", list.split(',').map(str::trim));
        let pair = |a: &IpNet, b: &IpNet| a.addr().is_ipv4() != b.addr().is_ipv4();
        let fits = match cidrs.as_slice() {
            [] | [_] => true,
            [a, b] => pair(a, b),
            _ => false,
        };
        if !fits {
            let why = "must be one CIDR or a dual-stack pair (one of IPv4 and one of IPv6)";
            self.invalid("clusterCIDR", format!("{list:?}"), why);
        }
        cidrs
    }

    fn cidrs<'a>(&mut self, field: &str, texts: impl Iterator<Item = &'a str>) -> Vec<IpNet> {
        let mut cidrs = Vec::new();
        for text in texts {
            match text.parse::<IpNet>() {
                Ok(cidr) => cidrs.push(cidr.trunc()),
                Err(_) => {
                    let why =
                        "must be a valid CIDR block, (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)";
                    self.invalid(field, format!("{text:?}"), why);
                }
            }
        }
        cidrs
    }

    pub(super) fn node_ports(&mut self, object: &KubeProxyConfiguration) -> NodePortSelector {
        let list = &object.node_port_addresses;
        match list.as_slice() {
            [] => {
                self.notices.push(Notice::Info(
                    "NodePorts are accepted on all addresses of the node; nodePortAddresses: [primary] would limit them".into(),
                ));
                NodePortSelector::All
            }
            [only] if only == "primary" => NodePortSelector::Primary,
            several if several.iter().any(|it| it == "primary") => {
                let why = "\"primary\" must stand alone";
                self.invalid("nodePortAddresses", several.join(","), why);
                NodePortSelector::Primary
            }
            several => {
                let ranges = self.cidrs("nodePortAddresses", several.iter().map(String::as_str));
                NodePortSelector::Within(ranges)
            }
        }
    }

    pub(super) fn oom_score_adj(&mut self, object: &KubeProxyConfiguration) -> i32 {
        let adj = object.oom_score_adj.unwrap_or(-999);
        if !(-1000..=1000).contains(&adj) {
            self.invalid("oomScoreAdj", adj, "must be within the range [-1000, 1000]");
        }
        adj
    }

    pub(super) fn conntrack(&mut self, object: &KubeProxyConfiguration) -> Conntrack {
        let conntrack = &object.conntrack;
        let max_per_core = self.count("conntrack.maxPerCore", conntrack.max_per_core);
        Conntrack {
            max_per_core: Some(max_per_core).filter(|max| *max > 0),
            min: self.count("conntrack.min", conntrack.min),
            tcp_established: self
                .timeout("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout),
            tcp_close_wait: self
                .timeout("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout),
            tcp_be_liberal: conntrack.tcp_be_liberal,
            udp: self.timeout("conntrack.udpTimeout", Some(conntrack.udp_timeout)),
            udp_stream: self
                .timeout("conntrack.udpStreamTimeout", Some(conntrack.udp_stream_timeout)),
        }
    }

    fn count(&mut self, field: &str, count: Option<i32>) -> u32 {
        let count = count.unwrap_or(0);
        u32::try_from(count).unwrap_or_else(|_| {
            self.invalid(field, count, "must be greater than or equal to 0");
            0
        })
    }

    fn timeout(&mut self, field: &str, timeout: Option<GoDuration>) -> Option<Duration> {
        let timeout = timeout.unwrap_or_default();
        if timeout < GoDuration::ZERO {
            self.invalid(field, timeout, "must be greater than or equal to 0");
        }
        Some(timeout.to_std()).filter(|timeout| !timeout.is_zero())
    }

    pub(super) fn logging(
        &mut self,
        object: &KubeProxyConfiguration,
        gates: &FeatureGates,
    ) -> Logging {
        let logging = &object.logging;
        let json = logging.format == "json";
        if !json && logging.format != "text" {
            self.invalid("logging.format", format!("{:?}", logging.format), "must be text or json");
        }
        if json && !logging.vmodule.is_empty() {
            self.found.push(
                "KubeProxyConfiguration.logging.vmodule: Forbidden: only supported for text log format".into(),
            );
        }
        let alpha = gates.enabled("LoggingAlphaOptions");
        self.routing("text", &logging.options.text, alpha);
        self.routing("json", &logging.options.json, alpha);
        let active = if json { &logging.options.json } else { &logging.options.text };
        Logging {
            json,
            verbosity: logging.verbosity,
            vmodule: logging
                .vmodule
                .iter()
                .map(|it| (it.file_pattern.clone(), it.verbosity))
                .collect(),
            split_stream: active.split_stream,
        }
    }

    fn routing(&mut self, format: &str, routing: &OutputRouting, alpha: bool) {
        let field = format!("logging.options.{format}");
        let size = match &routing.info_buffer_size {
            Value::String(text) => text.clone(),
            number @ (Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_)) => number.to_string(),
        };
        if size != "0" {
            let why = "buffering is not implemented; every message is written at once (0)";
            self.invalid(&format!("{field}.infoBufferSize"), size, why);
        }
        if routing.split_stream && !alpha {
            self.found.push(format!(
                "KubeProxyConfiguration.{field}.splitStream: Forbidden: feature LoggingAlphaOptions is disabled"
            ));
        }
    }

    /// Settings that are refused because nothing stands behind them, and those that are known to do nothing.
    pub(super) fn without_effect(
        &mut self,
        args: &Args,
        object: &KubeProxyConfiguration,
    ) -> Vec<Notice> {
        if object.enable_profiling {
            self.warn(
                "enableProfiling: only /debug/flags/v is there; /debug/pprof shows a Go program from inside and answers 404 \
                 here (perf(1) sees this process like any other)",
            );
        }
        let version = object.show_hidden_metrics_for_version.as_str();
        if !version.is_empty() && version != PREVIOUS_MINOR {
            let why = format!("must be the previous minor version, {PREVIOUS_MINOR}");
            self.invalid("showHiddenMetricsForVersion", format!("{version:?}"), why);
        }
        if args.config.is_none() && object.mode != "ipvs" {
            let idle = args
                .given
                .keys()
                .filter(|it| it.starts_with("ipvs-") && *it != "ipvs-drain-timeout");
            let idle: Vec<String> = idle.map(|it| format!("--{it}")).collect();
            if !idle.is_empty() {
                let mode = &object.mode;
                self.notices.push(Notice::Info(format!(
                    "{} has no effect in mode {mode}",
                    idle.join(", ")
                )));
            }
        }
        for setting in idle_settings(args, object) {
            self.notices.push(Notice::Info(format!("{setting} has no effect")));
        }
        if args.config.is_none() && args.iptables_localhost_nodeports == Some(true) {
            self.warn("--iptables-localhost-nodeports has no effect: nftables cannot serve NodePorts on 127.0.0.1");
        }
        std::mem::take(&mut self.notices)
    }
}

/// The IP of what looks like IP:port.
fn ip_of(text: &str) -> Option<IpAddr> {
    let (ip, _) = text.rsplit_once(':')?;
    ip.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Settings, not at their defaults, that concern Windows, client internals, or nothing at all.
fn idle_settings(args: &Args, object: &KubeProxyConfiguration) -> Vec<&'static str> {
    let defaults = KubeProxyConfiguration::defaulted();
    let (client, usual) = (&object.client_connection, &defaults.client_connection);
    let typed = |flag: &str| args.config.is_none() && args.given.contains_key(flag);
    // Of a file alone: flags are laid over the blocks of all modes.
    let in_file = |differs: bool| args.config.is_some() && differs;
    let mode = object.mode.as_str();
    let rows = [
        (in_file(mode != "ipvs" && object.ipvs != defaults.ipvs), "the block ipvs in another mode"),
        (
            in_file(mode != "nftables" && object.nftables != defaults.nftables),
            "the block nftables in another mode",
        ),
        (
            in_file(mode == "nftables" && object.iptables != defaults.iptables),
            "the block iptables in mode nftables (the block nftables is what counts)",
        ),
        (typed("boot-id-file"), "--boot-id-file"),
        (typed("machine-id-file"), "--machine-id-file"),
        (
            client.qps != usual.qps || client.burst != usual.burst,
            "clientConnection.qps and burst (there are only watches and Events)",
        ),
        (
            client.content_type != usual.content_type || !client.accept_content_types.is_empty(),
            "clientConnection.contentType and acceptContentTypes (JSON is spoken)",
        ),
        (
            object.config_sync_period != defaults.config_sync_period,
            "configSyncPeriod (a change is applied when the watch delivers it, there is nothing to refresh)",
        ),
        (!object.port_range.is_empty(), "portRange"),
        (object.winkernel != defaults.winkernel, "winkernel (Windows only)"),
        (object.windows_run_as_service, "windowsRunAsService (Windows only)"),
        (
            !object.show_hidden_metrics_for_version.is_empty(),
            "showHiddenMetricsForVersion (no metric is hidden)",
        ),
        (
            object.mode == "nftables" && typed("iptables-masquerade-bit"),
            "--iptables-masquerade-bit in mode nftables (nftables.masqueradeBit in a file is what counts)",
        ),
    ];
    rows.into_iter().filter(|(idle, _)| *idle).map(|(_, setting)| setting).collect()
}
