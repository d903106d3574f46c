//! Tables and batches in nft's own syntax: what `--dry-run` prints. Equal input gives equal text.

use std::fmt::Write as _;

use super::schema::{BaseHook, Batch, Chain, ChainKind, Hook, Key, Op, SetName, TABLE, Value};
use super::skeleton;
use super::tables::{Table, Tables, family_of};
use crate::model::Family;
use row::element;
use statement::{family_word, fields, rule};

mod row;
mod statement;

/// Input for `nft -f` that replaces our tables by these, in one transaction.
pub fn ruleset(tables: &Tables) -> String {
    let mut text = String::new();
    for (family, table) in &tables.0 {
        let name = table_name(*family);
        // Adding first makes the deletion succeed when there is no such table yet.
        push(&mut text, 0, format_args!("table {name}"));
        push(&mut text, 0, format_args!("delete table {name}"));
        push(&mut text, 0, format_args!("table {name} {{"));
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
    let mut text = String::new();
    for op in &batch.0 {
        push(&mut text, 0, format_args!("{}", command(op)));
    }
    text
}

/// One operation as an nft command.
pub fn command(op: &Op) -> String {
    let family = family_of(op);
    let table = table_name(family);
    match op {
        Op::AddTable(_) => format!("add table {table}"),
        Op::DeleteTable(_) => format!("delete table {table}"),
        Op::AddSet { set, size, .. } => {
            let keyword = set_keyword(*set);
            format!(
                "add {keyword} {table} {} {{ {} }}",
                set.name(),
                definition(family, *set, *size).join("; ")
            )
        }
        // nft has no command that only resizes; adding what is there with another size does.
        Op::ResizeSet { set, size, .. } => {
            let (keyword, definition) = (set_keyword(*set), definition(family, *set, Some(*size)));
            format!("add {keyword} {table} {} {{ {} }}", set.name(), definition.join("; "))
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
        super::schema::Data::None => "set",
        super::schema::Data::Verdict | super::schema::Data::Fields(_) => "map",
    }
}

fn definition(family: Family, set: SetName, size: Option<u32>) -> Vec<String> {
    let spec = skeleton::spec(set);
    let key = fields(family, spec.key);
    let mut lines = vec![match spec.data {
        super::schema::Data::None => format!("typeof {key}"),
        super::schema::Data::Verdict => format!("typeof {key} : verdict"),
        super::schema::Data::Fields(data) => format!("typeof {key} : {}", fields(family, data)),
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
    #[test]
    fn try_it() {
        let program = skeleton::tests::program();
        let mut tables = Tables::default();
        for family in Family::ALL {
            let table = tables.0.entry(family).or_default();
            for spec in skeleton::sets() {
                table.sets.insert(spec.name, (Some(1024), Default::default()));
            }
            for spec in skeleton::chains(&program, family)
                .into_iter()
                .chain((family == Family::V4).then(|| skeleton::remember(10800)))
            {
                table.chains.insert(spec.chain, spec.rules);
            }
        }
        std::fs::write("/tmp/nft-try.nft", ruleset(&tables)).unwrap();
    }
}
