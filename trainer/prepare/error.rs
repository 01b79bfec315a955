//! What can go wrong while data are prepared.

use std::io;
use std::path::{Path, PathBuf};

use crate::data::DataError;
use crate::results::ResultsError;

/// Why no data were prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The input or an excluded file cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The output cannot be written.
    #[error(transparent)]
    Files(#[from] ResultsError),
    /// The run was asked to stop.
    #[error("stopped; nothing was written")]
    Interrupted,
    /// Every row was dropped.
    #[error("{}: none of its {rows} rows can be used: {reasons}", path.display())]
    NothingKept {
        /// The input.
        path: PathBuf,
        /// Its rows.
        rows: usize,
        /// How many were dropped for what.
        reasons: String,
    },
    /// The input was not the same when it was read again.
    #[error("{}, {place}: the file was changed while it was read; nothing was written", path.display())]
    Changed {
        /// The input.
        path: PathBuf,
        /// The first row that differs.
        place: String,
    },
    /// An output would take the place of an input.
    #[error("{} is read and would be replaced; choose another --out", path.display())]
    WouldReplaceInput {
        /// The input.
        path: PathBuf,
    },
    /// A file that was not made by this command is in the way.
    #[error(
        "{} is there already, and no prepare.json beside it says that j1 made it; choose another --out",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
}

impl PrepareError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> PrepareError {
        PrepareError::Files(ResultsError::io(action, path, source))
    }
}
