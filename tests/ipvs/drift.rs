//! Somebody alters virtual servers of a running proxy: the next comparison sets them right.

use std::fs::write;

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
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn whatever_others_do_to_virtual_servers_is_undone() {
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
        "--proxy-mode=ipvs",
        "--ipvs-sync-period=1s",
        "--cluster-cidr=10.1.0.0/16",
    ];
    let arguments = arguments.map(str::to_owned).to_vec();
    let proxy = Proxy::start(&host, arguments, directory.path().join("log")).unwrap();
    let wanted = state(&host);
    assert!(wanted.contains("-a -t 10.96.0.10:80 -r 10.1.0.2:8080 -m -w 1"), "{wanted}");
    for (program, arguments) in [
        ("ipvsadm", "-D -t 10.96.0.10:80"),
        ("ipvsadm", "-d -t 10.96.0.10:80 -r 10.1.0.1:8080"),
        ("ipvsadm", "-a -t 10.96.0.10:80 -r 10.1.0.9:8080 -m -w 1"),
        ("ipvsadm", "-e -t 10.96.0.10:80 -r 10.1.0.1:8080 -m -w 7"),
        ("ipvsadm", "-E -t 10.96.0.10:80 -s lc"),
        ("ipvsadm", "-A -t 10.96.0.10:99 -s rr"),
        ("ip", "address del 10.96.0.10/32 dev kube-ipvs0"),
    ] {
        let words: Vec<&str> = arguments.split(' ').collect();
        let before = repairs(&proxy);
        host.command(program, &words, "");
        // To run programs all the time would slow the proxy down: the machine has one processor.
        let noticed = || (repairs(&proxy) > before).then_some(()).ok_or("unnoticed".to_owned());
        poll(LONG, noticed).unwrap_or_else(|why| panic!("{arguments}: {why}\n{}", proxy.log()));
        let repaired = poll(LONG, || (state(&host) == wanted).then_some(()).ok_or(state(&host)));
        repaired.unwrap_or_else(|why| panic!("{arguments}: {why}\n{}", proxy.log()));
    }
}

fn repairs(proxy: &Proxy<'_>) -> f64 {
    proxy.metric("kubeferry_drift_repairs_total").unwrap_or_default()
}

/// Virtual servers and the addresses they are on.
fn state(host: &Namespace) -> String {
    host.command("ipvsadm", &["-S", "-n"], "")
        + &host.command("ip", &["-br", "address", "show", "kube-ipvs0"], "")
}
