//! A directory that gets its name when it is complete.
//!
//! It is prepared as `NAME.partial` beside its place and locked while a process works on it. The leftovers of a killed process are
//! known by their names and written again; the system has freed the lock.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::MergeError;
use crate::files::{Staged, WriteError, parent};

pub(super) struct Staging {
    staged: Staged,
    /// The lock ends when this is closed.
    directory: File,
}

impl Staging {
    /// An empty directory for what will be at `out`. `names`: all files that are going to be in it, by their paths there.
    pub(super) fn open(out: &Path, names: &[&Path]) -> Result<Staging, MergeError> {
        let out = free_place(out)?;
        let name = out.file_name().ok_or_else(|| MergeError::Name { path: out.clone() })?;
        let mut partial_name = name.to_owned();
        partial_name.push(".partial");
        let partial = out.with_file_name(partial_name);
        let failed = |source| WriteError::new("create", &partial, source);
        fs::create_dir_all(parent(&out)).map_err(failed)?;
        let existed = match fs::create_dir(&partial) {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
            Err(error) => return Err(failed(error).into()),
        };
        let directory = File::open(&partial).map_err(failed)?;
        match directory.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(MergeError::InUse { path: partial }),
            // Some network file systems know no locks; two merges to one place are rare enough.
            Err(TryLockError::Error(_)) => {}
        }
        if existed {
            empty(&partial, Path::new(""), names)?;
        }
        Ok(Staging { staged: Staged::new(partial, out), directory })
    }

    /// Where a file is to be written; its folder is there.
    pub(super) fn path(&self, name: &Path) -> Result<PathBuf, WriteError> {
        let path = self.staged.temporary().join(name);
        let folder = parent(&path);
        fs::create_dir_all(folder).map_err(|source| WriteError::new("create", folder, source))?;
        Ok(path)
    }

    /// Gives the directory its name. All files in it must be on the disk.
    pub(super) fn finish(self) -> Result<(), MergeError> {
        let out = self.staged.path().to_owned();
        // Placing it fails if something was put there meanwhile; an empty directory is replaced.
        let finished = self.directory.sync_all().and_then(|()| self.staged.place());
        Ok(finished.map_err(|source| WriteError::new("create", &out, source))?)
    }
}

/// The path without links, if nothing or an empty directory is there.
fn free_place(out: &Path) -> Result<PathBuf, MergeError> {
    let read = |source| MergeError::Read { path: out.to_owned(), source };
    let path = || out.to_owned();
    match fs::metadata(out) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(MergeError::NotADirectory { path: path() }),
        // A link to nothing is something, though.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !out.is_symlink() => {
            return Ok(path());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MergeError::NotADirectory { path: path() });
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(WriteError::new("create", out, error).into());
        }
        Err(error) => return Err(read(error)),
    }
    if let Some(entry) = fs::read_dir(out).map_err(read)?.next() {
        let found = entry.map_err(read)?.file_name().to_string_lossy().into_owned();
        return Err(MergeError::NotEmpty { path: path(), found });
    }
    let out = fs::canonicalize(out).map_err(read)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).map_err(read);
        if device(&out)? != device(parent(&out))? {
            return Err(MergeError::MountPoint { path: path() });
        }
    }
    Ok(out)
}

/// Removes what a killed merge left in the folder of this name, which stays.
fn empty(partial: &Path, folder: &Path, names: &[&Path]) -> Result<(), MergeError> {
    let at = partial.join(folder);
    let read = |source| MergeError::Read { path: at.clone(), source };
    let mut left = Vec::new();
    for entry in fs::read_dir(&at).map_err(read)? {
        let entry = entry.map_err(read)?;
        let name = folder.join(entry.file_name());
        let kind = entry.file_type().map_err(read)?;
        let is_folder = kind.is_dir() && names.iter().any(|known| known.parent() == Some(&name));
        let is_file = kind.is_file() && names.contains(&name.as_path());
        if !is_folder && !is_file {
            let found = name.to_string_lossy().into_owned();
            return Err(MergeError::Foreign { path: partial.to_owned(), found });
        }
        left.push((name, is_folder));
    }
    for (name, is_folder) in left {
        match is_folder {
            true => empty(partial, &name, names)?,
            false => {
                let file = partial.join(name);
                fs::remove_file(&file)
                    .map_err(|source| WriteError::new("remove", &file, source))?;
            }
        }
    }
    Ok(())
}
