//! The rows of a Service. There is no other place that knows them: what changes is the difference of two results.

use ipnet::IpNet;

use super::programmed::{Pool, Port, Programmed, Which, is_external_local, main_pool};
use crate::forward::{Frontend, FrontendAddress, FrontendKind, WithoutBackend};
use crate::model::{Family, Protocol};
use crate::nft::schema::{
    AddressPort, Chain, Handle, Key, NodePortKey, SetName, Slots, Value, Verdict,
};

/// Which row of which table. Ordered so that a set's rows are together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RowId {
    pub(super) family: Family,
    pub(super) set: SetName,
    pub(super) key: Key,
}

/// Rows, sorted, no two with the same id; with those of programs for IPVS only.
pub(super) fn rows(service: &Programmed, ipvs: bool) -> Vec<(RowId, Value)> {
    let mut rows = Rows { ipvs, rows: Vec::new() };
    for port in &service.ports {
        rows.port(port);
    }
    rows.rows.sort_unstable();
    rows.rows.dedup_by_key(|(id, _)| *id);
    rows.rows
}

/// Rows that several Services, or several ports of a Service, may have in common.
pub(super) fn is_shared(set: SetName) -> bool {
    matches!(set, SetName::ClusterIps | SetName::Hairpin)
}

/// Key of a frontend, and the sets it has rows in.
#[derive(Clone, Copy, Debug)]
pub(super) enum At {
    Address(AddressPort),
    NodePort(NodePortKey),
}

/// The sets of frontends of one kind of key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sets {
    pub(super) dispatch: SetName,
    pub(super) local_dispatch: SetName,
    pub(super) endpoints: SetName,
    pub(super) local_endpoints: SetName,
    pub(super) sticky: SetName,
    pub(super) sticky_local: SetName,
    reject: SetName,
    drop: SetName,
}

impl At {
    pub(super) fn new(protocol: Protocol, at: FrontendAddress) -> At {
        match at {
            FrontendAddress::Address(address, port) => {
                At::Address(AddressPort { address, protocol, port })
            }
            FrontendAddress::NodePort(port) => At::NodePort(NodePortKey { protocol, port }),
        }
    }

    pub(super) fn key(self) -> Key {
        match self {
            At::Address(at) => Key::Frontend(at),
            At::NodePort(at) => Key::NodePort(at),
        }
    }

    pub(super) fn slot(self, slot: u16) -> Key {
        match self {
            At::Address(at) => Key::FrontendSlot(at, slot),
            At::NodePort(at) => Key::NodePortSlot(at, slot),
        }
    }

    pub(super) fn sets(self) -> Sets {
        match self {
            At::Address(_) => Sets {
                dispatch: SetName::Frontends,
                local_dispatch: SetName::LocalFrontends,
                endpoints: SetName::Endpoints,
                local_endpoints: SetName::LocalEndpoints,
                sticky: SetName::StickyFrontends,
                sticky_local: SetName::StickyLocalFrontends,
                reject: SetName::NoEndpoints,
                drop: SetName::NoLocalEndpoints,
            },
            At::NodePort(_) => Sets {
                dispatch: SetName::NodePorts,
                local_dispatch: SetName::LocalNodePorts,
                endpoints: SetName::NodePortEndpoints,
                local_endpoints: SetName::LocalNodePortEndpoints,
                sticky: SetName::StickyNodePorts,
                sticky_local: SetName::StickyLocalNodePorts,
                reject: SetName::NodePortNoEndpoints,
                drop: SetName::NodePortNoLocalEndpoints,
            },
        }
    }
}

struct Rows {
    ipvs: bool,
    rows: Vec<(RowId, Value)>,
}

impl Rows {
    fn push(&mut self, family: Family, set: SetName, key: Key, value: Value) {
        self.rows.push((RowId { family, set, key }, value));
    }

    fn port(&mut self, port: &Port) {
        for frontend in &port.frontends {
            self.dispatch(port, frontend);
            self.checks(port, frontend);
        }
        for address in &port.hairpin {
            let key = Key::Pair(*address, *address);
            self.push(port.family, SetName::Hairpin, key, Value::None);
        }
        if let Some(seconds) = port.affinity {
            self.group(port.family, seconds, &port.cluster);
            self.group(port.family, seconds, &port.local);
        }
    }

    /// Where the frontend's connections go. The verdict stays while there are no endpoints: all draws miss then, and
    /// the packet goes on to the checks.
    fn dispatch(&mut self, port: &Port, frontend: &Frontend) {
        let at = At::new(port.protocol, frontend.at);
        let sets = at.sets();
        let main = port.pool(main_pool(frontend));
        let verdict = goto(main_chain(port, frontend, main.slots.capacity()));
        self.push(port.family, sets.dispatch, at.key(), verdict);
        self.pool(port.family, at, sets.sticky, sets.endpoints, main);
        if is_external_local(frontend) {
            let local = port.pool(Which::Local);
            if port.affinity.is_none() {
                let chain = local_chain(at, local.slots.capacity());
                self.push(port.family, sets.local_dispatch, at.key(), goto(chain));
            }
            self.pool(port.family, at, sets.sticky_local, sets.local_endpoints, local);
        }
    }

    /// With affinity a frontend has its group, without it has the endpoints themselves.
    fn pool(&mut self, family: Family, at: At, sticky: SetName, endpoints: SetName, pool: &Pool) {
        if let Some(group) = &pool.group {
            return self.push(family, sticky, at.key(), Value::Handle(group.handle));
        }
        for (slot, backend) in pool.slots.rows() {
            let value = Value::Endpoint(backend.address, backend.port);
            self.push(family, endpoints, at.slot(slot), value);
        }
    }

    fn group(&mut self, family: Family, seconds: u32, pool: &Pool) {
        let Some(group) = &pool.group else { return };
        let key = Key::Group(group.handle);
        let pick = goto(Chain::StickyPick(pool.slots.capacity()));
        self.push(family, SetName::StickyGroups, key, pick);
        let remember = Value::Verdict(Verdict::Jump(Chain::Remember(seconds)));
        self.push(family, SetName::AffinityTimeouts, key, remember);
        for (slot, number, backend) in pool.numbered() {
            let handle = Handle::new(group.handle.group(), number);
            let slot = Key::GroupSlot(group.handle, slot);
            self.push(family, SetName::StickySlots, slot, Value::Handle(handle));
            let endpoint = Value::Endpoint(backend.address, backend.port);
            self.push(family, SetName::StickyEndpoints, Key::Group(handle), endpoint);
        }
    }

    /// What the filter chains look at.
    fn checks(&mut self, port: &Port, frontend: &Frontend) {
        let (family, at) = (port.family, At::new(port.protocol, frontend.at));
        if let (FrontendKind::ClusterIp, At::Address(it)) = (frontend.kind, at) {
            self.push(family, SetName::ClusterIps, Key::Address(it.address), Value::None);
            if self.ipvs && frontend.without_backend == WithoutBackend::Served {
                self.push(family, SetName::IpvsServices, at.key(), Value::None);
            }
        }
        match frontend.without_backend {
            WithoutBackend::Served => {}
            WithoutBackend::Reject => self.push(family, at.sets().reject, at.key(), Value::None),
            WithoutBackend::Drop => self.push(family, at.sets().drop, at.key(), Value::None),
        }
        if let (Some(ranges), At::Address(it)) = (&frontend.source_ranges, at) {
            self.push(family, SetName::Firewalled, at.key(), Value::None);
            // The kernel refuses ranges that overlap.
            for net in IpNet::aggregate(&ranges.to_vec()) {
                let key = Key::FrontendSource(it, net);
                self.push(family, SetName::SourceRanges, key, Value::None);
            }
        }
    }
}

fn goto(chain: Chain) -> Value {
    Value::Verdict(Verdict::Goto(chain))
}

fn main_chain(port: &Port, frontend: &Frontend, slots: Slots) -> Chain {
    let sticky = port.affinity.is_some();
    let local = is_external_local(frontend);
    match (frontend.kind, sticky, local) {
        (FrontendKind::ClusterIp, false, _) => Chain::Pick(slots),
        (FrontendKind::ClusterIp, true, _) => Chain::Sticky,
        (FrontendKind::NodePort, false, false) => Chain::NodePort(slots),
        (FrontendKind::NodePort, false, true) => Chain::NodePortLocal(slots),
        (FrontendKind::NodePort, true, false) => Chain::StickyNodePort,
        (FrontendKind::NodePort, true, true) => Chain::StickyNodePortLocal,
        (FrontendKind::ExternalIp | FrontendKind::LoadBalancerIp, false, false) => {
            Chain::External(slots)
        }
        (FrontendKind::ExternalIp | FrontendKind::LoadBalancerIp, false, true) => {
            Chain::ExternalLocal(slots)
        }
        (FrontendKind::ExternalIp | FrontendKind::LoadBalancerIp, true, false) => {
            Chain::StickyExternal
        }
        (FrontendKind::ExternalIp | FrontendKind::LoadBalancerIp, true, true) => {
            Chain::StickyExternalLocal
        }
    }
}

fn local_chain(at: At, slots: Slots) -> Chain {
    match at {
        At::Address(_) => Chain::LocalPick(slots),
        At::NodePort(_) => Chain::NodePortLocalPick(slots),
    }
}
