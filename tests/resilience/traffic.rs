//! Connections that go on whatever happens to the proxy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kube_ferry::model::Protocol;

use crate::support::client::{ANSWER, Open, Outcome, ask};
use crate::support::namespace;
use crate::support::patience::{LONG, poll};
use crate::support::world::{Actor, World};

/// Between two rounds: others want the processor too.
const PACE: Duration = Duration::from_millis(2);

/// Rounds after the end is asked for, so that what came last is seen to have done no harm.
const MORE: usize = 5;

/// A thread that asks on one old connection and opens new ones, again and again.
pub(super) struct Traffic {
    end: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    thread: JoinHandle<Result<(), String>>,
}

impl Traffic {
    /// From the pod `client` to `to`; returns when the first round has gone well.
    pub(super) fn start(world: &World, to: SocketAddr) -> Traffic {
        let client = Actor::find("client").unwrap();
        let (end, rounds) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let home = world.home(client).file();
        let thread = thread::spawn({
            let (end, rounds) = (end.clone(), rounds.clone());
            move || {
                namespace::enter(&home);
                flow(client, to, &end, &rounds)
            }
        });
        let traffic = Traffic { end, rounds, thread };
        traffic.wait_for(1);
        traffic
    }

    /// Waits for as many rounds from now on, or for the first failure.
    pub(super) fn go_on(&self, rounds: usize) {
        self.wait_for(self.rounds.load(Ordering::Relaxed) + rounds);
    }

    /// Every request so far, and a few more, must have been answered. Returns the number of rounds.
    #[track_caller]
    pub(super) fn end(self) -> usize {
        self.go_on(MORE);
        self.end.store(true, Ordering::Relaxed);
        let rounds = self.rounds.load(Ordering::Relaxed);
        match self.thread.join() {
            Ok(Ok(())) => rounds,
            Ok(Err(why)) => panic!("in round {rounds}: {why}"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn wait_for(&self, rounds: usize) {
        // Slow is no fault as long as it goes on.
        for wanted in self.rounds.load(Ordering::Relaxed)..=rounds {
            let enough = || {
                let done = self.rounds.load(Ordering::Relaxed);
                // What went wrong is told by the thread itself, at the end.
                let enough = done >= wanted || self.thread.is_finished();
                enough.then_some(()).ok_or_else(|| format!("only {done} rounds"))
            };
            poll(LONG, enough).unwrap();
        }
    }
}

fn flow(
    client: Actor,
    to: SocketAddr,
    end: &AtomicBool,
    rounds: &AtomicUsize,
) -> Result<(), String> {
    let source = client.address(to.ip());
    let mut old = Open::connect(source, to, Protocol::Tcp, ANSWER)
        .map_err(|error| format!("the connection that is to stay: {error}"))?;
    let first = backend(old.ask(ANSWER))?;
    while !end.load(Ordering::Relaxed) {
        let now = backend(old.ask(ANSWER)).map_err(|why| format!("the old connection: {why}"))?;
        if now != first {
            return Err(format!("the old connection went to {first} and goes to {now}"));
        }
        backend(ask(source, to, Protocol::Tcp, ANSWER))
            .map_err(|why| format!("a new connection: {why}"))?;
        rounds.fetch_add(1, Ordering::Relaxed);
        thread::sleep(PACE);
    }
    Ok(())
}

/// The pod that answered. An answer of anybody else, or none, is an error.
fn backend(outcome: Outcome) -> Result<String, String> {
    if let Outcome::Answered(answer) = &outcome
        && answer.by.starts_with("pod-1")
    {
        return Ok(answer.by.clone());
    }
    Err(outcome.to_string())
}
