//! Which metrics alerts and dashboard speak of.

use std::collections::BTreeSet;

use kube_ferry::config::FeatureGates;
use kube_ferry::serve::Metrics;
use serde_json::Value;

use super::manifests::objects;
use super::read;

const PREFIXES: [&str; 3] = ["kubeproxy_", "kubeferry_", "process_"];

/// Names of metric families in `alerts.yaml`; those of histograms without `_bucket`, `_sum` and `_count`.
pub(crate) fn in_alerts() -> BTreeSet<String> {
    families(alert_expressions().iter().map(|(_, expression)| expression.as_str()))
}

/// How many alerts there are.
pub(crate) fn alert_count() -> usize {
    alert_expressions().len()
}

/// Likewise in `dashboard.json`.
pub(crate) fn in_dashboard() -> BTreeSet<String> {
    families(dashboard_expressions().iter().map(String::as_str))
}

/// Name and expression of every alert.
pub(super) fn alert_expressions() -> Vec<(String, String)> {
    let file = objects(&read("alerts.yaml")).pop().unwrap();
    let groups = file["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    rules.map(|rule| (text(&rule["alert"]), text(&rule["expr"]))).collect()
}

/// Every query of every panel.
pub(super) fn dashboard_expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

fn families<'a>(expressions: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expressions.flat_map(|text| text.split(move |c| !is_name(c)));
    let names = words.filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix)));
    names.map(family).collect()
}

fn family(name: &str) -> String {
    let histogram =
        ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
    histogram.unwrap_or(name).to_owned()
}

#[test]
fn names_are_found_and_histograms_are_one_family() {
    let found = families(
        ["rate(kubeferry_a_seconds_bucket{x=\"kubeferry\"}[5m]) / kubeproxy_b_total"].into_iter(),
    );
    assert_eq!(found, ["kubeferry_a_seconds", "kubeproxy_b_total"].map(str::to_owned).into());
}

#[test]
fn whoever_is_alerted_finds_the_metric_on_the_dashboard() {
    let dashboard = in_dashboard();
    let missing: Vec<String> =
        in_alerts().into_iter().filter(|name| !dashboard.contains(name)).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn every_metric_spoken_of_is_there() {
    let metrics = Metrics::new(&FeatureGates::default()).unwrap();
    crate::serve::exercise(&metrics);
    let page = metrics.text().unwrap();
    let unknown: Vec<String> = in_alerts()
        .into_iter()
        .chain(in_dashboard())
        .filter(|name| !page.contains(&format!("# TYPE {name} ")))
        .collect();
    // kubeferry_conntrack_* are read from /proc/sys/net/netfilter, which the module nf_conntrack brings.
    assert_eq!(unknown, [""; 0]);
}
