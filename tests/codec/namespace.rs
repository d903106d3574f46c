//! A network namespace for one test, and programs run in it.

#![expect(clippy::disallowed_methods, reason = "nft, ip and conntrack are independent witnesses")]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `body` in a new network namespace, on a thread of its own.
pub(crate) fn isolated<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let namespace = Namespace(format!("kf-codec-{}-{count}", std::process::id()));
    run("ip", &["netns", "add", &namespace.0], "");
    let file = File::open(format!("/run/netns/{}", namespace.0)).unwrap();
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("entering a network namespace needs root");
            body()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        // A panic here would hide the one that brings us here.
        let _ = output("ip", &["netns", "del", &self.0], "");
    }
}

/// Runs a program that must succeed, in the namespace of the calling thread; returns its standard output.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let output = output(program, arguments, input);
    assert!(
        output.status.success(),
        "{program} {}: {}\n{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8(output.stdout).unwrap()
}

fn output(program: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    // Who fails early does not read; its exit status says more than our EPIPE.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}
