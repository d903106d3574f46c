//! Values to netlink bytes and back.
//!
//! In come [`super::Batch`]es, out comes one nfnetlink batch as bytes; in come dumps of the kernel, out come the
//! [`super::schema::ObservedTable`]s. No socket and no decision: what is encoded was chosen elsewhere, and what
//! cannot be read as ours is named, never guessed at.
//!
//! The lowering follows what nft itself writes, so that `nft list` of every version prints our tables as if they had
//! been loaded from text. The layout is that of linux/netfilter/nf_tables.h; numbers are big-endian there, but what
//! ends up in packet registers keeps the byte order of its source: the packet's for addresses and ports, the host's
//! for marks, priorities and random numbers.

mod batch;
mod chain;
mod element;
mod expression;
mod lower;
mod observe;
pub(crate) mod query;
mod set;
pub(crate) mod uapi;
mod userdata;
pub(crate) mod wire;

pub(crate) use batch::{
    BATCH_GENID, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES, Place,
    probe_ownership, write_nfgenmsg,
};
pub use batch::{Encoded, Ending, Ownership, encode};
pub use observe::Observation;
