//! Preference data: one reader for every command, which checks files row by row.
//!
//! # Formats
//!
//! JSON (an object a line, objects over several lines, or one list of objects), CSV with a header line, and
//! Parquet and Arrow, told apart by their first bytes and then by their extension; JSON and CSV in gzip, too. A data set may be
//! one file, a pipe, or several files ([`Source`]).
//!
//! # Columns
//!
//! | column | value | |
//! |---|---|---|
//! | `chosen`, `rejected` | the replies: text, or a list of messages | needed |
//! | `prompt` | text (one user turn), or a list of messages | needed if the replies are text |
//! | `system` | text: a system turn before the prompt | optional |
//! | `subset` | text | optional |
//! | `id` | text or whole number; without it, the row number counted from 0 | optional |
//!
//! [`Columns`] has the names by which they are known in public data sets. Other columns are ignored. In place of `chosen`
//! and `rejected` there may be `a` and `b` with a `label`; where only a judgement is wanted ([`Replies::Any`]), without.
//!
//! A message is `{role, content}` or `{from, value}`, and a conversation that is kept as text is read as what it is. Where
//! the replies are lists of messages (Skywork's form), or hh-rlhf's text of `Human:` and `Assistant:`, the turns that both
//! share are the prompt, together with what `prompt` says beyond them, and the last turn of each is the reply. A row
//! whose parts do not fit together is refused with the reason.
//!
//! An empty reply is legal, a missing one is an error that names its row. Of rows with the same id, as
//! RewardBench has them, the second is called `id#2`, the third `id#3`, in the order of the file.

mod arrow;
mod conversation;
pub(crate) mod csv;
pub mod fingerprint;
mod json;
mod jsonl;
mod layout;
pub(crate) mod lines;
mod pages;
mod parquet;
pub mod prepare;
mod python;
mod reason;
mod rows;
mod sample;
mod source;
mod thrift;
mod zstd;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use engine::error::excerpt;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) use layout::Layout;
pub use layout::{Columns, Field};
pub use reason::DropReason;
pub(crate) use reason::Refusal;
pub(crate) use rows::{Place, Row};
pub use sample::{row_count, sample};
pub use source::Source;

use crate::data::fingerprint::Fingerprint;

/// The most text that pairs are made of, in bytes: a row of many replies makes many.
const MAX_PAIRS: u64 = 4 << 30;
/// The most names of columns that a message lists.
const MAX_NAMES: usize = 40;

/// Data sets that are known by name; they are fetched as files like any other.
pub const KNOWN: [Known; 3] = [
    Known {
        name: "rewardbench",
        dataset: "allenai/reward-bench",
        file: "data/filtered-00000-of-00001.parquet",
    },
    Known {
        name: "rewardbench2",
        dataset: "allenai/reward-bench-2",
        file: "data/test-00000-of-00001.parquet",
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
    /// Path of the file in the dataset.
    pub file: &'static str,
}

/// The known data set of this name.
pub fn known(name: &str) -> Option<Known> {
    KNOWN.into_iter().find(|known| known.name == name)
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text of the turn.
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
    /// Which of a row's replies these are, if it has several.
    pub candidates: Option<Candidates>,
}

/// Two of several replies to one prompt, as benchmarks with more than one wrong reply have them. Each chosen reply makes
/// a pair with each rejected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidates {
    /// The row of the file, counted from 0.
    pub row: u64,
    /// Which of its chosen replies, counted from 0.
    pub chosen: u32,
    /// Which of its rejected replies, counted from 0.
    pub rejected: u32,
}

impl Candidates {
    /// The suffix of a pair's id, after the id of its row.
    pub(crate) fn suffix(self) -> String {
        format!("/c{}r{}", self.chosen, self.rejected)
    }
}

/// A file format of preference data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON objects.
    Jsonl,
    /// Comma-separated, with a header line.
    Csv,
    /// Apache Parquet.
    Parquet,
    /// Arrow's IPC format, as a file (Feather) or as a stream.
    Arrow,
}

/// Why data could not be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum DataError {
    /// The system said so.
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// No reader knows the format.
    #[error("{}: not a data file this program reads ({found}); it reads .jsonl, .json, .csv, .parquet and .arrow", path.display())]
    UnknownFormat { path: PathBuf, found: String },
    /// The file is empty.
    #[error("{}: the file has no rows; look at how it was made, or give another", path.display())]
    Empty { path: PathBuf },
    /// A line or cell is longer than any sensible text.
    #[error("{}, line {line}: longer than {limit} bytes", path.display())]
    TooLong { path: PathBuf, line: u64, limit: u64 },
    /// A line is not UTF-8.
    #[error("{}, line {line}: byte {byte} is not valid UTF-8; convert the file to UTF-8", path.display())]
    NotUtf8 { path: PathBuf, line: u64, byte: usize },
    /// A line does not parse.
    #[error("{}, line {line}: {message}", path.display())]
    Syntax { path: PathBuf, line: u64, message: String },
    /// More data than a sensible file has.
    #[error("{}: {message}", path.display())]
    TooLarge { path: PathBuf, message: String },
    /// The bytes of a pipe cannot be kept in a temporary file.
    #[error(
        "cannot copy standard input or a pipe to a temporary file: {source} (TMPDIR says where these lie)"
    )]
    Copy { source: std::io::Error },
    /// A column that was asked for by its name is not there.
    #[error("{}: there is no column {column}, which is asked for as {field}; found: {found}", path.display())]
    NoSuchColumn { path: PathBuf, field: &'static str, column: String, found: String },
    /// Needed columns are missing.
    #[error(
        "{}{place}: there is no column {missing}; found: {found}. Needed are chosen and rejected (or a, b \
         and label; to judge without labels: a and b), and prompt unless these are lists of messages; \
         if they have other names, say which they are", path.display()
    )]
    MissingColumn { path: PathBuf, place: String, missing: &'static str, found: String },
    /// A row does not hold a pair.
    #[error("{}, {place}: {problem}", path.display())]
    Row { path: PathBuf, place: String, problem: String },
    /// A Parquet file that is damaged or dangerous.
    #[error("{}: not a sound Parquet file: {message}", path.display())]
    Parquet { path: PathBuf, message: String },
    /// An Arrow file that is damaged or of an unusual kind.
    #[error("{}: as an Arrow file it cannot be read: {message}", path.display())]
    Arrow { path: PathBuf, message: String },
    /// A Parquet feature without a reader here.
    #[error(
        "{}: column {column} uses {feature}, which is not supported; rewrite the file, for example with \
         python3 -c \"import pandas as p; p.read_parquet('IN').to_parquet('OUT', compression='snappy')\"",
        path.display()
    )]
    Unsupported { path: PathBuf, column: String, feature: String },
}

/// What the replies must be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Replies {
    /// Labeled: what is scored or trained on must say which reply is better.
    #[default]
    Labeled,
    /// Two replies, in the order of the columns if they are called a and b.
    Any,
    /// As labeled, for data that are prepared: names and origins of any kind are taken, or left out.
    Prepared,
}

/// The fields and rows to read from a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What the replies must be.
    pub replies: Replies,
    /// Names of columns, where the file has its own.
    pub columns: Columns,
    /// Whether a row may have several chosen and rejected replies; it becomes several pairs.
    pub several: bool,
}

/// Reads the labeled pairs of a file. At least one pair is returned.
pub fn read(path: &Path) -> Result<Vec<Pair>, DataError> {
    read_with(&Source::open(path)?, None, &Wanted::default())
}

/// Like [`read`], of any source, the first `limit` rows only, if given.
pub fn read_with(
    source: &Source,
    limit: Option<usize>,
    wanted: &Wanted,
) -> Result<Vec<Pair>, DataError> {
    let (mut rows, mut bytes) = (Vec::new(), 0_u64);
    visit(source, limit, wanted, |at, _, row| {
        let problem = |refusal: Refusal| DataError::Row {
            path: source.parts()[at.part].path().to_owned(),
            place: at.place.to_string(),
            problem: refusal.sentence(),
        };
        let row = row.map_err(problem)?;
        if !wanted.several {
            row.only_replies().map_err(problem)?;
        }
        bytes = bytes.saturating_add(row.bytes_of_pairs());
        if bytes > MAX_PAIRS {
            let message = format!("its rows make more than {MAX_PAIRS} bytes of pairs");
            return Err(DataError::TooLarge { path: source.path().to_owned(), message });
        }
        rows.push(row);
        Ok::<_, DataError>(())
    })?;
    Ok(rows::pairs(rows))
}

/// The place of a row in a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At {
    part: usize,
    place: Place,
}

impl Source {
    /// A row's place in words, with the file's name if there are several.
    pub(crate) fn describe(&self, at: At) -> String {
        match self.parts() {
            [_] => at.place.to_string(),
            parts => {
                let name = parts[at.part].path().file_name().unwrap_or_default();
                format!("{} {}", name.to_string_lossy(), at.place)
            }
        }
    }
}

/// The columns of a row, and the values of those that are read; others have none.
pub(crate) struct Values {
    names: Vec<String>,
    values: Result<Map<String, Value>, Refusal>,
}

/// The layouts of a file's rows: for most files one.
pub(crate) struct Layouts<'a> {
    wanted: &'a Wanted,
    last: Option<(Vec<String>, Rc<Layout>)>,
}

impl<'a> Layouts<'a> {
    pub(crate) fn new(wanted: &'a Wanted) -> Layouts<'a> {
        Layouts { wanted, last: None }
    }

    /// Of a row with columns of these names.
    pub(crate) fn of(&mut self, names: &[String]) -> Rc<Layout> {
        match &self.last {
            Some((known, layout)) if known == names => Rc::clone(layout),
            _ => {
                let layout = Layout::of(names, self.wanted.replies, &self.wanted.columns);
                let layout = Rc::new(layout);
                self.last = Some((names.to_vec(), Rc::clone(&layout)));
                layout
            }
        }
    }
}

/// Shows the rows of a source one by one, with the names of their columns: what they hold, or why they are refused.
/// A source without rows, and one whose first row lacks a needed column, is an error.
pub(crate) fn visit<E: From<DataError>>(
    source: &Source,
    limit: Option<usize>,
    wanted: &Wanted,
    mut each: impl FnMut(At, &[String], Result<Row, Refusal>) -> Result<(), E>,
) -> Result<(), E> {
    visit_values(source, limit, wanted, |at, is_first, names, layout, values| {
        let row = values.and_then(|values| rows::row(layout, values, wanted.replies));
        match row {
            Err(Refusal { missing: Some(missing), .. })
                if is_first || wanted.replies != Replies::Prepared =>
            {
                Err(DataError::MissingColumn {
                    path: source.parts()[at.part].path().to_owned(),
                    place: if is_first { String::new() } else { format!(", {}", at.place) },
                    missing,
                    found: list(names),
                }
                .into())
            }
            row => each(at, names, row),
        }
    })
}

/// Shows what was asked in the rows of a source, which need no replies.
pub(crate) fn visit_prompts(
    source: &Source,
    mut each: impl FnMut(Vec<Message>),
) -> Result<(), DataError> {
    let wanted = Wanted { replies: Replies::Any, ..Wanted::default() };
    visit_values(source, None, &wanted, |at, _, names, layout, values| {
        let path = || source.parts()[at.part].path().to_owned();
        match values.and_then(|values| rows::prompt(layout, values)) {
            Ok(prompt) => {
                each(prompt);
                Ok(())
            }
            Err(Refusal { missing: Some(missing), .. }) => Err(DataError::MissingColumn {
                path: path(),
                place: format!(", {}", at.place),
                missing,
                found: list(names),
            }),
            Err(refusal) => Err(DataError::Row {
                path: path(),
                place: at.place.to_string(),
                problem: refusal.sentence(),
            }),
        }
    })
}

fn visit_values<E: From<DataError>>(
    source: &Source,
    limit: Option<usize>,
    wanted: &Wanted,
    mut each: impl FnMut(
        At,
        bool,
        &[String],
        &Layout,
        Result<Map<String, Value>, Refusal>,
    ) -> Result<(), E>,
) -> Result<(), E> {
    let limit = limit.unwrap_or(usize::MAX);
    let mut all = 0;
    for (number, part) in source.parts().iter().enumerate() {
        let (mut columns, mut layouts) = (Layouts::new(wanted), Layouts::new(wanted));
        let mut rows = 0;
        let mut shown = |place, Values { names, values }: Values| {
            let is_first = rows == 0;
            if is_first && let Some((field, column)) = wanted.columns.missing(&names) {
                return Err(DataError::NoSuchColumn {
                    path: part.path().to_owned(),
                    field,
                    column: excerpt(column),
                    found: list(&names),
                }
                .into());
            }
            rows += 1;
            each(At { part: number, place }, is_first, &names, &columns.of(&names), values)
        };
        match part.format() {
            Format::Jsonl => jsonl::visit(part, limit - all, &mut layouts, &mut shown)?,
            Format::Csv => csv::visit_values(part, limit - all, &mut layouts, &mut shown)?,
            Format::Parquet => parquet::visit(part, limit - all, &mut layouts, &mut shown)?,
            Format::Arrow => arrow::visit(part, limit - all, &mut layouts, &mut shown)?,
        }
        all += rows;
        if all >= limit {
            return Ok(());
        }
    }
    match all {
        0 => Err(DataError::Empty { path: source.path().to_owned() }.into()),
        _ => Ok(()),
    }
}

/// Names of columns for a message, each on one line.
fn list(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names => {
            let mut sorted: Vec<&String> = names.iter().collect();
            sorted.sort();
            let shown: Vec<String> =
                sorted.iter().take(MAX_NAMES).map(|name| excerpt(name)).collect();
            let more = names.len() - shown.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            shown.join(", ") + &more
        }
    }
}

/// The format of a file, by its first bytes and then by its extension.
pub fn detect(path: &Path) -> Result<Format, DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    if path.is_dir() {
        let found = "a directory; give a file in it".to_owned();
        return Err(DataError::UnknownFormat { path: path.to_owned(), found });
    }
    let mut start = Vec::new();
    File::open(path).map_err(io)?.take(64).read_to_end(&mut start).map_err(io)?;
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    source::format(path, &start, &extension, false)
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

/// A pair without its id and its row number.
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
