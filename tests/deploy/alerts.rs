//! Alert rules and dashboard, by Prometheus' own tool.

use serde_json::json;

use super::metric_names::{alert_expressions, dashboard_expressions};
use super::{deploy, read, tool};

#[test]
fn rules_are_well_formed() {
    promtool(&["check", "rules"], "alerts.yaml");
}

#[test]
fn rules_fire_when_they_should_and_only_then() {
    promtool(&["test", "rules"], "alerts-test.yaml");
}

#[test]
fn every_alert_has_a_unit_test() {
    let tests = read("alerts-test.yaml");
    let untested: Vec<String> = alert_expressions()
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| !tests.contains(name))
        .collect();
    assert_eq!(untested, [""; 0]);
}

#[test]
fn the_dashboard_s_queries_are_promql() {
    let rules: Vec<_> = dashboard_expressions()
        .iter()
        .enumerate()
        .map(|(index, query)| {
            // What Grafana fills in.
            let query = query.replace("$__rate_interval", "5m").replace("$instance", ".*");
            json!({"record": format!("dashboard:query{index}"), "expr": query})
        })
        .collect();
    assert!(rules.len() > 30);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string(),
    )
    .unwrap();
    tool::succeed("promtool", &["check", "rules", file.path().to_str().unwrap()], "");
}

#[track_caller]
fn promtool(command: &[&str], file: &str) {
    let path = deploy().join(file);
    let arguments = [command, &[path.to_str().unwrap()]].concat();
    tool::succeed("promtool", &arguments, "");
}
