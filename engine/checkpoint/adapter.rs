//! A LoRA adapter in PEFT's form: adapter_config.json and adapter_model.safetensors.
//!
//! y = W x + scale * B (A x), with A [r, in], B [out, r], and scale = alpha / r, or alpha / sqrt(r) with `use_rslora`
//! (Hu et al., arXiv 2106.09685; Kalajdzievski, arXiv 2312.03732). The factors are read as f32, whatever the file holds: they are
//! masters in training, and small. r and alpha may differ by matrix (`rank_pattern`, `alpha_pattern`). An option of PEFT that
//! would change this formula, or which tensors there are, is refused by name; a key that PEFT does not know is worth a note.

mod config;
mod initialize;
mod keys;
mod modules;
mod notes;
#[cfg(test)]
mod peft_tests;
mod save;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::checkpoint::config::{Config, ConfigError};
use crate::checkpoint::weights::{Checkpoint, Dtype, WeightsError};
use crate::error::{FileError, excerpt, is_there, read_text};
use crate::files::WriteError;

use config::parse_config;
pub use initialize::AdapterSettings;
pub(crate) use keys::peft_key;
use keys::{parse_key, read_factor};
use modules::{Module, Patterns};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const LIMIT_BYTES: u64 = 1 << 20;
const MAX_RANK: usize = 1 << 14;

/// The seven matrices of a layer that an adapter may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Projection {
    /// self_attn.q_proj, [heads x head_dim, hidden]
    Query,
    /// self_attn.k_proj, [kv heads x head_dim, hidden]
    Key,
    /// self_attn.v_proj, [kv heads x head_dim, hidden]
    Value,
    /// self_attn.o_proj, [hidden, heads x head_dim]
    Output,
    /// mlp.gate_proj, [intermediate, hidden]
    Gate,
    /// mlp.up_proj, [intermediate, hidden]
    Up,
    /// mlp.down_proj, [hidden, intermediate]
    Down,
}

impl Projection {
    /// All seven, in the order of the forward pass.
    pub const ALL: [Projection; 7] = [
        Projection::Query,
        Projection::Key,
        Projection::Value,
        Projection::Output,
        Projection::Gate,
        Projection::Up,
        Projection::Down,
    ];

    /// Its name inside a layer.
    pub fn module(self) -> &'static str {
        match self {
            Projection::Query => "self_attn.q_proj",
            Projection::Key => "self_attn.k_proj",
            Projection::Value => "self_attn.v_proj",
            Projection::Output => "self_attn.o_proj",
            Projection::Gate => "mlp.gate_proj",
            Projection::Up => "mlp.up_proj",
            Projection::Down => "mlp.down_proj",
        }
    }

    /// [out, in] of the frozen matrix.
    pub fn shape(self, config: &Config) -> [usize; 2] {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        match self {
            Projection::Query => [config.query_width(), hidden],
            Projection::Key | Projection::Value => [config.key_value_width(), hidden],
            Projection::Output => [hidden, config.query_width()],
            Projection::Gate | Projection::Up => [inner, hidden],
            Projection::Down => [hidden, inner],
        }
    }
}

/// The two factors of one adapted matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraFactors {
    /// A, [rank, in], row-major.
    pub a: Vec<f32>,
    /// B, [out, rank], row-major.
    pub b: Vec<f32>,
    /// r
    pub rank: usize,
    /// alpha / r, or alpha / sqrt(r)
    pub scale: f32,
}

/// A checked adapter for one model configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// r of the matrices that rank_pattern does not name.
    pub rank: usize,
    /// lora_alpha of the matrices that alpha_pattern does not name.
    pub alpha: f64,
    /// Whether the scale is alpha / sqrt(r).
    pub rank_stabilized: bool,
    /// Dropout on A's input in training; generation ignores it.
    pub dropout: f64,
    /// The model that it was made for, as it says; a path or id, for messages.
    pub base_model: Option<String>,
    rank_pattern: Patterns<usize>,
    alpha_pattern: Patterns<f64>,
    /// Keys of the file that are not understood, with their values.
    unknown_keys: Vec<String>,
    layers: Vec<[Option<LoraFactors>; 7]>,
}

/// An adapter that cannot be read or written, does not fit the model, or asks for what this engine does not compute.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum AdapterError {
    /// adapter_config.json, its values.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// adapter_config.json, the file.
    #[error(transparent)]
    File(#[from] FileError),
    /// adapter_model.safetensors.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// No adapter_config.json or no weights.
    #[error("{}: {message}", directory.display())]
    NotAnAdapter { directory: PathBuf, message: &'static str },
    /// A key that is neither A nor B of one of the seven projections of a layer that exists.
    #[error("{}: the key {key:?} is not understood: {reason}", path.display())]
    UnknownKey { path: PathBuf, key: String, reason: String },
    /// An A without B or the reverse.
    #[error("{}: {present:?} is there, {absent:?} is missing", path.display())]
    Unpaired { path: PathBuf, present: String, absent: String },
    /// The keys and target_modules name different matrices.
    #[error("{}: {message}", path.display())]
    Targets { path: PathBuf, message: String },
    /// A factor of another shape.
    #[error("{}: {name:?} should have shape {expected:?} ({why}), got {got:?}", path.display())]
    Shape { path: PathBuf, name: String, expected: [usize; 2], why: &'static str, got: Vec<usize> },
    /// A factor of a type that is not computed.
    #[error("{}: {name:?} should be F32, BF16 or F16, got {got}", path.display())]
    Dtype { path: PathBuf, name: String, got: Dtype },
    /// NaN or infinity.
    #[error("{}: {name:?} holds {value} at element {index}; the adapter is damaged", path.display())]
    NotFinite { path: PathBuf, name: String, index: usize, value: f32 },
    /// A new adapter that cannot be.
    #[error("a LoRA adapter cannot have {name} = {got}: expected {expected}")]
    Setting { name: &'static str, got: String, expected: &'static str },
    /// The adapter cannot be saved.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Adapter {
    /// Reads the adapter in `directory` for a model of this configuration.
    pub fn load(directory: &Path, config: &Config) -> Result<Adapter, AdapterError> {
        let not_an_adapter =
            |message| AdapterError::NotAnAdapter { directory: directory.to_owned(), message };
        let config_path = directory.join(CONFIG);
        if directory.is_file() {
            return Err(not_an_adapter(
                "an adapter is a directory with adapter_config.json and adapter_model.safetensors, this is a file; give the directory that holds it",
            ));
        }
        let text = match read_text(&config_path, LIMIT_BYTES) {
            Err(FileError::NotFound { .. }) => {
                return Err(not_an_adapter(if !directory.exists() {
                    "no such directory"
                } else if directory.join("config.json").exists() {
                    "no adapter_config.json but a config.json: this is a model, not an adapter"
                } else {
                    "no adapter_config.json in this directory"
                }));
            }
            result => result?,
        };
        let (mut adapter, modules) = parse_config(&config_path, &text, config)?;
        let path = directory.join(WEIGHTS);
        if !is_there(&path)? {
            return Err(not_an_adapter(if directory.join("adapter_model.bin").exists() {
                "only adapter_model.bin, PyTorch's pickle format, which can run code and is not read: convert it with Python, \
                `safetensors.torch.save_file(torch.load('adapter_model.bin', weights_only=True), 'adapter_model.safetensors')`"
            } else {
                "no adapter_model.safetensors in this directory"
            }));
        }
        let checkpoint = Checkpoint::open_file(&path)?;
        adapter.read_factors(&path, &checkpoint, config, &modules)?;
        adapter.check_targets(&config_path, &modules)?;
        Ok(adapter)
    }

    /// The factors of one matrix, if the adapter changes it.
    pub fn factors(&self, layer: usize, projection: Projection) -> Option<&LoraFactors> {
        self.layers[layer][projection as usize].as_ref()
    }

    /// Replaces the factors of one matrix.
    /// The projections that it changes, in any layer.
    pub fn targets(&self) -> Vec<Projection> {
        let is_changed = |projection: &Projection| {
            self.layers.iter().any(|layer| layer[*projection as usize].is_some())
        };
        Projection::ALL.into_iter().filter(is_changed).collect()
    }

    pub(crate) fn set_factors(
        &mut self,
        layer: usize,
        projection: Projection,
        factors: LoraFactors,
    ) {
        self.layers[layer][projection as usize] = Some(factors);
    }

    /// The factor of B (A x).
    fn scale(&self, rank: usize, alpha: f64) -> f32 {
        let rank = rank as f64;
        (alpha / if self.rank_stabilized { rank.sqrt() } else { rank }) as f32
    }

    /// Elements of all factors.
    pub fn parameter_count(&self) -> u64 {
        let factors = self.layers.iter().flatten().flatten();
        factors.map(|factors| (factors.a.len() + factors.b.len()) as u64).sum()
    }

    fn read_factors(
        &mut self,
        path: &Path,
        checkpoint: &Checkpoint,
        config: &Config,
        modules: &[[Module; 7]],
    ) -> Result<(), AdapterError> {
        for key in checkpoint.names() {
            let place = parse_key(key, config.num_hidden_layers).map_err(|reason| {
                AdapterError::UnknownKey { path: path.to_owned(), key: excerpt(key), reason }
            })?;
            let other = place.key_of(!place.is_a);
            if checkpoint.file_of(&other).is_none() {
                return Err(AdapterError::Unpaired {
                    path: path.to_owned(),
                    present: excerpt(key),
                    absent: other,
                });
            }
            if !place.is_a {
                continue; // read with its A
            }
            let [outputs, inputs] = place.projection.shape(config);
            let Module { rank, alpha, .. } = modules[place.layer][place.projection as usize];
            let [of_a, of_b] = match rank == self.rank {
                true => ["[r, in]", "[out, r]"],
                false => ["[r, in], r by rank_pattern", "[out, r], r by rank_pattern"],
            };
            let a = read_factor(path, checkpoint, key, [rank, inputs], of_a)?;
            let b = read_factor(path, checkpoint, &other, [outputs, rank], of_b)?;
            let scale = self.scale(rank, alpha);
            let slot = &mut self.layers[place.layer][place.projection as usize];
            if slot.replace(LoraFactors { a, b, rank, scale }).is_some() {
                return Err(AdapterError::UnknownKey {
                    path: path.to_owned(),
                    key: excerpt(key),
                    reason: "the matrix has factors under another spelling of this key too".into(),
                });
            }
        }
        Ok(())
    }

    fn check_targets(&self, path: &Path, modules: &[[Module; 7]]) -> Result<(), AdapterError> {
        let wrong = |message| Err(AdapterError::Targets { path: path.to_owned(), message });
        if self.layers.iter().flatten().all(Option::is_none) {
            return wrong("adapter_model.safetensors holds no factors".to_owned());
        }
        for (layer, slots) in self.layers.iter().enumerate() {
            for projection in Projection::ALL {
                let module = format!("model.layers.{layer}.{}", projection.module());
                let named = modules[layer][projection as usize].named;
                let present = slots[projection as usize].is_some();
                if named && !present {
                    return wrong(format!(
                        "target_modules names {module}, but adapter_model.safetensors has no factors for it (cut short, or of another model?)"
                    ));
                }
                if present && !named {
                    return wrong(format!(
                        "adapter_model.safetensors has factors for {module}, which target_modules does not name"
                    ));
                }
            }
        }
        Ok(())
    }
}
