//! A warm decoding step allocates nothing, on any thread: counted, not promised.

use engine::{
    generate::{Generator, GeneratorOptions, Request},
    model::{Model, Precision},
};
use kernels::cpu::{
    Cpu,
    allocations::{Counting, allocations},
    sample::SamplingParams,
};

use crate::generation::open;

/// Counts for the whole test binary; only this module looks.
#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Every way to draw a token.
const SAMPLINGS: [SamplingParams; 5] = {
    let all = SamplingParams { temperature: 0.9, top_k: 0, top_p: 1.0, min_p: 0.0 };
    [
        SamplingParams::GREEDY,
        all,
        SamplingParams { top_k: 20, ..all },
        SamplingParams { top_p: 0.9, ..all },
        SamplingParams { top_k: 50, top_p: 0.95, min_p: 0.02, ..all },
    ]
};

/// Tokens of a completion: it crosses the ends of six pages.
const NEW_TOKENS: usize = 200;

/// Generates `batch` completions side by side, each from a prompt of its own, and counts what the steps allocate
/// in which all of them take a token and none joins or leaves.
fn decode(generator: &mut Generator, model: &Model, batch: usize, first: usize) -> (usize, u64) {
    let cpu = model.device().host();
    for index in 0..batch {
        let token = |i: usize| ((i * 37 + (first + index) * 101 + 5) % 200) as u32;
        let request = Request {
            prompt: (0..20 + index).map(token).collect(),
            samples: vec![(first + index) as u64],
            seed: 7,
            max_new_tokens: NEW_TOKENS,
            sampling: SAMPLINGS[(first + index) % SAMPLINGS.len()],
            repetition_penalty: [1.0, 1.2, 1.0][(first + index) % 3],
            top_log_probs: 0,
        };
        generator.submit(request).unwrap();
    }
    let mut written = 0;
    let mut on = |_: engine::generate::TokenEvent| written += 1;
    // The first step reads the prompts, the last one ends the completions.
    generator.step(&mut on).unwrap();
    let before = allocations(cpu);
    for _ in 2..NEW_TOKENS {
        generator.step(&mut on).unwrap();
    }
    let allocated = allocations(cpu) - before;
    generator.step(&mut on).unwrap();
    assert!(generator.is_idle(), "a step more or less than expected");
    (allocated, written)
}

#[test]
fn a_warm_decoding_step_does_not_allocate() {
    let cases = [
        ("qwen3-tied", Precision::F32),
        ("qwen3-tied-bf16", Precision::Bf16),
        ("qwen2", Precision::F32),
    ];
    for (case, precision) in cases {
        for threads in [1, 3] {
            for adapter in [false, true] {
                let model = open(case, adapter, precision, Cpu::new(threads));
                for batch in [1, 7] {
                    let options = GeneratorOptions {
                        max_batch: batch,
                        prefill_rows: 512,
                        cache_bytes: 8 << 20,
                    };
                    let mut generator = Generator::new(&model, &[], options).unwrap();
                    let place = format!("{case}, {threads} threads, adapter {adapter}, {batch}");
                    let expected = (batch * NEW_TOKENS) as u64;
                    // Scratch memory and buffers grow to the longest sequence once, and stay.
                    assert_eq!(decode(&mut generator, &model, batch, 0).1, expected, "{place}");
                    // Every sampling gets its turn where the batch is one.
                    for round in 1..=SAMPLINGS.len() {
                        let (allocated, written) =
                            decode(&mut generator, &model, batch, round * batch);
                        assert_eq!((allocated, written), (0, expected), "{place}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_counter_counts() {
    for threads in [1, 3] {
        let cpu = Cpu::new(threads);
        let before = allocations(&cpu);
        cpu.pool().run(&|_| drop(std::hint::black_box(vec![1u8; 100])));
        assert_eq!(allocations(&cpu) - before, threads);
    }
}
