//! Reading small text files, with errors: every JSON file and template beside a checkpoint is read here.
//!
//! These files come from strangers. A read is bounded before the first byte is allocated, only regular files are opened
//! (a FIFO would block for ever), and text quoted in a message is escaped and cut.

use std::borrow::Cow;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// A file could not be read as a whole as text.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum FileError {
    /// Nothing is there.
    #[error("{}: no such file", path.display())]
    NotFound { path: PathBuf },
    /// A directory, socket, device or FIFO stands where a file should.
    #[error("{}: not a regular file", path.display())]
    NotAFile { path: PathBuf },
    /// A link to nothing.
    #[error(
        "{}: a link to {target:?}, which is not there; copy what it leads to as well (cp -L), or download the file again",
        path.display()
    )]
    DanglingLink { path: PathBuf, target: PathBuf },
    /// Text that stands in for the file.
    #[error("{}: {what}", path.display())]
    StandIn { path: PathBuf, what: &'static str },
    /// Larger than any sound file of its kind.
    #[error("{}: {len_bytes} bytes, more than the {limit_bytes} that a file of this kind may have", path.display())]
    TooLarge { path: PathBuf, len_bytes: u64, limit_bytes: u64 },
    /// Not UTF-8.
    #[error("{}: not UTF-8 text (byte {valid_up_to})", path.display())]
    NotUtf8 { path: PathBuf, valid_up_to: usize },
    /// Not JSON.
    #[error("{}: not valid JSON: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// Reads a UTF-8 file of at most `limit_bytes`.
pub(crate) fn read_text(path: &Path, limit_bytes: u64) -> Result<String, FileError> {
    let io = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => FileError::NotFound { path: path.to_owned() },
        _ => FileError::Io { path: path.to_owned(), source },
    };
    let metadata = look_up(path)?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile { path: path.to_owned() });
    }
    let too_large =
        |len_bytes| FileError::TooLarge { path: path.to_owned(), len_bytes, limit_bytes };
    if metadata.len() > limit_bytes {
        return Err(too_large(metadata.len()));
    }
    // The length is a promise that the file may break while it is read (or in /proc): hence `take` as well.
    let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
    File::open(path).map_err(io)?.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(too_large(bytes.len() as u64));
    }
    if let Some(what) = stand_in(&bytes) {
        return Err(FileError::StandIn { path: path.to_owned(), what });
    }
    String::from_utf8(bytes).map_err(|error| FileError::NotUtf8 {
        path: path.to_owned(),
        valid_up_to: error.utf8_error().valid_up_to(),
    })
}

/// The metadata of a path; links are followed.
pub fn look_up(path: &Path) -> Result<Metadata, FileError> {
    std::fs::metadata(path).map_err(|source| {
        let path = path.to_owned();
        match (source.kind(), std::fs::read_link(&path)) {
            (ErrorKind::NotFound, Ok(target)) => FileError::DanglingLink { path, target },
            (ErrorKind::NotFound, Err(_)) => FileError::NotFound { path },
            _ => FileError::Io { path, source },
        }
    })
}

/// Whether something is there; a link to nothing is an error.
pub fn is_there(path: &Path) -> Result<bool, FileError> {
    match look_up(path) {
        Ok(_) => Ok(true),
        Err(FileError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a file that begins with `start` only stands in for the one of its name: what it is and what to do, else `None`.
pub fn stand_in(start: &[u8]) -> Option<&'static str> {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let begins = |with: &str| {
        start.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()))
    };
    if begins("version https://git-lfs.") || begins("version https://hawser.") {
        Some("a Git LFS pointer; fetch the file itself with git lfs pull, or download it again")
    } else if begins("<!doctype html") || begins("<html") {
        Some("a web page (of an error or a login?) under the file's name; download the file again")
    } else {
        None
    }
}

/// Parses JSON text that was read from `path`.
pub(crate) fn parse_json(path: &Path, text: &str) -> Result<serde_json::Value, FileError> {
    serde_json::from_str(text).map_err(|source| FileError::Json { path: path.to_owned(), source })
}

/// Whether a disk, or a user's quota of it, is full.
pub fn is_disk_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// Whether permissions, or a read-only file system, forbid to write to a file.
pub fn is_not_writable(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem)
}

/// A stranger's text for a terminal. What could steer it, or show the text as another than it is, is escaped as `\u{1b}`:
/// control characters but line ends and tabs, marks of direction, what has no width or cannot be seen. Joiners stay, of
/// which emoji and Persian are made.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match steers(character) {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    Cow::Owned(shown)
}

/// Whether a character is escaped by [`printable`].
fn steers(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        '\u{ad}' // soft hyphen
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' // directions
        | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}' | '\u{3164}' | '\u{ffa0}' // fillers
        | '\u{200b}' | '\u{2028}' | '\u{2029}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}' | '\u{feff}' // spaces
        | '\u{fff9}'..='\u{fffb}' // annotations
        | '\u{e0000}'..='\u{e0fff}' => true, // tags
        _ => character.is_control(),
    }
}

/// A piece of a stranger's text for a message: on one line, [`printable`], at most 100 characters.
pub fn excerpt(text: &str) -> String {
    excerpt_of(text, 100)
}

/// The same of at most `limit_chars` characters.
pub fn excerpt_of(text: &str, limit_chars: usize) -> String {
    let mut short = String::new();
    for character in text.chars().take(limit_chars) {
        match character {
            '\n' | '\t' => short.extend(character.escape_default()),
            _ => short += &printable(character.encode_utf8(&mut [0; 4])),
        }
    }
    if text.chars().nth(limit_chars).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_a_missing_and_an_oversized_file_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let error = read_text(directory.path(), 10).unwrap_err();
        assert!(matches!(error, FileError::NotAFile { .. }), "{error}");
        let path = directory.path().join("a.json");
        let error = read_text(&path, 10).unwrap_err();
        assert!(matches!(error, FileError::NotFound { .. }), "{error}");
        std::fs::write(&path, "01234567890").unwrap();
        let error = read_text(&path, 10).unwrap_err();
        assert!(matches!(error, FileError::TooLarge { len_bytes: 11, .. }), "{error}");
        assert!(error.to_string().contains("a.json"));
        assert_eq!(read_text(&path, 11).unwrap(), "01234567890");
    }

    const POINTER: &str =
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 11422654\n";

    #[test]
    fn what_stands_in_for_a_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokenizer.json");
        for (text, part) in [
            (POINTER, "git lfs pull"),
            (&POINTER.replace('\n', "\r\n"), "git lfs pull"),
            (&format!("\u{feff}\n{POINTER}"), "git lfs pull"),
            ("version https://hawser.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
            ("<!DOCTYPE html>\n<html>", "web page"),
            ("\n <HTML><head>", "web page"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read_text(&path, 1000).unwrap_err();
            assert!(matches!(error, FileError::StandIn { .. }), "{text}: {error}");
            let message = error.to_string();
            assert!(message.contains(part) && message.contains("tokenizer.json"), "{message}");
        }
        for text in
            ["", "{}", "version", "version 2", "<|im_start|>", "see version https://git-lfs"]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read_text(&path, 1000).unwrap(), text);
        }
    }

    #[test]
    #[cfg(unix)]
    fn a_link_to_nothing_names_its_target() {
        use std::os::unix::fs::symlink;
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("there"), "x").unwrap();
        for (name, target) in
            [("blob", "../../blobs/4d7a"), ("absolute", "/nowhere/at/all"), ("twice", "blob")]
        {
            symlink(target, path(name)).unwrap();
            let error = read_text(&path(name), 10).unwrap_err();
            assert!(matches!(error, FileError::DanglingLink { .. }), "{error}");
            let message = error.to_string();
            for part in [name, target, "cp -L", "download"] {
                assert!(message.contains(part), "{part}: {message}");
            }
            assert!(is_there(&path(name)).is_err());
        }
        symlink("there", path("sound")).unwrap();
        assert_eq!(read_text(&path("sound"), 10).unwrap(), "x");
        assert!(is_there(&path("sound")).unwrap() && !is_there(&path("nothing")).unwrap());
    }

    #[test]
    fn broken_utf8_names_the_byte() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        std::fs::write(&path, b"ab\xffc").unwrap();
        let error = read_text(&path, 10).unwrap_err();
        assert!(matches!(error, FileError::NotUtf8 { valid_up_to: 2, .. }), "{error}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_that_lies_about_its_length_is_still_bounded() {
        // /proc files say 0 bytes; /dev/zero is no regular file.
        let error = read_text(Path::new("/proc/self/maps"), 10).unwrap_err();
        assert!(matches!(error, FileError::TooLarge { .. }), "{error}");
        let error = read_text(Path::new("/dev/zero"), 10).unwrap_err();
        assert!(matches!(error, FileError::NotAFile { .. }), "{error}");
    }

    #[test]
    fn what_steers_a_terminal_is_escaped_and_what_is_text_stays() {
        for (text, shown) in [
            ("\u{1b}]0;x\u{7}\r\n\t", "\\u{1b}]0;x\\u{7}\\r\n\t"),
            ("\u{9b}31m \u{7f}\0", "\\u{9b}31m \\u{7f}\\u{0}"),
            ("a\u{202e}b\u{2066}c\u{200f}", "a\\u{202e}b\\u{2066}c\\u{200f}"),
            ("a\u{200b}\u{feff}\u{e0041}\u{2028}", "a\\u{200b}\\u{feff}\\u{e0041}\\u{2028}"),
        ] {
            assert_eq!(printable(text), shown);
            assert_eq!(printable(shown), shown, "once is enough");
        }
        for text in [
            "",
            "é 中文 שלום مرحبا",
            "👩\u{200d}👩 👍🏽 ❤\u{fe0f}",
            "می\u{200c}خواهم",
            "\\u{1b} \"'\\",
            "e\u{301}",
        ] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text:?}");
        }
    }

    #[test]
    fn an_excerpt_is_short_and_escaped() {
        assert_eq!(excerpt("a\u{202e}\tb"), "a\\u{202e}\\tb");
        assert_eq!(excerpt("a\u{1b}[31m\n"), "a\\u{1b}[31m\\n");
        assert_eq!(excerpt("{\"a\": '\\'}"), "{\"a\": '\\'}");
        assert_eq!(excerpt(&"x".repeat(101)).chars().count(), 101);
        assert_eq!(excerpt(&"x".repeat(100)), "x".repeat(100));
    }
}
