//! A directory of manifests as one set of objects, and how it changes.
//!
//! Files are read again only when their identity, size or time of change says so. What was read last and could be used
//! stays in force as long as a file, or the directory, cannot be read.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::model::{Change, ObjectName, Resource, Skipped};
use crate::objects::manifest::{BadDocument, Object, TEXT_LIMIT, documents};

use super::decode::{Decoder, deletion};

/// Dates of manifests without `creationTimestamp` begin here: later than any real date, in the order in which the
/// objects were first seen. The older of two Services that claim one address wins, so the first in the files does.
const UNDATED: i64 = i64::MAX - (1 << 40);

/// What is known of a directory.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    decoder: Decoder,
    files: BTreeMap<PathBuf, File>,
    /// What the consumer was told, by object.
    told: BTreeMap<Id, Arc<Change>>,
    ages: BTreeMap<ObjectName, i64>,
    next_age: i64,
}

/// Orders as the consumer should hear of objects: Services before their slices.
type Id = (Resource, ObjectName);

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    objects: BTreeMap<Id, Arc<Change>>,
    /// What was wrong at the last reading; reported when it changes.
    problems: Vec<String>,
}

/// Changes whenever a file is replaced or written. Symbolic links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// What a look at the directory brought.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) changes: Vec<Change>,
    /// Objects, or parts of them, that are left out.
    pub(super) skipped: Vec<Skipped>,
    /// Files that cannot be read, whole or in part; each problem once.
    pub(super) problems: Vec<String>,
}

impl Directory {
    pub(super) fn new(path: PathBuf, decoder: Decoder) -> Self {
        Directory {
            path,
            decoder,
            files: BTreeMap::new(),
            told: BTreeMap::new(),
            ages: BTreeMap::new(),
            next_age: UNDATED,
        }
    }

    /// Looks what has changed since the last time.
    ///
    /// # Errors
    ///
    /// The directory cannot be listed; everything stays as it was.
    pub(super) fn look(&mut self) -> io::Result<News> {
        let mut news = News::default();
        let present = manifest_files(&self.path)?;
        self.files.retain(|path, _| present.contains_key(path));
        for (path, stamp) in present {
            let mut file = self.files.remove(&path).unwrap_or_default();
            if stamp.is_none() || file.stamp != stamp {
                file.stamp = stamp;
                self.read(&path, &mut file, &mut news);
            }
            self.files.insert(path, file);
        }
        self.tell(&mut news);
        Ok(news)
    }

    fn read(&mut self, path: &Path, file: &mut File, news: &mut News) {
        let problems = match read_text(path) {
            Ok(text) => self.parse(&text, file, news),
            Err(error) => vec![format!("{error}; what it held before stays in force")],
        };
        if problems != file.problems {
            let told = problems.iter().map(|it| format!("{}: {it}", path.display()));
            news.problems.extend(told);
            file.problems = problems;
        }
    }

    /// Takes over the objects of a file. If part of it is bad, what that part may have held before is kept.
    fn parse(&mut self, text: &str, file: &mut File, news: &mut News) -> Vec<String> {
        let mut objects = BTreeMap::new();
        let mut problems = Vec::new();
        for object in documents(text).objects {
            match object {
                Ok(object) => self.take(&object, &mut objects, news),
                Err(bad) => problems.push(left_out(&bad)),
            }
        }
        if !problems.is_empty() {
            for (id, change) in std::mem::take(&mut file.objects) {
                objects.entry(id).or_insert(change);
            }
        }
        file.objects = objects;
        problems
    }

    fn take(&mut self, object: &Object, objects: &mut BTreeMap<Id, Arc<Change>>, news: &mut News) {
        let Some(mut decoded) = self.decoder.judge(object) else { return };
        if let Change::ServiceApplied(service) = &mut decoded.change
            && service.created == i64::MAX
        {
            service.created = *self.ages.entry(service.name.clone()).or_insert_with(|| {
                self.next_age = self.next_age.saturating_add(1);
                self.next_age
            });
        }
        let id = (decoded.resource, decoded.name);
        // Told again only if it is new: a file is read anew for the sake of one object.
        let change = Arc::new(decoded.change);
        if self.told.get(&id) != Some(&change) {
            news.skipped.append(&mut decoded.skipped);
        }
        objects.insert(id, change);
    }

    /// Compares all files with what the consumer was told. Of an object in several files the last one counts, as it
    /// does for `kubectl apply -f`.
    fn tell(&mut self, news: &mut News) {
        let all = self.files.values().flat_map(|file| &file.objects);
        let wanted: BTreeMap<Id, Arc<Change>> =
            all.map(|(id, change)| (id.clone(), change.clone())).collect();
        for (id, change) in &wanted {
            if self.told.get(id) != Some(change) {
                news.changes.push(Change::clone(change));
            }
        }
        for id in self.told.keys().filter(|id| !wanted.contains_key(*id)) {
            news.changes.push(deletion(id.0, id.1.clone()));
            if id.0 == Resource::Service {
                self.ages.remove(&id.1);
            }
        }
        self.told = wanted;
    }
}

/// The manifests directly in the directory, sorted, with their stamps; `None` for those that cannot be looked at.
fn manifest_files(directory: &Path) -> io::Result<BTreeMap<PathBuf, Option<Stamp>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|it| it.as_encoded_bytes().starts_with(b"."));
        let extension = path.extension().and_then(|it| it.to_str()).unwrap_or_default();
        if hidden || !matches!(extension, "yaml" | "yml" | "json") {
            continue;
        }
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => (),
            Ok(metadata) => drop(files.insert(path, Some(stamp(&metadata)))),
            // A link to nowhere, or gone between listing and looking; reading it will tell.
            Err(_) if path.is_symlink() => drop(files.insert(path, None)),
            Err(_) => (),
        }
    }
    Ok(files)
}

fn stamp(metadata: &Metadata) -> Stamp {
    Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let metadata = fs::metadata(path)?;
    // Opening a pipe would wait for its writer.
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if metadata.len() > TEXT_LIMIT as u64 {
        return Err(io::Error::other(format!("it has more than {TEXT_LIMIT} bytes")));
    }
    fs::read_to_string(path)
}

fn left_out(bad: &BadDocument) -> String {
    format!("{bad}; it is left out, and what it held before stays in force")
}
