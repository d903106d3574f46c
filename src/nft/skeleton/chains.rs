//! Every chain of a table and its rules.
//!
//! `F` is `daddr . l4proto . dport`, `N` is `l4proto . dport`, as in `schema`.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::hooks::{base_hook, comment};
use super::{FamilyProgram, LocalDetector, NodePortAddresses, Program};
use crate::model::{Family, Protocol};
use crate::nft::schema::{BaseHook, Chain, Field, Handle, Rule, SetName, Slots, Statement};

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainSpec {
    pub chain: Chain,
    /// `Some` for base chains; their policy is accept.
    pub base: Option<BaseHook>,
    pub rules: Vec<Rule>,
    /// Shown by `nft list`: what the chain is for.
    pub comment: &'static str,
}

/// How often a random slot is drawn before a last draw among slots that are always filled.
///
/// At least 3/8 of the slots are filled, so at most (5/8)^12 = 0.36 % of new connections reach the last draw.
const DRAWS: usize = 12;

const F: &[Field] = &[Field::Daddr, Field::L4Proto, Field::Dport];
const N: &[Field] = &[Field::L4Proto, Field::Dport];

/// All chains that the family can have but the `remember-T`. A chain comes after those that its rules jump to.
pub fn chains(program: &Program, family: Family) -> Vec<ChainSpec> {
    let mut all: Vec<ChainSpec> =
        Slots::all().flat_map(|slots| chains_of_slots(program, family, slots)).collect();
    all.extend(chains_without_slots(program, family));
    all
}

/// Those that every table has.
pub fn chains_without_slots(program: &Program, family: Family) -> Vec<ChainSpec> {
    let mut all = sticky(&Locality::of(program, family));
    all.extend(shared(program, family));
    all.extend(bases(program.ipvs));
    all
}

/// Those of one number of slots, which the table has once a row leads to one of them.
///
/// They could all be there from the start, and are not because of what the kernel does: it checks each new element of a
/// map against every rule that looks into it, and each commit walks along all chains.
pub fn chains_of_slots(program: &Program, family: Family, slots: Slots) -> Vec<ChainSpec> {
    let mut all = picks(slots);
    all.extend(externals(&Locality::of(program, family), slots));
    all
}

/// The chain that remembers a client's endpoint for `seconds` and sends the connection there.
///
/// Reached with the endpoint's handle in the packet's priority. If the endpoint is gone the entry is deleted and
/// the caller goes on to draw another one.
pub fn remember(seconds: u32) -> ChainSpec {
    let key = || vec![Field::Saddr, Field::PriorityMasked(Handle::GROUP_MASK)];
    let map = SetName::Affinity;
    let mut rules = vec![Rule(vec![Statement::Update {
        map,
        key: key(),
        timeout: seconds,
        data: Field::Priority,
    }])];
    rules.extend([Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| {
        let dnat = Statement::Dnat { key: vec![Field::Priority], map: SetName::StickyEndpoints };
        Rule(vec![Statement::L4Proto(protocol), dnat])
    }));
    rules.push(Rule(vec![Statement::Forget { map, key: key(), data: Field::Priority }]));
    spec(Chain::Remember(seconds), rules)
}

/// How traffic of local pods and of the node is told from traffic from outside.
struct Locality<'a> {
    family: &'a FamilyProgram,
    mark: u32,
}

impl Locality<'_> {
    fn of(program: &Program, family: Family) -> Locality<'_> {
        Locality { family: program.family(family), mark: program.masquerade_mark }
    }

    /// Pods and the node itself go to `target` whatever the policy says, the node masqueraded, because its source
    /// may be the Service's own address (kube-proxy's short circuit for externalTrafficPolicy Local).
    fn short_circuit(&self, target: Chain) -> Vec<Rule> {
        let mut rules = Vec::new();
        if let Some(detector) = &self.family.detector {
            rules.push(Rule(vec![detected(detector, false), Statement::Goto(target)]));
        }
        let from_this_node = Statement::FibLocal { field: Field::Saddr };
        rules.push(Rule(vec![
            from_this_node,
            Statement::MarkOr(self.mark),
            Statement::Goto(target),
        ]));
        rules
    }

    fn masqueraded(&self, target: Chain) -> Vec<Rule> {
        vec![Rule(vec![Statement::MarkOr(self.mark)]), Rule(vec![Statement::Goto(target)])]
    }
}

fn detected(detector: &LocalDetector, negated: bool) -> Statement {
    let interface =
        |name: &str, prefix| Statement::InputInterface { name: name.to_owned(), prefix, negated };
    match detector {
        LocalDetector::Source(net) => {
            Statement::AddressIn { field: Field::Saddr, net: net.trunc(), negated }
        }
        LocalDetector::Interface(name) => interface(name, false),
        LocalDetector::InterfacePrefix(name) => interface(name, true),
    }
}

fn spec(chain: Chain, rules: Vec<Rule>) -> ChainSpec {
    ChainSpec { chain, base: base_hook(chain), rules, comment: comment(chain) }
}

/// The chains that draw an endpoint.
fn picks(slots: Slots) -> Vec<ChainSpec> {
    let draws = |key, map| drawn(slots, |modulus| dnat_random(key, modulus, map));
    vec![
        spec(Chain::Pick(slots), draws(F, SetName::Endpoints)),
        spec(Chain::NodePortPick(slots), draws(N, SetName::NodePortEndpoints)),
        spec(Chain::LocalPick(slots), draws(F, SetName::LocalEndpoints)),
        spec(Chain::NodePortLocalPick(slots), draws(N, SetName::LocalNodePortEndpoints)),
        spec(Chain::StickyPick(slots), drawn(slots, sticky_random)),
    ]
}

/// The same draw over and over: an empty slot is a miss, and the next rule draws again. The last draw is among slots
/// that are filled whenever there is any endpoint, since the number of slots shrinks in time.
fn drawn(slots: Slots, rule: impl Fn(u32) -> Rule) -> Vec<Rule> {
    let draws = if slots.count() == 1 { 0 } else { DRAWS };
    let mut rules: Vec<Rule> = (0..draws).map(|_| rule(slots.count())).collect();
    rules.push(rule((slots.count() / 4).max(1)));
    rules
}

fn dnat_random(key: &[Field], modulus: u32, map: SetName) -> Rule {
    let mut key = key.to_vec();
    key.push(Field::Random(modulus));
    Rule(vec![Statement::Dnat { key, map }])
}

fn sticky_random(modulus: u32) -> Rule {
    let key = vec![Field::Priority, Field::Random(modulus)];
    Rule(vec![
        Statement::PrioritySetFromMap { key, map: SetName::StickySlots },
        remember_dispatch(),
    ])
}

/// Jumps to the `remember-T` of the group whose handle is in the priority.
fn remember_dispatch() -> Statement {
    Statement::Vmap {
        key: vec![Field::PriorityMasked(Handle::GROUP_MASK)],
        map: SetName::AffinityTimeouts,
    }
}

/// Frontends other than cluster IPs.
fn externals(local: &Locality<'_>, slots: Slots) -> Vec<ChainSpec> {
    let local_rules = |pick, key: &[Field], map| {
        let mut rules = local.short_circuit(pick);
        rules.push(Rule(vec![Statement::Vmap { key: key.to_vec(), map }]));
        rules
    };
    let (pick, node_port_pick) = (Chain::Pick(slots), Chain::NodePortPick(slots));
    let outside = local_rules(pick, F, SetName::LocalFrontends);
    let node_port_outside = local_rules(node_port_pick, N, SetName::LocalNodePorts);
    vec![
        spec(Chain::External(slots), local.masqueraded(pick)),
        spec(Chain::ExternalLocal(slots), outside),
        spec(Chain::NodePort(slots), local.masqueraded(node_port_pick)),
        spec(Chain::NodePortLocal(slots), node_port_outside),
    ]
}

/// Session affinity. The group of a frontend, then the handle of an endpoint, travels in the packet's priority.
fn sticky(local: &Locality<'_>) -> Vec<ChainSpec> {
    let local_rules = |target, key, map| {
        let mut rules = local.short_circuit(target);
        rules.extend(grouped(key, map));
        rules
    };
    let (cluster, node_port) = (Chain::Sticky, Chain::StickyNodePortCluster);
    let outside = local_rules(cluster, F, SetName::StickyLocalFrontends);
    let node_port_outside = local_rules(node_port, N, SetName::StickyLocalNodePorts);
    vec![
        spec(Chain::StickyLookup, sticky_lookup()),
        spec(cluster, grouped(F, SetName::StickyFrontends)),
        spec(node_port, grouped(N, SetName::StickyNodePorts)),
        spec(Chain::StickyExternal, local.masqueraded(cluster)),
        spec(Chain::StickyNodePort, local.masqueraded(node_port)),
        spec(Chain::StickyExternalLocal, outside),
        spec(Chain::StickyNodePortLocal, node_port_outside),
    ]
}

fn grouped(key: &[Field], map: SetName) -> Vec<Rule> {
    vec![
        Rule(vec![Statement::PrioritySetFromMap { key: key.to_vec(), map }]),
        Rule(vec![Statement::Goto(Chain::StickyLookup)]),
    ]
}

fn sticky_lookup() -> Vec<Rule> {
    let key = vec![Field::Saddr, Field::Priority];
    let groups = Statement::Vmap { key: vec![Field::Priority], map: SetName::StickyGroups };
    vec![
        // A miss leaves the group in place.
        Rule(vec![Statement::PrioritySetFromMap { key, map: SetName::Affinity }]),
        Rule(vec![Statement::PriorityHas(Handle::ENDPOINT_MASK), remember_dispatch()]),
        // Only who had nothing remembered, or an endpoint that is gone, gets here.
        Rule(vec![Statement::PriorityMask(Handle::GROUP_MASK)]),
        Rule(vec![groups]),
    ]
}

/// What base chains jump to.
fn shared(program: &Program, family: Family) -> Vec<ChainSpec> {
    let endpoints = endpoints_check(&[], F, SetName::NoEndpoints, SetName::NoLocalEndpoints);
    let guard = nodeport_check_guard(program, family);
    let (reject, drop) = (SetName::NodePortNoEndpoints, SetName::NodePortNoLocalEndpoints);
    vec![
        spec(Chain::Reject, vec![Rule(vec![Statement::Reject])]),
        spec(Chain::FirewallCheck, firewall_check()),
        spec(Chain::ServiceEndpointsCheck, endpoints),
        spec(Chain::NodePortEndpointsCheck, endpoints_check(&guard, N, reject, drop)),
        spec(Chain::ClusterIpsCheck, cluster_ips_check()),
        spec(Chain::LocalClusterIpsCheck, local_cluster_ips_check(program.ipvs)),
        spec(Chain::Services, services(program, family)),
        spec(Chain::Masquerading, masquerading(program)),
    ]
}

fn in_set(key: &[Field], set: SetName) -> Statement {
    Statement::InSet { key: key.to_vec(), set, negated: false }
}

fn not_in_set(key: &[Field], set: SetName) -> Statement {
    Statement::InSet { key: key.to_vec(), set, negated: true }
}

fn firewall_check() -> Vec<Rule> {
    let key = vec![Field::Daddr, Field::L4Proto, Field::Dport, Field::Saddr];
    let foreign = not_in_set(&key, SetName::SourceRanges);
    vec![Rule(vec![in_set(F, SetName::Firewalled), foreign, Statement::Drop])]
}

fn endpoints_check(
    guard: &[Statement],
    key: &[Field],
    reject: SetName,
    drop: SetName,
) -> Vec<Rule> {
    let rule = |set, verdict| {
        let mut statements = guard.to_vec();
        statements.extend([in_set(key, set), verdict]);
        Rule(statements)
    };
    vec![rule(reject, Statement::Goto(Chain::Reject)), rule(drop, Statement::Drop)]
}

fn cluster_ips_check() -> Vec<Rule> {
    let daddr = &[Field::Daddr];
    vec![
        Rule(vec![in_set(daddr, SetName::ClusterIps), Statement::Goto(Chain::Reject)]),
        Rule(vec![in_set(daddr, SetName::ServiceCidrs), Statement::Drop]),
    ]
}

/// Where a cluster IP is an address of this node, because IPVS needs it or somebody else has bound it, what listens on
/// all addresses must not be reached by it. In IPVS mode a packet that IPVS is to take passes: nft has sent it there, or
/// its destination has a virtual server.
///
/// An address that the node has of its own is left alone: where the ranges of nodes and Services overlap, a Service
/// would cut the node off.
fn local_cluster_ips_check(ipvs: bool) -> Vec<Rule> {
    let rule = |set, more: Option<Statement>, verdict| {
        let mut statements = vec![
            Statement::CtStatusDnat { negated: true },
            in_set(&[Field::Daddr], set),
            not_in_set(&[Field::Daddr], SetName::NodeIps),
        ];
        statements.extend(more);
        statements.push(verdict);
        Rule(statements)
    };
    let reject = || Statement::Goto(Chain::Reject);
    if !ipvs {
        return vec![rule(SetName::ClusterIps, None, reject())];
    }
    let unserved = not_in_set(F, SetName::IpvsServices);
    vec![
        rule(SetName::ClusterIps, Some(unserved), reject()),
        // Nobody's address any more: as an unallocated one.
        rule(SetName::IpvsDraining, None, Statement::Drop),
    ]
}

fn services(program: &Program, family: Family) -> Vec<Rule> {
    let of_family = program.family(family);
    let mut rules = Vec::new();
    let to_cluster_ip = || in_set(&[Field::Daddr], SetName::ClusterIps);
    let mark = || Statement::MarkOr(program.masquerade_mark);
    if program.masquerade_all {
        rules.push(Rule(vec![to_cluster_ip(), mark()]));
    } else if let Some(detector) = &of_family.detector {
        rules.push(Rule(vec![detected(detector, true), to_cluster_ip(), mark()]));
    }
    rules.push(Rule(vec![Statement::Vmap { key: F.to_vec(), map: SetName::Frontends }]));
    let mut node_ports = nodeport_guard(program, family);
    node_ports.push(Statement::Vmap { key: N.to_vec(), map: SetName::NodePorts });
    rules.push(Rule(node_ports));
    rules
}

/// Which destinations are the node's own, for NodePorts. Loopback never is, as with kube-proxy's nftables mode.
fn nodeport_guard(program: &Program, family: Family) -> Vec<Statement> {
    let mut guard = nodeport_check_guard(program, family);
    if program.family(family).node_ports == NodePortAddresses::All {
        guard.push(Statement::FibLocal { field: Field::Daddr });
    }
    guard
}

/// As `nodeport_guard`, in the input hook, where every destination is local. Those of virtual servers are, too.
fn nodeport_check_guard(program: &Program, family: Family) -> Vec<Statement> {
    let daddr = &[Field::Daddr];
    match program.family(family).node_ports {
        NodePortAddresses::Listed => vec![in_set(daddr, SetName::NodePortIps)],
        NodePortAddresses::All => {
            let net = loopback(family);
            let mut guard = vec![Statement::AddressIn { field: Field::Daddr, net, negated: true }];
            if program.ipvs {
                guard.push(not_in_set(daddr, SetName::ClusterIps));
                guard.push(not_in_set(daddr, SetName::IpvsDraining));
            }
            guard
        }
    }
}

fn loopback(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        Family::V6 => IpNet::V6(Ipv6Net::from(Ipv6Addr::LOCALHOST)),
    }
}

fn masquerading(program: &Program) -> Vec<Rule> {
    let mark = program.masquerade_mark;
    let mut to_itself = vec![in_set(&[Field::Saddr, Field::Daddr], SetName::Hairpin)];
    if !program.ipvs {
        // What IPVS translates does not have this.
        to_itself.insert(0, Statement::CtStatusDnat { negated: false });
    }
    to_itself.push(Statement::Masquerade);
    // A program of this node that connects to a cluster IP which is a local address, as in IPVS mode and for a while
    // after it, has that very address as its source.
    let from_cluster_ip = in_set(&[Field::Saddr], SetName::ClusterIps);
    vec![
        // The priority has served as a register for session affinity; the queueing discipline must not see that.
        Rule(vec![Statement::PriorityAtLeast(Handle::BASE), Statement::PriorityReset]),
        Rule(vec![Statement::MarkIsSet(mark), Statement::MarkXor(mark), Statement::Masquerade]),
        Rule(to_itself),
        Rule(vec![from_cluster_ip, Statement::Masquerade]),
    ]
}

fn bases(ipvs: bool) -> Vec<ChainSpec> {
    let new = |targets: &[Chain]| -> Vec<Rule> {
        let jump = |target: &Chain| Rule(vec![Statement::CtStateNew, Statement::Jump(*target)]);
        targets.iter().map(jump).collect()
    };
    let jump = |target| vec![Rule(vec![Statement::Jump(target)])];
    let unserved = [Chain::ServiceEndpointsCheck, Chain::ClusterIpsCheck];
    let input = new(&[
        Chain::NodePortEndpointsCheck,
        Chain::ServiceEndpointsCheck,
        Chain::LocalClusterIpsCheck,
    ]);
    let mut output_pre_dnat = new(&[Chain::FirewallCheck]);
    if ipvs {
        // At output IPVS comes before the other checks, and would reject what it has no destination for.
        output_pre_dnat.push(Rule(vec![
            Statement::CtStateNew,
            in_set(&[Field::Daddr], SetName::ClusterIps),
            in_set(F, SetName::NoLocalEndpoints),
            Statement::Drop,
        ]));
    }
    vec![
        spec(Chain::FilterPreroutingPreDnat, new(&[Chain::FirewallCheck])),
        spec(Chain::FilterOutputPreDnat, output_pre_dnat),
        spec(Chain::FilterInput, input),
        spec(Chain::FilterForward, new(&unserved)),
        spec(Chain::FilterOutput, new(&unserved)),
        spec(Chain::NatPrerouting, jump(Chain::Services)),
        spec(Chain::NatOutput, jump(Chain::Services)),
        spec(Chain::NatPostrouting, jump(Chain::Masquerading)),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::nft::skeleton::tests::program;

    #[test]
    fn jump_targets_come_before_their_users() {
        for family in Family::ALL {
            let mut seen = BTreeSet::new();
            for spec in chains(&program(), family) {
                for statement in spec.rules.iter().flat_map(|rule| &rule.0) {
                    if let Statement::Jump(target) | Statement::Goto(target) = statement {
                        assert!(seen.contains(target), "{} uses {target}", spec.chain);
                    }
                }
                assert!(seen.insert(spec.chain), "{} is there twice", spec.chain);
            }
        }
    }

    #[test]
    fn the_number_of_objects_is_small() {
        let count = |all: &[ChainSpec]| -> (usize, usize) {
            (all.len(), all.iter().map(|spec| spec.rules.len()).sum())
        };
        assert_eq!(count(&chains(&program(), Family::V4)), (158, 1113), "at most");
        let least = chains_without_slots(&program(), Family::V4);
        assert_eq!(count(&least), (23, 48));
        assert!(least.iter().all(|spec| spec.chain.slots().is_none()));
        for slots in Slots::all() {
            let of_slots = chains_of_slots(&program(), Family::V4, slots);
            assert!(of_slots.iter().all(|spec| spec.chain.slots() == Some(slots)));
        }
    }

    #[test]
    fn the_last_draw_is_among_slots_that_are_always_filled() {
        for slots in Slots::all() {
            let fewest = (1..=slots.count()).find(|n| 8 * n > 3 * slots.count()).unwrap();
            let rules = drawn(slots, |modulus| dnat_random(F, modulus, SetName::Endpoints));
            let Some(Rule(last)) = rules.last() else { panic!("no draw") };
            let [Statement::Dnat { key, .. }] = last.as_slice() else { panic!("{last:?}") };
            let Some(Field::Random(modulus)) = key.last() else { panic!("{key:?}") };
            assert!(*modulus <= fewest, "{} slots: mod {modulus}, {fewest} filled", slots.count());
        }
    }
}
