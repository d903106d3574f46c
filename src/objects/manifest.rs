//! Kubernetes objects from text: YAML documents separated by `---`, JSON, and the `List` kinds that kubectl prints.
//!
//! One bad document does not spoil the others: documents are separated before they are parsed. YAML reserves `---`
//! at the beginning of a line for that, even inside texts, so looking for such lines is enough.

use serde::Deserialize;
use serde_json::Value;

use super::lenient::Field;
use super::raw;

/// Longest text in bytes; some 30,000 Services and their slices as kubectl prints them are half of it.
pub const TEXT_LIMIT: usize = 256 << 20;

/// Nodes that aliases may multiply into. The text's own nodes are bounded by its length.
const ALIAS_LIMIT: usize = 100_000;

/// An object of a kind that is used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Service(raw::Service),
    EndpointSlice(raw::EndpointSlice),
    Node(raw::Node),
    ServiceCidr(raw::ServiceCidr),
}

/// A document, or an item of a list, that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("document {document}, line {line}: {message}")]
pub struct BadDocument {
    /// Counted from 1; empty documents do not count.
    pub document: usize,
    /// Line of the text, counted from 1, where the mistake is or the document begins.
    pub line: usize,
    pub message: String,
}

/// What a text holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    pub objects: Vec<Result<Object, BadDocument>>,
    /// Objects of kinds that are not used here.
    pub ignored: usize,
}

/// Reads all documents of a text.
pub fn documents(text: &str) -> Manifest {
    let mut manifest = Manifest::default();
    if text.len() > TEXT_LIMIT {
        let message = format!("{} bytes are more than the {TEXT_LIMIT} that are read", text.len());
        manifest.objects.push(Err(BadDocument { document: 1, line: 1, message }));
        return manifest;
    }
    for (number, chunk) in (1..).zip(chunks(text.trim_start_matches('\u{feff}'))) {
        let place = Place { document: number, line: chunk.line };
        match chunk.is_json() {
            true => read_json(&chunk, place, &mut manifest),
            false => read_yaml(&chunk, place, &mut manifest),
        }
    }
    manifest
}

/// One document of a text.
struct Chunk<'a> {
    text: &'a str,
    /// Where it begins in the whole text, counted from 1.
    line: usize,
}

impl Chunk<'_> {
    /// Only JSON begins with a brace here: kubectl decides likewise.
    fn is_json(&self) -> bool {
        self.text.trim_start().starts_with('{')
    }
}

#[derive(Clone, Copy)]
struct Place {
    document: usize,
    line: usize,
}

impl Place {
    /// An error in the document's line `line`, counted from 1, or in an unknown one.
    fn bad(self, line: Option<usize>, message: impl ToString) -> BadDocument {
        let line = self.line + line.map_or(0, |it| it.saturating_sub(1));
        // Parsers quote their input; control characters and novels stay out of the log.
        let message = super::report::one_line(&message.to_string());
        BadDocument { document: self.document, line, message }
    }
}

/// Splits at lines that begin with `---`; what follows it on the line belongs to the new document.
fn chunks(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut begin, mut begin_line, mut at) = (0, 1, 0);
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let separator = line
            .strip_prefix("---")
            .filter(|it| it.is_empty() || it.starts_with([' ', '\t', '\r', '\n']));
        if separator.is_some() {
            chunks.push(Chunk { text: text.get(begin..at).unwrap_or(""), line: begin_line });
            (begin, begin_line) = (at + 3, number);
        }
        at += line.len();
    }
    chunks.push(Chunk { text: text.get(begin..).unwrap_or(""), line: begin_line });
    chunks.retain(|it| !is_blank(it.text));
    chunks
}

/// Nothing but comments, directives and document ends.
fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        line.trim().is_empty()
            || line.trim_start().starts_with('#')
            || line.starts_with(['%'])
            || line.trim_end() == "..."
    })
}

/// JSON may hold several objects one after the other, as `kubectl ... -o json` in a loop writes them.
fn read_json(chunk: &Chunk<'_>, place: Place, manifest: &mut Manifest) {
    for value in serde_json::Deserializer::from_str(chunk.text).into_iter::<Value>() {
        match value {
            Ok(value) => read_object(value, None, place, manifest),
            Err(error) => manifest.objects.push(Err(place.bad(Some(error.line()), error))),
        }
    }
}

fn read_yaml(chunk: &Chunk<'_>, place: Place, manifest: &mut Manifest) {
    match serde_saphyr::from_str_with_options::<Value>(chunk.text, options(chunk.text.len())) {
        Ok(value) => read_object(value, None, place, manifest),
        Err(error) => {
            let line = error.location().and_then(|it| usize::try_from(it.line()).ok());
            manifest.objects.push(Err(place.bad(line, error)));
        }
    }
}

/// Limits for hostile input: nothing may grow beyond the length of the text, nor nest deeply.
fn options(length: usize) -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 2 * length + ALIAS_LIMIT,
            max_nodes: length + ALIAS_LIMIT,
            max_total_scalar_bytes: length + 1024 * ALIAS_LIMIT,
            max_depth: 64,
            max_documents: 1,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ALIAS_LIMIT,
        },
        with_snippet: false,
    }
}

/// `listed`: the kind of a list's items, which may leave out their own.
fn read_object(value: Value, listed: Option<(&str, &str)>, place: Place, manifest: &mut Manifest) {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let (mut version, mut kind) = (text("apiVersion"), text("kind"));
    if let (true, Some((of, item))) = (kind.is_empty(), listed) {
        (version, kind) = (of.to_owned(), item.to_owned());
    }
    if !value.is_object() || kind.is_empty() {
        let message = "not a Kubernetes object: apiVersion and kind are missing";
        return manifest.objects.push(Err(place.bad(None, message)));
    }
    match (version.as_str(), kind.as_str()) {
        ("v1", "Service") => {
            manifest.objects.push(read(value, place).map(in_namespace).map(Object::Service))
        }
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            manifest.objects.push(read(value, place).map(in_namespace).map(Object::EndpointSlice));
        }
        ("v1", "Node") => manifest.objects.push(read(value, place).map(Object::Node)),
        ("networking.k8s.io/v1" | "networking.k8s.io/v1beta1", "ServiceCIDR") => {
            manifest.objects.push(read(value, place).map(Object::ServiceCidr));
        }
        (version, kind)
            if listed.is_none() && kind.ends_with("List") && value.get("items").is_some() =>
        {
            read_list(value, version, kind, place, manifest);
        }
        _ => manifest.ignored += 1,
    }
}

/// Lists do not nest: an item that is a list counts as of a kind that is not ours.
fn read_list(mut list: Value, version: &str, kind: &str, place: Place, manifest: &mut Manifest) {
    let item = (version, kind.strip_suffix("List").unwrap_or(kind));
    match list.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => {
            items.into_iter().for_each(|it| read_object(it, Some(item), place, manifest))
        }
        Some(Value::Null) | None => (),
        Some(_) => manifest.objects.push(Err(place.bad(None, "items is no list"))),
    }
}

fn read<T: for<'de> Deserialize<'de>>(value: Value, place: Place) -> Result<T, BadDocument> {
    serde_json::from_value(value).map_err(|error| place.bad(None, error))
}

/// kubectl puts an object without namespace into "default".
fn in_namespace<T: Namespaced>(mut object: T) -> T {
    let namespace = &mut object.meta().namespace;
    if *namespace == Field::Absent {
        *namespace = Field::Given("default".to_owned());
    }
    object
}

trait Namespaced {
    fn meta(&mut self) -> &mut raw::Meta;
}

impl Namespaced for raw::Service {
    fn meta(&mut self) -> &mut raw::Meta {
        &mut self.metadata
    }
}

impl Namespaced for raw::EndpointSlice {
    fn meta(&mut self) -> &mut raw::Meta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_of_all_kinds() {
        let text = "\
%YAML 1.2
# Comments are no documents.
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: ns}
--- # the next one
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: b
...
---
---
{\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {\"name\": \"c\"}}
{\"apiVersion\": \"networking.k8s.io/v1\", \"kind\": \"ServiceCIDR\", \"metadata\": {\"name\": \"d\"}}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: foreign}
---
apiVersion: v1
kind: ConfigMap
data: {text: \"--- no separator\"}
";
        check(text, "Service ns/a; EndpointSlice default/b; Node /c; ServiceCidr /d; ignored 2");
        check(
            &text.replace('\n', "\r\n"),
            "Service ns/a; EndpointSlice default/b; Node /c; ServiceCidr /d; ignored 2",
        );
        check(
            &format!("\u{feff}{text}"),
            "Service ns/a; EndpointSlice default/b; Node /c; ServiceCidr /d; ignored 2",
        );
    }

    #[test]
    fn empty_texts_hold_nothing() {
        for text in ["", "\n", "---", "---\n---\n", "# nothing\n", "...\n"] {
            check(text, "ignored 0");
        }
    }

    #[test]
    fn lists() {
        let items = "items:\n- {apiVersion: v1, kind: Service, metadata: {name: a}}\n- {kind: Pod, apiVersion: v1}\n";
        check(&format!("apiVersion: v1\nkind: List\n{items}"), "Service default/a; ignored 1");
        let json = r#"{"apiVersion": "v1", "kind": "ServiceList", "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]}"#;
        check(json, "Service default/a; Service default/b; ignored 0");
        let json = r#"{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "items": [{"metadata": {"name": "a"}}]}"#;
        check(json, "EndpointSlice default/a; ignored 0");
        check(r#"{"apiVersion": "v1", "kind": "PodList", "items": [{}, {}]}"#, "ignored 2");
        check(r#"{"apiVersion": "v1", "kind": "List", "items": null}"#, "ignored 0");
        check(
            "apiVersion: v1\nkind: List\nitems: 3\n",
            "document 1, line 1: items is no list; ignored 0",
        );
        check(
            "apiVersion: v1\nkind: List\nitems: [7]\n",
            "document 1, line 1: not a Kubernetes object: apiVersion and kind are missing; ignored 0",
        );
    }

    #[test]
    fn one_bad_document_does_not_spoil_the_others() {
        let good = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n";
        for bad in [
            "key: [1,\n",
            "\"unclosed\n",
            "a: b: c\n",
            "\tx: 1\n",
            "a: 1\na: 2\n",
            "*unknown\n",
            "{\"a\": }\n",
            "just text\n",
            "&a [*a]\n",
        ] {
            let found = documents(&format!("{good}---\n{bad}---\n{good}"));
            let shapes: Vec<bool> = found.objects.iter().map(Result::is_ok).collect();
            assert_eq!(shapes, [true, false, true], "{bad:?}: {found:#?}");
            let error = found.objects[1].as_ref().unwrap_err();
            assert_eq!(error.document, 2, "{bad:?}");
            assert!((4..=6).contains(&error.line), "{bad:?}: {error}");
            assert!(!error.message.contains('\n'), "{bad:?}: {error}");
        }
    }

    #[test]
    fn an_alias_bomb_is_one_error() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..30 {
            let previous = format!("*a{}", n - 1);
            text += &format!("a{n}: &a{n} [{}]\n", [previous.as_str(); 10].join(", "));
        }
        let found = documents(&text);
        assert_eq!(found.objects.len(), 1);
        assert!(found.objects[0].is_err());
    }

    #[test]
    fn deep_nesting_is_one_error() {
        for text in [
            "[".repeat(100_000),
            "- ".repeat(100_000),
            "{\"a\":".repeat(100_000),
            "a:\n".to_owned() + &"{a: ".repeat(1000),
        ] {
            assert!(matches!(documents(&text).objects[..], [Err(_)]));
        }
    }

    #[test]
    fn ten_megabytes_of_annotations_are_dropped() {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  annotations:\n    big: {}\n",
            "x".repeat(10 << 20)
        );
        check(&text, "Service default/a; ignored 0");
    }

    #[test]
    fn large_lists_are_read() {
        let item =
            "- {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}\n";
        let found =
            documents(&format!("apiVersion: v1\nkind: List\nitems:\n{}", item.repeat(20_000)));
        assert_eq!(
            found.objects.iter().filter(|it| it.is_ok()).count(),
            20_000,
            "{:?}",
            found.objects.first()
        );
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let found = documents(text);
        let shown = found.objects.iter().map(|it| match it {
            Ok(Object::Service(it)) => {
                format!("Service {}/{}", it.metadata.namespace.text(), it.metadata.name.text())
            }
            Ok(Object::EndpointSlice(it)) => format!(
                "EndpointSlice {}/{}",
                it.metadata.namespace.text(),
                it.metadata.name.text()
            ),
            Ok(Object::Node(it)) => format!("Node /{}", it.metadata.name.text()),
            Ok(Object::ServiceCidr(it)) => format!("ServiceCidr /{}", it.metadata.name.text()),
            Err(error) => error.to_string(),
        });
        let shown: Vec<String> = shown.chain([format!("ignored {}", found.ignored)]).collect();
        assert_eq!(shown.join("; "), expected, "{text}");
    }
}
