//! Two copies in one network namespace: the second waits, and goes on where the first has left off.

#![expect(clippy::disallowed_methods, reason = "the squatter is somebody else's program")]

use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::dump::dump;
use super::node::{Node, fickle, steady};
use super::traffic::Traffic;
use crate::support::command;
use crate::support::patience::{LONG, poll};
use crate::support::proxy::Proxy;

const OTHER_PORTS: [&str; 2] =
    ["--metrics-bind-address=127.0.0.1:20249", "--healthz-bind-address=127.0.0.1:20256"];

#[test]
fn the_second_takes_over_when_the_first_is_asked_to_end() {
    check(Signal::TERM);
}

#[test]
fn the_second_takes_over_when_the_first_is_killed() {
    check(Signal::KILL);
}

#[track_caller]
fn check(signal: Signal) {
    let node = Node::new();
    let mut first = node.proxy("first", &[]);
    let traffic = Traffic::start(&node.world, steady());
    let second = node.begin("second", &OTHER_PORTS);
    stands_by(&node, &second);

    // The first goes on alone; the second knows of it, and writes nothing.
    node.write("fickle", &[fickle(1, &[10])]);
    wait_for_row(&node, "10.96.4.1", true);
    assert_eq!(node.metric(20249, "kubeferry_batches_total"), None);
    traffic.go_on(5);

    first.stop(signal);
    let at_work = || match node.metric(20249, "kubeferry_standing_by") {
        Some(0.0) => Ok(()),
        other => Err(format!("{other:?}; {}", second.log())),
    };
    poll(LONG, at_work).unwrap();
    let synced = || second.log().contains("everything already").then_some(()).ok_or(second.log());
    poll(LONG, synced).unwrap();
    assert_eq!(node.metric(20249, "kubeferry_elements_total"), None, "it had nothing to write");

    node.write("fickle", &[fickle(2, &[10])]);
    wait_for_row(&node, "10.96.4.2", true);
    wait_for_row(&node, "10.96.4.1", false);
    traffic.end();
}

/// As a DaemonSet with `maxSurge` has it: both want the same ports, and kubelet's probes reach whoever has them.
#[test]
fn the_second_gets_the_ports_of_the_first() {
    for hard in [false, true] {
        let hard = format!("--bind-address-hard-fail={hard}");
        let node = Node::new();
        let mut first = node.proxy("first", &[]);
        let second = node.begin("second", &[&hard]);
        let standing_by = || second.log().contains("standing by").then_some(()).ok_or(second.log());
        poll(LONG, standing_by).unwrap();
        assert_eq!(node.page(10256, "/livez").unwrap().status, 200);
        first.stop(Signal::TERM);
        let serves = || second.log().contains("serving health").then_some(()).ok_or(second.log());
        poll(LONG, serves).unwrap();
        // It takes them when they are free, and not with the next of some attempts: there are seconds between those.
        assert!(!second.log().contains("trying again"), "{}", second.log());
        assert_eq!(node.page(10256, "/livez").unwrap().status, 200);
    }
}

#[test]
fn cleanup_says_that_a_proxy_still_runs() {
    let node = Node::new();
    let mut proxy = node.proxy("proxy", &[]);
    let before = dump(node.host());
    let refused = cleanup(&node);
    assert_eq!(refused.status.code(), Some(1));
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(told.contains("kube-ferry still runs in this network namespace (process "), "{told}");
    assert_eq!(dump(node.host()), before);
    proxy.stop(Signal::KILL);
    let done = cleanup(&node);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(dump(node.host()).is_empty());
}

/// Anybody on a host may bind an abstract address; nobody but root, or our own user, keeps the proxy from working by
/// that.
#[test]
fn a_stranger_who_holds_the_address_is_told_and_ignored() {
    let node = Node::new();
    let host = node.host();
    let line = "--reuid=65534 --regid=65534 --clear-groups socat ABSTRACT-LISTEN:kube-ferry,fork -";
    let mut squatter = Command::new("setpriv");
    squatter.args(line.split(' ')).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut squatter = host.run(|| squatter.spawn()).unwrap();
    let listening = || {
        let sockets = host.command("ss", &["-xl"], "");
        sockets.contains("@kube-ferry").then_some(()).ok_or(sockets)
    };
    poll(LONG, listening).unwrap();
    let log = node.proxy("proxy", &[]).log();
    squatter.kill().unwrap();
    squatter.wait().unwrap();
    assert!(log.contains("user 65534 holds the abstract Unix address"), "{log}");
}

fn cleanup(node: &Node) -> std::process::Output {
    let binary = env!("CARGO_BIN_EXE_kube-ferry");
    let arguments = node.arguments(&["--cleanup=true"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    node.host().run(|| command::output(binary, &arguments, ""))
}

fn stands_by(node: &Node, second: &Proxy<'_>) {
    let alive = || node.page(20256, "/livez").map_err(|why| format!("{why}; {}", second.log()));
    assert_eq!(poll(LONG, alive).unwrap().status, 200, "its kubelet lets it live");
    assert_eq!(node.page(20256, "/healthz").unwrap().status, 503, "and it is not ready");
    let ready = node.page(20256, "/readyz").unwrap();
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("the end of the other kube-ferry"), "{}", ready.body);
    assert_eq!(node.metric(20249, "kubeferry_standing_by"), Some(1.0));
    let log = second.log();
    let told = "another kube-ferry runs in this network namespace (process ";
    assert_eq!(log.matches(told).count(), 2, "as a log line and as an Event: {log}");
}

fn wait_for_row(node: &Node, address: &str, wanted: bool) {
    let look = || {
        let there = dump(node.host()).iter().any(|line| line.contains(address));
        (there == wanted).then_some(()).ok_or(format!("{address}: {there}"))
    };
    poll(LONG, look).unwrap();
}
