//! A network namespace that stands for a node, and `kube-ferry --cleanup` inside.

use std::process::Output;

use crate::support::command;
use crate::support::namespace::{Namespace, create};

pub(super) struct Node(pub(super) Namespace);

impl Node {
    pub(super) fn new() -> Node {
        let namespace = create(&["node"]).pop().unwrap();
        namespace.ip("link set lo up\n");
        Node(namespace)
    }

    #[track_caller]
    pub(super) fn run(&self, program: &str, arguments: &[&str], input: &str) -> String {
        self.0.command(program, arguments, input)
    }

    pub(super) fn cleanup(&self, flags: &[&str]) -> Cleaned {
        cleanup(&self.0, flags)
    }

    /// Removes what kube-proxy left, and says so.
    #[track_caller]
    pub(super) fn removes(&self) -> Cleaned {
        let cleaned = self.cleanup(&["--cleanup-of=kube-proxy"]);
        assert!(cleaned.success, "{}", cleaned.log);
        assert!(cleaned.log.contains("removed"), "{}", cleaned.log);
        cleaned
    }

    #[track_caller]
    pub(super) fn has_nothing_to_remove(&self) {
        let cleaned = self.cleanup(&["--cleanup-of=kube-proxy"]);
        assert!(cleaned.success, "{}", cleaned.log);
        assert!(cleaned.log.contains("there was nothing to remove"), "{}", cleaned.log);
    }

    /// Every table of nf_tables, with handles.
    #[track_caller]
    pub(super) fn ruleset(&self) -> String {
        self.run("nft", &["-a", "list", "ruleset"], "")
    }
}

/// Runs `kube-ferry --cleanup` with these flags.
pub(super) fn cleanup(namespace: &Namespace, flags: &[&str]) -> Cleaned {
    let arguments = [&["--cleanup"], flags].concat();
    let program = env!("CARGO_BIN_EXE_kube-ferry");
    Cleaned::from(&namespace.run(|| command::output(program, &arguments, "")))
}

/// How a clean-up ended.
#[derive(Debug)]
pub(super) struct Cleaned {
    pub(super) success: bool,
    pub(super) log: String,
}

impl From<&Output> for Cleaned {
    fn from(output: &Output) -> Cleaned {
        let log = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        Cleaned { success: output.status.success(), log }
    }
}
