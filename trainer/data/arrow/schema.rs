//! Columns of an Arrow file and their types, as far as they matter here.

use super::flatbuffer::{Problem, Table};

/// The deepest and the largest schema.
const MAX_SCHEMA: (usize, usize) = (16, 10_000);

/// A column, or a part of one.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// The dictionary whose values its rows name by numbers, and the type of these.
    pub(super) dictionary: Option<(i64, Kind)>,
    pub(super) children: Vec<Column>,
}

/// The layout of values in buffers.
#[derive(Debug)]
pub(super) enum Kind {
    Null,
    Bool,
    Int {
        bytes: usize,
        signed: bool,
    },
    Float {
        bytes: usize,
    },
    /// Offsets of 8 bytes if wide, else of 4.
    Text {
        wide: bool,
    },
    View,
    Fixed {
        bytes: usize,
    },
    /// One buffer of numbers: dates, times, decimal numbers.
    Other,
    List {
        wide: bool,
    },
    ListView,
    FixedList {
        items_each: usize,
    },
    Struct,
    Map,
    Union {
        buffers: usize,
    },
    RunEnds,
}

impl Kind {
    /// What a type is called whose values are not read.
    pub(super) fn no_text(&self) -> Option<&'static str> {
        Some(match self {
            Kind::Other => "date, time or decimal number",
            Kind::ListView => "list view",
            Kind::Map => "map",
            Kind::Union { .. } => "union",
            Kind::RunEnds => "run-end encoded",
            _ => return None,
        })
    }
}

/// The columns that a schema names.
pub(super) fn columns(schema: Table<'_>) -> Result<Vec<Column>, Problem> {
    if schema.i16(0, 0)? != 0 {
        return Err("its numbers are big-endian");
    }
    let mut left = MAX_SCHEMA.1;
    children(schema, 1, 0, &mut left)
}

fn children(
    table: Table<'_>,
    field: usize,
    depth: usize,
    left: &mut usize,
) -> Result<Vec<Column>, Problem> {
    let fields = table.vector(field, 4)?;
    (0..fields.len).map(|place| column(fields.table(place)?, depth + 1, left)).collect()
}

fn column(field: Table<'_>, depth: usize, left: &mut usize) -> Result<Column, Problem> {
    *left = left.checked_sub(1).ok_or("its schema is too large")?;
    if depth > MAX_SCHEMA.0 {
        return Err("its schema is nested too deeply");
    }
    let children = children(field, 5, depth, left)?;
    let kind = kind(field.u8(2)?, field.table(3)?)?;
    let dictionary = match field.table(4)? {
        None => None,
        Some(encoding) => {
            let indices = match encoding.table(1)? {
                Some(int) => self::kind(2, Some(int))?,
                None => Kind::Int { bytes: 4, signed: true },
            };
            Some((encoding.i64(0)?, indices))
        }
    };
    Ok(Column { name: field.text(0)?.to_owned(), kind, dictionary, children })
}

fn kind(number: u8, details: Option<Table<'_>>) -> Result<Kind, Problem> {
    let i32 = |field, default| details.map_or(Ok(default), |table| table.i32(field, default));
    let size = |field| usize::try_from(i32(field, 0)?).map_err(|_| "a column's type is damaged");
    Ok(match number {
        1 => Kind::Null,
        2 => {
            let bytes = match i32(0, 0)? {
                bits @ (8 | 16 | 32 | 64) => bits as usize / 8,
                _ => return Err("a column's type is damaged"),
            };
            Kind::Int { bytes, signed: details.map_or(Ok(0), |table| table.u8(1))? != 0 }
        }
        3 => Kind::Float {
            bytes: match details.map_or(Ok(0), |table| table.i16(0, 0))? {
                0 => 2,
                1 => 4,
                2 => 8,
                _ => return Err("a column's type is damaged"),
            },
        },
        4 | 5 => Kind::Text { wide: false },
        6 => Kind::Bool,
        7..=11 | 18 => Kind::Other,
        12 => Kind::List { wide: false },
        13 => Kind::Struct,
        14 => Kind::Union {
            buffers: details.map_or(Ok(0), |table| table.i16(0, 0))? as usize % 2 + 1,
        },
        15 => Kind::Fixed { bytes: size(0)? },
        16 => Kind::FixedList { items_each: size(0)? },
        17 => Kind::Map,
        19 | 20 => Kind::Text { wide: true },
        21 => Kind::List { wide: true },
        22 => Kind::RunEnds,
        23 | 24 => Kind::View,
        25 | 26 => Kind::ListView,
        _ => return Err("a column's type is unknown"),
    })
}
