//! The HTTP servers on loopback: paths, codes, headers and bodies as clients of kube-proxy know them.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use kube_ferry::config::{Args, settings};
use kube_ferry::model::{Family, Node, ObjectName};
use kube_ferry::serve::http::{Pages, Server, health_router, metrics_router};
use kube_ferry::serve::{HealthCheck, ListenOn, Metrics, NodePortHealth, SharedHealth};
use kube_ferry::watch::{Stats, Trouble};
use socket2::{Domain, Socket, Type};
use tokio::runtime::Runtime;

use crate::support::namespace::{Namespace, own_host};
use crate::support::patience::{LONG, poll};

mod node_port;

#[test]
fn healthz_follows_the_node_and_livez_does_not() {
    let world = World::new();
    let address = world.serve_health();
    let starting = get(address, "/healthz");
    assert_eq!(starting.code, 503);
    let body: serde_json::Value = serde_json::from_str(&starting.body).unwrap();
    assert_eq!((&body["nodeEligible"], &body["healthy"]), (&false.into(), &true.into()));
    assert_eq!(body["lastUpdated"], "0001-01-01T00:00:00Z");
    assert_eq!(get(address, "/livez").code, 200);

    world.health.node(&Node::default());
    world.health.updated(Family::V4);
    let ready = get(address, "/healthz?verbose");
    assert_eq!(ready.code, 200);
    let body: serde_json::Value = serde_json::from_str(&ready.body).unwrap();
    assert_eq!(body["status"]["IPv4"]["healthy"], true);
    assert_eq!(body["lastUpdated"], body["currentTime"]);
    assert!(!ready.body.ends_with('\n'));
    for header in ["content-type: application/json", "x-content-type-options: nosniff"] {
        assert!(ready.headers.contains(&header.to_owned()), "{:?}", ready.headers);
    }

    let page = world.metrics.text().unwrap();
    for line in [
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
        "kubeproxy_proxy_livez_total{code=\"200\"} 1",
    ] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
}

#[test]
fn the_health_server_answers_any_method_and_nothing_else() {
    let world = World::new();
    let address = world.serve_health();
    assert_eq!(request(address, "POST", "/livez").code, 200);
    assert_eq!(request(address, "HEAD", "/livez").body, "");
    for path in ["/", "/statusz", "/metrics", "/healthz/"] {
        let response = get(address, path);
        assert_eq!(
            (response.code, response.body.as_str()),
            (404, "404 page not found\n"),
            "{path}"
        );
    }
}

#[test]
fn the_wildcard_of_one_family_serves_both() {
    let world = World::new();
    let port = world.serve_health().port();
    assert_eq!(get(SocketAddr::from((Ipv6Addr::LOCALHOST, port)), "/livez").code, 200);
}

#[test]
fn the_metrics_server_has_kube_proxy_s_paths() {
    let world = World::new();
    let address =
        world.serve_metrics(&["--proxy-mode=iptables", "--v=2", "--cluster-cidr=10.0.0.0/8"]);
    let text = "text/plain; charset=utf-8";
    for (path, code, content_type, body) in [
        ("/healthz", 200, text, "ok"),
        ("/proxyMode", 200, text, "nftables"),
        ("/livez", 404, text, "404 page not found\n"),
        ("/readyz", 404, text, "404 page not found\n"),
        ("/", 404, text, "404 page not found\n"),
        ("/debug/pprof/", 404, text, "404 page not found\n"),
    ] {
        let response = get(address, path);
        assert_eq!((response.code, response.body.as_str()), (code, body), "{path}");
        assert!(response.headers.contains(&format!("content-type: {content_type}")), "{path}");
        assert!(response.headers.contains(&"x-content-type-options: nosniff".to_owned()), "{path}");
    }
    let configz: serde_json::Value = serde_json::from_str(&get(address, "/configz").body).unwrap();
    let object = &configz["kubeproxy.config.k8s.io"];
    assert_eq!(object["kind"], "KubeProxyConfiguration");
    assert_eq!(object["apiVersion"], "kubeproxy.config.k8s.io/v1alpha1");
    assert_eq!(
        (&object["mode"], &object["clusterCIDR"]),
        (&"iptables".into(), &"10.0.0.0/8".into())
    );
    assert_eq!(object["iptables"]["syncPeriod"], "30s");
    assert!(get(address, "/flagz").body.contains("\nv=2\n"));
    assert!(get(address, "/statusz").body.contains("Follows: kube-proxy v1."));
}

#[test]
fn readyz_names_what_is_missing() {
    use kube_ferry::model::Resource;
    use kube_ferry::serve::Start;
    let world = World::new();
    let address = world.serve_health();
    assert_eq!(get(address, "/readyz").code, 503);
    world.health.started(Start::Lists(vec![Resource::EndpointSlice]));
    let waiting = get(address, "/readyz");
    assert!(waiting.body.ends_with(r#""ready":false,"missing":["the list of endpointslices"]}"#));
    assert!(waiting.headers.contains(&"content-type: application/json".to_owned()));
    world.health.started(Start::Done);
    assert_eq!(get(address, "/readyz").code, 200);
    world.health.started(Start::FirstSync(1));
    assert_eq!(get(address, "/readyz").code, 200, "there is one first sync");
}

#[test]
fn the_log_level_is_taken_with_profiling_only_and_pprof_never_is() {
    let world = World::new();
    let without = world.serve_metrics(&[]);
    assert_eq!(put(without, "/debug/flags/v", "4").code, 404);
    let with = world.serve_metrics(&["--profiling"]);
    let answer = put(with, "/debug/flags/v", "4");
    let said = "successfully set klog.logging.verbosity to 4";
    assert_eq!((answer.code, answer.body.as_str()), (200, said));
    assert_eq!(put(with, "/debug/flags/v", "much").code, 400);
    assert_eq!(get(with, "/debug/flags/v").code, 406);
    assert_eq!(get(with, "/debug/pprof/profile").code, 404);
}

#[test]
fn who_asks_for_a_structured_page_is_told_that_there_is_none() {
    let world = World::new();
    let address = world.serve_metrics(&[]);
    for path in ["/statusz", "/flagz"] {
        let asked = |accept: &str| {
            let mut stream = TcpStream::connect(address).unwrap();
            write!(stream, "GET {path} HTTP/1.0\r\nAccept: {accept}\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text.split(' ').nth(1).unwrap().to_owned()
        };
        assert_eq!(asked("application/json;v=v1alpha1;g=config.k8s.io;as=Statusz"), "406");
        assert_eq!(asked("application/json, */*;q=0.1"), "200");
        assert_eq!(asked("text/plain"), "200");
    }
}

#[test]
fn gates_switch_pages_off() {
    let world = World::new();
    let gates = "--feature-gates=ComponentFlagz=false,ComponentStatusz=false";
    let address = world.serve_metrics(&[gates]);
    assert_eq!((get(address, "/flagz").code, get(address, "/statusz").code), (404, 404));
}

#[test]
fn slis_count_pings_until_they_are_reset() {
    let world = World::new();
    let address = world.serve_metrics(&[]);
    let pings = || {
        let body = get(address, "/metrics/slis").body;
        assert!(
            body.contains("\nkubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n"),
            "{body}"
        );
        body.lines().last().unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(pings(), "0");
    get(address, "/healthz");
    get(address, "/healthz");
    assert_eq!(pings(), "2");
    assert_eq!(request(address, "DELETE", "/metrics/slis").body, "metrics reset\n");
    assert_eq!(pings(), "0");
}

/// Lets promtool judge a page of metrics.
#[track_caller]
pub(crate) fn check_page(page: &str) {
    let complaints = promtool(page);
    // The names are kube-proxy's, and dashboards know them: promtool would have gauges not end in _total.
    let kept = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    let others: Vec<&str> = complaints.lines().filter(|line| !line.starts_with(kept)).collect();
    assert_eq!(others, Vec::<&str>::new());
}

/// Debian's prometheus package has promtool; it judges both pages.
#[test]
fn promtool_finds_nothing_to_complain_about() {
    let world = World::new();
    exercise(&world.metrics);
    let address = world.serve_metrics(&[]);
    let page = get(address, "/metrics");
    assert!(
        page.headers.contains(&"content-type: text/plain; version=0.0.4; charset=utf-8".to_owned())
    );
    check_page(&page.body);
    assert_eq!(promtool(&get(address, "/metrics/slis").body), "");
}

/// A server whose port is taken waits for it, and one that must not wait fails.
#[test]
fn a_taken_port_is_tried_again_or_an_error() {
    let world = World::new();
    let taken = take(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let address = taken.local_addr().unwrap().as_socket().unwrap();
    let router = || health_router(world.health.clone(), world.metrics.clone());
    let server =
        Server { purpose: "health", option: "--healthz-bind-address", address, retry: None };
    let error = world
        .runtime()
        .block_on(server.run(router(), turn(), std::future::pending(), drop))
        .unwrap_err();
    assert!(error.to_string().contains("does another kube-proxy or kube-ferry run"), "{error}");

    let retry = Some(Duration::from_millis(5));
    let waiting = world.runtime().spawn(Server { retry, ..server }.run(
        router(),
        turn(),
        std::future::pending(),
        drop,
    ));
    drop(taken);
    // A refused connection is the only thing to wait for; the deadline only ends a broken test.
    let connected = world.runtime().block_on(async {
        tokio::time::timeout(LONG, async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await
    });
    assert!(connected.is_ok(), "the port was not taken up");
    assert_eq!(get(address, "/livez").code, 200);
    waiting.abort();
}

#[expect(clippy::disallowed_methods, reason = "promtool is an independent witness")]
fn promtool(page: &str) -> String {
    use std::process::{Command, Stdio};
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is needed: apt-get install prometheus");
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

/// Lets every metric appear.
pub(crate) fn exercise(metrics: &Metrics) {
    use kube_ferry::model::{Resource, Skipped};
    use kube_ferry::serve::metrics::{BatchResult, PolicyKind, RowOp, SyncKind};
    let (now, took) = (Timestamp::UNIX_EPOCH, Duration::from_millis(1));
    for family in Family::ALL {
        metrics.sync_queued(family, now);
        metrics.sync_succeeded(family, now);
        metrics.sync_failed(family);
        metrics.sync_done(family, SyncKind::Full, took);
        metrics.sync_done(family, SyncKind::Partial, took);
        metrics.programmed(family, took);
        metrics.no_local_endpoints(family, PolicyKind::Internal, 1);
        metrics.rows_written(family, "frontends", RowOp::Delete, 1);
        metrics.set_elements(family, "frontends", 1);
        metrics.set_size(family, "frontends", 2);
        metrics.drift_repaired(family);
        metrics.conntrack_reconciled(family, 1, took);
    }
    metrics.batch(BatchResult::Uncertain, 1, took);
    metrics.ipvs_operations(1, 1, took);
    let stats = Arc::new(Stats::default());
    metrics.show_watches(stats.clone());
    for resource in
        [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr]
    {
        let of = stats.of(resource);
        for counter in [&of.objects, &of.lists, &of.bytes] {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        of.last_contact.store(1, Ordering::Relaxed);
        of.count_error(Trouble::Broken);
        let name = ObjectName::new("a", "b");
        stats.count_skipped(&Skipped {
            resource,
            name,
            uid: None,
            reason: "malformed",
            message: String::new(),
        });
    }
    metrics.healthz_answered(200);
    metrics.livez_answered(200);
    metrics.config_reloaded(true);
    metrics.request("GET", "192.0.2.1:6443", Some(200), took);
    metrics.memory("nft", 1);
}

/// Servers on a runtime of their own thread, as in the program.
///
/// The thread that makes one is in a network namespace from then on in which all ports are free, and stay so.
struct World {
    health: SharedHealth,
    metrics: Metrics,
    runtime: Option<Arc<Runtime>>,
    _host: Namespace,
}

/// No other copy has the ports.
fn turn() -> kube_ferry::serve::http::Turn {
    tokio::sync::watch::channel(true).1
}

impl World {
    fn new() -> Self {
        // First, because the threads that follow inherit it.
        let host = own_host();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let runtime = Arc::new(runtime);
        let driver = runtime.clone();
        // Ends with the test's process.
        std::thread::spawn(move || driver.block_on(std::future::pending::<()>()));
        World {
            health: SharedHealth::new(Duration::from_secs(30)),
            metrics: Metrics::new(&Default::default()).unwrap(),
            runtime: Some(runtime),
            _host: host,
        }
    }

    fn runtime(&self) -> tokio::runtime::Handle {
        self.runtime.as_ref().unwrap().handle().clone()
    }

    fn serve_health(&self) -> SocketAddr {
        self.serve(health_router(self.health.clone(), self.metrics.clone()), Ipv4Addr::UNSPECIFIED)
    }

    fn serve_metrics(&self, flags: &[&str]) -> SocketAddr {
        let line = ["kube-ferry"].iter().chain(flags).map(std::ffi::OsString::from);
        let config = settings::resolve(&Args::parse_from(line).unwrap(), None, "node").unwrap();
        let pages = Pages::new(&config, self.metrics.clone(), Timestamp::now()).unwrap();
        self.serve(metrics_router(Arc::new(pages)), Ipv4Addr::LOCALHOST)
    }

    fn serve(&self, router: axum::Router, ip: Ipv4Addr) -> SocketAddr {
        // Free again at once: nobody else is here to take it.
        let address = take((ip, 0).into()).local_addr().unwrap().as_socket().unwrap();
        let retry = Some(Duration::from_millis(5));
        let server = Server { purpose: "test", option: "none", address, retry };
        self.runtime().spawn(server.run(router, turn(), std::future::pending(), drop));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()));
        poll(LONG, || TcpStream::connect(address).map_err(|error| error.to_string())).unwrap();
        address
    }
}

/// Takes a port without listening. Of a listener, a process that another test is about to start has a copy until it executes its
/// program, and who connects after it was closed here would still find that.
fn take(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

/// Waits until nobody listens there, for the same reason.
#[track_caller]
fn closes(address: SocketAddr) {
    let refused = || match TcpStream::connect(address) {
        Ok(_) => Err(format!("{address} is open")),
        Err(_) => Ok(()),
    };
    poll(LONG, refused).unwrap();
}

#[derive(Debug)]
struct Response {
    code: u16,
    /// Lower-cased names.
    headers: Vec<String>,
    body: String,
}

fn get(address: SocketAddr, path: &str) -> Response {
    request(address, "GET", path)
}

#[track_caller]
fn request(address: SocketAddr, method: &str, path: &str) -> Response {
    send(address, method, path, "")
}

#[track_caller]
fn put(address: SocketAddr, path: &str, body: &str) -> Response {
    send(address, "PUT", path, body)
}

#[track_caller]
fn send(address: SocketAddr, method: &str, path: &str, body: &str) -> Response {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let code = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            format!("{}: {value}", name.to_lowercase())
        })
        .collect();
    Response { code, headers, body: body.to_owned() }
}
