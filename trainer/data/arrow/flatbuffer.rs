//! Tables of a flatbuffer, the form of an Arrow file's metadata. Every offset in one is a claim that is checked.

/// The problem with a file, in words.
pub(super) type Problem = &'static str;

const OUTSIDE: Problem = "its metadata point outside of themselves";

/// Bytes at an offset that may be anything.
pub(super) fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Problem> {
    let end = at.checked_add(N).ok_or(OUTSIDE)?;
    let found = bytes.get(at..end).and_then(|found| found.try_into().ok());
    found.ok_or(OUTSIDE)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<usize, Problem> {
    bytes_at(bytes, at).map(|found| u32::from_le_bytes(found) as usize)
}

/// A table: numbers, and offsets of texts, tables and vectors, any of which may be absent.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    bytes: &'a [u8],
    at: usize,
    fields: usize,
    fields_len: usize,
}

/// Offset and length of a vector.
#[derive(Clone, Copy)]
pub(super) struct Vector<'a> {
    bytes: &'a [u8],
    start: usize,
    pub(super) len: usize,
}

impl<'a> Table<'a> {
    pub(super) fn root(bytes: &'a [u8]) -> Result<Table<'a>, Problem> {
        Table::at(bytes, u32_at(bytes, 0)?)
    }

    fn at(bytes: &'a [u8], at: usize) -> Result<Table<'a>, Problem> {
        let back = i64::from(i32::from_le_bytes(bytes_at(bytes, at)?));
        let fields = usize::try_from(at as i64 - back).map_err(|_| OUTSIDE)?;
        let fields_len = usize::from(u16::from_le_bytes(bytes_at(bytes, fields)?));
        Ok(Table { bytes, at, fields, fields_len })
    }

    /// Offset of a field, if it is present.
    fn field(&self, number: usize) -> Result<Option<usize>, Problem> {
        let slot = 4 + 2 * number;
        if slot + 2 > self.fields_len {
            return Ok(None);
        }
        let offset = u16::from_le_bytes(bytes_at(self.bytes, self.fields + slot)?);
        Ok((offset != 0).then_some(self.at + usize::from(offset)))
    }

    pub(super) fn u8(&self, number: usize) -> Result<u8, Problem> {
        match self.field(number)? {
            Some(at) => bytes_at(self.bytes, at).map(|[byte]| byte),
            None => Ok(0),
        }
    }

    pub(super) fn i16(&self, number: usize, default: i16) -> Result<i16, Problem> {
        match self.field(number)? {
            Some(at) => bytes_at(self.bytes, at).map(i16::from_le_bytes),
            None => Ok(default),
        }
    }

    pub(super) fn i32(&self, number: usize, default: i32) -> Result<i32, Problem> {
        match self.field(number)? {
            Some(at) => bytes_at(self.bytes, at).map(i32::from_le_bytes),
            None => Ok(default),
        }
    }

    pub(super) fn i64(&self, number: usize) -> Result<i64, Problem> {
        match self.field(number)? {
            Some(at) => bytes_at(self.bytes, at).map(i64::from_le_bytes),
            None => Ok(0),
        }
    }

    /// Where the offset in a field leads.
    fn target(&self, number: usize) -> Result<Option<usize>, Problem> {
        let Some(at) = self.field(number)? else { return Ok(None) };
        Ok(Some(at + u32_at(self.bytes, at)?))
    }

    pub(super) fn table(&self, number: usize) -> Result<Option<Table<'a>>, Problem> {
        self.target(number)?.map(|at| Table::at(self.bytes, at)).transpose()
    }

    pub(super) fn text(&self, number: usize) -> Result<&'a str, Problem> {
        let Some(at) = self.target(number)? else { return Ok("") };
        let (start, len) = (at + 4, u32_at(self.bytes, at)?);
        let text = start.checked_add(len).and_then(|end| self.bytes.get(start..end));
        text.and_then(|text| std::str::from_utf8(text).ok()).ok_or(OUTSIDE)
    }

    /// A vector of items of `size` bytes each.
    pub(super) fn vector(&self, number: usize, item: usize) -> Result<Vector<'a>, Problem> {
        let Some(at) = self.target(number)? else {
            return Ok(Vector { bytes: self.bytes, start: 0, len: 0 });
        };
        let (start, len) = (at + 4, u32_at(self.bytes, at)?);
        let end = len.checked_mul(item).and_then(|bytes| bytes.checked_add(start));
        match end.is_some_and(|end| end <= self.bytes.len()) {
            true => Ok(Vector { bytes: self.bytes, start, len }),
            false => Err(OUTSIDE),
        }
    }
}

impl<'a> Vector<'a> {
    /// The number at `place` of all numbers of 64 bits that the vector holds.
    pub(super) fn i64(&self, place: usize) -> Result<i64, Problem> {
        bytes_at(self.bytes, self.start + 8 * place).map(i64::from_le_bytes)
    }

    /// An item that is a table.
    pub(super) fn table(&self, place: usize) -> Result<Table<'a>, Problem> {
        let at = self.start + 4 * place;
        Table::at(self.bytes, at + u32_at(self.bytes, at)?)
    }
}
