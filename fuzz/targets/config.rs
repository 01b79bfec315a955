//! A config.json, and the same text as a generation_config.json.
#![no_main]

use std::path::Path;

use engine::checkpoint::config::{Config, GenerationConfig};
use j1_fuzz::{model, refused};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Config::parse(text, Path::new("config.json")) {
        Ok(config) => {
            assert!(config.num_attention_heads.is_multiple_of(config.num_key_value_heads));
            assert!(config.parameter_count() > 0);
        }
        Err(error) => refused(error),
    }
    match GenerationConfig::parse(text, Path::new("generation_config.json"), &model()) {
        Ok(generation) => drop(generation.stop_ids(Path::new("model")).map_err(refused)),
        Err(error) => refused(error),
    }
});
