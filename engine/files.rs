//! Writing files so that they last: temporary file in the same directory, fsync, rename.

use crate::error::{is_disk_full, is_not_writable};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

const BUFFER_BYTES: usize = 1 << 20;

/// A file or directory that cannot be written. The fields say what they hold.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum WriteError {
    /// No space or no inodes left on the device, or the quota is used up.
    #[error(
        "the disk is full: cannot {action} {} ({source}); free some space (df and df -i say what is short) and \
         try again", path.display()
    )]
    DiskFull { action: &'static str, path: PathBuf, source: io::Error },
    /// The file system is read-only, or the permissions are not this user's.
    #[error("cannot {action} {}: {source}; choose a place that you can write to", path.display())]
    NotWritable { action: &'static str, path: PathBuf, source: io::Error },
    /// Anything else that the system said.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl WriteError {
    /// What `source` means for whoever wanted to `action` (a verb) `path`.
    pub(crate) fn new(action: &'static str, path: &Path, source: io::Error) -> WriteError {
        let path = path.to_owned();
        match source {
            source if is_disk_full(&source) => WriteError::DiskFull { action, path, source },
            source if is_not_writable(&source) => WriteError::NotWritable { action, path, source },
            source => WriteError::Io { action, path, source },
        }
    }
}

/// Creates the file (or empties it), writes it and waits until the disk has it. On an error a part of it is left.
pub(crate) fn write_synced<E: From<WriteError>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |source| WriteError::new("write", path, source);
    let file = File::create(path).map_err(failed)?;
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, file);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    Ok(())
}

/// Several small files of one directory, on the disk under temporary names until they are put in place.
pub(crate) struct Prepared {
    /// (temporary, final)
    files: Vec<(PathBuf, PathBuf)>,
}

impl Prepared {
    /// Writes all of them, each as a name in `directory` and its bytes. On an error nothing is left.
    pub(crate) fn write(directory: &Path, files: &[(&str, &[u8])]) -> Result<Prepared, WriteError> {
        let mut prepared = Prepared { files: Vec::new() };
        for (name, bytes) in files {
            // The process is named, so that two that save to one directory do not mix their bytes.
            let temporary = directory.join(format!(".{name}.{}.tmp", std::process::id()));
            let path = directory.join(name);
            prepared.files.push((temporary.clone(), path.clone()));
            write_synced(&temporary, |writer| {
                writer.write_all(bytes).map_err(|source| WriteError::new("write", &path, source))
            })?;
        }
        Ok(prepared)
    }

    /// Renames them in their order, each on the disk before the next.
    pub(crate) fn place(mut self) -> Result<(), WriteError> {
        while !self.files.is_empty() {
            let (temporary, path) = &self.files[0];
            fs::rename(temporary, path)
                .and_then(|()| sync_parent(path))
                .map_err(|source| WriteError::new("write", path, source))?;
            self.files.remove(0);
        }
        Ok(())
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        for (temporary, _) in &self.files {
            // Of what failed, the first error is the one to report.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// Makes what was renamed, created or removed beside `path` last.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}

/// The directory in which `path` lies.
pub(crate) fn parent(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn prepared_files_appear_together_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let prepared = Prepared::write(path, &[("b", b"2"), ("a", b"1")]).unwrap();
        assert!(names(path).iter().all(|name| name.ends_with(".tmp")), "{:?}", names(path));
        prepared.place().unwrap();
        assert_eq!(names(path), ["a", "b"]);
        drop(Prepared::write(path, &[("a", b"3")]).unwrap());
        assert_eq!(names(path), ["a", "b"]);
        assert_eq!(fs::read(path.join("a")).unwrap(), b"1");
        // A directory is in the way of the second one's temporary file.
        let blocked = format!(".d.{}.tmp", std::process::id());
        fs::create_dir(path.join(&blocked)).unwrap();
        assert!(Prepared::write(path, &[("c", b"3"), ("d", b"4")]).is_err());
        assert_eq!(names(path), [blocked.as_str(), "a", "b"]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_told_from_other_errors() {
        let full = write_synced(Path::new("/dev/full"), |writer| {
            writer.write_all(b"x").map_err(|e| WriteError::new("write", Path::new("x"), e))
        });
        let error = full.unwrap_err();
        assert!(matches!(error, WriteError::DiskFull { .. }), "{error}");
        for part in ["the disk is full", "/dev/full", "free some space"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
