//! Rows from a file with a JSON object on each line; blank lines are skipped.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde_json::{Map, Value};

use super::rows::{self, Place};
use super::{DataError, Pair, Replies};
use crate::lines::{LineError, Lines, MAX_LINE};

pub(super) fn read(path: &Path, limit: usize, replies: Replies) -> Result<Vec<Pair>, DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let mut lines = Lines::new(BufReader::new(File::open(path).map_err(io)?));
    let mut pairs = Vec::new();
    while pairs.len() < limit {
        let line = match lines.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(LineError::Io(source)) => return Err(io(source)),
            Err(LineError::TooLong(line)) => {
                return Err(DataError::TooLong { path: path.to_owned(), line, limit: MAX_LINE });
            }
        };
        let text = std::str::from_utf8(line.bytes).map_err(|error| DataError::NotUtf8 {
            path: path.to_owned(),
            line: line.number,
            byte: error.valid_up_to(),
        })?;
        let text = text.strip_prefix('\u{feff}').filter(|_| line.number == 1).unwrap_or(text);
        if text.trim().is_empty() {
            continue;
        }
        let values: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
            // The error's own line is always 1 here.
            let message = format!("not a JSON object (column {}): {error}", error.column());
            let message = message.replace(&format!(" at line 1 column {}", error.column()), "");
            DataError::Syntax { path: path.to_owned(), line: line.number, message }
        })?;
        pairs.push(rows::pair(
            path,
            Place::Line(line.number),
            pairs.len() as u64,
            values,
            replies,
        )?);
    }
    Ok(pairs)
}
