//! Rows from a file with a JSON object on each line; blank lines are skipped.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde_json::{Map, Value};

use super::rows::{self, Place};
use super::{DataError, Pair, Replies};
use crate::lines::{LineError, Lines, MAX_LINE};

pub(super) fn read(path: &Path, limit: usize, replies: Replies) -> Result<Vec<Pair>, DataError> {
    let mut pairs = Vec::new();
    visit(path, limit, |place, values| {
        pairs.push(rows::pair(path, place, pairs.len() as u64, values, replies)?);
        Ok::<_, DataError>(())
    })?;
    Ok(pairs)
}

/// Shows the first `limit` rows with all their values.
pub(super) fn visit<E: From<DataError>>(
    path: &Path,
    limit: usize,
    mut each: impl FnMut(Place, Map<String, Value>) -> Result<(), E>,
) -> Result<(), E> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let mut lines = Lines::new(BufReader::new(File::open(path).map_err(io)?));
    let mut left = limit;
    while left > 0 {
        let line = match lines.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(LineError::Io(source)) => return Err(io(source).into()),
            Err(LineError::TooLong(line)) => {
                let path = path.to_owned();
                return Err(DataError::TooLong { path, line, limit: MAX_LINE }.into());
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
        left -= 1;
        each(Place::Line(line.number), values)?;
    }
    Ok(())
}
