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

/// The object of a line that says it exists, if the line is as API servers write it. What is left after the object's text
/// is cut out is not read, and the text itself may be no JSON: both show when it is read as one object.
pub(in crate::watch) fn written_object(line: &[u8]) -> Option<&[u8]> {
    let text = str::from_utf8(line).ok()?;
    let rest = text.strip_prefix(r#"{"type":""#)?;
    let rest = rest.strip_prefix("ADDED").or_else(|| rest.strip_prefix("MODIFIED"))?;
    let object = rest.strip_prefix(r#"","object":"#)?.strip_suffix('}')?;
    Some(object.as_bytes())
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn lines_as_api_servers_write_them() {
        let object = |line: &'static str| written_object(line.as_bytes());
        assert_eq!(object(r#"{"type":"ADDED","object":{"a":1}}"#), Some(&br#"{"a":1}"#[..]));
        assert_eq!(object(r#"{"type":"MODIFIED","object":{}}"#), Some(&b"{}"[..]));
        for line in [
            r#"{"type":"DELETED","object":{}}"#,
            r#"{"object":{},"type":"ADDED"}"#,
            r#"{"type":"ADDED", "object":{}}"#,
            r#"{"type":"ADDED","object":{}"#,
            "",
        ] {
            let read = object(line).map(serde_json::from_slice::<Value>);
            assert!(read.is_none_or(|it| it.is_err()), "{line}");
        }
    }

    proptest! {
        /// What is cut out and can be read is what a reader of the whole line finds.
        #[test]
        fn a_cut_out_object_is_the_events(middle in r#"[{}\[\]",:ab1 ]{0,12}"#) {
            let line = format!(r#"{{"type":"ADDED","object":{{{middle}}}"#);
            if let Some(object) = written_object(line.as_bytes())
                && let Ok(cut) = serde_json::from_slice::<Value>(object)
            {
                let event: Event<'_> = serde_json::from_str(&line).unwrap();
                prop_assert_eq!(event.kind.as_ref(), "ADDED");
                prop_assert_eq!(serde_json::from_str::<Value>(event.object.get()).unwrap(), cut);
            }
        }
    }
}
