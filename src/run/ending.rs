//! When and why the process ends.

use std::path::PathBuf;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Why the process ends while it could go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM or SIGINT. Rules stay in the kernel.
    Signal(&'static str),
    /// The configuration file has other contents now, and these fields count from the start on; whoever started us
    /// starts us anew.
    ConfigChanged { path: PathBuf, fields: Vec<String> },
    /// A part of the process cannot go on.
    Failed(String),
}

/// Tells every thread and task that the process is to end; the first reason counts.
#[derive(Clone, Debug)]
pub struct Stop {
    sender: watch::Sender<Option<Ending>>,
}

impl Default for Stop {
    fn default() -> Self {
        Stop { sender: watch::Sender::new(None) }
    }
}

impl Stop {
    pub fn ask(&self, ending: Ending) {
        self.sender.send_if_modified(|asked| {
            let first = asked.is_none();
            if first {
                *asked = Some(ending);
            }
            first
        });
    }

    /// The reason, if the process is to end.
    pub fn asked(&self) -> Option<Ending> {
        self.sender.borrow().clone()
    }

    /// Ready once the process is to end. A plain thread waits with `Handle::block_on`.
    pub async fn wait(&self) -> Ending {
        let mut receiver = self.sender.subscribe();
        loop {
            if let Some(ending) = receiver.borrow_and_update().clone() {
                return ending;
            }
            if receiver.changed().await.is_err() {
                // Cannot happen: `self` keeps the sender.
                return Ending::Failed("nobody can end the process any more".to_owned());
            }
        }
    }
}

/// Asks for the end on SIGTERM and SIGINT.
pub(super) async fn on_signals(stop: Stop) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let name = tokio::select! {
        () = received(&mut terminate) => "SIGTERM",
        () = received(&mut interrupt) => "SIGINT",
    };
    stop.ask(Ending::Signal(name));
    Ok(())
}

async fn received(signal: &mut Signal) {
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts() {
        let stop = Stop::default();
        assert_eq!(stop.asked(), None);
        stop.ask(Ending::Signal("SIGTERM"));
        stop.ask(Ending::Failed("later".into()));
        assert_eq!(stop.asked(), Some(Ending::Signal("SIGTERM")));
        assert_eq!(runtime().block_on(stop.wait()), Ending::Signal("SIGTERM"));
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }
}
