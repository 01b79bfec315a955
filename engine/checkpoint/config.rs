//! config.json and generation_config.json of a Hugging Face checkpoint, parsed and checked completely.
//!
//! Three families share one decoder block: RMSNorm, grouped-query attention with rotate-half RoPE, RMSNorm, SwiGLU.
//! `qwen3` adds an RMSNorm over each head of q and k, `qwen2` adds a bias to q, k and v, `llama` adds neither. Whatever
//! would change the arithmetic in a way that this engine does not compute (other RoPE scaling, sliding windows, other
//! activations, quantization) is refused by name, so that a loaded model is computed as its authors meant it.
//! Absent keys take the defaults of transformers' configuration classes.

pub(crate) mod error;
mod generation;
mod rope;

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::json_object::JsonObject;
use crate::checkpoint::quantization;
use crate::error::{excerpt, parse_json, read_text};

pub use error::ConfigError;
pub use generation::{GenerationConfig, MAX_STOP_BYTES};
pub use rope::RopeScaling;

/// The tensor of the embeddings.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The tensor of the LM head.
pub(crate) const HEAD: &str = "lm_head.weight";

/// Sound files have a few kilobytes.
const LIMIT_BYTES: u64 = 1 << 20;
// Far above any model of these families (Llama 3.1 405B: 16384 wide, 126 layers, 53248, 128256 rows), low enough that no
// product of them leaves 64 bits.
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 10;
const MAX_VOCABULARY: usize = 1 << 24;
const MAX_POSITIONS: usize = 1 << 31;

/// The architectures that this engine computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// RMSNorm over head_dim on q and k before RoPE; no biases.
    Qwen3,
    /// Bias on q, k and v; no norm on q and k.
    Qwen2,
    /// Neither biases nor norms.
    Llama,
}

impl Family {
    /// All families, in the order in which messages list them.
    pub const ALL: [Family; 3] = [Family::Qwen3, Family::Qwen2, Family::Llama];

    /// The `model_type` of config.json.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Qwen3 => "qwen3",
            Family::Qwen2 => "qwen2",
            Family::Llama => "llama",
        }
    }

    /// Whether q, k and v have a bias.
    pub(crate) fn has_qkv_bias(self) -> bool {
        self == Family::Qwen2
    }

    /// Whether each head of q and k passes an RMSNorm before RoPE.
    pub(crate) fn has_qk_norm(self) -> bool {
        self == Family::Qwen3
    }
}

/// The floating-point type in which config.json says that the weights are stored; the files themselves decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// bfloat16
    Bf16,
    /// float16
    F16,
    /// float32
    F32,
}

/// A checked config.json. Widths and counts are at least 1 and bounded, and all products of them fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The architecture.
    pub family: Family,
    /// Width of the residual stream, H.
    pub hidden_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; even. Query width is heads x head_dim, which need not be `hidden_size`.
    pub head_dim: usize,
    /// Width of the SwiGLU.
    pub intermediate_size: usize,
    /// Rows of the embedding table (at least the tokenizer's ids, often more).
    pub vocab_size: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of RoPE's frequencies: pair i turns by position / theta^(2i / head_dim), unless that is scaled.
    pub rope_theta: f64,
    /// The scaling of these frequencies.
    pub rope_scaling: RopeScaling,
    /// Whether the LM head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Positions for which the model was made: with YaRN, the extended number.
    pub max_position_embeddings: usize,
    /// `dtype` or `torch_dtype`, if it says one.
    pub dtype: Option<FloatType>,
    /// Ids that end a generation according to config.json; generation_config.json overrides them.
    pub eos_token_ids: Vec<u32>,
    /// First token of a sequence, if the family uses one.
    pub bos_token_id: Option<u32>,
}

/// A tensor that a checkpoint must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Name in the safetensors files.
    pub name: String,
    /// Shape, row-major; a projection is [out, in].
    pub shape: Vec<usize>,
}

impl Config {
    /// Reads `directory`/config.json.
    pub fn load(directory: &Path) -> Result<Config, ConfigError> {
        let path = directory.join("config.json");
        let text = read_text(&path, LIMIT_BYTES)?;
        Config::parse(&text, &path)
    }

    /// Parses the text of a config.json; `path` is for messages only.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let value = parse_json(path, text)?;
        let reader = JsonObject::new(path, &value)?;
        let family = family(&reader)?;
        refuse_what_is_not_computed(&reader, family)?;

        let hidden_size = reader.required_count("hidden_size", MAX_WIDTH)?;
        let num_attention_heads = reader.required_count("num_attention_heads", MAX_HEADS)?;
        let num_key_value_heads =
            reader.count("num_key_value_heads", MAX_HEADS)?.unwrap_or(num_attention_heads);
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(reader.contradiction(format!(
                "num_attention_heads {num_attention_heads} is not a multiple of num_key_value_heads {num_key_value_heads}"
            )));
        }
        let head_dim = match reader.count("head_dim", MAX_HEAD_DIM)? {
            Some(head_dim) => head_dim,
            // The default of transformers' Qwen3Config; the other two derive it.
            None if family == Family::Qwen3 && !reader.has("head_dim") => 128,
            None if hidden_size % num_attention_heads != 0 => {
                return Err(reader.contradiction(format!(
                    "head_dim is absent and hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}"
                )));
            }
            None => hidden_size / num_attention_heads,
        };
        if head_dim % 2 != 0 || head_dim > MAX_HEAD_DIM {
            return Err(reader.out_of_range(
                "head_dim",
                &head_dim,
                format!("an even number up to {MAX_HEAD_DIM} (RoPE turns pairs)"),
            ));
        }
        let positions = reader
            .count("max_position_embeddings", MAX_POSITIONS)?
            .unwrap_or(if family == Family::Llama { 2048 } else { 32768 });
        let (rope_theta, rope_scaling) = rope::parse(&reader, positions)?;
        let max_position_embeddings = rope_scaling.extended(positions);
        let num_hidden_layers = reader.required_count("num_hidden_layers", MAX_LAYERS)?;
        refuse_sliding_windows(&reader, num_hidden_layers, max_position_embeddings)?;
        let config = Config {
            family,
            hidden_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            intermediate_size: reader.required_count("intermediate_size", MAX_WIDTH)?,
            vocab_size: reader.required_count("vocab_size", MAX_VOCABULARY)?,
            rms_norm_eps: reader.positive("rms_norm_eps", 1.0)?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            tie_word_embeddings: reader.boolean("tie_word_embeddings")?.unwrap_or(false),
            max_position_embeddings,
            dtype: float_type(&reader)?,
            eos_token_ids: reader.ids("eos_token_id")?.unwrap_or_default(),
            bos_token_id: reader.ids("bos_token_id")?.and_then(|ids| ids.first().copied()),
        };
        if config.checked_parameter_count().is_none() {
            return Err(reader.contradiction(
                "hidden_size, num_hidden_layers, intermediate_size and vocab_size together overflow 64 bits".to_owned(),
            ));
        }
        Ok(config)
    }

    /// Width of all query heads together, also the input width of o_proj.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads (or value heads) together.
    pub fn key_value_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Parameters, the tied head counted once.
    pub fn parameter_count(&self) -> u64 {
        self.checked_parameter_count().expect("parse() has checked the product")
    }

    /// Parameters without the embedding table and an untied head.
    pub fn non_embedding_parameter_count(&self) -> u64 {
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        self.parameter_count() - tables * self.vocab_size as u64 * self.hidden_size as u64
    }

    /// Every tensor that the checkpoint must hold, in the order in which the forward pass uses them.
    pub fn expected_tensors(&self) -> impl Iterator<Item = ExpectedTensor> + '_ {
        let table = ExpectedTensor {
            name: EMBEDDING.to_owned(),
            shape: vec![self.vocab_size, self.hidden_size],
        };
        let norm =
            ExpectedTensor { name: "model.norm.weight".to_owned(), shape: vec![self.hidden_size] };
        let head = (!self.tie_word_embeddings).then(|| self.head());
        std::iter::once(table)
            .chain((0..self.num_hidden_layers).flat_map(|layer| self.layer_tensors(layer)))
            .chain(std::iter::once(norm))
            .chain(head)
    }

    /// The LM head: expected where the embeddings are not tied, redundant (but of this shape) where they are.
    pub fn head(&self) -> ExpectedTensor {
        ExpectedTensor { name: HEAD.to_owned(), shape: vec![self.vocab_size, self.hidden_size] }
    }

    fn layer_tensors(&self, layer: usize) -> Vec<ExpectedTensor> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (query, key_value) = (self.query_width(), self.key_value_width());
        let mut tensors = Vec::with_capacity(14);
        let mut expect = |name: &str, shape: &[usize]| {
            let name = format!("model.layers.{layer}.{name}");
            tensors.push(ExpectedTensor { name, shape: shape.to_vec() });
        };
        expect("input_layernorm.weight", &[hidden]);
        for (name, width) in [("q_proj", query), ("k_proj", key_value), ("v_proj", key_value)] {
            expect(&format!("self_attn.{name}.weight"), &[width, hidden]);
            if self.family.has_qkv_bias() {
                expect(&format!("self_attn.{name}.bias"), &[width]);
            }
        }
        if self.family.has_qk_norm() {
            expect("self_attn.q_norm.weight", &[self.head_dim]);
            expect("self_attn.k_norm.weight", &[self.head_dim]);
        }
        expect("self_attn.o_proj.weight", &[hidden, query]);
        expect("post_attention_layernorm.weight", &[hidden]);
        expect("mlp.gate_proj.weight", &[inner, hidden]);
        expect("mlp.up_proj.weight", &[inner, hidden]);
        expect("mlp.down_proj.weight", &[hidden, inner]);
        tensors
    }

    fn checked_parameter_count(&self) -> Option<u64> {
        let count = |tensors: &[ExpectedTensor]| {
            tensors.iter().try_fold(0u64, |sum, tensor| {
                let elements = tensor
                    .shape
                    .iter()
                    .try_fold(1u64, |product, &dim| product.checked_mul(dim as u64))?;
                sum.checked_add(elements)
            })
        };
        let layers = count(&self.layer_tensors(0))?.checked_mul(self.num_hidden_layers as u64)?;
        let table = (self.vocab_size as u64).checked_mul(self.hidden_size as u64)?;
        let tables = table.checked_mul(if self.tie_word_embeddings { 1 } else { 2 })?;
        let parameters = layers.checked_add(tables)?.checked_add(self.hidden_size as u64)?;
        // Bytes of it in f32 must fit as well.
        parameters.checked_mul(4).map(|_| parameters)
    }
}

/// Refuses every key that would change the arithmetic.
fn refuse_what_is_not_computed(reader: &JsonObject, family: Family) -> Result<(), ConfigError> {
    if let Some((key, maker)) = quantization::of_config(reader) {
        return Err(ConfigError::Quantized { path: reader.path.to_owned(), key, maker });
    }
    if let Some(value) = reader.get("architectures") {
        let names =
            value.as_array().ok_or_else(|| reader.wrong("architectures", "a list", value))?;
        let causal = |name: &Value| name.as_str().is_some_and(|name| name.ends_with("ForCausalLM"));
        if !names.is_empty() && !names.iter().any(causal) {
            return Err(reader.unsupported("architectures", value, "a ...ForCausalLM"));
        }
    }
    if let Some(value) = reader.get("hidden_act")
        && value.as_str() != Some("silu")
    {
        return Err(reader.unsupported("hidden_act", value, "silu"));
    }
    let bias = "qwen2 has a bias on q, k and v; no other bias is computed";
    if family != Family::Qwen2 && reader.boolean("attention_bias")? == Some(true) {
        return Err(reader.unsupported("attention_bias", &Value::Bool(true), bias));
    }
    if reader.boolean("mlp_bias")? == Some(true) {
        return Err(reader.unsupported("mlp_bias", &Value::Bool(true), bias));
    }
    Ok(())
}

fn family(reader: &JsonObject) -> Result<Family, ConfigError> {
    let value = reader.get("model_type").ok_or_else(|| reader.missing("model_type"))?;
    let name = value.as_str().ok_or_else(|| reader.wrong("model_type", "a string", value))?;
    Family::ALL.into_iter().find(|family| family.model_type() == name).ok_or_else(|| {
        ConfigError::UnsupportedModel { path: reader.path.to_owned(), got: excerpt(name) }
    })
}

fn float_type(reader: &JsonObject) -> Result<Option<FloatType>, ConfigError> {
    for key in ["dtype", "torch_dtype"] {
        let Some(value) = reader.get(key) else { continue };
        let name = value.as_str().ok_or_else(|| reader.wrong(key, "a string", value))?;
        return match name.strip_prefix("torch.").unwrap_or(name) {
            "bfloat16" => Ok(Some(FloatType::Bf16)),
            "float16" => Ok(Some(FloatType::F16)),
            "float32" => Ok(Some(FloatType::F32)),
            "auto" => Ok(None),
            _ => Err(reader.unsupported(key, value, "bfloat16, float16 or float32")),
        };
    }
    Ok(None)
}

/// Refuses a model in which a layer attends to less than all positions before it. What the keys mean is transformers'
/// (configuration_qwen2.py): `sliding_window` counts where `use_sliding_window` is on, for the layers that `layer_types` names,
/// or for those from `max_window_layers` on.
fn refuse_sliding_windows(
    reader: &JsonObject,
    layers: usize,
    positions: usize,
) -> Result<(), ConfigError> {
    let window = match reader.boolean("use_sliding_window")?.unwrap_or(false) {
        true if !reader.has("sliding_window") => Some(4096),
        true => reader.whole("sliding_window", 0, MAX_POSITIONS)?,
        false => None,
    };
    let mut found = None;
    if window.is_some() && reader.whole("max_window_layers", 0, usize::MAX)?.unwrap_or(28) < layers
    {
        found = Some(("use_sliding_window", &Value::Bool(true)));
    }
    if let Some(list) = reader.get("layer_types") {
        let types = list.as_array().ok_or_else(|| reader.wrong("layer_types", "a list", list))?;
        if types.len() != layers {
            return Err(reader.contradiction(format!(
                "layer_types has {} entries for num_hidden_layers {layers}",
                types.len()
            )));
        }
        let is = |kind: &Value, name: &str| kind.as_str() == Some(name);
        let known = |kind: &Value| is(kind, "full_attention") || is(kind, "sliding_attention");
        if let Some(kind) = types.iter().find(|kind| !known(kind)) {
            return Err(reader.unsupported("layer_types", kind, "full_attention only"));
        }
        let slides = types.iter().find(|kind| is(kind, "sliding_attention"));
        found = slides.map(|kind| ("layer_types", kind));
    }
    let Some((key, value)) = found else { return Ok(()) };
    match window {
        Some(window) if window >= positions => Ok(()),
        Some(window) => Err(reader.unsupported(
            key,
            value,
            format!(
                "full attention only, sliding_window is {window}; where prompt and completion stay within {window} tokens both are the same: \
                for those, set max_position_embeddings to {window} in config.json"
            ),
        )),
        None => Err(reader.unsupported(key, value, "full attention only")),
    }
}

#[cfg(test)]
mod tests;
