//! Virtual servers: refusals one by one, drift, and the way from one mode to the other.

use super::*;
use crate::ipvs::schema::{Connections, Destination, Op as ServerOp, VirtualServer};
use crate::model::{EndpointSlice, Protocol, Scheduler};

#[test]
fn a_service_that_ipvs_refuses_keeps_what_it_had_and_the_others_go_on() {
    let mut host = Host::started_with(balanced(settings(0)));
    host.serve(1, &[1]);
    host.serve(2, &[1]);
    host.settle();
    host.ipvs.refuse_owner(Owner(0), ENOMEM);
    host.serve(1, &[2]);
    host.serve(2, &[2]);
    host.serve(3, &[1]);
    host.settle();
    assert_eq!(host.engine.refused_count(), 1);
    assert_eq!(host.reached(1), ["10.1.1.1"]);
    assert_eq!(host.reached(2), ["10.1.2.2"]);
    assert_eq!(host.reached(3), ["10.1.3.1"]);
    host.forgive();
    host.settle();
    assert_eq!(host.reached(1), ["10.1.1.2"]);
}

#[test]
fn a_new_service_that_ipvs_refuses_has_no_rows_that_lead_nowhere() {
    let mut host = Host::started_with(balanced(settings(0)));
    host.settle();
    host.ipvs.refuse_owner(Owner(0), ENOMEM);
    host.serve(1, &[1]);
    host.settle();
    assert_eq!(host.kernel.tables.rows(Family::V4, SetName::Frontends).count(), 0);
    assert_eq!(host.servers().0, BTreeSet::new());
}

/// Everything is compared in several passes here, of which most have nothing to write.
#[test]
fn a_row_that_is_always_refused_is_looked_at_again_once() {
    let mut host = Host::started_with(balanced(settings(0)));
    let service = |n: u16| {
        let [high, low] = n.to_be_bytes();
        service(&format!("ns/a{n}"), &format!("10.96.{high}.{low}"))
    };
    for n in 0..1_100 {
        host.engine.apply(Change::ServiceApplied(service(n)));
    }
    host.settle();
    let last = service(1_099);
    let id = host.engine.cluster().id(&last.name).unwrap();
    host.kernel.refuse_owner(Owner(id.0), EEXIST);
    let moved = Service { v4: super::service("ns/a", "10.97.0.1").v4, ..last };
    host.engine.apply(Change::ServiceApplied(moved));
    host.settle();
    assert_eq!(host.engine.refused_count(), 1);
}

/// A cluster IP that the node has elsewhere as well, where somebody balances with IPVS.
#[test]
fn a_virtual_server_of_somebody_else_is_left_alone_and_told() {
    let mut host = Host::started_with(balanced(settings(0)));
    let theirs = host.made_by_others(1, 9);
    host.engine.apply(Change::HostAddresses([ip("10.96.0.1")].into()));
    host.serve(1, &[1]);
    host.serve(2, &[1]);
    host.settle();
    assert_eq!(host.ipvs.servers[&theirs].destinations.len(), 1);
    assert_eq!(host.servers().0, BTreeSet::from([ip("10.96.0.2")]), "its address stays unbound");
    assert_eq!(host.reached(2), ["10.1.2.1"]);
    assert_eq!(host.engine.refused_count(), 1);
    // Gone, and the Service is served when it is tried again.
    host.ipvs.servers.remove(&theirs);
    host.forgive();
    host.settle();
    assert_eq!(host.reached(1), ["10.1.1.1"]);
}

/// Its other half was made and waits at an address that is not bound.
#[test]
fn a_service_that_is_refused_halfway_is_no_drift() {
    let mut host = Host::started_with(balanced(settings(0)));
    host.made_by_others(1, 9);
    host.engine.apply(Change::HostAddresses([ip("10.96.0.1")].into()));
    let v6 = service("ns/a1", "fd00::1").v6;
    let both = Service { v6, ..service("ns/a1", "10.96.0.1") };
    host.engine.apply(Change::ServiceApplied(both));
    host.engine.apply(endpoint("ns/a1", 1, 1));
    host.settle();
    assert_eq!((host.engine.refused_count(), host.ipvs.servers.len()), (1, 2));
    assert!(!host.engine.servers_observed(host.ipvs.observe().unwrap()));
    host.settle();
    assert_eq!(host.engine.refused_count(), 1);
}

/// Killed between a virtual server and its address.
#[test]
fn what_a_crash_left_at_an_unbound_address_is_made_anew() {
    let mut host = Host::started_with(balanced(settings(0)));
    host.made_by_others(1, 9);
    host.serve(1, &[1]);
    host.settle();
    assert_eq!(host.reached(1), ["10.1.1.1"]);
    assert_eq!(host.destinations().len(), 1, "the endpoint of that time is gone");
}

/// Whatever the number of Services.
#[test]
fn a_change_costs_as_many_operations_as_it_changes() {
    for services in [10, 2_000] {
        let mut host = Host::started_with(balanced(settings(0)));
        let at = |n: u16| {
            let [high, low] = n.to_be_bytes();
            format!("10.97.{high}.{low}")
        };
        for n in 0..services {
            host.engine.apply(Change::ServiceApplied(service(&format!("ns/b{n}"), &at(n))));
        }
        host.serve(1, &[1, 2, 3]);
        host.settle();
        let mut cost = |hosts: &[u8]| {
            let before = (host.ipvs.operations, host.kernel.committed);
            host.serve(1, hosts);
            host.settle();
            (host.ipvs.operations - before.0, host.kernel.committed - before.1)
        };
        assert_eq!(cost(&[1, 2, 3, 4]), (1, 0), "one destination more, no rows: {services}");
        assert_eq!(cost(&[1, 2, 3]), (1, 0), "weight 0: {services}");
        assert_eq!(cost(&[1, 2, 4]), (2, 0), "its weight again, and another's 0: {services}");
        assert_eq!(cost(&[1, 2, 4]), (0, 0), "nothing: {services}");
    }
}

#[test]
fn a_scheduler_that_the_kernel_lacks_is_told_once_and_another_serves() {
    let mut host = Host::started_with(balanced(settings(0)));
    host.ipvs.schedulers.remove(&Scheduler::new("mh").unwrap());
    let mut wanted = service("ns/a1", "10.96.0.1");
    wanted.ipvs_scheduler = Scheduler::new("mh");
    host.engine.apply(Change::ServiceApplied(wanted));
    host.engine.apply(endpoint("ns/a1", 1, 1));
    host.settle();
    assert_eq!(host.reached(1), ["10.1.1.1"]);
    let limit = ServerLimit::Scheduler {
        service: ServiceId(0),
        wanted: "mh".to_owned(),
        used: "rr".to_owned(),
    };
    assert_eq!(host.engine.take_server_limits(), [limit]);
    host.engine.apply(endpoint("ns/a1", 1, 2));
    host.settle();
    assert_eq!(host.engine.take_server_limits(), []);
}

#[test]
fn a_scheduler_that_comes_late_is_used_and_told_once() {
    let mut host = Host::started_with(balanced(settings(0)));
    let scheduler = Scheduler::new("mh").unwrap();
    host.ipvs.schedulers.remove(&scheduler);
    let mut wanted = service("ns/a1", "10.96.0.1");
    wanted.ipvs_scheduler = Some(scheduler);
    host.engine.apply(Change::ServiceApplied(wanted.clone()));
    host.engine.apply(endpoint("ns/a1", 1, 1));
    host.settle();
    host.engine.take_server_limits();
    // Not there yet: the Service is served as before, and nobody hears of it again.
    host.engine.retry_schedulers();
    host.settle();
    assert!(host.servers().1.starts_with("-A -t 10.96.0.1:80 -s rr"), "{}", host.servers().1);
    assert_eq!(host.engine.take_server_limits(), []);
    assert_eq!(lacking(&host), 1);
    host.ipvs.schedulers.insert(scheduler);
    host.engine.retry_schedulers();
    host.settle();
    assert!(host.servers().1.starts_with("-A -t 10.96.0.1:80 -s mh"), "{}", host.servers().1);
    let found = ServerLimit::SchedulerFound { service: ServiceId(0), scheduler: "mh".to_owned() };
    assert_eq!(host.engine.take_server_limits(), [found]);
    assert_eq!(lacking(&host), 0);
    // Who wants another one does not lack the old one any more.
    host.ipvs.schedulers.remove(&Scheduler::new("lc").unwrap());
    wanted.ipvs_scheduler = Scheduler::new("lc");
    host.engine.apply(Change::ServiceApplied(wanted.clone()));
    host.settle();
    assert_eq!(lacking(&host), 1);
    wanted.ipvs_scheduler = None;
    host.engine.apply(Change::ServiceApplied(wanted));
    host.settle();
    assert_eq!(lacking(&host), 0);
}

fn lacking(host: &Host) -> usize {
    host.engine.servers().unwrap().lacking_schedulers()
}

#[test]
fn excluded_cluster_ips_are_served_by_nft_alone() {
    let mut with = balanced(settings(0));
    let split = &mut with.ipvs.as_mut().unwrap().split;
    split.exclude_cidrs = vec!["10.96.0.2/32".parse().unwrap()];
    let mut host = Host::started_with(with);
    host.serve(1, &[1]);
    host.serve(2, &[1]);
    host.settle();
    assert_eq!(host.backends(1), [ip("10.96.0.1")]);
    assert_eq!(host.backends(2), [ip("10.1.2.1")]);
    let told = host.engine.take_server_limits();
    assert!(matches!(told[..], [ServerLimit::Excluded { .. }]), "{told:?}");
    assert_eq!(host.servers().0, BTreeSet::from([ip("10.96.0.1")]));
}

/// A kernel without CONFIG_IP_VS_IPV6: that half of a Service is nft's, and no moment is without the other one.
#[test]
fn without_ipv6_in_ipvs_the_other_family_is_served_all_the_same() {
    let dual = |host: &mut Host| {
        for n in 1..=3 {
            let title = format!("ns/a{n}");
            let v6 = service(&title, &format!("fd00::{n}")).v6;
            let both = Service { v6, ..service(&title, &format!("10.96.0.{n}")) };
            host.engine.apply(Change::ServiceApplied(both));
            host.engine.apply(endpoint(&title, n, 1));
            let slice = slice(&format!("{title}-6"), &title, &[&format!("fd01::{n}")]);
            host.engine.apply(Change::SliceApplied(slice));
        }
    };
    let mut host = Host::started();
    dual(&mut host);
    host.settle();
    host.ipvs.without_ipv6 = true;
    let mut host = host.restarted(balanced(settings(0)));
    dual(&mut host);
    while host.engine.has_work() {
        drop(host.pass());
        for family in Family::ALL {
            assert_eq!(host.kernel.tables.rows(family, SetName::Endpoints).count(), 3);
        }
    }
    assert_eq!(host.engine.refused_count(), 0);
    for n in 1..=3 {
        assert_eq!(host.reached(n), [format!("10.1.{n}.1")]);
    }
    assert_eq!(host.engine.take_server_limits(), [ServerLimit::NoIpv6]);
    host.engine.apply(endpoint("ns/a1", 1, 2));
    host.settle();
    assert_eq!(host.reached(1), ["10.1.1.2"]);
}

#[test]
fn weights_are_those_of_the_slices() {
    let mut host = Host::started_with(balanced(settings(0)));
    host.engine.apply(Change::ServiceApplied(service("ns/a1", "10.96.0.1")));
    let plain = slice("ns/a-1", "ns/a1", &["10.1.0.1"]);
    let heavy =
        EndpointSlice { ipvs_weight: "7".parse().ok(), ..slice("ns/a-2", "ns/a1", &["10.1.0.2"]) };
    host.engine.apply(Change::SliceApplied(plain));
    host.engine.apply(Change::SliceApplied(heavy));
    host.settle();
    assert_eq!(
        host.servers().1,
        "-A -t 10.96.0.1:80 -s rr\n-a -t 10.96.0.1:80 -r 10.1.0.1:8080 -m -w 1\n\
         -a -t 10.96.0.1:80 -r 10.1.0.2:8080 -m -w 7\n"
    );
}

#[test]
fn what_others_did_to_virtual_servers_is_undone() {
    let mut host = Host::started_with(balanced(settings(0)));
    host.serve(1, &[1]);
    host.serve(2, &[1]);
    host.settle();
    let before = host.servers();
    assert!(!host.engine.servers_observed(host.ipvs.observe().unwrap()));
    assert!(!host.engine.has_work());
    let key = *host.ipvs.servers.keys().next().unwrap();
    let gone = ServerBatch(vec![(None, ServerOp::DeleteServer(key))]);
    host.ipvs.commit(&gone).unwrap();
    assert!(host.engine.servers_observed(host.ipvs.observe().unwrap()));
    host.settle();
    assert_eq!(host.servers(), before);
}

#[test]
fn a_refused_service_is_no_drift() {
    let mut host = Host::started_with(balanced(settings(0)));
    host.ipvs.refuse_owner(Owner(0), ENOMEM);
    host.serve(1, &[1]);
    host.settle();
    assert!(!host.engine.servers_observed(host.ipvs.observe().unwrap()));
    host.settle();
    assert_eq!(host.engine.refused_count(), 1);
}

#[test]
fn a_deleted_service_is_guarded_until_its_address_is_gone() {
    let mut host = Host::started_with(balanced(settings(0)));
    host.serve(1, &[1]);
    host.settle();
    let (key, to) = host.only_destination();
    let busy = Connections { active: 1, ..Connections::default() };
    host.ipvs.set_connections(key, to, busy);
    host.engine.apply(Change::ServiceDeleted(name("ns/a1")));
    host.settle();
    host.drain();
    assert_eq!(host.guarded(), [ip("10.96.0.1")]);
    assert_eq!(host.servers().0, BTreeSet::from([ip("10.96.0.1")]));
    host.ipvs.set_connections(key, to, Connections::default());
    host.drain();
    assert_eq!(host.guarded(), Vec::<IpAddr>::new());
    assert_eq!(host.servers(), Default::default());
}

#[test]
fn a_node_changes_to_ipvs_and_back() {
    let mut host = Host::started();
    host.serve(1, &[1, 2]);
    host.settle();
    // To IPVS: the address is bound while the rows still lead to the endpoints.
    let mut host = host.restarted(balanced(settings(0)));
    host.serve(1, &[1, 2]);
    host.settle();
    assert_eq!(host.backends(1), [ip("10.96.0.1")]);
    assert_eq!(host.reached(1), ["10.1.1.1", "10.1.1.2"]);
    let last = host.ipvs.last.clone().unwrap();
    assert!(matches!(last.0.last(), Some((_, ServerOp::BindAddress(_)))), "{last:?}");
    assert_eq!(host.ipvs.committed, 1, "everything before nft changes");
    let to = host.destinations();
    for (key, to) in &to {
        let busy = Connections { active: 1, ..Connections::default() };
        host.ipvs.set_connections(*key, *to, busy);
    }
    // And back: connections go on until they end.
    let mut host = host.restarted(settings(0));
    host.engine.drain_servers(Duration::from_secs(900));
    host.serve(1, &[1, 2]);
    host.settle();
    host.drain();
    assert_eq!(host.backends(1), [ip("10.1.1.1"), ip("10.1.1.2")]);
    assert_eq!(host.destinations(), to);
    assert!(!host.engine.take_end_of_servers());
    for (key, to) in to {
        host.ipvs.set_connections(key, to, Connections::default());
    }
    host.drain();
    assert_eq!(host.servers(), Default::default());
    assert!(host.engine.take_end_of_servers());
    assert!(!host.engine.take_end_of_servers());
    let mut fresh = Host::started();
    fresh.serve(1, &[1, 2]);
    fresh.settle();
    assert_eq!(host.rows(Family::V4), fresh.rows(Family::V4));
    assert_eq!(host.kernel.tables, fresh.kernel.tables);
}

impl Host {
    /// Service 10.96.0.`n` with these endpoints.
    fn serve(&mut self, n: u8, hosts: &[u8]) {
        let title = format!("ns/a{n}");
        self.engine.apply(Change::ServiceApplied(service(&title, &format!("10.96.0.{n}"))));
        let addresses: Vec<String> = hosts.iter().map(|it| format!("10.1.{n}.{it}")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        self.engine.apply(Change::SliceApplied(slice(&format!("{title}-1"), &title, &addresses)));
    }

    /// A virtual server at 10.96.0.`n`:80, which is not bound, and its one destination.
    fn made_by_others(&mut self, n: u8, to: u8) -> ServerKey {
        let port = 80.try_into().unwrap();
        let key = ServerKey { protocol: Protocol::Tcp, address: [10, 96, 0, n].into(), port };
        let end = Destination { address: [10, 1, n, to].into(), port: 8080.try_into().unwrap() };
        let ops = [
            ServerOp::AddServer(key, VirtualServer::default()),
            ServerOp::AddDestination(key, end, 1),
        ];
        assert_eq!(self.ipvs.commit(&ServerBatch(ops.map(|it| (None, it)).into())).unwrap(), []);
        key
    }

    /// Another process, perhaps in another mode, on the same node.
    fn restarted(&self, settings: Settings) -> Host {
        let (kernel, mut ipvs) = (self.kernel.clone(), self.ipvs.clone());
        (ipvs.committed, ipvs.last) = (0, None);
        Host { kernel, ipvs, ..Host::started_with(settings) }
    }

    /// Where new connections to 10.96.0.`n` end.
    fn reached(&self, n: u8) -> Vec<String> {
        let at = ip(&format!("10.96.0.{n}"));
        assert_eq!(self.backends(n), [at]);
        assert!(self.servers().0.contains(&at));
        let servers = self.ipvs.servers.keys().filter(|it| it.address == at);
        servers.flat_map(|it| self.ipvs.picks(it)).map(|it| it.address.to_string()).collect()
    }

    fn destinations(&self) -> Vec<(ServerKey, Destination)> {
        let all = self.ipvs.servers.iter();
        all.flat_map(|(key, it)| it.destinations.keys().map(|to| (*key, *to))).collect()
    }

    fn only_destination(&self) -> (ServerKey, Destination) {
        let all = self.destinations();
        assert_eq!(all.len(), 1);
        all[0]
    }

    /// Rows of `ipvs-draining`.
    fn guarded(&self) -> Vec<IpAddr> {
        let rows = self.kernel.tables.rows(Family::V4, SetName::IpvsDraining);
        let address =
            |key: &Key| if let Key::Address(address) = key { Some(*address) } else { None };
        rows.filter_map(|(key, _)| address(key)).collect()
    }
}
