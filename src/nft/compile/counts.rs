//! Numbers of rows.

use std::collections::BTreeMap;

use super::plan::Planner;
use super::programmed::Programmed;
use super::rows::rows;
use crate::forward::ServiceForwarding;
use crate::model::Family;
use crate::nft::schema::{Owner, SetName};

/// How many rows each set has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowCounts(BTreeMap<(Family, SetName), u32>);

impl RowCounts {
    pub fn get(&self, family: Family, set: SetName) -> u32 {
        self.0.get(&(family, set)).copied().unwrap_or(0)
    }

    /// How many of a set's elements that many rows take: an interval set without concatenation holds both ends of a
    /// range, and one more at the start.
    pub fn elements(set: SetName, rows: u32) -> u32 {
        if set == SetName::ServiceCidrs { rows.saturating_mul(2).saturating_add(1) } else { rows }
    }

    /// Sets with rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Family, SetName, u32)> + '_ {
        self.0.iter().map(|((family, set), rows)| (*family, *set, *rows))
    }

    /// Adds the rows that a Service will have, in IPVS mode or not. Rows that it shares with others count for each.
    pub fn expect(&mut self, service: &ServiceForwarding, ipvs: bool) {
        let mut groups = Family::ALL.map(|family| (family, Default::default())).into();
        let (owner, unclaimed, limits) = (Owner(0), BTreeMap::new(), &mut Vec::new());
        let mut planner = Planner { owner, unclaimed: &unclaimed, groups: &mut groups, limits };
        for (id, _) in rows(&planner.service(service, &Programmed::default()), ipvs) {
            self.grow(id.family, id.set, 1);
        }
    }

    /// How many rows the set has when there are so many more.
    pub(super) fn after(&self, family: Family, set: SetName, growth: i64) -> u32 {
        let count = i64::from(self.get(family, set)).saturating_add(growth).max(0);
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    pub(super) fn grow(&mut self, family: Family, set: SetName, by: i64) {
        let count = self.after(family, set, by);
        if count == 0 {
            self.0.remove(&(family, set));
        } else {
            self.0.insert((family, set), count);
        }
    }
}
