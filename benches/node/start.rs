//! From the start of the process to the last commit, and the memory that it takes.

use std::time::Duration;

use super::cluster::Cluster;
use super::proxy::Proxy;
use super::settle::Commits;
use super::{now, seconds};
use crate::figures::program::nft;
use crate::figures::shape::Shape;
use crate::figures::table::Figure;

/// A cluster, a proxy that has written everything, and how long that took it from its start, in seconds.
pub(crate) fn start(shape: Shape) -> (Cluster, Proxy, f64) {
    nft("flush ruleset");
    let cluster = Cluster::start(shape);
    let (proxy, took) = first_sync(&cluster, shape);
    println!("{shape}: everything committed {took:.3} s after the start");
    (cluster, proxy, took)
}

pub(crate) fn first_sync(cluster: &Cluster, shape: Shape) -> (Proxy, f64) {
    let mut commits = Commits::watch();
    let began = now();
    let proxy = Proxy::start(cluster);
    let wanted = f64::from(shape.services * shape.endpoints);
    let last = commits.last_after(Duration::from_millis(300), || {
        proxy.rows("endpoints") == wanted && proxy.rows("frontends") == f64::from(shape.services)
    });
    (proxy, seconds(last - began))
}

pub(crate) fn started(shape: Shape, seconds: f64) -> Figure {
    Figure::new("process start → everything committed", shape, seconds, "s")
}

/// Few endpoints for many Services, and many for few.
pub(crate) fn starts(figures: &mut Vec<Figure>) {
    for shape in [Shape::new(45_000, 1), Shape::new(5_000, 50)] {
        let (_cluster, _proxy, took) = start(shape);
        figures.push(started(shape, took).must(6.0).want(3.0));
    }
}

/// What a Service and an endpoint take, from clusters that differ in nothing else.
pub(crate) fn memory(figures: &mut Vec<Figure>) {
    let peak = |services, endpoints| {
        let (_cluster, proxy, _) = start(Shape::new(services, endpoints));
        proxy.peak_memory() * 1e6
    };
    let (base, more_services) = (peak(10_000, 5), peak(40_000, 5));
    let more_endpoints = peak(10_000, 35);
    let endpoint = (more_endpoints - base) / (10_000.0 * 30.0);
    let service = (more_services - base) / 30_000.0 - 5.0 * endpoint;
    let note = "10,000 × 5 beside 10,000 × 35";
    figures.push(Figure::new("memory for an endpoint", note, endpoint, "bytes"));
    let note = "10,000 × 5 beside 40,000 × 5";
    figures.push(Figure::new(
        "memory for a Service and its slice, without endpoints",
        note,
        service,
        "bytes",
    ));
    let rest = base - 10_000.0 * (service + 5.0 * endpoint);
    figures.push(Figure::new(
        "memory for the program itself, its file included",
        "",
        rest / 1e6,
        "MB",
    ));
}
