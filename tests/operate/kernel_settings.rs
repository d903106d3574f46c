//! `--init-only`: kernel settings and nothing else.

use std::process::Output;

use crate::support::command;
use crate::support::namespace::{Namespace, create};

const TIMEOUT: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";

#[test]
fn init_only_sets_the_kernel_and_needs_no_api_server() {
    let host = create(&["host"]).pop().unwrap();
    let done =
        init(&host, &["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-close-wait=123s"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert_eq!(host.run(|| std::fs::read_to_string(TIMEOUT).unwrap()).trim(), "123");
    assert_eq!(host.command("nft", &["list", "tables"], ""), "");
}

/// A namespace other than the first may not set the number of entries.
#[test]
fn a_setting_that_is_refused_is_an_error_for_init_only() {
    let host = create(&["host"]).pop().unwrap();
    let refused = init(&host, &["--conntrack-max-per-core=1", "--conntrack-min=100001"]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("nf_conntrack_max") && told.contains("could not be made"), "{told}");
}

fn init(host: &Namespace, flags: &[&str]) -> Output {
    let mut line = vec!["--init-only", "--proxy-mode=nftables"];
    line.extend(flags);
    host.run(|| command::output(env!("CARGO_BIN_EXE_kube-ferry"), &line, ""))
}
