//! Connections that go on while something else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::datapath::{Attempt, Reach};
use super::run::classify;
use crate::support::client::{ANSWER, Open, ask};
use crate::support::namespace;
use crate::support::patience::{LONG, poll};
use crate::support::world::World;

/// Between two rounds: others want the processor too, and source ports are not without end.
const PACE: Duration = Duration::from_millis(5);

/// Rounds after `end` is asked for, so that what came last is seen to have done no harm.
const MORE: usize = 3;

/// A thread that asks on one old connection and opens a new one, again and again.
pub(crate) struct Traffic {
    end: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    thread: JoinHandle<Result<(), String>>,
}

impl Traffic {
    /// Returns when the first round has gone well.
    pub(crate) fn start(world: &World, attempt: Attempt) -> Result<Traffic, String> {
        let (end, rounds) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let home = world.home(attempt.source).file();
        let thread = thread::spawn({
            let (end, rounds) = (end.clone(), rounds.clone());
            move || {
                namespace::enter(&home);
                flow(&attempt, &end, &rounds)
            }
        });
        let traffic = Traffic { end, rounds, thread };
        match traffic.wait_for(1) {
            Ok(()) => Ok(traffic),
            Err(_) => Err(traffic.end().err().unwrap_or_else(|| "no traffic".to_owned())),
        }
    }

    /// Every request so far, and a few more, must have been answered.
    pub(crate) fn end(self) -> Result<(), String> {
        let rounds = self.rounds.load(Ordering::Relaxed) + MORE;
        // What went wrong is told by the thread itself.
        let _ = self.wait_for(rounds);
        self.end.store(true, Ordering::Relaxed);
        let ended = self.thread.join().map_err(|_| "the clients' thread panicked".to_owned())?;
        ended.map_err(|why| format!("in round {}: {why}", self.rounds.load(Ordering::Relaxed)))
    }

    fn wait_for(&self, rounds: usize) -> Result<(), String> {
        poll(LONG, || {
            let done = self.rounds.load(Ordering::Relaxed);
            let enough = done >= rounds || self.thread.is_finished();
            enough.then_some(()).ok_or_else(|| format!("only {done} rounds"))
        })
    }
}

fn flow(attempt: &Attempt, end: &AtomicBool, rounds: &AtomicUsize) -> Result<(), String> {
    let source = attempt.source.address(attempt.to.ip());
    let mut old = Open::connect(source, attempt.to, attempt.protocol, ANSWER)
        .map_err(|error| format!("the connection that is to stay: {error}"))?;
    let mut first: Option<Reach> = None;
    while !end.load(Ordering::Relaxed) {
        let outcome = old.ask(ANSWER);
        let reach = classify(&outcome);
        let backend = first.get_or_insert_with(|| reach.clone());
        if reach != *backend || !attempt.wanted.allows(&reach) {
            return Err(format!("the old connection, to {backend}: {outcome}"));
        }
        let outcome = ask(source, attempt.to, attempt.protocol, ANSWER);
        if !attempt.wanted.allows(&classify(&outcome)) {
            let Attempt { source, to, protocol, .. } = attempt;
            return Err(format!("a new connection, {source:?} to {to} by {protocol:?}: {outcome}"));
        }
        rounds.fetch_add(1, Ordering::Relaxed);
        thread::sleep(PACE);
    }
    Ok(())
}
