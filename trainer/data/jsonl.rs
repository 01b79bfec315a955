//! Rows from JSON: one object per line (blank lines are skipped), objects over several lines, or one list of objects.

use std::io::{BufRead, BufReader, Read};

use serde_json::{Map, Value};

use super::json::{self, Fields};
use super::reason::{DropReason, Refusal};
use super::rows::Place;
use super::source::Part;
use super::{DataError, Layouts, Values};

/// The largest object, in bytes.
const MAX_OBJECT: u64 = 64 << 20;

/// Shows the first `limit` rows with the values of the columns that are read.
pub(super) fn visit<E: From<DataError>>(
    part: &Part,
    limit: usize,
    layouts: &mut Layouts<'_>,
    mut each: impl FnMut(Place, Values) -> Result<(), E>,
) -> Result<(), E> {
    let mut objects = Objects::new(part, part.reader()?)?;
    for _ in 0..limit {
        let Some(object) = objects.next()? else { break };
        let (line, text) = (objects.line, object.trim_ascii());
        let text = std::str::from_utf8(text).map_err(|error| DataError::NotUtf8 {
            path: part.path().to_owned(),
            line,
            byte: error.valid_up_to(),
        })?;
        let read = json::with_fields(text, |Fields(fields)| {
            let names: Vec<String> = fields.iter().map(|(name, _)| name.clone()).collect();
            let layout = layouts.of(&names);
            let mut values = Map::new();
            for (name, raw) in fields {
                let value = match layout.reads(&name) {
                    true => match json::value(raw.get()) {
                        Ok(value) => value,
                        Err(problem) => {
                            let refusal =
                                Refusal::new(DropReason::Malformed, format!("{name}: {problem}"));
                            return (names, Err(refusal));
                        }
                    },
                    false => Value::Null,
                };
                values.insert(name, value);
            }
            (names, Ok(values))
        });
        let (names, values) = read.map_err(|problem| {
            let message = format!("not a JSON object: {problem}");
            DataError::Syntax { path: part.path().to_owned(), line, message }
        })?;
        each(Place::Line(line), Values { names, values })?;
    }
    Ok(())
}

/// How the objects of a file are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One object per line.
    Lines,
    /// Objects over several lines, told apart by their braces.
    Objects,
    /// Objects in one list.
    List,
}

/// The texts of a file's objects.
struct Objects<'a> {
    part: &'a Part,
    reader: BufReader<Box<dyn Read + 'a>>,
    form: Form,
    /// A first line that was read to see the form.
    first: Option<Vec<u8>>,
    /// Offsets of the last object's start and of the next byte to read.
    line: u64,
    next_line: u64,
    items: u64,
    ended: bool,
}

impl<'a> Objects<'a> {
    fn new(part: &'a Part, reader: Box<dyn Read + 'a>) -> Result<Objects<'a>, DataError> {
        let mut objects = Objects {
            part,
            reader: BufReader::with_capacity(1 << 16, reader),
            form: Form::Lines,
            first: None,
            line: 0,
            next_line: 1,
            items: 0,
            ended: false,
        };
        let mark = b"\xef\xbb\xbf";
        if objects.peek()?.starts_with(mark) {
            objects.reader.consume(mark.len());
        }
        objects.skip_blank()?;
        match objects.peek()?.first() {
            Some(b'[') => {
                objects.form = Form::List;
                objects.reader.consume(1);
            }
            Some(b'{') => {
                let line = objects.read_line()?;
                if nesting(&line) > 0 && !objects.peek()?.is_empty() {
                    objects.form = Form::Objects;
                }
                objects.first = Some(line);
            }
            _ => {}
        }
        Ok(objects)
    }

    /// The text of the next object; its first line is `self.line`.
    fn next(&mut self) -> Result<Option<Vec<u8>>, DataError> {
        match self.form {
            Form::Lines => self.next_line(),
            Form::Objects => {
                let mut text = match self.first.take() {
                    Some(first) => first,
                    None => {
                        self.skip_blank()?;
                        Vec::new()
                    }
                };
                if text.is_empty() && self.peek()?.is_empty() {
                    return Ok(None);
                }
                self.line = self.next_line;
                self.next_line += u64::from(text.ends_with(b"\n"));
                self.rest_of_object(&mut text)?;
                Ok(Some(text))
            }
            Form::List => self.next_item(),
        }
    }

    fn next_line(&mut self) -> Result<Option<Vec<u8>>, DataError> {
        loop {
            let line = match self.first.take() {
                Some(line) => line,
                None => self.read_line()?,
            };
            if line.is_empty() {
                return Ok(None);
            }
            self.line = self.next_line;
            self.next_line += 1;
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }

    fn next_item(&mut self) -> Result<Option<Vec<u8>>, DataError> {
        if self.ended {
            return Ok(None);
        }
        self.skip_blank()?;
        let mut next = self.peek()?.first().copied();
        if next == Some(b',') && self.items > 0 {
            self.reader.consume(1);
            self.skip_blank()?;
            next = self.peek()?.first().copied();
        } else if self.items > 0 && next != Some(b']') {
            return Err(self.problem("the list of objects does not go on with , or end with ]"));
        }
        match next {
            Some(b']') => {
                self.reader.consume(1);
                self.ended = true;
                self.skip_blank()?;
                match self.peek()?.is_empty() {
                    true => Ok(None),
                    false => Err(self.problem("there is more after the list of objects; write one list, or an object a line")),
                }
            }
            Some(b'{') => {
                self.items += 1;
                self.line = self.next_line;
                let mut text = Vec::new();
                self.rest_of_object(&mut text)?;
                Ok(Some(text))
            }
            Some(_) => {
                Err(self.problem("not a JSON object: an item of the list is something else"))
            }
            None => Err(self.problem("the list of objects does not end; was the file cut?")),
        }
    }

    /// Reads on until the braces of `text` are closed.
    fn rest_of_object(&mut self, text: &mut Vec<u8>) -> Result<(), DataError> {
        let mut scan = Scan::default();
        if scan.closes_at(text).is_some() {
            return Ok(());
        }
        loop {
            let piece = self.reader.fill_buf().map_err(|e| self.part.io(e))?;
            if piece.is_empty() {
                let line = self.line;
                let message = format!(
                    "the object that begins in line {line} does not end; was the file cut?"
                );
                return Err(self.problem(&message));
            }
            let end = scan.closes_at(piece);
            let taken = end.unwrap_or(piece.len());
            text.extend_from_slice(&piece[..taken]);
            self.next_line += piece[..taken].iter().filter(|&&byte| byte == b'\n').count() as u64;
            self.reader.consume(taken);
            self.check_length(text)?;
            if end.is_some() {
                return Ok(());
            }
        }
    }

    fn read_line(&mut self) -> Result<Vec<u8>, DataError> {
        let mut line = Vec::new();
        let mut limited = self.reader.by_ref().take(MAX_OBJECT + 2);
        limited.read_until(b'\n', &mut line).map_err(|e| self.part.io(e))?;
        if line.len() as u64 > MAX_OBJECT + u64::from(line.ends_with(b"\n")) {
            self.line = self.next_line;
            self.check_length(&line)?;
        }
        Ok(line)
    }

    fn check_length(&self, text: &[u8]) -> Result<(), DataError> {
        match text.len() as u64 > MAX_OBJECT {
            true => Err(DataError::TooLong {
                path: self.part.path().to_owned(),
                line: self.line,
                limit: MAX_OBJECT,
            }),
            false => Ok(()),
        }
    }

    fn skip_blank(&mut self) -> Result<(), DataError> {
        loop {
            let piece = self.reader.fill_buf().map_err(|e| self.part.io(e))?;
            let blank = piece.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            self.next_line += piece[..blank].iter().filter(|&&byte| byte == b'\n').count() as u64;
            let ends = blank < piece.len() || piece.is_empty();
            self.reader.consume(blank);
            if ends {
                return Ok(());
            }
        }
    }

    fn peek(&mut self) -> Result<&[u8], DataError> {
        self.reader.fill_buf().map_err(|e| self.part.io(e))
    }

    fn problem(&self, message: &str) -> DataError {
        let (path, message) = (self.part.path().to_owned(), message.to_owned());
        DataError::Syntax { path, line: self.next_line, message }
    }
}

/// Follows the braces and quotes of an object through pieces of its text.
#[derive(Debug, Default)]
struct Scan {
    depth: usize,
    in_text: bool,
    escaped: bool,
}

impl Scan {
    /// Where in `piece` the object ends, behind its last brace.
    fn closes_at(&mut self, piece: &[u8]) -> Option<usize> {
        for (at, &byte) in piece.iter().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_text => self.escaped = true,
                b'"' => self.in_text = !self.in_text,
                _ if self.in_text => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// How many braces and brackets a line leaves open.
fn nesting(line: &[u8]) -> usize {
    let mut scan = Scan::default();
    match scan.closes_at(line) {
        Some(_) => 0,
        // A text that a line ends in is a torn line, not an object over several.
        None if scan.in_text => 0,
        None => scan.depth,
    }
}
