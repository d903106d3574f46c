//! A set of manifests with every kind of Service, and the binary at work on it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::command;
use crate::support::namespace::{Namespace, create};

/// A host of its own with a node's addresses, manifests, and the command line of the proxy on them.
pub(super) struct Host {
    pub(super) namespace: Namespace,
    directory: TempDir,
}

impl Host {
    pub(super) fn new(objects: &[Value]) -> Host {
        let namespace = create(&["host"]).pop().unwrap();
        namespace
            .ip("link set lo up\naddr add 192.0.2.1/32 dev lo\naddr add 2001:db8::1/128 dev lo\n");
        let host = Host { namespace, directory: tempfile::tempdir().unwrap() };
        std::fs::create_dir(host.path("manifests")).unwrap();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        std::fs::write(host.path("manifests/all.json"), list.to_string()).unwrap();
        host
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn arguments(&self) -> Vec<String> {
        let manifests = format!("--manifests={}", self.path("manifests").display());
        let fixed = [
            "--proxy-mode=nftables",
            "--hostname-override=node-1",
            "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48",
            // nft shows who owns a table, and what is printed has no owner.
            "--own-tables=false",
            &manifests,
        ];
        fixed.map(str::to_owned).to_vec()
    }

    /// Runs the binary to its end inside the host, with one more flag.
    pub(super) fn run(&self, flag: &str) -> Output {
        self.run_through(&[], flag)
    }

    /// As [`Host::run`], started by another program.
    pub(super) fn run_through(&self, starter: &[&str], flag: &str) -> Output {
        let mut line: Vec<String> = starter.iter().map(|it| (*it).to_owned()).collect();
        line.push(env!("CARGO_BIN_EXE_kube-ferry").to_owned());
        line.extend(self.arguments());
        line.push(flag.to_owned());
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        self.namespace.run(|| command::output(line[0], &line[1..], ""))
    }

    /// As [`Host::run`], for what must succeed; returns the standard output.
    #[track_caller]
    pub(super) fn print(&self, flag: &str) -> String {
        text(self.run(flag))
    }
}

/// The standard output of a program that must have succeeded.
#[track_caller]
pub(super) fn text(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The path of a newer nft than the machine's own. Without one these tests prove nothing, so they fail.
pub(super) fn newer_nft() -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/nft-newer");
    command::run(&script.display().to_string(), &[], "").trim().to_owned()
}

/// Services of every kind, both families.
pub(super) fn every_kind() -> Vec<Value> {
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "2001:db8::1"},
        ]},
    })];
    let both = ["node-1", "node-2", "node-2", "node-1", "node-2"];
    let away = ["node-2", "node-2"];
    add(&mut objects, 1, "TCP", &both, json!({}));
    add(&mut objects, 2, "UDP", &both, json!({}));
    add(&mut objects, 3, "SCTP", &both, json!({}));
    add(&mut objects, 4, "TCP", &[], json!({}));
    let affinity = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    add(&mut objects, 5, "TCP", &both, affinity);
    add(&mut objects, 6, "TCP", &both, json!({"internalTrafficPolicy": "Local"}));
    add(&mut objects, 7, "TCP", &away, json!({"internalTrafficPolicy": "Local"}));
    let external = json!(["198.51.100.8", "2001:db8:100::8"]);
    add(&mut objects, 8, "TCP", &both, json!({"externalIPs": external}));
    add(&mut objects, 9, "TCP", &both, json!({"type": "NodePort"}));
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000});
    add(&mut objects, 10, "TCP", &both, local);
    let local = json!({"type": "NodePort", "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"});
    add(&mut objects, 11, "UDP", &both, local);
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32001});
    add(&mut objects, 12, "TCP", &away, local);
    let ranges = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["203.0.113.0/24", "2001:db8:113::/48"]});
    add(&mut objects, 13, "TCP", &both, ranges);
    objects.push(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "elsewhere"},
        "spec": {"type": "ExternalName", "externalName": "example.com"},
    }));
    objects.push(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "headless"},
        "spec": {"type": "ClusterIP", "clusterIP": "None", "ports": [{"port": 80}]},
    }));
    objects
}

/// An address and the IPv6 address that goes with it.
fn both(v4: [u8; 4]) -> [IpAddr; 2] {
    let [a, b, c, d] = v4.map(u16::from);
    [IpAddr::from(v4), IpAddr::from([0xfd00, a, b, c, 0, 0, 0, d])]
}

/// Adds a dual-stack Service on port 80 and its endpoints, each on the node that is named.
fn add(objects: &mut Vec<Value>, n: u8, protocol: &str, nodes: &[&str], more: Value) {
    let cluster_ips = both([10, 96, 0, n]);
    let mut spec = json!({
        "type": "ClusterIP", "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips,
        "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{"name": "web", "port": 80, "protocol": protocol}],
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let mut status = json!({});
    if spec["type"] != "ClusterIP" {
        spec["ports"][0]["nodePort"] = (30_000 + u16::from(n)).into();
    }
    if spec["type"] == "LoadBalancer" {
        let [v4, v6] = both([198, 51, 100, 100 + n]);
        status = json!({"loadBalancer": {"ingress": [{"ip": v4}, {"ip": v6}]}});
    }
    let name = format!("s{n}");
    objects.push(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
        "spec": spec, "status": status,
    }));
    for (at, kind) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let endpoint = |(host, node): (usize, &&str)| {
            let host = u8::try_from(host).unwrap() + 1;
            json!({
                "addresses": [both([10, 244, n, host])[at]], "nodeName": node,
                "conditions": {"ready": true},
            })
        };
        let endpoints: Vec<Value> = nodes.iter().enumerate().map(endpoint).collect();
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": "shop", "name": format!("{name}-{}", kind.to_lowercase()),
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": kind, "ports": [{"name": "web", "port": 8080, "protocol": protocol}],
            "endpoints": endpoints,
        }));
    }
}
