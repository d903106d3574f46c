//! A simulated API server: real HTTP/1.1 and HTTP/2, real TLS, real selectors, and faults on demand.
//!
//! It runs on a thread of its own, so tests may be synchronous or asynchronous and its clock is never the test's.

mod respond;
mod store;
mod tls;
mod transport;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use store::Store;
pub(crate) use tls::{Client, Tls};

/// How long the server's thread may take to do as it is told, which is a moment, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. Dropping it ends everything.
pub(crate) struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    scheme: &'static str,
    tls: Option<Tls>,
}

/// What the server's tasks share.
pub(crate) struct Shared {
    store: Mutex<Store>,
    script: Mutex<Script>,
    counters: Counters,
    /// Counts up with every change of the store; watches wait for it.
    changed: watch::Sender<u64>,
    /// Raised to close every connection that is older.
    closed: watch::Sender<u64>,
    /// Connections older than this neither send nor receive: half-open.
    frozen: AtomicU64,
    listening: watch::Sender<Listening>,
    /// Whether the port is open by now.
    is_open: Mutex<bool>,
    opened_or_closed: Condvar,
    acceptor: Mutex<Option<tokio_rustls::TlsAcceptor>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Listening {
    Yes,
    /// The port is closed: connection refused.
    No,
    Ended,
}

#[derive(Default)]
pub(crate) struct Counters {
    connections: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// How the server is told to behave.
#[derive(Default)]
pub(crate) struct Script {
    faults: Vec<(On, Fault)>,
    requests: Vec<Request>,
    events: Vec<Value>,
    /// `Authorization: Bearer` that is demanded.
    token: Option<String>,
    /// The client certificate, DER, that is demanded.
    client: Option<Vec<u8>>,
    /// 422 to `sendInitialEvents`, as servers without the feature answer.
    no_streaming_lists: bool,
    absent: Vec<&'static str>,
    bookmark_every: Option<Duration>,
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Decoded.
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) user_agent: String,
    pub(crate) authorization: String,
    pub http2: bool,
    /// Which TCP connection, counted from 1.
    pub(crate) connection: u64,
}

impl Request {
    pub(crate) fn is_list(&self) -> bool {
        self.method == "GET" && !self.query.contains_key("watch")
    }

    pub(crate) fn is_stream(&self) -> bool {
        self.query.contains_key("sendInitialEvents")
    }

    pub(crate) fn is_watch(&self) -> bool {
        self.query.contains_key("watch") && !self.is_stream()
    }
}

/// Which requests a fault hits: plural name of the resource, and what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct On(pub(crate) &'static str, pub(crate) Ask);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    List,
    Stream,
    Watch,
    Any,
}

/// What goes wrong, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Answer with this status; `Retry-After` in seconds.
    Status(u16, Option<u64>),
    /// Answer 200 and HTML, as a proxy in between does that wants to know who we are.
    LoginPage,
    /// Answer 200 and this.
    Answer(String),
    /// Answer 200 and send an ERROR event with this code.
    ErrorEvent(u16),
    /// Close the TCP connection instead of answering.
    DropConnection,
    /// Answer late.
    Delay(Duration),
    /// Never answer this request.
    Stall,
    /// Answer with a head and never send a body.
    StallBody,
    /// Cut the body in the middle of the line (or, in a list, object) after that many whole ones.
    Cut { after: usize, clean: bool },
    /// Send this line after that many events, and go on.
    Insert { after: usize, line: String },
    /// Send every event twice, and all of them again in reverse order.
    Repeat,
}

impl ApiServer {
    /// Plain HTTP/1.1 on a free port of 127.0.0.1.
    pub(crate) fn start() -> ApiServer {
        ApiServer::run(None)
    }

    /// TLS with HTTP/2 and HTTP/1.1 offered.
    pub(crate) fn start_tls() -> ApiServer {
        ApiServer::run(Some(Tls::new(&[b"h2", b"http/1.1"])))
    }

    /// TLS with HTTP/1.1 only.
    pub(crate) fn start_tls_http1() -> ApiServer {
        ApiServer::run(Some(Tls::new(&[b"http/1.1"])))
    }

    fn run(tls: Option<Tls>) -> ApiServer {
        let port = transport::Port::reserve(Ipv4Addr::LOCALHOST);
        let address = port.address();
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            script: Mutex::default(),
            counters: Counters::default(),
            changed: watch::Sender::new(0),
            closed: watch::Sender::new(0),
            frozen: AtomicU64::new(0),
            listening: watch::Sender::new(Listening::Yes),
            is_open: Mutex::new(false),
            opened_or_closed: Condvar::new(),
            acceptor: Mutex::new(tls.as_ref().map(Tls::acceptor)),
        });
        let serving = shared.clone();
        std::thread::Builder::new()
            .name("apiserver".to_owned())
            .spawn(move || transport::serve(serving, port))
            .unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let server = ApiServer { shared, address, scheme, tls };
        server.listen(true);
        server
    }

    // Where it is.

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Writes a kubeconfig, with the certificate authority in a file of its own and, if wanted, a token file.
    pub(crate) fn kubeconfig(&self, directory: &Path, token_file: Option<&Path>) -> PathBuf {
        let user = match token_file {
            Some(file) => format!("tokenFile: {}", file.display()),
            None => "{}".to_owned(),
        };
        self.kubeconfig_of(directory, &user)
    }

    /// The same for a user who is given as YAML, indented by four.
    pub(crate) fn kubeconfig_of(&self, directory: &Path, user: &str) -> PathBuf {
        let mut cluster = format!("server: {}", self.url());
        if self.tls.is_some() {
            self.write_authority(directory);
            cluster += &format!("\n    certificate-authority: {}/ca.crt", directory.display());
        }
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster:\n    {cluster}\n\
             users:\n- name: u\n  user:\n    {user}\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\n"
        );
        let path = directory.join("kubeconfig");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Writes the certificate of the present authority to `ca.crt`.
    pub(crate) fn write_authority(&self, directory: &Path) {
        let tls = self.tls.as_ref().expect("a server with TLS");
        std::fs::write(directory.join("ca.crt"), tls.authority()).unwrap();
    }

    // What it holds.

    /// Creates or replaces an object; returns its version.
    pub(crate) fn put(&self, object: Value) -> u64 {
        let version = self.shared.store.lock().unwrap().put(object);
        self.shared.changed.send_replace(version);
        version
    }

    /// Creates many objects.
    pub(crate) fn load(&self, objects: impl IntoIterator<Item = Value>) {
        self.load_and(objects, || ());
    }

    /// Creates many objects. When all are stored, and before any watch is told, calls `stored`.
    pub(crate) fn load_and<T>(
        &self,
        objects: impl IntoIterator<Item = Value>,
        stored: impl FnOnce() -> T,
    ) -> T {
        let mut store = self.shared.store.lock().unwrap();
        let last = objects.into_iter().map(|it| store.put(it)).last();
        let answer = stored();
        self.shared.changed.send_replace(last.unwrap_or_default());
        answer
    }

    /// Deletes an object; whether it was there. The namespace is empty for cluster-scoped ones.
    pub(crate) fn delete(&self, plural: &'static str, namespace: &str, name: &str) -> bool {
        let version = self.shared.store.lock().unwrap().delete(plural, namespace, name);
        if let Some(version) = version {
            self.shared.changed.send_replace(version);
        }
        version.is_some()
    }

    /// The objects that a selector leaves, as they are now.
    pub(crate) fn objects(&self, plural: &'static str, labels: &str, fields: &str) -> Vec<Value> {
        let store = self.shared.store.lock().unwrap();
        let objects = store.select(plural, labels, fields);
        objects.map(|it| serde_json::from_slice(&it.json).unwrap()).collect()
    }

    /// Forgets the history: watches from earlier versions and old `continue` tokens get 410.
    pub(crate) fn compact(&self) {
        self.shared.store.lock().unwrap().compact();
    }

    /// Sets the version back, as a restored etcd does.
    pub(crate) fn restore_version(&self, version: u64) {
        self.shared.store.lock().unwrap().restore(version);
    }

    /// Events that were posted.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.script().events.clone()
    }

    // What goes wrong.

    /// The next requests of this kind meet these faults, one each.
    pub(crate) fn fail_next(&self, on: On, faults: impl IntoIterator<Item = Fault>) {
        self.script().faults.extend(faults.into_iter().map(|fault| (on, fault)));
    }

    /// Faults that no request has met yet are taken back.
    pub(crate) fn forget_faults(&self) {
        self.script().faults.clear();
    }

    pub(crate) fn refuse_streaming_lists(&self) {
        self.script().no_streaming_lists = true;
    }

    /// The server does not know this resource: 404.
    pub(crate) fn remove_resource(&self, plural: &'static str) {
        self.script().absent.push(plural);
    }

    pub(crate) fn restore_resource(&self, plural: &str) {
        self.script().absent.retain(|it| *it != plural);
    }

    /// Demands this bearer token from now on.
    pub(crate) fn demand_token(&self, token: &str) {
        self.script().token = Some(token.to_owned());
    }

    pub(crate) fn send_bookmarks_every(&self, interval: Duration) {
        self.script().bookmark_every = Some(interval);
    }

    /// Closes all connections.
    pub(crate) fn drop_connections(&self) {
        self.shared.closed.send_replace(self.connections());
    }

    /// All present connections stay open and go silent. New ones work.
    pub(crate) fn freeze_connections(&self) {
        self.shared.frozen.store(self.connections(), Ordering::SeqCst);
    }

    /// Closes the port and all connections. Nobody gets through any more when this returns.
    pub(crate) fn go_down(&self) {
        self.listen(false);
        self.drop_connections();
    }

    pub(crate) fn come_up(&self) {
        self.listen(true);
    }

    /// Opens or closes the port and waits until it is done: a connection that was accepted a moment later would outlive
    /// what is done to all connections next.
    fn listen(&self, wanted: bool) {
        let listening = if wanted { Listening::Yes } else { Listening::No };
        self.shared.listening.send_replace(listening);
        let is_open = self.shared.is_open.lock().unwrap();
        let waited =
            self.shared.opened_or_closed.wait_timeout_while(is_open, PATIENCE, |it| *it != wanted);
        assert!(!waited.unwrap().1.timed_out(), "the simulated API server has ended");
    }

    /// Takes another certificate authority and a new certificate for new connections.
    pub(crate) fn rotate_authority(&mut self) {
        let tls = self.tls.as_mut().expect("a server with TLS");
        tls.rotate();
        *self.shared.acceptor.lock().unwrap() = Some(tls.acceptor());
    }

    /// From now on takes requests with a certificate that this makes, and no other, and answers 401 to the rest.
    pub(crate) fn demand_new_client(&mut self) -> Client {
        let tls = self.tls.as_mut().expect("a server with TLS");
        let client = tls.issue_client();
        *self.shared.acceptor.lock().unwrap() = Some(tls.acceptor());
        self.script().client = Some(client.der.clone());
        client
    }

    /// The same, but new connections of others fail in the handshake: their certificates are of an authority that is not
    /// known any more.
    pub(crate) fn demand_client_of_new_authority(&mut self) -> Client {
        self.tls.as_mut().expect("a server with TLS").forget_clients();
        self.demand_new_client()
    }

    // What it saw.

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.script().requests.clone()
    }

    /// Requests about one resource.
    pub(crate) fn requests_for(&self, plural: &str) -> Vec<Request> {
        let requests = self.script().requests.clone();
        requests.into_iter().filter(|it| it.path.ends_with(&format!("/{plural}"))).collect()
    }

    /// TCP connections accepted so far.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.counters.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn bytes_sent(&self) -> u64 {
        self.shared.counters.sent.load(Ordering::SeqCst)
    }

    pub(crate) fn bytes_received(&self) -> u64 {
        self.shared.counters.received.load(Ordering::SeqCst)
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.shared.script.lock().unwrap()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.listening.send_replace(Listening::Ended);
    }
}
