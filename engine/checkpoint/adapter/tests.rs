//! Sound adapters in every spelling, and hostile ones: each asserts the variant and that the message names what is wrong.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::shared::shared;

pub(super) fn config() -> Config {
    let value = json!({"model_type": "qwen3", "hidden_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6,
        "intermediate_size": 10, "vocab_size": 16});
    Config::parse(&value.to_string(), Path::new("config.json")).unwrap()
}

pub(super) fn plain() -> Value {
    json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "lora_dropout": 0.1,
        "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "Qwen/Qwen3-0.6B", "rank_pattern": {}, "use_dora": false,
        "modules_to_save": null, "megatron_core": "megatron.core", "qalora_group_size": 16})
}

pub(super) type Factors = Vec<(String, Vec<usize>, Dtype, Vec<u8>)>;

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

pub(super) fn two() -> Factors {
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

pub(super) fn load(adapter_config: &Value, factors: &Factors) -> Result<Adapter, AdapterError> {
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
    assert_eq!((adapter.rank, adapter.alpha, adapter.dropout), (4, 8.0, 0.1));
    assert_eq!(adapter.base_model.as_deref(), Some("Qwen/Qwen3-0.6B"));
    let query = adapter.factors(1, Projection::Query).unwrap();
    assert_eq!((query.a.len(), query.b.len()), (4 * 8, 12 * 4));
    assert_eq!((query.rank, query.scale), (4, 2.0));
    assert!(query.a.iter().all(|&a| a == 1.0) && query.b.iter().all(|&b| b == 2.0));
    assert!(adapter.factors(0, Projection::Key).is_none());
    assert_eq!(adapter.parameter_count(), 2 * ((32 + 48) + (40 + 32)));
    let stabilized = load(&with("use_rslora", true.into()), &two()).unwrap();
    assert_eq!(stabilized.factors(0, Projection::Down).unwrap().scale, 4.0);
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
    // Absent, it is PEFT's choice for these families.
    load(&with("target_modules", Value::Null), &factors(&[Projection::Query, Projection::Value]))
        .unwrap();
    // What PEFT's matching does with these was asked of PEFT 0.21.2.
    let attention = [Projection::Query, Projection::Key, Projection::Value, Projection::Output];
    for (pattern, projections) in [
        ("All-Linear", &Projection::ALL[..]),
        (
            r"^(?!.*vision).*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$",
            &Projection::ALL,
        ),
        (r".*(?<=self_attn)\.[qkvo]_proj", &attention),
        (r"(?:.*\.)?(?P<p>q|down)_proj\Z", &[Projection::Query, Projection::Down]),
        (r"(?i).*\.(Q|DOWN)_PROJ", &[Projection::Query, Projection::Down]),
        (r"model.layers.(0|1).(self_attn.q|mlp.down)_proj", &[Projection::Query, Projection::Down]),
        (
            r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp)\.(?:(?:down|up)_proj))",
            &[Projection::Down, Projection::Up],
        ),
        (
            r".*\.(?!up)[a-z]+_proj(?<!k_proj)(?<!gate_proj)",
            &[Projection::Query, Projection::Value, Projection::Output, Projection::Down],
        ),
    ] {
        let loaded = load(&with("target_modules", pattern.into()), &factors(projections));
        loaded.unwrap_or_else(|error| panic!("{pattern}: {error}"));
    }
    // An excluding string is always an expression: "all-linear" is the name of nothing.
    for exclude in ["", "all-linear", "(?=x).*", r".*\.v_proj"] {
        let mut config = plain();
        config["exclude_modules"] = exclude.into();
        load(&config, &two()).unwrap_or_else(|error| panic!("{exclude}: {error}"));
    }
}

#[test]
fn layers_are_chosen_as_peft_chooses_them() {
    let mut first = two();
    first.retain(|(name, ..)| name.contains("layers.0."));
    for layers in [json!(0), json!([0]), json!([0, 7])] {
        load(&with("layers_to_transform", layers), &first).unwrap();
    }
    for none in [json!([]), Value::Null] {
        load(&with("layers_to_transform", none.clone()), &two()).unwrap();
        refused(load(&with("layers_to_transform", none), &first), &["layers.1.self_attn.q_proj"]);
    }
    let pattern = |pattern: Value| {
        let mut config = with("layers_to_transform", json!([0]));
        config["layers_pattern"] = pattern;
        config
    };
    for names in [
        json!("layers"),
        json!(["h", "layers"]),
        json!("layer[s]"),
        json!("model.layers"),
        json!([]),
        json!(""),
    ] {
        load(&pattern(names.clone()), &first).unwrap_or_else(|error| panic!("{names}: {error}"));
    }
    // Where no number follows the name, nothing is named.
    refused(load(&pattern(json!("blocks")), &first), &["model.layers.0", "does not name"]);
    refused(
        load(&with("layers_pattern", json!("layers")), &two()),
        &["layers_pattern", "layers_to_transform"],
    );
    let mut config = with("target_modules", ".*proj".into());
    config["layers_to_transform"] = json!([0]);
    refused(load(&config, &two()), &["layers_to_transform", "list of target_modules"]);
    refused(
        load(&with("layers_to_transform", json!([-1])), &two()),
        &["layers_to_transform", "[-1]"],
    );
}

/// Factors of both layers with one rank per matrix.
fn of_ranks(ranks: [(Projection, usize); 2], both: usize) -> Factors {
    let mut all = Vec::new();
    for layer in 0..2 {
        for (projection, rank) in ranks {
            let rank = if layer == 0 { rank } else { both };
            let [outputs, inputs] = projection.shape(&config());
            for (is_a, shape) in [(true, [rank, inputs]), (false, [outputs, rank])] {
                let data = 1f32.to_le_bytes().repeat(shape[0] * shape[1]);
                let key = peft_key(layer, projection, is_a, "weight");
                all.push((key, shape.to_vec(), Dtype::F32, data));
            }
        }
    }
    all
}

#[test]
fn patterns_give_each_matrix_its_rank_and_alpha() {
    let text = |ranks: &str, alphas: &str| {
        let plain = plain()
            .to_string()
            .replace(r#""rank_pattern":{}"#, &format!(r#""rank_pattern":{ranks}"#));
        plain.replacen('{', &format!(r#"{{"alpha_pattern":{alphas},"#), 1)
    };
    let load = |ranks: &str, alphas: &str, factors: &Factors| {
        Adapter::load(write(&text(ranks, alphas), factors).path(), &config())
    };
    let (query, down) = (Projection::Query, Projection::Down);
    let of = |adapter: &Adapter, layer, projection| {
        let factors = adapter.factors(layer, projection).unwrap();
        (factors.rank, factors.scale)
    };
    // Alone the name, its end, an expression; what matches nothing; the first that matches, in the file's order.
    let uneven = of_ranks([(query, 2), (down, 3)], 4);
    let adapter = load(
        r#"{"model.layers.0.self_attn.q_proj": 2, "0.mlp.down_proj": 3, "lm_head": 9, "(k|v)_proj": 1}"#,
        r#"{"z_proj": 1, "layers\\.1\\..*": 6, ".*": 12, "q_proj": 99}"#,
        &uneven,
    )
    .unwrap();
    assert_eq!(
        [(0, query), (0, down), (1, query), (1, down)].map(|(l, p)| of(&adapter, l, p)),
        [(2, 6.0), (3, 4.0), (4, 1.5), (4, 1.5)]
    );
    assert_eq!(adapter.rank, 4);
    let turned = load(
        r#"{"down_proj": 4, "q_proj": 4, "0.self_attn.q_proj": 2, "0.mlp.down_proj": 3}"#,
        "{}",
        &uneven,
    );
    refused(turned, &["layers.0", "[4, ", "should have shape"]);
    // A name in the middle, or the end of a word, is no match.
    for no_match in ["self_attn", "proj", "layers.0", "^q_proj"] {
        refused(load(&format!(r#"{{"{no_match}": 2}}"#), "{}", &uneven), &["should have shape"]);
    }
    // Of equal keys the last counts, at the first one's place.
    let repeated = r#"{"q_proj": 7, "0.mlp.down_proj": 3, "q_proj": 4, "(0.mlp.down|up)_proj": 5}"#;
    let mut plain_query = uneven.clone();
    plain_query.retain(|(name, ..)| !name.contains("layers.0.self_attn"));
    plain_query.extend(two().into_iter().filter(|(name, ..)| name.contains("layers.0.self_attn")));
    assert_eq!(of(&load(repeated, "{}", &plain_query).unwrap(), 0, down), (3, 8.0 / 3.0));
    // The square root of each matrix's own rank.
    let stabilized =
        text(r#"{"0.*": 1}"#, r#"{"0.*": 3}"#).replacen('{', r#"{"use_rslora":true,"#, 1);
    let ones = of_ranks([(query, 1), (down, 1)], 4);
    let adapter = Adapter::load(write(&stabilized, &ones).path(), &config()).unwrap();
    assert_eq!([of(&adapter, 0, down), of(&adapter, 1, down)], [(1, 3.0), (4, 4.0)]);
    // Neither null nor an empty object changes anything.
    load("null", "null", &two()).unwrap();
}

#[test]
fn patterns_that_cannot_be_are_named() {
    for (key, value, part) in [
        ("rank_pattern", json!({"q_proj": 0}), "q_proj"),
        ("rank_pattern", json!({"q_proj": 1u64 << 40}), "1099511627776"),
        ("rank_pattern", json!({"q_proj": 2.5}), "2.5"),
        ("rank_pattern", json!({"q_proj": "4"}), "q_proj"),
        ("rank_pattern", json!([4]), "object"),
        ("rank_pattern", json!({"(": 4}), "("),
        ("rank_pattern", json!({"\u{1b}[31m": 0}), "u{1b}"),
        ("alpha_pattern", json!({"q_proj": -1}), "-1"),
        ("alpha_pattern", json!({"q_proj": null}), "null"),
        ("alpha_pattern", json!(3), "object"),
        ("alpha_pattern", json!({"*": 4}), "*"),
        ("target_modules", json!("("), "("),
        ("target_modules", json!(r"(.*)(.*)(.*)(.*)(.*)(.*)\1\2\3\4\5\6x"), "100000 steps"),
    ] {
        let error = refused(load(&with(key, value), &two()), &[key, part, "adapter_config.json"]);
        assert!(matches!(error, AdapterError::Config(_)), "{error:?}");
        assert!(!error.to_string().contains('\u{1b}'), "{error}");
    }
    let many: serde_json::Map<String, Value> =
        (0..10_001).map(|number| (format!("m{number}"), json!(1))).collect();
    refused(load(&with("rank_pattern", many.into()), &two()), &["rank_pattern", "10001 patterns"]);
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
    targets(
        load(&with("target_modules", "(?!lm_head).*".into()), &two()),
        &["k_proj", "no factors"],
    );
    refused(load(&with("target_modules", 3.into()), &two()), &["target_modules", "list"]);
}

#[test]
fn options_that_change_the_formula_are_refused_by_name() {
    let cases = [
        ("use_dora", json!(true)),
        ("use_qalora", json!(true)),
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
        ("velora_config", json!({"a": 1})),
        ("use_bdlora", json!({"a": 1})),
        ("kasa_config", json!({"a": 1})),
        ("arrow_config", json!({"a": 1})),
        ("monteclora_config", json!({"a": 1})),
        ("peft_type", json!("IA3")),
    ];
    for (key, value) in cases {
        let got = value.to_string();
        let error = refused(load(&with(key, value), &two()), &[key, &got, "adapter_config.json"]);
        assert!(
            matches!(error, AdapterError::Config(ConfigError::Unsupported { .. })),
            "{error:?}"
        );
        let way_on = match key {
            "peft_type" => "LORA",
            "init_lora_weights" => "path_initial_model_for_weight_conversion",
            _ => "merge_and_unload",
        };
        assert!(error.to_string().contains(way_on), "{error}");
    }
}

#[test]
fn absent_and_unsound_numbers_are_named() {
    for key in ["peft_type", "r", "lora_alpha"] {
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
fn whole_matrices_beside_the_factors_are_named_with_the_way_out() {
    for key in
        ["model.embed_tokens.weight", "lm_head.weight", "lm_head.modules_to_save.lm_head.weight"]
    {
        let mut factors = two();
        let key = format!("base_model.model.{key}");
        factors.push((key.clone(), vec![1], Dtype::F32, vec![0; 4]));
        refused(
            load(&plain(), &factors),
            &[&key, "save_embedding_layers=False", "merge_and_unload"],
        );
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
