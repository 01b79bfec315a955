//! Training: one step of LoRA on one sequence, and the update pass of a GRPO group.
//!
//! ```sh
//! cargo bench --bench train                                  # a tiny shape, to try it
//! cargo bench --bench train -- --shape qwen3-0.6b            # random weights of a published shape
//! cargo bench --bench train -- --model DIR [--prompt 1024 --group 8 --completion 128] [--separate]
//! ```
//!
//! `cpu/lora-step` is a forward and a backward pass over one sequence of 512 tokens, half of them the prompt, and
//! AdamW's step. `cpu/grpo-update` is a forward and a backward pass over a group, whose prompt runs once, or with
//! `--separate` once a completion. Layers are recomputed in the backward pass, as training does. The median of
//! `--rounds 3` counts, and the most memory that the process had meanwhile. The share is that of the multipliers in
//! what cannot be left out: projections and LM head forward, and their inputs' gradients.

use std::time::Instant;

use engine::{
    checkpoint::{
        adapter::{Adapter, AdapterSettings, Projection},
        weights::{Dtype, Packing},
    },
    language_model::LanguageModel,
    model::{
        Model,
        training::{PackedBatch, TrainingPass},
    },
    optimizer::{self, AdamW},
    tensor::{
        Device, Tensor,
        tape::{Gradients, Tape},
    },
};

use by_hand::{Arguments, Outcome, Subject, bench};
use measure::Work;

mod by_hand;
mod measure;
mod record;

/// Tokens of the sequence of a LoRA step.
const SEQUENCE: usize = 512;

fn main() {
    let arguments = Arguments::parse();
    let subject = Subject::of(&arguments);
    let [prompt, group, completion] = [("--prompt", 1024), ("--group", 8), ("--completion", 128)]
        .map(|(name, default)| arguments.number(name, default));
    let separate = arguments.has("--separate");
    let form = if separate { "separate" } else { "shared" };
    let name = &subject.name;
    let ids = [
        format!("cpu/lora-step/{name}-t{SEQUENCE}"),
        format!("cpu/grpo-update/{name}-p{prompt}-g{group}-c{completion}-{form}"),
    ];
    let open = |device: &_| {
        let (directory, temporary) = subject.directory();
        (Trained::open(&directory, arguments.packing(), device), temporary)
    };
    bench(&arguments, &ids, open, |(trained, _), index, runs| {
        let vocab = trained.model.config().vocab_size;
        let batch = match index {
            0 => packed(vocab, SEQUENCE / 2, 1, SEQUENCE / 2, false),
            _ => packed(vocab, prompt, group, completion, separate),
        };
        reset_peak_memory();
        let times = (0..runs).map(|_| trained.run(&batch, index == 0)).collect();
        Outcome {
            times,
            work: work(&trained.model, &batch),
            counted: (batch.rows(), "rows/s"),
            peak_bytes: trainer::train::peak_memory_bytes(),
        }
    });
}

/// A group's batch, with its prompt once or as often as there are completions.
fn packed(
    vocab: usize,
    prompt: usize,
    group: usize,
    completion: usize,
    separate: bool,
) -> PackedBatch {
    let tokens = |seed: u32, len: usize| -> Vec<u32> {
        let token = |i: u32| (i * 7919 + seed * 104_729 + 13) % vocab as u32;
        (0..len as u32).map(token).collect()
    };
    let prompt = tokens(0, prompt);
    let completions: Vec<Vec<u32>> = (1..=group as u32).map(|g| tokens(g, completion)).collect();
    let all: Vec<&[u32]> = completions.iter().map(Vec::as_slice).collect();
    let mut batch = PackedBatch::default();
    match separate {
        false => batch.push(&prompt, &all),
        true => all.iter().for_each(|completion| batch.push(&prompt, &[completion])),
    }
    batch
}

/// A model with an adapter on every projection.
struct Trained {
    model: Model,
    optimizer: AdamW,
}

impl Trained {
    fn open(directory: &std::path::Path, packing: Packing, device: &Device) -> Trained {
        let settings = AdapterSettings {
            rank: 16,
            alpha: 32.0,
            rank_stabilized: false,
            dropout: 0.0,
            targets: Projection::ALL.to_vec(),
        };
        let make = |config: &_| Adapter::initialize(config, &settings, 0);
        let builder = LanguageModel::builder(directory).device(device).adapter_from(make);
        let mut model = builder.open_model().unwrap_or_else(|error| panic!("{error}"));
        model.set_packing(packing);
        model.train_adapter();
        let settings =
            optimizer::AdamWSettings { max_norm: Some(1.0), ..optimizer::AdamWSettings::default() };
        Trained { optimizer: model.optimizer(settings), model }
    }

    /// Nanoseconds of a forward and a backward pass, and the optimizer's step if it is asked for.
    fn run(&mut self, batch: &PackedBatch, step: bool) -> f64 {
        let started = Instant::now();
        let pass =
            TrainingPass { temperature: 1.0, adapter: true, dropout: None, checkpoint: true };
        let mut gradients = Gradients::default();
        let mut tape = Tape::new();
        let y = self.model.log_probs(&mut tape, batch, pass).expect("finite logits");
        let mut dy = Tensor::zeros(self.model.device(), batch.targets(), 2);
        dy.data_mut().iter_mut().step_by(2).for_each(|d| *d = -1e-3);
        tape.backward(&y, dy, &mut gradients);
        if step {
            self.step(&gradients);
        }
        started.elapsed().as_nanos() as f64
    }

    fn step(&mut self, gradients: &Gradients) {
        let takes_part = |(_, factor): (_, &Tensor)| gradients.get(factor).is_some();
        assert!(self.model.parameters().all(takes_part), "a factor without a gradient");
        let outcome = self.model.step(&mut self.optimizer, gradients, 1e-5);
        let outcome = outcome.expect("a CPU does not fail");
        assert!(outcome.norm().is_finite(), "a gradient of norm {}", outcome.norm());
    }
}

fn work(model: &Model, batch: &PackedBatch) -> Work {
    let config = model.config();
    let projections = config.non_embedding_parameter_count() as usize;
    let head = config.vocab_size * config.hidden_size;
    Work {
        flops: 4.0 * (projections * batch.rows() + head * batch.targets()) as f64,
        bf16: model.weights_dtype() == Dtype::BF16,
        bytes: 0.0,
    }
}

/// Makes the peak begin at what the process has now. Where the system does not let us, it stays that of all so far.
fn reset_peak_memory() {
    // 5: the peak alone (proc(5)).
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
