//! Who owns which address: two Services may claim the same one, only one can have it.
//!
//! A cluster IP is its Service's, because the API server has allocated it: nobody takes it by naming it as an external
//! address, even long before it is allocated. Of all others the older Service wins, equal age is decided by namespace
//! and name. The winner depends on the set of claimants alone, never on who came first to this process: all nodes decide
//! alike, and nothing flaps after a restart.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;

use super::FrontendAddress;
use crate::model::{Family, ObjectName, Protocol, Service, ServiceId};

/// What can be had only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    pub family: Family,
    pub protocol: Protocol,
    pub at: FrontendAddress,
}

/// Why somebody claims something; the least wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Title {
    /// As the Service's cluster IP.
    Allocated,
    /// As an address that the Service, or who has made it, has chosen.
    Chosen,
}

/// Age and name of a Service; of equal titles the least wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    created: i64,
    name: ObjectName,
}

impl Rank {
    pub fn of(service: &Service) -> Rank {
        Rank { created: service.created, name: service.name.clone() }
    }
}

/// All claims of all Services.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// By `ServiceId`.
    claimants: Vec<Option<Claimant>>,
    winners: FxHashMap<Claim, ServiceId>,
    /// Everyone who claims what more than one claims. Hardly ever anything.
    contested: BTreeMap<Claim, BTreeSet<ServiceId>>,
}

#[derive(Clone, Debug)]
struct Claimant {
    rank: Rank,
    /// Sorted, each claim once.
    claims: Box<[(Claim, Title)]>,
}

impl Claimant {
    fn title(&self, claim: &Claim) -> Option<Title> {
        let at = self.claims.binary_search_by_key(&claim, |(it, _)| it).ok()?;
        self.claims.get(at).map(|(_, title)| *title)
    }
}

impl Claims {
    /// Bytes on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        let claims = self.claimants.iter().flatten().map(|it| size_of_val(&*it.claims));
        self.claimants.capacity() * size_of::<Option<Claimant>>()
            + claims.sum::<usize>()
            + self.winners.capacity() * size_of::<(Claim, ServiceId)>()
    }

    /// Replaces what a Service claims (`None`: it is gone) and returns the Services, perhaps itself, that may have
    /// won or lost something.
    pub fn replace(
        &mut self,
        id: ServiceId,
        new: Option<(Rank, Vec<(Claim, Title)>)>,
    ) -> BTreeSet<ServiceId> {
        let mut affected = BTreeSet::new();
        if self.claimants.len() <= id.index() {
            self.claimants.resize(id.index() + 1, None);
        }
        let old = self.claimants.get_mut(id.index()).and_then(Option::take);
        let (rank, mut claims) = match new {
            Some((rank, claims)) => (Some(rank), claims),
            None => (None, Vec::new()),
        };
        claims.sort_unstable();
        // The best title is the first.
        claims.dedup_by_key(|(claim, _)| *claim);
        let same_rank = old.as_ref().map(|it| &it.rank) == rank.as_ref();
        let dropped = old.map(|it| it.claims).unwrap_or_default();
        let keeps = |claim| same_rank && claims.binary_search(claim).is_ok();
        for (claim, _) in dropped.iter().filter(|it| !keeps(it)) {
            self.withdraw(id, *claim, &mut affected);
        }
        let Some(rank) = rank else { return affected };
        let had = |claim| same_rank && dropped.binary_search(claim).is_ok();
        let added: Vec<_> = claims.iter().filter(|it| !had(it)).map(|(claim, _)| *claim).collect();
        if let Some(place) = self.claimants.get_mut(id.index()) {
            *place = Some(Claimant { rank, claims: claims.into() });
        }
        for claim in added {
            self.raise(id, claim, &mut affected);
        }
        affected
    }

    /// Who has it. `None`: nobody claims it.
    pub fn winner(&self, claim: &Claim) -> Option<ServiceId> {
        self.winners.get(claim).copied()
    }

    fn raise(&mut self, id: ServiceId, claim: Claim, affected: &mut BTreeSet<ServiceId>) {
        let Some(holder) = self.winners.insert(claim, id) else { return };
        let everyone = self.contested.entry(claim).or_insert_with(|| [holder].into());
        everyone.insert(id);
        affected.extend(everyone.iter());
        self.decide(claim);
    }

    fn withdraw(&mut self, id: ServiceId, claim: Claim, affected: &mut BTreeSet<ServiceId>) {
        let Some(everyone) = self.contested.get_mut(&claim) else {
            self.winners.remove(&claim);
            return;
        };
        affected.extend(everyone.iter());
        everyone.remove(&id);
        self.decide(claim);
        if self.contested.get(&claim).is_some_and(|it| it.len() < 2) {
            self.contested.remove(&claim);
        }
    }

    /// Finds the winner among those who contest a claim.
    fn decide(&mut self, claim: Claim) {
        let everyone = self.contested.get(&claim).into_iter().flatten();
        let rank = |id: &ServiceId| {
            let claimant = self.claimants.get(id.index())?.as_ref()?;
            Some((claimant.title(&claim)?, &claimant.rank))
        };
        let winner = everyone.min_by_key(|it| rank(it));
        if let Some(winner) = winner {
            self.winners.insert(claim, *winner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::model::sample::{ip, port, service};

    #[test]
    fn the_older_service_wins_in_any_order() {
        for order in [["old", "young"], ["young", "old"]] {
            let mut claims = Claims::default();
            claim_all(&mut claims, &order);
            assert_eq!(claims.winner(&at("192.0.2.1")), Some(id("old")), "{order:?}");
        }
    }

    #[test]
    fn equal_age_is_decided_by_name() {
        let mut claims = Claims::default();
        claim_all(&mut claims, &["old-b", "old-a", "old-c"]);
        assert_eq!(claims.winner(&at("192.0.2.1")), Some(id("old-a")));
    }

    #[test]
    fn an_allocated_address_is_nobody_elses() {
        let mut claims = Claims::default();
        let bid = |title, rank_of| Some((rank(rank_of), vec![(at("192.0.2.1"), title)]));
        claims.replace(id("old"), bid(Title::Chosen, "old"));
        let affected = claims.replace(id("young"), bid(Title::Allocated, "young"));
        assert_eq!(affected, [id("old"), id("young")].into());
        assert_eq!(claims.winner(&at("192.0.2.1")), Some(id("young")));
        // The older Service names its own cluster IP as an external one as well.
        let both = vec![(at("192.0.2.1"), Title::Chosen), (at("192.0.2.1"), Title::Allocated)];
        claims.replace(id("old"), Some((rank("old"), both)));
        assert_eq!(claims.winner(&at("192.0.2.1")), Some(id("old")));
        claims.replace(id("old"), bid(Title::Chosen, "old"));
        assert_eq!(claims.winner(&at("192.0.2.1")), Some(id("young")));
    }

    #[test]
    fn the_loser_takes_over_when_the_winner_goes() {
        let mut claims = Claims::default();
        assert_eq!(claim(&mut claims, "old"), [].into());
        assert_eq!(claim(&mut claims, "young"), [id("old"), id("young")].into());
        assert_eq!(claims.replace(id("old"), None), [id("old"), id("young")].into());
        assert_eq!(claims.winner(&at("192.0.2.1")), Some(id("young")));
        assert_eq!(claims.contested.len(), 0);
        claims.replace(id("young"), None);
        let claimants = claims.claimants.iter().flatten().count();
        assert_eq!((claims.winners.len(), claimants), (0, 0), "nothing leaks");
    }

    #[test]
    fn unchanged_claims_affect_nobody() {
        let mut claims = Claims::default();
        claim_all(&mut claims, &["old", "young"]);
        assert_eq!(claim(&mut claims, "young"), [].into());
    }

    #[test]
    fn an_id_may_pass_to_a_service_of_another_rank() {
        let mut claims = Claims::default();
        claim_all(&mut claims, &["old", "young"]);
        let reborn = (rank("younger"), vec![(at("192.0.2.1"), Title::Chosen)]);
        assert_eq!(claims.replace(id("old"), Some(reborn)), [id("old"), id("young")].into());
        assert_eq!(claims.winner(&at("192.0.2.1")), Some(id("young")));
    }

    #[test]
    fn other_families_protocols_and_ports_are_no_conflict() {
        let mut claims = Claims::default();
        let base = at("192.0.2.1");
        let node_port =
            |family| Claim { family, at: FrontendAddress::NodePort(port(30080)), ..base };
        let all = [
            base,
            Claim { protocol: Protocol::Udp, ..base },
            Claim { at: FrontendAddress::Address(ip("192.0.2.1"), port(81)), ..base },
            node_port(Family::V4),
            node_port(Family::V6),
        ];
        for (number, claim) in (0..).zip(all) {
            assert_eq!(
                claims
                    .replace(ServiceId(number), Some((rank("old"), vec![(claim, Title::Chosen)]))),
                [].into()
            );
        }
        assert_eq!(claims.contested.len(), 0);
    }

    fn claim_all(claims: &mut Claims, titles: &[&str]) {
        for title in titles {
            claim(claims, title);
        }
    }

    fn claim(claims: &mut Claims, title: &str) -> BTreeSet<ServiceId> {
        let chosen = (at("192.0.2.1"), Title::Chosen);
        claims.replace(id(title), Some((rank(title), vec![chosen, chosen])))
    }

    fn id(title: &str) -> ServiceId {
        ServiceId(title.bytes().map(u32::from).sum())
    }

    fn rank(title: &str) -> Rank {
        let created = if title.starts_with("old") {
            1
        } else if title == "young" {
            2
        } else {
            3
        };
        Rank::of(&Service { created, ..service(&format!("ns/{title}"), "10.0.0.1") })
    }

    fn at(address: &str) -> Claim {
        let address: IpAddr = ip(address);
        Claim {
            family: Family::of(address),
            protocol: Protocol::Tcp,
            at: FrontendAddress::Address(address, port(80)),
        }
    }
}
