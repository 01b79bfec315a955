//! Errors of a configuration.

use std::path::PathBuf;

/// Why settings were refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum SettingsError {
    /// The file could not be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The file is larger than any sensible configuration.
    #[error("the configuration {} is larger than {} bytes", path.display(), super::MAX_FILE)]
    TooLarge { path: PathBuf },
    /// The text is not TOML.
    #[error("{name}, line {line}: not TOML: {message}")]
    Syntax { name: String, line: usize, message: String },
    /// There is no such key.
    #[error("{name}, line {line}: there is no key {key}; {hint}")]
    Unknown { name: String, line: usize, key: String, hint: String },
    /// A value is of the wrong type or out of range.
    #[error("{name}, line {line}: {key} = {found}; it must be {allowed}")]
    Value { name: String, line: usize, key: String, found: String, allowed: String },
    /// Keys that disagree.
    #[error("{name}: {problem}")]
    Conflict { name: String, problem: String },
}
