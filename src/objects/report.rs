//! Collects what is left out of one object.

use super::lenient::{Field, Items};
use super::raw::{List, Meta};
use super::{Interner, LIST_LIMIT};
use crate::model::{ObjectName, Resource, Skipped, Uid};

/// Skipped parts that are told one by one; a slice with thousands of bad endpoints has one cause, not thousands.
const TOLD: usize = 8;

/// The object that is being judged and what was found wrong with it.
pub(super) struct Report {
    resource: Resource,
    pub(super) name: ObjectName,
    uid: Option<Uid>,
    skipped: Vec<Skipped>,
    untold: usize,
}

impl Report {
    /// Fails if the object has no usable name: then there is nothing to apply, delete or refer to.
    pub(super) fn new(
        resource: Resource,
        meta: &Meta,
        interner: &mut Interner,
    ) -> Result<Report, Skipped> {
        let namespaced = matches!(resource, Resource::Service | Resource::EndpointSlice);
        let (namespace, name) = (meta.namespace.text(), meta.name.text());
        let uid = Uid::parse(meta.uid.text());
        let named = is_name(name, 253)
            && if namespaced { is_name(namespace, 63) } else { namespace.is_empty() };
        if !named {
            let shown = ObjectName::new(&excerpt(namespace), &excerpt(name));
            let message =
                "metadata.namespace and metadata.name do not name an object; it is left out"
                    .to_owned();
            return Err(Skipped { resource, name: shown, uid, reason: "invalid-name", message });
        }
        // Names of objects differ, sharing them would only cost; the cluster's state keeps each once.
        let name = ObjectName { namespace: interner.text(namespace), name: name.into() };
        Ok(Report { resource, name, uid, skipped: Vec::new(), untold: 0 })
    }

    /// Notes a part that is left out.
    pub(super) fn skip(&mut self, reason: &'static str, message: impl FnOnce() -> String) {
        match self.skipped.len() < TOLD {
            true => self.skipped.push(self.whole(reason, message())),
            false => self.untold += 1,
        }
    }

    /// The object as a whole cannot be used.
    pub(super) fn whole(&self, reason: &'static str, message: String) -> Skipped {
        let (resource, name, uid) = (self.resource, self.name.clone(), self.uid);
        Skipped { resource, name, uid, reason, message }
    }

    /// The value of an optional field; one of a wrong type is noted and counts as missing.
    pub(super) fn field<'a, T>(&mut self, path: &str, field: &'a Field<T>) -> Option<&'a T> {
        if field.is_wrong() {
            self.skip("wrong-type", || {
                format!("{path} has a value of the wrong type; it is ignored")
            });
        }
        field.given()
    }

    /// The elements of a list that are of the right type, with their positions.
    pub(super) fn list<'a, T>(&mut self, path: &str, list: &'a List<T>) -> Vec<(usize, &'a T)> {
        let elements = match self.field(path, list) {
            Some(Items { kept, truncated }) => {
                if *truncated {
                    self.skip("too-large", || format!("{path} is cut after {LIST_LIMIT} elements"));
                }
                kept.as_slice()
            }
            None => &[],
        };
        let mut usable = Vec::with_capacity(elements.len());
        for (index, element) in elements.iter().enumerate() {
            match element.given() {
                Some(element) => usable.push((index, element)),
                None => self.skip("wrong-type", || {
                    format!(
                        "{path}[{index}] is null or has a value of the wrong type; it is ignored"
                    )
                }),
            }
        }
        usable
    }

    pub(super) fn finish(mut self) -> Vec<Skipped> {
        if self.untold > 0 {
            let message = format!("{} more parts of this object are left out", self.untold);
            let reason = self.skipped.last().map_or("more", |it| it.reason);
            self.skipped.push(self.whole(reason, message));
        }
        self.skipped
    }
}

/// What DNS names of objects, namespaces and ports consist of. Anything else could not come from the API, and must
/// not reach a comment of the ruleset or a line of a log.
pub(super) fn is_name(text: &str, max: usize) -> bool {
    let fits = !text.is_empty() && text.len() <= max;
    fits && text
        .bytes()
        .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-' || it == b'.')
}

/// What label values consist of: zones.
pub(super) fn is_label_value(text: &str) -> bool {
    let fits = !text.is_empty() && text.len() <= 63;
    fits && text.bytes().all(|it| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'.' | b'_'))
}

/// A user's text, made fit for a message: short and printable.
pub(super) fn excerpt(text: &str) -> String {
    const SHOWN: usize = 64;
    let cut = text.chars().nth(SHOWN).is_some();
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if cut {
        shown.push('…');
    }
    shown
}

/// An error message of a parser, fit for a log: one line, not longer than a few of them.
pub(super) fn one_line(message: &str) -> String {
    const SHOWN: usize = 300;
    let words: Vec<&str> = message.split_whitespace().collect();
    let line = words.join(" ");
    line.chars().take(SHOWN).filter(|it| !it.is_control()).collect()
}
