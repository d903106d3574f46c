//! What several tests are made of: a world of network namespaces, servers and clients in it, the proxy under test,
//! witnesses that are not ours (`nft`, `conntrack`), and a simulated API server.

pub(crate) mod apiserver;
pub(crate) mod client;
pub(crate) mod command;
pub(crate) mod dice;
pub(crate) mod icmp;
pub(crate) mod namespace;
pub(crate) mod nft_versions;
pub(crate) mod patience;
pub(crate) mod proxy;
pub(crate) mod sctp;
pub(crate) mod server;
pub(crate) mod statistics;
pub(crate) mod witness;
pub(crate) mod world;
