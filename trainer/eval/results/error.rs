//! Errors of an output directory.

use engine::error::{is_disk_full, is_not_writable};
use std::io;
use std::path::{Path, PathBuf};

use crate::judge::prompt::Order;

/// Why an output directory could not be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum ResultsError {
    /// The system said so.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// No space or no inodes left on the device, or the quota is used up.
    #[error(
        "the disk is full: cannot {action} {} ({source}). What was written before is safe; free some space (df \
         and df -i say what is short) and run the same command again (a training run is resumed), it continues",
        path.display()
    )]
    DiskFull { action: &'static str, path: PathBuf, source: io::Error },
    /// The file system is read-only, or the permissions are not this user's.
    #[error("cannot {action} {}: {source}; choose a directory that you can write to", path.display())]
    NotWritable { action: &'static str, path: PathBuf, source: io::Error },
    /// A file is in the place of the directory.
    #[error("{} is not a directory; choose another", path.display())]
    NotADirectory { path: PathBuf },
    /// Another process works in the directory.
    #[error("{} is in use by another run; wait for it, or choose another directory", path.display())]
    Locked { path: PathBuf },
    /// The directory is not empty and not ours.
    #[error(
        "{} is not empty and holds no run of this kind (found {found}); choose another directory",
        path.display()
    )]
    Foreign { path: PathBuf, found: String },
    /// The directory belongs to a run with other settings.
    #[error(
        "{} was made with {name} = {stored}, and this run has {name} = {given}; {}use the same settings to \
         continue it, or another directory", path.display(), isa_hint(name)
    )]
    Setting { path: PathBuf, name: String, stored: String, given: String },
    /// run.json is damaged.
    #[error("{} is damaged: {message}; choose another directory", path.display())]
    NotJson { path: PathBuf, message: String },
    /// A line of outputs.jsonl, not a torn last one, is damaged.
    #[error(
        "{}, line {line}: {message}. Delete this line to have it judged again", path.display()
    )]
    Corrupt { path: PathBuf, line: u64, message: String },
    /// Two lines hold the same judgement.
    #[error(
        "{}, line {line}: row {row}, {order}, vote {vote} stands in an earlier line too; delete one of them",
        path.display()
    )]
    Duplicate { path: PathBuf, line: u64, row: u64, order: Order, vote: u32 },
    /// A judgement that the run does not ask for.
    #[error(
        "{}: row {row}, {order}, vote {vote} is no judgement of this run: the file was changed. Delete the line, or choose \
         another directory",
        path.display()
    )]
    NotAsked { path: PathBuf, row: u64, order: Order, vote: u32 },
    /// A line is longer than any judgement.
    #[error("{}, line {line}: longer than {} bytes", path.display(), crate::data::lines::MAX_LINE)]
    TooLong { path: PathBuf, line: u64 },
    /// A judgement of a row that the data does not have.
    #[error(
        "{}: row {row} with id {id:?} is not in the data; the file was changed, choose another directory",
        path.display()
    )]
    UnknownRow { path: PathBuf, row: u64, id: String },
    /// The model computed something that is not a number.
    #[error(
        "row {row}: the judgement's log-probability is {value}; the checkpoint or adapter holds values that \
         are not finite, or its dtype overflows (f32 has more range)"
    )]
    NotFinite { row: u64, value: f64 },
}

/// Another CPU than the one that a run began on computes other last bits.
fn isa_hint(name: &str) -> &'static str {
    match name {
        "instructions" => "the environment variable J1_ISA selects a lower instruction set; ",
        _ => "",
    }
}

impl ResultsError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> ResultsError {
        let path = path.to_owned();
        match source.kind() {
            _ if is_disk_full(&source) => ResultsError::DiskFull { action, path, source },
            _ if is_not_writable(&source) => ResultsError::NotWritable { action, path, source },
            // What creating a directory says of a file in its place, or above it.
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                ResultsError::NotADirectory { path }
            }
            _ => ResultsError::Io { action, path, source },
        }
    }
}
