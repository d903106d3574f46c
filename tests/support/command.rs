//! Other people's programs, run to the end.

#![expect(clippy::disallowed_methods, reason = "nft, ip and conntrack are independent witnesses")]

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Runs a program with `input` on its standard input and returns what happened.
///
/// The program runs in the network namespace of the calling thread.
pub(crate) fn output(program: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; `make test` installs what is needed"));
    let mut stdin = child.stdin.take().unwrap();
    // A program that failed early has closed its end; its exit status says more than our EPIPE.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// As [`output`], for programs that must succeed; returns their standard output.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let output = output(program, arguments, input);
    assert!(
        output.status.success(),
        "{program} {}: {}\n{}{input}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
