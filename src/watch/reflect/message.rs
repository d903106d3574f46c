//! What the API server sends, as far as a watch looks into it.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// A line of a watch.
#[derive(Deserialize)]
pub(super) struct Event<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// What is read of a list besides its items, of a bookmark, and of an object for its version.
#[derive(Deserialize)]
pub(super) struct List {
    pub(super) metadata: ListMetadata,
}

#[derive(Deserialize)]
pub(super) struct ListMetadata {
    #[serde(rename = "resourceVersion", default)]
    pub(super) version: String,
    #[serde(rename = "continue", default)]
    pub(super) next: Option<String>,
    #[serde(default)]
    pub(super) annotations: Option<BookmarkAnnotations>,
}

#[derive(Deserialize)]
pub(super) struct BookmarkAnnotations {
    #[serde(rename = "k8s.io/initial-events-end")]
    pub(super) initial_events_end: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Status {
    pub(super) code: u16,
    #[serde(default)]
    pub(super) message: String,
}
