//! One resource, followed for ever: list, watch, and what to do when either ends.
//!
//! ```text
//!            ┌─────────────── refused (4xx) ──────────────┐
//!   start ─▶ stream everything ──── complete ──▶ watch ◀── pages of 500
//!            ▲  ▲                                │ ▲ │
//!            │  └── 410, version of the future,  │ │ └─ ended, broken off, silent, 429, 5xx, 401, 403:
//!            │      refused (4xx), garbage × 3 ──┘ └──── wait, then watch on from the last version
//!            └── failed before it was complete: wait, then from the start
//! ```
//!
//! This is not `kube::runtime::watcher`, which in version 5 lacks what matters here: a server without streaming lists
//! ends in a loop of errors, one odd object spoils its whole list page for ever, pages are held as text and as objects
//! before the first is handed on, `Retry-After` is lost, and a line cut in two is passed over in silence.

pub(super) mod message;
mod progress;
mod recovery;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt as _;
use http::{Response, Version};
use http_body_util::BodyExt;
use kube::client::Body;
use tokio::time::Instant;

use crate::model::Change;

use super::Watching;
use super::backoff::{Backoff, random};
use super::channel::{ChangeSender, Closed};
use super::client::ApiClient;
use super::decode::{Decoder, Versioned};
use super::events::Recorder;
use super::resource::{Freshness, Spec};
use super::stats::{ResourceStats, State, Stats};
use super::trouble::{ApiError, Trouble};
use super::versions::{News, Versions};
use super::wire::{Items, Line, Lines};

/// Changes that go on together at most.
const GROUP: usize = 64;
use message::{Event, List, ListMetadata, Status, written_object};

/// How patient a watch is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WatchPace {
    pub backoff: Backoff,
    /// A watch that held for so long was good: what ends it is the first failure of a new row.
    pub settled: Duration,
    /// Lists after an expired version are spread over this time at random. After an outage all nodes find their
    /// versions expired in the same moment.
    pub relist_spread: Duration,
    /// Without bytes for so long, a watch over HTTP/1.1 is begun anew from its last version. There are no pings, so
    /// nothing else tells a quiet server from a dead one. Over HTTP/2 the pings do.
    pub silence: Duration,
    /// A list must bring something within this time.
    pub list_silence: Duration,
    /// A watch of which nothing has come for so long, not even a bookmark, of which there is one a minute as a rule, is begun
    /// anew after a look whether the server is still as far as it was. Where nothing happens and etcd seldom says how far
    /// it is, there are none, so this is longer than it need be: it must not cost the server much.
    pub unheard: Duration,
    /// How often to look for a resource that the server lacks.
    pub absent_retry: Duration,
    /// The server ends a watch after a random time between this and twice this, so that the load of all nodes spreads
    /// over the API servers again after one of them was restarted. Seconds on the wire.
    pub watch_timeout: Duration,
}

impl Default for WatchPace {
    fn default() -> Self {
        WatchPace {
            backoff: Backoff { first: Duration::from_millis(800), most: Duration::from_secs(30) },
            settled: Duration::from_secs(10),
            relist_spread: Duration::from_secs(5),
            silence: Duration::from_secs(25),
            list_silence: Duration::from_secs(60),
            unheard: Duration::from_secs(300),
            absent_retry: Duration::from_secs(300),
            watch_timeout: Duration::from_secs(300),
        }
    }
}

/// The state of one watch.
pub(super) struct Reflector<'a> {
    spec: Spec,
    client: Arc<ApiClient>,
    stats: &'a ResourceStats,
    all_stats: &'a Stats,
    pace: WatchPace,
    decoder: Decoder,
    sender: &'a ChangeSender,
    recorder: &'a Recorder,
    /// Not handed on yet. They are as soon as nothing more has come, or there are [`GROUP`] of them.
    waiting: Vec<Change>,
    versions: Versions,
    /// Where to go on watching. `None`: everything has to be listed.
    version: Option<String>,
    freshness: Freshness,
    /// When the server has said last that it is as far as `version`.
    heard: Instant,
    /// The server took a streaming list and then sent nothing: ask for pages until a list is complete.
    stream_stalled: bool,
    /// Since when the watch is complete and following.
    following: Option<Instant>,
    /// Failures in a row.
    failures: u32,
    /// Lines in a row that made no sense.
    garbage: u32,
    /// The trouble that was logged last and is not over.
    reported: Option<Trouble>,
}

/// Why a list or watch is over before its time.
enum End {
    Closed,
    Failed(ApiError),
}

impl From<Closed> for End {
    fn from(_: Closed) -> Self {
        End::Closed
    }
}

impl From<ApiError> for End {
    fn from(error: ApiError) -> Self {
        End::Failed(error)
    }
}

/// Whether a stream is still telling what there was before it began.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Initial,
    Following,
}

impl<'a> Reflector<'a> {
    pub(super) fn new(
        spec: Spec,
        client: Arc<ApiClient>,
        pace: WatchPace,
        watching: &'a Watching,
    ) -> Self {
        Reflector {
            stats: watching.stats.of(spec.resource),
            all_stats: &watching.stats,
            spec,
            client,
            pace,
            decoder: Decoder::new(watching.context.clone()),
            sender: &watching.sender,
            recorder: &watching.recorder,
            waiting: Vec::new(),
            versions: Versions::default(),
            version: None,
            freshness: Freshness::Cached,
            heard: Instant::now(),
            stream_stalled: false,
            following: None,
            failures: 0,
            garbage: 0,
            reported: None,
        }
    }

    /// Follows the resource until nobody receives the Changes any more.
    pub(super) async fn run(mut self) {
        loop {
            let end = match self.version.clone() {
                None => self.list().await,
                Some(version) => self.resume(&version).await,
            };
            if self.hand_on().await.is_err() {
                return;
            }
            let wait = match end {
                Ok(()) => self.after_end(),
                Err(End::Closed) => return,
                Err(End::Failed(error)) if self.is_absent(&error) => {
                    if self.announce_absence(&error).await.is_err() {
                        return;
                    }
                    self.pace.absent_retry.mul_f64(0.5 + random())
                }
                Err(End::Failed(error)) => self.after_failure(&error),
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => (),
                () = self.sender.closed() => return,
            }
        }
    }

    // Listing.

    async fn list(&mut self) -> Result<(), End> {
        self.stats.lists.fetch_add(1, Ordering::Relaxed);
        if !self.stream_stalled {
            match self.client.send(self.spec.stream(self.watch_seconds())).await {
                Ok(response) => return self.follow(response, Phase::Initial).await,
                Err(error) if error.trouble == Trouble::Refused => {
                    tracing::debug!(resource = ?self.spec.resource, %error, "no streaming lists; asking for pages");
                }
                Err(error) => return Err(error.into()),
            }
        }
        let version = self.pages().await?;
        self.watch(&version).await
    }

    /// Lists page by page; returns the version that the list shows.
    async fn pages(&mut self) -> Result<String, End> {
        let mut page: Option<String> = None;
        loop {
            let request = self.spec.list(self.freshness, page.as_deref());
            let response = self.client.send(request).await?;
            if page.is_none() {
                self.begin_list().await?;
            }
            let metadata = self.page(response.into_body()).await?;
            page = metadata.next.filter(|it| !it.is_empty());
            if page.is_none() {
                let version = self.complete(metadata.version)?;
                self.end_list(version.clone()).await?;
                return Ok(version);
            }
        }
    }

    /// Hands on the objects of a page as they come in.
    async fn page(&mut self, mut body: Body) -> Result<ListMetadata, End> {
        let mut items = Items::default();
        while let Some(frame) = self.frame(&mut body, self.pace.list_silence).await? {
            let mut found = Vec::new();
            items.feed(&frame, |item| found.push(item));
            for item in found {
                match item {
                    Line::Text(text) => drop(self.apply(&text).await?),
                    Line::TooLong => self.skip_oversized(),
                }
            }
        }
        Ok(self.metadata(&items)?)
    }

    /// What a list says besides its objects, once all of it has come.
    fn metadata(&self, items: &Items) -> Result<ListMetadata, ApiError> {
        if items.is_cut() {
            return Err(self.failure(Trouble::Broken, "the list ended too early"));
        }
        let list: List = serde_json::from_slice(items.envelope())
            .map_err(|error| self.failure(Trouble::Garbage, format!("not a list: {error}")))?;
        Ok(list.metadata)
    }

    async fn begin_list(&mut self) -> Result<(), End> {
        self.stats.set_state(State::Listing);
        self.versions.clear();
        self.hand_on().await?;
        Ok(self.sender.send(Change::Listing(self.spec.resource)).await?)
    }

    async fn end_list(&mut self, version: String) -> Result<(), End> {
        self.version = Some(version);
        self.heard = Instant::now();
        self.freshness = Freshness::Newest;
        self.stream_stalled = false;
        self.hand_on().await?;
        Ok(self.sender.send(Change::Listed(self.spec.resource)).await?)
    }

    // Watching.

    async fn watch(&mut self, version: &str) -> Result<(), End> {
        let request = self.spec.watch(version, self.watch_seconds());
        let response = self.client.send(request).await?;
        self.follow(response, Phase::Following).await
    }

    /// Hands on what a watch brings until it ends.
    async fn follow(&mut self, response: Response<Body>, mut phase: Phase) -> Result<(), End> {
        let http2 = response.version() == Version::HTTP_2;
        match phase {
            Phase::Initial => self.begin_list().await?,
            Phase::Following => self.now_following(),
        }
        let mut body = response.into_body();
        let mut lines = Lines::default();
        loop {
            let silence = match phase {
                Phase::Initial => self.pace.list_silence,
                Phase::Following => self.patience(http2),
            };
            match self.frame(&mut body, silence).await {
                Ok(Some(bytes)) => lines.feed(&bytes),
                Ok(None) if lines.is_empty() && phase == Phase::Following => return Ok(()),
                Ok(None) => return Err(self.failure(Trouble::Broken, "it ended too early").into()),
                Err(End::Failed(error))
                    if error.trouble == Trouble::Silence && phase == Phase::Following =>
                {
                    tracing::debug!(resource = ?self.spec.resource, "quiet for long; watching anew");
                    return Ok(());
                }
                Err(End::Failed(error)) => {
                    self.stream_stalled |= error.trouble == Trouble::Silence;
                    return Err(error.into());
                }
                Err(End::Closed) => return Err(End::Closed),
            }
            while let Some(line) = lines.next() {
                match line {
                    Line::Text(text) => phase = self.event(&text, phase).await?,
                    Line::TooLong => self.skip_oversized(),
                }
            }
        }
    }

    /// Takes one line of a watch.
    async fn event(&mut self, line: &[u8], phase: Phase) -> Result<Phase, End> {
        // Nearly all lines, and their text is gone over once.
        if let Some(object) = written_object(line)
            && let Ok(decoded) = self.decoder.applied(self.spec.resource, object)
        {
            let version = self.applied(decoded).await?;
            self.note_version(version, phase);
            return Ok(phase);
        }
        let Ok(event) = serde_json::from_slice::<Event<'_>>(line) else {
            return Err(self.not_an_event(line).into());
        };
        let object = event.object.get().as_bytes();
        match event.kind.as_ref() {
            "ADDED" | "MODIFIED" => {
                let version = self.apply(object).await?;
                self.note_version(version, phase);
            }
            "DELETED" => {
                let version = self.delete(object).await?;
                self.note_version(version, phase);
            }
            "BOOKMARK" => return self.bookmark(object, phase).await,
            "ERROR" => return Err(self.not_an_event(object).into()),
            other => tracing::debug!(kind = other, "an event of an unknown kind is left out"),
        }
        Ok(phase)
    }

    async fn bookmark(&mut self, object: &[u8], phase: Phase) -> Result<Phase, End> {
        let bookmark: List = serde_json::from_slice(object).map_err(|error| {
            self.garbage += 1;
            self.failure(Trouble::Garbage, format!("not a bookmark: {error}"))
        })?;
        let ends = bookmark.metadata.annotations.is_some_and(|it| it.initial_events_end.is_some());
        if phase == Phase::Initial && ends {
            let version = self.complete(bookmark.metadata.version)?;
            self.end_list(version).await?;
            self.now_following();
            return Ok(Phase::Following);
        }
        self.note_version(bookmark.metadata.version, phase);
        Ok(phase)
    }

    /// A line that is no event: perhaps a `Status`, which says what is wrong.
    fn not_an_event(&mut self, text: &[u8]) -> ApiError {
        match serde_json::from_slice::<Status>(text) {
            Ok(status) => ApiError::answered(&self.doing(), status.code, &status.message),
            Err(_) => {
                self.garbage += 1;
                let start: String = String::from_utf8_lossy(text).chars().take(80).collect();
                self.failure(Trouble::Garbage, format!("not a watch event: {start}"))
            }
        }
    }

    // Objects.

    /// Hands on an object; returns its version.
    async fn apply(&mut self, object: &[u8]) -> Result<String, End> {
        match self.decoder.applied(self.spec.resource, object) {
            Ok(decoded) => self.applied(decoded).await,
            Err(why) => {
                self.stats.count_object();
                Ok(self.skip_unreadable(&why))
            }
        }
    }

    async fn applied(&mut self, decoded: Versioned) -> Result<String, End> {
        self.stats.count_object();
        let news = self.versions.applied(decoded.key, &decoded.version, decoded.fingerprint());
        self.stats.remembers(self.versions.heap_bytes());
        if !self.is_news(news) {
            return Ok(decoded.version);
        }
        for skipped in &decoded.skipped {
            self.all_stats.count_skipped(skipped);
            self.recorder.skipped(skipped);
        }
        if let Some(change) = decoded.change {
            self.queue(change).await?;
        }
        Ok(decoded.version)
    }

    /// Hands on that an object is gone; returns its version.
    async fn delete(&mut self, object: &[u8]) -> Result<String, End> {
        self.stats.count_object();
        let decoded = match self.decoder.deleted(self.spec.resource, object) {
            Ok(decoded) => decoded,
            Err(why) => return Ok(self.skip_unreadable(&why)),
        };
        let news = self.versions.deleted(decoded.key, &decoded.version);
        if !self.is_news(news) {
            return Ok(decoded.version);
        }
        if let Some(change) = decoded.change {
            self.queue(change).await?;
        }
        Ok(decoded.version)
    }

    async fn queue(&mut self, change: Change) -> Result<(), Closed> {
        self.waiting.push(change);
        if self.waiting.len() < GROUP { Ok(()) } else { self.hand_on().await }
    }

    /// To wake the loop for each of thousands of Changes costs more than they do, so they go in groups while they come
    /// faster than they are read.
    async fn hand_on(&mut self) -> Result<(), Closed> {
        self.sender.send_all(&mut self.waiting).await
    }

    /// Whether to go on with an object; counts it otherwise.
    fn is_news(&self, news: News) -> bool {
        let counter = match news {
            News::Changed => return true,
            News::Outdated => &self.stats.outdated,
            News::Unchanged => &self.stats.unchanged,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// Returns the version of an object that has none that could be read.
    fn skip_unreadable(&self, why: &serde_json::Error) -> String {
        self.stats.count_error(Trouble::Garbage);
        tracing::warn!(resource = ?self.spec.resource, %why, "an object that cannot be read is left out");
        String::new()
    }

    fn skip_oversized(&self) {
        self.stats.count_error(Trouble::Garbage);
        tracing::warn!(
            resource = ?self.spec.resource,
            limit = super::wire::LONGEST,
            "an object of more bytes than the limit is left out"
        );
    }

    // Odds and ends of requests.

    /// The next bytes of a body; `None` at its orderly end. Before it waits for them, what has come is handed on.
    async fn frame(
        &mut self,
        body: &mut Body,
        silence: Duration,
    ) -> Result<Option<bytes::Bytes>, End> {
        loop {
            let frame = match body.frame().now_or_never() {
                Some(frame) => frame,
                None => {
                    self.hand_on().await?;
                    match tokio::time::timeout(silence, body.frame()).await {
                        Ok(frame) => frame,
                        Err(_) => {
                            let what = format!("nothing for {silence:?}");
                            return Err(self.failure(Trouble::Silence, what).into());
                        }
                    }
                }
            };
            let frame = match frame {
                None => return Ok(None),
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Err(ApiError::transport(&self.doing(), &error).into()),
            };
            if let Ok(bytes) = frame.into_data() {
                self.stats.received(bytes.len());
                return Ok(Some(bytes));
            }
        }
    }

    /// How long a watch may be silent. Over HTTP/2, pings tell a quiet server from a dead one.
    fn patience(&self, http2: bool) -> Duration {
        let unheard = self.pace.unheard.saturating_sub(self.heard.elapsed());
        if http2 { unheard } else { unheard.min(self.pace.silence) }
    }

    fn watch_seconds(&self) -> u64 {
        self.pace.watch_timeout.mul_f64(1.0 + random()).as_secs().max(1)
    }

    fn doing(&self) -> String {
        format!("reading {:?} objects from {}", self.spec.resource, self.client.address())
    }

    fn failure(&self, trouble: Trouble, what: impl Into<String>) -> ApiError {
        ApiError::new(trouble, &self.doing(), what)
    }
}
