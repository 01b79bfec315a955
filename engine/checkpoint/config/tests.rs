//! Sound and unsound configurations; the unsound ones assert the variant and that the message names what is wrong.

use std::path::PathBuf;

use super::*;
use crate::error::FileError;

fn qwen3() -> Value {
    serde_json::json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "bos_token_id": 151643,
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_scaling": null,
        "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "use_cache": true, "use_sliding_window": false,
        "vocab_size": 151936
    })
}

fn parse(value: &Value) -> Result<Config, ConfigError> {
    Config::parse(&value.to_string(), Path::new("dir/config.json"))
}

/// qwen3() with one key set; `~` as value removes the key.
fn with(key: &str, value: Value) -> Result<Config, ConfigError> {
    let mut config = qwen3();
    match value.as_str() {
        Some("~") => drop(config.as_object_mut().unwrap().remove(key)),
        _ => config[key] = value,
    }
    parse(&config)
}

#[track_caller]
fn message(result: Result<Config, ConfigError>, parts: &[&str]) -> ConfigError {
    let error = result.expect_err("should be refused");
    let text = error.to_string();
    for part in parts.iter().chain(&["dir/config.json"]) {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    error
}

#[test]
fn qwen3_0_6b_has_the_published_size() {
    let config = parse(&qwen3()).unwrap();
    assert_eq!(config.family, Family::Qwen3);
    assert_eq!((config.query_width(), config.key_value_width()), (2048, 1024));
    assert_eq!(config.parameter_count(), 596_049_920);
    assert_eq!(config.non_embedding_parameter_count(), 440_467_456);
    assert_eq!(config.eos_token_ids, [151645]);
    assert_eq!(config.dtype, Some(FloatType::Bf16));
    // One table, one norm, 11 tensors a layer.
    assert_eq!(config.expected_tensors().count(), 2 + 11 * 28);
    let sum: u64 =
        config.expected_tensors().map(|t| t.shape.iter().product::<usize>() as u64).sum();
    assert_eq!(sum, config.parameter_count());
}

#[test]
fn an_untied_head_is_expected_and_counted() {
    let config = with("tie_word_embeddings", false.into()).unwrap();
    assert_eq!(config.expected_tensors().last().unwrap(), config.head());
    assert_eq!(config.parameter_count(), 596_049_920 + 151_936 * 1024);
    assert_eq!(config.non_embedding_parameter_count(), 440_467_456);
}

#[test]
fn qwen2_has_biases_and_llama_has_neither() {
    let mut value = qwen3();
    value["model_type"] = "qwen2".into();
    let names: Vec<_> = parse(&value).unwrap().expected_tensors().map(|t| t.name).collect();
    assert!(names.contains(&"model.layers.27.self_attn.v_proj.bias".to_owned()));
    assert!(!names.iter().any(|name| name.contains("o_proj.bias") || name.contains("q_norm")));
    value["model_type"] = "llama".into();
    let names: Vec<_> = parse(&value).unwrap().expected_tensors().map(|t| t.name).collect();
    assert!(!names.iter().any(|name| name.contains("bias") || name.contains("q_norm")));
}

#[test]
fn absent_keys_take_the_defaults_of_the_family() {
    let minimal = |model_type: &str| {
        serde_json::json!({"model_type": model_type, "hidden_size": 256, "num_hidden_layers": 1,
            "num_attention_heads": 4, "intermediate_size": 512, "vocab_size": 10})
    };
    let qwen3 = parse(&minimal("qwen3")).unwrap();
    assert_eq!((qwen3.head_dim, qwen3.num_key_value_heads), (128, 4));
    assert_eq!((qwen3.rope_theta, qwen3.rms_norm_eps), (10_000.0, 1e-6));
    assert!(!qwen3.tie_word_embeddings && qwen3.eos_token_ids.is_empty());
    assert_eq!(qwen3.max_position_embeddings, 32768);
    let llama = parse(&minimal("llama")).unwrap();
    assert_eq!((llama.head_dim, llama.max_position_embeddings), (64, 2048));
}

#[test]
fn the_newer_spelling_of_rope_is_the_same_config() {
    let old = parse(&qwen3()).unwrap();
    let mut value = qwen3();
    let object = value.as_object_mut().unwrap();
    for key in ["rope_theta", "rope_scaling", "torch_dtype"] {
        object.remove(key);
    }
    value["rope_parameters"] = serde_json::json!({"rope_theta": 1000000, "rope_type": "default"});
    value["dtype"] = "bfloat16".into();
    value["layer_types"] = vec!["full_attention"; 28].into();
    assert_eq!(parse(&value).unwrap(), old);
    value["rope_theta"] = 1e6.into();
    assert_eq!(parse(&value).unwrap(), old);
    value["rope_theta"] = 10000.into();
    message(
        parse(&value),
        &["rope_theta 10000 ", "rope_parameters.rope_theta 1000000", "disagree"],
    );
}

#[test]
fn a_type_of_rope_that_is_not_computed_is_refused_by_name() {
    let rope = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let cases: Vec<(&str, &[&str])> = vec![
        (r#"{"type": "dynamic", "factor": 2.0}"#, &["type", "dynamic", "delete it"]),
        (
            r#"{"rope_type": "dynamic", "factor": 2.0}"#,
            &["rope_type", "dynamic", "up to that length"],
        ),
        (
            r#"{"rope_type": "longrope", "short_factor": [1], "long_factor": [2]}"#,
            &["rope_type", "longrope", "another checkpoint"],
        ),
        (r#"{"type": "su", "short_factor": [1], "long_factor": [2]}"#, &["type", "su", "longrope"]),
        (r#"{"type": "mrope", "mrope_section": [16, 24, 24]}"#, &["type", "mrope", "text alone"]),
        (r#"{"rope_type": "proportional"}"#, &["proportional", "llama3 and yarn are computed"]),
        (r#"{"rope_type": "ntk", "factor": 2}"#, &["ntk", "another checkpoint"]),
        // Without a type nothing would be scaled, whatever else is said.
        (r#"{"type": null, "factor": 8}"#, &["type", "null", "name the one"]),
        (r#"{"rope_type": null, "factor": 8}"#, &["rope_type", "null"]),
        (r#"{"rope_type": null}"#, &["rope_type", "null", "delete the key"]),
        (r#"{"rope_type": null, "type": "yarn", "factor": 4}"#, &["rope_type", "null"]),
        (r#"{"rope_type": 3}"#, &["rope_type", "3"]),
        (r#"{"type": ["yarn"], "factor": 4}"#, &["type", "yarn"]),
        (r#"{"factor": 2.0}"#, &["factor", "2.0", "rope_type"]),
        (r#"{"original_max_position_embeddings": 8192}"#, &["original_max_position_embeddings"]),
        // A key that the type does not have.
        (r#"{"rope_type": "default", "factor": 8}"#, &["factor", "8", "default does not have it"]),
        (r#"{"rope_type": "default", "mrope_section": [1]}"#, &["mrope_section", "default"]),
        (r#"{"rope_type": "linear", "factor": 2, "beta_fast": 3}"#, &["beta_fast", "linear"]),
        (r#"{"rope_type": "yarn", "factor": 4, "attn_factor": 2}"#, &["attn_factor", "yarn"]),
    ];
    for (text, parts) in cases {
        for section in ["rope_scaling", "rope_parameters"] {
            let error = message(with(section, rope(text)), parts);
            assert!(matches!(error, ConfigError::Unsupported { .. }), "{text}: {error:?}");
            assert!(error.to_string().contains(&format!("\"{section}.")), "{error}");
        }
    }
    // A stranger's type is cut and escaped.
    let hostile = format!("\u{1b}[2J{}", "x".repeat(5000));
    for value in [
        serde_json::json!({"type": hostile}),
        serde_json::json!({"type": "yarn", "factor": 2, (hostile.as_str()): 1}),
        serde_json::json!({"type": hostile, "rope_type": "yarn"}),
    ] {
        let text = with("rope_scaling", value).unwrap_err().to_string();
        assert!(text.len() < 600 && !text.contains('\u{1b}'), "{text}");
    }
}

#[test]
fn parameters_of_rope_are_checked() {
    type IsIt = fn(&ConfigError) -> bool;
    let range: IsIt = |error| matches!(error, ConfigError::OutOfRange { .. });
    let missing: IsIt = |error| matches!(error, ConfigError::Missing { .. });
    let wrong: IsIt = |error| matches!(error, ConfigError::WrongType { .. });
    let contradiction: IsIt = |error| matches!(error, ConfigError::Contradiction { .. });
    let llama3 = r#""rope_type": "llama3", "low_freq_factor": 1, "high_freq_factor": 4"#;
    let cases: Vec<(String, IsIt, &[&str])> = vec![
        (r#""type": "linear""#.into(), missing, &["rope_scaling.factor"]),
        (r#""type": "linear", "factor": 0"#.into(), range, &["rope_scaling.factor", "from 1"]),
        (r#""type": "linear", "factor": -8"#.into(), range, &["rope_scaling.factor", "-8"]),
        (r#""type": "linear", "factor": "2""#.into(), wrong, &["rope_scaling.factor"]),
        (r#""type": "yarn""#.into(), missing, &["rope_scaling.factor"]),
        (r#""type": "yarn", "factor": 1e7"#.into(), range, &["rope_scaling.factor"]),
        (r#""type": "yarn", "factor": 1000000"#.into(), range, &["rope_scaling.factor", "52428"]),
        (
            r#""type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 2"#.into(),
            contradiction,
            &["beta_fast 1 is below beta_slow 2"],
        ),
        (
            r#""type": "yarn", "factor": 4, "attention_factor": -1"#.into(),
            range,
            &["attention_factor"],
        ),
        (r#""type": "yarn", "factor": 4, "truncate": 0"#.into(), wrong, &["rope_scaling.truncate"]),
        (
            r#""type": "yarn", "factor": 4, "original_max_position_embeddings": 0"#.into(),
            range,
            &["original_max"],
        ),
        (
            r#""type": "yarn", "factor": null, "original_max_position_embeddings": 80000"#.into(),
            range,
            &["factor"],
        ),
        (
            r#""type": "yarn", "factor": 4, "rope_theta": 3"#.into(),
            contradiction,
            &["rope_theta 1000000", "rope_scaling.rope_theta 3"],
        ),
        (
            r#""type": "yarn", "rope_type": "linear", "factor": 4"#.into(),
            contradiction,
            &["linear", "yarn"],
        ),
        (llama3.into(), missing, &["rope_scaling.factor"]),
        (
            r#""type": "llama3", "factor": 8, "low_freq_factor": 1"#.into(),
            missing,
            &["high_freq_factor"],
        ),
        (format!(r#"{llama3}, "factor": 0.5"#), range, &["rope_scaling.factor", "0.5"]),
        (
            llama3.replace('4', "1") + r#", "factor": 8"#,
            contradiction,
            &["low_freq_factor 1", "high_freq_factor 1"],
        ),
    ];
    for (text, is_it, parts) in cases {
        let error = message(
            with("rope_scaling", serde_json::from_str(&format!("{{{text}}}")).unwrap()),
            parts,
        );
        assert!(is_it(&error), "{text}: {error:?}");
    }
    let mut value = qwen3();
    value["rope_scaling"] = serde_json::json!({"type": "yarn", "factor": 4});
    value["rope_theta"] = 1.0.into();
    message(parse(&value), &["rope_theta", "above 1"]);
    // Both spellings at once: the same, or neither.
    let mut value = qwen3();
    value["rope_scaling"] = serde_json::json!({"type": "yarn", "factor": 4});
    value["rope_parameters"] =
        serde_json::json!({"rope_type": "yarn", "factor": 4, "rope_theta": 1e6});
    assert!(matches!(parse(&value).unwrap().rope_scaling, RopeScaling::Yarn { .. }));
    value["rope_parameters"] = serde_json::json!({"rope_type": "default", "rope_theta": 1e6});
    message(parse(&value), &["rope_scaling and rope_parameters disagree", "keep the one"]);
}

#[test]
fn yarn_extends_the_positions_that_a_prompt_may_use() {
    let positions = |scaling: Value| with("rope_scaling", scaling).unwrap().max_position_embeddings;
    let yarn = |factor: f64, original: usize| serde_json::json!({"type": "yarn", "factor": factor, "original_max_position_embeddings": original});
    assert_eq!(positions(Value::Null), 40960);
    assert_eq!(positions(yarn(4.0, 32768)), 131072);
    assert_eq!(positions(yarn(1.5, 32769)), 49153);
    assert_eq!(positions(yarn(1.0, 32768)), 40960);
    assert_eq!(positions(serde_json::json!({"type": "yarn", "factor": 2})), 81920);
    assert_eq!(positions(serde_json::json!({"type": "linear", "factor": 2})), 40960);
}

#[test]
fn windows_slide_where_transformers_lets_them() {
    let sliding = |keys: Value| {
        let mut value = qwen3();
        for (key, of_key) in keys.as_object().unwrap() {
            match of_key.as_str() {
                Some("~") => drop(value.as_object_mut().unwrap().remove(key)),
                _ => value[key] = of_key.clone(),
            }
        }
        parse(&value)
    };
    let full = vec!["full_attention"; 28];
    let mut mixed = full.clone();
    mixed[20] = "sliding_attention";
    // 28 layers, 40960 positions.
    for none_slides in [
        serde_json::json!({"sliding_window": 4096}),
        serde_json::json!({"sliding_window": 4096, "use_sliding_window": null}),
        serde_json::json!({"use_sliding_window": true}),
        serde_json::json!({"use_sliding_window": true, "sliding_window": 4096}),
        serde_json::json!({"use_sliding_window": true, "sliding_window": "~", "max_window_layers": "~"}),
        serde_json::json!({"use_sliding_window": true, "sliding_window": 4096, "max_window_layers": 70}),
        serde_json::json!({"use_sliding_window": true, "sliding_window": null, "max_window_layers": 0}),
        serde_json::json!({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": 0, "layer_types": full}),
        serde_json::json!({"use_sliding_window": true, "sliding_window": 40960, "max_window_layers": 0}),
        serde_json::json!({"use_sliding_window": true, "sliding_window": 131072, "max_window_layers": 21}),
        serde_json::json!({"use_sliding_window": true, "sliding_window": 40960, "layer_types": mixed}),
    ] {
        let config = sliding(none_slides.clone()).unwrap_or_else(|e| panic!("{none_slides}: {e}"));
        assert_eq!(config, parse(&qwen3()).unwrap(), "{none_slides}");
    }
    let cases: Vec<(Value, &[&str])> = vec![
        (
            serde_json::json!({"use_sliding_window": true, "sliding_window": 40959, "max_window_layers": 27}),
            &["use_sliding_window", "40959", "max_position_embeddings to 40959"],
        ),
        (
            serde_json::json!({"use_sliding_window": true, "sliding_window": "~", "max_window_layers": 0}),
            &["use_sliding_window", "sliding_window is 4096"],
        ),
        (
            serde_json::json!({"use_sliding_window": true, "sliding_window": 512, "layer_types": mixed}),
            &["layer_types", "sliding_attention", "512"],
        ),
        (serde_json::json!({"layer_types": mixed}), &["layer_types", "sliding_attention"]),
        // YaRN's positions count, not those before it.
        (
            serde_json::json!({"use_sliding_window": true, "sliding_window": 40960, "max_window_layers": 0,
                "rope_scaling": {"type": "yarn", "factor": 4}}),
            &["use_sliding_window", "40960"],
        ),
    ];
    for (keys, parts) in cases {
        let error = message(sliding(keys), parts);
        assert!(matches!(error, ConfigError::Unsupported { .. }), "{error:?}");
    }
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let nested = serde_json::json!({"full_attention": {"rope_type": "default"}});
    let partial = serde_json::json!({"rope_type": "default", "partial_rotary_factor": 0.5});
    let mut sliding = vec!["full_attention"; 28];
    sliding[3] = "sliding_attention";
    let mut other = vec!["full_attention"; 28];
    other[27] = "linear_attention";
    let cases: Vec<(&str, Value, &[&str])> = vec![
        ("rope_parameters", nested, &["rope_parameters", "all layers"]),
        ("rope_parameters", partial, &["rope_parameters.partial_rotary_factor", "0.5"]),
        ("partial_rotary_factor", 0.25.into(), &["partial_rotary_factor", "0.25"]),
        ("layer_types", sliding.into(), &["layer_types", "sliding_attention"]),
        ("layer_types", other.into(), &["layer_types", "linear_attention"]),
        ("hidden_act", "gelu".into(), &["hidden_act", "gelu", "silu"]),
        ("attention_bias", true.into(), &["attention_bias"]),
        ("mlp_bias", true.into(), &["mlp_bias"]),
        ("torch_dtype", "float64".into(), &["torch_dtype", "float64"]),
        (
            "architectures",
            serde_json::json!(["Qwen3ForSequenceClassification"]),
            &["architectures", "Classification"],
        ),
    ];
    for (key, value, parts) in cases {
        let error = message(with(key, value), parts);
        assert!(matches!(error, ConfigError::Unsupported { .. }), "{key}: {error:?}");
    }
}

#[test]
fn quantized_checkpoints_name_their_maker() {
    let cases: Vec<(&str, &str, &str)> = vec![
        (
            "quantization_config",
            r#"{"quant_method": "gptq", "bits": 4, "group_size": 128}"#,
            "GPTQ",
        ),
        ("quantization_config", r#"{"quant_method": "awq", "bits": 4}"#, "AWQ"),
        ("quantization_config", r#"{"quant_method": "AWQ"}"#, "AWQ"),
        (
            "quantization_config",
            r#"{"quant_method": "bitsandbytes", "load_in_4bit": true}"#,
            "bitsandbytes",
        ),
        ("quantization_config", r#"{"load_in_4bit": true}"#, "bitsandbytes, 4 bit"),
        ("quantization_config", r#"{"load_in_8bit": true}"#, "bitsandbytes, 8 bit"),
        (
            "quantization_config",
            r#"{"quant_method": "fp8", "weight_block_size": [128, 128]}"#,
            "fp8",
        ),
        ("quantization_config", r#"{"quant_method": "fbgemm_fp8"}"#, "FBGEMM"),
        ("quantization_config", r#"{"quant_method": "compressed-tensors"}"#, "compressed-tensors"),
        ("compression_config", r#"{"format": "int-quantized"}"#, "compressed-tensors"),
        ("quantization_config", r#"{"quant_method": "hqq"}"#, "HQQ"),
        ("quantization_config", r#"{"quant_method": "eetq"}"#, "EETQ"),
        ("quantization_config", r#"{"quant_method": "aqlm"}"#, "AQLM"),
        ("quantization_config", r#"{"quant_method": "quanto"}"#, "Quanto"),
        (
            "quantization_config",
            r#"{"quant_type": "torchao", "quant_method": "torchao"}"#,
            "torchao",
        ),
        ("quantization_config", r#"{"quant_method": "exl2"}"#, "ExLlamaV2"),
        ("quantization_config", r#"{"quant_method": "mxfp4"}"#, "MXFP4"),
        ("quantization_config", r#"{"quant_method": "bitnet"}"#, "BitNet"),
        (
            "quantization_config",
            r#"{"quant_algo": "NVFP4", "producer": {"name": "modelopt"}}"#,
            "ModelOpt",
        ),
        ("quantization", r#"{"group_size": 64, "bits": 4}"#, "MLX"),
        ("quantization_config", r#"{"group_size": 64, "bits": 4, "mode": "affine"}"#, "MLX"),
        ("quantization_config", r#"{"quant_method": "newest"}"#, "newest"),
        ("quantization_config", r#"{}"#, "does not name"),
        ("quantization_config", r#""int4""#, "does not name"),
    ];
    for (key, text, maker) in cases {
        let value = serde_json::from_str(text).unwrap();
        let error =
            message(with(key, value), &[&format!("{key:?}"), maker, "fetch the checkpoint"]);
        assert!(matches!(error, ConfigError::Quantized { .. }), "{text}: {error:?}");
    }
    for key in ["quantization_config", "quantization"] {
        assert!(with(key, Value::Null).is_ok());
    }
}

#[test]
fn an_unknown_model_type_names_the_supported_ones() {
    let error =
        message(with("model_type", "gemma3".into()), &["gemma3", "qwen3", "qwen2", "llama"]);
    assert!(matches!(error, ConfigError::UnsupportedModel { .. }));
    // A hostile name is escaped and cut.
    let error = with("model_type", format!("\u{1b}[2J{}", "x".repeat(5000)).into()).unwrap_err();
    assert!(error.to_string().len() < 300 && !error.to_string().contains('\u{1b}'));
}

#[test]
fn absent_required_keys_are_named() {
    for key in [
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
    ] {
        let error = message(with(key, "~".into()), &[key, "missing"]);
        assert!(matches!(error, ConfigError::Missing { .. }), "{error:?}");
    }
}

#[test]
fn numbers_out_of_range_are_named() {
    let cases: Vec<(&str, Value)> = vec![
        ("hidden_size", 0.into()),
        ("hidden_size", (-5).into()),
        ("hidden_size", 1024.5.into()),
        ("hidden_size", u64::MAX.into()),
        ("num_hidden_layers", 0.into()),
        ("num_hidden_layers", 1_000_000_000.into()),
        ("num_attention_heads", 0.into()),
        ("num_key_value_heads", 0.into()),
        ("vocab_size", (1u64 << 40).into()),
        ("intermediate_size", 0.into()),
        ("head_dim", 33.into()),
        ("head_dim", 4096.into()),
        ("rms_norm_eps", 0.into()),
        ("rms_norm_eps", (-1e-6).into()),
        ("rope_theta", 0.into()),
        ("rope_theta", (-1).into()),
    ];
    for (key, value) in cases {
        let got = value.to_string();
        let error = message(with(key, value), &[key, &got]);
        assert!(matches!(error, ConfigError::OutOfRange { .. }), "{error:?}");
    }
}

#[test]
fn wrong_json_types_are_named() {
    let cases: Vec<(&str, Value, &str)> = vec![
        ("hidden_size", "1024".into(), "whole number"),
        ("tie_word_embeddings", "yes".into(), "true or false"),
        ("rope_scaling", "default".into(), "object"),
        ("model_type", 3.into(), "string"),
        ("rope_theta", "1e6".into(), "number"),
        ("layer_types", "full_attention".into(), "list"),
        ("eos_token_id", "<|im_end|>".into(), "token id"),
        ("eos_token_id", serde_json::json!([1, -2]), "token id"),
        ("eos_token_id", (1u64 << 32).into(), "token id"),
    ];
    for (key, value, expected) in cases {
        let error = message(with(key, value), &[key, expected]);
        assert!(matches!(error, ConfigError::WrongType { .. }), "{error:?}");
    }
}

#[test]
fn contradictions_are_refused() {
    let contradiction = |result, parts: &[&str]| {
        let error = message(result, parts);
        assert!(matches!(error, ConfigError::Contradiction { .. }), "{error:?}");
    };
    contradiction(with("num_key_value_heads", 3.into()), &["16", "num_key_value_heads 3"]);
    contradiction(with("num_key_value_heads", 32.into()), &["num_key_value_heads 32"]);
    contradiction(with("layer_types", serde_json::json!(["full_attention"])), &["1 entries", "28"]);
    let mut value = qwen3();
    value["model_type"] = "llama".into();
    value["hidden_size"] = 1000.into();
    value["head_dim"] = Value::Null;
    contradiction(parse(&value), &["head_dim", "1000", "16"]);
}

#[test]
fn what_is_no_object_or_no_json_is_refused() {
    let path = PathBuf::from("dir/config.json");
    let deep = "[".repeat(100_000);
    for text in ["", "{", "{\"model_type\": NaN}", "{} {}", &deep] {
        let error = message(Config::parse(text, &path), &["JSON"]);
        assert!(matches!(error, ConfigError::File(FileError::Json { .. })), "{error:?}");
    }
    let error = message(Config::parse("[1]", &path), &["object"]);
    assert!(matches!(error, ConfigError::NotAnObject { .. }));
}

#[test]
fn a_config_over_one_mebibyte_is_refused_unread() {
    let directory = tempfile::tempdir().unwrap();
    let error = Config::load(directory.path()).unwrap_err();
    assert!(matches!(error, ConfigError::File(FileError::NotFound { .. })));
    let file = std::fs::File::create(directory.path().join("config.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    let error = Config::load(directory.path()).unwrap_err();
    assert!(matches!(error, ConfigError::File(FileError::TooLarge { .. })), "{error:?}");
}

#[test]
fn mutated_configs_never_panic() {
    let text = qwen3().to_string().into_bytes();
    crate::fuzz::mutations(&text, |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes)
            && let Ok(config) = Config::parse(text, Path::new("config.json"))
        {
            assert!(config.num_attention_heads % config.num_key_value_heads == 0);
            assert!(config.parameter_count() > 0);
        }
    });
}
