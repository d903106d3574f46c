//! Readiness: 503 with what is missing until everything was programmed once, while health is kube-proxy's.

use serde_json::Value;

use super::Host;
use crate::support::apiserver::{Ask, Fault, On};
use crate::watch::rig::furnish;

const HEALTH: u16 = 10256;
const METRICS: u16 = 10249;

#[test]
fn ready_means_that_every_list_is_programmed() {
    let host = Host::new();
    furnish(&host.server, 3);
    host.server.refuse_streaming_lists();
    host.server.fail_next(On("endpointslices", Ask::List), [Fault::Stall]);
    let _proxy = host.begin(&[]);
    let waiting = host.wait_for_page(HEALTH, "/readyz", |page| {
        page.body.contains("\"missing\":[\"the list of endpointslices\"]")
    });
    assert_eq!(waiting.status, 503);
    let body: Value = serde_json::from_str(&waiting.body).unwrap();
    assert_eq!(body["ready"], false);
    // kube-proxy's answers say nothing about the first sync: its loop runs and it knows the Node.
    host.wait_for_page(HEALTH, "/healthz", |page| page.status == 200);
    assert_eq!(host.get(HEALTH, "/livez").unwrap().status, 200);

    host.server.drop_connections();
    let ready = host.wait_for_page(HEALTH, "/readyz", |page| page.status == 200);
    let body: Value = serde_json::from_str(&ready.body).unwrap();
    assert_eq!((&body["ready"], &body["missing"]), (&true.into(), &serde_json::json!([])));
    host.wait_for_line(&["ready: everything that was listed is programmed"]);
    // Every Service has its row the moment it says so.
    let rows = crate::support::witness::rows(&host.namespace, "ip", "kube-ferry", "endpoints");
    assert_eq!(rows.len(), 3);
    // Zero is a figure, too, and dashboards show it.
    let metrics = host.get(METRICS, "/metrics").unwrap().body;
    for labels in [
        "{ip_family=\"IPv4\",traffic_policy=\"internal\"}",
        "{ip_family=\"IPv6\",traffic_policy=\"external\"}",
    ] {
        let line = format!("kubeproxy_sync_proxy_rules_no_local_endpoints_total{labels} 0\n");
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
}

/// NodePorts are served on the Node's own addresses: until they are known nothing is written, and that is told.
#[test]
fn a_node_without_addresses_is_what_is_missing() {
    let host = Host::new();
    furnish(&host.server, 1);
    host.server.delete("nodes", "", "n1");
    let _proxy = host.begin(&[]);
    host.wait_for_page(HEALTH, "/readyz", |page| {
        page.status == 503 && page.body.contains("the addresses of the own Node")
    });
    assert_eq!(host.get(HEALTH, "/healthz").unwrap().status, 503, "the Node was never seen");
    assert_eq!(host.get(HEALTH, "/livez").unwrap().status, 200);
    host.wait_for_line(&["WARN", "there is no Node object of this name"]);
    host.server.put(crate::watch::rig::node("n1"));
    host.wait_for_page(HEALTH, "/readyz", |page| page.status == 200);
}
