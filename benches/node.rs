//! A whole node: the real program as a process, a simulated API server as another, the kernel in a network namespace
//! of its own. Everything as on a node: TLS, HTTP/2, objects with all that real ones carry along.
//!
//! When something was committed is told by the generation number of nf_tables, asked for every 50 µs (a question costs
//! a few µs; with the timer's slack a commit is noticed 0.1 ms late at most). CPU time is the scheduler's, in
//! nanoseconds, from /proc/PID/task/*/schedstat.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a benchmark reads clocks, starts programs, prints, and ends with the first thing that goes wrong"
)]

use std::time::Duration;

use figures::program::{enter_namespace, nft};
use figures::shape::Shape;
use figures::table::{Figure, publish};
use figures::yardstick::nft_load;
use node::cluster::Cluster;
use node::proxy::Proxy;
use node::settle::{Committed, wait_for};

#[expect(dead_code, reason = "shared with the other benchmarks")]
mod figures;
#[path = "node"]
mod node {
    pub(crate) mod cluster;
    pub(crate) mod proxy;
    pub(crate) mod settle;

    /// Nanoseconds since the epoch: a clock that processes share.
    pub(crate) fn now() -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::try_from(now.as_nanos()).unwrap()
    }

    pub(crate) fn milliseconds(nanoseconds: u64) -> f64 {
        seconds(nanoseconds) * 1_000.0
    }

    pub(crate) fn seconds(nanoseconds: u64) -> f64 {
        std::time::Duration::from_nanos(nanoseconds).as_secs_f64()
    }
}

#[path = "../tests/support"]
mod support {
    #[expect(dead_code, reason = "tests ask more of it")]
    pub(crate) mod apiserver;
}

const CHANGES: u32 = 300;
/// Between two changes: long enough for the proxy to have rested, so that each is measured by itself.
const PAUSE: Duration = Duration::from_millis(8);
const IDLE: Duration = Duration::from_secs(10);
const BURST: u32 = 500;

const MIDDLE: Shape = Shape::new(10_000, 5);

fn main() {
    if let Some(shape) = node::cluster::asked_for() {
        return node::cluster::serve(shape);
    }
    enter_namespace();
    let mut figures = Vec::new();
    let small = changes_alone(Shape::new(1_000, 5), &mut figures);
    middle(&mut figures);
    let large = large(&mut figures);
    let growth =
        Figure::new("one endpoint: p50 at 30,000 × 5 : at 1,000 × 5", "", large / small, "");
    figures.push(growth.must(1.3).want(1.1));
    for shape in [Shape::new(45_000, 1), Shape::new(5_000, 50)] {
        let (_cluster, _proxy, took) = start(shape);
        figures.push(started(shape, took).must(6.0).want(3.0));
    }
    publish("node", &figures);
}

/// A cluster, a proxy that has written everything, and how long that took it from its start, in seconds.
fn start(shape: Shape) -> (Cluster, Proxy, f64) {
    nft("flush ruleset");
    let cluster = Cluster::start(shape);
    let (proxy, took) = first_sync(&cluster, shape);
    println!("{shape}: everything committed {took:.3} s after the start");
    (cluster, proxy, took)
}

fn first_sync(cluster: &Cluster, shape: Shape) -> (Proxy, f64) {
    let before = Committed::now();
    let began = node::now();
    let proxy = Proxy::start(cluster);
    let wanted = f64::from(shape.services * shape.endpoints);
    let last = before.last_after(Duration::from_millis(300), || {
        proxy.rows("endpoints") == wanted && proxy.rows("frontends") == f64::from(shape.services)
    });
    (proxy, node::seconds(last - began))
}

fn started(shape: Shape, seconds: f64) -> Figure {
    Figure::new("process start → everything committed", shape, seconds, "s")
}

fn changes_alone(shape: Shape, figures: &mut Vec<Figure>) -> f64 {
    let (mut cluster, proxy, took) = start(shape);
    figures.push(started(shape, took));
    changes(&mut cluster, &proxy, shape, figures)
}

/// Everything that is asked for at 10,000 × 5.
fn middle(figures: &mut Vec<Figure>) {
    // Yardstick and start by turns, so that what else the machine does meanwhile hits both.
    let mut loads = vec![nft_load(MIDDLE).as_secs_f64()];
    let (mut cluster, mut proxy, first) = start(MIDDLE);
    let peak = proxy.peak_memory();
    let mut starts = vec![first];
    for _ in 0..2 {
        proxy.end();
        loads.push(nft_load(MIDDLE).as_secs_f64());
        let (again, took) = first_sync(&cluster, MIDDLE);
        proxy = again;
        starts.push(took);
    }
    let (load, start) = (median(loads), median(starts));
    figures.extend([
        Figure::new("nft -f, the same elements", MIDDLE, load, "s"),
        started(MIDDLE, start),
        Figure::new("process start → everything committed : nft -f", MIDDLE, start / load, "")
            .must(1.5)
            .want(0.7),
        Figure::new("peak memory after the start", MIDDLE, peak, "MB").must(60.0).want(35.0),
    ]);
    changes(&mut cluster, &proxy, MIDDLE, figures);
    burst(&mut cluster, &proxy, figures);
    metadata_only(&mut cluster, &proxy, figures);
    figures.push(
        Figure::new("peak memory after all changes", MIDDLE, proxy.peak_memory(), "MB")
            .must(60.0)
            .want(35.0),
    );
    idle(&proxy, figures);
    restart(&cluster, proxy, figures);
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn large(figures: &mut Vec<Figure>) -> f64 {
    let shape = Shape::new(30_000, 5);
    let (mut cluster, proxy, took) = start(shape);
    figures.push(started(shape, took));
    let peak = Figure::new("peak memory after the start", shape, proxy.peak_memory(), "MB");
    figures.push(peak.must(150.0).want(90.0));
    changes(&mut cluster, &proxy, shape, figures)
}

/// Endpoints that come and go one by one, each of another Service. Returns the median in milliseconds.
fn changes(cluster: &mut Cluster, proxy: &Proxy, shape: Shape, figures: &mut Vec<Figure>) -> f64 {
    let mut times = Vec::new();
    let cpu = proxy.cpu();
    let batches = proxy.metric("kubeferry_batches_total{result=\"committed\"}");
    for number in 0..CHANGES {
        std::thread::sleep(PAUSE);
        let service = number / 2 * (shape.services / (CHANGES / 2));
        let before = Committed::now();
        let sent = cluster.set_endpoints(service, shape.endpoints + 1 - number % 2);
        times.push(node::milliseconds(before.next() - sent));
    }
    let cpu = proxy.cpu() - cpu;
    let batches = proxy.metric("kubeferry_batches_total{result=\"committed\"}") - batches;
    assert_eq!(batches, f64::from(CHANGES), "each change is one batch");
    times.sort_by(f64::total_cmp);
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    let what = "one endpoint more or less: event sent → committed";
    let mut median = Figure::new(&format!("{what}, p50"), shape, p50, "ms");
    let mut tail = Figure::new(&format!("{what}, p99"), shape, p99, "ms");
    let mut each =
        Figure::new("CPU per such change, all threads", shape, cpu / f64::from(CHANGES), "ms");
    if shape == MIDDLE {
        (median, tail, each) =
            (median.must(3.0).want(1.0), tail.must(10.0), each.must(0.5).want(0.2));
    }
    println!("{shape}: one endpoint p50 {p50:.3} ms, p99 {p99:.3} ms, CPU {:.3} ms", each.measured);
    figures.extend([median, tail, each]);
    p50
}

/// Slices of many Services in one moment.
fn burst(cluster: &mut Cluster, proxy: &Proxy, figures: &mut Vec<Figure>) {
    let mut times = Vec::new();
    for endpoints in [6, 5, 6, 5, 6] {
        let before = Committed::now();
        let sent = cluster.set_many(BURST, endpoints);
        let wanted =
            f64::from(MIDDLE.services * MIDDLE.endpoints + BURST * (endpoints - MIDDLE.endpoints));
        let last =
            before.last_after(Duration::from_millis(300), || proxy.rows("endpoints") == wanted);
        times.push(node::milliseconds(last - sent));
    }
    times.sort_by(f64::total_cmp);
    let figure = Figure::new("500 slices changed at once → all committed", MIDDLE, times[2], "ms");
    figures.push(figure.must(100.0).want(30.0));
    cluster.set_many(BURST, MIDDLE.endpoints);
    wait_for("all as before", || {
        proxy.rows("endpoints") == f64::from(MIDDLE.services * MIDDLE.endpoints)
    });
}

/// Objects that change in what nobody here consults.
fn metadata_only(cluster: &mut Cluster, proxy: &Proxy, figures: &mut Vec<Figure>) {
    let (before, cpu) = (Committed::now(), proxy.cpu());
    let changes = proxy.metric("kubeferry_watch_events_total");
    cluster.annotate_many(BURST);
    wait_for("annotations seen", || {
        proxy.metric("kubeferry_watch_events_total") >= changes + f64::from(BURST)
    });
    std::thread::sleep(Duration::from_millis(300));
    let writes = before.commits_since();
    figures.extend([
        Figure::new(
            "500 slices with other annotations only: commits",
            MIDDLE,
            f64::from(writes),
            "",
        )
        .must(0.0),
        Figure::new(
            "CPU per slice with other annotations only",
            MIDDLE,
            (proxy.cpu() - cpu) / f64::from(BURST),
            "ms",
        ),
    ]);
}

fn idle(proxy: &Proxy, figures: &mut Vec<Figure>) {
    std::thread::sleep(Duration::from_secs(1));
    let (cpu, switches) = (proxy.cpu(), proxy.wake_ups());
    std::thread::sleep(IDLE);
    let share = (proxy.cpu() - cpu) / 1_000.0 / IDLE.as_secs_f64() * 100.0;
    let wake_ups = (proxy.wake_ups() - switches) / IDLE.as_secs_f64();
    figures.extend([
        Figure::new("idle: CPU", MIDDLE, share, "%").must(0.1),
        Figure::new("idle: wake-ups per second, all threads", MIDDLE, wake_ups, ""),
    ]);
}

/// The kernel has everything already.
fn restart(cluster: &Cluster, proxy: Proxy, figures: &mut Vec<Figure>) {
    proxy.end();
    let before = Committed::now();
    let began = node::now();
    let proxy = Proxy::start(cluster);
    wait_for("a sync after the restart", || {
        proxy.metric("kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}") > 0.0
    });
    let took = node::seconds(node::now() - began);
    let written = proxy.metric("kubeferry_elements_total");
    assert_eq!(before.commits_since(), 0, "nothing is written after a restart");
    figures.extend([
        Figure::new("restart with unchanged state", MIDDLE, took, "s").must(1.0),
        Figure::new("elements written by it", MIDDLE, written, "").must(0.0),
    ]);
}
