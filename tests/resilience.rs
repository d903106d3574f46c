//! What a proxy has to survive: other copies of itself, other programs, a kernel that fails, and its own death.

mod api_server;
mod certificates;
mod clock;
mod cluster;
mod conntrack_full;
mod descriptors;
mod disk_full;
mod dump;
mod ending;
mod faulty;
mod interfaces;
mod killed;
mod netlink_faults;
mod node;
mod ownership;
mod traffic;
mod two_copies;
