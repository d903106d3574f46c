//! The compiler against a model of IPVS.

use proptest::prelude::*;

use super::*;
use crate::ipvs::schema::ObservedInterface;
use crate::ipvs::split::{Settings, split};
use crate::model::Family;
use crate::nft::compile::tests::laws::forwarding;
use model::World;

mod model;

#[test]
fn a_new_service_is_complete_before_nft_leads_to_it_and_bound_after() {
    let mut world = World::new();
    world.stage(1, &[("-t 80", &[(1, 1), (2, 5)])]);
    world.check(&[
        "-A -t 10.96.0.1:80 -s rr",
        "-a -t 10.96.0.1:80 -r 10.1.0.1:8080 -w 1",
        "-a -t 10.96.0.1:80 -r 10.1.0.2:8080 -w 5",
        "-- nft",
        "address add 10.96.0.1",
    ]);
    world.stage(1, &[("-t 80", &[(1, 1), (2, 5)])]);
    world.check(&["-- nft"]);
}

#[test]
fn an_address_that_nft_leads_to_already_is_bound_first() {
    let mut world = World::new();
    world.led_to = true;
    world.stage(1, &[("-u 53", &[(1, 1)])]);
    world.check(&[
        "-A -u 10.96.0.1:53 -s rr",
        "-a -u 10.96.0.1:53 -r 10.1.0.1:8080 -w 1",
        "address add 10.96.0.1",
        "-- nft",
    ]);
}

#[test]
fn endpoints_change_without_a_moment_of_none() {
    let mut world = World::new();
    world.stage(1, &[("-t 80", &[(1, 1)])]);
    world.run();
    world.node.connect("-t 80", 1, 3);
    world.stage(1, &[("-t 80", &[(2, 1), (3, 2)])]);
    world.check(&[
        "-a -t 10.96.0.1:80 -r 10.1.0.2:8080 -w 1",
        "-a -t 10.96.0.1:80 -r 10.1.0.3:8080 -w 2",
        "-- nft",
        "-e -t 10.96.0.1:80 -r 10.1.0.1:8080 -w 0",
    ]);
    assert!(!world.look());
    world.node.connect("-t 80", 1, 0);
    assert!(world.look());
    world.check(&["-- nft", "-d -t 10.96.0.1:80 -r 10.1.0.1:8080"]);
    assert!(world.compiler.draining().is_empty());
}

#[test]
fn one_that_comes_back_keeps_its_connections() {
    let mut world = World::new();
    world.stage(1, &[("-t 80", &[(1, 1), (2, 1)])]);
    world.run();
    world.node.connect("-t 80", 1, 3);
    world.stage(1, &[("-t 80", &[(2, 1)])]);
    world.run();
    world.stage(1, &[("-t 80", &[(1, 4), (2, 1)])]);
    world.check(&["-e -t 10.96.0.1:80 -r 10.1.0.1:8080 -w 4", "-- nft"]);
    world.node.connect("-t 80", 1, 0);
    assert!(!world.look());
    // Even in the moment in which it has drained.
    world.stage(1, &[("-t 80", &[(2, 1)])]);
    world.run();
    assert!(world.look());
    world.stage(1, &[("-t 80", &[(1, 1), (2, 1)])]);
    world.check(&["-e -t 10.96.0.1:80 -r 10.1.0.1:8080 -w 1", "-- nft"]);
}

#[test]
fn udp_ends_with_the_endpoint_and_not_before() {
    let mut world = World::new();
    world.stage(1, &[("-u 53", &[(1, 1), (2, 1)])]);
    world.run();
    world.node.connect("-u 53", 1, 3);
    world.serving = vec![1];
    world.stage(1, &[("-u 53", &[(2, 1)])]);
    world.check(&["-- nft", "-e -u 10.96.0.1:53 -r 10.1.0.1:8080 -w 0"]);
    world.serving = vec![];
    world.stage(1, &[("-u 53", &[(2, 1)])]);
    world.check(&["-- nft", "-d -u 10.96.0.1:53 -r 10.1.0.1:8080"]);
    world.stage(1, &[]);
    world.check(&["-- nft", "-D -u 10.96.0.1:53", "address del 10.96.0.1"]);
    assert!(world.compiler.is_empty());
}

#[test]
fn a_removed_service_drains_with_its_address() {
    let mut world = World::new();
    world.stage(1, &[("-t 80", &[(1, 1)]), ("-t 443", &[(1, 1)])]);
    world.run();
    world.node.connect("-t 80", 1, 1);
    world.stage(1, &[("-t 443", &[(1, 1)])]);
    assert!(world.draining(&[1]).is_empty());
    world.run();
    assert!(world.draining(&[]).is_empty());
    world.stage(1, &[]);
    // As long as nft has not taken it back, the address is wanted.
    assert!(world.draining(&[]).is_empty());
    assert_eq!(world.draining(&[1]), ["10.96.0.1"]);
    world.check(&["-- nft", "-e -t 10.96.0.1:443 -r 10.1.0.1:8080 -w 0"]);
    assert!(world.look());
    world.check(&["-- nft", "-D -t 10.96.0.1:443"]);
    assert_eq!(world.draining(&[]), ["10.96.0.1"]);
    world.node.connect("-t 80", 1, 0);
    assert!(world.look());
    world.check(&["-- nft", "-D -t 10.96.0.1:80", "address del 10.96.0.1"]);
    assert!(world.draining(&[]).is_empty());
}

#[test]
fn another_service_takes_the_address_over_with_its_connections() {
    let mut world = World::new();
    world.stage(1, &[("-t 80", &[(1, 1), (2, 1)])]);
    world.run();
    world.stage(1, &[]);
    world.stage_at(2, 1, &[("-t 80", &[(2, 1), (3, 1)])]);
    world.check(&[
        "-a -t 10.96.0.1:80 -r 10.1.0.3:8080 -w 1",
        "-- nft",
        "-e -t 10.96.0.1:80 -r 10.1.0.1:8080 -w 0",
    ]);
}

#[test]
fn a_restart_adopts_what_is_wanted_and_drains_the_rest() {
    let mut world = World::new();
    world.stage(1, &[("-t 80", &[(1, 1), (2, 1)])]);
    world.stage(2, &[("-t 80", &[(1, 1)])]);
    world.run();
    world.node.connect("-t 80", 1, 1);
    world.restart();
    world.stage(1, &[("-t 80", &[(2, 1)])]);
    world.check(&["-- nft", "-e -t 10.96.0.1:80 -r 10.1.0.1:8080 -w 0"]);
    world.prune();
    assert_eq!(world.draining(&[]), ["10.96.0.2"]);
    world.check(&["-- nft", "-e -t 10.96.0.2:80 -r 10.1.0.1:8080 -w 0"]);
    world.restart();
    world.stage(1, &[("-t 80", &[(2, 1)])]);
    world.prune();
    world.check(&["-- nft"]);
    assert!(world.look());
    world.check(&["-- nft", "-D -t 10.96.0.2:80", "address del 10.96.0.2"]);
}

#[test]
fn what_others_did_is_undone() {
    let mut world = World::new();
    world.stage(1, &[("-t 80", &[(1, 1), (2, 1)])]);
    world.stage(2, &[("-t 80", &[(1, 1)])]);
    world.run();
    world.prune();
    world.node.alter(&Op::DeleteDestination(World::key(1, "-t 80"), World::to(1)));
    world.node.alter(&Op::AddDestination(World::key(1, "-t 80"), World::to(9), 1));
    world.node.alter(&Op::AddServer(World::key(1, "-t 99"), VirtualServer::default()));
    world.node.alter(&Op::UnbindAddress("10.96.0.2".parse().unwrap()));
    world.node.alter(&Op::BindAddress("10.96.7.7".parse().unwrap()));
    let observed = world.node.observed();
    let differences = world.compiler.observe(observed);
    assert!(differences.by_others);
    assert_eq!(differences.owners, [Owner(1), Owner(2)].into());
    world.touched.extend([Owner(1), Owner(2)]);
    world.check(&[
        "-a -t 10.96.0.1:80 -r 10.1.0.1:8080 -w 1",
        "-- nft",
        "-e -t 10.96.0.1:80 -r 10.1.0.9:8080 -w 0",
        "address add 10.96.0.2",
        "-D -t 10.96.0.1:99",
        "address del 10.96.7.7",
    ]);
    let observed = world.node.observed();
    assert!(!world.compiler.observe(observed).by_others);
}

#[test]
fn other_forwarding_methods_are_replaced() {
    let mut world = World::new();
    world.stage(1, &[("-t 80", &[(1, 1)])]);
    world.run();
    let mut observed = world.node.observed();
    for it in observed.servers.values_mut().flat_map(|it| it.destinations.values_mut()) {
        it.masquerades = false;
    }
    world.compiler.observe(observed);
    world.forget_rows();
    world.touched.insert(Owner(1));
    world.check(&[
        "-d -t 10.96.0.1:80 -r 10.1.0.1:8080",
        "-a -t 10.96.0.1:80 -r 10.1.0.1:8080 -w 1",
        "-- nft",
    ]);
}

#[test]
fn without_its_scheduler_a_service_has_the_default_one() {
    let mut world = World::new();
    world.scheduler = "fancy";
    world.node.refuse = |op| {
        let is_fancy = matches!(op, Op::AddServer(_, it) if it.scheduler.name() == "fancy");
        is_fancy.then_some(ENOENT)
    };
    world.stage(1, &[("-t 80", &[(1, 1)])]);
    assert_eq!(world.run_once(), [Failure::Again, Failure::Refused]);
    world.stage(1, &[("-t 80", &[(1, 1)])]);
    world.check(&[
        "-A -t 10.96.0.1:80 -s rr",
        "-a -t 10.96.0.1:80 -r 10.1.0.1:8080 -w 1",
        "-- nft",
        "address add 10.96.0.1",
    ]);
    let told = world.compiler.take_missing_schedulers();
    assert_eq!(told.iter().map(|it| it.wanted.name()).collect::<Vec<_>>(), ["fancy"]);
    world.stage(1, &[("-t 80", &[(1, 1), (2, 1)])]);
    assert_eq!(world.compiler.take_missing_schedulers(), []);
}

#[test]
fn a_virtual_server_whose_address_was_never_bound_is_made_anew() {
    let mut world = World::new();
    world.node.alter(&Op::AddServer(World::key(1, "-t 80"), VirtualServer::default()));
    world.stage(1, &[("-t 80", &[(1, 1)])]);
    assert_eq!(world.run_once(), [Failure::Again]);
    world.stage(1, &[("-t 80", &[(1, 1)])]);
    world.check(&[
        "-D -t 10.96.0.1:80",
        "-A -t 10.96.0.1:80 -s rr",
        "-a -t 10.96.0.1:80 -r 10.1.0.1:8080 -w 1",
        "-- nft",
        "address add 10.96.0.1",
    ]);
}

#[test]
fn a_virtual_server_in_use_at_an_address_of_the_node_is_not_touched() {
    let key = World::key(1, "-t 80");
    let mut compiler = Compiler::new(Scheduler::default(), Duration::ZERO);
    let op = Op::AddServer(key, VirtualServer::default());
    assert_eq!(compiler.failed(&op, EEXIST, |_| true), Failure::Look);
    assert_eq!(compiler.failed(&op, 12, |_| false), Failure::Refused);
}

/// What may happen.
#[derive(Clone, Debug)]
enum Step {
    Stage(u32, Box<crate::forward::ServiceForwarding>),
    Remove(u32),
    /// Everything staged gets into the kernel.
    Run,
    /// As `Run`, but nft refuses; so what is staged waits.
    Refused,
    Connect(usize),
    Disconnect,
    Look,
    Restart,
    /// After so many operations of a run.
    Crash(usize),
    Drift(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let stage = (1..4_u32)
        .prop_flat_map(|it| forwarding(it).prop_map(move |f| Step::Stage(it, Box::new(f))));
    let step = prop_oneof![
        6 => stage,
        2 => (1..4_u32).prop_map(Step::Remove),
        5 => Just(Step::Run),
        1 => Just(Step::Refused),
        2 => (0..40_usize).prop_map(Step::Connect),
        1 => Just(Step::Disconnect),
        2 => Just(Step::Look),
        1 => Just(Step::Restart),
        2 => (0..30_usize).prop_map(Step::Crash),
        1 => (0..40_usize).prop_map(Step::Drift),
    ];
    prop::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: served ports stay served at every operation (`World` looks at each), and in the
    /// end the kernel has what it would have from scratch.
    #[test]
    fn incremental_equals_from_scratch(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Stage(owner, forwarding) => {
                    let split = split(&Settings::default(), &Family::ALL, &forwarding);
                    world.stage_all(owner, split.servers);
                }
                Step::Remove(owner) => world.stage_all(owner, Vec::new()),
                Step::Run => drop(world.run()),
                Step::Refused => drop(world.run_refused()),
                Step::Connect(seed) => world.node.connect_some(seed),
                Step::Disconnect => world.node.disconnect(),
                Step::Look => drop(world.look()),
                Step::Restart => world.restart_with_everything(),
                Step::Crash(operations) => world.crash(operations),
                Step::Drift(seed) => world.drift(seed),
            }
        }
        world.restage();
        world.run();
        world.prune();
        world.run();
        world.node.disconnect();
        for _ in 0..3 {
            world.look();
            world.run();
        }
        prop_assert!(!world.compiler.has_work());
        prop_assert!(world.compiler.draining().is_empty());
        let mut scratch = World::new();
        for (owner, servers) in world.desired.clone() {
            scratch.stage_all(owner.0, servers);
        }
        scratch.run();
        prop_assert_eq!(&world.node.servers, &scratch.node.servers);
        prop_assert_eq!(&world.node.addresses, &scratch.node.addresses);
        prop_assert!(world.draining(&[]).is_empty());
        let (believed, bound) = world.compiler.believed();
        let seen = world.node.observed();
        let destinations = believed.values().map(|it| it.destinations.len()).sum();
        prop_assert_eq!(world.compiler.counts(), Counts { servers: believed.len(), destinations });
        prop_assert_eq!(believed, seen.servers);
        prop_assert_eq!(Some(bound), seen.interface.as_ref().map(|it: &ObservedInterface| &it.addresses));
    }
}
