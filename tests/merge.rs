//! `j1 merge`: its results go through `j1 check` as models of their own, and it can be stopped.

use std::{fs, path::Path};

use engine::checkpoint::{
    adapter::{Adapter, AdapterSettings, Projection},
    config::Config,
};
use serde_json::Value;

use crate::cli::{fails, j1, stdout};

fn golden(case: &str, part: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case).join(part);
    path.display().to_string()
}

/// The dump of a merged model is the dump of base and adapter: hidden states, logits, log-probabilities and greedy tokens.
#[test]
fn merged_models_pass_the_check_of_base_and_adapter() {
    for case in ["qwen3-tied", "qwen3-untied", "qwen2", "llama"] {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        let (model, adapter) = (golden(case, "model"), golden(case, "adapter"));
        let out = path("model").display().to_string();
        let args = ["merge", "--model", &model, "--adapter", &adapter, "--out", &out];
        let said = stdout(&j1(&args));
        assert!(said.contains("matrices changed") && said.contains("in 1 file\n"), "{said}");

        fs::copy(golden(case, "lora.safetensors"), path("base.safetensors")).unwrap();
        let text = fs::read_to_string(golden(case, "case.json")).unwrap();
        let mut info: Value = serde_json::from_str(&text).unwrap();
        info["greedy_base"] = info["greedy_lora"].take();
        fs::write(path("case.json"), info.to_string()).unwrap();
        let table = stdout(&j1(&["check", &scratch.path().display().to_string()]));
        assert!(table.contains("all ") && !table.contains("FAILED"), "{case}: {table}");

        // Never over what is there.
        fails(&args, 1, &["not empty", &out]);
    }
}

#[test]
fn wrong_arguments_are_explained_and_nothing_is_written() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out").display().to_string();
    let (model, adapter) = (golden("qwen2", "model"), golden("qwen2", "adapter"));
    let merge = |model: &str, adapter: &str, says: &[&str]| {
        fails(&["merge", "--model", model, "--adapter", adapter, "--out", &out], 1, says);
    };
    merge("./nothing", &adapter, &["nothing"]);
    merge(&model, "./nothing", &["nothing"]);
    merge(&adapter, &model, &["a LoRA adapter: give it as the adapter"]);
    merge(&model, &golden("llama", "adapter"), &["k_proj", "should have shape"]);
    fails(&["merge", "--model", &model, "--adapter", &adapter], 2, &["--out"]);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

/// A Qwen3 of 120 MB that is all zero, in a file with holes, so that a merge takes a moment.
pub(crate) fn large_model(directory: &Path) {
    let config = r#"{"model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 1, "vocab_size": 64,
        "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 18432,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": true,
        "eos_token_id": 1}"#;
    fs::create_dir(directory).unwrap();
    fs::write(directory.join("config.json"), config).unwrap();
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_string(), vec![64, 1024]),
        ("model.norm.weight".to_string(), vec![1024]),
        (layer("input_layernorm"), vec![1024]),
        (layer("post_attention_layernorm"), vec![1024]),
        (layer("self_attn.q_norm"), vec![128]),
        (layer("self_attn.k_norm"), vec![128]),
    ];
    for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
        tensors.push((layer(&format!("self_attn.{name}")), vec![1024, 1024]));
    }
    for (name, shape) in
        [("gate_proj", [18432, 1024]), ("up_proj", [18432, 1024]), ("down_proj", [1024, 18432])]
    {
        tensors.push((layer(&format!("mlp.{name}")), shape.to_vec()));
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry =
            serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert(name, entry);
    }
    let header = Value::from(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    let path = directory.join("model.safetensors");
    fs::write(&path, &bytes).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len((bytes.len() + end) as u64).unwrap();
}

/// A new adapter of all of a model's projections.
pub(crate) fn adapter_of_rank(rank: usize, model: &Path, directory: &Path) {
    let settings = AdapterSettings {
        rank,
        alpha: 1.0,
        rank_stabilized: false,
        dropout: 0.0,
        targets: Projection::ALL.to_vec(),
    };
    let config = Config::load(model).unwrap();
    Adapter::initialize(&config, &settings, 0).unwrap().save(directory).unwrap();
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let text = |name: &str| path(name).display().to_string();
    large_model(&path("model"));
    adapter_of_rank(256, &path("model"), &path("adapter")); // seconds of work
    let (model, adapter, out) = (text("model"), text("adapter"), text("out"));
    let args = ["merge", "--model", &model, "--adapter", &adapter, "--out", &out];
    let ready = || path("out.partial/model.safetensors").exists();
    crate::cli::interrupted(&args, ready, "nothing was written");
    let mut left: Vec<_> =
        fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["adapter", "model"]);
}

/// An adapter that changes nothing, or was made for another model, is told wherever it is put on a model.
#[test]
fn an_adapter_that_changes_nothing_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    let adapter = scratch.path().join("adapter");
    fs::create_dir(&adapter).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(golden("qwen3-tied", "adapter") + "/" + name, adapter.join(name)).unwrap();
    }
    let path = adapter.join("adapter_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["lora_alpha"] = 0.into();
    config["base_model_name_or_path"] = "Qwen/Qwen2.5-7B".into();
    config["of_a_later_version"] = 16.into();
    fs::write(&path, config.to_string()).unwrap();
    let (model, adapter) = (golden("qwen3-tied", "model"), adapter.display().to_string());
    let out = scratch.path().join("out").display().to_string();
    let pair = ["--prompt", "1", "--a", "2", "--b", "3", "--max-new-tokens", "2"];
    let merge = ["merge", "--model", &model, "--adapter", &adapter, "--out", &out];
    let judge = [&["judge", "--model", &model, "--adapter", &adapter][..], &pair].concat();
    for args in [&merge[..], &judge] {
        let output = j1(args);
        let says = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{says}");
        for part in
            ["changes nothing: lora_alpha is 0", "\"Qwen/Qwen2.5-7B\"", "of_a_later_version = 16"]
        {
            assert_eq!(says.matches(part).count(), 1, "{part}: {says}");
        }
        if args[0] == "merge" {
            let said = stdout(&output);
            assert!(said.contains("0 of 14 matrices changed"), "{said}");
        }
    }
    let weights = |directory: &str| fs::read(format!("{directory}/model.safetensors")).unwrap();
    assert!(weights(&out) == weights(&model));
}
