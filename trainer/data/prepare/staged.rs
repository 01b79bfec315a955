//! A file that is written beside its place and put there once it is whole.

use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{HELD_OUT, PrepareError, SETTINGS, TRAIN};
use crate::data::fingerprint;
use crate::eval::results::files::{remove_temporaries_of, sync_directory, temporary};

/// Dropped without [`Staged::commit`], it leaves nothing.
#[derive(Debug)]
pub(super) struct Staged {
    path: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<File>,
    committed: bool,
}

impl Staged {
    pub(super) fn create(path: &Path) -> Result<Staged, PrepareError> {
        let temporary = temporary(path);
        let file = File::create(&temporary);
        let file = file.map_err(|source| PrepareError::io("create", path, source))?;
        let writer = BufWriter::with_capacity(1 << 16, file);
        Ok(Staged { path: path.to_owned(), temporary, writer, committed: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn line(&mut self, line: &[u8]) -> Result<(), PrepareError> {
        self.writer.write_all(line).map_err(|e| PrepareError::io("write", &self.path, e))
    }

    /// Waits until the disk has all of it.
    pub(super) fn finish(&mut self) -> Result<(), PrepareError> {
        let finished = self.writer.flush().and_then(|()| self.writer.get_ref().sync_all());
        finished.map_err(|source| PrepareError::io("write", &self.path, source))
    }

    /// The fingerprint of what was written. Call [`Staged::finish`] first.
    pub(super) fn fingerprint(&self) -> Result<String, PrepareError> {
        fingerprint::of_file(&self.temporary)
            .map_err(|source| PrepareError::io("read", &self.path, source))
    }

    /// Whether a file with the same bytes is in its place.
    pub(super) fn is_there(&self) -> bool {
        fingerprint::of_file(&self.path)
            .is_ok_and(|there| self.fingerprint().is_ok_and(|here| here == there))
    }

    /// Whether a file with other bytes is in its place.
    pub(super) fn would_replace(&self) -> bool {
        self.path.exists() && !self.is_there()
    }

    /// Puts it in its place.
    pub(super) fn commit(mut self) -> Result<(), PrepareError> {
        let moved = fs::rename(&self.temporary, &self.path);
        self.committed = moved.is_ok();
        moved
            .and_then(|()| sync_directory(&self.path))
            .map_err(|source| PrepareError::io("write", &self.path, source))
    }
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

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.committed {
            // The error that led here is the one to report.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
