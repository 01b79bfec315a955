//! From a list of missing files to blobs in the cache.
//!
//! A file arrives in `blobs/{etag}.incomplete`. A Range request continues what an earlier run left there, and a connection that
//! broke. The file gets its name when length and checksum hold.

use super::cache::{Repository, free_bytes, make_parent};
use super::checksum::Checksum;
use super::client::{Client, Failure, Metadata};
use super::error::io_error;
use super::reference::Reference;
use super::{HubError, HubEvent, HubProgress};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// After this many new bytes the count of broken connections starts again: a bad line still delivers
/// large files, and a server that sends one byte per connection does not keep us for ever.
const PROGRESS_BYTES: u64 = 16 << 20;
/// The most bytes that are accepted of a file if no length is announced.
const UNSIZED_LIMIT: u64 = 64 << 20;

/// A file to download, and what the hub says of it.
pub(super) struct Wanted {
    pub(super) file: String,
    pub(super) metadata: Metadata,
    /// The most bytes that are accepted.
    pub(super) limit: u64,
}

/// Downloads what the cache lacks and links it into the snapshot of a commit.
pub(super) fn fetch(
    client: &Client,
    repository: &Repository,
    commit: &str,
    wanted: &[Wanted],
    progress: &mut HubProgress,
) -> Result<(), HubError> {
    let mut needed: u64 = 0;
    for Wanted { file, metadata, limit } in wanted {
        let size = metadata.size.unwrap_or(0);
        if size > *limit {
            return Err(HubError::TooLarge { file: file.clone(), size, limit: *limit });
        }
        let blob = repository.blob(&metadata.etag);
        if !is_whole(&blob, metadata.size) {
            let here = length(&incomplete(&blob)).unwrap_or(0);
            needed = needed.saturating_add(size.saturating_sub(here));
        }
    }
    let root = repository.root();
    if let Some(available) = free_bytes(&root)
        && needed > available
    {
        return Err(HubError::DiskSpace { path: root, needed, available });
    }
    let reference =
        Reference { id: repository.id.clone(), revision: commit.to_string(), file: None };
    for Wanted { file, metadata, .. } in wanted {
        let blob = repository.blob(&metadata.etag);
        if !is_whole(&blob, metadata.size) {
            make_parent(&blob)?;
            let mut waiting = || progress(HubEvent::WaitingForLock { file });
            let lock = repository.lock(&metadata.etag, &mut waiting)?;
            // Another process may have brought it meanwhile.
            if !is_whole(&blob, metadata.size) {
                let download = Download {
                    client,
                    repository,
                    reference: &reference,
                    file,
                    metadata,
                    partial: incomplete(&blob),
                };
                download.run(progress)?;
                fs::rename(&download.partial, &blob)
                    .map_err(|error| io_error("rename", &download.partial, error))?;
            }
            drop(lock);
        }
        repository.link(commit, file, &metadata.etag)?;
    }
    Ok(())
}

/// The download of one file.
struct Download<'a> {
    client: &'a Client,
    repository: &'a Repository,
    reference: &'a Reference,
    file: &'a str,
    metadata: &'a Metadata,
    partial: PathBuf,
}

/// The bytes on disk, and their checksum so far.
struct Progressed {
    output: File,
    bytes: u64,
    checksum: Checksum,
}

impl Download<'_> {
    /// Downloads until the partial file is whole and right.
    fn run(&self, progress: &mut HubProgress) -> Result<(), HubError> {
        let resumed = match (length(&self.partial), self.metadata.size) {
            (Some(here), Some(size)) if here <= size => here,
            // Without a length there is nothing to continue towards.
            _ => 0,
        };
        let outcome = self.run_from(resumed, progress);
        match outcome {
            // What an earlier run left may be of other bytes (a crash, another tool): once more from the start.
            Err(HubError::Checksum { .. }) if resumed > 0 => {
                let message =
                    format!("{}: the partial download was damaged; starting again", self.file);
                progress(HubEvent::Warning { message: &message });
                self.run_from(0, progress)
            }
            outcome => outcome,
        }
    }

    fn run_from(&self, resumed: u64, progress: &mut HubProgress) -> Result<(), HubError> {
        let size = self.metadata.size;
        let mut state = self.open_partial(resumed)?;
        progress(HubEvent::Started { file: self.file, total_bytes: size, resumed_bytes: resumed });
        let (mut made, mut mark) = (0, resumed);
        while size != Some(state.bytes) || made == 0 && state.bytes == 0 {
            let failure = match self.receive(&mut state, progress) {
                Ok(()) => break,
                Err(failure) => failure,
            };
            if state.bytes >= mark.saturating_add(PROGRESS_BYTES) {
                (made, mark) = (0, state.bytes);
            }
            made += 1;
            let attempts = self.client.retry().attempts;
            let (error, asked) = match failure {
                Failure::Passing(error, asked) => (error, asked),
                // The network that was there a moment ago may come back.
                Failure::Lasting(error @ HubError::Network { .. }) if state.bytes > resumed => {
                    (error, Duration::ZERO)
                }
                Failure::Lasting(error) => return Err(error),
            };
            if made >= attempts {
                return Err(match (error, size) {
                    (HubError::Network { reason, .. }, Some(expected)) => HubError::Truncated {
                        file: self.file.to_string(),
                        got: state.bytes,
                        expected,
                        attempts: made,
                        reason,
                    },
                    (error, _) => error,
                });
            }
            self.client.pause(self.file, made, asked, &error, progress);
        }
        let Progressed { output, bytes, checksum } = state;
        let checksum = match size {
            Some(_) => checksum.finish(),
            None => {
                let mut checksum = Checksum::of_etag(&self.metadata.etag, Some(bytes));
                self.read_partial(&mut checksum)?;
                checksum.finish()
            }
        };
        if let Some(got) = checksum
            && got != self.metadata.etag.to_ascii_lowercase()
        {
            fs::remove_file(&self.partial)
                .map_err(|error| io_error("remove", &self.partial, error))?;
            return Err(HubError::Checksum {
                file: self.file.to_string(),
                expected: self.metadata.etag.clone(),
                got,
            });
        }
        output.sync_all().map_err(|error| io_error("write", &self.partial, error))?;
        progress(HubEvent::Finished { file: self.file });
        Ok(())
    }

    /// One connection: from the bytes that are there to the end, or until it breaks.
    fn receive(&self, state: &mut Progressed, progress: &mut HubProgress) -> Result<(), Failure> {
        let answer = self.client.open(self.repository, self.reference, self.file, state.bytes)?;
        let text = |name: &str| answer.headers.get(name)?.to_str().ok();
        let from = match answer.status {
            206 => text("content-range").and_then(range_start),
            _ => Some(0),
        };
        if answer.status == 416 || from != Some(state.bytes) {
            // The server has no such range, or sends another: all of it, then.
            *state = self.open_partial(0).map_err(Failure::Lasting)?;
        }
        if answer.status == 416 || !matches!(from, Some(from) if from == state.bytes) {
            let error = HubError::Protocol {
                url: answer.url,
                reason: "the server sends another range than was asked for".to_string(),
            };
            return Err(Failure::Passing(error, Duration::ZERO));
        }
        let mismatch = |expected: u64, got: u64| {
            Failure::Lasting(HubError::LengthMismatch {
                file: self.file.to_string(),
                expected,
                got,
                endpoint: self.client.endpoint().to_string(),
            })
        };
        let announced = text("content-length").and_then(|text| text.parse::<u64>().ok());
        if let (Some(size), Some(announced)) = (self.metadata.size, announced) {
            let whole = state.bytes.saturating_add(announced);
            if whole != size {
                return Err(mismatch(size, whole));
            }
        }
        let mut reader = answer.body.into_reader();
        // Large enough that system calls do not count, small enough to stay in the L2 cache for hashing.
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(read) => read,
                Err(error) => {
                    let error = ureq::Error::from(error);
                    return Err(self.client.failure(&answer.url, error));
                }
            };
            if read == 0 {
                break;
            }
            let bytes = state.bytes.saturating_add(read as u64);
            match self.metadata.size {
                Some(size) if bytes > size => return Err(mismatch(size, bytes)),
                None if bytes > UNSIZED_LIMIT => {
                    return Err(Failure::Lasting(HubError::TooLarge {
                        file: self.file.to_string(),
                        size: bytes,
                        limit: UNSIZED_LIMIT,
                    }));
                }
                _ => {}
            }
            state
                .output
                .write_all(&buffer[..read])
                .map_err(|error| Failure::Lasting(io_error("write", &self.partial, error)))?;
            state.checksum.update(&buffer[..read]);
            state.bytes = bytes;
            progress(HubEvent::Received { file: self.file, bytes });
        }
        match self.metadata.size {
            Some(size) if state.bytes < size => {
                let error = HubError::Network {
                    url: answer.url,
                    reason: "the connection ended early".to_string(),
                };
                Err(Failure::Passing(error, Duration::ZERO))
            }
            _ => Ok(()),
        }
    }

    /// The partial file with its first `keep` bytes, at their end.
    fn open_partial(&self, keep: u64) -> Result<Progressed, HubError> {
        let mut checksum = Checksum::of_etag(&self.metadata.etag, self.metadata.size);
        let failed = |error| io_error("open", &self.partial, error);
        let output =
            File::options().create(true).append(true).open(&self.partial).map_err(failed)?;
        if keep > 0 {
            self.read_partial(&mut checksum)?;
        } else if output.metadata().map_err(failed)?.len() > 0 {
            output.set_len(0).map_err(failed)?;
        }
        Ok(Progressed { output, bytes: keep, checksum })
    }

    fn read_partial(&self, checksum: &mut Checksum) -> Result<(), HubError> {
        checksum.update_from(&self.partial).map_err(|error| io_error("read", &self.partial, error))
    }
}

/// Whether a blob is there with all its bytes: a crash of the machine may have cut it.
fn is_whole(blob: &Path, size: Option<u64>) -> bool {
    match (length(blob), size) {
        (Some(length), Some(size)) => length == size,
        (length, None) => length.is_some(),
        (None, _) => false,
    }
}

fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.len())
}

fn incomplete(blob: &Path) -> PathBuf {
    let mut name = blob.as_os_str().to_os_string();
    name.push(".incomplete");
    PathBuf::from(name)
}

/// The first byte's position in `bytes 100-199/200`.
fn range_start(value: &str) -> Option<u64> {
    let range = value.trim().strip_prefix("bytes")?.trim_start();
    range.split_once('-')?.0.trim().parse().ok()
}
