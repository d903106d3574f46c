//! What is asked of a healthy API server, and what comes of it.

use std::time::Duration;

use kube_ferry::model::Resource;
use kube_ferry::watch::{State, Trouble};
use serde_json::json;

use super::rig::{Patience, Rig, furnish, node, service, service_cidr, slice, stir};
use crate::support::apiserver::{ApiServer, Ask, Fault, On};

#[test]
fn everything_arrives_and_changes_follow() {
    let server = ApiServer::start();
    furnish(&server, 10);
    let mut rig = Rig::watch(&server);
    rig.settle(&server);
    for round in 0..5 {
        stir(&server, round);
        rig.settle(&server);
    }
    let known = rig.known();
    assert_eq!((known.services.len(), known.slices.len(), known.cidrs.len()), (11, 6, 1));
    assert!(known.node.is_some());
    // One streaming list each, nothing else.
    assert_eq!(server.requests().len(), 4);
    assert!(server.bytes_received() < 4_000, "{}", server.bytes_received());
    assert!(server.requests().iter().all(|it| it.is_stream()));
}

/// A Node's heartbeat, an annotation, a label that nobody consults: half of all events in a large cluster.
#[test]
fn an_object_that_says_what_was_known_goes_no_further() {
    let server = ApiServer::start();
    furnish(&server, 3);
    let mut rig = Rig::watch(&server);
    rig.settle(&server);
    let before = rig.story.len();
    let annotated = |mut object: serde_json::Value, n: u16| {
        object["metadata"]["annotations"] = json!({ "round": n.to_string() });
        object["metadata"]["labels"]["round"] = n.to_string().into();
        object
    };
    for n in 0..10 {
        server.put(annotated(service("s1", 1), n));
        server.put(annotated(slice("s1", 1), n));
        server.put(annotated(node("n1"), n));
    }
    server.put(service("last", 500));
    rig.settle(&server);
    rig.until("ten of each that are unchanged", |rig| {
        let unchanged = |it| rig.stats(it).unchanged.load(std::sync::atomic::Ordering::Relaxed);
        [Resource::Service, Resource::EndpointSlice, Resource::Node].map(unchanged) == [10; 3]
    });
    assert_eq!(rig.story[before..], ["Service shop/last"], "{:#?}", rig.story);
    // What matters is told, and so is the way back.
    server.put(annotated(service("s1", 77), 10));
    server.put(annotated(service("s1", 1), 11));
    rig.until("two changes", |rig| rig.story.len() == before + 3);
    assert_eq!(rig.story[before + 1..], ["Service shop/s1", "Service shop/s1"]);
}

#[test]
fn selectors_and_agent_on_the_wire_are_as_documented() {
    let server = ApiServer::start();
    furnish(&server, 1);
    server.refuse_streaming_lists();
    let mut rig = Rig::watch(&server);
    rig.settle(&server);
    rig.until_watching();
    check(&server, "services", "!service.kubernetes.io/service-proxy-name", "spec.clusterIP!=None");
    check(&server, "endpointslices", "!service.kubernetes.io/headless", "");
    check(&server, "nodes", "", "metadata.name=n1");
    check(&server, "servicecidrs", "", "");

    /// Streaming list, paged list and watch all carry the same selectors.
    #[track_caller]
    fn check(server: &ApiServer, plural: &str, labels: &str, fields: &str) {
        let requests = server.requests_for(plural);
        let kinds: Vec<_> =
            requests.iter().map(|it| (it.is_stream(), it.is_list(), it.is_watch())).collect();
        let expected = [(true, false, false), (false, true, false), (false, false, true)];
        assert_eq!(kinds, expected, "{requests:#?}");
        for request in &requests {
            let get = |key| request.query.get(key).map_or("", String::as_str);
            assert_eq!((get("labelSelector"), get("fieldSelector")), (labels, fields));
            assert_eq!(request.user_agent, concat!("kube-ferry/", env!("CARGO_PKG_VERSION")));
            if !request.is_list() {
                assert_eq!(get("allowWatchBookmarks"), "true");
                let seconds: u64 = get("timeoutSeconds").parse().unwrap();
                assert!((300..=600).contains(&seconds), "{seconds}");
            }
        }
        assert_eq!(requests[1].query["limit"], "500");
        assert_eq!(requests[1].query["resourceVersion"], "0");
    }
}

#[test]
fn a_server_without_streaming_lists_is_asked_for_pages() {
    let server = ApiServer::start();
    furnish(&server, 1_200);
    server.refuse_streaming_lists();
    let mut rig = Rig::watch(&server);
    rig.settle(&server);
    let pages = server.requests_for("services").iter().filter(|it| it.is_list()).count();
    assert_eq!(pages, 3, "1,202 Services, 500 a page");
    stir(&server, 0);
    rig.settle(&server);
    assert_eq!(rig.stats(Resource::Service).errors(Trouble::Refused), 0, "that is no failure");
}

#[test]
fn an_expired_page_begins_the_list_anew() {
    let server = ApiServer::start();
    furnish(&server, 600);
    server.refuse_streaming_lists();
    // The first page is fine, the second one expired.
    let faults = [Fault::Delay(Duration::ZERO), Fault::Status(410, None)];
    server.fail_next(On("services", Ask::List), faults);
    let mut rig = Rig::watch(&server);
    rig.settle(&server);
    let listings = rig.story.iter().filter(|it| *it == "Listing(Service)").count();
    assert_eq!(listings, 2);
    assert_eq!(rig.stats(Resource::Service).errors(Trouble::Gone), 1);
    let last = server
        .requests_for("services")
        .into_iter()
        .rfind(|it| it.is_list() && !it.query.contains_key("continue"));
    assert!(
        last.unwrap().query.get("resourceVersion").is_some_and(|it| it == "0"),
        "nothing was known yet"
    );
}

#[test]
fn moving_in_and_out_of_a_selection_is_seen() {
    let server = ApiServer::start();
    furnish(&server, 2);
    let mut rig = Rig::watch(&server);
    rig.settle(&server);
    let mut foreign = service("s0", 0);
    foreign["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "" });
    server.put(foreign);
    rig.settle(&server);
    assert_eq!(rig.known().services.len(), 1);
    server.put(service("s0", 0));
    rig.settle(&server);
    assert_eq!(rig.known().services.len(), 2);
}

#[test]
fn bookmarks_move_the_version_on() {
    let server = ApiServer::start();
    furnish(&server, 2);
    server.send_bookmarks_every(Duration::from_millis(20));
    let mut rig = Rig::watch(&server);
    rig.settle(&server);
    // Services are quiet while slices change; only bookmarks tell the Services' watch of it.
    for n in 0..50 {
        server.put(slice("busy", n));
    }
    rig.settle(&server);
    let bytes = rig.stats(Resource::Service).bytes.load(std::sync::atomic::Ordering::Relaxed);
    rig.until("a bookmark", |rig| {
        rig.stats(Resource::Service).bytes.load(std::sync::atomic::Ordering::Relaxed) > bytes + 100
    });
    server.drop_connections();
    rig.until("a watch", |_| server.requests_for("services").iter().any(|it| it.is_watch()));
    let requests = server.requests_for("services");
    let resumed: u64 = requests.last().unwrap().query["resourceVersion"].parse().unwrap();
    assert!(resumed >= 50, "{resumed}");
}

#[test]
fn an_old_server_without_service_cidrs_counts_as_having_none() {
    let server = ApiServer::start();
    furnish(&server, 1);
    server.delete("servicecidrs", "", "kubernetes");
    server.remove_resource("servicecidrs");
    let mut rig = Rig::watch(&server);
    rig.settle(&server);
    assert_eq!(rig.stats(Resource::ServiceCidr).state(), State::Absent);
    // It is upgraded.
    server.put(service_cidr("kubernetes"));
    server.restore_resource("servicecidrs");
    rig.settle(&server);
    rig.until_watching();
}

#[test]
fn a_consumer_that_is_busy_stops_the_reading() {
    let server = ApiServer::start();
    let text = "x".repeat(24_000);
    server.load((0..1_200).map(|n| {
        let mut service = service(&format!("s{n}"), n);
        service["metadata"]["annotations"] = json!({ "text": text });
        service
    }));
    let rig = Rig::watch_as(kube_ferry::watch::Server::Address(server.url()), 8, Patience::Long);
    // Nothing is received: the bytes on the way come to a stop long before all 29 MB.
    let mut last = u64::MAX;
    while last != server.bytes_sent() || last == 0 {
        last = server.bytes_sent();
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(last < 16 << 20, "{last} bytes were taken in although nobody wanted them");
    let mut rig = rig;
    rig.settle(&server);
}

#[test]
fn watchers_end_when_nobody_listens() {
    let server = ApiServer::start();
    furnish(&server, 1);
    let mut rig = Rig::watch(&server);
    rig.settle(&server);
    rig.end();
}
