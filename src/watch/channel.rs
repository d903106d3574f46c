//! The bounded queue between the watchers (async) and the sync loop (a plain thread).

use std::io;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::model::Change;

/// Makes a queue of at most `capacity` Changes.
///
/// # Errors
///
/// The runtime that lets a plain thread wait with a timeout needs an epoll descriptor; `EMFILE` and the like.
pub fn channel(capacity: usize) -> io::Result<(ChangeSender, ChangeReceiver)> {
    let (sender, receiver) = mpsc::channel(capacity);
    let clock = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    Ok((ChangeSender(sender), ChangeReceiver { receiver, clock }))
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
///
/// It has a clock of its own because the thread that receives must be able to wait "until a Change comes, but not past
/// this moment", which a tokio channel offers only inside a runtime.
#[derive(Debug)]
pub struct ChangeReceiver {
    receiver: mpsc::Receiver<Change>,
    clock: tokio::runtime::Runtime,
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
        let receiver = &mut self.receiver;
        let waiting = receiver.recv_many(into, most);
        let count = match timeout {
            None => Ok(self.clock.block_on(waiting)),
            Some(timeout) => {
                self.clock.block_on(async { tokio::time::timeout(timeout, waiting).await })
            }
        };
        match count {
            Ok(0) => Received::Closed,
            Ok(count) => Received::Changes(count),
            Err(_) => Received::Timeout,
        }
    }

    /// Waits inside a runtime, for tests and tools; `None` when all watchers have ended.
    pub async fn next(&mut self) -> Option<Change> {
        self.receiver.recv().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_waits_no_longer_than_told_and_takes_all_that_is_there() {
        let (sender, mut receiver) = channel(8).unwrap();
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
}
