//! Errors of data preparation.

use std::io;
use std::path::{Path, PathBuf};

use crate::data::DataError;
use crate::eval::results::ResultsError;

/// Why no data were prepared.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum PrepareError {
    /// The input or an excluded file cannot be read.
    #[error("{0}")]
    Data(#[from] DataError),
    /// The output cannot be written.
    #[error("{0}")]
    Files(#[from] ResultsError),
    /// The run was asked to stop.
    #[error("stopped; nothing was written")]
    Interrupted,
    /// Every row was dropped.
    #[error("{}: none of its {rows} rows can be used: {reasons}", path.display())]
    NothingKept { path: PathBuf, rows: usize, reasons: String },
    /// The input was not the same when it was read again.
    #[error("{}, {place}: the file was changed while it was read; nothing was written", path.display())]
    Changed { path: PathBuf, place: String },
    /// An output would take the place of an input.
    #[error("{} is read and would be replaced; choose another directory", path.display())]
    WouldReplaceInput { path: PathBuf },
    /// Another process prepares data into the same directory.
    #[error("another j1 data prepare writes to {}; wait for it, or choose another directory", path.display())]
    Locked { path: PathBuf },
    /// Files of a prepared directory that are not of one run.
    #[error("{}: {problem}; run j1 data prepare again, or move the files if they are your own", path.display())]
    NotTogether { path: PathBuf, problem: String },
    /// A file that was not made by this command is in the way.
    #[error(
        "{} is there already, and no prepare.json beside it says that j1 made it; choose another directory",
        path.display()
    )]
    Foreign { path: PathBuf },
}

impl PrepareError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> PrepareError {
        PrepareError::Files(ResultsError::io(action, path, source))
    }
}
