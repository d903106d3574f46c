//! Requests to the API server, with the configuration they need: where it is, who we are, whom we trust.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE, DATE, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Limited};
use jiff::fmt::rfc2822;
use kube::client::Body;
use kube::config::{Cluster, KubeConfigOptions, Kubeconfig};
use serde::Deserialize;
use tokio::time::Instant;

use super::connect::connect;
use super::proxy::{self, UnusableProxy};
use super::trouble::{ApiError, Trouble};

/// Error bodies are `Status` objects of a few hundred bytes, or a proxy's HTML page.
const LONGEST_ERROR: usize = 64 << 10;

/// Where the API server is found, as the flags say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// `--kubeconfig`, with the address overridden by `--master` if given.
    Kubeconfig { path: PathBuf, master: Option<String> },
    /// `--master` alone: no credentials.
    Address(String),
    /// The service account of the Pod this runs in.
    InCluster,
}

impl Server {
    /// Chooses as kube-proxy does (reference 8.2): both flags empty means in-cluster.
    pub fn from_flags(kubeconfig: Option<PathBuf>, master: Option<String>) -> Server {
        match (kubeconfig, master) {
            (Some(path), master) => Server::Kubeconfig { path, master },
            (None, Some(address)) => Server::Address(address),
            (None, None) => Server::InCluster,
        }
    }
}

/// How patient connections and requests are. The default notices a dead connection within 20 seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConnectionPace {
    /// For TCP; TCP and TLS together may take twice that.
    pub connect_timeout: Duration,
    /// Between HTTP/2 pings.
    pub ping_interval: Duration,
    /// An HTTP/2 ping unanswered for so long ends the connection.
    pub ping_timeout: Duration,
    /// From sending a request to the response's head.
    pub response_timeout: Duration,
}

impl Default for ConnectionPace {
    fn default() -> Self {
        ConnectionPace {
            connect_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(30),
        }
    }
}

/// Why there is no client at all. Found at the start; the program cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "kubeconfig {path}: {source} (does the file exist, may this user read it, does it name a current-context, and \
         are the files it refers to there?)"
    )]
    Kubeconfig {
        path: PathBuf,
        #[source]
        source: kube::config::KubeconfigError,
    },
    #[error(
        "{named_by}: {address:?} is not the address of an API server: {why} (an address like https://192.0.2.1:6443 is needed)"
    )]
    Address { named_by: String, address: String, why: String },
    #[error(
        "in-cluster configuration: {0} (outside of a Pod give --kubeconfig FILE, or --manifests DIR to work without an \
         API server)"
    )]
    InCluster(#[source] kube::config::InClusterError),
    #[error(transparent)]
    Proxy(#[from] UnusableProxy),
    #[error(
        "credentials for {server}: {source} (look at the certificates, keys and tokens that the kubeconfig names)"
    )]
    Credentials {
        server: String,
        #[source]
        source: Box<kube::Error>,
    },
}

/// The API server, as the watchers use it.
///
/// Everything that came from files (address, certificate authorities, client certificate) forms a session. A 401 or a
/// connection that fails or breaks makes the next request look whether those files have changed, and if so begin a new session; that
/// is how rotated certificates and tokens are picked up. Token files are also read anew every minute by kube.
pub struct ApiClient {
    server: Server,
    pace: ConnectionPace,
    session: Mutex<Session>,
    /// Is told of every request when its answer begins, or when it failed.
    observer: Option<RequestObserver>,
}

/// Is told of requests to the API server.
pub type RequestObserver = Box<dyn Fn(&RequestSeen<'_>) + Send + Sync>;

/// A request whose answer has begun, or that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestSeen<'a> {
    pub method: &'a str,
    /// Host and port of the API server.
    pub host: &'a str,
    /// The HTTP status; `None`: there was no answer.
    pub code: Option<u16>,
    /// From sending it to the head of the response.
    pub took: Duration,
}

#[derive(Clone)]
struct Session {
    client: kube::Client,
    address: Arc<str>,
    fingerprint: u64,
    /// Something went wrong that changed files would explain.
    doubtful: bool,
}

impl ApiClient {
    /// Reads the configuration; sends nothing yet.
    ///
    /// # Errors
    ///
    /// [`ClientError`] tells the file and what to do.
    pub async fn new(server: Server, pace: ConnectionPace) -> Result<ApiClient, ClientError> {
        let session = Session::begin(&server, pace).await?;
        Ok(ApiClient { server, pace, session: Mutex::new(session), observer: None })
    }

    /// Tells of every request from now on.
    #[must_use]
    pub fn observed_by(mut self, observer: RequestObserver) -> ApiClient {
        self.observer = Some(observer);
        self
    }

    /// The address requests go to.
    pub fn address(&self) -> Arc<str> {
        self.current().address
    }

    /// Asks for the nodes, as the plainest request that needs everything to be right. For start-up checks.
    ///
    /// # Errors
    ///
    /// What stands in the way, in words for a person.
    pub async fn probe(&self) -> Result<(), ApiError> {
        let mut request = Request::new(Vec::new());
        *request.uri_mut() = http::Uri::from_static("/api/v1/nodes?limit=1");
        self.send(request).await.map(drop)
    }

    /// Sends a request and waits for the head of the response, which is 2xx and announces JSON then.
    pub(super) async fn send(
        &self,
        mut request: Request<Vec<u8>>,
    ) -> Result<Response<Body>, ApiError> {
        let session = self.session().await;
        // Without the query, which is long and the same every time: what went wrong stands behind it.
        let doing = format!("{} {}{}", request.method(), session.address, request.uri().path());
        let agent = HeaderValue::from_static(concat!("kube-ferry/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        let method = request.method().clone();
        let began = Instant::now();
        let sending = session.client.send(request.map(Body::from));
        let limit = self.pace.response_timeout;
        let answer = tokio::time::timeout(limit, sending).await;
        if let Some(observe) = &self.observer {
            let host = session.address.split_once("://").map_or(&*session.address, |(_, it)| it);
            let code = answer.as_ref().ok().and_then(|it| it.as_ref().ok());
            let code = code.map(|response| response.status().as_u16());
            observe(&RequestSeen { method: method.as_str(), host, code, took: began.elapsed() });
        }
        let result = match answer {
            Ok(Ok(response)) if response.status().as_u16() < 300 => match foreign_type(&response) {
                Some(kind) => {
                    let what = format!("the answer is {kind}, not JSON");
                    Err(ApiError::new(Trouble::Garbage, &doing, what))
                }
                None => Ok(response),
            },
            Ok(Ok(response)) => Err(self.refusal(&doing, response).await),
            Ok(Err(error)) => Err(ApiError::transport(&doing, &error)),
            Err(_) => {
                let what = format!("no response within {limit:?}");
                Err(ApiError::new(Trouble::Silence, &doing, what))
            }
        };
        if let Err(error) = &result
            && may_be_cured_by_other_files(error.trouble)
        {
            self.doubt(session.fingerprint);
        }
        result
    }

    /// Reads the error that a response tells.
    async fn refusal(&self, doing: &str, response: Response<Body>) -> ApiError {
        let code = response.status().as_u16();
        let retry_after = retry_after(&response);
        let reading = Limited::new(response.into_body(), LONGEST_ERROR).collect();
        let body = match tokio::time::timeout(self.pace.response_timeout, reading).await {
            Ok(Ok(body)) => body.to_bytes(),
            // The status code alone has to do.
            Ok(Err(_)) | Err(_) => bytes::Bytes::new(),
        };
        ApiError { retry_after, ..ApiError::answered(doing, code, &message(&body)) }
    }

    /// The session to use, a new one if there is reason.
    async fn session(&self) -> Session {
        let session = self.current();
        if !session.doubtful {
            return session;
        }
        let fresh = match Session::begin(&self.server, self.pace).await {
            Ok(fresh) => fresh,
            Err(error) => {
                // Half-way through a rotation files may be missing; the old session may still do.
                tracing::warn!("keeping the old credentials: {error}");
                return session;
            }
        };
        let mut current = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if current.fingerprint == fresh.fingerprint {
            // Unchanged: go on with the connection that the others use.
            current.doubtful = false;
        } else {
            tracing::info!(address = %fresh.address, "the files with credentials have changed; using the new ones");
            *current = fresh;
        }
        current.clone()
    }

    fn doubt(&self, fingerprint: u64) {
        let mut current = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        current.doubtful |= current.fingerprint == fingerprint;
    }

    fn current(&self) -> Session {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Session {
    async fn begin(server: &Server, pace: ConnectionPace) -> Result<Session, ClientError> {
        // Everything is read twice. Files that change in between leave a session that is newer than its fingerprint, and is
        // merely begun anew when it is next in doubt. One that is older would pass for unchanged for ever.
        let fingerprint = find(server).await?.fingerprint();
        let Found { config, proxy_url, .. } = find(server).await?;
        let variable = |name: &str| std::env::var(name).ok();
        let proxy = proxy::find(&config.cluster_url, proxy_url.as_deref(), variable)?;
        if let Some(proxy) = &proxy {
            tracing::info!(proxy = %proxy.address, "the API server is reached through a proxy");
        }
        let address = config.cluster_url.to_string();
        let address = address.trim_end_matches('/');
        let client = connect(&config, pace, proxy.as_ref()).map_err(|source| {
            ClientError::Credentials { server: address.to_owned(), source: Box::new(source) }
        })?;
        Ok(Session { client, address: address.into(), fingerprint, doubtful: false })
    }
}

/// A configuration, and what it was made from.
struct Found {
    config: kube::Config,
    /// Files with credentials, and the one that names them.
    files: Vec<PathBuf>,
    /// Of the kubeconfig's cluster.
    proxy_url: Option<String>,
}

impl Found {
    fn plain(config: kube::Config) -> Found {
        Found { config, files: Vec::new(), proxy_url: None }
    }

    /// A hash of everything that a session is made from. Certificate authorities are already in the configuration.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.config.cluster_url.hash(&mut hasher);
        self.config.root_cert.hash(&mut hasher);
        for file in &self.files {
            std::fs::read(file).ok().hash(&mut hasher);
        }
        hasher.finish()
    }
}

async fn find(server: &Server) -> Result<Found, ClientError> {
    match server {
        Server::Kubeconfig { path, master } => from_kubeconfig(path, master.as_deref()).await,
        Server::Address(address) => {
            Ok(Found::plain(kube::Config::new(master_url(address, Tls::Unknown)?)))
        }
        Server::InCluster => in_cluster(),
    }
}

async fn from_kubeconfig(path: &Path, master: Option<&str>) -> Result<Found, ClientError> {
    let failed = |source| ClientError::Kubeconfig { path: path.to_owned(), source };
    let mut kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let tls = tls(&kubeconfig);
    let mut proxy_url = None;
    if let Some(cluster) = current_cluster(&mut kubeconfig) {
        // Taken out, because kube would mix it with variables of the environment.
        proxy_url = cluster.proxy_url.take();
        if let Some(server) = &mut cluster.server {
            let named_by = || format!("kubeconfig {}: server", path.display());
            *server = server_url(server, tls, named_by)?.to_string();
        }
    }
    let options = KubeConfigOptions::default();
    let mut config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(failed)?;
    if let Some(master) = master {
        config.cluster_url = master_url(master, tls)?;
    }
    let auth = &config.auth_info;
    let referred = [&auth.token_file, &auth.client_certificate, &auth.client_key];
    let mut files: Vec<PathBuf> = referred.into_iter().flatten().map(PathBuf::from).collect();
    files.push(path.to_owned());
    Ok(Found { config, files, proxy_url })
}

/// The cluster that the current context names.
fn current_cluster(kubeconfig: &mut Kubeconfig) -> Option<&mut Cluster> {
    let current = kubeconfig.current_context.as_ref();
    let context = kubeconfig.contexts.iter().find(|it| Some(&it.name) == current)?;
    let name = &context.context.as_ref()?.cluster;
    kubeconfig.clusters.iter_mut().find(|it| it.name == *name)?.cluster.as_mut()
}

/// Whether a kubeconfig holds anything that makes sense with TLS alone.
fn tls(kubeconfig: &Kubeconfig) -> Tls {
    let mut clusters = kubeconfig.clusters.iter().filter_map(|it| it.cluster.as_ref());
    let authority = clusters.any(|it| {
        it.certificate_authority.is_some()
            || it.certificate_authority_data.is_some()
            || it.insecure_skip_tls_verify == Some(true)
    });
    let mut users = kubeconfig.auth_infos.iter().filter_map(|it| it.auth_info.as_ref());
    let certificate =
        users.any(|it| it.client_certificate.is_some() || it.client_certificate_data.is_some());
    if authority || certificate { Tls::Configured } else { Tls::Unknown }
}

fn in_cluster() -> Result<Found, ClientError> {
    let config = kube::Config::incluster().map_err(ClientError::InCluster)?;
    let files = config.auth_info.token_file.iter().map(PathBuf::from).collect();
    Ok(Found { files, ..Found::plain(config) })
}

/// What is known of TLS besides the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tls {
    /// There are certificates, or it is said not to look at them.
    Configured,
    Unknown,
}

fn master_url(address: &str, tls: Tls) -> Result<http::Uri, ClientError> {
    server_url(address, tls, || "--master".to_owned())
}

/// The URL of an API server. Without a scheme it is what Kubernetes' own clients take it for: https if TLS is configured,
/// otherwise http.
fn server_url(
    address: &str,
    tls: Tls,
    named_by: impl Fn() -> String,
) -> Result<http::Uri, ClientError> {
    let wrong = |why: &str| ClientError::Address {
        named_by: named_by(),
        address: address.to_owned(),
        why: why.to_owned(),
    };
    let url = match address.split_once("://") {
        Some(("http" | "https", _)) => address.to_owned(),
        Some((scheme, _)) => return Err(wrong(&format!("{scheme} is neither https nor http"))),
        None if address.trim_end_matches('/').contains('/') => {
            return Err(wrong("with a path it needs a scheme"));
        }
        None if tls == Tls::Configured => format!("https://{address}"),
        None => format!("http://{address}"),
    };
    url.parse().map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))
}

/// A server that refuses a client certificate in the handshake of TLS 1.3 says so when ours is over already: to us it is
/// a connection that breaks before it has answered anything.
fn may_be_cured_by_other_files(trouble: Trouble) -> bool {
    matches!(trouble, Trouble::Unauthorized | Trouble::Tls | Trouble::Connect | Trouble::Broken)
}

/// What a successful answer is if it says that it is no JSON.
fn foreign_type<B>(response: &Response<B>) -> Option<String> {
    let kind = response.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    (!kind.contains("json")).then(|| kind.chars().take(40).collect())
}

/// How long the server asks to wait. API servers tell seconds, load balancers also a date: that is compared with the date
/// of the answer, because our own clock may be wrong.
fn retry_after<B>(response: &Response<B>) -> Option<Duration> {
    let text = |name| response.headers().get(name)?.to_str().ok().map(str::trim);
    let asked = text(RETRY_AFTER)?;
    if let Ok(seconds) = asked.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text: &str| rfc2822::DateTimeParser::new().parse_timestamp(text).ok();
    let wait = date(asked)?.duration_since(date(text(DATE)?)?);
    Some(wait.try_into().unwrap_or_default())
}

/// What a `Status` object says, or the beginning of whatever else the body is.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Status {
        message: String,
    }
    match serde_json::from_slice::<Status>(body) {
        Ok(status) => status.message,
        Err(_) => String::from_utf8_lossy(body).chars().take(200).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_without_a_scheme_are_what_kubernetes_clients_take_them_for() {
        for (address, tls, expected) in [
            ("https://192.0.2.1:6443", Tls::Unknown, "https://192.0.2.1:6443/"),
            ("http://192.0.2.1:8080", Tls::Configured, "http://192.0.2.1:8080/"),
            ("https://rancher/k8s/clusters/c-1", Tls::Unknown, "https://rancher/k8s/clusters/c-1"),
            ("192.0.2.1:6443", Tls::Configured, "https://192.0.2.1:6443/"),
            ("192.0.2.1", Tls::Configured, "https://192.0.2.1/"),
            ("[2001:db8::1]:6443", Tls::Configured, "https://[2001:db8::1]:6443/"),
            ("control-plane:8080/", Tls::Unknown, "http://control-plane:8080/"),
        ] {
            let url = server_url(address, tls, String::new).unwrap();
            assert_eq!(url.to_string(), expected, "{address} {tls:?}");
        }
    }

    #[test]
    fn what_is_no_address_is_told_with_who_named_it() {
        for (address, why) in [
            ("", "empty"),
            ("https://", "empty"),
            ("ftp://192.0.2.1", "ftp is neither https nor http"),
            ("192.0.2.1/api", "with a path it needs a scheme"),
            ("2001:db8::1", "invalid"),
            ("https://a b", "invalid"),
        ] {
            let error = master_url(address, Tls::Configured).unwrap_err().to_string();
            let begin = format!("--master: {address:?} is not the address of an API server: ");
            assert!(error.starts_with(&begin) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn certificates_in_a_kubeconfig_mean_tls() {
        for (cluster, user, expected) in [
            ("server: x", "token: x", Tls::Unknown),
            ("insecure-skip-tls-verify: false", "token: x", Tls::Unknown),
            ("insecure-skip-tls-verify: true", "token: x", Tls::Configured),
            ("certificate-authority: x", "token: x", Tls::Configured),
            ("certificate-authority-data: eA==", "token: x", Tls::Configured),
            ("server: x", "client-certificate: x", Tls::Configured),
        ] {
            let yaml = format!(
                "clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
            );
            let kubeconfig = Kubeconfig::from_yaml(&yaml).unwrap();
            assert_eq!(tls(&kubeconfig), expected, "{yaml}");
        }
    }

    #[test]
    fn the_server_may_say_how_long_to_wait_in_two_ways() {
        let now = ("date", "Wed, 21 Oct 2015 07:28:00 GMT");
        check(&[("retry-after", "7")], Some(7));
        check(&[("retry-after", "Wed, 21 Oct 2015 07:29:30 GMT"), now], Some(90));
        check(&[("retry-after", "Wed, 21 Oct 2015 07:27:00 GMT"), now], Some(0));
        check(&[("retry-after", "Wed, 21 Oct 2015 07:29:30 GMT")], None);
        check(&[("retry-after", "soon"), now], None);
        check(&[("retry-after", "-1"), now], None);
        check(&[now], None);
    }

    #[track_caller]
    fn check(headers: &[(&'static str, &'static str)], seconds: Option<u64>) {
        let mut response = Response::new(());
        for (name, value) in headers {
            response.headers_mut().insert(*name, HeaderValue::from_static(value));
        }
        assert_eq!(retry_after(&response), seconds.map(Duration::from_secs), "{headers:?}");
    }
}
