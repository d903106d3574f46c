//! A table of iptables-legacy as bytes: what is in it, and the same without some of it.
//!
//! A table is a list of entries (`struct ipt_entry`, `struct ip6t_entry`), chain after chain. Jumps, and where the hooks
//! enter, are offsets in that list: whatever is taken out moves them.

use std::collections::BTreeMap;
use std::ops::Range;

use super::request::{Info, Rewritten, number, put, short};
use crate::leftovers::{Chains, Removal, Rule};
use crate::model::Family;
use crate::nft::codec::wire::string;

/// The hooks in the order of their numbers.
const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// Length of `struct xt_entry_match` and `struct xt_entry_target` without their contents: length, name, revision.
const EXTENSION: usize = 32;

/// Where an entry has `target_offset`, and its whole length.
const fn target_offset(family: Family) -> usize {
    match family {
        Family::V4 => 88,
        Family::V6 => 140,
    }
}

/// Where an entry's matches begin.
const fn matches(family: Family) -> usize {
    match family {
        Family::V4 => 112,
        Family::V6 => 168,
    }
}

/// A table that was understood.
#[derive(Clone, Debug)]
pub(super) struct Table {
    family: Family,
    info: Info,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    range: Range<usize>,
    /// The chain it is part of; none for the end of the table.
    chain: String,
    /// Names a chain of the user, and is no rule.
    is_head: bool,
    jump: Option<Jump>,
}

/// A verdict that is an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Jump {
    /// Where the verdict is in the table.
    at: usize,
    to: usize,
}

impl Table {
    pub(super) fn parse(
        family: Family,
        info: &Info,
        bytes: Vec<u8>,
    ) -> Result<Table, &'static str> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut offset = 0;
        let mut chain = String::new();
        while offset < bytes.len() {
            let at = offset + target_offset(family);
            let (target, next) = (short(&bytes, at), short(&bytes, at + 2));
            let (Some(target), Some(next)) = (target, next) else {
                return Err("an entry is cut off");
            };
            let range = offset..offset + next;
            let head = offset + target..range.end;
            if target < matches(family) || next < target + EXTENSION || range.end > bytes.len() {
                return Err("an entry has an impossible length");
            }
            let name = bytes.get(head.start + 2..head.start + EXTENSION - 1).and_then(string);
            let contents = bytes.get(head.start + EXTENSION..range.end).unwrap_or_default();
            let is_head = name == Some("ERROR");
            if is_head {
                chain = string(contents).unwrap_or_default().to_owned();
                if range.end == bytes.len() {
                    chain.clear();
                }
            } else if let Some((hook, ..)) = info.hooks().find(|(_, first, _)| *first == offset) {
                chain = HOOKS.get(hook).copied().unwrap_or_default().to_owned();
            }
            let jump = (name == Some("")).then(|| jump(contents, head.start + EXTENSION)).flatten();
            offset = range.end;
            entries.push(Entry { range, chain: chain.clone(), is_head, jump });
        }
        if entries.len() == info.count {
            Ok(Table { family, info: info.clone(), bytes, entries })
        } else {
            Err("the number of entries is another one")
        }
    }

    /// Chains and rules; a rule's handle is its place in the table.
    pub(super) fn chains(&self) -> Chains {
        let mut found = Chains::default();
        let first_rules: BTreeMap<usize, &str> = self
            .entries
            .iter()
            .filter(|it| it.is_head && !it.chain.is_empty())
            .map(|it| (it.range.end, &*it.chain))
            .collect();
        for (handle, entry) in (0..).zip(&self.entries).filter(|(_, it)| !it.chain.is_empty()) {
            if entry.is_head {
                found.chains.insert(entry.chain.clone(), false);
                continue;
            }
            found.chains.entry(entry.chain.clone()).or_insert(true);
            let target =
                entry.jump.and_then(|it| first_rules.get(&it.to)).map(|it| (*it).to_owned());
            let (chain, comment) = (entry.chain.clone(), self.comment(entry));
            found.rules.push(Rule { chain, handle, target, comment });
        }
        found
    }

    fn comment(&self, entry: &Entry) -> Option<String> {
        let bytes = self.bytes.get(entry.range.clone())?;
        let end = short(bytes, target_offset(self.family))?;
        let mut at = matches(self.family);
        while at < end {
            let length = short(bytes, at).filter(|it| *it >= EXTENSION)?;
            if string(bytes.get(at + 2..at + EXTENSION - 1)?) == Some("comment") {
                return string(bytes.get(at + EXTENSION..at + length)?).map(str::to_owned);
            }
            at += length;
        }
        None
    }

    /// The table without what is to be removed.
    pub(super) fn without(&self, removal: &Removal) -> Rewritten {
        let goes = |index: usize, entry: &Entry| {
            removal.chains.contains(&entry.chain)
                || removal.rules.iter().any(|(chain, handle)| {
                    *chain == entry.chain && usize::try_from(*handle) == Ok(index)
                })
        };
        let mut new = Rewritten { info: self.info.clone(), bytes: Vec::new(), kept: Vec::new() };
        // Where each entry, or if that goes the next one that stays, is now.
        let mut moved = BTreeMap::new();
        for (index, entry) in self.entries.iter().enumerate() {
            moved.insert(entry.range.start, new.bytes.len());
            if !goes(index, entry) {
                new.bytes
                    .extend_from_slice(self.bytes.get(entry.range.clone()).unwrap_or_default());
                new.kept.push(index);
            }
        }
        let place = |old: usize| moved.get(&old).copied().unwrap_or_default();
        for jump in
            new.kept.iter().filter_map(|it| self.entries.get(*it)?.jump.map(|jump| (it, jump)))
        {
            let (index, jump) = jump;
            let start = self.entries.get(*index).map_or(0, |it| it.range.start);
            put(&mut new.bytes, place(start) + jump.at - start, place(jump.to));
        }
        for (hook, first, last) in self.info.hooks() {
            if let Some(point) = new.info.entry_points.get_mut(hook) {
                *point = place(first);
            }
            if let Some(point) = new.info.underflows.get_mut(hook) {
                *point = place(last);
            }
        }
        (new.info.count, new.info.size) = (new.kept.len(), new.bytes.len());
        new
    }
}

/// The verdict of a standard target, if it is no final one.
fn jump(contents: &[u8], at: usize) -> Option<Jump> {
    let verdict = number(contents, 0)?.cast_signed();
    Some(Jump { at, to: usize::try_from(verdict).ok()? })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::request::{COUNTER, COUNTERS_INFO, NAME, counter_count};
    use super::*;
    use crate::nft::codec::wire::ne32;

    const DROP: i32 = -1;
    const RETURN: i32 = -5;

    /// The chains of a table in the making: names, and of each rule the chain it jumps to and its comment.
    type Plan = Vec<(String, Vec<(Option<usize>, Option<String>)>)>;

    fn entry(family: Family, comment: Option<&str>, name: &str, contents: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; matches(family)];
        if let Some(comment) = comment {
            extension(&mut bytes, "comment", &[comment.as_bytes(), &[0; 8]].concat());
        }
        let target = bytes.len();
        extension(&mut bytes, name, contents);
        let at = target_offset(family);
        bytes[at..at + 2].copy_from_slice(&u16::try_from(target).unwrap().to_ne_bytes());
        let length = u16::try_from(bytes.len()).unwrap();
        bytes[at + 2..at + 4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    fn extension(bytes: &mut Vec<u8>, name: &str, contents: &[u8]) {
        let length = (EXTENSION + contents.len()).next_multiple_of(8);
        let start = bytes.len();
        bytes.extend_from_slice(&u16::try_from(length).unwrap().to_ne_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.resize(start + EXTENSION, 0);
        bytes.extend_from_slice(contents);
        bytes.resize(start + length, 0);
    }

    /// The first chain is PREROUTING, the others are the user's.
    fn build(family: Family, plan: &Plan) -> (Info, Vec<u8>) {
        let (mut bytes, mut count, mut starts, mut jumps) = (Vec::new(), 0, Vec::new(), Vec::new());
        let mut underflow = 0;
        for (index, (name, rules)) in plan.iter().enumerate() {
            if index > 0 {
                bytes.extend(entry(family, None, "ERROR", &[name.as_bytes(), &[0]].concat()));
                count += 1;
            }
            starts.push(bytes.len());
            for (target, comment) in rules {
                let rule = entry(family, comment.as_deref(), "", &DROP.to_ne_bytes());
                bytes.extend(rule);
                jumps.extend(target.map(|target| (bytes.len() - 8, target)));
                count += 1;
            }
            if index == 0 {
                underflow = bytes.len();
            }
            bytes.extend(entry(family, None, "", &RETURN.to_ne_bytes()));
            count += 1;
        }
        bytes.extend(entry(family, None, "ERROR", b"ERROR\0"));
        for (at, target) in jumps {
            put(&mut bytes, at, starts[target]);
        }
        let (entry_points, underflows) = ([0; 5], [underflow, 0, 0, 0, 0]);
        let size = bytes.len();
        (Info { valid_hooks: 1, entry_points, underflows, count: count + 1, size }, bytes)
    }

    /// Rules without their handles, which are places in the table, and without the last of each chain.
    fn shown(chains: &Chains) -> Vec<(String, Option<String>, Option<String>)> {
        let rules = chains.rules.iter().cloned();
        rules.map(|rule| (rule.chain, rule.target, rule.comment)).collect()
    }

    fn name(index: usize) -> String {
        if index == 0 { "PREROUTING".to_owned() } else { format!("KUBE-{index}") }
    }

    fn any_plan() -> impl Strategy<Value = Plan> {
        (2usize..7).prop_flat_map(|count| {
            // A jump to PREROUTING there is not.
            let rule = (prop::option::of(1..count), prop::option::of("[a-z ]{1,40}"));
            let rules = prop::collection::vec(rule, 0..5);
            prop::collection::vec(rules, count).prop_map(|all| {
                all.into_iter().enumerate().map(|(at, it)| (name(at), it)).collect()
            })
        })
    }

    /// A table as the kernel gave it. Its chains, and comments of rules where they jump.
    #[test]
    fn what_the_kernel_says_is_understood() {
        let bytes = include_bytes!("../../outside/iptables-legacy-nat.bin");
        let info = Info::read(bytes).unwrap();
        let table = Table::parse(Family::V4, &info, bytes[84..].to_vec()).unwrap();
        let found = table.chains();
        let built_in: Vec<&str> =
            found.chains.iter().filter(|it| *it.1).map(|it| it.0.as_str()).collect();
        assert_eq!(built_in, ["INPUT", "OUTPUT", "POSTROUTING", "PREROUTING"]);
        let of_services = |rule: &&Rule| rule.target.as_deref() == Some("KUBE-SERVICES");
        let jumps: Vec<_> = found.rules.iter().filter(of_services).collect();
        assert_eq!(jumps.iter().map(|it| &*it.chain).collect::<Vec<_>>(), ["PREROUTING", "OUTPUT"]);
        let comments =
            jumps.iter().all(|it| it.comment.as_deref() == Some("kubernetes service portals"));
        assert!(comments, "{jumps:?}");
        let bytes = include_bytes!("../../outside/ip6tables-legacy-filter.bin");
        let info = Info::read(bytes).unwrap();
        let table = Table::parse(Family::V6, &info, bytes[84..].to_vec()).unwrap();
        assert!(table.chains().rules.iter().any(|it| it.chain == "KUBE-FORWARD"));
    }

    proptest! {
        #[test]
        fn what_stays_is_as_it_was(
            v6: bool, plan in any_plan(), removed in prop::collection::btree_set(1usize..7, 0..4),
        ) {
            let family = if v6 { Family::V6 } else { Family::V4 };
            let (info, bytes) = build(family, &plan);
            let table = Table::parse(family, &info, bytes).unwrap();
            let found = table.chains();
            let chains: BTreeSet<String> = removed.into_iter().map(name).collect();
            let goes = |rule: &&Rule| rule.target.as_ref().is_some_and(|it| chains.contains(it));
            let rules = found.rules.iter().filter(goes).map(|it| (it.chain.clone(), it.handle)).collect();
            let removal = Removal { rules, chains: chains.clone(), kept: Vec::new() };
            let new = table.without(&removal);
            let read = Table::parse(family, &new.info, new.bytes.clone()).unwrap().chains();
            let mut expected = found;
            expected.chains.retain(|name, _| !chains.contains(name));
            expected.rules.retain(|rule| !goes(&rule) && !chains.contains(&rule.chain));
            prop_assert_eq!(&read.chains, &expected.chains);
            prop_assert_eq!(shown(&read), shown(&expected));
            // The hook's last entry is its policy still.
            let policy = new.bytes.get(new.info.underflows[0] + matches(family) + EXTENSION..);
            prop_assert_eq!(policy.and_then(|it| number(it, 0)), Some(RETURN.cast_unsigned()));
        }

        #[test]
        fn counters_follow_their_entries(plan in any_plan(), gone in 1usize..7) {
            let (info, bytes) = build(Family::V4, &plan);
            let table = Table::parse(Family::V4, &info, bytes).unwrap();
            let removal = Removal { chains: BTreeSet::from([name(gone)]), ..Removal::default() };
            let new = table.without(&removal);
            // Each entry has counted its place.
            let old: Vec<u8> =
                (0..info.count as u64).flat_map(|it| [it.to_ne_bytes(), [0; 8]].concat()).collect();
            let counters = new.counters("nat", &old);
            let read = counters[COUNTERS_INFO..].chunks(COUNTER).map(|it| ne32(&it[..4]).unwrap() as usize);
            prop_assert_eq!(&read.collect::<Vec<_>>(), &new.kept);
            prop_assert_eq!(number(&counters, NAME), Some(u32::try_from(new.kept.len()).unwrap()));
            prop_assert_eq!(counter_count(&new.request("nat", &info)), Some(info.count));
        }

        #[test]
        fn any_bytes_are_survived(v6: bool, bytes in prop::collection::vec(0u8..=200, 0..600), info in prop::collection::vec(any::<u8>(), 0..90)) {
            let family = if v6 { Family::V6 } else { Family::V4 };
            if let Some(info) = Info::read(&info) {
                let _ = Table::parse(family, &info, bytes);
            }
        }
    }
}
