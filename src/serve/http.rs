//! The health server and the metrics server: paths, headers, bodies (reference 10.1 and 10.3).

use std::fmt::Write as _;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::any;
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use jiff::Timestamp;
use tracing::{debug, info, warn};

use super::health::Answer;
use super::listen::{ListenError, Reach, listen};
use super::{Metrics, SharedHealth};
use crate::config::Config;
use crate::{logging, version};

/// How long until a failed listen is tried again.
pub const LISTEN_RETRY: Duration = Duration::from_secs(5);

/// Whether this process is the one that programs the kernel. While it waits for another copy to end, that one has the
/// ports: this is no mistake then, and the ports are tried again the moment the turn comes.
pub type Turn = tokio::sync::watch::Receiver<bool>;

/// One server of the process.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub purpose: &'static str,
    /// The flag that names the address.
    pub option: &'static str,
    pub address: SocketAddr,
    /// A listener that cannot be opened is an error instead of being tried again after this time.
    pub retry: Option<Duration>,
}

impl Server {
    /// Listens and serves until `stop` is ready. `failed` is told why it cannot listen, once.
    ///
    /// Returns an error only if a listen fails that has its turn and `retry` is not set.
    pub async fn run(
        self,
        router: Router,
        mut turn: Turn,
        stop: impl Future<Output = ()> + Send + 'static,
        failed: impl FnOnce(String),
    ) -> Result<(), ListenError> {
        let Server { purpose, option, address, retry } = self;
        let mut stop = Box::pin(stop);
        let mut failed = Some(failed);
        let listener = loop {
            let error = match self.open() {
                Ok(listener) => break listener,
                Err(source) => ListenError { address, purpose, option, source },
            };
            let has_turn = *turn.borrow_and_update();
            if has_turn && let Some(failed) = failed.take() {
                failed(error.to_string());
            }
            match retry {
                None if has_turn => return Err(error),
                Some(retry) if has_turn => warn!("{error}; trying again every {retry:?}"),
                _ => debug!("{error}; the other copy has it, as it seems"),
            }
            tokio::select! {
                () = &mut stop => return Ok(()),
                () = tokio::time::sleep(retry.unwrap_or(LISTEN_RETRY)) => {}
                Ok(()) = turn.changed() => {}
            }
        };
        info!(%address, "serving {purpose}");
        // Ends by `stop` alone; errors of single connections stay with them.
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
            warn!(%error, "the {purpose} server ended");
        }
        Ok(())
    }

    fn open(&self) -> std::io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(listen(self.address, Reach::BothFamilies)?)
    }
}

/// `/healthz` and `/livez` as kube-proxy's, for load balancers and kubelets; `/readyz` is ours.
pub fn health_router(health: SharedHealth, metrics: Metrics) -> Router {
    let (live_health, live_metrics, ready_health) =
        (health.clone(), metrics.clone(), health.clone());
    let healthz = move || async move {
        let answer = health.report().healthz();
        metrics.healthz_answered(answer.code);
        health_response(answer)
    };
    let livez = move || async move {
        let answer = live_health.report().livez();
        live_metrics.livez_answered(answer.code);
        health_response(answer)
    };
    let readyz = move || async move { health_response(ready_health.readyz()) };
    Router::new()
        .route("/healthz", any(healthz))
        .route("/livez", any(livez))
        .route("/readyz", any(readyz))
        .fallback(not_found)
}

fn health_response(answer: Answer) -> Response {
    let code = StatusCode::from_u16(answer.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    respond(code, "application/json", answer.body)
}

/// What the metrics server shows besides the metrics.
#[derive(Debug)]
pub struct Pages {
    proxy_mode: &'static str,
    metrics: Metrics,
    /// Answers of `/healthz` since the start or the last DELETE of `/metrics/slis`.
    pings: AtomicU64,
    configz: RwLock<String>,
    /// Another log verbosity is taken.
    profiling: AtomicBool,
    flagz: String,
    statusz: bool,
    flags: bool,
    started: Timestamp,
}

/// What `/proxyMode` says: the backend that is at work, whatever name it was asked for by.
fn proxy_mode(config: &Config) -> &'static str {
    if config.ipvs.is_some() { "ipvs" } else { "nftables" }
}

impl Pages {
    pub fn new(
        config: &Config,
        metrics: Metrics,
        started: Timestamp,
    ) -> Result<Self, serde_json::Error> {
        Ok(Pages {
            metrics,
            proxy_mode: proxy_mode(config),
            pings: AtomicU64::new(0),
            configz: RwLock::new(configz(config)?),
            profiling: AtomicBool::new(config.profiling),
            flagz: flagz(config),
            statusz: config.feature_gates.enabled("ComponentStatusz"),
            flags: config.feature_gates.enabled("ComponentFlagz"),
            started,
        })
    }

    /// Shows another configuration from now on: the one that was taken up. Flags and gates never change.
    pub fn show(&self, config: &Config) {
        self.profiling.store(config.profiling, Ordering::Relaxed);
        match configz(config) {
            Ok(page) => *self.configz.write().unwrap_or_else(PoisonError::into_inner) = page,
            Err(error) => warn!(%error, "/configz shows the configuration from before"),
        }
    }

    fn configz(&self) -> String {
        self.configz.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `/debug/flags/v`, as Kubernetes' components have it: PUT a number.
    fn set_verbosity(&self, method: &Method, body: &str) -> Response {
        if !self.profiling.load(Ordering::Relaxed) {
            return not_found_response();
        }
        if method != Method::PUT {
            return respond(StatusCode::NOT_ACCEPTABLE, TEXT, "unsupported http method\n");
        }
        match body.trim().parse() {
            Ok(verbosity) => {
                logging::set_verbosity(verbosity);
                info!(verbosity, "another log verbosity was asked for at /debug/flags/v");
                let said = format!("successfully set klog.logging.verbosity to {verbosity}");
                respond(StatusCode::OK, TEXT, said)
            }
            Err(_) => {
                let said = format!("error updating verbosity: {body:?} is not a number\n");
                respond(StatusCode::BAD_REQUEST, TEXT, said)
            }
        }
    }

    fn slis(&self, method: &Method) -> Response {
        if method == Method::DELETE {
            self.pings.store(0, Ordering::Relaxed);
            return respond(StatusCode::OK, TEXT, "metrics reset\n");
        }
        let pings = self.pings.load(Ordering::Relaxed);
        let mut page = String::new();
        let head = |page: &mut String, name, help, kind| {
            let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        };
        head(&mut page, "kubernetes_healthcheck", "[STABLE] The result of the last check", "gauge");
        page.push_str("kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n");
        head(&mut page, "kubernetes_healthchecks_total", "[STABLE] Results of checks", "counter");
        let _ = writeln!(
            page,
            "kubernetes_healthchecks_total{{name=\"ping\",status=\"success\",type=\"healthz\"}} {pings}"
        );
        respond(StatusCode::OK, EXPOSITION, page)
    }

    fn metrics_page(&self) -> Response {
        match self.metrics.text() {
            Ok(text) => respond(StatusCode::OK, EXPOSITION, text),
            Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        }
    }

    fn statusz_page(&self) -> String {
        // By the wall clock, as kube-proxy has it, which may have been set back meanwhile.
        let up = Timestamp::now().duration_since(self.started).as_secs().max(0);
        format!(
            "\nkube-ferry statusz\n\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nVersion: {}\nFollows: kube-proxy v{}\n\
             Paths: /configz /flagz /healthz /metrics /metrics/slis /proxyMode /statusz\n",
            self.started,
            up / 3600,
            up / 60 % 60,
            up % 60,
            version::OWN,
            version::KUBERNETES,
        )
    }
}

fn configz(config: &Config) -> Result<String, serde_json::Error> {
    let object = serde_json::to_string(&config.object)?;
    Ok(format!("{{\"kubeproxy.config.k8s.io\":{object}}}"))
}

fn flagz(config: &Config) -> String {
    let mut page =
        "\nkube-ferry flagz: the flags that were given; /configz shows what is in force\n\n"
            .to_owned();
    for (flag, value) in &config.flags {
        let _ = writeln!(page, "{flag}={value}");
    }
    page
}

/// Everything on the metrics server. Paths that are switched off, and all others, are 404.
pub fn metrics_router(pages: Arc<Pages>) -> Router {
    let page = |answer: fn(&Pages, &Method) -> Response| {
        let pages = pages.clone();
        any(move |method: Method| async move { answer(&pages, &method) })
    };
    let mut router = Router::new()
        .route("/metrics", page(|pages, _| pages.metrics_page()))
        .route("/metrics/slis", page(Pages::slis))
        .route("/proxyMode", page(|pages, _| respond(StatusCode::OK, TEXT, pages.proxy_mode)))
        .route(
            "/configz",
            page(|pages, _| respond(StatusCode::OK, "application/json", pages.configz())),
        )
        .route(
            "/healthz",
            page(|pages, _| {
                pages.pings.fetch_add(1, Ordering::Relaxed);
                respond(StatusCode::OK, TEXT, "ok")
            }),
        );
    let verbosity = pages.clone();
    router =
        router.route(
            "/debug/flags/v",
            any(move |method: Method, body: String| async move {
                verbosity.set_verbosity(&method, &body)
            }),
        );
    let plain = |answer: fn(&Pages) -> String| {
        let pages = pages.clone();
        any(move |headers: HeaderMap| async move {
            if takes_text(&headers) {
                respond(StatusCode::OK, TEXT, answer(&pages))
            } else {
                let said = "media type not acceptable, must be: text/plain\n";
                respond(StatusCode::NOT_ACCEPTABLE, TEXT, said)
            }
        })
    };
    if pages.statusz {
        router = router.route("/statusz", plain(Pages::statusz_page));
    }
    if pages.flags {
        router = router.route("/flagz", plain(|pages| pages.flagz.clone()));
    }
    router.fallback(not_found)
}

/// `/statusz` and `/flagz` are text for people; who asks for Kubernetes' structured form is told that there is none.
fn takes_text(headers: &HeaderMap) -> bool {
    let accepted: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|it| it.to_str().ok()).collect();
    let kind = |item: &str| item.split(';').next().unwrap_or_default().trim().to_owned();
    let mut kinds = accepted.iter().flat_map(|it| it.split(',')).map(kind);
    accepted.is_empty() || kinds.any(|it| matches!(it.as_str(), "text/plain" | "text/*" | "*/*"))
}

const TEXT: &str = "text/plain; charset=utf-8";
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

async fn not_found() -> Response {
    not_found_response()
}

fn not_found_response() -> Response {
    respond(StatusCode::NOT_FOUND, TEXT, "404 page not found\n")
}

pub(super) fn respond(
    code: StatusCode,
    content_type: &'static str,
    body: impl Into<Body>,
) -> Response {
    respond_with(code, content_type, [], body)
}

/// A response with a few more headers.
pub(super) fn respond_with<const N: usize>(
    code: StatusCode,
    content_type: &'static str,
    headers: [(HeaderName, http::HeaderValue); N],
    body: impl Into<Body>,
) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    let all = response.headers_mut();
    all.insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    all.insert(header::X_CONTENT_TYPE_OPTIONS, http::HeaderValue::from_static("nosniff"));
    all.extend(headers);
    response
}
