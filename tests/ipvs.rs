//! The kernel room's IPVS against a kernel that has it, with `ipvsadm` and `ip` as witnesses that are not ours.
//!
//! Most kernels of development machines have no IPVS. So these tests are ignored unless they are asked for: `make test-ipvs`
//! runs them in a virtual machine, and there they fail where IPVS is missing.

mod cleanup;
mod command;
mod contract;
mod cost;
mod drift;
mod faults;
mod host;
mod interface;
mod migration;
mod observe;
mod program;
mod refusals;
mod servers;
mod witness;
