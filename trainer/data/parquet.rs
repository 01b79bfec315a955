//! Rows from a Parquet file, by the `parquet` crate's record API, which this module does not trust with
//! hostile files: it allocates what page headers claim and recurses as deep as the schema says. So
//! before it reads, the footer's schema and every page header of the needed columns are walked
//! (`pages.rs`, `thrift.rs`) and refused beyond the limits below, and the texts of the needed columns
//! are measured where they lie, because a dictionary can repeat one long text a million times. What
//! still panics becomes an error.
//!
//! Read are snappy, gzip, zstd (`zstd.rs`), lz4 and uncompressed pages, in plain and dictionary encoding.
//! Brotli and the old framed lz4 (which nobody bounds) and the DELTA encodings are refused by name.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Arc, Once};

use parquet::basic::Type as PhysicalType;
use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::file::reader::FileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::{ColumnPath, Type, TypePtr};
use serde_json::{Map, Value};

use super::layout::Layout;
use super::pages::{Budget, check_column};
use super::reason::{DropReason, Refusal};
use super::rows::Place;
use super::source::Part;
use super::thrift::{Cursor, Problem, Wire};
use super::zstd::Unfolded;
use super::{DataError, Layouts, Values};
use crate::data;

/// The largest footer, in bytes.
const MAX_FOOTER: u64 = 16 << 20;
/// The deepest and the largest schema.
const MAX_SCHEMA: (usize, usize) = (16, 10_000);
/// The most rows of a file.
const MAX_ROWS: i64 = 16 << 20;
/// The most text a file may decompress to: this, or this multiple of the file's size if that is more.
const MAX_TEXT: (u64, u64) = (256 << 20, 64);
/// Bytes counted per value beside its own, so that empty texts are not free.
const VALUE_COST: u64 = 64;
/// How many rows are measured at a time.
const MEASURED: usize = 1024;

/// Shows the first `limit` rows with the values of the columns that `replies` reads.
pub(super) fn visit<E: From<DataError>>(
    part: &Part,
    limit: usize,
    layouts: &mut Layouts<'_>,
    each: impl FnMut(Place, Values) -> Result<(), E>,
) -> Result<(), E> {
    let path = part.path();
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let mut file = part.file().map_err(io)?;
    let file_len = file.metadata().map_err(io)?.len();
    check_footer(path, &mut file, file_len)?;
    let caught = quietly(|| {
        let reader = Unfolded::new(file.try_clone().map_err(io)?)
            .map_err(|error| damaged(path, error.to_string()))?;
        read_rows(path, file, file_len, &reader, limit, layouts, each)
    });
    caught.unwrap_or_else(|message| {
        Err(damaged(path, format!("its data are damaged ({message})")).into())
    })
}

pub(super) fn damaged(path: &Path, message: impl Into<String>) -> DataError {
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

fn read_rows<E: From<DataError>>(
    path: &Path,
    mut file: File,
    file_len: u64,
    reader: &Unfolded,
    limit: usize,
    layouts: &mut Layouts<'_>,
    mut each: impl FnMut(Place, Values) -> Result<(), E>,
) -> Result<(), E> {
    let metadata = reader.metadata();
    let schema = metadata.file_metadata().schema();
    let fields: Vec<TypePtr> = schema.get_fields().to_vec();
    let names: Vec<String> = fields.iter().map(|field| field.name().to_owned()).collect();
    let mut layout = (*layouts.of(&names)).clone();
    // Bytes of a fixed length (a UUID) are not read (`pages.rs`); as names the rows' numbers do.
    let is_fixed = |field: &TypePtr| {
        field.is_primitive() && field.get_physical_type() == PhysicalType::FIXED_LEN_BYTE_ARRAY
    };
    let id = layout.column(data::Field::Id);
    if fields.iter().any(|field| Some(field.name()) == id && is_fixed(field)) {
        layout.leave_out(data::Field::Id);
    }
    let (needed, others): (Vec<TypePtr>, Vec<TypePtr>) =
        fields.into_iter().partition(|field| layout.reads(field.name()));
    let rows = metadata.file_metadata().num_rows();
    if !(0..=MAX_ROWS).contains(&rows) {
        return Err(damaged(path, format!("it claims {rows} rows")).into());
    }
    let max_text = MAX_TEXT.0.max(file_len.saturating_mul(MAX_TEXT.1));
    let mut budget = Budget::new(max_text);
    let mut rows_left = rows;
    for group in metadata.row_groups() {
        if !(0..=rows_left).contains(&group.num_rows()) {
            return Err(damaged(path, "its row groups claim other rows than the file").into());
        }
        rows_left -= group.num_rows();
        for column in group.columns() {
            if layout.reads(root(column.column_path())) {
                check_column(path, &mut file, file_len, column, &mut budget)?;
            }
        }
    }
    let others: Vec<String> = others.iter().map(|field| field.name().to_owned()).collect();
    if needed.is_empty() {
        let values = others.iter().map(|name| (name.clone(), Value::Null)).collect();
        return each(Place::Row(0), Values { names, values: Ok(values) });
    }
    let projection = Type::group_type_builder(schema.name())
        .with_fields(needed.iter().map(Arc::clone).collect())
        .build()
        .map_err(|error| damaged(path, error.to_string()))?;
    let iterator = RowIter::from_file(Some(projection), reader)
        .map_err(|error| damaged(path, error.to_string()))?;
    measure(path, max_text, reader, limit, &layout)?;
    for (number, row) in iterator.take(limit).enumerate() {
        let number = number as u64;
        let row = row.map_err(|error| damaged(path, format!("row {number}: {error}")))?;
        let values = cells(row, &layout).map(|mut values| {
            for name in &others {
                values.entry(name.clone()).or_insert(Value::Null);
            }
            values
        });
        let values = values.map_err(|problem| Refusal::new(DropReason::Malformed, problem));
        each(Place::Row(number), Values { names: names.clone(), values })?;
    }
    Ok(())
}

/// Refuses a file whose needed columns decompress to more text than [`MAX_TEXT`]. The values are looked at
/// where they lie in their pages; none is copied.
fn measure(
    path: &Path,
    max_text: u64,
    reader: &Unfolded,
    limit: usize,
    layout: &Layout,
) -> Result<(), DataError> {
    let bad = |error: parquet::errors::ParquetError| damaged(path, error.to_string());
    let (mut text, mut rows_left) = (0_u64, limit);
    for index in 0..reader.num_row_groups() {
        let group = reader.get_row_group(index).map_err(bad)?;
        let rows = rows_left.min(group.metadata().num_rows() as usize);
        for column in 0..group.num_columns() {
            if !layout.reads(root(group.metadata().column(column).column_path())) {
                continue;
            }
            // Numbers are as long as their values are many, and those were counted.
            let ColumnReader::ByteArrayColumnReader(mut values) =
                group.get_column_reader(column).map_err(bad)?
            else {
                continue;
            };
            let mut left = rows;
            while left > 0 {
                let mut found: Vec<ByteArray> = Vec::new();
                let (mut definitions, mut repetitions) = (Vec::new(), Vec::new());
                let (read, _, levels) = values
                    .read_records(
                        MEASURED.min(left),
                        Some(&mut definitions),
                        Some(&mut repetitions),
                        &mut found,
                    )
                    .map_err(bad)?;
                if read == 0 {
                    break;
                }
                left = left.saturating_sub(read);
                text += found.iter().map(|value| value.len() as u64).sum::<u64>();
                text = text.saturating_add(VALUE_COST.saturating_mul(levels as u64));
                if text > max_text {
                    let what = format!("it unfolds to more than {max_text} bytes of text");
                    return Err(damaged(path, what));
                }
            }
        }
        rows_left -= rows;
    }
    Ok(())
}

/// The top-level column of a leaf.
fn root(path: &ColumnPath) -> &str {
    path.parts().first().map_or("", String::as_str)
}

pub(super) fn read_at(file: &mut File, at: u64, length: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The values of a row by column. A row's name may be of any type that can be printed.
fn cells(row: Row, layout: &Layout) -> Result<Map<String, Value>, String> {
    let mut values = Map::new();
    for (name, field) in row.into_columns() {
        let value = match field {
            Field::Group(_) | Field::ListInternal(_) | Field::MapInternal(_) => value(field),
            field if layout.column(data::Field::Id) == Some(&name) => Ok(id(field)),
            field => scalar(field),
        };
        let value = value.map_err(|problem| format!("{name} {problem}"))?;
        values.insert(name, value);
    }
    Ok(values)
}

/// A value and all in it. What is in a list or group and of no use there has no value.
fn value(field: Field) -> Result<Value, String> {
    Ok(match field {
        Field::Group(row) => {
            let columns = row.into_columns().into_iter();
            let columns = columns.map(|(name, field)| Ok::<_, String>((name, value(field)?)));
            Value::Object(columns.collect::<Result<_, _>>()?)
        }
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().cloned().map(value).collect::<Result<_, _>>()?)
        }
        Field::MapInternal(_) => Value::Null,
        Field::Bytes(_) => scalar(field)?,
        field => scalar(field).unwrap_or(Value::Null),
    })
}

fn scalar(field: Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::Bool(b),
        Field::Str(text) => Value::String(text),
        // Writers that leave the UTF-8 annotation out.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(error) => {
                return Err(format!(
                    "has a text that is not valid UTF-8 at its byte {}",
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
        // NaN is how pandas writes that there is no value.
        Field::Float(x) => {
            serde_json::Number::from_f64(x.into()).map_or(Value::Null, Value::Number)
        }
        Field::Double(x) => serde_json::Number::from_f64(x).map_or(Value::Null, Value::Number),
        other => return Err(format!("is a date, a time or a decimal number ({other}), not text")),
    })
}

/// A row's name: dates as they are printed, bytes that are no text (a UUID) in hexadecimal.
fn id(field: Field) -> Value {
    match field {
        Field::Bytes(bytes) => Value::String(match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.to_owned(),
            Err(_) => bytes.data().iter().map(|byte| format!("{byte:02x}")).collect(),
        }),
        field => match scalar(field.clone()) {
            Ok(value) => value,
            Err(_) => Value::String(field.to_string()),
        },
    }
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
