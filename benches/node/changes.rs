//! Changes while the proxy runs, one by one and many at once.

use std::thread::sleep;
use std::time::Duration;

use super::cluster::Cluster;
use super::proxy::Proxy;
use super::settle::{Commits, wait_for};
use super::start::{start, started};
use super::{median, milliseconds};
use crate::figures::shape::{BIG, Shape};
use crate::figures::table::Figure;

const CHANGES: u32 = 300;
/// Between two changes: long enough for each to be measured by itself.
const PAUSE: Duration = Duration::from_millis(8);
/// Objects that change in one moment.
const BURST: u32 = 500;
/// Endpoints that a rolling update replaces at a time.
const ROLLED: u32 = 10;

/// The same change in clusters of different sizes: by turns, so that what else the machine does meanwhile hits both.
pub(crate) fn growth(figures: &mut Vec<Figure>) {
    let mut ratios = Vec::new();
    for round in 0..3 {
        let mut told = Vec::new();
        let small = change_at(Shape::new(1_000, 5), &mut told);
        let large = change_at(Shape::new(30_000, 5), &mut told);
        ratios.push(large / small);
        if round == 0 {
            figures.append(&mut told);
        }
    }
    let what = "one endpoint: p50 at 30,000 × 5 : at 1,000 × 5";
    let at = "the middle of three";
    figures.push(Figure::new(what, at, median(ratios), "").must(1.3).want(1.1));
}

fn change_at(shape: Shape, figures: &mut Vec<Figure>) -> f64 {
    let (mut cluster, proxy, took) = start(shape);
    figures.push(started(shape, took));
    if shape.services > 10_000 {
        let peak = Figure::new("peak memory after the start", shape, proxy.peak_memory(), "MB");
        figures.push(peak.must(150.0).want(90.0));
    }
    one_endpoint(&mut cluster, &proxy, shape, figures)
}

/// Endpoints that come and go one by one, each of another Service. Returns the median in milliseconds.
pub(crate) fn one_endpoint(
    cluster: &mut Cluster,
    proxy: &Proxy,
    shape: Shape,
    figures: &mut Vec<Figure>,
) -> f64 {
    let (mut times, mut commits) = (Vec::new(), Commits::watch());
    let (batches, bytes, cpu) = (proxy.batches(), cluster.bytes_sent(), proxy.cpu());
    for number in 0..CHANGES {
        sleep(PAUSE);
        let service = number / 2 * (shape.services / (CHANGES / 2));
        commits.forget();
        let sent = cluster.set_endpoints(service, shape.endpoints + 1 - number % 2);
        times.push(milliseconds(commits.next() - sent));
    }
    sleep(PAUSE);
    let cpu = (proxy.cpu() - cpu) / f64::from(CHANGES);
    let bytes = (cluster.bytes_sent() - bytes) / f64::from(CHANGES);
    assert_eq!(proxy.batches() - batches, f64::from(CHANGES), "each change is one batch");
    times.sort_by(f64::total_cmp);
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    let what = "one endpoint more or less: event sent → committed";
    let mut middle = Figure::new(&format!("{what}, p50"), shape, p50, "ms");
    let mut tail = Figure::new(&format!("{what}, p99"), shape, p99, "ms");
    let mut each = Figure::new("CPU per such change, all threads", shape, cpu, "ms");
    if shape.services == 10_000 {
        middle = middle.must(3.0).want(1.0);
        (tail, each) = (tail.must(10.0), each.must(0.5).want(0.2));
    }
    println!("{shape}: one endpoint p50 {p50:.3} ms, p99 {p99:.3} ms, CPU {cpu:.3} ms");
    figures.extend([middle, tail, each]);
    if shape.services == 10_000 {
        figures.push(Figure::new("bytes from the API server per such change", shape, bytes, ""));
    }
    p50
}

/// Slices of many Services in one moment.
pub(crate) fn burst(cluster: &mut Cluster, proxy: &Proxy, shape: Shape, figures: &mut Vec<Figure>) {
    let rows = |endpoints| {
        f64::from(shape.services * shape.endpoints + BURST * (endpoints - shape.endpoints))
    };
    let (mut times, mut commits) = (Vec::new(), Commits::watch());
    let more = shape.endpoints + 1;
    for endpoints in [more, more - 1, more, more - 1, more, more - 1, more] {
        commits.forget();
        let sent = cluster.set_many(BURST, endpoints);
        let quiet = Duration::from_millis(300);
        let last = commits.last_after(quiet, || proxy.rows("endpoints") == rows(endpoints));
        times.push(milliseconds(last - sent));
    }
    let what = "500 slices changed at once → all committed";
    figures.push(Figure::new(what, shape, median(times), "ms").must(100.0).want(30.0));
    cluster.set_many(BURST, shape.endpoints);
    wait_for("all as before", || proxy.rows("endpoints") == rows(shape.endpoints));
}

/// Objects that change in what nobody here consults.
pub(crate) fn metadata_only(
    cluster: &mut Cluster,
    proxy: &Proxy,
    shape: Shape,
    figures: &mut Vec<Figure>,
) {
    let unchanged = "kubeferry_watch_unchanged_total{resource=\"endpointslices\"}";
    let unchanged = || proxy.metric(unchanged);
    let (mut commits, known, cpu) = (Commits::watch(), unchanged(), proxy.cpu());
    let syncs = proxy.syncs();
    cluster.annotate_many(BURST);
    sleep(Duration::from_millis(300));
    let cpu = (proxy.cpu() - cpu) / f64::from(BURST);
    let what = "500 slices with other annotations only";
    let past = f64::from(BURST) - (unchanged() - known);
    figures.extend([
        Figure::new(&format!("{what}: past the watch room"), shape, past, "").must(0.0),
        Figure::new(&format!("{what}: syncs"), shape, proxy.syncs() - syncs, "").must(0.0),
        Figure::new(&format!("{what}: commits"), shape, f64::from(commits.count()), "").must(0.0),
        Figure::new("CPU per such slice", shape, cpu, "ms"),
    ]);
}

/// A Service of a thousand endpoints, ten replaced at a time.
pub(crate) fn rolling(
    cluster: &mut Cluster,
    proxy: &Proxy,
    shape: Shape,
    figures: &mut Vec<Figure>,
) {
    let known = proxy.rows("endpoints");
    cluster.add_big();
    wait_for("the big Service", || proxy.rows("endpoints") == known + f64::from(BIG));
    let verdicts =
        "kubeferry_elements_total{ip_family=\"IPv4\",operation=\"add\",set=\"frontends\"}";
    let verdicts = || proxy.metric(verdicts);
    let operations = || proxy.metric("kubeferry_operations_total");
    let (first, written, bytes, cpu) =
        (verdicts(), operations(), cluster.bytes_sent(), proxy.cpu());
    assert!(first > 0.0, "the metric is there");
    let (mut times, mut commits) = (Vec::new(), Commits::watch());
    for replaced in (ROLLED..=BIG).step_by(10) {
        sleep(PAUSE);
        commits.forget();
        let sent = cluster.roll_big(replaced);
        times.push(milliseconds(commits.next() - sent));
    }
    sleep(PAUSE);
    let steps = f64::from(BIG / ROLLED);
    let cpu = (proxy.cpu() - cpu) / steps;
    let bytes = (cluster.bytes_sent() - bytes) / steps;
    let what = "rolling update, 10 of 1,000 endpoints";
    let each = (operations() - written) / steps;
    figures.extend([
        Figure::new(&format!("{what}: operations"), shape, each, "").must(20.0),
        Figure::new(&format!("{what}: verdicts changed"), shape, verdicts() - first, "").must(0.0),
        Figure::new(&format!("{what}: event sent → committed, p50"), shape, median(times), "ms"),
        Figure::new(&format!("{what}: CPU"), shape, cpu, "ms"),
        Figure::new(&format!("{what}: bytes from the API server"), shape, bytes, ""),
    ]);
}
