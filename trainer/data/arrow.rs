//! Rows from Arrow's IPC files and streams: what `datasets.save_to_disk`, Feather and pyarrow write.
//!
//! Read are messages in their order, which a file has as a stream has them: the schema, dictionaries, record batches.
//! Its footer only repeats where they lie. Buffers may be compressed with LZ4 or Zstandard.
//!
//! The crate `arrow-ipc` would do it with twelve crates more, and allocates what lengths in a file claim. So the few
//! types that conversations are made of are read here, from slices, and everything that they claim is checked.

mod array;
mod flatbuffer;
mod schema;

use std::io::{self, BufReader, Read};
use std::rc::Rc;

use serde_json::{Map, Value};

use array::{Batch, Budget, Dictionaries};
use flatbuffer::{Problem, Table};
use schema::Column;

use super::reason::{DropReason, Refusal};
use super::rows::Place;
use super::source::Part;
use super::{DataError, Layouts, Values};

/// The largest metadata of a message, in bytes.
const MAX_METADATA: u64 = 16 << 20;
/// The most text a file may decompress to: this, or this multiple of the file's size if that is more.
const MAX_TEXT: (u64, u64) = (256 << 20, 64);

/// Shows the first `limit` rows with the values of the columns that are read.
pub(super) fn visit<E: From<DataError>>(
    part: &Part,
    limit: usize,
    layouts: &mut Layouts<'_>,
    mut each: impl FnMut(Place, Values) -> Result<(), E>,
) -> Result<(), E> {
    let damaged = |problem: Problem| DataError::Arrow {
        path: part.path().to_owned(),
        message: problem.to_owned(),
    };
    let length = part.file().and_then(|file| file.metadata()).map_err(|e| part.io(e))?.len();
    let mut budget = Budget { left: MAX_TEXT.0.max(length.saturating_mul(MAX_TEXT.1)) };
    let mut messages = Messages { part, reader: BufReader::new(part.reader()?), begun: false };
    let Some(first) = messages.next()? else { return Err(damaged("it is empty").into()) };
    let columns = first.schema().map_err(damaged)?;
    let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
    let layout = layouts.of(&names);
    let reads: Vec<bool> = names.iter().map(|name| layout.reads(name)).collect();
    for (column, reads) in columns.iter().zip(&reads) {
        if *reads
            && layout.is_text(&column.name)
            && let Some(kind) = column.kind.no_text()
        {
            let name = engine::error::excerpt(&column.name);
            let message = format!(
                "column {name} is of type {kind}, which is not read as text; write it as text"
            );
            return Err(DataError::Arrow { path: part.path().to_owned(), message }.into());
        }
    }
    let mut dictionaries = Dictionaries::new();
    let mut number = 0;
    while number < limit {
        let Some(message) = messages.next()? else { break };
        let read = message.batch(&columns, &reads, &mut dictionaries, &mut budget);
        let Some((rows, arrays)) = read.map_err(damaged)? else { continue };
        for row in 0..rows.min(limit - number) {
            let mut values = Ok(Map::new());
            for ((name, array), reads) in names.iter().zip(&arrays).zip(&reads) {
                let Ok(all) = &mut values else { break };
                let value = if *reads { array.value(row, &mut budget) } else { Ok(Value::Null) };
                match value {
                    Ok(value) if !all.contains_key(name) => {
                        all.insert(name.clone(), value);
                    }
                    Ok(_) => {}
                    Err(problem) if problem.contains("UTF-8") => {
                        let detail = format!("{name}: {problem}");
                        values = Err(Refusal::new(DropReason::Malformed, detail));
                    }
                    Err(problem) => return Err(damaged(problem).into()),
                }
            }
            each(Place::Row(number as u64), Values { names: names.clone(), values })?;
            number += 1;
        }
    }
    if number == 0 && limit > 0 && !reads.contains(&true) {
        // So that what is missing is named rather than that there are no rows.
        let values = names.iter().map(|name| (name.clone(), Value::Null)).collect();
        each(Place::Row(0), Values { names, values: Ok(values) })?;
    }
    Ok(())
}

/// Reads messages one after the other.
struct Messages<'a> {
    part: &'a Part,
    reader: BufReader<Box<dyn Read + 'a>>,
    begun: bool,
}

/// A message's metadata and its body.
struct Message {
    metadata: Vec<u8>,
    body: Vec<u8>,
}

impl Messages<'_> {
    fn next(&mut self) -> Result<Option<Message>, DataError> {
        if !self.begun {
            self.begun = true;
            let mut start = [0; 4];
            self.exactly(&mut start)?;
            if start == *b"ARRO" {
                self.exactly(&mut start)?;
            } else {
                // A stream: what was read is the mark of its first message.
                return self.message(start);
            }
        }
        let mut mark = [0; 4];
        match self.reader.read(&mut mark[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => self.exactly(&mut mark[1..])?,
            Err(error) => return Err(self.part.io(error)),
        }
        self.message(mark)
    }

    fn message(&mut self, mark: [u8; 4]) -> Result<Option<Message>, DataError> {
        // Without the mark, a file's footer begins.
        if mark != [0xff; 4] {
            return Ok(None);
        }
        let mut length = [0; 4];
        self.exactly(&mut length)?;
        let length = u64::from(u32::from_le_bytes(length));
        if length == 0 {
            return Ok(None);
        }
        if length > MAX_METADATA {
            return Err(self.damaged("the metadata of a message are too large"));
        }
        let metadata = self.bytes(length)?;
        let body = Table::root(&metadata).and_then(|message| message.i64(3));
        let body =
            body.and_then(|length| u64::try_from(length).map_err(|_| "a length is negative"));
        let body = self.bytes(body.map_err(|problem| self.damaged(problem))?)?;
        Ok(Some(Message { metadata, body }))
    }

    fn exactly(&mut self, bytes: &mut [u8]) -> Result<(), DataError> {
        match self.reader.read_exact(bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.cut()),
            read => read.map_err(|error| self.part.io(error)),
        }
    }

    /// Reads `length` bytes. Memory is allocated as they arrive, whatever the length claims.
    fn bytes(&mut self, length: u64) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(length).read_to_end(&mut bytes);
        match read.map_err(|error| self.part.io(error))? as u64 == length {
            true => Ok(bytes),
            false => Err(self.cut()),
        }
    }

    fn cut(&self) -> DataError {
        self.damaged("its end is missing; was the download cut?")
    }

    fn damaged(&self, message: &str) -> DataError {
        DataError::Arrow { path: self.part.path().to_owned(), message: message.to_owned() }
    }
}

impl Message {
    fn header(&self) -> Result<(u8, Table<'_>), Problem> {
        let message = Table::root(&self.metadata)?;
        Ok((message.u8(1)?, message.table(2)?.ok_or("a message has no contents")?))
    }

    fn schema(&self) -> Result<Vec<Column>, Problem> {
        match self.header()? {
            (1, schema) => schema::columns(schema),
            _ => Err("it does not begin with its schema"),
        }
    }

    /// The rows and columns of a record batch. A dictionary is kept for those that follow.
    fn batch(
        &self,
        columns: &[Column],
        reads: &[bool],
        dictionaries: &mut Dictionaries,
        budget: &mut Budget,
    ) -> Result<Option<(usize, Vec<array::Array>)>, Problem> {
        match self.header()? {
            (2, dictionary) => {
                if dictionary.u8(2)? != 0 {
                    return Err("a dictionary comes in parts; write the file again");
                }
                let id = dictionary.i64(0)?;
                let column = columns
                    .iter()
                    .zip(reads)
                    .find_map(|(column, &reads)| holder(column, id).map(|column| (column, reads)));
                let Some((column, true)) = column else { return Ok(None) };
                // Its values have the column's type, and are no numbers of another dictionary.
                let values = dictionary.table(1)?.ok_or("a dictionary has no values")?;
                let array =
                    Batch::new(values, &self.body)?.dictionary(column, dictionaries, budget)?;
                dictionaries.retain(|(known, _)| *known != id);
                dictionaries.push((id, Rc::new(array)));
                Ok(None)
            }
            (3, table) => {
                let mut batch = Batch::new(table, &self.body)?;
                let mut arrays = Vec::new();
                for (column, &read) in columns.iter().zip(reads) {
                    let array = batch.array(column, read, dictionaries, budget)?;
                    if array.len() != batch.rows {
                        return Err("a column has another length than its batch");
                    }
                    arrays.push(array);
                }
                Ok(Some((batch.rows, arrays)))
            }
            _ => Ok(None),
        }
    }
}

/// The column, or the part of it, whose values a dictionary holds.
fn holder(column: &Column, id: i64) -> Option<&Column> {
    match &column.dictionary {
        Some((known, _)) if *known == id => Some(column),
        _ => column.children.iter().find_map(|child| holder(child, id)),
    }
}
