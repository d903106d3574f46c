//! Names, help texts, labels and buckets: the table of section 9 of the reference and ours below it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, exponential_buckets,
};

use super::process::ProcessCollector;
use crate::config::FeatureGates;
use crate::config::feature_gates::GATES;

/// All metrics, registered.
#[derive(Debug)]
pub(super) struct Families {
    pub registry: Registry,

    pub sync_duration: HistogramVec,
    pub full_sync_duration: HistogramVec,
    pub partial_sync_duration: HistogramVec,
    pub last_timestamp: GaugeVec,
    pub queued_timestamp: GaugeVec,
    pub network_programming: HistogramVec,
    pub endpoint_changes_pending: IntGauge,
    pub endpoint_changes: IntCounter,
    pub service_changes_pending: IntGauge,
    pub service_changes: IntCounter,
    pub no_local_endpoints: IntGaugeVec,
    pub healthz: IntCounterVec,
    pub livez: IntCounterVec,
    pub conntrack_duration: HistogramVec,
    pub conntrack_deleted: IntCounterVec,
    pub sync_failures: IntCounterVec,

    pub elements: IntCounterVec,
    pub rows: IntGaugeVec,
    pub rows_limit: IntGaugeVec,
    pub batches: IntCounterVec,
    pub operations: IntCounter,
    pub commit_duration: Histogram,
    pub coalesced: IntCounter,
    pub skipped: IntCounterVec,
    pub conflicts: IntGauge,
    pub standing_by: IntGauge,
    pub memory: IntGaugeVec,
    pub refused_services: IntGauge,
    pub drift_repairs: IntCounterVec,
    pub ipvs_operations: IntCounterVec,
    pub ipvs_duration: Histogram,
    pub ipvs_servers: IntGauge,
    pub ipvs_destinations: IntGauge,
    pub ipvs_draining: IntGauge,
    pub ipvs_schedulers_missing: IntCounter,
    pub watch_events: IntCounterVec,
    pub watch_unchanged: IntCounterVec,
    pub watch_last_event: GaugeVec,
    pub watch_relists: IntCounterVec,
    pub watch_errors: IntCounterVec,
    pub watch_bytes: IntCounterVec,
    pub events_dropped: IntCounter,
    pub config_reloads: IntCounterVec,
    pub config_usable: IntGauge,
    pub requests: IntCounterVec,
    pub request_duration: HistogramVec,
}

const F: [&str; 1] = ["ip_family"];

/// client-go's.
const REQUEST_SECONDS: [f64; 12] =
    [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

impl Families {
    pub(super) fn register(gates: &FeatureGates) -> Result<Self, prometheus::Error> {
        let maker = Maker { registry: Registry::new(), levels: RefCell::default() };
        maker.constants(gates)?;
        maker.keep(&ProcessCollector::new()?)?;
        let exp = exponential_buckets(0.001, 2.0, 15)?;
        let commit = exponential_buckets(0.000_05, 2.0, 18)?;
        let families = Families {
            sync_duration: maker.histograms("kubeproxy_sync_proxy_rules_duration_seconds", "[ALPHA] How long syncs took, in seconds, successful or not", &F, &exp)?,
            full_sync_duration: maker.histograms("kubeproxy_sync_full_proxy_rules_duration_seconds", "[ALPHA] How long full syncs took, in seconds", &F, &exp)?,
            partial_sync_duration: maker.histograms("kubeproxy_sync_partial_proxy_rules_duration_seconds", "[ALPHA] How long partial syncs took, in seconds", &F, &exp)?,
            last_timestamp: maker.gauges("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "[ALPHA] When rules were last synced successfully, in seconds since the epoch", &F)?,
            queued_timestamp: maker.gauges("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "[ALPHA] When a sync was last asked for, in seconds since the epoch", &F)?,
            network_programming: maker.histograms("kubeproxy_network_programming_duration_seconds", "[ALPHA] From the change of a Service's endpoints until it was programmed on this node, in seconds", &F, &programming_buckets())?,
            endpoint_changes_pending: maker.int_gauge("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "[ALPHA] EndpointSlice changes that no sync has taken up yet")?,
            endpoint_changes: maker.counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "[ALPHA] EndpointSlice events received")?,
            service_changes_pending: maker.int_gauge("kubeproxy_sync_proxy_rules_service_changes_pending", "[ALPHA] Services with a change that no sync has taken up yet")?,
            service_changes: maker.counter("kubeproxy_sync_proxy_rules_service_changes_total", "[ALPHA] Service events received")?,
            // The name ends in _total and it is a gauge: kube-proxy's contract, kept for dashboards.
            no_local_endpoints: maker.int_gauges("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "[ALPHA] Service ports with a Local policy that have endpoints elsewhere and none on this node", &["ip_family", "traffic_policy"])?,
            healthz: maker.counters("kubeproxy_proxy_healthz_total", "[ALPHA] Answers of /healthz by HTTP status", &["code"])?,
            livez: maker.counters("kubeproxy_proxy_livez_total", "[ALPHA] Answers of /livez by HTTP status", &["code"])?,
            conntrack_duration: maker.histograms("kubeproxy_conntrack_reconciler_sync_duration_seconds", "[ALPHA] How long looking for stale flows took, in seconds", &F, &exp)?,
            conntrack_deleted: maker.counters("kubeproxy_conntrack_reconciler_deleted_entries_total", "[ALPHA] Stale flows deleted from connection tracking", &F)?,
            sync_failures: maker.counters("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "[ALPHA] Syncs whose nftables transaction failed", &F)?,

            elements: maker.counters("kubeferry_elements_total", "Elements written to nftables sets and maps", &["ip_family", "set", "operation"])?,
            rows: maker.int_gauges("kubeferry_set_elements", "Elements that an nftables set or map holds", &["ip_family", "set"])?,
            rows_limit: maker.int_gauges("kubeferry_set_size", "Elements that fit into an nftables set or map", &["ip_family", "set"])?,
            batches: maker.counters("kubeferry_batches_total", "nftables transactions sent to the kernel, by what became of them", &["result"])?,
            operations: maker.counter("kubeferry_operations_total", "nftables operations in committed transactions")?,
            commit_duration: maker.histogram("kubeferry_kernel_commit_duration_seconds", "How long the kernel took for a transaction, in seconds", &commit)?,
            coalesced: maker.counter("kubeferry_events_coalesced_total", "Events that joined others in one sync")?,
            skipped: maker.counters("kubeferry_skipped_objects_total", "Objects, or parts of them, that cannot be used and are left out", &["resource", "reason"])?,
            standing_by: maker.int_gauge("kubeferry_standing_by", "1 while another copy runs in this network namespace and this one waits for its end")?,
            conflicts: maker.int_gauge("kubeferry_address_conflicts", "Claims on an address and port that another Service holds")?,
            memory: maker.int_gauges("kubeferry_memory_estimated_bytes", "Heap memory that a part of the program needs for objects, about; process_resident_memory_bytes is all of it", &["room"])?,
            refused_services: maker.int_gauge("kubeferry_refused_services", "Services whose rules the kernel refuses; they keep those from before")?,
            drift_repairs: maker.counters("kubeferry_drift_repairs_total", "Times that the kernel's tables were not as left and were set right", &F)?,
            ipvs_operations: maker.counters("kubeferry_ipvs_operations_total", "Operations on virtual servers, their destinations and addresses, by what became of them", &["result"])?,
            ipvs_duration: maker.histogram("kubeferry_ipvs_commit_duration_seconds", "How long the kernel took for a batch of operations on virtual servers, in seconds", &commit)?,
            ipvs_servers: maker.int_gauge("kubeferry_ipvs_virtual_servers", "Virtual servers")?,
            ipvs_destinations: maker.int_gauge("kubeferry_ipvs_destinations", "Destinations of virtual servers")?,
            ipvs_draining: maker.int_gauge("kubeferry_ipvs_draining_destinations", "Destinations that get no new connections and go when the old ones have ended")?,
            ipvs_schedulers_missing: maker.counter("kubeferry_ipvs_schedulers_missing_total", "Services whose scheduler the kernel does not have; they have the default one")?,
            watch_events: maker.counters("kubeferry_watch_events_total", "Objects received, by lists and by watches", &["resource"])?,
            watch_unchanged: maker.counters("kubeferry_watch_unchanged_total", "Objects received that differed in nothing that matters here, and went no further", &["resource"])?,
            watch_last_event: maker.gauges("kubeferry_watch_last_event_timestamp_seconds", "When a watch last delivered something, in seconds since the epoch", &["resource"])?,
            watch_relists: maker.counters("kubeferry_watch_relists_total", "Whole lists fetched", &["resource"])?,
            watch_errors: maker.counters("kubeferry_watch_errors_total", "Lists and watches that failed and were tried again", &["resource", "reason"])?,
            watch_bytes: maker.counters("kubeferry_watch_received_bytes_total", "Bytes of lists and watches received, after decompression", &["resource"])?,
            events_dropped: maker.counter("kubeferry_events_dropped_total", "Kubernetes Events that were not posted: too many at once, or refused")?,
            config_reloads: maker.counters("kubeferry_config_reloads_total", "Changes of the configuration file, by whether it was usable", &["result"])?,
            config_usable: maker.int_gauge("kubeferry_config_last_reload_successful", "Whether the configuration file, as it is now, is usable: 0 means that a restart would fail")?,

            requests: maker.counters("rest_client_requests_total", "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host.", &["code", "host", "method"])?,
            request_duration: maker.histograms("rest_client_request_duration_seconds", "[ALPHA] Request latency in seconds. Broken down by verb, and host.", &["host", "verb"], &REQUEST_SECONDS)?,

            registry: maker.registry.clone(),
        };
        maker.figures()?;
        Ok(families)
    }
}

/// 0, then finer below a minute than above, up to five minutes; the leading 0 is real in kube-proxy, too.
fn programming_buckets() -> Vec<f64> {
    let seconds = (1..60).chain((60..=115).step_by(5)).chain((120..=300).step_by(30));
    [0.0, 0.25, 0.5].into_iter().chain(seconds.map(f64::from)).collect()
}

/// Makes metrics and registers them at once, so that none is forgotten.
struct Maker {
    registry: Registry,
    /// How many metrics there are of each stability level, which Kubernetes writes in front of the help text.
    levels: RefCell<BTreeMap<String, u64>>,
}

impl Maker {
    fn keep<C: Collector + Clone + 'static>(&self, metric: &C) -> Result<C, prometheus::Error> {
        self.registry.register(Box::new(metric.clone()))?;
        for desc in metric.desc() {
            let level = desc.help.strip_prefix('[').and_then(|it| it.split_once("] "));
            let level = level.map_or("", |(level, _)| level);
            *self.levels.borrow_mut().entry(level.to_owned()).or_default() += 1;
        }
        Ok(metric.clone())
    }

    /// Kubernetes' figures about the metrics themselves. None is ever hidden or disabled here.
    fn figures(&self) -> Result<(), prometheus::Error> {
        self.counter("hidden_metrics_total", "[BETA] The count of hidden metrics.")?;
        self.counter("disabled_metrics_total", "[BETA] The count of disabled metrics.")?;
        let registered = self.counters(
            "registered_metrics_total",
            "[BETA] The count of registered metrics broken by stability level and deprecation version.",
            &["deprecated_version", "stability_level"],
        )?;
        for (level, count) in self.levels.borrow().iter() {
            registered.with_label_values(&["", level]).inc_by(*count);
        }
        Ok(())
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<HistogramVec, prometheus::Error> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.keep(&HistogramVec::new(options, labels)?)
    }

    fn histogram(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> Result<Histogram, prometheus::Error> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.keep(&Histogram::with_opts(options)?)
    }

    fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<GaugeVec, prometheus::Error> {
        self.keep(&GaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn int_gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        self.keep(&IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn int_gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.keep(&IntGauge::new(name, help)?)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.keep(&IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.keep(&IntCounter::new(name, help)?)
    }

    /// What does not change while the process runs.
    fn constants(&self, gates: &FeatureGates) -> Result<(), prometheus::Error> {
        let info = self.int_gauges(
            "kubernetes_build_info",
            "[ALPHA] Version of this component; the git version names the Kubernetes release whose behaviour it follows",
            &["major", "minor", "git_version", "compiler", "platform"],
        )?;
        let version = format!("v{}+kube-ferry.{}", crate::version::KUBERNETES, crate::version::OWN);
        let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
        let (major, minor) = crate::version::KUBERNETES.split_once('.').unwrap_or_default();
        let minor = minor.split('.').next().unwrap_or_default();
        info.with_label_values(&[major, minor, &version, "rustc", &platform]).set(1);
        let features = self.int_gauges(
            "kubernetes_feature_enabled",
            "[BETA] Whether a feature gate is on",
            &["name", "stage"],
        )?;
        for gate in &GATES {
            let enabled = i64::from(gates.enabled(gate.name));
            features.with_label_values(&[gate.name, gate.stage]).set(enabled);
        }
        Ok(())
    }
}
