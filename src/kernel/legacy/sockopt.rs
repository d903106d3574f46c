//! The socket options of iptables-legacy. The only unsafe code there is: no crate offers these options, and two of them
//! take pointers.

#![expect(unsafe_code, reason = "getsockopt and setsockopt; each call says why it is sound")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::request::{COUNTER, POINTER, counter_count};
use crate::model::Family;

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`, `IPT_SO_SET_REPLACE`, `IPT_SO_SET_ADD_COUNTERS`; those of IPv6 are the same.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
const SET_REPLACE: libc::c_int = 64;
const SET_ADD_COUNTERS: libc::c_int = 65;

/// Fills a `struct ipt_getinfo`.
pub(super) fn info(socket: &impl AsFd, family: Family, buffer: &mut [u8]) -> io::Result<()> {
    get(socket, family, GET_INFO, buffer)
}

/// Fills a `struct ipt_get_entries`.
pub(super) fn entries(socket: &impl AsFd, family: Family, buffer: &mut [u8]) -> io::Result<()> {
    get(socket, family, GET_ENTRIES, buffer)
}

/// Puts a table in the place of another one. `counters` takes those of the old one.
pub(super) fn replace(
    socket: &impl AsFd,
    family: Family,
    request: &mut [u8],
    counters: &mut [u8],
) -> io::Result<()> {
    let expected = counter_count(request).map(|count| count.saturating_mul(COUNTER));
    let room = request.get_mut(POINTER..POINTER + size_of::<*mut u8>());
    let (Some(room), true) = (room, expected == Some(counters.len())) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    room.copy_from_slice(&(counters.as_mut_ptr().expose_provenance()).to_ne_bytes());
    // SAFETY: beside what `set` says, the kernel writes `num_counters` counters to where `counters` points. That many
    // fit, as was just compared, and nobody else has access to them during the call.
    unsafe { set(socket, family, SET_REPLACE, request) }
}

/// Adds to the counters of a table.
pub(super) fn add_counters(socket: &impl AsFd, family: Family, request: &[u8]) -> io::Result<()> {
    // SAFETY: `struct xt_counters_info` has no pointers, the kernel only reads it.
    unsafe { set(socket, family, SET_ADD_COUNTERS, request) }
}

fn get(
    socket: &impl AsFd,
    family: Family,
    option: libc::c_int,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut length = length(buffer)?;
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open while it is borrowed. The kernel reads and writes no more than `length` bytes at
    // `buffer`, which has as many, and writes `length`. Neither option has pointers in its value.
    let status = unsafe {
        libc::getsockopt(
            descriptor,
            level(family),
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    result(status)
}

/// # Safety
///
/// Pointers in the value of this option must be valid for what the kernel does with them.
unsafe fn set(
    socket: &impl AsFd,
    family: Family,
    option: libc::c_int,
    value: &[u8],
) -> io::Result<()> {
    let (length, descriptor) = (length(value)?, socket.as_fd().as_raw_fd());
    // SAFETY: the descriptor is open while it is borrowed, the kernel reads `length` bytes at `value`, which has as
    // many. The rest is the caller's promise.
    let status = unsafe {
        libc::setsockopt(descriptor, level(family), option, value.as_ptr().cast(), length)
    };
    result(status)
}

fn level(family: Family) -> libc::c_int {
    match family {
        Family::V4 => libc::IPPROTO_IP,
        Family::V6 => libc::IPPROTO_IPV6,
    }
}

fn length(value: &[u8]) -> io::Result<libc::socklen_t> {
    value.len().try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn result(status: libc::c_int) -> io::Result<()> {
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
