//! Tables and batches in nft's own syntax: what `--dry-run` prints. Equal input gives equal text.

use std::fmt::Write as _;

use super::schema::{
    BaseHook, Batch, Chain, ChainKind, Data, Field, Hook, Key, Op, SetName, TABLE, Value,
};
use super::skeleton;
use super::tables::{Table, Tables, family_of};
use crate::model::Family;
use row::element;
use statement::{fields, rule, types};

mod row;
mod statement;

pub(crate) use statement::family_word;

/// Input for `nft -f` that replaces our tables by these, in one transaction.
pub fn ruleset(tables: &Tables) -> String {
    let mut text = String::new();
    for (family, table) in &tables.0 {
        let name = table_name(*family);
        // Adding first makes the deletion succeed when there is no such table yet.
        push(&mut text, 0, format_args!("table {name}"));
        push(&mut text, 0, format_args!("delete table {name}"));
        push(&mut text, 0, format_args!("table {name} {{"));
        push(&mut text, 1, format_args!("comment \"{}\"", skeleton::TABLE_COMMENT));
        for (set, (size, rows)) in &table.sets {
            push_set(&mut text, *family, *set, *size, rows);
        }
        push_chains(&mut text, *family, table);
        push(&mut text, 0, format_args!("}}"));
    }
    text
}

/// A batch as nft commands, one a line, in the batch's order.
pub fn batch(batch: &Batch) -> String {
    let before = batch.before();
    if before.is_empty() {
        return commands(&batch.0);
    }
    let rest: Vec<Op> = batch.0.iter().filter(|it| !before.0.contains(it)).cloned().collect();
    format!(
        "# First transaction: sets are made larger, which counts from the next one on.\n{}\
         # Second transaction: everything else.\n{}",
        commands(&before.0),
        commands(&rest)
    )
}

fn commands(ops: &[Op]) -> String {
    let mut text = String::new();
    for op in ops {
        push(&mut text, 0, format_args!("{}", command(op)));
    }
    text
}

/// One operation as an nft command.
pub fn command(op: &Op) -> String {
    let family = family_of(op);
    let table = table_name(family);
    match op {
        Op::AddTable(_) => {
            format!("add table {table} {{ comment \"{}\"; }}", skeleton::TABLE_COMMENT)
        }
        Op::DeleteTable(_) => format!("delete table {table}"),
        Op::AddSet { set, size, .. } => {
            let keyword = set_keyword(*set);
            format!(
                "add {keyword} {table} {} {{ {} }}",
                set.name(),
                definition(family, *set, *size).join("; ") + ";"
            )
        }
        // nft has no command that only resizes; adding what is there with another size does.
        Op::ResizeSet { set, size, .. } => {
            let (keyword, definition) = (set_keyword(*set), definition(family, *set, Some(*size)));
            format!("add {keyword} {table} {} {{ {} }}", set.name(), definition.join("; ") + ";")
        }
        Op::AddChain { chain, .. } => {
            format!("add chain {table} {chain} {{ {} }}", chain_definition(*chain).join(" "))
        }
        Op::FlushChain { chain, .. } => format!("flush chain {table} {chain}"),
        Op::DeleteChain { chain, .. } => format!("delete chain {table} {chain}"),
        Op::AddRule { chain, rule: it, .. } => {
            format!("add rule {table} {chain} {}", rule(family, it))
        }
        Op::AddElement { set, key, value, .. } => {
            format!("add element {table} {} {{ {} }}", set.name(), element(key, value))
        }
        Op::DeleteElement { set, key, .. } => {
            format!("delete element {table} {} {{ {} }}", set.name(), element(key, &Value::None))
        }
    }
}

fn table_name(family: Family) -> String {
    format!("{} {TABLE}", family_word(family))
}

fn push(text: &mut String, depth: usize, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{:1$}{line}", "", depth * 8);
}

fn push_set<'a>(
    text: &mut String,
    family: Family,
    set: SetName,
    size: Option<u32>,
    rows: impl IntoIterator<Item = (&'a Key, &'a Value)>,
) {
    push(text, 1, format_args!("{} {} {{", set_keyword(set), set.name()));
    for line in definition(family, set, size) {
        push(text, 2, format_args!("{line}"));
    }
    let mut rows = rows.into_iter().peekable();
    if rows.peek().is_some() {
        push(text, 2, format_args!("elements = {{"));
        for (key, value) in rows {
            push(text, 3, format_args!("{},", element(key, value)));
        }
        push(text, 2, format_args!("}}"));
    }
    push(text, 1, format_args!("}}"));
}

fn set_keyword(set: SetName) -> &'static str {
    match skeleton::spec(set).data {
        Data::None => "set",
        Data::Verdict | Data::Fields(_) => "map",
    }
}

fn definition(family: Family, set: SetName, size: Option<u32>) -> Vec<String> {
    let spec = skeleton::spec(set);
    let (word, list): (_, fn(Family, &[Field]) -> String) =
        if spec.by_type { ("type", types) } else { ("typeof", fields) };
    let key = list(family, spec.key);
    let mut lines = vec![match spec.data {
        Data::None => format!("{word} {key}"),
        Data::Verdict => format!("{word} {key} : verdict"),
        Data::Fields(data) => format!("{word} {key} : {}", list(family, data)),
    }];
    lines.extend(size.map(|size| format!("size {size}")));
    if spec.interval {
        lines.push("flags interval".to_owned());
    }
    if spec.dynamic {
        lines.push("flags dynamic,timeout".to_owned());
    }
    lines.push(format!("comment \"{}\"", spec.comment));
    lines
}

/// Chains in the skeleton's order would need the program; nft resolves forward references within one input.
fn push_chains(text: &mut String, family: Family, table: &Table) {
    for (chain, rules) in &table.chains {
        push(text, 1, format_args!("chain {chain} {{"));
        for line in chain_definition(*chain) {
            push(text, 2, format_args!("{line}"));
        }
        for it in rules {
            push(text, 2, format_args!("{}", rule(family, it)));
        }
        push(text, 1, format_args!("}}"));
    }
}

fn chain_definition(chain: Chain) -> Vec<String> {
    let comment = format!("comment \"{}\";", skeleton::comment(chain));
    let hook = skeleton::base_hook(chain).map(|BaseHook { kind, hook, priority }| {
        let (kind, hook) = (kind_word(kind), hook_word(hook));
        format!("type {kind} hook {hook} priority {priority}; policy accept;")
    });
    [Some(comment), hook].into_iter().flatten().collect()
}

fn kind_word(kind: ChainKind) -> &'static str {
    match kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
    }
}

fn hook_word(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "prerouting",
        Hook::Input => "input",
        Hook::Forward => "forward",
        Hook::Output => "output",
        Hook::Postrouting => "postrouting",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::schema::{AddressPort, Handle, Verdict};
    use crate::nft::skeleton::tests::program;

    #[test]
    fn rows_are_read_by_people() {
        let at = |address: &str| AddressPort {
            address: address.parse().unwrap(),
            protocol: crate::model::Protocol::Tcp,
            port: std::num::NonZeroU16::new(80).unwrap(),
        };
        let endpoint = |address: &str| {
            let port = std::num::NonZeroU16::new(8080).unwrap();
            Value::Endpoint(address.parse().unwrap(), port)
        };
        let slot = |address: &str| Key::FrontendSlot(at(address), 3);
        check(
            row(Family::V4, SetName::Endpoints, slot("10.96.0.1"), endpoint("10.1.2.3")),
            "add element ip kube-ferry endpoints { 10.96.0.1 . tcp . 80 . 3 : 10.1.2.3 . 8080 }",
        );
        check(
            row(Family::V6, SetName::Endpoints, slot("fd00::1"), endpoint("fd00::2")),
            "add element ip6 kube-ferry endpoints { fd00::1 . tcp . 80 . 3 : fd00::2 . 8080 }",
        );
        let group = Key::Group(Handle::new(0x12, 0));
        let remember = Value::Verdict(Verdict::Jump(Chain::Remember(60)));
        check(
            row(Family::V4, SetName::AffinityTimeouts, group, remember),
            "add element ip kube-ferry affinity-timeouts { f001:2000 : jump remember-60 }",
        );
        let range = Key::FrontendSource(at("192.0.2.1"), "10.0.0.0/8".parse().unwrap());
        check(
            row(Family::V4, SetName::SourceRanges, range, Value::None),
            "add element ip kube-ferry source-ranges { 192.0.2.1 . tcp . 80 . 10.0.0.0/8 }",
        );
    }

    #[test]
    fn definitions_fit_on_a_line() {
        check(
            Op::AddSet { family: Family::V4, set: SetName::ServiceCidrs, size: Some(1024) },
            "add set ip kube-ferry service-cidrs { type ipv4_addr; size 1024; flags interval; \
             comment \"Ranges that cluster IPs are allocated from\"; }",
        );
        check(
            Op::AddChain { family: Family::V6, chain: Chain::NatPostrouting },
            "add chain ip6 kube-ferry nat-postrouting { comment \"Source addresses\"; \
             type nat hook postrouting priority 100; policy accept; }",
        );
    }

    #[test]
    fn a_ruleset_replaces_what_was_there() {
        let mut tables = Tables::default();
        tables.0.entry(Family::V6).or_default();
        let name = "table ip6 kube-ferry";
        let comment = skeleton::TABLE_COMMENT;
        assert_eq!(
            ruleset(&tables),
            format!("{name}\ndelete {name}\n{name} {{\n        comment \"{comment}\"\n}}\n")
        );
    }

    /// Comments must not end the string they are in, and the kernel keeps 128 characters of them.
    #[test]
    fn comments_can_be_quoted() {
        let sets = SetName::ALL.into_iter().map(|it| skeleton::spec(it).comment);
        let chains = skeleton::chains(&program(), Family::V4).into_iter().map(|it| it.comment);
        for comment in sets.chain(chains).chain([skeleton::TABLE_COMMENT]) {
            assert!(comment.len() < 128 && !comment.contains('"'), "{comment}");
        }
    }

    fn row(family: Family, set: SetName, key: Key, value: Value) -> Op {
        Op::AddElement { family, set, key, value, owner: None }
    }

    #[track_caller]
    fn check(op: Op, text: &str) {
        assert_eq!(batch(&Batch(vec![op])), format!("{text}\n"));
    }
}
