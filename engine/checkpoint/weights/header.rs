//! The header of a safetensors file: 8 bytes of length (little-endian u64), a JSON object, then the data.
//! `{"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ..., "__metadata__": {...}}`
//!
//! Parsed as a stream with crate safetensors' types: its own parser buffers the whole header in a tree many times its size,
//! keeps the last of two entries of one name, and does not say which tensor is wrong. The rules are the format's: entries
//! cover the data without gap or overlap, and shape times element size is the entry's length.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::WeightsError;
use crate::error::excerpt;

/// The limit that the format sets.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Ten times the largest mixture of experts.
const MAX_TENSORS: usize = 1 << 20;
const MAX_NAME_BYTES: usize = 1024;
const MAX_DIMENSIONS: usize = 8;

/// Where a tensor lies in its file, checked.
#[derive(Debug, PartialEq)]
pub(super) struct TensorInfo {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Bytes of the file.
    pub(super) range: Range<usize>,
}

/// Parses and checks the header of a whole file; allocates in proportion to the header, never to what it claims.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Vec<(String, TensorInfo)>, WeightsError> {
    let wrong = |message: String| WeightsError::Header { path: path.to_owned(), message };
    let truncated = |expected_bytes: u64| WeightsError::Truncated {
        path: path.to_owned(),
        expected_bytes,
        got_bytes: file.len() as u64,
    };
    let (length, rest) = file.split_first_chunk::<8>().ok_or_else(|| truncated(8))?;
    let header_bytes = u64::from_le_bytes(*length);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(wrong(format!(
            "the header claims {header_bytes} bytes, the format allows {MAX_HEADER_BYTES}; this is not a safetensors file"
        )));
    }
    let header_len = header_bytes as usize;
    let Some((header, data)) = rest.split_at_checked(header_len) else {
        return Err(truncated(8 + header_bytes));
    };
    // A copy: another process may write to a mapped file, and text must not change between being checked and being used.
    let header = header.to_vec();
    // Entries as they stand; serde_json's own depth limit bounds the recursion.
    let mut deserializer = serde_json::Deserializer::from_slice(&header);
    let mut entries = Entries
        .deserialize(&mut deserializer)
        .and_then(|entries| deserializer.end().map(|()| entries))
        .map_err(|error| wrong(format!("the header is not sound: {error}")))?;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);

    let mut covered = 0;
    let data_start = 8 + header_len;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let Entry { dtype, shape, data_offsets: (start, end) } = entry;
        let name_shown = excerpt(&name);
        let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        let bits = elements.and_then(|elements| elements.checked_mul(dtype.bitsize()));
        let Some(bits) = bits else {
            return Err(wrong(format!("tensor {name_shown:?}: shape {shape:?} overflows")));
        };
        let Some(len) = end.checked_sub(start) else {
            return Err(wrong(format!(
                "tensor {name_shown:?}: data_offsets [{start}, {end}] run backwards"
            )));
        };
        if start != covered {
            let kind = if start < covered { "overlap the tensor before" } else { "leave a gap" };
            return Err(wrong(format!(
                "tensor {name_shown:?}: data_offsets [{start}, {end}] {kind}, expected a start of {covered}"
            )));
        }
        if bits % 8 != 0 || bits / 8 != len {
            return Err(wrong(format!(
                "tensor {name_shown:?}: {dtype} of shape {shape:?} takes {} bytes, data_offsets [{start}, {end}] hold {len}",
                bits.div_ceil(8)
            )));
        }
        covered = end;
        // No overflow: below, the last `covered` is compared with the file; before use, nothing is sliced.
        let range = data_start.saturating_add(start)..data_start.saturating_add(end);
        tensors.push((name, TensorInfo { dtype, shape, range }));
    }
    if covered > data.len() {
        return Err(truncated((data_start as u64).saturating_add(covered as u64)));
    }
    if covered < data.len() {
        let surplus = data.len() - covered;
        return Err(wrong(format!("{surplus} bytes of data belong to no tensor")));
    }
    Ok(tensors)
}

struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The whole object.
struct Entries;

impl<'de> DeserializeSeed<'de> for Entries {
    type Value = Vec<(String, Entry)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(String, Entry)>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object of tensor names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            let shown = excerpt(&name);
            if name.len() > MAX_NAME_BYTES {
                return Err(A::Error::custom(format!(
                    "a tensor's name has {} bytes: {shown:?}",
                    name.len()
                )));
            }
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("tensor {shown:?} is described twice")));
            }
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if entries.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            let entry = map
                .next_value_seed(EntrySeed)
                .map_err(|error| A::Error::custom(format!("tensor {shown:?}: {error}")))?;
            entries.push((name, entry));
        }
        Ok(entries)
    }
}

/// One tensor's object.
struct EntrySeed;

impl<'de> DeserializeSeed<'de> for EntrySeed {
    type Value = Entry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Entry, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed {
    type Value = Entry;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let (mut dtype, mut shape, mut data_offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "dtype" => dtype.replace(map.next_value::<Dtype>()?).is_some(),
                "shape" => shape.replace(map.next_value_seed(ShapeSeed)?).is_some(),
                "data_offsets" => {
                    data_offsets.replace(map.next_value::<(usize, usize)>()?).is_some()
                }
                key => {
                    return Err(A::Error::custom(format!("unknown key {:?}", excerpt(key))));
                }
            };
            if twice {
                return Err(A::Error::custom(format!("key {key:?} stands twice")));
            }
        }
        Ok(Entry {
            dtype: dtype.ok_or_else(|| A::Error::missing_field("dtype"))?,
            shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
            data_offsets: data_offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?,
        })
    }
}

/// A list of at most [`MAX_DIMENSIONS`] sizes.
struct ShapeSeed;

impl<'de> DeserializeSeed<'de> for ShapeSeed {
    type Value = Vec<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<usize>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ShapeSeed {
    type Value = Vec<usize>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a list of sizes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sizes: A) -> Result<Vec<usize>, A::Error> {
        let mut shape = Vec::new();
        while let Some(size) = sizes.next_element::<usize>()? {
            if shape.len() == MAX_DIMENSIONS {
                return Err(A::Error::custom(format!("more than {MAX_DIMENSIONS} dimensions")));
            }
            shape.push(size);
        }
        Ok(shape)
    }
}
