//! Connections, credentials, Events, and what is said when they fail.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use kube_ferry::model::{ObjectName, Resource};
use kube_ferry::watch::{ApiClient, Notice, NoticeKind, Regarding, Server, Trouble};

use super::rig::{Patience, Rig, furnish, service, stir};
use crate::support::apiserver::{ApiServer, Ask, Client, Fault, On};

#[test]
fn four_watches_share_one_connection() {
    let server = ApiServer::start_tls();
    furnish(&server, 50);
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::watch_with(&server.kubeconfig(directory.path(), None));
    rig.settle(&server);
    rig.until_watching();
    rig.recorder.record(starting());
    rig.until("an Event", |_| !server.events().is_empty());
    assert_eq!(server.connections(), 1);
    assert!(server.requests().iter().all(|it| it.http2 && it.connection == 1));
    // After it broke there is one again, although four watches lost theirs at once.
    server.drop_connections();
    stir(&server, 1);
    rig.settle(&server);
    rig.until_watching();
    assert_eq!(server.connections(), 2);
}

#[test]
fn a_server_without_http2_gets_http1() {
    let server = ApiServer::start_tls_http1();
    furnish(&server, 5);
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::watch_with(&server.kubeconfig(directory.path(), None));
    rig.settle(&server);
    assert!(server.requests().iter().all(|it| !it.http2));
    stir(&server, 1);
    rig.settle(&server);
}

#[test]
fn a_rotated_token_is_picked_up() {
    let server = ApiServer::start_tls();
    furnish(&server, 5);
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    fs::write(&token, "first").unwrap();
    server.demand_token("first");
    let mut rig = Rig::watch_with(&server.kubeconfig(directory.path(), Some(&token)));
    rig.settle(&server);
    // The server takes the new one only, and the old connection breaks.
    server.demand_token("second");
    server.drop_connections();
    rig.until_error(Resource::Service, Trouble::Unauthorized);
    fs::write(&token, "second").unwrap();
    stir(&server, 1);
    rig.settle(&server);
    // One that was sent by the old token may come last.
    rig.until("the new token", |_| {
        let requests = server.requests();
        ["services", "endpointslices", "nodes", "servicecidrs"].iter().all(|plural| {
            let mut of = requests.iter().filter(|it| it.path.ends_with(plural));
            of.any(|it| it.authorization == "Bearer second")
        })
    });
}

/// As kubelet does it: a link to a file with certificate and key leads to another one.
#[test]
fn a_rotated_client_certificate_is_picked_up() {
    check_rotation(ApiServer::demand_new_client, &[Trouble::Unauthorized]);
}

/// The server does not even complete the handshake with the old one.
#[test]
fn a_client_certificate_of_a_new_authority_is_picked_up() {
    check_rotation(ApiServer::demand_client_of_new_authority, &[Trouble::Tls, Trouble::Broken]);
}

#[track_caller]
fn check_rotation(rotate: fn(&mut ApiServer) -> Client, troubles: &[Trouble]) {
    let errors = |rig: &Rig| -> u64 {
        troubles.iter().map(|it| rig.stats(Resource::Service).errors(*it)).sum()
    };
    for start in [ApiServer::start_tls, ApiServer::start_tls_http1] {
        let mut server = start();
        furnish(&server, 5);
        let directory = tempfile::tempdir().unwrap();
        let current = directory.path().join("client-current.pem");
        let swap = |client: &Client, name: &str| {
            let (file, link) = (directory.path().join(name), directory.path().join("new"));
            fs::write(&file, format!("{}{}", client.certificate, client.key)).unwrap();
            symlink(&file, &link).unwrap();
            fs::rename(&link, &current).unwrap();
        };
        swap(&server.demand_new_client(), "first.pem");
        let file = current.display();
        let user = format!("client-certificate: {file}\n    client-key: {file}");
        let mut rig = Rig::watch_with(&server.kubeconfig_of(directory.path(), &user));
        rig.settle(&server);
        rig.until_watching();
        let refused = |rig: &mut Rig, server: &ApiServer| {
            let before = errors(rig);
            server.drop_connections();
            // The first is about the connection that was closed.
            rig.until("refusals", |it| errors(it) > before + 2);
        };
        let next = rotate(&mut server);
        refused(&mut rig, &server);
        swap(&next, "second.pem");
        stir(&server, 1);
        rig.settle(&server);
        rig.until_watching();
        // In place, and the certificate before its key: for a moment they do not fit.
        let last = rotate(&mut server);
        let whole = fs::read_to_string(&current).unwrap();
        let old_key = &whole[next.certificate.len()..];
        fs::write(&current, format!("{}{old_key}", last.certificate)).unwrap();
        refused(&mut rig, &server);
        fs::write(&current, format!("{}{}", last.certificate, last.key)).unwrap();
        stir(&server, 2);
        rig.settle(&server);
        rig.until_watching();
    }
}

#[test]
fn a_rotated_certificate_authority_is_picked_up() {
    let mut server = ApiServer::start_tls();
    furnish(&server, 5);
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::watch_with(&server.kubeconfig(directory.path(), None));
    rig.settle(&server);
    server.rotate_authority();
    server.drop_connections();
    rig.until_error(Resource::Service, Trouble::Tls);
    server.write_authority(directory.path());
    stir(&server, 1);
    rig.settle(&server);
}

#[test]
fn half_a_rotation_keeps_the_old_credentials() {
    let mut server = ApiServer::start_tls();
    furnish(&server, 5);
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::watch_with(&server.kubeconfig(directory.path(), None));
    rig.settle(&server);
    fs::remove_file(directory.path().join("ca.crt")).unwrap();
    server.rotate_authority();
    server.drop_connections();
    rig.until_error(Resource::Service, Trouble::Tls);
    server.write_authority(directory.path());
    stir(&server, 1);
    rig.settle(&server);
}

// Events.

#[test]
fn events_are_posted_once() {
    let server = ApiServer::start();
    let mut rig = Rig::watch(&server);
    rig.recorder.record(starting());
    rig.recorder.record(starting());
    let name = ObjectName::new("shop", "web");
    let regarding = Regarding::Object { resource: Resource::Service, name, uid: None };
    rig.recorder.record(Notice { kind: NoticeKind::Warning, regarding, ..starting() });
    rig.until("both", |_| server.events().len() == 2);
    let (node, service) = (&server.events()[0], &server.events()[1]);
    assert_eq!(node["reportingController"], "kube-proxy");
    assert_eq!(node["reportingInstance"], "kube-ferry-n1");
    assert_eq!(service["regarding"]["name"], "web");
    let posts: Vec<_> = server.requests_for("events").into_iter().map(|it| it.path).collect();
    assert_eq!(
        posts,
        ["default", "shop"].map(|it| format!("/apis/events.k8s.io/v1/namespaces/{it}/events"))
    );
}

#[test]
fn an_event_that_is_refused_is_dropped_and_counted() {
    let server = ApiServer::start();
    server.fail_next(On("events", Ask::Any), [Fault::Status(403, None)]);
    let mut rig = Rig::watch(&server);
    rig.recorder.record(starting());
    rig.until("the drop", |rig| rig.recorder.dropped() == 1);
    assert!(server.events().is_empty());
}

#[test]
fn an_unusable_object_becomes_an_event() {
    let server = ApiServer::start();
    furnish(&server, 1);
    let mut bad = service("bad", 1);
    bad["spec"]["clusterIPs"] = serde_json::json!(["10.96.0.300"]);
    bad["spec"]["clusterIP"] = "10.96.0.300".into();
    server.put(bad);
    let mut rig = Rig::watch(&server);
    rig.until("the Event", |_| !server.events().is_empty());
    let event = &server.events()[0];
    assert_eq!(event["regarding"]["name"], "bad");
    assert_eq!(event["type"], "Warning");
    assert!(event["note"].as_str().unwrap().contains("cluster IP"), "{event}");
    // The good one is not held up.
    rig.until("the good one", |rig| rig.known().services.len() == 1);
}

fn starting() -> Notice {
    Notice {
        kind: NoticeKind::Normal,
        reason: "Starting",
        action: "StartKubeProxy",
        note: String::new(),
        regarding: Regarding::Node,
    }
}

// What is said.

#[test]
fn an_unreadable_kubeconfig_says_so() {
    check_start(
        |directory| Server::Kubeconfig { path: directory.join("none"), master: None },
        &["none", "No such file", "may this user read it"],
    );
    check_start(
        |directory| write(directory, "apiVersion: v1\nkind: Config\nclusters: 7\n"),
        &["kubeconfig"],
    );
    check_start(
        |directory| {
            let broken = "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: \
                          'https://192.0.2.1', certificate-authority: /none/ca.crt}}]\nusers: [{name: u, user: {}}]\n\
                          contexts: [{name: c, context: {cluster: c, user: u}}]\n";
            write(directory, broken)
        },
        &["/none/ca.crt"],
    );
}

/// The proxy is asked for the server's address, and TLS is spoken with the server through it.
#[test]
fn a_proxy_in_the_kubeconfig_is_asked_to_connect() {
    let server = ApiServer::start_tls();
    furnish(&server, 2);
    let (proxy, asked) = connect_proxy();
    let directory = tempfile::tempdir().unwrap();
    let path = server.kubeconfig(directory.path(), None);
    let direct = fs::read_to_string(&path).unwrap();
    let address = format!("server: {}", server.url());
    let proxied = format!("{address}\n    proxy-url: http://me:secret@{proxy}");
    fs::write(&path, direct.replace(&address, &proxied)).unwrap();
    let mut rig = Rig::watch_with(&path);
    rig.settle(&server);
    let host = server.url().replace("https://", "");
    let asked: Vec<String> = asked.try_iter().collect();
    assert_eq!(asked.len(), 1, "one HTTP/2 connection: {asked:?}");
    assert!(asked[0].starts_with(&format!("CONNECT {host} HTTP/1.1\r\n")), "{asked:?}");
    assert!(asked[0].contains("Proxy-Authorization: Basic bWU6c2VjcmV0\r\n"), "{asked:?}");
}

/// A proxy on loopback that connects whoever asks; what it was asked comes through the channel.
fn connect_proxy() -> (std::net::SocketAddr, std::sync::mpsc::Receiver<String>) {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, asked) = std::sync::mpsc::channel();
    // Both threads of a connection end with it, this one with the test's process.
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(client.try_clone().unwrap());
            let mut request = String::new();
            while !request.ends_with("\r\n\r\n") {
                assert_ne!(reader.read_line(&mut request).unwrap(), 0);
            }
            let target = request.split(' ').nth(1).unwrap().to_owned();
            let upstream = std::net::TcpStream::connect(target).unwrap();
            sender.send(request).unwrap();
            (&client).write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let (mut to, mut back) = (upstream.try_clone().unwrap(), client);
            std::thread::spawn(move || std::io::copy(&mut reader, &mut to));
            let mut from = upstream;
            std::thread::spawn(move || std::io::copy(&mut from, &mut back));
        }
    });
    (address, asked)
}

#[test]
fn a_proxy_that_is_not_http_is_refused_and_a_bad_address_too() {
    let proxied = "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: \
                   'https://192.0.2.1', proxy-url: 'socks5://p:1'}}]\nusers: [{name: u, user: {}}]\n\
                   contexts: [{name: c, context: {cluster: c, user: u}}]\n";
    check_start(
        |directory| write(directory, proxied),
        &["proxy-url", "socks5://p:1", "only HTTP proxies"],
    );
    check_start(|_| Server::Address("192.0.2.1/x".to_owned()), &["192.0.2.1/x", "https://"]);
    check_start(|_| Server::Address("https://a b".to_owned()), &["https://a b"]);
}

/// As `kubectl config set-cluster --server=192.0.2.1:6443` writes it. What kube makes of it panics at the first request.
#[test]
fn a_server_without_a_scheme_is_what_kubectl_takes_it_for() {
    let server = ApiServer::start_tls();
    furnish(&server, 1);
    let directory = tempfile::tempdir().unwrap();
    let path = server.kubeconfig(directory.path(), None);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("server: https://"), "{text}");
    fs::write(&path, text.replace("server: https://", "server: ")).unwrap();
    let mut rig = Rig::watch_with(&path);
    rig.settle(&server);
}

#[test]
fn outside_of_a_pod_there_is_no_in_cluster_configuration() {
    check_start(|_| Server::from_flags(None, None), &["in-cluster", "--kubeconfig", "--manifests"]);
}

#[track_caller]
fn check_start(server: impl FnOnce(&Path) -> Server, expected: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = runtime.block_on(ApiClient::new(server, Patience::Long.connection()));
    let Err(error) = result else { panic!("it was accepted") };
    let text = error.to_string();
    for part in expected {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

fn write(directory: &Path, text: &str) -> Server {
    let path: PathBuf = directory.join("kubeconfig");
    fs::write(&path, text).unwrap();
    Server::Kubeconfig { path, master: None }
}

#[test]
fn a_kubeconfig_may_be_a_link_that_is_swapped() {
    let server = ApiServer::start_tls();
    furnish(&server, 2);
    let directory = tempfile::tempdir().unwrap();
    let real = tempfile::tempdir().unwrap();
    let link = directory.path().join("kubeconfig");
    symlink(server.kubeconfig(real.path(), None), &link).unwrap();
    let mut rig = Rig::watch_with(&link);
    rig.settle(&server);
    // The cluster moved: another server, another authority.
    let other = ApiServer::start_tls();
    furnish(&other, 3);
    let new = tempfile::tempdir().unwrap();
    let swapped = directory.path().join("new");
    symlink(other.kubeconfig(new.path(), None), &swapped).unwrap();
    fs::rename(&swapped, &link).unwrap();
    other.compact();
    server.go_down();
    rig.settle(&other);
}

#[test]
fn failures_say_what_was_tried_and_what_to_do() {
    let down = ApiServer::start();
    down.go_down();
    let address = down.url();
    check_request(
        Server::Address(address.clone()),
        Trouble::Connect,
        &[&format!("GET {address}/api/v1/nodes: "), "refused", "--master"],
    );

    let server = ApiServer::start_tls();
    let untrusting = Server::Address(server.url());
    check_request(
        untrusting,
        Trouble::Tls,
        &[&server.url(), "certificate", "certificate-authority"],
    );

    let name = Server::Address("http://no-such-host.invalid:1".to_owned());
    check_request(name, Trouble::Connect, &["no-such-host.invalid", "lookup"]);

    let server = ApiServer::start();
    server.fail_next(On("nodes", Ask::Any), [Fault::Status(403, None)]);
    check_request(
        Server::Address(server.url()),
        Trouble::Forbidden,
        &["GET", "/api/v1/nodes", "403", "ClusterRole", "endpointslices", "system:node-proxier"],
    );
}

/// One request connects, the others wait for it: the cause is told to all of them.
#[test]
fn everybody_who_waited_for_a_connection_is_told_why_there_is_none() {
    let down = ApiServer::start_tls();
    let directory = tempfile::tempdir().unwrap();
    let path = down.kubeconfig(directory.path(), None);
    down.go_down();
    let untrusting = ApiServer::start_tls();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (server, trouble, word) in [
        (Server::Kubeconfig { path, master: None }, Trouble::Connect, "refused"),
        (Server::Address(untrusting.url()), Trouble::Tls, "certificate"),
    ] {
        let errors = runtime.block_on(async {
            let client = ApiClient::new(server, Patience::Long.connection()).await.unwrap();
            futures::future::join_all((0..5).map(|_| client.probe())).await
        });
        for error in errors.into_iter().map(Result::unwrap_err) {
            assert!(error.trouble == trouble && error.what.contains(word), "{error:?}");
            assert!(!error.what.contains("canceled"), "{error:?}");
        }
    }
}

#[track_caller]
fn check_request(server: Server, trouble: Trouble, expected: &[&str]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(async {
        let client = ApiClient::new(server, Patience::Long.connection()).await.unwrap();
        client.probe().await.unwrap_err()
    });
    assert_eq!(error.trouble, trouble, "{error}");
    let text = error.to_string();
    for part in expected {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}
