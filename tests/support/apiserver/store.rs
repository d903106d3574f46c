//! Objects, their history, and selectors.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

/// All objects, and what happened to them since the last compaction.
#[derive(Default)]
pub(crate) struct Store {
    pub(super) version: u64,
    /// Versions below are forgotten.
    pub(super) oldest: u64,
    objects: BTreeMap<&'static str, BTreeMap<Key, Arc<Object>>>,
    history: Vec<Arc<Event>>,
}

/// Namespace and name.
pub(super) type Key = (String, String);

/// One version of one object, serialised once.
pub(crate) struct Object {
    pub(super) json: Bytes,
    labels: BTreeMap<String, String>,
    fields: BTreeMap<&'static str, String>,
}

/// What happened: from one version of an object to the next.
pub(super) struct Event {
    pub(super) version: u64,
    plural: &'static str,
    before: Option<Arc<Object>>,
    after: Option<Arc<Object>>,
}

/// The history does not hold the version that a watch is at: the status that says so.
pub(super) struct Unknown {
    pub(super) code: u16,
    pub(super) message: &'static str,
}

impl Store {
    pub(super) fn put(&mut self, mut object: Value) -> u64 {
        let plural = plural(&object);
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
        let key = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        let after = Arc::new(Object::new(&object));
        let before = self.objects.entry(plural).or_default().insert(key, after.clone());
        self.history.push(Arc::new(Event {
            version: self.version,
            plural,
            before,
            after: Some(after),
        }));
        self.version
    }

    pub(super) fn delete(
        &mut self,
        plural: &'static str,
        namespace: &str,
        name: &str,
    ) -> Option<u64> {
        let key = (namespace.to_owned(), name.to_owned());
        let before = self.objects.entry(plural).or_default().remove(&key)?;
        self.version += 1;
        let event = Event { version: self.version, plural, before: Some(before), after: None };
        self.history.push(Arc::new(event));
        Some(self.version)
    }

    pub(super) fn compact(&mut self) {
        // Everything so far, so that even a watch from the newest version is too old.
        self.version += 1;
        self.oldest = self.version;
        self.history.clear();
    }

    pub(super) fn restore(&mut self, version: u64) {
        self.version = version;
        self.oldest = 0;
        self.history.clear();
    }

    pub(super) fn select(
        &self,
        plural: &str,
        labels: &str,
        fields: &str,
    ) -> impl Iterator<Item = &Arc<Object>> {
        let objects = self.objects.get(plural).into_iter().flat_map(BTreeMap::values);
        objects.filter(move |it| it.matches(labels, fields))
    }

    /// A page of matching objects after `last`, with the key of its last object if there is more.
    pub(super) fn page(
        &self,
        plural: &str,
        (labels, fields): (&str, &str),
        last: Option<&Key>,
        limit: usize,
    ) -> (Vec<Arc<Object>>, Option<Key>) {
        let Some(objects) = self.objects.get(plural) else { return (Vec::new(), None) };
        let from = match last {
            Some(key) => std::ops::Bound::Excluded(key.clone()),
            None => std::ops::Bound::Unbounded,
        };
        let mut matching = objects
            .range((from, std::ops::Bound::Unbounded))
            .filter(|(_, object)| object.matches(labels, fields));
        let page: Vec<_> = matching.by_ref().take(limit).collect();
        let next = matching.next().and(page.last()).map(|(key, _)| (*key).clone());
        (page.into_iter().map(|(_, object)| object.clone()).collect(), next)
    }

    /// Whether there was such a version.
    pub(super) fn has_reached(&self, version: u64) -> bool {
        version <= self.version
    }

    /// Lines for everything after `version`, at most `limit` events of the history, and the version reached.
    pub(super) fn since(
        &self,
        version: u64,
        plural: &str,
        (labels, fields): (&str, &str),
        limit: usize,
    ) -> Result<(Vec<Bytes>, u64), Unknown> {
        if version < self.oldest {
            return Err(Unknown { code: 410, message: "too old resource version" });
        }
        // A version of the future is no error to a watch: there is nothing to tell until it is reached.
        let start = self.history.partition_point(|it| it.version <= version);
        let events = &self.history[start..self.history.len().min(start + limit)];
        let lines = events
            .iter()
            .filter(|it| it.plural == plural)
            .filter_map(|it| it.line(labels, fields))
            .collect();
        Ok((lines, events.last().map_or(version, |it| it.version)))
    }
}

impl Object {
    fn new(object: &Value) -> Object {
        let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
        let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
        Object {
            json: object.to_string().into(),
            labels: labels.map(|(key, value)| (key.clone(), text(value))).collect(),
            fields: BTreeMap::from([
                ("metadata.name", text(&object["metadata"]["name"])),
                ("metadata.namespace", text(&object["metadata"]["namespace"])),
                ("spec.clusterIP", text(&object["spec"]["clusterIP"])),
            ]),
        }
    }

    fn matches(&self, labels: &str, fields: &str) -> bool {
        let label = |key: &str| self.labels.get(key).map(String::as_str);
        let field = |key: &str| Some(self.fields.get(key).expect("a known field").as_str());
        selects(labels, label) && selects(fields, field)
    }
}

/// Evaluates `!key`, `key`, `key=value`, `key!=value`, joined by commas.
fn selects<'a>(selector: &str, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
    selector.split(',').filter(|it| !it.is_empty()).all(|term| {
        if let Some((key, value)) = term.split_once("!=") {
            value_of(key) != Some(value)
        } else if let Some((key, value)) = term.split_once('=') {
            value_of(key) == Some(value)
        } else if let Some(key) = term.strip_prefix('!') {
            value_of(key).is_none()
        } else {
            value_of(term).is_some()
        }
    })
}

impl Event {
    /// As a watch with these selectors sees it: moving out of the selection is a deletion.
    fn line(&self, labels: &str, fields: &str) -> Option<Bytes> {
        let seen = |it: &Option<Arc<Object>>| it.clone().filter(|it| it.matches(labels, fields));
        match (seen(&self.before), seen(&self.after)) {
            (None, None) => None,
            (None, Some(after)) => Some(line("ADDED", &after.json)),
            (Some(_), Some(after)) => Some(line("MODIFIED", &after.json)),
            (Some(before), None) => {
                let mut last: Value = serde_json::from_slice(&before.json).unwrap();
                last["metadata"]["resourceVersion"] = self.version.to_string().into();
                Some(line("DELETED", last.to_string().as_bytes()))
            }
        }
    }
}

/// One line of a watch.
pub(super) fn line(kind: &str, object: &[u8]) -> Bytes {
    let mut line = format!("{{\"type\":\"{kind}\",\"object\":").into_bytes();
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.into()
}

fn plural(object: &Value) -> &'static str {
    match object["kind"].as_str() {
        Some("Service") => "services",
        Some("EndpointSlice") => "endpointslices",
        Some("Node") => "nodes",
        Some("ServiceCIDR") => "servicecidrs",
        kind => panic!("the simulated API server has no {kind:?}"),
    }
}
