//! Whether the API server is reached through an HTTP proxy, and through which one.
//!
//! As client-go has it: `proxy-url` of the kubeconfig's cluster, else HTTPS_PROXY unless NO_PROXY names the server. kubeadm
//! hands these variables on to kube-proxy's Pods, so a drop-in has to know them. The proxy is asked to CONNECT; TLS is spoken
//! with the API server itself.

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;

/// A proxy that is asked to CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HttpProxy {
    /// With a host, without credentials.
    pub(super) address: Uri,
    /// For `Proxy-Authorization`.
    pub(super) authorization: Option<HeaderValue>,
}

/// A proxy was named that cannot be used. To go around it would be wrong, it may be the only way allowed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{named_by} names the proxy {proxy:?}, and only HTTP proxies (http://HOST:PORT) are supported; name one, list the API \
     server in NO_PROXY, or override the address with --master"
)]
pub struct UnusableProxy {
    named_by: String,
    /// Without credentials.
    proxy: String,
}

/// The proxy on the way to `server`. `in_kubeconfig` is the cluster's `proxy-url`, `variable` reads the environment.
pub(super) fn find(
    server: &Uri,
    in_kubeconfig: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<HttpProxy>, UnusableProxy> {
    if let Some(url) = in_kubeconfig.filter(|it| !it.is_empty()) {
        return parse("proxy-url in the kubeconfig", url).map(Some);
    }
    let first = |names: [&str; 2]| {
        let values = names.into_iter().filter_map(|name| Some((name.to_owned(), variable(name)?)));
        values.into_iter().find(|(_, value)| !value.is_empty())
    };
    let Some((name, url)) = first(["HTTPS_PROXY", "https_proxy"]) else { return Ok(None) };
    let (_, spared) = first(["NO_PROXY", "no_proxy"]).unwrap_or_default();
    if server.scheme_str() != Some("https") || is_loopback(server) {
        return Ok(None);
    }
    if spared.split(',').any(|it| it.trim() == "*") {
        return Ok(None);
    }
    // Any proxy does for the question whether NO_PROXY spares this server.
    let matcher = Matcher::builder().all("http://proxy").no(spared).build();
    if matcher.intercept(server).is_none() {
        return Ok(None);
    }
    parse(&format!("the variable {name}"), &url).map(Some)
}

/// Go's clients never ask a proxy for these.
fn is_loopback(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|it| it.is_loopback())
}

fn parse(named_by: &str, url: &str) -> Result<HttpProxy, UnusableProxy> {
    let matcher = Matcher::builder().all(url).build();
    let found = matcher.intercept(&Uri::from_static("https://server"));
    match found {
        Some(proxy) if proxy.uri().scheme_str() == Some("http") => Ok(HttpProxy {
            address: proxy.uri().clone(),
            authorization: proxy.basic_auth().cloned(),
        }),
        _ => {
            let shown = url.rsplit_once('@').map_or(url, |(_, host)| host);
            Err(UnusableProxy { named_by: named_by.to_owned(), proxy: shown.to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str = "https://192.0.2.1:6443";

    #[test]
    fn variables_name_it_unless_the_server_is_spared() {
        check(SERVER, None, &[], Ok(None));
        check(SERVER, None, &[("HTTPS_PROXY", "http://p:3128")], Ok(Some("http://p:3128/")));
        check(SERVER, None, &[("https_proxy", "p:3128")], Ok(Some("http://p:3128/")));
        check(SERVER, None, &[("HTTP_PROXY", "http://p:3128")], Ok(None));
        for spared in ["192.0.2.0/24", "10.0.0.0/8, 192.0.2.1", "*"] {
            let variables = [("HTTPS_PROXY", "http://p:3128"), ("NO_PROXY", spared)];
            check(SERVER, None, &variables, Ok(None));
        }
        for server in ["https://127.0.0.1:6443", "https://[::1]:6443", "https://localhost"] {
            check(server, None, &[("HTTPS_PROXY", "http://p:3128")], Ok(None));
        }
        check("http://192.0.2.1", None, &[("HTTPS_PROXY", "http://p:3128")], Ok(None));
    }

    #[test]
    fn the_kubeconfig_goes_first_and_asks_nobody() {
        let variables = [("HTTPS_PROXY", "http://p:3128"), ("NO_PROXY", "*")];
        check(SERVER, Some("http://q:1"), &variables, Ok(Some("http://q:1/")));
        check(SERVER, Some(""), &variables, Ok(None));
    }

    #[test]
    fn what_cannot_be_used_is_an_error_without_the_password() {
        for proxy in ["socks5://p:1080", "https://p:1", "http://a b"] {
            check(SERVER, Some(proxy), &[], Err(proxy));
        }
        let secret = [("HTTPS_PROXY", "socks5://me:secret@p:1080")];
        check(SERVER, None, &secret, Err("variable HTTPS_PROXY names the proxy \"p:1080\""));
        let found = find(&Uri::from_static(SERVER), Some("http://me:secret@p:1"), |_| None);
        let found = found.unwrap().unwrap();
        assert_eq!(found.address, "http://p:1/");
        assert_eq!(found.authorization.unwrap(), "Basic bWU6c2VjcmV0");
    }

    #[track_caller]
    fn check(
        server: &str,
        in_kubeconfig: Option<&str>,
        variables: &[(&str, &str)],
        expected: Result<Option<&str>, &str>,
    ) {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let found = find(&server.parse().unwrap(), in_kubeconfig, variable);
        match (found, expected) {
            (Ok(found), Ok(expected)) => {
                assert_eq!(found.map(|it| it.address.to_string()).as_deref(), expected);
            }
            (Err(error), Err(part)) => {
                let text = error.to_string();
                assert!(text.contains(part) && !text.contains("secret"), "{text}");
            }
            (found, _) => panic!("{found:?}"),
        }
    }
}
