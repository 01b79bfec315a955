//! Rows from a Parquet file, by the `parquet` crate's record API, which this module does not trust with
//! hostile files: it allocates what page headers claim and recurses as deep as the schema says. So
//! before it reads, the footer's schema and every page header of the needed columns are walked
//! (`thrift.rs`) and refused beyond the limits below; what still panics becomes an error.
//!
//! Read are snappy, gzip, brotli, lz4 and uncompressed pages, in plain and dictionary encoding. Zstandard
//! (whose crate compiles C) and the DELTA encodings of texts are refused by name.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Arc, Once};

use parquet::basic::Compression;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::{Type, TypePtr};
use serde_json::{Map, Value};

use super::rows::{self, COLUMNS, Place};
use super::thrift::{Cursor, Problem, Wire};
use super::{DataError, Pair};

/// The largest footer, in bytes.
const MAX_FOOTER: u64 = 64 << 20;
/// The deepest and the largest schema.
const MAX_SCHEMA: (usize, usize) = (16, 10_000);
/// The largest page after decompression, in bytes.
const MAX_PAGE: i64 = 256 << 20;
/// The most values of a column in one row group (and so in one row).
const MAX_CHUNK_VALUES: i64 = 4 << 20;
/// The most rows of a file.
const MAX_ROWS: i64 = 16 << 20;
/// The most text a file may unfold to: this, or so many times the file's size if that is more.
const MAX_TEXT: (u64, u64) = (256 << 20, 64);

pub(super) fn read(path: &Path, limit: usize) -> Result<Vec<Pair>, DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let file_len = file.metadata().map_err(io)?.len();
    check_footer(path, &mut file, file_len)?;
    let caught = quietly(|| {
        let reader = SerializedFileReader::new(file.try_clone().map_err(io)?)
            .map_err(|error| damaged(path, error.to_string()))?;
        read_rows(path, file, file_len, &reader, limit)
    });
    caught.unwrap_or_else(|message| Err(damaged(path, format!("its data are damaged ({message})"))))
}

fn damaged(path: &Path, message: impl Into<String>) -> DataError {
    DataError::Parquet { path: path.to_owned(), message: message.into() }
}

/// Refuses a footer that lies about its length or holds a schema too deep or too large.
fn check_footer(path: &Path, file: &mut File, file_len: u64) -> Result<(), DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    if file_len < 12 {
        return Err(damaged(path, "it is shorter than any Parquet file"));
    }
    let mut tail = [0; 8];
    file.seek(SeekFrom::Start(file_len - 8)).map_err(io)?;
    file.read_exact(&mut tail).map_err(io)?;
    if &tail[4..] != b"PAR1" {
        return Err(damaged(path, "its end is missing; was the download cut?"));
    }
    let length = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if length > file_len - 12 || length > MAX_FOOTER {
        return Err(damaged(path, format!("its footer claims {length} bytes")));
    }
    let footer = read_at(file, file_len - 8 - length, length).map_err(io)?;
    let mut children = Vec::new();
    let walked = Cursor::new(&footer).walk(|field, wire, cursor| match (field, wire) {
        (2, Wire::List) => {
            let (element, length) = cursor.list()?;
            if element != Wire::Struct || length > MAX_SCHEMA.1 {
                return Err("its schema is too large");
            }
            for _ in 0..length {
                children.push(0);
                let count = children.last_mut().expect("one was pushed");
                cursor.walk(|field, wire, cursor| match (field, wire) {
                    (5, Wire::Integer) => cursor.integer().map(|n| *count = n).map(|()| true),
                    _ => Ok(false),
                })?;
            }
            Ok(true)
        }
        _ => Ok(false),
    });
    walked.and_then(|()| check_depth(&children)).map_err(|problem| damaged(path, problem))
}

/// The schema is a tree in pre-order, each element with its number of children.
fn check_depth(children: &[i64]) -> Result<(), Problem> {
    let mut open: Vec<i64> = Vec::new(); // children still to come, for each open group
    for &count in children {
        while open.last() == Some(&0) {
            open.pop();
        }
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        if count < 0 || count > children.len() as i64 {
            return Err("its schema is not a tree");
        }
        if count > 0 {
            open.push(count);
        }
        if open.len() > MAX_SCHEMA.0 {
            return Err("its schema is nested too deeply");
        }
    }
    Ok(())
}

fn read_rows(
    path: &Path,
    mut file: File,
    file_len: u64,
    reader: &SerializedFileReader<File>,
    limit: usize,
) -> Result<Vec<Pair>, DataError> {
    let metadata = reader.metadata();
    let schema = metadata.file_metadata().schema();
    let fields: Vec<TypePtr> = schema.get_fields().to_vec();
    let (needed, others): (Vec<TypePtr>, Vec<TypePtr>) =
        fields.into_iter().partition(|field| COLUMNS.contains(&field.name()));
    let rows = metadata.file_metadata().num_rows();
    if !(0..=MAX_ROWS).contains(&rows) {
        return Err(damaged(path, format!("it claims {rows} rows")));
    }
    for group in metadata.row_groups() {
        for column in group.columns() {
            let root = column.column_path().parts().first().map_or("", String::as_str);
            if needed.iter().any(|field| field.name() == root) {
                check_column(path, &mut file, file_len, column)?;
            }
        }
    }
    let others: Vec<String> = others.iter().map(|field| field.name().to_owned()).collect();
    if needed.is_empty() {
        let values = others.iter().map(|name| (name.clone(), Value::Null)).collect();
        return rows::pair(path, Place::Row(0), 0, values).map(|pair| vec![pair]);
    }
    let projection = Type::group_type_builder(schema.name())
        .with_fields(needed.iter().map(Arc::clone).collect())
        .build()
        .map_err(|error| damaged(path, error.to_string()))?;
    let iterator = RowIter::from_file(Some(projection), reader)
        .map_err(|error| damaged(path, error.to_string()))?;
    let max_text = MAX_TEXT.0.max(file_len.saturating_mul(MAX_TEXT.1));
    let mut text = 0;
    let mut pairs = Vec::new();
    for (number, row) in iterator.take(limit).enumerate() {
        let number = number as u64;
        let row = row.map_err(|error| damaged(path, format!("row {number}: {error}")))?;
        let mut values = columns(row).map_err(|problem| DataError::Row {
            path: path.to_owned(),
            place: format!("row {number}"),
            problem,
        })?;
        for name in &others {
            values.entry(name.clone()).or_insert(Value::Null);
        }
        let pair = rows::pair(path, Place::Row(number), number, values)?;
        let turns = pair.prompt.iter().map(|turn| turn.content.len() + turn.role.len());
        text += (turns.sum::<usize>() + pair.chosen.len() + pair.rejected.len()) as u64;
        if text > max_text {
            return Err(damaged(path, format!("it unfolds to more than {max_text} bytes of text")));
        }
        pairs.push(pair);
    }
    Ok(pairs)
}

/// Walks the page headers of a column chunk.
fn check_column(
    path: &Path,
    file: &mut File,
    file_len: u64,
    column: &ColumnChunkMetaData,
) -> Result<(), DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let name = column.column_path().string();
    let unsupported = |feature: &str| DataError::Unsupported {
        path: path.to_owned(),
        column: name.clone(),
        feature: feature.to_owned(),
    };
    match column.compression() {
        Compression::ZSTD(_) => return Err(unsupported("the codec zstd")),
        Compression::LZO => return Err(unsupported("the codec lzo")),
        _ => {}
    }
    let bad = |what: String| damaged(path, format!("column {name}: {what}"));
    let positive = |n: i64| u64::try_from(n).map_err(|_| bad("a negative offset".to_owned()));
    let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
    let (start, length) = (positive(start)?, positive(column.compressed_size())?);
    let end = start.checked_add(length).filter(|&end| end <= file_len);
    let end = end.ok_or_else(|| bad("its pages lie outside the file".to_owned()))?;
    if column.num_values() > MAX_CHUNK_VALUES {
        return Err(bad(format!("{} values in one row group", column.num_values())));
    }
    let (mut at, mut values) = (start, 0_i64);
    while at < end && values < column.num_values() {
        let mut window = 64 << 10;
        let (page, header) = loop {
            let bytes = read_at(file, at, window.min(end - at)).map_err(io)?;
            match Page::read(&bytes) {
                Ok(found) => break found,
                // A header with long statistics: look further.
                Err(_) if window < end - at && window < MAX_FOOTER => window *= 16,
                Err(problem) => return Err(bad(problem.to_owned())),
            }
        };
        if !(0..=MAX_PAGE).contains(&page.uncompressed) || page.compressed < 0 {
            return Err(bad(format!("a page claims {} bytes", page.uncompressed)));
        }
        // A dictionary's values are texts with a length of four bytes or numbers of four or eight;
        // those of one or no byte are not worth a dictionary.
        if page.dictionary && !(0..=page.uncompressed).contains(&page.values) {
            return Err(bad(format!("a dictionary claims {} values", page.values)));
        }
        if let Some(name) = [(6, "DELTA_LENGTH_BYTE_ARRAY"), (7, "DELTA_BYTE_ARRAY")]
            .into_iter()
            .find_map(|(code, name)| (code == page.encoding).then_some(name))
        {
            return Err(unsupported(&format!("the encoding {name}")));
        }
        if !page.dictionary {
            values = values.saturating_add(page.values.max(0));
        }
        if page.values < 0 || values > MAX_CHUNK_VALUES {
            return Err(bad(format!("its pages claim {values} values")));
        }
        at = at.saturating_add(header).saturating_add(page.compressed as u64);
        if at > end {
            return Err(bad("a page is longer than its column".to_owned()));
        }
    }
    Ok(())
}

/// What matters of a page header.
#[derive(Debug, Default)]
struct Page {
    uncompressed: i64,
    compressed: i64,
    values: i64,
    encoding: i64,
    dictionary: bool,
}

impl Page {
    /// Reads a header at the start of `bytes`; returns its length, too.
    fn read(bytes: &[u8]) -> Result<(Page, u64), Problem> {
        let mut page = Page { uncompressed: -1, compressed: -1, ..Page::default() };
        let mut cursor = Cursor::new(bytes);
        cursor.walk(|field, wire, cursor| {
            match (field, wire) {
                (2, Wire::Integer) => page.uncompressed = cursor.integer()?,
                (3, Wire::Integer) => page.compressed = cursor.integer()?,
                // Data page, dictionary page, data page of version 2.
                (5 | 7 | 8, Wire::Struct) => {
                    page.dictionary = field == 7;
                    let encoding = if field == 8 { 4 } else { 2 };
                    cursor.walk(|inner, wire, cursor| {
                        match (inner, wire) {
                            (1, Wire::Integer) => page.values = cursor.integer()?,
                            (_, Wire::Integer) if inner == encoding => {
                                page.encoding = cursor.integer()?;
                            }
                            _ => return Ok(false),
                        }
                        Ok(true)
                    })?;
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok((page, cursor.position() as u64))
    }
}

fn read_at(file: &mut File, at: u64, length: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn columns(row: Row) -> Result<Map<String, Value>, String> {
    row.into_columns().into_iter().map(|(name, field)| Ok((name, value(field)?))).collect()
}

fn value(field: Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::Bool(b),
        Field::Str(text) => Value::String(text),
        // Writers that leave the UTF-8 annotation out.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(error) => {
                return Err(format!(
                    "a text is not valid UTF-8 at its byte {}",
                    error.valid_up_to()
                ));
            }
        },
        Field::Byte(n) => n.into(),
        Field::Short(n) => n.into(),
        Field::Int(n) => n.into(),
        Field::Long(n) => n.into(),
        Field::UByte(n) => n.into(),
        Field::UShort(n) => n.into(),
        Field::UInt(n) => n.into(),
        Field::ULong(n) => n.into(),
        Field::Group(row) => Value::Object(columns(row)?),
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().cloned().map(value).collect::<Result<_, _>>()?)
        }
        other => Value::Array(vec![Value::String(format!("a value of another type: {other}"))]),
    })
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs what may panic on damaged data and returns the panic's message, without the report on stderr.
fn quietly<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                others(info);
            }
        }));
    });
    QUIET.set(true);
    let caught = panic::catch_unwind(AssertUnwindSafe(run));
    QUIET.set(false);
    caught.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
        text.lines().next().unwrap_or("no message").to_owned()
    })
}
