//! What an API server or a file says, as bytes that anybody may have made up: where fuzzers come in. Not in the program.

use crate::model::{Change, Resource};
use crate::objects::{Context, manifest};

use super::decode::Decoder;
use super::reflect::message::{Event, List, Status};
use super::wire::{Items, Line, Lines};

const RESOURCES: [Resource; 4] =
    [Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::ServiceCidr];

/// The lines of a watch, in pieces. The first byte chooses resource and size of the pieces. Returns what they change.
pub fn watch(context: &Context, bytes: &[u8]) -> Vec<Change> {
    let Some((resource, size, bytes)) = choices(bytes) else { return Vec::new() };
    let mut decoder = Decoder::new(context.clone());
    let mut lines = Lines::default();
    let mut changes = Vec::new();
    for piece in bytes.chunks(size) {
        lines.feed(piece);
        while let Some(Line::Text(line)) = lines.next() {
            let _ = serde_json::from_slice::<Status>(&line);
            let Ok(event) = serde_json::from_slice::<Event<'_>>(&line) else { continue };
            let object = event.object.get().as_bytes();
            let _ = serde_json::from_slice::<List>(object);
            let decoded = match event.kind.as_ref() {
                "DELETED" => decoder.deleted(resource, object),
                _ => decoder.applied(resource, object),
            };
            changes.extend(decoded.ok().and_then(|it| it.change));
        }
    }
    changes
}

/// The pages of a list, in pieces. The first byte chooses as above.
pub fn list(context: &Context, bytes: &[u8]) -> Vec<Change> {
    let Some((resource, size, bytes)) = choices(bytes) else { return Vec::new() };
    let mut decoder = Decoder::new(context.clone());
    let mut items = Items::default();
    let mut changes = Vec::new();
    let mut found = 0;
    for piece in bytes.chunks(size) {
        items.feed(piece, |item| {
            let Line::Text(text) = item else { return };
            found += text.len();
            let decoded = decoder.applied(resource, &text);
            changes.extend(decoded.ok().and_then(|it| it.change));
        });
    }
    assert!(found + items.envelope().len() <= bytes.len(), "more came out than went in");
    let _ = items.is_cut();
    let _ = serde_json::from_slice::<List>(items.envelope());
    changes
}

/// A file of manifests.
pub fn manifests(context: &Context, bytes: &[u8]) -> Vec<Change> {
    let Ok(text) = str::from_utf8(bytes) else { return Vec::new() };
    let mut decoder = Decoder::new(context.clone());
    let objects = manifest::documents(text).objects.into_iter().flatten();
    objects.filter_map(|it| Some(decoder.judge(&it)?.change)).collect()
}

fn choices(bytes: &[u8]) -> Option<(Resource, usize, &[u8])> {
    let (choice, rest) = bytes.split_first()?;
    let resource = RESOURCES.get(usize::from(choice & 3))?;
    Some((*resource, 1 + usize::from(choice >> 2) * 16, rest))
}
