//! A ConfigMap that changes under a running proxy, swapped as the kubelet does it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Host;
use crate::support::patience::poll;
use crate::support::proxy::Proxy;
use crate::watch::rig::furnish;

const METRICS: u16 = 10249;
const USABLE: &str = "kubeferry_config_last_reload_successful";

#[test]
fn what_can_change_under_traffic_is_taken_up() {
    let host = Host::new();
    furnish(&host.server, 2);
    let volume = Volume::new(&host);
    volume.swap("nodePortAddresses: [192.0.2.0/24]");
    let mut proxy = volume.proxy();
    let node_port_ips = |expected: &str| {
        let list = ["list", "set", "ip", "kube-ferry", "nodeport-ips"];
        let holds = || {
            let listing = host.namespace.command("nft", &list, "");
            if listing.contains(expected) { Ok(()) } else { Err(listing) }
        };
        poll(super::SOON, holds).unwrap();
    };
    node_port_ips("elements = { 192.0.2.1 }");
    assert!(!host.logged().contains(" DEBUG "));

    volume.swap(
        "nodePortAddresses: [198.51.100.0/24]\nlogging: {verbosity: 4}\noomScoreAdj: 1\n\
         nftables: {masqueradeAll: true, minSyncPeriod: 2s, syncPeriod: 5s}\n\
         conntrack: {maxPerCore: 0, udpTimeout: 77s}\nenableProfiling: true\n",
    );
    let line = host.wait_for_line(&["taken up without a restart"]);
    for field in [
        "nodePortAddresses",
        "logging.verbosity",
        "oomScoreAdj",
        "nftables.masqueradeAll",
        "nftables.minSyncPeriod",
        "nftables.syncPeriod",
        "conntrack.udpTimeout",
    ] {
        assert!(line.contains(field), "{field} is not in {line}");
    }
    node_port_ips("elements = { 198.51.100.1 }");
    let marking = || {
        let chain =
            host.namespace.command("nft", &["list", "chain", "ip", "kube-ferry", "services"], "");
        if chain.contains("ip daddr @cluster-ips") { Ok(()) } else { Err(chain) }
    };
    poll(super::SOON, marking).unwrap();
    let timeout = host.namespace.run(|| {
        std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_udp_timeout").unwrap()
    });
    assert_eq!(timeout.trim(), "77");
    let page = host.get(METRICS, "/configz").unwrap().body;
    let object = &serde_json::from_str::<Value>(&page).unwrap()["kubeproxy.config.k8s.io"];
    assert_eq!(object["nftables"]["syncPeriod"], "5s");
    host.server.put(crate::watch::rig::service("later", 9));
    host.wait_for_line(&[" DEBUG "]);

    // Log lines of this verbosity are wanted until somebody asks for others, also over HTTP.
    assert_eq!(host.get(METRICS, "/debug/flags/v").unwrap().status, 406);
    assert_eq!(proxy.stop(rustix::process::Signal::TERM).code(), Some(0), "it was one process");
    assert_eq!(host.logged().matches("serving metrics").count(), 1);
}

#[test]
fn an_unusable_file_changes_nothing_and_a_good_one_heals_it() {
    let host = Host::new();
    furnish(&host.server, 2);
    let volume = Volume::new(&host);
    volume.swap("");
    let mut proxy = volume.proxy();
    assert_eq!(proxy.metric(USABLE), Some(1.0));

    volume.swap("nodePortAddresses: [primary, 10.0.0.0/33]\nclusterCIDR: 10.0.0.0/99\n");
    let line = host.wait_for_line(&["ERROR", "not usable; going on with the settings from before"]);
    assert!(line.contains("nodePortAddresses") && line.contains("clusterCIDR"), "{line}");
    assert_eq!(proxy.metric(USABLE), Some(0.0));
    let event = host.wait_for_event("InvalidConfiguration");
    assert_eq!((&event["type"], &event["regarding"]["kind"]), (&"Warning".into(), &"Node".into()));
    let note = event["note"].as_str().unwrap();
    assert!(note.contains("clusterCIDR") && note.contains("a restart would fail"), "{note}");
    // It works on.
    host.server.put(crate::watch::rig::service("s0", 0));
    host.server.put(crate::watch::rig::slice("new", 7));
    host.server.put(crate::watch::rig::service("new", 7));
    let rows = || {
        let rows = crate::support::witness::rows(&host.namespace, "ip", "kube-ferry", "endpoints");
        if rows.len() == 3 { Ok(()) } else { Err(format!("{rows:?}")) }
    };
    poll(super::SOON, rows).unwrap();

    for garbage in ["{", "kind: ConfigMap"] {
        volume.write_whole(garbage);
        let told = || {
            let count = host.logged().matches("not usable; going on").count();
            if count >= 2 { Ok(()) } else { Err(host.logged()) }
        };
        poll(super::SOON, told).unwrap();
    }
    volume.swap("");
    host.wait_for_line(&["the configuration file has changed, no setting did"]);
    assert_eq!(proxy.metric(USABLE), Some(1.0));
    assert_eq!(proxy.stop(rustix::process::Signal::TERM).code(), Some(0));
}

#[test]
fn what_a_process_is_made_of_ends_it_and_is_named() {
    let host = Host::new();
    furnish(&host.server, 1);
    let volume = Volume::new(&host);
    volume.swap("");
    let mut proxy = volume.proxy();
    volume.swap("metricsBindAddress: 127.0.0.1:10250\noomScoreAdj: 5\nfeatureGates: {AllowServiceExternalIPs: false}");
    assert_eq!(proxy.ended().code(), Some(1));
    let line = host.wait_for_line(&["cannot change while the process runs"]);
    assert!(
        line.contains("featureGates.AllowServiceExternalIPs, metricsBindAddress cannot"),
        "{line}"
    );
    let tables = host.namespace.command("nft", &["list", "tables"], "");
    assert!(tables.contains("table ip kube-ferry"), "{tables}");
}

/// A directory like that of a ConfigMap volume: `config.conf` leads through `..data` to a directory that is replaced.
struct Volume<'h> {
    host: &'h Host,
    path: PathBuf,
}

impl<'h> Volume<'h> {
    fn new(host: &'h Host) -> Volume<'h> {
        let path = host.path().join("volume");
        std::fs::create_dir(&path).unwrap();
        symlink("..data/config.conf", path.join("config.conf")).unwrap();
        Volume { host, path }
    }

    /// Puts a configuration with these fields in place; those that are not given have what tests need.
    fn swap(&self, fields: &str) {
        let kubeconfig = self.host.kubeconfig();
        let mut text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
             clientConnection: {{kubeconfig: {}}}\n{fields}\n",
            kubeconfig.display()
        );
        for (field, value) in [
            ("oomScoreAdj", "0"),
            ("conntrack", "{maxPerCore: 0}"),
            ("metricsBindAddress", "127.0.0.1:10249"),
        ] {
            if !fields.contains(field) {
                text += &format!("{field}: {value}\n");
            }
        }
        self.write_whole(&text);
    }

    fn write_whole(&self, text: &str) {
        let fresh =
            tempfile::Builder::new().prefix("..2026").tempdir_in(&self.path).unwrap().keep();
        std::fs::write(fresh.join("config.conf"), text).unwrap();
        let before = std::fs::read_link(self.path.join("..data")).ok();
        symlink(fresh.file_name().unwrap(), self.path.join("..data_tmp")).unwrap();
        std::fs::rename(self.path.join("..data_tmp"), self.path.join("..data")).unwrap();
        if let Some(before) = before {
            remove(&self.path.join(before));
        }
    }

    fn proxy(&self) -> Proxy<'h> {
        let config = format!("--config={}", self.path.join("config.conf").display());
        let flags = vec![config, "--hostname-override=n1".to_owned()];
        Proxy::start(&self.host.namespace, flags, self.host.log()).unwrap()
    }
}

fn remove(directory: &Path) {
    std::fs::remove_dir_all(directory).unwrap();
}
