//! Values to netlink bytes and back, for IPVS and for the interface that holds its addresses.
//!
//! In come [`super::schema::Op`]s, out come requests as bytes; in come the kernel's answers, out comes what they say. No
//! socket and no decision. What is cut off, or cannot be one of ours, is no value; nothing is guessed at.

pub(crate) mod address;
pub(crate) mod generic;
pub(crate) mod link;
pub(crate) mod server;

#[cfg(test)]
mod golden;
