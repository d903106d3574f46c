//! Stories in IPVS mode: the same expectations, with `ipvsadm` and `ip` as further witnesses.
//!
//! Not all of a story is the same there; [`DIFFERENCES`] says what and why, and nothing else may differ.

mod arp;
mod drain;
mod ports;
mod scene;
mod schedulers;

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::packets;
use super::story::{Mode, Step, Story};
use crate::support::patience::{LONG, poll};
use crate::support::world::World;

/// Stories that cannot hold in IPVS mode, and why.
const DIFFERENCES: &[(&str, &str)] = &[
    (
        "foreign_input_firewall",
        "IPVS takes packets on their way to a local socket, so a firewall of the node's input sees those to cluster IPs and \
         has to accept them",
    ),
    (
        "session_affinity_times_out",
        "IPVS remembers a client as long as connections of it are in TIME_WAIT, two minutes beyond the timeout",
    ),
];

/// In nftables mode NodePorts are on the node's own addresses unless told otherwise, in other modes on all: stories are
/// written for the former.
const NODE_PORTS: &str = "--nodeport-addresses";

pub(super) fn play(mut story: Story) {
    if let Some((name, why)) = DIFFERENCES.iter().find(|(name, _)| *name == story.name) {
        println!("{name} is another story in IPVS mode: {why}");
        return;
    }
    story.mode = Mode::Ipvs;
    let upgrades = story
        .steps
        .iter()
        .flat_map(|it| if let Step::Upgrade(flags) = &it.what { flags.as_slice() } else { &[] });
    let mut flags = story.flags.iter().chain(upgrades);
    if !flags.any(|it| it.starts_with(NODE_PORTS)) {
        story.flags.push(format!("{NODE_PORTS}=primary"));
    }
    packets::play(&story);
}

/// Whether IPVS has a persistence template for the client.
pub(super) fn remembers(world: &World, client: IpAddr) -> bool {
    let listing = world.node().command("ipvsadm", &["-L", "-n", "-c"], "");
    // pro expire state source virtual destination; a template has no source port and no state.
    let template = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let source = words.get(3).and_then(|it| it.rsplit_once(':'));
        let host = source.map(|(host, _)| host.trim_matches(['[', ']']));
        words.get(2) == Some(&"NONE") && host.and_then(|it| it.parse().ok()) == Some(client)
    };
    listing.lines().any(template)
}

/// Whether new connections to this address get an endpoint.
pub(super) fn is_served(world: &World, address: IpAddr) -> bool {
    let saved = world.node().command("ipvsadm", &["-S", "-n"], "");
    let is_at = |line: &str| {
        let host = server(line).and_then(|it| it.rsplit_once(':')).map(|it| it.0);
        host.and_then(|it| it.trim_matches(['[', ']']).parse().ok()) == Some(address)
    };
    saved.lines().any(|it| it.starts_with("-a") && is_at(it) && weight(it) > 0)
}

/// Virtual servers, their destinations and their addresses, each on a line of its own, in order. What drains is left out:
/// it goes when its time has come, whoever is at work.
pub(super) fn virtual_servers(world: &World) -> Vec<String> {
    let node = world.node();
    let saved = node.command("ipvsadm", &["-S", "-n"], "");
    let serving: Vec<&str> =
        saved.lines().filter(|it| it.starts_with("-a") && weight(it) > 0).collect();
    let servers: BTreeSet<&str> = serving.iter().filter_map(|it| server(it)).collect();
    let heads = saved.lines().filter(|it| it.starts_with("-A"));
    let heads = heads.filter(|it| server(it).is_some_and(|it| servers.contains(it)));
    let bound = node.command("ip", &["-o", "address", "show", "dev", "kube-ipvs0"], "");
    let hosts: BTreeSet<&str> =
        servers.iter().filter_map(|it| it.rsplit_once(':')).map(|it| it.0).collect();
    let bound = bound.lines().filter(|line| {
        let address = line.split_whitespace().nth(3).and_then(|it| it.split('/').next());
        address.is_some_and(|it| hosts.contains(it) || hosts.contains(format!("[{it}]").as_str()))
    });
    let lines: BTreeSet<String> =
        serving.iter().copied().chain(heads).chain(bound).map(|it| it.trim().to_owned()).collect();
    lines.into_iter().collect()
}

/// `-a -t 10.96.0.10:80 -r 10.244.1.11:8080 -m -w 1`: address and port of the virtual server, and the weight.
fn server(line: &str) -> Option<&str> {
    line.split_whitespace().nth(2)
}

fn weight(line: &str) -> u32 {
    line.trim().rsplit(' ').next().and_then(|it| it.parse().ok()).unwrap_or_default()
}

/// Lines that came and lines that went.
pub(super) fn differences(before: &[String], after: &[String]) -> Vec<String> {
    let gone = before.iter().filter(|it| !after.contains(it)).map(|it| format!("- {it}"));
    let come = after.iter().filter(|it| !before.contains(it)).map(|it| format!("+ {it}"));
    gone.chain(come).collect()
}

/// Connections of every kind go on and new ones are answered while the mode changes, and changes back.
const SWITCHING: &str = "\
flags --nodeport-addresses=primary --ipvs-drain-timeout=5s

apply Service default/web
  spec:
    type: LoadBalancer
    clusterIPs: [10.96.0.10, \"fd00:10:96::10\"]
    ports: [{name: http, port: 80, nodePort: 30080}, {name: dns, port: 53, protocol: UDP, nodePort: 30053}]
  status: {loadBalancer: {ingress: [{ip: 198.51.100.7}, {ip: \"2001:db8:100::7\"}]}}
endpoints default/web http=8080/tcp dns=5353/udp
  pod-1b
  pod-2a
flow client -> 10.96.0.10:80/tcp = pod-1b pod-2a, source kept
traffic tcp: client -> 10.96.0.10:80/tcp = pod-1b pod-2a
traffic udp: client -> 10.96.0.10:53/udp = pod-1b pod-2a
traffic outside: outside -> 198.51.100.7:80/tcp = pod-1b pod-2a
traffic node: node-1 -> 192.0.2.1:30080/tcp = pod-1b pod-2a

upgrade --proxy-mode=ipvs
flow client -> 10.96.0.10:80/tcp = pod-1b pod-2a, source kept
flow outside -> 198.51.100.7:80/tcp = pod-1b pod-2a, masquerade
flow client -> 10.96.0.10:81/tcp = reject
traffic meanwhile: client -> 10.96.0.10:80/tcp = pod-1b pod-2a

upgrade --proxy-mode=nftables
flow client -> 10.96.0.10:80/tcp = pod-1b pod-2a, source kept
flow outside -> 198.51.100.7:80/tcp = pod-1b pod-2a, masquerade
flow client -> 10.96.0.10:81/tcp = reject

unharmed tcp
unharmed udp
unharmed outside
unharmed node
unharmed meanwhile
";

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn the_mode_changes_both_ways_under_traffic() {
    let story = Story::parse("the_mode_changes", SWITCHING).unwrap();
    packets::play_and_look(&story, |world| {
        poll(LONG, || {
            let left = world.node().command("ip", &["-o", "link"], "")
                + &world.node().command("ipvsadm", &["-S", "-n"], "");
            let gone = !left.contains("kube-ipvs0") && !left.contains("-A ");
            gone.then_some(()).ok_or(format!("left behind:\n{left}"))
        })
    });
}
