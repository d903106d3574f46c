//! Tables that the kernel lets nobody else change (Linux 6.9), and what becomes of them when their owner ends.

use kube_ferry::kernel::{Kernel as _, NetlinkKernel};
use kube_ferry::model::Family;
use kube_ferry::nft::{Batch, Op};
use rustix::process::Signal;

use super::dump::dump;
use super::node::{Node, fickle, steady};
use super::traffic::Traffic;
use crate::support::command;
use crate::support::namespace::create;
use crate::support::patience::{LONG, poll};
use crate::support::proxy::Proxy;

const SHARED: &str = "--own-tables=false";

/// Refused as long as somebody else owns the table.
const CHANGES: [&str; 6] = [
    "delete table ip kube-ferry",
    "delete table ip6 kube-ferry",
    "flush chain ip kube-ferry services",
    "add rule ip kube-ferry filter-input drop",
    "delete element ip kube-ferry endpoints { 10.96.0.10 . tcp . 80 . 0 }",
    "add table ip kube-ferry { flags dormant; }",
];

/// Successful syncs that compared everything, and repairs.
const COMPARISONS: &str = "kubeproxy_sync_full_proxy_rules_duration_seconds_count";
const REPAIRS: &str = "kubeferry_drift_repairs_total";

#[test]
fn nobody_else_can_change_them() {
    let node = Node::new();
    let proxy = node.proxy("proxy", &[]);
    let wanted = dump(node.host());
    let compared = proxy.metric(COMPARISONS);
    let traffic = Traffic::start(&node.world, steady());
    CHANGES.iter().for_each(|change| assert!(!succeeds(&node, change), "{change}"));
    // Whoever loads a firewall begins with this; what belongs to others is left out in silence.
    assert!(succeeds(&node, "flush ruleset; add table ip theirs"));
    assert_eq!(dump(node.host()), wanted);
    // Long enough for some looks at what others have changed.
    traffic.go_on(300);
    assert_eq!(proxy.metric(COMPARISONS), compared, "nothing of ours can have changed");
    assert_eq!(proxy.metric(REPAIRS), None);
    // And the owner is not kept from its work.
    node.write("fickle", &[fickle(1, &[10])]);
    wait_for(&node, &proxy, "10.96.4.1");
    traffic.end();
}

#[test]
fn a_new_process_takes_over_what_a_terminated_one_left() {
    orphan(Signal::TERM);
}

#[test]
fn a_new_process_takes_over_what_a_killed_one_left() {
    orphan(Signal::KILL);
}

#[track_caller]
fn orphan(signal: Signal) {
    let node = Node::new();
    let mut proxy = node.proxy("proxy", &[]);
    let wanted = dump(node.host());
    let traffic = Traffic::start(&node.world, steady());
    proxy.stop(signal);
    traffic.go_on(20);
    assert_eq!(dump(node.host()), wanted, "it outlives its owner");
    proxy.run().unwrap();
    assert_eq!(proxy.metric("kubeferry_elements_total"), None, "nothing was to be written");
    assert_eq!(proxy.metric("kubeferry_batches_total"), None);
    assert_eq!(dump(node.host()), wanted);
    CHANGES.iter().for_each(|change| assert!(!succeeds(&node, change), "{change}"));
    traffic.end();
    // While nobody owns them, everybody may change them, as an operator may have to.
    proxy.stop(signal);
    assert!(succeeds(
        &node,
        "delete element ip kube-ferry endpoints { 10.96.0.10 . tcp . 80 . 0 }"
    ));
    proxy.run().unwrap();
    assert_eq!(dump(node.host()), wanted);
}

#[test]
fn tables_that_nobody_owns_are_exchanged_in_one_transaction() {
    let node = Node::new();
    let mut proxy = node.proxy("shared", &[SHARED]);
    let wanted = dump(node.host());
    let traffic = Traffic::start(&node.world, steady());
    proxy.stop(Signal::TERM);
    let mut proxy = node.proxy("owning", &[]);
    traffic.go_on(20);
    assert_eq!(proxy.metric("kubeferry_batches_total"), Some(1.0), "{}", proxy.log());
    assert_eq!(dump(node.host()), wanted);
    assert!(!succeeds(&node, CHANGES[0]));
    // And back: the flag of a table that survives its owner stays, which keeps nobody from changing it.
    proxy.stop(Signal::TERM);
    let proxy = node.proxy("shared-again", &[SHARED]);
    assert_eq!(proxy.metric("kubeferry_batches_total"), None, "{}", proxy.log());
    traffic.end();
    assert!(succeeds(&node, CHANGES[0]));
    let repaired = || (dump(node.host()) == wanted).then_some(()).ok_or(proxy.log());
    poll(LONG, repaired).unwrap();
}

/// What an older or newer version might have: a set of the same name with other keys, a chain without its rules, sets,
/// chains and objects of its own that take part in forwarding.
const OTHER_VERSION: &str = "
flush chain FAMILY kube-ferry local-cluster-ips-check
delete set FAMILY kube-ferry nodeport-ips
add set FAMILY kube-ferry nodeport-ips { type inet_service; flags interval; elements = { 5-9 }; }
add counter FAMILY kube-ferry theirs
add map FAMILY kube-ferry their-services { type inet_service : verdict; }
add chain FAMILY kube-ferry their-service
add rule FAMILY kube-ferry their-service counter name theirs
add chain FAMILY kube-ferry their-hook { type nat hook prerouting priority -105; policy accept; }
add rule FAMILY kube-ferry their-hook tcp dport vmap @their-services
add element FAMILY kube-ferry their-services { 80 : jump their-service }
";

#[test]
fn a_table_of_another_version_is_exchanged_in_one_transaction() {
    let node = Node::new();
    let mut proxy = node.proxy("proxy", &[]);
    let wanted = dump(node.host());
    let traffic = Traffic::start(&node.world, steady());
    proxy.stop(Signal::TERM);
    for family in ["ip", "ip6"] {
        assert!(succeeds(&node, &OTHER_VERSION.replace("FAMILY", family)));
    }
    assert_ne!(dump(node.host()), wanted);
    traffic.go_on(20);
    proxy.run().unwrap();
    traffic.go_on(20);
    assert_eq!(proxy.metric("kubeferry_batches_total"), Some(1.0), "{}", proxy.log());
    assert_eq!(dump(node.host()), wanted);
    traffic.end();
}

/// Somebody who is no proxy, since a second proxy waits for its turn.
#[test]
fn a_table_that_another_program_owns_is_told_and_tried_again() {
    let node = Node::new();
    let mut other = node.host().run(|| NetlinkKernel::new().unwrap());
    assert!(other.own_tables().unwrap(), "these tests need Linux 6.9");
    other.commit(&Batch(vec![Op::AddTable(Family::V6)])).unwrap();
    let proxy = node.begin("proxy", &[]);
    let told = || {
        let log = proxy.log();
        let words = "the table ip6 kube-ferry belongs to another program, whose netlink port is";
        (log.matches(words).count() > 1).then_some(()).ok_or(log)
    };
    poll(LONG, told).unwrap();
    drop(other);
    wait_for(&node, &proxy, "10.96.0.10");
}

#[test]
fn the_probe_leaves_nothing_behind() {
    let host = create(&["host"]).pop().unwrap();
    host.run(|| {
        let mut kernel = NetlinkKernel::new().unwrap();
        let before = kernel.generation().unwrap();
        assert!(kernel.own_tables().unwrap(), "these tests need Linux 6.9");
        assert_eq!(kernel.generation().unwrap(), before);
    });
    assert_eq!(host.command("nft", &["list", "ruleset"], ""), "");
}

fn succeeds(node: &Node, change: &str) -> bool {
    let output = node.host().run(|| command::output("nft", &["-f", "-"], change));
    let told = String::from_utf8_lossy(&output.stderr);
    let refused = told.contains("Operation not permitted");
    assert!(output.status.success() || refused, "{change}: {told}");
    output.status.success()
}

fn wait_for(node: &Node, proxy: &Proxy<'_>, address: &str) {
    let there = || {
        let there = dump(node.host()).iter().any(|line| line.contains(address));
        there.then_some(()).ok_or(proxy.log())
    };
    poll(LONG, there).unwrap();
}
