//! Preference data: files of pairs, read whole and checked row by row.
//!
//! # Formats
//!
//! `.jsonl` (an object a line), `.csv` (with a header line) and `.parquet`, told apart by their first
//! bytes and then by their extension. Columns:
//!
//! | column | value | |
//! |---|---|---|
//! | `chosen`, `rejected` | the replies: text, or a list of messages `{role, content}` | needed |
//! | `prompt` | text (one user turn), or a list of messages | needed if the replies are text |
//! | `subset` | text | optional |
//! | `id` | text or whole number; without it, the row number counted from 0 | optional |
//!
//! Where only a judgement is wanted ([`Replies::Any`]), `a` and `b` may stand in for `chosen` and
//! `rejected`; they are taken as the first and the second reply. Other columns are ignored. Where the replies are lists of messages (Skywork's form), the turns that both
//! share are the prompt and the last turn of each is the reply; if they share none, `prompt` is the
//! prompt. In CSV, a cell that is a JSON list of messages is read as one, and an empty cell is an empty text.
//!
//! An empty reply is legal, a missing one is an error that names its row. Of rows with the same id, as
//! RewardBench has them, the second is called `id#2`, the third `id#3`, in the order of the file.

pub(crate) mod csv;
mod jsonl;
mod pages;
mod parquet;
mod rows;
mod sample;
mod thrift;
mod zstd;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub(crate) use rows::{Place, Turns, turns};
pub use sample::sample;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::fingerprint::Fingerprint;

/// Data sets that `--data` knows by name; they are fetched as files like any other.
pub const KNOWN: [Known; 2] = [
    Known {
        name: "rewardbench",
        dataset: "allenai/reward-bench",
        file: "data/filtered-00000-of-00001.parquet",
    },
    Known {
        name: "skywork",
        dataset: "Skywork/Skywork-Reward-Preference-80K-v0.2",
        file: "data/train-00000-of-00001.parquet",
    },
];

/// A data set known by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The name on the command line.
    pub name: &'static str,
    /// The Hugging Face data set.
    pub dataset: &'static str,
    /// The file in it.
    pub file: &'static str,
}

/// The known data set of this name.
pub fn known(name: &str) -> Option<Known> {
    KNOWN.into_iter().find(|known| known.name == name)
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn from borrowed texts.
    pub fn new(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }
}

/// One preference: a conversation and two replies, of which one was preferred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Unique in its data set.
    pub id: String,
    /// Position in the file, counted from 0.
    pub row: u64,
    /// The conversation up to the turn that the replies answer.
    pub prompt: Vec<Message>,
    /// The preferred reply.
    pub chosen: String,
    /// The other reply.
    pub rejected: String,
    /// RewardBench's subset or the like.
    pub subset: Option<String>,
}

/// A file format of preference data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An object a line.
    Jsonl,
    /// Comma-separated, with a header line.
    Csv,
    /// Apache Parquet.
    Parquet,
}

/// Why data could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The system said so.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The data file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No reader fits.
    #[error("{}: not a data file this program reads ({found}); it reads .jsonl, .csv and .parquet", path.display())]
    UnknownFormat {
        /// The data file.
        path: PathBuf,
        /// What it looks like.
        found: String,
    },
    /// There is nothing in it.
    #[error("{}: the file has no rows; look at how it was made, or give another", path.display())]
    Empty {
        /// The data file.
        path: PathBuf,
    },
    /// A line or cell is longer than any sensible text.
    #[error("{}, line {line}: longer than {limit} bytes", path.display())]
    TooLong {
        /// The data file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A line is not UTF-8.
    #[error("{}, line {line}: byte {byte} is not valid UTF-8; convert the file to UTF-8", path.display())]
    NotUtf8 {
        /// The data file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Offset in the line (CSV: in the cell) of the first invalid byte.
        byte: usize,
    },
    /// A line does not parse.
    #[error("{}, line {line}: {message}", path.display())]
    Syntax {
        /// The data file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What is wrong with it.
        message: String,
    },
    /// Needed columns are missing.
    #[error(
        "{}{place}: there is no column {missing}; found: {found}. Needed are chosen and rejected (to \
         judge without labels: a and b), and prompt unless these are lists of messages; subset and id \
         are optional", path.display()
    )]
    MissingColumn {
        /// The data file.
        path: PathBuf,
        /// `, line 7`, where earlier rows have the column, else empty.
        place: String,
        /// The first column that is missing.
        missing: &'static str,
        /// The columns that there are.
        found: String,
    },
    /// A row does not hold a pair.
    #[error("{}, {place}: {problem}", path.display())]
    Row {
        /// The data file.
        path: PathBuf,
        /// `line 7` or `row 7`.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A Parquet file that is damaged or dangerous.
    #[error("{}: not a sound Parquet file: {message}", path.display())]
    Parquet {
        /// The data file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A Parquet feature without a reader here.
    #[error(
        "{}: column {column} uses {feature}, which is not supported; rewrite the file, for example with \
         python3 -c \"import pandas as p; p.read_parquet('IN').to_parquet('OUT', compression='snappy')\"",
        path.display()
    )]
    Unsupported {
        /// The data file.
        path: PathBuf,
        /// The column that uses it.
        column: String,
        /// The codec or encoding.
        feature: String,
    },
}

/// Under which names the replies may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replies {
    /// As `chosen` and `rejected` only: what is scored needs labels.
    Labeled,
    /// A row without these may have `a` and `b`, which become [`Pair::chosen`] and [`Pair::rejected`].
    Any,
    /// As `chosen` and `rejected` only, with the column `source` read beside them (data preparation).
    Sourced,
}

impl Replies {
    /// Whether the column of this name is read.
    pub(crate) fn reads(self, column: &str) -> bool {
        match column {
            "prompt" | "chosen" | "rejected" | "subset" | "id" => true,
            "a" | "b" => self == Replies::Any,
            "source" => self == Replies::Sourced,
            _ => false,
        }
    }
}

/// Reads the labeled pairs of a file. At least one pair is returned.
pub fn read(path: &Path) -> Result<Vec<Pair>, DataError> {
    read_with(path, None, Replies::Labeled)
}

/// Like [`read`], but the first `limit` rows only, if given, and with a say in what the replies are called.
pub fn read_with(
    path: &Path,
    limit: Option<usize>,
    replies: Replies,
) -> Result<Vec<Pair>, DataError> {
    let limit = limit.unwrap_or(usize::MAX);
    let rows = match detect(path)? {
        Format::Jsonl => jsonl::read(path, limit, replies)?,
        Format::Csv => csv::read(path, limit, replies)?,
        Format::Parquet => parquet::read(path, limit, replies)?,
    };
    if rows.is_empty() {
        return Err(DataError::Empty { path: path.to_owned() });
    }
    Ok(rows::with_unique_ids(rows))
}

/// Shows the rows of a file one by one, before they are made pairs: the values of the columns that
/// `replies` reads; of other columns at least the name.
pub(crate) fn visit<E: From<DataError>>(
    path: &Path,
    replies: Replies,
    each: impl FnMut(Place, Map<String, Value>) -> Result<(), E>,
) -> Result<(), E> {
    match detect(path)? {
        Format::Jsonl => jsonl::visit(path, usize::MAX, each),
        Format::Csv => csv::visit_values(path, usize::MAX, replies, each),
        Format::Parquet => parquet::visit(path, usize::MAX, replies, each),
    }
}

/// The format of a file, by its first bytes and then by its extension.
pub fn detect(path: &Path) -> Result<Format, DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let unknown = |found: &str| {
        Err(DataError::UnknownFormat { path: path.to_owned(), found: found.to_owned() })
    };
    if path.is_dir() {
        return unknown("a directory; give a file in it");
    }
    let mut start = Vec::new();
    File::open(path).map_err(io)?.take(64).read_to_end(&mut start).map_err(io)?;
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&start).trim_ascii_start();
    match start.as_slice() {
        [] => return Err(DataError::Empty { path: path.to_owned() }),
        [b'P', b'A', b'R', b'1', ..] => return Ok(Format::Parquet),
        [b'P', b'A', b'R', b'E', ..] => return unknown("an encrypted Parquet file"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return unknown("UTF-16; convert it to UTF-8"),
        [0x1f, 0x8b, ..] => return unknown("gzip; decompress it first"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => return unknown("zstd; decompress it first"),
        [b'P', b'K', 3, 4, ..] => return unknown("a zip archive; unpack it first"),
        [b'A', b'R', b'R', b'O', b'W', ..] => return unknown("an Arrow file"),
        _ if text.starts_with(b"version https://git-lfs") => {
            return unknown("a Git LFS pointer; fetch the file itself with git lfs pull");
        }
        _ if text.starts_with(b"<") => return unknown("a web page or XML"),
        _ => {}
    }
    match extension.as_str() {
        "csv" => Ok(Format::Csv),
        "parquet" => unknown("no Parquet signature at its start"),
        "jsonl" | "ndjson" => Ok(Format::Jsonl),
        _ if text.starts_with(b"{") => Ok(Format::Jsonl),
        "json" => unknown("one JSON value; write an object a line"),
        _ => unknown("unknown extension and content"),
    }
}

/// A fingerprint of pairs: the same for the same pairs, whatever file they came from.
pub fn fingerprint(pairs: &[Pair]) -> String {
    let mut fingerprint = Fingerprint::new();
    for pair in pairs {
        fingerprint.text(&pair.id);
        add_content(&mut fingerprint, pair);
    }
    fingerprint.finish()
}

/// All of a pair but its id and its place.
fn add_content(fingerprint: &mut Fingerprint, pair: &Pair) {
    fingerprint.text(if pair.subset.is_some() { "subset" } else { "no subset" });
    fingerprint.text(pair.subset.as_deref().unwrap_or(""));
    fingerprint.text(&pair.prompt.len().to_string());
    for message in &pair.prompt {
        fingerprint.text(&message.role);
        fingerprint.text(&message.content);
    }
    fingerprint.text(&pair.chosen);
    fingerprint.text(&pair.rejected);
}

#[cfg(test)]
mod tests;
