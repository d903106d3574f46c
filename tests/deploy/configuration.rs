//! The configuration files that we ship, by the program that reads them.

use std::io::Write as _;

use kube_ferry::config::settings::DetectLocal;
use kube_ferry::config::{self, Args, Config, Source};

use super::manifests::objects;
use super::read;

#[test]
fn the_base_and_the_one_for_prometheus_are_in_force_without_a_complaint() {
    for file in ["base/config.conf", "components/podmonitor/config.conf"] {
        let config = load(&read(file));
        assert_eq!(config.detect_local, DetectLocal::NodeCidr, "{file}");
        assert_eq!(config.oom_score_adj, -997, "{file}");
        let Source::ApiServer(client) = config.source else {
            panic!("{file}: {:?}", config.source)
        };
        let kubeconfig = client.kubeconfig.unwrap();
        assert_eq!(kubeconfig.to_str(), Some("/var/lib/kube-proxy/kubeconfig.conf"), "{file}");
        // /proc/sys is read-only for this container.
        assert!(kube_ferry::sysctl::plan(&config.conntrack, 4).is_empty(), "{file}");
    }
}

#[test]
fn kernel_settings_are_kube_proxy_s_defaults() {
    let map = objects(&read("components/kernel-settings/config-map.yaml")).pop().unwrap();
    let spelt_out = load(map["data"]["config.conf"].as_str().unwrap());
    let nothing_said = load(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n",
    );
    assert_eq!(spelt_out.conntrack, nothing_said.conntrack);
    assert!(!kube_ferry::sysctl::plan(&spelt_out.conntrack, 4).is_empty());
}

/// Reads a configuration as the program does, with kubeadm's command line.
#[track_caller]
fn load(text: &str) -> Config {
    let (_, complaints) = config::file::read(text).unwrap();
    assert_eq!(complaints, [""; 0], "{text}");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let flag = format!("--config={}", file.path().display());
    let args =
        Args::parse_from(["kube-proxy", &flag, "--hostname-override=n1"].map(Into::into)).unwrap();
    config::load(&args).unwrap()
}
