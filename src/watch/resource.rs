//! The four resources, where they are found, and which of their objects are wanted.

use std::fmt;
use std::sync::Arc;

use form_urlencoded::Serializer;
use http::Request;

use crate::model::Resource;

/// What a role has to allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    pub group: &'static str,
    pub resources: &'static [&'static str],
    pub verbs: &'static [&'static str],
}

/// What is asked of the API server; a test compares `deploy/base/rbac.yaml` with it, and one the requests.
pub const REQUIRED_ROLE: [Permission; 4] = [
    Permission { group: "", resources: &["services", "nodes"], verbs: &["list", "watch"] },
    Permission {
        group: "discovery.k8s.io",
        resources: &["endpointslices"],
        verbs: &["list", "watch"],
    },
    Permission {
        group: "networking.k8s.io",
        resources: &["servicecidrs"],
        verbs: &["list", "watch"],
    },
    Permission { group: "events.k8s.io", resources: &["events"], verbs: &["create"] },
];

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = if self.group.is_empty() { "core" } else { self.group };
        let (verbs, resources) = (self.verbs.join(" and "), self.resources.join(" and "));
        write!(f, "{verbs} on {resources} ({group})")
    }
}

/// Objects per page of a list.
const PAGE: &str = "500";

/// One resource as it is asked for.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) resource: Resource,
    path: &'static str,
    labels: Option<&'static str>,
    fields: Option<String>,
    /// Older servers and roles may lack it; then it counts as empty and all the rest works.
    pub(super) optional: bool,
}

/// Which state a list shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Whatever the server has in its cache. The first list asks so, as kube-proxy's does, because after a power
    /// failure all nodes ask at once.
    Cached,
    /// The newest. A list after an expired version asks so: an older state must not replace what we know.
    Newest,
}

impl Spec {
    pub(super) fn of(resource: Resource, node: &Arc<str>) -> Spec {
        let (path, labels, fields) = match resource {
            Resource::Service => (
                "/api/v1/services",
                Some("!service.kubernetes.io/service-proxy-name"),
                Some("spec.clusterIP!=None".to_owned()),
            ),
            Resource::EndpointSlice => (
                "/apis/discovery.k8s.io/v1/endpointslices",
                Some("!service.kubernetes.io/headless"),
                None,
            ),
            Resource::Node => ("/api/v1/nodes", None, Some(format!("metadata.name={node}"))),
            Resource::ServiceCidr => ("/apis/networking.k8s.io/v1/servicecidrs", None, None),
        };
        Spec { resource, path, labels, fields, optional: resource == Resource::ServiceCidr }
    }

    /// A page of a list.
    pub(super) fn list(&self, freshness: Freshness, page: Option<&str>) -> Request<Vec<u8>> {
        self.request(|query| {
            query.append_pair("limit", PAGE);
            match (page, freshness) {
                (Some(page), _) => {
                    query.append_pair("continue", page);
                }
                (None, Freshness::Cached) => {
                    query.append_pair("resourceVersion", "0");
                }
                (None, Freshness::Newest) => (),
            }
        })
    }

    /// One object as it is now, for the sake of the version that comes with it.
    pub(super) fn newest(&self) -> Request<Vec<u8>> {
        self.request(|query| {
            query.append_pair("limit", "1");
        })
    }

    /// A watch that begins with everything there is, in its newest state.
    pub(super) fn stream(&self, seconds: u64) -> Request<Vec<u8>> {
        self.request(|query| {
            watch(query, seconds);
            query.append_pair("sendInitialEvents", "true");
            query.append_pair("resourceVersionMatch", "NotOlderThan");
        })
    }

    /// A watch from this version on.
    pub(super) fn watch(&self, version: &str, seconds: u64) -> Request<Vec<u8>> {
        self.request(|query| {
            watch(query, seconds);
            query.append_pair("resourceVersion", version);
        })
    }

    fn request(&self, fill: impl FnOnce(&mut Serializer<'_, String>)) -> Request<Vec<u8>> {
        let start = format!("{}?", self.path);
        let end = start.len();
        let mut query = Serializer::for_suffix(start, end);
        if let Some(labels) = self.labels {
            query.append_pair("labelSelector", labels);
        }
        if let Some(fields) = &self.fields {
            query.append_pair("fieldSelector", fields);
        }
        fill(&mut query);
        let uri = query.finish();
        let mut request = Request::new(Vec::new());
        // A form-encoded query is a valid URI; a node name with strange characters was encoded.
        *request.uri_mut() = uri.parse().expect("an encoded query on a constant path is a URI");
        request
    }
}

fn watch(query: &mut Serializer<'_, String>, seconds: u64) {
    query.append_pair("watch", "true");
    query.append_pair("allowWatchBookmarks", "true");
    query.append_pair("timeoutSeconds", &seconds.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_those_of_the_reference() {
        check(
            Resource::Service,
            "/api/v1/services?labelSelector=%21service.kubernetes.io%2Fservice-proxy-name\
             &fieldSelector=spec.clusterIP%21%3DNone",
        );
        check(
            Resource::EndpointSlice,
            "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=%21service.kubernetes.io%2Fheadless",
        );
        check(Resource::Node, "/api/v1/nodes?fieldSelector=metadata.name%3Dn1");
        check(Resource::ServiceCidr, "/apis/networking.k8s.io/v1/servicecidrs?");
    }

    /// Whoever adds a request adds what the role needs for it.
    #[test]
    fn every_request_is_in_the_role() {
        let node = "n1".into();
        for resource in
            [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr]
        {
            let request = Spec::of(resource, &node).list(Freshness::Newest, None);
            let mut parts = request.uri().path().rsplit('/');
            let (plural, _version, group) =
                (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
            let group = if group == "api" { "" } else { group };
            let permission = REQUIRED_ROLE.iter().find(|it| it.group == group).unwrap();
            assert!(permission.resources.contains(&plural), "{plural}");
            assert_eq!(permission.verbs, ["list", "watch"]);
        }
        assert_eq!(REQUIRED_ROLE[0].to_string(), "list and watch on services and nodes (core)");
    }

    #[track_caller]
    fn check(resource: Resource, start: &str) {
        let spec = Spec::of(resource, &"n1".into());
        let and = if start.ends_with('?') { "" } else { "&" };
        let cases = [
            (spec.list(Freshness::Cached, None), "limit=500&resourceVersion=0"),
            (spec.list(Freshness::Newest, None), "limit=500"),
            (spec.newest(), "limit=1"),
            (spec.list(Freshness::Cached, Some("a/b")), "limit=500&continue=a%2Fb"),
            (
                spec.watch("7", 300),
                "watch=true&allowWatchBookmarks=true&timeoutSeconds=300&resourceVersion=7",
            ),
            (
                spec.stream(300),
                "watch=true&allowWatchBookmarks=true&timeoutSeconds=300&sendInitialEvents=true\
                 &resourceVersionMatch=NotOlderThan",
            ),
        ];
        for (request, end) in cases {
            assert_eq!(request.uri().to_string(), format!("{start}{and}{end}"));
        }
    }
}
