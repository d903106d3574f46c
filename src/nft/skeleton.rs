//! The constant program: which sets and chains a table has and what the rules say, given the settings.

use ipnet::IpNet;

use crate::model::Family;

mod chains;
mod hooks;
mod names;
mod sets;

pub use chains::{ChainSpec, chains, chains_of_slots, chains_without_slots, remember};
pub use hooks::{TABLE_COMMENT, base_hook, comment};
pub use sets::{is_used, sets, spec};

/// The settings that the program depends on; fixed while the process runs, but for a change of detectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The one bit of the packet mark that is ours, e.g. `0x4000`.
    pub masquerade_mark: u32,
    /// Masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// Cluster IPs are local addresses, and endpoints are virtual servers on them (see [`crate::ipvs`]).
    pub ipvs: bool,
    /// The families that have a table.
    pub families: Vec<Family>,
    pub v4: FamilyProgram,
    pub v6: FamilyProgram,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyProgram {
    /// How traffic of local pods is recognised; `None`: it is not.
    pub detector: Option<LocalDetector>,
    pub node_ports: NodePortAddresses,
}

/// `--detect-local-mode` (reference 11.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalDetector {
    /// The source address is in this range (ClusterCIDR, NodeCIDR).
    Source(IpNet),
    /// The packet came in by this interface (BridgeInterface).
    Interface(String),
    /// The packet came in by an interface with this prefix (InterfaceNamePrefix).
    InterfacePrefix(String),
}

/// Which of the node's addresses accept NodePorts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All local ones but loopback.
    All,
    /// Those in [`super::SetName::NodePortIps`].
    Listed,
}

impl Program {
    pub fn family(&self, family: Family) -> &FamilyProgram {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The settings that tests use unless they say otherwise: kube-proxy's own test fixture.
    pub(crate) fn program() -> Program {
        let family = |net: &str| FamilyProgram {
            detector: Some(LocalDetector::Source(net.parse().unwrap())),
            node_ports: NodePortAddresses::Listed,
        };
        Program {
            masquerade_mark: 0x4000,
            masquerade_all: false,
            ipvs: false,
            families: Family::ALL.to_vec(),
            v4: family("10.0.0.0/8"),
            v6: family("fd00:10::/64"),
        }
    }
}
