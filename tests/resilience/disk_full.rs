//! A disk without room: what is logged is lost, and nothing else.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use super::node::{Node, service, steady};
use super::traffic::Traffic;
use crate::support::command;
use crate::support::patience::{LONG, poll};
use crate::support::proxy::Proxy;
use crate::support::witness::rows;

const PROXY: &str = env!("CARGO_BIN_EXE_kube-ferry");

#[test]
fn logs_that_cannot_be_written_stop_nothing() {
    let node = Node::new();
    let disk = Disk::mount(node.path("small"));
    let log = disk.0.join("log");
    let arguments = node.arguments(&["-v=4"]);
    let proxy = Proxy::start(node.host(), arguments, log.clone()).unwrap();
    let traffic = Traffic::start(&node.world, steady());
    disk.fill();
    for pods in [&[10, 11][..], &[12], &[10, 11, 12, 13]] {
        change(&node, pods);
        traffic.go_on(10);
    }
    let logged = std::fs::metadata(&log).unwrap().len();
    // The servers answer too.
    assert!(proxy.metric("kubeferry_batches_total").is_some());
    disk.free();
    change(&node, &[10]);
    poll(LONG, || {
        let grown = std::fs::metadata(&log).unwrap().len() > logged;
        grown.then_some(()).ok_or_else(|| "no line is written now that there is room".to_owned())
    })
    .unwrap();
    assert!(traffic.end() > 30);
}

#[test]
fn what_was_asked_for_and_cannot_be_written_is_an_error() {
    check("--version=raw >/dev/full", "cannot write to standard output");
    check("--write-config-to=/dev/full", "cannot write the configuration to /dev/full");
    let node = Node::new();
    let manifests = node.manifests();
    check(
        &format!("--manifests={} --hostname-override=n --dry-run >/dev/full", manifests.display()),
        "cannot write to standard output",
    );
    // There is nowhere to say what is wrong.
    check("--no-such-flag 2>/dev/full", "");
    check("--manifests=/does/not/exist --proxy-mode=nftables 2>/dev/full", "");
}

/// The old one may be what the next start needs.
#[test]
fn a_configuration_that_does_not_fit_leaves_the_old_one() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::mount(directory.path().join("small"));
    let path = disk.0.join("config.conf");
    std::fs::write(&path, "kind: KubeProxyConfiguration\n").unwrap();
    std::fs::write(disk.0.join("log"), "").unwrap();
    disk.fill();
    let arguments = format!("--write-config-to={}", path.display());
    check(&arguments, &format!("cannot write the configuration to {}", path.display()));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "kind: KubeProxyConfiguration\n");
    let mut left: Vec<_> =
        std::fs::read_dir(&disk.0).unwrap().map(|it| it.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["ballast", "config.conf", "log"]);
    disk.free();
    command::run(PROXY, &[&arguments], "");
    assert!(std::fs::read_to_string(&path).unwrap().contains("\nmode: "));
}

/// Exit code 1 and these words, not a panic.
#[track_caller]
fn check(arguments: &str, words: &str) {
    let output = command::output("sh", &["-c", &format!("exec {PROXY} {arguments}")], "");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments}: {told}");
    assert!(told.contains(words) && !told.contains("panicked"), "{arguments}: {told}");
}

/// Gives a Service these endpoints and waits until the kernel has them.
#[track_caller]
fn change(node: &Node, pods: &[u16]) {
    node.write("other", &[service("other", "10.96.0.20", "fd00:10:96::20", pods)]);
    poll(LONG, || {
        let all = rows(node.host(), "ip", "kube-ferry", "endpoints");
        let own = all.iter().filter(|it| it.contains("10.96.0.20")).count();
        if own == pods.len() { Ok(()) } else { Err(format!("{own} rows: {all:?}")) }
    })
    .unwrap();
}

/// A file system of 128 KiB; gone with this value.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: PathBuf) -> Disk {
        std::fs::create_dir(&path).unwrap();
        command::run(
            "mount",
            &["-t", "tmpfs", "-o", "size=128k", "tmpfs", path.to_str().unwrap()],
            "",
        );
        Disk(path)
    }

    fn fill(&self) {
        let mut ballast = File::create(self.0.join("ballast")).unwrap();
        while ballast.write_all(&[0; 512]).is_ok() {}
        // The end of the log's last page is still to be had.
        let mut log = File::options().append(true).open(self.0.join("log")).unwrap();
        while log.write_all(b"\n").is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The proxy may still have its log there.
        command::output("umount", &["--lazy", self.0.to_str().unwrap()], "");
    }
}
