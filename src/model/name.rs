//! Names and the small enums that keys are made of.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectName {
    pub fn new(namespace: &str, name: &str) -> Self {
        ObjectName { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The UUID that an API server gives an object: 16 bytes, of which there are thousands, where the text takes 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid([u8; 16]);

impl Uid {
    /// `None`: not a UUID in the usual form, so no API server has made it.
    pub fn parse(text: &str) -> Option<Uid> {
        let digits = |it: &str| it.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
        let groups = text.split('-');
        let usual = groups.clone().map(str::len).eq([8, 4, 4, 4, 12]) && groups.clone().all(digits);
        let number = usual.then(|| u128::from_str_radix(&groups.collect::<String>(), 16).ok());
        number.flatten().map(|it| Uid(it.to_be_bytes()))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", u128::from_be_bytes(self.0));
        let group = |range| digits.get(range).unwrap_or_default();
        write!(
            f,
            "{}-{}-{}-{}-{}",
            group(0..8),
            group(8..12),
            group(12..16),
            group(16..20),
            group(20..32)
        )
    }
}

/// IP family; each has a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

/// Transport protocol of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As nft and `/etc/protocols` spell it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }

    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_shown_as_they_were_read() {
        let text = "0f6a2c1e-9b7d-4e3a-8c5f-00000000002a";
        assert_eq!(Uid::parse(text).unwrap().to_string(), text);
        for other in
            ["", "u1", "0F6A2C1E-9b7d-4e3a-8c5f-00000000002a", "0f6a2c1e9b7d4e3a8c5f00000000002a"]
        {
            assert_eq!(Uid::parse(other), None, "{other:?}");
        }
    }
}
