//! What can be seen of a table without listing its rules and rows; the cost does not grow with the number of Services.

use std::collections::{BTreeMap, BTreeSet};

use super::schema::{Chain, Rule, SetName, Statement, Value, Verdict};
use super::skeleton::{self, Program};
use crate::model::Family;

/// One family's sets and chains, and the kernel's own counts that tell of their rules and rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableShape {
    pub sets: BTreeSet<SetName>,
    /// Whatever is not ours: as in [`super::schema::ObservedTable`].
    pub unknown: Vec<String>,
    /// How many elements each set has. A kernel before 6.16 tells nobody, and then this is empty.
    pub elements: BTreeMap<SetName, u32>,
    /// The chains, and how often each is used: by rules in it, rules that lead to it, and rows whose verdict leads to it. So
    /// a rule that goes or comes and a row of a verdict map are seen here, on every kernel.
    pub uses: BTreeMap<Chain, u32>,
}

/// How often each chain is used by rules: those of the program, and of the chains `remember` that there are.
pub fn uses_by_rules<'a>(
    program: &Program,
    family: Family,
    chains: impl Iterator<Item = &'a Chain>,
) -> BTreeMap<Chain, u32> {
    let remember = chains.filter_map(|it| {
        let Chain::Remember(seconds) = *it else { return None };
        Some(skeleton::remember(seconds))
    });
    let mut uses = BTreeMap::new();
    for spec in skeleton::chains(program, family).into_iter().chain(remember) {
        count_rules(spec.chain, &spec.rules, &mut uses);
    }
    uses
}

/// Adds what the rules of one chain use.
pub(super) fn count_rules(chain: Chain, rules: &[Rule], uses: &mut BTreeMap<Chain, u32>) {
    let targets = rules.iter().flat_map(|rule| &rule.0).filter_map(target);
    for used in rules.iter().map(|_| chain).chain(targets) {
        *uses.entry(used).or_default() += 1;
    }
}

/// The chain that a statement names.
pub(super) fn target(statement: &Statement) -> Option<Chain> {
    if let Statement::Jump(chain) | Statement::Goto(chain) = statement {
        Some(*chain)
    } else {
        None
    }
}

/// The chain that a row leads to.
pub(super) fn led_to(value: &Value) -> Option<Chain> {
    let Value::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain)) = value else { return None };
    Some(*chain)
}
