//! The memory of a pass on a GPU, as the pool counted it, against its prediction.

use kernels::cpu::{Cpu, sample::SamplingParams};

use super::{Fixture, Gradients, PASS, gpu, numbers};
use crate::{
    checkpoint::{
        adapter::Projection,
        config::{Config, Family},
    },
    generate::{Generator, GeneratorOptions, Request},
    model::{
        Model, Precision,
        kv_cache::KvCache,
        memory::{TrainedModel, TrainedPass},
        training::{PackedBatch, TrainingPass},
    },
    ops::linear::Dropout,
    optimizer::AdamWSettings,
    tensor::{Tensor, device::Device, tape::Tape},
};

/// Of few rows of weights, so that activations are most of the memory.
fn fixture(family: Family, head_dim: usize, layers: usize, rank: usize) -> Fixture {
    let config = Config {
        family,
        num_hidden_layers: layers,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim,
        vocab_size: 203,
        tie_word_embeddings: family != Family::Llama,
        max_position_embeddings: 512,
        eos_token_ids: vec![202],
        bos_token_id: None,
        ..Config::qwen3(64, 192)
    };
    Fixture::of(config, rank)
}

/// The model on a device of its own, whose pool has counted nothing else.
fn open(fixture: &Fixture) -> Model {
    fixture.model(Precision::Bf16, &Device::cuda(0, Cpu::new(1)).unwrap())
}

/// Bytes that live, and the most there were.
fn in_use(model: &Model) -> [u64; 2] {
    let Device::Cuda(cuda) = model.device() else { unreachable!("opened on a GPU") };
    let (now, most) = cuda.gpu().memory_in_use();
    [now as u64, most as u64]
}

fn trained<'a>(model: &'a Model, rank: usize) -> TrainedModel<'a> {
    TrainedModel {
        config: model.config(),
        weights: model.weights_dtype(),
        precision: model.precision(),
        rank,
        targets: &Projection::ALL,
        threads: 1,
        isa: model.device().host().isa(),
    }
}

/// Two steps: in the second the optimizer's moments are there from the beginning.
fn learn(model: &mut Model, batch: &PackedBatch, pass: TrainedPass) {
    let dropout = pass.dropout.then_some(Dropout { probability: 0.1, seed: 0, pass: 0 });
    let options = TrainingPass { dropout, checkpoint: pass.checkpoint, ..PASS };
    let mut optimizer = model.optimizer(AdamWSettings::default());
    for _ in 0..2 {
        let mut gradients = Gradients::default();
        for _ in 0..2 {
            if pass.reference {
                let options = TrainingPass { adapter: false, dropout: None, ..options };
                model.log_probs(&mut Tape::off(), batch, options).unwrap();
            }
            let mut tape = Tape::new();
            let y = model.log_probs(&mut tape, batch, options).unwrap();
            let dy: Vec<f32> =
                numbers(3, batch.targets()).into_iter().flat_map(|dy| [dy, 0.0]).collect();
            let dy = Tensor::from_slice(model.device(), batch.targets(), 2, &dy);
            tape.backward(&y, dy, &mut gradients);
        }
        let _ = model.step(&mut optimizer, &gradients, 1e-3).unwrap();
    }
    model.device().status().unwrap();
}

#[test]
fn steps_take_what_is_predicted() {
    if gpu().is_none() {
        return;
    }
    let plain = |checkpoint| TrainedPass { checkpoint, dropout: false, reference: false };
    let more = TrainedPass { checkpoint: true, dropout: true, reference: true };
    for (family, head_dim, rank, pass) in [
        (Family::Qwen3, 16, 8, plain(false)),
        (Family::Qwen3, 16, 8, plain(true)),
        (Family::Qwen3, 64, 3, more),
        (Family::Qwen2, 32, 8, TrainedPass { checkpoint: false, ..more }),
        (Family::Llama, 16, 3, plain(false)),
    ] {
        let fixture = fixture(family, head_dim, 3, rank);
        let mut model = open(&fixture);
        let before = in_use(&model)[0];
        let tokens = |len: usize| (0..len as u32).map(|i| i * 7 % 203).collect::<Vec<_>>();
        let mut batch = PackedBatch::default();
        batch.push(&tokens(150), &[&tokens(70), &tokens(60)]);
        batch.push(&tokens(40), &[&tokens(50)]);
        let (of_model, of_pass) = {
            let trained = trained(&model, rank);
            let of_model = trained.on_cuda();
            (of_model, trained.training_on_cuda(&batch, pass))
        };
        learn(&mut model, &batch, pass);
        let what = format!("{family:?} {pass:?}");
        assert_eq!(of_model.bytes() + of_pass.peak, in_use(&model)[1], "{what}");
        // Before the first pass there are no tables, moments and parts of factors.
        assert!(before < of_model.bytes(), "{what}: {before}");
        assert!(of_pass.peak > of_model.bytes(), "{what}: activations are to be the most of it");
    }
}

#[test]
fn generation_takes_what_is_predicted() {
    if gpu().is_none() {
        return;
    }
    let fixture = fixture(Family::Qwen3, 64, 2, 8);
    let model = open(&fixture);
    let (prompt, completion, samples, prefill_rows, pages) = (200, 12, 8, 128, 32);
    let cache_bytes = pages * KvCache::page_bytes(model.config(), model.cache_dtype());
    let trained = trained(&model, 8);
    let mut of_model = trained.on_cuda();
    of_model.moments = 0;
    let predicted = of_model.bytes()
        + trained.cache_on_cuda(pages)
        + trained.generation_on_cuda(prefill_rows, samples, prompt + completion);
    let options = GeneratorOptions { max_batch: samples, prefill_rows, cache_bytes };
    let mut generator = Generator::new(&model, &[202], options).unwrap();
    // The second prompt comes when all but one sequence run, and recorded steps have run before.
    let request = |seed: u32, samples: std::ops::Range<u64>| Request {
        prompt: (0..prompt as u32).map(|i| (i + seed) % 202).collect(),
        samples: samples.collect(),
        seed: 1,
        max_new_tokens: completion,
        sampling: SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 },
        repetition_penalty: 1.0,
        top_log_probs: 0,
    };
    generator.submit(request(0, 0..samples as u64 - 1)).unwrap();
    for _ in 0..5 {
        generator.step(&mut |_| ()).unwrap();
    }
    generator.submit(request(7, 7..8)).unwrap();
    while !generator.is_idle() {
        generator.step(&mut |_| ()).unwrap();
    }
    assert_eq!(predicted, in_use(&model)[1]);
}
