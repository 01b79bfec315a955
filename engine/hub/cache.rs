//! The cache on disk, in huggingface_hub's layout, so that it is shared with Python.
//!
//! ```text
//! {cache}/models--owner--name/refs/{revision}             the commit a branch or tag stood at
//! {cache}/models--owner--name/blobs/{etag}                the bytes; {etag}.incomplete while they arrive
//! {cache}/models--owner--name/snapshots/{commit}/{file}   a link to the blob
//! {cache}/models--owner--name/.no_exist/{commit}/{file}   empty: the commit is known not to have the file
//! {cache}/.locks/models--owner--name/{etag}.lock          flock while a blob is written
//! ```
//!
//! Everything appears by rename, so a reader sees a whole file or none.

use super::HubError;
use super::error::io_error;
use super::reference::{Reference, is_commit};
use crate::files::Staged;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Models (adapters are models too) or data sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Dataset,
}

/// One repository's part of the cache.
pub(super) struct Repository {
    cache: PathBuf,
    folder: String,
    pub(super) kind: Kind,
    pub(super) id: String,
}

impl Repository {
    pub(super) fn new(cache: &Path, kind: Kind, id: &str) -> Repository {
        let prefix = match kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        Repository {
            cache: cache.to_path_buf(),
            folder: format!("{prefix}--{}", id.replace('/', "--")),
            kind,
            id: id.to_string(),
        }
    }

    pub(super) fn root(&self) -> PathBuf {
        self.cache.join(&self.folder)
    }

    /// The directory of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root().join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root().join("blobs").join(etag)
    }

    fn ref_path(&self, revision: &str) -> PathBuf {
        self.root().join("refs").join(revision)
    }

    /// The commit of a revision, as the cache has noted it. Text that is no commit id is ignored.
    pub(super) fn commit(&self, reference: &Reference) -> Option<String> {
        if is_commit(&reference.revision) {
            return Some(reference.revision.clone());
        }
        let mut text = String::new();
        let file = File::open(self.ref_path(&reference.revision)).ok()?;
        file.take(128).read_to_string(&mut text).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_string())
    }

    /// Notes the commit a branch or tag stands at.
    pub(super) fn write_ref(&self, reference: &Reference, commit: &str) -> Result<(), HubError> {
        if self.commit(reference).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.ref_path(&reference.revision);
        make_parent(&path)?;
        let staged = Staged::new(temporary_name(&path), path.clone());
        let write = || -> io::Result<()> {
            let mut file = File::create(staged.temporary())?;
            file.write_all(commit.as_bytes())?;
            file.sync_all()?;
            staged.place()
        };
        write().map_err(|error| io_error("write", &path, error))
    }

    /// Whether the commit is known not to have the file.
    pub(super) fn is_absent(&self, commit: &str, file: &str) -> bool {
        self.absent_marker(commit, file).exists()
    }

    /// Notes that the commit does not have the file, so that an offline run knows it too.
    pub(super) fn mark_absent(&self, commit: &str, file: &str) -> Result<(), HubError> {
        let path = self.absent_marker(commit, file);
        if path.exists() {
            return Ok(());
        }
        make_parent(&path)?;
        match File::create(&path) {
            Ok(_) => Ok(()),
            Err(error) => Err(io_error("create", &path, error)),
        }
    }

    fn absent_marker(&self, commit: &str, file: &str) -> PathBuf {
        self.root().join(".no_exist").join(commit).join(file)
    }

    /// Makes `snapshots/{commit}/{file}` point at the blob: a relative link as Python makes it, or a copy
    /// where the file system has no links.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<PathBuf, HubError> {
        let pointer = self.snapshot(commit).join(file);
        make_parent(&pointer)?;
        // One `..` for the commit, one for `snapshots`, one for each directory in the name.
        let up = "../".repeat(2 + file.matches('/').count());
        let target = format!("{up}blobs/{etag}");
        if fs::read_link(&pointer).is_ok_and(|present| present == Path::new(&target)) {
            return Ok(pointer);
        }
        let staged = Staged::new(temporary_name(&pointer), pointer.clone());
        let place = || -> io::Result<()> {
            if symlink(&target, staged.temporary()).is_err() {
                fs::copy(self.blob(etag), staged.temporary())?;
            }
            staged.place()
        };
        place().map_err(|error| io_error("link", &pointer, error))?;
        Ok(pointer)
    }

    /// Takes the lock of a blob, which Python's filelock honors too. `None` where the file system has no
    /// locks; then two runs may repeat each other's work, and the checksum decides.
    /// Calls `waiting` once if another process holds it.
    pub(super) fn lock(
        &self,
        etag: &str,
        waiting: &mut dyn FnMut(),
    ) -> Result<Option<File>, HubError> {
        let path = self.cache.join(".locks").join(&self.folder);
        let path = path.join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(|error| io_error("create", &path, error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => {
                waiting();
                // The system frees the lock when its holder ends, however it ends.
                file.lock().map_err(|error| io_error("lock", &path, error))?;
                Ok(Some(file))
            }
            Err(TryLockError::Error(_)) => Ok(None),
        }
    }

    /// Every file of a snapshot, as paths in the repository, sorted. At most `limit` entries are looked at.
    pub(super) fn snapshot_files(&self, commit: &str, limit: usize) -> Vec<String> {
        let root = self.snapshot(commit);
        let mut pending = vec![root.clone()];
        let mut files = Vec::new();
        let mut seen = 0;
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                seen += 1;
                if seen > limit {
                    return files;
                }
                let path = entry.path();
                // A link to a directory is not followed: only blobs are linked.
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    pending.push(path);
                } else if path.is_file()
                    && let Ok(name) = path.strip_prefix(&root)
                    && let Some(name) = name.to_str()
                {
                    files.push(name.to_string());
                }
            }
        }
        files.sort();
        files
    }
}

/// Creates the directories above a path.
pub(super) fn make_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|error| io_error("create", parent, error))
}

/// Bytes free for this user on the disk of a path, of which the last parts may not exist yet.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let disk = rustix::fs::statvfs(existing).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// A name beside the path that only this thread of this process uses.
fn temporary_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(path.file_name().unwrap_or_default());
    let thread = std::thread::current().id();
    name.push(format!(".{}-{thread:?}.tmp", std::process::id()));
    path.with_file_name(name)
}

#[cfg(unix)]
fn symlink(target: &str, link: &Path) -> io::Result<()> {
    // Left over from a killed process of the same id.
    let _ = fs::remove_file(link);
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_target: &str, _link: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
