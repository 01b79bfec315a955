//! This engine's adapters in Python's PEFT: tests/fixtures/adapter holds adapters that [`Adapter::save`] wrote, and the logits that PEFT
//! computed with them on the golden models (make.py there). PEFT's adapters in this engine are `j1 check`'s matter.

use std::fs;
use std::path::{Path, PathBuf};

use kernels::cpu::philox::{RngKey, Stream};

use super::*;
use crate::golden;
use crate::model::{Model, Precision};
use crate::tensor::Device;

/// (fixture, golden model, settings): both formulas for the scale, all projections and some, ranks and alphas by matrix.
fn fixtures() -> [(&'static str, &'static str, AdapterSettings); 3] {
    let settings = |rank, alpha, rank_stabilized, dropout, targets: &[Projection]| {
        AdapterSettings { rank, alpha, rank_stabilized, dropout, targets: targets.to_vec() }
    };
    let some = [Projection::Value, Projection::Query, Projection::Gate, Projection::Down];
    [
        ("all-projections", "qwen3-tied", settings(3, 6.0, false, 0.0, &Projection::ALL)),
        ("rank-stabilized", "qwen3-untied", settings(2, 1.5, true, 0.1, &some)),
        (PATTERNS, "qwen3-tied", settings(3, 6.0, true, 0.0, &Projection::ALL)),
    ]
}

const PATTERNS: &str = "patterns";

fn folder(fixture: &str) -> PathBuf {
    golden::tests("fixtures/adapter").join(fixture)
}

fn config_of(case: &str) -> Config {
    Config::load(&golden::case(case).join("model")).unwrap()
}

/// A new adapter with B drawn as well, as if it had been trained.
fn trained(fixture: &str, case: &str, settings: &AdapterSettings) -> Adapter {
    let config = config_of(case);
    let mut adapter = Adapter::initialize(&config, settings, 20).unwrap();
    if fixture == PATTERNS {
        by_patterns(&mut adapter, &config);
    }
    adapter.base_model = Some(format!("../../../golden/{case}/model"));
    for (layer, slots) in adapter.layers.iter_mut().enumerate() {
        for (number, factors) in slots.iter_mut().enumerate() {
            let key = RngKey::new(21, (layer * 7 + number) as u64, Stream::ADAPTER);
            for (position, b) in factors.iter_mut().flat_map(|f| f.b.iter_mut()).enumerate() {
                *b = (key.uniform_f64(position as u32) - 0.5) as f32 * 0.2;
            }
        }
    }
    adapter
}

/// Gives matrices the ranks and alphas of patterns, among which the first that matches counts: sorted, they would mean another
/// adapter. What they mean is written out here; PEFT has the same shapes and logits, or make.py fails.
fn by_patterns(adapter: &mut Adapter, config: &Config) {
    let named =
        |pairs: &[(&str, f64)]| pairs.iter().map(|(key, v)| (key.to_string(), *v)).collect();
    let ranks: Vec<(String, f64)> =
        named(&[("layers.1.self_attn.q_proj", 5.0), ("[qk]_proj", 2.0), (r"mlp\.(?!down).*", 4.0)]);
    adapter.rank_pattern =
        Patterns(ranks.into_iter().map(|(key, rank)| (key, rank as usize)).collect());
    adapter.alpha_pattern = Patterns(named(&[
        ("model.layers.0.mlp.up_proj", 9.0),
        ("(v|up)_proj", 2.5),
        ("0..*", 4.0),
    ]));
    for layer in 0..config.num_hidden_layers {
        for projection in Projection::ALL {
            let rank = match (projection, layer) {
                (Projection::Query, 1) => 5,
                (Projection::Query | Projection::Key, _) => 2,
                (Projection::Gate | Projection::Up, _) => 4,
                _ => 3,
            };
            let alpha: f64 = match (projection, layer) {
                (Projection::Up, 0) => 9.0,
                (Projection::Up | Projection::Value, _) => 2.5,
                (_, 0) => 4.0,
                _ => 6.0,
            };
            let [outputs, inputs] = projection.shape(config);
            let key = RngKey::new(22, (layer * 7 + projection as usize) as u64, Stream::ADAPTER);
            let a = (0..rank * inputs).map(|at| (key.uniform_f64(at as u32) - 0.5) as f32 * 0.2);
            let scale = (alpha / (rank as f64).sqrt()) as f32;
            let factors = LoraFactors { a: a.collect(), b: vec![0.0; outputs * rank], rank, scale };
            adapter.set_factors(layer, projection, factors);
        }
    }
}

#[test]
fn saved_adapters_have_the_bytes_that_peft_was_given() {
    let scratch = tempfile::tempdir().unwrap();
    let mut differing = Vec::new();
    for (fixture, case, settings) in fixtures() {
        let saved = scratch.path().join(fixture);
        trained(fixture, case, &settings).save(&saved).unwrap();
        differing.extend([CONFIG, WEIGHTS].into_iter().filter_map(|name| {
            let expected = fs::read(folder(fixture).join(name)).unwrap_or_default();
            (fs::read(saved.join(name)).unwrap() != expected).then(|| format!("{fixture}/{name}"))
        }));
    }
    if !differing.is_empty() {
        panic!(
            "{differing:?} are not what is saved now; if that is meant, copy {}/* to tests/fixtures/adapter and run \
             make.py there",
            scratch.keep().display()
        );
    }
}

#[test]
fn peft_computes_the_same_logits_with_our_adapters() {
    for (fixture, case, _) in fixtures() {
        let (folder, model) = (folder(fixture), golden::case(case).join("model"));
        let file = folder.join("logits.safetensors");
        let (ids, theirs) = golden::reference(&file, "input_ids", "logits");
        let adapted = golden::logits(&golden::open(&model, Some(&folder)), &ids);
        let error = golden::largest_difference(&adapted, &theirs);
        let bound = golden::BOUND;
        assert!(error <= bound, "{fixture}: logits differ by {error:e}, at most {bound:e}");
        let base = golden::logits(&golden::open(&model, None), &ids);
        let change = golden::largest_difference(&base, &theirs);
        assert!(change > 100.0 * golden::BOUND, "{fixture} changes the logits by {change:e} only");
    }
}

#[test]
fn a_trained_adapter_comes_back_with_the_same_bits() {
    for (fixture, case, settings) in &fixtures()[1..] {
        comes_back(fixture, case, settings);
    }
}

fn comes_back(fixture: &str, case: &str, settings: &AdapterSettings) {
    let (config, directory) = (config_of(case), golden::case(case).join("model"));
    let mut adapter = trained(fixture, case, settings);
    let checkpoint = Checkpoint::open(&directory).unwrap();
    let device = Device::new(kernels::cpu::Cpu::new(1));
    let open = |adapter: &Adapter| {
        let (config, device) = (config.clone(), device.clone());
        Model::new(&checkpoint, config, Some(adapter), Precision::F32, device).unwrap()
    };
    let mut model = open(&adapter);
    model.train_adapter();
    // As an optimizer's step leaves them: all bits in use.
    let key = RngKey::new(6, 0, Stream::ADAPTER);
    let mut position = 0;
    for (_, tensor) in model.parameters_mut() {
        for value in tensor.data_mut() {
            *value += (key.uniform_f64(position) - 0.5) as f32 * 0.01;
            position += 1;
        }
    }
    model.store_adapter(&mut adapter).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let saved = scratch.path().join("adapter");
    adapter.save(&saved).unwrap();

    let loaded = Adapter::load(&saved, &config).unwrap();
    let bits = |model: &Model| -> Vec<(String, Vec<u32>)> {
        let parameters = model.parameters();
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
        parameters.map(|(name, tensor)| (name.peft_key(), bits(tensor.data()))).collect()
    };
    assert_eq!(bits(&open(&loaded)), bits(&model));
    assert_eq!(loaded, adapter, "scale, dropout and targets as well");
    loaded.save(&scratch.path().join("again")).unwrap();
    for name in [CONFIG, WEIGHTS] {
        let read = |directory: &str| fs::read(scratch.path().join(directory).join(name)).unwrap();
        assert!(read("adapter") == read("again"), "{name}");
    }
    let ids = [1, 5, 9, 2];
    assert_eq!(golden::logits(&open(&loaded), &ids), golden::logits(&model, &ids));
}

/// The projections that a file names stand in a fixed order, whatever the order of the settings.
#[test]
fn the_order_of_targets_changes_no_byte() {
    let (fixture, case, settings) = &fixtures()[1];
    let scratch = tempfile::tempdir().unwrap();
    let save = |name: &str, settings: &AdapterSettings| {
        let directory = scratch.path().join(name);
        trained(fixture, case, settings).save(&directory).unwrap();
        [CONFIG, WEIGHTS].map(|name: &str| fs::read(Path::new(&directory).join(name)).unwrap())
    };
    let mut turned = settings.clone();
    turned.targets.reverse();
    turned.targets.push(turned.targets[0]);
    assert!(save("a", settings) == save("b", &turned));
}
