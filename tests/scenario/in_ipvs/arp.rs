//! Who is told, by ARP, that this node has cluster IPs.

use super::scene::{Scene, scene};
use crate::support::patience::{LONG, poll};
use crate::support::world::Actor;

const WEB: &str = "\
apply Service default/web
  spec:
    clusterIPs: [10.96.0.10, \"fd00:10:96::10\"]
    ports: [{name: http, port: 80}]
endpoints default/web http=8080/tcp
  pod-1b
flow client -> 10.96.0.10:80/tcp = pod-1b
";

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_neighbour_is_told_as_by_kube_proxy() {
    scene("", |scene| {
        scene.play(WEB);
        assert!(answered(scene, "10.96.0.10"));
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn with_strict_arp_nobody_is_told_and_all_is_served() {
    scene("--ipvs-strict-arp", |scene| {
        scene.play(WEB);
        let node = scene.world.node();
        for (name, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
            let path = format!("/proc/sys/net/ipv4/conf/all/{name}");
            assert_eq!(node.command("cat", &[&path], "").trim(), value, "{name}");
        }
        assert!(!answered(scene, "10.96.0.10"));
        // The node's own address on that link.
        assert!(answered(scene, "10.244.1.1"));
        scene.play("flow client -> 10.96.0.10:80/tcp = pod-1b\n");
    });
}

/// Has the kernel of `client` ask on the link to node-1 who has the address.
fn answered(scene: &Scene<'_, '_>, address: &str) -> bool {
    let client = scene.world.home(Actor::find("client").unwrap());
    let show = || client.command("ip", &["neigh", "show", address, "dev", "eth0"], "");
    // Whatever was known is forgotten, and asked for anew.
    client.ip(&format!("neigh replace {address} dev eth0 nud none\n"));
    client.ip(&format!("neigh replace {address} dev eth0 nud probe use\n"));
    poll(LONG, || match show().split_whitespace().last() {
        Some("REACHABLE" | "STALE") => Ok(true),
        Some("FAILED") => Ok(false),
        other => Err(format!("{other:?}")),
    })
    .unwrap()
}
