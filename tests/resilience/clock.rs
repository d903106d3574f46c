//! A wall clock that jumps by years, forward and back: nobody's traffic, and nothing that is measured, notices.
//!
//! The clock is the machine's, so the process gets one of its own: a library that is loaded before the C library's function.

use std::fs::{File, read_to_string, write};
use std::io::Write as _;
use std::path::Path;

use rustix::process::Signal;

use super::cluster::Cluster;
use super::node::steady;
use super::traffic::Traffic;
use crate::support::command;
use crate::support::patience::{LONG, poll};

/// Adds to the time of day what a file says, eight bytes, at any moment.
const LIBRARY: &str = "
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile const long long *offset;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv(\"CLOCK_OFFSET\"), O_RDONLY);
    offset = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += *offset;
    return result;
}
";

const YEAR: i64 = 366 * 24 * 3_600;

#[test]
fn a_wall_clock_that_jumps_disturbs_nobody() {
    let cluster = Cluster::new();
    let (source, library, offset) =
        (cluster.path("clock.c"), cluster.path("clock.so"), cluster.path("offset"));
    write(&source, LIBRARY).unwrap();
    let files = [&source, &library].map(|it| it.to_str().unwrap());
    command::run("cc", &["-shared", "-fPIC", "-o", files[1], files[0]], "");
    jump(&offset, 0);
    let mut proxy = cluster.prepare("{}");
    proxy.set_variable("CLOCK_OFFSET", &offset);
    proxy.set_variable("LD_PRELOAD", &library);
    proxy.run().unwrap();
    let traffic = Traffic::start(&cluster.world, steady());
    for (number, years) in (1..).zip([3, -3, 0, 40]) {
        let before = year(&cluster.path("log"));
        jump(&offset, years * YEAR);
        cluster.create(2 * number - 1);
        cluster.programmed(&proxy, 2 * number - 1);
        traffic.go_on(10);
        // Certificates, tokens and back-off go by a clock, too.
        cluster.server.drop_connections();
        cluster.create(2 * number);
        cluster.programmed(&proxy, 2 * number);
        traffic.go_on(10);
        for path in ["/livez", "/healthz", "/readyz"] {
            assert_eq!(cluster.health(path), Ok(200), "{path}, {years} years away");
        }
        // Which shows that it is this clock that the process goes by.
        poll(LONG, || {
            let now = year(&cluster.path("log"));
            (now != before).then_some(()).ok_or_else(|| format!("{now}, {years} years away"))
        })
        .unwrap();
        for name in ["sync_proxy_rules", "sync_full_proxy_rules", "network_programming"] {
            let sum = proxy.metric(&format!("kubeproxy_{name}_duration_seconds_sum"));
            assert!(sum.is_none_or(|it| (0.0..600.0).contains(&it)), "{name}: {sum:?}");
        }
    }
    traffic.end();
    assert!(proxy.stop(Signal::TERM).success());
}

/// In place, and never shorter meanwhile: the process has it mapped.
fn jump(file: &Path, seconds: i64) {
    let mut file = File::options().write(true).create(true).truncate(false).open(file).unwrap();
    file.write_all(&seconds.to_ne_bytes()).unwrap();
}

/// Of the last line that begins with a date.
fn year(log: &Path) -> String {
    let log = read_to_string(log).unwrap_or_default();
    let mut years = log.lines().filter_map(|line| line.split_once('-')).map(|(year, _)| year);
    years.rfind(|it| it.len() == 4).unwrap_or_default().to_owned()
}
