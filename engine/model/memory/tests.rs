//! The prediction against what the device counts.

use super::*;
use crate::{
    checkpoint::{
        adapter::{Adapter, AdapterSettings},
        weights::Checkpoint,
    },
    golden::case,
};

const RANK: usize = 3;

/// A tiny model with a new adapter, and the device that it alone is on.
fn open(name: &str, targets: &[Projection]) -> Model {
    let settings = AdapterSettings {
        rank: RANK,
        alpha: 6.0,
        rank_stabilized: false,
        dropout: 0.0,
        targets: targets.to_vec(),
    };
    let directory = case(name).join("model");
    let checkpoint = Checkpoint::open(&directory).unwrap();
    let config = Config::load(&directory).unwrap();
    let adapter = Adapter::initialize(&config, &settings, 0).unwrap();
    let precision = match name.ends_with("bf16") {
        true => Precision::Bf16,
        false => Precision::F32,
    };
    let device = Device::new(Cpu::new(1));
    let mut model = Model::new(&checkpoint, config, Some(&adapter), precision, device).unwrap();
    model.train_adapter();
    model
}

fn batch(groups: &[(usize, &[usize])]) -> PackedBatch {
    let mut batch = PackedBatch::default();
    for (prompt, completions) in groups {
        let completions: Vec<Vec<u32>> = completions.iter().map(|len| vec![7; *len]).collect();
        let completions: Vec<&[u32]> = completions.iter().map(Vec::as_slice).collect();
        batch.push(&vec![5; *prompt], &completions);
    }
    batch
}

#[test]
fn a_training_pass_takes_the_buffers_that_are_predicted() {
    use Projection::{Down, Query, Value};
    let some = [Query, Value, Down];
    let long: &[(usize, &[usize])] = &[(70, &[40, 1, 33]), (5, &[20])];
    for (name, targets) in [
        ("qwen3-tied", &Projection::ALL[..]),
        ("qwen3-tied-bf16", &some),
        ("qwen2", &Projection::ALL),
        ("llama", &some),
    ] {
        for (checkpoint, dropout, reference) in [
            (true, false, false),
            (false, false, false),
            (true, true, true),
            (false, true, true),
            (false, false, true),
        ] {
            for groups in [long, &[(200, &[3])], &[(64, &[64, 64])]] {
                // A device of its own each time: buffers are kept.
                let model = open(name, targets);
                let trained = TrainedModel {
                    config: model.config(),
                    weights: model.weights_dtype(),
                    precision: model.precision(),
                    rank: RANK,
                    targets,
                    threads: 1,
                    isa: model.device().host().isa(),
                };
                let batch = batch(groups);
                let pass = TrainedPass { checkpoint, dropout, reference };
                let predicted = trained.training(&batch, pass).unwrap();
                run_training(&model, &batch, pass);
                let measured = PassMemory { logits: predicted.logits, ..memory_of(&model) };
                assert_eq!(predicted, measured, "{name} {pass:?} {groups:?}");
                assert!(predicted.buffers <= predicted.allocated, "{predicted:?}");
            }
        }
    }
}

#[test]
fn parameters_and_scratch_by_hand() {
    let model = open("qwen3-tied", &[Projection::Query]);
    let trained = TrainedModel {
        config: model.config(),
        weights: Dtype::BF16,
        precision: Precision::Bf16,
        rank: RANK,
        targets: &[Projection::Query],
        threads: 2,
        isa: Isa::Portable,
    };
    // hidden 48, queries 4 x 16, 2 layers.
    assert_eq!(trained.adapter_parameters(), 2 * 3 * (48 + 64));
    let pass = TrainedPass { checkpoint: true, dropout: false, reference: false };
    let memory = trained.training(&batch(&[(10, &[3])]), pass).unwrap();
    // Two threads' two panels of 16 columns: eight lanes of 128 steps, a line between two.
    assert!(memory.scratch.total() > 4 * 2 * 2 * (8 * (128 * 16 + 16)), "{memory:?}");
    assert_eq!(memory.logits, 4 * 3 * 320);
    let with = trained.training(&batch(&[(1000, &[500])]), pass).unwrap();
    let without = trained
        .training(&batch(&[(1000, &[500])]), TrainedPass { checkpoint: false, ..pass })
        .unwrap();
    assert!(with.buffers < without.buffers, "{with:?} {without:?}");
}

/// cuda_tests/memory.rs compares the counts with a GPU's pool.
#[test]
fn a_gpu_keeps_activations_or_computes_them_again() {
    let config = Config::qwen3(1024, 3072);
    let trained = TrainedModel {
        config: &config,
        weights: Dtype::BF16,
        precision: Precision::Bf16,
        rank: 16,
        targets: &Projection::ALL,
        threads: 1,
        isa: Isa::Portable,
    };
    let batch = batch(&[(2048, &[2048])]);
    let pass = TrainedPass { checkpoint: false, dropout: false, reference: true };
    let kept = trained.training_on_cuda(&batch, pass);
    let recomputed = trained.training_on_cuda(&batch, TrainedPass { checkpoint: true, ..pass });
    assert!(kept.peak > 4 * recomputed.peak, "{kept:?} {recomputed:?}");
    assert_eq!(kept.attention, recomputed.attention);
    assert!(kept.attention > 100 << 20 && kept.attention < 600 << 20, "{kept:?}");
    // 151,936 rows of 1,024 and 440 M others in bf16; norms and tables.
    let model = trained.on_cuda();
    let parameters = 2 * config.parameter_count();
    assert!((parameters..parameters + (64 << 20)).contains(&model.weights), "{model:?}");
    assert!(model.moments >= 8 * trained.adapter_parameters(), "{model:?}");
}
