//! The lock of a prepared directory, and the files in it that are not in their places yet.

use std::fs::{File, TryLockError};
use std::path::Path;

use engine::files::StagedFile;

use super::{HELD_OUT, PrepareError, SETTINGS, TRAIN};
use crate::data::fingerprint::of_file;
use crate::eval::results::files::remove_temporaries_of;

/// A file that appears under `path` once it is placed.
pub(super) fn create(path: &Path) -> Result<StagedFile, PrepareError> {
    StagedFile::create(path).map_err(|source| PrepareError::io("create", path, source))
}

/// The fingerprint of what was written. Call [`StagedFile::finish`] first.
pub(super) fn fingerprint(file: &StagedFile) -> Result<String, PrepareError> {
    of_file(file.temporary()).map_err(|source| PrepareError::io("read", file.path(), source))
}

/// Keeps other processes from writing to a directory while the file lives. The directory itself is locked, so that no
/// file is left.
pub(super) fn lock(directory: &Path) -> Result<Option<File>, PrepareError> {
    // Elsewhere directories cannot be opened.
    if !cfg!(unix) {
        return Ok(None);
    }
    let opened = File::open(directory);
    let opened = opened.map_err(|source| PrepareError::io("open", directory, source))?;
    match opened.try_lock() {
        Ok(()) => Ok(Some(opened)),
        Err(TryLockError::WouldBlock) => Err(PrepareError::Locked { path: directory.to_owned() }),
        // Some network file systems have no locks, or none of directories.
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// Removes what runs that were killed left. The directory must be locked.
pub(super) fn remove_leftovers(directory: &Path) -> Result<(), PrepareError> {
    Ok(remove_temporaries_of(directory, &[TRAIN, HELD_OUT, SETTINGS])?)
}
