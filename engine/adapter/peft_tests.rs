//! Adapters of ours in Python's PEFT: tests/fixtures/adapter holds adapters that [`Adapter::save`] wrote, and the logits that PEFT
//! computed with them on the golden models (make.py there). PEFT's adapters in this engine are `j1 check`'s matter.

use std::fs;
use std::path::{Path, PathBuf};

use kernels::cpu::philox::{Philox, Stream};

use super::*;
use crate::golden;
use crate::model::{Model, Precision};
use crate::tensor::Device;

/// (fixture, golden model, settings): both formulas for the scale, all projections and some.
fn fixtures() -> [(&'static str, &'static str, AdapterSettings); 2] {
    let settings = |rank, alpha, rank_stabilized, dropout, targets: &[Projection]| {
        AdapterSettings { rank, alpha, rank_stabilized, dropout, targets: targets.to_vec() }
    };
    let some = [Projection::Value, Projection::Query, Projection::Gate, Projection::Down];
    [
        ("all-projections", "qwen3-tied", settings(3, 6.0, false, 0.0, &Projection::ALL)),
        ("rank-stabilized", "qwen3-untied", settings(2, 1.5, true, 0.1, &some)),
    ]
}

fn folder(fixture: &str) -> PathBuf {
    golden::tests("fixtures/adapter").join(fixture)
}

fn config_of(case: &str) -> Config {
    Config::load(&golden::case(case).join("model")).unwrap()
}

/// A new adapter with B drawn as well, as if it had been trained.
fn trained(case: &str, settings: &AdapterSettings) -> Adapter {
    let mut adapter = Adapter::initialize(&config_of(case), settings, 20).unwrap();
    adapter.base_model = Some(format!("../../../golden/{case}/model"));
    for (layer, slots) in adapter.layers.iter_mut().enumerate() {
        for (number, factors) in slots.iter_mut().enumerate() {
            let draws = Philox::new(21, (layer * 7 + number) as u64, Stream::ADAPTER);
            for (position, b) in factors.iter_mut().flat_map(|f| f.b.iter_mut()).enumerate() {
                *b = (draws.uniform_f64(position as u32) - 0.5) as f32 * 0.2;
            }
        }
    }
    adapter
}

#[test]
fn saved_adapters_have_the_bytes_that_peft_was_given() {
    let scratch = tempfile::tempdir().unwrap();
    let mut differing = Vec::new();
    for (fixture, case, settings) in fixtures() {
        let saved = scratch.path().join(fixture);
        trained(case, &settings).save(&saved).unwrap();
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
        assert!(error <= golden::BOUND, "{fixture}: {error:e}");
        let base = golden::logits(&golden::open(&model, None), &ids);
        let change = golden::largest_difference(&base, &theirs);
        assert!(change > 100.0 * golden::BOUND, "{fixture} changes the logits by {change:e} only");
    }
}

#[test]
fn a_trained_adapter_comes_back_with_the_same_bits() {
    let (_, case, settings) = &fixtures()[1];
    let (config, directory) = (config_of(case), golden::case(case).join("model"));
    let mut adapter = Adapter::initialize(&config, settings, 5).unwrap();
    let checkpoint = Checkpoint::open(&directory).unwrap();
    let device = Device::new(kernels::cpu::Cpu::new(1));
    let open = |adapter: &Adapter| {
        let (config, device) = (config.clone(), device.clone());
        Model::new(&checkpoint, config, Some(adapter), Precision::F32, device).unwrap()
    };
    let mut model = open(&adapter);
    model.train_adapter();
    // As an optimizer's step leaves them: all bits in use.
    let draws = Philox::new(6, 0, Stream::ADAPTER);
    let mut position = 0;
    for (_, tensor) in model.parameters_mut() {
        for value in tensor.data_mut() {
            *value += (draws.uniform_f64(position) - 0.5) as f32 * 0.01;
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
    let (_, case, settings) = &fixtures()[1];
    let scratch = tempfile::tempdir().unwrap();
    let save = |name: &str, settings: &AdapterSettings| {
        let directory = scratch.path().join(name);
        trained(case, settings).save(&directory).unwrap();
        [CONFIG, WEIGHTS].map(|name: &str| fs::read(Path::new(&directory).join(name)).unwrap())
    };
    let mut turned = settings.clone();
    turned.targets.reverse();
    turned.targets.push(turned.targets[0]);
    assert!(save("a", settings) == save("b", &turned));
}
