//! When and why the process ends.

use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::{debug, warn};

/// Why the process ends while it could go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM or SIGINT. Rules stay in the kernel.
    Signal(&'static str),
    /// The configuration file has other contents now; whoever started us starts us anew.
    ConfigChanged(PathBuf),
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

/// Asks for the end when the file's contents are not `known` any more.
///
/// It is read again and again rather than watched by inotify: a ConfigMap volume changes by swapping a symbolic link
/// two directories up, and an editor by renaming; the contents are what matters. A file that is gone or cannot be
/// read for a while is no change.
pub(super) async fn on_config_change(stop: Stop, path: PathBuf, known: Vec<u8>, every: Duration) {
    let mut tick = tokio::time::interval(every);
    let mut readable = true;
    loop {
        tick.tick().await;
        match std::fs::read(&path) {
            Ok(contents) if contents == known => readable = true,
            Ok(contents) if contents.is_empty() => {
                // Truncated, about to be written.
                debug!(path = %path.display(), "the configuration file is empty; waiting");
            }
            Ok(_) => return stop.ask(Ending::ConfigChanged(path)),
            Err(error) => {
                if readable {
                    warn!(path = %path.display(), %error, "cannot read the configuration file; going on with what was read");
                }
                readable = false;
            }
        }
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

    #[test]
    fn a_swapped_link_is_a_change_and_the_same_contents_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("1"), "a").unwrap();
        std::fs::write(at("2"), "a").unwrap();
        std::fs::write(at("3"), "b").unwrap();
        let swap = |to: &str| {
            std::os::unix::fs::symlink(to, at("new")).unwrap();
            std::fs::rename(at("new"), at("config")).unwrap();
        };
        swap("1");
        let watched = |steps: &[&dyn Fn()]| {
            let stop = Stop::default();
            runtime().block_on(async {
                let watch = on_config_change(
                    stop.clone(),
                    at("config"),
                    b"a".to_vec(),
                    Duration::from_millis(1),
                );
                tokio::pin!(watch);
                for step in steps {
                    step();
                    tokio::select! {
                        () = &mut watch => break,
                        () = tokio::time::sleep(Duration::from_millis(20)) => {}
                    }
                }
            });
            stop.asked()
        };
        let remove = || std::fs::remove_file(at("config")).unwrap();
        assert_eq!(watched(&[&|| swap("2"), &remove, &|| swap("1")]), None);
        assert_eq!(watched(&[&|| swap("3")]), Some(Ending::ConfigChanged(at("config"))));
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }
}
