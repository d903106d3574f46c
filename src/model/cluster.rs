//! The state of the cluster: what the API server last said, without what is never consulted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;

use super::change::{Change, Resource, Skipped};
use super::endpoint::{Endpoint, EndpointSlice, SliceContent, SlicePort};
use super::ledger::{Epoch, Ledger};
use super::name::{Family, ObjectName};
use super::node::{Node, ServiceCidr};
use super::places::Places;
use super::range::disjoint;
use super::service::{Service, SourceRanges};
use super::touched::Touched;

/// Stands for a Service's name while the Service, or a slice of it, exists; may be given to another one afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u32);

/// Everything that is known.
///
/// The final state depends on the final objects alone, not on the order or number of changes that led there; only
/// the numbers in [`ServiceId`]s do.
#[derive(Clone, Debug)]
pub struct Cluster {
    ids: Places,
    /// By `ServiceId`.
    entries: Vec<Option<Entry>>,
    /// Numbers that may be given out again, the last freed first.
    free: Vec<ServiceId>,
    /// Whose entry a slice, by its own name, is in.
    owners: Places,
    node: Option<Node>,
    host_addresses: BTreeSet<IpAddr>,
    service_cidrs: BTreeMap<Arc<str>, (Vec<IpNet>, Epoch)>,
    ledger: Ledger,
}

/// One Service and its slices; either may come first.
#[derive(Clone, Debug)]
struct Entry {
    name: ObjectName,
    service: Option<(Box<Service>, Epoch)>,
    /// Sorted by name.
    slices: Vec<Slice>,
}

/// An EndpointSlice under its Service, whose namespace it shares. Most Services have one, so every byte counts.
#[derive(Clone, Debug)]
struct Slice {
    name: Arc<str>,
    ports: Box<[SlicePort]>,
    endpoints: Box<[Endpoint]>,
    seen: Epoch,
    family: Family,
    ipvs_weight: Option<NonZeroU16>,
}

impl Slice {
    fn heap_bytes(&self) -> usize {
        self.name.len() + size_of_val(&*self.ports) + size_of_val(&*self.endpoints)
    }

    fn content(&self) -> SliceContent<'_> {
        SliceContent {
            family: self.family,
            ports: &self.ports,
            endpoints: &self.endpoints,
            ipvs_weight: self.ipvs_weight,
        }
    }
}

impl Entry {
    fn heap_bytes(&self) -> usize {
        let slices = self.slices.iter().map(Slice::heap_bytes).sum::<usize>();
        let service =
            self.service.as_ref().map_or(0, |(it, _)| size_of::<Service>() + it.heap_bytes());
        let name = self.name.namespace.len() + self.name.name.len();
        name + service + self.slices.capacity() * size_of::<Slice>() + slices
    }
}

impl Default for Cluster {
    /// A cluster of which all four resources will be listed.
    fn default() -> Self {
        Cluster::new(&[
            Resource::Service,
            Resource::EndpointSlice,
            Resource::Node,
            Resource::ServiceCidr,
        ])
    }
}

impl Cluster {
    /// An empty cluster that is complete once each of `required` has been listed.
    pub fn new(required: &[Resource]) -> Self {
        Cluster {
            ids: Places::default(),
            entries: Vec::new(),
            free: Vec::new(),
            owners: Places::default(),
            node: None,
            host_addresses: BTreeSet::new(),
            service_cidrs: BTreeMap::new(),
            ledger: Ledger::new(required),
        }
    }

    /// Takes in one event and says what it may have altered. An object equal to the known one alters nothing.
    pub fn apply(&mut self, change: Change) -> Touched {
        match change {
            Change::Listing(resource) => {
                self.ledger.begin(resource);
                Touched::default()
            }
            Change::Listed(resource) => self.listed(resource),
            Change::ServiceApplied(service) => self.apply_service(service),
            Change::ServiceDeleted(name) => self.delete_service(&name),
            Change::SliceApplied(slice) => self.apply_slice(slice),
            Change::SliceDeleted(name) => self.delete_slice(&name),
            Change::NodeApplied(node) => self.apply_node(node),
            Change::NodeDeleted => keep_node(),
            Change::ServiceCidrApplied(cidr) => self.apply_service_cidr(cidr),
            Change::ServiceCidrDeleted(name) => self.delete_service_cidr(&name),
            Change::HostAddresses(addresses) => self.set_host_addresses(addresses),
            Change::Unusable(skipped) => self.forget(&skipped),
        }
    }

    /// Whether every required resource has been listed; nothing may be written to a kernel before.
    pub fn is_complete(&self) -> bool {
        self.ledger.is_complete()
    }

    /// What is missing for [`Cluster::is_complete`].
    pub fn unlisted(&self) -> impl Iterator<Item = Resource> {
        self.ledger.missing()
    }

    /// Bytes on the heap, about: what a walk over the objects finds, without what the allocator adds. Strings that objects
    /// share count for none.
    pub fn heap_bytes(&self) -> usize {
        let entries = self.entries.iter().flatten().map(Entry::heap_bytes).sum::<usize>();
        self.entries.capacity() * size_of::<Option<Entry>>()
            + entries
            + self.ids.heap_bytes()
            + self.owners.heap_bytes()
    }

    /// All Services, in the order of their ids.
    pub fn ids(&self) -> impl Iterator<Item = ServiceId> {
        self.services().map(|(id, _)| id)
    }

    /// All Services, in the order of their ids.
    pub fn services(&self) -> impl Iterator<Item = (ServiceId, &Service)> {
        (0..).map(ServiceId).zip(&self.entries).filter_map(|(id, entry)| {
            let (service, _) = entry.as_ref()?.service.as_ref()?;
            Some((id, &**service))
        })
    }

    /// The id of a Service, or of one of which only slices are known.
    pub fn id(&self, name: &ObjectName) -> Option<ServiceId> {
        self.ids.get(name, |id| self.entry(id).is_some_and(|it| it.name == *name))
    }

    pub fn name(&self, id: ServiceId) -> Option<&ObjectName> {
        self.entry(id).map(|it| &it.name)
    }

    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        self.entry(id)?.service.as_ref().map(|(service, _)| &**service)
    }

    /// The slices of a Service, sorted by name.
    pub fn slices(&self, id: ServiceId) -> impl Iterator<Item = SliceContent<'_>> {
        self.entry(id).into_iter().flat_map(|it| it.slices.iter().map(Slice::content))
    }

    /// The host's own addresses, loopback included.
    pub fn host_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.host_addresses
    }

    /// The own Node as last seen; it outlives its object (see [`Change::NodeDeleted`]).
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The own Node's first address of this family.
    pub fn node_ip(&self, family: Family) -> Option<IpAddr> {
        self.node.as_ref().and_then(|it| it.primary(family))
    }

    /// The union of all ServiceCIDRs of a family: sorted, disjoint. A range stays while any object lists it.
    pub fn service_cidrs(&self, family: Family) -> Vec<IpNet> {
        let all = self.service_cidrs.values().flat_map(|(cidrs, _)| cidrs).copied();
        disjoint(all.filter(|it| Family::of(it.addr()) == family).collect())
    }

    fn listed(&mut self, resource: Resource) -> Touched {
        let epoch = self.ledger.epoch(resource);
        let mut touched = match resource {
            Resource::Service => self.sweep_services(epoch),
            Resource::EndpointSlice => self.sweep_slices(epoch),
            Resource::Node => keep_node(),
            Resource::ServiceCidr => self.sweep_service_cidrs(epoch),
        };
        touched.completed = self.ledger.end(resource);
        touched
    }

    fn sweep_services(&mut self, epoch: Epoch) -> Touched {
        let gone = |entry: &Entry| entry.service.as_ref().is_some_and(|(_, seen)| *seen != epoch);
        let names: Vec<ObjectName> =
            self.entries.iter().flatten().filter(|it| gone(it)).map(|it| it.name.clone()).collect();
        union(names.iter().map(|name| self.delete_service(name)))
    }

    fn sweep_slices(&mut self, epoch: Epoch) -> Touched {
        let gone = self.entries.iter().flatten().flat_map(|entry| {
            let gone = entry.slices.iter().filter(|it| it.seen != epoch);
            gone.map(|it| entry.slice_name(it))
        });
        let names: Vec<ObjectName> = gone.collect();
        union(names.iter().map(|name| self.delete_slice(name)))
    }

    fn sweep_service_cidrs(&mut self, epoch: Epoch) -> Touched {
        let before = self.service_cidrs.len();
        self.service_cidrs.retain(|_, (_, seen)| *seen == epoch);
        Touched { service_cidrs: self.service_cidrs.len() != before, ..Touched::default() }
    }

    fn apply_service(&mut self, mut service: Service) -> Touched {
        let epoch = self.ledger.epoch(Resource::Service);
        let id = self.enter(&service.name);
        let Some(entry) = self.entry_mut(id) else { return Touched::default() };
        // One text for both.
        service.name.clone_from(&entry.name);
        match &mut entry.service {
            Some((known, seen)) if **known == service => {
                *seen = epoch;
                Touched::default()
            }
            known => {
                *known = Some((Box::new(service), epoch));
                Touched { services: [id].into(), ..Touched::default() }
            }
        }
    }

    fn delete_service(&mut self, name: &ObjectName) -> Touched {
        let Some(id) = self.id(name) else { return Touched::default() };
        let known = self.entry_mut(id).and_then(|it| it.service.take());
        self.leave(id);
        Touched { services: known.map(|_| id).into_iter().collect(), ..Touched::default() }
    }

    fn apply_slice(&mut self, slice: EndpointSlice) -> Touched {
        let seen = self.ledger.epoch(Resource::EndpointSlice);
        let (family, trigger) = (slice.family, slice.trigger_time);
        let owner = self.enter(&slice.service);
        let former = self.owners.get(&slice.name, |id| self.holds(id, &slice.name));
        let mut touched = match former {
            Some(former) if former != owner => self.delete_slice(&slice.name),
            Some(_) | None => Touched::default(),
        };
        if former != Some(owner) {
            self.owners.insert(&slice.name, owner);
        }
        let Some(entry) = self.entry_mut(owner) else { return touched };
        let place = entry.find(&slice.name);
        let EndpointSlice { name: ObjectName { name, .. }, ports, endpoints, ipvs_weight, .. } =
            slice;
        let (ports, endpoints) = (ports.into_boxed_slice(), endpoints.into_boxed_slice());
        let slice = Slice { name, ports, endpoints, seen, family, ipvs_weight };
        match place {
            Ok(at) => match entry.slices.get_mut(at) {
                Some(known) if known.content() == slice.content() => {
                    known.seen = seen;
                    return touched;
                }
                Some(known) => *known = slice,
                None => (),
            },
            Err(at) => {
                // Most Services have one slice; a spare place in each of thousands is wasted.
                entry.slices.reserve_exact(1);
                entry.slices.insert(at, slice);
            }
        }
        if entry.service.is_some() {
            touched.services.insert(owner);
            touched.triggers.extend(trigger.map(|at| (owner, family, at)));
        }
        touched
    }

    fn delete_slice(&mut self, name: &ObjectName) -> Touched {
        let entries = &self.entries;
        let holds = |id| entry_of(entries, id).is_some_and(|it| it.holds(name));
        let Some(owner) = self.owners.remove(name, holds) else { return Touched::default() };
        let Some(entry) = self.entry_mut(owner) else { return Touched::default() };
        entry.slices.retain(|slice| slice.name != name.name);
        let touches: Vec<ServiceId> = entry.service.as_ref().map(|_| owner).into_iter().collect();
        self.leave(owner);
        Touched {
            triggers_void: [owner].into(),
            services: touches.into_iter().collect(),
            ..Touched::default()
        }
    }

    fn set_host_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> Touched {
        let node = self.host_addresses != addresses;
        self.host_addresses = addresses;
        Touched { node, ..Touched::default() }
    }

    fn apply_node(&mut self, node: Node) -> Touched {
        if self.node.as_ref() == Some(&node) {
            return Touched::default();
        }
        let old = self.node.replace(node);
        let zone = |node: Option<&Node>| node.and_then(|it| it.zone.clone());
        let moved = zone(old.as_ref()) != zone(self.node.as_ref());
        let renumbered = Family::ALL
            .map(|family| old.as_ref().and_then(|it| it.primary(family)) != self.node_ip(family));
        // A walk over everything instead of a count kept up to date: a node's zone and addresses change about never.
        let entries = (0..).map(ServiceId).zip(&self.entries);
        let dependent = entries.filter(|(_, entry)| {
            entry.as_ref().is_some_and(|it| {
                (moved && it.has_zone_hints()) || it.has_source_ranges(renumbered)
            })
        });
        Touched {
            node: true,
            services: dependent.map(|(id, _)| id).collect(),
            ..Touched::default()
        }
    }

    fn apply_service_cidr(&mut self, cidr: ServiceCidr) -> Touched {
        let epoch = self.ledger.epoch(Resource::ServiceCidr);
        let known = self.service_cidrs.insert(cidr.name, (cidr.cidrs.clone(), epoch));
        let same = known.is_some_and(|(cidrs, _)| cidrs == cidr.cidrs);
        Touched { service_cidrs: !same, ..Touched::default() }
    }

    fn delete_service_cidr(&mut self, name: &str) -> Touched {
        Touched { service_cidrs: self.service_cidrs.remove(name).is_some(), ..Touched::default() }
    }

    fn forget(&mut self, skipped: &Skipped) -> Touched {
        match skipped.resource {
            Resource::Service => self.delete_service(&skipped.name),
            Resource::EndpointSlice => self.delete_slice(&skipped.name),
            Resource::Node => keep_node(),
            Resource::ServiceCidr => self.delete_service_cidr(&skipped.name.name),
        }
    }

    fn entry(&self, id: ServiceId) -> Option<&Entry> {
        entry_of(&self.entries, id)
    }

    /// Whether the slice of that name is in that entry.
    fn holds(&self, id: ServiceId, slice: &ObjectName) -> bool {
        self.entry(id).is_some_and(|it| it.holds(slice))
    }

    fn entry_mut(&mut self, id: ServiceId) -> Option<&mut Entry> {
        self.entries.get_mut(id.index())?.as_mut()
    }

    /// The id of that name, given out now if need be.
    fn enter(&mut self, name: &ObjectName) -> ServiceId {
        if let Some(id) = self.id(name) {
            return id;
        }
        let entry = Entry { name: name.clone(), service: None, slices: Vec::new() };
        let id = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            ServiceId(
                u32::try_from(self.entries.len() - 1).expect("memory ends before 2^32 Services"),
            )
        });
        if let Some(place) = self.entries.get_mut(id.index()) {
            *place = Some(entry);
        }
        self.ids.insert(name, id);
        id
    }

    /// Frees the id if nothing is left in its entry.
    fn leave(&mut self, id: ServiceId) {
        let Some(place) = self.entries.get_mut(id.index()) else { return };
        if let Some(entry) = place.take_if(|it| it.service.is_none() && it.slices.is_empty()) {
            // The entry is out already: of all that have its name, it is this one.
            self.ids.remove(&entry.name, |it| it == id);
            self.free.push(id);
        }
    }
}

impl ServiceId {
    /// Ids are small and used again, so lists by id are dense.
    pub fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

fn entry_of(entries: &[Option<Entry>], id: ServiceId) -> Option<&Entry> {
    entries.get(id.index())?.as_ref()
}

impl Entry {
    /// Where the slice of that name is, or would be.
    fn find(&self, slice: &ObjectName) -> Result<usize, usize> {
        self.slices.binary_search_by(|known| known.name.cmp(&slice.name))
    }

    fn holds(&self, slice: &ObjectName) -> bool {
        self.name.namespace == slice.namespace && self.find(slice).is_ok()
    }

    fn slice_name(&self, slice: &Slice) -> ObjectName {
        let namespace = Arc::clone(&self.name.namespace);
        ObjectName { namespace, name: Arc::clone(&slice.name) }
    }

    fn has_zone_hints(&self) -> bool {
        let mut endpoints = self.slices.iter().flat_map(|slice| &slice.endpoints);
        self.service.is_some() && endpoints.any(|it| it.zone_hints.is_some())
    }

    /// Whether the Service restricts sources in one of the families, V4 first, that are asked for.
    fn has_source_ranges(&self, [v4, v6]: [bool; 2]) -> bool {
        let Some((service, _)) = &self.service else { return false };
        let restricts = |family| {
            service.family(family).is_some_and(|it| it.source_ranges != SourceRanges::Unrestricted)
        };
        (v4 && restricts(Family::V4)) || (v6 && restricts(Family::V6))
    }
}

/// A Node object that goes, or cannot be read for once, changes nothing: the machine and its pods are still here, and
/// traffic must not move because somebody re-creates the object (reference 10.1).
fn keep_node() -> Touched {
    Touched::default()
}

fn union(all: impl Iterator<Item = Touched>) -> Touched {
    all.fold(Touched::default(), |mut union, it| {
        union.merge(it);
        union
    })
}

#[cfg(test)]
mod tests;
