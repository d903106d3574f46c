//! What to do when the kernel takes nothing of a batch: who is to blame, and how to go on without him.

use std::collections::{BTreeMap, BTreeSet};

use super::Engine;
use crate::kernel::Rejection;
use crate::model::ServiceId;
use crate::nft::compile::Compiler;
use crate::nft::schema::Owner;
use crate::nft::tables::{EEXIST, ENFILE, ENOENT};

/// Rows in one batch after the kernel had no room for larger ones.
pub(super) const FEWEST_BATCH_ROWS: usize = 64;

/// That often in a row there may be no room for one Service alone before the others go on without it: at first memory may
/// be short for everybody, and for a moment.
pub(super) const MOST_CRAMPED: u32 = 5;

const ENOMEM: i32 = 12;

/// What became of a refused batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// These Services are left out from now on; the others are tried again.
    LeftOut(Vec<(ServiceId, Rejection)>),
    /// The next batches are smaller, to find the culprit.
    Bisecting,
    /// The kernel does not hold what it was believed to. Everything is looked at again before a Service is blamed.
    Stale(Rejection),
    /// A set is full and did not grow: the tables will be made anew, with larger ones.
    Full(Rejection),
    /// It was not about any Service: the program or the node's facts. Everything is looked at again.
    Program(Vec<Rejection>),
}

impl Engine {
    /// The kernel had no room for the batch and took nothing of it. A Service that is alone too large is left out after
    /// some attempts; it would keep back all that come after it.
    pub fn postponed(&mut self) -> Option<Refusal> {
        // Tables that are made anew hold nothing but what is in the same batch.
        let whole = self.compiler.as_ref().is_some_and(Compiler::needs_rebuild);
        let staged = self.take_back();
        let fewest = self.batch_rows == FEWEST_BATCH_ROWS;
        self.batch_rows = (self.batch_rows / 2).max(FEWEST_BATCH_ROWS);
        if whole || !fewest {
            return None;
        }
        match *staged {
            [only] if self.skeleton.is_none() => self.cramped(only),
            // One of them may be large, or all of them beside tables that are yet to be made.
            _ => {
                self.bisect = Some(staged.len() / 2);
                None
            }
        }
    }

    fn cramped(&mut self, only: ServiceId) -> Option<Refusal> {
        let before = self.cramped.filter(|(service, _)| *service == only);
        let times = before.map_or(1, |(_, times)| times + 1);
        self.cramped = (times < MOST_CRAMPED).then_some((only, times));
        if times < MOST_CRAMPED {
            return None;
        }
        self.bisect = None;
        let (owner, what) = (Some(Owner(only.0)), "there is no room for all its rows".to_owned());
        let rejection = Rejection { op: None, owner, errno: ENOMEM, what };
        self.refused.insert(only, rejection.clone());
        Some(Refusal::LeftOut(vec![(only, rejection)]))
    }

    /// The kernel took nothing of the batch and named these operations.
    pub fn refused(&mut self, rejections: Vec<Rejection>) -> Refusal {
        if !self.remaking
            && let Some(full) = rejections.iter().find(|it| it.errno == ENFILE)
        {
            let full = full.clone();
            self.lost();
            self.remaking = true;
            return Refusal::Full(full);
        }
        if self.believed
            && !self.stale
            && let Some(stale) = rejections.iter().find(|it| matches!(it.errno, ENOENT | EEXIST))
        {
            let stale = stale.clone();
            self.lost();
            self.stale = true;
            return Refusal::Stale(stale);
        }
        let staged = self.take_back();
        let culprits = culprits(&rejections, &staged);
        if !culprits.is_empty() {
            self.refused.extend(culprits.iter().cloned());
            return Refusal::LeftOut(culprits);
        }
        if staged.len() > 1 {
            self.bisect = Some(staged.len() / 2);
            return Refusal::Bisecting;
        }
        self.lost();
        Refusal::Program(rejections)
    }

    /// What was planned is to be planned again; returns the Services in it.
    fn take_back(&mut self) -> Vec<ServiceId> {
        if let Some(compiler) = self.compiler.as_mut() {
            compiler.rollback();
        }
        self.results.forget();
        if let Some(servers) = self.servers.as_mut() {
            self.urgent.extend(servers.put_back());
        }
        let staged = std::mem::take(&mut self.in_flight);
        self.urgent.extend(&staged);
        staged
    }

    /// Gives Services that the kernel refused another chance.
    pub fn retry_refused(&mut self) {
        self.urgent.extend(std::mem::take(&mut self.refused).into_keys());
    }

    /// How many Services the kernel refuses.
    pub fn refused_count(&self) -> usize {
        self.refused.len()
    }
}

/// The staged Services that the rejections name; if they name none of them and only one was staged, it is that one.
///
/// A row may belong to a Service that is not staged: one that was refused before and holds an address that a staged one
/// takes over. To blame the holder again would change nothing, and the same batch would come for ever.
fn culprits(rejections: &[Rejection], staged: &[ServiceId]) -> Vec<(ServiceId, Rejection)> {
    let known: BTreeSet<ServiceId> = staged.iter().copied().collect();
    let mut culprits = BTreeMap::new();
    for rejection in rejections {
        let owner = rejection.owner.map(|it| ServiceId(it.0));
        if let Some(owner) = owner.filter(|it| known.contains(it)) {
            culprits.entry(owner).or_insert_with(|| rejection.clone());
        } else if let [only] = staged
            && (owner.is_some() || rejection.op.is_none())
        {
            culprits.entry(*only).or_insert_with(|| rejection.clone());
        }
    }
    culprits.into_iter().collect()
}
