//! Feature gates that kube-proxy knows and what setting them does here (reference 8.3).
//!
//! kube-proxy knows the gates of all components of its version, because clusters are configured with one list for all of
//! them, and refuses any other name. We know those that mean something to a Service proxy. A name that is almost one of
//! them is a mistake and refused: it was meant to have an effect. Any other is said to be left out and does no harm.

use std::collections::BTreeMap;

use super::settings::Notice;
use super::spelling::nearest;

/// One gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    pub name: &'static str,
    /// Label of the metric `kubernetes_feature_enabled`; empty once generally available, as Kubernetes has it.
    pub stage: &'static str,
    pub default: bool,
    pub kind: GateKind,
}

/// What setting a gate to something else than its default does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateKind {
    /// Cannot be changed.
    Locked,
    /// Carried out.
    Implemented,
    /// The other value asks for something that does not exist here; asking is an error.
    OnlyDefault,
    /// May be set; it concerns the inside of kube-proxy that has no counterpart here.
    NoEffect,
}

use GateKind::{Implemented, Locked, NoEffect, OnlyDefault};

/// Every known gate, by name.
pub const GATES: [Gate; 12] = [
    gate("AllowServiceExternalIPs", "", true, Implemented),
    gate("ComponentFlagz", "BETA", true, Implemented),
    gate("ComponentStatusz", "BETA", true, Implemented),
    gate("ContextualLogging", "BETA", true, NoEffect),
    gate("DisableNodeKubeProxyVersion", "", true, Locked),
    gate("LoggingAlphaOptions", "ALPHA", false, Implemented),
    gate("LoggingBetaOptions", "BETA", true, NoEffect),
    gate("MultiCIDRServiceAllocator", "", true, Locked),
    gate("NFTablesProxyMode", "", true, Locked),
    gate("NativeHistograms", "ALPHA", false, OnlyDefault),
    gate("PreferSameTrafficDistribution", "", true, Locked),
    gate("WatchListClient", "BETA", true, Implemented),
];

const fn gate(name: &'static str, stage: &'static str, default: bool, kind: GateKind) -> Gate {
    Gate { name, stage, default, kind }
}

/// The gates in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureGates {
    enabled: BTreeMap<&'static str, bool>,
}

impl Default for FeatureGates {
    fn default() -> Self {
        FeatureGates { enabled: GATES.iter().map(|gate| (gate.name, gate.default)).collect() }
    }
}

impl FeatureGates {
    /// Applies what was asked for; on errors returns one sentence for each.
    pub fn new(asked: &BTreeMap<String, bool>) -> Result<(Self, Vec<Notice>), Vec<String>> {
        let mut gates = FeatureGates::default();
        let (mut notices, mut problems) = (Vec::new(), Vec::new());
        // AllAlpha and AllBeta move whole stages; what is named itself is applied after and wins.
        for (group, stage) in [("AllAlpha", "ALPHA"), ("AllBeta", "BETA")] {
            if let Some(&value) = asked.get(group) {
                gates.set_stage(stage, value, &mut notices);
            }
        }
        for (name, &value) in asked {
            if name == "AllAlpha" || name == "AllBeta" {
                continue;
            }
            match GATES.iter().find(|gate| gate.name == name) {
                None => match nearest(name, GATES.iter().map(|gate| gate.name)) {
                    Some(known) => problems
                        .push(format!("unrecognized feature gate: {name} (is {known} meant?)")),
                    None => notices.push(Notice::Warn(format!(
                        "feature gate {name} is left out: it is not one of a Service proxy"
                    ))),
                },
                Some(gate) => gates.set(gate, value, &mut notices, &mut problems),
            }
        }
        if problems.is_empty() { Ok((gates, notices)) } else { Err(problems) }
    }

    /// Whether the gate is on; unknown names are off.
    pub fn enabled(&self, name: &str) -> bool {
        self.enabled.get(name).copied().unwrap_or(false)
    }

    fn set(
        &mut self,
        gate: &Gate,
        value: bool,
        notices: &mut Vec<Notice>,
        problems: &mut Vec<String>,
    ) {
        let name = gate.name;
        match gate.kind {
            Implemented => {}
            _ if value == gate.default => {}
            Locked => {
                problems.push(format!(
                    "cannot set feature gate {name} to {value}, feature is locked to {}",
                    gate.default
                ));
            }
            OnlyDefault => problems.push(format!("feature gate {name}={value} is not implemented")),
            NoEffect => {
                notices.push(Notice::Info(format!("feature gate {name} has no effect here")))
            }
        }
        self.enabled.insert(name, value);
    }

    fn set_stage(&mut self, stage: &str, value: bool, notices: &mut Vec<Notice>) {
        for gate in GATES.iter().filter(|gate| gate.stage == stage) {
            match gate.kind {
                Implemented => {
                    self.enabled.insert(gate.name, value);
                }
                Locked | OnlyDefault | NoEffect => {
                    if value != gate.default {
                        let said = format!("feature gate {} stays {}", gate.name, gate.default);
                        notices.push(Notice::Info(said));
                    }
                }
            }
        }
    }
}

/// Reads `A=true,B=false`, the spelling of `--feature-gates`.
pub(super) fn parse_list(text: &str) -> Result<Vec<(String, bool)>, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs.map(parse_pair).collect()
}

fn parse_pair(pair: &str) -> Result<(String, bool), String> {
    let (name, value) =
        pair.split_once('=').ok_or_else(|| format!("missing bool value for {pair:?}"))?;
    let value = super::args::go_bool(value.trim())
        .map_err(|_| format!("invalid value of {name}={value}: must be true or false"))?;
    Ok((name.trim().to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_hold_when_nothing_is_asked() {
        let (gates, notices) = FeatureGates::new(&BTreeMap::new()).unwrap();
        assert!(gates.enabled("AllowServiceExternalIPs") && !gates.enabled("NativeHistograms"));
        assert_eq!(notices, Vec::<Notice>::new());
    }

    #[test]
    fn each_kind_of_gate_answers_in_its_way() {
        check("AllowServiceExternalIPs=false", Ok(""));
        check("NFTablesProxyMode=true", Ok(""));
        check("ContextualLogging=false", Ok("feature gate ContextualLogging has no effect here"));
        check(
            "AllAlpha=true,NativeHistograms=false",
            Ok("feature gate NativeHistograms stays false"),
        );
        check("NFTablesProxyMode=false", Err("feature is locked to true"));
        check("NativeHistograms=true", Err("NativeHistograms=true is not implemented"));
    }

    #[test]
    fn gates_of_other_components_do_no_harm_and_misspelt_ones_are_refused() {
        check(
            "SidecarContainers=true",
            Ok("feature gate SidecarContainers is left out: it is not one of a Service proxy"),
        );
        check(
            "AllowServiceExternalIP=false",
            Err(
                "unrecognized feature gate: AllowServiceExternalIP (is AllowServiceExternalIPs meant?)",
            ),
        );
        check("allowserviceexternalips=false", Err("is AllowServiceExternalIPs meant?"));
        check("NFTableProxyMode=true", Err("is NFTablesProxyMode meant?"));
    }

    #[test]
    fn a_list_without_values_is_refused() {
        assert!(parse_list("A").is_err() && parse_list("A=maybe").is_err());
        assert_eq!(
            parse_list(" A=1, B=f ,").unwrap(),
            [("A".to_owned(), true), ("B".to_owned(), false)]
        );
    }

    #[track_caller]
    fn check(asked: &str, expected: Result<&str, &str>) {
        let asked = parse_list(asked).unwrap().into_iter().collect();
        match (FeatureGates::new(&asked), expected) {
            (Ok((_, notices)), Ok(notice)) => {
                let text = |it: &Notice| match it {
                    Notice::Info(text) | Notice::Warn(text) => text.clone(),
                };
                let notices: Vec<String> = notices.iter().map(text).collect();
                assert_eq!(notices.join("\n"), notice);
            }
            (Err(problems), Err(part)) => {
                assert!(problems.join("\n").contains(part), "{problems:?}");
            }
            (result, _) => panic!("unexpected: {result:?}"),
        }
    }
}
