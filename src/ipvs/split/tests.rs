//! Splitting, by example and by law.

use proptest::prelude::*;

use super::*;
use crate::forward::WithoutBackend;
use crate::model::Protocol;
use crate::nft::compile::tests::laws::forwarding;

/// Names of ports and sets: `80>own/cluster 32848>other/local` and so on.
#[track_caller]
fn check(service: &ServiceForwarding, expected: &[&str]) {
    let split = split(&Settings::default(), &Family::ALL, service);
    let mut shown: Vec<String> = Vec::new();
    for port in &split.forwarding.ports {
        let ends = |backends: &[Backend]| {
            let ends: Vec<String> =
                backends.iter().map(|it| format!("{}:{}", it.address, it.port)).collect();
            ends.join(" ")
        };
        shown.push(format!("cluster [{}] local [{}]", ends(&port.cluster), ends(&port.local)));
    }
    for server in &split.servers {
        let to: Vec<String> =
            server.destinations.iter().map(|(to, weight)| format!("{to}={weight}")).collect();
        let persistent =
            server.server.persistence.map_or_else(String::new, |it| format!(" -p {it}"));
        let scheduler = server.server.scheduler.name();
        shown.push(format!("{} -s {scheduler}{persistent} -> {}", server.key, to.join(" ")));
    }
    assert_eq!(shown, expected);
}

#[test]
fn an_external_address_shares_the_virtual_server_of_the_cluster_ip() {
    check(
        &service(&[("80", "cluster", "cluster")]),
        &[
            "cluster [10.96.0.1:80] local []",
            "-t 10.96.0.1:80 -s rr -> 10.1.0.1:8080=1 10.1.0.2:8080=1",
        ],
    );
}

#[test]
fn other_policies_outside_have_a_second_virtual_server() {
    check(
        &service(&[("80", "cluster", "local")]),
        &[
            "cluster [10.96.0.1:80] local [10.96.0.1:32848]",
            "-t 10.96.0.1:80 -s rr -> 10.1.0.1:8080=1 10.1.0.2:8080=1",
            "-t 10.96.0.1:32848 -s rr -> 10.1.0.2:8080=1",
        ],
    );
    check(
        &service(&[("80", "local", "cluster")]),
        &[
            "cluster [10.96.0.1:32848] local [10.96.0.1:80]",
            "-t 10.96.0.1:80 -s rr -> 10.1.0.2:8080=1",
            "-t 10.96.0.1:32848 -s rr -> 10.1.0.1:8080=1 10.1.0.2:8080=1",
        ],
    );
}

#[test]
fn a_hidden_port_gives_way_to_visible_ones_and_is_never_zero() {
    let ports = [
        ("32768", "cluster", "local"),
        ("1", "cluster", "cluster"),
        ("80", "cluster", "local"),
        ("32848", "cluster", "cluster"),
    ];
    let split = split(&Settings::default(), &Family::ALL, &service(&ports));
    let ports: Vec<u16> = split.servers.iter().map(|it| it.key.port.get()).collect();
    assert_eq!(ports, [1, 2, 80, 32768, 32848, 32849]);
}

#[test]
fn without_endpoints_nft_has_none_and_the_virtual_server_stays() {
    let mut empty = service(&[("80", "cluster", "cluster")]);
    empty.ports[0].cluster.clear();
    check(&empty, &["cluster [] local []", "-t 10.96.0.1:80 -s rr -> "]);
}

#[test]
fn affinity_scheduler_and_weights_are_the_virtual_servers() {
    let mut it = service(&[("80", "cluster", "cluster")]);
    it.ipvs_scheduler = Scheduler::new("mh");
    it.ports[0].affinity = Some(600);
    it.ports[0].weights = vec![(it.ports[0].cluster[1], NonZeroU16::new(7).unwrap())];
    check(
        &it,
        &[
            "cluster [10.96.0.1:80] local []",
            "-t 10.96.0.1:80 -s mh -p 600 -> 10.1.0.1:8080=1 10.1.0.2:8080=7",
        ],
    );
    let split = split(&Settings::default(), &Family::ALL, &it);
    assert_eq!(split.servers[0].server.scheduler_flags, 0x10);
    assert_eq!(split.forwarding.ports[0].affinity, None);
}

#[test]
fn what_ipvs_cannot_have_is_left_to_nft() {
    let original = service(&[("80", "cluster", "local")]);
    let excluding =
        Settings { exclude_cidrs: vec!["10.96.0.0/16".parse().unwrap()], ..Settings::default() };
    let excluded = split(&excluding, &Family::ALL, &original);
    assert_eq!((&excluded.forwarding, excluded.servers.len()), (&original, 0));
    assert_eq!(excluded.excluded, ["10.96.0.1".parse().unwrap()].into());
    let other_family = split(&Settings::default(), &[Family::V6], &original);
    assert_eq!((&other_family.forwarding, other_family.servers.len()), (&original, 0));
    let mut lost = original;
    lost.ports[0].frontends.remove(0);
    let without = split(&Settings::default(), &Family::ALL, &lost);
    assert_eq!((&without.forwarding, without.servers.len()), (&lost, 0));
}

/// Ports as number, policy inside, policy outside; of two endpoints the second is local.
fn service(ports: &[(&str, &str, &str)]) -> ServiceForwarding {
    let policy = |word: &str| match word {
        "local" => TrafficPolicy::Local,
        _ => TrafficPolicy::Cluster,
    };
    let port = |(number, inside, outside): &(&str, &str, &str)| {
        let port: NonZeroU16 = number.parse().unwrap();
        let frontend = |address: &str, kind, policy| Frontend {
            at: FrontendAddress::Address(address.parse().unwrap(), port),
            kind,
            policy,
            without_backend: WithoutBackend::Served,
            source_ranges: None,
        };
        let backend = |address: &str| Backend {
            address: address.parse().unwrap(),
            port: NonZeroU16::new(8080).unwrap(),
        };
        PortForwarding {
            family: Family::V4,
            port_name: "".into(),
            protocol: Protocol::Tcp,
            frontends: vec![
                frontend("10.96.0.1", FrontendKind::ClusterIp, policy(inside)),
                frontend("192.0.2.1", FrontendKind::ExternalIp, policy(outside)),
            ],
            cluster: vec![backend("10.1.0.1"), backend("10.1.0.2")],
            local: vec![backend("10.1.0.2")],
            hairpin: vec!["10.1.0.2".parse().unwrap()],
            serving: Vec::new(),
            weights: Vec::new(),
            affinity: None,
        }
    };
    ServiceForwarding {
        ports: ports.iter().map(port).collect(),
        health_check: None,
        ipvs_scheduler: None,
    }
}

/// Where connections end that nft sends to these backends.
fn reached(
    servers: &[WantedServer],
    protocol: Protocol,
    backends: &[Backend],
) -> BTreeSet<Destination> {
    let mut ends = BTreeSet::new();
    for backend in backends {
        let key = ServerKey { protocol, address: backend.address, port: backend.port };
        match servers.iter().find(|it| it.key == key) {
            Some(server) => ends.extend(server.destinations.iter().map(|(to, _)| *to)),
            None => drop(ends.insert(destination(*backend))),
        }
    }
    ends
}

proptest! {
    /// Each set of a port, and so each frontend, leads where it leads in nftables mode; a client of the cluster IP
    /// itself meets the virtual server there.
    #[test]
    fn every_frontend_reaches_what_it_reaches_in_nftables_mode(service in forwarding(1)) {
        let split = split(&Settings::default(), &Family::ALL, &service);
        prop_assert_eq!(split.forwarding.ports.len(), service.ports.len());
        for (was, is) in service.ports.iter().zip(&split.forwarding.ports) {
            prop_assert_eq!(&was.frontends, &is.frontends);
            prop_assert_eq!(&was.hairpin, &is.hairpin);
            let direct = |backends: &[Backend]| {
                backends.iter().copied().map(destination).collect::<BTreeSet<_>>()
            };
            let (external, outside) = (uses(&was.frontends, Pool::Cluster), uses(&was.frontends, Pool::Local));
            let (address, port, policy) = was.frontends.iter().find_map(cluster_ip).unwrap();
            if external || policy == TrafficPolicy::Cluster {
                prop_assert_eq!(reached(&split.servers, was.protocol, &is.cluster), direct(&was.cluster));
            }
            if outside || policy == TrafficPolicy::Local {
                prop_assert_eq!(reached(&split.servers, was.protocol, &is.local), direct(&was.local));
            }
            let own = if policy == TrafficPolicy::Local { &was.local } else { &was.cluster };
            let visible = [Backend { address, port }];
            prop_assert_eq!(reached(&split.servers, was.protocol, &visible), direct(own));
        }
    }

    #[test]
    fn hidden_ports_are_unique_and_no_visible_ones(service in forwarding(1), numbers in prop::collection::btree_set(1..=u16::MAX, 2)) {
        let mut service = service;
        for (port, number) in service.ports.iter_mut().zip(numbers) {
            port.frontends[0].at = match port.frontends[0].at {
                FrontendAddress::Address(address, _) => FrontendAddress::Address(address, NonZeroU16::new(number).unwrap()),
                other @ FrontendAddress::NodePort(_) => other,
            };
        }
        let split = split(&Settings::default(), &Family::ALL, &service);
        let keys: BTreeSet<ServerKey> = split.servers.iter().map(|it| it.key).collect();
        prop_assert_eq!(keys.len(), split.servers.len());
        let sorted: Vec<ServerKey> = split.servers.iter().map(|it| it.key).collect();
        prop_assert!(sorted.is_sorted());
        let visible: Vec<ServerKey> = service.ports.iter().map(|port| {
            let (address, number, _) = port.frontends.iter().find_map(cluster_ip).unwrap();
            ServerKey { protocol: port.protocol, address, port: number }
        }).collect();
        for (key, port) in visible.iter().zip(&service.ports) {
            let own = split.servers.iter().find(|it| it.key == *key).unwrap();
            let local = port.frontends[0].policy == TrafficPolicy::Local;
            prop_assert_eq!(own.destinations.len(), if local { port.local.len() } else { port.cluster.len() });
        }
    }
}
