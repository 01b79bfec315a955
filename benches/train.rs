//! One GRPO update pass (forward and backward of a group), timed: the prompt shared by its group, or a
//! sequence a completion.
//!
//! ```sh
//! cargo bench --bench train -- --model DIR [--prompt 1024 --group 8 --completion 128] [--separate]
//! ```
//!
//! Prints seconds and the process's peak memory; run each form in a process of its own. The layers are
//! recomputed in the backward pass, as training does.

use std::{path::PathBuf, time::Instant};

use engine::{
    adapter::{Adapter, AdapterSettings, Projection},
    language_model::open_model_with,
    model::training::{PackedBatch, TrainingPass},
    tape::{Gradients, Tape},
    tensor::{Device, Tensor},
};
use kernels::cpu::Cpu;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let Some(model) = value("--model").map(PathBuf::from) else {
        println!("no --model DIR: nothing is measured (see the top of benches/train.rs)");
        return;
    };
    let number = |name: &str, default: usize| {
        value(name).map_or(default, |text| text.parse().expect("a whole number"))
    };
    let (prompt, group, completion) =
        (number("--prompt", 1024), number("--group", 8), number("--completion", 128));
    let separate = arguments.iter().any(|argument| argument == "--separate");
    let threads = number("--threads", std::thread::available_parallelism().map_or(1, usize::from));

    let settings = AdapterSettings {
        rank: 16,
        alpha: 32.0,
        rank_stabilized: false,
        dropout: 0.0,
        targets: Projection::ALL.to_vec(),
    };
    let device = Device::new(Cpu::new(threads));
    let make = |config: &_| Adapter::initialize(config, &settings, 0);
    let (mut model, _) = open_model_with(&model, make, None, &device).expect("the model opens");
    model.train_adapter();

    let vocab = model.config().vocab_size as u32;
    let tokens = |seed: u32, len: usize| -> Vec<u32> {
        (0..len as u32).map(|i| (i * 7919 + seed * 104_729 + 13) % vocab).collect()
    };
    let prompt = tokens(0, prompt);
    let completions: Vec<Vec<u32>> = (1..=group as u32).map(|g| tokens(g, completion)).collect();
    let batches: Vec<PackedBatch> = match separate {
        false => {
            let mut batch = PackedBatch::default();
            let all: Vec<&[u32]> = completions.iter().map(Vec::as_slice).collect();
            batch.push(&prompt, &all);
            vec![batch]
        }
        // As they are without sharing: all sequences of the group in one batch.
        true => {
            let mut batch = PackedBatch::default();
            completions.iter().for_each(|completion| batch.push(&prompt, &[completion]));
            vec![batch]
        }
    };
    let pass = TrainingPass { temperature: 1.0, adapter: true, dropout: None, checkpoint: true };
    for round in 0..number("--rounds", 2) {
        let started = Instant::now();
        let mut gradients = Gradients::default();
        for batch in &batches {
            let mut tape = Tape::new();
            let y = model.log_probs(&mut tape, batch, pass).expect("finite logits");
            let mut dy = Tensor::zeros(&device, batch.targets(), 2);
            dy.data_mut().iter_mut().step_by(2).for_each(|d| *d = -1e-3);
            tape.backward(&y, dy, &mut gradients);
        }
        let seconds = started.elapsed().as_secs_f64();
        let rows: usize = batches.iter().map(PackedBatch::rows).sum();
        let peak = trainer::train::peak_memory_bytes().unwrap_or(0) as f64 / (1u64 << 30) as f64;
        let form = if separate { "separate" } else { "shared prompt" };
        println!(
            "{form}, round {round}: {seconds:.2} s for {rows} rows ({:.0} rows/s), peak {peak:.2} GiB",
            rows as f64 / seconds
        );
    }
}
