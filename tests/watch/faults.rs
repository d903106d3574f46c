//! What goes wrong on the way, and that the right state comes out of it all the same.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kube_ferry::model::Resource;
use kube_ferry::watch::{State, Trouble};
use tokio::time::Instant;

use super::rig::{Patience, Rig, furnish, node, service, stir};
use crate::support::apiserver::{ApiServer, Ask, Fault, On};
use crate::support::dice::Dice;

// Every fault, at every stage.

#[test]
fn too_many_requests() {
    check(Fault::Status(429, None), Trouble::TooManyRequests);
}

#[test]
fn server_errors() {
    check(Fault::Status(500, None), Trouble::ServerError);
    check(Fault::Status(503, Some(0)), Trouble::ServerError);
}

#[test]
fn an_expired_version_as_an_answer() {
    check(Fault::Status(410, None), Trouble::Gone);
}

#[test]
fn an_expired_version_in_the_stream() {
    check_streams(Fault::ErrorEvent(410), Trouble::Gone);
}

#[test]
fn an_error_in_the_stream() {
    check_streams(Fault::ErrorEvent(500), Trouble::ServerError);
}

#[test]
fn no_permission_for_a_while() {
    check(Fault::Status(401, None), Trouble::Unauthorized);
    check(Fault::Status(403, None), Trouble::Forbidden);
}

#[test]
fn dropped_connections() {
    check(Fault::DropConnection, Trouble::Broken);
}

#[test]
fn an_answer_that_never_comes() {
    check(Fault::Stall, Trouble::Silence);
}

#[test]
fn a_stream_cut_in_the_middle_of_a_line() {
    for after in [0, 1, 3] {
        check(Fault::Cut { after, clean: true }, Trouble::Broken);
        check_streams(Fault::Cut { after, clean: false }, Trouble::Broken);
    }
}

#[test]
fn a_line_that_makes_no_sense() {
    let line = |text: &str| Fault::Insert { after: 1, line: text.to_owned() };
    check_streams(line("{\"type\":\"ADDED\",\"object\":{\"metad"), Trouble::Garbage);
    check_streams(line("<html>Bad Gateway</html>"), Trouble::Garbage);
    check_streams(line("{\"type\":\"ADDED\",\"object\":7}"), Trouble::Garbage);
}

/// The fault meets the first request, of the list and of the stream, and then the one that resumes a watch.
#[track_caller]
fn check(fault: Fault, trouble: Trouble) {
    check_streams(fault.clone(), trouble);
    let server = ApiServer::start();
    furnish(&server, 10);
    server.refuse_streaming_lists();
    server.fail_next(On("services", Ask::List), [fault.clone(), fault]);
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::watch_hastily(&server.kubeconfig(directory.path(), None));
    rig.until_error(Resource::Service, trouble);
    stir(&server, 0);
    rig.settle(&server);
}

/// The same for faults that only streams can have.
#[track_caller]
fn check_streams(fault: Fault, trouble: Trouble) {
    for server in [ApiServer::start(), ApiServer::start_tls()] {
        furnish(&server, 10);
        server.fail_next(On("services", Ask::Stream), [fault.clone(), fault.clone()]);
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::watch_hastily(&server.kubeconfig(directory.path(), None));
        rig.until_error(Resource::Service, trouble);
        stir(&server, 0);
        rig.settle(&server);
        rig.until_watching();
        let errors = rig.stats(Resource::Service).errors(trouble);
        server.fail_next(On("services", Ask::Watch), [fault.clone(), fault.clone(), fault.clone()]);
        server.drop_connections();
        for round in 1..5 {
            stir(&server, round);
        }
        rig.until("the fault", |rig| rig.stats(Resource::Service).errors(trouble) > errors);
        stir(&server, 5);
        rig.settle(&server);
        rig.until_watching();
    }
}

// The rest, one by one.

#[test]
fn a_list_whose_body_never_comes_is_asked_for_in_pages() {
    let server = ApiServer::start();
    furnish(&server, 3);
    server.fail_next(On("services", Ask::Stream), [Fault::StallBody]);
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::watch_hastily(&server.kubeconfig(directory.path(), None));
    rig.settle(&server);
    let pages = server.requests_for("services").into_iter().filter(|it| it.is_list());
    assert!(pages.into_iter().any(|it| it.query["limit"] == "500"));
}

#[test]
fn repeated_and_reordered_events_do_no_harm() {
    let server = ApiServer::start();
    furnish(&server, 5);
    server.fail_next(On("services", Ask::Stream), [Fault::Repeat]);
    let mut rig = Rig::watch(&server);
    rig.settle(&server);
    for n in 0..6 {
        server.put(service("s1", 100 + n));
    }
    server.delete("services", "shop", "s2");
    server.put(service("last", 500));
    rig.settle(&server);
    let applied = rig.story.iter().filter(|it| *it == "Service shop/s1").count();
    assert_eq!(applied, 7, "each version once: {:#?}", rig.story);
    let outdated = rig.stats(Resource::Service).outdated.load(Ordering::Relaxed);
    assert!(outdated > 50, "{outdated}");
}

#[test]
fn what_was_deleted_while_versions_expired_is_gone_after_the_new_list() {
    let server = ApiServer::start();
    furnish(&server, 10);
    let mut rig = Rig::watch(&server);
    rig.settle(&server);
    server.go_down();
    stir(&server, 3);
    server.delete("nodes", "", "n1");
    server.delete("servicecidrs", "", "kubernetes");
    server.compact();
    rig.until_error(Resource::Service, Trouble::Connect);
    server.come_up();
    rig.settle(&server);
    assert!(rig.known().node.is_none());
    assert!(rig.stats(Resource::Service).errors(Trouble::Gone) >= 1);
    // What is newest was asked for: an older state must not come back.
    let lists = server.requests_for("services").into_iter().filter(|it| it.is_stream());
    assert!(lists.count() >= 2);
    server.put(node("n1"));
    rig.settle(&server);
}

/// A restored etcd. The server takes the watches as if nothing were amiss, and tells them nothing.
#[test]
fn versions_that_went_back_are_noticed() {
    for server in [ApiServer::start(), ApiServer::start_tls()] {
        furnish(&server, 10);
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::watch_hastily(&server.kubeconfig(directory.path(), None));
        rig.settle(&server);
        rig.until_watching();
        server.go_down();
        server.restore_version(3);
        stir(&server, 1);
        server.come_up();
        rig.settle(&server);
        rig.until_watching();
        assert!(rig.stats(Resource::Service).errors(Trouble::Gone) >= 1);
        // Whoever is as far as the server is asked now and then, and lists nothing.
        let lists = |rig: &Rig| rig.stats(Resource::Service).lists.load(Ordering::Relaxed);
        let before = lists(&rig);
        let asked = |server: &ApiServer| {
            let requests = server.requests_for("services");
            requests.iter().filter(|it| it.query.get("limit").is_some_and(|it| it == "1")).count()
        };
        let first = asked(&server);
        rig.until("two more questions", |_| asked(&server) >= first + 2);
        stir(&server, 2);
        rig.settle(&server);
        assert_eq!(lists(&rig), before);
    }
}

/// Bookmarks without a version, and with an old one: the watch goes on from where it was.
#[test]
fn bookmarks_that_make_no_sense_take_nothing_away() {
    for metadata in ["{}", "{\"resourceVersion\":\"\"}", "{\"resourceVersion\":\"2\"}"] {
        let server = ApiServer::start();
        furnish(&server, 10);
        let line = format!("{{\"type\":\"BOOKMARK\",\"object\":{{\"metadata\":{metadata}}}}}");
        // Within the list, where it ends nothing, and as all that a watch has to say.
        let within = Fault::Insert { after: 1, line: line.clone() };
        server.fail_next(On("services", Ask::Stream), [within]);
        let mut rig = Rig::watch(&server);
        rig.settle(&server);
        rig.until_watching();
        server.fail_next(On("services", Ask::Watch), [Fault::Answer(format!("{line}\n"))]);
        server.drop_connections();
        let watches = || server.requests_for("services").into_iter().filter(|it| it.is_watch());
        rig.until("the next watch", |_| watches().count() == 2);
        stir(&server, 1);
        rig.settle(&server);
        for request in watches() {
            let from: u64 = request.query["resourceVersion"].parse().unwrap();
            assert!(from > 2, "{request:?}");
        }
        assert_eq!(rig.stats(Resource::Service).lists.load(Ordering::Relaxed), 1);
    }
}

/// Somebody in between who answers in the server's stead: nothing is taken for a list, and afterwards nothing has to be
/// listed again.
#[test]
fn a_login_page_is_no_list_and_no_watch() {
    let server = ApiServer::start_tls();
    furnish(&server, 10);
    server.fail_next(On("services", Ask::Any), [Fault::LoginPage, Fault::Status(302, None)]);
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::watch_with(&server.kubeconfig(directory.path(), None));
    rig.settle(&server);
    rig.until_watching();
    let before = rig.stats(Resource::Service).lists.load(Ordering::Relaxed);
    let known = rig.known().clone();
    let pages =
        (0..8).map(|n| if n % 2 == 0 { Fault::LoginPage } else { Fault::Status(302, None) });
    server.fail_next(On("services", Ask::Any), pages);
    server.drop_connections();
    rig.until("ten pages", |rig| rig.stats(Resource::Service).errors(Trouble::Garbage) == 10);
    assert_eq!(*rig.known(), known);
    stir(&server, 1);
    rig.settle(&server);
    rig.until_watching();
    assert_eq!(rig.stats(Resource::Service).lists.load(Ordering::Relaxed), before);
}

/// JSON that is no list must not pass for an empty one.
#[test]
fn an_answer_without_a_version_is_no_list() {
    for text in
        ["{}", "{\"metadata\":{}}", "{\"kind\":\"Status\",\"metadata\":{},\"items\":[]}", "null"]
    {
        let server = ApiServer::start();
        furnish(&server, 10);
        server.refuse_streaming_lists();
        let mut rig = Rig::watch(&server);
        rig.settle(&server);
        rig.until_watching();
        let before = rig.story.len();
        server.fail_next(On("services", Ask::List), [Fault::Answer(text.to_owned())]);
        server.compact();
        server.drop_connections();
        stir(&server, 1);
        rig.settle(&server);
        assert!(rig.stats(Resource::Service).errors(Trouble::Garbage) >= 1);
        let listed = rig.story.iter().skip(before).filter(|it| *it == "Listed(Service)").count();
        assert_eq!(listed, 1, "{:?}", rig.story);
    }
}

#[test]
fn an_outage_costs_no_list_if_versions_are_still_known() {
    let server = ApiServer::start();
    furnish(&server, 10);
    let mut rig = Rig::watch(&server);
    rig.settle(&server);
    rig.until_watching();
    server.go_down();
    for resource in super::rig::ALL {
        rig.until_error(resource, Trouble::Connect);
    }
    stir(&server, 1);
    server.come_up();
    rig.settle(&server);
    let lists = server.requests().into_iter().filter(|it| it.is_stream() || it.is_list()).count();
    assert_eq!(lists, 4, "only those at the start");
}

#[test]
fn a_half_open_connection_is_noticed_by_pings() {
    check_half_open(ApiServer::start_tls(), Patience::Pings);
}

#[test]
fn a_half_open_connection_is_noticed_by_silence() {
    check_half_open(ApiServer::start(), Patience::Short);
}

/// By anything else it would be noticed much later than the rig waits, or never.
#[track_caller]
fn check_half_open(server: ApiServer, patience: Patience) {
    furnish(&server, 5);
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::watch_patiently(&server.kubeconfig(directory.path(), None), patience);
    rig.settle(&server);
    rig.until_watching();
    server.freeze_connections();
    stir(&server, 0);
    rig.settle(&server);
}

#[test]
fn the_server_is_obeyed_when_it_says_how_long_to_wait() {
    let server = ApiServer::start();
    furnish(&server, 2);
    server.fail_next(On("services", Ask::Stream), [Fault::Status(429, Some(1))]);
    let start = Instant::now();
    let mut rig = Rig::watch(&server);
    rig.settle(&server);
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn no_permission_for_service_cidrs_stops_nothing() {
    let server = ApiServer::start();
    furnish(&server, 2);
    server.delete("servicecidrs", "", "kubernetes");
    let forever = std::iter::repeat_n(Fault::Status(403, None), 10_000);
    server.fail_next(On("servicecidrs", Ask::Any), forever);
    let mut rig = Rig::watch(&server);
    rig.settle(&server);
    assert_eq!(rig.stats(Resource::ServiceCidr).state(), State::Absent);
}

/// An API server that has just started refuses what it will allow as soon as it has read all roles; one of several may be
/// older than the others, and a load balancer without any has nothing at all.
#[test]
fn service_cidrs_that_are_missing_for_a_while_are_kept() {
    for (code, trouble) in [(403, Trouble::Forbidden), (404, Trouble::NotFound)] {
        let server = ApiServer::start();
        furnish(&server, 2);
        let mut rig = Rig::watch(&server);
        rig.settle(&server);
        rig.until_watching();
        let before = rig.story.len();
        let refusals = std::iter::repeat_n(Fault::Status(code, None), 2);
        server.fail_next(On("servicecidrs", Ask::Any), refusals);
        server.drop_connections();
        rig.until("both refusals", |rig| rig.stats(Resource::ServiceCidr).errors(trouble) == 2);
        rig.until_watching();
        rig.settle(&server);
        let listed = rig.story.iter().skip(before).any(|it| it == "Listed(ServiceCidr)");
        assert!(!listed, "{:?}", rig.story);
    }
}

#[test]
fn a_server_that_is_not_there_yet_is_waited_for() {
    let server = ApiServer::start();
    furnish(&server, 2);
    server.go_down();
    let mut rig = Rig::watch(&server);
    rig.until_error(Resource::Service, Trouble::Connect);
    server.come_up();
    rig.settle(&server);
}

/// Faults and changes as the dice fall; the seed is in the message of a failure.
#[test]
fn any_faults_in_any_order_end_in_the_right_state() {
    for seed in 0..12_u8 {
        let server = if seed % 3 == 0 { ApiServer::start_tls() } else { ApiServer::start() };
        furnish(&server, 20);
        if seed % 4 == 1 {
            server.refuse_streaming_lists();
        }
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::watch_hastily(&server.kubeconfig(directory.path(), None));
        let mut dice = Dice::new(seed.into());
        for round in 0..12 {
            for _ in 0..dice.below(4) {
                misfortune(&server, &mut dice);
            }
            stir(&server, round);
            if dice.below(3) == 0 {
                rig.story.push(format!("seed {seed}, round {round}"));
                server.come_up();
                rig.settle(&server);
            }
        }
        server.come_up();
        rig.story.push(format!("seed {seed}, at the end"));
        rig.settle(&server);
    }
}

fn misfortune(server: &ApiServer, dice: &mut Dice) {
    let faults = [
        Fault::Status(410, None),
        Fault::Status(429, Some(0)),
        Fault::Status(500, None),
        Fault::ErrorEvent(410),
        Fault::ErrorEvent(504),
        Fault::LoginPage,
        Fault::DropConnection,
        Fault::Delay(Duration::from_millis(30)),
        Fault::Cut { after: dice.below(4), clean: true },
        Fault::Cut { after: dice.below(4), clean: false },
        Fault::Insert { after: dice.below(4), line: "nonsense".to_owned() },
        Fault::Repeat,
    ];
    let resources = ["services", "endpointslices", "nodes", "servicecidrs"];
    match dice.below(10) {
        0 => server.compact(),
        1 => server.drop_connections(),
        2 => server.freeze_connections(),
        3 => server.go_down(),
        4 => server.come_up(),
        _ => {
            let on = On(resources[dice.below(4)], Ask::Any);
            server.fail_next(on, [faults[dice.below(faults.len())].clone()]);
        }
    }
}
