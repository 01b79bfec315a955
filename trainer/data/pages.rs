//! The pages of a Parquet column, distrusted: every page header is read before the reader acts on it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use parquet::basic::{Compression, Type};
use parquet::file::metadata::ColumnChunkMetaData;

use super::DataError;
use super::parquet::{damaged, read_at};
use super::thrift::{Cursor, Problem, Wire};
use super::zstd;

/// The largest page after decompression, in bytes.
const MAX_PAGE: i64 = 256 << 20;
/// The longest page header, in bytes: it may hold the least and greatest text of the page.
const MAX_HEADER: u64 = 16 << 20;
/// The most values of a column in one row group (and so in one row).
const MAX_CHUNK_VALUES: i64 = 4 << 20;
/// The most pages of a file.
const MAX_PAGES: u64 = 1 << 20;

/// What the pages of a file may amount to, and what they have amounted to so far. Row groups may share
/// pages, so a small file can ask for endless work.
#[derive(Debug)]
pub(super) struct Budget {
    pages: u64,
    bytes: u64,
    limit: u64,
}

impl Budget {
    /// Nothing was spent yet of `limit` bytes.
    pub(super) fn new(limit: u64) -> Budget {
        Budget { pages: 0, bytes: 0, limit }
    }

    fn spend(&mut self, page: &Page) -> Result<(), String> {
        self.pages += 1;
        self.bytes = self.bytes.saturating_add(page.uncompressed as u64);
        match (self.pages > MAX_PAGES, self.bytes > self.limit) {
            (true, _) => Err(format!("it has more than {MAX_PAGES} pages")),
            (_, true) => Err(format!("its pages decompress to more than {} bytes", self.limit)),
            _ => Ok(()),
        }
    }
}

/// Walks the page headers of a column chunk, to its very end: the reader does not stop at the claimed
/// number of values either.
pub(super) fn check_column(
    path: &Path,
    file: &mut File,
    file_len: u64,
    column: &ColumnChunkMetaData,
    budget: &mut Budget,
) -> Result<(), DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let name = column.column_path().string();
    let unsupported = |feature: &str| DataError::Unsupported {
        path: path.to_owned(),
        column: engine::error::excerpt(&name),
        feature: feature.to_owned(),
    };
    match column.compression() {
        Compression::LZO => return Err(unsupported("the codec lzo")),
        Compression::BROTLI(_) => return Err(unsupported("the codec brotli")),
        Compression::LZ4 => return Err(unsupported("the old framed codec lz4")),
        Compression::UNCOMPRESSED
        | Compression::SNAPPY
        | Compression::GZIP(_)
        | Compression::ZSTD(_)
        | Compression::LZ4_RAW => {}
    }
    // Its length is one more number to validate, and nobody writes texts this way.
    if column.column_type() == Type::FIXED_LEN_BYTE_ARRAY {
        return Err(unsupported("the type FIXED_LEN_BYTE_ARRAY"));
    }
    let bad = |what: String| damaged(path, format!("column {name}: {what}"));
    let positive = |n: i64| u64::try_from(n).map_err(|_| bad("a negative offset".to_owned()));
    let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
    let (start, length) = (positive(start)?, positive(column.compressed_size())?);
    let end = start.checked_add(length).filter(|&end| end <= file_len);
    let end = end.ok_or_else(|| bad("its pages lie outside the file".to_owned()))?;
    let (mut at, mut values) = (start, 0_i64);
    while at < end {
        let mut window = 4 << 10;
        let (page, header) = loop {
            let bytes = read_at(file, at, window.min(end - at)).map_err(io)?;
            match Page::read(&bytes) {
                Ok(found) => break found,
                // A header with long statistics: look further.
                Err(_) if window < end - at && window < MAX_HEADER => window *= 16,
                Err(problem) => return Err(bad(problem.to_owned())),
            }
        };
        if !(0..=MAX_PAGE).contains(&page.uncompressed) || page.compressed < 0 {
            return Err(bad(format!("a page claims {} bytes", page.uncompressed)));
        }
        budget.spend(&page).map_err(|what| damaged(path, what))?;
        let data = at.saturating_add(header);
        let next = data.saturating_add(page.compressed as u64);
        if next > end {
            return Err(bad("a page is longer than its column".to_owned()));
        }
        if page.kind == Kind::Dictionary {
            if !(0..=MAX_CHUNK_VALUES.min(page.uncompressed)).contains(&page.values) {
                return Err(bad(format!("a dictionary claims {} values", page.values)));
            }
        } else {
            values = values.saturating_add(page.values.max(0));
            if page.values < 0 || values > MAX_CHUNK_VALUES {
                return Err(bad(format!("its pages claim {values} values")));
            }
        }
        // Plain, plain dictionary, runs (of booleans), dictionary.
        if !matches!(page.encoding, 0 | 2 | 3 | 8) {
            return Err(unsupported(&match page.encoding {
                5 => "the encoding DELTA_BINARY_PACKED".to_owned(),
                6 => "the encoding DELTA_LENGTH_BYTE_ARRAY".to_owned(),
                7 => "the encoding DELTA_BYTE_ARRAY".to_owned(),
                9 => "the encoding BYTE_STREAM_SPLIT".to_owned(),
                other => format!("encoding number {other}"),
            }));
        }
        if page.is_compressed {
            check_unfolded(column.compression(), &page, || {
                read_at(file, data, page.compressed as u64).map_err(io)
            })?
            .map_err(bad)?;
        }
        at = next;
    }
    Ok(())
}

/// Refuses a page whose reader would decompress all of it before it compares with what the page claims.
/// The outer error is the system's, the inner one is about the page.
fn check_unfolded(
    codec: Compression,
    page: &Page,
    compressed: impl FnOnce() -> Result<Vec<u8>, DataError>,
) -> Result<Result<(), String>, DataError> {
    if !matches!(codec, Compression::GZIP(_) | Compression::ZSTD(_)) {
        return Ok(Ok(()));
    }
    let compressed = compressed()?;
    // In pages of version 2 the levels come before the compressed part.
    let levels = usize::try_from(page.levels).unwrap_or(usize::MAX);
    let Some(body) = compressed.get(levels..) else {
        return Ok(Err("a page is shorter than its levels".to_owned()));
    };
    let claim = page.uncompressed as u64;
    let count = |unfolded: &mut dyn Read| io::copy(&mut unfolded.take(claim + 1), &mut io::sink());
    Ok(match codec {
        // What does not decompress is the reader's to report: it comes no further than this did.
        Compression::GZIP(_) => match count(&mut MultiGzDecoder::new(body)) {
            Ok(count) if count > claim => {
                Err(format!("a page unfolds beyond the {claim} bytes it claims"))
            }
            _ => Ok(()),
        },
        _ if body.is_empty() && claim == page.levels as u64 => Ok(()),
        // Its reader does not compare.
        _ => match zstd::reader(body).and_then(|mut unfolded| count(&mut unfolded)) {
            Ok(count) if count.saturating_add(page.levels as u64) == claim => Ok(()),
            Ok(_) => Err(format!("a page does not decompress to the {claim} bytes it claims")),
            Err(error) => Err(format!("a page does not decompress ({error})")),
        },
    })
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Kind {
    #[default]
    Unknown,
    Data,
    Dictionary,
}

/// The fields of a page header that are checked.
#[derive(Debug, Default)]
struct Page {
    kind: Kind,
    uncompressed: i64,
    compressed: i64,
    values: i64,
    encoding: i64,
    /// Bytes of levels before the compressed part.
    levels: i64,
    is_compressed: bool,
}

impl Page {
    /// Reads a header at the start of `bytes`; returns its length, too. The reader takes known fields for
    /// what they should be, whatever type they declare, and the last of repeated ones: so both are refused.
    fn read(bytes: &[u8]) -> Result<(Page, u64), Problem> {
        let mut page = Page {
            uncompressed: -1,
            compressed: -1,
            values: -1,
            is_compressed: true,
            ..Page::default()
        };
        let mut number = -1;
        let mut seen = 0_u16;
        let mut cursor = Cursor::new(bytes);
        cursor.walk(|field, wire, cursor| {
            once(&mut seen, field)?;
            match (field, wire) {
                (1, Wire::Integer) => number = cursor.integer()?,
                (2, Wire::Integer) => page.uncompressed = cursor.integer()?,
                (3, Wire::Integer) => page.compressed = cursor.integer()?,
                (4, Wire::Integer) => return Ok(false), // a checksum
                (5 | 7 | 8, Wire::Struct) if page.kind == Kind::Unknown => {
                    page.kind = if field == 7 { Kind::Dictionary } else { Kind::Data };
                    page.read_kind(field, cursor)?;
                }
                (1..=8, _) => return Err("a page header is not as it should be"),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let fits = match page.kind {
            Kind::Data => matches!(number, 0 | 3),
            Kind::Dictionary => number == 2,
            Kind::Unknown => false,
        };
        if !fits {
            return Err("a page is neither of data nor a dictionary");
        }
        Ok((page, cursor.position() as u64))
    }

    /// Reads the header of a data page (field 5), a dictionary (7) or a data page of version 2 (8).
    fn read_kind(&mut self, kind: i16, cursor: &mut Cursor<'_>) -> Result<(), Problem> {
        let mut seen = 0_u16;
        cursor.walk(|field, wire, cursor| {
            once(&mut seen, field)?;
            match (kind, field, wire) {
                (_, 1, Wire::Integer) => self.values = cursor.integer()?,
                (5 | 7, 2, Wire::Integer) | (8, 4, Wire::Integer) => {
                    self.encoding = cursor.integer()?;
                }
                (8, 5 | 6, Wire::Integer) => {
                    let levels = cursor.integer()?;
                    if !(0..=MAX_PAGE).contains(&levels) {
                        return Err("a page claims levels of impossible length");
                    }
                    self.levels += levels;
                }
                (8, 7, Wire::Bool(value)) => self.is_compressed = value,
                (5, 3 | 4, Wire::Integer) | (8, 2 | 3, Wire::Integer) | (7, 3, Wire::Bool(_)) => {
                    return Ok(false);
                }
                (5, 1..=4, _) | (7, 1..=3, _) | (8, 1..=7, _) => {
                    return Err("a page header is not as it should be");
                }
                _ => return Ok(false), // statistics, which the reader skips, too
            }
            Ok(true)
        })
    }
}

/// Refuses a field that was there before.
fn once(seen: &mut u16, field: i16) -> Result<(), Problem> {
    if let 0..16 = field {
        let bit = 1 << field;
        if *seen & bit != 0 {
            return Err("a page header repeats a field");
        }
        *seen |= bit;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type, uncompressed and compressed size of ten bytes.
    fn header(kind: u8, rest: &[u8]) -> Vec<u8> {
        [&[0x15, kind, 0x15, 20, 0x15, 20], rest].concat()
    }

    /// The header of a data page with one plain value, as field 5.
    const DATA: [u8; 10] = [0x2c, 0x15, 2, 0x15, 0, 0x15, 6, 0x15, 6, 0];

    #[test]
    fn sound_page_headers_are_read_to_their_end() {
        let data = [header(0, &DATA), vec![0, 99]].concat();
        let (page, length) = Page::read(&data).unwrap();
        assert_eq!((page.kind, page.uncompressed, page.values), (Kind::Data, 10, 1));
        assert_eq!(length as usize, data.len() - 1);
        let (page, _) = Page::read(&header(4, &[0x4c, 0x15, 2, 0x15, 4, 0x11, 0, 0])).unwrap();
        assert_eq!((page.kind, page.encoding), (Kind::Dictionary, 2));
        // Version 2: encoding 8, levels of 3 and 4 bytes, not compressed.
        let fields = [0x15, 2, 0x15, 0, 0x15, 2, 0x15, 16, 0x15, 6, 0x15, 8, 0x12, 0];
        let (page, _) = Page::read(&header(6, &[&[0x5c], &fields[..], &[0]].concat())).unwrap();
        assert_eq!((page.encoding, page.levels, page.is_compressed), (8, 7, false));
    }

    #[test]
    fn page_headers_that_could_be_read_in_two_ways_are_refused() {
        let refused = |bytes: &[u8]| Page::read(bytes).unwrap_err();
        let sound = [header(0, &DATA), vec![0]].concat();
        for length in 0..sound.len() {
            assert!(Page::read(&sound[..length]).is_err(), "{length} bytes");
        }
        // A dictionary of 2^31 - 1 values behind the header of a harmless data page, and before it.
        let huge = [0x15, 0xfe, 0xff, 0xff, 0xff, 0x0f, 0x15, 0, 0];
        let after = [&DATA[..], &[0x2c], &huge, &[0]].concat();
        assert!(refused(&header(4, &after)).contains("not as it should be"));
        let before = [&[0x4c], &huge[..], &[0x0c, 10], &DATA[1..], &[0]].concat();
        assert!(refused(&header(4, &before)).contains("not as it should be"));
        // A data page that says it is a dictionary, an index page, a page of no kind.
        assert!(refused(&header(4, &[&DATA[..], &[0]].concat())).contains("neither"));
        assert!(refused(&header(2, &[0x3c, 0, 0])).contains("not as it should be"));
        assert!(refused(&header(0, &[0])).contains("neither"));
        // A size given twice, a size that declares itself a byte, levels of negative length.
        assert!(refused(&[0x15, 0, 0x15, 20, 0x05, 4, 20]).contains("repeats"));
        assert!(refused(&[0x15, 0, 0x13, 20]).contains("not as it should be"));
        let levels = [0x5c, 0x15, 2, 0x15, 0, 0x15, 2, 0x15, 16, 0x15, 7];
        assert!(refused(&header(6, &levels)).contains("impossible length"));
    }

    #[test]
    fn a_budget_is_spent() {
        let page = Page { uncompressed: 60, ..Page::default() };
        let mut budget = Budget::new(100);
        assert_eq!(budget.spend(&page), Ok(()));
        assert!(budget.spend(&page).unwrap_err().contains("more than 100 bytes"));
        let mut budget = Budget { pages: MAX_PAGES, ..Budget::new(100) };
        assert!(budget.spend(&page).unwrap_err().contains("pages"));
    }
}
