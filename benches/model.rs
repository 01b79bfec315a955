//! A whole model: prefill, and decoding in batches, beside the machine's own peaks.
//!
//! ```sh
//! cargo bench --bench model                                  # a tiny shape, to try it
//! cargo bench --bench model -- --shape qwen3-0.6b            # random weights of a published shape
//! cargo bench --bench model -- --model DIR cpu/decode        # a checkpoint; those whose id contains cpu/decode
//! ```
//!
//! `--rounds 3` prefills, `--steps 16` decoding steps, of which the median counts; `--threads`, `--weights packed|mapped`. Every sequence has
//! a prompt of its own. Prefill is compared with the rate of the multipliers, decoding with the time in which
//! weights, keys and values can be read.

use std::time::Instant;

use engine::{
    checkpoint::weights::Dtype,
    generate::{Generator, GeneratorOptions, Request, SamplingParams},
    language_model::LanguageModel,
    model::{Model, kv_cache::KvCache},
};

use by_hand::{Arguments, Outcome, Subject, bench};
use measure::Work;

mod by_hand;
mod measure;
mod record;

const PREFILLS: [usize; 2] = [512, 1024];
const BATCHES: [usize; 4] = [1, 4, 16, 32];
const PROMPT: usize = 256;

fn main() {
    let arguments = Arguments::parse(&["--steps"]);
    let subject = Subject::of(&arguments);
    let name = &subject.name;
    let prefills = PREFILLS.map(|tokens| format!("cpu/prefill/{name}-t{tokens}"));
    let decodes = BATCHES.map(|batch| format!("cpu/decode/{name}-b{batch}-p{PROMPT}"));
    let steps = arguments.number("--steps", 16);
    let open = |device: &_| {
        let (directory, temporary) = subject.directory();
        let mut model = LanguageModel::builder(&directory)
            .device(device)
            .open_model()
            .unwrap_or_else(|e| panic!("{e}"));
        model.set_packing(arguments.packing());
        // Maps the weights into this process.
        prefill(&model, 8, 0);
        (model, temporary)
    };
    bench(
        &arguments,
        &[prefills.as_slice(), &decodes].concat(),
        open,
        |(model, _), index, runs| match index.checked_sub(PREFILLS.len()) {
            None => {
                let tokens = PREFILLS[index];
                let times = (0..runs as u32).map(|run| prefill(model, tokens, run)).collect();
                let work = work(model, 1, tokens, 0);
                Outcome { times, work, counted: (tokens, "tokens/s"), peak_bytes: None }
            }
            Some(index) => {
                let batch = BATCHES[index];
                let times = decode(model, batch, if runs == 1 { 1 } else { steps });
                let work = work(model, batch, 1, PROMPT + steps / 2);
                Outcome { times, work, counted: (batch, "tokens/s"), peak_bytes: None }
            }
        },
    );
}

/// The work of a step that takes `rows` tokens of each of `batch` sequences after `context` earlier ones.
fn work(model: &Model, batch: usize, rows: usize, context: usize) -> Work {
    let config = model.config();
    let bf16 = model.weights_dtype() == Dtype::BF16;
    let width = if model.weights_dtype() == Dtype::F32 { 4 } else { 2 };
    let head = config.vocab_size * config.hidden_size;
    let projections = config.non_embedding_parameter_count() as usize;
    let pairs = rows * context + rows * (rows + 1) / 2;
    let attention = 4 * config.num_hidden_layers * pairs * config.query_width();
    let kept = KvCache::page_bytes(config, model.cache_dtype()) / engine::model::kv_cache::PAGE;
    Work {
        flops: (batch * (2 * projections * rows + 2 * head + attention)) as f64,
        bf16,
        bytes: (width * (projections + head) + batch * (context + rows) * kept) as f64,
    }
}

fn generator(model: &Model, sequences: usize, tokens: usize) -> Generator<'_> {
    let pages = sequences * KvCache::pages_for(tokens);
    let cache_bytes = pages * KvCache::page_bytes(model.config(), model.cache_dtype());
    Generator::new(
        model,
        &[],
        GeneratorOptions {
            max_batch: sequences,
            prefill_rows: GeneratorOptions::PREFILL_ROWS,
            cache_bytes,
        },
    )
    .unwrap()
}

fn request(model: &Model, tokens: usize, seed: u32, max_new_tokens: usize) -> Request {
    let vocab = model.config().vocab_size as u32;
    let token = |i: u32| (i * 7919 + seed * 104_729 + 13) % vocab;
    let sampling = SamplingParams { temperature: 0.9, ..SamplingParams::default() };
    let prompt = (0..tokens as u32).map(token).collect();
    Request {
        prompt,
        samples: vec![seed.into()],
        seed: 1,
        max_new_tokens,
        sampling,
        repetition_penalty: 1.0,
        top_log_probs: 0,
    }
}

/// Nanoseconds from a prompt to its first token.
fn prefill(model: &Model, tokens: usize, seed: u32) -> f64 {
    let mut generator = generator(model, 1, tokens + 1);
    generator.submit(request(model, tokens, seed, 1)).unwrap_or_else(|error| panic!("{error}"));
    let started = Instant::now();
    while !generator.is_idle() {
        generator.step(&mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
    }
    started.elapsed().as_nanos() as f64
}

/// Nanoseconds of each of `steps` steps in which all of `batch` sequences take a token.
fn decode(model: &Model, batch: usize, steps: usize) -> Vec<f64> {
    // Sequences start one after the other and end the same way: none while steps are timed.
    let new_tokens = steps + 1 + batch * PROMPT.div_ceil(GeneratorOptions::PREFILL_ROWS);
    let mut generator = generator(model, batch, PROMPT + new_tokens);
    for seed in 0..batch as u32 {
        let request = request(model, PROMPT, seed, new_tokens);
        generator.submit(request).unwrap_or_else(|error| panic!("{error}"));
    }
    let mut step = || {
        let (started, mut tokens) = (Instant::now(), 0);
        generator.step(&mut |_| tokens += 1).unwrap_or_else(|error| panic!("{error}"));
        (tokens, started.elapsed().as_nanos() as f64)
    };
    while step().0 < batch {}
    let times = (0..steps).map(|_| {
        let (tokens, time) = step();
        assert_eq!(tokens, batch, "a step of another batch");
        time
    });
    times.collect()
}
