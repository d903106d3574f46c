//! What goes wrong between us and the API server, in words that say what to do.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use super::connect::Unconnected;
use super::resource::REQUIRED_ROLE;

/// Kinds of failures: the label of the error counters, and what the watchers decide by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// No connection: refused, unreachable, name not resolved.
    Connect,
    /// The connection was made, but the certificates do not fit.
    Tls,
    /// No response within the time allowed, or silence in the middle of one.
    Silence,
    /// A response broke off, or the connection did.
    Broken,
    /// What arrived is not what an API server sends.
    Garbage,
    /// HTTP 401.
    Unauthorized,
    /// HTTP 403.
    Forbidden,
    /// HTTP 404: the server does not know this resource.
    NotFound,
    /// HTTP 410: the version asked for is no longer (or not yet) known; list again.
    Gone,
    /// HTTP 429.
    TooManyRequests,
    /// Other 4xx: the server understands us and refuses.
    Refused,
    /// HTTP 5xx.
    ServerError,
}

impl Trouble {
    pub const ALL: [Trouble; 12] = [
        Trouble::Connect,
        Trouble::Tls,
        Trouble::Silence,
        Trouble::Broken,
        Trouble::Garbage,
        Trouble::Unauthorized,
        Trouble::Forbidden,
        Trouble::NotFound,
        Trouble::Gone,
        Trouble::TooManyRequests,
        Trouble::Refused,
        Trouble::ServerError,
    ];

    /// Label value of metrics.
    pub fn label(self) -> &'static str {
        match self {
            Trouble::Connect => "connect",
            Trouble::Tls => "tls",
            Trouble::Silence => "silence",
            Trouble::Broken => "broken",
            Trouble::Garbage => "garbage",
            Trouble::Unauthorized => "unauthorized",
            Trouble::Forbidden => "forbidden",
            Trouble::NotFound => "not-found",
            Trouble::Gone => "gone",
            Trouble::TooManyRequests => "too-many-requests",
            Trouble::Refused => "refused",
            Trouble::ServerError => "server-error",
        }
    }
}

/// A request to the API server that did not work out.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{doing}: {what}{}", advice(*.trouble))]
pub struct ApiError {
    pub trouble: Trouble,
    /// What was tried, with the address.
    pub doing: String,
    /// What happened, without advice.
    pub what: String,
    /// How long the server asks to wait (`Retry-After`).
    pub retry_after: Option<Duration>,
}

impl ApiError {
    pub(super) fn new(trouble: Trouble, doing: &str, what: impl Into<String>) -> ApiError {
        ApiError { trouble, doing: doing.to_owned(), what: what.into(), retry_after: None }
    }

    /// An answer with an HTTP status of 400 or more, or an ERROR event of a watch with such a code.
    pub(super) fn answered(doing: &str, code: u16, message: &str) -> ApiError {
        let trouble = match code {
            401 => Trouble::Unauthorized,
            403 => Trouble::Forbidden,
            404 => Trouble::NotFound,
            410 => Trouble::Gone,
            429 => Trouble::TooManyRequests,
            // API servers send nobody elsewhere.
            300..=399 => Trouble::Garbage,
            // After a restore of etcd the server's versions are below ours. It says so with a 504, which would be
            // retried for ever: nothing but a new list helps, as with 410.
            500..=599 if message.contains("Too large resource version") => Trouble::Gone,
            500..=599 => Trouble::ServerError,
            _ => Trouble::Refused,
        };
        ApiError::new(trouble, doing, format!("the API server answered {code}: {message}"))
    }

    /// The connection could not be made or did not hold.
    pub(super) fn transport(doing: &str, error: &(dyn StdError + 'static)) -> ApiError {
        let unmade = chain(error).any(is_connect).then_some(Trouble::Connect);
        let trouble = chain(error).find_map(classify).or(unmade).unwrap_or(Trouble::Broken);
        let mut told: Vec<String> = Vec::new();
        for cause in chain(error).map(ToString::to_string) {
            let cause = cause.strip_prefix("ServiceError: ").unwrap_or(&cause).to_owned();
            // Layers repeat what the layer below said; say it once.
            if !told.iter().any(|it| it.contains(&cause)) {
                told.push(cause);
            }
        }
        ApiError::new(trouble, doing, told.join(": "))
    }
}

/// The error and its causes. Bounded, in case a foreign error names itself as its cause.
pub(super) fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let this = next?;
        // An io::Error passes for the error that it wraps and names only that one's cause; look inside.
        let wrapped = this.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner),
            None => this.source(),
        };
        Some(this)
    })
    .take(16)
}

fn classify(cause: &(dyn StdError + 'static)) -> Option<Trouble> {
    if cause.is::<rustls::Error>() {
        return Some(Trouble::Tls);
    }
    let kind = cause.downcast_ref::<io::Error>()?.kind();
    let unreachable = [
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::HostUnreachable,
        io::ErrorKind::NetworkUnreachable,
        io::ErrorKind::AddrNotAvailable,
    ];
    let timed_out = (kind == io::ErrorKind::TimedOut).then_some(Trouble::Silence);
    unreachable.contains(&kind).then_some(Trouble::Connect).or(timed_out)
}

fn is_connect(cause: &(dyn StdError + 'static)) -> bool {
    cause.is::<Unconnected>()
        || cause
            .downcast_ref::<hyper_util::client::legacy::Error>()
            .is_some_and(|it| it.is_connect())
}

fn advice(trouble: Trouble) -> String {
    let text = match trouble {
        Trouble::Connect => {
            "is the API server up, and is the address in the kubeconfig or --master right? In a cluster, \
             KUBERNETES_SERVICE_HOST is a Service address that needs a proxy to work; use --master or a kubeconfig"
        }
        Trouble::Tls => {
            "does certificate-authority in the kubeconfig belong to this API server, are the certificates still \
             valid, and is the node's clock right?"
        }
        Trouble::Unauthorized => {
            "the token or client certificate is not accepted; it is read anew from its file before the next attempt"
        }
        Trouble::Forbidden => {
            let all = REQUIRED_ROLE.map(|it| it.to_string()).join(", ");
            return format!(
                " (bind a ClusterRole to this user that allows {all}; Kubernetes' own is system:node-proxier)"
            );
        }
        Trouble::Silence => {
            "is the network in between dropping packets, or the API server overloaded?"
        }
        Trouble::Garbage => {
            "is that an API server, or does a proxy in between answer in its stead, with a login page perhaps?"
        }
        Trouble::Broken
        | Trouble::NotFound
        | Trouble::Gone
        | Trouble::TooManyRequests
        | Trouble::Refused
        | Trouble::ServerError => return String::new(),
    };
    format!(" ({text})")
}
