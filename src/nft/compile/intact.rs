//! Whether the tables are still as they were left, as far as that can be told without their rules and rows.

use std::collections::BTreeMap;

use super::Compiler;
use crate::model::Family;
use crate::nft::schema::{Chain, SetName, Value};
use crate::nft::shape::{TableShape, led_to, uses_by_rules};
use crate::nft::skeleton;

/// How many rows lead to each chain.
#[derive(Debug, Default)]
pub(super) struct Leads(BTreeMap<(Family, Chain), u32>);

impl Leads {
    /// A row has come (1) or gone (-1).
    pub(super) fn count(&mut self, family: Family, value: &Value, by: i32) {
        let Some(chain) = led_to(value) else { return };
        let leads = self.0.entry((family, chain)).or_default();
        *leads = leads.saturating_add_signed(by);
    }

    fn get(&self, family: Family, chain: Chain) -> u32 {
        self.0.get(&(family, chain)).copied().unwrap_or(0)
    }
}

impl Compiler {
    /// What somebody else has done to a table since it was read or written last, in words; the first thing that is found.
    ///
    /// It sees sets and chains that are gone, new or others, and rules and rows by their numbers: rules and rows of verdict
    /// maps on every kernel, rows of all sets where the kernel counts elements. It does not see one rule or row in the place
    /// of another one, and on older kernels no row of a set or of a map of endpoints.
    pub fn damage(&self, shapes: &BTreeMap<Family, TableShape>) -> Option<String> {
        self.tables.iter().filter(|(_, table)| !table.rebuild).find_map(|(family, table)| {
            let told = match shapes.get(family) {
                None if table.exists() => "the table is gone".to_owned(),
                None => return None,
                Some(shape) => table
                    .damage(shape)
                    .or_else(|| self.lost_rows(*family, shape))
                    .or_else(|| self.lost_verdicts(*family, shape))?,
            };
            Some(format!("{family:?}: {told}"))
        })
    }

    fn lost_rows(&self, family: Family, shape: &TableShape) -> Option<String> {
        shape.elements.iter().filter(|(set, _)| counts_rows(**set)).find_map(|(set, found)| {
            let left = self.counts.get(family, *set);
            let told = || format!("{} has {found} elements, not {left}", set.name());
            (*found != left).then(told)
        })
    }

    fn lost_verdicts(&self, family: Family, shape: &TableShape) -> Option<String> {
        let by_rules = uses_by_rules(&self.program, family, shape.uses.keys());
        shape.uses.iter().find_map(|(chain, found)| {
            let rules = by_rules.get(chain).copied().unwrap_or(0);
            let left = rules.saturating_add(self.leads.get(family, *chain));
            let told = || format!("chain {chain} is used {found} times, not {left}");
            (*found != left).then(told)
        })
    }
}

/// Packets write some sets, and how kernels count the bounds of ranges is their own affair.
fn counts_rows(set: SetName) -> bool {
    let spec = skeleton::spec(set);
    let is_ranges = spec.interval && spec.key.len() == 1;
    !spec.dynamic && !is_ranges
}
