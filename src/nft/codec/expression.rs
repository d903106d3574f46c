//! The kernel's expressions, as far as our rules use them.

use super::element::write_verdict;
use super::uapi::{REG_VERDICT, element, nfproto};
use super::wire::{Attributes, Writer, find, find_string};
use crate::model::Family;
use nfta::{
    MASQ_FLAGS, bitwise, byteorder, cmp, dynset, fib, immediate, keyed, lookup, nat, numgen,
    payload, reject,
};

mod nfta;
mod read;

/// `NFTA_LIST_ELEM`, `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`
const LIST_ELEM: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;

/// One expression. Registers are numbered as the kernel reports them, see [`super::lower`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    Payload {
        dreg: u32,
        base: u32,
        offset: u32,
        length: u32,
    },
    Meta {
        key: u32,
        dreg: u32,
    },
    MetaSet {
        key: u32,
        sreg: u32,
    },
    Ct {
        key: u32,
        dreg: u32,
    },
    /// `result` is `NFT_FIB_RESULT_*`, `flags` are `NFTA_FIB_F_*`.
    Fib {
        dreg: u32,
        result: u32,
        flags: u32,
    },
    /// `numgen random mod MODULUS`
    Random {
        dreg: u32,
        modulus: u32,
    },
    Compare {
        sreg: u32,
        comparison: Comparison,
        value: Vec<u8>,
    },
    /// `dreg = (sreg & mask) ^ xor`
    Bitwise {
        sreg: u32,
        dreg: u32,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    /// Host to network byte order of one 32-bit number.
    HostToNetwork {
        sreg: u32,
        dreg: u32,
    },
    Lookup {
        set: String,
        sreg: u32,
        /// `None`: only matches; the verdict register: jumps where the map says.
        dreg: Option<u32>,
        inverted: bool,
    },
    Dynset {
        set: String,
        operation: u32,
        key: u32,
        data: u32,
        /// Milliseconds; 0: the set's default.
        timeout: u64,
    },
    Load {
        dreg: u32,
        value: Vec<u8>,
    },
    Verdict {
        code: u32,
        chain: Option<String>,
    },
    /// `dnat to ADDRESS : PORT`, both in registers.
    Dnat {
        family: u32,
        address: u32,
        port: Option<u32>,
    },
    Masquerade {
        flags: u32,
    },
    Reject {
        kind: u32,
        code: u8,
    },
}

/// Those of `NFT_CMP_*` that we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal = 0,
    NotEqual = 1,
    GreaterOrEqual = 5,
}

impl Comparison {
    const ALL: [Comparison; 3] =
        [Comparison::Equal, Comparison::NotEqual, Comparison::GreaterOrEqual];

    fn from_number(number: u32) -> Option<Comparison> {
        Comparison::ALL.into_iter().find(|it| *it as u32 == number)
    }
}

/// Writes the contents of `NFTA_RULE_EXPRESSIONS`.
pub(super) fn write_all(writer: &mut Writer, expressions: &[Expression]) {
    for expression in expressions {
        writer.nest(LIST_ELEM, |writer| {
            writer.string(NAME, expression.name());
            writer.nest(DATA, |writer| expression.write(writer));
        });
    }
}

/// Reads the contents of `NFTA_RULE_EXPRESSIONS`. `None`: something that we never write is in it.
pub(super) fn read_all(list: &[u8]) -> Option<Vec<Expression>> {
    Attributes(list)
        .map(|(kind, value)| {
            let name = (kind == LIST_ELEM).then(|| find_string(value, NAME))??;
            read::read(name, find(value, DATA).unwrap_or_default())
        })
        .collect()
}

impl Expression {
    fn name(&self) -> &'static str {
        match self {
            Expression::Payload { .. } => "payload",
            Expression::Meta { .. } | Expression::MetaSet { .. } => "meta",
            Expression::Ct { .. } => "ct",
            Expression::Fib { .. } => "fib",
            Expression::Random { .. } => "numgen",
            Expression::Compare { .. } => "cmp",
            Expression::Bitwise { .. } => "bitwise",
            Expression::HostToNetwork { .. } => "byteorder",
            Expression::Lookup { .. } => "lookup",
            Expression::Dynset { .. } => "dynset",
            Expression::Load { .. } | Expression::Verdict { .. } => "immediate",
            Expression::Dnat { .. } => "nat",
            Expression::Masquerade { .. } => "masq",
            Expression::Reject { .. } => "reject",
        }
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Expression::Payload { dreg, base, offset, length } => {
                writer.be32(payload::DREG, *dreg);
                writer.be32(payload::BASE, *base);
                writer.be32(payload::OFFSET, *offset);
                writer.be32(payload::LEN, *length);
            }
            Expression::Meta { key, dreg } | Expression::Ct { key, dreg } => {
                writer.be32(keyed::KEY, *key);
                writer.be32(keyed::DREG, *dreg);
            }
            Expression::MetaSet { key, sreg } => {
                writer.be32(keyed::KEY, *key);
                writer.be32(keyed::META_SREG, *sreg);
            }
            Expression::Fib { dreg, result, flags } => {
                writer.be32(fib::FLAGS, *flags);
                writer.be32(fib::RESULT, *result);
                writer.be32(fib::DREG, *dreg);
            }
            Expression::Random { dreg, modulus } => {
                writer.be32(numgen::DREG, *dreg);
                writer.be32(numgen::MODULUS, *modulus);
                writer.be32(numgen::TYPE, numgen::RANDOM);
                writer.be32(numgen::OFFSET, 0);
            }
            Expression::Compare { sreg, comparison, value } => {
                writer.be32(cmp::SREG, *sreg);
                writer.be32(cmp::OP, *comparison as u32);
                write_value(writer, cmp::DATA, value);
            }
            Expression::Bitwise { sreg, dreg, mask, xor } => {
                writer.be32(bitwise::SREG, *sreg);
                writer.be32(bitwise::DREG, *dreg);
                writer.be32(bitwise::OP, bitwise::MASK_XOR);
                writer.be32(bitwise::LEN, length(mask));
                write_value(writer, bitwise::MASK, mask);
                write_value(writer, bitwise::XOR, xor);
            }
            Expression::HostToNetwork { sreg, dreg } => {
                writer.be32(byteorder::SREG, *sreg);
                writer.be32(byteorder::DREG, *dreg);
                writer.be32(byteorder::OP, byteorder::HTON);
                writer.be32(byteorder::LEN, 4);
                writer.be32(byteorder::SIZE, 4);
            }
            Expression::Lookup { set, sreg, dreg, inverted } => {
                writer.string(lookup::SET, set);
                writer.be32(lookup::SREG, *sreg);
                if let Some(dreg) = dreg {
                    writer.be32(lookup::DREG, *dreg);
                }
                if *inverted {
                    writer.be32(lookup::FLAGS, lookup::F_INV);
                }
            }
            Expression::Dynset { set, operation, key, data, timeout } => {
                writer.be32(dynset::OP, *operation);
                writer.be32(dynset::SREG_KEY, *key);
                writer.be32(dynset::SREG_DATA, *data);
                writer.string(dynset::SET_NAME, set);
                if *timeout != 0 {
                    writer.be64(dynset::TIMEOUT, *timeout);
                }
            }
            Expression::Load { dreg, value } => {
                writer.be32(immediate::DREG, *dreg);
                write_value(writer, immediate::DATA, value);
            }
            Expression::Verdict { code, chain } => {
                writer.be32(immediate::DREG, REG_VERDICT);
                writer
                    .nest(immediate::DATA, |writer| write_verdict(writer, *code, chain.as_deref()));
            }
            Expression::Dnat { family, address, port } => {
                writer.be32(nat::TYPE, nat::DNAT);
                writer.be32(nat::FAMILY, *family);
                writer.be32(nat::REG_ADDR_MIN, *address);
                if let Some(port) = port {
                    writer.be32(nat::REG_PROTO_MIN, *port);
                }
            }
            Expression::Masquerade { flags } => writer.be32(MASQ_FLAGS, *flags),
            Expression::Reject { kind, code } => {
                writer.be32(reject::TYPE, *kind);
                writer.bytes(reject::ICMP_CODE, &[*code]);
            }
        }
    }
}

fn write_value(writer: &mut Writer, kind: u16, value: &[u8]) {
    writer.nest(kind, |writer| writer.bytes(element::DATA_VALUE, value));
}

/// Length of what fits registers, which are 64 bytes in all.
fn length(value: &[u8]) -> u32 {
    u32::try_from(value.len()).unwrap_or(u32::MAX)
}

/// The number by which `nat` knows the family.
pub(super) fn nat_family(family: Family) -> u32 {
    u32::from(nfproto(family))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nft::codec::lower::lower;
    use crate::nft::skeleton::{chains, remember, tests::program};

    const NAMES: [&str; 14] = [
        "payload",
        "meta",
        "ct",
        "fib",
        "numgen",
        "cmp",
        "bitwise",
        "byteorder",
        "lookup",
        "dynset",
        "immediate",
        "nat",
        "masq",
        "reject",
    ];

    #[test]
    fn every_rule_is_read_as_it_was_written() {
        for family in Family::ALL {
            for spec in chains(&program(), family).into_iter().chain([remember(10_800)]) {
                for rule in &spec.rules {
                    let lowered = lower(family, rule);
                    assert_eq!(read_all(&written(&lowered)), Some(lowered), "{}", spec.chain);
                }
            }
        }
    }

    #[test]
    fn an_attribute_that_we_never_write_makes_an_expression_unknown() {
        let mut writer = Writer::default();
        writer.nest(LIST_ELEM, |writer| {
            writer.string(NAME, "masq");
            writer.nest(DATA, |writer| {
                writer.be32(MASQ_FLAGS, 16);
                writer.be32(2, 1);
            });
        });
        assert_eq!(read_all(&writer.into_bytes()), None);
    }

    fn written(expressions: &[Expression]) -> Vec<u8> {
        let mut writer = Writer::default();
        write_all(&mut writer, expressions);
        writer.into_bytes()
    }

    proptest! {
        #[test]
        fn any_bytes_are_expressions_or_none(
            bytes in prop::collection::vec(any::<u8>(), 0..120),
            name in prop::sample::select(&NAMES[..]),
        ) {
            let _ = read_all(&bytes);
            let _ = read::read(name, &bytes);
        }

        /// What is read at all is written the same: nothing that matters is left out.
        #[test]
        fn what_is_read_can_be_written(
            attributes in prop::collection::vec((1u16..8, any::<u32>()), 0..8),
            name in prop::sample::select(&NAMES[..]),
        ) {
            let mut writer = Writer::default();
            attributes.iter().for_each(|(kind, value)| writer.be32(*kind, *value));
            if let Some(expression) = read::read(name, &writer.into_bytes()) {
                let expressions = vec![expression];
                prop_assert_eq!(read_all(&written(&expressions)), Some(expressions));
            }
        }
    }
}
