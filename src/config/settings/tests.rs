use std::ffi::OsString;

use super::*;
use crate::config::CleanupOf;
use crate::model::Scheduler;

const KUBEADM: &str = include_str!("../../../tests/config/kubeadm.yaml");
const EKS: &str = include_str!("../../../tests/config/eks.yaml");
const KIND: &str = include_str!("../../../tests/config/kind.yaml");
const HEAD: &str = "{apiVersion: kubeproxy.config.k8s.io/v1alpha1, kind: KubeProxyConfiguration";

#[test]
fn kubeadm_s_file_loads_unchanged() {
    let config =
        resolved(&["--config=kubeadm.yaml", "--hostname-override=worker-1"], Some(KUBEADM));
    assert_eq!(&*config.node_name, "worker-1");
    assert_eq!(
        config.source,
        Source::ApiServer(Client {
            kubeconfig: Some("/var/lib/kube-proxy/kubeconfig.conf".into()),
            master: None
        })
    );
    assert_eq!(
        config.detect_local,
        DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()])
    );
    assert_eq!(config.node_ports, NodePortSelector::All);
    assert_eq!(config.masquerade_mark, 0x4000);
    assert_eq!((config.sync_period, config.min_sync_period), (secs(30), secs(1)));
    assert_eq!(config.healthz, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(config.metrics, "127.0.0.1:10249".parse().unwrap());
    assert_eq!(config.conntrack.max_per_core, Some(32768));
    assert_eq!(config.oom_score_adj, -999);
    check_notices(&config, &["served by the nftables backend", "NodePorts are accepted on all"]);
}

#[test]
fn eks_file_loads_unchanged() {
    let config = resolved(
        &["--v=2", "--config=eks.yaml", "--hostname-override=ip-10-0-0-1.ec2.internal"],
        Some(EKS),
    );
    assert_eq!(config.logging.verbosity, 2);
    assert_eq!(config.metrics, "0.0.0.0:10249".parse().unwrap());
    assert_eq!(config.oom_score_adj, -998);
    assert_eq!((config.sync_period, config.min_sync_period), (secs(30), secs(1)));
    check_notices(
        &config,
        &[
            "served by the nftables backend",
            "clusterCIDR is not set",
            "NodePorts are accepted on all",
        ],
    );
}

#[test]
fn kind_s_dual_stack_file_loads_unchanged() {
    let config = resolved(&["--config=kind.yaml", "--hostname-override=kind-worker"], Some(KIND));
    assert_eq!(config.healthz, Some("[::]:10256".parse().unwrap()));
    assert_eq!(config.metrics, "[::1]:10249".parse().unwrap());
    assert_eq!(config.node_ports, NodePortSelector::Primary);
    assert_eq!(
        config.conntrack,
        Conntrack { min: 131_072, ..Conntrack::default() },
        "zeros leave the kernel's values alone"
    );
    let v4 = config.detect_local.detector(Family::V4, &[]);
    assert_eq!(v4, Some(LocalDetector::Source("10.244.0.0/16".parse().unwrap())));
    let v6 = config.detect_local.detector(Family::V6, &[]);
    assert_eq!(v6, Some(LocalDetector::Source("fd00:10:244::/56".parse().unwrap())));
    check_notices(&config, &[]);
}

/// The field that is missing is there, by another name.
#[test]
fn a_misspelt_field_is_named_beside_what_it_leads_to() {
    let text = format!(
        "{HEAD}, detectLocalMode: BridgeInterface, detectLocal: {{bridgeinterface: cni0}}}}"
    );
    let error = resolve(&parse(&["--config=f"]), Some(&text), "host").unwrap_err().to_string();
    assert!(error.contains("detectLocal.bridgeInterface: Invalid value"), "{error}");
    assert!(
        error.contains("besides, unknown field \"detectLocal.bridgeinterface\" is left out (is \"bridgeInterface\" meant?)"),
        "{error}"
    );
}

/// kind and others write one list of gates into the configuration of every component.
#[test]
fn gates_that_all_components_share_do_no_harm() {
    let shared = KIND.replace(
        "kind: KubeProxyConfiguration",
        "featureGates: {SidecarContainers: true, DynamicResourceAllocation: false, WatchListClient: true}\n\
         kind: KubeProxyConfiguration",
    );
    let config = resolved(&["--config=kind.yaml"], Some(&shared));
    assert!(config.feature_gates.enabled("WatchListClient"));
    check_notices(
        &config,
        &["DynamicResourceAllocation is left out", "SidecarContainers is left out"],
    );
}

/// k3s has no file; it passes flags.
#[test]
fn k3s_flags_are_taken() {
    let config = resolved(
        &[
            "--cluster-cidr=10.42.0.0/16",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-close-wait=0s",
            "--conntrack-tcp-timeout-established=0s",
            "--healthz-bind-address=127.0.0.1",
            "--hostname-override=agent-0",
            "--kubeconfig=/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig",
            "--proxy-mode=iptables",
        ],
        None,
    );
    assert_eq!(config.healthz, Some("127.0.0.1:10256".parse().unwrap()), "a port is appended");
    assert_eq!(config.conntrack, Conntrack { min: 131_072, ..Conntrack::default() });
    check_notices(&config, &["served by the nftables backend", "NodePorts are accepted on all"]);
}

#[test]
fn a_file_wins_over_flags_but_for_the_exempt_ones() {
    let config = resolved(
        &[
            "--config=f",
            "--cluster-cidr=10.0.0.0/8",
            "--kubeconfig=ignored",
            "--feature-gates=AllowServiceExternalIPs=false",
            "--ipvs-scheduler=rr",
            "--master=https://192.0.2.1:6443",
            "--hostname-override= Flag ",
            "--v=5",
            "--vmodule=sync=7",
        ],
        Some(&format!(
            "{HEAD}, mode: nftables, clusterCIDR: 10.9.0.0/16, hostnameOverride: file, logging: {{verbosity: 1, vmodule: [{{filePattern: watch, verbosity: 3}}]}}}}"
        )),
    );
    assert_eq!(config.detect_local, DetectLocal::ClusterCidr(vec!["10.9.0.0/16".parse().unwrap()]));
    assert!(config.feature_gates.enabled("AllowServiceExternalIPs"));
    assert_eq!(
        config.source,
        Source::ApiServer(Client {
            kubeconfig: None,
            master: Some("https://192.0.2.1:6443".into())
        })
    );
    assert_eq!(&*config.node_name, "flag");
    assert_eq!(config.logging.verbosity, 5);
    assert_eq!(config.logging.vmodule, [("sync".to_owned(), 7), ("watch".to_owned(), 3)]);
    check_notices(
        &config,
        &[
            "these flags have no effect: --cluster-cidr, --feature-gates, --ipvs-scheduler, --kubeconfig",
        ],
    );
}

#[test]
fn the_node_s_name_comes_from_flag_then_file_then_host() {
    let file = format!("{HEAD}, mode: nftables, clusterCIDR: 10.0.0.0/8, hostnameOverride: File}}");
    for (flags, file, name) in [
        (vec!["--config=f", "--hostname-override=Flag"], Some(file.as_str()), "flag"),
        (vec!["--config=f"], Some(file.as_str()), "file"),
        (vec![], None, "host.example"),
    ] {
        assert_eq!(&*resolved(&flags, file).node_name, name);
    }
}

#[test]
fn values_come_from_the_block_of_the_mode() {
    let blocks = "iptables: {masqueradeAll: true, masqueradeBit: 1, syncPeriod: 11s, minSyncPeriod: 2s}, \
                  nftables: {masqueradeBit: 2, syncPeriod: 12s, minSyncPeriod: 3s}";
    for (mode, mark, all, period, min) in
        [("iptables", 1 << 1, true, 11, 2), ("nftables", 1 << 2, false, 12, 3)]
    {
        let config = resolved(&["--config=f"], Some(&format!("{HEAD}, mode: {mode}, {blocks}}}")));
        assert_eq!((config.masquerade_mark, config.masquerade_all), (mark, all), "{mode}");
        assert_eq!(
            (config.sync_period, config.min_sync_period),
            (secs(period), secs(min)),
            "{mode}"
        );
    }
}

#[test]
fn flags_named_after_iptables_count_in_nftables_mode_as_well() {
    let config = resolved(
        &[
            "--proxy-mode=nftables",
            "--iptables-sync-period=10s",
            "--iptables-min-sync-period=0s",
            "--masquerade-all",
        ],
        None,
    );
    assert_eq!((config.sync_period, config.min_sync_period), (secs(10), secs(0)));
    assert!(config.masquerade_all);
}

#[test]
fn ports_and_addresses_of_servers() {
    let servers = |flags: &[&str]| {
        let config = resolved(flags, None);
        (config.healthz.map(|it| it.to_string()).unwrap_or_default(), config.metrics.to_string())
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(servers(&[]), pair("0.0.0.0:10256", "127.0.0.1:10249"));
    assert_eq!(servers(&["--bind-address=::"]), pair("0.0.0.0:10256", "127.0.0.1:10249"));
    assert_eq!(servers(&["--healthz-port=0", "--metrics-port=7"]), pair("", "127.0.0.1:7"));
    assert_eq!(
        servers(&["--healthz-bind-address=", "--metrics-bind-address="]),
        pair("0.0.0.0:10256", "127.0.0.1:10249")
    );
    assert_eq!(
        servers(&["--healthz-bind-address=::", "--metrics-bind-address=[::1]:80"]),
        pair("[::]:10256", "[::1]:80")
    );
}

#[test]
fn every_wrong_value_is_refused_with_its_message() {
    for (flags, part) in [
        (
            vec!["--proxy-mode=userspace"],
            "mode: Invalid value: \"userspace\": must be iptables, ipvs or nftables",
        ),
        (
            vec!["--proxy-mode=ipvs", "--ipvs-scheduler=a b"],
            "ipvs.scheduler: Invalid value: \"a b\": must be the name of a scheduler",
        ),
        (
            vec!["--proxy-mode=ipvs", "--ipvs-udp-timeout=-1s"],
            "ipvs.udpTimeout: Invalid value: -1s: must be greater than or equal to 0",
        ),
        (vec!["--proxy-mode=ipvs", "--ipvs-exclude-cidrs=10.0.0.0"], "ipvs.excludeCIDRs"),
        (
            vec!["--ipvs-drain-timeout=-1s"],
            "kubeFerry.ipvsDrainTimeout: Invalid value: -1s: must be greater than or equal to 0",
        ),
        (vec!["--hostname-override=  "], "--hostname-override is empty"),
        (
            vec!["--bind-address=[::]"],
            "bindAddress: Invalid value: \"[::]\": not a valid textual representation of an IP",
        ),
        (
            vec!["--healthz-bind-address=localhost:1"],
            "healthzBindAddress: Invalid value: \"localhost:1\": must be IP:port",
        ),
        (
            vec!["--healthz-bind-address=1.2.3.4:0"],
            "must be a valid port, inclusive range is 1..65535",
        ),
        (vec!["--healthz-port=70000"], "healthzBindAddress: Invalid value: \"0.0.0.0:70000\""),
        (
            vec!["--metrics-port=0"],
            "metricsBindAddress: Invalid value: \"\": the metrics server cannot be switched off",
        ),
        (
            vec!["--iptables-masquerade-bit=32"],
            "iptables.masqueradeBit: Invalid value: 32: must be within the range [0, 31]",
        ),
        (
            vec!["--iptables-masquerade-bit=-1", "--proxy-mode=nftables"],
            "iptables.masqueradeBit: Invalid value: -1",
        ),
        (
            vec!["--iptables-sync-period=0s"],
            "iptables.syncPeriod: Invalid value: 0s: must be greater than 0",
        ),
        (
            vec!["--iptables-min-sync-period=-1s"],
            "iptables.minSyncPeriod: Invalid value: -1s: must be greater than or equal to 0",
        ),
        (
            vec!["--iptables-min-sync-period=1m"],
            "iptables.syncPeriod: Invalid value: 30s: must be greater than or equal to iptables.minSyncPeriod, which is 1m0s",
        ),
        (
            vec!["--iptables-min-sync-period=1m", "--proxy-mode=nftables"],
            "nftables.syncPeriod: Invalid value: 30s",
        ),
        (
            vec!["--config-sync-period=0s"],
            "configSyncPeriod: Invalid value: 0s: must be greater than 0",
        ),
        (
            vec!["--kube-api-burst=-1"],
            "clientConnection.burst: Invalid value: -1: must be non-negative",
        ),
        (
            vec!["--detect-local-mode=Guess"],
            "detectLocalMode: Invalid value: \"Guess\": must be one of ClusterCIDR",
        ),
        (
            vec!["--detect-local-mode=BridgeInterface"],
            "detectLocal.bridgeInterface: Invalid value: \"\": must not be empty",
        ),
        (
            vec!["--detect-local-mode=InterfaceNamePrefix"],
            "detectLocal.interfaceNamePrefix: Invalid value",
        ),
        (
            vec!["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=a-name-of-16-byte"],
            "must not be longer than 15 bytes",
        ),
        (
            vec!["--cluster-cidr=10.0.0.0"],
            "clusterCIDR: Invalid value: \"10.0.0.0\": must be a valid CIDR block",
        ),
        (vec!["--cluster-cidr=10.0.0.0/8,11.0.0.0/8"], "must be one CIDR or a dual-stack pair"),
        (
            vec!["--cluster-cidr=10.0.0.0/8,fd00::/8,fd01::/16"],
            "must be one CIDR or a dual-stack pair",
        ),
        (
            vec!["--nodeport-addresses=primary,10.0.0.0/8"],
            "nodePortAddresses: Invalid value: primary,10.0.0.0/8: \"primary\" must stand alone",
        ),
        (
            vec!["--nodeport-addresses=10.0.0.1"],
            "nodePortAddresses: Invalid value: \"10.0.0.1\": must be a valid CIDR",
        ),
        (
            vec!["--oom-score-adj=-1001"],
            "oomScoreAdj: Invalid value: -1001: must be within the range [-1000, 1000]",
        ),
        (vec!["--conntrack-max-per-core=-1"], "conntrack.maxPerCore: Invalid value: -1"),
        (vec!["--conntrack-min=-1"], "conntrack.min: Invalid value: -1"),
        (
            vec!["--conntrack-tcp-timeout-established=-1s"],
            "conntrack.tcpEstablishedTimeout: Invalid value: -1s",
        ),
        (
            vec!["--conntrack-tcp-timeout-close-wait=-1s"],
            "conntrack.tcpCloseWaitTimeout: Invalid value: -1s",
        ),
        (vec!["--conntrack-udp-timeout=-1s"], "conntrack.udpTimeout: Invalid value: -1s"),
        (
            vec!["--conntrack-udp-timeout-stream=-1s"],
            "conntrack.udpStreamTimeout: Invalid value: -1s",
        ),
        (
            vec!["--show-hidden-metrics-for-version=1.20"],
            "must be the previous minor version, 1.35",
        ),
        (
            vec!["--logging-format=xml"],
            "logging.format: Invalid value: \"xml\": must be text or json",
        ),
        (vec!["--logging-format=json", "--vmodule=a=1"], "logging.vmodule: Forbidden"),
        (
            vec!["--log-text-split-stream"],
            "splitStream: Forbidden: feature LoggingAlphaOptions is disabled",
        ),
        (vec!["--log-json-info-buffer-size=64Ki"], "buffering is not implemented"),
        (
            vec!["--feature-gates=AllowServiceExternalIP=true"],
            "unrecognized feature gate: AllowServiceExternalIP (is AllowServiceExternalIPs meant?)",
        ),
        (vec!["--feature-gates=NFTablesProxyMode=false"], "feature is locked to true"),
        (vec!["--cleanup", "--init-only"], "exclude each other"),
        (vec!["--cleanup-of=kube-proxy"], "give both"),
    ] {
        let error = resolve(&parse(&flags), None, "host").unwrap_err().to_string();
        assert!(error.contains(part), "{flags:?}: {error}");
        assert_eq!(error.lines().count(), 2, "one problem, one line: {error}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let flags = ["--oom-score-adj=2000", "--conntrack-min=-1", "--cluster-cidr=x"];
    let error = resolve(&parse(&flags), None, "host").unwrap_err().to_string();
    assert_eq!(error.lines().count(), 4, "{error}");
}

/// strictARP is often asked for by who has mode iptables; what every file spells out, defaults, is not worth a word.
#[test]
fn blocks_of_other_modes_that_ask_for_something_are_told() {
    let told = |fields: &str| {
        let file =
            format!("{HEAD}, clusterCIDR: 10.0.0.0/8, nodePortAddresses: [primary], {fields}}}");
        resolved(&["--config=f"], Some(&file)).notices
    };
    let info = |setting: &str| Notice::Info(format!("{setting} has no effect"));
    let ipvs = info("the block ipvs in another mode");
    let iptables = info("the block iptables in mode nftables (the block nftables is what counts)");
    let nftables = info("the block nftables in another mode");
    for (fields, expected) in [
        ("mode: nftables, ipvs: {strictARP: true}", vec![ipvs]),
        ("mode: nftables, iptables: {masqueradeAll: true}", vec![iptables]),
        ("mode: ipvs, nftables: {syncPeriod: 1m}, iptables: {masqueradeAll: true}", vec![nftables]),
        ("mode: ipvs, ipvs: {strictARP: true}", vec![]),
        (
            "mode: nftables, ipvs: {syncPeriod: 30s, minSyncPeriod: 0s}, iptables: {masqueradeBit: 14, syncPeriod: 0s}",
            vec![],
        ),
    ] {
        assert_eq!(told(fields), expected, "{fields}");
    }
}

#[test]
fn what_does_nothing_says_so() {
    let file = format!(
        "{HEAD}, mode: nftables, clusterCIDR: 10.0.0.0/8, portRange: 1-2, windowsRunAsService: true, \
         winkernel: {{enableDSR: true}}, configSyncPeriod: 1m, clientConnection: {{qps: 50, contentType: application/json}}, \
         showHiddenMetricsForVersion: '1.35', featureGates: {{ContextualLogging: false}}}}"
    );
    check_notices(
        &resolved(&["--config=f"], Some(&file)),
        &[
            "ContextualLogging has no effect",
            "clientConnection.qps and burst",
            "contentType",
            "configSyncPeriod",
            "portRange has no effect",
            "winkernel",
            "windowsRunAsService",
            "showHiddenMetricsForVersion",
        ],
    );
    let flags = [
        "--proxy-mode=nftables",
        "--cluster-cidr=10.0.0.0/8",
        "--boot-id-file=x",
        "--machine-id-file=x",
        "--iptables-masquerade-bit=3",
        "--iptables-localhost-nodeports",
    ];
    check_notices(
        &resolved(&flags, None),
        &[
            "--boot-id-file",
            "--machine-id-file",
            "--iptables-masquerade-bit",
            "--iptables-localhost-nodeports",
        ],
    );
}

#[test]
fn mode_ipvs_has_its_own_block_and_masquerades_as_iptables_says() {
    let file = format!(
        "{HEAD}, mode: ipvs, clusterCIDR: 10.0.0.0/8, iptables: {{masqueradeAll: true, masqueradeBit: 3}}, \
         ipvs: {{scheduler: wlc, strictARP: true, excludeCIDRs: [10.9.0.0/16], tcpTimeout: 1500ms, syncPeriod: 7s, \
         minSyncPeriod: 2s}}, kubeFerry: {{ipvsDrainTimeout: 60s}}}}"
    );
    let config = resolved(&["--config=f"], Some(&file));
    let expected = IpvsSettings {
        scheduler: Scheduler::new("wlc").unwrap(),
        strict_arp: true,
        exclude_cidrs: vec!["10.9.0.0/16".parse().unwrap()],
        tcp_timeout: 2,
        tcpfin_timeout: 0,
        udp_timeout: 0,
    };
    assert_eq!(config.ipvs, Some(expected));
    let seconds = Duration::from_secs;
    assert_eq!((config.ipvs_drain, config.ipvs_sync_period), (seconds(60), seconds(7)));
    assert_eq!((config.sync_period, config.min_sync_period), (seconds(7), seconds(2)));
    assert_eq!((config.masquerade_all, config.masquerade_mark), (true, 8));
    assert_eq!(config.node_ports, NodePortSelector::All);
    let flags = [
        "--proxy-mode=ipvs",
        "--cluster-cidr=10.0.0.0/8",
        "--ipvs-drain-timeout=1s",
        "--nodeport-addresses=primary",
    ];
    let config = resolved(&flags, None);
    assert_eq!(config.ipvs, Some(IpvsSettings::default()));
    assert_eq!(config.ipvs_drain, seconds(1));
    check_notices(&config, &[]);
    let idle = ["--proxy-mode=nftables", "--cluster-cidr=10.0.0.0/8", "--ipvs-strict-arp=true"];
    let config = resolved(&idle, None);
    assert_eq!(config.ipvs, None);
    check_notices(&config, &["--ipvs-strict-arp has no effect in mode nftables"]);
}

#[test]
fn our_own_block_and_flag_name_the_manifests() {
    let file = format!(
        "{HEAD}, mode: nftables, clusterCIDR: 10.0.0.0/8, kubeFerry: {{manifests: /etc/a}}}}"
    );
    let config = resolved(&["--config=f"], Some(&file));
    assert_eq!(config.source, Source::Manifests("/etc/a".into()));
    let config = resolved(&["--config=f", "--manifests=/etc/b"], Some(&file));
    assert_eq!(config.source, Source::Manifests("/etc/b".into()));
}

#[test]
fn tables_are_owned_unless_flag_or_file_say_otherwise() {
    let file = |own: &str| {
        format!(
            "{HEAD}, mode: nftables, clusterCIDR: 10.0.0.0/8, kubeFerry: {{ownTables: {own}}}}}"
        )
    };
    let check = |flags: &[&str], file: Option<&str>, expected: bool| {
        assert_eq!(resolved(flags, file).own_tables, expected, "{flags:?} {file:?}");
    };
    check(&["--manifests=/a"], None, true);
    check(&["--manifests=/a", "--own-tables=false"], None, false);
    check(&["--config=f"], Some(&file("false")), false);
    check(&["--config=f", "--own-tables"], Some(&file("false")), true);
    check(&["--config=f", "--own-tables=false"], Some(&file("true")), false);
}

#[test]
fn files_that_cannot_be_used_name_themselves() {
    let error = resolve(&parse(&["--config=/etc/x.yaml"]), Some("kind: Pod"), "host").unwrap_err();
    assert!(
        error.to_string().contains("/etc/x.yaml is not usable: its kind is \"Pod\""),
        "{error}"
    );
}

#[test]
fn node_port_ranges_by_family() {
    let ips: Vec<IpAddr> = ["192.0.2.7", "127.0.0.1", "::1"].map(|ip| ip.parse().unwrap()).into();
    let shown = |selector: &NodePortSelector, family| {
        let ranges = selector.ranges(family, &ips)?;
        Some(ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
    };
    let within = |list: &[&str]| {
        NodePortSelector::Within(list.iter().map(|it| it.parse().unwrap()).collect())
    };
    assert_eq!(shown(&NodePortSelector::All, Family::V4), None);
    assert_eq!(shown(&NodePortSelector::Primary, Family::V4).as_deref(), Some("192.0.2.7/32"));
    assert_eq!(
        shown(&NodePortSelector::Primary, Family::V6),
        None,
        "no IP of the family: all accept"
    );
    assert_eq!(NodePortSelector::Primary.ranges(Family::V4, &[]), None);
    let two = within(&["10.0.0.0/8", "fd00::/8"]);
    assert_eq!(shown(&two, Family::V4).as_deref(), Some("10.0.0.0/8"));
    assert_eq!(shown(&two, Family::V6).as_deref(), Some("fd00::/8"));
    assert_eq!(shown(&within(&["10.0.0.0/8", "0.0.0.0/0"]), Family::V4), None);
    let forgotten =
        |selector: NodePortSelector| selector.forgotten(&Family::ALL).collect::<Vec<_>>();
    assert_eq!(forgotten(two), []);
    assert_eq!(forgotten(within(&["fd00::/8"])), [Family::V4]);
    assert_eq!(within(&["fd00::/8"]).forgotten(&[Family::V6]).count(), 0);
    assert_eq!(
        (forgotten(NodePortSelector::All), forgotten(NodePortSelector::Primary)),
        (vec![], vec![])
    );
}

#[test]
fn detectors_use_the_first_range_of_the_family() {
    let cidrs: Vec<IpNet> =
        ["fd00::/64", "10.1.0.0/24", "10.2.0.0/24"].map(|it| it.parse().unwrap()).into();
    let source = |cidr: &str| Some(LocalDetector::Source(cidr.parse().unwrap()));
    assert_eq!(DetectLocal::NodeCidr.detector(Family::V4, &cidrs), source("10.1.0.0/24"));
    assert_eq!(DetectLocal::NodeCidr.detector(Family::V4, &[]), None);
    assert_eq!(DetectLocal::ClusterCidr(cidrs).detector(Family::V6, &[]), source("fd00::/64"));
    let bridge = DetectLocal::Bridge("br0".into());
    assert_eq!(bridge.detector(Family::V6, &[]), Some(LocalDetector::Interface("br0".into())));
}

#[test]
fn actions_follow_their_flags() {
    for (flag, action) in [
        ("--v=0", Action::Run),
        ("--cleanup", Action::Cleanup(CleanupOf::All)),
        ("--init-only", Action::InitOnly),
        ("--write-config-to=/tmp/x", Action::WriteConfig("/tmp/x".into())),
        ("--dry-run=kernel", Action::DryRun(DryRun::Kernel)),
    ] {
        assert_eq!(resolved(&[flag], None).action, action);
    }
}

/// A file that is written from flags, with `--write-config-to`, must not lose what they said.
#[test]
fn what_counts_beside_a_file_is_shown_as_it_is_in_force() {
    let flags = ["--hostname-override= N1", "--manifests=/a", "--own-tables=false"];
    let file = format!("{HEAD}, hostnameOverride: n2, kubeFerry: {{manifests: /b}}}}");
    for (flags, file) in [
        (&flags[..], None),
        (
            &["--config=f", "--hostname-override= N1", "--manifests=/a", "--own-tables=false"],
            Some(&*file),
        ),
    ] {
        let config = resolved(flags, file);
        assert_eq!(config.object.hostname_override, "n1");
        assert_eq!(config.object.kube_ferry.manifests, "/a");
        assert!(!config.object.kube_ferry.own_tables);
        let written = config.object.to_yaml().unwrap();
        let again = resolved(&["--config=f"], Some(&written));
        assert_eq!((&*again.node_name, again.source), ("n1", config.source));
        assert_eq!(again.own_tables, config.own_tables);
    }
}

#[test]
fn only_the_active_block_is_shown() {
    let shown = resolved(&["--proxy-mode=nftables", "--masquerade-all"], None).object;
    assert_eq!(shown.iptables.sync_period.to_string(), "0s");
    assert!(shown.nftables.masquerade_all && !shown.iptables.masquerade_all);
    assert_eq!(shown.node_port_addresses, ["primary"]);
    let shown = resolved(&[], None).object;
    assert_eq!(
        (shown.mode.as_str(), shown.detect_local_mode.as_str()),
        ("iptables", "ClusterCIDR")
    );
    assert_eq!(shown.nftables.sync_period.to_string(), "0s");
}

fn parse(flags: &[&str]) -> Args {
    Args::parse_from(["kube-ferry"].iter().chain(flags).map(OsString::from)).unwrap()
}

#[track_caller]
fn resolved(flags: &[&str], file: Option<&str>) -> Config {
    resolve(&parse(flags), file, " Host.example").unwrap()
}

/// Each notice contains its part, in order, and there are no others.
#[track_caller]
fn check_notices(config: &Config, expected: &[&str]) {
    assert_eq!(config.notices.len(), expected.len(), "{:#?}", config.notices);
    for (notice, part) in config.notices.iter().zip(expected) {
        let (Notice::Info(text) | Notice::Warn(text)) = notice;
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}
