//! The bounded queue between the watchers (async) and the sync loop (a plain thread).

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::model::Change;

/// Makes a queue of at most `capacity` Changes.
pub fn channel(capacity: usize) -> (ChangeSender, ChangeReceiver) {
    let (sender, receiver) = mpsc::channel(capacity);
    (ChangeSender(sender), ChangeReceiver { receiver })
}

/// The watchers' end. Waiting for room is what stops the reading from the network.
#[derive(Clone, Debug)]
pub struct ChangeSender(mpsc::Sender<Change>);

impl ChangeSender {
    /// An end that does not keep the queue open.
    pub fn side(&self) -> SideSender {
        SideSender(self.0.downgrade())
    }

    /// Waits for room. `Err` when nobody receives any more.
    pub(super) async fn send(&self, change: Change) -> Result<(), Closed> {
        self.0.send(change).await.map_err(|_| Closed)
    }

    /// Sends all of them, a group at a time as far as there is room: the receiver is woken once for each group, not for
    /// each Change.
    pub(super) async fn send_all(&self, changes: &mut Vec<Change>) -> Result<(), Closed> {
        while !changes.is_empty() {
            let group = changes.len().min(self.0.max_capacity());
            let room = self.0.reserve_many(group).await.map_err(|_| Closed)?;
            room.zip(changes.drain(..group)).for_each(|(place, change)| place.send(change));
        }
        Ok(())
    }

    /// Waits until nobody receives any more.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// An end for a thread that has something to say now and then, but is no watcher: it does not keep the queue open.
#[derive(Clone, Debug)]
pub struct SideSender(mpsc::WeakSender<Change>);

impl SideSender {
    /// Waits for room, blocking the thread. `false` when all watchers have ended or nobody receives any more.
    pub fn send(&self, change: Change) -> bool {
        self.0.upgrade().is_some_and(|sender| sender.blocking_send(change).is_ok())
    }
}

/// The receiver is gone: the program stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closed;

/// The sync loop's end.
#[derive(Debug)]
pub struct ChangeReceiver {
    receiver: mpsc::Receiver<Change>,
}

/// What waiting brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// That many Changes (at least one) were appended.
    Changes(usize),
    /// Nothing came in time.
    Timeout,
    /// All watchers have ended.
    Closed,
}

impl ChangeReceiver {
    /// Appends what is there, up to `most`; waits for the first Change up to `timeout` (`None`: for ever).
    ///
    /// Blocks the thread; not to be called inside a runtime.
    pub fn receive(
        &mut self,
        into: &mut Vec<Change>,
        most: usize,
        timeout: Option<Duration>,
    ) -> Received {
        match wait(self.receiver.recv_many(into, most), timeout) {
            Some(0) => Received::Closed,
            Some(count) => Received::Changes(count),
            None => Received::Timeout,
        }
    }

    /// Waits inside a runtime, for tests and tools; `None` when all watchers have ended.
    pub async fn next(&mut self) -> Option<Change> {
        self.receiver.recv().await
    }
}

/// Runs a future on this thread until it is done or the time is over.
///
/// A tokio channel lets a plain thread wait without end only, and a tokio runtime for the thread would wake it up twice
/// for every timeout: its timers are rounded and looked at again.
fn wait<T>(future: impl Future<Output = T>, timeout: Option<Duration>) -> Option<T> {
    let end = timeout.and_then(|it| now().checked_add(it));
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(ThisThread(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Some(value);
        }
        match end.map(|end| end.saturating_duration_since(now())) {
            None => thread::park(),
            Some(Duration::ZERO) => return None,
            Some(left) => thread::park_timeout(left),
        }
    }
}

struct ThisThread(Thread);

impl Wake for ThisThread {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[expect(clippy::disallowed_methods, reason = "a wait ends by the clock")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Resource;

    #[test]
    fn a_thread_waits_no_longer_than_told_and_takes_all_that_is_there() {
        let (sender, mut receiver) = channel(8);
        let mut changes = Vec::new();
        assert_eq!(
            receiver.receive(&mut changes, 8, Some(Duration::from_millis(1))),
            Received::Timeout
        );
        sender.0.try_send(Change::NodeDeleted).unwrap();
        sender.0.try_send(Change::NodeDeleted).unwrap();
        sender.0.try_send(Change::NodeDeleted).unwrap();
        assert_eq!(receiver.receive(&mut changes, 2, None), Received::Changes(2));
        assert_eq!(receiver.receive(&mut changes, 2, None), Received::Changes(1));
        drop(sender);
        assert_eq!(receiver.receive(&mut changes, 2, None), Received::Closed);
        assert_eq!(changes.len(), 3);
    }

    #[test]
    fn more_than_there_is_room_for_arrives_in_order() {
        let (sender, mut receiver) = channel(4);
        let listed = [Resource::Service, Resource::EndpointSlice, Resource::Node];
        let sent: Vec<Change> = listed.into_iter().cycle().take(30).map(Change::Listed).collect();
        let mut waiting = sent.clone();
        let other = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(sender.send_all(&mut waiting)).unwrap();
            assert!(waiting.is_empty());
        });
        let mut changes = Vec::new();
        while receiver.receive(&mut changes, 8, None) != Received::Closed {}
        assert_eq!(changes, sent);
        other.join().unwrap();
    }

    #[test]
    fn a_change_that_comes_later_wakes_the_thread() {
        let (sender, mut receiver) = channel(1);
        let other = thread::spawn(move || {
            for _ in 0..1_000 {
                sender.0.blocking_send(Change::NodeDeleted).unwrap();
            }
        });
        let mut changes = Vec::new();
        while receiver.receive(&mut changes, 8, Some(Duration::from_secs(60))) != Received::Closed {
        }
        assert_eq!(changes.len(), 1_000);
        other.join().unwrap();
    }
}
