//! A node whose proxy follows a simulated API server.

use std::path::PathBuf;

use super::dump::dump;
use super::node::{STEADY, service};
use crate::support::apiserver::ApiServer;
use crate::support::namespace::Namespace;
use crate::support::patience::{LONG, poll};
use crate::support::proxy::{Proxy, get};
use crate::support::world::{World, twin};
use crate::watch::rig;

/// A world, its API server with the steady Service, and a place for files.
pub(super) struct Cluster {
    directory: tempfile::TempDir,
    pub(super) world: World,
    pub(super) server: ApiServer,
}

impl Cluster {
    pub(super) fn new() -> Cluster {
        let world = World::new();
        let server = world.node().run(ApiServer::start_tls);
        let six = twin(STEADY.into()).to_string();
        server.load(service("steady", "10.96.0.10", &six, &[10, 11]));
        server.load([rig::node("node-1"), rig::service_cidr("kubernetes")]);
        Cluster { directory: tempfile::tempdir().unwrap(), world, server }
    }

    pub(super) fn host(&self) -> &Namespace {
        self.world.node()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A proxy that is to be started. `user` are its credentials, as a kubeconfig has them.
    pub(super) fn prepare(&self, user: &str) -> Proxy<'_> {
        let kubeconfig = self.server.kubeconfig_of(self.directory.path(), user);
        let arguments = [
            "--proxy-mode=nftables".to_owned(),
            "--hostname-override=node-1".to_owned(),
            "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48".to_owned(),
            format!("--kubeconfig={}", kubeconfig.display()),
        ];
        Proxy::prepare(self.host(), arguments.to_vec(), self.path("log"))
    }

    /// A proxy that has synchronised.
    pub(super) fn proxy(&self, user: &str) -> Proxy<'_> {
        let mut proxy = self.prepare(user);
        proxy.run().unwrap();
        proxy
    }

    /// Makes a Service, which the proxy will hear of sooner or later.
    pub(super) fn create(&self, number: u8) {
        let six = format!("fd00:10:96::7:{number}");
        self.server.load(service(&format!("new-{number}"), &address(number), &six, &[10]));
    }

    /// Waits until it is there.
    #[track_caller]
    pub(super) fn programmed(&self, proxy: &Proxy<'_>, number: u8) {
        let there = || self.has(number).then_some(()).ok_or(proxy.log());
        poll(LONG, there).unwrap();
    }

    pub(super) fn has(&self, number: u8) -> bool {
        let row = format!("\"{}\"", address(number));
        dump(self.host()).iter().any(|line| line.contains(&row))
    }

    /// The status of a page of the health server.
    pub(super) fn health(&self, path: &str) -> Result<u16, String> {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 10_256));
        self.host().run(|| get(address, path)).map(|it| it.status)
    }

    /// Failures of lists and watches for this reason, as the proxy counts them.
    pub(super) fn failures(&self, proxy: &Proxy<'_>, reason: &str) -> f64 {
        let of = |resource| {
            let labels = format!("{{reason=\"{reason}\",resource=\"{resource}\"}}");
            proxy.metric(&format!("kubeferry_watch_errors_total{labels}"))
        };
        ["services", "endpointslices", "nodes", "servicecidrs"].into_iter().filter_map(of).sum()
    }
}

fn address(number: u8) -> String {
    format!("10.96.7.{number}")
}
