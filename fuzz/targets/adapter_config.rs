//! An adapter_config.json beside sound factors.
#![no_main]

use engine::checkpoint::adapter::Adapter;
use j1_fuzz::{directory, file, model, refused};

libfuzzer_sys::fuzz_target!(
    init: {
        const FACTORS: &[u8] = include_bytes!("../../tests/golden/qwen2/adapter/adapter_model.safetensors");
        file("adapter_model.safetensors", FACTORS);
    },
    |bytes: &[u8]| {
        file("adapter_config.json", bytes);
        match Adapter::load(directory(), &model()) {
            Ok(adapter) => assert!(adapter.parameter_count() > 0),
            Err(error) => refused(error),
        }
    }
);
