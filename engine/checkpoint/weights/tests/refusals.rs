//! Checkpoints as they reach users: pointers, broken links, half of the files, wrapped names, quantized weights. Each
//! error names what is there and says what to do.

use super::*;

fn write(directory: &TempDir, name: &str, bytes: &[u8]) {
    std::fs::write(directory.path().join(name), bytes).unwrap();
}

/// The sound tensors of a small model, named as `rename` says; those it returns `None` for are left out.
fn renamed(config: &Config, rename: impl Fn(&str) -> Option<String>) -> Checkpoint {
    let tensors: Vec<ExpectedTensor> = config
        .expected_tensors()
        .filter_map(|tensor| Some(ExpectedTensor { name: rename(&tensor.name)?, ..tensor }))
        .collect();
    checkpoint_of(&tensors, Dtype::BF16)
}

const POINTER: &[u8] =
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 988097824\n";

#[test]
fn pointers_and_web_pages_are_told_from_weights() {
    for (bytes, part) in [(POINTER, "git lfs pull"), (b"<!DOCTYPE html>\n<html><head>", "web page")]
    {
        let directory = directory_with("model.safetensors", bytes);
        let error = refused(Checkpoint::open(directory.path()), &["model.safetensors", part]);
        assert!(matches!(error, WeightsError::File(FileError::StandIn { .. })), "{error:?}");
        // A shard, the index, and a file of any name.
        let index = json!({"weight_map": {"x": "model-00001-of-00001.safetensors"}}).to_string();
        let directory = directory_with("model-00001-of-00001.safetensors", bytes);
        write(&directory, "model.safetensors.index.json", index.as_bytes());
        refused(Checkpoint::open(directory.path()), &["00001-of-00001.safetensors", part]);
        let path = directory.path().join("model-00001-of-00001.safetensors");
        refused(Checkpoint::open_file(&path), &[part]);
        write(&directory, "model.safetensors.index.json", bytes);
        refused(Checkpoint::open(directory.path()), &["index.json", part]);
    }
}

#[test]
#[cfg(unix)]
fn links_to_nothing_name_their_target() {
    use std::os::unix::fs::symlink;
    let index = json!({"weight_map": {"x": "a.safetensors"}}).to_string();
    for name in ["model.safetensors", "model.safetensors.index.json", "a.safetensors"] {
        let directory = directory_with("config.json", b"{}");
        if name == "a.safetensors" {
            write(&directory, "model.safetensors.index.json", index.as_bytes());
        }
        symlink("../../blobs/4d7a2146", directory.path().join(name)).unwrap();
        let error = refused(
            Checkpoint::open(directory.path()),
            &[name, "../../blobs/4d7a2146", "cp -L", "download"],
        );
        assert!(matches!(error, WeightsError::File(FileError::DanglingLink { .. })), "{error:?}");
    }
    let directory = tempfile::tempdir().unwrap();
    symlink("/nowhere/model", directory.path().join("model")).unwrap();
    refused(Checkpoint::open(&directory.path().join("model")), &["/nowhere/model"]);
}

#[test]
fn directories_with_other_files_name_them() {
    let cases: [(&[&str], &[&str]); 12] = [
        (&["model-00001-of-00004.safetensors"], &["1 of 4 shards", "index", "fetch"]),
        (
            &["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            &["2 of 2 shards", "model-00001-of-00002.safetensors"],
        ),
        (&["weights-00003-of-00003.safetensors", "x.gguf"], &["1 of 3 shards"]),
        (&["output.safetensors"], &["output.safetensors", "rename it to model.safetensors"]),
        (&["a.safetensors", "b.safetensors"], &["2 files of other names", "a.safetensors"]),
        (&["adapter_model.safetensors"], &["LoRA adapter"]),
        (&["Qwen3-0.6B-Q4_K_M.gguf"], &["GGUF", "fetch the checkpoint"]),
        (&["MODEL.GGUF", "README.md"], &["GGUF"]),
        (&["consolidated.00.pth"], &["pickle", "save_pretrained"]),
        (&["weights.npz"], &["MLX"]),
        (&["tf_model.h5", "flax_model.msgpack"], &["TensorFlow or Flax"]),
        (&["model.onnx"], &["another program"]),
    ];
    for (names, parts) in cases {
        let directory = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| write(&directory, name, b"x"));
        let error = refused(Checkpoint::open(directory.path()), parts);
        assert!(matches!(error, WeightsError::NoWeights { .. }), "{names:?}: {error:?}");
    }
    // config.json may say more than the names.
    let directory = directory_with("output.safetensors", b"x");
    let quantized = json!({"model_type": "qwen3", "quantization_config": {"quant_method": "exl2"}});
    write(&directory, "config.json", quantized.to_string().as_bytes());
    let opened = Checkpoint::open_checked::<crate::language_model::OpenError>(directory.path());
    let error = opened.expect_err("should be refused").to_string();
    assert!(error.contains("ExLlamaV2") && error.contains("quantization_config"), "{error}");
}

#[test]
fn a_file_in_place_of_the_directory_says_at_once_what_it_is() {
    for (name, part) in [
        ("q4.gguf", "GGUF, which is not read"),
        ("Q4.GGUF", "GGUF, which is not read"),
        ("pytorch_model.bin", "pickle"),
        ("model.pt", "pickle"),
        ("adapter_model.safetensors", "LoRA adapter"),
        ("model.safetensors", "give the directory"),
    ] {
        let directory = directory_with(name, b"x");
        let error = refused(Checkpoint::open(&directory.path().join(name)), &[name, part]);
        assert!(matches!(error, WeightsError::NotADirectory { .. }), "{error:?}");
    }
}

#[test]
fn all_shards_that_are_not_there_are_counted() {
    let shard = |i: usize| format!("model-0000{i}-of-00004.safetensors");
    let map: serde_json::Map<_, _> = (1..=4).map(|i| (format!("t{i}"), shard(i).into())).collect();
    let directory = directory_with(&shard(2), &file_bytes(&padded(&json!({})), &[]));
    let index = json!({"weight_map": map}).to_string();
    write(&directory, "model.safetensors.index.json", index.as_bytes());
    let error = refused(
        Checkpoint::open(directory.path()),
        &["3 of the 4 files", &shard(1), "and the others", "interrupted download"],
    );
    assert!(matches!(error, WeightsError::MissingShard { missing: 3, .. }), "{error:?}");
}

#[test]
fn names_with_other_prefixes_are_shown_with_the_way_to_rename_them() {
    type Rename = fn(&str) -> String;
    let cases: [(Rename, &[&str]); 11] = [
        (|name| format!("module.{name}"), &["\"module.model.", "n.replace('module.', '')"]),
        (
            |name| format!("_orig_mod.{name}"),
            &["\"_orig_mod.model.", "n.replace('_orig_mod.', '')"],
        ),
        (
            |name| format!("module.module._orig_mod.{name}"),
            &["n.replace('module.', '').replace('_orig_mod.', '')"],
        ),
        (
            |name| name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
            &["_checkpoint_wrapped_module", "'_checkpoint_wrapped_module.', ''"],
        ),
        (
            |name| {
                format!("_fsdp_wrapped_module.{name}")
                    .replace(".mlp.", "._fsdp_wrapped_module.mlp.")
            },
            &["replace('_fsdp_wrapped_module.', '')"],
        ),
        (
            |name| format!("base_model.model.{name}"),
            &["base_model.model.model.layers.0", "n.removeprefix('base_model.model.')"],
        ),
        (
            |name| name.replace("model.", "model.language_model."),
            &["model.language_model.", "n.replace('model.language_model.', 'model.')"],
        ),
        (|name| format!("language_model.{name}"), &["n.removeprefix('language_model.')"]),
        (|name| name.replace("model.", "transformer."), &["n.replace('transformer.', 'model.')"]),
        (
            |name| name.replacen("model.", "", 1),
            &["\"layers.0.", "n if n == 'lm_head.weight' else 'model.' + n"],
        ),
        (
            |name| format!("{name}\u{1b}[2J").replace("model.", "\u{1b}[2J'.model."),
            &["the files have 25", "\\u{1b}"],
        ),
    ];
    for tied in [true, false] {
        let config = config("qwen3", tied);
        for (rename, parts) in cases {
            let checkpoint = renamed(&config, |name| Some(rename(name)));
            let parts: Vec<&str> = match tied {
                true => parts
                    .iter()
                    .map(
                        |part| {
                            if *part == "the files have 25" { "the files have 24" } else { part }
                        },
                    )
                    .collect(),
                false => parts.to_vec(),
            };
            let error = refused(checkpoint.check(&config), &parts);
            assert!(matches!(error, WeightsError::Missing { .. }), "{error:?}");
            assert!(!error.to_string().contains('\u{1b}'), "{error}");
        }
        // PEFT's, unmerged.
        let peft = renamed(&config, |name| {
            Some(format!("base_model.model.{}", name.replace("q_proj.", "q_proj.base_layer.")))
        });
        refused(peft.check(&config), &["base_layer", "merge_and_unload"]);
    }
}

#[test]
fn other_layouts_and_other_sizes_are_named() {
    let config = config("qwen3", true);
    let fused = renamed(&config, |name| match name {
        name if name.contains("k_proj") || name.contains("v_proj") => None,
        name => Some(name.replace("q_proj", "qkv_proj")),
    });
    refused(fused.check(&config), &["q, k and v in one matrix", "qkv_proj", "qwen3"]);
    let fused = renamed(&config, |name| match name {
        name if name.contains("up_proj") => None,
        name => Some(name.replace("gate_proj", "gate_up_proj")),
    });
    refused(fused.check(&config), &["gate and up in one matrix", "gate_up_proj"]);
    let meta = renamed(&config, |name| {
        Some(name.replace("model.layers", "layers").replace("self_attn.q_proj", "attention.wq"))
            .filter(|name| name.starts_with("layers.0.attention"))
    });
    refused(meta.check(&config), &["Meta's own names", "attention.wq"]);
    let shorter =
        renamed(&config, |name| Some(name.to_owned()).filter(|n| !n.contains("layers.1.")));
    refused(shorter.check(&config), &["first 1 layers", "num_hidden_layers 2"]);
    let other = renamed(&config, |name| Some(format!("{name}_v2")));
    refused(other.check(&config), &["the files have 24", "_v2\"", "…", "is config.json that"]);
}

#[test]
fn a_head_without_embeddings_and_embeddings_without_a_head_name_the_key() {
    let untied = json!({"model_type": "qwen3", "hidden_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "intermediate_size": 12, "vocab_size": 10});
    let mut configs = vec![config("llama", false), config("qwen2", false)];
    configs.push(Config::parse(&untied.to_string(), Path::new("config.json")).unwrap());
    for config in configs {
        let headless =
            renamed(&config, |name| Some(name.to_owned()).filter(|n| n != "lm_head.weight"));
        refused(
            headless.check(&config),
            &["1 tensors", "lm_head.weight", "set \"tie_word_embeddings\" to true"],
        );
    }
    for family in ["llama", "qwen2", "qwen3"] {
        let config = config(family, true);
        let only_head = renamed(&config, |name| {
            Some(name.replace("model.embed_tokens.weight", "lm_head.weight"))
        });
        refused(
            only_head.check(&config),
            &[
                "1 tensors",
                "only lm_head.weight is there",
                "rename it to model.embed_tokens.weight",
            ],
        );
    }
}

/// End of a name, type and shape of a tensor.
type Part = (&'static str, Dtype, &'static [usize]);

#[test]
fn quantized_weights_are_named_by_their_tensors() {
    let config = config("llama", true);
    let q = "model.layers.0.self_attn.q_proj";
    // What stands in place of q_proj.weight [8, 8], and who writes it.
    let cases: [(&[Part], &str); 21] = [
        (
            &[
                (".qweight", Dtype::I32, &[1, 8]),
                (".qzeros", Dtype::I32, &[1, 1]),
                (".scales", Dtype::F16, &[1, 8]),
                (".g_idx", Dtype::I32, &[8]),
            ],
            "GPTQ",
        ),
        (
            &[
                (".qweight", Dtype::I32, &[8, 1]),
                (".qzeros", Dtype::I32, &[1, 1]),
                (".scales", Dtype::F16, &[1, 8]),
            ],
            "GPTQ or AWQ",
        ),
        (
            &[(".weight", Dtype::U8, &[32, 1]), (".weight.absmax", Dtype::U8, &[1])],
            "bitsandbytes, 4 bit",
        ),
        (
            &[
                (".weight", Dtype::U8, &[32, 1]),
                (".weight.quant_state.bitsandbytes__nf4", Dtype::U8, &[9]),
            ],
            "bitsandbytes, 4 bit",
        ),
        (&[(".weight", Dtype::I8, &[8, 8]), (".SCB", Dtype::F32, &[8])], "bitsandbytes, 8 bit"),
        (
            &[
                (".weight_packed", Dtype::I32, &[8, 1]),
                (".weight_scale", Dtype::BF16, &[8, 1]),
                (".weight_shape", Dtype::I64, &[2]),
            ],
            "compressed-tensors",
        ),
        (
            &[(".weight", Dtype::F8_E4M3, &[8, 8]), (".weight_scale", Dtype::BF16, &[8, 1])],
            "fp8, int8 or BitNet",
        ),
        (
            &[(".weight", Dtype::F8_E4M3, &[8, 8]), (".weight_scale_inv", Dtype::F32, &[1, 1])],
            "fp8 in blocks",
        ),
        (
            &[
                (".weight", Dtype::U8, &[8, 4]),
                (".weight_scale", Dtype::F8_E4M3, &[8, 1]),
                (".weight_scale_2", Dtype::F32, &[]),
            ],
            "NVFP4",
        ),
        (
            &[
                (".weight", Dtype::U32, &[8, 1]),
                (".scales", Dtype::BF16, &[8, 1]),
                (".biases", Dtype::BF16, &[8, 1]),
            ],
            "MLX",
        ),
        (
            &[
                (".W_q", Dtype::U8, &[4, 8]),
                (".zero", Dtype::F16, &[1]),
                (".scale", Dtype::F16, &[1]),
            ],
            "HQQ",
        ),
        (&[(".weight", Dtype::I8, &[8, 8]), (".weight_scales", Dtype::F16, &[8])], "EETQ"),
        (&[(".codes", Dtype::I8, &[8, 1, 1]), (".codebooks", Dtype::F16, &[1, 4, 1, 8])], "AQLM"),
        (
            &[(".weight._data", Dtype::I8, &[8, 8]), (".weight._scale", Dtype::BF16, &[8, 1])],
            "Quanto",
        ),
        (
            &[("._weight_qdata", Dtype::I8, &[8, 8]), ("._weight_scale", Dtype::BF16, &[8, 1])],
            "torchao",
        ),
        (&[(".q_weight", Dtype::I32, &[1, 8]), (".q_invperm", Dtype::I16, &[8])], "ExLlamaV2"),
        (&[(".trellis", Dtype::I16, &[1, 1, 48]), (".suh", Dtype::F16, &[8])], "ExLlamaV3"),
        (&[("_blocks", Dtype::U8, &[8, 1, 4]), ("_scales", Dtype::U8, &[8, 1])], "MXFP4"),
        // Types alone, and scales beside a matrix of the right shape and type.
        (&[(".weight", Dtype::I8, &[8, 8])], "packs numbers"),
        (&[(".weight", Dtype::F8_E5M2, &[8, 8])], "packs numbers"),
        (
            &[(".weight", Dtype::BF16, &[8, 8]), (".weight_scale", Dtype::F32, &[8])],
            "fp8, int8 or BitNet",
        ),
    ];
    for (parts, maker) in cases {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        let mut add = |name: String, dtype: Dtype, shape: &[usize]| {
            let start = data.len();
            data.resize(start + shape.iter().product::<usize>() * dtype.bitsize() / 8, 0u8);
            let entry =
                json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
            header.insert(name, entry);
        };
        for tensor in config.expected_tensors().filter(|tensor| !tensor.name.contains(q)) {
            add(tensor.name, Dtype::BF16, &tensor.shape);
        }
        for (end, dtype, shape) in parts {
            add(format!("{q}{end}"), *dtype, shape);
        }
        let checkpoint = open(&padded(&Value::Object(header)), &data).unwrap();
        let error = refused(checkpoint.check(&config), &[maker, q, "fetch the checkpoint"]);
        assert!(matches!(error, WeightsError::Quantized { .. }), "{error:?}");
    }
}
