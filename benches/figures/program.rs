//! Programs that the benchmarks start, and the network namespace that they run in.

use std::env;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

/// Set in the process that has a network namespace of its own.
const INSIDE: &str = "KUBE_FERRY_BENCH_INSIDE";

/// Goes on in a new network namespace with loopback up, which is gone when all its processes are.
pub(crate) fn enter_namespace() {
    if env::var_os(INSIDE).is_some() {
        return;
    }
    let own = env::current_exe().unwrap();
    let script = "ip link set lo up && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-n", "sh", "-c", script]).arg(own).args(env::args_os().skip(1)).env(INSIDE, "1");
    panic!(
        "unshare: {}; `make bench` installs what is needed, and wants to be root",
        command.exec()
    );
}

/// Runs `nft -f -` on this text.
pub(crate) fn nft(text: &str) {
    let mut command = Command::new("nft");
    let mut child = command.args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft refuses the text");
}

/// What a program prints.
pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
