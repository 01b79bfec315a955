//! Rows from a comma-separated file with a header line.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use serde_json::{Map, Value};

use super::rows::{self, Place};
use super::{DataError, Pair, Replies};

/// The most bytes that one record may take: an unclosed quote would swallow the rest of the file.
const MAX_RECORD: u64 = 64 << 20;

pub(super) fn read(path: &Path, limit: usize, replies: Replies) -> Result<Vec<Pair>, DataError> {
    let mut pairs = Vec::new();
    visit_values(path, limit, replies, |place, values| {
        pairs.push(rows::pair(path, place, pairs.len() as u64, values, replies)?);
        Ok::<_, DataError>(())
    })?;
    Ok(pairs)
}

/// Shows the first `limit` rows with the values of the columns that `replies` reads.
pub(super) fn visit_values<E: From<DataError>>(
    path: &Path,
    limit: usize,
    replies: Replies,
    mut each: impl FnMut(Place, Map<String, Value>) -> Result<(), E>,
) -> Result<(), E> {
    visit(path, limit, |line, names, record| {
        let mut values = Map::new();
        for (name, cell) in names.iter().zip(record) {
            // Of columns with the same name the first counts; other columns are only named.
            if values.contains_key(name) {
                continue;
            }
            if !replies.reads(name) {
                values.insert(name.clone(), Value::Null);
                continue;
            }
            let text = text(path, line, cell)?;
            if is_python_list(text) {
                let problem = format!(
                    "{name} is a list of messages as Python prints it; write it as JSON (json.dumps), or \
                     the data as .jsonl or .parquet"
                );
                return Err(Place::Line(line).problem(path, problem).into());
            }
            values.insert(name.clone(), value(name, text));
        }
        each(Place::Line(line), values)
    })
}

/// Shows the first `limit` records of a file, of bounded size each, with their line and the names of the columns.
pub(crate) fn visit<E: From<DataError>>(
    path: &Path,
    limit: usize,
    mut each: impl FnMut(u64, &[String], &csv::ByteRecord) -> Result<(), E>,
) -> Result<(), E> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let used = Rc::new(Cell::new(0));
    let file = Metered { inner: File::open(path).map_err(io)?, used: used.clone() };
    let mut reader = csv::ReaderBuilder::new().from_reader(file);
    let headers = reader.byte_headers().map_err(|error| self::error(path, error))?.clone();
    let names: Vec<String> =
        headers.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned()).collect();
    let mut record = csv::ByteRecord::new();
    for _ in 0..limit {
        used.set(0);
        if !reader.read_byte_record(&mut record).map_err(|error| self::error(path, error))? {
            break;
        }
        each(record.position().map_or(0, csv::Position::line), &names, &record)?;
    }
    Ok(())
}

/// A cell as text.
pub(crate) fn text<'a>(path: &Path, line: u64, cell: &'a [u8]) -> Result<&'a str, DataError> {
    std::str::from_utf8(cell).map_err(|error| DataError::NotUtf8 {
        path: path.to_owned(),
        line,
        byte: error.valid_up_to(),
    })
}

/// A cell's value: a list of messages if it is one in JSON, else text. Optional columns that are empty
/// have no value.
fn value(name: &str, text: &str) -> Value {
    if matches!(name, "subset" | "id" | "source") && text.is_empty() {
        return Value::Null;
    }
    if text.starts_with('[')
        && let Ok(list @ Value::Array(_)) = serde_json::from_str(text)
        && list.as_array().is_some_and(|turns| !turns.is_empty() && turns.iter().all(is_message))
    {
        return list;
    }
    Value::String(text.to_owned())
}

/// Whether pandas wrote a list of messages here: with single quotes, which JSON does not have. As text it would be
/// judged without anybody noticing.
fn is_python_list(text: &str) -> bool {
    let is_start = ["[{'role':", "[{'content':"].iter().any(|start| text.starts_with(start));
    is_start && text.trim_ascii_end().ends_with("}]")
}

fn is_message(value: &Value) -> bool {
    ["role", "content"].iter().all(|field| value.get(field).is_some_and(Value::is_string))
}

fn error(path: &Path, error: csv::Error) -> DataError {
    let path = path.to_owned();
    let line = error.position().map_or(1, csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(source) if source.kind() == io::ErrorKind::FileTooLarge => {
            DataError::TooLong { path, line, limit: MAX_RECORD }
        }
        csv::ErrorKind::Io(source) => DataError::Io { path, source },
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => DataError::Syntax {
            path,
            line,
            message: format!(
                "{len} cells where the header has {expected_len}; is a quote missing?"
            ),
        },
        other => DataError::Syntax { path, line, message: format!("{other:?}") },
    }
}

/// Fails when more than [`MAX_RECORD`] bytes were read since `used` was last set to 0.
struct Metered {
    inner: File,
    used: Rc<Cell<u64>>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.used.set(self.used.get() + length as u64);
        match self.used.get() > MAX_RECORD {
            true => Err(io::ErrorKind::FileTooLarge.into()),
            false => Ok(length),
        }
    }
}
