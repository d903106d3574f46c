//! Attributes to expressions.

use super::nfta::{
    MASQ_FLAGS, bitwise, byteorder, cmp, dynset, fib, immediate, keyed, lookup, nat, numgen,
    payload, reject,
};
use super::{Comparison, Expression, length};
use crate::nft::codec::element::read_verdict;
use crate::nft::codec::uapi::{REG_VERDICT, element};
use crate::nft::codec::wire::{Attributes, be64, find, find_be32, find_string};

/// Reads an expression by name and attributes. `None`: it is none that we write.
pub(super) fn read(name: &str, data: &[u8]) -> Option<Expression> {
    let number = |kind| find_be32(data, kind);
    let expression = match name {
        "payload" if has_only(data, 1..=4) => Expression::Payload {
            dreg: number(payload::DREG)?,
            base: number(payload::BASE)?,
            offset: number(payload::OFFSET)?,
            length: number(payload::LEN)?,
        },
        "meta" if has_only(data, 1..=3) => read_meta(data)?,
        // The attribute for a direction makes another expression of it.
        "ct" if has_only(data, 1..=2) => {
            Expression::Ct { key: number(keyed::KEY)?, dreg: number(keyed::DREG)? }
        }
        "fib" if has_only(data, 1..=3) => Expression::Fib {
            dreg: number(fib::DREG)?,
            result: number(fib::RESULT)?,
            flags: number(fib::FLAGS)?,
        },
        "numgen" if has_only(data, 1..=4) => read_random(data)?,
        "cmp" if has_only(data, 1..=3) => Expression::Compare {
            sreg: number(cmp::SREG)?,
            comparison: Comparison::from_number(number(cmp::OP)?)?,
            value: read_value(data, cmp::DATA)?,
        },
        "bitwise" if has_only(data, 1..=6) => read_bitwise(data)?,
        "byteorder" if has_only(data, 1..=5) => read_byteorder(data)?,
        "lookup" if has_only(data, 1..=5) => read_lookup(data)?,
        "dynset" if has_only(data, 1..=9) => read_dynset(data)?,
        "immediate" if has_only(data, 1..=2) => read_immediate(data)?,
        "nat" if has_only(data, 1..=7) => read_dnat(data)?,
        // Registers for ports would make another expression of it.
        "masq" if has_only(data, 1..=1) => {
            Expression::Masquerade { flags: number(MASQ_FLAGS).unwrap_or(0) }
        }
        "reject" if has_only(data, 1..=2) => read_reject(data)?,
        _ => return None,
    };
    Some(expression)
}

/// Whether there is no attribute but these: one that we do not know may change what an expression does.
fn has_only(data: &[u8], kinds: std::ops::RangeInclusive<u16>) -> bool {
    Attributes(data).all(|(kind, _)| kinds.contains(&kind))
}

fn read_meta(data: &[u8]) -> Option<Expression> {
    let key = find_be32(data, keyed::KEY)?;
    match (find_be32(data, keyed::DREG), find_be32(data, keyed::META_SREG)) {
        (Some(dreg), None) => Some(Expression::Meta { key, dreg }),
        (None, Some(sreg)) => Some(Expression::MetaSet { key, sreg }),
        _ => None,
    }
}

fn read_random(data: &[u8]) -> Option<Expression> {
    let random = find_be32(data, numgen::TYPE)? == numgen::RANDOM;
    let from_zero = find_be32(data, numgen::OFFSET).unwrap_or(0) == 0;
    (random && from_zero).then_some(())?;
    let (dreg, modulus) = (find_be32(data, numgen::DREG)?, find_be32(data, numgen::MODULUS)?);
    Some(Expression::Random { dreg, modulus })
}

fn read_bitwise(data: &[u8]) -> Option<Expression> {
    (find_be32(data, bitwise::OP).unwrap_or(0) == bitwise::MASK_XOR).then_some(())?;
    let mask = read_value(data, bitwise::MASK)?;
    let xor = read_value(data, bitwise::XOR)?;
    let expected = find_be32(data, bitwise::LEN)?;
    (length(&mask) == expected && length(&xor) == expected).then_some(())?;
    let (sreg, dreg) = (find_be32(data, bitwise::SREG)?, find_be32(data, bitwise::DREG)?);
    Some(Expression::Bitwise { sreg, dreg, mask, xor })
}

fn read_byteorder(data: &[u8]) -> Option<Expression> {
    let number = |kind| find_be32(data, kind);
    let word = number(byteorder::LEN)? == 4 && number(byteorder::SIZE)? == 4;
    (word && number(byteorder::OP)? == byteorder::HTON).then_some(())?;
    let (sreg, dreg) = (number(byteorder::SREG)?, number(byteorder::DREG)?);
    Some(Expression::HostToNetwork { sreg, dreg })
}

fn read_lookup(data: &[u8]) -> Option<Expression> {
    let flags = find_be32(data, lookup::FLAGS).unwrap_or(0);
    (flags & !lookup::F_INV == 0).then_some(())?;
    Some(Expression::Lookup {
        set: find_string(data, lookup::SET)?.to_owned(),
        sreg: find_be32(data, lookup::SREG)?,
        dreg: find_be32(data, lookup::DREG),
        inverted: flags & lookup::F_INV != 0,
    })
}

fn read_dynset(data: &[u8]) -> Option<Expression> {
    let known = [
        dynset::SET_NAME,
        dynset::OP,
        dynset::SREG_KEY,
        dynset::SREG_DATA,
        dynset::TIMEOUT,
        dynset::PAD,
        dynset::FLAGS,
    ];
    let plain = Attributes(data).all(|(kind, _)| known.contains(&kind));
    let unflagged = find_be32(data, dynset::FLAGS).unwrap_or(0) == 0;
    (plain && unflagged).then_some(())?;
    Some(Expression::Dynset {
        set: find_string(data, dynset::SET_NAME)?.to_owned(),
        operation: find_be32(data, dynset::OP)?,
        key: find_be32(data, dynset::SREG_KEY)?,
        data: find_be32(data, dynset::SREG_DATA)?,
        timeout: find(data, dynset::TIMEOUT).map_or(Some(0), be64)?,
    })
}

fn read_immediate(data: &[u8]) -> Option<Expression> {
    let dreg = find_be32(data, immediate::DREG)?;
    let content = find(data, immediate::DATA)?;
    match read_verdict(content) {
        Some((code, chain)) if dreg == REG_VERDICT => {
            Some(Expression::Verdict { code, chain: chain.map(str::to_owned) })
        }
        Some(_) => None,
        None => Some(Expression::Load { dreg, value: read_value(data, immediate::DATA)? }),
    }
}

fn read_dnat(data: &[u8]) -> Option<Expression> {
    let number = |kind| find_be32(data, kind);
    (number(nat::TYPE)? == nat::DNAT).then_some(())?;
    (number(nat::FLAGS).unwrap_or(0) & !nat::DERIVED_FLAGS == 0).then_some(())?;
    let address = number(nat::REG_ADDR_MIN)?;
    let port = number(nat::REG_PROTO_MIN);
    // The kernel reports the upper ends even where only the lower ones were given.
    let one_address = number(nat::REG_ADDR_MAX).is_none_or(|it| it == address);
    let one_port = number(nat::REG_PROTO_MAX).is_none_or(|it| Some(it) == port);
    (one_address && one_port).then_some(())?;
    Some(Expression::Dnat { family: number(nat::FAMILY)?, address, port })
}

fn read_reject(data: &[u8]) -> Option<Expression> {
    let code = find(data, reject::ICMP_CODE).and_then(|it| it.first().copied())?;
    Some(Expression::Reject { kind: find_be32(data, reject::TYPE)?, code })
}

fn read_value(data: &[u8], kind: u16) -> Option<Vec<u8>> {
    Some(find(find(data, kind)?, element::DATA_VALUE)?.to_vec())
}
