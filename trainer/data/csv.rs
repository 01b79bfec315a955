//! Rows from a comma-separated file with a header line.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use engine::error::excerpt;
use serde_json::{Map, Value};

use super::rows::Place;
use super::source::Part;
use super::{DataError, Layouts, Values};

/// The most bytes that one record may take: an unclosed quote would swallow the rest of the file.
const MAX_RECORD: u64 = 64 << 20;

/// Shows the first `limit` rows with the values of the columns that are read.
pub(super) fn visit_values<E: From<DataError>>(
    part: &Part,
    limit: usize,
    layouts: &mut Layouts<'_>,
    mut each: impl FnMut(Place, Values) -> Result<(), E>,
) -> Result<(), E> {
    let path = part.path();
    visit(path, part.reader()?, limit, |line, names, record| {
        let layout = layouts.of(names);
        let mut values = Map::new();
        for (name, cell) in names.iter().zip(record) {
            // Of columns with the same name the first counts; other columns are only named.
            if values.contains_key(name) {
                continue;
            }
            let value = match layout.reads(name) {
                false => Value::Null,
                true => match text(path, line, cell)? {
                    "" if !layout.is_text(name) => Value::Null,
                    text => Value::String(text.to_owned()),
                },
            };
            values.insert(name.clone(), value);
        }
        each(Place::Line(line), Values { names: names.to_vec(), values: Ok(values) })
    })
}

/// Shows the first `limit` records of a file, of bounded size each, with their line and the names of the columns.
pub(crate) fn visit<E: From<DataError>>(
    path: &Path,
    input: impl Read,
    limit: usize,
    mut each: impl FnMut(u64, &[String], &csv::ByteRecord) -> Result<(), E>,
) -> Result<(), E> {
    let used = Rc::new(Cell::new(0));
    let file = Metered { inner: input, used: used.clone() };
    let mut reader = csv::ReaderBuilder::new().from_reader(file);
    let headers = reader.byte_headers().map_err(|error| self::error(path, error))?.clone();
    let names: Vec<String> =
        headers.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned()).collect();
    if let [name] = names.as_slice()
        && let Some(found) = [';', '\t', '|'].into_iter().find(|&mark| name.contains(mark))
    {
        let message = format!(
            "one column, {:?}; the cells of a .csv file are separated by commas, not by {found:?}",
            excerpt(name)
        );
        return Err(DataError::Syntax { path: path.to_owned(), line: 1, message }.into());
    }
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

fn error(path: &Path, error: csv::Error) -> DataError {
    let path = path.to_owned();
    let line = error.position().map_or(1, csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(source) if source.kind() == io::ErrorKind::FileTooLarge => {
            match source.get_ref() {
                // A gzip file that unfolds too far says so itself.
                Some(said) => DataError::TooLarge { path, message: said.to_string() },
                None => DataError::TooLong { path, line, limit: MAX_RECORD },
            }
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
struct Metered<R> {
    inner: R,
    used: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.used.set(self.used.get() + length as u64);
        match self.used.get() > MAX_RECORD {
            true => Err(io::ErrorKind::FileTooLarge.into()),
            false => Ok(length),
        }
    }
}
