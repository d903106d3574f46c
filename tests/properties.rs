//! What must hold of the tables, whatever is in the cluster: cost, balance, readability, restart.

mod balance;
mod dry_run;
mod every_kind;
mod second_opinion;
mod size;
