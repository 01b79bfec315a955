//! Paths and Hugging Face ids to local files.
//!
//! A path that exists is taken as it is. `owner/name[@revision]` goes through the standard cache, in
//! huggingface_hub's layout, so it is shared with Python in both directions:
//!
//! - offline (HF_HUB_OFFLINE), or pinned to a commit that is cached: no connection at all;
//! - else one request asks which commit the revision stands at. If that fails and the cache has a complete
//!   snapshot, the snapshot is used with a warning;
//! - missing files arrive in `.incomplete` files that later runs continue, and get their name only when length
//!   and checksum hold.
//!
//! Variables: HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_ETAG_TIMEOUT,
//! HF_HUB_DOWNLOAD_TIMEOUT, HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE.
//!
//! # Why not the crate hf-hub
//!
//! Tried on 2026-11-23. hf-hub 1.0 brings 235 crates (reqwest, tokio, Xet), of which aws-lc-sys and blake3 compile C,
//! and starts a broken download again from its first byte. hf-hub 0.5 with its feature `ureq` brings 57 crates and ureq's
//! default TLS, whose ring is C; it resumes, but knows neither HF_HUB_OFFLINE nor HF_HUB_CACHE, treats every status
//! alike, and panics on a redirect without an address. Neither compares a checksum. What would be left of either is
//! the names of four directories. So this is ureq 3 with rustls over graviola: 26 crates more than before, no C.

mod address;
mod cache;
mod checksum;
mod client;
mod config;
pub mod data;
mod download;
mod error;
mod reference;
mod snapshot;
#[cfg(test)]
mod tests;
mod tls;

pub use config::{HubConfig, Retry, Token};
pub use error::HubError;

use cache::{Kind, Repository};
use client::Client;
use download::{Wanted, fetch};
use reference::{Location, Reference, check_file_name, is_commit, locate, parse};
use snapshot::{ADAPTER, Contents, MODEL};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// Events of a download, for a progress display. `file` is a path in the repository; lengths are in bytes.
#[derive(Debug)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields say what they hold
pub enum HubEvent<'a> {
    /// A file begins. `total_bytes` is its length, if the server says; an earlier run left `resumed_bytes` of it.
    Started { file: &'a str, total_bytes: Option<u64>, resumed_bytes: u64 },
    /// More of it is on disk: `bytes` now, which falls back to zero if the server cannot continue.
    Received { file: &'a str, bytes: u64 },
    /// It is whole and its checksum holds.
    Finished { file: &'a str },
    /// Something failed that may pass. After `pause` follows the attempt `attempt`, counted from 1, of `attempts`; `what` is the
    /// file or the repository.
    Retrying { what: &'a str, reason: &'a str, attempt: u32, attempts: u32, pause: Duration },
    /// Another process downloads the same file; this one waits for it.
    WaitingForLock { file: &'a str },
    /// A sentence that the user should read although the download goes on.
    Warning { message: &'a str },
}

/// Receives the events, in the order they happen.
pub type HubProgress<'a> = dyn FnMut(HubEvent<'_>) + 'a;

/// The cache and the way to the server.
pub struct Hub {
    config: HubConfig,
    /// Made at the first request: local paths and offline runs need no TLS.
    client: OnceLock<Client>,
}

impl Hub {
    /// As the environment says.
    pub fn from_env() -> Hub {
        Hub::new(HubConfig::from_env())
    }

    /// As given.
    pub fn new(config: HubConfig) -> Hub {
        Hub { config, client: OnceLock::new() }
    }

    /// The directory of a checkpoint: config.json, tokenizer.json, tokenizer_config.json, model.safetensors or the
    /// index and its shards; generation_config.json and the chat template's files if the repository has them.
    ///
    /// A local directory is returned unread: whoever opens a file says what is wrong with it.
    pub fn resolve_model(
        &self,
        spec: &str,
        progress: &mut HubProgress,
    ) -> Result<PathBuf, HubError> {
        self.resolve_directory(spec, &MODEL, progress)
    }

    /// The directory of a PEFT adapter: adapter_config.json and adapter_model.safetensors.
    pub fn resolve_adapter(
        &self,
        spec: &str,
        progress: &mut HubProgress,
    ) -> Result<PathBuf, HubError> {
        self.resolve_directory(spec, &ADAPTER, progress)
    }

    /// Rows: a local path, `owner/name[@revision]:file`, in which the file may be a pattern of shards or a folder, or a
    /// data set whose data files are one, or the shards of one.
    pub fn resolve_data(
        &self,
        spec: &str,
        progress: &mut HubProgress,
    ) -> Result<PathBuf, HubError> {
        let reference = match locate(spec, self.config.home.as_deref())? {
            Location::Local(path) => return Ok(path),
            Location::Remote(reference) => reference,
        };
        match &reference.file {
            Some(file) if !data::is_pattern(file) => {
                match self.dataset_file(&reference, file, progress) {
                    // It may be a folder.
                    Err(error @ (HubError::FileNotFound { .. } | HubError::NotCached { .. })) => {
                        self.data_files(&reference, progress).map_err(|folder| match &folder {
                            HubError::AmbiguousData { candidates, .. }
                                if !candidates.is_empty() =>
                            {
                                folder
                            }
                            _ => error,
                        })
                    }
                    other => other,
                }
            }
            _ => self.data_files(&reference, progress),
        }
    }

    /// One file of a data set; `id` is `owner/name[@revision]` and never a path.
    pub fn resolve_dataset_file(
        &self,
        id: &str,
        file: &str,
        progress: &mut HubProgress,
    ) -> Result<PathBuf, HubError> {
        let reference = parse(id)?;
        if reference.file.is_some() {
            return Err(HubError::BadId {
                spec: id.to_string(),
                reason: "an id alone is expected here, without :FILE",
            });
        }
        check_file_name(file).map_err(|reason| HubError::UnsafeFileName {
            repository: reference.id.clone(),
            file: file.to_string(),
            reason,
        })?;
        self.dataset_file(&reference, file, progress)
    }

    fn resolve_directory(
        &self,
        spec: &str,
        contents: &Contents,
        progress: &mut HubProgress,
    ) -> Result<PathBuf, HubError> {
        let reference = match locate(spec, self.config.home.as_deref())? {
            Location::Local(path) if path.is_dir() => return Ok(path),
            Location::Local(path) => {
                let advice = contents.advice(&path);
                return Err(HubError::NotADirectory { path, advice });
            }
            Location::Remote(reference) => reference,
        };
        if reference.file.is_some() {
            return Err(HubError::BadId {
                spec: spec.to_string(),
                reason: "a whole repository is expected here, without :FILE",
            });
        }
        let repository = self.repository(Kind::Model, &reference)?;
        let cached = repository.commit(&reference);
        let missing = match &cached {
            Some(commit) => contents.missing(&repository, commit)?,
            None => Some(contents.first().to_string()),
        };
        let cached = match (&missing, &cached) {
            (None, Some(commit)) => Some(repository.snapshot(commit)),
            _ => None,
        };
        if let Some(directory) = &cached
            && (self.config.offline || is_commit(&reference.revision))
        {
            return Ok(directory.clone());
        }
        self.check_online(&repository, &reference, missing)?;

        let attempts = self.attempts(cached.is_some());
        let listing = self
            .client()
            .and_then(|client| client.listing(&repository, &reference, attempts, progress));
        let listing = match (listing, cached) {
            (Ok(listing), _) => listing,
            (Err(error), cached) => return fall_back(&reference, error, cached, progress),
        };
        let client = self.client()?;
        let commit = &listing.commit;
        check_pinned(client, &reference, commit)?;
        let has = |file: &str| listing.files.iter().any(|name| name == file);
        for file in contents.wished() {
            if !has(file) {
                // A note for offline runs; a cache that cannot be written to is complete without it.
                let _ = repository.mark_absent(commit, file);
            }
        }
        let files = contents.files(&reference, &listing.files)?;
        self.fetch_missing(&repository, commit, &files, progress)?;
        let shards = contents.shards(&repository, commit)?;
        self.fetch_missing(&repository, commit, &shards, progress)?;
        note_ref(&repository, &reference, commit, progress);
        Ok(repository.snapshot(commit))
    }

    fn dataset_file(
        &self,
        reference: &Reference,
        file: &str,
        progress: &mut HubProgress,
    ) -> Result<PathBuf, HubError> {
        let repository = self.repository(Kind::Dataset, reference)?;
        let cached = repository.commit(reference);
        let cached = cached.map(|commit| repository.snapshot(&commit).join(file));
        let cached = cached.filter(|path| path.exists());
        if let Some(path) = &cached
            && (self.config.offline || is_commit(&reference.revision))
        {
            return Ok(path.clone());
        }
        self.check_online(&repository, reference, Some(file.to_string()))?;

        let attempts = self.attempts(cached.is_some());
        let metadata = self
            .client()
            .and_then(|client| client.metadata(&repository, reference, file, attempts, progress));
        let metadata = match (metadata, cached) {
            (Ok(metadata), _) => metadata,
            (Err(error), cached) => return fall_back(reference, error, cached, progress),
        };
        let client = self.client()?;
        let commit = metadata.commit.clone();
        let commit = commit.ok_or_else(|| HubError::Protocol {
            url: client.endpoint().to_string(),
            reason: format!("the answer for {file} names no commit"),
        })?;
        check_pinned(client, reference, &commit)?;
        let path = repository.snapshot(&commit).join(file);
        if !path.exists() {
            let wanted = Wanted { file: file.to_string(), metadata, limit: u64::MAX };
            fetch(client, &repository, &commit, &[wanted], progress)?;
        }
        note_ref(&repository, reference, &commit, progress);
        Ok(path)
    }

    /// The files of a data set that a pattern, a folder or its id alone means.
    fn data_files(
        &self,
        reference: &Reference,
        progress: &mut HubProgress,
    ) -> Result<PathBuf, HubError> {
        let repository = self.repository(Kind::Dataset, reference)?;
        let cached = repository.commit(reference);
        let cached = cached.map(|commit| (repository.snapshot_files(&commit, 100_000), commit));
        // Local files may be incomplete: the names of shards tell how many there are.
        let whole = |files: Vec<String>| {
            let chosen = data::choose(reference, files)?;
            let missing = data::missing_shard(&chosen.files);
            match missing {
                Some(file) => Err(self.not_cached(&repository, reference, file)),
                None => Ok(chosen),
            }
        };
        let (chosen, commit) = match cached {
            Some((files, commit)) if self.config.offline => (whole(files)?, commit),
            cached => {
                self.check_online(&repository, reference, Some("its data file".to_string()))?;
                let cached = cached.and_then(|(files, commit)| Some((whole(files).ok()?, commit)));
                let attempts = self.attempts(cached.is_some());
                let listing = self
                    .client()
                    .and_then(|client| client.listing(&repository, reference, attempts, progress));
                match (listing, cached) {
                    (Ok(listing), _) => {
                        check_pinned(self.client()?, reference, &listing.commit)?;
                        let chosen = data::choose(reference, listing.files)?;
                        let files: Vec<(String, u64)> =
                            chosen.files.iter().map(|file| (file.clone(), u64::MAX)).collect();
                        self.fetch_missing(&repository, &listing.commit, &files, progress)?;
                        note_ref(&repository, reference, &listing.commit, progress);
                        (chosen, listing.commit)
                    }
                    (Err(error), cached) => fall_back(reference, error, cached, progress)?,
                }
            }
        };
        let snapshot = repository.snapshot(&commit);
        Ok(match data::is_pattern(&chosen.open) {
            // Only the file's name is a pattern.
            true => match snapshot.to_str() {
                Some(snapshot) => PathBuf::from(glob::Pattern::escape(snapshot)).join(&chosen.open),
                None => snapshot.join(&chosen.open),
            },
            false => snapshot.join(&chosen.open),
        })
    }

    /// Downloads those of the files that the snapshot lacks.
    fn fetch_missing(
        &self,
        repository: &Repository,
        commit: &str,
        files: &[(String, u64)],
        progress: &mut HubProgress,
    ) -> Result<(), HubError> {
        let client = self.client()?;
        let reference =
            Reference { id: repository.id.clone(), revision: commit.to_string(), file: None };
        let snapshot = repository.snapshot(commit);
        let mut wanted = Vec::new();
        for (file, limit) in files {
            // A link whose blob was deleted does not exist either.
            if snapshot.join(file).exists() {
                continue;
            }
            let attempts = self.config.retry.attempts;
            wanted.push(Wanted {
                file: file.clone(),
                metadata: client.metadata(repository, &reference, file, attempts, progress)?,
                limit: *limit,
            });
        }
        fetch(client, repository, commit, &wanted, progress)
    }

    fn repository(&self, kind: Kind, reference: &Reference) -> Result<Repository, HubError> {
        let cache = self.config.cache.as_deref();
        let cache = cache.ok_or(HubError::NoCacheDirectory)?;
        Ok(Repository::new(cache, kind, &reference.id))
    }

    fn client(&self) -> Result<&Client, HubError> {
        if self.client.get().is_none() {
            // Two threads may both make one; the second is dropped.
            let _ = self.client.set(Client::new(&self.config)?);
        }
        Ok(self.client.get().expect("set above"))
    }

    /// Once if there is something to fall back to.
    fn attempts(&self, cached: bool) -> u32 {
        if cached { 1 } else { self.config.retry.attempts }
    }

    fn not_cached(&self, repository: &Repository, reference: &Reference, file: String) -> HubError {
        HubError::NotCached {
            repository: reference.id.clone(),
            revision: reference.revision.clone(),
            file,
            cache: repository.root(),
        }
    }

    fn check_online(
        &self,
        repository: &Repository,
        reference: &Reference,
        missing: Option<String>,
    ) -> Result<(), HubError> {
        match missing {
            Some(file) if self.config.offline => Err(self.not_cached(repository, reference, file)),
            _ => Ok(()),
        }
    }
}

/// The cached answer, with a warning; the error if there is none, or if the error is
/// not about the way to the server.
fn fall_back<T>(
    reference: &Reference,
    error: HubError,
    cached: Option<T>,
    progress: &mut HubProgress,
) -> Result<T, HubError> {
    match (cached, &error) {
        (
            _,
            HubError::RevisionNotFound { .. }
            | HubError::FileNotFound { .. }
            | HubError::BadSetting { .. },
        )
        | (None, _) => Err(error),
        (Some(cached), _) => {
            let message = format!(
                "cannot check {}@{} for changes, using the cached files ({error})",
                reference.id, reference.revision
            );
            progress(HubEvent::Warning { message: &message });
            Ok(cached)
        }
    }
}

/// A commit was asked for, and another one is answered.
fn check_pinned(client: &Client, reference: &Reference, commit: &str) -> Result<(), HubError> {
    if is_commit(&reference.revision) && reference.revision != commit {
        return Err(HubError::Protocol {
            url: client.endpoint().to_string(),
            reason: format!(
                "asked for commit {}, the server answers with {commit}",
                reference.revision
            ),
        });
    }
    Ok(())
}

/// Notes where a branch or tag stands, once its files are here. The files do not depend on it.
fn note_ref(
    repository: &Repository,
    reference: &Reference,
    commit: &str,
    progress: &mut HubProgress,
) {
    if !is_commit(&reference.revision)
        && let Err(error) = repository.write_ref(reference, commit)
    {
        let message = error.to_string();
        progress(HubEvent::Warning { message: &message });
    }
}
