//! Just enough of Thrift's compact protocol to validate a Parquet file before the reader allocates
//! what it claims: a walk over structs, with the few integers that matter picked out.
//!
//! <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>

/// The problem with the bytes, in words.
pub(super) type Problem = &'static str;

/// Structs in structs, at most.
const MAX_DEPTH: usize = 24;

/// A position in compact-protocol bytes.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A field's or element's wire type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Wire {
    /// In a field, the value is in its header.
    Bool(bool),
    Byte,
    Integer,
    Double,
    Binary,
    List,
    Map,
    Struct,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0 }
    }

    /// Bytes consumed.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Walks one struct. `visit` is called for each field with its number and wire type and the cursor
    /// at its value; it returns true if it consumed the value, else the value is skipped.
    pub(super) fn walk(
        &mut self,
        mut visit: impl FnMut(i16, Wire, &mut Self) -> Result<bool, Problem>,
    ) -> Result<(), Problem> {
        let mut field = 0_i16;
        while let Some((wire, delta)) = self.field_header()? {
            field = match delta {
                0 => {
                    i16::try_from(self.integer()?).map_err(|_| "a field number is out of range")?
                }
                delta => field.checked_add(delta).ok_or("a field number is out of range")?,
            };
            if !visit(field, wire, self)? {
                self.skip(wire, 0)?;
            }
        }
        Ok(())
    }

    /// A zigzag varint of at most 64 bits.
    pub(super) fn integer(&mut self) -> Result<i64, Problem> {
        let raw = self.varint()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// A list's header: element type and length. The length is checked against the bytes left, as
    /// every element takes at least one.
    pub(super) fn list(&mut self) -> Result<(Wire, usize), Problem> {
        let header = self.byte()?;
        let length = match header >> 4 {
            15 => usize::try_from(self.varint()?).map_err(|_| "a list is too long")?,
            short => short.into(),
        };
        if length > self.bytes.len() - self.at {
            return Err("a list is longer than the bytes left");
        }
        Ok((wire_of(header & 15)?, length))
    }

    fn skip(&mut self, wire: Wire, depth: usize) -> Result<(), Problem> {
        if depth > MAX_DEPTH {
            return Err("its metadata is nested too deeply");
        }
        match wire {
            Wire::Bool(_) => Ok(()), // the value is in the field's header
            Wire::Byte => self.byte().map(drop),
            Wire::Integer => self.varint().map(drop),
            Wire::Double => self.advance(8),
            Wire::Binary => {
                let length = usize::try_from(self.varint()?).map_err(|_| "a text is too long")?;
                self.advance(length)
            }
            Wire::List => {
                let (element, length) = self.list()?;
                for _ in 0..length {
                    self.skip_element(element, depth)?;
                }
                Ok(())
            }
            Wire::Map => {
                let length = usize::try_from(self.varint()?).map_err(|_| "a map is too long")?;
                if length > self.bytes.len() - self.at {
                    return Err("a map is longer than the bytes left");
                }
                let types = if length > 0 { self.byte()? } else { return Ok(()) };
                let (key, value) = (wire_of(types >> 4)?, wire_of(types & 15)?);
                for _ in 0..length {
                    self.skip_element(key, depth)?;
                    self.skip_element(value, depth)?;
                }
                Ok(())
            }
            Wire::Struct => {
                while let Some((wire, delta)) = self.field_header()? {
                    if delta == 0 {
                        self.varint()?;
                    }
                    self.skip(wire, depth + 1)?;
                }
                Ok(())
            }
        }
    }

    /// In a list or map a boolean takes a byte of its own.
    fn skip_element(&mut self, element: Wire, depth: usize) -> Result<(), Problem> {
        match element {
            Wire::Bool(_) => self.byte().map(drop),
            other => self.skip(other, depth + 1),
        }
    }

    /// The next field's type and the step to its number (0: the number follows), or `None` at the stop.
    fn field_header(&mut self) -> Result<Option<(Wire, i16)>, Problem> {
        match self.byte()? {
            0 => Ok(None),
            header => Ok(Some((wire_of(header & 15)?, (header >> 4).into()))),
        }
    }

    fn varint(&mut self) -> Result<u64, Problem> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("an integer is too long")
    }

    fn byte(&mut self) -> Result<u8, Problem> {
        let byte = *self.bytes.get(self.at).ok_or("its metadata ends too soon")?;
        self.at += 1;
        Ok(byte)
    }

    fn advance(&mut self, length: usize) -> Result<(), Problem> {
        if length > self.bytes.len() - self.at {
            return Err("a text is longer than the bytes left");
        }
        self.at += length;
        Ok(())
    }
}

fn wire_of(code: u8) -> Result<Wire, Problem> {
    Ok(match code {
        1 | 2 => Wire::Bool(code == 1),
        3 => Wire::Byte,
        4..=6 => Wire::Integer,
        7 => Wire::Double,
        8 => Wire::Binary,
        9 | 10 => Wire::List,
        11 => Wire::Map,
        12 => Wire::Struct,
        _ => return Err("its metadata has an unknown type"),
    })
}
