//! What cannot work ends at once, with exit code 1 and a message that says what to do.

use std::process::Output;

use serde_json::json;

use crate::support::command;
use crate::support::namespace::create;

#[test]
fn an_unreadable_kubeconfig() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let broken = directory.path().join("broken");
    std::fs::write(&broken, "clusters: [").unwrap();
    for path in [missing, broken] {
        let flag = format!("--kubeconfig={}", path.display());
        check(&[], &[&flag], &[&path.display().to_string(), "kubeconfig"]);
    }
}

/// It would be tried for ever, and each time in vain.
#[test]
fn a_server_that_is_no_address() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    let flag = format!("--kubeconfig={}", path.display());
    for server in ["ftp://192.0.2.1", "192.0.2.1/api", "2001:db8::1"] {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: '{server}'}}}}]\n\
             users: [{{name: u, user: {{}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
        );
        std::fs::write(&path, text).unwrap();
        check(&[], &[&flag], &[&path.display().to_string(), server, "https://192.0.2.1:6443"]);
    }
    check(&[], &["--master=ftp://192.0.2.1"], &["--master", "neither https nor http"]);
}

#[test]
fn no_api_server_and_no_manifests() {
    check(&[], &[], &["--kubeconfig"]);
}

#[test]
fn manifests_that_are_not_there() {
    check(&[], &["--manifests=/does/not/exist"], &["--manifests /does/not/exist", "directory"]);
}

/// Without CAP_NET_ADMIN, as a user or a container that was not given it.
#[test]
fn no_permission() {
    let starter = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"];
    let directory = tempfile::tempdir().unwrap();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": "a"},
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]},
    });
    std::fs::write(directory.path().join("a.json"), service.to_string()).unwrap();
    let manifests = format!("--manifests={}", directory.path().display());
    check(&starter, &[&manifests], &["CAP_NET_ADMIN"]);
    check(&starter, &["--cleanup"], &["CAP_NET_ADMIN"]);
    check(&starter, &["--dry-run=kernel", &manifests], &["CAP_NET_ADMIN"]);
}

/// To ignore what cannot be done would promise what is not done.
#[test]
fn flags_that_cannot_be_followed() {
    check(&[], &["--feature-gates=NativeHistograms=true", "--manifests=/"], &["not implemented"]);
    check(&[], &["--no-such-flag"], &["--no-such-flag"]);
}

/// With or without IPVS in this kernel: what is lacking is told, and there is no falling back to another mode.
#[test]
fn ipvs_without_the_scheduler() {
    let flags = ["--proxy-mode=ipvs", "--ipvs-scheduler=no-such", "--manifests=/"];
    check(&[], &flags, &["cannot program IPVS: this kernel has no", "modprobe ip_vs"]);
}

/// Runs the binary in a namespace of its own and expects it to end with 1 and all these words on standard error.
#[track_caller]
fn check(starter: &[&str], flags: &[&str], words: &[&str]) {
    let host = create(&["host"]).pop().unwrap();
    host.ip("link set lo up\n");
    let mut line: Vec<&str> = starter.to_vec();
    line.push(env!("CARGO_BIN_EXE_kube-ferry"));
    let fixed = ["--hostname-override=n1", "--oom-score-adj=0", "--conntrack-max-per-core=0"];
    line.extend(fixed);
    if !flags.iter().any(|it| it.starts_with("--proxy-mode")) {
        line.push("--proxy-mode=nftables");
    }
    line.extend(flags);
    // What should have ended and goes on is ended by `timeout`, with another code.
    line.splice(0..0, ["timeout", "60"]);
    let Output { status, stderr, .. } = host.run(|| command::output(line[0], &line[1..], ""));
    let told = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(1), "{flags:?}: {told}");
    for word in words {
        assert!(told.contains(word), "{flags:?}: no {word:?} in {told}");
    }
}
