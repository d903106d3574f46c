//! Virtual servers compared piece by piece, with changes in between.

use super::*;
use crate::ipvs::schema::{Destination, ObservedServer, ServerKey, VirtualServer};

/// Ways in which somebody else alters what is ours: one of them takes an address away.
const ALTERATIONS: usize = 8;
const UNBIND: usize = 6;

/// What may happen between two pieces.
#[derive(Clone, Debug)]
enum Between {
    Step(Step),
    Pass,
    Settle,
    Nothing,
}

fn between() -> impl Strategy<Value = Vec<Between>> {
    let step = sample::steps()
        .prop_filter_map("no step", |steps| steps.into_iter().next())
        .prop_map(Between::Step);
    let event = prop_oneof![
        4 => step,
        2 => Just(Between::Pass),
        2 => Just(Between::Settle),
        3 => Just(Between::Nothing),
    ];
    vec(event, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Whatever somebody else has done before a comparison, and whatever changes come during it: it ends, and then the
    /// kernel has what it would have if everything were compared at once.
    #[test]
    fn pieces_repair_what_a_whole_comparison_repairs(
        before in sample::steps(),
        altered in vec(any::<usize>(), 0..5),
        between in between(),
    ) {
        let (mut whole, _) = settled(before.clone());
        let (mut host, mut world) = settled(before);
        for seed in &altered {
            host.alter(*seed);
        }
        whole.ipvs = host.ipvs.clone();
        let drifted = whole.engine.servers_observed(whole.ipvs.observe().unwrap());
        let mut differed = host.begin_comparison();
        for event in between {
            match event {
                Between::Step(step) => {
                    for change in world.step(step) {
                        host.engine.apply(change.clone());
                        whole.engine.apply(change);
                    }
                }
                Between::Pass => drop(host.pass()),
                Between::Settle => host.settle(),
                Between::Nothing => (),
            }
            differed |= host.compare_piece();
        }
        while !host.engine.uncompared_servers(1).is_empty() {
            differed |= host.compare_piece();
        }
        prop_assert_eq!(differed && !drifted, false, "a false alarm");
        host.finish();
        whole.finish();
        // What else was done at an address that is unbound is seen once it is bound again, by whoever looks then.
        let unbinds = |it: &&usize| **it % ALTERATIONS == UNBIND;
        let unbound = altered.iter().filter(unbinds).count();
        if unbound == 0 || unbound == altered.len() {
            prop_assert_eq!(host.servers(), whole.servers());
        }
        for family in Family::ALL {
            prop_assert_eq!(host.rows(family), whole.rows(family));
        }
        host.engine.servers_observed(host.ipvs.observe().unwrap());
        host.finish();
        prop_assert!(!host.engine.servers_observed(host.ipvs.observe().unwrap()));
    }

    /// Without changes in between it sees what a whole comparison sees.
    #[test]
    fn pieces_see_what_a_whole_comparison_sees(
        before in sample::steps(),
        altered in vec(any::<usize>(), 0..3),
    ) {
        let (mut whole, _) = settled(before.clone());
        let (mut host, _) = settled(before);
        for seed in &altered {
            host.alter(*seed);
        }
        let drifted = whole.engine.servers_observed(host.ipvs.observe().unwrap());
        let mut differed = host.begin_comparison();
        while !host.engine.uncompared_servers(1).is_empty() {
            differed |= host.compare_piece();
        }
        prop_assert_eq!(differed, drifted);
    }
}

/// In IPVS mode, with everything written.
fn settled(steps: Vec<Step>) -> (Host, sample::World) {
    let mut host = Host::started_with(balanced(settings(0)));
    let mut world = sample::World::default();
    for step in steps {
        world.step(step).into_iter().for_each(|change| host.engine.apply(change));
    }
    world.relist().into_iter().for_each(|change| host.engine.apply(change));
    host.finish();
    (host, world)
}

impl Host {
    /// Nobody has connections, and everything is written.
    fn finish(&mut self) {
        self.settle();
        (0..3).for_each(|_| self.drain());
    }

    fn begin_comparison(&mut self) -> bool {
        let outline = self.ipvs.outline().unwrap();
        self.engine.servers_outlined(outline)
    }

    /// One virtual server, unless it is not known what the kernel has.
    pub(super) fn compare_piece(&mut self) -> bool {
        if self.engine.needs_servers() {
            return false;
        }
        let servers = self.engine.uncompared_servers(1);
        if servers.is_empty() {
            return self.begin_comparison();
        }
        let seen = self.ipvs.destinations(&servers).unwrap();
        self.engine.servers_compared(seen)
    }

    /// Somebody else does something to what is ours.
    fn alter(&mut self, seed: usize) {
        let keys: Vec<ServerKey> = self.ipvs.servers.keys().copied().collect();
        let Some(key) = keys.get(seed / ALTERATIONS % keys.len().max(1)).copied() else { return };
        let stranger = Destination { address: key.address, port: 7.try_into().unwrap() };
        let server = self.ipvs.servers.get_mut(&key).unwrap();
        let first = server.destinations.keys().next().copied();
        match seed % ALTERATIONS {
            0 => drop(self.ipvs.servers.remove(&key)),
            1 => drop(server.destinations.pop_first()),
            2 => drop(server.destinations.insert(stranger, Default::default())),
            3 => server.server.persistence = Some(77),
            4 => {
                let first = first.and_then(|it| server.destinations.get_mut(&it));
                first.into_iter().for_each(|it| it.weight += 3);
            }
            5 => {
                let first = first.and_then(|it| server.destinations.get_mut(&it));
                first.into_iter().for_each(|it| it.masquerades = false);
            }
            UNBIND => {
                let interface = self.ipvs.interface.as_mut().unwrap();
                interface.addresses.remove(&key.address);
            }
            _ => {
                let key = ServerKey { port: 9_999.try_into().unwrap(), ..key };
                let destinations = [(stranger, Default::default())].into();
                let server = VirtualServer::default();
                self.ipvs.servers.insert(key, ObservedServer { server, destinations });
            }
        }
    }
}
