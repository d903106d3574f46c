//! The way to the API server: one HTTP/2 connection for everything, HTTP/1.1 where the server knows nothing better.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use hyper_rustls::{
    FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream,
};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connection, HttpConnector};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::{Body, ConfigExt};
use tokio::net::TcpStream;
use tower::{BoxError, Service, ServiceBuilder};

use super::buffered::Buffered;
use super::client::ConnectionPace;
use super::proxy::HttpProxy;

/// How many bytes one watch, and all together, may have on the way to a consumer that is busy.
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// A Kubernetes client for this configuration, over our own transport but with kube's authentication.
pub(super) fn connect(
    config: &kube::Config,
    pace: ConnectionPace,
    proxy: Option<&HttpProxy>,
) -> Result<kube::Client, kube::Error> {
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .service(Transport::new(config, &Road::new(pace, proxy), pace)?);
    Ok(kube::Client::new(service, config.default_namespace.clone()))
}

type Plain = HttpsConnector<Road>;

/// Sends requests over HTTP/2 if the address is https, over HTTP/1.1 if it is not or the server refused HTTP/2.
///
/// Two pools, because only a pool that is told "HTTP/2 only" makes callers wait for the connection that is being made;
/// with negotiation left open, four watches that start together make four connections.
#[derive(Clone)]
struct Transport {
    http2: Client<Http2Only, Body>,
    http1: Client<Timed<Plain>, Body>,
    no_http2: Arc<AtomicBool>,
    last_failure: LastFailure,
}

impl Transport {
    fn new(config: &kube::Config, road: &Road, pace: ConnectionPace) -> Result<Self, kube::Error> {
        let last_failure = LastFailure::default();
        let connector = Http2Only {
            inner: Timed { inner: https(config, road.clone(), Alpn::Http2)?, pace },
            last_failure: last_failure.clone(),
        };
        let http2 = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_only(true)
            .http2_keep_alive_interval(pace.ping_interval)
            .http2_keep_alive_timeout(pace.ping_timeout)
            .http2_keep_alive_while_idle(true)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .build(connector);
        let http1 = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(2)
            .build(Timed { inner: https(config, road.clone(), Alpn::Http1)?, pace });
        let plain = config.cluster_url.scheme_str() == Some("http");
        Ok(Transport { http2, http1, no_http2: Arc::new(AtomicBool::new(plain)), last_failure })
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<hyper::body::Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if self.no_http2.load(Ordering::Relaxed) {
            let answer = self.http1.request(request);
            return Box::pin(async move { Ok(answer.await?) });
        }
        let again = self.http1.clone();
        let no_http2 = self.no_http2.clone();
        let last_failure = self.last_failure.clone();
        let copy = copy(&request);
        let answer = self.http2.request(request);
        Box::pin(async move {
            let answer = answer.await.map_err(|error| last_failure.explain(error));
            match (answer, copy) {
                (Err(error), Some(copy)) if is_no_http2(&*error) => {
                    tracing::info!(
                        "the API server speaks no HTTP/2; every watch needs a connection of its own"
                    );
                    no_http2.store(true, Ordering::Relaxed);
                    Ok(again.request(copy).await?)
                }
                (answer, _) => answer,
            }
        })
    }
}

fn copy(request: &Request<Body>) -> Option<Request<Body>> {
    let mut copy = Request::new(request.body().try_clone()?);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    Some(copy)
}

fn is_no_http2(error: &(dyn StdError + 'static)) -> bool {
    super::trouble::chain(error).any(|cause| cause.is::<NoHttp2>())
}

#[derive(Clone, Copy)]
enum Alpn {
    Http1,
    Http2,
}

fn https(config: &kube::Config, road: Road, alpn: Alpn) -> Result<Plain, kube::Error> {
    let mut tls = config.rustls_client_config()?;
    // kube leaves this empty, which means HTTP/1.1; the builder below insists that it is.
    tls.alpn_protocols.clear();
    let mut builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name.clone().try_into().map_err(kube::client::RustlsTlsError::InvalidServerName);
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(
            name.map_err(kube::Error::RustlsTls)?,
        ));
    }
    Ok(match alpn {
        Alpn::Http1 => builder.enable_http1().wrap_connector(road),
        Alpn::Http2 => builder.enable_all_versions().wrap_connector(road),
    })
}

/// TCP to the server, or to a proxy that is asked to connect.
#[derive(Clone)]
enum Road {
    Direct(HttpConnector),
    Proxied(Tunnel<HttpConnector>),
}

impl Road {
    fn new(pace: ConnectionPace, proxy: Option<&HttpProxy>) -> Road {
        let Some(proxy) = proxy else { return Road::Direct(tcp(pace)) };
        let tunnel = Tunnel::new(proxy.address.clone(), tcp(pace));
        Road::Proxied(match &proxy.authorization {
            Some(authorization) => tunnel.with_auth(authorization.clone()),
            None => tunnel,
        })
    }
}

impl Service<Uri> for Road {
    type Response = TokioIo<Buffered>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match self {
            Road::Direct(tcp) => tcp.poll_ready(context).map_err(BoxError::from),
            Road::Proxied(tunnel) => tunnel.poll_ready(context).map_err(BoxError::from),
        }
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        match self {
            Road::Direct(tcp) => {
                let connecting = tcp.call(server);
                Box::pin(async move { Ok(buffered(connecting.await?)) })
            }
            Road::Proxied(tunnel) => {
                let connecting = tunnel.call(server);
                Box::pin(async move { Ok(buffered(connecting.await?)) })
            }
        }
    }
}

fn buffered(stream: TokioIo<TcpStream>) -> TokioIo<Buffered> {
    TokioIo::new(Buffered::new(stream.into_inner()))
}

/// TCP with everything that notices a peer that went away without a word, for the time when no pings are sent.
fn tcp(pace: ConnectionPace) -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(pace.connect_timeout));
    tcp.set_keepalive(Some(pace.ping_interval));
    tcp.set_keepalive_interval(Some(pace.ping_interval / 2));
    tcp.set_keepalive_retries(Some(2));
    tcp.set_tcp_user_timeout(Some(pace.ping_interval + pace.ping_timeout));
    tcp
}

/// Limits the time of TCP and TLS handshake together; a server that accepts and says nothing would hold us for ever.
#[derive(Clone)]
struct Timed<C> {
    inner: C,
    pace: ConnectionPace,
}

type Stream = MaybeHttpsStream<TokioIo<Buffered>>;
type Connecting = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

impl Service<Uri> for Timed<Plain> {
    type Response = Stream;
    type Error = BoxError;
    type Future = Connecting;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let limit = self.pace.connect_timeout * 2;
        let connecting = self.inner.call(server);
        Box::pin(async move {
            tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| Err(timed_out(limit)))
        })
    }
}

fn timed_out(limit: Duration) -> BoxError {
    std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!("no TLS connection within {limit:?}, although something accepts connections"),
    )
    .into()
}

/// Why a connection could not be made. Those who waited for it share this.
#[derive(Clone, Debug)]
pub(super) struct Unconnected(Arc<dyn StdError + Send + Sync>);

impl fmt::Display for Unconnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Unconnected {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

/// What became of the last attempt to connect.
///
/// The pool tells the cause to the one request for which it connects, perhaps one whose failure nobody reads, and to all
/// others that they were canceled.
#[derive(Clone, Debug, Default)]
struct LastFailure(Arc<Mutex<Option<Unconnected>>>);

impl LastFailure {
    fn set(&self, failure: Option<Unconnected>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    /// The cause instead of the pool's word, where that is all there is.
    fn explain(&self, error: ClientError) -> BoxError {
        let has_cause = super::trouble::chain(&error).any(|cause| cause.is::<Unconnected>());
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(cause) if error.is_connect() && !has_cause => cause.into(),
            _ => error.into(),
        }
    }
}

/// Refuses connections on which HTTP/2 was not negotiated.
#[derive(Clone)]
struct Http2Only {
    inner: Timed<Plain>,
    last_failure: LastFailure,
}

#[derive(Debug, thiserror::Error)]
#[error("the server did not choose HTTP/2 in the TLS handshake")]
struct NoHttp2;

impl Service<Uri> for Http2Only {
    type Response = Stream;
    type Error = BoxError;
    type Future = Connecting;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let connecting = self.inner.call(server);
        let last_failure = self.last_failure.clone();
        Box::pin(async move {
            let made = connecting.await.and_then(|stream| {
                let is_http2 = stream.connected().is_negotiated_h2();
                if is_http2 { Ok(stream) } else { Err(NoHttp2.into()) }
            });
            let made = made.map_err(|error| Unconnected(error.into()));
            last_failure.set(made.as_ref().err().cloned());
            Ok(made?)
        })
    }
}
