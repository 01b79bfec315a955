//! Sound adapters in every spelling, and hostile ones: each asserts the variant and that the message names what is wrong.

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::shared::shared;

fn config() -> Config {
    let value = json!({"model_type": "qwen3", "hidden_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6,
        "intermediate_size": 10, "vocab_size": 16});
    Config::parse(&value.to_string(), Path::new("config.json")).unwrap()
}

fn plain() -> Value {
    json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "lora_dropout": 0.1,
        "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "Qwen/Qwen3-0.6B", "rank_pattern": {}, "use_dora": false,
        "modules_to_save": null, "megatron_core": "megatron.core", "qalora_group_size": 16})
}

type Factors = Vec<(String, Vec<usize>, Dtype, Vec<u8>)>;

/// Factors of r = 4 for these projections of both layers; A is 1, B is 2.
fn factors(projections: &[Projection]) -> Factors {
    let mut factors = Vec::new();
    for layer in 0..2 {
        for &projection in projections {
            let [outputs, inputs] = projection.shape(&config());
            for (name, shape, value) in
                [("lora_A", [4, inputs], 1.0f32), ("lora_B", [outputs, 4], 2.0)]
            {
                let key = format!(
                    "base_model.model.model.layers.{layer}.{}.{name}.weight",
                    projection.module()
                );
                let data = value.to_le_bytes().repeat(shape[0] * shape[1]);
                factors.push((key, shape.to_vec(), Dtype::F32, data));
            }
        }
    }
    factors
}

fn two() -> Factors {
    factors(&[Projection::Query, Projection::Down])
}

fn write(adapter_config: &str, factors: &Factors) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("adapter_config.json"), adapter_config).unwrap();
    let views = factors.iter().map(|(name, shape, dtype, data)| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(directory.path().join("adapter_model.safetensors"), bytes).unwrap();
    directory
}

fn load(adapter_config: &Value, factors: &Factors) -> Result<Adapter, AdapterError> {
    let directory = write(&adapter_config.to_string(), factors);
    Adapter::load(directory.path(), &config())
}

fn with(key: &str, value: Value) -> Value {
    let mut adapter_config = plain();
    adapter_config[key] = value;
    adapter_config
}

#[track_caller]
fn refused(result: Result<Adapter, AdapterError>, parts: &[&str]) -> AdapterError {
    let error = result.expect_err("should be refused");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    error
}

#[test]
fn factors_are_read_with_their_scale() {
    let adapter = load(&plain(), &two()).unwrap();
    assert_eq!((adapter.rank, adapter.scale(), adapter.dropout), (4, 2.0, 0.1));
    assert_eq!(adapter.base_model.as_deref(), Some("Qwen/Qwen3-0.6B"));
    let query = adapter.factors(1, Projection::Query).unwrap();
    assert_eq!((query.a.len(), query.b.len()), (4 * 8, 12 * 4));
    assert!(query.a.iter().all(|&a| a == 1.0) && query.b.iter().all(|&b| b == 2.0));
    assert!(adapter.factors(0, Projection::Key).is_none());
    assert_eq!(adapter.parameter_count(), 2 * ((32 + 48) + (40 + 32)));
    let stabilized = load(&with("use_rslora", true.into()), &two()).unwrap();
    assert_eq!(stabilized.scale(), 4.0);
}

#[test]
fn half_precision_and_the_older_spelling_are_read() {
    let mut old = two();
    for (name, _, dtype, data) in &mut old {
        *name = name.replace(".weight", ".default.weight");
        *dtype = Dtype::BF16;
        *data = data.chunks(4).flat_map(|four| [four[2], four[3]]).collect();
    }
    let adapter = load(&plain(), &old).unwrap();
    assert_eq!(adapter, load(&plain(), &two()).unwrap());
    // Both spellings at once contradict each other.
    old.extend(two());
    let error = refused(load(&plain(), &old), &["lora_A", "another spelling"]);
    assert!(matches!(error, AdapterError::UnknownKey { .. }), "{error:?}");
}

#[test]
fn target_modules_in_every_form() {
    let all = factors(&Projection::ALL);
    load(&with("target_modules", "all-linear".into()), &all).unwrap();
    load(&with("target_modules", ".*proj".into()), &all).unwrap();
    load(
        &with("target_modules", r"model\.layers\.\d+\.(self_attn\.q_proj|mlp\.down_proj)".into()),
        &two(),
    )
    .unwrap();
    load(&with("target_modules", json!(["mlp.down_proj", "self_attn.q_proj"])), &two()).unwrap();
    let mut excluded = with("target_modules", json!(["q_proj", "v_proj", "down_proj"]));
    excluded["exclude_modules"] = json!(["v_proj"]);
    load(&excluded, &two()).unwrap();
    let mut first = two();
    first.retain(|(name, ..)| name.contains("layers.0."));
    load(&with("layers_to_transform", 0.into()), &first).unwrap();
    load(&with("layers_to_transform", json!([0])), &first).unwrap();
}

#[test]
fn keys_that_disagree_with_target_modules_are_refused() {
    let targets = |result, parts: &[&str]| {
        let error = refused(result, parts);
        assert!(matches!(error, AdapterError::Targets { .. }), "{error:?}");
    };
    let mut first = two();
    first.retain(|(name, ..)| name.contains("layers.0."));
    targets(load(&plain(), &first), &["model.layers.1.self_attn.q_proj", "no factors"]);
    targets(
        load(&with("target_modules", json!(["q_proj"])), &two()),
        &["mlp.down_proj", "does not name"],
    );
    targets(
        load(&with("target_modules", json!(["roj"])), &two()),
        &["self_attn.q_proj", "does not name"],
    );
    targets(load(&with("target_modules", "q_proj".into()), &two()), &["does not name"]);
    targets(load(&with("target_modules", "all-linear".into()), &two()), &["k_proj", "no factors"]);
    targets(load(&with("target_modules", json!([])), &Vec::new()), &["no factors"]);
    let error = refused(
        load(&with("target_modules", "(?!lm_head).*".into()), &two()),
        &["target_modules", "look-around"],
    );
    assert!(matches!(error, AdapterError::Config(ConfigError::Unsupported { .. })), "{error:?}");
    refused(load(&with("target_modules", 3.into()), &two()), &["target_modules", "list"]);
}

#[test]
fn options_that_change_the_formula_are_refused_by_name() {
    let cases = [
        ("use_dora", json!(true)),
        ("use_qalora", json!(true)),
        ("rank_pattern", json!({"q_proj": 8})),
        ("alpha_pattern", json!({"q_proj": 8})),
        ("modules_to_save", json!(["lm_head"])),
        ("layer_replication", json!([[0, 4], [2, 5]])),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("trainable_token_indices", json!([1, 2])),
        ("target_parameters", json!(["experts"])),
        ("megatron_config", json!({"a": 1})),
        ("alora_invocation_tokens", json!([1])),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("init_lora_weights", json!("pissa")),
        ("layers_pattern", json!("blocks")),
        ("peft_type", json!("IA3")),
        ("some_option_of_the_future", json!(1)),
    ];
    for (key, value) in cases {
        let got = value.to_string();
        let error = refused(load(&with(key, value), &two()), &[key, &got, "adapter_config.json"]);
        assert!(
            matches!(error, AdapterError::Config(ConfigError::Unsupported { .. })),
            "{error:?}"
        );
    }
}

#[test]
fn absent_and_unsound_numbers_are_named() {
    for key in ["peft_type", "r", "lora_alpha", "target_modules"] {
        let error = refused(load(&with(key, Value::Null), &two()), &[key, "missing"]);
        assert!(matches!(error, AdapterError::Config(ConfigError::Missing { .. })), "{error:?}");
    }
    for (key, value) in [
        ("r", json!(0)),
        ("r", json!(1u64 << 40)),
        ("lora_alpha", json!(-1)),
        ("lora_dropout", json!(1.5)),
    ] {
        let error = refused(load(&with(key, value.clone()), &two()), &[key, &value.to_string()]);
        assert!(matches!(error, AdapterError::Config(ConfigError::OutOfRange { .. })), "{error:?}");
    }
}

#[test]
fn keys_that_are_not_understood_are_named() {
    for key in [
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.-1.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.+1.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "",
    ] {
        let mut factors = two();
        factors.push((key.to_owned(), vec![1], Dtype::F32, vec![0; 4]));
        let error = refused(load(&plain(), &factors), &[&format!("{key:?}"), "not understood"]);
        assert!(matches!(error, AdapterError::UnknownKey { .. }), "{error:?}");
    }
}

#[test]
fn unpaired_misshapen_and_damaged_factors_are_named() {
    let key = "layers.1.mlp.down_proj.lora_B.weight";
    let mut factors = two();
    factors.retain(|(name, ..)| !name.ends_with(key));
    let error = refused(load(&plain(), &factors), &[key, "missing"]);
    assert!(matches!(error, AdapterError::Unpaired { .. }), "{error:?}");

    let mut factors = two();
    let at = factors.iter().position(|(name, ..)| name.ends_with(key)).unwrap();
    factors[at].1 = vec![4, 8];
    let error = refused(load(&plain(), &factors), &[key, "[8, 4]", "[4, 8]", "[out, r]"]);
    assert!(matches!(error, AdapterError::Shape { .. }), "{error:?}");
    let error = refused(load(&with("r", 5.into()), &two()), &["lora_A", "[5, ", "[4, "]);
    assert!(matches!(error, AdapterError::Shape { .. }), "{error:?}");

    let mut factors = two();
    factors[at].2 = Dtype::I32;
    let error = refused(load(&plain(), &factors), &[key, "I32"]);
    assert!(matches!(error, AdapterError::Dtype { .. }), "{error:?}");

    let mut factors = two();
    factors[at].3[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = refused(load(&plain(), &factors), &[key, "NaN", "element 2"]);
    assert!(matches!(error, AdapterError::NotFinite { index: 2, .. }), "{error:?}");
}

#[test]
fn directories_that_hold_no_adapter_say_what_they_hold() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let not_an_adapter = |path: &Path, part: &str| {
        let error = refused(Adapter::load(path, &config()), &[part]);
        assert!(matches!(error, AdapterError::NotAnAdapter { .. }), "{error:?}");
    };
    not_an_adapter(&path.join("none"), "no such directory");
    not_an_adapter(path, "no adapter_config.json");
    std::fs::write(path.join("config.json"), "{}").unwrap();
    not_an_adapter(path, "this is a model");
    std::fs::write(path.join("adapter_config.json"), plain().to_string()).unwrap();
    not_an_adapter(path, "no adapter_model.safetensors");
    std::fs::write(path.join("adapter_model.bin"), "x").unwrap();
    not_an_adapter(path, "pickle");
    std::fs::write(path.join("adapter_model.safetensors"), "x").unwrap();
    let error = refused(Adapter::load(path, &config()), &["adapter_model.safetensors", "cut off"]);
    assert!(matches!(error, AdapterError::Weights(WeightsError::Truncated { .. })), "{error:?}");
    std::fs::write(path.join("adapter_config.json"), "{").unwrap();
    let error = refused(Adapter::load(path, &config()), &["adapter_config.json", "JSON"]);
    assert!(matches!(error, AdapterError::File(FileError::Json { .. })), "{error:?}");
}

#[test]
#[cfg(unix)]
fn a_file_in_place_of_a_directory_says_so() {
    let directory = write(&plain().to_string(), &two());
    let file = directory.path().join("adapter_model.safetensors");
    let error = Adapter::load(&file, &config()).unwrap_err();
    assert!(error.to_string().contains("give the directory"), "{error}");
}

#[test]
fn the_golden_adapters_load() {
    let Some(golden) = shared("golden") else { return };
    let cases = std::fs::read_dir(golden).unwrap();
    let mut loaded = 0;
    for case in cases.map(|case| case.unwrap().path()).filter(|path| path.is_dir()) {
        let (model, adapter) = (case.join("model"), case.join("adapter"));
        if !adapter.is_dir() {
            continue;
        }
        let config = Config::load(&model).unwrap();
        let newer = std::fs::read_to_string(model.join("config.v5.json")).unwrap();
        assert_eq!(Config::parse(&newer, Path::new("config.v5.json")).unwrap(), config);
        Checkpoint::open(&model).unwrap().check(&config).unwrap();
        let adapter = Adapter::load(&adapter, &config).unwrap();
        let expected: usize = Projection::ALL
            .map(|projection| projection.shape(&config).iter().sum::<usize>() * adapter.rank)
            .iter()
            .sum();
        assert_eq!(adapter.parameter_count(), (expected * config.num_hidden_layers) as u64);
        loaded += 1;
    }
    assert!(loaded >= 5, "{loaded}");
}

#[test]
fn mutated_adapters_never_panic() {
    let directory = write(&plain().to_string(), &two());
    let text = plain().to_string();
    let path = directory.path().join("adapter_config.json");
    let mut sound = 0;
    crate::fuzz::mutations(text.as_bytes(), |bytes| {
        std::fs::write(&path, bytes).unwrap();
        sound += usize::from(Adapter::load(directory.path(), &config()).is_ok());
    });
    assert!(sound > 0, "some mutations hit keys that do not matter");
    std::fs::write(&path, text).unwrap();
    let path = directory.path().join("adapter_model.safetensors");
    let sound = std::fs::read(&path).unwrap();
    crate::fuzz::mutations(&sound, |bytes| {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        drop(Adapter::load(directory.path(), &config()));
    });
}
