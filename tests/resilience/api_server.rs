//! An API server that is away, slow, overloaded or lies, a token that is rotated: traffic goes on by the rules of before, and
//! what has changed meanwhile is programmed afterwards, by the same process.

use std::time::Duration;

use super::cluster::Cluster;
use super::node::steady;
use super::traffic::Traffic;
use crate::support::apiserver::{ApiServer, Ask, Fault, On};
use crate::support::patience::{LONG, poll};

const RESOURCES: [&str; 4] = ["services", "endpointslices", "nodes", "servicecidrs"];

/// Rounds of traffic while something is wrong.
const DURING: usize = 20;

#[test]
fn an_expired_version_as_an_answer() {
    check("gone", |it| answers(it, &[Fault::Status(410, None)]));
}

#[test]
fn an_expired_version_in_the_stream() {
    check("gone", |it| answers(it, &[Fault::ErrorEvent(410)]));
}

#[test]
fn too_many_requests() {
    check("too-many-requests", |it| answers(it, &[Fault::Status(429, Some(1))]));
}

#[test]
fn server_errors() {
    check("server-error", |it| answers(it, &[Fault::Status(500, None), Fault::Status(503, None)]));
}

#[test]
fn streams_that_break_off() {
    let cuts = [Fault::Cut { after: 0, clean: true }, Fault::Cut { after: 0, clean: false }];
    check("broken", |it| answers(it, &cuts));
}

#[test]
fn truncated_json() {
    let line = "{\"type\":\"ADDED\",\"object\":{\"metad".to_owned();
    check("garbage", |it| answers(it, &[Fault::Insert { after: 0, line: line.clone() }]));
}

#[test]
fn a_login_page_instead() {
    check("garbage", |it| answers(it, &[Fault::LoginPage, Fault::Status(302, None)]));
}

/// Everything is listed anew, twice, and in the wrong order.
#[test]
fn events_repeated_and_out_of_order() {
    check("gone", |it| {
        it.compact();
        answers(it, &[Fault::Delay(Duration::ZERO), Fault::Repeat]);
    });
}

#[test]
fn slow_answers() {
    check("", |it| answers(it, &[Fault::Delay(Duration::from_secs(2))]));
}

/// The node of a world sends no resets, so who wants to connect hears nothing, as from a server without power.
#[test]
fn an_outage() {
    check("silence", ApiServer::go_down);
}

/// Pings find out, within 20 s.
#[test]
fn half_open_connections() {
    check("broken", ApiServer::freeze_connections);
}

/// The next requests of every watch, one after the other, meet these.
fn answers(server: &ApiServer, faults: &[Fault]) {
    for resource in RESOURCES {
        server.fail_next(On(resource, Ask::Any), faults.iter().cloned());
    }
    server.drop_connections();
}

/// `reason`: what the proxy is to count, if anything.
#[track_caller]
fn check(reason: &str, befall: impl Fn(&ApiServer)) {
    let cluster = Cluster::new();
    let mut proxy = cluster.proxy("{}");
    let traffic = Traffic::start(&cluster.world, steady());
    befall(&cluster.server);
    cluster.create(1);
    traffic.go_on(DURING);
    if !reason.is_empty() {
        poll(LONG, || {
            let counted = cluster.failures(&proxy, reason);
            (counted >= 1.0).then_some(()).ok_or_else(|| format!("{reason}: {}", proxy.log()))
        })
        .unwrap();
    }
    assert_eq!(cluster.health("/livez"), Ok(200));
    cluster.server.come_up();
    cluster.programmed(&proxy, 1);
    traffic.go_on(DURING);
    assert_eq!(proxy.exit_status(), None);
    assert_eq!(proxy.log().matches("serving metrics").count(), 1, "one process did it all");
    traffic.end();
}

#[test]
fn a_rotated_token() {
    let cluster = Cluster::new();
    let token = cluster.path("token");
    std::fs::write(&token, "first").unwrap();
    cluster.server.demand_token("first");
    let mut proxy = cluster.proxy(&format!("tokenFile: {}", token.display()));
    let traffic = Traffic::start(&cluster.world, steady());
    cluster.server.demand_token("second");
    cluster.server.drop_connections();
    cluster.create(1);
    poll(LONG, || {
        let refused = cluster.failures(&proxy, "unauthorized") >= 4.0;
        refused.then_some(()).ok_or_else(|| proxy.log())
    })
    .unwrap();
    traffic.go_on(DURING);
    assert!(!cluster.has(1));
    std::fs::write(&token, "second").unwrap();
    cluster.programmed(&proxy, 1);
    assert_eq!(proxy.exit_status(), None);
    traffic.end();
}
