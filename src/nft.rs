//! nftables: the constant program, the rows that Services become, and the shortest way from one state to another.
//!
//! In come [`crate::forward::ServiceForwarding`]s and what the kernel holds; out come [`Batch`]es. No netlink
//! socket, no Service: `codec` turns values into netlink bytes and back, `render` turns them into nft's own syntax.
//!
//! `schema` has the words, `skeleton` the constant program, `slots` the places of endpoints, `compile` what to tell the
//! kernel. `tables` are what a kernel holds, as values; `walk` follows a packet through them.

pub mod codec;
pub mod compile;
pub mod render;
pub mod schema;
pub mod shape;
pub mod skeleton;
pub mod slots;
pub mod tables;
pub mod walk;

pub use compile::{Compiler, Limit, LimitReason, RowCounts};
pub use schema::{Batch, Chain, Key, Op, Owner, SetName, Slots, Value, Verdict};
