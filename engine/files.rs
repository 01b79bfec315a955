//! Files and directories that appear whole or not at all: temporary name in the same directory, fsync, rename, fsync of the
//! directory.

use crate::error::{is_disk_full, is_not_writable};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
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
    /// The error for `source`, which ended the attempt to `action` (a verb) `path`.
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
    writer.flush().and_then(|()| writer.get_ref().sync_all()).map_err(failed)?;
    Ok(())
}

/// Writes a file whole or not at all: on an error the file is what it was before, and nothing else is left.
///
/// # Errors
/// What `write` returns, or what the system said.
pub fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut StagedFile) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = StagedFile::create(path)?;
    write(&mut file)?;
    file.place()
}

/// Where the file `path` is prepared: `.NAME.PROCESS.tmp` beside it. The process is named, so that two that write one file
/// do not mix their bytes.
pub fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}

/// A file or directory under a temporary name, until it is put in its place. Dropped before, it is removed.
#[derive(Debug)]
pub struct Staged {
    temporary: PathBuf,
    path: PathBuf,
    placed: bool,
}

impl Staged {
    /// For a file or directory that the caller creates at `temporary`, on the file system of `path`.
    pub fn new(temporary: PathBuf, path: PathBuf) -> Staged {
        Staged { temporary, path, placed: false }
    }

    /// Where it lies until it is placed.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Where it is going to be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames it, and waits until the disk has its name. Its bytes must be on the disk already.
    pub fn place(mut self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)?;
        self.placed = true;
        sync_parent(&self.path)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.placed {
            // Of what failed, the first error is the one to report.
            let _ = match self.temporary.is_dir() && !self.temporary.is_symlink() {
                true => fs::remove_dir_all(&self.temporary),
                false => fs::remove_file(&self.temporary),
            };
        }
    }
}

/// A file that is written under a [temporary] name, to be put in its place whole.
#[derive(Debug)]
pub struct StagedFile {
    writer: BufWriter<File>,
    staged: Staged,
}

impl StagedFile {
    /// An empty one for `path`.
    pub fn create(path: &Path) -> io::Result<StagedFile> {
        let temporary = temporary(path);
        // Read as well, to be compared.
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).open(&temporary)?;
        let staged = Staged::new(temporary, path.to_owned());
        Ok(StagedFile { writer: BufWriter::with_capacity(1 << 16, file), staged })
    }

    /// Where it is going to be.
    pub fn path(&self) -> &Path {
        self.staged.path()
    }

    /// Where it lies until it is placed.
    pub fn temporary(&self) -> &Path {
        self.staged.temporary()
    }

    /// Waits until the disk has all that was written.
    pub fn finish(&mut self) -> io::Result<()> {
        self.writer.flush()?;
        self.writer.get_ref().sync_all()
    }

    /// Whether a file with the same bytes is in its place.
    pub fn is_there(&mut self) -> io::Result<bool> {
        self.writer.flush()?;
        let Ok(there) = File::open(self.staged.path()) else { return Ok(false) };
        let (metadata, own) = (there.metadata()?, self.writer.get_mut());
        if !metadata.is_file() || metadata.len() != own.metadata()?.len() {
            return Ok(false);
        }
        own.rewind()?;
        let mut bytes = BufReader::new(own).bytes();
        for byte in BufReader::new(there).bytes() {
            if Some(byte?) != bytes.next().transpose()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until the disk has it, puts it in its place, and waits until the disk has its name.
    pub fn place(mut self) -> io::Result<()> {
        self.finish()?;
        self.staged.place()
    }
}

impl Write for StagedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Makes what was renamed, created or removed beside `path` last.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}

/// The directory in which `path` lies.
pub(crate) fn parent(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// The names in a directory, sorted.
#[cfg(test)]
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        write_whole(&path, |file| file.write_all(b"one")).unwrap();
        let mut same = StagedFile::create(&path).unwrap();
        same.write_all(b"one").unwrap();
        assert!(same.is_there().unwrap());
        assert!(!StagedFile::create(&path).unwrap().is_there().unwrap());
        let mut other = StagedFile::create(&path).unwrap();
        other.write_all(b"two").unwrap();
        assert!(!other.is_there().unwrap() && other.temporary().exists());
        assert!(names(directory.path())[0].ends_with(".tmp"));
        drop(other);
        let failed = write_whole(&path, |file| {
            file.write_all(&[b'x'; 1 << 17])?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(is_disk_full(&failed.unwrap_err()));
        assert_eq!(
            (names(directory.path()), fs::read(&path).unwrap()),
            (vec!["a".into()], b"one".into())
        );
        // A directory is in the way of the temporary file, and then of the file.
        let blocked = directory.path().join("b");
        fs::create_dir(temporary(&blocked)).unwrap();
        assert!(write_whole(&blocked, |_| Ok(())).is_err());
        assert!(temporary(&blocked).exists(), "it was there before");
        fs::rename(temporary(&blocked), &blocked).unwrap();
        assert!(write_whole(&blocked, |_| Ok(())).is_err());
        assert_eq!(names(directory.path()), ["a", "b"]);
    }

    #[test]
    fn a_directory_is_placed_or_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for placed in [false, true] {
            fs::create_dir(path("new.partial")).unwrap();
            fs::write(path("new.partial").join("file"), "x").unwrap();
            let staged = Staged::new(path("new.partial"), path("new"));
            if placed {
                staged.place().unwrap();
            } else {
                drop(staged);
            }
            assert_eq!(names(directory.path()), if placed { vec!["new"] } else { vec![] });
        }
        assert_eq!(fs::read(path("new").join("file")).unwrap(), b"x");
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
