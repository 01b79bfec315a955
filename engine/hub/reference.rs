//! The meaning of a string that names a model, an adapter or data: a path, or the id of a repository.
//!
//! ```text
//! owner/name [@revision] [:file]      revision: branch, tag or commit; file: data sets only, a folder or pattern, too
//! ```
//!
//! A path that exists always wins. A string that looks like a path is never taken for an id: it starts
//! with `.`, `/` or `~`, has more than one slash in the id's place, or ends like a data file.

use super::HubError;
use super::config::expand_home;
use super::error::io_error;
use crate::error::is_there;
use std::path::{Path, PathBuf};

/// Endings of files, never of repositories.
const FILE_ENDINGS: [&str; 10] = [
    ".jsonl",
    ".ndjson",
    ".json",
    ".csv",
    ".parquet",
    ".arrow",
    ".feather",
    ".gz",
    ".safetensors",
    ".gguf",
];

/// A string resolved as far as the file system goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Location {
    /// It exists here.
    Local(PathBuf),
    /// It may exist there.
    Remote(Reference),
}

/// A revision of a repository, and maybe a file in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// `owner/name`.
    pub(super) id: String,
    /// Branch, tag or commit; `main` if not given.
    pub(super) revision: String,
    /// The file's path in the repository.
    pub(super) file: Option<String>,
}

/// A path if it exists, else an id.
pub(super) fn locate(spec: &str, home: Option<&Path>) -> Result<Location, HubError> {
    if spec.is_empty() {
        return Err(bad_id(spec, "nothing was given"));
    }
    let path = expand_home(Path::new(spec), home);
    match path.try_exists() {
        Ok(true) => return Ok(Location::Local(path)),
        // An error where a link of that name leads to nothing.
        Ok(false) => drop(is_there(&path)?),
        // Too long for a name, or through a file: not a path, maybe an id.
        Err(error) if error.kind() != std::io::ErrorKind::PermissionDenied => {}
        Err(error) => return Err(io_error("look up", &path, error)),
    }
    let name = spec.split(['@', ':']).next().unwrap_or_default();
    let ends_like_a_file = |s: &str| FILE_ENDINGS.iter().any(|ending| s.ends_with(ending));
    if spec.starts_with(['.', '/', '~'])
        || name.matches('/').count() > 1
        || ends_like_a_file(name)
        || (!name.contains('/') && ends_like_a_file(spec))
    {
        return Err(HubError::PathNotFound { path });
    }
    parse(spec).map(Location::Remote)
}

/// `owner/name[@revision][:file]`, with every part checked: each becomes part of a path and a URL.
pub(super) fn parse(spec: &str) -> Result<Reference, HubError> {
    let (rest, file) = match spec.split_once(':') {
        // A folder's name may end in a slash.
        Some((rest, file)) => (rest, Some(file.trim_end_matches('/'))),
        None => (spec, None),
    };
    let (id, revision) = match rest.split_once('@') {
        Some((id, revision)) => (id, revision),
        None => (rest, "main"),
    };
    check_id(id).map_err(|reason| bad_id(spec, reason))?;
    check_revision(revision).map_err(|reason| bad_id(spec, reason))?;
    if let Some(file) = file {
        check_file_name(file).map_err(|reason| bad_id(spec, reason))?;
    }
    Ok(Reference {
        id: id.to_string(),
        revision: revision.to_string(),
        file: file.map(str::to_string),
    })
}

/// The hub's own rule for ids (huggingface_hub, validate_repo_id), with the owner required.
fn check_id(id: &str) -> Result<(), &'static str> {
    let Some((owner, name)) = id.split_once('/') else {
        return Err("no such path, and not an id, which has one slash");
    };
    for part in [owner, name] {
        if part.is_empty() || part.len() > 96 {
            return Err("an id's parts have 1 to 96 characters");
        }
        if !part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err("an id has only letters, digits, '-', '_' and '.'");
        }
        if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
            return Err("an id's parts do not start or end with '-' or '.'");
        }
        if part.contains("--") || part.contains("..") {
            return Err("an id has no '--' and no '..'");
        }
    }
    Ok(())
}

/// What git allows in a name (git-check-ref-format), less what has a meaning here.
fn check_revision(revision: &str) -> Result<(), &'static str> {
    if revision.is_empty() || revision.len() > 255 {
        return Err("a revision has 1 to 255 characters");
    }
    let forbidden = |c: char| c.is_control() || " ~^:?*[\\@\"<>|".contains(c);
    if revision.contains(forbidden) || revision.contains("..") || revision.starts_with('-') {
        return Err("a revision is a branch, a tag or a commit as git allows them");
    }
    // `.lock` is git's rule too.
    if revision
        .split('/')
        .any(|part| part.is_empty() || part.starts_with('.') || part.ends_with(".lock"))
    {
        return Err("a revision has no empty or hidden part");
    }
    Ok(())
}

/// A relative path that stays where it is put.
pub(super) fn check_file_name(file: &str) -> Result<(), &'static str> {
    if file.is_empty() || file.len() > 1024 {
        return Err("a file name has 1 to 1024 bytes");
    }
    if file.contains('\\') || file.contains(char::is_control) {
        return Err("it has a backslash or a control character");
    }
    for part in file.split('/') {
        if part.is_empty() || part == "." || part == ".." {
            return Err("it is absolute, or has an empty, '.' or '..' part");
        }
        if part.len() > 255 {
            return Err("a part of it is longer than 255 bytes");
        }
    }
    Ok(())
}

/// A full git commit id, as huggingface_hub takes it.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40
        && revision.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn bad_id(spec: &str, reason: &'static str) -> HubError {
    HubError::BadId { spec: spec.to_string(), reason }
}
