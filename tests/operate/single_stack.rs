//! A host on which IPv6 is switched off, in a cluster that has both families.

use serde_json::json;

use super::Host;
use crate::watch::rig::{furnish, service, slice};

const HEALTH: u16 = 10256;
const METRICS: u16 = 10249;
const NODE_PORT_HEALTH: u16 = 32_100;

#[test]
fn what_the_host_lacks_is_neither_programmed_nor_spoken_of() {
    let host = Host::new();
    host.namespace.run(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    });
    furnish(&host.server, 1);
    let mut both = service("both", 9);
    let spec = &mut both["spec"];
    spec["clusterIPs"] = json!(["10.96.0.9", "fd00:96::9"]);
    spec["ipFamilies"] = json!(["IPv4", "IPv6"]);
    spec["type"] = "LoadBalancer".into();
    spec["externalTrafficPolicy"] = "Local".into();
    spec["healthCheckNodePort"] = NODE_PORT_HEALTH.into();
    host.server.put(both);
    let mut local = slice("both", 9);
    local["endpoints"][0]["nodeName"] = "n1".into();
    host.server.put(local);
    let _proxy = host.begin(&["--nodeport-addresses=0.0.0.0/0"]);
    host.wait_for_page(HEALTH, "/readyz", |page| page.status == 200);

    host.wait_for_line(&["INFO", "this host has no IPv6"]);
    assert_eq!(
        host.namespace.command("nft", &["list", "tables"], "").trim(),
        "table ip kube-ferry"
    );
    let health = host.wait_for_page(HEALTH, "/healthz", |page| page.status == 200).body;
    assert!(health.contains("IPv4") && !health.contains("IPv6"), "{health}");
    host.wait_for_page(NODE_PORT_HEALTH, "/", |page| page.status == 200);
    let listeners = host.namespace.command("ss", &["-Hltn"], "");
    let port = format!(":{NODE_PORT_HEALTH} ");
    let listening: Vec<&str> = listeners.lines().filter(|it| it.contains(&port)).collect();
    assert_eq!(listening.len(), 1, "{listeners}");
    let metrics = host.get(METRICS, "/metrics").unwrap().body;
    let others: Vec<&str> = metrics.lines().filter(|it| it.contains("\"IPv6\"")).collect();
    assert_eq!(others, [""; 0]);
}
