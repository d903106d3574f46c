//! The proxy's own certificate is rotated under it: it goes on as one process, and traffic never notices.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::dump::dump;
use super::node::{STEADY, service, steady};
use super::traffic::Traffic;
use crate::support::apiserver::{ApiServer, Client};
use crate::support::patience::{LONG, poll};
use crate::support::proxy::Proxy;
use crate::support::world::{World, twin};

#[test]
fn a_rotated_client_certificate_is_taken_up_without_a_restart() {
    check(ApiServer::demand_new_client);
}

#[test]
fn a_client_certificate_of_a_new_authority_is_taken_up_without_a_restart() {
    check(ApiServer::demand_client_of_new_authority);
}

#[track_caller]
fn check(rotate: fn(&mut ApiServer) -> Client) {
    let world = World::new();
    let mut server = world.node().run(ApiServer::start_tls);
    let six = twin(STEADY.into()).to_string();
    server.load(service("steady", "10.96.0.10", &six, &[10, 11]));
    server.load([crate::watch::rig::node("node-1"), crate::watch::rig::service_cidr("kubernetes")]);
    let directory = tempfile::tempdir().unwrap();
    let current = directory.path().join("client-current.pem");
    swap(&current, &server.demand_new_client());
    let file = current.display();
    let user = format!("client-certificate: {file}\n    client-key: {file}");
    let kubeconfig = server.kubeconfig_of(directory.path(), &user);
    let arguments = [
        "--proxy-mode=nftables".to_owned(),
        "--hostname-override=node-1".to_owned(),
        "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48".to_owned(),
        format!("--kubeconfig={}", kubeconfig.display()),
    ];
    let log = directory.path().join("log");
    let mut proxy = Proxy::start(world.node(), arguments.to_vec(), log).unwrap();
    let traffic = Traffic::start(&world, steady());
    for number in 1..=2 {
        let errors = || proxy.metric("kubeferry_watch_errors_total").unwrap_or_default();
        let before = errors();
        let next = rotate(&mut server);
        server.drop_connections();
        // Each of the four watches: that its connection is closed, and that it gets no other one.
        let refused = || (errors() >= before + 8.0).then_some(()).ok_or(proxy.log());
        poll(LONG, refused).unwrap();
        swap(&current, &next);
        let address = format!("10.96.7.{number}");
        let six = format!("fd00:10:96::7:{number}");
        server.load(service(&format!("new-{number}"), &address, &six, &[10]));
        let programmed = || {
            let there = dump(world.node()).iter().any(|line| line.contains(&address));
            there.then_some(()).ok_or(proxy.log())
        };
        poll(LONG, programmed).unwrap();
        traffic.go_on(5);
    }
    assert_eq!(proxy.exit_status(), None);
    assert_eq!(proxy.log().matches("serving metrics").count(), 1, "one process did it all");
    traffic.end();
}

/// Puts certificate and key in place as kubelet does: a link that leads to a file with both leads to another one.
fn swap(current: &Path, client: &Client) {
    let file = tempfile::NamedTempFile::new_in(current.parent().unwrap()).unwrap();
    let (_, file) = file.keep().unwrap();
    fs::write(&file, format!("{}{}", client.certificate, client.key)).unwrap();
    let link = current.with_extension("new");
    symlink(&file, &link).unwrap();
    fs::rename(&link, current).unwrap();
}
