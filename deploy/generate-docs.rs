//! Writes the manual page and shell completions, from the same description that parses the command line.
//!
//! `make docs`, or `cargo run --example docs -- DIRECTORY`. An example and not a subcommand, so that the generators are no
//! part of what runs on nodes.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap_complete::Shell;
use kube_ferry::config::args;

fn main() -> io::Result<()> {
    let directory = std::env::args_os().nth(1).unwrap_or_else(|| OsString::from("target/docs"));
    generate(Path::new(&directory)).map(drop)
}

/// Writes the files into the directory, which is made if need be, and returns their paths.
pub(crate) fn generate(directory: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(directory)?;
    // Section 8: run by the system's administrator.
    let manual = clap_mangen::Man::new(args::command()).section("8");
    let path = directory.join("kube-ferry.8");
    let mut page = Vec::new();
    manual.render(&mut page)?;
    std::fs::write(&path, page)?;
    let mut written = vec![path];
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut command = args::command();
        written.push(clap_complete::generate_to(shell, &mut command, "kube-ferry", directory)?);
    }
    Ok(written)
}
