//! What the kernel holds, by what `nft` lists; nothing of the proxy's own reading is used.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde_json::Value;

use super::oracle::{Backends, Family, Forwarding, Front, Protocol};
use crate::support::command;
use crate::support::namespace::Namespace;

/// The elements of every set and map of both tables, and how many objects there are.
pub(super) struct Listing {
    sets: BTreeMap<(Family, String), Vec<Value>>,
    pub(super) tables: usize,
    pub(super) chains: usize,
    pub(super) rules: usize,
}

/// Reads both tables. An error is one of `nft`, for example because tables change while it reads them.
pub(super) fn list(namespace: &Namespace) -> Result<Listing, String> {
    let output = namespace.run(|| command::output("nft", &["-j", "list", "ruleset"], ""));
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let listed: Value = serde_json::from_slice(&output.stdout).map_err(|it| it.to_string())?;
    let mut listing = Listing { sets: BTreeMap::new(), tables: 0, chains: 0, rules: 0 };
    for object in listed["nftables"].as_array().ok_or("no list")? {
        let (kind, object) = object.as_object().and_then(|it| it.iter().next()).ok_or("empty")?;
        let table = if kind == "table" { &object["name"] } else { &object["table"] };
        if table != "kube-ferry" {
            continue;
        }
        let family = if object["family"] == "ip" { Family::V4 } else { Family::V6 };
        match kind.as_str() {
            "table" => listing.tables += 1,
            "chain" => listing.chains += 1,
            "rule" => listing.rules += 1,
            "set" | "map" => {
                let name = object["name"].as_str().unwrap().to_owned();
                let elements = object["elem"].as_array().cloned().unwrap_or_default();
                listing.sets.insert((family, name), elements);
            }
            _ => (),
        }
    }
    Ok(listing)
}

impl Listing {
    /// How many sets and maps there are.
    pub(super) fn sets(&self) -> usize {
        self.sets.len()
    }

    /// How many elements there are, without those that packets write.
    pub(super) fn elements(&self) -> usize {
        let sets = self.sets.iter().filter(|((_, name), _)| name != "affinity");
        sets.map(|(_, elements)| elements.len()).sum()
    }

    /// Who is sent where.
    ///
    /// # Errors
    ///
    /// Rows that do not fit each other, such as a hole between the slots.
    pub(super) fn forwarding(&self) -> Result<Forwarding, String> {
        let mut forwarding = Forwarding::default();
        for family in [Family::V4, Family::V6] {
            self.fronts(family, ["frontends", "endpoints", "sticky-frontends"], |front, ends| {
                forwarding.fronts.entry(front).or_default().all = ends;
            })?;
            self.fronts(
                family,
                ["nodeports", "nodeport-endpoints", "sticky-nodeports"],
                |front, ends| {
                    forwarding.fronts.entry(front).or_default().all = ends;
                },
            )?;
            for [verdicts, rows, sticky] in [
                ["local-frontends", "local-endpoints", "sticky-local-frontends"],
                ["local-nodeports", "local-nodeport-endpoints", "sticky-local-nodeports"],
            ] {
                self.fronts(family, [verdicts, rows, sticky], |front, ends| {
                    forwarding.fronts.entry(front).or_default().outside = Some(ends);
                })?;
                // These are found by the handle alone, after the others.
                for (front, group) in self.pairs(family, sticky) {
                    let backends: &mut Backends =
                        forwarding.fronts.entry(front_of(family, &front)).or_default();
                    backends.outside = Some(self.group(family, &group)?);
                }
            }
            let ips = self.elements_of(family, "cluster-ips").iter();
            forwarding
                .cluster_ips
                .extend(ips.map(|it| it.as_str().unwrap().parse::<std::net::IpAddr>().unwrap()));
            let fronts = |set| self.elements_of(family, set).iter().map(|it| front_of(family, it));
            forwarding
                .rejected
                .extend(fronts("no-endpoints").chain(fronts("nodeport-no-endpoints")));
            forwarding
                .dropped
                .extend(fronts("no-local-endpoints").chain(fronts("nodeport-no-local-endpoints")));
        }
        Ok(forwarding)
    }

    /// Tells every frontend of a verdict map with its endpoints, be they in slots of its own or in a group's.
    fn fronts(
        &self,
        family: Family,
        [verdicts, rows, sticky]: [&str; 3],
        mut tell: impl FnMut(Front, BTreeSet<SocketAddr>),
    ) -> Result<(), String> {
        let mut slots: BTreeMap<Front, BTreeMap<u64, SocketAddr>> = BTreeMap::new();
        for (key, endpoint) in self.pairs(family, rows) {
            let (front, slot) = split_slot(&key);
            slots.entry(front_of(family, &front)).or_default().insert(slot, socket_of(&endpoint));
        }
        let groups: BTreeMap<Front, Value> = self
            .pairs(family, sticky)
            .map(|(key, group)| (front_of(family, &key), group))
            .collect();
        for (key, verdict) in self.pairs(family, verdicts) {
            let front = front_of(family, &key);
            let chain =
                verdict["goto"]["target"].as_str().ok_or(format!("{front:?}: {verdict}"))?;
            let ends = if chain.starts_with("sticky") {
                let group = groups.get(&front).ok_or(format!("{front:?} has no group"))?;
                self.group(family, group)?
            } else {
                let filled = slots.remove(&front).unwrap_or_default();
                compact(&filled, chain).map_err(|why| format!("{front:?} in {verdicts}: {why}"))?
            };
            tell(front, ends);
        }
        if slots.is_empty() { Ok(()) } else { Err(format!("{rows} without a verdict: {slots:?}")) }
    }

    /// The endpoints of an affinity group.
    fn group(&self, family: Family, group: &Value) -> Result<BTreeSet<SocketAddr>, String> {
        let verdicts: Vec<Value> = self
            .pairs(family, "sticky-groups")
            .filter(|it| it.0 == *group)
            .map(|it| it.1)
            .collect();
        let [verdict] = &verdicts[..] else { return Err(format!("group {group}: {verdicts:?}")) };
        let mut slots = BTreeMap::new();
        for (key, handle) in self.pairs(family, "sticky-slots") {
            if key["concat"][0] == *group {
                let endpoint = self.pairs(family, "sticky-endpoints").find(|it| it.0 == handle);
                let (_, endpoint) = endpoint.ok_or(format!("handle {handle} leads nowhere"))?;
                slots.insert(key["concat"][1].as_u64().unwrap(), socket_of(&endpoint));
            }
        }
        let chain = verdict["goto"]["target"].as_str().unwrap_or_default();
        compact(&slots, chain).map_err(|why| format!("group {group}: {why}"))
    }

    fn elements_of(&self, family: Family, set: &str) -> &[Value] {
        self.sets.get(&(family, set.to_owned())).map_or(&[], Vec::as_slice)
    }

    fn pairs(&self, family: Family, map: &str) -> impl Iterator<Item = (Value, Value)> {
        self.elements_of(family, map).iter().map(|it| (it[0].clone(), it[1].clone()))
    }
}

/// Slots are filled from 0 on, as many as the chain draws from at most, a quarter of them at least.
fn compact(slots: &BTreeMap<u64, SocketAddr>, chain: &str) -> Result<BTreeSet<SocketAddr>, String> {
    let ends: BTreeSet<SocketAddr> = slots.values().copied().collect();
    let drawn: u64 = chain.rsplit('-').next().and_then(|it| it.parse().ok()).ok_or("no slots")?;
    let filled = slots.len() as u64;
    let is_compact = slots.keys().copied().eq(0..filled);
    let fits = filled == 0 || (filled <= drawn && filled >= drawn.div_ceil(4));
    if is_compact && fits && ends.len() == slots.len() {
        Ok(ends)
    } else {
        Err(format!("slots {slots:?} with {chain}"))
    }
}

/// `[address, protocol, port]` or `[protocol, port]`.
fn front_of(family: Family, key: &Value) -> Front {
    let parts = key["concat"].as_array().unwrap();
    let (address, rest) =
        if parts.len() == 3 { (Some(&parts[0]), &parts[1..]) } else { (None, &parts[..]) };
    let protocol = match rest[0].as_str() {
        Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        other => panic!("protocol {other:?}"),
    };
    let port = u16::try_from(rest[1].as_u64().unwrap()).unwrap();
    match address {
        Some(address) => Front::Address(address.as_str().unwrap().parse().unwrap(), port, protocol),
        None => Front::NodePort(family, port, protocol),
    }
}

fn split_slot(key: &Value) -> (Value, u64) {
    let mut parts = key["concat"].as_array().unwrap().clone();
    let slot = parts.pop().unwrap().as_u64().unwrap();
    (serde_json::json!({ "concat": parts }), slot)
}

fn socket_of(value: &Value) -> SocketAddr {
    let (address, port) = (&value["concat"][0], &value["concat"][1]);
    let port = u16::try_from(port.as_u64().unwrap()).unwrap();
    SocketAddr::new(address.as_str().unwrap().parse().unwrap(), port)
}

#[test]
fn a_hole_between_slots_is_found() {
    let slots = |numbers: &[u64]| -> BTreeMap<u64, SocketAddr> {
        let at = |n: &u64| (*n, SocketAddr::from(([10, 0, 0, u8::try_from(*n).unwrap()], 80)));
        numbers.iter().map(at).collect()
    };
    assert_eq!(compact(&slots(&[0, 1]), "pick-4").unwrap().len(), 2);
    assert!(compact(&slots(&[]), "pick-1").unwrap().is_empty());
    for (numbers, chain) in [(&[0, 2][..], "pick-4"), (&[0, 1], "pick-1"), (&[0], "pick-8")] {
        assert!(compact(&slots(numbers), chain).is_err(), "{numbers:?} {chain}");
    }
}
