//! How flags and file are laid over each other (reference 8.1).

use super::args::Args;
use super::file::{
    HEALTHZ_PORT, KubeProxyConfiguration, METRICS_PORT, OutputRouting, VModule, with_port,
};
use super::settings::Notice;

/// Flags that count beside a file: actions, and what section 8.1 exempts.
const BESIDE_A_FILE: [&str; 11] = [
    "config",
    "manifests",
    "own-tables",
    "ipvs-drain-timeout",
    "dry-run",
    "cleanup",
    "cleanup-of",
    "init-only",
    "write-config-to",
    "master",
    "hostname-override",
];

/// Without a file: every flag over the defaults.
pub(super) fn flags(args: &Args) -> KubeProxyConfiguration {
    let mut object = KubeProxyConfiguration::defaulted();
    client_and_node(args, &mut object);
    forwarding(args, &mut object);
    conntrack(args, &mut object);
    servers(args, &mut object);
    ipvs(args, &mut object);
    logging(args, &mut object);
    beside_a_file(args, &mut object);
    object
}

/// With a file: the file, and the flags that win over it. What was typed in vain is told.
pub(super) fn file(args: &Args, object: &mut KubeProxyConfiguration) -> Vec<Notice> {
    object.set_defaults();
    logging(args, object);
    beside_a_file(args, object);
    let counts = |flag: &str| {
        BESIDE_A_FILE.contains(&flag)
            || matches!(flag, "v" | "vmodule" | "logging-format" | "version")
            || flag.starts_with("log-")
    };
    let vain: Vec<&str> = args.given.keys().map(String::as_str).filter(|it| !counts(it)).collect();
    if vain.is_empty() {
        return Vec::new();
    }
    vec![Notice::Warn(format!(
        "with --config the file alone counts; these flags have no effect: --{}",
        vain.join(", --")
    ))]
}

fn set<T: Clone>(field: &mut T, flag: &Option<T>) {
    if let Some(value) = flag {
        field.clone_from(value);
    }
}

fn set_some<T: Clone>(field: &mut Option<T>, flag: &Option<T>) {
    if flag.is_some() {
        field.clone_from(flag);
    }
}

fn client_and_node(args: &Args, object: &mut KubeProxyConfiguration) {
    let client = &mut object.client_connection;
    set(&mut client.kubeconfig, &args.kubeconfig);
    set(&mut client.content_type, &args.kube_api_content_type);
    set(&mut client.qps, &args.kube_api_qps);
    set(&mut client.burst, &args.kube_api_burst);
    set(&mut object.config_sync_period, &args.config_sync_period);
    set(&mut object.bind_address, &args.bind_address);
    set_some(&mut object.oom_score_adj, &args.oom_score_adj);
    let gates = args.feature_gates.iter().flat_map(|list| list.0.iter().cloned());
    object.feature_gates.extend(gates);
}

fn forwarding(args: &Args, object: &mut KubeProxyConfiguration) {
    set(&mut object.mode, &args.proxy_mode);
    set(&mut object.cluster_cidr, &args.cluster_cidr);
    set(&mut object.detect_local_mode, &args.detect_local_mode);
    set(&mut object.detect_local.bridge_interface, &args.pod_bridge_interface);
    set(&mut object.detect_local.interface_name_prefix, &args.pod_interface_name_prefix);
    object.node_port_addresses.clone_from(&args.nodeport_addresses);
    let iptables = &mut object.iptables;
    set_some(&mut iptables.masquerade_bit, &args.iptables_masquerade_bit);
    set_some(&mut iptables.localhost_node_ports, &args.iptables_localhost_nodeports);
    // These flags are spelled after iptables and yet meant for every mode but ipvs.
    set(&mut iptables.masquerade_all, &args.masquerade_all);
    set(&mut iptables.sync_period, &args.iptables_sync_period);
    set(&mut iptables.min_sync_period, &args.iptables_min_sync_period);
    object.nftables.masquerade_all = iptables.masquerade_all;
    object.nftables.sync_period = iptables.sync_period;
    object.nftables.min_sync_period = iptables.min_sync_period;
}

fn conntrack(args: &Args, object: &mut KubeProxyConfiguration) {
    let conntrack = &mut object.conntrack;
    set_some(&mut conntrack.max_per_core, &args.conntrack_max_per_core);
    set_some(&mut conntrack.min, &args.conntrack_min);
    set_some(&mut conntrack.tcp_established_timeout, &args.conntrack_tcp_timeout_established);
    set_some(&mut conntrack.tcp_close_wait_timeout, &args.conntrack_tcp_timeout_close_wait);
    set(&mut conntrack.tcp_be_liberal, &args.conntrack_tcp_be_liberal);
    set(&mut conntrack.udp_timeout, &args.conntrack_udp_timeout);
    set(&mut conntrack.udp_stream_timeout, &args.conntrack_udp_timeout_stream);
}

fn servers(args: &Args, object: &mut KubeProxyConfiguration) {
    let address = |default: &str, flag: &Option<String>, port: Option<i32>, usual: u16| {
        if port == Some(0) {
            return String::new();
        }
        let port = port.unwrap_or(i32::from(usual));
        match flag.as_deref() {
            // An empty address keeps the default, as in kube-proxy.
            None | Some("") => with_port(default, port),
            Some(address) => with_port(address, port),
        }
    };
    object.healthz_bind_address =
        address("0.0.0.0", &args.healthz_bind_address, args.healthz_port, HEALTHZ_PORT);
    object.metrics_bind_address =
        address("127.0.0.1", &args.metrics_bind_address, args.metrics_port, METRICS_PORT);
    set(&mut object.bind_address_hard_fail, &args.bind_address_hard_fail);
    set(&mut object.enable_profiling, &args.profiling);
    set(&mut object.show_hidden_metrics_for_version, &args.show_hidden_metrics_for_version);
}

fn ipvs(args: &Args, object: &mut KubeProxyConfiguration) {
    let ipvs = &mut object.ipvs;
    // Without a file the common sync fields of every mode start from the same defaults.
    ipvs.min_sync_period = super::GoDuration::from_secs(1);
    set(&mut ipvs.min_sync_period, &args.ipvs_min_sync_period);
    set(&mut ipvs.sync_period, &args.ipvs_sync_period);
    set(&mut ipvs.scheduler, &args.ipvs_scheduler);
    ipvs.exclude_cidrs.clone_from(&args.ipvs_exclude_cidrs);
    set(&mut ipvs.strict_arp, &args.ipvs_strict_arp);
    set(&mut ipvs.tcp_timeout, &args.ipvs_tcp_timeout);
    set(&mut ipvs.tcp_fin_timeout, &args.ipvs_tcpfin_timeout);
    set(&mut ipvs.udp_timeout, &args.ipvs_udp_timeout);
}

/// What counts with and without a file, so that it is shown and written as it is in force.
fn beside_a_file(args: &Args, object: &mut KubeProxyConfiguration) {
    if let Some(name) = args.hostname_override.as_ref().filter(|name| !name.is_empty()) {
        object.hostname_override = name.trim().to_lowercase();
    }
    let ours = &mut object.kube_ferry;
    if let Some(path) = &args.manifests {
        ours.manifests = path.display().to_string();
    }
    set(&mut ours.own_tables, &args.own_tables);
    set(&mut ours.ipvs_drain_timeout, &args.ipvs_drain_timeout);
}

/// Logging flags win over a file one by one; module lists add up, flags first, so that they match first.
fn logging(args: &Args, object: &mut KubeProxyConfiguration) {
    let logging = &mut object.logging;
    set(&mut logging.verbosity, &args.verbosity);
    set(&mut logging.format, &args.logging_format);
    set(&mut logging.flush_frequency, &args.log_flush_frequency);
    let typed = args.vmodule.iter();
    let mut vmodule: Vec<VModule> = typed
        .map(|(pattern, verbosity)| VModule {
            file_pattern: pattern.clone(),
            verbosity: *verbosity,
        })
        .collect();
    vmodule.append(&mut logging.vmodule);
    logging.vmodule = vmodule;
    let routing = |routing: &mut OutputRouting, split: &Option<bool>, size: &Option<String>| {
        set(&mut routing.split_stream, split);
        if let Some(size) = size {
            routing.info_buffer_size = size.as_str().into();
        }
    };
    let options = &mut logging.options;
    routing(&mut options.text, &args.log_text_split_stream, &args.log_text_info_buffer_size);
    routing(&mut options.json, &args.log_json_split_stream, &args.log_json_info_buffer_size);
}
