//! From the text of one object to one Change, and nothing kept but shared names.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;

use crate::model::{Change, ObjectName, Resource, Skipped};
use crate::objects::manifest::Object;
use crate::objects::{Context, Converted, Interner, raw};
use crate::objects::{endpoint_slice, node, service, service_cidr};

use super::versions::Key;

/// Reads objects. Each watch has one of its own.
#[derive(Debug)]
pub(super) struct Decoder {
    context: Context,
    interner: Interner,
}

/// One object, read and judged.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) resource: Resource,
    pub(super) name: ObjectName,
    pub(super) change: Change,
    pub(super) skipped: Vec<Skipped>,
}

/// One object of the API server.
#[derive(Debug)]
pub(super) struct Versioned {
    pub(super) key: Key,
    /// `metadata.resourceVersion`.
    pub(super) version: String,
    /// `None`: nothing to do with us.
    pub(super) change: Option<Change>,
    pub(super) skipped: Vec<Skipped>,
}

impl Versioned {
    /// Stands for what of the object matters, and what of it is left out.
    pub(super) fn fingerprint(&self) -> NonZeroU64 {
        let mut hasher = DefaultHasher::new();
        (self.change.as_ref().map(Change::fingerprint), &self.skipped).hash(&mut hasher);
        NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN)
    }
}

impl Decoder {
    pub(super) fn new(context: Context) -> Self {
        Decoder { context, interner: Interner::default() }
    }

    /// Reads an object that exists.
    ///
    /// # Errors
    ///
    /// The text is not a JSON object. Anything less is judged by [`crate::objects`] and becomes a Change.
    pub(super) fn applied(
        &mut self,
        resource: Resource,
        text: &[u8],
    ) -> Result<Versioned, serde_json::Error> {
        let object = match resource {
            Resource::Service => Object::Service(serde_json::from_slice(text)?),
            Resource::EndpointSlice => Object::EndpointSlice(serde_json::from_slice(text)?),
            Resource::Node => Object::Node(serde_json::from_slice(text)?),
            Resource::ServiceCidr => Object::ServiceCidr(serde_json::from_slice(text)?),
        };
        let metadata = metadata(&object);
        let (key, version) = (key(metadata), version(metadata));
        let (change, skipped) = match self.convert(&object) {
            Some(converted) => told(converted),
            None => return Ok(Versioned { key, version, change: None, skipped: Vec::new() }),
        };
        Ok(Versioned { key, version, change: Some(change), skipped })
    }

    /// Judges an object of a manifest; `None`: nothing to do with us.
    pub(super) fn judge(&mut self, object: &Object) -> Option<Decoded> {
        let (change, skipped) = told(self.convert(object)?);
        let metadata = metadata(object);
        let name = ObjectName::new(metadata.namespace.text(), metadata.name.text());
        Some(Decoded { resource: resource(object), name, change, skipped })
    }

    fn convert(&mut self, object: &Object) -> Option<Converted> {
        let (context, interner) = (&self.context, &mut self.interner);
        match object {
            Object::Service(raw) => Some(service(context, raw, interner)),
            Object::EndpointSlice(raw) => Some(endpoint_slice(context, raw, interner)),
            Object::Node(raw) => node(context, raw, interner),
            Object::ServiceCidr(raw) => Some(service_cidr(raw, interner)),
        }
    }

    /// Reads an object that is gone; only its metadata matters.
    ///
    /// # Errors
    ///
    /// The text is not a JSON object with metadata.
    pub(super) fn deleted(
        &self,
        resource: Resource,
        text: &[u8],
    ) -> Result<Versioned, serde_json::Error> {
        let object: raw::ServiceCidr = serde_json::from_slice(text)?;
        let metadata = object.metadata;
        let (namespace, name) = (metadata.namespace.text(), metadata.name.text());
        let change = deletion(resource, ObjectName::new(namespace, name));
        let (key, version) = (key(&metadata), version(&metadata));
        Ok(Versioned { key, version, change: Some(change), skipped: Vec::new() })
    }
}

/// The Change that says an object is gone.
pub(super) fn deletion(resource: Resource, name: ObjectName) -> Change {
    match resource {
        Resource::Service => Change::ServiceDeleted(name),
        Resource::EndpointSlice => Change::SliceDeleted(name),
        Resource::Node => Change::NodeDeleted,
        Resource::ServiceCidr => Change::ServiceCidrDeleted(name.name),
    }
}

fn key(metadata: &raw::Meta) -> Key {
    Key::of(metadata.namespace.text(), metadata.name.text())
}

fn version(metadata: &raw::Meta) -> String {
    metadata.resource_version.text().to_owned()
}

/// What of a judged object goes on, and what is reported. An object that is left out as a whole is both.
fn told(converted: Converted) -> (Change, Vec<Skipped>) {
    let Converted { change, mut skipped, ignored: _ } = converted;
    if let Change::Unusable(whole) = &change {
        skipped.push(whole.clone());
    }
    (change, skipped)
}

fn resource(object: &Object) -> Resource {
    match object {
        Object::Service(_) => Resource::Service,
        Object::EndpointSlice(_) => Resource::EndpointSlice,
        Object::Node(_) => Resource::Node,
        Object::ServiceCidr(_) => Resource::ServiceCidr,
    }
}

fn metadata(object: &Object) -> &raw::Meta {
    match object {
        Object::Service(raw) => &raw.metadata,
        Object::EndpointSlice(raw) => &raw.metadata,
        Object::Node(raw) => &raw.metadata,
        Object::ServiceCidr(raw) => &raw.metadata,
    }
}
