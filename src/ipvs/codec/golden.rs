//! Bytes as `ipvsadm` and `ip` write them, and bytes that nobody should write.
//!
//! Written down by hand from the headers; tests/ipvs compares what the kernel makes of them with what those programs list.

use std::net::IpAddr;

use proptest::prelude::*;

use super::{address, generic, link, server};
use crate::ipvs::schema::{
    Connections, Destination, ObservedDestination, Op, Scheduler, ServerKey, VirtualServer,
};
use crate::model::{Family, Protocol};
use crate::nft::codec::wire::{HEADER, Messages, NLM_F_ACK, Writer};

const IPVS: u16 = 0x25;

#[test]
fn the_family_is_asked_for_by_name() {
    check(
        generic::family(7),
        "20000000 1000 0100 07000000 00000000  03 01 0000  09000200 4950565300 000000",
    );
}

#[test]
fn a_virtual_server_has_everything() {
    let server = VirtualServer { persistence: Some(10_800), ..server("mh", 0x10) };
    check_op(
        Op::AddServer(tcp(), server),
        "68000000 2500 0500 07000000 00000000  01 01 0000
         5400 0180
           0600 0100 0200 0000  0600 0200 0600 0000
           1400 0300 0a60000a 00000000 00000000 00000000  0600 0400 0050 0000
           0700 0600 6d6800 00  0c00 0700 11000000 3d000000
           0800 0800 302a0000  0800 0900 ffffffff",
    );
}

#[test]
fn a_virtual_server_of_ipv6_has_a_prefix_length() {
    check_op(
        Op::SetServer(sctp6(), server("wrr", 0)),
        "68000000 2500 0500 07000000 00000000  02 01 0000
         5400 0180
           0600 0100 0a00 0000  0600 0200 8400 0000
           1400 0300 fd000000 00000000 00000000 0000000a  0600 0400 0050 0000
           0800 0600 77727200  0c00 0700 00000000 3d000000
           0800 0800 00000000  0800 0900 80000000",
    );
}

#[test]
fn what_identifies_a_virtual_server_is_enough_to_delete_it() {
    check_op(
        Op::DeleteServer(tcp()),
        "44000000 2500 0500 07000000 00000000  03 01 0000
         3000 0180
           0600 0100 0200 0000  0600 0200 0600 0000
           1400 0300 0a60000a 00000000 00000000 00000000  0600 0400 0050 0000",
    );
}

#[test]
fn a_destination_has_a_weight_unless_it_goes() {
    let identity = "3000 0180
           0600 0100 0200 0000  0600 0200 0600 0000
           1400 0300 0a60000a 00000000 00000000 00000000  0600 0400 0050 0000";
    let address = "1400 0100 0a010102 00000000 00000000 00000000  0600 0200 1f90 0000";
    let full = "0800 0300 00000000  0800 0400 05000000  0800 0500 00000000  0800 0600 00000000
           0600 0b00 0200 0000";
    for (op, command) in [
        (Op::AddDestination(tcp(), endpoint(), 5), "05"),
        (Op::SetDestination(tcp(), endpoint(), 5), "06"),
    ] {
        let header = format!("8c000000 2500 0500 07000000 00000000  {command} 01 0000");
        check_op(op, &format!("{header} {identity} 4800 0280 {address} {full}"));
    }
    let header = "6c000000 2500 0500 07000000 00000000  07 01 0000";
    check_op(
        Op::DeleteDestination(tcp(), endpoint()),
        &format!("{header} {identity} 2800 0280 {address} 0600 0b00 0200 0000"),
    );
}

#[test]
fn the_interface_is_a_dummy_and_gets_its_alias_at_once() {
    let name = "0f00 0300 6b7562652d6970767330 00 00";
    check(
        link::create("kube-ipvs0", "kube-ferry", 7),
        &format!(
            "40000000 1000 0506 07000000 00000000  00000000 00000000 00000000 00000000 {name}
               1000 1280 0a00 0100 64756d6d7900 0000
             40000000 1300 0500 08000000 00000000  00000000 00000000 00000000 00000000 {name}
               0e00 1400 6b7562652d6665727279 0000",
        ),
    );
}

#[test]
fn addresses_are_whole_ones() {
    let write = |add: bool, text: &str| {
        let mut writer = Writer::default();
        let it: IpAddr = text.parse().unwrap();
        match add {
            true => address::write_add(&mut writer, 3, NLM_F_ACK, 7, it),
            false => address::write_delete(&mut writer, 3, NLM_F_ACK, 7, it),
        }
        writer.into_bytes()
    };
    check(
        write(true, "10.96.0.10"),
        "28000000 1400 0506 07000000 00000000  02 20 00 00 03000000  0800 0200 0a60000a  0800 0100 0a60000a",
    );
    check(
        write(false, "10.96.0.10"),
        "28000000 1500 0500 07000000 00000000  02 20 00 00 03000000  0800 0200 0a60000a  0800 0100 0a60000a",
    );
    check(
        write(true, "fd00::a"),
        "48000000 1400 0506 07000000 00000000  0a 80 00 00 03000000
           1400 0200 fd000000 00000000 00000000 0000000a  1400 0100 fd000000 00000000 00000000 0000000a
           0800 0800 02020000",
    );
}

#[test]
fn a_virtual_server_is_read_with_the_flags_that_are_ours() {
    // IP_VS_SVC_F_HASHED, a firewall mark's mask, statistics: not ours.
    let payload = bytes(
        "01 01 0000  6000 0100
           0600 0100 0200 0000  0600 0200 0600 0000
           1400 0300 0a60000a 00000000 00000000 00000000  0600 0400 0050 0000
           0700 0600 6d6800 00  0c00 0700 13000000 ffffffff
           0800 0800 302a0000  0800 0900 ffffffff  0c00 0a00 0800 0100 01000000",
    );
    let expected = VirtualServer { persistence: Some(10_800), ..server("mh", 0x10) };
    assert_eq!(server::read_server(&payload), Some((tcp(), expected)));
}

#[test]
fn a_virtual_server_with_a_mark_is_none() {
    let payload = bytes("01 01 0000  1400 0100  0600 0100 0200 0000  0800 0500 07000000");
    assert_eq!(server::read_server(&payload), None);
}

#[test]
fn a_destination_is_read_with_its_connections() {
    let payload = bytes(
        "05 01 0000  5000 0200
           1400 0100 0a010102 00000000 00000000 00000000  0600 0200 1f90 0000
           0800 0300 01000000  0800 0400 05000000  0800 0700 07000000  0800 0800 08000000
           0800 0900 09000000  0600 0b00 0200 0000",
    );
    let connections = Connections { active: 7, inactive: 8, persistent: 9 };
    let expected = ObservedDestination { weight: 5, masquerades: false, connections };
    assert_eq!(server::read_destination(Family::V4, &payload), Some((endpoint(), expected)));
}

proptest! {
    #[test]
    fn any_bytes_are_read(payload in prop::collection::vec(any::<u8>(), 0..200), kind in 14u16..20) {
        let _ = generic::read_family(&payload);
        let _ = link::read(kind, &payload);
        let _ = server::read_server(&payload);
        let _ = server::read_destination(Family::V6, &payload);
    }

    #[test]
    fn an_answer_that_is_cut_off_is_read(cut in 0usize..120, at in 0usize..120, with: u8) {
        let mut whole = bytes(ANSWER);
        whole.truncate(cut);
        if let Some(byte) = whole.get_mut(at) {
            *byte = with;
        }
        let _ = server::read_server(&whole);
        let _ = server::read_destination(Family::V4, &whole);
    }

    #[test]
    fn what_is_added_is_read(
        address in any::<IpAddr>(), port in 1u16.., kind in 0usize..3, persistence: Option<u32>, flags in 0u32..8, name in "[a-z]{1,15}"
    ) {
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][kind];
        let key = ServerKey { protocol, address, port: port.try_into().unwrap() };
        let server = VirtualServer { persistence, ..server(&name, flags << 3) };
        let mut writer = Writer::default();
        server::write_op(&mut writer, IPVS, 0, 1, &Op::AddServer(key, server));
        prop_assert_eq!(read_back(writer, server::read_server), Some((key, server)));
    }
}

const ANSWER: &str = "01 01 0000  5400 0100  0600 0100 0200 0000  0600 0200 0600 0000
    1400 0300 0a60000a 00000000 00000000 00000000  0600 0400 0050 0000
    0700 0600 6d6800 00  0c00 0700 13000000 ffffffff  0800 0800 302a0000  0800 0900 ffffffff";

fn read_back<T>(writer: Writer, read: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    let bytes = writer.into_bytes();
    assert!(bytes.len() > HEADER);
    Messages(&bytes).find_map(|it| read(it.payload))
}

fn tcp() -> ServerKey {
    let (address, port) = ("10.96.0.10".parse().unwrap(), 80.try_into().unwrap());
    ServerKey { protocol: Protocol::Tcp, address, port }
}

fn sctp6() -> ServerKey {
    ServerKey { protocol: Protocol::Sctp, address: "fd00::a".parse().unwrap(), ..tcp() }
}

fn endpoint() -> Destination {
    Destination { address: "10.1.1.2".parse().unwrap(), port: 8080.try_into().unwrap() }
}

fn server(scheduler: &str, scheduler_flags: u32) -> VirtualServer {
    let scheduler = Scheduler::new(scheduler).unwrap();
    VirtualServer { scheduler, persistence: None, scheduler_flags }
}

#[track_caller]
fn check_op(op: Op, expected: &str) {
    let mut writer = Writer::default();
    server::write_op(&mut writer, IPVS, NLM_F_ACK, 7, &op);
    check(writer.into_bytes(), expected);
}

/// The bytes are those of a little-endian machine.
#[track_caller]
fn check(written: Vec<u8>, expected: &str) {
    let hex = |bytes: &[u8]| {
        let words = bytes.chunks(4).map(|it| it.iter().map(|it| format!("{it:02x}")).collect());
        words.collect::<Vec<String>>().join("\n")
    };
    assert_eq!(hex(&written), hex(&bytes(expected)));
}

fn bytes(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|it| !it.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}
