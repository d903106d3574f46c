//! `deploy/docs/metrics.md` is what the program tells of its metrics; `UPDATE_DOCS=1` writes it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use kube_ferry::config::FeatureGates;
use kube_ferry::serve::Metrics;

use super::{deploy, read};

const HEAD: &str = "\
# Metrics

All that `/metrics` on port 10249 shows, as the program itself tells it; a test compares. Those that begin with `kubeproxy_`,
`kubernetes_`, `rest_client_` and `process_` have the names, labels and buckets of kube-proxy and mean the same, but that an
event of a Service is counted once and not once a family. An object that changed in nothing that matters counts among the
changes, as with kube-proxy, and in `kubeferry_watch_unchanged_total` besides. A combination of labels appears when it has
something to tell. No label ever holds the name of an object, so the number of series does not grow with the cluster.

What kube-proxy shows and this page does not: `go_*` (there is no Go here); of `rest_client_*` sizes, the rate limiter, the cache
of transports and exec plugins; `process_network_*` and `process_virtual_memory_max_bytes`; `apiserver_*` and `aggregator_*`, which
are there by accident; metrics of its iptables mode, and `kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total` (what is
stale goes in the same transaction as everything else).

| metric | type | labels | meaning |
| --- | --- | --- | --- |
";

#[test]
fn the_page_is_what_the_program_tells() {
    let metrics = Metrics::new(&FeatureGates::default()).unwrap();
    crate::serve::exercise(&metrics);
    let page = render(&metrics.text().unwrap());
    let path = "docs/metrics.md";
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(deploy().join(path), &page).unwrap();
    }
    assert!(
        read(path) == page,
        "UPDATE_DOCS=1 cargo test --test main deploy::metrics_page, and look at the difference"
    );
}

fn render(text: &str) -> String {
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut types = Vec::new();
    let mut help: BTreeMap<&str, &str> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, meaning)) =
            line.strip_prefix("# HELP ").and_then(|it| it.split_once(' '))
        {
            help.insert(name, meaning);
        } else if let Some(pair) = line.strip_prefix("# TYPE ").and_then(|it| it.split_once(' ')) {
            types.push(pair);
        } else if let Some((name, rest)) = line.split_once('{') {
            // Values hold no comma but in the platform's name, which is no label's.
            let names =
                rest.split('}').next().unwrap().split(',').filter_map(|it| it.split_once('='));
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|it| name.strip_suffix(it));
            let family = family.filter(|it| types.contains(&(*it, "histogram"))).unwrap_or(name);
            labels
                .entry(family)
                .or_default()
                .extend(names.map(|(label, _)| label).filter(|it| *it != "le"));
        }
    }
    types.sort_unstable();
    let mut page = HEAD.to_owned();
    for (name, kind) in types {
        let labels: Vec<&str> = labels.get(name).into_iter().flatten().copied().collect();
        let meaning = help.get(name).unwrap_or(&"");
        let meaning = meaning.split_once("] ").map_or(*meaning, |(_, it)| it);
        let _ = writeln!(page, "| `{name}` | {kind} | {} | {meaning} |", labels.join(", "));
    }
    page
}
