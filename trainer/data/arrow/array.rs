//! Columns of a record batch, and their values.

use std::io::Read;
use std::rc::Rc;

use ruzstd::decoding::StreamingDecoder;
use serde_json::{Map, Value};

use super::flatbuffer::{Problem, Table, Vector, bytes_at};
use super::schema::{Column, Kind};

const CUT: Problem = "a column is shorter than its rows";
const ORDER: Problem = "the places of a column's values are not in order";
/// Bytes counted per value beside its own, so that empty texts are not free.
const VALUE_COST: u64 = 64;

/// Bytes that a file may still decompress to.
pub(super) struct Budget {
    pub(super) left: u64,
}

impl Budget {
    fn take(&mut self, bytes: u64) -> Result<(), Problem> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err("it unfolds to more text than a sensible file of its size"),
        }
    }
}

/// The values of a column in one batch.
pub(super) struct Array {
    len: usize,
    valid: Option<Rc<[u8]>>,
    values: Values,
}

enum Values {
    /// Of a type that is of no use here, or of a column that is not read.
    None,
    Bool(Rc<[u8]>),
    Int {
        bytes: usize,
        signed: bool,
        data: Rc<[u8]>,
    },
    Float {
        bytes: usize,
        data: Rc<[u8]>,
    },
    Text {
        wide: bool,
        offsets: Rc<[u8]>,
        data: Rc<[u8]>,
    },
    View {
        views: Rc<[u8]>,
        data: Vec<Rc<[u8]>>,
    },
    Fixed {
        bytes: usize,
        data: Rc<[u8]>,
    },
    List {
        wide: bool,
        offsets: Rc<[u8]>,
        items: Box<Array>,
    },
    FixedList {
        items_each: usize,
        items: Box<Array>,
    },
    Struct(Vec<(String, Array)>),
    Dictionary {
        indices: Box<Array>,
        values: Option<Rc<Array>>,
    },
}

/// Takes the arrays of a batch from its body, one column after the other.
pub(super) struct Batch<'a> {
    body: &'a [u8],
    nodes: Vector<'a>,
    buffers: Vector<'a>,
    variadic: Vector<'a>,
    compression: Option<u8>,
    next: [usize; 3],
    pub(super) rows: usize,
}

impl<'a> Batch<'a> {
    pub(super) fn new(table: Table<'a>, body: &'a [u8]) -> Result<Batch<'a>, Problem> {
        let rows = usize::try_from(table.i64(0)?).map_err(|_| CUT)?;
        let compression = table.table(3)?.map(|table| table.u8(0)).transpose()?;
        Ok(Batch {
            body,
            nodes: table.vector(1, 16)?,
            buffers: table.vector(2, 16)?,
            variadic: table.vector(4, 8)?,
            compression,
            next: [0; 3],
            rows,
        })
    }

    /// The next column; its bytes are looked at only if it is read.
    pub(super) fn array(
        &mut self,
        column: &Column,
        read: bool,
        dictionaries: &Dictionaries,
        budget: &mut Budget,
    ) -> Result<Array, Problem> {
        let Some((id, indices)) = &column.dictionary else {
            return self.plain(&column.kind, column, read, dictionaries, budget);
        };
        let indices = self.plain(indices, column, read, dictionaries, budget)?;
        let values = dictionaries.iter().find(|(known, _)| known == id);
        let values = values.map(|(_, values)| Rc::clone(values));
        let len = indices.len;
        let values = Values::Dictionary { indices: Box::new(indices), values };
        Ok(Array { len, valid: None, values })
    }

    /// The values that a column's dictionary holds.
    pub(super) fn dictionary(
        &mut self,
        column: &Column,
        dictionaries: &Dictionaries,
        budget: &mut Budget,
    ) -> Result<Array, Problem> {
        self.plain(&column.kind, column, true, dictionaries, budget)
    }

    /// An array whose values lie in its own buffers.
    fn plain(
        &mut self,
        kind: &Kind,
        column: &Column,
        read: bool,
        dictionaries: &Dictionaries,
        budget: &mut Budget,
    ) -> Result<Array, Problem> {
        let node = self.step(0, self.nodes.len)?;
        let len = usize::try_from(self.nodes.i64(2 * node)?).map_err(|_| CUT)?;
        let valid = match kind {
            Kind::Null | Kind::Union { .. } | Kind::RunEnds => None,
            _ => {
                let missing = self.nodes.i64(2 * node + 1)?;
                let bits = self.buffer(read, budget)?;
                (missing != 0 && read).then_some(bits)
            }
        };
        let mut data = |budget: &mut Budget| self.buffer(read, budget);
        let values = match kind {
            Kind::Null => Values::None,
            Kind::Bool => Values::Bool(data(budget)?),
            &Kind::Int { bytes, signed } => Values::Int { bytes, signed, data: data(budget)? },
            &Kind::Float { bytes } => Values::Float { bytes, data: data(budget)? },
            &Kind::Text { wide } => {
                Values::Text { wide, offsets: data(budget)?, data: data(budget)? }
            }
            Kind::View => {
                let views = data(budget)?;
                let place = self.step(2, self.variadic.len)?;
                let count = self.variadic.i64(place)?;
                let count = usize::try_from(count).ok().filter(|&n| n <= self.buffers.len);
                let data = (0..count.ok_or(CUT)?).map(|_| self.buffer(read, budget));
                Values::View { views, data: data.collect::<Result<_, _>>()? }
            }
            &Kind::Fixed { bytes } => Values::Fixed { bytes, data: data(budget)? },
            Kind::Other => {
                data(budget)?;
                Values::None
            }
            Kind::ListView => {
                data(budget)?;
                data(budget)?;
                self.children(column, false, dictionaries, budget)?;
                Values::None
            }
            &Kind::List { wide } => {
                let offsets = data(budget)?;
                let items = self.children(column, read, dictionaries, budget)?.pop().ok_or(CUT)?.1;
                Values::List { wide, offsets, items: Box::new(items) }
            }
            &Kind::FixedList { items_each } => {
                let items = self.children(column, read, dictionaries, budget)?.pop().ok_or(CUT)?.1;
                Values::FixedList { items_each, items: Box::new(items) }
            }
            Kind::Struct => Values::Struct(self.children(column, read, dictionaries, budget)?),
            Kind::Map => {
                data(budget)?;
                self.children(column, false, dictionaries, budget)?;
                Values::None
            }
            &Kind::Union { buffers } => {
                for _ in 0..buffers {
                    data(budget)?;
                }
                self.children(column, false, dictionaries, budget)?;
                Values::None
            }
            Kind::RunEnds => {
                self.children(column, false, dictionaries, budget)?;
                Values::None
            }
        };
        Ok(Array { len, valid, values })
    }

    fn children(
        &mut self,
        column: &Column,
        read: bool,
        dictionaries: &Dictionaries,
        budget: &mut Budget,
    ) -> Result<Vec<(String, Array)>, Problem> {
        let mut children = Vec::new();
        for child in &column.children {
            children.push((child.name.clone(), self.array(child, read, dictionaries, budget)?));
        }
        Ok(children)
    }

    /// Goes on in the nodes (0), the buffers (1) or the counts of view buffers (2).
    fn step(&mut self, which: usize, len: usize) -> Result<usize, Problem> {
        let now = self.next[which];
        self.next[which] += 1;
        if now < len { Ok(now) } else { Err("a batch has fewer buffers than its columns need") }
    }

    fn buffer(&mut self, read: bool, budget: &mut Budget) -> Result<Rc<[u8]>, Problem> {
        const OUTSIDE: Problem = "a buffer lies outside of its batch";
        let place = self.step(1, self.buffers.len)?;
        if !read {
            return Ok(Rc::from([]));
        }
        let number = |place| usize::try_from(self.buffers.i64(place)?).map_err(|_| OUTSIDE);
        let (start, len) = (number(2 * place)?, number(2 * place + 1)?);
        let end = start.checked_add(len).ok_or(OUTSIDE)?;
        let bytes = self.body.get(start..end).ok_or(OUTSIDE)?;
        let Some(codec) = self.compression.filter(|_| len > 0) else {
            budget.take(len as u64)?;
            return Ok(Rc::from(bytes));
        };
        let unfolded = i64::from_le_bytes(bytes_at(bytes, 0)?);
        let bytes = &bytes[8..];
        if unfolded == -1 {
            budget.take(bytes.len() as u64)?;
            return Ok(Rc::from(bytes));
        }
        let claim = u64::try_from(unfolded).map_err(|_| OUTSIDE)?;
        budget.take(claim)?;
        const DAMAGED: Problem = "a compressed buffer does not decompress to the bytes it claims";
        let mut all = Vec::new();
        let read = match codec {
            0 => lz4_flex::frame::FrameDecoder::new(bytes).take(claim + 1).read_to_end(&mut all),
            1 => match StreamingDecoder::new(bytes) {
                Ok(decoder) => decoder.take(claim + 1).read_to_end(&mut all),
                Err(_) => return Err(DAMAGED),
            },
            _ => return Err("a codec that is unknown; write the file without compression"),
        };
        match read {
            Ok(length) if length as u64 == claim => Ok(Rc::from(all)),
            _ => Err(DAMAGED),
        }
    }
}

/// The values that indices stand for, by the dictionary's number.
pub(super) type Dictionaries = Vec<(i64, Rc<Array>)>;

impl Array {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn is_valid(&self, row: usize) -> Result<bool, Problem> {
        match &self.valid {
            // Some writers leave the bits out where all rows are there.
            None => Ok(true),
            Some(bits) => bit(bits, row),
        }
    }

    /// The value of a row.
    pub(super) fn value(&self, row: usize, budget: &mut Budget) -> Result<Value, Problem> {
        if row >= self.len {
            return Err(CUT);
        }
        budget.take(VALUE_COST)?;
        if !self.is_valid(row)? {
            return Ok(Value::Null);
        }
        Ok(match &self.values {
            Values::None => Value::Null,
            Values::Bool(bits) => Value::Bool(bit(bits, row)?),
            Values::Int { .. } => match self.index(row)? {
                Some(n) => i64::try_from(n).map_or_else(|_| (n as u64).into(), Value::from),
                None => Value::Null,
            },
            Values::Float { bytes: 4, data } => {
                let x = f32::from_le_bytes(item(data, row)?);
                serde_json::Number::from_f64(x.into()).map_or(Value::Null, Value::Number)
            }
            Values::Float { bytes: 8, data } => {
                let x = f64::from_le_bytes(item(data, row)?);
                serde_json::Number::from_f64(x).map_or(Value::Null, Value::Number)
            }
            Values::Float { .. } => Value::Null,
            Values::Text { wide, offsets, data } => {
                let (start, end) = range(offsets, *wide, row)?;
                text(data.get(start..end).ok_or(CUT)?, budget)?
            }
            Values::View { views, data } => {
                let view: [u8; 16] = item(views, row)?;
                let part = |at: usize| {
                    u32::from_le_bytes([view[at], view[at + 1], view[at + 2], view[at + 3]])
                };
                let len = part(0) as usize;
                let bytes = match len {
                    0..=12 => &view[4..4 + len],
                    _ => {
                        let (buffer, start) = (part(8) as usize, part(12) as usize);
                        let bytes = data.get(buffer).and_then(|data| data.get(start..start + len));
                        bytes.ok_or(CUT)?
                    }
                };
                text(bytes, budget)?
            }
            Values::Fixed { bytes, data } => {
                let found = sized(data, row, *bytes)?;
                match std::str::from_utf8(found) {
                    Ok(_) => text(found, budget)?,
                    // A UUID or the like.
                    Err(_) => {
                        budget.take(2 * found.len() as u64)?;
                        found.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
                    }
                }
            }
            Values::List { wide, offsets, items } => {
                let (start, end) = range(offsets, *wide, row)?;
                items.list(start, end, budget)?
            }
            Values::FixedList { items_each, items } => {
                let start = row.checked_mul(*items_each).ok_or(CUT)?;
                items.list(start, start.checked_add(*items_each).ok_or(CUT)?, budget)?
            }
            Values::Struct(fields) => {
                let mut object = Map::new();
                for (name, field) in fields {
                    object.insert(name.clone(), field.value(row, budget)?);
                }
                Value::Object(object)
            }
            Values::Dictionary { indices, values } => match (indices.index_or_none(row)?, values) {
                (None, _) => Value::Null,
                (Some(_), None) => return Err("a dictionary is missing"),
                (Some(index), Some(values)) => {
                    let index = usize::try_from(index).map_err(|_| CUT)?;
                    values.value(index, budget)?
                }
            },
        })
    }

    fn list(&self, start: usize, end: usize, budget: &mut Budget) -> Result<Value, Problem> {
        if end > self.len {
            return Err(CUT);
        }
        let items = (start..end).map(|row| self.value(row, budget));
        Ok(Value::Array(items.collect::<Result<_, _>>()?))
    }

    fn index_or_none(&self, row: usize) -> Result<Option<i128>, Problem> {
        if self.is_valid(row)? { self.index(row) } else { Ok(None) }
    }

    /// A whole number.
    fn index(&self, row: usize) -> Result<Option<i128>, Problem> {
        let Values::Int { bytes, signed, data } = &self.values else { return Ok(None) };
        let found = sized(data, row, *bytes)?;
        let negative = *signed && found.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut all = [if negative { 0xff } else { 0 }; 16];
        all[..*bytes].copy_from_slice(found);
        Ok(Some(i128::from_le_bytes(all)))
    }
}

/// The bytes of a row.
fn sized(data: &[u8], row: usize, bytes: usize) -> Result<&[u8], Problem> {
    let start = row.checked_mul(bytes).ok_or(CUT)?;
    let end = start.checked_add(bytes).ok_or(CUT)?;
    data.get(start..end).ok_or(CUT)
}

fn item<const N: usize>(data: &[u8], row: usize) -> Result<[u8; N], Problem> {
    sized(data, row, N)?.try_into().map_err(|_| CUT)
}

fn bit(bits: &[u8], at: usize) -> Result<bool, Problem> {
    bits.get(at / 8).map(|byte| byte >> (at % 8) & 1 == 1).ok_or(CUT)
}

/// Where a row's bytes or items begin and end.
fn range(offsets: &[u8], wide: bool, row: usize) -> Result<(usize, usize), Problem> {
    let offset = |row: usize| match wide {
        true => item(offsets, row).map(i64::from_le_bytes),
        false => item(offsets, row).map(|found| i32::from_le_bytes(found).into()),
    };
    let (start, end) = (offset(row)?, offset(row + 1)?);
    match (usize::try_from(start), usize::try_from(end)) {
        (Ok(start), Ok(end)) if start <= end => Ok((start, end)),
        _ => Err(ORDER),
    }
}

fn text(bytes: &[u8], budget: &mut Budget) -> Result<Value, Problem> {
    budget.take(bytes.len() as u64)?;
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Value::String(text.to_owned())),
        Err(_) => Err("a text is not valid UTF-8"),
    }
}
