//! The program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    kube_ferry::run::command_line(std::env::args_os())
}
