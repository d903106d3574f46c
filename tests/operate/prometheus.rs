//! A real Prometheus scrapes the real binary and loads the alert rules that we ship.

#![expect(clippy::disallowed_methods, reason = "Prometheus is an independent witness")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::Host;
use crate::support::patience::poll;
use crate::watch::rig::{furnish, stir};

const PROMETHEUS: u16 = 9090;

#[test]
fn prometheus_scrapes_and_the_alerts_load() {
    let host = Host::new();
    furnish(&host.server, 20);
    let _proxy = host.proxy(&[]);
    let _prometheus = Prometheus::start(&host);
    wait(&host, "/api/v1/targets?state=active", |data| {
        let target = &data["activeTargets"][0];
        target["health"] == "up" && target["lastError"] == ""
    });
    for query in [
        "up{job=\"kube-proxy\"} == 1",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"} > 0",
        "kubeproxy_sync_proxy_rules_duration_seconds_count > 0",
        "kubeproxy_sync_proxy_rules_service_changes_total >= 20",
        "kubeferry_set_elements{set=\"endpoints\"} == 20",
        // What the alert on full sets divides.
        "kubeferry_set_elements / kubeferry_set_size > 0",
        "kubeferry_set_size{set=\"affinity\"} > 0",
        "kubeferry_config_last_reload_successful == 1",
        "kubeferry_watch_last_event_timestamp_seconds > 0",
        "rest_client_requests_total{code=\"200\", method=\"GET\"} > 0",
        "histogram_quantile(0.99, rest_client_request_duration_seconds_bucket) > 0",
        "sum by (instance) (kubeferry_memory_estimated_bytes) < on (instance) process_resident_memory_bytes",
        "count(kubeferry_memory_estimated_bytes > 0) == 4",
        "kubernetes_build_info",
        "kubernetes_feature_enabled{name=\"NFTablesProxyMode\"} == 1",
        "registered_metrics_total > 0",
        "hidden_metrics_total == 0",
    ] {
        wait(&host, &format!("/api/v1/query?query={}", encode(query)), |data| {
            data["result"].as_array().is_some_and(|it| !it.is_empty())
        });
    }
    crate::serve::check_page(&host.get(10249, "/metrics").unwrap().body);
    let rules = wait(&host, "/api/v1/rules?type=alert", |data| {
        let rules = data["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
        !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok")
    });
    let loaded = rules["groups"][0]["rules"].as_array().unwrap().len();
    assert_eq!(loaded, crate::deploy::metric_names::alert_count());
}

/// However many Services come and go: the same series, and none with an object's name.
#[test]
fn the_number_of_series_does_not_grow_with_the_cluster() {
    let host = Host::new();
    furnish(&host.server, 10);
    let proxy = host.proxy(&[]);
    let reaches = |metric: &str, least: f64| {
        let counted = || match proxy.metric(metric) {
            Some(found) if found >= least => Ok(()),
            found => Err(format!("{metric}: {found:?}\n{}", host.logged())),
        };
        poll(super::SOON, counted).unwrap();
    };
    let grow = |services: std::ops::Range<u16>| {
        for n in services {
            host.server.put(crate::watch::rig::service(&format!("s{n}"), n));
            host.server.put(crate::watch::rig::slice(&format!("s{n}"), n));
        }
    };
    let rows = "kubeferry_set_elements{ip_family=\"IPv4\",set=\"endpoints\"}";
    // Once all that can happen to rows has happened, every combination of labels is there.
    stir(&host.server, 0);
    grow(100..200);
    reaches(rows, 110.0);
    for set in ["cluster-ips", "endpoints", "no-endpoints"] {
        host.server.put(crate::watch::rig::slice("new0", 3_000));
        let deleted = format!(
            "kubeferry_elements_total{{ip_family=\"IPv4\",operation=\"delete\",set=\"{set}\"}}"
        );
        reaches(&deleted, 1.0);
    }
    let few = series(&host);
    grow(200..400);
    reaches(rows, 310.0);
    let many = series(&host);
    assert_eq!(many.difference(&few).collect::<Vec<_>>(), Vec::<&String>::new());
    assert!(many.len() < 1_500, "{}", many.len());
    let named: Vec<_> =
        many.iter().filter(|it| it.contains("s101") || it.contains("shop")).collect();
    assert_eq!(named, Vec::<&String>::new());
}

/// Names with labels of all series on the page.
fn series(host: &Host) -> BTreeSet<String> {
    let page = host.get(10249, "/metrics").unwrap().body;
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
}

/// Asks Prometheus' API until the data are as expected, and returns them.
#[track_caller]
fn wait(host: &Host, path: &str, expected: impl Fn(&Value) -> bool) -> Value {
    let asked = || {
        let page = host.get(PROMETHEUS, path)?;
        let answer: Value = serde_json::from_str(&page.body).unwrap_or_default();
        if expected(&answer["data"]) {
            Ok(answer["data"].clone())
        } else {
            Err(format!("{path}: {}", page.body))
        }
    };
    poll(super::SOON, asked).unwrap()
}

fn encode(query: &str) -> String {
    form_urlencoded::byte_serialize(query.as_bytes()).collect()
}

/// A Prometheus in the host's namespace that is killed with this value.
struct Prometheus(Child);

impl Prometheus {
    fn start(host: &Host) -> Prometheus {
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/alerts.yaml");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n\
             - job_name: kube-proxy\n  static_configs: [{{targets: ['127.0.0.1:10249']}}]\n",
            rules.display()
        );
        let path = host.path().join("prometheus.yaml");
        std::fs::write(&path, config).unwrap();
        let log = std::fs::File::create(host.path().join("prometheus.log")).unwrap();
        let child = host.namespace.run(|| {
            Command::new("prometheus")
                .arg(format!("--config.file={}", path.display()))
                .arg(format!("--storage.tsdb.path={}", host.path().join("tsdb").display()))
                .arg(format!("--web.listen-address=127.0.0.1:{PROMETHEUS}"))
                .stdin(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("prometheus is needed: apt-get install prometheus")
        });
        Prometheus(child)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
