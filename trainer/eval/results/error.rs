//! Errors of an output directory.

use engine::error::{is_disk_full, is_not_writable};
use std::io;
use std::path::{Path, PathBuf};

use crate::judge::prompt::Order;

/// Why an output directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The system said so.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `write`, `open`, `read` ...
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// No space or no inodes left on the device, or the quota is used up.
    #[error(
        "the disk is full: cannot {action} {} ({source}). What was written before is safe; free some space (df \
         and df -i say what is short) and run the same command again (a training run is resumed), it continues",
        path.display()
    )]
    DiskFull {
        /// `write`, `create` ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file system is read-only, or the permissions are not this user's.
    #[error("cannot {action} {}: {source}; choose a directory that you can write to", path.display())]
    NotWritable {
        /// `write`, `create` ...
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A file is in the place of the directory.
    #[error("{} is not a directory; choose another", path.display())]
    NotADirectory {
        /// The path that should be a directory.
        path: PathBuf,
    },
    /// Another process works in the directory.
    #[error("{} is in use by another run; wait for it, or choose another directory", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The directory is not empty and not ours.
    #[error(
        "{} is not empty and holds no run of this kind (found {found}); choose another directory",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// One of the files in it.
        found: String,
    },
    /// The directory belongs to a run with other settings.
    #[error(
        "{} was made with {name} = {stored}, and this run has {name} = {given}; {}use the same settings to \
         continue it, or another directory", path.display(), isa_hint(name)
    )]
    Setting {
        /// The run.json.
        path: PathBuf,
        /// The setting's name.
        name: String,
        /// Its value in run.json.
        stored: String,
        /// Its value now.
        given: String,
    },
    /// run.json is damaged.
    #[error("{} is damaged: {message}; choose another directory", path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// The problem, in words.
        message: String,
    },
    /// A line of outputs.jsonl, not a torn last one, is damaged.
    #[error(
        "{}, line {line}: {message}. Delete this line to have it judged again", path.display()
    )]
    Corrupt {
        /// The outputs.jsonl.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// The problem, in words.
        message: String,
    },
    /// Two lines hold the same judgement.
    #[error(
        "{}, line {line}: row {row}, {order}, vote {vote} stands in an earlier line too; delete one of them",
        path.display()
    )]
    Duplicate {
        /// The outputs.jsonl.
        path: PathBuf,
        /// Line of the second one, from 1.
        line: u64,
        /// The row that is judged twice.
        row: u64,
        /// In this order.
        order: Order,
        /// With this vote.
        vote: u32,
    },
    /// A judgement that the run does not ask for.
    #[error(
        "{}: row {row}, {order}, vote {vote} is no judgement of this run: the file was changed. Delete the line, or choose \
         another directory",
        path.display()
    )]
    NotAsked {
        /// The outputs.jsonl.
        path: PathBuf,
        /// The row.
        row: u64,
        /// The order.
        order: Order,
        /// The vote.
        vote: u32,
    },
    /// A line is longer than any judgement.
    #[error("{}, line {line}: longer than {} bytes", path.display(), crate::data::lines::MAX_LINE)]
    TooLong {
        /// The outputs.jsonl.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
    },
    /// A judgement of a row that the data does not have.
    #[error(
        "{}: row {row} with id {id:?} is not in the data; the file was changed, choose another directory",
        path.display()
    )]
    UnknownRow {
        /// The outputs.jsonl.
        path: PathBuf,
        /// The row.
        row: u64,
        /// Its id.
        id: String,
    },
    /// The model computed something that is not a number.
    #[error(
        "row {row}: the judgement's log-probability is {value}; the checkpoint or adapter holds values that \
         are not finite, or its dtype overflows (f32 has more range)"
    )]
    NotFinite {
        /// The row.
        row: u64,
        /// The log-probability.
        value: f64,
    },
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
