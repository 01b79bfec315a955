//! Errors of a configuration.

use std::path::PathBuf;

/// Why settings were refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file could not be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file is larger than any sensible configuration.
    #[error("the configuration {} is larger than {} bytes", path.display(), super::MAX_FILE)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The text is not TOML.
    #[error("{name}, line {line}: not TOML: {message}")]
    Syntax {
        /// The file.
        name: String,
        /// Line, from 1.
        line: usize,
        /// The message of the parser.
        message: String,
    },
    /// There is no such key.
    #[error("{name}, line {line}: there is no key {key}; {hint}")]
    Unknown {
        /// The file.
        name: String,
        /// Line, from 1.
        line: usize,
        /// The key with its section.
        key: String,
        /// The nearest one, or all there are.
        hint: String,
    },
    /// A value is of the wrong type or out of range.
    #[error("{name}, line {line}: {key} = {found}; it must be {allowed}")]
    Value {
        /// The file.
        name: String,
        /// Line, from 1.
        line: usize,
        /// The key with its section.
        key: String,
        /// The value in the file.
        found: String,
        /// The values that are allowed.
        allowed: String,
    },
    /// Keys that disagree.
    #[error("{name}: {problem}")]
    Conflict {
        /// The file.
        name: String,
        /// Which keys, and how.
        problem: String,
    },
}
