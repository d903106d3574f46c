//! Rows of sets and maps to elements and back.
//!
//! A key of several fields is their concatenation, each padded to four bytes. A [`Key::Range`] is two elements, where
//! it starts and where it ends; a [`Key::FrontendSource`] is one with two keys, the lowest and the highest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use ipnet::IpNet;

use super::uapi::{VERDICT_GOTO, VERDICT_JUMP, element as nfta};
use super::wire::{Writer, find, find_be32, find_string, ne32};
use crate::model::{Family, Protocol};
use crate::nft::schema::{AddressPort, Chain, Handle, Key, NodePortKey, SetName, Value, Verdict};

#[cfg(test)]
pub(super) mod samples;

/// nft marks a range that reaches the end of the address space by this user data, a TLV of
/// `NFTNL_UDATA_SET_ELEM_FLAGS` with `SET_ELEM_F_INTERVAL_OPEN`; it prints such a range wrongly without.
const OPEN_INTERVAL: [u8; 6] = {
    let [a, b, c, d] = 1u32.to_ne_bytes();
    [1, 4, a, b, c, d]
};

/// Writes a row as `NFTA_LIST_ELEM`s.
pub(super) fn write_row(writer: &mut Writer, key: &Key, value: &Value) {
    match key {
        Key::Range(net) => write_range(writer, *net),
        Key::FrontendSource(frontend, net) => {
            let mut low = frontend_bytes(frontend);
            let mut high = low.clone();
            push_address(&mut low, net.network());
            push_address(&mut high, net.broadcast());
            writer.nest(nfta::LIST_ELEM, |writer| {
                write_data(writer, nfta::KEY, &low);
                write_data(writer, nfta::KEY_END, &high);
            });
        }
        Key::Address(_)
        | Key::Pair(..)
        | Key::Frontend(_)
        | Key::FrontendSlot(..)
        | Key::NodePort(_)
        | Key::NodePortSlot(..)
        | Key::Group(_)
        | Key::GroupSlot(..)
        | Key::Client(..) => writer.nest(nfta::LIST_ELEM, |writer| {
            write_data(writer, nfta::KEY, &key_bytes(key));
            write_row_value(writer, value);
        }),
    }
}

/// The first address of the range, and the first one after it unless there is none.
fn write_range(writer: &mut Writer, net: IpNet) {
    let after = successor(net.broadcast());
    writer.nest(nfta::LIST_ELEM, |writer| {
        write_data(writer, nfta::KEY, &address_bytes(net.network()));
        if after.is_none() {
            writer.bytes(nfta::USERDATA, &OPEN_INTERVAL);
        }
    });
    if let Some(after) = after {
        writer.nest(nfta::LIST_ELEM, |writer| {
            write_data(writer, nfta::KEY, &address_bytes(after));
            writer.be32(nfta::FLAGS, nfta::F_INTERVAL_END);
        });
    }
}

fn write_row_value(writer: &mut Writer, value: &Value) {
    match value {
        Value::None => (),
        Value::Verdict(verdict) => {
            let (code, chain) = match verdict {
                Verdict::Goto(chain) => (VERDICT_GOTO, chain),
                Verdict::Jump(chain) => (VERDICT_JUMP, chain),
            };
            let chain = chain.to_string();
            writer.nest(nfta::DATA, |writer| write_verdict(writer, code, Some(&chain)));
        }
        Value::Endpoint(address, port) => {
            let mut bytes = address_bytes(*address);
            push_port(&mut bytes, *port);
            write_data(writer, nfta::DATA, &bytes);
        }
        Value::Handle(handle) => write_data(writer, nfta::DATA, &handle.0.to_ne_bytes()),
    }
}

fn write_data(writer: &mut Writer, kind: u16, value: &[u8]) {
    writer.nest(kind, |writer| writer.bytes(nfta::DATA_VALUE, value));
}

/// Writes the contents of an `NFTA_*_DATA` that is a verdict.
pub(super) fn write_verdict(writer: &mut Writer, code: u32, chain: Option<&str>) {
    writer.nest(nfta::DATA_VERDICT, |writer| {
        writer.be32(nfta::VERDICT_CODE, code);
        if let Some(chain) = chain {
            writer.string(nfta::VERDICT_CHAIN, chain);
        }
    });
}

/// Reads what [`write_verdict`] writes. `None`: it is no verdict.
pub(super) fn read_verdict(data: &[u8]) -> Option<(u32, Option<&str>)> {
    let verdict = find(data, nfta::DATA_VERDICT)?;
    let code = find_be32(verdict, nfta::VERDICT_CODE)?;
    Some((code, find_string(verdict, nfta::VERDICT_CHAIN)))
}

fn key_bytes(key: &Key) -> Vec<u8> {
    match key {
        Key::Address(address) => address_bytes(*address),
        Key::Range(net) => address_bytes(net.network()),
        Key::Pair(source, destination) => {
            let mut bytes = address_bytes(*source);
            push_address(&mut bytes, *destination);
            bytes
        }
        Key::Frontend(frontend) => frontend_bytes(frontend),
        Key::FrontendSource(frontend, net) => {
            let mut bytes = frontend_bytes(frontend);
            push_address(&mut bytes, net.network());
            bytes
        }
        Key::FrontendSlot(frontend, slot) => {
            let mut bytes = frontend_bytes(frontend);
            push_slot(&mut bytes, *slot);
            bytes
        }
        Key::NodePort(node_port) => node_port_bytes(node_port),
        Key::NodePortSlot(node_port, slot) => {
            let mut bytes = node_port_bytes(node_port);
            push_slot(&mut bytes, *slot);
            bytes
        }
        Key::Group(handle) => handle.0.to_ne_bytes().to_vec(),
        Key::GroupSlot(handle, slot) => {
            let mut bytes = handle.0.to_ne_bytes().to_vec();
            push_slot(&mut bytes, *slot);
            bytes
        }
        Key::Client(client, handle) => {
            let mut bytes = address_bytes(*client);
            bytes.extend(handle.0.to_ne_bytes());
            bytes
        }
    }
}

fn frontend_bytes(frontend: &AddressPort) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    push_address(&mut bytes, frontend.address);
    push_protocol(&mut bytes, frontend.protocol);
    push_port(&mut bytes, frontend.port);
    bytes
}

fn node_port_bytes(node_port: &NodePortKey) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(12);
    push_protocol(&mut bytes, node_port.protocol);
    push_port(&mut bytes, node_port.port);
    bytes
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    push_address(&mut bytes, address);
    bytes
}

fn push_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => bytes.extend(address.octets()),
        IpAddr::V6(address) => bytes.extend(address.octets()),
    }
}

fn push_protocol(bytes: &mut Vec<u8>, protocol: Protocol) {
    bytes.extend([protocol.number(), 0, 0, 0]);
}

fn push_port(bytes: &mut Vec<u8>, port: NonZeroU16) {
    bytes.extend(port.get().to_be_bytes());
    bytes.extend([0, 0]);
}

/// `numgen` leaves a 32-bit number in the host's byte order.
fn push_slot(bytes: &mut Vec<u8>, slot: u16) {
    bytes.extend(u32::from(slot).to_ne_bytes());
}

/// The next address; `None` after the last one.
pub(super) fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(IpAddr::V4(Ipv4Addr::from(u32::from(address).checked_add(1)?))),
        IpAddr::V6(address) => {
            Some(IpAddr::V6(Ipv6Addr::from(u128::from(address).checked_add(1)?)))
        }
    }
}

/// An element as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Element {
    Row(Key, Value),
    /// Where a range of a plain interval set starts.
    Start(IpAddr),
    /// The first address after a range.
    End(IpAddr),
}

/// Reads the contents of one `NFTA_LIST_ELEM` of a set. `None`: it is no row that we would write.
pub(super) fn read(family: Family, set: SetName, element: &[u8]) -> Option<Element> {
    let key = find(find(element, nfta::KEY)?, nfta::DATA_VALUE)?;
    let flags = find_be32(element, nfta::FLAGS).unwrap_or(0);
    if set == SetName::ServiceCidrs {
        let address = Fields { family, bytes: key }.only(Fields::address)?;
        return match flags {
            0 => Some(Element::Start(address)),
            nfta::F_INTERVAL_END => Some(Element::End(address)),
            _ => None,
        };
    }
    (flags == 0).then_some(())?;
    let fields = Fields { family, bytes: key };
    let key = if set == SetName::SourceRanges {
        let end = find(find(element, nfta::KEY_END)?, nfta::DATA_VALUE)?;
        read_source_range(fields, Fields { family, bytes: end })?
    } else {
        read_key(set, fields)?
    };
    Some(Element::Row(key, read_value(family, set, element)?))
}

fn read_source_range(low: Fields<'_>, high: Fields<'_>) -> Option<Key> {
    let (frontend, first) = low.only(|it| Some((it.frontend()?, it.address()?)))?;
    let (same, last) = high.only(|it| Some((it.frontend()?, it.address()?)))?;
    (frontend == same).then_some(())?;
    Some(Key::FrontendSource(frontend, range(first, last)?))
}

/// The network that has exactly these first and last addresses.
pub(super) fn range(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let differing = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            32 - (u32::from(first) ^ u32::from(last)).leading_zeros()
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            128 - (u128::from(first) ^ u128::from(last)).leading_zeros()
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    let bits = if first.is_ipv4() { 32 } else { 128 };
    let net = IpNet::new(first, u8::try_from(bits - differing).ok()?).ok()?;
    (net.network() == first && net.broadcast() == last).then_some(net)
}

fn read_key(set: SetName, fields: Fields<'_>) -> Option<Key> {
    match set {
        SetName::ClusterIps | SetName::NodePortIps | SetName::NodeIps | SetName::IpvsDraining => {
            fields.only(|it| it.address().map(Key::Address))
        }
        SetName::Hairpin => fields.only(|it| Some(Key::Pair(it.address()?, it.address()?))),
        SetName::Firewalled
        | SetName::IpvsServices
        | SetName::NoEndpoints
        | SetName::NoLocalEndpoints
        | SetName::Frontends
        | SetName::LocalFrontends
        | SetName::StickyFrontends
        | SetName::StickyLocalFrontends => fields.only(|it| it.frontend().map(Key::Frontend)),
        SetName::NodePortNoEndpoints
        | SetName::NodePortNoLocalEndpoints
        | SetName::NodePorts
        | SetName::LocalNodePorts
        | SetName::StickyNodePorts
        | SetName::StickyLocalNodePorts => fields.only(|it| it.node_port().map(Key::NodePort)),
        SetName::Endpoints | SetName::LocalEndpoints => {
            fields.only(|it| Some(Key::FrontendSlot(it.frontend()?, it.slot()?)))
        }
        SetName::NodePortEndpoints | SetName::LocalNodePortEndpoints => {
            fields.only(|it| Some(Key::NodePortSlot(it.node_port()?, it.slot()?)))
        }
        SetName::StickyGroups | SetName::AffinityTimeouts | SetName::StickyEndpoints => {
            fields.only(|it| it.handle().map(Key::Group))
        }
        SetName::StickySlots => fields.only(|it| Some(Key::GroupSlot(it.handle()?, it.slot()?))),
        SetName::Affinity => fields.only(|it| Some(Key::Client(it.address()?, it.handle()?))),
        // Intervals, which are read elsewhere.
        SetName::ServiceCidrs | SetName::SourceRanges => None,
    }
}

fn read_value(family: Family, set: SetName, element: &[u8]) -> Option<Value> {
    let Some(data) = find(element, nfta::DATA) else { return Some(Value::None) };
    if let Some((code, chain)) = read_verdict(data) {
        let chain = Chain::parse(chain?)?;
        return match code {
            VERDICT_GOTO => Some(Value::Verdict(Verdict::Goto(chain))),
            VERDICT_JUMP => Some(Value::Verdict(Verdict::Jump(chain))),
            _ => None,
        };
    }
    let fields = Fields { family, bytes: find(data, nfta::DATA_VALUE)? };
    match set {
        SetName::Endpoints
        | SetName::LocalEndpoints
        | SetName::NodePortEndpoints
        | SetName::LocalNodePortEndpoints
        | SetName::StickyEndpoints => {
            fields.only(|it| Some(Value::Endpoint(it.address()?, it.port()?)))
        }
        SetName::StickyFrontends
        | SetName::StickyLocalFrontends
        | SetName::StickyNodePorts
        | SetName::StickyLocalNodePorts
        | SetName::StickySlots
        | SetName::Affinity => fields.only(|it| it.handle().map(Value::Handle)),
        SetName::ClusterIps
        | SetName::IpvsServices
        | SetName::IpvsDraining
        | SetName::ServiceCidrs
        | SetName::NodePortIps
        | SetName::NodeIps
        | SetName::Hairpin
        | SetName::Firewalled
        | SetName::SourceRanges
        | SetName::NoEndpoints
        | SetName::NoLocalEndpoints
        | SetName::NodePortNoEndpoints
        | SetName::NodePortNoLocalEndpoints
        | SetName::Frontends
        | SetName::LocalFrontends
        | SetName::NodePorts
        | SetName::LocalNodePorts
        | SetName::StickyGroups
        | SetName::AffinityTimeouts => None,
    }
}

/// Fields of a concatenation, taken off one after the other.
struct Fields<'a> {
    family: Family,
    bytes: &'a [u8],
}

impl Fields<'_> {
    /// What `read` makes of the fields, if that is all of them.
    fn only<T>(mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let value = read(&mut self)?;
        self.bytes.is_empty().then_some(value)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.bytes.split_first_chunk::<N>()?;
        self.bytes = rest;
        Some(*taken)
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.family {
            Family::V4 => self.take::<4>().map(|it| IpAddr::V4(Ipv4Addr::from(it))),
            Family::V6 => self.take::<16>().map(|it| IpAddr::V6(Ipv6Addr::from(it))),
        }
    }

    /// The padding is not looked at: kernels that keep intervals in their own form may fill it.
    fn protocol(&mut self) -> Option<Protocol> {
        let [number, ..] = self.take::<4>()?;
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|it| it.number() == number)
    }

    fn port(&mut self) -> Option<NonZeroU16> {
        let [high, low, ..] = self.take::<4>()?;
        NonZeroU16::new(u16::from_be_bytes([high, low]))
    }

    fn slot(&mut self) -> Option<u16> {
        u16::try_from(ne32(&self.take::<4>()?)?).ok()
    }

    fn handle(&mut self) -> Option<Handle> {
        Some(Handle(ne32(&self.take::<4>()?)?))
    }

    fn frontend(&mut self) -> Option<AddressPort> {
        Some(AddressPort {
            address: self.address()?,
            protocol: self.protocol()?,
            port: self.port()?,
        })
    }

    fn node_port(&mut self) -> Option<NodePortKey> {
        Some(NodePortKey { protocol: self.protocol()?, port: self.port()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::samples::{any_family, any_row};
    use super::*;
    use crate::nft::codec::wire::Attributes;

    #[test]
    fn the_form_is_that_of_nft() {
        let frontend = AddressPort {
            address: "10.0.0.1".parse().unwrap(),
            protocol: Protocol::Tcp,
            port: NonZeroU16::new(80).unwrap(),
        };
        check_bytes(
            &Key::FrontendSource(frontend, "10.0.0.0/9".parse().unwrap()),
            "0a000001 06000000 00500000 0a000000 / 0a000001 06000000 00500000 0a7fffff",
        );
        check_bytes(&Key::Range("10.0.0.0/8".parse().unwrap()), "0a000000 / 0b000000");
        check_bytes(&Key::Range("255.0.0.0/8".parse().unwrap()), "ff000000");
    }

    /// All keys of all elements of a row.
    #[track_caller]
    fn check_bytes(key: &Key, expected: &str) {
        let mut writer = Writer::default();
        write_row(&mut writer, key, &Value::None);
        let bytes = writer.into_bytes();
        let shown: Vec<String> = Attributes(&bytes)
            .flat_map(|(_, element)| {
                [nfta::KEY, nfta::KEY_END].into_iter().filter_map(|it| find(element, it))
            })
            .map(|key| {
                let words = find(key, nfta::DATA_VALUE)
                    .unwrap()
                    .chunks(4)
                    .map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
                words.collect::<Vec<_>>().join(" ")
            })
            .collect();
        assert_eq!(shown.join(" / "), expected);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read((family, set, key, value) in any_row()) {
            let mut writer = Writer::default();
            write_row(&mut writer, &key, &value);
            let bytes = writer.into_bytes();
            let elements: Vec<_> =
                Attributes(&bytes).map(|(_, it)| read(family, set, it)).collect();
            let expected = if let Key::Range(net) = key {
                std::iter::once(Element::Start(net.network()))
                    .chain(successor(net.broadcast()).map(Element::End))
                    .map(Some)
                    .collect()
            } else {
                vec![Some(Element::Row(key, value))]
            };
            prop_assert_eq!(elements, expected);
        }

        #[test]
        fn any_bytes_are_a_row_or_none(
            family in any_family(),
            set in prop::sample::select(&SetName::ALL),
            bytes in prop::collection::vec(any::<u8>(), 0..120),
        ) {
            let _ = read(family, set, &bytes);
        }

        #[test]
        fn a_key_of_any_bytes_is_a_row_or_none(
            family in any_family(),
            set in prop::sample::select(&SetName::ALL),
            key in prop::collection::vec(any::<u8>(), 0..48),
            data in prop::collection::vec(any::<u8>(), 0..24),
        ) {
            let mut writer = Writer::default();
            write_data(&mut writer, nfta::KEY, &key);
            write_data(&mut writer, nfta::DATA, &data);
            let _ = read(family, set, &writer.into_bytes());
        }
    }
}
