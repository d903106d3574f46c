//! What operators see of the real binary: readiness, a configuration that changes, Events, Prometheus, kernel settings.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::apiserver::ApiServer;
use crate::support::namespace::{Namespace, create};
use crate::support::patience::poll;
use crate::support::proxy::{Page, Proxy, get};

mod docs;
mod events;
mod kernel_settings;
mod live;
mod live_traffic;
mod prometheus;
mod ready;
mod single_stack;

/// Back-off, spread lists and the five seconds between two looks at a file, on a busy machine.
const SOON: Duration = Duration::from_secs(90);

/// A namespace with an API server in it, and a directory for whatever the proxy is given.
struct Host {
    namespace: Namespace,
    server: ApiServer,
    directory: TempDir,
}

impl Host {
    fn new() -> Host {
        let namespace = create(&["host"]).pop().unwrap();
        namespace
            .ip("link set lo up\naddr add 192.0.2.1/32 dev lo\naddr add 198.51.100.1/32 dev lo\n");
        let server = namespace.run(ApiServer::start);
        Host { namespace, server, directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn log(&self) -> PathBuf {
        self.path().join("log")
    }

    fn kubeconfig(&self) -> PathBuf {
        self.server.kubeconfig(self.path(), None)
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig().display());
        let fixed = ["--proxy-mode=nftables", "--hostname-override=n1", &kubeconfig];
        fixed.into_iter().chain(more.iter().copied()).map(str::to_owned).collect()
    }

    /// The proxy, started and not waited for.
    fn begin(&self, more: &[&str]) -> Proxy<'_> {
        Proxy::begin(&self.namespace, self.arguments(more), self.log()).unwrap()
    }

    /// The proxy after its first sync.
    fn proxy(&self, more: &[&str]) -> Proxy<'_> {
        Proxy::start(&self.namespace, self.arguments(more), self.log()).unwrap()
    }

    fn get(&self, port: u16, path: &str) -> Result<Page, String> {
        let server = ([127, 0, 0, 1], port).into();
        self.namespace.run(|| get(server, path))
    }

    /// Waits for a page that is as expected.
    #[track_caller]
    fn wait_for_page(&self, port: u16, path: &str, expected: impl Fn(&Page) -> bool) -> Page {
        let asked = || {
            let page = self.get(port, path)?;
            if expected(&page) { Ok(page) } else { Err(format!("{path}: {page:?}")) }
        };
        poll(SOON, asked).unwrap_or_else(|why| panic!("{why}\n{}", self.logged()))
    }

    fn logged(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Waits for a line with all these words, and returns it.
    #[track_caller]
    fn wait_for_line(&self, words: &[&str]) -> String {
        let found = || {
            let log = self.logged();
            let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
            line.map(str::to_owned).ok_or_else(|| format!("no line with {words:?} in {log}"))
        };
        poll(SOON, found).unwrap()
    }

    /// Waits for a posted Event with this reason, and returns it.
    #[track_caller]
    fn wait_for_event(&self, reason: &str) -> Value {
        let posted = || {
            let events = self.server.events();
            let found = events.iter().find(|it| it["reason"] == reason).cloned();
            found.ok_or_else(|| format!("no Event {reason} in {events:?}"))
        };
        poll(SOON, posted).unwrap_or_else(|why| panic!("{why}\n{}", self.logged()))
    }
}
