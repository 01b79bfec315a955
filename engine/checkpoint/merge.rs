//! An adapter merged into its base: a checkpoint with W + scale B A in place of W, for programs that know no adapters.
//!
//! Each element is `W + scale * Σ_r B A` with the sum and the addition in f64, rounded to f32 and then to the type that W is
//! stored in. Where the delta is exactly zero, W keeps its bits. Everything else is copied byte for byte: the headers, and so
//! shards, names, types and metadata, and the files beside the weights. Other forms of the
//! same weights (pytorch_model.bin and the like) are left out, as they would be those of the base.
//!
//! Only a row is held in memory beyond the mapped source. The result is written to `OUT.partial`, config.json last, and takes its
//! name when all of it is on the disk.

mod delta;
mod staging;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{
    checkpoint::{
        adapter::{Adapter, AdapterError, LoraFactors, Projection},
        config::{Config, ConfigError},
        weights::{Checkpoint, StoredFile, WeightsError},
    },
    error::{FileError, is_there, look_up},
    files::{WriteError, sync_parent, write_synced},
    text::chat::ADDITIONAL_TEMPLATES,
};
use delta::Delta;
use staging::Staging;

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
/// Bytes of a copied tensor that are written at once.
const STEP_BYTES: usize = 4 << 20;
/// Endings of files that hold weights, or what was trained with them.
const WEIGHT_ENDINGS: [&str; 10] =
    ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx", "npz"];

/// The progress of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeProgress {
    /// Bytes of weights written.
    pub done_bytes: u64,
    /// Bytes of weights in all.
    pub total_bytes: u64,
}

/// A summary of what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Notes on the adapter: see [`Adapter::notes`].
    pub notes: Vec<String>,
    /// Matrices whose bytes differ from the base's.
    pub changed: usize,
    /// Matrices that the adapter has factors for.
    pub matrices: usize,
    /// Files with weights.
    pub weight_files: usize,
    /// Bytes of weights.
    pub weight_bytes: u64,
}

/// Why no merged checkpoint was written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum MergeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A link to nothing beside the weights.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file beside the weights.
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The target is not a name that a directory can get.
    #[error("{} cannot be the name of a new directory; choose another", path.display())]
    Name { path: PathBuf },
    /// A file, or a link to nothing.
    #[error("{} is there and not a directory; choose another", path.display())]
    NotADirectory { path: PathBuf },
    /// Nothing is overwritten.
    #[error("{} is not empty (found {found:?}); choose another directory", path.display())]
    NotEmpty { path: PathBuf, found: String },
    /// A rename cannot replace it.
    #[error("{} is where a disk is mounted; choose a directory on that disk", path.display())]
    MountPoint { path: PathBuf },
    /// Another merge works there.
    #[error("{} is being written by another merge; wait for it", path.display())]
    InUse { path: PathBuf },
    /// Not the rest of an earlier merge.
    #[error(
        "{} is in the way: it should be the rest of a merge that was killed, but holds {found:?}; move it away",
        path.display()
    )]
    Foreign { path: PathBuf, found: String },
    /// A finite weight became infinite in its type.
    #[error(
        "{name:?} [{row}, {column}]: {value} is too large for {dtype}; merge into a checkpoint of a wider type"
    )]
    Overflow {
        name: String,
        row: usize,
        column: usize,
        value: f32,
        dtype: crate::checkpoint::weights::Dtype,
    },
    /// `stop` was raised.
    #[error("stopped; nothing was written")]
    Stopped,
}

/// Merges the adapter in `adapter` into the checkpoint in `model` and writes the result to `out`, which must not exist or be
/// empty. Raising `stop` ends it within moments. On any error nothing is left at `out`.
pub fn merge(
    model: &Path,
    adapter: &Path,
    out: &Path,
    observe: &mut dyn FnMut(MergeProgress),
    stop: &AtomicBool,
) -> Result<Merged, MergeError> {
    let (checkpoint, config) = Checkpoint::open_checked::<MergeError>(model)?;
    let adapter = Adapter::load(adapter, &config)?;
    let notes = adapter.notes(&model.to_string_lossy());
    let mut deltas = deltas(&adapter, &config);
    let files = checkpoint.stored_files();
    let companions = companions(model, &files)?;

    let mut names: Vec<&Path> = companions.iter().map(PathBuf::as_path).collect();
    names.extend(files.iter().filter_map(|file| file.path.file_name()).map(Path::new));
    let staging = Staging::open(out, &names)?;
    let total_bytes = checkpoint.len_bytes();
    let progress = MergeProgress { done_bytes: 0, total_bytes };
    let mut watch = Watch { progress, observe, stop };
    for file in &files {
        let path = staging.path(Path::new(file.path.file_name().expect("a file has a name")))?;
        write_synced(&path, |writer| write_weights(file, &path, &mut deltas, &mut watch, writer))?;
    }
    for name in &companions {
        watch.check_stop()?;
        copy(&model.join(name), &staging.path(name)?)?;
    }
    staging.finish()?;
    Ok(Merged {
        notes,
        changed: deltas.values().filter(|delta| delta.changed).count(),
        matrices: deltas.len(),
        weight_files: files.len(),
        weight_bytes: total_bytes,
    })
}

/// The adapter's factors by the name of the matrix they change.
fn deltas<'a>(adapter: &'a Adapter, config: &Config) -> HashMap<String, Delta<'a>> {
    let mut deltas = HashMap::new();
    for layer in 0..config.num_hidden_layers {
        for projection in Projection::ALL {
            if let Some(factors) = adapter.factors(layer, projection) {
                let name = format!("model.layers.{layer}.{}.weight", projection.module());
                let [_, inputs] = projection.shape(config);
                deltas.insert(name, Delta::new(factors, inputs));
            }
        }
    }
    deltas
}

/// The files that are copied beside the weights, by their paths in the checkpoint. config.json is last: a directory without it
/// is no checkpoint.
fn companions(model: &Path, files: &[StoredFile]) -> Result<Vec<PathBuf>, MergeError> {
    let read = |source| MergeError::Read { path: model.to_owned(), source };
    // Checkpoint::open prefers model.safetensors; an index beside it is of other files.
    let sharded = files.iter().all(|file| !file.path.ends_with("model.safetensors"));
    let mut names = Vec::new();
    for entry in fs::read_dir(model).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let name = path.file_name().expect("an entry of a directory has a name");
        let text = name.to_string_lossy();
        let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        let left_out = text.starts_with('.')
            || WEIGHT_ENDINGS.contains(&ending.to_ascii_lowercase().as_str())
            || text.ends_with(".index.json") && !(sharded && name == INDEX)
            // transformers would apply it once more.
            || name == "adapter_config.json";
        // A link (the Hugging Face cache is made of them) counts as what it leads to.
        if !left_out && look_up(&path)?.is_file() {
            names.push(PathBuf::from(name));
        }
    }
    let templates = model.join(ADDITIONAL_TEMPLATES);
    if is_there(&templates)? {
        let read = |source| MergeError::Read { path: templates.clone(), source };
        for entry in fs::read_dir(&templates).map_err(read)? {
            let path = entry.map_err(read)?.path();
            if path.extension() == Some(OsStr::new("jinja")) && look_up(&path)?.is_file() {
                let name = path.file_name().expect("an entry of a directory has a name");
                names.push(Path::new(ADDITIONAL_TEMPLATES).join(name));
            }
        }
    }
    names.sort_by_key(|name| (name == Path::new(CONFIG), name.clone()));
    Ok(names)
}

/// Copies the bytes, but not the permissions: a cache's files may be read-only.
fn copy(from: &Path, to: &Path) -> Result<(), MergeError> {
    let read = |source| MergeError::Read { path: from.to_owned(), source };
    let mut reader = BufReader::with_capacity(1 << 20, File::open(from).map_err(read)?);
    let failed = |source| WriteError::new("write", to, source);
    write_synced(to, |writer| {
        loop {
            let bytes = reader.fill_buf().map_err(read)?;
            if bytes.is_empty() {
                return Ok::<_, MergeError>(());
            }
            writer.write_all(bytes).map_err(failed)?;
            let read_bytes = bytes.len();
            reader.consume(read_bytes);
        }
    })?;
    // It may lie in a folder of its own.
    Ok(sync_parent(to).map_err(failed)?)
}

fn write_weights(
    file: &StoredFile,
    path: &Path,
    deltas: &mut HashMap<String, Delta>,
    watch: &mut Watch,
    writer: &mut BufWriter<File>,
) -> Result<(), MergeError> {
    let failed = |source| WriteError::new("write", path, source);
    writer.write_all(file.header).map_err(failed)?;
    let mut merged = Vec::new();
    for tensor in &file.tensors {
        let Some(delta) = deltas.get_mut(tensor.name) else {
            for bytes in tensor.bytes.chunks(STEP_BYTES) {
                writer.write_all(bytes).map_err(failed)?;
                watch.advance(bytes.len())?;
            }
            continue;
        };
        for (row, bytes) in tensor.bytes.chunks(delta.row_bytes(tensor.dtype)).enumerate() {
            delta.apply(tensor, row, bytes, &mut merged)?;
            writer.write_all(&merged).map_err(failed)?;
            watch.advance(bytes.len())?;
        }
    }
    Ok(())
}

/// The observer of a merge, and the flag that stops it.
struct Watch<'a> {
    progress: MergeProgress,
    observe: &'a mut dyn FnMut(MergeProgress),
    stop: &'a AtomicBool,
}

impl Watch<'_> {
    fn advance(&mut self, bytes: usize) -> Result<(), MergeError> {
        self.progress.done_bytes += bytes as u64;
        (self.observe)(self.progress);
        self.check_stop()
    }

    fn check_stop(&self) -> Result<(), MergeError> {
        if self.stop.load(Ordering::Relaxed) { Err(MergeError::Stopped) } else { Ok(()) }
    }
}
