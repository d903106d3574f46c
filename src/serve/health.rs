//! Is the proxy healthy, may the node receive traffic: a state machine without clock or sockets (reference 10.1).
//!
//! In come "a sync was asked for", "a sync succeeded" and what is known of the own Node, each with the time; out
//! comes a [`Report`] and from it the answers of `/healthz` and `/livez`, byte for byte kube-proxy's.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::model::{Family, Node};

/// A point in time, twice: to be shown, and to measure ages with whatever happens to the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub wall: Timestamp,
    /// Since some fixed moment, by a clock that never jumps.
    pub steady: Duration,
}

/// What is known.
#[derive(Clone, Debug)]
pub struct Health {
    /// A sync that was asked for this long ago and did not succeed makes its family unhealthy.
    timeout: Duration,
    families: BTreeMap<Family, FamilyHealth>,
    node_eligible: bool,
    /// Another copy is at work; this one waits for its turn.
    standing_by: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct FamilyHealth {
    /// The last success.
    updated: Option<Timestamp>,
    /// When the oldest sync was asked for that did not succeed yet.
    pending_since: Option<Duration>,
}

impl Health {
    /// `sync_period` as configured: health is lost after twice this.
    pub fn new(sync_period: Duration) -> Self {
        Health {
            timeout: sync_period * 2,
            families: BTreeMap::new(),
            node_eligible: false,
            standing_by: false,
        }
    }

    /// A sync of this family was asked for.
    pub fn queued(&mut self, family: Family, now: Now) {
        self.families.entry(family).or_default().pending_since.get_or_insert(now.steady);
    }

    /// A sync of this family succeeded, or its loop has just started.
    pub fn updated(&mut self, family: Family, now: Now) {
        let health = FamilyHealth { updated: Some(now.wall), pending_since: None };
        self.families.insert(family, health);
    }

    /// The own Node as it is now. After a deletion this is not called: the last known Node counts on.
    pub fn node(&mut self, node: &Node) {
        self.node_eligible = !node.going_away;
    }

    /// Whether another copy is at work. Then this one is alive, and the node gets no traffic through it.
    pub fn standing_by(&mut self, yes: bool) {
        self.standing_by = yes;
    }

    /// Another sync period from now on.
    pub fn set_sync_period(&mut self, sync_period: Duration) {
        self.timeout = sync_period * 2;
    }

    pub fn report(&self, now: Now) -> Report {
        let judge = |(family, health): (&Family, &FamilyHealth)| {
            // A family whose loop did not start yet is not judged.
            let updated = health.updated?;
            let waiting = health.pending_since.map(|since| now.steady.saturating_sub(since));
            let healthy = waiting.is_none_or(|waiting| waiting < self.timeout);
            Some((*family, FamilyReport { last_updated: Time(updated), healthy }))
        };
        let families: BTreeMap<Family, FamilyReport> =
            self.families.iter().filter_map(judge).collect();
        let healthy = families.values().all(|family| family.healthy);
        let Health { node_eligible, standing_by, .. } = *self;
        Report { now: now.wall, healthy, node_eligible, standing_by, families }
    }
}

/// Health at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub now: Timestamp,
    /// All families are; the node is not considered.
    pub healthy: bool,
    pub node_eligible: bool,
    pub standing_by: bool,
    families: BTreeMap<Family, FamilyReport>,
}

/// An HTTP status and its JSON body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub code: u16,
    pub body: String,
}

impl Report {
    /// Whether this node may receive traffic through the proxy.
    pub fn healthz(&self) -> Answer {
        let good = self.healthy && self.node_eligible && !self.standing_by;
        self.answer(good, Some(self.node_eligible))
    }

    /// Whether the proxy works, whatever happens to the node.
    pub fn livez(&self) -> Answer {
        self.answer(self.healthy, None)
    }

    /// The families, by their label, for which changes wait too long.
    pub fn stalled(&self) -> impl Iterator<Item = &'static str> {
        self.families.iter().filter(|(_, it)| !it.healthy).map(|(family, _)| family_key(*family))
    }

    fn answer(&self, good: bool, node_eligible: Option<bool>) -> Answer {
        let last_success = self.families.values().map(|family| family.last_updated).max();
        let status = self.families.iter().map(|(family, it)| (family_key(*family), *it)).collect();
        let body = Body {
            last_updated: if good { Time(self.now) } else { last_success.unwrap_or(Time::NEVER) },
            current_time: Time(self.now),
            node_eligible,
            healthy: self.healthy,
            status,
        };
        Answer {
            code: if good { 200 } else { 503 },
            // Serialising this type cannot fail: no maps with odd keys, no foreign code.
            body: serde_json::to_string(&body).unwrap_or_default(),
        }
    }
}

fn family_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: Time,
    current_time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyReport>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyReport {
    last_updated: Time,
    healthy: bool,
}

/// Written as Go writes times: RFC 3339, as many decimals as needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Time(pub(super) Timestamp);

impl Time {
    /// Stands for Go's zero time.
    const NEVER: Time = Time(Timestamp::MIN);
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Time::NEVER {
            serializer.serialize_str("0001-01-01T00:00:00Z")
        } else {
            serializer.collect_str(&self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn healthy_while_starting_but_the_node_is_not_known() {
        let health = Health::new(Duration::from_secs(30));
        check(
            &health,
            1,
            (
                503,
                r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2026-01-02T03:04:01.5Z","nodeEligible":false,"healthy":true}"#,
            ),
            (
                200,
                r#"{"lastUpdated":"2026-01-02T03:04:01.5Z","currentTime":"2026-01-02T03:04:01.5Z","healthy":true}"#,
            ),
        );
    }

    #[test]
    fn both_families_and_an_eligible_node() {
        let mut health = Health::new(Duration::from_secs(30));
        health.updated(Family::V6, at(2));
        health.updated(Family::V4, at(1));
        health.node(&Node::default());
        let status = r#""healthy":true,"status":{"IPv4":{"lastUpdated":"2026-01-02T03:04:01.5Z","healthy":true},"IPv6":{"lastUpdated":"2026-01-02T03:04:02.5Z","healthy":true}}}"#;
        let times =
            r#"{"lastUpdated":"2026-01-02T03:04:09.5Z","currentTime":"2026-01-02T03:04:09.5Z","#;
        check(
            &health,
            9,
            (200, &format!(r#"{times}"nodeEligible":true,{status}"#)),
            (200, &format!("{times}{status}")),
        );
    }

    #[test]
    fn a_sync_that_does_not_succeed_in_twice_the_period_is_unhealthy() {
        let mut health = Health::new(Duration::from_secs(30));
        health.node(&Node::default());
        health.updated(Family::V4, at(0));
        health.updated(Family::V6, at(0));
        health.queued(Family::V4, at(10));
        health.queued(Family::V4, at(60));
        assert_eq!(codes(&health, 69), (200, 200));
        assert_eq!(codes(&health, 70), (503, 503), "the age is the oldest request's");
        let body = health.report(at(70)).livez().body;
        let expected = r#"{"lastUpdated":"2026-01-02T03:04:00.5Z","currentTime":"2026-01-02T03:05:10.5Z","healthy":false,"status":{"IPv4":{"lastUpdated":"2026-01-02T03:04:00.5Z","healthy":false},"IPv6":{"lastUpdated":"2026-01-02T03:04:00.5Z","healthy":true}}}"#;
        assert_eq!(body, expected);
        health.updated(Family::V4, at(71));
        assert_eq!(codes(&health, 100_000), (200, 200), "without a request, age does not matter");
        health.queued(Family::V4, at(100_000));
        assert_eq!(codes(&health, 100_059), (200, 200));
    }

    #[test]
    fn a_family_whose_loop_did_not_start_is_not_judged() {
        let mut health = Health::new(Duration::from_secs(30));
        health.queued(Family::V6, at(0));
        assert_eq!(codes(&health, 1000).1, 200);
        assert!(!health.report(at(1000)).livez().body.contains("status"));
    }

    #[test]
    fn a_node_that_goes_away_fails_healthz_only() {
        let mut health = Health::new(Duration::from_secs(30));
        health.node(&Node { going_away: true, ..Node::default() });
        assert_eq!(codes(&health, 1), (503, 200));
        health.node(&Node::default());
        assert_eq!(codes(&health, 1), (200, 200));
    }

    #[test]
    fn who_stands_by_is_alive_and_not_ready() {
        let mut health = Health::new(Duration::from_secs(30));
        health.node(&Node::default());
        health.standing_by(true);
        assert_eq!(codes(&health, 1_000), (503, 200));
        health.standing_by(false);
        assert_eq!(codes(&health, 1_001), (200, 200));
    }

    #[track_caller]
    fn check(health: &Health, now: u64, healthz: (u16, &str), livez: (u16, &str)) {
        let report = health.report(at(now));
        let answer = |(code, body): (u16, &str)| Answer { code, body: body.to_owned() };
        assert_eq!((report.healthz(), report.livez()), (answer(healthz), answer(livez)));
    }

    fn codes(health: &Health, now: u64) -> (u16, u16) {
        let report = health.report(at(now));
        (report.healthz().code, report.livez().code)
    }

    fn at(secs: u64) -> Now {
        let start: Timestamp = "2026-01-02T03:04:00.5Z".parse().unwrap();
        Now { wall: start + Duration::from_secs(secs), steady: Duration::from_secs(secs) }
    }
}
