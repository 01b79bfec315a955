//! A model on a GPU against the same model on the CPU: logits, log-probabilities, gradients, steps.
//!
//! They run on the emulator with its checks on, or on the driver that `CUDA_DRIVER_LIB` names.
//!
//! Tolerances are not tuned. Both devices round inputs of matmuls to bf16, at the same places but for gate and
//! up, and sum in other orders, so each may be as far from the exact result as the other: what the CPU in bf16
//! differs from the CPU in f32 bounds what the GPU may, twice.

mod decoding;
mod memory;

use half::bf16;
use kernels::cpu::{Cpu, sample::SamplingParams};

use crate::{
    checkpoint::{
        adapter::{Adapter, AdapterSettings, LoraFactors, Projection},
        config::{Config, Family, RopeScaling},
        random_checkpoint,
        weights::Checkpoint,
    },
    generate::{Generator, GeneratorOptions, Request},
    model::{
        Batch, Model, Precision,
        kv_cache::{KvCache, PageTable},
        training::{PackedBatch, TrainingPass},
    },
    ops::linear::Dropout,
    optimizer::{AdamW, AdamWSettings, StepOutcome, TensorParameter},
    tensor::{
        Tensor,
        device::{Device, DeviceError},
        tape::{Gradients, Tape},
    },
};

/// The GPU all tests share; `None`, with a message, where there is none.
fn gpu() -> Option<Device> {
    static GPU: std::sync::OnceLock<Option<Device>> = std::sync::OnceLock::new();
    let open = || {
        if std::env::var_os("CUDA_DRIVER_LIB").is_none() {
            // Refused once it is in use, which is all the same.
            let _ = cuda_driver::set_resolver(emulator::resolve);
        }
        match Device::cuda(0, Cpu::new(1)) {
            Ok(device) => Some(device),
            Err(DeviceError::NoDriver) => None,
            Err(error) => panic!("{error}"),
        }
    };
    let gpu = GPU.get_or_init(open).clone();
    if gpu.is_none() {
        crate::shared::skipped("the driver that CUDA_DRIVER_LIB names cannot be opened");
    }
    gpu
}

fn cpu() -> Device {
    Device::new(Cpu::new(1))
}

/// Numbers in [-1, 1), the same for the same seed.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    crate::tensor::check_gradient::values(seed, [1, len]).data().to_vec()
}

/// A small model of random weights on disk, and an adapter for it whose B is not zero.
struct Fixture {
    directory: tempfile::TempDir,
    config: Config,
    adapter: Adapter,
}

impl Fixture {
    fn new(family: Family, head_dim: usize, rank: usize) -> Fixture {
        Fixture::of_layers(2, family, head_dim, rank)
    }

    fn of_layers(layers: usize, family: Family, head_dim: usize, rank: usize) -> Fixture {
        let config = Config {
            family,
            num_hidden_layers: layers,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim,
            // Not a multiple of 8: the GPU pads it.
            vocab_size: 203,
            tie_word_embeddings: family != Family::Llama,
            max_position_embeddings: 640,
            // One of each on a GPU, too.
            rope_scaling: match family {
                Family::Qwen3 => RopeScaling::None,
                Family::Qwen2 => RopeScaling::Yarn {
                    factor: 4.0,
                    original: 160,
                    beta_fast: 32.0,
                    beta_slow: 1.0,
                    truncate: true,
                    attention_factor: 1.138_629_4,
                },
                Family::Llama => RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original: 80,
                },
            },
            eos_token_ids: vec![202],
            bos_token_id: None,
            ..Config::qwen3(72, 136)
        };
        Fixture::of(config, rank)
    }

    fn of(config: Config, rank: usize) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        random_checkpoint::write(directory.path(), &config, 7).unwrap();
        let settings = AdapterSettings {
            rank,
            alpha: 2.0 * rank as f64,
            rank_stabilized: false,
            dropout: 0.0,
            targets: Projection::ALL.to_vec(),
        };
        let mut adapter = Adapter::initialize(&config, &settings, 0).unwrap();
        for layer in 0..config.num_hidden_layers {
            for (index, projection) in Projection::ALL.into_iter().enumerate() {
                let [n, k] = projection.shape(&config);
                let seed = (layer * 10 + index) as u64;
                let small = |seed, len| numbers(seed, len).iter().map(|x| 0.05 * x).collect();
                let (a, b) = (small(seed, rank * k), small(seed + 100, rank * n));
                adapter.set_factors(layer, projection, LoraFactors { a, b, rank, scale: 2.0 });
            }
        }
        Fixture { directory, config, adapter }
    }

    fn model(&self, precision: Precision, device: &Device) -> Model {
        let checkpoint = Checkpoint::open(self.directory.path()).unwrap();
        let config = self.config.clone();
        let adapter = Some(&self.adapter);
        let mut model =
            Model::new(&checkpoint, config, adapter, precision, device.clone()).unwrap();
        model.upload().unwrap();
        model.train_adapter();
        model
    }
}

/// Largest difference.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
}

/// Asserts that `got` is about as near to `exact` as `other` is. The floor is that of one rounding to bf16 of
/// the largest value.
fn assert_as_near(got: &[f32], other: &[f32], exact: &[f32], what: &str) {
    let largest = exact.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
    let bound = 2.0 * apart(other, exact) + f64::from(largest) * f64::from(bf16::EPSILON.to_f32());
    let error = apart(got, exact);
    assert!(error <= bound, "{what}: {error} from f32, {bound} allowed");
}

/// Logits of all rows of two prompts in one batch.
fn logits(model: &Model) -> Vec<f32> {
    let prompts: [Vec<u32>; 2] =
        [(0..37).map(|i| i * 5 % 203).collect(), (0..3).map(|i| i + 100).collect()];
    let mut cache = KvCache::new(model.device(), model.config(), model.cache_dtype(), 16).unwrap();
    let mut batch = Batch::default();
    for prompt in &prompts {
        let mut table = PageTable::default();
        cache.extend(&mut table, prompt.len());
        batch.push(prompt, 0, table.pages());
    }
    batch.want_all_logits();
    let logits = model.forward(&batch, &mut cache);
    let [_, columns] = logits.shape();
    let vocab = model.config().vocab_size;
    logits.to_vec().unwrap().chunks_exact(columns).flat_map(|row| row[..vocab].to_vec()).collect()
}

#[test]
fn logits_are_as_near_to_f32_as_the_cpus() {
    let Some(gpu) = gpu() else { return };
    for (family, head_dim, rank) in
        [(Family::Qwen3, 16, 8), (Family::Qwen2, 64, 4), (Family::Llama, 32, 3)]
    {
        let fixture = Fixture::new(family, head_dim, rank);
        let exact = logits(&fixture.model(Precision::F32, &cpu()));
        let other = logits(&fixture.model(Precision::Bf16, &cpu()));
        let got = logits(&fixture.model(Precision::Bf16, &gpu));
        assert_as_near(&got, &other, &exact, &format!("{family:?}"));
    }
}

/// A group of completions, one whose prompt begins like it, and one of its own.
fn batch() -> PackedBatch {
    let tokens = |first: u32, len: u32| (0..len).map(|i| (first + i * 7) % 203).collect::<Vec<_>>();
    let prompt = tokens(1, 41);
    let (alike, other) = ([&prompt[..35], &tokens(8, 3)].concat(), tokens(2, 5));
    let completions = [tokens(3, 4), tokens(4, 18), tokens(5, 1)];
    let mut batch = PackedBatch::default();
    batch.push(&prompt, &completions.each_ref().map(Vec::as_slice));
    batch.push(&alike, &[&tokens(7, 6), &tokens(9, 2)]);
    batch.push(&other, &[&tokens(6, 9)]);
    batch
}

const PASS: TrainingPass =
    TrainingPass { temperature: 0.9, adapter: true, dropout: None, checkpoint: false };

/// Log-probabilities with entropies, and every factor's gradient of a weighted sum of the former.
fn learned(model: &Model, pass: TrainingPass) -> (Vec<f32>, Vec<Vec<f32>>) {
    let batch = batch();
    let mut tape = Tape::new();
    let y = model.log_probs(&mut tape, &batch, pass).unwrap();
    let values = y.to_vec().unwrap();
    let dy: Vec<f32> =
        numbers(9, values.len() / 2).into_iter().flat_map(|weight| [weight, 0.0]).collect();
    let mut gradients = Gradients::default();
    let dy = Tensor::from_slice(model.device(), dy.len() / 2, 2, &dy);
    tape.backward(&y, dy, &mut gradients);
    let of = |(_, factor)| gradients.get(factor).expect("a gradient").to_vec().unwrap();
    (values, model.parameters().map(of).collect())
}

#[test]
fn gradients_are_as_near_to_f32_as_the_cpus() {
    let Some(gpu) = gpu() else { return };
    for (family, head_dim, rank, probability) in
        [(Family::Qwen3, 16, 8, 0.0), (Family::Qwen2, 32, 5, 0.0), (Family::Qwen3, 64, 8, 0.2)]
    {
        let fixture = Fixture::new(family, head_dim, rank);
        let dropout = (probability > 0.0).then_some(Dropout { probability, seed: 3, pass: 5 });
        let pass = TrainingPass { dropout, ..PASS };
        let (exact, exact_gradients) = learned(&fixture.model(Precision::F32, &cpu()), pass);
        let (other, other_gradients) = learned(&fixture.model(Precision::Bf16, &cpu()), pass);
        let model = fixture.model(Precision::Bf16, &gpu);
        let (got, gradients) = learned(&model, pass);
        assert_as_near(&got, &other, &exact, "log-probabilities");
        let all = gradients.iter().zip(&other_gradients).zip(&exact_gradients);
        for (((got, other), exact), (name, _)) in all.zip(model.parameters()) {
            assert_as_near(got, other, exact, &format!("{family:?} {}", name.peft_key()));
        }
        // Computed again in the backward pass, bit for bit.
        let again = learned(&model, TrainingPass { checkpoint: true, ..pass });
        assert!(again == (got, gradients), "recomputed");
    }
}

#[test]
fn a_reference_pass_is_the_base_models() {
    let Some(gpu) = gpu() else { return };
    let fixture = Fixture::new(Family::Qwen3, 16, 8);
    let pass = TrainingPass { adapter: false, ..PASS };
    let values = |precision, device: &Device| {
        let model = fixture.model(precision, device);
        let batch = batch();
        let y = model.log_probs(&mut Tape::off(), &batch, pass).unwrap();
        y.to_vec().unwrap()
    };
    let [exact, other] = [Precision::F32, Precision::Bf16].map(|p| values(p, &cpu()));
    assert_as_near(&values(Precision::Bf16, &gpu), &other, &exact, "log-probabilities");
}

/// The policy that samples is the policy that is trained.
#[test]
fn sampled_log_probs_have_the_bits_of_training_at_any_batch() {
    let Some(gpu) = gpu() else { return };
    for (family, head_dim) in [(Family::Qwen3, 16), (Family::Qwen2, 64)] {
        let fixture = Fixture::new(family, head_dim, 8);
        let model = fixture.model(Precision::Bf16, &gpu);
        let sampling = SamplingParams { temperature: 0.9, top_k: 0, top_p: 1.0, min_p: 0.0 };
        let prompts: [Vec<u32>; 2] = [(0..33).collect(), (50..55).collect()];
        let generate = |max_batch, prefill_rows| {
            let options = GeneratorOptions { max_batch, prefill_rows, cache_bytes: 1 << 20 };
            let mut generator = Generator::new(&model, &[202], options).unwrap();
            for (index, prompt) in prompts.iter().enumerate() {
                let samples = vec![2 * index as u64, 2 * index as u64 + 1];
                let request = Request {
                    prompt: prompt.clone(),
                    samples,
                    seed: 11,
                    max_new_tokens: 7,
                    sampling,
                    repetition_penalty: 1.0,
                    top_log_probs: 0,
                };
                generator.submit(request).unwrap();
            }
            let mut written = vec![(Vec::new(), Vec::new()); 4];
            while !generator.is_idle() {
                let mut on = |event: crate::generate::TokenEvent| {
                    let (tokens, log_probs) =
                        &mut written[2 * event.request.0 as usize + event.sample];
                    tokens.push(event.token);
                    log_probs.push(event.log_prob.to_bits());
                };
                generator.step(&mut on).unwrap();
            }
            written
        };
        let together = generate(4, 64);
        assert_eq!(together, generate(2, 5), "another batch");
        let mut batch = PackedBatch::default();
        for (prompt, samples) in prompts.iter().zip(together.chunks(2)) {
            batch.push(prompt, &[&samples[0].0, &samples[1].0]);
        }
        let y = model.log_probs(&mut Tape::new(), &batch, PASS).unwrap().to_vec().unwrap();
        let trained: Vec<u32> = y.chunks_exact(2).map(|y| y[0].to_bits()).collect();
        let sampled: Vec<u32> = together.iter().flat_map(|(_, all)| all.clone()).collect();
        assert_eq!(trained, sampled, "{family:?}");
    }
}

#[test]
fn steps_of_the_optimizer_have_the_cpus_bits() {
    let Some(gpu) = gpu() else { return };
    let settings =
        AdamWSettings { weight_decay: 0.1, max_norm: Some(0.5), ..AdamWSettings::default() };
    let run = |device: &Device| {
        let lengths = [("a", 24), ("b", 1032)];
        let mut adamw = AdamW::new(settings, lengths);
        let mut values =
            lengths.map(|(_, len)| Tensor::from_slice(device, 1, len, &numbers(1, len)));
        let mut norms = Vec::new();
        for step in 0..3 {
            if step == 2 {
                // Through a checkpoint.
                let state = adamw.state().unwrap();
                let slice = |name: &str| {
                    state.iter().find(|(of, _)| of == name).map(|(_, values)| &values[..])
                };
                let mut restored = AdamW::new(settings, lengths);
                restored.restore(adamw.steps(), state.len(), slice).unwrap();
                drop(state);
                adamw = restored;
            }
            let gradients =
                lengths.map(|(_, len)| Tensor::from_slice(device, 1, len, &numbers(5 + step, len)));
            // The second has none in the last step.
            let mut factors: Vec<TensorParameter> = values
                .iter_mut()
                .zip(&gradients)
                .zip(lengths)
                .map(|((values, gradient), (name, _))| {
                    let gradient = (step < 2 || name == "a").then_some(gradient);
                    TensorParameter { name, values, gradient }
                })
                .collect();
            let outcome = adamw.step_tensors(1e-2, &mut factors).unwrap();
            let StepOutcome::Updated { norm, .. } = outcome else { panic!("{outcome:?}") };
            norms.push(norm);
        }
        let state: Vec<Vec<f32>> =
            adamw.state().unwrap().into_iter().map(|(_, values)| values.into_owned()).collect();
        (norms, values.map(|values| values.to_vec().unwrap()), state)
    };
    let (norms, values, state) = run(&gpu);
    let (want_norms, want_values, want_state) = run(&cpu());
    for (norm, want) in norms.iter().zip(&want_norms) {
        // Sums of f64 in another order.
        assert!((norm / want - 1.0).abs() < 1e-12, "{norm} {want}");
    }
    assert_eq!((values, state), (want_values, want_state));

    let mut adamw = AdamW::new(settings, [("a", 8)]);
    let mut values = Tensor::zeros(&gpu, 1, 8);
    let gradient = Tensor::from_slice(&gpu, 1, 8, &[1.0, f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let mut factors =
        [TensorParameter { name: "a", values: &mut values, gradient: Some(&gradient) }];
    let outcome = adamw.step_tensors(1e-2, &mut factors).unwrap();
    assert!(matches!(outcome, StepOutcome::NotFinite { .. }), "{outcome:?}");
    assert_eq!((values.to_vec().unwrap(), adamw.steps()), (vec![0.0; 8], 0));
}

/// A device of its own: after this it has failed.
#[test]
fn a_full_device_says_so_and_what_came_after_is_lost() {
    if gpu().is_none() {
        return;
    }
    let device = Device::cuda(0, Cpu::new(1)).unwrap();
    let before = Tensor::from_slice(&device, 1, 4, &[1.0; 4]);
    assert_eq!(device.status(), Ok(()));
    let too_much = Tensor::zeros(&device, 1 << 20, 1 << 20);
    let error = too_much.to_vec().unwrap_err();
    assert!(matches!(error, DeviceError::OutOfMemory { .. }), "{error}");
    assert!(error.to_string().contains("lower"), "{error}");
    assert_eq!(device.status(), Err(error.clone()));
    // Nothing runs any more, and nothing panics.
    let after = Tensor::zeros(&device, 1, 4);
    assert_eq!(after.to_vec(), Err(error.clone()));
    assert_eq!(before.to_vec(), Err(error.clone()));
    let fixture = Fixture::new(Family::Qwen3, 16, 8);
    let checkpoint = Checkpoint::open(fixture.directory.path()).unwrap();
    let adapter = Some(&fixture.adapter);
    let config = fixture.config.clone();
    let mut model =
        Model::new(&checkpoint, config, adapter, Precision::Bf16, device.clone()).unwrap();
    assert_eq!(model.upload(), Err(error.clone()));
    model.train_adapter();
    let batch = batch();
    let mut tape = Tape::new();
    let y = model.log_probs(&mut tape, &batch, PASS).unwrap();
    assert_eq!(y.to_vec(), Err(error));
    let dy = Tensor::zeros(&device, batch.targets(), 2);
    tape.backward(&y, dy, &mut Gradients::default());
}
