//! Bad objects among good ones: each is told once and counted, and disturbs no other.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::namespace::{Namespace, create};
use crate::support::proxy::Proxy;
use crate::support::witness::rows;
use crate::watch::rig::{service, slice};

/// A name, and what is wrong with the object.
type Spoilt = (&'static str, fn(&mut Value));

#[test]
fn a_bad_object_is_left_out_with_one_line_and_the_rest_works() {
    let host = Host::new();
    let mut objects = vec![service("good", 1), slice("good", 1)];
    // What is wrong with an object as a whole.
    let bad: [Spoilt; 3] = [
        ("address", |it| {
            it["spec"]["clusterIP"] = "10.96.0.300".into();
            it["spec"]["clusterIPs"] = json!(["10.96.0.300"]);
        }),
        ("port", |it| it["spec"]["ports"][0]["port"] = 70_000.into()),
        ("nameless", |it| it["metadata"]["name"] = format!("{}x", "n".repeat(253)).into()),
    ];
    for (name, spoil) in bad {
        let mut spoilt = service(name, 2);
        spoil(&mut spoilt);
        objects.push(spoilt);
        objects.push(slice(name, 2));
    }
    // A bad endpoint among good ones.
    let mut mixed = slice("mixed", 3);
    let good = mixed["endpoints"][0].clone();
    mixed["endpoints"] = json!([{"addresses": ["10.0.0.300"]}, good]);
    objects.extend([service("mixed", 3), mixed]);
    // Nothing wrong with these.
    let mut unknown = service("unknown", 4);
    unknown["spec"]["someNewField"] = json!({"a": [1, 2, 3]});
    unknown["futureField"] = json!([{"b": null}]);
    objects.extend([unknown, slice("unknown", 4)]);
    let mut annotated = service("annotated", 5);
    annotated["metadata"]["annotations"] = json!({"big": "x".repeat(10_000_000)});
    objects.extend([annotated, slice("annotated", 5)]);
    let long = "n".repeat(253);
    let mut longest = slice("long", 6);
    longest["metadata"]["labels"]["kubernetes.io/service-name"] = long.clone().into();
    objects.extend([service(&long, 6), longest]);
    host.write(&objects);

    let proxy = host.proxy();
    assert_eq!(host.served(), ["10.96.0.1", "10.96.0.3", "10.96.0.4", "10.96.0.5", "10.96.0.6"]);
    let log = proxy.log();
    for name in ["shop/address", "shop/port", "nnnnnnnn", "shop/mixed-x"] {
        let lines: Vec<&str> =
            log.lines().filter(|it| it.contains("WARN") && it.contains(name)).collect();
        assert_eq!(lines.len(), 1, "{name}: {log}");
    }
    for name in ["shop/good", "shop/unknown", "shop/annotated"] {
        let told = log.lines().any(|it| it.contains(name) && it.contains("WARN"));
        assert!(!told, "{name}: {log}");
    }
    assert_eq!(proxy.metric("kubeferry_skipped_objects_total"), Some(4.0), "{log}");
}

#[test]
fn a_service_with_5000_endpoints_is_served_by_all_of_them() {
    let host = Host::new();
    let mut objects = vec![service("good", 1), slice("good", 1), service("crowd", 2)];
    for n in 0..50_u8 {
        let mut part = slice("crowd", 2);
        part["metadata"]["name"] = format!("crowd-{n}").into();
        let endpoint = |host: u8| json!({"addresses": [format!("10.7.{n}.{host}")], "conditions": {"ready": true}});
        part["endpoints"] = (0..100).map(endpoint).collect();
        objects.push(part);
    }
    host.write(&objects);
    let _proxy = host.proxy();
    assert_eq!(host.served(), ["10.96.0.1", "10.96.0.2"]);
    assert_eq!(rows(&host.namespace, "ip", "kube-ferry", "endpoints").len(), 5_001);
}

struct Host {
    namespace: Namespace,
    directory: tempfile::TempDir,
}

impl Host {
    fn new() -> Host {
        let namespace = create(&["host"]).pop().unwrap();
        namespace.ip("link set lo up\naddr add 192.0.2.1/32 dev lo\n");
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("manifests")).unwrap();
        Host { namespace, directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn write(&self, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        std::fs::write(self.path().join("manifests/all.json"), list.to_string()).unwrap();
    }

    fn proxy(&self) -> Proxy<'_> {
        let manifests = format!("--manifests={}", self.path().join("manifests").display());
        let flags = ["--proxy-mode=nftables", "--hostname-override=n1", &manifests];
        let flags = flags.map(str::to_owned).to_vec();
        Proxy::start(&self.namespace, flags, self.path().join("log")).unwrap()
    }

    /// Addresses that lead to endpoints.
    fn served(&self) -> Vec<String> {
        let rows = rows(&self.namespace, "ip", "kube-ferry", "endpoints");
        let address = |row: &String| {
            let row: Value = serde_json::from_str(row).unwrap();
            row[0]["concat"][0].as_str().unwrap().to_owned()
        };
        let mut served: Vec<String> = rows.iter().map(address).collect();
        served.sort();
        served.dedup();
        served
    }
}
