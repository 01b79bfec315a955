//! Files that appear whole or not at all, and one that grows a line at a time.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use engine::files::{StagedFile, sync_parent};

use super::ResultsError;

/// Writes a file whole or not at all. A file that already holds these bytes is left alone.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ResultsError> {
    replace(path, |file| file.write_all(bytes)).map(drop)
}

/// As [`write_whole`], for bytes that should not be built in memory. Says whether the file was replaced.
pub(super) fn replace(
    path: &Path,
    write: impl FnOnce(&mut StagedFile) -> io::Result<()>,
) -> Result<bool, ResultsError> {
    let replaced = || {
        let mut file = StagedFile::create(path)?;
        write(&mut file)?;
        let differs = !file.is_there()?;
        if differs {
            file.place()?;
        }
        Ok(differs)
    };
    replaced().map_err(|source| ResultsError::io("write", path, source))
}

/// The files of a run.
const NAMES: [&str; 6] =
    [super::RUN, super::OUTPUTS, super::CSV, super::RUBRICS, super::SCORES, super::TIMING];

/// Whether this is the temporary file of a run that was killed.
pub(super) fn is_leftover(name: &OsStr) -> bool {
    is_temporary_of(name, &NAMES)
}

fn is_temporary_of(name: &OsStr, names: &[&str]) -> bool {
    prepared_for(&name.to_string_lossy()).is_some_and(|name| names.contains(&name))
}

/// The name of the file that a temporary one of this name was to become.
fn prepared_for(temporary: &str) -> Option<&str> {
    let (name, process) = temporary.strip_suffix(".tmp")?.strip_prefix('.')?.rsplit_once('.')?;
    let is_number = !process.is_empty() && process.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(name)
}

/// Removes all temporary files in a directory that holds nothing but files of this program, if it is there. A
/// lock must guard it.
pub(crate) fn remove_temporaries(directory: &Path) -> Result<(), ResultsError> {
    match directory.try_exists() {
        Ok(false) => Ok(()),
        _ => remove_where(directory, |name| prepared_for(&name.to_string_lossy()).is_some()),
    }
}

/// Removes the temporary files of runs that were killed. The directory must be locked.
pub(super) fn remove_leftovers(directory: &Path) -> Result<(), ResultsError> {
    remove_temporaries_of(directory, &NAMES)
}

/// Removes the temporary files that were to become files of these names. The directory must be locked.
pub(crate) fn remove_temporaries_of(directory: &Path, names: &[&str]) -> Result<(), ResultsError> {
    remove_where(directory, |name| is_temporary_of(name, names))
}

/// Removes the files of a directory whose names are to go.
fn remove_where(directory: &Path, goes: impl Fn(&OsStr) -> bool) -> Result<(), ResultsError> {
    let list = |source| ResultsError::io("list", directory, source);
    for entry in fs::read_dir(directory).map_err(list)? {
        let entry = entry.map_err(list)?;
        if goes(&entry.file_name()) {
            let path = entry.path();
            fs::remove_file(&path).map_err(|source| ResultsError::io("remove", &path, source))?;
        }
    }
    Ok(())
}

/// A file that whole lines are appended to.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    length: u64,
    /// Whether the end may be a part of a line that could not be cut off.
    torn: bool,
}

impl Journal {
    /// Opens or creates the file and cuts it off after `length` bytes.
    pub(crate) fn open(path: &Path, length: u64) -> Result<Journal, ResultsError> {
        let io = |source| ResultsError::io("open", path, source);
        let file = File::options().append(true).create(true).open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() != length {
            file.set_len(length).map_err(io)?;
        }
        file.sync_all().map_err(io)?;
        sync_parent(path).map_err(io)?;
        Ok(Journal { path: path.to_owned(), file, length, torn: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one line and waits until the disk has it. If that fails, the line is taken back.
    pub(crate) fn append(&mut self, line: &[u8]) -> Result<(), ResultsError> {
        if self.torn {
            self.file
                .set_len(self.length)
                .map_err(|e| ResultsError::io("repair", &self.path, e))?;
            self.torn = false;
        }
        if let Err(source) = self.file.write_all(line).and_then(|()| self.file.sync_data()) {
            self.torn = self.file.set_len(self.length).is_err();
            return Err(ResultsError::io("write", &self.path, source));
        }
        self.length += line.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use engine::files::temporary;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("scores.json");
        let names = || {
            let entries = fs::read_dir(directory.path()).unwrap();
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        assert!(replace(&path, |file| file.write_all(b"one")).unwrap());
        assert!(!replace(&path, |file| file.write_all(b"one")).unwrap());
        assert!(replace(&path, |file| file.write_all(b"two")).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let failed = replace(&path, |file| {
            file.write_all(&[b'x'; 1 << 17])?;
            Err(io::ErrorKind::StorageFull.into())
        });
        let message = failed.unwrap_err().to_string();
        assert!(message.contains("disk is full") && message.contains("scores.json"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(), ["scores.json"]);
        // Where a directory stands in the way, the rename fails, after the whole file was written.
        let blocked = directory.path().join("run.json");
        fs::create_dir(&blocked).unwrap();
        let error = write_whole(&blocked, b"{}").unwrap_err();
        assert!(matches!(error, ResultsError::Io { action: "write", .. }), "{error}");
        assert_eq!(names().len(), 2, "{:?}", names());
        let missing = directory.path().join("none").join("run.json");
        assert!(write_whole(&missing, b"{}").unwrap_err().to_string().contains("none/run.json"));
    }

    #[test]
    fn leftovers_are_told_from_other_files() {
        assert!(is_leftover(temporary(Path::new("a/results.csv")).file_name().unwrap()));
        for name in
            ["results.csv", ".results.csv.tmp", ".results.csv.x1.tmp", ".mine.12.tmp", ".tmp"]
        {
            assert!(!is_leftover(OsStr::new(name)), "{name}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_says_so_and_that_the_run_can_continue() {
        let file = File::options().append(true).open("/dev/full").unwrap();
        let path = PathBuf::from("out/outputs.jsonl");
        let mut journal = Journal { path, file, length: 0, torn: false };
        let message = journal.append(b"{}\n").unwrap_err().to_string();
        for part in ["disk is full", "out/outputs.jsonl", "run the same command again"] {
            assert!(message.contains(part), "{message}");
        }
        // The device cannot be cut back, so the next line must not follow a torn one.
        assert!(journal.torn && journal.length == 0);
        assert!(matches!(journal.append(b"{}\n"), Err(ResultsError::Io { action: "repair", .. })));
    }
}
