//! EndpointSlices as the proxy needs them.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use super::name::{Family, ObjectName, Protocol};

/// One EndpointSlice of one Service and one family, as it arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub name: ObjectName,
    /// From the label `kubernetes.io/service-name`; same namespace as the slice.
    pub service: ObjectName,
    pub family: Family,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
    /// Annotation `kube-ferry/ipvs-weight`: the share of connections that each endpoint gets in IPVS mode; 1 if not given.
    pub ipvs_weight: Option<NonZeroU16>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`: nanoseconds since the epoch. Not part of the
    /// forwarding state: a slice that differs in nothing else is no change.
    pub trigger_time: Option<i128>,
}

/// What of an EndpointSlice matters for forwarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceContent<'a> {
    pub family: Family,
    pub ports: &'a [SlicePort],
    pub endpoints: &'a [Endpoint],
    pub ipvs_weight: Option<NonZeroU16>,
}

impl EndpointSlice {
    pub fn content(&self) -> SliceContent<'_> {
        SliceContent {
            family: self.family,
            ports: &self.ports,
            endpoints: &self.endpoints,
            ipvs_weight: self.ipvs_weight,
        }
    }
}

/// A port number that the slice's endpoints serve under a Service port's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlicePort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: NonZeroU16,
}

/// One endpoint. Conditions are resolved to booleans as reference 3.1 says (a missing condition counts as good).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// `nodeName` is this node's (reference 3.2).
    pub local: bool,
    pub node_hint: NodeHint,
    /// `hints.forZones`, sorted; shared between endpoints that list the same zones. `None`: no zone hints.
    pub zone_hints: Option<Arc<[Arc<str>]>>,
}

/// What `hints.forNodes` says about this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeHint {
    /// No node hints.
    Absent,
    /// Hinted for this node (perhaps among others).
    ThisNode,
    /// Hinted for other nodes only.
    OtherNodes,
}
