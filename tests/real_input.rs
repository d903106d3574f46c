//! The real binary on what an API server and users really give it: faults, bad objects, absurd sizes.

mod bad_objects;
mod faults;
