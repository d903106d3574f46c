//! Statements to the kernel's expressions.
//!
//! Each lowering is what nft 1.1 writes for the same statement, so that every nft prints it back. Registers are
//! sixteen words of 32 bits; the fields of a concatenation lie one after the other, each padded to whole words, from
//! the first register on.

use std::net::IpAddr;

use ipnet::IpNet;

use super::expression::{Comparison, Expression, nat_family};
use super::uapi::{self, REG_VERDICT, VERDICT_GOTO, VERDICT_JUMP, meta};
use crate::model::Family;
use crate::nft::schema::{Chain, Field, Rule, SetName, Statement};

/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// `NFT_CT_STATE`, `NFT_CT_STATUS`, and a bit of each.
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const STATE_NEW: u32 = 1 << 3;
const STATUS_DST_NAT: u32 = 1 << 5;

/// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_SADDR`, `NFTA_FIB_F_DADDR`, `RTN_LOCAL`
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_SADDR: u32 = 1;
const FIB_DADDR: u32 = 2;
const RTN_LOCAL: u32 = 2;

/// `NFT_DYNSET_OP_*`
const DYNSET_UPDATE: u32 = 1;
const DYNSET_DELETE: u32 = 2;

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`
const RANDOM_FULLY: u32 = 1 << 4;

/// `NFT_REJECT_ICMP_UNREACH`, and "port unreachable" in ICMP and in ICMPv6.
const ICMP_UNREACHABLE: u32 = 0;
const ICMP_PORT: u8 = 3;
const ICMPV6_PORT: u8 = 4;

/// Length of an interface name in a register.
const IFNAMSIZ: usize = 16;

/// The expressions of a rule.
pub(super) fn lower(family: Family, rule: &Rule) -> Vec<Expression> {
    let mut lowering = Lowering { family, out: Vec::new() };
    rule.0.iter().for_each(|statement| lowering.statement(statement));
    lowering.out
}

/// The number of the 32-bit register at `word`. The kernel reports those that begin a 128-bit register by that one's
/// number, and so does nft.
fn register(word: u32) -> u32 {
    if word.is_multiple_of(4) { 1 + word / 4 } else { 8 + word }
}

/// 32-bit registers that an address takes.
fn address_words(family: Family) -> u32 {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

/// Where an address is in the network header; every field but `Daddr` stands for the source.
fn address_offset(family: Family, field: Field) -> u32 {
    match (family, field == Field::Daddr) {
        (Family::V4, false) => 12,
        (Family::V4, true) => 16,
        (Family::V6, false) => 8,
        (Family::V6, true) => 24,
    }
}

struct Lowering {
    family: Family,
    out: Vec<Expression>,
}

impl Lowering {
    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::CtStateNew => self.ct(CT_STATE, STATE_NEW, false),
            Statement::CtStatusDnat { negated } => self.ct(CT_STATUS, STATUS_DST_NAT, *negated),
            Statement::AddressIn { field, net, negated } => self.address_in(*field, *net, *negated),
            Statement::InputInterface { name, prefix, negated } => {
                self.input_interface(name, *prefix, *negated);
            }
            Statement::FibLocal { field } => self.fib_local(*field),
            Statement::InSet { key, set, negated } => self.lookup(key, *set, None, *negated),
            Statement::Vmap { key, map } => self.lookup(key, *map, Some(REG_VERDICT), false),
            Statement::L4Proto(protocol) => {
                self.load(Field::L4Proto, 0);
                self.compare(Comparison::Equal, &[protocol.number()]);
            }
            Statement::Dnat { key, map } => self.dnat(key, *map),
            Statement::MarkOr(bits) => self.set_bits(meta::MARK, !bits, *bits),
            Statement::MarkXor(bits) => self.set_bits(meta::MARK, u32::MAX, *bits),
            Statement::MarkIsSet(mask) => self.has_bits(meta::MARK, *mask),
            Statement::PrioritySetFromMap { key, map } => {
                self.lookup(key, *map, Some(register(0)), false);
                self.set(meta::PRIORITY);
            }
            Statement::PriorityMask(mask) => self.set_bits(meta::PRIORITY, *mask, 0),
            Statement::PriorityReset => {
                let value = 0u32.to_ne_bytes().to_vec();
                self.out.push(Expression::Load { dreg: register(0), value });
                self.set(meta::PRIORITY);
            }
            Statement::PriorityHas(mask) => self.has_bits(meta::PRIORITY, *mask),
            Statement::PriorityAtLeast(least) => {
                self.load(Field::Priority, 0);
                // Registers compare byte by byte, from the most significant on.
                let (sreg, dreg) = (register(0), register(0));
                self.out.push(Expression::HostToNetwork { sreg, dreg });
                self.compare(Comparison::GreaterOrEqual, &least.to_be_bytes());
            }
            Statement::Update { map, key, timeout, data } => {
                self.dynset(DYNSET_UPDATE, *map, key, *data, u64::from(*timeout) * 1000);
            }
            Statement::Forget { map, key, data } => self.dynset(DYNSET_DELETE, *map, key, *data, 0),
            Statement::Masquerade => self.out.push(Expression::Masquerade { flags: RANDOM_FULLY }),
            Statement::Reject => self.reject(),
            Statement::Drop => self.verdict(uapi::NF_DROP, None),
            Statement::Jump(chain) => self.verdict(VERDICT_JUMP, Some(*chain)),
            Statement::Goto(chain) => self.verdict(VERDICT_GOTO, Some(*chain)),
        }
    }

    /// Loads a field into the registers from `word` on and returns the first word after it.
    fn load(&mut self, field: Field, word: u32) -> u32 {
        let dreg = register(word);
        match field {
            Field::Saddr | Field::Daddr => {
                let words = address_words(self.family);
                self.network(dreg, address_offset(self.family, field), 4 * words);
                return word + words;
            }
            Field::L4Proto => self.out.push(Expression::Meta { key: meta::L4PROTO, dreg }),
            Field::Dport => {
                let (base, offset, length) = (TRANSPORT_HEADER, 2, 2);
                self.out.push(Expression::Payload { dreg, base, offset, length });
            }
            Field::Random(modulus) => self.out.push(Expression::Random { dreg, modulus }),
            Field::Priority => self.out.push(Expression::Meta { key: meta::PRIORITY, dreg }),
            Field::PriorityMasked(mask) => {
                self.out.push(Expression::Meta { key: meta::PRIORITY, dreg });
                self.bitwise(dreg, &mask.to_ne_bytes(), &[0; 4]);
            }
        }
        word + 1
    }

    fn network(&mut self, dreg: u32, offset: u32, length: u32) {
        self.out.push(Expression::Payload { dreg, base: NETWORK_HEADER, offset, length });
    }

    /// Loads a concatenation and returns the first word after it.
    fn load_all(&mut self, key: &[Field]) -> u32 {
        key.iter().fold(0, |word, field| self.load(*field, word))
    }

    fn lookup(&mut self, key: &[Field], set: SetName, dreg: Option<u32>, inverted: bool) {
        self.load_all(key);
        let set = set.name().to_owned();
        self.out.push(Expression::Lookup { set, sreg: register(0), dreg, inverted });
    }

    fn dnat(&mut self, key: &[Field], map: SetName) {
        self.lookup(key, map, Some(register(0)), false);
        self.out.push(Expression::Dnat {
            family: nat_family(self.family),
            address: register(0),
            port: Some(register(address_words(self.family))),
        });
    }

    fn dynset(&mut self, operation: u32, map: SetName, key: &[Field], data: Field, timeout: u64) {
        let word = self.load_all(key);
        self.load(data, word);
        self.out.push(Expression::Dynset {
            set: map.name().to_owned(),
            operation,
            key: register(0),
            data: register(word),
            timeout,
        });
    }

    fn address_in(&mut self, field: Field, net: IpNet, negated: bool) {
        let offset = address_offset(self.family, field);
        let address = match net.network() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let comparison = equality(negated);
        let whole_bytes = usize::from(net.prefix_len() / 8);
        // Whole bytes need no mask: nft loads only those, and prints a masked load as arithmetic. Length 0 cannot
        // be loaded.
        if net.prefix_len().is_multiple_of(8) && whole_bytes > 0 {
            self.network(register(0), offset, u32::from(net.prefix_len() / 8));
            self.compare(comparison, address.get(..whole_bytes).unwrap_or(&address));
            return;
        }
        let mask = match net.netmask() {
            IpAddr::V4(mask) => mask.octets().to_vec(),
            IpAddr::V6(mask) => mask.octets().to_vec(),
        };
        self.network(register(0), offset, 4 * address_words(self.family));
        self.bitwise(register(0), &mask, &vec![0; mask.len()]);
        self.compare(comparison, &address);
    }

    fn input_interface(&mut self, name: &str, prefix: bool, negated: bool) {
        self.out.push(Expression::Meta { key: meta::IIFNAME, dreg: register(0) });
        let mut value = name.as_bytes().to_vec();
        // Names are at most 15 bytes and a NUL in the kernel: without room for the NUL nothing ever matches, which is
        // what a longer name should do.
        value.truncate(IFNAMSIZ);
        if !prefix {
            value.resize(IFNAMSIZ, 0);
        }
        self.compare(equality(negated), &value);
    }

    fn fib_local(&mut self, field: Field) {
        let flags = if field == Field::Daddr { FIB_DADDR } else { FIB_SADDR };
        self.out.push(Expression::Fib { dreg: register(0), result: FIB_ADDRESS_TYPE, flags });
        self.compare(Comparison::Equal, &RTN_LOCAL.to_ne_bytes());
    }

    fn ct(&mut self, key: u32, bit: u32, negated: bool) {
        self.out.push(Expression::Ct { key, dreg: register(0) });
        self.bitwise(register(0), &bit.to_ne_bytes(), &[0; 4]);
        let comparison = if negated { Comparison::Equal } else { Comparison::NotEqual };
        self.compare(comparison, &[0; 4]);
    }

    fn has_bits(&mut self, key: u32, mask: u32) {
        self.out.push(Expression::Meta { key, dreg: register(0) });
        self.any_bit(mask);
    }

    fn any_bit(&mut self, mask: u32) {
        self.bitwise(register(0), &mask.to_ne_bytes(), &[0; 4]);
        self.compare(Comparison::NotEqual, &[0; 4]);
    }

    /// `meta KEY set meta KEY & mask ^ xor`
    fn set_bits(&mut self, key: u32, mask: u32, xor: u32) {
        self.out.push(Expression::Meta { key, dreg: register(0) });
        self.bitwise(register(0), &mask.to_ne_bytes(), &xor.to_ne_bytes());
        self.set(key);
    }

    fn set(&mut self, key: u32) {
        self.out.push(Expression::MetaSet { key, sreg: register(0) });
    }

    fn bitwise(&mut self, register: u32, mask: &[u8], xor: &[u8]) {
        let (mask, xor) = (mask.to_vec(), xor.to_vec());
        self.out.push(Expression::Bitwise { sreg: register, dreg: register, mask, xor });
    }

    fn compare(&mut self, comparison: Comparison, value: &[u8]) {
        self.out.push(Expression::Compare { sreg: register(0), comparison, value: value.to_vec() });
    }

    fn reject(&mut self) {
        let code = match self.family {
            Family::V4 => ICMP_PORT,
            Family::V6 => ICMPV6_PORT,
        };
        self.out.push(Expression::Reject { kind: ICMP_UNREACHABLE, code });
    }

    fn verdict(&mut self, code: u32, chain: Option<Chain>) {
        let chain = chain.map(|it| it.to_string());
        self.out.push(Expression::Verdict { code, chain });
    }
}

fn equality(negated: bool) -> Comparison {
    if negated { Comparison::NotEqual } else { Comparison::Equal }
}
