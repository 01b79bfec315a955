//! adapter_config.json: reading it, and refusing by name what is not computed.

use std::path::Path;

use serde_json::Value;

use super::modules::{MAX_ALPHA, Module, modules, patterns};
use super::{Adapter, AdapterError, MAX_RANK};
use crate::checkpoint::config::{Config, ConfigError};
use crate::checkpoint::json_object::JsonObject;
use crate::error::{excerpt, parse_json};

/// Keys of adapter_config.json that are read here or cannot change the result.
const KNOWN_KEYS: [&str; 26] = [
    "alpha_pattern",
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
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// Advice for an option that is not computed.
const MERGE_FIRST: &str = "plain LoRA, with this option off; otherwise merge the adapter into its base in Python, \
    `model.merge_and_unload().save_pretrained(..)` of PEFT, and give the result as the model";

/// Keys of PEFT that change the computation of an adapter, or its tensors, unless they are off.
const CHANGING_KEYS: [&str; 15] = [
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];

pub(super) fn parse_config(
    path: &Path,
    text: &str,
    config: &Config,
) -> Result<(Adapter, Vec<[Module; 7]>), AdapterError> {
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
        reader.number("lora_alpha", 0.0, MAX_ALPHA)?.ok_or_else(|| reader.missing("lora_alpha"))?;
    let (rank_pattern, alpha_pattern) = patterns(&reader, text)?;
    let modules = modules(&reader, config, (rank, &rank_pattern), (alpha, &alpha_pattern))?;
    let adapter = Adapter {
        rank,
        alpha,
        rank_stabilized: reader.boolean("use_rslora")?.unwrap_or(false),
        dropout: reader.number("lora_dropout", 0.0, 1.0)?.unwrap_or(0.0),
        base_model: reader
            .get("base_model_name_or_path")
            .and_then(Value::as_str)
            .map(str::to_owned),
        rank_pattern,
        alpha_pattern,
        unknown_keys: unknown_keys(&reader),
        layers: std::iter::repeat_with(Default::default).take(config.num_hidden_layers).collect(),
    };
    Ok((adapter, modules))
}

/// Keys that PEFT would skip with a warning: those of a later version that are not off.
fn unknown_keys(reader: &JsonObject) -> Vec<String> {
    let unknown = reader.object.iter().filter(|(key, value)| {
        let known =
            [&KNOWN_KEYS[..], &CHANGING_KEYS].iter().any(|keys| keys.contains(&key.as_str()));
        !known && !is_off(value)
    });
    unknown
        .map(|(key, value)| format!("{} = {}", excerpt(key), excerpt(&value.to_string())))
        .collect()
}

fn refuse_what_is_not_computed(reader: &JsonObject) -> Result<(), ConfigError> {
    if let Some(bias) = reader.get("bias")
        && bias.as_str() != Some("none")
    {
        return Err(reader.unsupported("bias", bias, MERGE_FIRST));
    }
    // PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA also change the frozen weights when they initialize.
    if let Some(value) = reader.get("init_lora_weights")
        && !value.is_boolean()
        && !matches!(value.as_str(), Some("gaussian" | "orthogonal" | "eva"))
    {
        let supported = "initializations that leave the base model's weights alone; PEFT converts such an adapter with \
            `save_pretrained(path, path_initial_model_for_weight_conversion=..)`";
        return Err(reader.unsupported("init_lora_weights", value, supported));
    }
    for key in CHANGING_KEYS {
        if let Some(value) = reader.get(key).filter(|value| !is_off(value)) {
            return Err(reader.unsupported(key, value, MERGE_FIRST));
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
