//! What the kernel has for a Service: just enough to tell its rows.

use std::net::IpAddr;

use crate::forward::{Backend, Frontend, FrontendAddress, FrontendKind};
use crate::model::{Family, Protocol, TrafficPolicy};
use crate::nft::schema::{Handle, Owner};
use crate::nft::slots::SlotTable;

/// All Services by owner; owners are small numbers that are used again.
#[derive(Debug, Default)]
pub(super) struct Services(Vec<Programmed>);

impl Services {
    /// Bytes on the heap, about.
    pub(super) fn heap_bytes(&self) -> usize {
        let ports = self.0.iter().flat_map(|it| &it.ports);
        let bytes = |port: &Port| {
            let pools = [&port.cluster, &port.local].into_iter();
            let backends = pools.map(|it| size_of_val(it.slots.backends())).sum::<usize>();
            size_of::<Port>()
                + size_of_val(&*port.frontends)
                + size_of_val(&*port.hairpin)
                + backends
        };
        self.0.capacity() * size_of::<Programmed>() + ports.map(bytes).sum::<usize>()
    }

    /// Empty if nothing of it is programmed.
    pub(super) fn get(&self, owner: Owner) -> Programmed {
        self.0.get(index(owner)).cloned().unwrap_or_default()
    }

    /// Returns what was there before.
    pub(super) fn put(&mut self, owner: Owner, programmed: Programmed) -> Programmed {
        if self.0.len() <= index(owner) {
            self.0.resize(index(owner) + 1, Programmed::default());
        }
        let place = self.0.get_mut(index(owner));
        place.map(|it| std::mem::replace(it, programmed)).unwrap_or_default()
    }
}

fn index(owner: Owner) -> usize {
    usize::try_from(owner.0).unwrap_or(usize::MAX)
}

/// The ports of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Programmed {
    pub(super) ports: Box<[Port]>,
}

/// One Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) family: Family,
    pub(super) protocol: Protocol,
    pub(super) frontends: Box<[Frontend]>,
    pub(super) cluster: Pool,
    pub(super) local: Pool,
    pub(super) hairpin: Box<[IpAddr]>,
    /// Session affinity in seconds. Then each pool that is used has a group.
    pub(super) affinity: Option<u32>,
}

/// Backends in slots, under one policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pool {
    pub(super) slots: SlotTable,
    pub(super) group: Option<Box<Group>>,
}

/// The pool's numbers for session affinity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) handle: Handle,
    /// Number of the backend in the same slot.
    pub(super) numbers: Box<[u16]>,
    /// The number that was given out last.
    pub(super) last: u16,
}

/// One of a port's pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Cluster,
    Local,
}

/// A frontend's identity in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Claim {
    pub(super) family: Family,
    pub(super) protocol: Protocol,
    pub(super) at: FrontendAddress,
}

impl Programmed {
    pub(super) fn claims(&self) -> impl Iterator<Item = Claim> + '_ {
        self.ports.iter().flat_map(Port::claims)
    }

    /// Family and number of the endpoint groups.
    pub(super) fn groups(&self) -> impl Iterator<Item = (Family, Handle)> + '_ {
        self.ports.iter().flat_map(|port| {
            let groups =
                [&port.cluster, &port.local].into_iter().filter_map(|it| it.group.as_ref());
            groups.map(|group| (port.family, group.handle))
        })
    }

    /// Family and seconds of session affinity, one for each port that has it.
    pub(super) fn timeouts(&self) -> impl Iterator<Item = (Family, u32)> + '_ {
        self.ports.iter().filter_map(|port| port.affinity.map(|seconds| (port.family, seconds)))
    }

    /// Without one frontend, which another Service has taken over.
    pub(super) fn without(mut self, claim: Claim) -> Programmed {
        let mut ports = std::mem::take(&mut self.ports).into_vec();
        for port in &mut ports {
            if port.claims().any(|it| it == claim) {
                let left = port.frontends.iter().filter(|it| it.at != claim.at).cloned();
                port.frontends = left.collect();
            }
        }
        ports.retain(|port| !port.frontends.is_empty());
        Programmed { ports: ports.into() }
    }
}

impl Port {
    pub(super) fn claims(&self) -> impl Iterator<Item = Claim> + '_ {
        let (family, protocol) = (self.family, self.protocol);
        self.frontends.iter().map(move |it| Claim { family, protocol, at: it.at })
    }

    pub(super) fn pool(&self, which: Which) -> &Pool {
        match which {
            Which::Cluster => &self.cluster,
            Which::Local => &self.local,
        }
    }
}

impl Pool {
    /// Backends with slot and number; only for pools with a group.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (u16, u16, Backend)> + '_ {
        let numbers = self.group.iter().flat_map(|group| group.numbers.iter());
        self.slots.rows().zip(numbers).map(|((slot, backend), number)| (slot, *number, backend))
    }
}

/// The pool that the frontend's own chain draws from. Pods and the node itself reach external frontends' cluster
/// pool whatever the policy.
pub(super) fn main_pool(frontend: &Frontend) -> Which {
    match (frontend.kind, frontend.policy) {
        (FrontendKind::ClusterIp, TrafficPolicy::Local) => Which::Local,
        _ => Which::Cluster,
    }
}

/// Whether traffic from outside has to stay on this node.
pub(super) fn is_external_local(frontend: &Frontend) -> bool {
    frontend.kind != FrontendKind::ClusterIp && frontend.policy == TrafficPolicy::Local
}

/// Whether any of the frontends draws from the pool.
pub(super) fn uses(frontends: &[Frontend], which: Which) -> bool {
    let outside = |it| which == Which::Local && is_external_local(it);
    frontends.iter().any(|it| main_pool(it) == which || outside(it))
}
