//! One small server for each Service with a healthCheckNodePort: does this node have endpoints for it? (reference
//! 10.2)
//!
//! In come the servers that should exist, after each successful sync; out come those that cannot listen, for an Event.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use axum::routing::any;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::SharedHealth;
use super::http::respond_with;
use super::listen::{Reach, listen};
use crate::model::{Family, ObjectName, Uid};

/// How long a listener may take to close; it has nothing to wait for.
const CLOSING: Duration = Duration::from_secs(1);

/// One server that should exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub service: ObjectName,
    /// For Events.
    pub uid: Option<Uid>,
    pub family: Family,
    pub port: NonZeroU16,
    /// Ready endpoints of the Service on this node (reference 3.6).
    pub local_endpoints: usize,
}

/// Where the servers of one family listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenOn {
    /// The family's wildcard.
    All,
    /// Those of the node's addresses that accept NodePorts; perhaps none.
    These(Vec<IpAddr>),
}

/// A listener that could not be opened. It is tried again at each reconciliation and told once until it works.
#[derive(Debug)]
pub struct ListenFailure {
    pub service: ObjectName,
    pub family: Family,
    pub address: SocketAddr,
    pub source: io::Error,
}

impl fmt::Display for ListenFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot listen on {} for the health check node port of Service {}: {}",
            self.address, self.service, self.source
        )
    }
}

/// The servers that exist.
#[derive(Debug)]
pub struct NodePortHealth {
    health: SharedHealth,
    services: BTreeMap<(ObjectName, Family), Arc<Served>>,
    listeners: BTreeMap<ListenerKey, Listening>,
    /// What failed and was told.
    failing: BTreeSet<ListenerKey>,
}

/// Service, family and address: a listener belongs to one Service, so that a port that changes hands is opened anew.
type ListenerKey = (ObjectName, Family, SocketAddr);

/// What a server answers with.
#[derive(Debug)]
struct Served {
    service: ObjectName,
    local_endpoints: AtomicUsize,
}

/// An open listener.
#[derive(Debug)]
struct Listening {
    stop: oneshot::Sender<()>,
    /// Ready as soon as the socket is closed.
    closed: oneshot::Receiver<()>,
}

impl NodePortHealth {
    pub fn new(health: SharedHealth) -> Self {
        NodePortHealth {
            health,
            services: BTreeMap::new(),
            listeners: BTreeMap::new(),
            failing: BTreeSet::new(),
        }
    }

    /// Opens and closes servers until those that are wanted exist; counts change without a restart.
    ///
    /// To be run on the servers' runtime; a plain thread does so with `Handle::block_on`.
    pub async fn reconcile(
        &mut self,
        wanted: &[HealthCheck],
        v4: &ListenOn,
        v6: &ListenOn,
    ) -> Vec<ListenFailure> {
        let targets = targets(wanted, v4, v6);
        self.close_all_but(&targets).await;
        self.set_counts(wanted);
        self.failing.retain(|key| targets.contains(key));
        targets.into_iter().filter_map(|key| self.ensure_open(key)).collect()
    }

    /// Whether a listener that is wanted could not be opened.
    pub fn has_failures(&self) -> bool {
        !self.failing.is_empty()
    }

    /// Number of open listeners.
    pub fn len(&self) -> usize {
        self.listeners.len()
    }

    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty()
    }

    /// Closes first and waits for it: a port may go from one Service to another.
    async fn close_all_but(&mut self, targets: &BTreeSet<ListenerKey>) {
        let all = std::mem::take(&mut self.listeners);
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|(key, _)| targets.contains(key));
        self.listeners = kept;
        let closing: Vec<_> = gone.into_values().map(Listening::close).collect();
        for closed in closing {
            // The sender is dropped, never used: an error is the news. A listener that does not end must not keep the
            // others waiting: if its port is wanted, opening it fails, is told and tried again.
            if tokio::time::timeout(CLOSING, closed).await.is_err() {
                tracing::warn!("a health check node port takes long to close");
            }
        }
    }

    fn set_counts(&mut self, wanted: &[HealthCheck]) {
        let mut services = BTreeMap::new();
        for check in wanted {
            let key = (check.service.clone(), check.family);
            let served = self.services.remove(&key).unwrap_or_else(|| {
                Arc::new(Served { service: check.service.clone(), local_endpoints: 0.into() })
            });
            served.local_endpoints.store(check.local_endpoints, Ordering::Relaxed);
            services.insert(key, served);
        }
        self.services = services;
    }

    fn ensure_open(&mut self, key: ListenerKey) -> Option<ListenFailure> {
        if self.listeners.contains_key(&key) {
            return None;
        }
        let served = self.services.get(&(key.0.clone(), key.1))?.clone();
        match open(key.2, served, self.health.clone()) {
            Ok(listening) => {
                self.failing.remove(&key);
                self.listeners.insert(key, listening);
                None
            }
            Err(source) => {
                let (service, family, address) = key.clone();
                let news = self.failing.insert(key);
                news.then_some(ListenFailure { service, family, address, source })
            }
        }
    }
}

fn targets(wanted: &[HealthCheck], v4: &ListenOn, v6: &ListenOn) -> BTreeSet<ListenerKey> {
    let mut targets = BTreeSet::new();
    for check in wanted {
        let (on, any) = match check.family {
            Family::V4 => (v4, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            Family::V6 => (v6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
        };
        let ips = match on {
            ListenOn::All => std::slice::from_ref(&any),
            ListenOn::These(ips) => ips.as_slice(),
        };
        let addresses = ips.iter().map(|ip| SocketAddr::new(*ip, check.port.get()));
        targets.extend(addresses.map(|it| (check.service.clone(), check.family, it)));
    }
    targets
}

fn open(address: SocketAddr, served: Arc<Served>, health: SharedHealth) -> io::Result<Listening> {
    let (stop, stopped) = oneshot::channel();
    let (alive, closed) = oneshot::channel();
    let listener = TcpListener::from_std(listen(address, Reach::OwnFamily)?)?;
    let listener = Announced { listener, _alive: alive };
    let answer = move || async move { answer(&served, &health) };
    let router = Router::new().fallback(any(answer));
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        // A dropped sender means the same.
        let _ = stopped.await;
    });
    tokio::spawn(server.into_future());
    Ok(Listening { stop, closed })
}

impl Listening {
    fn close(self) -> oneshot::Receiver<()> {
        // An error means that the server has ended already.
        let _ = self.stop.send(());
        self.closed
    }
}

/// A listener that tells when it is dropped, so that its port can be used again without guessing.
struct Announced {
    listener: TcpListener,
    /// Dropped after the listener, fields are dropped in order.
    _alive: oneshot::Sender<()>,
}

impl axum::serve::Listener for Announced {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        axum::serve::Listener::accept(&mut self.listener).await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Any path, any method. The node's eligibility is not considered.
fn answer(served: &Served, health: &SharedHealth) -> Response {
    let count = served.local_endpoints.load(Ordering::Relaxed);
    let healthy = health.report().healthy;
    let code = if count != 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let weight = HeaderName::from_static("x-load-balancing-endpoint-weight");
    let headers = [(weight, HeaderValue::from(count))];
    let ObjectName { namespace, name } = &served.service;
    // Names of objects are DNS labels: nothing in them needs escaping.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\
         \t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    respond_with(code, "application/json", headers, body)
}
