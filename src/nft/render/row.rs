//! Rows as nft elements.

use ipnet::IpNet;

use crate::nft::schema::{AddressPort, Handle, Key, NodePortKey, Value};

/// `key` or `key : value`.
pub(super) fn element(key: &Key, value: &Value) -> String {
    match value {
        Value::None => self::key(key),
        Value::Verdict(verdict) => format!("{} : {verdict}", self::key(key)),
        Value::Endpoint(address, port) => format!("{} : {address} . {port}", self::key(key)),
        Value::Handle(it) => format!("{} : {}", self::key(key), handle(*it)),
    }
}

fn key(key: &Key) -> String {
    match key {
        Key::Address(address) => address.to_string(),
        Key::Range(net) => range(net),
        Key::Pair(source, destination) => format!("{source} . {destination}"),
        Key::Frontend(at) => frontend(at),
        Key::FrontendSource(at, net) => format!("{} . {}", frontend(at), range(net)),
        Key::FrontendSlot(at, slot) => format!("{} . {slot}", frontend(at)),
        Key::NodePort(at) => node_port(at),
        Key::NodePortSlot(at, slot) => format!("{} . {slot}", node_port(at)),
        Key::Group(it) => handle(*it),
        Key::GroupSlot(it, slot) => format!("{} . {slot}", handle(*it)),
        Key::Client(address, it) => format!("{address} . {}", handle(*it)),
    }
}

fn frontend(at: &AddressPort) -> String {
    format!("{} . {} . {}", at.address, at.protocol, at.port)
}

fn node_port(at: &NodePortKey) -> String {
    format!("{} . {}", at.protocol, at.port)
}

/// nft prints a range of one address without its length.
pub(super) fn range(net: &IpNet) -> String {
    match net.prefix_len() == net.max_prefix_len() {
        true => net.addr().to_string(),
        false => net.trunc().to_string(),
    }
}

/// As nft prints a priority: `major:minor` of a traffic-control handle, in hexadecimal.
fn handle(handle: Handle) -> String {
    format!("{:x}:{:x}", handle.0 >> 16, handle.0 & 0xffff)
}
