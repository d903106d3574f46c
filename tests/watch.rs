//! The watch room against a simulated API server, and against directories of manifests.

mod client;
mod faults;
mod lists;
mod manifests;
pub(crate) mod rig;
