//! IPVS: which virtual servers a Service needs, and what to tell the kernel so that it has them. Computes only.
//!
//! The data path is that of nftables mode, cut in two. The nft program decides everything about a frontend as it always
//! does (policies, source ranges, masquerading, rejecting, NodePorts), and then sends the connection not to an endpoint
//! but to a virtual server, whose scheduler picks the endpoint:
//!
//! * The virtual server at `clusterIP:port` has the endpoints that clients of the cluster IP may reach. The address is
//!   local, on the dummy interface `kube-ipvs0`, because IPVS takes over packets on their way to a local socket.
//! * External addresses and NodePorts are sent to the same virtual server by DNAT, so an endpoint is written once per
//!   Service port however many addresses there are, and session affinity counts for all of them.
//! * Where cluster IP and external traffic have different policies, the other set of endpoints has a second virtual
//!   server on another port of the cluster IP, which nobody can reach but through nft.
//!
//! So no external address is ever bound to an interface, and what nftables mode guarantees holds here, too.

pub(crate) mod codec;
pub mod compile;
pub mod drain;
pub mod render;
pub mod schema;
pub mod split;
