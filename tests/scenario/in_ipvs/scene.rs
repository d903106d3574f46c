//! A story told in pieces, with looks at IPVS in between.

use std::net::IpAddr;

use kube_ferry::model::Family;

use super::super::packets::Packets;
use super::super::run::{Run, answers};
use super::super::story::{Mode, Step, Story};
use crate::support::patience::{LONG, poll};
use crate::support::world::{ACTORS, World, twin};

pub(super) struct Scene<'s, 'w> {
    pub(super) world: &'w World,
    run: Run<'s, Packets<'w>>,
}

/// A destination as `ipvsadm -Ln` lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) weight: u32,
    pub(super) active: u32,
    pub(super) inactive: u32,
}

/// In a world of its own, with a proxy in IPVS mode that starts with the first piece. At the end a restart must write
/// nothing.
pub(super) fn scene(flags: &str, tell: impl FnOnce(&mut Scene<'_, '_>)) {
    let world = World::new();
    let mut flags: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
    flags.push("--nodeport-addresses=primary".to_owned());
    let (name, steps) = ("scene".to_owned(), Vec::new());
    let story = Story { name, mode: Mode::Ipvs, flags, steps };
    let mut packets = Packets::new(&world, &story);
    let mut scene = Scene { world: &world, run: Run::new(&mut packets) };
    tell(&mut scene);
    scene.run.end().unwrap_or_else(|why| panic!("{why}"));
}

impl<'w> Scene<'_, 'w> {
    /// The next steps; returns when what they wrote is in force.
    #[track_caller]
    pub(super) fn play(&mut self, steps: &str) {
        let played = Story::parse("scene", steps).and_then(|it| self.run.play(&it));
        played.unwrap_or_else(|why| panic!("{why}\nof:\n{steps}"));
    }

    /// Resets the connections of an `open` step, so that IPVS forgets them after ten seconds. (It remembers those that
    /// ended by themselves for two minutes.)
    pub(super) fn hang_up(&mut self, name: &str) {
        self.run.hang_up(name);
    }

    /// How many of so many connections, one after the other, each pod answers, in the order of the `flow`.
    #[track_caller]
    pub(super) fn shares(&self, flow: &str, family: Family, connections: usize) -> Vec<usize> {
        let story = Story::parse("scene", &format!("flow {flow}")).unwrap();
        let Some(Step::Flow(flow)) = story.steps.first().map(|it| &it.what) else { panic!() };
        let answers = answers(self.world, &self.run.attempt(flow, family).unwrap(), connections);
        let answers = answers.unwrap_or_else(|why| panic!("{why}"));
        let (_, pods) = flow.text.split_once(" = ").unwrap();
        let count = |pod| answers.iter().filter(|it| *it == pod).count();
        pods.split(' ').map(count).collect()
    }

    /// Waits until the virtual server (`-t 10.96.0.10:80`) has these destinations (`pod-1b 0`: the weight), in both
    /// families. None at all: it is not there either.
    #[track_caller]
    pub(super) fn lists(&self, server: &str, expected: &[&str]) {
        let listed = poll(LONG, || {
            for family in Family::ALL {
                let mut found = Vec::new();
                for (pod, it) in self.destinations(server, family) {
                    found.push(format!("{pod} {}", it.weight));
                }
                if found != expected || found.is_empty() && self.has(server, family) {
                    let all = self.listing();
                    return Err(format!(
                        "{family:?}: {server} has {found:?}, not {expected:?}:\n{all}"
                    ));
                }
            }
            Ok(())
        });
        listed.unwrap_or_else(|why| panic!("{why}"));
    }

    /// One of them, which must be there.
    #[track_caller]
    pub(super) fn destination(&self, server: &str, pod: &str, family: Family) -> Listed {
        let all = self.destinations(server, family);
        let found = all.iter().find(|(name, _)| *name == pod);
        found.unwrap_or_else(|| panic!("no {pod} among {all:?}")).1
    }

    /// `rr` and the like.
    pub(super) fn scheduler(&self, server: &str, family: Family) -> Option<String> {
        let head = head(server, family);
        let listing = self.listing();
        let line = listing.lines().find(|it| it.starts_with(&head))?;
        line.split_whitespace().nth(2).map(str::to_owned)
    }

    /// The sum of the values of a metric, 0 if there is none.
    pub(super) fn metric(&self, name: &str) -> f64 {
        self.run.datapath.metric(name).unwrap_or_default()
    }

    fn has(&self, server: &str, family: Family) -> bool {
        self.scheduler(server, family).is_some()
    }

    /// In the order of their names.
    fn destinations(&self, server: &str, family: Family) -> Vec<(&'static str, Listed)> {
        let head = head(server, family);
        let listing = self.listing();
        let rows = listing.lines().skip_while(|it| !it.starts_with(&head)).skip(1);
        let rows = rows.take_while(|it| it.trim_start().starts_with("->"));
        let mut all: Vec<_> = rows.map(row).collect();
        all.sort_by_key(|(name, _)| *name);
        all
    }

    fn listing(&self) -> String {
        self.world.node().command("ipvsadm", &["-L", "-n"], "")
    }
}

/// How the line of the virtual server begins: `TCP  10.96.0.10:80 `.
fn head(server: &str, family: Family) -> String {
    let (protocol, at) = server.split_once(' ').unwrap();
    let (address, port) = at.split_once(':').unwrap();
    let address = match family {
        Family::V4 => address.to_owned(),
        Family::V6 => format!("[{}]", twin(address.parse().unwrap())),
    };
    let protocol = match protocol {
        "-t" => "TCP ",
        "-u" => "UDP ",
        "--sctp-service" => "SCTP",
        other => panic!("{other}"),
    };
    format!("{protocol} {address}:{port} ")
}

/// `  -> 10.244.1.11:8080             Masq    1      0          3`
fn row(line: &str) -> (&'static str, Listed) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| words[at].parse().unwrap_or_else(|_| panic!("{line}"));
    let host = words[1].rsplit_once(':').unwrap().0.trim_matches(['[', ']']);
    let address: IpAddr = host.parse().unwrap();
    let pod = ACTORS.iter().find(|it| it.addresses().contains(&address));
    let listed = Listed { weight: number(3), active: number(4), inactive: number(5) };
    (pod.unwrap_or_else(|| panic!("nobody has {address}")).name, listed)
}
