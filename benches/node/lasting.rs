//! Everything that is asked for at 10,000 × 5: start, changes, rest, restart.

use std::thread::sleep;
use std::time::Duration;

use super::changes::{burst, metadata_only, one_endpoint, rolling};
use super::cluster::Cluster;
use super::proxy::Proxy;
use super::settle::wait_for;
use super::start::{first_sync, start, started};
use super::traffic::Traffic;
use super::{median, now, seconds};
use crate::figures::shape::Shape;
use crate::figures::table::Figure;
use crate::figures::yardstick::nft_load;

const IDLE: Duration = Duration::from_secs(10);

const MIDDLE: Shape = Shape::new(10_000, 5);

pub(crate) fn middle(figures: &mut Vec<Figure>) {
    let (mut cluster, proxy) = starts(figures);
    one_endpoint(&mut cluster, &proxy, MIDDLE, figures);
    burst(&mut cluster, &proxy, MIDDLE, figures);
    metadata_only(&mut cluster, &proxy, MIDDLE, figures);
    rolling(&mut cluster, &proxy, MIDDLE, figures);
    let peak = Figure::new("peak memory after all changes", MIDDLE, proxy.peak_memory(), "MB");
    figures.push(peak.must(60.0).want(35.0));
    idle(&proxy, figures);
    restart(&cluster, proxy, figures);
}

fn starts(figures: &mut Vec<Figure>) -> (Cluster, Proxy) {
    // Yardstick and start by turns, so that what else the machine does meanwhile hits both.
    let mut loads = vec![nft_load(MIDDLE).as_secs_f64()];
    let (mut cluster, mut proxy, first) = start(MIDDLE);
    let (peak, bytes) = (proxy.peak_memory(), cluster.bytes_sent());
    let connections = cluster.connections();
    let mut starts = vec![first];
    for _ in 0..2 {
        proxy.end();
        loads.push(nft_load(MIDDLE).as_secs_f64());
        let (again, took) = first_sync(&cluster, MIDDLE);
        proxy = again;
        starts.push(took);
    }
    let (load, start) = (median(loads), median(starts));
    let ratio = "process start → everything committed : nft -f";
    figures.extend([
        Figure::new("nft -f, the same elements", MIDDLE, load, "s"),
        started(MIDDLE, start),
        Figure::new(ratio, MIDDLE, start / load, "").must(1.5).want(0.7),
        Figure::new("peak memory after the start", MIDDLE, peak, "MB").must(60.0).want(35.0),
        Figure::new("connections to the API server", MIDDLE, connections, "").must(1.0),
        Figure::new("bytes from the API server for the start", MIDDLE, bytes / 1e6, "MB"),
    ]);
    (cluster, proxy)
}

fn idle(proxy: &Proxy, figures: &mut Vec<Figure>) {
    sleep(Duration::from_secs(1));
    let (cpu, switches) = (proxy.cpu(), proxy.wake_ups());
    sleep(IDLE);
    let share = (proxy.cpu() - cpu) / 1_000.0 / IDLE.as_secs_f64() * 100.0;
    let wake_ups = (proxy.wake_ups() - switches) / IDLE.as_secs_f64();
    figures.extend([
        Figure::new("idle: CPU", MIDDLE, share, "%").must(0.1),
        Figure::new("idle: wake-ups per second, all threads", MIDDLE, wake_ups, ""),
    ]);
}

/// The kernel has everything already, and goes on while the process does not.
fn restart(cluster: &Cluster, proxy: Proxy, figures: &mut Vec<Figure>) {
    let traffic = Traffic::start();
    proxy.end();
    let began = now();
    let proxy = Proxy::start(cluster);
    wait_for("a sync after the restart", || proxy.syncs() > 0.0);
    let took = seconds(now() - began);
    let written = proxy.metric("kubeferry_elements_total");
    let traffic = traffic.end();
    figures.extend([
        Figure::new("restart with unchanged state", MIDDLE, took, "s").must(1.0),
        Figure::new("elements written by it", MIDDLE, written, "").must(0.0),
        Figure::new("new connections to a Service meanwhile", MIDDLE, traffic.answered, ""),
        Figure::new("connections that failed", MIDDLE, traffic.failed, "").must(0.0),
        Figure::new(
            "packets sent again, also because of a busy CPU",
            MIDDLE,
            traffic.sent_again,
            "",
        ),
    ]);
}
