//! `--profile FILE`: a Chrome trace of the run. It grows beside FILE, as FILE.partial, and takes FILE's name
//! when it is whole: at the end of the command, whether that worked or not, on a panic, on Ctrl-C and on
//! termination. A process that is killed leaves FILE.partial, which lacks its end; the next run replaces it.

use engine::{error::is_disk_full, files::Staged};
use std::{
    ffi::OsString,
    fmt,
    fs::{self, File, TryLockError},
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Mutex, PoisonError},
};

use kernels::cpu::profile;

use crate::output::note;

/// The profile that is being written.
static RECORDING: Mutex<Option<Recording>> = Mutex::new(None);

struct Recording {
    path: PathBuf,
    partial: PathBuf,
    file: File,
}

/// A profile that cannot be written.
#[derive(Debug)]
pub(crate) enum ProfileError {
    /// FILE is there and no file: a directory, or a device that a rename would replace.
    NotAFile { path: PathBuf },
    /// Another process writes the same profile.
    Busy { path: PathBuf },
    /// The file cannot be made.
    Create { path: PathBuf, source: io::Error },
    /// The profile was begun, and could not be written to its end.
    Write { path: PathBuf, source: io::Error },
}

impl fmt::Display for ProfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProfileError::NotAFile { path } => {
                write!(f, "--profile {}: not a regular file; name a file to write", path.display())
            }
            ProfileError::Busy { path } => write!(
                f,
                "--profile {}: another j1 is writing this profile; choose another file",
                path.display()
            ),
            ProfileError::Create { path, source } => write!(
                f,
                "--profile: cannot create {}: {source}; choose a file in a directory that exists and that you can \
                 write to",
                path.display()
            ),
            ProfileError::Write { path, source } => {
                let advice = match is_disk_full(source) {
                    true => "the disk is full; free some space or profile a shorter run",
                    false => "choose another file",
                };
                write!(
                    f,
                    "the profile is lost: cannot write {} ({source}): {advice}. The command itself went on without it",
                    path.display()
                )
            }
        }
    }
}

impl std::error::Error for ProfileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ProfileError::NotAFile { .. } | ProfileError::Busy { .. } => None,
            ProfileError::Create { source, .. } | ProfileError::Write { source, .. } => {
                Some(source)
            }
        }
    }
}

/// Starts to record this run of `j1 command` to `path`.
pub(crate) fn start(path: &Path, command: &str) -> Result<(), ProfileError> {
    let recording = Recording::create(path)?;
    let out = recording.file.try_clone().map_err(|source| recording.cannot_create(source))?;
    *lock() = Some(recording);
    profile::start(&format!("j1 {command}"), Box::new(out));
    Ok(())
}

/// The status of `command`, and the profile completed, also where the command panics: nothing else of it is looked at then.
pub(crate) fn finish_after(command: impl FnOnce() -> ExitCode) -> ExitCode {
    match catch_unwind(AssertUnwindSafe(command)) {
        Ok(status) => finish(status),
        Err(panic) => {
            finish(ExitCode::FAILURE);
            resume_unwind(panic)
        }
    }
}

/// Completes the profile, if one is recorded: `status`, or that of a failure if the profile is all that
/// failed. What became of it is said on stderr.
pub(crate) fn finish(status: ExitCode) -> ExitCode {
    // Held to the end: where Ctrl-C and the command's own end meet, one waits for the other.
    let mut recording = lock();
    let Some(recording) = recording.take() else { return status };
    let path = recording.path.clone();
    match recording.complete(profile::finish()) {
        Ok(slices) => {
            note(&format!(
                "profile: {slices} slices in {}; open it in https://ui.perfetto.dev (it stays on this machine) or \
                 chrome://tracing",
                path.display()
            ));
            status
        }
        Err(error) => {
            note(&format!("j1: {error}"));
            if status == ExitCode::SUCCESS { ExitCode::FAILURE } else { status }
        }
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Recording>> {
    RECORDING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recording {
    fn create(path: &Path) -> Result<Recording, ProfileError> {
        let path = path.to_owned();
        if path.file_name().is_none() || fs::metadata(&path).is_ok_and(|there| !there.is_file()) {
            return Err(ProfileError::NotAFile { path });
        }
        let mut partial = OsString::from(&path);
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        // Emptied only once it is ours.
        let file = File::options().write(true).create(true).truncate(false).open(&partial);
        let file = file.map_err(|source| ProfileError::Create { path: partial.clone(), source })?;
        let recording = Recording { path, partial, file };
        match recording.file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(ProfileError::Busy { path: recording.path }),
            // A file system without locks keeps nobody from profiling.
            Err(TryLockError::Error(_)) | Ok(()) => {
                recording.file.set_len(0).map_err(|source| recording.cannot_create(source))?;
                Ok(recording)
            }
        }
    }

    fn cannot_create(&self, source: io::Error) -> ProfileError {
        ProfileError::Create { path: self.partial.clone(), source }
    }

    /// Gives a whole profile its name, and takes away one that is not.
    fn complete(self, written: io::Result<u64>) -> Result<u64, ProfileError> {
        let Recording { path, partial, file } = self;
        let staged = Staged::new(partial, path.clone());
        let placed = written.and_then(|slices| {
            file.sync_all()?;
            staged.place()?;
            Ok(slices)
        });
        placed.map_err(|source| ProfileError::Write { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_leaves_a_whole_profile() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("trace.json");
        start(&path, "check").unwrap();
        let ended = catch_unwind(|| finish_after(|| panic!("in the middle of a command")));
        assert!(ended.is_err());
        let events = fs::read_to_string(&path).unwrap();
        let events: Vec<serde_json::Value> = serde_json::from_str(&events).unwrap();
        assert!(events.iter().any(|event| event["args"]["name"] == "j1 check"), "{events:?}");
        assert!(!path.with_extension("json.partial").exists());
    }
}
