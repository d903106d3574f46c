//! Others change our tables: it is noticed and set right, without a start and without a change of any object.
//!
//! Here the tables are everybody's; those that the kernel keeps others from changing are in `resilience`.

use std::fmt::Write as _;
use std::fs::write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::command;
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

/// Endpoints of the larger cluster: so many that a comparison of everything, which is not optimised here, takes half a
/// second and rests for ten.
const ENDPOINTS: usize = 12_000;

/// What a survey shows is repaired without waiting for the next comparison, while somebody else keeps changing a table of
/// its own. Without surveys the damage would stay for six seconds on average. A single time may be long because the
/// machine is busy, and a single damage may be found by a comparison that was due just then; most are not.
#[test]
fn damage_is_repaired_soon_while_others_keep_changing_their_own_tables() {
    let damages = [
        "delete table ip kube-ferry",
        "flush chain ip kube-ferry services",
        "flush ruleset",
        "delete element ip kube-ferry frontends { 10.96.0.10 . tcp . 80 }",
        "add chain ip kube-ferry theirs",
        "flush map ip kube-ferry frontends",
        "insert rule ip kube-ferry filter-input drop",
    ];
    let host = create(&["host"]).pop().unwrap();
    host.ip("link set lo up\n");
    let directory = tempfile::tempdir().unwrap();
    let proxy = start(&host, directory.path(), &large());
    let end = AtomicBool::new(false);
    let mut took = Vec::new();
    std::thread::scope(|scope| {
        let _end = SetOnDrop(&end);
        scope.spawn(|| disturb(&host, &end));
        for damage in damages {
            let repairs = repairs(&proxy);
            let began = now();
            host.run(|| command::output("nft", &["-f", "-"], damage));
            let repaired = poll(LONG, || {
                let enough = self::repairs(&proxy) > repairs;
                enough.then_some(()).ok_or(format!("{repairs} repairs, as before"))
            });
            repaired.unwrap_or_else(|why| panic!("{damage}: {why}\n{}", proxy.log()));
            took.push(began.elapsed());
        }
    });
    eprintln!("{took:?}");
    took.sort_unstable();
    let log = proxy.log();
    assert!(took[took.len() / 2] < Duration::from_secs(5), "{took:?}\n{log}");
    let found = log.matches("somebody else has changed our tables: comparing everything").count();
    assert!(found > damages.len() / 2, "{took:?}\n{log}");
}

fn repairs(proxy: &Proxy<'_>) -> f64 {
    proxy.metric("kubeferry_drift_repairs_total").unwrap_or_default()
}

/// A Service as above and one with many endpoints.
fn large() -> String {
    let mut objects = format!("{SERVICE}---");
    objects.push_str(&SERVICE.replace("web", "large").replace("10.96.0.10", "10.96.0.20"));
    for slice in 0..ENDPOINTS / 1_000 {
        write!(
            objects,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: many-{slice}, namespace: default, labels: {{kubernetes.io/service-name: large}}}}\n\
             addressType: IPv4\nports: [{{name: \"\", port: 8080}}]\nendpoints:\n"
        )
        .unwrap();
        for number in 0..1_000 {
            let (high, low) = (number / 250, number % 250 + 1);
            writeln!(objects, "- {{addresses: [10.1.{}.{low}]}}", slice * 4 + high).unwrap();
        }
    }
    objects
}

/// Changes a table of its own every 20 ms or so.
fn disturb(host: &Namespace, end: &AtomicBool) {
    host.run(|| {
        for transaction in ["add table ip theirs", "delete table ip theirs"].iter().cycle() {
            if end.load(Ordering::SeqCst) {
                return;
            }
            // The second one fails after somebody has flushed everything.
            command::output("nft", &["-f", "-"], transaction);
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

/// Ends the neighbour when the test fails, too.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[expect(clippy::disallowed_methods, reason = "the real clock is what is measured")]
fn now() -> Instant {
    Instant::now()
}

/// Does each to a running proxy's tables and waits until they are as before.
#[track_caller]
fn check(destructions: &[&str]) {
    let host = create(&["host"]).pop().unwrap();
    host.ip("link set lo up\n");
    let directory = tempfile::tempdir().unwrap();
    let proxy = start(&host, directory.path(), SERVICE);
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

fn start<'w>(host: &'w Namespace, directory: &Path, objects: &str) -> Proxy<'w> {
    let manifests = directory.join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    write(manifests.join("objects.yaml"), objects).unwrap();
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
    Proxy::start(host, arguments, directory.join("log")).unwrap()
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
