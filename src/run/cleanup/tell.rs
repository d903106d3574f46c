//! What a start says of kube-proxy's leftovers.

use tracing::warn;

use super::word;
use crate::ipvs::schema::INTERFACE;
use crate::kernel::{LegacyTables, NetlinkIpvs, OtherTables};
use crate::leftovers::{self, Table};
use crate::model::Family;

/// Says at a start that kube-proxy has left something, or is still there. Nothing is removed without being told to:
/// the way back is short as long as it is there, and connections that IPVS balances would end.
pub(in crate::run) fn tell_of_leftovers() {
    match leftovers() {
        Ok(found) if found.is_empty() => (),
        Ok(found) => warn!(
            "found what kube-proxy programs: {}. Once it has ended this does not change any more: a Service that is \
             deleted is still served by it, one that is fenced is fenced by its old ranges too. Remove it then by \
             kube-ferry --cleanup --cleanup-of=kube-proxy",
            found.join(", ")
        ),
        Err(error) => warn!("cannot look for what kube-proxy has left: {error:#}"),
    }
}

/// What there is of kube-proxy, at the cost of a few questions.
fn leftovers() -> anyhow::Result<Vec<String>> {
    let (nat, services) = (Table::Nat.name(), leftovers::SERVICES_CHAIN);
    let mut tables = OtherTables::new()?;
    let mut found = Vec::new();
    for family in Family::ALL {
        let (word, kube_proxy) = (word(family), leftovers::NFTABLES_TABLE);
        if tables.has(family, kube_proxy, None)? {
            found.push(format!("table {word} {kube_proxy}"));
        }
        if tables.has(family, nat, Some(services))? {
            found.push(format!("chains in table {word} {nat}"));
        }
        if LegacyTables::names(family)?.iter().any(|it| it == nat)
            && LegacyTables::new(family)?.chains(nat)?.chains.contains_key(services)
        {
            found.push(format!("chains in table {word} {nat} of iptables-legacy"));
        }
    }
    if NetlinkIpvs::new(Vec::new())?.interface_is_ours()? == Some(false) {
        found.push(format!("the interface {INTERFACE}"));
    }
    Ok(found)
}
