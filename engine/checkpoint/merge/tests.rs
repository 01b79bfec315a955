//! Merged golden models against base and adapter, and against PEFT's own merge; what a merge leaves behind when it ends early.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use half::{bf16, f16};
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::checkpoint::adapter::AdapterSettings;
use crate::checkpoint::weights::Dtype;
use crate::golden::{self, BOUND, CASES};

fn plain_merge(model: &Path, adapter: &Path, out: &Path) -> Result<Merged, MergeError> {
    merge(model, adapter, out, &mut |_| (), &AtomicBool::new(false))
}

fn parts(case: &str) -> (PathBuf, PathBuf) {
    (golden::case(case).join("model"), golden::case(case).join("adapter"))
}

/// Files by name.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap();
    let file = |entry: io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())
    };
    entries.map(file).collect()
}

fn merged(case: &str) -> (TempDir, PathBuf, Merged) {
    let (model, adapter) = parts(case);
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("runs").join("merged");
    let summary = plain_merge(&model, &adapter, &out).unwrap();
    let beside: Vec<_> = files(&out).into_keys().collect();
    assert_eq!(beside, files(&model).into_keys().collect::<Vec<_>>(), "{case}");
    assert_eq!(
        fs::read_dir(out.parent().unwrap()).unwrap().count(),
        1,
        "{case}: something is left"
    );
    (scratch, out, summary)
}

/// In f32 the merge is as good as the adapter; in 16 bits its error is at most twice that of PEFT's own merge.
#[test]
fn merged_models_compute_what_base_and_adapter_do() {
    let bounds = fs::read_to_string(golden::tests("fixtures/adapter/merge.json")).unwrap();
    let bounds: Value = serde_json::from_str(&bounds).unwrap();
    for case in CASES {
        let (_scratch, out, _) = merged(case);
        let model = golden::open(&out, None);
        let info = fs::read_to_string(golden::case(case).join("case.json")).unwrap();
        let info: Value = serde_json::from_str(&info).unwrap();
        let file = golden::case(case).join("lora.safetensors");
        let mut error = 0f64;
        for (sequence, ids) in info["input_ids"].as_array().unwrap().iter().enumerate() {
            let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            let name = format!("logits_seq{sequence}");
            let (_, theirs) = golden::reference(&file, "input_ids_padded", &name);
            error = error.max(golden::largest_difference(&golden::logits(&model, &ids), &theirs));
        }
        let bound = match info["weights"].as_str().unwrap() {
            "float32" => BOUND,
            _ => 2.0 * bounds[case].as_f64().unwrap(),
        };
        assert!(error <= bound, "{case}: {error:e}, allowed {bound:e}");
    }
}

/// Every element, the naive way; what is not adapted and all headers are the source's bytes.
#[test]
fn every_weight_is_the_rounded_sum_and_all_else_is_copied() {
    for case in CASES {
        let (model, adapter) = parts(case);
        let (_scratch, out, summary) = merged(case);
        let config = Config::load(&model).unwrap();
        let adapter = Adapter::load(&adapter, &config).unwrap();
        let (old, new) = (Checkpoint::open(&model).unwrap(), Checkpoint::open(&out).unwrap());
        let (old_files, new_files) = (files(&model), files(&out));
        for (name, bytes) in old_files.iter().filter(|(name, _)| !name.ends_with(".safetensors")) {
            assert!(new_files[name] == *bytes, "{case}: {name}");
        }
        let deltas = deltas(&adapter, &config);
        let adapted = |name: &str| {
            let factors = (0..config.num_hidden_layers).flat_map(|layer| {
                Projection::ALL.map(|projection| {
                    let module = projection.module();
                    let factors = adapter.factors(layer, projection);
                    (format!("model.layers.{layer}.{module}.weight"), factors)
                })
            });
            factors.into_iter().find(|(full, _)| full == name).and_then(|(_, factors)| factors)
        };
        let (mut changed, mut total) = (0, 0);
        for (old_file, new_file) in old.stored_files().iter().zip(new.stored_files()) {
            assert!(old_file.path.file_name() == new_file.path.file_name());
            assert!(old_file.header == new_file.header, "{case}: a header");
            for (before, after) in old_file.tensors.iter().zip(&new_file.tensors) {
                let name = before.name;
                assert_eq!((name, before.dtype), (after.name, after.dtype));
                total += before.bytes.len() as u64;
                let Some(factors) = adapted(name) else {
                    assert!(before.bytes == after.bytes, "{case}: {name}");
                    continue;
                };
                changed += 1;
                assert!(deltas.contains_key(name));
                let view = old.tensor(name).unwrap().unwrap();
                let (w, columns) = (view.to_f32().unwrap(), view.shape[1]);
                let y = new.tensor(name).unwrap().unwrap().to_f32().unwrap();
                for (index, (w, y)) in w.iter().zip(&y).enumerate() {
                    let (row, column) = (index / columns, index % columns);
                    let product = (0..factors.rank).fold(0.0, |sum, r| {
                        let b = f64::from(factors.b[row * factors.rank + r]);
                        sum + b * f64::from(factors.a[r * columns + column])
                    });
                    let sum = (f64::from(*w) + f64::from(factors.scale) * product) as f32;
                    let expected = match before.dtype {
                        Dtype::BF16 => bf16::from_f32(sum).to_f32(),
                        Dtype::F16 => f16::from_f32(sum).to_f32(),
                        _ => sum,
                    };
                    assert_eq!(*y, expected, "{case}: {name} [{row}, {column}]");
                }
            }
        }
        let weight_files = old.files().count();
        let expected = (changed, changed, weight_files, total);
        let Merged { changed: others, matrices, weight_files, weight_bytes, .. } = summary;
        assert_eq!((others, matrices, weight_files, weight_bytes), expected, "{case}");
        assert_eq!(changed, deltas.len());
    }
}

#[test]
fn a_new_adapter_changes_no_byte() {
    let (model, _) = parts("qwen3-sharded");
    let config = Config::load(&model).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let settings = AdapterSettings {
        rank: 2,
        alpha: 4.0,
        rank_stabilized: false,
        dropout: 0.0,
        targets: Projection::ALL.to_vec(),
    };
    let adapter = scratch.path().join("adapter");
    Adapter::initialize(&config, &settings, 1).unwrap().save(&adapter).unwrap();
    let out = scratch.path().join("out");
    fs::create_dir(&out).unwrap();
    let merged = plain_merge(&model, &adapter, &out).unwrap();
    assert!(files(&out) == files(&model));
    assert_eq!((merged.changed, merged.matrices), (0, 7 * config.num_hidden_layers));
    assert!(
        merged.notes.iter().any(|note| note.contains("changes nothing: B is zero")),
        "{:?}",
        merged.notes
    );
}

/// Counted are matrices whose bytes changed, not those that the adapter has factors for.
#[test]
fn only_matrices_that_changed_are_counted() {
    let (model, _) = parts("qwen3-tied-bf16");
    let config = Config::load(&model).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let (rank, targets) = (2, Projection::ALL.to_vec());
    let settings =
        AdapterSettings { rank, alpha: 4.0, rank_stabilized: false, dropout: 0.0, targets };
    let mut adapter = Adapter::initialize(&config, &settings, 1).unwrap();
    // One that changes weights, and one that is lost in the rounding to bf16.
    for (layer, b) in [(0, 0.5), (1, 1e-30)] {
        let mut factors = adapter.factors(layer, Projection::Up).unwrap().clone();
        factors.b.fill(b);
        adapter.set_factors(layer, Projection::Up, factors);
    }
    adapter.save(&scratch.path().join("adapter")).unwrap();
    let merged = plain_merge(&model, &scratch.path().join("adapter"), &scratch.path().join("out"));
    let merged = merged.unwrap();
    assert_eq!((merged.changed, merged.matrices), (1, 7 * config.num_hidden_layers));
    assert_eq!(merged.notes, Vec::<String>::new());
}

/// A copy of a golden model, for tests that add to it.
fn model_copy(scratch: &Path, case: &str) -> PathBuf {
    let copy = scratch.join("model");
    fs::create_dir(&copy).unwrap();
    for (name, bytes) in files(&parts(case).0) {
        fs::write(copy.join(name), bytes).unwrap();
    }
    copy
}

#[test]
fn other_forms_of_the_old_weights_are_left_out() {
    let scratch = tempfile::tempdir().unwrap();
    let model = model_copy(scratch.path(), "qwen3-tied");
    let stale = [
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.safetensors.index.json", // of shards that are not read
        "model-00001-of-00002.safetensors",
        "model.Q8_0.GGUF",
        "adapter_config.json",
        ".gitattributes",
    ];
    for name in stale {
        fs::write(model.join(name), "old").unwrap();
    }
    fs::write(model.join("LICENSE"), "kept").unwrap();
    fs::create_dir(model.join("onnx")).unwrap();
    let out = scratch.path().join("out");
    plain_merge(&model, &parts("qwen3-tied").1, &out).unwrap();
    let names: Vec<_> = files(&out).into_keys().collect();
    let mut expected: Vec<_> = files(&parts("qwen3-tied").0).into_keys().collect();
    expected.insert(0, "LICENSE".to_owned());
    assert_eq!(names, expected);
}

#[test]
fn chat_templates_with_names_are_copied() {
    let scratch = tempfile::tempdir().unwrap();
    let model = model_copy(scratch.path(), "qwen2");
    let folder = Path::new(ADDITIONAL_TEMPLATES);
    fs::create_dir_all(model.join(folder).join("deep.jinja")).unwrap();
    let templates = ["default.jinja", "tool_use.jinja"].map(|name| folder.join(name));
    for name in &templates {
        fs::write(model.join(name), name.to_str().unwrap()).unwrap();
    }
    fs::write(model.join(folder).join("notes.txt"), "not copied").unwrap();
    let out = scratch.path().join("out");
    // Leftovers of a killed merge are no obstacle; other files are.
    let partial = scratch.path().join("out.partial").join(folder);
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join("tool_use.jinja"), "half").unwrap();
    fs::write(partial.join("mine.jinja"), "mine").unwrap();
    let error = plain_merge(&model, &parts("qwen2").1, &out).unwrap_err();
    assert!(matches!(error, MergeError::Foreign { .. }), "{error}");
    assert!(error.to_string().contains("additional_chat_templates/mine.jinja"), "{error}");
    assert_eq!(fs::read(partial.join("tool_use.jinja")).unwrap(), b"half");
    fs::remove_file(partial.join("mine.jinja")).unwrap();
    plain_merge(&model, &parts("qwen2").1, &out).unwrap();
    for name in &templates {
        assert_eq!(fs::read(out.join(name)).unwrap(), name.to_str().unwrap().as_bytes());
    }
    assert_eq!(fs::read_dir(out.join(folder)).unwrap().count(), 2);
}

#[test]
#[cfg(unix)]
fn a_link_to_nothing_beside_the_weights_is_not_left_out() {
    let (model, adapter) = parts("qwen2");
    let scratch = tempfile::tempdir().unwrap();
    let source = scratch.path().join("model");
    fs::create_dir(&source).unwrap();
    for entry in fs::read_dir(model).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, source.join(path.file_name().unwrap())).unwrap();
    }
    std::os::unix::fs::symlink("../blobs/4d7a", source.join("tokenizer.json")).unwrap();
    let out = scratch.path().join("out");
    let error = plain_merge(&source, &adapter, &out).unwrap_err();
    assert!(matches!(error, MergeError::File(FileError::DanglingLink { .. })), "{error}");
    assert!(error.to_string().contains("../blobs/4d7a") && !out.exists(), "{error}");
}

#[test]
fn a_place_that_is_taken_is_refused_before_anything_is_written() {
    let (model, adapter) = parts("qwen2");
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let refused = |out: &Path| plain_merge(&model, &adapter, out).unwrap_err();
    fs::create_dir(path("full")).unwrap();
    fs::write(path("full/mine"), "mine").unwrap();
    let error = refused(&path("full"));
    assert!(matches!(&error, MergeError::NotEmpty { found, .. } if found == "mine"), "{error}");
    assert!(matches!(refused(&path("full/mine")), MergeError::NotADirectory { .. }));
    assert!(matches!(refused(&path("full/mine/below")), MergeError::Write(_)));
    assert!(matches!(refused(&path("none/..")), MergeError::Name { .. }));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(path("nothing"), path("link")).unwrap();
        assert!(matches!(refused(&path("link")), MergeError::NotADirectory { .. }));
    }
    // Somebody's directory of that name, and another process at work.
    fs::create_dir(path("out.partial")).unwrap();
    fs::write(path("out.partial/mine"), "mine").unwrap();
    let error = refused(&path("out"));
    assert!(matches!(&error, MergeError::Foreign { found, .. } if found == "mine"), "{error}");
    assert_eq!(fs::read(path("out.partial/mine")).unwrap(), b"mine");
    fs::remove_file(path("out.partial/mine")).unwrap();
    let held = File::open(path("out.partial")).unwrap();
    held.lock().unwrap();
    assert!(matches!(refused(&path("out")), MergeError::InUse { .. }));
    drop(held);

    // Leftovers of a killed merge are written again.
    fs::write(path("out.partial/model.safetensors"), "half").unwrap();
    plain_merge(&model, &adapter, &path("out")).unwrap();
    assert_eq!(crate::files::names(scratch.path()), ["full", "link", "out"]);
    assert!(files(&path("full")).len() == 1 && files(&path("out")).len() == 3);
}

#[test]
fn a_merge_that_is_stopped_leaves_nothing() {
    let (model, adapter) = parts("qwen3-sharded");
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let mut steps = 0;
    merge(&model, &adapter, &out, &mut |_| steps += 1, &AtomicBool::new(false)).unwrap();
    assert!(steps > 10, "{steps}");
    for last in [1, 2, steps / 2, steps] {
        let out = scratch.path().join(format!("stopped-{last}"));
        let stop = AtomicBool::new(false);
        let (mut step, mut before) = (0, 0);
        let mut observe = |progress: MergeProgress| {
            step += 1;
            assert!(progress.done_bytes >= before && progress.done_bytes <= progress.total_bytes);
            before = progress.done_bytes;
            assert!(!out.join("config.json").exists() && !out.exists(), "it appears at the end");
            if step == last {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let error = merge(&model, &adapter, &out, &mut observe, &stop).unwrap_err();
        assert!(matches!(error, MergeError::Stopped), "{error}");
        assert_eq!(step, last);
    }
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1, "only the finished one");
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let error = plain_merge(&parts("qwen3-tied").0, &parts("llama").1, &out).unwrap_err();
    assert!(matches!(error, MergeError::Adapter(AdapterError::Shape { .. })), "{error}");
    let (model, adapter) = parts("qwen3-tied");
    let error = plain_merge(&adapter, &model, &out).unwrap_err();
    assert!(error.to_string().contains("give it as the adapter"), "{error}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}
