//! What differs between two configurations, and what of it takes a new process: pure.
//!
//! kube-proxy never takes up a changed file: it exits, or (with a ConfigMap) does not notice. Here whatever can be
//! changed while traffic flows is; the rest is named when the process ends for it.

use serde_json::Value;

use super::file::KubeProxyConfiguration;

/// Fields that the nftables backend takes up while the process runs. What ends in a dot stands for a whole block.
const LIVE_IN_NFTABLES: [&str; 6] = [
    "iptables.",
    "nftables.",
    "clusterCIDR",
    "detectLocalMode",
    "detectLocal.",
    "nodePortAddresses",
];

/// Fields that are taken up while the process runs, in every mode.
const LIVE: [&str; 8] = [
    "logging.verbosity",
    "logging.vmodule",
    "conntrack.",
    "oomScoreAdj",
    "enableProfiling",
    "logging.flushFrequency",
    "logging.options.json.infoBufferSize",
    "logging.options.text.infoBufferSize",
];

/// Fields that do nothing, neither before nor after; the start says so.
const IDLE: [&str; 9] = [
    "configSyncPeriod",
    "showHiddenMetricsForVersion",
    "portRange",
    "winkernel.",
    "windowsRunAsService",
    "clientConnection.acceptContentTypes",
    "clientConnection.contentType",
    "clientConnection.qps",
    "clientConnection.burst",
];

/// Fields that differ, by their path in the file, in order.
pub fn changed_fields(old: &KubeProxyConfiguration, new: &KubeProxyConfiguration) -> Vec<String> {
    let tree = |object| serde_json::to_value(object).unwrap_or_default();
    let mut fields = Vec::new();
    compare(&tree(old), &tree(new), "", &mut fields);
    fields
}

/// Those of the fields that count from the next start on only.
pub fn need_restart(fields: &[String], mode: &str) -> Vec<String> {
    let of_mode = |field: &str| {
        let nftables = LIVE_IN_NFTABLES.iter().any(|known| covers(known, field));
        // The block of IPVS means nothing in other modes.
        mode != "ipvs" && (nftables || field.starts_with("ipvs."))
    };
    let listed = |field: &str| LIVE.iter().chain(&IDLE).any(|known| covers(known, field));
    fields.iter().filter(|it| !listed(it) && !of_mode(it)).cloned().collect()
}

fn covers(known: &str, field: &str) -> bool {
    if known.ends_with('.') { field.starts_with(known) } else { field == known }
}

fn compare(old: &Value, new: &Value, path: &str, fields: &mut Vec<String>) {
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        if old != new {
            fields.push(path.to_owned());
        }
        return;
    };
    let names = before.keys().chain(after.keys().filter(|it| !before.contains_key(*it)));
    for name in names {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let value = |fields: &serde_json::Map<String, Value>| fields.get(name).cloned();
        compare(
            &value(before).unwrap_or_default(),
            &value(after).unwrap_or_default(),
            &path,
            fields,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    #[test]
    fn fields_are_named_by_their_path() {
        check("", "", &[], &[]);
        check("", "logging: {verbosity: 4}", &["logging.verbosity"], &[]);
        check(
            "clusterCIDR: 10.0.0.0/8",
            "clusterCIDR: 11.0.0.0/8\nnftables: {minSyncPeriod: 2s, syncPeriod: 1m}",
            &["clusterCIDR", "nftables.minSyncPeriod", "nftables.syncPeriod"],
            &[],
        );
        check("conntrack: {udpTimeout: 5s}", "", &["conntrack.udpTimeout"], &[]);
    }

    #[test]
    fn what_a_running_process_is_made_of_takes_a_new_one() {
        check(
            "",
            "metricsBindAddress: 0.0.0.0:1\noomScoreAdj: 1",
            &["metricsBindAddress", "oomScoreAdj"],
            &["metricsBindAddress"],
        );
        let gate = "featureGates.AllowServiceExternalIPs";
        check("", "featureGates: {AllowServiceExternalIPs: false}", &[gate], &[gate]);
        let manifests = "kubeFerry.manifests";
        check("kubeFerry: {manifests: a}", "kubeFerry: {manifests: b}", &[manifests], &[manifests]);
        check("", "kubeFerry: {manifests: b}", &["kubeFerry"], &["kubeFerry"]);
        check("", "logging: {format: json}", &["logging.format"], &["logging.format"]);
    }

    #[test]
    fn what_does_nothing_does_not_end_the_process() {
        check("", "portRange: 1-2", &["portRange"], &[]);
        check("", "clientConnection: {qps: 50}", &["clientConnection.qps"], &[]);
        check("", "ipvs: {strictARP: true}", &["ipvs.strictARP"], &[]);
        let fields = ["clusterCIDR", "ipvs.strictARP"].map(str::to_owned);
        assert_eq!(need_restart(&fields, "ipvs"), fields);
        assert_eq!(need_restart(&["conntrack.min".to_owned()], "ipvs"), [""; 0]);
    }

    /// A field that is new or renamed must be put into one of the lists, or is known to take a new process.
    #[test]
    fn every_field_that_is_listed_exists() {
        let tree = serde_json::to_value(KubeProxyConfiguration::defaulted()).unwrap();
        for known in LIVE.iter().chain(&LIVE_IN_NFTABLES).chain(&IDLE) {
            let pointer = format!("/{}", known.trim_end_matches('.').replace('.', "/"));
            assert!(tree.pointer(&pointer).is_some(), "{known}");
        }
    }

    #[track_caller]
    fn check(old: &str, new: &str, changed: &[&str], restart: &[&str]) {
        let read = |body: &str| {
            let head =
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
            let mut object = file::read(&format!("{head}{body}\n")).unwrap().0;
            object.set_defaults();
            object
        };
        let fields = changed_fields(&read(old), &read(new));
        assert_eq!(fields, changed);
        assert_eq!(need_restart(&fields, "nftables"), restart);
    }
}
