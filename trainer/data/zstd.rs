//! Zstandard pages, which polars writes unless told otherwise. The `parquet` crate reads them by a library
//! in C, so here it is told that they are not compressed, and what it hands on is unfolded by `ruzstd`.
//!
//! Whoever reads through this has compared each page with the length that its header claims
//! (`pages.rs`), so a page unfolds to no more than the reader would have allocated for it.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, RowGroupReader};
use parquet::file::serialized_reader::{SerializedFileReader, SerializedPageReader};
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;
use ruzstd::decoding::StreamingDecoder;

/// A file whose columns may be compressed with zstd, too.
pub(super) struct Unfolded {
    reader: SerializedFileReader<File>,
    file: Arc<File>,
}

impl Unfolded {
    /// Reads the footer of a file.
    pub(super) fn new(file: File) -> Result<Unfolded> {
        let reader = SerializedFileReader::new(file.try_clone()?)?;
        Ok(Unfolded { reader, file: Arc::new(file) })
    }
}

impl FileReader for Unfolded {
    fn metadata(&self) -> &ParquetMetaData {
        self.reader.metadata()
    }

    fn num_row_groups(&self) -> usize {
        self.reader.num_row_groups()
    }

    fn get_row_group(&self, i: usize) -> Result<Box<dyn RowGroupReader + '_>> {
        let group = self.reader.get_row_group(i)?;
        Ok(Box::new(Group { group, file: Arc::clone(&self.file) }))
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_file(projection, self)
    }
}

struct Group<'a> {
    group: Box<dyn RowGroupReader + 'a>,
    file: Arc<File>,
}

impl RowGroupReader for Group<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.group.metadata()
    }

    fn num_columns(&self) -> usize {
        self.group.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>> {
        let column = self.metadata().column(i);
        if !matches!(column.compression(), Compression::ZSTD(_)) {
            return self.group.get_column_page_reader(i);
        }
        let raw = column.clone().into_builder().set_compression(Compression::UNCOMPRESSED);
        let rows = usize::try_from(self.metadata().num_rows())?;
        let pages = SerializedPageReader::new(Arc::clone(&self.file), &raw.build()?, rows, None)?;
        Ok(Box::new(Pages(pages)))
    }

    fn get_column_bloom_filter(&self, i: usize) -> Option<&Sbbf> {
        self.group.get_column_bloom_filter(i)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

/// The pages of a column, unfolded.
struct Pages(SerializedPageReader<File>);

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let Some(mut page) = self.0.get_next_page()? else { return Ok(None) };
        match &mut page {
            Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => {
                *buf = decompress(buf, 0)?.into();
            }
            Page::DataPageV2 { is_compressed: false, .. } => {}
            Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
                let levels = u64::from(*def_levels_byte_len) + u64::from(*rep_levels_byte_len);
                *buf = decompress(buf, usize::try_from(levels)?)?.into();
            }
        }
        Ok(Some(page))
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.0.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.0.skip_next_page()
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Result<Page>> {
        self.get_next_page().transpose()
    }
}

/// A page with its first `levels` bytes as they are and the rest unfolded.
fn decompress(page: &[u8], levels: usize) -> Result<Vec<u8>> {
    let too_short = || ParquetError::General("a page is shorter than its levels".to_owned());
    let (levels, body) = page.split_at_checked(levels).ok_or_else(too_short)?;
    let mut unfolded = levels.to_vec();
    // A page without values has no frame either.
    if !body.is_empty() {
        reader(body)?.read_to_end(&mut unfolded)?;
    }
    Ok(unfolded)
}

/// The decompressed bytes of a zstd frame.
pub(super) fn reader(frame: &[u8]) -> io::Result<impl Read> {
    StreamingDecoder::new(frame).map_err(io::Error::other)
}
