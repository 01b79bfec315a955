//! Lines of a file, one at a time, of bounded length and known place.

use std::io::{self, BufRead, Read};

/// The longest line that is read, in bytes.
pub(crate) const MAX_LINE: u64 = 16 << 20;

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// Its number, from 1.
    pub(crate) number: u64,
    /// Offset of its first byte in the file.
    pub(crate) offset: u64,
    /// Its bytes without the line feed.
    pub(crate) bytes: &'a [u8],
    /// Whether a line feed ended it; only the last line may miss it.
    pub(crate) terminated: bool,
}

/// Why a line could not be read.
#[derive(Debug)]
pub(crate) enum LineError {
    /// The system said so.
    Io(io::Error),
    /// The line with this number is longer than [`MAX_LINE`].
    TooLong(u64),
}

/// Reads lines into one reused buffer.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    number: u64,
    offset: u64,
}

impl<R: BufRead> Lines<R> {
    /// Lines of a reader at the beginning of a file.
    pub(crate) fn new(reader: R) -> Self {
        Lines { reader, buffer: Vec::new(), number: 0, offset: 0 }
    }

    /// The next line, or `None` at the end. Memory stays below [`MAX_LINE`] and a little.
    pub(crate) fn next_line(&mut self) -> Result<Option<Line<'_>>, LineError> {
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        self.number += 1;
        let mut limited = self.reader.by_ref().take(MAX_LINE + 1);
        limited.read_until(b'\n', &mut self.buffer).map_err(LineError::Io)?;
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let terminated = self.buffer.last() == Some(&b'\n');
        let length = self.buffer.len() - usize::from(terminated);
        if length as u64 > MAX_LINE || (!terminated && self.buffer.len() as u64 > MAX_LINE) {
            return Err(LineError::TooLong(self.number));
        }
        Ok(Some(Line {
            number: self.number,
            offset: self.offset,
            bytes: &self.buffer[..length],
            terminated,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_know_their_place() {
        let mut lines = Lines::new(&b"a\n\nbc"[..]);
        let mut found = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            found.push((line.number, line.offset, line.bytes.to_vec(), line.terminated));
        }
        let expected = [
            (1, 0, b"a".to_vec(), true),
            (2, 2, b"".to_vec(), true),
            (3, 3, b"bc".to_vec(), false),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_endless_line_is_refused_within_the_bound() {
        let mut lines = Lines::new(io::BufReader::new(io::repeat(b'x')));
        assert!(matches!(lines.next_line(), Err(LineError::TooLong(1))));
        assert!(lines.buffer.len() as u64 <= MAX_LINE + 1);
        let exact = [vec![b'x'; MAX_LINE as usize], b"\ny".to_vec()].concat();
        let mut lines = Lines::new(&exact[..]);
        assert_eq!(lines.next_line().unwrap().unwrap().bytes.len() as u64, MAX_LINE);
        assert_eq!(lines.next_line().unwrap().unwrap().bytes, b"y");
    }
}
