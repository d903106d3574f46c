//! Events that operators find on the Node and on their objects.

use serde_json::json;

use super::Host;
use crate::support::apiserver::{Ask, Fault, On};
use crate::watch::rig::{furnish, service, slice};

#[test]
fn a_server_that_cannot_listen_is_told_before_the_end() {
    for (address, reason) in [
        ("127.0.0.1:10249", "FailedToStartMetricServer"),
        ("127.0.0.1:10256", "FailedToStartProxierHealthcheck"),
    ] {
        let host = Host::new();
        furnish(&host.server, 1);
        let _taken = host.namespace.run(|| std::net::TcpListener::bind(address).unwrap());
        let mut proxy =
            host.begin(&["--bind-address-hard-fail", "--healthz-bind-address=127.0.0.1:10256"]);
        assert_eq!(proxy.ended().code(), Some(1));
        let event = host.wait_for_event(reason);
        assert_eq!(
            (&event["action"], &event["type"]),
            (&"StartKubeProxy".into(), &"Warning".into())
        );
        assert_eq!(event["regarding"]["name"], "n1");
        assert!(event["note"].as_str().unwrap().contains(address), "{event}");
    }
}

#[test]
fn objects_that_lose_something_have_an_event_about_it() {
    let host = Host::new();
    furnish(&host.server, 0);
    let mut elder = service("elder", 1);
    elder["spec"]["externalIPs"] = json!(["198.51.100.7"]);
    let mut young = service("young", 2);
    young["metadata"]["creationTimestamp"] = "2026-02-02T00:00:00Z".into();
    young["spec"]["externalIPs"] = json!(["198.51.100.7"]);
    let mut bad = slice("elder", 1);
    bad["endpoints"][0]["addresses"] = json!(["10.0.0.300"]);
    host.server.load([elder, young, bad]);
    let _proxy = host.proxy(&[]);
    let conflict = host.wait_for_event("AddressConflict");
    assert_eq!(conflict["regarding"]["name"], "young");
    let skipped = host.wait_for_event("Skipped");
    assert_eq!(skipped["regarding"]["name"], "elder-x");
    assert!(skipped["note"].as_str().unwrap().contains("10.0.0.300"), "{skipped}");
    let starting = host.wait_for_event("Starting");
    assert_eq!(
        (&starting["type"], &starting["action"]),
        (&"Normal".into(), &"StartKubeProxy".into())
    );
}

/// Who swaps the image and keeps a role of his own may forget this right; nothing else fails for it.
#[test]
fn a_role_without_events_is_told_once() {
    let host = Host::new();
    furnish(&host.server, 1);
    let refused = std::iter::repeat_n(Fault::Status(403, None), 2);
    host.server.fail_next(On("events", Ask::Any), refused);
    let _proxy = host.proxy(&[]);
    let line = host.wait_for_line(&["WARN", "Events may not be posted"]);
    assert!(line.contains("events.k8s.io") && line.contains("ClusterRole"), "{line}");
}
