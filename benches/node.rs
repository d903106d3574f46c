//! A whole node: the real program as a process, a simulated API server as another, the kernel in a network namespace
//! of its own. Everything as on a node: TLS, HTTP/2, objects with all that real ones carry along. Beside it what others
//! need for the same: `nft -f`, and the kernel alone.
//!
//! When something was committed is told by the generation number of nf_tables, asked for every 50 µs (a question costs
//! a few µs; with the timer's slack a commit is noticed 0.1 ms late at most). CPU time is the scheduler's, in
//! nanoseconds, from /proc/PID/task/*/schedstat.
//!
//! `cargo bench --bench node -- PART ...` measures parts only; see `PARTS`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a benchmark reads clocks, starts programs, prints, and ends with the first thing that goes wrong"
)]

use figures::program::enter_namespace;
use figures::table::{Figure, keep, show};

mod figures;
#[path = "node"]
mod node {
    pub(crate) mod changes;
    pub(crate) mod cluster;
    pub(crate) mod kernel;
    pub(crate) mod lasting;
    pub(crate) mod modes;
    pub(crate) mod proxy;
    pub(crate) mod settle;
    pub(crate) mod start;
    pub(crate) mod traffic;
    pub(crate) mod wire;

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

    pub(crate) fn median(mut all: Vec<f64>) -> f64 {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    }
}

#[path = "../tests/support"]
mod support {
    #[expect(dead_code, reason = "tests ask more of it")]
    pub(crate) mod apiserver;
}

type Part = (&'static str, fn(&mut Vec<Figure>));

const PARTS: [Part; 6] = [
    ("middle", node::lasting::middle),
    ("growth", node::changes::growth),
    ("starts", node::start::starts),
    ("memory", node::start::memory),
    ("kernel", node::kernel::kernel),
    (ASKED_FOR, node::modes::modes),
];

/// Not measured unless named: it needs a kernel with IPVS.
const ASKED_FOR: &str = "modes";

fn main() {
    if let Some(shape) = node::cluster::asked_for() {
        return node::cluster::serve(shape);
    }
    enter_namespace();
    let words: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with('-')).collect();
    let unknown = words.iter().find(|word| PARTS.iter().all(|(part, _)| part != word));
    assert_eq!(unknown, None, "no such part");
    let mut figures = Vec::new();
    let is_wanted = |part: &str| match words.as_slice() {
        [] => part != ASKED_FOR,
        words => words.iter().any(|it| it == part),
    };
    for (_, measure) in PARTS.iter().filter(|(part, _)| is_wanted(part)) {
        measure(&mut figures);
    }
    show(&figures);
    // In a virtual machine only what is printed comes back.
    if words != [ASKED_FOR] {
        keep(&figures);
    }
}
