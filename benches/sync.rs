//! What the pure rooms cost: taking changes in, forwarding, compiling, encoding; all of it, and for one change.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use kube_ferry::forward::{self, Forwarder};
use kube_ferry::model::{Change, Cluster, ServiceId};
use kube_ferry::nft::codec::{Ending, Ownership, encode};
use kube_ferry::nft::{Batch, Compiler, Owner, RowCounts};
use kube_ferry::objects::Interner;

use figures::shape::{self, Shape};

#[expect(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "shared with the other benchmarks"
)]
mod figures;

const SIZES: [Shape; 3] = [Shape::new(100, 5), Shape::new(1_000, 5), Shape::new(10_000, 5)];

fn everything(criterion: &mut Criterion) {
    for shape in SIZES {
        let changes = shape.changes();
        let cluster = cluster(&changes);
        let all = cluster.ids().collect();
        let mut forwarder = Forwarder::new(forward::Settings::default());
        forwarder.update(&cluster, &all);
        let batch = compile(&forwarder, &cluster);
        let mut group = criterion.benchmark_group("everything");
        group.bench_with_input(BenchmarkId::new("apply", shape), &changes, |bench, changes| {
            bench.iter_batched(|| changes.clone(), take, BatchSize::PerIteration);
        });
        group.bench_function(BenchmarkId::new("forward", shape), |bench| {
            bench.iter(|| Forwarder::new(forward::Settings::default()).update(&cluster, &all));
        });
        group.bench_function(BenchmarkId::new("compile", shape), |bench| {
            bench.iter(|| compile(&forwarder, &cluster));
        });
        group.bench_function(BenchmarkId::new("encode", shape), |bench| {
            bench.iter(|| encode(black_box(&batch), 1, None, Ending::Commit, Ownership::Shared));
        });
        group.finish();
    }
}

/// An endpoint comes, an endpoint goes, each of another Service: from the Change to the bytes.
fn one_endpoint(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one endpoint");
    for shape in SIZES {
        let mut engine = shape.engine();
        shape::fill(&mut engine, drop);
        let changes = toggles(shape);
        let mut next = changes.iter().cycle().cloned();
        group.bench_function(BenchmarkId::new("change", shape), |bench| {
            bench.iter_batched(
                || next.next(),
                |change| {
                    change.into_iter().for_each(|it| engine.apply(it));
                    let batch = engine.plan();
                    let encoded = encode(&batch, 1, None, Ending::Commit, Ownership::Shared);
                    engine.committed();
                    encoded
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// For 50 Services spread over all: an endpoint more, then all of them one less.
fn toggles(shape: Shape) -> Vec<Change> {
    let mut interner = Interner::default();
    let counts = [shape.endpoints + 1, shape.endpoints];
    let services = |count| (0..50).map(move |it| (it * (shape.services / 50), count));
    let slices =
        counts.into_iter().flat_map(services).flat_map(|(it, count)| shape::slices(it, count));
    slices.filter_map(|it| shape::change(it, &mut interner)).collect()
}

fn cluster(changes: &[Change]) -> Cluster {
    take(changes.to_vec())
}

fn take(changes: Vec<Change>) -> Cluster {
    let mut cluster = Cluster::default();
    for change in changes {
        cluster.apply(change);
    }
    cluster
}

fn compile(forwarder: &Forwarder, cluster: &Cluster) -> Batch {
    let mut compiler = Compiler::new(shape::settings().program(cluster.node()));
    let mut expected = RowCounts::default();
    let forwardings = || forwarder.services().map(|id| (id, forwarder.forwarding(cluster, id)));
    forwardings().for_each(|(_, it)| expected.expect(&it, false));
    compiler.stage_skeleton(&expected);
    for (ServiceId(id), forwarding) in forwardings() {
        compiler.stage(Owner(id), &forwarding);
    }
    compiler.batch()
}

fn quick() -> Criterion {
    Criterion::default()
        .without_plots()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
}

criterion_group! { name = benches; config = quick(); targets = everything, one_endpoint }
criterion_main!(benches);
