//! The manual page and the completions, as `make docs` writes them.

use std::path::Path;

use kube_ferry::config::args;

use crate::support::command;

#[path = "../../deploy/generate-docs.rs"]
#[expect(dead_code, reason = "its main is for `make docs`")]
mod generate_docs;

#[test]
fn every_flag_is_in_the_manual_and_in_every_completion() {
    let directory = tempfile::tempdir().unwrap();
    let written = generate_docs::generate(directory.path()).unwrap();
    let names: Vec<_> = written.iter().map(|it| it.file_name().unwrap()).collect();
    assert_eq!(names, ["kube-ferry.8", "kube-ferry.bash", "_kube-ferry", "kube-ferry.fish"]);
    let command = args::command();
    let flags: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
    assert!(flags.len() >= 60, "{flags:?}");
    for path in &written {
        let text = std::fs::read_to_string(path).unwrap().replace("\\-", "-");
        for flag in &flags {
            // fish names flags without their hyphens.
            assert!(
                text.contains(&format!("--{flag}")) || text.contains(&format!("-l {flag}")),
                "{flag}: {path:?}"
            );
        }
    }
    check_syntax(directory.path());
}

/// A completion that does not parse breaks the shell of whoever sources it.
fn check_syntax(directory: &Path) {
    let script = directory.join("kube-ferry.bash");
    command::run("bash", &["-n", script.to_str().unwrap()], "");
}
