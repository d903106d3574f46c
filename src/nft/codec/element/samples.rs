//! Rows for property tests.

use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;
use proptest::prelude::*;

use crate::model::{Family, Protocol};
use crate::nft::schema::{
    AddressPort, Chain, Data, Handle, Key, NodePortKey, SetName, Slots, Value, Verdict,
};
use crate::nft::skeleton;

pub(in crate::nft::codec) fn any_family() -> impl Strategy<Value = Family> {
    prop::sample::select(&Family::ALL)
}

/// A row that fits its set.
pub(in crate::nft::codec) fn any_row() -> impl Strategy<Value = (Family, SetName, Key, Value)> {
    (any_family(), prop::sample::select(&SetName::ALL)).prop_flat_map(|(family, set)| {
        (any_key(family, set), any_value(family, set))
            .prop_map(move |(key, value)| (family, set, key, value))
    })
}

fn any_address(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::V4 => any::<[u8; 4]>().prop_map(IpAddr::from).boxed(),
        Family::V6 => any::<[u8; 16]>().prop_map(IpAddr::from).boxed(),
    }
}

pub(in crate::nft::codec) fn any_net(family: Family) -> BoxedStrategy<IpNet> {
    let longest = if family == Family::V4 { 32u8 } else { 128 };
    (any_address(family), 0..=longest)
        .prop_map(|(address, length)| IpNet::new(address, length).unwrap().trunc())
        .boxed()
}

fn any_key(family: Family, set: SetName) -> BoxedStrategy<Key> {
    let address = || any_address(family);
    let handle = || any::<u32>().prop_map(Handle);
    let protocol = || prop::sample::select(&[Protocol::Tcp, Protocol::Udp, Protocol::Sctp][..]);
    let frontend = move || {
        (address(), protocol(), any::<NonZeroU16>())
            .prop_map(|(address, protocol, port)| AddressPort { address, protocol, port })
    };
    let node_port = move || {
        (protocol(), any::<NonZeroU16>())
            .prop_map(|(protocol, port)| NodePortKey { protocol, port })
    };
    match set {
        SetName::ClusterIps | SetName::NodePortIps | SetName::NodeIps | SetName::IpvsDraining => {
            address().prop_map(Key::Address).boxed()
        }
        SetName::ServiceCidrs => any_net(family).prop_map(Key::Range).boxed(),
        SetName::SourceRanges => (frontend(), any_net(family))
            .prop_map(|(frontend, net)| Key::FrontendSource(frontend, net))
            .boxed(),
        SetName::Hairpin => {
            (address(), address()).prop_map(|(from, to)| Key::Pair(from, to)).boxed()
        }
        SetName::Endpoints | SetName::LocalEndpoints => (frontend(), any::<u16>())
            .prop_map(|(frontend, slot)| Key::FrontendSlot(frontend, slot))
            .boxed(),
        SetName::NodePortEndpoints | SetName::LocalNodePortEndpoints => (node_port(), any::<u16>())
            .prop_map(|(node_port, slot)| Key::NodePortSlot(node_port, slot))
            .boxed(),
        SetName::NodePortNoEndpoints
        | SetName::NodePortNoLocalEndpoints
        | SetName::NodePorts
        | SetName::LocalNodePorts
        | SetName::StickyNodePorts
        | SetName::StickyLocalNodePorts => node_port().prop_map(Key::NodePort).boxed(),
        SetName::StickyGroups | SetName::AffinityTimeouts | SetName::StickyEndpoints => {
            handle().prop_map(Key::Group).boxed()
        }
        SetName::StickySlots => {
            (handle(), any::<u16>()).prop_map(|(handle, slot)| Key::GroupSlot(handle, slot)).boxed()
        }
        SetName::Affinity => {
            (address(), handle()).prop_map(|(client, handle)| Key::Client(client, handle)).boxed()
        }
        SetName::Firewalled
        | SetName::IpvsServices
        | SetName::NoEndpoints
        | SetName::NoLocalEndpoints
        | SetName::Frontends
        | SetName::LocalFrontends
        | SetName::StickyFrontends
        | SetName::StickyLocalFrontends => frontend().prop_map(Key::Frontend).boxed(),
    }
}

fn any_value(family: Family, set: SetName) -> BoxedStrategy<Value> {
    let slots = (0..=Slots::MAX.log2()).prop_map(|it| Slots::from_log2(it).unwrap());
    match skeleton::spec(set).data {
        Data::None => Just(Value::None).boxed(),
        Data::Verdict => prop_oneof![
            slots.prop_map(|it| Value::Verdict(Verdict::Goto(Chain::NodePortLocalPick(it)))),
            any::<u32>().prop_map(|it| Value::Verdict(Verdict::Jump(Chain::Remember(it)))),
        ]
        .boxed(),
        Data::Fields([_]) => any::<u32>().prop_map(|it| Value::Handle(Handle(it))).boxed(),
        Data::Fields(_) => (any_address(family), any::<NonZeroU16>())
            .prop_map(|(address, port)| Value::Endpoint(address, port))
            .boxed(),
    }
}
