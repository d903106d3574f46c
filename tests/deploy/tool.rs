//! Programs that tests run.

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// What a program printed.
pub(super) struct Printed {
    pub(super) success: bool,
    /// Standard output and standard error.
    pub(super) out: String,
    pub(super) err: String,
}

/// Runs a program to its end with this standard input; a program that is not there fails the test.
#[track_caller]
#[expect(
    clippy::disallowed_methods,
    reason = "these tests are about what other programs make of our files"
)]
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> Printed {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; `make deploy-tools` installs it"));
    let mut stdin = child.stdin.take().unwrap();
    // A program that does not read its input closes it: no concern of ours.
    let _closed = stdin.write_all(input.as_bytes());
    drop(stdin);
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Printed { success: status.success(), out: text(stdout), err: text(stderr) }
}

/// Runs a program that must succeed and returns its standard output.
#[track_caller]
pub(super) fn succeed(program: &str, arguments: &[&str], input: &str) -> String {
    let Printed { success, out, err } = run(program, arguments, input);
    assert!(success, "{program} {}:\n{out}{err}", arguments.join(" "));
    out
}
