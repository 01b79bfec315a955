//! Sound checkpoints in every layout, and hostile ones: each asserts the variant and that the message names what is wrong.

mod refusals;

use std::time::Instant;

use serde_json::json;
use tempfile::TempDir;

use super::*;

/// A safetensors file of this header (padded to a multiple of 8 unless `header` is already odd on purpose) and data.
fn file_bytes(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn padded(header: &Value) -> String {
    let text = header.to_string();
    format!("{text:<width$}", width = text.len().next_multiple_of(8))
}

fn directory_with(name: &str, bytes: &[u8]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(name), bytes).unwrap();
    directory
}

fn open(header: &str, data: &[u8]) -> Result<Checkpoint, WeightsError> {
    let directory = directory_with("model.safetensors", &file_bytes(header, data));
    Checkpoint::open(directory.path())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, WeightsError>, parts: &[&str]) -> WeightsError {
    let error = result.expect_err("should be refused");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    error
}

#[track_caller]
fn header_refused(header: &str, data: &[u8], parts: &[&str]) {
    let error = refused(open(header, data), parts);
    assert!(matches!(error, WeightsError::Header { .. }), "{error:?}");
    assert!(error.to_string().contains("model.safetensors"));
}

fn config(model_type: &str, tied: bool) -> Config {
    let value = json!({"model_type": model_type, "hidden_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "intermediate_size": 12, "vocab_size": 10, "tie_word_embeddings": tied});
    Config::parse(&value.to_string(), Path::new("config.json")).unwrap()
}

/// Tensors of `dtype`, filled with 1.
fn tensors_bytes(tensors: &[ExpectedTensor], dtype: Dtype) -> Vec<u8> {
    let one: &[u8] = match dtype {
        Dtype::F32 => &[0, 0, 0x80, 0x3f],
        Dtype::BF16 => &[0x80, 0x3f],
        Dtype::F16 => &[0, 0x3c],
        _ => &[1, 0, 0, 0, 0, 0, 0, 0],
    };
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for tensor in tensors {
        let start = data.len();
        data.extend(one.repeat(tensor.shape.iter().product()));
        let entry =
            json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, data.len()]});
        header.insert(tensor.name.clone(), entry);
    }
    file_bytes(&padded(&Value::Object(header)), &data)
}

fn checkpoint_of(tensors: &[ExpectedTensor], dtype: Dtype) -> Checkpoint {
    let directory = directory_with("model.safetensors", &tensors_bytes(tensors, dtype));
    Checkpoint::open(directory.path()).unwrap()
}

#[test]
fn every_family_and_type_is_opened_checked_and_viewed() {
    for model_type in ["qwen3", "qwen2", "llama"] {
        for tied in [false, true] {
            for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
                let config = config(model_type, tied);
                let tensors: Vec<_> = config.expected_tensors().collect();
                let checkpoint = checkpoint_of(&tensors, dtype);
                checkpoint.check(&config).unwrap();
                assert_eq!(
                    checkpoint.len_bytes(),
                    config.parameter_count() * dtype.bitsize() as u64 / 8
                );
                let view = checkpoint.tensor("model.norm.weight").unwrap().unwrap();
                assert_eq!((view.dtype, view.shape), (dtype, &[8][..]));
                assert_eq!(view.to_f32().unwrap(), [1.0; 8]);
                assert_eq!(view.as_bf16().is_some(), dtype == Dtype::BF16);
                assert_eq!(view.as_f16().is_some(), dtype == Dtype::F16);
                assert_eq!(view.as_f32().is_some(), dtype == Dtype::F32);
            }
        }
    }
}

#[test]
fn the_crate_that_defines_the_format_writes_what_we_read() {
    let data: Vec<u8> = [1.5f32, -2.0, 0.25].iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![3], &data).unwrap();
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize([("x", view)], Some(metadata)).unwrap();
    let directory = directory_with("any.safetensors", &bytes);
    let checkpoint = Checkpoint::open_file(&directory.path().join("any.safetensors")).unwrap();
    assert_eq!(checkpoint.tensor("x").unwrap().unwrap().as_f32().unwrap(), [1.5, -2.0, 0.25]);
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["x"]);
    assert!(checkpoint.tensor("y").unwrap().is_none());
}

#[test]
fn a_misaligned_tensor_is_copied_once_and_equal() {
    let values = [1.0f32, -3.5, 1e-30];
    let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let header = json!({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).to_string();
    for padding in 0..8 {
        let header = format!("{header}{}", " ".repeat(padding));
        let checkpoint = open(&header, &data).unwrap();
        let view = checkpoint.tensor("x").unwrap().unwrap();
        assert_eq!(view.as_f32().unwrap(), values, "padding {padding}");
        let again = checkpoint.tensor("x").unwrap().unwrap();
        assert_eq!(view.bytes.as_ptr(), again.bytes.as_ptr());
        let copied = checkpoint.tensors["x"].copy.get().is_some();
        assert_eq!(copied, !(8 + header.len()).is_multiple_of(4), "padding {padding}");
    }
}

#[test]
fn opening_a_large_file_reads_the_header_only() {
    // 1.5 GB, sparse: reading it all would take a second and as much memory.
    let elements = 750_000_000usize;
    let header =
        json!({"x": {"dtype": "BF16", "shape": [elements], "data_offsets": [0, 2 * elements]}});
    let bytes = file_bytes(&padded(&header), &[]);
    let directory = directory_with("model.safetensors", &bytes);
    let path = directory.path().join("model.safetensors");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len((bytes.len() + 2 * elements) as u64).unwrap();
    let before = resident_bytes();
    let started = Instant::now();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let view = checkpoint.tensor("x").unwrap().unwrap();
    assert_eq!(view.as_bf16().unwrap()[elements - 1].to_f32(), 0.0);
    assert!(started.elapsed().as_millis() < 500, "{:?}", started.elapsed());
    if let (Some(before), Some(after)) = (before, resident_bytes()) {
        // Other tests run beside this one; the file would be 1.5 GB.
        assert!(after.saturating_sub(before) < 300 << 20, "{before} to {after}");
    }
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[test]
fn shards_are_joined_and_duplicates_refused() {
    let config = config("qwen3", true);
    let tensors: Vec<_> = config.expected_tensors().collect();
    let (first, second) = tensors.split_at(5);
    let directory = directory_with("a.safetensors", &tensors_bytes(first, Dtype::BF16));
    let write =
        |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
    write("b.safetensors", &tensors_bytes(second, Dtype::F32));
    let shard = |name: &str| if first.iter().any(|t| t.name == name) { "a" } else { "b" };
    let map: serde_json::Map<_, _> = tensors
        .iter()
        .map(|t| (t.name.clone(), format!("{}.safetensors", shard(&t.name)).into()))
        .collect();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    write("model.safetensors.index.json", index.to_string().as_bytes());
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    checkpoint.check(&config).unwrap();
    assert_eq!(checkpoint.files().count(), 2);
    assert!(checkpoint.file_of("model.norm.weight").unwrap().ends_with("b.safetensors"));

    // The second shard repeats a tensor of the first.
    write("b.safetensors", &tensors_bytes(&tensors[4..], Dtype::F32));
    let error = refused(
        Checkpoint::open(directory.path()),
        &[&tensors[4].name, "a.safetensors", "b.safetensors"],
    );
    assert!(matches!(error, WeightsError::Duplicate { .. }), "{error:?}");

    // The index says that tensors stand where they do not, and names one that is nowhere: as in transformers, the shards
    // say where, and only what config.json calls for must be there.
    write("b.safetensors", &tensors_bytes(second, Dtype::F32));
    let mut map = index["weight_map"].clone();
    map[&tensors[0].name] = "b.safetensors".into();
    map[&tensors[7].name] = "a.safetensors".into();
    map["model.layers.0.self_attn.rotary_emb.inv_freq"] = "a.safetensors".into();
    let moved = json!({"weight_map": map}).to_string();
    write("model.safetensors.index.json", moved.as_bytes());
    Checkpoint::open(directory.path()).unwrap().check(&config).unwrap();
    write("b.safetensors", &tensors_bytes(&tensors[6..], Dtype::F32));
    let error = refused(
        Checkpoint::open(directory.path()).unwrap().check(&config),
        &["1 tensors", &tensors[5].name],
    );
    assert!(matches!(error, WeightsError::Missing { .. }), "{error:?}");

    std::fs::remove_file(directory.path().join("b.safetensors")).unwrap();
    let error =
        refused(Checkpoint::open(directory.path()), &["b.safetensors", "interrupted download"]);
    assert!(matches!(error, WeightsError::MissingShard { .. }), "{error:?}");
}

#[test]
fn an_index_that_leaves_the_directory_or_is_unsound_is_refused() {
    let case = |index: &Value, parts: &[&str]| {
        let directory =
            directory_with("model.safetensors.index.json", index.to_string().as_bytes());
        refused(Checkpoint::open(directory.path()), parts)
    };
    for shard in ["../secret.safetensors", "/etc/passwd", "a/../../b", "", ".", "a/b", "..\\x"] {
        let error = case(&json!({"weight_map": {"x": shard}}), &["leaves the directory"]);
        assert!(matches!(error, WeightsError::Index { .. }), "{shard}: {error:?}");
    }
    for index in [json!({}), json!([]), json!({"weight_map": []})] {
        let error = case(&index, &["weight_map", "index.json"]);
        assert!(matches!(error, WeightsError::Index { .. }), "{error:?}");
    }
    case(&json!({"weight_map": {}}), &["names 0 files"]);
    case(&json!({"weight_map": {"x": 3}}), &["\"x\"", "got 3"]);
    let directory = directory_with("model.safetensors.index.json", b"{\"weight_map\": {");
    let error = refused(Checkpoint::open(directory.path()), &["JSON", "index.json"]);
    assert!(matches!(error, WeightsError::File(FileError::Json { .. })), "{error:?}");
}

#[test]
fn other_formats_and_wrong_paths_say_what_to_do() {
    let no_weights = |name: &str, parts: &[&str]| {
        let directory = directory_with(name, b"x");
        let error = refused(Checkpoint::open(directory.path()), parts);
        assert!(matches!(error, WeightsError::NoWeights { .. }), "{error:?}");
    };
    no_weights("pytorch_model.bin", &["pickle", "convert", "safe_serialization"]);
    no_weights("pytorch_model-00001-of-00002.bin", &["pickle"]);
    no_weights("model-q4.gguf", &["GGUF", "safetensors"]);
    no_weights("adapter_model.safetensors", &["LoRA adapter"]);
    no_weights("README.md", &["no model.safetensors", "; give one that"]);
    let directory = directory_with("model.safetensors", b"x");
    let error =
        refused(Checkpoint::open(&directory.path().join("none")), &["none", "no such directory"]);
    assert!(matches!(error, WeightsError::NoDirectory { .. }));
    let error = refused(
        Checkpoint::open(&directory.path().join("model.safetensors")),
        &["give the directory"],
    );
    assert!(matches!(error, WeightsError::NotADirectory { .. }));
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("model.safetensors")).unwrap();
    let error = refused(Checkpoint::open(directory.path()), &["model.safetensors", "regular file"]);
    assert!(matches!(error, WeightsError::File(FileError::NotAFile { .. })));
}

#[test]
fn truncated_files_say_so() {
    let tensors: Vec<_> = config("qwen3", true).expected_tensors().collect();
    let bytes = tensors_bytes(&tensors, Dtype::BF16);
    for len in [0, 1, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        let directory = directory_with("model.safetensors", &bytes[..len]);
        let error = refused(Checkpoint::open(directory.path()), &["cut off", "model.safetensors"]);
        assert!(matches!(error, WeightsError::Truncated { .. }), "{len}: {error:?}");
    }
}

#[test]
fn header_lengths_that_lie_are_refused() {
    for (length, part) in
        [(u64::MAX, "not a safetensors file"), (100_000_001, "100000001"), (99_999_999, "cut off")]
    {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(b"{}");
        let directory = directory_with("model.safetensors", &bytes);
        refused(Checkpoint::open(directory.path()), &[part]);
    }
}

#[test]
fn headers_that_are_no_object_of_tensors_are_refused() {
    for header in ["", "[]", "{", "nul", "{} {}", "\u{0}", "\"x\""] {
        header_refused(header, &[], &["header is not sound"]);
    }
    header_refused(&"[".repeat(100_000), &[], &["header is not sound"]);
    let deep = format!("{{\"__metadata__\": {}", "[".repeat(100_000));
    header_refused(&deep, &[], &["header is not sound"]);
    let directory = directory_with("model.safetensors", &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]);
    refused(Checkpoint::open(directory.path()), &["header is not sound"]);
}

#[test]
fn entries_that_lie_name_the_tensor() {
    let entry = |shape: Value, start: u64, end: u64| json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
    let one = |entry: Value| json!({"bad.weight": entry}).to_string();
    let data = [0u8; 16];
    let cases: Vec<(String, &str)> = vec![
        (one(entry(json!([4]), 16, 0)), "run backwards"),
        (one(entry(json!([5]), 0, 16)), "takes 20 bytes"),
        (one(entry(json!([3]), 4, 16)), "leave a gap"),
        (one(entry(json!([u64::MAX, 2]), 0, 16)), "overflows"),
        (one(entry(json!([1u64 << 62]), 0, 16)), "overflows"),
        (one(entry(json!([-1]), 0, 16)), "invalid value"),
        (one(entry(json!([1.5]), 0, 16)), "invalid type"),
        (one(entry(json!([1, 1, 1, 1, 1, 1, 1, 1, 4]), 0, 16)), "more than 8 dimensions"),
        (one(json!({"dtype": "F33", "shape": [4], "data_offsets": [0, 16]})), "unknown variant"),
        (one(json!({"shape": [4], "data_offsets": [0, 16]})), "dtype"),
        (one(json!({"dtype": "F32", "data_offsets": [0, 16]})), "shape"),
        (one(json!({"dtype": "F32", "shape": [4]})), "data_offsets"),
        (one(json!({"dtype": "F32", "shape": [4], "data_offsets": [0]})), "invalid length"),
        (
            one(json!({"dtype": "F32", "shape": [4], "data_offsets": [0, 16], "x": 1})),
            "unknown key",
        ),
        (one(json!({"dtype": "F4", "shape": [3], "data_offsets": [0, 16]})), "takes 2 bytes"),
        (one(json!(3)), "dtype, shape and data_offsets"),
    ];
    for (header, part) in cases {
        header_refused(&header, &data, &["bad.weight", part]);
    }
    let overlap = json!({"a": entry(json!([4]), 0, 16), "bad.weight": entry(json!([2]), 8, 16)});
    header_refused(&overlap.to_string(), &data, &["bad.weight", "overlap"]);
    let twice = r#"{"bad.weight": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "bad.weight": {"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
    header_refused(twice, &data, &["bad.weight", "twice"]);
    let surplus = json!({"a": entry(json!([2]), 0, 8)});
    header_refused(&surplus.to_string(), &data, &["8 bytes", "belong to no tensor"]);
    let beyond = json!({"a": entry(json!([u64::MAX / 64]), 0, u64::MAX / 64 * 4)});
    let error = refused(open(&beyond.to_string(), &data), &["cut off"]);
    assert!(matches!(error, WeightsError::Truncated { .. }), "{error:?}");
    let long = json!({"n".repeat(5000): entry(json!([4]), 0, 16)});
    header_refused(&long.to_string(), &data, &["5000 bytes"]);
}

#[test]
fn an_empty_header_is_a_file_without_tensors() {
    let checkpoint = open("{}", &[]).unwrap();
    let error = refused(
        checkpoint.check(&config("qwen3", true)),
        &["24 tensors", "model.embed_tokens.weight", "…"],
    );
    assert!(matches!(error, WeightsError::Missing { count: 24, .. }), "{error:?}");
}

#[test]
fn a_wrong_shape_or_type_or_a_missing_tensor_is_named() {
    let config = config("qwen3", true);
    let sound: Vec<_> = config.expected_tensors().collect();
    let mut tensors = sound.clone();
    let at = tensors.iter().position(|t| t.name.contains("layers.1.self_attn.q_proj")).unwrap();
    tensors[at].shape.reverse();
    tensors[at].shape[0] += 1;
    let error = refused(
        checkpoint_of(&tensors, Dtype::BF16).check(&config),
        &["model.layers.1.self_attn.q_proj.weight", "model.safetensors", "[8, 8]", "[9, 8]"],
    );
    assert!(matches!(error, WeightsError::Shape { .. }), "{error:?}");
    let name = tensors.remove(at).name;
    let error = refused(checkpoint_of(&tensors, Dtype::BF16).check(&config), &[&name, "1 tensors"]);
    assert!(matches!(error, WeightsError::Missing { count: 1, .. }), "{error:?}");
    let error =
        refused(checkpoint_of(&sound, Dtype::I64).check(&config), &["embed_tokens", "I64", "BF16"]);
    assert!(matches!(error, WeightsError::Dtype { .. }), "{error:?}");
}

#[test]
fn a_redundant_head_and_further_tensors_are_accepted() {
    let config = config("qwen3", true);
    let mut tensors: Vec<_> = config.expected_tensors().collect();
    tensors.push(config.head());
    tensors.push(ExpectedTensor { name: "rotary.inv_freq".into(), shape: vec![3] });
    let checkpoint = checkpoint_of(&tensors, Dtype::BF16);
    checkpoint.check(&config).unwrap();
    let head = tensors.len() - 2;
    tensors[head].shape[0] += 1;
    let error = refused(
        checkpoint_of(&tensors, Dtype::BF16).check(&config),
        &["lm_head.weight", "[11, 8]"],
    );
    assert!(matches!(error, WeightsError::Shape { .. }), "{error:?}");
}

#[test]
fn mutated_files_never_panic() {
    let config = config("qwen3", true);
    let tensors: Vec<_> = config.expected_tensors().take(4).collect();
    let bytes = tensors_bytes(&tensors, Dtype::BF16);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    crate::fuzz::mutations(&bytes, |bytes| {
        // A file that is written over while mapped could be truncated: removed first.
        drop(std::fs::remove_file(&path));
        std::fs::write(&path, bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open_file(&path) {
            for name in checkpoint.names() {
                let view = checkpoint.tensor(name).unwrap().unwrap();
                let elements: usize = view.shape.iter().product();
                assert_eq!(view.bytes.len() * 8, elements * view.dtype.bitsize());
                drop(view.to_f32());
            }
            checkpoint.check(&config).unwrap_err();
        }
    });
}

#[test]
fn mutated_headers_never_panic() {
    let header = json!({"__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]}});
    let mut sound = 0;
    crate::fuzz::mutations(header.to_string().as_bytes(), |bytes| {
        let mut file = (bytes.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(bytes);
        file.extend([0; 24]);
        if let Ok(tensors) = header::parse(Path::new("x"), &file) {
            assert!(tensors.iter().all(|(_, info)| info.range.end <= file.len()));
            sound += 1;
        }
    });
    assert!(sound > 0, "mutations of spaces and names keep some headers sound");
}
