//! Schedulers and weights, chosen by annotations.

use kube_ferry::model::Family;

use super::scene::{Scene, scene};
use crate::support::patience::{LONG, poll};

const HTTP: &str = "-t 10.96.0.10:80";

/// Two slices with an endpoint each.
const WEB: &str = "\
apply Service default/web
  spec:
    clusterIPs: [10.96.0.10, \"fd00:10:96::10\"]
    ports: [{name: http, port: 80}]
endpoints default/web#a http=8080/tcp
  pod-1b
endpoints default/web#b http=8080/tcp
  pod-2a
";

const TO_BOTH: &str = "client -> 10.96.0.10:80/tcp = pod-1b pod-2a";

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn weights_of_slices_are_the_shares_of_their_endpoints() {
    scene("", |scene| {
        scene.play(WEB);
        choose(scene, "wrr");
        for slice in ["ipv4", "ipv6"] {
            weigh(scene, &format!("web-a{slice}"), "\"3\"");
        }
        scene.lists(HTTP, &["pod-1b 3", "pod-2a 1"]);
        uses(scene, "wrr");
        for family in Family::ALL {
            assert_eq!(scene.shares(TO_BOTH, family, 40), [30, 10], "{family:?}");
        }
        // Weights change with connections at work.
        scene.play("open old: client -> 10.96.0.10:80/tcp = pod-1b pod-2a\n");
        for slice in ["ipv4", "ipv6"] {
            weigh(scene, &format!("web-a{slice}"), "null");
            weigh(scene, &format!("web-b{slice}"), "\"4\"");
        }
        scene.lists(HTTP, &["pod-1b 1", "pod-2a 4"]);
        scene.play("again old = same\n");
        for family in Family::ALL {
            assert_eq!(scene.shares(TO_BOTH, family, 40), [8, 32], "{family:?}");
        }
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn every_scheduler_can_be_chosen_while_connections_go_on() {
    // A server of weight 1 has overflowed with one connection (ovf), so `fo` and it stay with the first one.
    const ALL: [&str; 14] = [
        "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh",
        "twos",
    ];
    scene("", |scene| {
        scene.play(WEB);
        scene.play("open old: client -> 10.96.0.10:80/tcp = pod-1b pod-2a\n");
        for name in ALL {
            choose(scene, name);
            uses(scene, name);
            for family in Family::ALL {
                assert_eq!(scene.shares(TO_BOTH, family, 4).iter().sum::<usize>(), 4, "{name}");
            }
            scene.play("again old = same\n");
        }
        choose(scene, "rr");
        for family in Family::ALL {
            assert_eq!(scene.shares(TO_BOTH, family, 8), [4, 4], "{family:?}");
        }
        assert_eq!(missing(scene), 0.0);
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn one_that_the_kernel_lacks_is_told_and_the_default_one_serves() {
    scene("--ipvs-scheduler=lc", |scene| {
        scene.play(WEB);
        uses(scene, "lc");
        choose(scene, "fastest");
        scene.play(
            "flow client -> 10.96.0.10:80/tcp = pod-1b pod-2a\n\
             logged IPVSSchedulerMissing default/web fastest\n",
        );
        uses(scene, "lc");
        let counted = poll(LONG, || (missing(scene) > 0.0).then_some(()).ok_or("none".to_owned()));
        counted.unwrap();
        // Not told again with every change, and not in the way of another choice.
        choose(scene, "sh");
        uses(scene, "sh");
        // What is no name of a scheduler at all.
        choose(scene, "\"no such thing\"");
        scene.play("logged kube-ferry/ipvs-scheduler default/web\n");
        scene.play("flow client -> 10.96.0.10:80/tcp = pod-1b pod-2a\n");
        uses(scene, "lc");
    });
}

fn missing(scene: &Scene<'_, '_>) -> f64 {
    scene.metric("kubeferry_ipvs_schedulers_missing_total")
}

fn choose(scene: &mut Scene<'_, '_>, scheduler: &str) {
    scene.play(&format!(
        "change Service default/web\n  metadata: {{annotations: {{kube-ferry/ipvs-scheduler: {scheduler}}}}}\n"
    ));
}

fn weigh(scene: &mut Scene<'_, '_>, slice: &str, weight: &str) {
    scene.play(&format!(
        "change EndpointSlice default/{slice}\n  metadata: {{annotations: {{kube-ferry/ipvs-weight: {weight}}}}}\n"
    ));
}

#[track_caller]
fn uses(scene: &Scene<'_, '_>, scheduler: &str) {
    let used = poll(LONG, || {
        let found = Family::ALL.map(|family| scene.scheduler(HTTP, family));
        let all = found.iter().all(|it| it.as_deref() == Some(scheduler));
        all.then_some(()).ok_or(format!("{found:?}, not {scheduler}"))
    });
    used.unwrap_or_else(|why| panic!("{why}"));
}
