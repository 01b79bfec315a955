//! Training: one step of LoRA on one sequence, the update pass of a GRPO group, and the update of a step of pairs.
//!
//! ```sh
//! cargo bench --bench train                                  # a tiny shape, to try it
//! cargo bench --bench train -- --shape qwen3-0.6b            # random weights of a published shape
//! cargo bench --bench train -- --model DIR [--prompt 1024 --group 8 --completion 128] [--separate]
//! cargo bench --bench train -- --model DIR [--pairs 2 --template 700 --conversation 150 --reply 150] cpu/step-update
//! ```
//!
//! `cpu/lora-step` is a forward and a backward pass over one sequence of 512 tokens, half of them the prompt, and
//! AdamW's step. `cpu/grpo-update` is a forward and a backward pass over a group, whose prompt runs once, or with
//! `--separate` once a completion. `cpu/step-update` is the whole update, KL term and optimizer included, of a step of
//! `--pairs` in both orders: prompts of a template, a conversation and two replies, each with two completions of
//! `--tokens 650`, cut into micro-batches of `--rows 4096`. What prompts begin with runs once, or with `--separate` once a
//! prompt: then every template has another first token. Layers are recomputed in the backward pass, as training does. The
//! median of
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

use trainer::train::{
    grpo::loss::LossTerms,
    update::{PromptGroup, TrainedCompletion, UpdateSettings, update},
};

use by_hand::{Arguments, Outcome, Subject, bench};
use measure::Work;

mod by_hand;
mod measure;
mod record;

/// Tokens of the sequence of a LoRA step.
const SEQUENCE: usize = 512;

fn main() {
    let arguments = Arguments::parse(&[
        "--completion",
        "--conversation",
        "--group",
        "--pairs",
        "--prompt",
        "--reply",
        "--rows",
        "--template",
        "--tokens",
    ]);
    let subject = Subject::of(&arguments);
    let [prompt, group, completion] = [("--prompt", 1024), ("--group", 8), ("--completion", 128)]
        .map(|(name, default)| arguments.number(name, default));
    let separate = arguments.has("--separate");
    let form = if separate { "separate" } else { "shared" };
    let name = &subject.name;
    let ids = [
        format!("cpu/lora-step/{name}-t{SEQUENCE}"),
        format!("cpu/grpo-update/{name}-p{prompt}-g{group}-c{completion}-{form}"),
        format!("cpu/step-update/{name}-{form}"),
    ];
    let step = Step {
        pairs: arguments.number("--pairs", 1),
        template: arguments.number("--template", 700),
        conversation: arguments.number("--conversation", 150),
        reply: arguments.number("--reply", 150),
        completion: arguments.number("--tokens", 650),
        rows: arguments.number("--rows", 4096),
        separate,
    };
    let open = |device: &_| {
        let (directory, temporary) = subject.directory();
        (Trained::open(&directory, arguments.packing(), device), temporary)
    };
    bench(&arguments, &ids, open, |(trained, _), index, runs| {
        if index == 2 {
            return trained.update(&step, runs);
        }
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

/// Some tokens, others for every seed.
fn tokens(vocab: usize, seed: u32, len: usize) -> Vec<u32> {
    let token = |i: u32| (i * 7919 + seed * 104_729 + 13) % vocab as u32;
    (0..len as u32).map(token).collect()
}

/// Pairs in both orders, two completions each. Lengths are in tokens.
struct Step {
    pairs: usize,
    template: usize,
    conversation: usize,
    reply: usize,
    completion: usize,
    /// Rows of a micro-batch at most.
    rows: usize,
    separate: bool,
}

impl Step {
    fn prompts(&self, vocab: usize) -> Vec<Vec<u32>> {
        let mut prompts = Vec::new();
        for pair in 0..self.pairs as u32 {
            let of = |part: u32, len| tokens(vocab, 10 * pair + part, len);
            let replies = [1, 2].map(|part| of(part, self.reply));
            for [first, second] in [[0, 1], [1, 0]] {
                let mut template = tokens(vocab, 3, self.template);
                if self.separate {
                    template[0] = prompts.len() as u32;
                }
                let conversation = of(4, self.conversation);
                let [first, second] = [&replies[first], &replies[second]];
                prompts.push([&template[..], &conversation, first, second].concat());
            }
        }
        prompts
    }
}

/// A group's batch, with its prompt once or as often as there are completions.
fn packed(
    vocab: usize,
    prompt: usize,
    group: usize,
    completion: usize,
    separate: bool,
) -> PackedBatch {
    let tokens = |seed, len| tokens(vocab, seed, len);
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

    /// Runs of a step's update, as `j1 train` makes it.
    fn update(&mut self, step: &Step, runs: usize) -> Outcome {
        let vocab = self.model.config().vocab_size;
        let prompts = step.prompts(vocab);
        let completions: Vec<Vec<u32>> = (0..2 * prompts.len() as u32)
            .map(|index| tokens(vocab, 1000 + index, step.completion))
            .collect();
        let weight = 1.0 / (completions.len() * step.completion) as f64;
        let item = |(tokens, advantage)| TrainedCompletion {
            tokens,
            sampled: None,
            advantage,
            weight,
            scores: [0; 2],
        };
        let groups: Vec<PromptGroup> = prompts
            .iter()
            .zip(completions.chunks(2))
            .map(|(prompt, two)| PromptGroup {
                prompt,
                items: two.iter().map(Vec::as_slice).zip([1.0, -1.0]).map(item).collect(),
            })
            .collect();
        let settings = UpdateSettings {
            loss: LossTerms { beta: 5e-4, ..LossTerms::default() },
            iterations: 1,
            temperature: 1.0,
            dropout: 0.0,
            seed: 0,
            micro_batch_tokens: step.rows,
            checkpoint: true,
        };
        reset_peak_memory();
        let mut rows = 0;
        let Trained { model, optimizer } = self;
        let mut run = |number: usize| {
            let (started, number) = (Instant::now(), number as u64);
            let rate = |_| 1e-5;
            let report =
                update(model, optimizer, None, &groups, &settings, number, &rate, &mut |_, _| ())
                    .unwrap_or_else(|error| panic!("{error}"));
            rows = report.trained_rows;
            started.elapsed().as_nanos() as f64
        };
        let times = (0..runs).map(&mut run).collect();
        Outcome {
            times,
            work: work_of(&self.model, rows, completions.len() * step.completion),
            counted: (rows, "rows/s"),
            peak_bytes: trainer::train::peak_memory_bytes(),
        }
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
    work_of(model, batch.rows(), batch.targets())
}

fn work_of(model: &Model, rows: usize, targets: usize) -> Work {
    let config = model.config();
    let projections = config.non_embedding_parameter_count() as usize;
    let head = config.vocab_size * config.hidden_size;
    Work {
        flops: 4.0 * (projections * rows + head * targets) as f64,
        bf16: model.weights_dtype() == Dtype::BF16,
        bytes: 0.0,
    }
}

/// Makes the peak begin at what the process has now. Where the system does not let us, it stays that of all so far.
fn reset_peak_memory() {
    // 5: the peak alone (proc(5)).
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
