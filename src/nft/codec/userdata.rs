//! User data of tables, chains and sets: what nft needs to print them.
//!
//! The kernel keeps these bytes without looking at them. Their form is libnftnl's (type, length, value, one byte each
//! for the first two) and their contents are what nft 1.0.6 writes: every later version reads that, whereas nft 1.0.6
//! crashes on what 1.1 writes for the same sets.

use crate::model::Family;
use crate::nft::schema::{Data, Field, SetSpec};

/// The most that the kernel takes.
pub(super) const MAX: usize = 256;

/// `NFTNL_UDATA_TABLE_COMMENT` and `NFTNL_UDATA_CHAIN_COMMENT`
const COMMENT: u8 = 0;

/// `NFTNL_UDATA_SET_*`
mod set {
    pub(super) const KEY_BYTE_ORDER: u8 = 0;
    pub(super) const DATA_BYTE_ORDER: u8 = 1;
    pub(super) const KEY_TYPEOF: u8 = 3;
    pub(super) const DATA_TYPEOF: u8 = 4;
    pub(super) const DATA_INTERVAL: u8 = 6;
    pub(super) const COMMENT: u8 = 7;
}

/// `NFTNL_UDATA_SET_TYPEOF_EXPR` and `NFTNL_UDATA_SET_TYPEOF_DATA`
const TYPEOF_EXPRESSION: u8 = 0;
const TYPEOF_DATA: u8 = 1;

/// nft's `enum byteorder`
const ORDER_NONE: u32 = 0;
const ORDER_HOST: u32 = 1;
const ORDER_NETWORK: u32 = 2;

/// nft's `enum expr_types`
const VERDICT: u32 = 1;
const PAYLOAD: u32 = 7;
const META: u32 = 9;
const CONCAT: u32 = 13;
const NUMGEN: u32 = 23;

/// nft's `enum proto_desc_id` and the index of the field in that protocol's header.
const PROTO_TH: u32 = 11;
const TH_DPORT: u32 = 2;
const PROTO_IP: u32 = 12;
const IP_SADDR: u32 = 11;
const IP_DADDR: u32 = 12;
const PROTO_IP6: u32 = 13;
const IP6_SADDR: u32 = 8;
const IP6_DADDR: u32 = 9;

/// `NFT_NG_RANDOM`
const RANDOM: u32 = 1;

/// User data of a table or a chain.
pub(super) fn comment(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_text(&mut out, COMMENT, text);
    out
}

/// User data of a set or map.
pub(super) fn of_set(family: Family, spec: &SetSpec) -> Vec<u8> {
    let by_type = spec.by_type;
    let mut out = Vec::new();
    put_u32(&mut out, set::KEY_BYTE_ORDER, byte_order(spec.key));
    match spec.data {
        Data::None => (),
        Data::Verdict => put_u32(&mut out, set::DATA_BYTE_ORDER, ORDER_NONE),
        Data::Fields(fields) => put_u32(&mut out, set::DATA_BYTE_ORDER, byte_order(fields)),
    }
    put_typeof(&mut out, set::KEY_TYPEOF, family, spec.key, by_type);
    match spec.data {
        Data::None => (),
        Data::Verdict if by_type => (),
        Data::Verdict => put(&mut out, set::DATA_TYPEOF, &expression(VERDICT, &[])),
        Data::Fields(fields) => put_typeof(&mut out, set::DATA_TYPEOF, family, fields, by_type),
    }
    if spec.data != Data::None {
        put_u32(&mut out, set::DATA_INTERVAL, 0);
    }
    // A comment can be read elsewhere; a table that the kernel refuses is worse than a short one.
    let room = MAX.saturating_sub(out.len() + 3);
    put_text(&mut out, set::COMMENT, spec.comment.get(..room).unwrap_or(spec.comment));
    out
}

/// One plain type says all; a concatenation of plain types has an empty list.
fn put_typeof(out: &mut Vec<u8>, kind: u8, family: Family, fields: &[Field], by_type: bool) {
    match fields {
        [_] if by_type => (),
        _ if by_type => put(out, kind, &expression(CONCAT, &[])),
        fields => put(out, kind, &typeof_fields(family, fields)),
    }
}

fn byte_order(fields: &[Field]) -> u32 {
    match fields {
        [Field::Saddr | Field::Daddr | Field::Dport] => ORDER_NETWORK,
        [Field::Priority | Field::PriorityMasked(_) | Field::Random(_) | Field::L4Proto] => {
            ORDER_HOST
        }
        _ => ORDER_NONE,
    }
}

fn typeof_fields(family: Family, fields: &[Field]) -> Vec<u8> {
    match fields {
        [field] => typeof_field(family, *field),
        _ => {
            let mut list = Vec::new();
            for (index, field) in (0u8..).zip(fields) {
                put(&mut list, index, &typeof_field(family, *field));
            }
            expression(CONCAT, &list)
        }
    }
}

fn typeof_field(family: Family, field: Field) -> Vec<u8> {
    match (field, family) {
        (Field::Saddr, Family::V4) => numbers(PAYLOAD, &[PROTO_IP, IP_SADDR]),
        (Field::Saddr, Family::V6) => numbers(PAYLOAD, &[PROTO_IP6, IP6_SADDR]),
        (Field::Daddr, Family::V4) => numbers(PAYLOAD, &[PROTO_IP, IP_DADDR]),
        (Field::Daddr, Family::V6) => numbers(PAYLOAD, &[PROTO_IP6, IP6_DADDR]),
        (Field::Dport, _) => numbers(PAYLOAD, &[PROTO_TH, TH_DPORT]),
        (Field::L4Proto, _) => numbers(META, &[super::uapi::meta::L4PROTO]),
        (Field::Random(modulus), _) => numbers(NUMGEN, &[RANDOM, modulus, 0]),
        (Field::Priority | Field::PriorityMasked(_), _) => {
            numbers(META, &[super::uapi::meta::PRIORITY])
        }
    }
}

/// An expression whose data are numbers, in the order of their types 0, 1, ...
fn numbers(kind: u32, values: &[u32]) -> Vec<u8> {
    let mut data = Vec::new();
    for (index, value) in (0u8..).zip(values) {
        put_u32(&mut data, index, *value);
    }
    expression(kind, &data)
}

fn expression(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_u32(&mut out, TYPEOF_EXPRESSION, kind);
    put(&mut out, TYPEOF_DATA, data);
    out
}

fn put_u32(out: &mut Vec<u8>, kind: u8, value: u32) {
    put(out, kind, &value.to_ne_bytes());
}

fn put_text(out: &mut Vec<u8>, kind: u8, text: &str) {
    let mut value = text.as_bytes().to_vec();
    value.push(0);
    put(out, kind, &value);
}

fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let length = u8::try_from(value.len()).expect("definitions and comments are constants");
    out.extend([kind, length]);
    out.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::skeleton;

    #[test]
    fn what_nft_1_0_6_wrote_is_written() {
        check(
            "no-endpoints",
            Family::V4,
            "0004 00000000 0308 0004 0d000000 0100 071f 52656a65637465643a206e6f20656e64706f696e7420616e79776865726500",
        );
    }

    #[test]
    fn all_comments_are_complete() {
        for family in Family::ALL {
            for spec in crate::nft::SetName::ALL.map(skeleton::spec) {
                let bytes = of_set(family, &spec);
                assert!(bytes.len() <= MAX, "{:?}", spec.name);
                let mut comment = spec.comment.as_bytes().to_vec();
                comment.push(0);
                assert!(bytes.ends_with(&comment), "{:?}", spec.name);
            }
        }
    }

    #[track_caller]
    fn check(set: &str, family: Family, expected: &str) {
        let name = crate::nft::SetName::parse(set).unwrap();
        let bytes = of_set(family, &skeleton::spec(name));
        let shown: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(shown, expected.replace(' ', ""));
    }
}
