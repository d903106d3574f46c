//! A node with a proxy that takes its objects from a directory.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::namespace::Namespace;
use crate::support::proxy::{Page, Proxy, get};
use crate::support::world::{World, twin};

/// The Service that nobody touches: traffic to it must never notice anything.
pub(super) const STEADY: [u8; 4] = [10, 96, 0, 10];

/// Where it is reached.
pub(super) fn steady() -> SocketAddr {
    SocketAddr::from((STEADY, 80))
}

/// A world, a directory of manifests, and a place for logs.
pub(super) struct Node {
    directory: tempfile::TempDir,
    pub(super) world: World,
}

impl Node {
    /// With the steady Service, and nothing running yet.
    pub(super) fn new() -> Node {
        let node = Node { directory: tempfile::tempdir().unwrap(), world: World::new() };
        std::fs::create_dir(node.manifests()).unwrap();
        let twin = twin(STEADY.into()).to_string();
        node.write("steady", &[service("steady", "10.96.0.10", &twin, &[10, 11])]);
        node
    }

    pub(super) fn host(&self) -> &Namespace {
        self.world.node()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn manifests(&self) -> PathBuf {
        self.path("manifests")
    }

    /// Makes these the objects of one file; it is exchanged in one step, as a sensible operator would.
    pub(super) fn write(&self, file: &str, objects: &[Vec<Value>]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects.concat()});
        let new = self.path("new");
        std::fs::write(&new, list.to_string()).unwrap();
        std::fs::rename(new, self.manifests().join(format!("{file}.json"))).unwrap();
    }

    /// Another node with the same objects, on which nothing has happened.
    pub(super) fn copy(&self) -> Node {
        let copy = Node::new();
        for file in std::fs::read_dir(self.manifests()).unwrap().map(|it| it.unwrap().path()) {
            std::fs::copy(&file, copy.manifests().join(file.file_name().unwrap())).unwrap();
        }
        copy
    }

    pub(super) fn arguments(&self, more: &[&str]) -> Vec<String> {
        let manifests = self.manifests().display().to_string();
        let fixed = [
            "--manifests",
            &manifests,
            "--hostname-override=node-1",
            "--proxy-mode=nftables",
            "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48",
            "--oom-score-adj=0",
            "--conntrack-max-per-core=0",
        ];
        fixed.iter().chain(more).map(|it| (*it).to_owned()).collect()
    }

    /// A proxy that has synchronised.
    pub(super) fn proxy(&self, name: &str, more: &[&str]) -> Proxy<'_> {
        Proxy::start(self.host(), self.arguments(more), self.path(name)).unwrap()
    }

    /// A proxy that has just been started.
    pub(super) fn begin(&self, name: &str, more: &[&str]) -> Proxy<'_> {
        Proxy::begin(self.host(), self.arguments(more), self.path(name)).unwrap()
    }

    /// A page of a proxy's servers on the node's loopback.
    pub(super) fn page(&self, port: u16, path: &str) -> Result<Page, String> {
        self.host().run(|| get(SocketAddr::from(([127, 0, 0, 1], port)), path))
    }

    /// The sum of a metric's values on a proxy's page; `None` if there are none.
    pub(super) fn metric(&self, port: u16, name: &str) -> Option<f64> {
        let page = self.page(port, "/metrics").ok()?.body;
        let values = page.lines().filter(|line| line.starts_with(name));
        values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).reduce(|a, b| a + b)
    }
}

/// A Service of both families on port 80 with one slice a family. `pods` are last numbers of addresses: 10 to 13 are
/// pods of node-1 that answer, others need not exist.
pub(super) fn service(name: &str, v4: &str, v6: &str, pods: &[u16]) -> Vec<Value> {
    let families = json!(["IPv4", "IPv6"]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": name},
        "spec": {"clusterIP": v4, "clusterIPs": [v4, v6], "ipFamilies": families, "ports": [{"port": 80}]},
    });
    let slice = |family: &str, prefix: &str| {
        let endpoint = |pod: &u16| json!({"addresses": [format!("{prefix}{pod}")]});
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {
                "namespace": "ns", "name": format!("{name}-{}", family.to_lowercase()),
                "labels": {"kubernetes.io/service-name": name},
            },
            "ports": [{"name": "", "port": 8080}],
            "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
        })
    };
    vec![service, slice("IPv4", "10.244.1."), slice("IPv6", "fd00:10:244:1::")]
}

/// A Service that is there to be changed. `number` up to 60,000; endpoints up to 255, few of which answer.
pub(super) fn fickle(number: u16, pods: &[u16]) -> Vec<Value> {
    let [high, low] = (number + 1_024).to_be_bytes();
    let mut v6 = String::from("fd00:10:96::f:");
    let _ = write!(v6, "{number:x}");
    service(&format!("fickle-{number}"), &format!("10.96.{high}.{low}"), &v6, pods)
}
