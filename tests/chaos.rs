//! Random faults over random changes, reproducible by a seed: the real binary between a simulated API server and a real
//! kernel, with traffic all the while.
//!
//! In the end what `nft` lists is compared with what the API server's objects mean, worked out by simple code of its own
//! (`oracle`). A Service that nobody changes must answer every connection at any moment; one that changes must never be
//! answered by an endpoint that is not, or was not just now, its own.
//!
//! `CHAOS_SEED=17 cargo test --test main chaos::schedules` repeats one schedule, `CHAOS_STEPS` makes it longer.
//! `make soak` goes on for `SOAK_SECONDS` with new seeds.

mod faults;
mod listing;
mod oracle;
mod probes;
mod record;
mod schedule;
mod schedules;
mod shop;
mod soak;
