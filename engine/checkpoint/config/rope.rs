//! RoPE in config.json: `rope_theta` and `rope_scaling` of older files, `rope_parameters` of newer ones. What the keys mean
//! and default to is transformers' (modeling_rope_utils.py); [`crate::ops::rope`] computes frequencies from it.

use serde_json::{Value, json};

use super::{ConfigError, MAX_POSITIONS};
use crate::checkpoint::json_object::JsonObject;
use crate::error::excerpt;

/// How RoPE's frequencies differ from theta^(-2i / head_dim), and its cosines and sines from those of the angle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// They are not scaled.
    None,
    /// All frequencies are divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1's scaling: wavelengths beyond `original / low_freq_factor` are stretched by `factor`, those within `original /
    /// high_freq_factor` are not, those between in proportion.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Below `high_freq_factor`.
        low_freq_factor: f64,
        /// As the formula says.
        high_freq_factor: f64,
        /// Positions of the first training.
        original: usize,
    },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071): pairs that turn less than `beta_slow` times over `original` positions are
    /// stretched by `factor`, those that turn more than `beta_fast` times are not, those between in proportion.
    Yarn {
        /// At least 1.
        factor: f64,
        /// Positions of the first training.
        original: usize,
        /// At least `beta_slow`.
        beta_fast: f64,
        /// As the formula says.
        beta_slow: f64,
        /// Whether the bounds between which pairs are mixed are whole pairs.
        truncate: bool,
        /// Multiplies cosines and sines.
        attention_factor: f64,
    },
}

/// The types of scaling that are computed, for messages.
const COMPUTED: &str = "default, linear, llama3 and yarn are computed";
const FACTORS: std::ops::RangeInclusive<f64> = 1.0..=1e6;
/// Keys that every type may have.
const COMMON: [&str; 4] = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];

/// RoPE's base and its scaling; `positions` is max_position_embeddings.
pub(super) fn parse(
    reader: &JsonObject,
    positions: usize,
) -> Result<(f64, RopeScaling), ConfigError> {
    let mut theta =
        reader.positive("rope_theta", f64::MAX)?.map(|theta| ("rope_theta".to_owned(), theta));
    let mut scaling = None;
    full_rotation(reader)?;
    for name in ["rope_scaling", "rope_parameters"] {
        let Some(section) = reader.inside(name)?.filter(|section| !section.object.is_empty())
        else {
            continue;
        };
        if section.object.values().any(Value::is_object) {
            let value = &reader.object[name];
            return Err(reader.unsupported(name, value, "one set of parameters for all layers"));
        }
        full_rotation(&section)?;
        if let Some(found) = section.positive("rope_theta", f64::MAX)? {
            match theta {
                Some((place, first)) if first != found => {
                    return Err(reader.contradiction(format!(
                        "{place} {first} and {name}.rope_theta {found} disagree"
                    )));
                }
                _ => theta = Some((format!("{name}.rope_theta"), found)),
            }
        }
        let found = parse_scaling(reader, &section, positions)?;
        if scaling.replace(found).is_some_and(|first| first != found) {
            return Err(reader.contradiction(
                "rope_scaling and rope_parameters disagree; keep the one that the model was trained with".to_owned(),
            ));
        }
    }
    let theta = theta.map_or(10_000.0, |(_, theta)| theta);
    let scaling = scaling.unwrap_or(RopeScaling::None);
    if matches!(scaling, RopeScaling::Yarn { .. }) && theta.ln() <= 0.0 {
        return Err(reader.out_of_range("rope_theta", &theta, "above 1 for yarn".to_owned()));
    }
    Ok((theta, scaling))
}

impl RopeScaling {
    /// Positions for which a model is made whose config.json says `positions`: YaRN's are often those before it.
    pub(super) fn extended(self, positions: usize) -> usize {
        match self {
            RopeScaling::Yarn { factor, original, .. } => {
                positions.max((original as f64 * factor) as usize)
            }
            _ => positions,
        }
    }

    /// The value of config.json's `rope_scaling`.
    pub(crate) fn to_json(self) -> Value {
        match self {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original,
            }),
            RopeScaling::Yarn {
                factor,
                original,
                beta_fast,
                beta_slow,
                truncate,
                attention_factor,
            } => json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "truncate": truncate,
                "attention_factor": attention_factor,
            }),
        }
    }
}

fn full_rotation(reader: &JsonObject) -> Result<(), ConfigError> {
    match reader.get("partial_rotary_factor") {
        Some(value) if value.as_f64() != Some(1.0) => {
            Err(reader.unsupported("partial_rotary_factor", value, "1.0"))
        }
        _ => Ok(()),
    }
}

fn parse_scaling(
    reader: &JsonObject,
    section: &JsonObject,
    positions: usize,
) -> Result<RopeScaling, ConfigError> {
    let kind = kind(section)?;
    let known: &[&str] = match kind {
        "default" => &[],
        // Its old positions change nothing.
        "linear" => &["factor", "original_max_position_embeddings"],
        "llama3" => {
            &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
        }
        "yarn" => &[
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "beta_fast",
            "beta_slow",
            "truncate",
            // Llama-2's first YaRN models: a remark on training.
            "finetuned",
        ],
        other => {
            let key = if section.has("rope_type") { "rope_type" } else { "type" };
            let remedy = remedy(other);
            let message = format!("{COMPUTED}; {remedy}");
            return Err(section.unsupported(key, &Value::from(other), message));
        }
    };
    let unknown = section.object.iter().find(|(key, value)| {
        let key = key.as_str();
        let no_change = key == "factor" && value.as_f64() == Some(1.0);
        !value.is_null() && !no_change && !COMMON.contains(&key) && !known.contains(&key)
    });
    if let Some((key, value)) = unknown {
        let message = format!("{kind} does not have it; delete it, or name the type it belongs to");
        return Err(section.unsupported(&excerpt(key), value, message));
    }
    if kind == "default" {
        return Ok(RopeScaling::None);
    }
    let factor = section.number("factor", *FACTORS.start(), *FACTORS.end())?;
    if kind == "linear" {
        let factor = factor.ok_or_else(|| section.missing("factor"))?;
        return Ok(RopeScaling::Linear { factor });
    }
    // In this order in transformers, for the sake of Phi-3.
    const ORIGINAL: &str = "original_max_position_embeddings";
    let inner = section.count(ORIGINAL, MAX_POSITIONS)?;
    let original = reader.count(ORIGINAL, MAX_POSITIONS)?.or(inner).unwrap_or(positions);
    if kind == "llama3" {
        let required = |key: &str| section.positive(key, 1e6)?.ok_or_else(|| section.missing(key));
        let (low_freq_factor, high_freq_factor) =
            (required("low_freq_factor")?, required("high_freq_factor")?);
        if low_freq_factor >= high_freq_factor {
            return Err(section.contradiction(format!(
                "low_freq_factor {low_freq_factor} is not below high_freq_factor {high_freq_factor}"
            )));
        }
        let factor = factor.ok_or_else(|| section.missing("factor"))?;
        return Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original });
    }
    yarn(section, factor, original, positions)
}

fn yarn(
    section: &JsonObject,
    factor: Option<f64>,
    original: usize,
    positions: usize,
) -> Result<RopeScaling, ConfigError> {
    let factor = match factor {
        Some(factor) => factor,
        // DeepSeek's spelling.
        None if section.has("factor") => positions as f64 / original as f64,
        None => return Err(section.missing("factor")),
    };
    if !FACTORS.contains(&factor) || original as f64 * factor > MAX_POSITIONS as f64 {
        let most = MAX_POSITIONS / original;
        return Err(section.out_of_range("factor", &factor, format!("a number from 1 to {most}")));
    }
    // Python's `or`: 0 counts as absent.
    let or = |key: &str, default: f64| {
        let value = section.number(key, 0.0, 1e6)?;
        Ok::<f64, ConfigError>(value.filter(|value| *value != 0.0).unwrap_or(default))
    };
    let (beta_fast, beta_slow) = (or("beta_fast", 32.0)?, or("beta_slow", 1.0)?);
    if beta_fast < beta_slow {
        return Err(
            section.contradiction(format!("beta_fast {beta_fast} is below beta_slow {beta_slow}"))
        );
    }
    let (mscale, mscale_all_dim) = (or("mscale", 0.0)?, or("mscale_all_dim", 0.0)?);
    let magnitude =
        |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let inferred = match mscale != 0.0 && mscale_all_dim != 0.0 {
        true => magnitude(mscale) / magnitude(mscale_all_dim),
        false => magnitude(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        original,
        beta_fast,
        beta_slow,
        truncate: section.boolean("truncate")?.unwrap_or(true),
        attention_factor: section.positive("attention_factor", 1e6)?.unwrap_or(inferred),
    })
}

/// `rope_type`, or `type` of older files; "default" where nothing is scaled.
fn kind<'a>(section: &JsonObject<'a>) -> Result<&'a str, ConfigError> {
    let mut found: Option<&str> = None;
    for key in ["rope_type", "type"] {
        let Some(value) = section.object.get(key) else { continue };
        let Some(name) = value.as_str() else {
            let message = format!(
                "{COMPUTED}; name the one that the model was trained with, or delete the key if RoPE is not scaled"
            );
            return Err(section.unsupported(key, value, message));
        };
        match found {
            Some(first) if first != name => {
                let (first, name) = (excerpt(first), excerpt(name));
                return Err(section
                    .contradiction(format!("rope_type {first:?} and type {name:?} disagree")));
            }
            _ => found = Some(name),
        }
    }
    if let Some(name) = found {
        return Ok(name);
    }
    let scaling = section
        .object
        .iter()
        .find(|(key, value)| !value.is_null() && !COMMON.contains(&key.as_str()));
    match scaling {
        Some((key, value)) => {
            let message =
                format!("without a \"rope_type\" it scales nothing; {COMPUTED}: name one");
            Err(section.unsupported(&excerpt(key), value, message))
        }
        None => Ok("default"),
    }
}

/// Advice for a type that is not computed.
fn remedy(kind: &str) -> &'static str {
    match kind {
        "dynamic" => {
            "dynamic scales nothing up to max_position_embeddings, so delete it to judge prompts of up to that length"
        }
        "mrope" => {
            "on text alone mrope is RoPE without scaling: delete it if the model takes no images"
        }
        "longrope" | "su" => {
            "longrope has other frequencies for long prompts than for short ones; use another checkpoint"
        }
        _ => "use another checkpoint",
    }
}
