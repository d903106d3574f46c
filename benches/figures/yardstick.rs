//! What others need for the same: `nft -f` with the same elements, and the kernel alone with the same bytes.

use std::time::{Duration, Instant};

use kube_ferry::nft::Batch;
use kube_ferry::nft::codec::{Ending, Ownership, encode};
use kube_ferry::nft::render;
use kube_ferry::nft::tables::Tables;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt;

use super::program::nft;
use super::shape::{Shape, fill};

/// The tables of a cluster as nft would be told to load them.
pub(crate) fn ruleset(shape: Shape) -> String {
    let mut tables = Tables::default();
    fill(&mut shape.engine(), |batch| tables.apply(&batch).unwrap());
    render::ruleset(&tables)
}

/// How long `nft -f` takes to load that into an empty kernel: the median of three.
pub(crate) fn nft_load(shape: Shape) -> Duration {
    let text = ruleset(shape);
    let mut times = [(); 3].map(|()| {
        nft("flush ruleset");
        let began = Instant::now();
        nft(&text);
        began.elapsed()
    });
    nft("flush ruleset");
    times.sort();
    times[1]
}

/// How long the kernel works on the bytes of these batches: nothing but the system calls that send them.
pub(crate) fn kernel_alone(batches: &[Batch]) -> Duration {
    let all: Vec<Vec<u8>> = batches
        .iter()
        .map(|it| encode(it, 1, None, Ending::Commit, Ownership::Shared).bytes)
        .collect();
    let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    socket.connect(&SocketAddr::new(0, 0)).unwrap();
    let longest = all.iter().map(Vec::len).max().unwrap_or_default();
    sockopt::set_socket_send_buffer_size_force(&socket, longest + 4_096).unwrap();
    let mut took = Duration::ZERO;
    for bytes in all {
        let began = Instant::now();
        assert_eq!(socket.send(&bytes, 0).unwrap(), bytes.len());
        took += began.elapsed();
        let (answer, _) = socket.recv_from_full().unwrap();
        assert_eq!(answer.get(16..20), Some(&[0; 4][..]), "the kernel refuses the batch");
    }
    took
}
