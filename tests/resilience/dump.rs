//! What the kernel holds, as `nft` tells it, without what depends on history.
//!
//! Which slot an endpoint has, how many slots there are and how large a set is depend on what came before; what
//! matters is which endpoints a frontend has, that its slots have no gaps, and that they fit.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support::namespace::Namespace;
use crate::support::patience::{LONG, poll};

/// Everything in our tables, one line for each row, chain, rule and set.
pub(super) fn dump(host: &Namespace) -> Vec<String> {
    // nft prints nothing at all when somebody else changes tables while it reads them.
    let read = || {
        let text = host.command("nft", &["-j", "list", "ruleset"], "");
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    };
    let ruleset: Value = poll(LONG, read).unwrap();
    let mut lines = Vec::new();
    for object in ruleset["nftables"].as_array().unwrap() {
        let (kind, object) = object.as_object().unwrap().iter().next().unwrap();
        let name = if kind == "table" { &object["name"] } else { &object["table"] };
        if name == "kube-ferry" {
            describe(kind, object.clone(), &mut lines);
        }
    }
    lines.sort_unstable();
    lines
}

/// The differences of two dumps, as an error.
pub(super) fn same(expected: &[String], found: &[String]) -> Result<(), String> {
    let only = |these: &[String], others: &[String]| -> Vec<String> {
        let others: BTreeSet<&String> = others.iter().collect();
        these.iter().filter(|it| !others.contains(it)).take(10).cloned().collect()
    };
    let (expected, found) = (&comparable(expected, found), &comparable(found, expected));
    if expected == found {
        return Ok(());
    }
    let (missing, surplus) = (only(expected, found), only(found, expected));
    Err(format!("missing: {missing:#?}\nsurplus: {surplus:#?}"))
}

/// The lines, without chains that `others` need not have: those of a number of slots are there since it was first used.
fn comparable(lines: &[String], others: &[String]) -> Vec<String> {
    let used: BTreeSet<_> = others.iter().filter_map(|it| slots(it)).collect();
    lines.iter().filter(|it| slots(it).is_none_or(|it| used.contains(&it))).cloned().collect()
}

/// Family and number of slots, if the line is about a chain that has one, or a rule of it.
fn slots(line: &str) -> Option<(String, String)> {
    let (kind, object) = line.split_once(' ')?;
    let name = match kind {
        "chain" => "name",
        "rule" => "chain",
        _ => return None,
    };
    let object: Value = serde_json::from_str(object).ok()?;
    let (stem, number) = object[name].as_str()?.rsplit_once('-')?;
    let is_one = stem != "remember" && number.parse::<u16>().is_ok();
    is_one.then(|| (object["family"].to_string(), number.to_owned()))
}

fn describe(kind: &str, mut object: Value, lines: &mut Vec<String>) {
    let fields = object.as_object_mut().unwrap();
    for history in ["handle", "size", "flags"] {
        // The flags of a table say who owns it, those of a set what it is for.
        if history != "flags" || kind == "table" {
            fields.remove(history);
        }
    }
    let rows = fields.remove("elem");
    // Rules have no name.
    let name = fields.get("name").or_else(|| fields.get("chain")).unwrap_or(&Value::Null);
    let place = format!("{} {name}", fields["family"]);
    let rows = rows.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
    if !place.contains("affinity\"") {
        lines.extend(rows.iter().map(|row| format!("{place} {}", canonical_row(&place, row))));
        check_slots(&place, &rows);
    }
    lines.push(format!("{kind} {object}"));
}

/// Without the slot, and without the number of slots in verdicts.
fn canonical_row(place: &str, row: &Value) -> String {
    let mut row = row.clone();
    if has_slots(place)
        && let Some(key) = row.pointer_mut("/0/concat").and_then(Value::as_array_mut)
    {
        key.pop();
    }
    if let Some(target) = row.pointer_mut("/1/goto/target") {
        let text = target.as_str().unwrap().trim_end_matches(|it: char| it.is_ascii_digit());
        *target = text.to_owned().into();
    }
    row.to_string()
}

fn has_slots(place: &str) -> bool {
    place.ends_with("endpoints\"") && !place.contains("no-") && !place.contains("sticky")
}

/// The slots of each frontend are 0, 1, 2 and so on.
fn check_slots(place: &str, rows: &[Value]) {
    if !has_slots(place) {
        return;
    }
    let mut slots: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for row in rows {
        let mut key = row[0]["concat"].as_array().unwrap().clone();
        let slot = key.pop().unwrap().as_u64().unwrap();
        slots.entry(format!("{key:?}")).or_default().insert(slot);
    }
    for (frontend, slots) in slots {
        let count = u64::try_from(slots.len()).unwrap();
        assert!(slots.iter().copied().eq(0..count), "{place} {frontend} has slots {slots:?}");
    }
}
