//! SIGKILL at any moment: at the start, between two transactions of it, and while changes are written.

use std::thread::sleep;
use std::time::Duration;

use kube_ferry::kernel::NetlinkKernel;
use rustix::process::Signal;

use super::dump::{dump, same};
use super::node::{Node, fickle, steady};
use super::traffic::Traffic;
use crate::support::patience::{LONG, poll};
use crate::support::proxy::Proxy;

/// The same deaths every time, as far as the machine allows.
const SEED: u64 = 20_261_121;

const ROUNDS: u64 = 24;

/// Services whose rows, some 10,000, are written by more than one transaction.
const BULK: u16 = 1_500;

/// Fickle Services besides them.
const FICKLE: u16 = 12;

#[test]
fn a_process_that_is_killed_at_any_moment_leaves_nothing_that_its_successor_does_not_set_right() {
    let node = Node::new();
    let mut random = Random(SEED);
    node.proxy("first", &[]).stop(Signal::KILL);
    let traffic = Traffic::start(&node.world, steady());
    // How often death came before the first sync was through, and after.
    let (mut early, mut late) = (0, 0);
    for round in 0..ROUNDS {
        churn(&node, &mut random);
        // Every third start has the whole bulk to write, or to delete.
        if round % 3 == 0 {
            let bulk = if round % 2 == 0 { BULK } else { 0 };
            node.write("bulk", &(1..=bulk).map(|it| fickle(it + 100, &[10])).collect::<Vec<_>>());
        }
        let name = format!("round-{round}");
        let mut proxy = node.begin(&name, &[]);
        live(&node, &proxy, &mut random);
        proxy.stop(Signal::KILL);
        if proxy.log().contains("synced") {
            late += 1
        } else {
            early += 1
        }
        traffic.go_on(2);
    }
    println!("{early} early deaths, {late} late ones");
    assert!(early >= 3 && late >= 3, "{early} early deaths, {late} late ones: no fair choice");
    let _last = node.proxy("last", &[]);
    let fresh = node.copy();
    let _undisturbed = fresh.proxy("undisturbed", &[]);
    poll(LONG, || same(&dump(fresh.host()), &dump(node.host()))).unwrap();
    traffic.end();
}

/// Other endpoints for some Services, and some Services come or go.
fn churn(node: &Node, random: &mut Random) {
    let mut objects = Vec::new();
    for number in 1..=FICKLE {
        if random.below(4) > 0 {
            let first = u16::try_from(random.below(40)).unwrap() + 10;
            let count = u16::try_from(random.below(9)).unwrap();
            objects.push(fickle(number, &(first..first + count).collect::<Vec<_>>()));
        }
    }
    node.write("fickle", &objects);
}

/// Lets the process live for a while: until some transactions were carried out, or for some time, with changes.
fn live(node: &Node, proxy: &Proxy<'_>, random: &mut Random) {
    match random.below(3) {
        0 => {
            let more = u32::try_from(random.below(4)).unwrap() + 1;
            after_transactions(node, more);
            sleep(Duration::from_micros(random.below(20_000)));
        }
        1 => sleep(Duration::from_millis(random.below(150))),
        _ => {
            let synced = || proxy.log().contains("synced").then_some(()).ok_or(proxy.log());
            poll(LONG, synced).unwrap();
            for _ in 0..=random.below(3) {
                churn(node, random);
                sleep(Duration::from_millis(random.below(120)));
            }
        }
    }
}

/// Waits for transactions of whoever it may be, but not for ever: there may be nothing to write.
pub(super) fn after_transactions(node: &Node, more: u32) {
    node.host().run(|| {
        let mut kernel = NetlinkKernel::new().unwrap();
        let start = kernel.generation().unwrap();
        let carried_out = || {
            let now = kernel.generation().unwrap();
            (now >= start + more).then_some(()).ok_or(String::new())
        };
        let _ = poll(Duration::from_millis(1_500), carried_out);
    });
}

/// splitmix64: good enough to choose moments, and the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
