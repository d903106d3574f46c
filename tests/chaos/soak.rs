//! Hours in minutes: schedules one after the other in one world, and a look at what grows.
//!
//! `make soak` runs it for `SOAK_SECONDS`. The process is killed and started again during the first part only, so that
//! its memory can be watched over the rest.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::listing::Listing;
use super::schedule::{Menu, Setting, Stage, on_stage};
use super::schedules::number;
use crate::support::dice::Dice;
use crate::support::patience::{LONG, poll};
use crate::support::witness;

/// Steps between two reckonings.
const STEPS: usize = 40;

/// Part of the time in which processes are ended and started again.
const RESTARTS: f64 = 0.25;

/// The memory of a process that has run for a while may differ by that much: pages are not given back at once.
const TOLERANCE: f64 = 0.10;
const TOLERANCE_KIB: f64 = 1_024.0;

/// How much there is of everything while nothing happens.
#[derive(Clone, Debug)]
struct Sample {
    at: Duration,
    process: u32,
    /// `VmRSS`
    memory_kib: u64,
    descriptors: usize,
    threads: usize,
    sets: usize,
    chains: usize,
    rules: usize,
    elements: usize,
    flows: usize,
}

#[test]
#[ignore = "takes SOAK_SECONDS, ten minutes if nothing is said: make soak"]
fn nothing_grows_and_nothing_breaks() {
    let seconds = number("SOAK_SECONDS").unwrap_or(600);
    let seed = number("CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let setting = Setting::of(seed);
    println!("CHAOS_SEED={seed} SOAK_SECONDS={seconds}: {setting:?}");
    on_stage(seed, setting, |stage| soak(stage, seed, Duration::from_secs(seconds)));
}

fn soak(stage: &mut Stage<'_>, seed: u64, length: Duration) {
    let began = now();
    let mut dice = Dice::new(seed);
    let mut samples = Vec::new();
    while began.elapsed() < length {
        let menu = Menu {
            api_faults: 6,
            restarts: began.elapsed() < length.mul_f64(RESTARTS),
            patient: dice.percent(20),
        };
        stage.play(&mut dice, STEPS, menu);
        samples.push(sample(stage, began.elapsed()));
        println!("{}", samples.last().unwrap().line());
    }
    let last = samples.last().unwrap().clone();
    samples.retain(|it| it.process == last.process);
    print!("{}", summary(stage, &samples));
    check_flat(&samples);
    check_objects(stage, &last);
}

/// The process that has run to the end has not grown since it had seen everything once.
fn check_flat(samples: &[Sample]) {
    let part = samples.len() / 3;
    assert!(
        part > 0,
        "too short to tell: {} samples of one process; give it more SOAK_SECONDS",
        samples.len()
    );
    let (early, late) = (&samples[part..2 * part.max(1)], &samples[samples.len() - part..]);
    let most =
        |of: &[Sample], what: fn(&Sample) -> u64| of.iter().map(what).max().unwrap_or_default();
    let memory = |of: &[Sample]| most(of, |it| it.memory_kib) as f64;
    let allowed = memory(early) * (1.0 + TOLERANCE) + TOLERANCE_KIB;
    assert!(
        memory(late) <= allowed,
        "memory grows: {} KiB, then {} KiB",
        memory(early),
        memory(late)
    );
    // The fewest, because health check node ports come and go; what leaks is never given back.
    let descriptors = |of: &[Sample]| of.iter().map(|it| it.descriptors).min();
    let descriptors = |of| descriptors(of).unwrap_or_default();
    assert!(descriptors(late) <= descriptors(early) + 2, "descriptors leak: {samples:#?}");
    let threads = |of: &[Sample]| most(of, |it| it.threads as u64);
    assert!(threads(late) <= threads(early), "threads leak: {samples:#?}");
}

/// A process that starts with nothing makes as many kernel objects as there are after all this.
fn check_objects(stage: &mut Stage<'_>, before: &Sample) {
    stage.start_afresh();
    let after = sample(stage, before.at);
    let objects = |it: &Sample| (it.sets, it.elements);
    assert_eq!(objects(before), objects(&after), "sets, elements: left behind, and made afresh");
    // The nine chains of a number of slots stay when they are in use no more.
    let stayed = before.chains.checked_sub(after.chains).expect("no chain is missing");
    assert!(stayed.is_multiple_of(9), "{stayed} chains left behind");
}

fn sample(stage: &Stage<'_>, at: Duration) -> Sample {
    let process = stage.proxy.id();
    let directory = |name| std::fs::read_dir(format!("/proc/{process}/{name}")).unwrap().count();
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let memory = status.lines().find_map(|it| it.strip_prefix("VmRSS:")).unwrap();
    let memory = memory.trim().trim_end_matches(" kB").parse().unwrap();
    let listing: Listing = stage.listing();
    assert_eq!(listing.tables, 2);
    Sample {
        at,
        process,
        memory_kib: memory,
        descriptors: directory("fd"),
        threads: directory("task"),
        sets: listing.sets(),
        chains: listing.chains,
        rules: listing.rules,
        elements: listing.elements(),
        flows: witness::flows(stage.world.node()).len(),
    }
}

impl Sample {
    fn line(&self) -> String {
        format!(
            "{:>6} s | process {:>7} | {:>6} KiB | {:>3} descriptors | {:>2} threads | {:>3} sets, {:>4} chains, {:>5} rules, {:>5} elements | {:>5} flows",
            self.at.as_secs(),
            self.process,
            self.memory_kib,
            self.descriptors,
            self.threads,
            self.sets,
            self.chains,
            self.rules,
            self.elements,
            self.flows,
        )
    }
}

fn summary(stage: &Stage<'_>, samples: &[Sample]) -> String {
    let (first, last) = (samples.first().unwrap(), samples.last().unwrap());
    let count = |it: &std::sync::atomic::AtomicU64| it.load(Ordering::Relaxed).to_string();
    let tally = &stage.tally;
    let mut rows = vec![
        ("changes of objects", tally.changes.to_string()),
        ("answered where an answer is due", count(&stage.traffic.answered)),
        ("answered by a Service that changes", count(&stage.traffic.checked)),
        ("excused: somebody had damaged the tables", count(&stage.traffic.excused)),
        ("wrong or failed connections", stage.traffic.failures().len().to_string()),
        ("slowest repair of damage", format!("{:.1} s", tally.slowest_repair.as_secs_f64())),
        ("slowest settling after faults", format!("{:.1} s", tally.slowest_settling.as_secs_f64())),
        ("memory, first and last", format!("{} {} KiB", first.memory_kib, last.memory_kib)),
        ("descriptors, first and last", format!("{} {}", first.descriptors, last.descriptors)),
        ("samples of the last process", samples.len().to_string()),
    ];
    for (kind, count) in &tally.faults {
        rows.push((kind, format!("{count} times")));
    }
    rows.iter().fold(String::new(), |mut table, (what, value)| {
        let _ = writeln!(table, "| {what:<42} | {value:>16} |");
        table
    })
}

impl Stage<'_> {
    /// Everything goes, and a new process makes it again.
    fn start_afresh(&mut self) {
        self.proxy.stop(rustix::process::Signal::KILL);
        self.traffic.damaged();
        for family in ["ip", "ip6"] {
            self.world.node().command("nft", &["delete", "table", family, "kube-ferry"], "");
        }
        self.proxy.run().unwrap();
        self.traffic.repaired();
        poll(LONG, || self.everybody_fixed_answers()).unwrap();
        self.settle(false);
    }
}

#[expect(clippy::disallowed_methods, reason = "a soak lasts as long as the clock says")]
fn now() -> Instant {
    Instant::now()
}

#[test]
fn growth_is_noticed() {
    let sample = |memory_kib, descriptors| Sample {
        at: Duration::ZERO,
        process: 1,
        memory_kib,
        descriptors,
        threads: 5,
        sets: 1,
        chains: 1,
        rules: 1,
        elements: 1,
        flows: 1,
    };
    let flat = |samples: &[Sample]| std::panic::catch_unwind(|| check_flat(samples)).is_ok();
    let of = |grow: u64, leak: usize| -> Vec<Sample> {
        (0..9).map(|n| sample(10_000 + grow * n, 20 + leak * usize::try_from(n).unwrap())).collect()
    };
    assert!(flat(&of(0, 0)) && flat(&of(100, 0)));
    assert!(!flat(&of(1_000, 0)) && !flat(&of(0, 1)));
    assert!(!flat(&of(0, 0)[..2]));
}
