//! The command line as typed: kube-proxy's flags with kube-proxy's spelling, and a few of our own.
//!
//! Every flag is an `Option`: absent and set to its default are different things, because flags overlay a file's
//! defaults. What the flags mean is decided in [`super::settings`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};

use super::duration::GoDuration;
use super::feature_gates;

const MODES: &str = "One-shot modes";
const API: &str = "Kubernetes API";
const NODE: &str = "Node";
const FORWARDING: &str = "Forwarding";
const CONNTRACK: &str = "Connection tracking";
const SERVERS: &str = "Health and metrics";
const LOGGING: &str = "Logging";
const IPVS: &str = "IPVS mode";
const COMPATIBILITY: &str = "Accepted for compatibility";

/// A replacement for kube-proxy that programs nftables, and IPVS, through netlink and writes only differences.
///
/// Takes kube-proxy's flags and configuration file. Flag names may be written with underscores.
#[derive(Clone, Debug, Default, PartialEq, Parser)]
#[command(
    name = "kube-ferry",
    disable_version_flag = true,
    args_override_self = true,
    max_term_width = 120
)]
pub struct Args {
    /// File with a KubeProxyConfiguration (v1alpha1); it replaces most flags
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub config: Option<PathBuf>,
    /// Take objects from YAML and JSON files in this directory instead of an API server
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub manifests: Option<PathBuf>,
    /// Let the kernel refuse changes of our tables by other programs, where it can (Linux 6.9) [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub own_tables: Option<bool>,

    /// Print what would be programmed and exit: ruleset (all of it, as nft input), diff (against the kernel), kernel
    /// (let the kernel check it)
    #[arg(long, value_name = "WHAT", num_args = 0..=1, require_equals = true, default_missing_value = "ruleset", help_heading = MODES)]
    pub dry_run: Option<DryRun>,
    /// Remove everything that was programmed, and what kube-proxy left in any of its modes, and exit
    #[arg(long, value_name = "BOOL", help_heading = MODES)]
    pub cleanup: Option<bool>,
    /// Whose leftovers --cleanup removes: kube-proxy, kube-ferry (with kube-proxy back at work), all
    #[arg(long, value_name = "WHOSE", help_heading = MODES)]
    pub cleanup_of: Option<CleanupOf>,
    /// Do only what needs full privileges (kernel settings), and exit
    #[arg(long, value_name = "BOOL", help_heading = MODES)]
    pub init_only: Option<bool>,
    /// Write the configuration in force to this file, and exit
    #[arg(long, value_name = "FILE", value_parser = path(), help_heading = MODES)]
    pub write_config_to: Option<PathBuf>,
    /// Print the version (raw: with details), and exit
    #[arg(long, value_name = "true|raw", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = version_format, help_heading = MODES)]
    pub version: Option<VersionFormat>,

    /// kubeconfig for the API server; without it and --master, the Pod's ServiceAccount is used
    #[arg(long, value_name = "FILE", help_heading = API)]
    pub kubeconfig: Option<String>,
    /// Address of the API server; overrides the one in the kubeconfig
    #[arg(long, value_name = "URL", help_heading = API)]
    pub master: Option<String>,
    /// Content type of requests to the API server (JSON is spoken whatever is set)
    #[arg(long, value_name = "TYPE", help_heading = API)]
    pub kube_api_content_type: Option<String>,
    /// Requests a second to the API server (has no effect: there are only watches and Events)
    #[arg(long, value_name = "QPS", help_heading = API, allow_hyphen_values = true)]
    pub kube_api_qps: Option<f32>,
    /// Burst of requests to the API server (has no effect, see --kube-api-qps)
    #[arg(long, value_name = "N", help_heading = API, allow_hyphen_values = true)]
    pub kube_api_burst: Option<i32>,
    /// Refresh period of objects (has no effect: every change is applied when the watch delivers it)
    #[arg(long, value_name = "DURATION", help_heading = API, allow_hyphen_values = true)]
    pub config_sync_period: Option<GoDuration>,

    /// Name of the own Node, if it is not the host's name
    #[arg(long, value_name = "NAME", help_heading = NODE)]
    pub hostname_override: Option<String>,
    /// The node's primary IP, if it is not the Node's first address; nothing listens there [default: 0.0.0.0]
    #[arg(long, value_name = "IP", help_heading = NODE)]
    pub bind_address: Option<String>,
    /// oom_score_adj of this process, -1000 to 1000 [default: -999]
    #[arg(long, value_name = "N", help_heading = NODE, allow_hyphen_values = true)]
    pub oom_score_adj: Option<i32>,
    /// Feature gates: NAME=true,NAME=false
    #[arg(long, value_name = "GATES", value_parser = gate_list, help_heading = NODE)]
    pub feature_gates: Vec<GateList>,

    /// iptables, nftables or ipvs; iptables is served by the nftables backend [default: iptables]
    #[arg(long, value_name = "MODE", help_heading = FORWARDING)]
    pub proxy_mode: Option<String>,
    /// The range of Pod addresses, or a dual-stack pair
    #[arg(long, value_name = "CIDRS", help_heading = FORWARDING)]
    pub cluster_cidr: Option<String>,
    /// How traffic of local Pods is recognised: ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix
    #[arg(long, value_name = "MODE", help_heading = FORWARDING)]
    pub detect_local_mode: Option<String>,
    /// The bridge of local Pods, for BridgeInterface
    #[arg(long, value_name = "NAME", help_heading = FORWARDING)]
    pub pod_bridge_interface: Option<String>,
    /// Prefix of local Pods' interfaces, for InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX", help_heading = FORWARDING)]
    pub pod_interface_name_prefix: Option<String>,
    /// Masquerade all traffic to cluster IPs
    #[arg(long, value_name = "BOOL", help_heading = FORWARDING)]
    pub masquerade_all: Option<bool>,
    /// The bit of the packet mark for masquerading, 0 to 31; not read in nftables mode [default: 14]
    #[arg(long, value_name = "BIT", help_heading = FORWARDING, allow_hyphen_values = true)]
    pub iptables_masquerade_bit: Option<i32>,
    /// Ranges of the node's addresses that accept NodePorts, or "primary"
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', help_heading = FORWARDING)]
    pub nodeport_addresses: Vec<String>,
    /// Longest time between a failed sync and the next try [default: 30s]
    #[arg(long, value_name = "DURATION", help_heading = FORWARDING, allow_hyphen_values = true)]
    pub iptables_sync_period: Option<GoDuration>,
    /// Shortest time between two syncs [default: 1s]
    #[arg(long, value_name = "DURATION", help_heading = FORWARDING, allow_hyphen_values = true)]
    pub iptables_min_sync_period: Option<GoDuration>,

    /// nf_conntrack_max for each CPU; 0 leaves it alone [default: 32768]
    #[arg(long, value_name = "N", help_heading = CONNTRACK, allow_hyphen_values = true)]
    pub conntrack_max_per_core: Option<i32>,
    /// Least nf_conntrack_max [default: 131072]
    #[arg(long, value_name = "N", help_heading = CONNTRACK, allow_hyphen_values = true)]
    pub conntrack_min: Option<i32>,
    /// Timeout of established TCP connections; 0 leaves it alone [default: 24h]
    #[arg(long, value_name = "DURATION", help_heading = CONNTRACK, allow_hyphen_values = true)]
    pub conntrack_tcp_timeout_established: Option<GoDuration>,
    /// Timeout of TCP connections in CLOSE_WAIT; 0 leaves it alone [default: 1h]
    #[arg(long, value_name = "DURATION", help_heading = CONNTRACK, allow_hyphen_values = true)]
    pub conntrack_tcp_timeout_close_wait: Option<GoDuration>,
    /// Do not judge TCP packets that are out of the window as invalid
    #[arg(long, value_name = "BOOL", help_heading = CONNTRACK)]
    pub conntrack_tcp_be_liberal: Option<bool>,
    /// Timeout of UDP flows without answer; 0 leaves it alone [default: 0s]
    #[arg(long, value_name = "DURATION", help_heading = CONNTRACK, allow_hyphen_values = true)]
    pub conntrack_udp_timeout: Option<GoDuration>,
    /// Timeout of answered UDP flows; 0 leaves it alone [default: 0s]
    #[arg(long, value_name = "DURATION", help_heading = CONNTRACK, allow_hyphen_values = true)]
    pub conntrack_udp_timeout_stream: Option<GoDuration>,

    /// Where /healthz, /livez and /readyz are served [default: 0.0.0.0:10256]
    #[arg(long, value_name = "IP:PORT", help_heading = SERVERS)]
    pub healthz_bind_address: Option<String>,
    /// Deprecated: port of --healthz-bind-address if it names none; 0 turns the server off [default: 10256]
    #[arg(long, value_name = "PORT", help_heading = SERVERS, allow_hyphen_values = true)]
    pub healthz_port: Option<i32>,
    /// Where /metrics, /configz and /proxyMode are served [default: 127.0.0.1:10249]
    #[arg(long, value_name = "IP:PORT", help_heading = SERVERS)]
    pub metrics_bind_address: Option<String>,
    /// Deprecated: port of --metrics-bind-address if it names none [default: 10249]
    #[arg(long, value_name = "PORT", help_heading = SERVERS, allow_hyphen_values = true)]
    pub metrics_port: Option<i32>,
    /// Exit when a server cannot listen, instead of trying again every 5 s
    #[arg(long, value_name = "BOOL", help_heading = SERVERS)]
    pub bind_address_hard_fail: Option<bool>,
    /// Take another log verbosity at /debug/flags/v of the metrics server (PUT); pprof has no counterpart here
    #[arg(long, value_name = "BOOL", help_heading = SERVERS)]
    pub profiling: Option<bool>,
    /// Show metrics hidden since this version, which must be the previous minor one (there are none)
    #[arg(long, value_name = "X.Y", help_heading = SERVERS)]
    pub show_hidden_metrics_for_version: Option<String>,

    /// Log verbosity: 0-1 informative, 2-3 also of libraries, 4-5 debug, 6 and more trace [default: 0]
    #[arg(short = 'v', long = "v", value_name = "N", help_heading = LOGGING)]
    pub verbosity: Option<u32>,
    /// Verbosity for source files: PATTERN=N,... where PATTERN is a file name without .rs, with * and ?
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = vmodule_item, help_heading = LOGGING)]
    pub vmodule: Vec<(String, u32)>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT", help_heading = LOGGING)]
    pub logging_format: Option<String>,
    /// Longest time between log flushes (nothing is buffered, so every value is kept)
    #[arg(long, value_name = "DURATION", help_heading = LOGGING, allow_hyphen_values = true)]
    pub log_flush_frequency: Option<GoDuration>,
    /// Text: informative messages to stdout, warnings and errors to stderr (gate LoggingAlphaOptions)
    #[arg(long, value_name = "BOOL", help_heading = LOGGING)]
    pub log_text_split_stream: Option<bool>,
    /// JSON: informative messages to stdout, warnings and errors to stderr (gate LoggingAlphaOptions)
    #[arg(long, value_name = "BOOL", help_heading = LOGGING)]
    pub log_json_split_stream: Option<bool>,
    /// Text: bytes to buffer; only 0 is implemented
    #[arg(long, value_name = "QUANTITY", help_heading = LOGGING)]
    pub log_text_info_buffer_size: Option<String>,
    /// JSON: bytes to buffer; only 0 is implemented
    #[arg(long, value_name = "QUANTITY", help_heading = LOGGING)]
    pub log_json_info_buffer_size: Option<String>,

    /// Longest wait of a change for others before it [default: 1s]
    #[arg(long, value_name = "DURATION", help_heading = IPVS, allow_hyphen_values = true)]
    pub ipvs_min_sync_period: Option<GoDuration>,
    /// Time between two comparisons of all virtual servers with what is wanted, and longest wait after a failure
    /// [default: 30s]
    #[arg(long, value_name = "DURATION", help_heading = IPVS, allow_hyphen_values = true)]
    pub ipvs_sync_period: Option<GoDuration>,
    /// Scheduler of Services without the annotation kube-ferry/ipvs-scheduler [default: rr]
    #[arg(long, value_name = "NAME", help_heading = IPVS)]
    pub ipvs_scheduler: Option<String>,
    /// Ranges of virtual servers that are left alone
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', help_heading = IPVS)]
    pub ipvs_exclude_cidrs: Vec<String>,
    /// arp_ignore 1 and arp_announce 2
    #[arg(long, value_name = "BOOL", help_heading = IPVS)]
    pub ipvs_strict_arp: Option<bool>,
    /// Timeout of idle TCP connections
    #[arg(long, value_name = "DURATION", help_heading = IPVS, allow_hyphen_values = true)]
    pub ipvs_tcp_timeout: Option<GoDuration>,
    /// Timeout of TCP connections after FIN
    #[arg(long, value_name = "DURATION", help_heading = IPVS, allow_hyphen_values = true)]
    pub ipvs_tcpfin_timeout: Option<GoDuration>,
    /// How long an endpoint that is gone may keep its connections (in a file: kubeFerry.ipvsDrainTimeout) [default: 15m]
    #[arg(long, value_name = "DURATION", help_heading = IPVS, allow_hyphen_values = true)]
    pub ipvs_drain_timeout: Option<GoDuration>,
    /// Timeout of UDP flows
    #[arg(long, value_name = "DURATION", help_heading = IPVS, allow_hyphen_values = true)]
    pub ipvs_udp_timeout: Option<GoDuration>,

    /// NodePorts on 127.0.0.1: a feature of kube-proxy's iptables mode that nftables cannot offer; has no effect
    #[arg(long, value_name = "BOOL", help_heading = COMPATIBILITY)]
    pub iptables_localhost_nodeports: Option<bool>,
    /// Has no effect, as in kube-proxy
    #[arg(long, value_name = "FILES", help_heading = COMPATIBILITY)]
    pub boot_id_file: Option<String>,
    /// Has no effect, as in kube-proxy
    #[arg(long, value_name = "FILES", help_heading = COMPATIBILITY)]
    pub machine_id_file: Option<String>,

    /// The flags that were typed and their values, for /flagz, the log, and the rules of interplay with a file.
    #[arg(skip)]
    pub given: BTreeMap<String, String>,
}

/// What `--dry-run` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// The whole ruleset as nft input; needs no privileges.
    Ruleset,
    /// What would change against the kernel now.
    Diff,
    /// The kernel validates the real batch and throws it away.
    Kernel,
}

/// Whose leftovers `--cleanup` removes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CleanupOf {
    /// As kube-proxy's own `--cleanup`, and our tables.
    #[default]
    All,
    /// What kube-proxy left, while we go on.
    KubeProxy,
    /// Our tables, while kube-proxy goes on.
    KubeFerry,
}

/// What `--version` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionFormat {
    /// `--version=false`: nothing, the program starts.
    Not,
    Short,
    Raw,
}

/// The value of one `--feature-gates`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateList(pub Vec<(String, bool)>);

impl Args {
    /// Reads a command line, the program's name included. `--help` is an error that is to be printed with exit code 0.
    pub fn parse_from(line: impl IntoIterator<Item = OsString>) -> Result<Args, clap::Error> {
        let command = command();
        let flags: BTreeMap<String, String> = command
            .get_arguments()
            .filter_map(|arg| Some((arg.get_id().to_string(), arg.get_long()?.to_owned())))
            .collect();
        let matches = command.try_get_matches_from(line.into_iter().map(with_hyphens))?;
        let mut args = Args::from_arg_matches(&matches)?;
        args.forget_empty_values();
        for id in matches.ids() {
            let id = id.as_str();
            if matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            if let (Some(flag), Ok(Some(values))) = (flags.get(id), matches.try_get_raw(id)) {
                let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
                args.given.insert(flag.clone(), values.join(","));
            }
        }
        Ok(args)
    }

    /// `--flag=` says nothing, as with Go's flags: start scripts write it so where a variable of theirs is empty. Where
    /// that is not what kube-proxy makes of it, validation sees the empty value.
    fn forget_empty_values(&mut self) {
        for path in [&mut self.config, &mut self.manifests, &mut self.write_config_to] {
            path.take_if(|it| it.as_os_str().is_empty());
        }
        self.bind_address.take_if(|it| it.is_empty());
        self.nodeport_addresses.retain(|it| !it.is_empty());
        self.ipvs_exclude_cidrs.retain(|it| !it.is_empty());
        self.vmodule.retain(|(pattern, _)| !pattern.is_empty());
    }
}

/// A path that may be empty, which clap's own parser refuses.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// The command line's description, also for completions and manual pages.
pub fn command() -> clap::Command {
    Args::command().mut_args(|arg| {
        let is_bool = arg
            .get_value_names()
            .is_some_and(|names| names.iter().any(|name| name.as_str() == "BOOL"));
        if is_bool {
            // Go's flags: `--flag`, `--flag=true`, `--flag=f`, never `--flag true`.
            arg.num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(go_bool)
        } else {
            arg
        }
    })
}

/// `--proxy_mode=x` is `--proxy-mode=x`.
fn with_hyphens(argument: OsString) -> OsString {
    let Some(text) = argument.to_str().filter(|text| text.starts_with("--")) else {
        return argument;
    };
    match text.split_once('=') {
        Some((name, value)) => format!("{}={value}", name.replace('_', "-")).into(),
        None => text.replace('_', "-").into(),
    }
}

/// The spellings of booleans that Go's flags take.
pub(super) fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

fn version_format(text: &str) -> Result<VersionFormat, String> {
    match text {
        "raw" => Ok(VersionFormat::Raw),
        _ => Ok(if go_bool(text)? { VersionFormat::Short } else { VersionFormat::Not }),
    }
}

fn gate_list(text: &str) -> Result<GateList, String> {
    feature_gates::parse_list(text).map(GateList)
}

fn vmodule_item(text: &str) -> Result<(String, u32), String> {
    if text.is_empty() {
        // The empty list, or what follows a comma at the end of one.
        return Ok(Default::default());
    }
    let wrong = || format!("{text:?} is not PATTERN=N");
    let (pattern, level) = text.split_once('=').ok_or_else(wrong)?;
    if pattern.is_empty() {
        return Err(wrong());
    }
    Ok((pattern.to_owned(), level.parse().map_err(|_| wrong())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn values_may_be_attached_or_follow() {
        check(&["--v=4"], |args| args.verbosity == Some(4));
        check(&["-v", "4"], |args| args.verbosity == Some(4));
        check(&["-v=4"], |args| args.verbosity == Some(4));
        check(&["-v4"], |args| args.verbosity == Some(4));
        check(&["--oom-score-adj", "-998"], |args| args.oom_score_adj == Some(-998));
        check(&["--oom-score-adj=-998"], |args| args.oom_score_adj == Some(-998));
        check(&["--conntrack-tcp-timeout-established=0s"], |args| {
            args.conntrack_tcp_timeout_established == Some(GoDuration::ZERO)
        });
    }

    #[test]
    fn underscores_are_hyphens_in_names_only() {
        check(&["--hostname_override=a_b"], |args| {
            args.hostname_override.as_deref() == Some("a_b")
        });
        check(&["--hostname_override", "a_b"], |args| {
            args.hostname_override.as_deref() == Some("a_b")
        });
    }

    #[test]
    fn booleans_are_go_s() {
        check(&["--masquerade-all"], |args| args.masquerade_all == Some(true));
        check(&["--masquerade-all=F"], |args| args.masquerade_all == Some(false));
        check(&["--cleanup=1", "--config=x"], |args| args.cleanup == Some(true));
        refuse(&["--masquerade-all", "true"], "unexpected argument 'true'");
        refuse(&["--masquerade-all=yes"], "neither true nor false");
    }

    #[test]
    fn the_last_of_a_repeated_flag_counts_and_lists_add_up() {
        check(&["--cluster-cidr=10.0.0.0/8", "--cluster-cidr=11.0.0.0/8"], |args| {
            args.cluster_cidr.as_deref() == Some("11.0.0.0/8")
        });
        check(
            &["--nodeport-addresses=10.0.0.0/8,fd00::/8", "--nodeport-addresses=11.0.0.0/8"],
            |args| args.nodeport_addresses == ["10.0.0.0/8", "fd00::/8", "11.0.0.0/8"],
        );
        check(&["--vmodule=sync=6,kernel*=4"], |args| {
            args.vmodule == [("sync".to_owned(), 6), ("kernel*".to_owned(), 4)]
        });
    }

    #[test]
    fn optional_values_have_their_meaning() {
        check(&["--dry-run"], |args| args.dry_run == Some(DryRun::Ruleset));
        check(&["--dry-run=diff"], |args| args.dry_run == Some(DryRun::Diff));
        check(&["--cleanup-of=kube-proxy"], |args| args.cleanup_of == Some(CleanupOf::KubeProxy));
        check(&["--version"], |args| args.version == Some(VersionFormat::Short));
        check(&["--version=raw"], |args| args.version == Some(VersionFormat::Raw));
        check(&["--version=false"], |args| args.version == Some(VersionFormat::Not));
        refuse(&["--dry-run=all"], "possible values: ruleset, diff, kernel");
        refuse(&["--cleanup-of=docker"], "possible values: all, kube-proxy, kube-ferry");
    }

    #[test]
    fn what_is_not_a_flag_is_refused() {
        refuse(&["start"], "unexpected argument 'start'");
        refuse(&["--teleport"], "unexpected argument '--teleport'");
        refuse(&["--iptables-sync-period=5"], "write it like 30s");
        refuse(&["--feature-gates=A"], "missing bool value");
    }

    /// As start scripts write flags whose variable is empty.
    #[test]
    fn an_empty_value_is_as_good_as_no_flag() {
        let flags = "config manifests write-config-to bind-address nodeport-addresses \
            ipvs-exclude-cidrs vmodule feature-gates";
        for flag in flags.split_whitespace() {
            for line in [&[format!("--{flag}=")][..], &[format!("--{flag}"), String::new()]] {
                let line: Vec<&str> = line.iter().map(String::as_str).collect();
                let mut args = parse(&line).unwrap();
                args.given.clear();
                args.feature_gates.retain(|it| !it.0.is_empty());
                assert_eq!(args, Args::default(), "{line:?}");
            }
        }
        check(&["--vmodule=sync=6,"], |args| args.vmodule == [("sync".to_owned(), 6)]);
    }

    #[test]
    fn what_was_typed_is_remembered() {
        let args = parse(&["--v=2", "--cleanup", "--nodeport_addresses=primary"]).unwrap();
        let given: Vec<_> = args.given.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(given, ["cleanup=true", "nodeport-addresses=primary", "v=2"]);
    }

    /// Every flag of reference 8.2 that exists on Linux.
    #[test]
    fn all_flags_of_kube_proxy_are_known() {
        let known = "config write-config-to cleanup init-only master version healthz-port metrics-port boot-id-file \
            machine-id-file feature-gates kubeconfig kube-api-content-type kube-api-qps kube-api-burst logging-format \
            log-flush-frequency v vmodule log-text-split-stream log-text-info-buffer-size log-json-split-stream \
            log-json-info-buffer-size hostname-override bind-address healthz-bind-address metrics-bind-address \
            bind-address-hard-fail profiling show-hidden-metrics-for-version proxy-mode iptables-masquerade-bit \
            masquerade-all iptables-localhost-nodeports iptables-sync-period iptables-min-sync-period \
            ipvs-sync-period ipvs-min-sync-period ipvs-scheduler ipvs-exclude-cidrs ipvs-strict-arp ipvs-tcp-timeout \
            ipvs-tcpfin-timeout ipvs-udp-timeout detect-local-mode pod-bridge-interface pod-interface-name-prefix \
            cluster-cidr nodeport-addresses oom-score-adj conntrack-max-per-core conntrack-min \
            conntrack-tcp-timeout-established conntrack-tcp-timeout-close-wait conntrack-tcp-be-liberal \
            conntrack-udp-timeout conntrack-udp-timeout-stream config-sync-period";
        let command = command();
        let flags: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
        for flag in known.split_whitespace() {
            assert!(flags.contains(&flag), "--{flag} is missing");
        }
    }

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        Args::parse_from(["kube-ferry"].iter().chain(line).map(OsString::from))
    }

    #[track_caller]
    fn check(line: &[&str], expected: impl Fn(&Args) -> bool) {
        let args = parse(line).unwrap();
        assert!(expected(&args), "{args:#?}");
    }

    #[track_caller]
    fn refuse(line: &[&str], part: &str) {
        let error = parse(line).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
