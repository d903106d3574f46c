//! Rules in nft's grammar.

use super::row::range;
use crate::model::Family;
use crate::nft::schema::{Field, Rule, Statement};

pub(super) fn rule(family: Family, rule: &Rule) -> String {
    let statements: Vec<String> = rule.0.iter().map(|it| statement(family, it)).collect();
    statements.join(" ")
}

/// `ip` or `ip6`.
pub(crate) fn family_word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// A concatenation, or the one field.
pub(super) fn fields(family: Family, fields: &[Field]) -> String {
    let words: Vec<String> = fields.iter().map(|it| field(family, *it)).collect();
    words.join(" . ")
}

/// As `fields`, by nft's names of their types.
pub(super) fn types(family: Family, fields: &[Field]) -> String {
    let words: Vec<&str> = fields.iter().map(|it| type_word(family, *it)).collect();
    words.join(" . ")
}

fn type_word(family: Family, field: Field) -> &'static str {
    match (field, family) {
        (Field::Saddr | Field::Daddr, Family::V4) => "ipv4_addr",
        (Field::Saddr | Field::Daddr, Family::V6) => "ipv6_addr",
        (Field::L4Proto, _) => "inet_proto",
        (Field::Dport, _) => "inet_service",
        (Field::Random(_), _) => "integer",
        (Field::Priority | Field::PriorityMasked(_), _) => "classid",
    }
}

fn field(family: Family, field: Field) -> String {
    let ip = family_word(family);
    match field {
        Field::Saddr => format!("{ip} saddr"),
        Field::Daddr => format!("{ip} daddr"),
        Field::L4Proto => "meta l4proto".to_owned(),
        Field::Dport => "th dport".to_owned(),
        Field::Random(modulus) => format!("numgen random mod {modulus}"),
        Field::Priority => "meta priority".to_owned(),
        Field::PriorityMasked(mask) => format!("meta priority & {mask:#x}"),
    }
}

fn statement(family: Family, statement: &Statement) -> String {
    let ip = family_word(family);
    let not = |negated: bool| if negated { "!= " } else { "" };
    match statement {
        Statement::CtStateNew => "ct state new".to_owned(),
        Statement::CtStatusDnat { negated: false } => "ct status dnat".to_owned(),
        Statement::CtStatusDnat { negated: true } => "ct status ! dnat".to_owned(),
        Statement::AddressIn { field: it, net, negated } => {
            format!("{} {}{}", field(family, *it), not(*negated), range(net))
        }
        Statement::InputInterface { name, prefix, negated } => {
            let star = if *prefix { "*" } else { "" };
            format!("iifname {}\"{name}{star}\"", not(*negated))
        }
        Statement::FibLocal { field: Field::Saddr } => "fib saddr type local".to_owned(),
        Statement::FibLocal { field: _ } => "fib daddr type local".to_owned(),
        Statement::InSet { key, set, negated } => {
            format!("{} {}@{}", fields(family, key), not(*negated), set.name())
        }
        Statement::Vmap { key, map } => format!("{} vmap @{}", fields(family, key), map.name()),
        Statement::L4Proto(protocol) => format!("meta l4proto {protocol}"),
        Statement::Dnat { key, map } => {
            format!("dnat {ip} to {} map @{}", fields(family, key), map.name())
        }
        Statement::MarkOr(mark) => format!("meta mark set meta mark | {mark:#x}"),
        Statement::MarkIsSet(mark) => format!("meta mark & {mark:#x} != 0"),
        Statement::MarkXor(mark) => format!("meta mark set meta mark ^ {mark:#x}"),
        Statement::PrioritySetFromMap { key, map } => {
            format!("meta priority set {} map @{}", fields(family, key), map.name())
        }
        Statement::PriorityMask(mask) => format!("meta priority set meta priority & {mask:#x}"),
        Statement::PriorityReset => "meta priority set 0".to_owned(),
        Statement::PriorityHas(mask) => format!("meta priority & {mask:#x} != 0"),
        Statement::PriorityAtLeast(value) => format!("meta priority >= {value:#x}"),
        Statement::Update { map, key, timeout, data } => {
            let (key, data) = (fields(family, key), field(family, *data));
            format!("update @{} {{ {key} timeout {timeout}s : {data} }}", map.name())
        }
        Statement::Forget { map, key, data } => {
            let (key, data) = (fields(family, key), field(family, *data));
            format!("delete @{} {{ {key} : {data} }}", map.name())
        }
        Statement::Masquerade => "masquerade fully-random".to_owned(),
        Statement::Reject => "reject".to_owned(),
        Statement::Drop => "drop".to_owned(),
        Statement::Jump(chain) => format!("jump {chain}"),
        Statement::Goto(chain) => format!("goto {chain}"),
    }
}
