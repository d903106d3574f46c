//! The netlink codec and the kernel room against the real kernel, with `nft`, `ip` and `conntrack` as witnesses that
//! are not ours.

mod address;
mod commit;
mod conntrack;
mod listing;
mod namespace;
mod table;
