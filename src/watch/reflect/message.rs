//! What the API server sends, as far as a watch looks into it.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// A line of a watch.
#[derive(Deserialize)]
pub(in crate::watch) struct Event<'a> {
    #[serde(rename = "type", borrow)]
    pub(in crate::watch) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(in crate::watch) object: &'a RawValue,
}

/// What is read of a list besides its items, of a bookmark, and of an object for its version.
#[derive(Deserialize)]
pub(in crate::watch) struct List {
    pub(in crate::watch) metadata: ListMetadata,
}

#[derive(Deserialize)]
pub(in crate::watch) struct ListMetadata {
    #[serde(rename = "resourceVersion", default)]
    pub(in crate::watch) version: String,
    #[serde(rename = "continue", default)]
    pub(in crate::watch) next: Option<String>,
    #[serde(default)]
    pub(in crate::watch) annotations: Option<BookmarkAnnotations>,
}

#[derive(Deserialize)]
pub(in crate::watch) struct BookmarkAnnotations {
    #[serde(rename = "k8s.io/initial-events-end")]
    pub(in crate::watch) initial_events_end: Option<String>,
}

#[derive(Deserialize)]
pub(in crate::watch) struct Status {
    pub(in crate::watch) code: u16,
    #[serde(default)]
    pub(in crate::watch) message: String,
}
