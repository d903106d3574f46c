//! Operations that the kernel refuses, told one by one.

use kube_ferry::ipvs::schema::Op;
use kube_ferry::kernel::{Ipvs as _, NetlinkIpvs, ipvs::advice};

use super::witness::*;

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ERANGE: i32 = 34;

const SERVER: &str = "tcp 10.96.0.10:80";

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn each_refusal_of_thousands_is_told_by_its_position() {
    prepared(|ipvs| {
        let mut ops = vec![add(SERVER), bind("10.96.0.10")];
        let mut expected = Vec::new();
        for number in 0..5_000u32 {
            let [_, _, high, low] = number.to_be_bytes();
            let end = format!("10.1.{high}.{low}:80");
            if number % 3 == 0 {
                expected.push((ops.len(), ESRCH));
                ops.push(add_to("tcp 10.96.0.77:80", &end, 1));
            } else if number % 1_000 == 1 {
                expected.push((ops.len(), ERANGE));
                ops.push(add_to(SERVER, &end, 1 << 31));
            } else {
                ops.push(add_to(SERVER, &end, 1));
            }
        }
        check_refused(ipvs, &ops, &expected);
        let observed = ipvs.observe().unwrap();
        let done = ops.len() - 2 - expected.len();
        assert_eq!(observed.servers[&key(SERVER)].destinations.len(), done);
        assert_eq!(saved().len(), 1 + done);
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_batch_of_nothing_but_refusals_is_no_failure() {
    prepared(|ipvs| {
        let op = Op::SetDestination(key(SERVER), destination("10.1.1.2:80"), 1);
        let expected: Vec<(usize, i32)> = (0..20_000).map(|it| (it, ESRCH)).collect();
        check_refused(ipvs, &vec![op; expected.len()], &expected);
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn what_is_there_is_altered_in_order() {
    prepared(|ipvs| {
        let end = destination("10.1.1.2:80");
        let draining = Op::SetDestination(key(SERVER), end, 0);
        commit(ipvs, &[add(SERVER), add_to(SERVER, "10.1.1.2:80", 1)]);
        commit(
            ipvs,
            &[
                Op::SetServer(key(SERVER), scheduled("lc")),
                add_to(SERVER, "10.1.1.2:80", 5),
                draining,
            ],
        );
        check_saved(&["-A -t 10.96.0.10:80 -s lc", "-a -t 10.96.0.10:80 -r 10.1.1.2:80 -m -w 0"]);
        commit(ipvs, &[add_to(SERVER, "10.1.1.2:80", 5), Op::DeleteServer(key(SERVER))]);
        check_saved(&[]);
        commit(
            ipvs,
            &[
                add(SERVER),
                Op::SetServer(key(SERVER), scheduled("wlc")),
                Op::DeleteServer(key(SERVER)),
                Op::AddServer(key(SERVER), scheduled("nq")),
                add_to(SERVER, "10.1.1.2:80", 1),
                Op::DeleteDestination(key(SERVER), end),
                add_to(SERVER, "10.1.1.2:80", 4),
            ],
        );
        check_saved(&["-A -t 10.96.0.10:80 -s nq", "-a -t 10.96.0.10:80 -r 10.1.1.2:80 -m -w 4"]);
    });
}

/// Nothing of what was to follow happens to it, and no address makes it ours.
#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_virtual_server_that_is_there_already_is_somebody_elses() {
    prepared(|ipvs| {
        ipvsadm("-A -t 10.96.0.10:80 -s wlc -p 77");
        ipvsadm("-a -t 10.96.0.10:80 -r 10.1.1.2:80 -m -w 5");
        let end = destination("10.1.1.2:80");
        let mut ops = vec![
            add(SERVER),
            add_to(SERVER, "10.1.1.2:80", 1),
            add_to(SERVER, "10.1.1.3:80", 1),
            Op::DeleteDestination(key(SERVER), end),
            add("udp 10.96.0.10:80"),
            bind("10.96.0.10"),
            bind("10.96.0.11"),
        ];
        // What is far behind as well.
        ops.extend((0..1_000).map(|_| bind("10.96.0.12")));
        ops.push(Op::SetServer(key(SERVER), scheduled("rr")));
        let last = ops.len() - 1;
        let refused = [(0, EEXIST), (1, ESRCH), (2, ESRCH), (5, EEXIST), (last, ESRCH)];
        check_refused(ipvs, &ops, &refused);
        check_saved(&[
            "-A -t 10.96.0.10:80 -s wlc -p 77",
            "-a -t 10.96.0.10:80 -r 10.1.1.2:80 -m -w 5",
            "-A -u 10.96.0.10:80 -s rr",
        ]);
        assert_eq!(bound(), ["10.96.0.11/32", "10.96.0.12/32"].map(str::to_owned).into());
        // Who knows that it is nobody else's says so.
        commit(ipvs, &[Op::DeleteServer(key(SERVER)), add(SERVER), bind("10.96.0.10")]);
        check_saved(&["-A -t 10.96.0.10:80 -s rr", "-A -u 10.96.0.10:80 -s rr"]);
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn what_is_not_there_cannot_be_altered() {
    prepared(|ipvs| {
        let end = destination("10.1.1.2:80");
        check_refused(
            ipvs,
            &[
                Op::SetServer(key(SERVER), scheduled("rr")),
                Op::SetDestination(key(SERVER), end, 1),
                add(SERVER),
                Op::SetDestination(key(SERVER), end, 1),
                add_to(SERVER, "[fd01::2]:80", 1),
            ],
            &[(0, ESRCH), (1, ESRCH), (3, ENOENT), (4, EINVAL)],
        );
        check_saved(&["-A -t 10.96.0.10:80 -s rr"]);
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_missing_scheduler_concerns_its_own_services_only() {
    prepared(|ipvs| {
        let strange = Op::AddServer(key("tcp 10.96.0.11:80"), scheduled("fastest"));
        check_refused(
            ipvs,
            &[
                add(SERVER),
                strange,
                add_to("tcp 10.96.0.11:80", "10.1.1.2:80", 1),
                bind("10.96.0.10"),
            ],
            &[(1, ENOENT), (2, ESRCH)],
        );
        check_saved(&["-A -t 10.96.0.10:80 -s rr"]);
        let told = advice(&strange, ENOENT).unwrap();
        for part in ["no scheduler fastest", "modprobe ip_vs_fastest", "CONFIG_IP_VS_FASTEST"] {
            assert!(told.contains(part), "{told}");
        }
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn without_the_interface_nothing_is_bound_and_everything_is_unbound() {
    isolated(|| {
        let mut ipvs = NetlinkIpvs::new(Vec::new()).unwrap();
        let unbind = Op::UnbindAddress(address("10.96.0.10"));
        check_refused(&mut ipvs, &[bind("10.96.0.10"), unbind, add(SERVER)], &[(0, ENODEV)]);
        check_saved(&["-A -t 10.96.0.10:80 -s rr"]);
        assert_eq!(ipvs.commit(&batch(&[])).unwrap(), []);
    });
}
