//! TensorBoard event files, as far as scalars need them.
//!
//! ```text
//! file    records: length u64, crc of length u32, bytes, crc of bytes u32    (little-endian; TFRecord)
//! crc     c = CRC-32C;  (c rotated right by 15 bits) + 0xa282ead8, mod 2^32
//! Event   1: wall_time f64   2: step i64   3: file_version   5: Summary   7: SessionLog
//! Summary 1: repeated Value { 1: tag   2: simple_value f32 }
//! ```
//!
//! Protobuf by hand: a field is its number and wire type in one byte (all numbers are below 16), then a varint,
//! 4 or 8 little-endian bytes, or a length and that number of bytes. Source: tensorflow's event.proto,
//! summary.proto and lib/io/record_writer.cc.
//!
//! A run that is resumed begins a file of its own with a `SessionLog` that says START at its first step;
//! TensorBoard then forgets what an earlier file holds from that step on. Nothing is synced: `metrics.jsonl`
//! is the record, this is a view of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What a file's name begins with; TensorBoard looks for it and reads the files in the order of their names.
const PREFIX: &str = "events.out.tfevents.";

/// One event file.
#[derive(Debug)]
pub(crate) struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Begins a file in `directory`, which exists. `wall_time`: seconds since 1970. `resumed`: the step that the
    /// run continues after, if it was interrupted.
    pub(crate) fn create(
        directory: &Path,
        wall_time: f64,
        resumed: Option<u64>,
    ) -> io::Result<EventFile> {
        // Numbered after the files that are there, so that names sort as they were begun even within a second
        // or after the clock was set back.
        let mut next = 0;
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            let number = number.and_then(|rest| rest.split('.').next()?.parse::<u64>().ok());
            next = next.max(number.map_or(0, |number| number.saturating_add(1)));
        }
        let number = next.max(wall_time.max(0.0) as u64);
        let path = directory.join(format!("{PREFIX}{number:010}.j1"));
        let file = File::options().write(true).create_new(true).open(&path)?;
        let mut events = EventFile { file, path };
        let mut start = Message::event(wall_time, 0);
        start.bytes(3, b"brain.Event:2");
        let mut bytes = record(&start.0);
        if let Some(step) = resumed {
            let mut session = Message::default();
            session.varint(1, 1); // START
            let mut event = Message::event(wall_time, step + 1);
            event.bytes(7, &session.0);
            bytes.extend(record(&event.0));
        }
        events.file.write_all(&bytes)?;
        Ok(events)
    }

    /// Path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends the scalars of one step. They are kept as f32; not a number and the infinities are kept as such.
    pub(crate) fn write(
        &mut self,
        wall_time: f64,
        step: u64,
        scalars: &[(String, f64)],
    ) -> io::Result<()> {
        let mut summary = Message::default();
        for (tag, value) in scalars {
            let mut scalar = Message::default();
            scalar.bytes(1, tag.as_bytes());
            scalar.fixed32(2, (*value as f32).to_bits());
            summary.bytes(1, &scalar.0);
        }
        let mut event = Message::event(wall_time, step);
        event.bytes(5, &summary.0);
        self.file.write_all(&record(&event.0)) // one write: a kill tears the last record at most
    }
}

/// The bytes of a protobuf message.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn event(wall_time: f64, step: u64) -> Message {
        let mut event = Message::default();
        event.0.push(1 << 3 | 1);
        event.0.extend(wall_time.to_le_bytes());
        event.varint(2, step);
        event
    }

    fn varint(&mut self, field: u8, value: u64) {
        self.0.push(field << 3);
        self.raw_varint(value);
    }

    fn fixed32(&mut self, field: u8, bits: u32) {
        self.0.push(field << 3 | 5);
        self.0.extend(bits.to_le_bytes());
    }

    fn bytes(&mut self, field: u8, bytes: &[u8]) {
        self.0.push(field << 3 | 2);
        self.raw_varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A TFRecord.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked(crc32c(&length)).to_le_bytes());
    record.extend(bytes);
    record.extend(masked(crc32c(bytes)).to_le_bytes());
    record
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with Castagnoli's polynomial. A byte a table look-up: a step writes a few kilobytes, and a crate for it
/// would bring a build script.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let (mut crc, mut bit) = (index as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b""), 0);
    }

    /// A run of three steps that was resumed after the second: what `check.py` reads with TensorBoard.
    fn write_run(directory: &Path) -> [PathBuf; 2] {
        let scalars = |step: u64| {
            vec![
                ("reward".to_owned(), step as f64 / 4.0),
                ("rewards/verdict/mean".to_owned(), -1.5e-8 * step as f64),
                ("grad_norm".to_owned(), if step == 3 { f64::NAN } else { 1e300 }),
            ]
        };
        let mut first = EventFile::create(directory, 1_764_000_000.25, None).unwrap();
        (1..=3).for_each(|n| first.write(1_764_000_000.5 + n as f64, n, &scalars(n)).unwrap());
        // The clock was set back meanwhile.
        let mut second = EventFile::create(directory, 1_763_000_000.0, Some(2)).unwrap();
        (3..=300).step_by(297).for_each(|n| second.write(1_764_000_100.0, n, &scalars(n)).unwrap());
        [first.path().to_owned(), second.path().to_owned()]
    }

    #[test]
    fn files_have_the_bytes_that_tensorboard_was_seen_to_read() {
        let fixtures =
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tensorboard"));
        let directory = tempfile::tempdir().unwrap();
        let paths = write_run(directory.path());
        let names = ["events.out.tfevents.1764000000.j1", "events.out.tfevents.1764000001.j1"];
        for (path, name) in paths.iter().zip(names) {
            assert_eq!(path.file_name().unwrap(), name);
            // After a change that is meant: J1_RENEW_FIXTURES=1, then run check.py.
            if std::env::var_os("J1_RENEW_FIXTURES").is_some() {
                fs::copy(path, fixtures.join(name)).unwrap();
            }
            let (ours, theirs) = (fs::read(path).unwrap(), fs::read(fixtures.join(name)));
            assert!(theirs.is_ok_and(|theirs| theirs == ours), "{name} differs: {ours:?}");
        }
    }
}
