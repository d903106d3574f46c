//! `--cleanup` on a node where kube-proxy has worked: exactly what kube-proxy left goes.
//!
//! `data/` has what kube-proxy of each mode writes, and what others have beside it: kubelet, Docker, CNI plugins,
//! kube-router, and chains with confusing names.

mod ipset;
mod iptables;
pub(crate) mod leftovers;
pub(crate) mod migration;
mod nftables;
mod node;
