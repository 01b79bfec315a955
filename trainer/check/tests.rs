//! Dumps from strangers: any case.json and any tensors give findings or an error, never a panic.

use std::{collections::BTreeMap, fs, panic::catch_unwind, path::Path};

use safetensors::tensor::TensorView;
use serde_json::json;

use super::*;

/// A dump of tests/golden in a directory of its own, with these files of it.
fn dump(case: &str, files: &[&str]) -> tempfile::TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(case);
    let directory = tempfile::tempdir().unwrap();
    for part in ["model", "adapter"] {
        fs::create_dir(directory.path().join(part)).unwrap();
        for entry in fs::read_dir(from.join(part)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap();
            fs::copy(&path, directory.path().join(part).join(name)).unwrap();
        }
    }
    for name in files.iter().chain(&["case.json"]) {
        fs::copy(from.join(name), directory.path().join(name)).unwrap();
    }
    directory
}

/// What a dump gives; a panic is told with what made it.
fn outcome(directory: &Path, what: &str) -> Result<Vec<Finding>, CheckError> {
    let run = || check(directory, &Device::cpu_threads(1));
    catch_unwind(run).unwrap_or_else(|_| panic!("{what} is a panic"))
}

/// The path of a value in another; of a list, of its first element.
fn pointers(value: &Value, here: &str, all: &mut Vec<String>) {
    let nested: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(list) => list.iter().take(1).map(|value| ("0".to_owned(), value)).collect(),
        _ => Vec::new(),
    };
    for (key, value) in nested {
        let key = key.replace('~', "~0").replace('/', "~1");
        let pointer = format!("{here}/{key}");
        pointers(value, &pointer, all);
        all.push(pointer);
    }
}

#[test]
fn a_case_without_inputs_is_named() {
    let directory = dump("qwen2", &["base.safetensors"]);
    for text in [
        "{}",
        "1",
        "[]",
        "null",
        "{\"input_ids\": []}",
        "{\"input_ids\": [[]]}",
        "{\"input_ids\": [[-1]]}",
    ] {
        fs::write(directory.path().join("case.json"), text).unwrap();
        let error = outcome(directory.path(), text).unwrap_err().to_string();
        assert!(error.contains("case.json") && error.contains("input_ids"), "{text}: {error}");
    }
    // A dump of a TRL step has no inputs, and then no other references.
    let step = dump("qwen3-tied", &["step.safetensors", "base.safetensors"]);
    fs::write(step.path().join("case.json"), "{}").unwrap();
    let error = outcome(step.path(), "{} and a step").unwrap_err().to_string();
    assert!(error.contains("case.json") && error.contains("input_ids"), "{error}");
    // More tokens than the model has positions, and ids beyond its vocabulary.
    let positions = vec![1; 40_961];
    for (ids, says) in
        [(json!([positions]), "positions"), (json!([[1, 4_000_000_000_u32]]), "vocabulary")]
    {
        fs::write(directory.path().join("case.json"), json!({ "input_ids": ids }).to_string())
            .unwrap();
        let error = outcome(directory.path(), says).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn no_value_of_a_case_is_a_panic() {
    let values = [
        json!(null),
        json!(0),
        json!(-1),
        json!(1e308),
        json!(u64::MAX),
        json!("x"),
        json!([]),
        json!({}),
        json!([1, "x"]),
    ];
    let mut refused = 0;
    for (case, files) in [
        ("qwen3-untied", &["grads.safetensors", "grpo.safetensors", "adamw.safetensors"][..]),
        ("qwen3-tied", &["step.safetensors"]),
    ] {
        let directory = dump(case, files);
        let path = directory.path().join("case.json");
        let sound: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let mut all = Vec::new();
        pointers(&sound, "", &mut all);
        let unread = [
            "/seed",
            "/model",
            "/versions",
            "/weights",
            "/self_check",
            "/lora",
            "/greedy",
            "/dtype",
        ];
        all.retain(|pointer| !unread.iter().any(|unread| pointer.starts_with(unread)));
        for (number, pointer) in all.iter().enumerate() {
            // Each in its turn: all of them at every place would take minutes.
            for value in [number, 3 * number + 1].map(|turn| &values[turn % values.len()]) {
                let mut json = sound.clone();
                *json.pointer_mut(pointer).unwrap() = value.clone();
                fs::write(&path, json.to_string()).unwrap();
                let result = outcome(directory.path(), &format!("{case}: {pointer} = {value}"));
                refused += usize::from(result.is_err());
            }
        }
    }
    assert!(refused > 20, "{refused} refused");
}

#[test]
fn no_length_of_a_tensor_is_a_panic() {
    for (case, name) in [("qwen3-tied", "step.safetensors"), ("qwen3-untied", "grpo.safetensors")] {
        let directory = dump(case, &[name]);
        let path = directory.path().join(name);
        let sound = fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&sound).unwrap();
        let names: Vec<&str> =
            file.names().into_iter().filter(|name| !name.contains("lora_")).collect();
        assert!(names.len() > 2, "{names:?}");
        for &damaged in &names {
            for len in [0, 1, 7] {
                let bytes = vec![0; 4 * len];
                let mut views: BTreeMap<&str, TensorView> = file.iter().collect();
                let short = TensorView::new(safetensors::Dtype::F32, vec![len], &bytes).unwrap();
                views.insert(damaged, short);
                fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
                drop(outcome(directory.path(), &format!("{name}: {len} values of {damaged}")));
            }
        }
    }
}
