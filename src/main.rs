//! The program: everything is in the library.

use std::process::ExitCode;

/// The objects of a cluster are many small pieces, made by one thread and kept by another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    kube_ferry::run::command_line(std::env::args_os())
}
