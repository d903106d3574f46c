//! Settings that change while connections are open and others are opened: nobody notices.

use std::path::Path;

use rustix::process::Signal;

use super::SOON;
use crate::cleanup::migration::{NEW, OLD, attempts, reached, start, write_manifest};
use crate::support::patience::poll;
use crate::support::proxy::Proxy;
use crate::support::world::World;

/// What is changed, one after the other. Each also takes back the one before.
const SETTINGS: [&str; 7] = [
    "nftables: {masqueradeAll: true}",
    "nftables: {masqueradeBit: 20, masqueradeAll: true}",
    "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}",
    "detectLocalMode: ClusterCIDR\nclusterCIDR: 10.244.0.0/16,fd00:10:244::/56",
    "nodePortAddresses: [192.0.2.0/24, '2001:db8::/64']",
    "conntrack: {maxPerCore: 0, tcpBeLiberal: true}",
    "nftables: {minSyncPeriod: 3s, syncPeriod: 7s}",
];

#[test]
fn no_connection_notices_that_settings_change() {
    let world = World::new();
    let directory = tempfile::tempdir().unwrap();
    let manifests = directory.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    write_manifest(&manifests);
    let configuration = Configuration { path: directory.path(), manifests: &manifests };
    configuration.write("");
    let log = directory.path().join("log");
    let config = format!("--config={}", configuration.path.join("config").display());
    let flags = vec![config, "--hostname-override=node-1".to_owned()];
    let mut proxy = Proxy::start(world.node(), flags, log.clone()).unwrap();
    let mut traffic = start(&world, &attempts());

    for (taken, fields) in SETTINGS.into_iter().enumerate() {
        configuration.write(fields);
        poll(SOON, || {
            let logged = std::fs::read_to_string(&log).unwrap();
            let count = logged.matches("taken up without a restart").count();
            if count == taken + 1 { Ok(()) } else { Err(format!("{fields}: {logged}")) }
        })
        .unwrap();
        assert_eq!(reached(&world, &attempts()), [OLD, NEW], "{fields}");
        traffic.extend(start(&world, &attempts()[..1]));
    }
    for flow in traffic {
        flow.end().unwrap();
    }
    assert_eq!(proxy.stop(Signal::TERM).code(), Some(0), "it was one process");
}

struct Configuration<'d> {
    path: &'d Path,
    manifests: &'d Path,
}

impl Configuration<'_> {
    /// Puts a configuration with these fields in place; in one step, as a sensible operator would.
    fn write(&self, fields: &str) {
        let mut text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
             kubeFerry: {{manifests: {}}}\noomScoreAdj: 0\n{fields}\n",
            self.manifests.display()
        );
        for (field, value) in
            [("clusterCIDR", "10.244.0.0/16,fd00:10:244::/56"), ("conntrack:", "{maxPerCore: 0}")]
        {
            if !fields.contains(field) {
                text += &format!("{}: {value}\n", field.trim_end_matches(':'));
            }
        }
        let new = self.path.join("config.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path.join("config")).unwrap();
    }
}
