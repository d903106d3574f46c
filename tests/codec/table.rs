//! A table with everything that there can be.

use std::net::IpAddr;
use std::num::NonZeroU16;

use kube_ferry::model::{Family, Protocol};
use kube_ferry::nft::schema::{AddressPort, Data, Handle, NodePortKey, Owner, Rule, Statement};
use kube_ferry::nft::skeleton::{self, FamilyProgram, LocalDetector, NodePortAddresses, Program};
use kube_ferry::nft::{Batch, Chain, Key, Op, SetName, Slots, Value, Verdict};

/// Detectors differ so that one program shows several statements.
pub(crate) fn program() -> Program {
    Program {
        masquerade_mark: 0x4000,
        masquerade_all: false,
        ipvs: true,
        families: Family::ALL.to_vec(),
        v4: FamilyProgram {
            detector: Some(LocalDetector::Source("10.0.0.0/9".parse().unwrap())),
            node_ports: NodePortAddresses::All,
        },
        v6: FamilyProgram {
            detector: Some(LocalDetector::InterfacePrefix("veth".to_owned())),
            node_ports: NodePortAddresses::Listed,
        },
    }
}

/// The tables of the program, and a row or two in each set.
pub(crate) fn everything(program: &Program, remember: bool) -> Batch {
    let mut ops = Vec::new();
    for family in Family::ALL {
        // nft 1.0.6 cannot load the IPv6 rules of that chain, though it lists them.
        let remember = remember || family == Family::V4;
        ops.extend(skeleton_of(program, family, remember).0);
        for set in SetName::ALL {
            let rows = rows(family, set);
            let rows = rows.into_iter().filter(|(_, value)| {
                remember || *value != Value::Verdict(Verdict::Jump(Chain::Remember(10800)))
            });
            ops.extend(rows.map(|(key, value)| add(family, set, key, value)));
        }
    }
    Batch(ops)
}

/// One family's table without rows.
pub(crate) fn skeleton_of(program: &Program, family: Family, remember: bool) -> Batch {
    let mut chains = skeleton::chains(program, family);
    chains.extend(remember.then(|| skeleton::remember(10800)));
    // The order of `render`, so that listings of both can be compared line by line.
    chains.sort_unstable_by_key(|it| it.chain);
    let mut ops = vec![Op::AddTable(family)];
    ops.extend(SetName::ALL.map(|set| {
        // An interval set without a limit, as rows of ranges count twice.
        let size = (!skeleton::spec(set).interval).then_some(131_072);
        Op::AddSet { family, set, size }
    }));
    ops.extend(chains.iter().map(|it| Op::AddChain { family, chain: it.chain }));
    for spec in chains {
        let chain = spec.chain;
        ops.extend(spec.rules.into_iter().map(|rule| Op::AddRule { family, chain, rule }));
    }
    Batch(ops)
}

/// Rules with the statements that [`program`] does not lead to.
pub(crate) fn other_statements(family: Family) -> Vec<Rule> {
    use kube_ferry::nft::schema::Field;
    let address = |field, net: &str, negated| Statement::AddressIn {
        field,
        net: net.parse().unwrap(),
        negated,
    };
    let interface = |name: &str, prefix, negated| Statement::InputInterface {
        name: name.to_owned(),
        prefix,
        negated,
    };
    let nets = match family {
        Family::V4 => ["10.0.0.0/8", "10.128.0.0/9", "192.0.2.0/24", "192.0.2.1/32"],
        Family::V6 => ["fd00::/8", "fd00:10::/57", "2001:db8::/64", "2001:db8::1/128"],
    };
    let mut all: Vec<Rule> = nets
        .iter()
        .flat_map(|net| {
            [(Field::Saddr, false), (Field::Daddr, true)]
                .map(|(field, negated)| Rule(vec![address(field, net, negated), Statement::Drop]))
        })
        .collect();
    all.extend(
        [(false, false), (false, true), (true, false), (true, true)].map(|(prefix, negated)| {
            Rule(vec![interface("cbr0", prefix, negated), Statement::Drop])
        }),
    );
    all.push(Rule(vec![Statement::FibLocal { field: Field::Daddr }, Statement::Drop]));
    all.push(Rule(vec![Statement::Reject]));
    all
}

pub(crate) fn add(family: Family, set: SetName, key: Key, value: Value) -> Op {
    Op::AddElement { family, set, key, value, owner: None }
}

pub(crate) fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

pub(crate) fn address(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 96, 0, host]),
        Family::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)]),
    }
}

/// A frontend slot's row among many: `number` makes it another one.
pub(crate) fn endpoint_row(family: Family, number: u32, owner: Option<Owner>) -> Op {
    let [a, b, c, d] = (0x0a00_0000 + number).to_be_bytes();
    let frontend = AddressPort {
        address: match family {
            Family::V4 => IpAddr::from([a, b, c, d]),
            Family::V6 => IpAddr::from([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]),
        },
        protocol: Protocol::Tcp,
        port: port(443),
    };
    let (key, value) =
        (Key::FrontendSlot(frontend, 3), Value::Endpoint(address(family, 9), port(8443)));
    Op::AddElement { family, set: SetName::Endpoints, key, value, owner }
}

pub(crate) fn rows(family: Family, set: SetName) -> Vec<(Key, Value)> {
    let host = |number| address(family, number);
    let frontend =
        |number, protocol| AddressPort { address: host(number), protocol, port: port(80) };
    let node_port = |protocol| NodePortKey { protocol, port: port(30080) };
    let slots = Slots::for_count(8);
    let net = |text_v4: &str, text_v6: &str| match family {
        Family::V4 => text_v4.parse().unwrap(),
        Family::V6 => text_v6.parse().unwrap(),
    };
    let endpoint = Value::Endpoint(host(5), port(8080));
    let group = Handle(0xf000_1000);
    let handle = Value::Handle(Handle(0xf000_1003));
    let verdict = |chain| Value::Verdict(Verdict::Goto(chain));
    match set {
        SetName::ClusterIps | SetName::NodePortIps | SetName::NodeIps | SetName::IpvsDraining => {
            vec![(Key::Address(host(1)), Value::None), (Key::Address(host(2)), Value::None)]
        }
        SetName::ServiceCidrs => [
            net("0.0.0.0/8", "::/16"),
            net("10.96.0.0/12", "fd00::/108"),
            // Adjacent to the one before.
            net("10.112.0.0/12", "fd00::10:0/108"),
            net("192.0.2.7/32", "fd00:7::7/128"),
            net("255.0.0.0/8", "ff00::/8"),
        ]
        .map(|net| (Key::Range(net), Value::None))
        .to_vec(),
        SetName::Hairpin => vec![(Key::Pair(host(5), host(5)), Value::None)],
        SetName::SourceRanges => {
            [net("192.0.2.0/24", "2001:db8::/57"), net("198.51.100.3/32", "2001:db8:1::3/128")]
                .map(|net| (Key::FrontendSource(frontend(3, Protocol::Tcp), net), Value::None))
                .to_vec()
        }
        SetName::Firewalled
        | SetName::IpvsServices
        | SetName::NoEndpoints
        | SetName::NoLocalEndpoints => vec![
            (Key::Frontend(frontend(3, Protocol::Tcp)), Value::None),
            (Key::Frontend(frontend(3, Protocol::Sctp)), Value::None),
        ],
        SetName::NodePortNoEndpoints | SetName::NodePortNoLocalEndpoints => {
            vec![(Key::NodePort(node_port(Protocol::Udp)), Value::None)]
        }
        SetName::Frontends => vec![
            (Key::Frontend(frontend(1, Protocol::Tcp)), verdict(Chain::Pick(slots))),
            (Key::Frontend(frontend(2, Protocol::Udp)), verdict(Chain::ExternalLocal(slots))),
            (Key::Frontend(frontend(4, Protocol::Tcp)), verdict(Chain::Sticky)),
        ],
        SetName::LocalFrontends => {
            vec![(Key::Frontend(frontend(2, Protocol::Udp)), verdict(Chain::LocalPick(slots)))]
        }
        SetName::NodePorts => {
            vec![(Key::NodePort(node_port(Protocol::Tcp)), verdict(Chain::NodePortLocal(slots)))]
        }
        SetName::LocalNodePorts => {
            vec![(
                Key::NodePort(node_port(Protocol::Tcp)),
                verdict(Chain::NodePortLocalPick(slots)),
            )]
        }
        SetName::Endpoints | SetName::LocalEndpoints => vec![
            (Key::FrontendSlot(frontend(1, Protocol::Tcp), 0), endpoint),
            (Key::FrontendSlot(frontend(1, Protocol::Tcp), 4095), endpoint),
        ],
        SetName::NodePortEndpoints | SetName::LocalNodePortEndpoints => {
            vec![(Key::NodePortSlot(node_port(Protocol::Tcp), 1), endpoint)]
        }
        SetName::StickyFrontends | SetName::StickyLocalFrontends => {
            vec![(Key::Frontend(frontend(4, Protocol::Tcp)), Value::Handle(group))]
        }
        SetName::StickyNodePorts | SetName::StickyLocalNodePorts => {
            vec![(Key::NodePort(node_port(Protocol::Sctp)), Value::Handle(group))]
        }
        SetName::StickyGroups => vec![(Key::Group(group), verdict(Chain::StickyPick(slots)))],
        SetName::AffinityTimeouts => {
            vec![(Key::Group(group), Value::Verdict(Verdict::Jump(Chain::Remember(10800))))]
        }
        SetName::StickySlots => vec![(Key::GroupSlot(group, 2), handle)],
        SetName::StickyEndpoints => vec![(Key::Group(Handle(0xf000_1003)), endpoint)],
        // Written by packets.
        SetName::Affinity => Vec::new(),
    }
}

/// Whether the set has a row of every kind that fits it.
pub(crate) fn fits(set: SetName, value: &Value) -> bool {
    match skeleton::spec(set).data {
        Data::None => *value == Value::None,
        Data::Verdict => matches!(value, Value::Verdict(_)),
        Data::Fields(_) => matches!(value, Value::Endpoint(..) | Value::Handle(_)),
    }
}
