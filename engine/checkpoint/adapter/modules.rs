//! The modules that adapter_config.json names, with the rank and alpha of each, as PEFT decides it.
//!
//! | key | what it is matched with |
//! |---|---|
//! | `target_modules`, `exclude_modules` | a list: the whole name, or its end after a dot; a string: `re.fullmatch` |
//! | `layers_to_transform` | the number that follows `layers_pattern`, or any name; an empty list is none |
//! | `rank_pattern`, `alpha_pattern` | regular expressions of a name's end after a dot; the first in the file that matches |

use std::collections::{BTreeMap, HashMap, hash_map::Entry};

use fancy_regex::{Regex, RegexBuilder};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Value, value::RawValue};

use super::{MAX_RANK, Projection};
use crate::checkpoint::config::{Config, ConfigError};
use crate::checkpoint::json_object::JsonObject;
use crate::error::excerpt;

/// Steps that one match may take; what people write takes a few hundred.
const MOST_STEPS: usize = 100_000;
/// Entries of rank_pattern or alpha_pattern; an adapter of 126 layers in which every matrix has its own needs 882.
const MOST_PATTERNS: usize = 10_000;
/// The largest lora_alpha.
pub(super) const MAX_ALPHA: f64 = 1e6;

/// The settings of one matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Module {
    /// Whether it has factors.
    pub(super) named: bool,
    pub(super) rank: usize,
    pub(super) alpha: f64,
}

/// A map of patterns that keeps the file's order, which decides.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Patterns<V>(pub(super) Vec<(String, V)>);

impl<V> Default for Patterns<V> {
    fn default() -> Patterns<V> {
        Patterns(Vec::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Patterns<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Patterns<V>, D::Error> {
        struct Entries<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Patterns<V>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Patterns<V>, M::Error> {
                let mut entries: Vec<(String, V)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    entries.push((key, value));
                }
                Ok(Patterns(entries))
            }
        }
        deserializer.deserialize_map(Entries(std::marker::PhantomData))
    }
}

impl<V: Serialize> Serialize for Patterns<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        self.0.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
        map.end()
    }
}

/// A module of the model under its whole name.
struct Name {
    layer: usize,
    projection: Projection,
    text: String,
}

/// Everything about every matrix: `[layer][projection]`.
pub(super) fn modules(
    reader: &JsonObject,
    config: &Config,
    (rank, ranks): (usize, &Patterns<usize>),
    (alpha, alphas): (f64, &Patterns<f64>),
) -> Result<Vec<[Module; 7]>, ConfigError> {
    let names: Vec<Name> = (0..config.num_hidden_layers)
        .flat_map(|layer| Projection::ALL.map(|projection| (layer, projection)))
        .map(|(layer, projection)| {
            let text = format!("model.layers.{layer}.{}", projection.module());
            Name { layer, projection, text }
        })
        .collect();
    let default = [Module { named: false, rank, alpha }; 7];
    let mut modules = vec![default; config.num_hidden_layers];
    let target = Matcher::target(reader)?;
    let exclude = Matcher::exclude(reader)?;
    let layers = Layers::parse(reader, &target)?;
    let ranks = ranks.resolve(reader, "rank_pattern", &names)?;
    let alphas = alphas.resolve(reader, "alpha_pattern", &names)?;
    for (index, name) in names.iter().enumerate() {
        let module = &mut modules[name.layer][name.projection as usize];
        module.named = target.matches(reader, "target_modules", &name.text)?
            && !exclude.matches(reader, "exclude_modules", &name.text)?
            && layers.as_ref().map_or(Ok(true), |layers| layers.contain(reader, &name.text))?;
        module.rank = ranks[index].unwrap_or(rank);
        module.alpha = alphas[index].unwrap_or(alpha);
    }
    Ok(modules)
}

enum Matcher {
    AllLinear,
    /// The whole name, or its end after a dot.
    Suffixes(Vec<String>),
    /// Matches the whole name.
    Pattern(Regex),
}

impl Matcher {
    fn target(reader: &JsonObject) -> Result<Matcher, ConfigError> {
        match reader.get("target_modules") {
            // PEFT's choice for the families that are computed here.
            None => Ok(Matcher::Suffixes(["q_proj", "v_proj"].map(str::to_owned).to_vec())),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => {
                Ok(Matcher::AllLinear)
            }
            Some(value) => Matcher::parse(reader, "target_modules", value),
        }
    }

    fn exclude(reader: &JsonObject) -> Result<Matcher, ConfigError> {
        let value = reader.get("exclude_modules").filter(|value| value.as_str() != Some(""));
        match value {
            None => Ok(Matcher::Suffixes(Vec::new())),
            Some(value) => Matcher::parse(reader, "exclude_modules", value),
        }
    }

    fn parse(reader: &JsonObject, key: &str, value: &Value) -> Result<Matcher, ConfigError> {
        let expected = "a list of module names or a regular expression";
        Ok(match value {
            Value::Array(_) => {
                Matcher::Suffixes(strings(value).ok_or_else(|| reader.wrong(key, expected, value))?)
            }
            Value::String(pattern) => Matcher::Pattern(python_regex(
                reader,
                key,
                pattern,
                &format!(r"\A(?:{pattern})\z"),
            )?),
            value => return Err(reader.wrong(key, expected, value)),
        })
    }

    fn matches(&self, reader: &JsonObject, key: &str, module: &str) -> Result<bool, ConfigError> {
        Ok(match self {
            Matcher::AllLinear => true,
            Matcher::Suffixes(names) => names.iter().any(|name| {
                let before = module.strip_suffix(name.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }),
            Matcher::Pattern(pattern) => is_match(reader, key, pattern, module)?,
        })
    }
}

/// layers_to_transform.
struct Layers {
    layers: Vec<u64>,
    /// The name before a layer's number.
    patterns: Vec<Regex>,
}

impl Layers {
    fn parse(reader: &JsonObject, target: &Matcher) -> Result<Option<Layers>, ConfigError> {
        const KEY: &str = "layers_to_transform";
        let layers = match reader.get(KEY) {
            None => Vec::new(),
            Some(value) => {
                let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                let layers: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
                layers.ok_or_else(|| reader.wrong(KEY, "a layer or a list of layers", value))?
            }
        };
        let patterns = Layers::patterns(reader)?;
        if layers.is_empty() {
            return match (reader.get("layers_pattern"), patterns.is_empty()) {
                (Some(value), false) => {
                    let beside = "beside layers_to_transform only, as in PEFT";
                    Err(reader.unsupported("layers_pattern", value, beside))
                }
                _ => Ok(None),
            };
        }
        if !matches!(target, Matcher::Suffixes(_)) {
            let value = reader.get(KEY).expect("it has layers");
            let list = "beside a list of target_modules only, as in PEFT";
            return Err(reader.unsupported(KEY, value, list));
        }
        Ok(Some(Layers { layers, patterns }))
    }

    fn patterns(reader: &JsonObject) -> Result<Vec<Regex>, ConfigError> {
        const KEY: &str = "layers_pattern";
        let patterns = match reader.get(KEY) {
            None => Vec::new(),
            Some(Value::String(pattern)) if pattern.is_empty() => Vec::new(),
            Some(Value::String(pattern)) => vec![pattern.clone()],
            Some(value) => strings(value)
                .ok_or_else(|| reader.wrong(KEY, "a name or a list of names", value))?,
        };
        let regex = |pattern: &String| {
            let whole = format!(r"\A(?:(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.)");
            python_regex(reader, KEY, pattern, &whole)
        };
        patterns.iter().map(regex).collect()
    }

    fn contain(&self, reader: &JsonObject, module: &str) -> Result<bool, ConfigError> {
        let found = if self.patterns.is_empty() {
            // The first number between two dots: every name here has its layer's.
            module.split('.').find(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
        } else {
            let mut found = None;
            for pattern in &self.patterns {
                let captures = pattern.captures(module);
                let captures =
                    captures.map_err(|_| too_slow(reader, "layers_pattern", pattern.as_str()))?;
                found = captures.and_then(|all| all.name("idx")).map(|number| number.as_str());
                if found.is_some() {
                    break;
                }
            }
            found
        };
        let layer = found.and_then(|number| number.parse().ok());
        Ok(layer.is_some_and(|layer| self.layers.contains(&layer)))
    }
}

impl<V: Copy> Patterns<V> {
    /// The value of each name: of the first pattern that matches it. Regular expressions are compiled one at a time: a
    /// stranger's file may have many.
    fn resolve(
        &self,
        reader: &JsonObject,
        key: &str,
        names: &[Name],
    ) -> Result<Vec<Option<V>>, ConfigError> {
        let mut values = vec![None; names.len()];
        for (pattern, value) in &self.0 {
            let regex = python_regex(reader, key, pattern, &format!(r"\A(.*\.)?({pattern})$"))?;
            for (found, name) in values.iter_mut().zip(names).filter(|(found, _)| found.is_none()) {
                if is_match(reader, key, &regex, &name.text)? {
                    *found = Some(*value);
                }
            }
        }
        Ok(values)
    }
}

/// rank_pattern and alpha_pattern as they stand in the file.
pub(super) fn patterns(
    reader: &JsonObject,
    text: &str,
) -> Result<(Patterns<usize>, Patterns<f64>), ConfigError> {
    let rank = |value: &Value| {
        let rank = value.as_u64().and_then(|rank| usize::try_from(rank).ok());
        rank.filter(|rank| (1..=MAX_RANK).contains(rank))
    };
    let alpha = |value: &Value| value.as_f64().filter(|alpha| (0.0..=MAX_ALPHA).contains(alpha));
    Ok((
        Patterns::read(reader, text, "rank_pattern", "ranks from 1 to 16384", rank)?,
        Patterns::read(reader, text, "alpha_pattern", "numbers from 0 to 1000000", alpha)?,
    ))
}

impl<V> Patterns<V> {
    /// As it is written.
    pub(super) fn json(&self, of: impl Fn(&V) -> Value) -> Patterns<Value> {
        Patterns(self.0.iter().map(|(pattern, value)| (pattern.clone(), of(value))).collect())
    }

    fn read(
        reader: &JsonObject,
        text: &str,
        key: &str,
        expected: &'static str,
        parse: impl Fn(&Value) -> Option<V>,
    ) -> Result<Patterns<V>, ConfigError> {
        let Some(value) = reader.get(key) else { return Ok(Patterns::default()) };
        // The reader's object has lost the order. Of equal keys the last counts, as in Python.
        let all: Result<BTreeMap<String, &RawValue>, _> = serde_json::from_str(text);
        let raw = all.ok().and_then(|all| all.get(key).copied());
        let entries = raw.and_then(|raw| serde_json::from_str::<Patterns<Value>>(raw.get()).ok());
        let Some(Patterns(entries)) = entries else {
            return Err(reader.wrong(key, "an object of regular expressions", value));
        };
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut patterns: Vec<(String, V)> = Vec::new();
        for (pattern, value) in entries {
            let wrong = || format!("{:?}: {value}", excerpt(&pattern));
            let parsed = parse(&value)
                .ok_or_else(|| reader.out_of_range(key, &wrong(), expected.to_owned()))?;
            match places.entry(pattern.clone()) {
                Entry::Occupied(place) => patterns[*place.get()].1 = parsed,
                Entry::Vacant(place) => {
                    place.insert(patterns.len());
                    patterns.push((pattern, parsed));
                }
            }
        }
        if patterns.len() > MOST_PATTERNS {
            let count = format!("{} patterns", patterns.len());
            return Err(reader.out_of_range(key, &count, format!("at most {MOST_PATTERNS}")));
        }
        Ok(Patterns(patterns))
    }
}

/// An expression of Python's `re`, look-around and back-references included; `whole` is what it is matched as.
fn python_regex(
    reader: &JsonObject,
    key: &str,
    pattern: &str,
    whole: &str,
) -> Result<Regex, ConfigError> {
    let built = RegexBuilder::new(whole).backtrack_limit(MOST_STEPS).build();
    built.map_err(|_| {
        let known =
            "names, or regular expressions of Python's that the crate fancy-regex knows too";
        reader.unsupported(key, &pattern.into(), known)
    })
}

fn is_match(
    reader: &JsonObject,
    key: &str,
    regex: &Regex,
    module: &str,
) -> Result<bool, ConfigError> {
    regex.is_match(module).map_err(|_| too_slow(reader, key, regex.as_str()))
}

fn too_slow(reader: &JsonObject, key: &str, regex: &str) -> ConfigError {
    reader.unsupported(key, &regex.into(), "what is matched within 100000 steps")
}

fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}
