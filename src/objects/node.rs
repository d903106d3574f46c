//! `v1` Node: the own one, reference sections 10.1 and 11.

use ipnet::IpNet;

use super::report::{Report, excerpt, is_label_value};
use super::{Context, Converted, Interner, address, raw};
use crate::model::{Change, Node, Resource};

/// A node that the cluster autoscaler is about to remove carries this taint.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Judges a Node. `None`: it is not the own one, which only happens with manifests; the watch selects by name.
pub fn node(context: &Context, raw: &raw::Node, interner: &mut Interner) -> Option<Converted> {
    if raw.metadata.name.text() != &*context.node_name {
        return None;
    }
    Some(match Report::new(Resource::Node, &raw.metadata, interner) {
        Ok(report) => convert(raw, interner, report),
        Err(skipped) => Converted::unusable(skipped),
    })
}

fn convert(raw: &raw::Node, interner: &mut Interner, mut report: Report) -> Converted {
    let node = Node {
        name: report.name.name.clone(),
        addresses: addresses(raw, &mut report),
        pod_cidrs: pod_cidrs(raw, &mut report),
        zone: zone(raw, interner, &mut report),
        going_away: going_away(raw, &mut report),
    };
    Converted { change: Change::NodeApplied(node), skipped: report.finish(), ignored: None }
}

fn addresses(raw: &raw::Node, report: &mut Report) -> Vec<std::net::IpAddr> {
    let status = report.field("status", &raw.status);
    let listed = status.map_or_else(Vec::new, |it| report.list("status.addresses", &it.addresses));
    let mut found = Vec::new();
    for kind in ["InternalIP", "ExternalIP"] {
        for (_, entry) in listed.iter().filter(|(_, it)| it.address_type.text() == kind) {
            let text = entry.address.text();
            match address::parse_ip(text) {
                Some(ip) => found.push(ip),
                None => report.skip("invalid-address", || {
                    format!(
                        "status.addresses: {kind} {:?} is no IP address; it is ignored",
                        excerpt(text)
                    )
                }),
            }
        }
    }
    found
}

fn pod_cidrs(raw: &raw::Node, report: &mut Report) -> Vec<IpNet> {
    let Some(spec) = report.field("spec", &raw.spec) else { return Vec::new() };
    let mut texts: Vec<&str> = report
        .list("spec.podCIDRs", &spec.pod_cidrs)
        .into_iter()
        .map(|(_, it)| it.as_str())
        .collect();
    if texts.is_empty() {
        texts.extend(
            report
                .field("spec.podCIDR", &spec.pod_cidr)
                .map(String::as_str)
                .filter(|it| !it.is_empty()),
        );
    }
    cidrs("spec.podCIDRs", &texts, report)
}

/// The ranges among `texts`, in their order.
pub(super) fn cidrs(path: &str, texts: &[&str], report: &mut Report) -> Vec<IpNet> {
    let mut found = Vec::with_capacity(texts.len());
    for text in texts {
        match address::parse_cidr(text) {
            Some(net) => found.push(net),
            None => report.skip("invalid-cidr", || {
                format!("{path}: {:?} is no CIDR; it is ignored", excerpt(text))
            }),
        }
    }
    found
}

fn zone(
    raw: &raw::Node,
    interner: &mut Interner,
    report: &mut Report,
) -> Option<std::sync::Arc<str>> {
    let zone = report.field("metadata.labels", &raw.metadata.labels)?.zone.text();
    if zone.is_empty() {
        return None;
    }
    if !is_label_value(zone) {
        report.skip("invalid-zone", || {
            format!("zone {:?} is no label value; it is ignored", excerpt(zone))
        });
        return None;
    }
    Some(interner.text(zone))
}

fn going_away(raw: &raw::Node, report: &mut Report) -> bool {
    let taints =
        raw.spec.given().map_or_else(Vec::new, |it| report.list("spec.taints", &it.taints));
    raw.metadata.deletion_timestamp != super::lenient::Field::Absent
        || taints.iter().any(|(_, it)| it.key.text() == TO_BE_DELETED)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn internal_addresses_come_before_external_ones() {
        let addresses = json!([
            {"type": "Hostname", "address": "node-1"}, {"type": "ExternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "fd00::1"}, {"type": "InternalIP", "address": "010.0.0.1"},
        ]);
        let node = applied(json!({"status": {"addresses": addresses}}));
        let shown: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["fd00::1", "10.0.0.1", "192.0.2.1"]);
    }

    #[test]
    fn zone_and_pod_ranges() {
        let node = applied(json!({
            "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "zone-a"}},
            "spec": {"podCIDRs": ["10.1.0.0/24", "fd00:1::/64"], "podCIDR": "10.1.0.0/24"},
        }));
        assert_eq!(node.zone.as_deref(), Some("zone-a"));
        assert_eq!(node.pod_cidrs.len(), 2);
        let node = applied(json!({
            "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": ""}}, "spec": {"podCIDR": "10.1.0.0/24"},
        }));
        assert_eq!((node.zone, node.pod_cidrs.len()), (None, 1));
    }

    /// TestHealthzServer: other taints are irrelevant.
    #[test]
    fn who_is_going_away() {
        let going = |object| applied(object).going_away;
        assert!(!going(json!({"spec": {"taints": [{"key": "other"}]}})));
        assert!(going(json!({"spec": {"taints": [{"key": "other"}, {"key": TO_BE_DELETED}]}})));
        assert!(going(
            json!({"metadata": {"name": "node-1", "deletionTimestamp": "2026-01-01T00:00:00Z"}})
        ));
    }

    #[test]
    fn other_nodes_are_ignored() {
        assert_eq!(run(json!({"metadata": {"name": "node-2"}})), None);
    }

    #[track_caller]
    fn applied(object: Value) -> Node {
        let converted = run(object).unwrap().change;
        let Change::NodeApplied(node) = converted else { panic!("{converted:?}") };
        node
    }

    fn run(mut object: Value) -> Option<Converted> {
        if object.get("metadata").is_none() {
            object["metadata"] = json!({"name": "node-1"});
        }
        let raw: raw::Node = serde_json::from_value(object).unwrap();
        let context = Context { node_name: "node-1".into(), external_ips_allowed: true };
        node(&context, &raw, &mut Interner::default())
    }
}
