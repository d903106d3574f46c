//! Are this node's rules programmed: what a start still lacks, in words, until its first complete sync.
//!
//! `/healthz` and `/livez` are kube-proxy's and are good while a process starts; whoever has to know whether Services
//! work on a node (the kubelet in a roll-out, a person after a reboot) asks for this. In come the steps of the start,
//! what the loop waits for, and its first success; out comes the answer of `/readyz`. No clock, no sockets.

use serde::Serialize;

use super::health::{Answer, Report, Time};
use crate::model::Resource;

/// Where the start is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Before the loop runs: what is being done, e.g. `opening nf_tables`.
    Step(&'static str),
    /// Another copy runs; this one takes over when that one ends.
    StandingBy,
    /// Nothing is written before every one of these has been listed.
    Lists(Vec<Resource>),
    /// NodePorts depend on the own Node's addresses, which are waited for.
    NodeAddresses,
    /// The first sync is under way; this many Services are to be written.
    FirstSync(usize),
    /// The first sync could not be completed; the kernel's or the socket's words.
    Failed(String),
    /// Both families have been programmed completely once.
    Done,
}

impl Default for Start {
    fn default() -> Self {
        Start::Step("starting")
    }
}

impl Start {
    /// What is missing, one item each; empty when nothing is.
    pub fn missing(&self) -> Vec<String> {
        match self {
            Start::Step(step) => vec![(*step).to_owned()],
            Start::StandingBy => {
                vec!["the end of the other kube-ferry in this network namespace".to_owned()]
            }
            Start::Lists(resources) => {
                resources.iter().map(|it| format!("the list of {}", plural(*it))).collect()
            }
            Start::NodeAddresses => {
                vec!["the addresses of the own Node (is it registered by this name?)".to_owned()]
            }
            Start::FirstSync(services) => {
                vec![format!("the first sync ({services} Services to be written)")]
            }
            Start::Failed(why) => vec![format!("the first sync, which failed: {why}")],
            Start::Done => Vec::new(),
        }
    }
}

/// The answer of `/readyz`: 200 once everything has been programmed and while programming works.
///
/// The Node's eligibility is not considered: rules of a node that is going away are as good as any.
pub fn readyz(start: &Start, report: &Report) -> Answer {
    let missing = missing(start, report);
    let ready = missing.is_empty();
    let body = Body { current_time: Time(report.now), ready, missing };
    Answer {
        code: if ready { 200 } else { 503 },
        // Serialising this type cannot fail: no maps with odd keys, no foreign code.
        body: serde_json::to_string(&body).unwrap_or_default(),
    }
}

/// What this node lacks of being programmed by this process, one item each.
pub fn missing(start: &Start, report: &Report) -> Vec<String> {
    if report.standing_by {
        return vec!["the end of the other kube-ferry that programs this node".to_owned()];
    }
    let mut missing = start.missing();
    if missing.is_empty() {
        missing.extend(report.stalled().map(|family| {
            format!("changes of {family}, which have waited for longer than twice the sync period")
        }));
    }
    missing
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    current_time: Time,
    ready: bool,
    missing: Vec<String>,
}

fn plural(resource: Resource) -> &'static str {
    match resource {
        Resource::Service => "services",
        Resource::EndpointSlice => "endpointslices",
        Resource::Node => "nodes",
        Resource::ServiceCidr => "servicecidrs",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::Family;
    use crate::serve::health::{Health, Now};

    #[test]
    fn what_is_missing_is_named_until_the_first_sync() {
        let health = Health::new(Duration::from_secs(30));
        check(&Start::default(), &health, 503, r#""ready":false,"missing":["starting"]"#);
        let lists = Start::Lists(vec![Resource::Service, Resource::ServiceCidr]);
        check(&lists, &health, 503, r#"["the list of services","the list of servicecidrs"]"#);
        check(&Start::NodeAddresses, &health, 503, "the addresses of the own Node");
        check(&Start::FirstSync(7), &health, 503, "the first sync (7 Services to be written)");
        check(&Start::Failed("EPERM".into()), &health, 503, "which failed: EPERM");
        check(&Start::Done, &health, 200, r#""ready":true,"missing":[]"#);
    }

    #[test]
    fn a_family_that_cannot_be_programmed_for_long_is_missing_again() {
        let mut health = Health::new(Duration::from_secs(30));
        health.updated(Family::V4, at(0));
        health.updated(Family::V6, at(0));
        health.queued(Family::V6, at(1));
        let answer = |secs| readyz(&Start::Done, &health.report(at(secs)));
        assert_eq!(answer(60).code, 200);
        assert_eq!(answer(61).code, 503);
        assert!(answer(61).body.contains("changes of IPv6, which"), "{}", answer(61).body);
        assert!(!answer(61).body.contains("IPv4"));
    }

    #[test]
    fn who_stands_by_is_not_ready() {
        let mut health = Health::new(Duration::from_secs(30));
        health.standing_by(true);
        check(&Start::FirstSync(3), &health, 503, "[\"the end of the other kube-ferry");
    }

    #[track_caller]
    fn check(start: &Start, health: &Health, code: u16, part: &str) {
        let answer = readyz(start, &health.report(at(0)));
        assert_eq!(answer.code, code);
        assert!(answer.body.contains(part), "{}", answer.body);
    }

    fn at(secs: u64) -> Now {
        Now { wall: jiff::Timestamp::UNIX_EPOCH, steady: Duration::from_secs(secs) }
    }
}
