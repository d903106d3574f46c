//! Events: what people see in `kubectl describe`. Recording never blocks anybody and never fails.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderValue, Request, header::CONTENT_TYPE};
use rustc_hash::FxHashMap;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::model::{ObjectName, Resource, Skipped, Uid};

use super::client::ApiClient;
use super::trouble::Trouble;

/// Kept as kube-proxy's: alerts and dashboards select Events of the node's proxy by this name, and what the Events mean
/// is the same. Which program it is shows in the reporting instance.
const REPORTING_CONTROLLER: &str = "kube-proxy";

/// Notices waiting to be posted; more are dropped and counted.
const QUEUE: usize = 256;

/// Events posted in a burst, and the time in which one more may be posted.
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_secs(5);

/// The same notice is not posted again within this time.
const REPEAT_AFTER: Duration = Duration::from_secs(600);

/// Notices remembered to tell repetitions.
const REMEMBERED: usize = 4_096;

/// The API's limit for `note`, in bytes.
const LONGEST_NOTE: usize = 1_024;

/// Something a person should be able to read in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Notice {
    pub kind: NoticeKind,
    /// A word in camel case, as `Starting`.
    pub reason: &'static str,
    /// What was being done, in camel case, as `StartKubeProxy`.
    pub action: &'static str,
    /// For people; cut to 1,024 bytes.
    pub note: String,
    pub regarding: Regarding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoticeKind {
    Normal,
    Warning,
}

/// The object an Event is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Regarding {
    /// The own node.
    Node,
    /// Without `uid`, `kubectl describe` does not show the Event: it looks for those of this very object.
    Object { resource: Resource, name: ObjectName, uid: Option<Uid> },
}

impl Regarding {
    /// Where its Events live; those of cluster-scoped objects in `default`.
    fn namespace(&self) -> &str {
        match self {
            Regarding::Object { name, .. } if !name.namespace.is_empty() => &name.namespace,
            Regarding::Object { .. } | Regarding::Node => "default",
        }
    }
}

/// The end that anybody may hold and write to.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Entry>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Entry {
    Notice(Notice),
    /// Everything before this is through.
    Flush(oneshot::Sender<()>),
}

/// The end that posts.
#[derive(Debug)]
pub struct Outbox {
    queue: mpsc::Receiver<Entry>,
    dropped: Arc<AtomicU64>,
    node: Arc<str>,
    posted: Posted,
}

/// Makes a recorder for this node and its outbox.
pub fn recorder(node: Arc<str>) -> (Recorder, Outbox) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let recorder = Recorder { queue: sender, dropped: dropped.clone() };
    (recorder, Outbox { queue, dropped, node, posted: Posted::default() })
}

impl Recorder {
    /// Queues the notice, or drops and counts it when too much is waiting.
    pub fn record(&self, notice: Notice) {
        if self.queue.try_send(Entry::Notice(notice)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Queues a notice about an object, or a part of it, that is left out.
    pub fn skipped(&self, skipped: &Skipped) {
        self.record(Notice {
            kind: NoticeKind::Warning,
            reason: "Skipped",
            action: "Sync",
            note: format!("{} ({})", skipped.message, skipped.reason),
            regarding: Regarding::Object {
                resource: skipped.resource,
                name: skipped.name.clone(),
                uid: skipped.uid,
            },
        });
    }

    /// Waits until everything recorded so far has been posted or dropped; at once when nobody posts any more.
    pub async fn flush(&self) {
        let (through, done) = oneshot::channel();
        if self.queue.send(Entry::Flush(through)).await.is_ok() {
            // An error means that the outbox has ended.
            let _ = done.await;
        }
    }

    /// Notices that were not posted: too many at once, or refused by the API server.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Outbox {
    /// Logs notices and posts them to the API server until all recorders are gone.
    pub async fn post(mut self, client: Arc<ApiClient>) {
        let mut tokens = Tokens::new(Instant::now());
        let mut refusal_told = false;
        while let Some(notice) = self.next().await {
            tokens.take().await;
            if let Err(error) = client.send(self.request(&notice)).await {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                // A role that lacks this right alone would be noticed by nobody.
                if error.trouble == Trouble::Forbidden
                    && !std::mem::replace(&mut refusal_told, true)
                {
                    tracing::warn!(%error, "Events may not be posted; what they would tell is in this log alone");
                }
                tracing::debug!(%error, reason = notice.reason, "an Event could not be posted and is dropped");
            }
        }
    }

    /// Only logs notices: there is no API server.
    pub async fn log(mut self) {
        while self.next().await.is_some() {}
    }

    /// The next notice that is not a repetition, logged.
    async fn next(&mut self) -> Option<Notice> {
        loop {
            let notice = match self.queue.recv().await? {
                Entry::Notice(notice) => notice,
                Entry::Flush(through) => {
                    // Whoever asked may have given up.
                    let _ = through.send(());
                    continue;
                }
            };
            if self.posted.is_news(&notice, Instant::now()) {
                log(&notice, &self.node);
                return Some(notice);
            }
        }
    }

    fn request(&self, notice: &Notice) -> Request<Vec<u8>> {
        let event = event(notice, &self.node, jiff::Timestamp::now());
        let namespace = notice.regarding.namespace();
        let mut request = Request::new(event.to_string().into_bytes());
        *request.method_mut() = http::Method::POST;
        if let Ok(uri) = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events").parse() {
            *request.uri_mut() = uri;
        }
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request
    }
}

fn log(notice: &Notice, node: &str) {
    let Notice { reason, note, .. } = notice;
    let object = match &notice.regarding {
        Regarding::Node => format!("Node {node}"),
        Regarding::Object { resource, name, .. } => format!("{resource:?} {name}"),
    };
    match notice.kind {
        NoticeKind::Normal => tracing::info!(object, reason, "{note}"),
        NoticeKind::Warning => tracing::warn!(object, reason, "{note}"),
    }
}

fn event(notice: &Notice, node: &str, now: jiff::Timestamp) -> Value {
    let (name, regarding) = match &notice.regarding {
        Regarding::Node => (node, json!({ "apiVersion": "v1", "kind": "Node", "name": node })),
        Regarding::Object { resource, name, uid } => {
            (&*name.name, reference(*resource, name, *uid))
        }
    };
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "name": event_name(name, now), "namespace": notice.regarding.namespace() },
        "eventTime": format!("{now:.6}"),
        "reportingController": REPORTING_CONTROLLER,
        "reportingInstance": format!("kube-ferry-{node}"),
        "action": notice.action,
        "reason": notice.reason,
        "regarding": regarding,
        "note": cut(&notice.note, LONGEST_NOTE),
        "type": match notice.kind {
            NoticeKind::Normal => "Normal",
            NoticeKind::Warning => "Warning",
        },
    })
}

/// Object names end at 253 bytes; the time makes it unique, as client-go does.
fn event_name(object: &str, now: jiff::Timestamp) -> String {
    let kept = cut(object, 230).trim_end_matches(['.', '-']);
    format!("{kept}.{:x}", now.as_nanosecond())
}

/// At most `limit` bytes of a text, without cutting a character in two.
fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|it| text.is_char_boundary(*it));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

fn reference(resource: Resource, name: &ObjectName, uid: Option<Uid>) -> Value {
    let (version, kind) = match resource {
        Resource::Service => ("v1", "Service"),
        Resource::EndpointSlice => ("discovery.k8s.io/v1", "EndpointSlice"),
        Resource::Node => ("v1", "Node"),
        Resource::ServiceCidr => ("networking.k8s.io/v1", "ServiceCIDR"),
    };
    let uid = uid.map(|it| it.to_string()).unwrap_or_default();
    let optional = [("namespace", &*name.namespace), ("uid", &uid)];
    let required = [("apiVersion", version), ("kind", kind), ("name", &*name.name)];
    let given = optional.into_iter().filter(|(_, value)| !value.is_empty());
    required
        .into_iter()
        .chain(given)
        .map(|(key, value)| (key.to_owned(), Value::from(value)))
        .collect()
}

/// Which notices were posted lately; bounded.
#[derive(Debug, Default)]
struct Posted {
    when: FxHashMap<u64, Instant>,
    order: VecDeque<u64>,
}

impl Posted {
    fn is_news(&mut self, notice: &Notice, now: Instant) -> bool {
        let mut hasher = DefaultHasher::new();
        notice.hash(&mut hasher);
        let hash = hasher.finish();
        match self.when.insert(hash, now) {
            Some(before) if now.duration_since(before) < REPEAT_AFTER => {
                self.when.insert(hash, before);
                return false;
            }
            Some(_) => return true,
            None => self.order.push_back(hash),
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.when.remove(&oldest);
        }
        true
    }
}

/// A bucket of tokens: [`BURST`] at once, then one every [`REFILL`].
#[derive(Debug)]
struct Tokens {
    /// When the bucket will be full.
    full_at: Instant,
}

impl Tokens {
    fn new(now: Instant) -> Self {
        Tokens { full_at: now }
    }

    async fn take(&mut self) {
        let now = Instant::now();
        self.full_at = self.full_at.max(now) + REFILL;
        tokio::time::sleep_until(self.full_at - REFILL * BURST).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_all_that_the_api_demands() {
        let notice = Notice {
            kind: NoticeKind::Warning,
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            note: "é".repeat(600),
            regarding: Regarding::Object {
                resource: Resource::Service,
                name: ObjectName::new("shop", "web"),
                uid: Uid::parse("01234567-89ab-cdef-0123-456789abcdef"),
            },
        };
        let now = jiff::Timestamp::from_nanosecond(0x10_0000_0000).unwrap();
        let mut event = event(&notice, "n1", now);
        assert_eq!(event["note"].take().as_str().unwrap().len(), 1_024);
        insta::assert_snapshot!(serde_json::to_string_pretty(&event).unwrap(), @r#"
        {
          "action": "Listen",
          "apiVersion": "events.k8s.io/v1",
          "eventTime": "1970-01-01T00:01:08.719476Z",
          "kind": "Event",
          "metadata": {
            "name": "web.1000000000",
            "namespace": "shop"
          },
          "note": null,
          "reason": "FailedToStartServiceHealthcheck",
          "regarding": {
            "apiVersion": "v1",
            "kind": "Service",
            "name": "web",
            "namespace": "shop",
            "uid": "01234567-89ab-cdef-0123-456789abcdef"
          },
          "reportingController": "kube-proxy",
          "reportingInstance": "kube-ferry-n1",
          "type": "Warning"
        }
        "#);
    }

    #[test]
    fn an_event_about_the_node_lives_in_the_default_namespace() {
        let notice = Notice { regarding: Regarding::Node, ..notice("x") };
        let event = event(&notice, "n1", jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(event["metadata"]["namespace"], "default");
        assert_eq!(event["regarding"], json!({ "apiVersion": "v1", "kind": "Node", "name": "n1" }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_repetition_within_ten_minutes_is_no_news() {
        let mut posted = Posted::default();
        let start = Instant::now();
        assert!(posted.is_news(&notice("x"), start));
        assert!(!posted.is_news(&notice("x"), start + REPEAT_AFTER / 2));
        assert!(posted.is_news(&notice("y"), start));
        assert!(posted.is_news(&notice("x"), start + REPEAT_AFTER));
        for n in 0..10_000 {
            assert!(posted.is_news(&notice(&n.to_string()), start));
        }
        assert_eq!((posted.when.len(), posted.order.len()), (REMEMBERED, REMEMBERED));
    }

    #[tokio::test(start_paused = true)]
    async fn posting_is_slowed_down_after_a_burst() {
        let start = Instant::now();
        let mut tokens = Tokens::new(start);
        for _ in 0..BURST {
            tokens.take().await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        tokens.take().await;
        assert_eq!(start.elapsed(), REFILL);
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let (recorder, _outbox) = recorder("n1".into());
        for n in 0..QUEUE + 5 {
            recorder.record(notice(&n.to_string()));
        }
        assert_eq!(recorder.dropped(), 5);
    }

    fn notice(note: &str) -> Notice {
        Notice {
            kind: NoticeKind::Normal,
            reason: "Starting",
            action: "StartKubeProxy",
            note: note.to_owned(),
            regarding: Regarding::Node,
        }
    }
}
