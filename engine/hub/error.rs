//! Errors between an id and a directory. Each says what to do.

use crate::error::is_disk_full;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::FileError;

/// A failure to turn a path or an id into local files.
///
/// Every message ends with what to do. None contains the token, a query string (download links are
/// signed there) or the credentials of a proxy.
///
/// Fields of one name mean the same in all variants. `repository` is its id, `revision` a branch, tag or commit, `file` a path in
/// the repository, `url` scheme, host and path, `endpoint` the server, `cache` the directory that was searched. `message` is the
/// server's text and `candidates` are names of files: both with the words that lead to them, or empty. `reason` says what is
/// wrong; `hint`, `advice`, `token_advice` and `private` say what to do. Lengths are in bytes, checksums in hex.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields are explained above
pub enum HubError {
    /// A string that names a path, but nothing is there.
    #[error(
        "{path}: no such file or directory; give an existing path, or a Hugging Face id as owner/name[@revision]",
        path = path.display()
    )]
    PathNotFound { path: PathBuf },
    /// A link to nothing, or a file that is not what its name says.
    #[error(transparent)]
    File(#[from] FileError),
    /// A model or adapter is a directory; this is something else.
    #[error("{path}: {advice}", path = path.display())]
    NotADirectory { path: PathBuf, advice: &'static str },
    /// Neither an existing path nor an id.
    #[error(
        "{spec:?}: {reason}; give an existing path, or a Hugging Face id as owner/name[@revision]"
    )]
    BadId { spec: String, reason: &'static str },
    /// Neither HF_HOME nor HOME says where the cache is.
    #[error("no cache directory: set HF_HOME (or HOME) to a directory, or give a local path")]
    NoCacheDirectory,
    /// HF_ENDPOINT, a proxy variable or a certificate file cannot be used.
    #[error("{variable}: {reason}; correct or unset it")]
    BadSetting { variable: String, reason: String },
    /// No TLS on this processor.
    #[error(
        "https needs {reason}; copy the files here from another machine and give the local path, \
         or set HF_ENDPOINT to an http:// mirror"
    )]
    TlsUnsupported { reason: &'static str },
    /// The certificate or the handshake was refused.
    #[error(
        "{url}: TLS failed: {reason}; check the clock, and if a proxy inspects TLS set SSL_CERT_FILE to its certificates (PEM)"
    )]
    Tls { url: String, reason: String },
    /// HF_HUB_OFFLINE is set and the cache lacks a file.
    #[error(
        "{repository}@{revision}: {file} is not in the cache {cache} and HF_HUB_OFFLINE is set; \
         unset it and run once to download, or give a local path",
        cache = cache.display()
    )]
    NotCached { repository: String, revision: String, file: String, cache: PathBuf },
    /// The token was refused.
    #[error(
        "{repository}: the token from {token_source} was refused (status {status}){message}; \
         put a valid token with read access into HF_TOKEN (from {endpoint}/settings/tokens)"
    )]
    TokenRefused {
        repository: String,
        token_source: String,
        status: u16,
        message: String,
        endpoint: String,
    },
    /// The repository's owner asks for terms to be accepted first.
    #[error("{repository}: access is gated; accept the terms at {page}, then {token_advice}")]
    Gated { repository: String, page: String, token_advice: String },
    /// No such repository, or a private one.
    #[error(
        "{repository}: no such repository at {endpoint} (and no such local path); check the spelling{private}"
    )]
    RepositoryNotFound { repository: String, endpoint: String, private: String },
    /// The repository is there, the branch, tag or commit is not.
    #[error(
        "{repository}: no revision {revision:?}; check the spelling, or see the branches and tags at {page}"
    )]
    RevisionNotFound { repository: String, revision: String, page: String },
    /// The repository is there, the file is not.
    #[error("{repository}@{revision}: no file {file}; {hint}")]
    FileNotFound { repository: String, revision: String, file: String, hint: String },
    /// A dataset with no data file, or several that are no shards of one.
    #[error(
        "{repository}: {problem}; name one as {repository}:FILE, or shards as '{repository}:FOLDER/train-*'{candidates}"
    )]
    AmbiguousData { repository: String, problem: &'static str, candidates: String },
    /// Too many requests.
    #[error(
        "{url}: too many requests (status 429); wait some minutes, or set HF_TOKEN for a higher limit"
    )]
    RateLimited { url: String },
    /// Another status than was asked for.
    #[error(
        "{url}: the server answered with status {status}{message}; try again later, or set HF_HUB_OFFLINE=1 to use only the cache"
    )]
    Server { url: String, status: u16, message: String },
    /// No connection.
    #[error(
        "{url}: no connection: {reason}; check the network, HTTPS_PROXY and HF_ENDPOINT, \
         or set HF_HUB_OFFLINE=1 to use only the cache, or give a local path"
    )]
    Network { url: String, reason: String },
    /// The server took too long.
    #[error(
        "{url}: no answer in time; run again to continue, raise HF_HUB_DOWNLOAD_TIMEOUT or HF_HUB_ETAG_TIMEOUT (seconds), \
         or set HF_HUB_OFFLINE=1 to use only the cache"
    )]
    Timeout { url: String },
    /// The connection kept breaking in the middle of a file.
    #[error(
        "{file}: the connection ended {attempts} times, after {got} of {expected} bytes ({reason}); run again to continue"
    )]
    Truncated { file: String, got: u64, expected: u64, attempts: u32, reason: String },
    /// The server sends another length than it announced.
    #[error(
        "{file}: the server sends {got} bytes where {expected} were announced; run again, and if it stays report it to {endpoint}"
    )]
    LengthMismatch { file: String, expected: u64, got: u64, endpoint: String },
    /// The bytes are not those the repository names.
    #[error(
        "{file}: checksum is {got}, expected {expected}; the download was removed, run again to repeat it"
    )]
    Checksum { file: String, expected: String, got: String },
    /// Refused before downloading.
    #[error(
        "{path}: {needed} bytes are needed and {available} are free; free some space or set HF_HOME to a larger disk",
        path = path.display()
    )]
    DiskSpace { path: PathBuf, needed: u64, available: u64 },
    /// The disk became full.
    #[error("{path}: the disk is full; free some space and run again to continue", path = path.display())]
    DiskFull { path: PathBuf },
    /// A file that should be small is not.
    #[error("{file}: {size} bytes, at most {limit} are accepted; this is not a file of this kind")]
    TooLarge { file: String, size: u64, limit: u64 },
    /// A name that would leave the directory, or is no file name.
    #[error("{repository}: refuses the file name {file:?}: {reason}; do not trust this repository")]
    UnsafeFileName { repository: String, file: String, reason: &'static str },
    /// model.safetensors.index.json cannot be used.
    #[error("{path}: {reason}; the checkpoint is damaged, or not sharded safetensors", path = path.display())]
    BadIndex { path: PathBuf, reason: String },
    /// An answer that does not follow the protocol.
    #[error("{url}: {reason}; check that HF_ENDPOINT is a Hugging Face server")]
    Protocol { url: String, reason: String },
    /// A file operation failed.
    #[error("{path}: cannot {action}: {source}", path = path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

/// An `io::Error` with what was tried; a full disk gets its own variant.
pub(super) fn io_error(action: &'static str, path: &Path, source: io::Error) -> HubError {
    match is_disk_full(&source) {
        true => HubError::DiskFull { path: path.to_path_buf() },
        false => HubError::Io { action, path: path.to_path_buf(), source },
    }
}
