//! What a proxy has to survive: other copies of itself, other programs, a kernel that fails, and its own death.

mod dump;
mod faulty;
mod killed;
mod netlink_faults;
mod node;
mod ownership;
mod traffic;
mod two_copies;
