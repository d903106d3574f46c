//! Others change our tables: it is noticed and set right, without a start and without a change of any object.
//!
//! Here the tables are everybody's; those that the kernel keeps others from changing are in `resilience`.

use std::fs::write;

use rustix::process::Signal;

use crate::support::namespace::{Namespace, create};
use crate::support::patience::{LONG, poll};
use crate::support::proxy::Proxy;

const SERVICE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ipFamilies: [IPv4], ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: "", port: 8080}]
endpoints: [{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}]
"#;

#[test]
fn whatever_is_destroyed_comes_back() {
    check(&[
        "delete table ip kube-ferry",
        "flush ruleset",
        "flush map ip kube-ferry endpoints",
        "delete element ip kube-ferry endpoints { 10.96.0.10 . tcp . 80 . 0 }",
        "add element ip kube-ferry cluster-ips { 10.96.0.99 }",
        "flush chain ip kube-ferry services",
        "flush table ip kube-ferry",
        "add rule ip kube-ferry filter-input drop",
        "add chain ip kube-ferry theirs",
        "add table ip kube-ferry { flags dormant; }",
    ]);
}

/// Does each to a running proxy's tables and waits until they are as before.
#[track_caller]
fn check(destructions: &[&str]) {
    let host = create(&["host"]).pop().unwrap();
    host.ip("link set lo up\n");
    let directory = tempfile::tempdir().unwrap();
    let manifests = directory.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    write(manifests.join("web.yaml"), SERVICE).unwrap();
    let arguments = [
        "--manifests",
        &manifests.display().to_string(),
        "--hostname-override=node-1",
        "--proxy-mode=nftables",
        "--cluster-cidr=10.1.0.0/16",
        // Otherwise the kernel refuses all of this, if it is new enough.
        "--own-tables=false",
    ];
    let arguments = arguments.map(str::to_owned).to_vec();
    let proxy = Proxy::start(&host, arguments, directory.path().join("log")).unwrap();
    let wanted = tables(&host);
    assert!(wanted.contains("10.1.0.2 . 8080"), "{wanted}");
    for destruction in destructions {
        // It would be at work before anybody has looked.
        proxy.signal(Signal::STOP);
        host.command("nft", &["-f", "-"], destruction);
        assert_ne!(tables(&host), wanted, "{destruction} destroys nothing, so nothing is shown");
        proxy.signal(Signal::CONT);
        let repaired =
            poll(LONG, || (tables(&host) == wanted).then_some(()).ok_or("still".to_owned()));
        repaired.unwrap_or_else(|why| panic!("{destruction}: {why}\n{}", proxy.log()));
    }
    // Others' own tables are nobody's business.
    let repairs = proxy.metric("kubeferry_drift_repairs_total");
    host.command("nft", &["-f", "-"], "add table ip theirs\ndelete table ip theirs");
    assert_eq!(proxy.metric("kubeferry_drift_repairs_total"), repairs);
}

/// Both tables as nft prints them. The order of rows is that of their hashes, which differs from set to set.
fn tables(host: &Namespace) -> String {
    let listed = host.command("nft", &["list", "ruleset"], "");
    let mut lines: Vec<String> =
        listed.lines().map(|line| line.replace(['{', '}', ',', '='], " ")).collect();
    lines.iter_mut().for_each(|line| *line = line.replace("elements", " ").trim().to_owned());
    lines.sort_unstable();
    lines.join("\n")
}
