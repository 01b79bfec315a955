//! generation_config.json: the sampling that the authors of a checkpoint recommend.

use std::path::Path;

use serde_json::Value;

use super::{Config, ConfigError, LIMIT_BYTES};
use crate::checkpoint::json_object::JsonObject;
use crate::error::{FileError, excerpt, parse_json, read_text};

/// Stop strings at most: every token is looked at for each of them.
const MAX_STOP_STRINGS: usize = 64;
/// Bytes of one stop string at most.
pub const MAX_STOP_BYTES: usize = 1024;

/// The values of generation_config.json, and of config.json where it has none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Ids that end a generation; empty if neither file names one. All lie in the vocabulary.
    pub eos_token_ids: Vec<u32>,
    /// Whether tokens are drawn; greedy if not, whatever the temperature.
    pub do_sample: bool,
    /// Divides the logits.
    pub temperature: Option<f64>,
    /// Nucleus mass.
    pub top_p: Option<f64>,
    /// Number of candidates; 0 means all.
    pub top_k: Option<u32>,
    /// Least probability of a candidate, relative to the largest.
    pub min_p: Option<f64>,
    /// Divides positive and multiplies negative logits of tokens that are there already, drawn or not.
    pub repetition_penalty: Option<f64>,
    /// Texts that end a generation. None is empty.
    pub stop_strings: Vec<String>,
    /// Other settings that change the text and are not computed, such as `no_repeat_ngram_size 3`.
    pub not_computed: Vec<String>,
}

/// Further keys of transformers' GenerationConfig that change what one sequence says, and the number that
/// changes nothing. So do null, false and an empty list.
const NOT_COMPUTED: [(&str, f64); 22] = [
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("penalty_alpha", 0.0),
    ("dola_layers", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("typical_p", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("top_h", 1.0),
    ("guidance_scale", 1.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("bad_words_ids", 0.0),
    ("force_words_ids", 0.0),
    ("sequence_bias", 0.0),
    ("suppress_tokens", 0.0),
    ("begin_suppress_tokens", 0.0),
    ("exponential_decay_length_penalty", 0.0),
    ("remove_invalid_values", 0.0),
    ("watermarking_config", 0.0),
];
/// The same for lists of ids, which change nothing if they are empty.
const FORCED: [&str; 2] = ["forced_bos_token_id", "forced_eos_token_id"];

impl GenerationConfig {
    /// The ids that end a generation; an error if there are none. `directory` is for the message only.
    pub fn stop_ids(&self, directory: &Path) -> Result<&[u32], ConfigError> {
        match self.eos_token_ids.as_slice() {
            [] => Err(ConfigError::NoEndOfSequence { directory: directory.to_owned() }),
            ids => Ok(ids),
        }
    }

    /// Reads `directory`/generation_config.json, if there is one; what it does not say comes from config.json.
    pub fn load(directory: &Path, config: &Config) -> Result<GenerationConfig, ConfigError> {
        let path = directory.join("generation_config.json");
        match read_text(&path, LIMIT_BYTES) {
            Ok(text) => GenerationConfig::parse(&text, &path, config),
            Err(FileError::NotFound { .. }) => {
                let eos_token_ids = config.eos_token_ids.clone();
                check_ids(&eos_token_ids, &directory.join("config.json"), config)?;
                Ok(GenerationConfig { eos_token_ids, ..GenerationConfig::default() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Parses the text of a generation_config.json; `path` is for messages only.
    pub fn parse(
        text: &str,
        path: &Path,
        config: &Config,
    ) -> Result<GenerationConfig, ConfigError> {
        let value = parse_json(path, text)?;
        let reader = JsonObject::new(path, &value)?;
        let eos_token_ids = match reader.ids("eos_token_id")? {
            Some(ids) => {
                check_ids(&ids, path, config)?;
                ids
            }
            None => {
                check_ids(&config.eos_token_ids, &path.with_file_name("config.json"), config)?;
                config.eos_token_ids.clone()
            }
        };
        let top_k = reader.whole("top_k", 0, u32::MAX as usize)?.map(|top_k| top_k as u32);
        Ok(GenerationConfig {
            eos_token_ids,
            do_sample: reader.boolean("do_sample")?.unwrap_or(false),
            temperature: reader.number("temperature", 0.0, 1e6)?,
            top_p: reader.number("top_p", 0.0, 1.0)?,
            top_k,
            min_p: reader.number("min_p", 0.0, 1.0)?,
            repetition_penalty: reader.positive("repetition_penalty", 1e6)?,
            stop_strings: stop_strings(&reader)?,
            not_computed: not_computed(&reader),
        })
    }
}

/// Checks that ids that end a generation are tokens: no other is ever drawn.
fn check_ids(ids: &[u32], path: &Path, config: &Config) -> Result<(), ConfigError> {
    match ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        None => Ok(()),
        Some(id) => Err(ConfigError::OutOfRange {
            path: path.to_owned(),
            key: "eos_token_id".to_owned(),
            expected: format!(
                "a token below the vocabulary's {} (no generation would end at another)",
                config.vocab_size
            ),
            got: id.to_string(),
        }),
    }
}

/// One text or a list of texts.
fn stop_strings(reader: &JsonObject) -> Result<Vec<String>, ConfigError> {
    let key = "stop_strings";
    let Some(value) = reader.get(key) else { return Ok(Vec::new()) };
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    if list.len() > MAX_STOP_STRINGS {
        let expected = format!("{MAX_STOP_STRINGS} texts at most");
        return Err(reader.out_of_range(key, &format!("{} of them", list.len()), expected));
    }
    let text = |value: &Value| match value.as_str() {
        None => Err(reader.wrong(key, "a text or a list of texts", value)),
        Some(text) if text.is_empty() || text.len() > MAX_STOP_BYTES => {
            let expected = format!("texts of 1 to {MAX_STOP_BYTES} bytes");
            Err(reader.out_of_range(key, value, expected))
        }
        Some(text) => Ok(text.to_owned()),
    };
    list.iter().map(text).collect()
}

fn not_computed(reader: &JsonObject) -> Vec<String> {
    let changes_nothing = |value: &Value, neutral: Option<f64>| match value {
        Value::Bool(on) => !on,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        value => neutral.is_some() && value.as_f64() == neutral,
    };
    let keys = NOT_COMPUTED.iter().map(|&(key, neutral)| (key, Some(neutral)));
    keys.chain(FORCED.iter().map(|&key| (key, None)))
        .filter_map(|(key, neutral)| {
            let value = reader.get(key).filter(|value| !changes_nothing(value, neutral))?;
            Some(format!("{key} {}", excerpt(&value.to_string())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of Qwen3-0.6B, as far as it matters here.
    fn config() -> Config {
        with_stop_id(151_645)
    }

    fn with_stop_id(id: u32) -> Config {
        let text = format!(
            r#"{{"model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 28,
                "intermediate_size": 3072, "vocab_size": 151936, "eos_token_id": {id}}}"#
        );
        Config::parse(&text, Path::new("dir/config.json")).unwrap()
    }

    #[test]
    fn generation_config_overrides_the_stop_ids_of_config() {
        let config = config();
        let directory = tempfile::tempdir().unwrap();
        let absent = GenerationConfig::load(directory.path(), &config).unwrap();
        assert_eq!(absent.eos_token_ids, [151645]);
        let text =
            r#"{"eos_token_id": [151645, 151643], "temperature": 0.6, "top_k": 20, "top_p": 0.95}"#;
        std::fs::write(directory.path().join("generation_config.json"), text).unwrap();
        let read = GenerationConfig::load(directory.path(), &config).unwrap();
        assert_eq!(read.eos_token_ids, [151645, 151643]);
        assert_eq!((read.temperature, read.top_p, read.top_k), (Some(0.6), Some(0.95), Some(20)));
        let parse = |text: &str| GenerationConfig::parse(text, Path::new("g.json"), &config);
        assert_eq!(parse("{}").unwrap().eos_token_ids, [151645]);
        assert_eq!(read.stop_ids(Path::new("dir")).unwrap(), [151645, 151643]);
        let none = parse(r#"{"eos_token_id": []}"#).unwrap();
        let error = none.stop_ids(Path::new("dir")).unwrap_err();
        assert!(matches!(error, ConfigError::NoEndOfSequence { .. }), "{error:?}");
        assert!(error.to_string().contains("dir") && error.to_string().contains("eos_token_id"));
        let error = parse(r#"{"temperature": -1}"#).unwrap_err().to_string();
        assert!(error.contains("g.json") && error.contains("temperature"), "{error}");
        let error = parse(r#"{"top_p": 1.5}"#).unwrap_err().to_string();
        assert!(error.contains("top_p") && error.contains("1.5"), "{error}");
        let error = parse(r#"{"eos_token_id": 1.5}"#).unwrap_err().to_string();
        assert!(error.contains("eos_token_id"), "{error}");
    }

    fn refused(result: Result<GenerationConfig, ConfigError>, parts: &[&str]) {
        let text = result.expect_err("should be refused").to_string();
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
    }

    #[test]
    fn what_generation_config_asks_for_is_read_or_named() {
        let config = config();
        let parse = |text: &str| GenerationConfig::parse(text, Path::new("g.json"), &config);
        let read = parse(
            r#"{"do_sample": true, "min_p": 0.05, "repetition_penalty": 1.1, "stop_strings": ["a", "b\n"]}"#,
        )
        .unwrap();
        assert!(read.do_sample && read.not_computed.is_empty());
        assert_eq!((read.min_p, read.repetition_penalty), (Some(0.05), Some(1.1)));
        assert_eq!(read.stop_strings, ["a", "b\n"]);
        assert_eq!(parse(r#"{"stop_strings": "END"}"#).unwrap().stop_strings, ["END"]);
        for text in
            ["{}", r#"{"do_sample": null, "stop_strings": null}"#, r#"{"do_sample": false}"#]
        {
            assert!(!parse(text).unwrap().do_sample, "{text}");
        }
        let neutral = parse(
            r#"{"num_beams": 1, "no_repeat_ngram_size": 0, "typical_p": 1.0, "bad_words_ids": null,
                "suppress_tokens": [], "remove_invalid_values": false, "min_length": 0, "max_length": 9}"#,
        );
        assert_eq!(neutral.unwrap().not_computed, [] as [&str; 0]);
        let asked = parse(
            r#"{"num_beams": 4, "no_repeat_ngram_size": 3, "suppress_tokens": [1], "forced_bos_token_id": 0,
                "watermarking_config": {"bias": 2.0}}"#,
        );
        let asked = asked.unwrap().not_computed.join("; ");
        for part in ["num_beams 4", "ngram_size 3", "tokens [1]", "forced_bos_token_id 0", "bias"] {
            assert!(asked.contains(part), "{asked}");
        }
        let long = format!(r#"{{"stop_strings": "{}"}}"#, "x".repeat(2000));
        let many = format!(r#"{{"stop_strings": [{}]}}"#, vec!["\"a\""; 100].join(","));
        for (text, part) in [
            (r#"{"stop_strings": [1]}"#, "a text or a list of texts"),
            (r#"{"stop_strings": ""}"#, "1 to 1024 bytes"),
            (&long, "1 to 1024 bytes"),
            (&many, "64 texts at most"),
            (r#"{"do_sample": "yes"}"#, "true or false"),
            (r#"{"min_p": 1.5}"#, "from 0 to 1"),
            (r#"{"repetition_penalty": 0}"#, "positive"),
        ] {
            refused(parse(text), &[part, "g.json"]);
        }
    }

    /// No generation would ever end at one.
    #[test]
    fn stop_ids_outside_the_vocabulary_are_refused() {
        let config = config();
        let vocab = config.vocab_size;
        let parse_generation =
            |text: &str| GenerationConfig::parse(text, Path::new("dir/g.json"), &config);
        for ids in [format!("{vocab}"), format!("[1, {vocab}]"), "[4000000000]".to_owned()] {
            let text = format!(r#"{{"eos_token_id": {ids}}}"#);
            refused(parse_generation(&text), &["dir/g.json", "eos_token_id", &vocab.to_string()]);
        }
        let last = parse_generation(&format!(r#"{{"eos_token_id": {}}}"#, vocab - 1)).unwrap();
        assert_eq!(last.eos_token_ids, [vocab as u32 - 1]);

        // config.json's count only where they are used.
        let config = with_stop_id(99_999_999);
        let generation = |text| GenerationConfig::parse(text, Path::new("dir/g.json"), &config);
        refused(generation("{}"), &["dir/config.json", "99999999"]);
        assert_eq!(generation(r#"{"eos_token_id": 5}"#).unwrap().eos_token_ids, [5]);
        let directory = tempfile::tempdir().unwrap();
        refused(GenerationConfig::load(directory.path(), &config), &["config.json", "99999999"]);
    }
}
