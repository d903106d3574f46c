//! A process that may open no more files: it goes on with those it has, and catches up when it may again.

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use super::cluster::Cluster;
use super::dump::dump;
use super::node::steady;
use super::traffic::Traffic;
use crate::support::patience::{LONG, poll};
use crate::support::proxy::Proxy;

#[test]
fn nothing_ends_for_want_of_descriptors() {
    let cluster = Cluster::new();
    let mut proxy = cluster.prepare("{}");
    proxy.add_arguments(&["--nodeport-addresses=192.0.2.0/24".to_owned()]);
    proxy.run().unwrap();
    let traffic = Traffic::start(&cluster.world, steady());

    // What is open goes on: the watches, the tables, the notifications of addresses.
    let before = limit(&proxy, 0);
    cluster.create(1);
    cluster.programmed(&proxy, 1);
    cluster.host().ip("address add 192.0.2.77/32 dev lo\n");
    poll(LONG, || has(&cluster, "192.0.2.77").then_some(()).ok_or(proxy.log())).unwrap();
    traffic.go_on(10);

    // What would have to be opened anew does not come back.
    cluster.server.drop_connections();
    cluster.create(2);
    poll(LONG, || {
        let log = proxy.log();
        log.contains("Too many open files").then_some(()).ok_or(log)
    })
    .unwrap();
    traffic.go_on(10);
    assert!(!cluster.has(2));
    assert_eq!(proxy.exit_status(), None);

    limit(&proxy, before);
    cluster.programmed(&proxy, 2);
    assert_eq!(cluster.health("/livez"), Ok(200));
    assert!(proxy.metric("kubeferry_batches_total").is_some());
    traffic.end();
    assert!(proxy.stop(Signal::TERM).success());
}

fn has(cluster: &Cluster, address: &str) -> bool {
    dump(cluster.host()).iter().any(|line| line.contains(address))
}

/// Sets how many files the process may have open; returns how many it might before.
fn limit(proxy: &Proxy<'_>, files: u64) -> u64 {
    let process = Pid::from_raw(proxy.id().try_into().unwrap());
    let maximum = getrlimit(Resource::Nofile).maximum;
    let new = Rlimit { current: Some(files), maximum };
    prlimit(process, Resource::Nofile, new).unwrap().current.unwrap()
}
