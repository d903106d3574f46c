//! How far the server is, and whether that is still as far as we are.
//!
//! After etcd was restored from a backup the server's versions are below ours. A watch from a version of the future is no
//! error to an API server: it answers 200, and leaves out whatever happens until that version is reached, in hours perhaps
//! (kubernetes/kubernetes issue 107457). What gives it away is silence: a watch that goes well has a bookmark every minute.

use std::cmp::Ordering;

use tokio::time::Instant;

use super::{End, Phase, Reflector};
use crate::watch::trouble::{ApiError, Trouble};
use crate::watch::wire::Items;

impl Reflector<'_> {
    /// Watches on from a version, after a look whether the server still is as far if it has not said so for long.
    pub(super) async fn resume(&mut self, version: &str) -> Result<(), End> {
        if self.heard.elapsed() >= self.pace.unheard {
            self.confirm(version).await?;
        }
        self.watch(version).await
    }

    /// Asks for one object, for the sake of the version that comes with it.
    async fn confirm(&mut self, version: &str) -> Result<(), End> {
        let response = self.client.send(self.spec.newest()).await?;
        let mut body = response.into_body();
        let mut items = Items::default();
        while let Some(frame) = self.frame(&mut body, self.pace.list_silence).await? {
            items.feed(&frame, drop);
        }
        let newest = self.complete(self.metadata(&items)?.version)?;
        if compare(&newest, version) == Some(Ordering::Less) {
            let what = format!(
                "the server is at version {newest} and was at {version}: etcd was restored from a backup, as it seems, and \
                 everything is listed anew"
            );
            tracing::warn!(resource = ?self.spec.resource, "{what}");
            return Err(self.failure(Trouble::Gone, what).into());
        }
        self.heard = Instant::now();
        Ok(())
    }

    /// The version of an event or a bookmark: the watch is to go on from here. What is late must not take it back, and
    /// what has no version must not take it away: a watch from no version begins somewhere.
    pub(super) fn note_version(&mut self, version: String, phase: Phase) {
        self.garbage = 0;
        if phase == Phase::Initial || version.is_empty() {
            return;
        }
        let known = self.version.as_deref().unwrap_or_default();
        if compare(&version, known) != Some(Ordering::Less) {
            self.version = Some(version);
            self.heard = Instant::now();
        }
    }

    /// The version of a complete list. Without one there is nothing to watch from, and whatever this is, it is no list.
    pub(super) fn complete(&self, version: String) -> Result<String, ApiError> {
        if version.is_empty() {
            return Err(self.failure(Trouble::Garbage, "a list without a version"));
        }
        Ok(version)
    }
}

/// `None`: at least one of them is opaque.
fn compare(one: &str, other: &str) -> Option<Ordering> {
    let number = |it: &str| it.parse::<u64>().ok();
    Some(number(one)?.cmp(&number(other)?))
}
