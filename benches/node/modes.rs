//! Mode ipvs beside mode nftables: the same cluster, the same kernel, one after the other.
//!
//! For a kernel that has IPVS, so it is measured only when asked for: `make bench-ipvs`.

use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::thread::sleep;
use std::time::{Duration, Instant};

use kube_ferry::ipvs::schema::{ObservedDestinations, ServerKey};
use kube_ferry::kernel::{Ipvs as _, NetlinkIpvs};
use kube_ferry::model::Protocol;

use super::cluster::Cluster;
use super::proxy::Proxy;
use super::settle::{Commits, wait_for};
use super::wire::Wire;
use super::{median, milliseconds, now, seconds};
use crate::figures::program::nft;
use crate::figures::shape::Shape;
use crate::figures::table::Figure;

const SHAPE: Shape = Shape::new(10_000, 5);
const CHANGES: u32 = 200;
/// Between two changes: long enough for each to be measured by itself.
const PAUSE: Duration = Duration::from_millis(10);
/// Between two looks.
const EVERY: Duration = Duration::from_micros(50);
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nftables,
    Ipvs,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Nftables => "nftables",
            Mode::Ipvs => "ipvs",
        }
    }

    fn figure(self, what: &str, measured: f64, unit: &'static str) -> Figure {
        Figure::new(what, format!("{SHAPE}, {}", self.name()), measured, unit)
    }
}

pub(crate) fn modes(figures: &mut Vec<Figure>) {
    let wire = Wire::lay();
    let mut all: Vec<Vec<Figure>> = Vec::new();
    for mode in [Mode::Nftables, Mode::Ipvs] {
        nft("flush ruleset");
        all.push(measure(mode, &wire));
    }
    // Side by side.
    let [nftables, ipvs] = all.try_into().unwrap_or_else(|_| panic!("two modes"));
    for (one, other) in nftables.into_iter().zip(ipvs) {
        figures.extend([one, other]);
    }
}

fn measure(mode: Mode, wire: &Wire) -> Vec<Figure> {
    let mut cluster = Cluster::start(SHAPE);
    let (kernel, began) = (kernel_memory(), now());
    let mut proxy = Proxy::start_in(&cluster, mode.name());
    wait_for("the first sync", || proxy.syncs() > 0.0);
    let took = seconds(now() - began);
    check(mode, &proxy);
    let kernel = kernel_memory() - kernel;
    println!("{}: everything committed {took:.3} s after the start", mode.name());
    let mut figures = vec![
        mode.figure("process start → everything committed", took, "s"),
        mode.figure("peak memory after the start", proxy.peak_memory(), "MB"),
        mode.figure("kernel memory for it (slabs, per processor, vmalloc)", kernel, "MB"),
    ];
    figures.extend(one_endpoint(mode, &mut cluster, &proxy));
    // Connections of the comparison of every sync period would be measured too.
    let rates = [(); 3].map(|()| wire.connections_per_second(Duration::from_secs(3)));
    figures.push(mode.figure("new connections per second, one client", median(rates.into()), ""));
    proxy.end();
    let began = now();
    proxy = Proxy::start_in(&cluster, mode.name());
    wait_for("a sync after the restart", || proxy.syncs() > 0.0);
    figures.push(mode.figure("restart with unchanged state", seconds(now() - began), "s"));
    let written = ["kubeferry_elements_total", "kubeferry_ipvs_operations_total"];
    let written = written.map(|it| proxy.metric(it)).iter().sum();
    figures.push(mode.figure("rows and operations written by it", written, "").must(0.0));
    figures
}

/// Everything is there, as the proxy counts it.
fn check(mode: Mode, proxy: &Proxy) {
    let (services, all) = (f64::from(SHAPE.services), f64::from(SHAPE.services * SHAPE.endpoints));
    assert_eq!(proxy.rows("frontends"), services);
    match mode {
        Mode::Nftables => assert_eq!(proxy.rows("endpoints"), all),
        Mode::Ipvs => {
            assert_eq!(proxy.metric("kubeferry_ipvs_virtual_servers"), services);
            assert_eq!(proxy.metric("kubeferry_ipvs_destinations"), all);
        }
    }
}

/// Endpoints that come and go one by one, each of another Service.
fn one_endpoint(mode: Mode, cluster: &mut Cluster, proxy: &Proxy) -> [Figure; 3] {
    let (mut times, mut witness) = (Vec::new(), Witness::new(mode));
    let cpu = proxy.cpu();
    for number in 0..CHANGES {
        sleep(PAUSE);
        let service = number / 2 * (SHAPE.services / (CHANGES / 2));
        let endpoints = SHAPE.endpoints + 1 - number % 2;
        witness.look_away();
        let sent = cluster.set_endpoints(service, endpoints);
        times.push(milliseconds(witness.sees(service, endpoints) - sent));
    }
    sleep(PAUSE);
    let cpu = (proxy.cpu() - cpu) / f64::from(CHANGES);
    times.sort_by(f64::total_cmp);
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("{}: one endpoint p50 {p50:.3} ms, p99 {p99:.3} ms, CPU {cpu:.3} ms", mode.name());
    [
        mode.figure("one endpoint more or less: event sent → in force, p50", p50, "ms"),
        mode.figure("one endpoint more or less: event sent → in force, p99", p99, "ms"),
        mode.figure("CPU per such change, all threads", cpu, "ms"),
    ]
}

/// What shows that a change is in force: a commit of nf_tables, or the destinations that new connections go to.
enum Witness {
    Nftables(Commits),
    Ipvs(Box<NetlinkIpvs>),
}

impl Witness {
    fn new(mode: Mode) -> Witness {
        match mode {
            Mode::Nftables => Witness::Nftables(Commits::watch()),
            Mode::Ipvs => Witness::Ipvs(Box::new(NetlinkIpvs::new(Vec::new()).unwrap())),
        }
    }

    /// What has happened so far is nothing new.
    fn look_away(&mut self) {
        match self {
            Witness::Nftables(commits) => commits.forget(),
            Witness::Ipvs(_) => (),
        }
    }

    /// When the Service was first seen to have so many endpoints, in nanoseconds since the epoch.
    fn sees(&mut self, service: u32, endpoints: u32) -> u64 {
        let ipvs = match self {
            Witness::Nftables(commits) => return commits.next(),
            Witness::Ipvs(ipvs) => ipvs,
        };
        let [_, _, high, low] = (service + 1).to_be_bytes();
        let (address, port) = ([10, 96, high, low].into(), 80.try_into().unwrap());
        let key = ServerKey { protocol: Protocol::Tcp, address, port };
        let began = Instant::now();
        let serving = |all: BTreeMap<ServerKey, ObservedDestinations>| {
            all[&key].values().filter(|it| it.weight > 0).count()
        };
        while serving(ipvs.destinations(&[key]).unwrap()) != endpoints as usize {
            assert!(began.elapsed() < PATIENCE, "{key} never has {endpoints} endpoints");
            sleep(EVERY);
        }
        now()
    }
}

/// In MB (10⁶ bytes).
fn kernel_memory() -> f64 {
    let text = read_to_string("/proc/meminfo").unwrap();
    let field = |name: &str| {
        let line = text.lines().find_map(|it| it.strip_prefix(name)).unwrap_or("0");
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    ["Slab:", "Percpu:", "VmallocUsed:"].map(field).iter().sum::<f64>() * 1_024.0 / 1e6
}
