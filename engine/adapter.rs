//! A LoRA adapter in PEFT's form: adapter_config.json and adapter_model.safetensors.
//!
//! y = W x + scale * B (A x), with A [r, in], B [out, r], and scale = alpha / r, or alpha / sqrt(r) with `use_rslora`
//! (Hu et al., arXiv 2106.09685; Kalajdzievski, arXiv 2312.03732). The factors are read as f32, whatever the file holds: they are
//! masters in training, and small. Every option of PEFT that would change this formula or the set of adapted matrices
//! beyond what the file's keys say is refused by name, an unknown one as well.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::Value;

use crate::config::{Config, ConfigError};
use crate::error::{FileError, excerpt, parse_json, read_text};
use crate::json_object::JsonObject;
use crate::weights::{Checkpoint, Dtype, WeightsError};

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
    /// r, the same for all matrices.
    pub rank: usize,
    /// lora_alpha
    pub alpha: f64,
    /// Whether the scale is alpha / sqrt(r).
    pub rank_stabilized: bool,
    /// Dropout on A's input in training; generation ignores it.
    pub dropout: f64,
    /// The model for which it says that it was made; a path or id, for messages.
    pub base_model: Option<String>,
    layers: Vec<[Option<LoraFactors>; 7]>,
}

/// An adapter that cannot be read, does not fit the model, or asks for what this engine does not compute.
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
}

/// Keys of adapter_config.json that are read here or cannot change the result.
const KNOWN_KEYS: [&str; 24] = [
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config", // how A and B were initialized, as eva, loftq, lora_ga
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core", // a module's name; used with megatron_config only
    "peft_type",
    "peft_version",
    "qalora_group_size", // used with use_qalora only
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
];

impl Adapter {
    /// Reads the adapter in `directory` for a model of this configuration.
    pub fn load(directory: &Path, config: &Config) -> Result<Adapter, AdapterError> {
        let not_an_adapter =
            |message| AdapterError::NotAnAdapter { directory: directory.to_owned(), message };
        let config_path = directory.join("adapter_config.json");
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
        let (mut adapter, targets) = parse_config(&config_path, &text, config)?;
        let path = directory.join("adapter_model.safetensors");
        if !path.exists() {
            return Err(not_an_adapter(if directory.join("adapter_model.bin").exists() {
                "only adapter_model.bin, PyTorch's pickle format, which can run code and is not read: convert it with Python, \
                `safetensors.torch.save_file(torch.load('adapter_model.bin', weights_only=True), 'adapter_model.safetensors')`"
            } else {
                "no adapter_model.safetensors in this directory"
            }));
        }
        let checkpoint = Checkpoint::open_file(&path)?;
        adapter.read_factors(&path, &checkpoint, config)?;
        adapter.check_targets(&config_path, &targets)?;
        Ok(adapter)
    }

    /// The factors of one matrix, if the adapter changes it.
    pub fn factors(&self, layer: usize, projection: Projection) -> Option<&LoraFactors> {
        self.layers[layer][projection as usize].as_ref()
    }

    /// Replaces the factors of one matrix.
    pub(crate) fn set_factors(
        &mut self,
        layer: usize,
        projection: Projection,
        factors: LoraFactors,
    ) {
        self.layers[layer][projection as usize] = Some(factors);
    }

    /// What multiplies B (A x).
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rank_stabilized { rank.sqrt() } else { rank }) as f32
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
    ) -> Result<(), AdapterError> {
        let (rank, scale) = (self.rank, self.scale());
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
            let a = read_factor(path, checkpoint, key, [rank, inputs], "[r, in]")?;
            let b = read_factor(path, checkpoint, &other, [outputs, rank], "[out, r]")?;
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

    fn check_targets(&self, path: &Path, targets: &Targets) -> Result<(), AdapterError> {
        let wrong = |message| Err(AdapterError::Targets { path: path.to_owned(), message });
        if self.layers.iter().flatten().all(Option::is_none) {
            return wrong("adapter_model.safetensors holds no factors".to_owned());
        }
        for (layer, slots) in self.layers.iter().enumerate() {
            for projection in Projection::ALL {
                let module = format!("model.layers.{layer}.{}", projection.module());
                let (named, present) =
                    (targets.name(&module, layer), slots[projection as usize].is_some());
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

/// Which modules adapter_config.json names; the rules are PEFT's `check_target_module_exists`.
struct Targets {
    target: Matcher,
    exclude: Option<Matcher>,
    layers: Option<BTreeSet<usize>>,
}

enum Matcher {
    AllLinear,
    /// The whole name, or its end after a dot.
    Suffixes(Vec<String>),
    /// Matches the whole name.
    Pattern(Regex),
}

impl Targets {
    fn name(&self, module: &str, layer: usize) -> bool {
        let excluded = self.exclude.as_ref().is_some_and(|exclude| exclude.matches(module));
        let transformed = self.layers.as_ref().is_none_or(|layers| layers.contains(&layer));
        !excluded && transformed && self.target.matches(module)
    }
}

impl Matcher {
    fn parse(reader: &JsonObject, key: &str) -> Result<Option<Matcher>, ConfigError> {
        let Some(value) = reader.get(key) else { return Ok(None) };
        let expected = "a list of module names or a regular expression";
        Ok(Some(match value {
            Value::Array(names) => {
                let names = names.iter().map(|name| name.as_str().map(str::to_owned));
                let names = names.collect::<Option<Vec<_>>>();
                Matcher::Suffixes(names.ok_or_else(|| reader.wrong(key, expected, value))?)
            }
            Value::String(name) if name == "all-linear" => Matcher::AllLinear,
            Value::String(pattern) => {
                // Python's re.fullmatch. What this crate does not know (look-around, back-references) is refused.
                let whole = Regex::new(&format!(r"\A(?:{pattern})\z"));
                let supported = "a list of module names, \"all-linear\" or a regular expression without look-around";
                Matcher::Pattern(whole.map_err(|_| reader.unsupported(key, value, supported))?)
            }
            value => return Err(reader.wrong(key, expected, value)),
        }))
    }

    fn matches(&self, module: &str) -> bool {
        match self {
            Matcher::AllLinear => true,
            Matcher::Suffixes(names) => names.iter().any(|name| {
                let before = module.strip_suffix(name.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }),
            Matcher::Pattern(pattern) => pattern.is_match(module),
        }
    }
}

fn parse_config(
    path: &Path,
    text: &str,
    config: &Config,
) -> Result<(Adapter, Targets), AdapterError> {
    let value = parse_json(path, text)?;
    let reader = JsonObject::new(path, &value)?;
    match reader.get("peft_type") {
        Some(Value::String(kind)) if kind == "LORA" => {}
        Some(kind) => return Err(reader.unsupported("peft_type", kind, "LORA").into()),
        None => return Err(reader.missing("peft_type").into()),
    }
    refuse_what_is_not_computed(&reader)?;
    let rank = reader.count("r", MAX_RANK)?.ok_or_else(|| reader.missing("r"))?;
    let alpha =
        reader.number("lora_alpha", 0.0, 1e6)?.ok_or_else(|| reader.missing("lora_alpha"))?;
    let target = Matcher::parse(&reader, "target_modules")?
        .ok_or_else(|| reader.missing("target_modules"))?;
    let adapter = Adapter {
        rank,
        alpha,
        rank_stabilized: reader.boolean("use_rslora")?.unwrap_or(false),
        dropout: reader.number("lora_dropout", 0.0, 1.0)?.unwrap_or(0.0),
        base_model: reader
            .get("base_model_name_or_path")
            .and_then(Value::as_str)
            .map(str::to_owned),
        layers: std::iter::repeat_with(Default::default).take(config.num_hidden_layers).collect(),
    };
    let exclude = Matcher::parse(&reader, "exclude_modules")?;
    Ok((adapter, Targets { target, exclude, layers: layers_to_transform(&reader)? }))
}

fn refuse_what_is_not_computed(reader: &JsonObject) -> Result<(), ConfigError> {
    if let Some(bias) = reader.get("bias")
        && bias.as_str() != Some("none")
    {
        return Err(reader.unsupported("bias", bias, "\"none\""));
    }
    if let Some(pattern) = reader.get("layers_pattern")
        && !is_off(pattern)
        && !matches!(pattern.as_str(), Some("layers" | "model.layers"))
        && *pattern != serde_json::json!(["layers"])
    {
        return Err(reader.unsupported("layers_pattern", pattern, "\"layers\""));
    }
    // PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA also change the frozen weights when they initialize.
    if let Some(value) = reader.get("init_lora_weights")
        && !value.is_boolean()
        && !matches!(value.as_str(), Some("gaussian" | "orthogonal" | "eva"))
    {
        let supported = "initializations that leave the base model's weights alone";
        return Err(reader.unsupported("init_lora_weights", value, supported));
    }
    for (key, value) in reader.object {
        if !KNOWN_KEYS.contains(&key.as_str()) && !is_off(value) {
            let key = excerpt(key);
            return Err(reader.unsupported(&key, value, "plain LoRA, with this option off"));
        }
    }
    Ok(())
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn layers_to_transform(reader: &JsonObject) -> Result<Option<BTreeSet<usize>>, ConfigError> {
    let Some(value) = reader.get("layers_to_transform") else { return Ok(None) };
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let expected = "a layer or a list of layers";
    let layers = list.iter().map(|layer| {
        let layer = layer.as_u64().and_then(|layer| usize::try_from(layer).ok());
        layer.ok_or_else(|| reader.wrong("layers_to_transform", expected, value))
    });
    Ok(Some(layers.collect::<Result<_, _>>()?))
}

/// A key of adapter_model.safetensors, taken apart.
struct Place {
    layer: usize,
    projection: Projection,
    is_a: bool,
    /// `weight`, or `default.weight` as older PEFT wrote it.
    ending: &'static str,
}

impl Place {
    fn key_of(&self, is_a: bool) -> String {
        peft_key(self.layer, self.projection, is_a, self.ending)
    }
}

/// The name of a factor in PEFT's files.
pub(crate) fn peft_key(layer: usize, projection: Projection, is_a: bool, ending: &str) -> String {
    let factor = if is_a { "lora_A" } else { "lora_B" };
    let module = projection.module();
    format!("base_model.model.model.layers.{layer}.{module}.{factor}.{ending}")
}

fn parse_key(key: &str, layers: usize) -> Result<Place, String> {
    let expected = || {
        "expected base_model.model.model.layers.{layer}.{projection}.lora_A.weight or lora_B.weight"
            .to_owned()
    };
    let rest = key.strip_prefix("base_model.model.model.layers.").ok_or_else(expected)?;
    let (layer, rest) = rest.split_once('.').ok_or_else(expected)?;
    let (layer_text, layer) = (layer, layer.parse::<usize>().map_err(|_| expected())?);
    let projection = Projection::ALL.into_iter().find_map(|projection| {
        Some((projection, rest.strip_prefix(projection.module())?.strip_prefix('.')?))
    });
    let (projection, rest) = projection.ok_or_else(expected)?;
    let (is_a, ending) = match rest {
        "lora_A.weight" => (true, "weight"),
        "lora_B.weight" => (false, "weight"),
        "lora_A.default.weight" => (true, "default.weight"),
        "lora_B.default.weight" => (false, "default.weight"),
        _ => return Err(expected()),
    };
    if layer >= layers {
        return Err(format!("the model has {layers} layers, 0 to {}", layers - 1));
    }
    let place = Place { layer, projection, is_a, ending };
    // "+1" and "01" parse as numbers but are no layer's name.
    if layer_text != layer.to_string() { Err(expected()) } else { Ok(place) }
}

fn read_factor(
    path: &Path,
    checkpoint: &Checkpoint,
    name: &str,
    expected: [usize; 2],
    why: &'static str,
) -> Result<Vec<f32>, AdapterError> {
    let path = path.to_owned();
    let name_owned = name.to_owned();
    let view = checkpoint.tensor(name)?.expect("the caller found the name in the file");
    if view.shape != expected {
        let got = view.shape.to_vec();
        return Err(AdapterError::Shape { path, name: name_owned, expected, why, got });
    }
    let Some(values) = view.to_f32() else {
        return Err(AdapterError::Dtype { path, name: name_owned, got: view.dtype });
    };
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => {
            let value = values[index];
            Err(AdapterError::NotFinite { path, name: name_owned, index, value })
        }
        None => Ok(values),
    }
}

#[cfg(test)]
mod tests;
