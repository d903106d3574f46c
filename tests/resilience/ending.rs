//! The process is asked to end while it has a lot to do, and whoever reads its log has gone or does not read.

#![expect(clippy::disallowed_methods, reason = "the proxy's standard error is no file here")]

use std::io::{PipeWriter, Read as _, Write as _, pipe};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::killed::after_transactions;
use super::node::{Node, fickle, steady};
use super::traffic::Traffic;
use crate::support::patience::{LONG, poll};
use crate::support::witness::rows;

/// Services whose rows are written by dozens of transactions.
const BULK: u16 = 6_000;

#[test]
fn the_first_sync_is_left_off_when_the_process_is_asked_to_end() {
    let node = Node::new();
    node.proxy("first", &[]).stop(Signal::TERM);
    let traffic = Traffic::start(&node.world, steady());
    node.write("bulk", &(1..=BULK).map(|it| fickle(it, &[10])).collect::<Vec<_>>());
    let mut proxy = node.begin("asked", &[]);
    after_transactions(&node, 2);
    let status = proxy.stop(Signal::TERM);
    let log = proxy.log();
    assert!(status.success() && log.contains("ended by SIGTERM"), "{status}: {log}");
    assert!(!log.contains("ready: everything"), "it has taken its time: {log}");
    traffic.go_on(5);
    // The next one goes on where this one has left off.
    let _next = node.proxy("next", &[]);
    assert_eq!(frontends(&node), usize::from(BULK) + 1);
    traffic.end();
}

#[test]
fn a_log_that_nobody_reads_any_more_stops_nothing() {
    let (reader, writer) = pipe().unwrap();
    check(writer, || drop(reader));
}

/// A container runtime that hangs: the pipe is there, and full.
#[test]
fn a_log_that_is_not_read_for_now_stops_nothing() {
    let (mut reader, mut writer) = pipe().unwrap();
    // A pipe takes 64 KiB.
    writer.write_all(&[b'\n'; 60 << 10]).unwrap();
    check(writer, || ());
    // What had room is there.
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    assert!(log.contains("starting"), "{log}");
}

/// Everything goes on with this for a log, also after `then`.
#[track_caller]
fn check(log: PipeWriter, then: impl FnOnce()) {
    let node = Node::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-ferry"));
    command.args(node.arguments(&["-v=6"])).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut proxy = Killed(node.host().run(|| command.spawn()).unwrap());
    drop(command);
    let programmed = |count: u16| {
        node.write("fickle", &(1..=count).map(|it| fickle(it, &[10])).collect::<Vec<_>>());
        let there = || {
            let found = frontends(&node);
            (found == usize::from(count) + 1).then_some(()).ok_or(format!("{found} frontends"))
        };
        poll(LONG, there).unwrap();
    };
    programmed(1);
    let traffic = Traffic::start(&node.world, steady());
    then();
    for count in 2..40 {
        programmed(count);
    }
    assert_eq!(node.page(10_256, "/livez").unwrap().status, 200);
    assert!(proxy.0.try_wait().unwrap().is_none());
    traffic.end();
    kill_process(Pid::from_child(&proxy.0), Signal::TERM).unwrap();
    assert!(proxy.0.wait().unwrap().success());
}

fn frontends(node: &Node) -> usize {
    rows(node.host(), "ip", "kube-ferry", "frontends").len()
}

/// A process that is gone with this value.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
