//! What is printed, what is written and what nft reads are the same; and what stays when the process goes.

use std::collections::BTreeSet;

use kube_ferry::nft::schema::TABLE;
use rustix::process::Signal;

use super::every_kind::{Host, every_kind, newer_nft, text};
use crate::support::namespace::{Namespace, create};
use crate::support::proxy::Proxy;
use crate::support::witness::{Monitor, objects};

/// Starts a program without any capability, as a user without privileges has none.
const WITHOUT_CAPABILITIES: [&str; 4] =
    ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"];

#[test]
fn what_is_printed_loads_to_what_is_written() {
    let host = Host::new(&every_kind());
    let printed = host.print("--dry-run");
    assert_eq!(host.print("--dry-run"), printed, "twice the same input, twice the same bytes");
    let unprivileged = host.run_through(&WITHOUT_CAPABILITIES, "--dry-run");
    assert_eq!(text(unprivileged), printed);
    assert_eq!(objects(&host.namespace, TABLE).tables, 0, "a dry run has written");

    // The installed nft cannot load the IPv6 statements of session affinity, so the newer one does it; see
    // tests/codec/listing.rs for what each of them prints.
    let nft = newer_nft();
    let copy = create(&["copy"]).pop().unwrap();
    copy.command(&nft, &["-f", "-"], &printed);
    let expected = listing(&copy, &nft);
    assert!(expected.len() > 1000, "{expected:?}");

    let mut proxy = Proxy::start(&host.namespace, host.arguments(), host.path("log")).unwrap();
    assert_eq!(listing(&host.namespace, &nft), expected);
    listed_by_both(&host.namespace, &nft);
    assert_eq!(host.print("--dry-run=diff").trim(), "");
    assert!(host.print("--dry-run=kernel").contains("accepts all 0 operations"));
    let with_proxy = objects(&host.namespace, TABLE);

    let mut monitor = Monitor::start(&host.namespace);
    for signal in [Signal::TERM, Signal::KILL] {
        let status = proxy.stop(signal);
        assert_eq!(status.success(), signal == Signal::TERM, "{status}");
        assert_eq!(objects(&host.namespace, TABLE), with_proxy, "{signal:?}");
        proxy.run().unwrap();
        assert_eq!(monitor.heard(), Vec::<String>::new(), "written after {signal:?}");
    }
    assert_eq!(listing(&host.namespace, &nft), expected);
    proxy.stop(Signal::TERM);

    // Twice, because what is not there need not be an error.
    for _ in 0..2 {
        host.print("--cleanup");
        assert_eq!(objects(&host.namespace, TABLE).tables, 0);
        assert_eq!(host.namespace.command("nft", &["list", "tables"], "").trim(), "");
    }
}

/// Neither nft crashes on the tables, as text or as JSON, and both see the same objects.
fn listed_by_both(namespace: &Namespace, newer: &str) {
    let mut counts = BTreeSet::new();
    for nft in ["nft", newer] {
        let text = namespace.command(nft, &["list", "ruleset"], "");
        assert!(text.contains("table ip6 kube-ferry") && text.contains("sticky"), "{nft}");
        let json = namespace.command(nft, &["-j", "list", "ruleset"], "");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let objects = json["nftables"].as_array().unwrap();
        counts.insert(
            ["table", "chain", "rule", "set", "map"]
                .map(|kind| objects.iter().filter(|it| it.get(kind).is_some()).count()),
        );
    }
    assert_eq!(counts.len(), 1, "{counts:?}");
    assert!(counts.iter().flatten().all(|it| *it > 0), "{counts:?}");
}

/// The ruleset as lines with their table, set or chain before them; rows in an order of their own.
///
/// Rows of a set are printed in the order of the kernel's hash, several on a line.
fn listing(namespace: &Namespace, nft: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut table, mut place) = (String::new(), String::new());
    let mut rows: Option<BTreeSet<String>> = None;
    for line in namespace.command(nft, &["list", "ruleset"], "").lines().map(str::trim) {
        if line.starts_with("table ") {
            table = line.to_owned();
        } else if ["set ", "map ", "chain "].iter().any(|it| line.starts_with(it)) {
            place = line.to_owned();
        }
        if line.starts_with("elements = {") {
            rows = Some(BTreeSet::new());
        }
        let Some(kept) = &mut rows else {
            lines.push(format!("{table} {place} {line}"));
            continue;
        };
        let part = line.trim_start_matches("elements = {").trim_end_matches('}');
        kept.extend(part.split(',').map(|it| it.trim().to_owned()).filter(|it| !it.is_empty()));
        if line.ends_with('}') {
            lines.extend(
                rows.take().into_iter().flatten().map(|it| format!("{table} {place} {it}")),
            );
        }
    }
    // Chains and sets stand in the order in which they were made.
    lines.sort();
    lines
}
