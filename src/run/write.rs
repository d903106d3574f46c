//! A file that is written whole or not at all.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

/// Makes `text` all that the file at `path` holds.
///
/// Whoever reads meanwhile sees the old text or the new one, and a full disk leaves the old one as it was. What is no plain
/// file, and what may not be exchanged, is written to as it is: a terminal, a file that is mounted into a container, one in
/// a directory of somebody else.
pub(super) fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let Some(target) = plain_file(path) else { return fs::write(path, text) };
    match exchange(&target, text) {
        Err(error)
            if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ResourceBusy) =>
        {
            fs::write(path, text)
        }
        result => result,
    }
}

/// The plain file that is there or is to be made; links lead to it.
fn plain_file(path: &Path) -> Option<PathBuf> {
    // Here a file stands for a descriptor that somebody may go on to write to.
    if path.starts_with("/dev") || path.starts_with("/proc") {
        return None;
    }
    match fs::metadata(path) {
        Ok(found) if found.is_file() => fs::canonicalize(path).ok(),
        Ok(_) => None,
        // A link that leads nowhere makes a file there.
        Err(_) => (!path.is_symlink()).then(|| path.to_owned()),
    }
}

fn exchange(target: &Path, text: &str) -> io::Result<()> {
    let name = target.file_name().ok_or(ErrorKind::InvalidFilename)?.to_string_lossy();
    let fresh = target.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = write_new(&fresh, target, text).and_then(|()| fs::rename(&fresh, target));
    if written.is_err() {
        // What is left of it is of no use; that it may not be there is no news.
        let _ = fs::remove_file(&fresh);
    }
    written
}

/// A new file, with the owner and the permissions of the one whose place it takes.
fn write_new(fresh: &Path, target: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create_new(fresh)?;
    if let Ok(old) = fs::metadata(target) {
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.set_permissions(old.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    // Some file systems find out only here that there is no room.
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_new_file_is_made_and_an_old_one_exchanged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        write_whole(&path, "first").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let reader = File::open(&path).unwrap();
        write_whole(&path, "second").unwrap();
        assert_eq!(io::read_to_string(reader).unwrap(), "first", "it was not written over");
        check(&path, "second");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn links_stay_links() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("config"), directory.path().join("link"));
        symlink("config", &link).unwrap();
        for text in ["to nowhere", "to a file"] {
            write_whole(&link, text).unwrap();
            check(&path, text);
            assert!(link.is_symlink());
        }
    }

    #[test]
    fn what_cannot_be_written_is_an_error_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let none = write_whole(&directory.path().join("none/config"), "text").unwrap_err();
        assert_eq!(none.kind(), ErrorKind::NotFound);
        let is_one = write_whole(directory.path(), "text").unwrap_err();
        assert_eq!(is_one.kind(), ErrorKind::IsADirectory);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[track_caller]
    fn check(path: &Path, text: &str) {
        assert_eq!(fs::read_to_string(path).unwrap(), text);
    }
}
