//! The program in what the DaemonSet's container gives it: one capability, nothing to write to.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use super::deploy;

#[test]
fn cap_net_admin_is_enough() {
    let log = run("-all,+net_admin");
    assert!(log.iter().any(|line| line.contains("synced")), "{log:#?}");
    // The settings are wanted by default and cannot be written: a warning each, and no reason to die.
    assert!(log.iter().any(|line| line.contains("WARN") && line.contains("/proc/sys")), "{log:#?}");
}

#[test]
fn without_cap_net_admin_the_end_says_so() {
    let log = run("-all");
    assert!(!log.iter().any(|line| line.contains("synced")), "{log:#?}");
    assert!(log.iter().any(|line| line.contains("CAP_NET_ADMIN")), "{log:#?}");
}

/// The log until the first sync or the end, in a network of its own, with this bounding set of capabilities.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "the program itself is what is tested")]
fn run(capabilities: &str) -> Vec<String> {
    let script = "set -e; ip link set lo up; mount --make-rprivate /
        mount -o bind,ro /proc/sys /proc/sys; mount -o remount,bind,ro /
        exec setpriv --no-new-privs --bounding-set=\"$1\" -- \"$2\" --manifests \"$3\" --hostname-override=n1";
    let examples = deploy().join("examples");
    let mut child = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", script, "sh", capabilities])
        .args([env!("CARGO_BIN_EXE_kube-ferry"), examples.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        log.push(line.unwrap());
        if log.last().is_some_and(|line| line.contains("synced")) {
            break;
        }
    }
    end(child);
    log
}

fn end(mut child: Child) {
    // It may have ended by itself.
    let _gone = child.kill();
    child.wait().unwrap();
}
