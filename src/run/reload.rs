//! A configuration file that changes while the process runs.
//!
//! What can be changed under traffic is taken up; anything else ends the process, naming the fields, so that a new one
//! starts with them. A file that is not usable changes nothing: a proxy that works is worth more than one that obeys.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::{Ending, Shell, Stop, set_kernel};
use crate::config::changes::{changed_fields, need_restart};
use crate::config::{self, Config, LoadedFile, Notice as ConfigNotice};
use crate::serve::http::Pages;
use crate::serve::{Metrics, SharedHealth};
use crate::sync::facts::Live;
use crate::watch::{Notice, NoticeKind, Recorder, Regarding};
use crate::{logging, sysctl};

/// Follows the file until the process ends, looking at it this often.
pub(super) async fn follow(mut reloader: Reloader, every: Duration) {
    let mut file = FollowedFile::new(&reloader.file);
    let mut tick = tokio::time::interval(every);
    loop {
        tick.tick().await;
        let Some(text) = file.look() else { continue };
        if let Some(fields) = reloader.take(&text) {
            let path = reloader.file.path.clone();
            return reloader.stop.ask(Ending::ConfigChanged { path, fields });
        }
    }
}

/// A file, and what it held when it was last looked at.
///
/// It is read again and again rather than watched by inotify: a ConfigMap volume changes by swapping a symbolic link
/// two directories up, and an editor by renaming; the contents are what matters. A file that is gone or cannot be
/// read for a while is no change.
struct FollowedFile {
    path: PathBuf,
    known: Vec<u8>,
    readable: bool,
}

impl FollowedFile {
    fn new(file: &LoadedFile) -> FollowedFile {
        let known = file.text.as_bytes().to_vec();
        FollowedFile { path: file.path.clone(), known, readable: true }
    }

    /// The contents, if they are others than at the last look.
    fn look(&mut self) -> Option<String> {
        let contents = match std::fs::read(&self.path) {
            Ok(contents) => contents,
            Err(error) => {
                if std::mem::replace(&mut self.readable, false) {
                    warn!(path = %self.path.display(), %error, "cannot read the configuration file; going on with what was read");
                }
                return None;
            }
        };
        self.readable = true;
        if contents.is_empty() {
            // Truncated, about to be written.
            debug!(path = %self.path.display(), "the configuration file is empty; waiting");
            return None;
        }
        if contents == self.known {
            return None;
        }
        let text = String::from_utf8_lossy(&contents).into_owned();
        self.known = contents;
        Some(text)
    }
}

/// Whom a new configuration concerns.
pub(super) struct Reloader {
    file: LoadedFile,
    /// In force.
    config: Config,
    live: watch::Sender<Live>,
    health: SharedHealth,
    metrics: Metrics,
    pages: Arc<Pages>,
    recorder: Recorder,
    stop: Stop,
}

impl Reloader {
    pub(super) fn new(shell: &Shell, file: LoadedFile) -> Reloader {
        Reloader {
            file,
            config: Config::clone(&shell.config),
            live: shell.live.clone(),
            health: shell.health.clone(),
            metrics: shell.metrics.clone(),
            pages: shell.pages.clone(),
            recorder: shell.recorder.clone(),
            stop: shell.stop.clone(),
        }
    }

    /// Takes up what the text says. `Some`: these fields take a new process, and nothing was taken up.
    fn take(&mut self, text: &str) -> Option<Vec<String>> {
        let new = match config::reload(&self.file, text) {
            Ok(new) => new,
            Err(problem) => {
                self.refuse(&problem.to_string());
                return None;
            }
        };
        self.metrics.config_reloaded(true);
        let fields = changed_fields(&self.config.object, &new.object);
        let restart = need_restart(&fields, &self.config.object.mode);
        if !restart.is_empty() {
            return Some(restart);
        }
        if fields.is_empty() {
            info!("the configuration file has changed, no setting did");
        } else {
            self.apply(new, &fields.join(" "));
        }
        None
    }

    fn refuse(&self, problem: &str) {
        let path = &self.file.path;
        let problem = problem.split('\n').map(str::trim).collect::<Vec<_>>().join(" ");
        error!(path = %path.display(), problem, "the changed configuration file is not usable; going on with the settings from before");
        self.metrics.config_reloaded(false);
        self.recorder.record(Notice {
            kind: NoticeKind::Warning,
            reason: "InvalidConfiguration",
            action: "ReadConfiguration",
            note: format!(
                "The changed configuration file is not usable: {problem}. The settings from before stay in force; a \
                 restart would fail."
            ),
            regarding: Regarding::Node,
        });
    }

    fn apply(&mut self, new: Config, fields: &str) {
        logging::set(&new.logging);
        let news = new.notices.iter().filter(|it| !self.config.notices.contains(it));
        logging::notices(&news.cloned().collect::<Vec<ConfigNotice>>());
        if new.conntrack != self.config.conntrack {
            set_kernel(&new);
        }
        if new.oom_score_adj != self.config.oom_score_adj
            && let Err(refused) = sysctl::set_oom_score_adj(new.oom_score_adj, Path::new("/"))
        {
            warn!("{refused}");
        }
        self.health.set_sync_period(new.sync_period);
        self.pages.show(&new);
        self.live.send_modify(|live| {
            *live = Live::of(&new, std::mem::take(&mut live.settings.families));
        });
        self.config = new;
        info!(fields, "the configuration file has changed; taken up without a restart");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swapped_link_is_a_change_and_the_same_contents_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, contents) in [("1", "a"), ("2", "a"), ("3", "b"), ("empty", "")] {
            std::fs::write(at(name), contents).unwrap();
        }
        let swap = |to: &str| {
            std::os::unix::fs::symlink(to, at("new")).unwrap();
            std::fs::rename(at("new"), at("config")).unwrap();
        };
        let mut file = FollowedFile { path: at("config"), known: b"a".to_vec(), readable: true };
        for (to, expected) in [
            ("1", None),
            ("2", None),
            ("gone", None),
            ("empty", None),
            ("3", Some("b")),
            ("3", None),
            ("1", Some("a")),
        ] {
            swap(to);
            assert_eq!(file.look().as_deref(), expected, "{to}");
        }
    }
}
