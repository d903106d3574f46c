//! kube-ferry: a replacement for kube-proxy that keeps the kernel's Service tables by writing differences.
//!
//! One data flow, left to right; each step is a room (a module) and hands values to the next:
//!
//! ```text
//!   API server, manifests                                                        nf_tables, conntrack, addresses
//!          │                                                                                 ▲ │
//!     ┌────▼────┐                                                                       ┌────┴─▼───┐
//!     │  watch  │  shell                                                         shell  │  kernel  │
//!     └────┬────┘                                                                       └────▲─┬───┘
//!          │ JSON                                                                     Batch  │ │ Observed
//!     ┌────▼────┐  Change  ┌─────────┐  Cluster  ┌─────────┐  PortForwarding  ┌───────┐      │ │
//!     │ objects ├─────────▶│  model  ├──────────▶│ forward ├─────────────────▶│  nft  ├──────┘ │
//!     └─────────┘          └─────────┘           └─────────┘                  └───▲───┘        │
//!                                                                                 └────────────┘
//!     sync: the loop, decides WHEN, never WHAT          serve: /metrics /healthz /livez
//! ```
//!
//! In IPVS mode `ipvs` stands between `forward` and `nft`: it makes virtual servers of the endpoints, and nft leads there.
//!
//! What is absent, room by room:
//! * `objects`, `model`, `forward`, `ipvs`, `nft` and `leftovers` take values and return values: no clock, no sockets, no async, no
//!   environment, no logging, no metrics. They cannot fail; what cannot be used becomes a [`model::Skipped`].
//! * Kubernetes' own types stop at `objects`. `forward` never sees an nftables type, `nft` never sees a Service.
//! * Netlink bytes stop at `nft::codec` and `ipvs::codec`; only `kernel` owns sockets, only `watch` talks to the API server.
//! * `kernel` chooses nothing: every name, key, value and order is already in the [`nft::Batch`].

pub mod config;
pub mod conntrack;
pub mod forward;
pub mod ipvs;
pub mod kernel;
pub mod leftovers;
pub mod logging;
pub mod model;
pub mod nft;
pub mod objects;
#[cfg(any(test, fuzzing))]
pub mod outside;
pub mod run;
pub mod serve;
pub mod sync;
pub mod sysctl;
pub mod version;
pub mod watch;
