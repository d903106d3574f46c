//! The vocabulary: every set, map and chain there can be, what a row looks like, what a rule can say.
//!
//! The table of a family is a constant program (chains and rules) plus data (rows of sets and maps). The enums are
//! closed on purpose: no kernel object is ever named after a Service, so none of their number grows with Services.
//!
//! In comments `F` stands for `daddr . l4proto . dport` (a frontend) and `N` for `l4proto . dport` (a NodePort).

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;

use crate::model::{Family, Protocol};

/// Name of our table, one in family `ip` and one in `ip6`.
pub const TABLE: &str = "kube-ferry";

/// Number of slots of a frontend: a power of two, `1..=16384`; its chains draw a random slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slots(u8);

impl Slots {
    pub const MIN: Slots = Slots(0);
    pub const MAX: Slots = Slots(14);

    pub fn from_log2(log2: u8) -> Option<Slots> {
        (log2 <= Slots::MAX.0).then_some(Slots(log2))
    }

    /// The fewest slots that hold `count` endpoints; [`Slots::MAX`] when there are too many.
    pub fn for_count(count: usize) -> Slots {
        Slots::all().find(|it| it.count() as usize >= count).unwrap_or(Slots::MAX)
    }

    pub fn log2(self) -> u8 {
        self.0
    }

    pub fn count(self) -> u32 {
        1 << self.0
    }

    pub fn all() -> impl Iterator<Item = Slots> {
        (0..=Slots::MAX.0).map(Slots)
    }
}

/// Every set and map of a family's table. What nft calls a map is a set with data to the kernel; one list for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetName {
    /// daddr: all cluster IPs, with or without endpoints.
    ClusterIps,
    /// daddr, interval: the ranges of all ServiceCIDRs of this family.
    ServiceCidrs,
    /// daddr: the node's addresses that accept NodePorts. Empty when all local ones do: the kernel knows those.
    NodePortIps,
    /// daddr: the node's own addresses, whether they accept NodePorts or not.
    NodeIps,
    /// saddr . daddr: backends on this node that may reach themselves.
    Hairpin,
    /// F: frontends with source ranges.
    Firewalled,
    /// F . saddr, interval: who may reach the firewalled ones.
    SourceRanges,
    /// F: reject, no endpoint anywhere.
    NoEndpoints,
    /// F: drop, endpoints exist but none on this node.
    NoLocalEndpoints,
    /// N: as `NoEndpoints`.
    NodePortNoEndpoints,
    /// N: as `NoLocalEndpoints`.
    NodePortNoLocalEndpoints,
    /// F : verdict. Dispatch of everything that has an address.
    Frontends,
    /// F : verdict. Frontends with externalTrafficPolicy Local: where traffic from outside goes.
    LocalFrontends,
    /// N : verdict. Dispatch of NodePorts.
    NodePorts,
    /// N : verdict. As `LocalFrontends`.
    LocalNodePorts,
    /// F . slot : daddr . dport. A cluster IP with internalTrafficPolicy Local has its local endpoints here.
    Endpoints,
    /// F . slot : daddr . dport. Local endpoints of the `LocalFrontends`.
    LocalEndpoints,
    /// N . slot : daddr . dport.
    NodePortEndpoints,
    /// N . slot : daddr . dport.
    LocalNodePortEndpoints,
    /// F : group. Frontends with session affinity and the endpoint group that serves them.
    StickyFrontends,
    /// F : group. As `LocalFrontends`.
    StickyLocalFrontends,
    /// N : group.
    StickyNodePorts,
    /// N : group.
    StickyLocalNodePorts,
    /// group : verdict. `goto sticky-pick-S`.
    StickyGroups,
    /// group : verdict. `jump remember-T`.
    AffinityTimeouts,
    /// group . slot : handle.
    StickySlots,
    /// handle : daddr . dport.
    StickyEndpoints,
    /// saddr . group : handle, dynamic, with timeouts. Written by packets.
    Affinity,
    /// F: cluster IPs that IPVS serves. Only in IPVS mode.
    IpvsServices,
    /// daddr: addresses of virtual servers that are on their way out. Only in IPVS mode.
    IpvsDraining,
}

/// Every chain of a family's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chain {
    // Base chains, named as kube-proxy names them.
    FilterPreroutingPreDnat,
    FilterOutputPreDnat,
    FilterInput,
    FilterForward,
    FilterOutput,
    NatPrerouting,
    NatOutput,
    NatPostrouting,
    // What base chains jump to.
    Services,
    Masquerading,
    FirewallCheck,
    ServiceEndpointsCheck,
    NodePortEndpointsCheck,
    ClusterIpsCheck,
    LocalClusterIpsCheck,
    Reject,
    // Programs, one for each number of slots.
    /// Draws an endpoint of F.
    Pick(Slots),
    /// Marks for masquerade, then `Pick`.
    External(Slots),
    /// externalTrafficPolicy Local: pods and the node itself go to `Pick`, others to `LocalFrontends`.
    ExternalLocal(Slots),
    /// Draws a local endpoint of F.
    LocalPick(Slots),
    /// Draws an endpoint of N.
    NodePortPick(Slots),
    NodePort(Slots),
    NodePortLocal(Slots),
    NodePortLocalPick(Slots),
    // Session affinity.
    Sticky,
    StickyExternal,
    StickyExternalLocal,
    StickyNodePort,
    StickyNodePortCluster,
    StickyNodePortLocal,
    StickyLookup,
    StickyPick(Slots),
    /// Remembers the client's endpoint for that many seconds and sends the connection there.
    Remember(u32),
}

/// A session-affinity group (one Service port's endpoints under one policy), or a handle (one endpoint of it).
///
/// Both travel in the packet's priority inside one hook: `0xf` (4 bits), group (16 bits), endpoint (12 bits, 0 in the
/// group's own number).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u32);

impl Handle {
    pub const BASE: u32 = 0xf000_0000;
    pub const GROUP_MASK: u32 = 0xffff_f000;
    pub const ENDPOINT_MASK: u32 = 0x0000_0fff;

    /// Of `endpoint` only the low 12 bits count; 0 is the group itself.
    pub fn new(group: u16, endpoint: u16) -> Handle {
        let endpoint = u32::from(endpoint) & Self::ENDPOINT_MASK;
        Handle(Self::BASE | (u32::from(group) << 12) | endpoint)
    }

    pub fn group(self) -> u16 {
        let [high, low, ..] = (self.0 << 4).to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    pub fn endpoint(self) -> u16 {
        let [_, _, high, low] = (self.0 & Self::ENDPOINT_MASK).to_be_bytes();
        u16::from_be_bytes([high, low])
    }
}

/// `daddr . l4proto . dport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressPort {
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: NonZeroU16,
}

/// `l4proto . dport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePortKey {
    pub protocol: Protocol,
    pub port: NonZeroU16,
}

/// Key of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Address(IpAddr),
    Range(IpNet),
    Pair(IpAddr, IpAddr),
    Frontend(AddressPort),
    FrontendSource(AddressPort, IpNet),
    FrontendSlot(AddressPort, u16),
    NodePort(NodePortKey),
    NodePortSlot(NodePortKey, u16),
    Group(Handle),
    GroupSlot(Handle, u16),
    /// Client and group: rows of [`SetName::Affinity`], written by packets, only ever deleted by us.
    Client(IpAddr, Handle),
}

/// Value of a row; `None` in sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    None,
    Verdict(Verdict),
    Endpoint(IpAddr, NonZeroU16),
    Handle(Handle),
}

impl Value {
    /// The chain that a verdict leads to.
    pub fn chain(self) -> Option<Chain> {
        if let Value::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain)) = self {
            Some(chain)
        } else {
            None
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Goto(Chain),
    Jump(Chain),
}

/// What a field of a concatenated key, or of mapped data, holds; also what a rule can load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `ip saddr`, `ip6 saddr`
    Saddr,
    /// `ip daddr`, `ip6 daddr`
    Daddr,
    /// `meta l4proto`
    L4Proto,
    /// `th dport`
    Dport,
    /// `numgen random mod N`; in a set's definition N is 65536.
    Random(u32),
    /// `meta priority`
    Priority,
    /// `meta priority & MASK`
    PriorityMasked(u32),
}

/// Definition of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSpec {
    pub name: SetName,
    pub key: &'static [Field],
    pub data: Data,
    pub interval: bool,
    /// Rows are written by packets and time out.
    pub dynamic: bool,
    /// Declared to nft by `type` instead of `typeof` (no typeof in the set's user data): where all fields have plain
    /// types, and where nft must not know what the data is. It refuses a rule
    /// `meta l4proto tcp dnat ... map @set` when it knows the data as `th dport`: "conflicting protocols specified:
    /// tcp vs. th".
    pub by_type: bool,
    /// Shown by `nft list`: what the set is for.
    pub comment: &'static str,
}

/// What a map maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// A set.
    None,
    Verdict,
    Fields(&'static [Field]),
}

/// One rule: statements evaluated left to right until one does not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule(pub Vec<Statement>);

/// What a rule can say; each has one spelling in nft's grammar and one lowering to kernel expressions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `ct state new`
    CtStateNew,
    /// `ct status dnat`, or `ct status ! dnat`
    CtStatusDnat {
        negated: bool,
    },
    /// `ip daddr 10.0.0.0/8`, or `!=`
    AddressIn {
        field: Field,
        net: IpNet,
        negated: bool,
    },
    /// `iifname "cbr0"` or `iifname "veth*"`, or `!=`
    InputInterface {
        name: String,
        prefix: bool,
        negated: bool,
    },
    /// `fib daddr type local`, `fib saddr type local`
    FibLocal {
        field: Field,
    },
    /// `ip daddr . meta l4proto . th dport @set`, or `!= @set`
    InSet {
        key: Vec<Field>,
        set: SetName,
        negated: bool,
    },
    /// `... vmap @map`
    Vmap {
        key: Vec<Field>,
        map: SetName,
    },
    /// `meta l4proto tcp`. nft demands it before a port translation whose key names no port.
    L4Proto(Protocol),
    /// `dnat ip to ... map @map`
    Dnat {
        key: Vec<Field>,
        map: SetName,
    },
    /// `meta mark set meta mark | MARK`
    MarkOr(u32),
    /// `meta mark & MARK != 0`
    MarkIsSet(u32),
    /// `meta mark set meta mark ^ MARK`
    MarkXor(u32),
    /// `meta priority set ... map @map`
    PrioritySetFromMap {
        key: Vec<Field>,
        map: SetName,
    },
    /// `meta priority set meta priority & MASK`
    PriorityMask(u32),
    /// `meta priority set 0`
    PriorityReset,
    /// `meta priority & MASK != 0`
    PriorityHas(u32),
    /// `meta priority >= VALUE`
    PriorityAtLeast(u32),
    /// `update @map { key timeout Ns : data }`
    Update {
        map: SetName,
        key: Vec<Field>,
        timeout: u32,
        data: Field,
    },
    /// `delete @map { key : data }`
    Forget {
        map: SetName,
        key: Vec<Field>,
        data: Field,
    },
    /// `masquerade fully-random`
    Masquerade,
    /// `reject`
    Reject,
    /// `drop`
    Drop,
    Jump(Chain),
    Goto(Chain),
}

/// Hook of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseHook {
    pub kind: ChainKind,
    pub hook: Hook,
    pub priority: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainKind {
    Filter,
    Nat,
}

/// Numbers are the kernel's `NF_INET_*` (linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// Whom a row belongs to, so that an error of the kernel can be told to the right Service. Opaque to nft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(pub u32);

/// Operations for one netlink transaction; the kernel takes all of them or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch(pub Vec<Op>);

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What has to be carried out in a transaction of its own before this batch: a new size counts from the next
    /// transaction on. To grow a set changes nothing for packets.
    pub fn before(&self) -> Batch {
        let added = |family, set| {
            let is = |it: &Op| matches!(it, Op::AddSet { family: f, set: s, .. } if (*f, *s) == (family, set));
            self.0.iter().any(is)
        };
        let sizes = self
            .0
            .iter()
            .filter(|it| matches!(it, Op::ResizeSet { family, set, .. } if !added(*family, *set)));
        let sizes = Batch(sizes.cloned().collect());
        if sizes.len() < self.len() { sizes } else { Batch::default() }
    }
}

/// One nftables operation. The order in a batch is the order in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// No error if it exists.
    AddTable(Family),
    /// No error if it is absent: it is added first, in the same batch.
    DeleteTable(Family),
    /// `size`: elements that fit; `None` for sets without a limit.
    AddSet {
        family: Family,
        set: SetName,
        size: Option<u32>,
    },
    /// Raises the limit in place (kernel 6.5).
    ResizeSet {
        family: Family,
        set: SetName,
        size: u32,
    },
    /// No error if it exists.
    AddChain {
        family: Family,
        chain: Chain,
    },
    FlushChain {
        family: Family,
        chain: Chain,
    },
    DeleteChain {
        family: Family,
        chain: Chain,
    },
    AddRule {
        family: Family,
        chain: Chain,
        rule: Rule,
    },
    /// The row must be absent, or present with the same value.
    AddElement {
        family: Family,
        set: SetName,
        key: Key,
        value: Value,
        owner: Option<Owner>,
    },
    /// The row must be present.
    DeleteElement {
        family: Family,
        set: SetName,
        key: Key,
        owner: Option<Owner>,
    },
}

/// One family's table as read from the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedTable {
    /// Sets by name with their size limit. A set that is ours by name but defined differently is in `unknown`.
    pub sets: Vec<(SetName, Option<u32>)>,
    /// Chains whose definition and rules are exactly the wanted program's.
    pub chains: Vec<Chain>,
    /// Chains that are the wanted program's by name and hook, with other rules: an upgrade, or other settings.
    pub stale_chains: Vec<Chain>,
    /// Rows, sorted by (set, key). Rows of [`SetName::Affinity`] are left out: packets write them.
    pub elements: Vec<(SetName, Key, Value)>,
    /// Whatever could not be read as ours, by kind and name: another version's objects, foreign ones, tampered ones.
    pub unknown: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Chain::FilterPreroutingPreDnat => f.write_str("filter-prerouting-pre-dnat"),
            Chain::FilterOutputPreDnat => f.write_str("filter-output-pre-dnat"),
            Chain::FilterInput => f.write_str("filter-input"),
            Chain::FilterForward => f.write_str("filter-forward"),
            Chain::FilterOutput => f.write_str("filter-output"),
            Chain::NatPrerouting => f.write_str("nat-prerouting"),
            Chain::NatOutput => f.write_str("nat-output"),
            Chain::NatPostrouting => f.write_str("nat-postrouting"),
            Chain::Services => f.write_str("services"),
            Chain::Masquerading => f.write_str("masquerading"),
            Chain::FirewallCheck => f.write_str("firewall-check"),
            Chain::ServiceEndpointsCheck => f.write_str("service-endpoints-check"),
            Chain::NodePortEndpointsCheck => f.write_str("nodeport-endpoints-check"),
            Chain::ClusterIpsCheck => f.write_str("cluster-ips-check"),
            Chain::LocalClusterIpsCheck => f.write_str("local-cluster-ips-check"),
            Chain::Reject => f.write_str("reject-chain"),
            Chain::Pick(slots) => write!(f, "pick-{}", slots.count()),
            Chain::External(slots) => write!(f, "external-{}", slots.count()),
            Chain::ExternalLocal(slots) => write!(f, "external-local-{}", slots.count()),
            Chain::LocalPick(slots) => write!(f, "local-pick-{}", slots.count()),
            Chain::NodePortPick(slots) => write!(f, "nodeport-pick-{}", slots.count()),
            Chain::NodePort(slots) => write!(f, "nodeport-{}", slots.count()),
            Chain::NodePortLocal(slots) => write!(f, "nodeport-local-{}", slots.count()),
            Chain::NodePortLocalPick(slots) => write!(f, "nodeport-local-pick-{}", slots.count()),
            Chain::Sticky => f.write_str("sticky"),
            Chain::StickyExternal => f.write_str("sticky-external"),
            Chain::StickyExternalLocal => f.write_str("sticky-external-local"),
            Chain::StickyNodePort => f.write_str("sticky-nodeport"),
            Chain::StickyNodePortCluster => f.write_str("sticky-nodeport-cluster"),
            Chain::StickyNodePortLocal => f.write_str("sticky-nodeport-local"),
            Chain::StickyLookup => f.write_str("sticky-lookup"),
            Chain::StickyPick(slots) => write!(f, "sticky-pick-{}", slots.count()),
            Chain::Remember(seconds) => write!(f, "remember-{seconds}"),
        }
    }
}
