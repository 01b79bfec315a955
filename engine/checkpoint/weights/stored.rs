//! The parts of a checkpoint's files, for writing the files again with other numbers.

use std::path::Path;

use super::{Checkpoint, Dtype};

/// One file: `header` and the bytes of `tensors`, one after the other.
pub(crate) struct StoredFile<'a> {
    pub(crate) path: &'a Path,
    /// The header with its length before it.
    pub(crate) header: &'a [u8],
    /// In the order of the file, without gaps.
    pub(crate) tensors: Vec<StoredTensor<'a>>,
}

/// A tensor's bytes where they lie, not aligned.
pub(crate) struct StoredTensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: Dtype,
    pub(crate) bytes: &'a [u8],
}

impl Checkpoint {
    /// Every file, in the order in which they were opened.
    pub(crate) fn stored_files(&self) -> Vec<StoredFile<'_>> {
        let mut ranges: Vec<Vec<_>> = self.files.iter().map(|_| Vec::new()).collect();
        for (name, tensor) in &self.tensors {
            ranges[tensor.file].push((tensor.info.range.clone(), tensor.info.dtype, name.as_str()));
        }
        let parts = self.files.iter().zip(ranges);
        let file = parts.map(|(file, mut ranges)| {
            // Tensors without elements share their start with the next one.
            ranges.sort_by_key(|(range, ..)| (range.start, range.end));
            let first = ranges.first().map_or(file.map.len(), |(range, ..)| range.start);
            let tensors = ranges.into_iter().map(|(range, dtype, name)| {
                let bytes = &file.map[range];
                StoredTensor { name, dtype, bytes }
            });
            StoredFile { path: &file.path, header: &file.map[..first], tensors: tensors.collect() }
        });
        file.collect()
    }
}
