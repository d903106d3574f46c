//! What a request gets: lists, watches, Events, and the faults of the script.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::json;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::store::{Key, Unknown, line};
use super::{Ask, Fault, On, Request, Shared};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Where a request comes from.
#[derive(Clone)]
pub(super) struct From {
    pub(super) connection: u64,
    /// The client's certificate, DER.
    pub(super) client: Option<Vec<u8>>,
}

pub(super) async fn respond(
    shared: Arc<Shared>,
    request: http::Request<Incoming>,
    from: From,
    drop_this: Arc<Notify>,
) -> Result<Response<Body>, Infallible> {
    let seen = describe(&request, from.connection);
    let plural = plural(&seen.path);
    let (fault, verdict) = {
        let mut script = shared.script.lock().unwrap();
        script.requests.push(seen.clone());
        let at = script.faults.iter().position(|(on, _)| meets(*on, plural, &seen));
        let fault = at.map(|at| script.faults.remove(at).1);
        let token = script.token.as_ref().map(|it| format!("Bearer {it}"));
        let is_stranger = script.client.is_some() && script.client != from.client;
        let verdict = if is_stranger || token.is_some_and(|it| it != seen.authorization) {
            Some((401, "Unauthorized"))
        } else if script.absent.contains(&plural) {
            Some((404, "the server could not find the requested resource"))
        } else if script.no_streaming_lists && seen.is_stream() {
            Some((
                422,
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            ))
        } else {
            None
        };
        (fault, verdict)
    };
    match &fault {
        Some(Fault::Status(code, after)) => return Ok(status(*code, "scripted", *after)),
        Some(Fault::LoginPage) => return Ok(login_page()),
        Some(Fault::Answer(text)) => return Ok(full(text.clone().into())),
        Some(Fault::ErrorEvent(code)) => {
            let text = status_json(*code, "scripted");
            return Ok(full(line("ERROR", text.as_bytes())));
        }
        Some(Fault::DropConnection) => {
            drop_this.notify_one();
            std::future::pending::<()>().await;
        }
        Some(Fault::Delay(time)) => tokio::time::sleep(*time).await,
        Some(Fault::Stall) => std::future::pending::<()>().await,
        Some(Fault::StallBody | Fault::Cut { .. } | Fault::Insert { .. } | Fault::Repeat)
        | None => (),
    }
    if let Some((code, message)) = verdict {
        return Ok(status(code, message, None));
    }
    if request.method() == Method::POST {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let event = serde_json::from_slice(&body).unwrap();
        shared.script.lock().unwrap().events.push(event);
        return Ok(full(body));
    }
    Ok(if seen.query.contains_key("watch") {
        watch(shared, plural, seen.query, fault)
    } else {
        list(&shared, plural, &seen.query, fault)
    })
}

fn describe(request: &http::Request<Incoming>, connection: u64) -> Request {
    let header = |name| {
        let value = request.headers().get(name).and_then(|it| it.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let query = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
    Request {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: query.into_owned().collect(),
        user_agent: header("user-agent"),
        authorization: header("authorization"),
        http2: request.version() == Version::HTTP_2,
        connection,
    }
}

fn plural(path: &str) -> &'static str {
    let known = ["services", "endpointslices", "nodes", "servicecidrs", "events"];
    known.into_iter().find(|it| path.ends_with(&format!("/{it}"))).unwrap_or("unknown")
}

fn meets(on: On, plural: &str, request: &Request) -> bool {
    on.0 == plural
        && match on.1 {
            Ask::List => request.is_list(),
            Ask::Stream => request.is_stream(),
            Ask::Watch => request.is_watch(),
            Ask::Any => true,
        }
}

// Lists.

fn list(
    shared: &Shared,
    plural: &'static str,
    query: &BTreeMap<String, String>,
    fault: Option<Fault>,
) -> Response<Body> {
    let store = shared.store.lock().unwrap();
    let limit = query.get("limit").map_or(usize::MAX, |it| it.parse().unwrap());
    let (version, last) = match query.get("continue").map(|it| continued(it)) {
        Some((version, _)) if version < store.oldest => {
            return status(410, "The provided continue parameter is too old", None);
        }
        Some((version, key)) => (version, Some(key)),
        None => (store.version, None),
    };
    let (page, next) = store.page(plural, selectors(query), last.as_ref(), limit);
    let next = next.map(|(namespace, name)| format!("{version}/{namespace}/{name}"));
    let metadata = json!({ "resourceVersion": version.to_string(), "continue": next });
    let mut body = format!("{{\"kind\":\"List\",\"metadata\":{metadata},\"items\":[").into_bytes();
    let cut_after = match fault {
        Some(Fault::Cut { after, .. }) => Some(after),
        _ => None,
    };
    for (position, object) in page.iter().enumerate() {
        if position > 0 {
            body.push(b',');
        }
        if cut_after == Some(position) {
            body.extend_from_slice(&object.json[..object.json.len() / 2]);
            return full(body.into());
        }
        body.extend_from_slice(&object.json);
    }
    body.extend_from_slice(b"]}");
    full(body.into())
}

fn continued(token: &str) -> (u64, Key) {
    let parts: Vec<&str> = token.splitn(3, '/').collect();
    (parts[0].parse().unwrap(), (parts[1].to_owned(), parts[2].to_owned()))
}

fn selectors(query: &BTreeMap<String, String>) -> (&str, &str) {
    let get = |key| query.get(key).map_or("", String::as_str);
    (get("labelSelector"), get("fieldSelector"))
}

// Watches.

fn watch(
    shared: Arc<Shared>,
    plural: &'static str,
    query: BTreeMap<String, String>,
    fault: Option<Fault>,
) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(4);
    let lines = Lines { sender, fault, sent: Vec::new(), count: 0 };
    // The task ends when the client or the connection goes away, because the channel is closed then.
    tokio::spawn(async move { follow(&shared, plural, &query, lines).await });
    let frames = futures::stream::unfold(receiver, |mut receiver| async {
        let bytes: io::Result<Bytes> = receiver.recv().await?;
        Some((bytes.map(Frame::data), receiver))
    });
    Response::new(StreamBody::new(frames).boxed_unsync())
}

/// The watch is over: the client is gone, or the fault has been carried out.
struct Over;

async fn follow(
    shared: &Shared,
    plural: &'static str,
    query: &BTreeMap<String, String>,
    mut lines: Lines,
) -> Result<(), Over> {
    if lines.fault == Some(Fault::StallBody) {
        lines.sender.closed().await;
    }
    let seconds = query.get("timeoutSeconds").map_or(3_600, |it| it.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    let bookmark_every = shared.script.lock().unwrap().bookmark_every;
    let bookmark_every = bookmark_every.unwrap_or(Duration::from_secs(3_600));
    let mut changed = shared.changed.subscribe();
    let mut version = if query.contains_key("sendInitialEvents") {
        initial_events(shared, plural, query, &mut lines).await?
    } else {
        query["resourceVersion"].parse().unwrap()
    };
    let mut bookmark = Instant::now() + bookmark_every;
    loop {
        changed.mark_unchanged();
        loop {
            // Whether the version is still known and what came after it are seen in one moment: a compaction in between
            // would swallow events.
            let found = {
                let store = shared.store.lock().unwrap();
                store.since(version, plural, selectors(query), 1_000)
            };
            let (found, reached) = match found {
                Ok(found) => found,
                Err(Unknown { code, message }) => {
                    let text = status_json(code, message);
                    return lines.send(line("ERROR", text.as_bytes())).await;
                }
            };
            for line in found {
                lines.send(line).await?;
            }
            if reached == version {
                break;
            }
            version = reached;
        }
        tokio::select! {
            _ = changed.changed() => (),
            () = lines.sender.closed() => return Err(Over),
            () = tokio::time::sleep_until(end) => return Ok(()),
            () = tokio::time::sleep_until(bookmark) => {
                if shared.store.lock().unwrap().has_reached(version) {
                    lines.send(mark(version, false)).await?;
                }
                bookmark += bookmark_every;
            }
        }
    }
}

async fn initial_events(
    shared: &Shared,
    plural: &'static str,
    query: &BTreeMap<String, String>,
    lines: &mut Lines,
) -> Result<u64, Over> {
    let (objects, version) = {
        let store = shared.store.lock().unwrap();
        (store.page(plural, selectors(query), None, usize::MAX).0, store.version)
    };
    for object in objects {
        lines.send(line("ADDED", &object.json)).await?;
    }
    lines.send(mark(version, true)).await?;
    Ok(version)
}

fn mark(version: u64, ends: bool) -> Bytes {
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if ends {
        metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
    }
    line("BOOKMARK", json!({ "kind": "Any", "metadata": metadata }).to_string().as_bytes())
}

/// The way out for lines, where faults happen to them.
struct Lines {
    sender: mpsc::Sender<io::Result<Bytes>>,
    fault: Option<Fault>,
    sent: Vec<Bytes>,
    count: usize,
}

impl Lines {
    async fn send(&mut self, line: Bytes) -> Result<(), Over> {
        match self.fault.clone() {
            Some(Fault::Cut { after, clean }) if after == self.count => {
                self.raw(line.slice(..line.len() / 2)).await?;
                if !clean {
                    let error = io::Error::other("scripted");
                    self.sender.send(Err(error)).await.map_err(|_| Over)?;
                }
                return Err(Over);
            }
            Some(Fault::Insert { after, line }) if after == self.count => {
                self.fault = None;
                self.raw(format!("{line}\n").into()).await?;
            }
            Some(Fault::Repeat) => {
                self.raw(line.clone()).await?;
                self.sent.push(line.clone());
                // The earlier ones again, the newest of them first.
                for old in self.sent.clone().into_iter().rev() {
                    self.raw(old).await?;
                }
            }
            _ => (),
        }
        self.count += 1;
        self.raw(line).await
    }

    async fn raw(&mut self, bytes: Bytes) -> Result<(), Over> {
        self.sender.send(Ok(bytes)).await.map_err(|_| Over)
    }
}

// Answers.

fn full(body: Bytes) -> Response<Body> {
    let body = Full::new(body).map_err(|never| match never {});
    Response::new(body.boxed_unsync())
}

/// What a proxy in between says in a server's stead.
fn login_page() -> Response<Body> {
    let mut response = full("<html><body>\nWho are you? {}\n</body></html>\n".into());
    let kind = http::HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

fn status(code: u16, message: &str, retry_after: Option<u64>) -> Response<Body> {
    let mut response = full(status_json(code, message).into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    if let Some(seconds) = retry_after {
        response.headers_mut().insert("retry-after", seconds.into());
    }
    response
}

fn status_json(code: u16, message: &str) -> String {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message })
        .to_string()
}
