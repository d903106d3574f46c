//! What the outside can ask: metrics, health, and the answers to load balancers' health checks.
//!
//! In come facts from the sync loop, as method calls on [`Metrics`] and [`Health`] from any thread; out go HTTP
//! answers. Nothing here decides anything about forwarding. [`health`] is a pure state machine, `http` serves it.

pub mod health;
pub mod http;
pub mod listen;
pub mod metrics;
pub mod node_port_health;

//pub use health::Health;
pub use metrics::Metrics;
