//! The real binary in front of an API server with faults: in the end the kernel's rows are the server's objects.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::apiserver::{ApiServer, Ask, Fault, On};
use crate::support::command;
use crate::support::namespace::{Namespace, create};
use crate::support::patience::poll;
use crate::support::proxy::Proxy;
use crate::watch::rig::{furnish, service, slice, stir};

/// A watch that failed begins anew within seconds (0.8 s of back-off, lists spread over 5 s); the rest is the machine's.
const RECOVERY: Duration = Duration::from_secs(90);

const RESOURCES: [&str; 4] = ["services", "endpointslices", "nodes", "servicecidrs"];

#[test]
fn streaming_lists_with_tls_and_faults() {
    check(ApiServer::start_tls, false);
}

#[test]
fn paged_lists_without_tls_and_faults() {
    check(ApiServer::start, true);
}

fn check(start: fn() -> ApiServer, pages: bool) {
    let host = Host::new(start);
    let server = &host.server;
    if pages {
        server.refuse_streaming_lists();
    }
    furnish(server, 20);
    let _proxy = host.proxy();
    host.settle("the first lists");

    // One fault for each watch at a time, while objects change.
    for (round, faults) in (0..).zip([
        [
            Fault::Cut { after: 1, clean: false },
            Fault::ErrorEvent(410),
            Fault::DropConnection,
            Fault::Status(500, None),
        ],
        [
            Fault::Repeat,
            Fault::Insert { after: 1, line: "{".to_owned() },
            Fault::Delay(Duration::from_millis(700)),
            Fault::Status(429, Some(1)),
        ],
    ]) {
        let told = format!("{faults:?}");
        for (resource, fault) in RESOURCES.into_iter().zip(faults) {
            server.fail_next(On(resource, Ask::Any), [fault]);
        }
        server.drop_connections();
        stir(server, round);
        host.settle(&told);
    }

    // What is deleted while nobody is told, and the history too.
    server.go_down();
    stir(server, 10);
    server.compact();
    server.come_up();
    host.settle("an outage and lost history");

    server.send_bookmarks_every(Duration::from_millis(20));
    stir(server, 11);
    host.settle("bookmarks");
}

/// Whichever list comes last: until then there is no table.
#[test]
fn nothing_is_written_before_every_first_list_has_arrived() {
    std::thread::scope(|scope| {
        for last in RESOURCES {
            scope.spawn(move || check_first(last));
        }
    });
}

fn check_first(last: &'static str) {
    let host = Host::new(ApiServer::start);
    let server = &host.server;
    furnish(server, 3);
    server.refuse_streaming_lists();
    server.fail_next(On(last, Ask::List), [Fault::Stall]);
    let proxy = host.begin();
    // Who watches has its list.
    let others = || match RESOURCES.into_iter().find(|it| *it != last && !host.watches(it)) {
        Some(missing) => Err(format!("{missing} is not watched yet")),
        None => Ok(()),
    };
    poll(RECOVERY, others).unwrap();
    for _ in 0..20 {
        let tables = host.namespace.command("nft", &["list", "tables"], "");
        assert_eq!(tables, "", "written although {last} is missing");
    }
    assert!(!host.watches(last));
    server.drop_connections();
    host.settle("the last list");
    drop(proxy);
}

/// A namespace with a server in it, and what the proxy is to be started with.
struct Host {
    namespace: Namespace,
    server: ApiServer,
    directory: TempDir,
}

impl Host {
    fn new(start: fn() -> ApiServer) -> Host {
        let namespace = create(&["host"]).pop().unwrap();
        namespace.ip("link set lo up\naddr add 192.0.2.1/32 dev lo\n");
        let server = namespace.run(start);
        Host { namespace, server, directory: tempfile::tempdir().unwrap() }
    }

    fn arguments(&self) -> Vec<String> {
        let kubeconfig = self.server.kubeconfig(self.directory.path(), None);
        let fixed = ["--proxy-mode=nftables", "--hostname-override=n1"];
        let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
        fixed.into_iter().map(str::to_owned).chain([kubeconfig]).collect()
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// The proxy after its first sync.
    fn proxy(&self) -> Proxy<'_> {
        Proxy::start(&self.namespace, self.arguments(), self.log()).unwrap()
    }

    /// The proxy, started and not waited for.
    fn begin(&self) -> Proxy<'_> {
        Proxy::begin(&self.namespace, self.arguments(), self.log()).unwrap()
    }

    fn watches(&self, resource: &str) -> bool {
        self.server.requests_for(resource).iter().any(|it| it.is_watch())
    }

    /// Waits until the kernel's rows are the server's objects.
    #[track_caller]
    fn settle(&self, after: &str) {
        let expected = expected(&self.server);
        let same = || {
            let found = endpoints(&self.namespace);
            if found == expected {
                return Ok(());
            }
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            Err(format!("{found:#?}\ninstead of {expected:#?}\n{log}"))
        };
        poll(RECOVERY, same).unwrap_or_else(|why| panic!("after {after}: {why}"));
    }
}

/// The endpoints of each cluster IP by the objects that the proxy is to see.
fn expected(server: &ApiServer) -> BTreeMap<String, Vec<String>> {
    let own = "!service.kubernetes.io/service-proxy-name";
    let services = server.objects("services", own, "spec.clusterIP!=None");
    let slices = server.objects("endpointslices", "!service.kubernetes.io/headless", "");
    let address_of = |name: &Value| {
        let of = services.iter().find(|it| it["metadata"]["name"] == *name)?;
        Some(of["spec"]["clusterIP"].as_str()?.to_owned())
    };
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for slice in slices {
        let name = &slice["metadata"]["labels"]["kubernetes.io/service-name"];
        if let Some(address) = address_of(name) {
            let endpoint = slice["endpoints"][0]["addresses"][0].as_str().unwrap();
            expected.entry(address).or_default().push(endpoint.to_owned());
        }
    }
    expected.values_mut().for_each(|it| it.sort());
    expected
}

/// The same, as the kernel has them.
fn endpoints(namespace: &Namespace) -> BTreeMap<String, Vec<String>> {
    let list = ["-j", "list", "map", "ip", "kube-ferry", "endpoints"];
    let listing = namespace.run(|| command::output("nft", &list, "")).stdout;
    let listing: Value = serde_json::from_slice(&listing).unwrap_or_default();
    let objects = listing["nftables"].as_array().cloned().unwrap_or_default();
    let rows = objects.iter().filter_map(|it| it["map"]["elem"].as_array()).flatten();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in rows {
        let (frontend, endpoint) = (&row[0]["concat"], &row[1]["concat"]);
        assert_eq!(
            (&frontend[1], &frontend[2], &endpoint[1]),
            (&"tcp".into(), &80.into(), &8080.into())
        );
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        found.entry(text(&frontend[0])).or_default().push(text(&endpoint[0]));
    }
    found.values_mut().for_each(|it| it.sort());
    found
}

#[test]
fn the_rows_that_are_expected_are_those_of_the_objects() {
    let server = ApiServer::start();
    server.put(service("a", 1));
    server.put(slice("a", 1));
    server.put(slice("orphan", 2));
    let one = BTreeMap::from([("10.96.0.1".to_owned(), vec!["10.0.0.1".to_owned()])]);
    assert_eq!(expected(&server), one);
}
