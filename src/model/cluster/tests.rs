use proptest::prelude::*;

use super::super::sample::*;
use super::super::*;

#[test]
fn an_equal_object_touches_nothing() {
    let mut cluster = Cluster::default();
    let (svc, mut eps) = (service("ns/a", "10.0.0.1"), slice("ns/a-1", "ns/a", &["10.1.0.1"]));
    assert_eq!(cluster.apply(Change::ServiceApplied(svc.clone())).services.len(), 1);
    assert_eq!(cluster.apply(Change::SliceApplied(eps.clone())).services.len(), 1);
    assert!(cluster.apply(Change::ServiceApplied(svc)).is_empty());
    eps.trigger_time = Some(7);
    assert_eq!(
        cluster.apply(Change::SliceApplied(eps)),
        Touched::default(),
        "only an annotation differs"
    );
}

#[test]
fn a_slice_may_come_before_its_service() {
    let mut cluster = Cluster::default();
    let early = cluster.apply(Change::SliceApplied(slice("ns/a-1", "ns/a", &["10.1.0.1"])));
    assert!(early.is_empty(), "nothing can be forwarded yet");
    let touched = cluster.apply(Change::ServiceApplied(service("ns/a", "10.0.0.1")));
    let id = cluster.id(&name("ns/a")).unwrap();
    assert_eq!(touched.services, [id].into());
    assert_eq!(cluster.slices(id).count(), 1);
}

#[test]
fn a_slice_may_move_to_another_service() {
    let mut cluster = cluster(
        &[service("ns/a", "10.0.0.1"), service("ns/b", "10.0.0.2")],
        &[slice("ns/x", "ns/a", &["10.1.0.1"])],
    );
    let touched = cluster.apply(Change::SliceApplied(slice("ns/x", "ns/b", &["10.1.0.1"])));
    assert_eq!(touched.services.len(), 2);
    let counts = ["ns/a", "ns/b"].map(|it| cluster.slices(cluster.id(&name(it)).unwrap()).count());
    assert_eq!(counts, [0, 1]);
}

/// TestServiceCacheLeaks, TestEndpointSliceCacheClearedCorrectly.
#[test]
fn ids_are_reused_and_nothing_leaks() {
    let mut cluster = Cluster::default();
    for round in 0..100 {
        let title = format!("ns/s{round}");
        cluster.apply(Change::SliceApplied(slice("ns/x", &title, &["10.1.0.1"])));
        cluster.apply(Change::ServiceApplied(service(&title, "10.0.0.1")));
        cluster.apply(Change::SliceDeleted(name("ns/x")));
        cluster.apply(Change::ServiceDeleted(name(&title)));
    }
    assert_eq!((cluster.entries.len(), cluster.free.len()), (1, 1));
    assert_eq!((cluster.ids.len(), cluster.owners.len()), (0, 0));
}

#[test]
fn deleting_the_unknown_touches_nothing() {
    let mut cluster = Cluster::default();
    assert!(cluster.apply(Change::ServiceDeleted(name("ns/a"))).is_empty());
    assert!(cluster.apply(Change::SliceDeleted(name("ns/a"))).is_empty());
    assert!(cluster.apply(Change::ServiceCidrDeleted("x".into())).is_empty());
}

#[test]
fn an_object_that_became_unusable_is_forgotten() {
    let mut cluster =
        cluster(&[service("ns/a", "10.0.0.1")], &[slice("ns/x", "ns/a", &["10.1.0.1"])]);
    let unusable = |resource, title: &str| {
        Change::Unusable(Skipped {
            resource,
            name: name(title),
            uid: None,
            reason: "r",
            message: String::new(),
        })
    };
    let id = cluster.id(&name("ns/a")).unwrap();
    assert_eq!(cluster.apply(unusable(Resource::EndpointSlice, "ns/x")).services, [id].into());
    assert_eq!(cluster.apply(unusable(Resource::Service, "ns/a")).services, [id].into());
    assert_eq!(cluster.ids().count(), 0);
}

#[test]
fn what_does_not_come_again_in_a_list_is_gone() {
    let mut cluster = cluster(&[service("ns/a", "10.0.0.1"), service("ns/b", "10.0.0.2")], &[]);
    cluster.apply(Change::Listing(Resource::Service));
    assert!(cluster.apply(Change::ServiceApplied(service("ns/b", "10.0.0.2"))).is_empty());
    let touched = cluster.apply(Change::Listed(Resource::Service));
    assert_eq!(touched.services, [ServiceId(0)].into());
    assert_eq!(
        cluster.ids().map(|it| cluster.name(it).unwrap().to_string()).collect::<Vec<_>>(),
        ["ns/b"]
    );
}

#[test]
fn complete_when_all_required_lists_were_seen() {
    let mut cluster = Cluster::new(&[Resource::Service, Resource::Node]);
    assert!(!cluster.is_complete());
    assert!(!cluster.apply(Change::Listed(Resource::Service)).completed);
    assert!(!cluster.apply(Change::Listed(Resource::EndpointSlice)).completed);
    assert!(cluster.apply(Change::Listed(Resource::Node)).completed);
    assert!(cluster.is_complete());
    assert!(!cluster.apply(Change::Listed(Resource::Node)).completed, "only the first time");
}

/// TestProxier_OnServiceCIDRsChanged, and the union that upstream gets wrong.
#[test]
fn a_range_stays_while_any_object_lists_it() {
    let mut cluster = Cluster::default();
    let cidr = |title: &str, ranges: &[&str]| {
        Change::ServiceCidrApplied(ServiceCidr {
            name: title.into(),
            cidrs: ranges.iter().map(|it| it.parse().unwrap()).collect(),
        })
    };
    assert!(cluster.apply(cidr("a", &["10.0.0.0/16", "fd00::/112"])).service_cidrs);
    assert!(cluster.apply(cidr("b", &["10.0.0.0/16", "10.0.1.0/24"])).service_cidrs);
    assert!(!cluster.apply(cidr("b", &["10.0.0.0/16", "10.0.1.0/24"])).service_cidrs);
    assert!(cluster.apply(Change::ServiceCidrDeleted("a".into())).service_cidrs);
    assert_eq!(cluster.service_cidrs(Family::V4), ["10.0.0.0/16".parse::<ipnet::IpNet>().unwrap()]);
    assert_eq!(cluster.service_cidrs(Family::V6), []);
}

/// Topology handler only on zone change.
#[test]
fn the_node_touches_only_services_that_depend_on_it() {
    let mut ranged = service("ns/ranged", "10.0.0.3");
    if let Some(v4) = &mut ranged.v4 {
        v4.source_ranges = SourceRanges::Only(vec!["10.0.0.0/8".parse().unwrap()]);
    }
    let mut cluster = cluster(
        &[service("ns/plain", "10.0.0.1"), service("ns/hinted", "10.0.0.2"), ranged],
        &[
            slice("ns/p", "ns/plain", &["10.1.0.1"]),
            slice("ns/h", "ns/hinted", &["10.1.0.2 zone=a"]),
        ],
    );
    let names = |cluster: &Cluster, touched: &Touched| -> Vec<String> {
        touched.services.iter().map(|it| cluster.name(*it).unwrap().name.to_string()).collect()
    };
    let mut node = Node { name: "n".into(), zone: Some("a".into()), ..Node::default() };
    let touched = cluster.apply(Change::NodeApplied(node.clone()));
    assert_eq!(names(&cluster, &touched), ["hinted"]);
    node.addresses.push(ip("192.0.2.1"));
    let touched = cluster.apply(Change::NodeApplied(node.clone()));
    assert_eq!(names(&cluster, &touched), ["ranged"]);
    node.addresses.push(ip("fd00::1"));
    let touched = cluster.apply(Change::NodeApplied(node.clone()));
    assert!(touched.node && touched.services.is_empty());
    assert!(cluster.apply(Change::NodeApplied(node.clone())).is_empty());
    assert!(cluster.apply(Change::NodeDeleted).is_empty());
    assert_eq!(cluster.node(), Some(&node));
}

/// TestLastChangeTriggerTime.
#[test]
fn trigger_times() {
    let mut cluster = cluster(&[service("ns/a", "10.0.0.1")], &[]);
    let timed = |ip: &str, at| {
        Change::SliceApplied(EndpointSlice {
            trigger_time: Some(at),
            ..slice("ns/x", "ns/a", &[ip])
        })
    };
    let mut touched = cluster.apply(timed("10.1.0.1", 1));
    touched.merge(cluster.apply(timed("10.1.0.2", 2)));
    touched.merge(cluster.apply(timed("10.1.0.2", 3)));
    let id = ServiceId(0);
    let expected = [(id, Family::V4, 1), (id, Family::V4, 2)];
    assert_eq!(touched.triggers, expected, "the third altered nothing");
    touched.merge(cluster.apply(Change::SliceDeleted(name("ns/x"))));
    assert_eq!(touched.triggers, []);
}

/// 30,000 Services with 5 endpoints each should take some 30 MB; a field that grows these types is noticed here.
#[test]
fn nouns_stay_small() {
    assert!(size_of::<Endpoint>() <= 40, "{}", size_of::<Endpoint>());
    assert!(size_of::<SlicePort>() <= 24, "{}", size_of::<SlicePort>());
    assert!(size_of::<ServicePort>() <= 24, "{}", size_of::<ServicePort>());
    assert!(size_of::<EndpointSlice>() <= 160, "{}", size_of::<EndpointSlice>());
    assert!(size_of::<Service>() <= 320, "{}", size_of::<Service>());
}

proptest! {
    /// Any history, with missed deletions, broken and repeated lists, ends where its final objects begin.
    #[test]
    fn the_final_objects_decide(history in steps()) {
        let mut world = World::default();
        let mut cluster = Cluster::default();
        for step in history {
            for change in world.step(step) {
                cluster.apply(change);
            }
        }
        for change in world.relist() {
            cluster.apply(change);
        }
        let mut fresh = Cluster::default();
        for change in world.objects() {
            fresh.apply(change);
        }
        prop_assert_eq!(contents(&cluster), contents(&fresh));
        prop_assert!(cluster.is_complete());
        for change in world.relist() {
            let touched = cluster.apply(change);
            prop_assert_eq!(touched, Touched::default(), "a list of the known alters nothing");
        }
    }

    /// Whatever differs after a change is in `Touched`.
    #[test]
    fn nothing_changes_untouched(history in steps()) {
        let (mut world, mut cluster) = (World::default(), Cluster::default());
        for change in history.into_iter().flat_map(|it| world.step(it)) {
            let before = cluster.clone();
            let touched = cluster.apply(change);
            let differs = |id: &ServiceId| {
                let slices = |it: &Cluster| format!("{:?}", it.slices(*id).collect::<Vec<_>>());
                let of = |it: &Cluster| (it.service(*id).cloned(), slices(it));
                let (old, new) = (of(&before), of(&cluster));
                old != new && !(old.0.is_none() && new.0.is_none())
            };
            let ids = (0..20).map(ServiceId).filter(differs);
            for id in ids {
                prop_assert!(touched.services.contains(&id));
            }
            let facts = |it: &Cluster| (it.node().cloned(), it.host_addresses().clone());
            prop_assert_eq!(touched.node, facts(&before) != facts(&cluster));
            if Family::ALL.iter().any(|it| before.service_cidrs(*it) != cluster.service_cidrs(*it)) {
                prop_assert!(touched.service_cidrs);
            }
        }
    }
}

fn contents(cluster: &Cluster) -> String {
    let entries: std::collections::BTreeMap<String, String> = cluster
        .entries
        .iter()
        .flatten()
        .map(|it| {
            let slices: Vec<_> = it.slices.iter().map(|it| (&it.name, it.content())).collect();
            (
                it.name.to_string(),
                format!("{:?} {slices:?}", it.service.as_ref().map(|(service, _)| service)),
            )
        })
        .collect();
    assert_eq!(cluster.ids.len(), entries.len());
    assert_eq!(
        cluster.owners.len(),
        cluster.entries.iter().flatten().map(|it| it.slices.len()).sum::<usize>()
    );
    let cidrs: Vec<_> =
        cluster.service_cidrs.iter().map(|(name, (cidrs, _))| (name, cidrs)).collect();
    format!("{entries:#?} {:?} {:?} {cidrs:?}", cluster.node, cluster.host_addresses)
}
