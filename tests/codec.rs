//! The netlink codec against the real kernel, with `nft` as a witness that is not ours.

mod commit;
mod listing;
mod namespace;
mod table;
