//! What a proxy has to survive: other copies of itself, other programs, a kernel that fails, and its own death.

mod certificates;
mod conntrack_full;
mod disk_full;
mod dump;
mod faulty;
mod interfaces;
mod killed;
mod netlink_faults;
mod node;
mod ownership;
mod traffic;
mod two_copies;
