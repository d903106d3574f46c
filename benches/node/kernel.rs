//! What the kernel needs for our batches, beside `nft -f` and beside the kernel alone: the same elements, the same
//! run.

use std::time::{Duration, Instant};

use kube_ferry::kernel::{Kernel as _, NetlinkKernel};
use kube_ferry::objects::Interner;
use kube_ferry::sync::engine::Engine;

use crate::figures::program::nft;
use crate::figures::shape::{self, Shape};
use crate::figures::table::Figure;
use crate::figures::yardstick::{kernel_alone, nft_load};

const CHANGES: u32 = 200;

pub(crate) fn kernel(figures: &mut Vec<Figure>) {
    for shape in [Shape::new(10_000, 5), Shape::new(30_000, 5)] {
        measure(shape, figures);
    }
}

fn measure(shape: Shape, figures: &mut Vec<Figure>) {
    nft("flush ruleset");
    let nft_load = nft_load(shape);
    let mut kernel = NetlinkKernel::new().unwrap();
    let mut engine = shape.engine();
    let mut batches = Vec::new();
    let mut commit = Duration::ZERO;
    let began = Instant::now();
    shape::fill(&mut engine, |batch| {
        let began = Instant::now();
        kernel.commit(&batch).unwrap();
        commit += began.elapsed();
        batches.push(batch);
    });
    let whole = began.elapsed();
    let one = one_endpoint(shape, &mut engine, &mut kernel);
    nft("flush ruleset");
    let alone = kernel_alone(&batches);
    nft("flush ruleset");
    let elements: usize = batches.iter().map(|it| it.len()).sum();
    figures.extend([
        Figure::new("nft -f, the same elements", shape, ms(nft_load), "ms"),
        Figure::new("operations", shape, elements as f64, ""),
        Figure::new("batches", shape, batches.len() as f64, ""),
        Figure::new("compute, encode and commit", shape, ms(whole), "ms"),
        Figure::new("encode and commit", shape, ms(commit), "ms"),
        Figure::new("the kernel alone, the same bytes", shape, ms(alone), "ms"),
        Figure::new("encode and commit : nft -f", shape, ratio(commit, nft_load), "")
            .must(1.0)
            .want(0.7),
        Figure::new("encode and commit : the kernel alone", shape, ratio(commit, alone), ""),
        Figure::new("one endpoint more or less, commit only, p50", shape, one[one.len() / 2], "ms"),
        Figure::new(
            "one endpoint more or less, commit only, p99",
            shape,
            one[one.len() * 99 / 100],
            "ms",
        ),
    ]);
}

/// Milliseconds of each commit, sorted.
fn one_endpoint(shape: Shape, engine: &mut Engine, kernel: &mut NetlinkKernel) -> Vec<f64> {
    let mut interner = Interner::default();
    let mut times = Vec::new();
    for number in 0..CHANGES {
        let service = number / 2 * (shape.services / (CHANGES / 2));
        let count = shape.endpoints + 1 - number % 2;
        for slice in shape::slices(service, count) {
            engine.apply(shape::change(slice, &mut interner).unwrap());
        }
        let batch = engine.plan();
        assert!(!batch.is_empty(), "an endpoint more or less is something to write");
        let began = Instant::now();
        kernel.commit(&batch).unwrap();
        times.push(ms(began.elapsed()));
        engine.committed();
    }
    times.sort_by(f64::total_cmp);
    times
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

fn ratio(ours: Duration, theirs: Duration) -> f64 {
    ours.as_secs_f64() / theirs.as_secs_f64()
}
