//! Objects from a directory of manifests, followed live, as the same Changes that an API server leads to.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use crate::model::{Change, Resource, Skipped};
use crate::objects::Context;

use super::channel::Closed;
use super::decode::Decoder;
use super::directory::{Directory, News};
use super::stats::{State, Stats};
use super::{ChangeSender, Recorder, Watching};

/// Editors and kubelets write in several steps; one look after the last of them is enough.
const SETTLE: Duration = Duration::from_millis(50);

/// How often the files are looked at without any notice from the kernel: links may lead to places that are not watched,
/// network filesystems send no notices, and the queue of notices may overflow.
const LOOK_ANYWAY: Duration = Duration::from_secs(10);

const ALL: [Resource; 4] =
    [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr];

/// Why manifests cannot be used at all. Found at the start; the program cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    #[error(
        "--manifests {path}: {source} (an existing directory that this user may read is needed)"
    )]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "--manifests {path}: changes cannot be watched: {source} (the kernel's limits fs.inotify.max_user_watches or \
         max_user_instances may be used up)"
    )]
    Notices {
        path: PathBuf,
        #[source]
        source: notify::Error,
    },
}

/// What a directory holds now, for `--dry-run`.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Complete: all four resources from `Listing` to `Listed`.
    pub changes: Vec<Change>,
    pub skipped: Vec<Skipped>,
    /// Files, or documents in them, that cannot be read.
    pub problems: Vec<String>,
}

/// Reads a directory once.
///
/// # Errors
///
/// Only if the directory cannot be listed; bad files and documents are told in the result.
pub fn load_manifests(path: &Path, context: Context) -> Result<Loaded, ManifestsError> {
    let mut directory = Directory::new(path.to_owned(), Decoder::new(context));
    let news = directory
        .look()
        .map_err(|source| ManifestsError::Directory { path: path.to_owned(), source })?;
    let listing = ALL.into_iter().map(Change::Listing);
    let listed = ALL.into_iter().map(Change::Listed);
    Ok(Loaded {
        changes: listing.chain(news.changes).chain(listed).collect(),
        skipped: news.skipped,
        problems: news.problems,
    })
}

/// Follows a directory until the receiver of the Changes is gone.
///
/// Files are read on the calling task: they are local and small, and nothing else runs in this mode that could wait.
///
/// # Errors
///
/// The directory cannot be listed or watched at the start. Later it may come and go; while it is gone, everything stays
/// as it was.
pub async fn watch_manifests(path: &Path, watching: Watching) -> Result<(), ManifestsError> {
    let failed = |source| ManifestsError::Directory { path: path.to_owned(), source };
    let mut notices = Notices::new(path)
        .map_err(|source| ManifestsError::Notices { path: path.to_owned(), source })?;
    let mut directory = Directory::new(path.to_owned(), Decoder::new(watching.context.clone()));
    let news = directory.look().map_err(failed)?;
    let Watching { stats, sender, recorder, .. } = &watching;
    if begin(news, stats, sender, recorder).await.is_err() {
        return Ok(());
    }
    let mut gone = false;
    loop {
        tokio::select! {
            () = notices.wait() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(LOOK_ANYWAY) => (),
            () = sender.closed() => return Ok(()),
        }
        notices.renew();
        match directory.look() {
            Ok(news) => {
                gone = false;
                if hand_on(news, stats, sender, recorder).await.is_err() {
                    return Ok(());
                }
            }
            Err(error) if !gone => {
                gone = true;
                tracing::warn!(path = %path.display(), %error, "the manifests are gone; what they held stays in force");
            }
            Err(_) => (),
        }
    }
}

async fn begin(
    news: News,
    stats: &Stats,
    sender: &ChangeSender,
    recorder: &Recorder,
) -> Result<(), Closed> {
    for resource in ALL {
        stats.of(resource).set_state(State::Listing);
        sender.send(Change::Listing(resource)).await?;
    }
    hand_on(news, stats, sender, recorder).await?;
    for resource in ALL {
        sender.send(Change::Listed(resource)).await?;
        stats.of(resource).set_state(State::Watching);
    }
    Ok(())
}

async fn hand_on(
    news: News,
    stats: &Stats,
    sender: &ChangeSender,
    recorder: &Recorder,
) -> Result<(), Closed> {
    for problem in news.problems {
        tracing::warn!("{problem}");
    }
    for skipped in &news.skipped {
        stats.count_skipped(skipped);
        recorder.skipped(skipped);
    }
    for change in news.changes {
        stats.of(resource(&change)).count_object();
        sender.send(change).await?;
    }
    Ok(())
}

fn resource(change: &Change) -> Resource {
    match change {
        Change::Listing(resource) | Change::Listed(resource) => *resource,
        Change::ServiceApplied(_) | Change::ServiceDeleted(_) => Resource::Service,
        Change::SliceApplied(_) | Change::SliceDeleted(_) => Resource::EndpointSlice,
        Change::NodeApplied(_) | Change::NodeDeleted | Change::HostAddresses(_) => Resource::Node,
        Change::ServiceCidrApplied(_) | Change::ServiceCidrDeleted(_) => Resource::ServiceCidr,
        Change::Unusable(skipped) => skipped.resource,
    }
}

/// Notices of the kernel that something may have changed.
///
/// The parent is watched too, because a directory that is removed takes its watch with it, and one that is put in its
/// place has none.
struct Notices {
    path: PathBuf,
    watcher: RecommendedWatcher,
    notify: Arc<Notify>,
}

impl Notices {
    fn new(path: &Path) -> Result<Self, notify::Error> {
        // Notices have absolute paths, whatever was asked for.
        let path = &std::path::absolute(path).map_err(notify::Error::io)?;
        let notify = Arc::new(Notify::new());
        let notifier = notify.clone();
        let here = path.to_owned();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |it| concerns(&it, &here)) {
                notifier.notify_one();
            }
        })?;
        let mut notices = Notices { path: path.to_owned(), watcher, notify };
        notices.watcher.watch(path, RecursiveMode::NonRecursive)?;
        notices.renew();
        Ok(notices)
    }

    async fn wait(&self) {
        self.notify.notified().await;
    }

    /// Watches again what may have been replaced. A failure only means that the next look comes later.
    fn renew(&mut self) {
        let parent = self.path.parent().filter(|it| !it.as_os_str().is_empty());
        for place in [parent.unwrap_or(Path::new(".")), &self.path] {
            if let Err(error) = self.watcher.watch(place, RecursiveMode::NonRecursive) {
                tracing::debug!(place = %place.display(), %error, "no notices from here");
            }
        }
    }
}

/// Whether something happened in the directory or to it, and not to its neighbours.
fn concerns(event: &notify::Event, directory: &Path) -> bool {
    let is_here =
        |path: &PathBuf| path.starts_with(directory) || path.file_name() == directory.file_name();
    // Our own reading is an access; to look because of it would never end. Without paths: notices were lost.
    !event.kind.is_access() && (event.paths.is_empty() || event.paths.iter().any(is_here))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_relative_directory_has_notices_too() {
        let directory = tempfile::tempdir().unwrap();
        // From where we are up to the root, and from there to the directory.
        let here = std::env::current_dir().unwrap();
        let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
        let relative = up.join(directory.path().strip_prefix("/").unwrap());
        assert!(relative.is_relative() && relative.is_dir());
        let notices = Notices::new(&relative).unwrap();
        std::fs::write(directory.path().join("a.yaml"), "").unwrap();
        tokio::time::timeout(Duration::from_secs(60), notices.wait()).await.unwrap();
    }
}
