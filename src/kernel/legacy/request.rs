//! What is told to and by the kernel about a table of iptables-legacy as a whole: `struct ipt_getinfo`,
//! `struct ipt_get_entries`, `struct ipt_replace` and `struct xt_counters_info`.

use crate::nft::codec::wire::{ne16, ne32};

/// Length of a table's name, with which every request begins.
pub(super) const NAME: usize = 32;

/// Length of `struct ipt_getinfo`: name, valid hooks, entry points, underflows, number and size of entries.
const INFO: usize = NAME + 4 + 20 + 20 + 4 + 4;

/// Where entries begin in `struct ipt_get_entries`.
pub(super) const ENTRIES: usize = 40;

/// Where `num_counters` and `counters` are in `struct ipt_replace`, and where its entries begin.
const COUNTERS: usize = 84;
pub(super) const POINTER: usize = 88;
const REPLACE: usize = 96;
const _: () = assert!(POINTER + size_of::<*mut u8>() == REPLACE, "a pointer has 64 bits");

/// Length of `struct xt_counters`, and where they begin in `struct xt_counters_info`.
pub(super) const COUNTER: usize = 16;
pub(super) const COUNTERS_INFO: usize = 40;

/// The number of counters that a request to replace a table asks for.
pub(super) fn counter_count(request: &[u8]) -> Option<usize> {
    usize::try_from(number(request, COUNTERS)?).ok()
}

pub(super) fn info_request(table: &str) -> Vec<u8> {
    named(table, INFO)
}

pub(super) fn entries_request(table: &str, info: &Info) -> Vec<u8> {
    let mut request = named(table, ENTRIES + info.size);
    put(&mut request, NAME, info.size);
    request
}

/// Zeroes that begin with a table's name.
pub(super) fn named(table: &str, length: usize) -> Vec<u8> {
    let mut request = table.as_bytes().to_vec();
    request.truncate(NAME - 1);
    request.resize(length, 0);
    request
}

pub(super) fn put(bytes: &mut [u8], at: usize, value: usize) {
    let value = u32::try_from(value).expect("a table is below 4 GiB");
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&value.to_ne_bytes());
    }
}

pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    ne32(bytes.get(at..at.checked_add(4)?)?)
}

pub(super) fn short(bytes: &[u8], at: usize) -> Option<usize> {
    ne16(bytes.get(at..at.checked_add(2)?)?).map(usize::from)
}

/// What the kernel says about a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Info {
    /// Bit by bit, the hooks it has.
    pub(super) valid_hooks: u32,
    /// Offsets of the first and the last entry of each built-in chain.
    pub(super) entry_points: [usize; 5],
    pub(super) underflows: [usize; 5],
    pub(super) count: usize,
    pub(super) size: usize,
}

impl Info {
    pub(super) fn read(bytes: &[u8]) -> Option<Info> {
        let at = |index: usize| usize::try_from(number(bytes, NAME + 4 * index)?).ok();
        let five = |from: usize| {
            Some([at(from)?, at(from + 1)?, at(from + 2)?, at(from + 3)?, at(from + 4)?])
        };
        Some(Info {
            valid_hooks: number(bytes, NAME)?,
            entry_points: five(1)?,
            underflows: five(6)?,
            count: at(11)?,
            size: at(12)?,
        })
    }

    pub(super) fn counters_length(&self) -> usize {
        self.count.saturating_mul(COUNTER)
    }

    /// The valid hooks with their first and last entries' offsets.
    pub(super) fn hooks(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let offsets = self.entry_points.iter().zip(&self.underflows);
        let all = offsets.enumerate().map(|(hook, (first, last))| (hook, *first, *last));
        all.filter(|(hook, ..)| self.valid_hooks & 1 << hook != 0)
    }
}

/// A table to be put in the place of another one.
#[derive(Clone, Debug)]
pub(super) struct Rewritten {
    pub(super) info: Info,
    pub(super) bytes: Vec<u8>,
    /// Places in the old table of the entries that are in this one.
    pub(super) kept: Vec<usize>,
}

impl Rewritten {
    /// A `struct ipt_replace`, without the pointer to the counters.
    pub(super) fn request(&self, table: &str, old: &Info) -> Vec<u8> {
        let mut request = named(table, REPLACE);
        let info = &self.info;
        let valid_hooks = usize::try_from(info.valid_hooks).unwrap_or_default();
        let head = [valid_hooks, info.count, info.size];
        let numbers = head.iter().chain(&info.entry_points).chain(&info.underflows);
        for (index, value) in numbers.enumerate() {
            put(&mut request, NAME + 4 * index, *value);
        }
        put(&mut request, COUNTERS, old.count);
        request.extend_from_slice(&self.bytes);
        request
    }

    /// A `struct xt_counters_info` with what the old table's entries had counted.
    pub(super) fn counters(&self, table: &str, old: &[u8]) -> Vec<u8> {
        let mut request = named(table, COUNTERS_INFO);
        put(&mut request, NAME, self.kept.len());
        for index in &self.kept {
            let at = index.saturating_mul(COUNTER);
            let counter = old.get(at..at.saturating_add(COUNTER));
            request.extend_from_slice(counter.unwrap_or(&[0; COUNTER]));
        }
        request
    }
}
