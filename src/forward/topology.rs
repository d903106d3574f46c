//! Which endpoints are near enough (reference 3.5).

use crate::model::{Endpoint, NodeHint};

/// How the ready endpoints of a port are narrowed down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology<'a> {
    /// All of them.
    Anywhere,
    /// Those hinted for this node.
    SameNode,
    /// Those hinted for this zone.
    SameZone(&'a str),
}

/// Decides by the ready endpoints of all nodes. One that lacks a kind of hint rules that kind out for the whole port:
/// the hints are then on their way in or out, and following half of them would overload the hinted half.
pub fn topology<'a>(endpoints: &[&Endpoint], zone: Option<&'a str>) -> Topology<'a> {
    let ready = || endpoints.iter().filter(|it| it.ready);
    if ready().next().is_none() {
        return Topology::Anywhere;
    }
    let by_node = ready().all(|it| it.node_hint != NodeHint::Absent);
    if by_node && ready().any(|it| Topology::SameNode.admits(it)) {
        return Topology::SameNode;
    }
    let Some(zone) = zone else { return Topology::Anywhere };
    let same_zone = Topology::SameZone(zone);
    let by_zone = ready().all(|it| it.zone_hints.is_some());
    if by_zone && ready().any(|it| same_zone.admits(it)) {
        return same_zone;
    }
    Topology::Anywhere
}

impl Topology<'_> {
    pub fn admits(self, endpoint: &Endpoint) -> bool {
        match self {
            Topology::Anywhere => true,
            Topology::SameNode => endpoint.node_hint == NodeHint::ThisNode,
            Topology::SameZone(zone) => {
                let zones = endpoint.zone_hints.as_deref().unwrap_or_default();
                zones.iter().any(|it| **it == *zone)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample::endpoint;

    #[test]
    fn precedence() {
        use Topology::{Anywhere, SameNode, SameZone};
        check(&[], Some("a"), Anywhere);
        check(&["10.0.0.1", "10.0.0.2"], Some("a"), Anywhere);
        check(&["10.0.0.1 zone=a", "10.0.0.2 zone=b"], Some("a"), SameZone("a"));
        check(&["10.0.0.1 zone=a", "10.0.0.2 zone=b"], Some("c"), Anywhere);
        check(&["10.0.0.1 zone=a", "10.0.0.2 zone=b"], None, Anywhere);
        check(&["10.0.0.1 zone=a", "10.0.0.2"], Some("a"), Anywhere);
        check(&["10.0.0.1 zone=a", "10.0.0.2 unready"], Some("a"), SameZone("a"));
        check(&["10.0.0.1 unready zone=a", "10.0.0.2 zone=b"], Some("a"), Anywhere);
        check(&["10.0.0.1 unready zone=a"], Some("a"), Anywhere);
        check(&["10.0.0.1 node=this", "10.0.0.2 node=other"], Some("a"), SameNode);
        check(&["10.0.0.1 node=other", "10.0.0.2 node=other"], Some("a"), Anywhere);
        check(
            &["10.0.0.1 node=other zone=a", "10.0.0.2 node=other zone=b"],
            Some("a"),
            SameZone("a"),
        );
        check(&["10.0.0.1 node=this zone=b", "10.0.0.2 node=other zone=a"], Some("a"), SameNode);
        check(&["10.0.0.1 node=this zone=b", "10.0.0.2 zone=a"], Some("a"), SameZone("a"));
    }

    #[track_caller]
    fn check(endpoints: &[&str], zone: Option<&str>, expected: Topology<'_>) {
        let endpoints: Vec<Endpoint> = endpoints.iter().map(|it| endpoint(it)).collect();
        let endpoints: Vec<&Endpoint> = endpoints.iter().collect();
        assert_eq!(topology(&endpoints, zone), expected);
    }
}
