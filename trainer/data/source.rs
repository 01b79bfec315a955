//! Where rows come from: a file, standard input or a pipe, or the shards of a directory or a pattern.
//!
//! Rows are read more than once, so what can be read once only is copied first, into a file without a name that is gone
//! with the process. Gzip is unfolded while it is read, up to a bound.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::hub::data::{PATTERN, is_data, is_pattern, split};
use flate2::read::MultiGzDecoder;
use glob::glob_with;

use super::{DataError, Format};
use crate::data::fingerprint::{self, Fingerprint};

/// The most that a pipe may deliver, in bytes.
const MAX_PIPE: u64 = 16 << 30;
/// The most bytes a gzip file may decompress to: this, or a multiple of its own size if that is more. Tests use less.
const MAX_UNFOLDED: (u64, u64) = (if cfg!(test) { 4 << 20 } else { 256 << 20 }, 64);
/// Bytes by which a format is known. Enough for the header line of a CSV file.
const START: u64 = 4096;
/// One data set, in one or several parts.
#[derive(Debug, Clone)]
pub struct Source {
    path: PathBuf,
    parts: Vec<Part>,
}

/// A file of rows.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    path: PathBuf,
    /// The bytes of a pipe, in a temporary file.
    copy: Option<Arc<File>>,
    gzip: bool,
    format: Format,
}

impl Source {
    /// What `path` means: a file; `-` for standard input; a directory, for the data files in it; or a pattern with
    /// `*`, `?` and `[...]`. Files are sorted by name.
    pub fn open(path: &Path) -> Result<Source, DataError> {
        let parts = if path == Path::new("-") {
            vec![Part::copied(Path::new("standard input"), io::stdin().lock())?]
        } else if path.is_dir() {
            shards(path)?
        } else {
            match path.to_str().filter(|text| is_pattern(text)) {
                Some(pattern) if path.symlink_metadata().is_err() => matching(path, pattern)?,
                _ => vec![Part::open(path)?],
            }
        };
        Ok(Source { path: path.to_owned(), parts })
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last part of its path, for reports. It does not depend on the directory.
    pub(crate) fn name(&self) -> Cow<'_, str> {
        match self.path.file_name() {
            Some(name) => name.to_string_lossy(),
            None => self.path.to_string_lossy(),
        }
    }

    /// The format of its first part.
    pub fn format(&self) -> Format {
        self.parts[0].format
    }

    /// Paths of its parts.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(Part::path)
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The fingerprint of its bytes; of several parts, of their names and bytes.
    pub(crate) fn fingerprint(&self) -> Result<String, DataError> {
        let print = |part: &Part| {
            let print = part.file().and_then(fingerprint::of_reader);
            print.map_err(|source| part.io(source))
        };
        if let [part] = self.parts.as_slice() {
            return print(part);
        }
        let mut all = Fingerprint::new();
        for part in &self.parts {
            all.text(&part.path.file_name().unwrap_or_default().to_string_lossy());
            all.text(&print(part)?);
        }
        Ok(all.finish())
    }
}

impl Part {
    fn open(path: &Path) -> Result<Part, DataError> {
        let io = |source| DataError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Part::copied(path, file);
        }
        let mut start = Vec::new();
        file.take(START).read_to_end(&mut start).map_err(io)?;
        let mut part =
            Part { path: path.to_owned(), copy: None, gzip: false, format: Format::Jsonl };
        part.recognize(&start, false)?;
        Ok(part)
    }

    /// A copy of what can be read once. What is not data is refused before it is copied.
    fn copied(path: &Path, mut pipe: impl Read) -> Result<Part, DataError> {
        let io = |source| DataError::Io { path: path.to_owned(), source };
        let mut start = Vec::new();
        pipe.by_ref().take(START).read_to_end(&mut start).map_err(io)?;
        let mut copy = tempfile::tempfile().map_err(|source| DataError::Copy { source })?;
        let mut part =
            Part { path: path.to_owned(), copy: None, gzip: false, format: Format::Jsonl };
        if !start.starts_with(&[0x1f, 0x8b]) {
            part.recognize(&start, true)?;
        }
        let mut left = start.as_slice().chain(pipe).take(MAX_PIPE + 1);
        let mut piece = vec![0; 1 << 16];
        let mut length = 0;
        loop {
            let read = match left.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(io(error)),
            };
            length += read as u64;
            let written = io::Write::write_all(&mut copy, &piece[..read]);
            written.map_err(|source| DataError::Copy { source })?;
        }
        if length > MAX_PIPE {
            let message = format!("it delivers more than {MAX_PIPE} bytes; write a file");
            return Err(DataError::TooLarge { path: path.to_owned(), message });
        }
        part.copy = Some(Arc::new(copy));
        part.recognize(&start, true)?;
        Ok(part)
    }

    /// Sets the format by the first bytes, of what gzip holds if it is that.
    fn recognize(&mut self, start: &[u8], is_pipe: bool) -> Result<(), DataError> {
        self.gzip = start.starts_with(&[0x1f, 0x8b]);
        let mut name = self.path.clone();
        let mut unfolded = Vec::new();
        if self.gzip {
            let read = self.reader()?.take(START).read_to_end(&mut unfolded);
            read.map_err(|source| self.io(source))?;
            name.set_extension(if self.ends_with("gz") || self.ends_with("gzip") {
                ""
            } else {
                "x"
            });
        }
        let start = if self.gzip { &unfolded } else { start };
        let extension =
            name.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
        self.format = format(&self.path, start, &extension, is_pipe)?;
        if self.gzip && matches!(self.format, Format::Parquet) {
            return unknown(&self.path, "Parquet in gzip; decompress it first");
        }
        Ok(())
    }

    fn ends_with(&self, extension: &str) -> bool {
        self.path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    pub(super) fn io(&self, source: io::Error) -> DataError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof if self.gzip => {
                let message = "its gzip ends too early; was the download cut?";
                let source = io::Error::new(io::ErrorKind::UnexpectedEof, message);
                DataError::Io { path: self.path.clone(), source }
            }
            io::ErrorKind::FileTooLarge => {
                DataError::TooLarge { path: self.path.clone(), message: source.to_string() }
            }
            _ => DataError::Io { path: self.path.clone(), source },
        }
    }

    /// The bytes on the disk, from the beginning.
    pub(super) fn file(&self) -> io::Result<File> {
        match &self.copy {
            // The copies share their place, and one is read at a time.
            Some(copy) => {
                let mut copy = copy.try_clone()?;
                copy.rewind()?;
                Ok(copy)
            }
            None => File::open(&self.path),
        }
    }

    /// The bytes of the data, from the beginning.
    pub(super) fn reader(&self) -> Result<Box<dyn Read + '_>, DataError> {
        let file = self.file().map_err(|source| self.io(source))?;
        if !self.gzip {
            return Ok(Box::new(file));
        }
        let length = file.metadata().map_err(|source| self.io(source))?.len();
        let limit = MAX_UNFOLDED.0.max(length.saturating_mul(MAX_UNFOLDED.1));
        Ok(Box::new(Bounded {
            inner: MultiGzDecoder::new(io::BufReader::new(file)),
            left: limit,
            limit,
        }))
    }
}

/// Fails where there is more than a limit.
struct Bounded<R> {
    inner: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        match self.left.checked_sub(length as u64) {
            Some(left) => {
                self.left = left;
                Ok(length)
            }
            None => {
                let message = format!("it unfolds to more than {} bytes", self.limit);
                Err(io::Error::new(io::ErrorKind::FileTooLarge, message))
            }
        }
    }
}

/// The files whose names fit a pattern, by name.
fn matching(path: &Path, pattern: &str) -> Result<Vec<Part>, DataError> {
    let found = match glob_with(pattern, PATTERN) {
        Ok(found) => found,
        Err(error) => return unknown(path, &format!("a pattern with an error: {}", error.msg)),
    };
    let mut names = Vec::new();
    for file in found {
        let file = file.map_err(|error| DataError::Io {
            path: error.path().to_owned(),
            source: error.into(),
        })?;
        if !file.is_dir() {
            names.push(file);
        }
    }
    match names.is_empty() {
        true => unknown(path, "no file has a name of this pattern"),
        false => parts(path, &names),
    }
}

/// The data files of a directory, by name.
fn shards(directory: &Path) -> Result<Vec<Part>, DataError> {
    let io = |source| DataError::Io { path: directory.to_owned(), source };
    let (mut names, mut directories) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        // A name that is not UTF-8 is no shard's.
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let Some(name) = name.filter(|name| !name.starts_with(['.', '_'])) else { continue };
        if path.is_dir() {
            directories.push(name);
        } else if is_data(&name) {
            names.push(path);
        }
    }
    names.sort();
    directories.sort();
    if names.is_empty() {
        let found = match directories.as_slice() {
            [] => "a directory without data files".to_owned(),
            _ => format!(
                "a directory without data files, but with {}; give one of these",
                directories[..directories.len().min(5)].join(", ")
            ),
        };
        return unknown(directory, &found);
    }
    let name = |path: &PathBuf| split(path.file_name()?.to_str()?);
    let mut splits: Vec<&str> = names.iter().filter_map(name).collect();
    splits.dedup();
    if splits.len() > 1 {
        let found = format!(
            "a directory with the parts {} of a data set; give one of them, as a file or as '{}*'",
            splits.join(", "),
            directory.join(splits[0]).display()
        );
        return unknown(directory, &found);
    }
    parts(directory, &names)
}

/// The files of one data set, which must be of one format.
fn parts(given: &Path, names: &[PathBuf]) -> Result<Vec<Part>, DataError> {
    let parts: Vec<Part> = names.iter().map(|path| Part::open(path)).collect::<Result<_, _>>()?;
    match parts.iter().find(|part| part.format != parts[0].format) {
        None => Ok(parts),
        Some(other) => {
            let [first, other] = [&parts[0], other].map(|part| part.path.display());
            let found = format!("several formats, such as {first} and {other}; give a pattern");
            unknown(given, &found)
        }
    }
}

fn unknown<T>(path: &Path, found: &str) -> Result<T, DataError> {
    Err(DataError::UnknownFormat { path: path.to_owned(), found: found.to_owned() })
}

/// The format of a file, by its first bytes and then by its extension; of a pipe, which has none, by its first bytes.
pub(super) fn format(
    path: &Path,
    start: &[u8],
    extension: &str,
    is_pipe: bool,
) -> Result<Format, DataError> {
    let unknown = |found: &str| unknown(path, found);
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    match start {
        [] => return Err(DataError::Empty { path: path.to_owned() }),
        [b'P', b'A', b'R', b'1', ..] => return Ok(Format::Parquet),
        [b'P', b'A', b'R', b'E', ..] => return unknown("an encrypted Parquet file"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return unknown("UTF-16; convert it to UTF-8"),
        [0x1f, 0x8b, ..] => return unknown("gzip in gzip; decompress it first"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => return unknown("zstd; decompress it first"),
        [b'B', b'Z', b'h', ..] => return unknown("bzip2; decompress it first"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => return unknown("xz; decompress it first"),
        [b'P', b'K', 3, 4, ..] => return unknown("a zip archive; unpack it first"),
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] | [0xff, 0xff, 0xff, 0xff, ..] => {
            return Ok(Format::Arrow);
        }
        [b'F', b'E', b'A', b'1', ..] => {
            return unknown(
                "the old Feather format; write it again with pyarrow.feather.write_feather",
            );
        }
        _ => {}
    }
    if let Some(stand_in) = engine::error::stand_in(start) {
        return unknown(stand_in);
    }
    if text.starts_with(b"<") {
        return unknown("a web page or XML");
    }
    match extension {
        "csv" => Ok(Format::Csv),
        "parquet" => unknown("no Parquet signature at its start"),
        "arrow" | "feather" => unknown("no Arrow signature at its start"),
        "jsonl" | "ndjson" => Ok(Format::Jsonl),
        _ if text.starts_with(b"{") || text.starts_with(b"[") => Ok(Format::Jsonl),
        "json" => unknown("neither a JSON object nor a list of objects"),
        _ if is_pipe && is_header(start) => Ok(Format::Csv),
        _ => unknown("unknown extension and content"),
    }
}

/// Whether the first line of a text names several columns.
fn is_header(start: &[u8]) -> bool {
    let line = start.split(|&byte| byte == b'\n').next().unwrap_or(start);
    let is_text =
        std::str::from_utf8(line).is_ok_and(|line| !line.trim_end().contains(char::is_control));
    is_text && line.contains(&b',')
}
