//! IP addresses and CIDRs as kube-proxy reads them: leniently, and canonical from then on (reference 1.3).
//!
//! The rules are those of Go's `net` before 1.17, which Kubernetes keeps for objects written long ago: leading zeros
//! are decimal, not octal; an IPv4-mapped IPv6 address is the IPv4 address. Zones (`fe80::1%eth0`) are no addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// More than any spelling of an address needs; padding beyond it is nobody's honest mistake.
const TEXT_LIMIT: usize = 128;

/// Reads an address; a mapped one (`::ffff:192.0.2.1`) comes back as IPv4.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    parse(text).map(|address| address.to_canonical())
}

/// Reads a CIDR and masks its host bits off. Mapped IPv4 is IPv4 here too: `::ffff:192.0.2.0/120` is `192.0.2.0/24`.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let length = decimal(length, 128)?;
    let net = IpNet::new(parse(address)?, u8::try_from(length).ok()?).ok()?.trunc();
    Some(canonical(net))
}

/// Why no Service may hand out, and no endpoint may have, this address; `None` if it may.
///
/// These are the API's rules for externalIPs and endpoints (`ValidateEndpointIP`), plus multicast and broadcast as a
/// whole, which cannot be the far end of a connection.
pub fn special(address: IpAddr) -> Option<&'static str> {
    unroutable(address).or_else(|| link_local(address).then_some("link-local"))
}

/// As [`special`], without link-local: the API does not validate cluster IPs and load-balancer addresses, and
/// link-local ones are in use for services of the cloud itself. The others would take over the node's own traffic.
pub fn unroutable(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("unspecified");
    }
    if address.is_loopback() {
        return Some("loopback");
    }
    if address.is_multicast() {
        return Some("multicast");
    }
    (address == IpAddr::V4(Ipv4Addr::BROADCAST)).then_some("broadcast")
}

fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn parse(text: &str) -> Option<IpAddr> {
    if text.len() > TEXT_LIMIT {
        return None;
    }
    match text.contains(':') {
        true => parse_v6(text).map(IpAddr::V6),
        false => parse_v4(text).map(IpAddr::V4),
    }
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets =
        text.split('.').map(|it| decimal(it, 255).and_then(|it| u8::try_from(it).ok()));
    let address = Ipv4Addr::new(octets.next()??, octets.next()??, octets.next()??, octets.next()??);
    octets.next().is_none().then_some(address)
}

/// Rewrites what std's parser refuses (zero-padded groups and octets) and lets it do the rest.
fn parse_v6(text: &str) -> Option<Ipv6Addr> {
    let mut groups: Vec<String> = text.split(':').map(without_padding).collect();
    if let Some(last) = groups.last_mut().filter(|it| it.contains('.')) {
        *last = parse_v4(last)?.to_string();
    }
    groups.join(":").parse().ok()
}

fn without_padding(group: &str) -> String {
    match group.len() {
        0..=4 => group.to_owned(),
        length if group.contains('.') || length > TEXT_LIMIT => group.to_owned(),
        length => {
            let significant = group.trim_start_matches('0');
            let kept = significant.len().max(1);
            group.get(length - kept..).unwrap_or(group).to_owned()
        }
    }
}

/// A decimal number with any number of leading zeros, without sign.
fn decimal(text: &str, max: u32) -> Option<u32> {
    let all_digits = !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    let significant = text.trim_start_matches('0');
    let value = if significant.is_empty() { Some(0) } else { significant.parse().ok() };
    value.filter(|value| all_digits && *value <= max)
}

fn canonical(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    mapped(v6).map_or(net, IpNet::V4)
}

fn mapped(net: Ipv6Net) -> Option<Ipv4Net> {
    let address = net.addr().to_ipv4_mapped()?;
    Ipv4Net::new(address, net.prefix_len().checked_sub(96)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_canonical() {
        check_ip("10.0.0.1", "10.0.0.1");
        check_ip("010.000.0.0001", "10.0.0.1");
        check_ip("fd00:0:0::01", "fd00::1");
        check_ip("FD00::00000A", "fd00::a");
        check_ip("::ffff:192.0.2.1", "192.0.2.1");
        check_ip("::ffff:192.000.002.001", "192.0.2.1");
        check_ip("::ffff:c000:201", "192.0.2.1");
        check_ip("64:ff9b::192.0.2.1", "64:ff9b::c000:201");
        check_ip("::", "::");
    }

    #[test]
    fn what_is_no_address_is_none() {
        let wrong = [
            "",
            " ",
            "10.0.0",
            "10.0.0.1.2",
            "10.0.0.256",
            "10.0.0.-1",
            "10.0.0.+1",
            "10.0.0.1 ",
            "0x0a.0.0.1",
            "1..2.3",
            "fe80::1%eth0",
            "fd00:::1",
            "1:2:3:4:5:6:7",
            "12345::",
            "fd00::g",
            "10.0.0.1/8",
            "[::1]",
            "１.0.0.1",
            "::1.2.3",
        ];
        for text in wrong {
            assert_eq!(parse_ip(text), None, "{text:?}");
        }
        assert_eq!(parse_ip(&format!("{}1.0.0.1", "0".repeat(200))), None);
    }

    #[test]
    fn ranges_become_canonical() {
        check_cidr("10.1.2.3/8", "10.0.0.0/8");
        check_cidr("010.1.2.3/008", "10.0.0.0/8");
        check_cidr("fd00::1/064", "fd00::/64");
        check_cidr("0.0.0.0/0", "0.0.0.0/0");
        check_cidr("::ffff:192.0.2.9/120", "192.0.2.0/24");
        check_cidr("::ffff:192.0.2.9/96", "0.0.0.0/0");
        check_cidr("::ffff:192.0.2.9/64", "::/64");
    }

    #[test]
    fn what_is_no_range_is_none() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "::/129",
            "/8",
            "10.0.0.0/8/8",
            "a/8",
        ] {
            assert_eq!(parse_cidr(text), None, "{text:?}");
        }
    }

    #[test]
    fn special_addresses_are_named() {
        let kinds = [
            "0.0.0.0",
            "127.1.2.3",
            "224.0.0.1",
            "239.1.1.1",
            "255.255.255.255",
            "169.254.1.1",
            "10.0.0.1",
        ];
        let words = kinds.map(|it| special(it.parse().unwrap()).unwrap_or("-"));
        assert_eq!(
            words,
            ["unspecified", "loopback", "multicast", "multicast", "broadcast", "link-local", "-"]
        );
        let kinds = ["::", "::1", "ff02::1", "fe80::1", "fd00::1"];
        let words = kinds.map(|it| special(it.parse().unwrap()).unwrap_or("-"));
        assert_eq!(words, ["unspecified", "loopback", "multicast", "link-local", "-"]);
    }

    #[track_caller]
    fn check_ip(text: &str, expected: &str) {
        assert_eq!(parse_ip(text).map(|it| it.to_string()).as_deref(), Some(expected), "{text:?}");
    }

    #[track_caller]
    fn check_cidr(text: &str, expected: &str) {
        assert_eq!(
            parse_cidr(text).map(|it| it.to_string()).as_deref(),
            Some(expected),
            "{text:?}"
        );
    }
}
