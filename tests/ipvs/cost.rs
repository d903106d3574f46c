//! What ten thousand Services cost. Printed, since machines differ; asserted is only that all of it is there.

use std::time::{Duration, Instant};

use kube_ferry::ipvs::schema::{Destination, Op, ServerKey};
use kube_ferry::kernel::{Ipvs as _, NetlinkIpvs};
use kube_ferry::model::Protocol;

use super::witness::*;

const SERVERS: u32 = 10_000;
const ENDPOINTS: u32 = 5;

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn ten_thousand_virtual_servers_with_five_destinations() {
    prepared(|ipvs| {
        let servers: Vec<Op> =
            (0..SERVERS).map(|it| Op::AddServer(server(it), scheduled("rr"))).collect();
        let ends: Vec<Op> = (0..SERVERS * ENDPOINTS)
            .map(|it| Op::AddDestination(server(it / ENDPOINTS), end(it), 1))
            .collect();
        let binds: Vec<Op> = (0..SERVERS).map(|it| Op::BindAddress(server(it).address)).collect();
        report("10,000 virtual servers", || commit(ipvs, &servers));
        report("50,000 destinations", || commit(ipvs, &ends));
        report("10,000 addresses", || commit(ipvs, &binds));
        report("destinations and addresses again", || commit(ipvs, &[ends, binds].concat()));
        let observed = report("reading all", || ipvs.observe().unwrap());
        assert_eq!(observed.servers.len(), SERVERS as usize);
        assert!(observed.servers.values().all(|it| it.destinations.len() == ENDPOINTS as usize));
        let all: Vec<ServerKey> = observed.servers.keys().copied().collect();
        let counted = report("connections of all", || ipvs.connections(&all).unwrap());
        assert_eq!(counted.len(), (SERVERS * ENDPOINTS) as usize);
        let one = all[..1].to_vec();
        report("connections of one", || ipvs.connections(&one).unwrap());
        let busy = server(SERVERS / 2);
        report("one endpoint replaced", || {
            commit(
                ipvs,
                &[
                    Op::AddDestination(busy, end(1_000_000), 1),
                    Op::SetDestination(busy, end(SERVERS / 2 * ENDPOINTS), 0),
                ],
            );
        });
        let (new, address) = (key("tcp 10.97.0.1:80"), address("10.97.0.1"));
        report("one Service more", || {
            commit(
                ipvs,
                &[
                    Op::AddServer(new, scheduled("rr")),
                    Op::AddDestination(new, end(1), 1),
                    Op::BindAddress(address),
                ],
            );
        });
        report("other schedulers for 20", || {
            let ops: Vec<Op> =
                (0..20).map(|it| Op::SetServer(server(it), scheduled("wrr"))).collect();
            commit(ipvs, &ops);
        });
        report("deleting all", || remove(ipvs, &all));
    });
}

fn remove(ipvs: &mut NetlinkIpvs, all: &[ServerKey]) {
    let ops: Vec<Op> =
        all.iter().flat_map(|it| [Op::DeleteServer(*it), Op::UnbindAddress(it.address)]).collect();
    commit(ipvs, &ops);
}

fn report<T>(what: &str, work: impl FnOnce() -> T) -> T {
    #[expect(clippy::disallowed_methods, reason = "this measures")]
    let start = Instant::now();
    let result = work();
    let took: Duration = start.elapsed();
    eprintln!("{what}: {took:.1?}");
    result
}

fn server(number: u32) -> ServerKey {
    let [_, _, high, low] = number.to_be_bytes();
    let address = [10, 96, high, low].into();
    ServerKey { protocol: Protocol::Tcp, address, port: 80.try_into().unwrap() }
}

fn end(number: u32) -> Destination {
    let [_, a, b, c] = number.to_be_bytes();
    Destination { address: [10, 128 + a, b, c].into(), port: 8080.try_into().unwrap() }
}
