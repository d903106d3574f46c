//! Every set and map of a table, with what `nft list` says about it.

use super::Program;
use crate::nft::schema::{Data, Field, SetName, SetSpec};

const FRONTEND: &[Field] = &[Field::Daddr, Field::L4Proto, Field::Dport];
const FRONTEND_SOURCE: &[Field] = &[Field::Daddr, Field::L4Proto, Field::Dport, Field::Saddr];
const FRONTEND_SLOT: &[Field] = &[Field::Daddr, Field::L4Proto, Field::Dport, SLOT];
const NODE_PORT: &[Field] = &[Field::L4Proto, Field::Dport];
const NODE_PORT_SLOT: &[Field] = &[Field::L4Proto, Field::Dport, SLOT];
const GROUP: &[Field] = &[Field::Priority];
const GROUP_SLOT: &[Field] = &[Field::Priority, SLOT];
const CLIENT: &[Field] = &[Field::Saddr, Field::Priority];
const ENDPOINT: Data = Data::Fields(&[Field::Daddr, Field::Dport]);
const HANDLE: Data = Data::Fields(&[Field::Priority]);

/// The type of a slot number. The modulus only gives nft a `typeof`; rules draw from smaller ones.
const SLOT: Field = Field::Random(65_536);

/// The sets and maps of the program's tables, in the order of [`SetName`].
pub fn sets(program: &Program) -> Vec<SetSpec> {
    SetName::ALL.into_iter().filter(|it| is_used(*it, program)).map(spec).collect()
}

/// Whether the program's tables have the set.
pub fn is_used(set: SetName, program: &Program) -> bool {
    program.ipvs || !matches!(set, SetName::IpvsServices | SetName::IpvsDraining)
}

/// The definition of one set or map.
pub fn spec(name: SetName) -> SetSpec {
    let (key, data, comment) = definition(name);
    let interval = matches!(name, SetName::ServiceCidrs | SetName::SourceRanges);
    let dynamic = name == SetName::Affinity;
    let by_type = has_plain_types(key, data) || name == SetName::StickyEndpoints;
    SetSpec { name, key, data, interval, dynamic, by_type, comment }
}

/// Random numbers have no type that nft would take in a declaration, and priorities none that says what they are.
/// Sets of plain types are declared by those, which every nft prints alike.
fn has_plain_types(key: &[Field], data: Data) -> bool {
    let data = match data {
        Data::Fields(fields) => fields,
        Data::None | Data::Verdict => &[],
    };
    key.iter().chain(data).all(|field| match field {
        Field::Saddr | Field::Daddr | Field::L4Proto | Field::Dport => true,
        Field::Random(_) | Field::Priority | Field::PriorityMasked(_) => false,
    })
}

fn definition(name: SetName) -> (&'static [Field], Data, &'static str) {
    match name {
        SetName::ClusterIps => (&[Field::Daddr], Data::None, "Active cluster IPs"),
        SetName::ServiceCidrs => {
            (&[Field::Daddr], Data::None, "Ranges that cluster IPs are allocated from")
        }
        SetName::NodePortIps => {
            (&[Field::Daddr], Data::None, "Addresses of this node that accept NodePorts")
        }
        SetName::NodeIps => {
            (&[Field::Daddr], Data::None, "Addresses of this node, whatever Services claim")
        }
        SetName::Hairpin => (
            &[Field::Saddr, Field::Daddr],
            Data::None,
            "Endpoints on this node, which may reach themselves through a Service",
        ),
        SetName::Firewalled => {
            (FRONTEND, Data::None, "Load-balancer addresses with loadBalancerSourceRanges")
        }
        SetName::SourceRanges => {
            (FRONTEND_SOURCE, Data::None, "Who may reach the addresses in firewalled")
        }
        SetName::NoEndpoints => (FRONTEND, Data::None, "Rejected: no endpoint anywhere"),
        SetName::NoLocalEndpoints => {
            (FRONTEND, Data::None, "Dropped: policy Local and no endpoint on this node")
        }
        SetName::NodePortNoEndpoints => {
            (NODE_PORT, Data::None, "NodePorts, rejected: no endpoint anywhere")
        }
        SetName::NodePortNoLocalEndpoints => {
            (NODE_PORT, Data::None, "NodePorts, dropped: policy Local and no endpoint on this node")
        }
        SetName::Frontends => {
            (FRONTEND, Data::Verdict, "Which chain serves which Service address and port")
        }
        SetName::LocalFrontends => (
            FRONTEND,
            Data::Verdict,
            "externalTrafficPolicy Local: which chain serves traffic from outside",
        ),
        SetName::NodePorts => (NODE_PORT, Data::Verdict, "Which chain serves which NodePort"),
        SetName::LocalNodePorts => (
            NODE_PORT,
            Data::Verdict,
            "externalTrafficPolicy Local: which chain serves NodePort traffic from outside",
        ),
        SetName::Endpoints => (FRONTEND_SLOT, ENDPOINT, "The endpoints of frontends, by slot"),
        SetName::LocalEndpoints => {
            (FRONTEND_SLOT, ENDPOINT, "The endpoints on this node of local-frontends, by slot")
        }
        SetName::NodePortEndpoints => {
            (NODE_PORT_SLOT, ENDPOINT, "The endpoints of nodeports, by slot")
        }
        SetName::LocalNodePortEndpoints => {
            (NODE_PORT_SLOT, ENDPOINT, "The endpoints on this node of local-nodeports, by slot")
        }
        SetName::StickyFrontends => {
            (FRONTEND, HANDLE, "Frontends with session affinity and their endpoint group")
        }
        SetName::StickyLocalFrontends => {
            (FRONTEND, HANDLE, "As sticky-frontends, endpoints on this node only")
        }
        SetName::StickyNodePorts => {
            (NODE_PORT, HANDLE, "NodePorts with session affinity and their endpoint group")
        }
        SetName::StickyLocalNodePorts => {
            (NODE_PORT, HANDLE, "As sticky-nodeports, endpoints on this node only")
        }
        SetName::StickyGroups => (GROUP, Data::Verdict, "Which chain draws from an endpoint group"),
        SetName::AffinityTimeouts => {
            (GROUP, Data::Verdict, "How long clients of an endpoint group are remembered")
        }
        SetName::StickySlots => (GROUP_SLOT, HANDLE, "The endpoints of a group, by slot"),
        SetName::StickyEndpoints => (GROUP, ENDPOINT, "The endpoint that a handle stands for"),
        SetName::Affinity => {
            (CLIENT, HANDLE, "Which endpoint a client has; written by packets, times out")
        }
        SetName::IpvsServices => {
            (FRONTEND, Data::None, "Cluster IPs and ports that have a virtual server")
        }
        SetName::IpvsDraining => {
            (&[Field::Daddr], Data::None, "Former cluster IPs that still have connections")
        }
    }
}
