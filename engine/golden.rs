//! The tiny models in tests/golden, for tests.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

use crate::{
    checkpoint::weights::Dtype,
    language_model::LanguageModel,
    model::{
        Batch, Model, Precision,
        kv_cache::{KvCache, PageTable},
    },
    tensor::Device,
};

/// Every case.
pub(crate) const CASES: [&str; 6] =
    ["qwen3-tied", "qwen3-tied-bf16", "qwen3-untied", "qwen3-sharded", "qwen2", "llama"];

/// Against PyTorch in f32, whose own kernels differ from each other by 1e-5 (`trainer::check::BOUND`).
pub(crate) const BOUND: f64 = 2e-5;

/// A folder of tests.
pub(crate) fn tests(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(folder)
}

/// The directory of a case.
pub(crate) fn case(name: &str) -> PathBuf {
    tests("golden").join(name)
}

/// Opens a checkpoint to compute in f32.
pub(crate) fn open(model: &Path, adapter: Option<&Path>) -> Model {
    let builder = LanguageModel::builder(model).device(&Device::cpu_threads(1));
    builder.adapter(adapter).precision(Precision::F32).open_model().unwrap()
}

/// The logits after every token.
pub(crate) fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let pages = KvCache::pages_for(ids.len());
    let mut cache =
        KvCache::new(model.device(), model.config(), model.cache_dtype(), pages).unwrap();
    let (mut table, mut batch) = (PageTable::default(), Batch::default());
    cache.extend(&mut table, ids.len());
    batch.push(ids, 0, table.pages());
    batch.want_all_logits();
    model.forward(&batch, &mut cache).data().to_vec()
}

/// The contents of a reference's safetensors file: inputs, and logits after each of them.
pub(crate) fn reference(file: &Path, ids: &str, logits: &str) -> (Vec<u32>, Vec<f32>) {
    let bytes = std::fs::read(file).unwrap();
    let dump = SafeTensors::deserialize(&bytes).unwrap();
    let (ids, logits) = (dump.tensor(ids).unwrap(), dump.tensor(logits).unwrap());
    assert_eq!((ids.dtype(), logits.dtype()), (Dtype::I64, Dtype::F32));
    let ids = ids.data().as_chunks::<8>().0.iter();
    let logits = logits.data().as_chunks::<4>().0.iter();
    (
        ids.map(|bytes| u32::try_from(i64::from_le_bytes(*bytes)).unwrap()).collect(),
        logits.map(|bytes| f32::from_le_bytes(*bytes)).collect(),
    )
}

/// The largest difference; infinite if one is not a number or the lengths differ.
pub(crate) fn largest_difference(ours: &[f32], theirs: &[f32]) -> f64 {
    if ours.len() != theirs.len() {
        return f64::INFINITY;
    }
    let differences = ours.iter().zip(theirs).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    differences.fold(0.0, |largest, d| if d <= largest { largest } else { d.min(f64::INFINITY) })
}

/// The first test to look at when a number is wrong in all models. `j1 check tests/golden/*/` says where it begins.
#[test]
fn logits_are_those_of_transformers() {
    for name in CASES {
        let text = std::fs::read_to_string(case(name).join("case.json")).unwrap();
        let inputs = serde_json::from_str::<serde_json::Value>(&text).unwrap()["input_ids"].take();
        let inputs: Vec<Vec<u32>> = serde_json::from_value(inputs).unwrap();
        let bytes = std::fs::read(case(name).join("base.safetensors")).unwrap();
        let dump = SafeTensors::deserialize(&bytes).unwrap();
        let model = open(&case(name).join("model"), None);
        for (sequence, ids) in inputs.iter().enumerate() {
            let theirs = dump.tensor(&format!("logits_seq{sequence}")).unwrap();
            let theirs: &[[u8; 4]] = theirs.data().as_chunks().0;
            let theirs: Vec<f32> = theirs.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let error = largest_difference(&logits(&model, ids), &theirs);
            assert!(error <= BOUND, "{name}, sequence {sequence}: {error:e}, at most {BOUND:e}");
        }
    }
}
