//! adapter_config.json: reading it, and refusing by name what is not computed.

use std::collections::BTreeSet;
use std::path::Path;

use regex::Regex;
use serde_json::Value;

use super::{Adapter, AdapterError, MAX_RANK};
use crate::config::{Config, ConfigError};
use crate::error::{excerpt, parse_json};
use crate::json_object::JsonObject;

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

/// Which modules adapter_config.json names; the rules are PEFT's `check_target_module_exists`.
pub(super) struct Targets {
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
    pub(super) fn name(&self, module: &str, layer: usize) -> bool {
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

pub(super) fn parse_config(
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
