use std::sync::atomic::Ordering;

use super::*;
use crate::model::Skipped;

#[test]
fn a_family_appears_after_its_first_use() {
    let metrics = metrics();
    assert!(!metrics.text().unwrap().contains("kubeproxy_sync_proxy_rules_duration_seconds"));
    metrics.sync_done(Family::V4, SyncKind::Partial, Duration::from_millis(3));
    check(
        &metrics,
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.002\"} 0",
    );
    check(
        &metrics,
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.004\"} 1",
    );
    check(
        &metrics,
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"16.384\"} 1",
    );
    check(
        &metrics,
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
    );
    assert!(
        !metrics.text().unwrap().contains("IPv6") && !metrics.text().unwrap().contains("sync_full")
    );
}

#[test]
fn programming_buckets_are_kube_proxy_s() {
    let metrics = metrics();
    metrics.programmed(Family::V6, Duration::from_millis(300));
    let text = metrics.text().unwrap();
    let prefix = "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv6\",le=\"";
    let bounds: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix(prefix)?.split_once('"').map(|(bound, _)| bound))
        .collect();
    assert_eq!(bounds.len(), 3 + 59 + 12 + 7 + 1);
    assert_eq!(bounds[..5], ["0", "0.25", "0.5", "1", "2"]);
    assert_eq!(bounds[61..66], ["59", "60", "65", "70", "75"]);
    assert_eq!(bounds[73..], ["115", "120", "150", "180", "210", "240", "270", "300", "+Inf"]);
}

#[test]
fn every_word_lands_in_its_metric() {
    let metrics = metrics();
    let now = Timestamp::new(1_700_000_000, 500_000_000).unwrap();
    let took = Duration::from_micros(60);
    metrics.sync_queued(Family::V4, now);
    check(
        &metrics,
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} 1700000000.5",
    );
    metrics.sync_succeeded(Family::V6, now);
    check(
        &metrics,
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"} 1700000000.5",
    );
    metrics.sync_failed(Family::V4);
    check(
        &metrics,
        "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 1",
    );
    metrics.sync_done(Family::V4, SyncKind::Full, took);
    check(&metrics, "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1");
    metrics.endpoint_changes(3);
    check(&metrics, "kubeproxy_sync_proxy_rules_endpoint_changes_total 3");
    metrics.endpoint_changes_pending(2);
    check(&metrics, "kubeproxy_sync_proxy_rules_endpoint_changes_pending 2");
    metrics.service_changes(4);
    check(&metrics, "kubeproxy_sync_proxy_rules_service_changes_total 4");
    metrics.service_changes_pending(1);
    check(&metrics, "kubeproxy_sync_proxy_rules_service_changes_pending 1");
    metrics.events_coalesced(9);
    check(&metrics, "kubeferry_events_coalesced_total 9");
    metrics.no_local_endpoints(Family::V4, PolicyKind::External, 5);
    check(
        &metrics,
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 5",
    );
    metrics.standing_by(true);
    check(&metrics, "kubeferry_standing_by 1");
    metrics.conflicts(6);
    check(&metrics, "kubeferry_address_conflicts 6");
    metrics.rows_written(Family::V4, "endpoints", RowOp::Add, 7);
    check(
        &metrics,
        "kubeferry_elements_total{ip_family=\"IPv4\",operation=\"add\",set=\"endpoints\"} 7",
    );
    metrics.set_elements(Family::V4, "endpoints", 70);
    metrics.set_size(Family::V4, "endpoints", 1024);
    check(&metrics, "kubeferry_set_elements{ip_family=\"IPv4\",set=\"endpoints\"} 70");
    check(&metrics, "kubeferry_set_size{ip_family=\"IPv4\",set=\"endpoints\"} 1024");
    metrics.memory("nft", 4096);
    check(&metrics, "kubeferry_memory_estimated_bytes{room=\"nft\"} 4096");
    metrics.refused_services(3);
    check(&metrics, "kubeferry_refused_services 3");
    metrics.config_reloaded(false);
    check(&metrics, "kubeferry_config_last_reload_successful 0");
    check(&metrics, "kubeferry_config_reloads_total{result=\"invalid\"} 1");
    metrics.request("GET", "192.0.2.1:6443", Some(200), took);
    metrics.request("GET", "192.0.2.1:6443", None, took);
    check(
        &metrics,
        "rest_client_requests_total{code=\"200\",host=\"192.0.2.1:6443\",method=\"GET\"} 1",
    );
    check(
        &metrics,
        "rest_client_requests_total{code=\"<error>\",host=\"192.0.2.1:6443\",method=\"GET\"} 1",
    );
    check(
        &metrics,
        "rest_client_request_duration_seconds_count{host=\"192.0.2.1:6443\",verb=\"GET\"} 2",
    );
    metrics.batch(BatchResult::Committed, 12, took);
    metrics.batch(BatchResult::Rejected, 99, took);
    check(&metrics, "kubeferry_batches_total{result=\"committed\"} 1");
    check(&metrics, "kubeferry_batches_total{result=\"rejected\"} 1");
    check(&metrics, "kubeferry_operations_total 12");
    check(&metrics, "kubeferry_kernel_commit_duration_seconds_bucket{le=\"0.0001\"} 2");
    metrics.drift_repaired(Family::V6);
    check(&metrics, "kubeferry_drift_repairs_total{ip_family=\"IPv6\"} 1");
    metrics.conntrack_reconciled(Family::V4, 8, took);
    check(&metrics, "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 8");
    check(
        &metrics,
        "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"} 1",
    );
    metrics.healthz_answered(503);
    check(&metrics, "kubeproxy_proxy_healthz_total{code=\"503\"} 1");
    metrics.livez_answered(200);
    check(&metrics, "kubeproxy_proxy_livez_total{code=\"200\"} 1");
    let stats = Arc::new(Stats::default());
    metrics.show_watches(stats.clone());
    stats.of(Resource::Service).lists.fetch_add(2, Ordering::Relaxed);
    stats.of(Resource::EndpointSlice).last_contact.store(1_700_000_000_500, Ordering::Relaxed);
    stats.of(Resource::Node).bytes.fetch_add(77, Ordering::Relaxed);
    stats.count_skipped(&Skipped {
        resource: Resource::ServiceCidr,
        name: crate::model::ObjectName::new("default", "web"),
        uid: None,
        reason: "invalid-address",
        message: String::new(),
    });
    check(&metrics, "kubeferry_watch_relists_total{resource=\"services\"} 2");
    check(&metrics, "kubeferry_watch_relists_total{resource=\"services\"} 2");
    check(
        &metrics,
        "kubeferry_watch_last_event_timestamp_seconds{resource=\"endpointslices\"} 1700000000.5",
    );
    check(&metrics, "kubeferry_watch_received_bytes_total{resource=\"nodes\"} 77");
    check(
        &metrics,
        "kubeferry_skipped_objects_total{reason=\"invalid-address\",resource=\"servicecidrs\"} 1",
    );
}

#[test]
fn the_process_and_the_build_describe_themselves() {
    let metrics = metrics();
    let text = metrics.text().unwrap();
    for name in [
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        let value: f64 = line.split(' ').nth(1).unwrap_or_default().parse().unwrap();
        assert!(value >= 0.0, "{line}");
    }
    check(&metrics, "kubernetes_feature_enabled{name=\"AllowServiceExternalIPs\",stage=\"\"} 1");
    assert!(
        text.contains("kubernetes_build_info{compiler=\"rustc\",git_version=\"v1.36.2+kube-ferry."),
        "{text}"
    );
    let again = metrics.text().unwrap();
    let cpu = |text: &str| text.matches("\nprocess_cpu_seconds_total ").count();
    assert_eq!((cpu(&text), cpu(&again)), (1, 1));
}

fn metrics() -> Metrics {
    Metrics::new(&FeatureGates::default()).unwrap()
}

/// The page has exactly this line.
#[track_caller]
fn check(metrics: &Metrics, line: &str) {
    let text = metrics.text().unwrap();
    assert!(text.lines().any(|it| it == line), "{line}\nis not in\n{text}");
}
