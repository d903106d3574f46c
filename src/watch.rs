//! From the outside world to [`Change`](crate::model::Change)s: the API server, or a directory of manifests.
//!
//! In come HTTP responses and files; out go Changes through a bounded [`channel`]. Objects are converted the moment
//! they arrive and dropped: there is no store. What is remembered per object is a hash of its name and its version.
//! This room never decides what a change means, and never blocks the consumer or is blocked by it for good: a full
//! channel stops the reading, which stops the sender at the other end of the connection.
//!
//! ```text
//!   api_server ── one reflect::Reflector per resource ──┐
//!        │ client (session, HTTP/2 connection)          ├─ Change ─▶ channel ─▶ sync
//!   manifests ── directory ─────────────────────────────┘
//!   events ◀── Notice (never blocks, drops with a count)
//! ```

mod backoff;
mod buffered;
mod channel;
mod client;
mod connect;
mod decode;
mod directory;
mod events;
mod manifests;
#[cfg(any(test, fuzzing))]
pub mod outside;
mod proxy;
mod reflect;
mod resource;
mod stats;
mod trouble;
mod versions;
mod wire;

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use crate::model::Resource;
use crate::objects::Context;

pub use backoff::Backoff;
pub use channel::{ChangeReceiver, ChangeSender, Received, SideSender, channel};
pub use client::{ApiClient, ClientError, ConnectionPace, RequestObserver, RequestSeen, Server};
pub use events::{Notice, NoticeKind, Outbox, Recorder, Regarding, recorder};
pub use manifests::{Loaded, ManifestsError, load_manifests, watch_manifests};
pub use reflect::WatchPace;
pub use resource::{Permission, REQUIRED_ROLE};
pub use stats::{ResourceStats, State, Stats};
pub use trouble::{ApiError, Trouble};

/// Everything that a watch room needs besides its source.
#[derive(Clone, Debug)]
pub struct Watching {
    /// Which node this is, and what else the conversion of objects depends on.
    pub context: Context,
    pub stats: Arc<Stats>,
    pub sender: ChangeSender,
    pub recorder: Recorder,
}

/// Watches the four resources at the API server until the receiver of the Changes is gone.
///
/// One task, four state machines, of which only those run that something has come for; must run on a runtime with time
/// and I/O enabled.
pub async fn watch_api_server(client: Arc<ApiClient>, pace: WatchPace, watching: Watching) {
    let reflector = |resource| {
        let spec = resource::Spec::of(resource, &watching.context.node_name);
        reflect::Reflector::new(spec, client.clone(), pace, &watching).run()
    };
    let resources =
        [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr];
    let mut watches: FuturesUnordered<_> = resources.into_iter().map(reflector).collect();
    while watches.next().await.is_some() {}
}
