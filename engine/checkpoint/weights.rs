//! The tensors of a checkpoint, memory-mapped from safetensors files and used where they lie.
//!
//! Opening reads the headers only; a tensor's pages are read from disk when a kernel first touches them, and they are the page
//! cache's own: two processes share them. `F32`, `F16` and `BF16` data are viewed in place. The one exception is a tensor
//! that does not start at a multiple of its element size (old writers did not pad the header): it is copied once, on first use,
//! into aligned memory. The copy is as large as the tensor, which has been checked to lie inside the file.
//!
//! **A mapped file must not be truncated while it is in use**: the kernel then answers a read past the new end with SIGBUS, which
//! ends the process with a sentence (kernels' signals). Replacing a file by rename, as this program and the Hugging Face cache do, is safe: the map keeps the old one.

mod formats;
mod handle;
mod header;
mod missing;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};

use half::{bf16, f16};
pub use kernels::cpu::Matrix;
use kernels::{
    cpu::heap::fallible,
    signals::{self, Mapped},
};
use memmap2::Mmap;
pub use safetensors::Dtype;
use serde_json::Value;

use crate::checkpoint::config::{Config, ConfigError, ExpectedTensor, error::QUANTIZATION_REMEDY};
use crate::checkpoint::quantization;
use crate::error::{
    FileError, excerpt, is_there, look_up, parse_json, printable, read_text, stand_in,
};
pub(crate) use formats::of_file as unread_format;
pub use handle::{Packing, Weight};
use header::TensorInfo;
pub(crate) use stored::{StoredFile, StoredTensor};

/// A sharded index names each tensor once, in about 100 bytes.
const INDEX_LIMIT_BYTES: u64 = 32 << 20;
/// Llama 3.1 405B has 191.
const MAX_SHARDS: usize = 4096;

/// The tensors of one checkpoint directory (or of one file), by name.
pub struct Checkpoint {
    files: Vec<Arc<MappedFile>>,
    tensors: BTreeMap<String, Tensor>,
}

/// A tensor where it lies in its file. Cheap to make and to copy around; borrows the [`Checkpoint`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorView<'a> {
    /// Type of one element.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: &'a [usize],
    /// The elements, little-endian, aligned for `dtype`.
    pub bytes: &'a [u8],
}

/// A checkpoint that cannot be opened, or that is not the one its configuration describes.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum WeightsError {
    /// The index file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Neither model.safetensors nor an index.
    #[error("{}: no model.safetensors or model.safetensors.index.json in this directory{advice}", directory.display())]
    NoWeights { directory: PathBuf, advice: String },
    /// A path that does not exist.
    #[error("{}: no such directory", path.display())]
    NoDirectory { path: PathBuf },
    /// A file was given for a directory.
    #[error(
        "{}: {}",
        path.display(),
        formats::of_file(path).unwrap_or(
            "a checkpoint is a directory (with config.json, model.safetensors, tokenizer.json), this is a file; give the directory that holds it"
        )
    )]
    NotADirectory { path: PathBuf },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// The header contradicts the format or the file.
    #[error("{}: {message}", path.display())]
    Header { path: PathBuf, message: String },
    /// The data of the file ends early.
    #[error(
        "{}: the header describes {expected_bytes} bytes, the file has {got_bytes}; it is cut off (an interrupted download?): fetch it again",
        path.display()
    )]
    Truncated { path: PathBuf, expected_bytes: u64, got_bytes: u64 },
    /// The index contradicts itself or the shards.
    #[error("{}: {message}", path.display())]
    Index { path: PathBuf, message: String },
    /// The index names a file that is not there.
    #[error(
        "{}: {missing} of the {shards} files that the index names are not there (an interrupted download?): fetch {shard:?}{}",
        path.display(),
        if *missing > 1 { " and the others" } else { "" }
    )]
    MissingShard { path: PathBuf, shard: String, missing: usize, shards: usize },
    /// A name in two shards.
    #[error("tensor {name:?} stands in {} and again in {}", first.display(), second.display())]
    Duplicate { name: String, first: PathBuf, second: PathBuf },
    /// Tensors that the configuration calls for and no file has.
    #[error("{}: {count} tensors that config.json calls for are missing: {names}; {found}", path.display())]
    Missing { path: PathBuf, count: usize, names: String, found: String },
    /// Pieces of quantized weights, of which config.json says nothing.
    #[error("{}: the weights are quantized by {maker} ({tensor}); {}", path.display(), QUANTIZATION_REMEDY)]
    Quantized { path: PathBuf, maker: &'static str, tensor: String },
    /// A tensor of another shape.
    #[error("{}: tensor {name:?} should have shape {expected:?}, got {got:?}", path.display())]
    Shape { path: PathBuf, name: String, expected: Vec<usize>, got: Vec<usize> },
    /// A tensor of a type that is not computed.
    #[error("{}: tensor {name:?} should be BF16, F16 or F32, got {got}", path.display())]
    Dtype { path: PathBuf, name: String, got: Dtype },
    /// No memory for the aligned copy of a misaligned tensor.
    #[error("{}: tensor {name:?} is misaligned and there is no memory for a copy of {len_bytes} bytes", path.display())]
    OutOfMemory { path: PathBuf, name: String, len_bytes: usize },
}

struct MappedFile {
    path: PathBuf,
    map: Mmap,
    _named: Mapped,
}

impl MappedFile {
    /// Gives whole pages of `range` back to the page cache; they come back when they are read.
    #[allow(unsafe_code)]
    fn release(&self, range: std::ops::Range<usize>) {
        const PAGE: usize = 4096;
        let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
        if start < end {
            // SAFETY: the map is shared and read only: its pages are the file's, and a later read
            // finds the same bytes.
            let result = unsafe {
                self.map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    start,
                    end - start,
                )
            };
            // A wish: without it memory is only counted twice until the system wants it.
            let _ = result;
        }
    }
}

struct Tensor {
    file: usize,
    info: TensorInfo,
    /// The aligned copy of a misaligned tensor, made on first use.
    copy: OnceLock<Arc<Vec<u64>>>,
}

impl Checkpoint {
    /// Opens model.safetensors or the shards of model.safetensors.index.json in `directory`.
    pub fn open(directory: &Path) -> Result<Checkpoint, WeightsError> {
        let io = |source| WeightsError::Io { path: directory.to_owned(), source };
        match look_up(directory) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(WeightsError::NotADirectory { path: directory.to_owned() }),
            Err(FileError::NotFound { path }) => return Err(WeightsError::NoDirectory { path }),
            Err(error) => return Err(error.into()),
        }
        let single = directory.join("model.safetensors");
        let index = directory.join("model.safetensors.index.json");
        // transformers prefers the single file as well.
        if is_there(&single)? {
            Checkpoint::open_file(&single)
        } else if is_there(&index)? {
            open_index(directory, &index)
        } else {
            Err(WeightsError::NoWeights {
                directory: directory.to_owned(),
                advice: formats::of_directory(directory).map_err(io)?,
            })
        }
    }

    /// Opens the checkpoint in `directory` and its config.json, and [checks](Checkpoint::check) one against the other.
    pub fn open_checked<E: From<WeightsError> + From<ConfigError>>(
        directory: &Path,
    ) -> Result<(Checkpoint, Config), E> {
        // Before the configuration, so that a wrong path is called one.
        let checkpoint = match Checkpoint::open(directory) {
            // Unless config.json says that other files than these would not do either.
            Err(error @ WeightsError::NoWeights { .. }) => {
                return Err(match Config::load(directory) {
                    Err(quantized @ ConfigError::Quantized { .. }) => quantized.into(),
                    _ => error.into(),
                });
            }
            opened => opened?,
        };
        let config = Config::load(directory)?;
        checkpoint.check(&config)?;
        Ok((checkpoint, config))
    }

    /// Opens one safetensors file of any name.
    pub fn open_file(path: &Path) -> Result<Checkpoint, WeightsError> {
        let mut checkpoint = Checkpoint { files: Vec::new(), tensors: BTreeMap::new() };
        checkpoint.add_file(path)?;
        Ok(checkpoint)
    }

    /// Checks name, shape and type of every tensor that `config` calls for. Further tensors are ignored, as transformers does,
    /// but a redundant LM head beside tied embeddings must at least have the head's shape.
    pub fn check(&self, config: &Config) -> Result<(), WeightsError> {
        if let Some((name, maker)) = quantization::of_names(self.names()) {
            let path = self.files[self.tensors[name].file].path.clone();
            let tensor = format!("it has {:?}", excerpt(name));
            return Err(WeightsError::Quantized { path, maker, tensor });
        }
        let missing: Vec<String> = config
            .expected_tensors()
            .map(|tensor| tensor.name)
            .filter(|name| !self.tensors.contains_key(name))
            .collect();
        if !missing.is_empty() {
            const SHOWN: usize = 4;
            let mut names = missing[..missing.len().min(SHOWN)].join(", ");
            if missing.len() > SHOWN {
                names.push_str(", …");
            }
            let path = self.files[0].path.parent().unwrap_or(Path::new("")).to_owned();
            let found = missing::explain(self.names(), config, &missing);
            return Err(WeightsError::Missing { path, count: missing.len(), names, found });
        }
        let redundant_head =
            Some(config.head()).filter(|head| self.tensors.contains_key(&head.name));
        for expected in config.expected_tensors().chain(redundant_head) {
            self.check_tensor(&expected)?;
        }
        Ok(())
    }

    /// The tensor of this name, `None` if no file has it. Fails only where a misaligned tensor finds no memory for its copy.
    pub fn tensor(&self, name: &str) -> Result<Option<TensorView<'_>>, WeightsError> {
        let Some((name, tensor)) = self.tensors.get_key_value(name) else { return Ok(None) };
        let file = &self.files[tensor.file];
        let info = &tensor.info;
        let mut bytes = &file.map[info.range.clone()];
        if bytes.as_ptr().align_offset(alignment(info.dtype)) != 0 {
            if tensor.copy.get().is_none() {
                let copy = aligned_copy(bytes).ok_or_else(|| WeightsError::OutOfMemory {
                    path: file.path.clone(),
                    name: name.clone(),
                    len_bytes: bytes.len(),
                })?;
                // Two threads may both have copied; the first one's stays.
                drop(tensor.copy.set(Arc::new(copy)));
            }
            let copy = tensor.copy.get().expect("set above");
            bytes = &bytemuck::cast_slice(copy.as_slice())[..bytes.len()];
        }
        Ok(Some(TensorView { dtype: info.dtype, shape: &info.shape, bytes }))
    }

    /// All names, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.tensors.keys().map(String::as_str)
    }

    /// The file in which a tensor stands, for messages.
    pub(crate) fn file_of(&self, name: &str) -> Option<&Path> {
        self.tensors.get(name).map(|tensor| self.files[tensor.file].path.as_path())
    }

    /// The files, in the order in which they were opened.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Bytes of all tensors, without headers.
    pub fn len_bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.info.range.len() as u64).sum()
    }

    fn add_file(&mut self, path: &Path) -> Result<(), WeightsError> {
        let map = map_file(path)?;
        let named = signals::mapped(map.as_ptr_range(), &printable(&path.to_string_lossy()));
        let tensors = header::parse(path, &map)?;
        let file = self.files.len();
        for (name, info) in tensors {
            if let Some(first) = self.tensors.get(&name) {
                let first = self.files[first.file].path.clone();
                return Err(WeightsError::Duplicate { name, first, second: path.to_owned() });
            }
            self.tensors.insert(name, Tensor { file, info, copy: OnceLock::new() });
        }
        self.files.push(Arc::new(MappedFile { path: path.to_owned(), map, _named: named }));
        Ok(())
    }

    fn check_tensor(&self, expected: &ExpectedTensor) -> Result<(), WeightsError> {
        let tensor = &self.tensors[&expected.name];
        let path = || self.files[tensor.file].path.clone();
        let name = || expected.name.clone();
        let got = tensor.info.dtype;
        if quantization::is_packed(got) {
            let tensor = format!("{:?} is {got}", expected.name);
            let maker = "a program that packs numbers into such types";
            return Err(WeightsError::Quantized { path: path(), maker, tensor });
        }
        if tensor.info.shape != expected.shape {
            return Err(WeightsError::Shape {
                path: path(),
                name: name(),
                expected: expected.shape.clone(),
                got: tensor.info.shape.clone(),
            });
        }
        match tensor.info.dtype {
            Dtype::BF16 | Dtype::F16 | Dtype::F32 => Ok(()),
            got => Err(WeightsError::Dtype { path: path(), name: name(), got }),
        }
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let files: Vec<_> = self.files().collect();
        let count = self.tensors.len();
        formatter
            .debug_struct("Checkpoint")
            .field("files", &files)
            .field("tensors", &count)
            .finish()
    }
}

impl<'a> TensorView<'a> {
    /// The elements, if they are bf16.
    pub fn as_bf16(&self) -> Option<&'a [bf16]> {
        (self.dtype == Dtype::BF16).then(|| bytemuck::cast_slice(self.bytes))
    }

    /// The elements, if they are f16.
    pub fn as_f16(&self) -> Option<&'a [f16]> {
        (self.dtype == Dtype::F16).then(|| bytemuck::cast_slice(self.bytes))
    }

    /// The elements, if they are f32.
    pub fn as_f32(&self) -> Option<&'a [f32]> {
        (self.dtype == Dtype::F32).then(|| bytemuck::cast_slice(self.bytes))
    }

    /// The elements converted to f32 (exact for all three types); `None` for any other type. For the few KB of norm weights
    /// and biases, and for LoRA factors, which are f32 masters.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        match self.dtype {
            Dtype::F32 => self.as_f32().map(<[f32]>::to_vec),
            Dtype::BF16 => self.as_bf16().map(|data| data.iter().map(|x| x.to_f32()).collect()),
            Dtype::F16 => self.as_f16().map(|data| data.iter().map(|x| x.to_f32()).collect()),
            _ => None,
        }
    }
}

fn open_index(directory: &Path, index: &Path) -> Result<Checkpoint, WeightsError> {
    let wrong = |message| WeightsError::Index { path: index.to_owned(), message };
    let value = parse_json(index, &read_text(index, INDEX_LIMIT_BYTES)?)?;
    let weight_map = value.get("weight_map").and_then(Value::as_object).ok_or_else(|| {
        wrong("\"weight_map\" should be an object of tensor names to files".into())
    })?;
    let mut shards: BTreeSet<&str> = BTreeSet::new();
    for (name, shard) in weight_map {
        let Some(shard) = shard.as_str() else {
            let (name, got) = (excerpt(name), excerpt(&shard.to_string()));
            return Err(wrong(format!("tensor {name:?} should name a file, got {got}")));
        };
        shards.insert(shard);
    }
    if shards.is_empty() || shards.len() > MAX_SHARDS {
        return Err(wrong(format!("names {} files, expected 1 to {MAX_SHARDS}", shards.len())));
    }
    let mut checkpoint = Checkpoint { files: Vec::new(), tensors: BTreeMap::new() };
    let mut missing = Vec::new();
    for &shard in &shards {
        let mut components = Path::new(shard).components();
        let plain = matches!(components.next(), Some(Component::Normal(_)));
        if !plain || components.next().is_some() || shard.contains('\\') {
            let shard = excerpt(shard);
            return Err(wrong(format!(
                "the file name {shard:?} leaves the directory; shards lie beside the index"
            )));
        }
        if !is_there(&directory.join(shard))? {
            missing.push(shard);
        }
    }
    if let [first, ..] = missing.as_slice() {
        return Err(WeightsError::MissingShard {
            path: index.to_owned(),
            shard: excerpt(first),
            missing: missing.len(),
            shards: shards.len(),
        });
    }
    // Where a tensor stands is what the shards say, as in transformers: the index only names them.
    for shard in shards {
        checkpoint.add_file(&directory.join(shard))?;
    }
    Ok(checkpoint)
}

fn map_file(path: &Path) -> Result<Mmap, WeightsError> {
    let io = |source| WeightsError::Io { path: path.to_owned(), source };
    // Asked before opening: opening a FIFO would block.
    if !look_up(path)?.is_file() {
        return Err(FileError::NotAFile { path: path.to_owned() }.into());
    }
    let file = File::open(path).map_err(io)?;
    if file.metadata().map_err(io)?.len() < 8 {
        let got_bytes = file.metadata().map_err(io)?.len();
        return Err(WeightsError::Truncated {
            path: path.to_owned(),
            expected_bytes: 8,
            got_bytes,
        });
    }
    let map = map_read_only(&file).map_err(io)?;
    match stand_in(&map[..map.len().min(256)]) {
        Some(what) => Err(FileError::StandIn { path: path.to_owned(), what }.into()),
        None => Ok(map),
    }
}

#[allow(unsafe_code)]
fn map_read_only(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is private to this module, read-only and handed out as `&[u8]` only while the Mmap lives. No other process can
    // be kept from writing to the file: a write changes numbers but not what is valid (every bit pattern is a valid u8, bf16,
    // f16 and f32; the header is copied before it is read as text, and its offsets and shapes into checked values of our own),
    // and a truncation ends this process with SIGBUS rather than reading foreign memory. The module's documentation says so.
    unsafe { Mmap::map(file) }
}

/// Element alignment of the types that are viewed in place; other types are only ever bytes.
fn alignment(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F32 => align_of::<f32>(),
        Dtype::BF16 | Dtype::F16 => align_of::<u16>(),
        _ => 1,
    }
}

fn aligned_copy(bytes: &[u8]) -> Option<Vec<u64>> {
    let words = bytes.len().div_ceil(size_of::<u64>());
    let mut copy = Vec::new();
    fallible(|| copy.try_reserve_exact(words)).ok()?;
    copy.resize(words, 0u64);
    bytemuck::cast_slice_mut::<u64, u8>(&mut copy)[..bytes.len()].copy_from_slice(bytes);
    Some(copy)
}
