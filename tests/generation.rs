//! What a sequence generates depends on the sequence alone: not on the batch it runs in, the number
//! of threads, how its prompt was cut into chunks, or what it shared with others. All comparisons
//! are of bits.

use std::{fs, path::PathBuf};

use engine::{
    checkpoint::{adapter::Adapter, config::Config, weights::Checkpoint},
    generate::{FinishReason, GenerateError, Generator, GeneratorOptions, Request},
    model::{
        Batch, Model, Precision,
        kv_cache::{KvCache, PageTable},
    },
    tensor::Device,
};
use kernels::cpu::{Cpu, Isa, log_prob, sample::SamplingParams};

fn golden(case: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

/// A golden model, with its adapter or without.
pub(crate) fn open(case: &str, adapter: bool, precision: Precision, cpu: Cpu) -> Model {
    let directory = golden(case);
    let config = Config::load(&directory.join("model")).unwrap();
    let checkpoint = Checkpoint::open(&directory.join("model")).unwrap();
    checkpoint.check(&config).unwrap();
    let adapter = adapter.then(|| Adapter::load(&directory.join("adapter"), &config).unwrap());
    Model::new(&checkpoint, config, adapter.as_ref(), precision, Device::new(cpu)).unwrap()
}

/// Tokens, log-prob bits and how each sample of each request ended.
type Completion = (Vec<u32>, Vec<u32>, Option<FinishReason>);

const WIDE: GeneratorOptions =
    GeneratorOptions { max_batch: 16, prefill_rows: 512, cache_bytes: 64 << 20 };

fn generate(
    model: &Model,
    stop: &[u32],
    options: GeneratorOptions,
    requests: &[Request],
) -> Vec<Vec<Completion>> {
    let mut generator = Generator::new(model, stop, options).unwrap();
    let mut written: Vec<Vec<Completion>> =
        requests.iter().map(|r| vec![Completion::default(); r.samples.len()]).collect();
    for request in requests {
        generator.submit(request.clone()).unwrap();
    }
    while !generator.is_idle() {
        generator
            .step(&mut |event| {
                let (tokens, log_probs, finish) =
                    &mut written[event.request.0 as usize][event.sample];
                assert_eq!(*finish, None, "a token after the end");
                tokens.push(event.token);
                log_probs.push(event.log_prob.to_bits());
                *finish = event.finish;
            })
            .unwrap();
    }
    written
}

/// Prompts of many lengths around the page size, some alike at the start, several samples each.
fn requests(vocab: usize) -> Vec<Request> {
    let sampling = SamplingParams { temperature: 0.9, top_k: 0, top_p: 1.0, min_p: 0.0 };
    let lengths = [1, 2, 31, 32, 33, 63, 64, 65, 70, 96, 100];
    let mut sequence = 0;
    let request = |(index, &length): (usize, &usize)| {
        // Every second prompt begins as the one before it.
        let seed = index / 2;
        let prompt = (0..length).map(|i| ((i * 37 + seed * 101 + 5) % vocab) as u32).collect();
        let samples = (0..1 + index % 3).map(|_| {
            sequence += 1;
            sequence
        });
        let samples = samples.collect();
        let sampling = match index % 4 {
            0 => SamplingParams { top_k: 20, ..sampling },
            1 => SamplingParams { top_p: 0.8, ..sampling },
            2 => sampling,
            _ => SamplingParams::GREEDY,
        };
        let repetition_penalty = [1.0, 1.0, 1.3, 0.9][index / 4 % 4];
        Request {
            prompt,
            samples,
            seed: 7,
            max_new_tokens: 40,
            sampling,
            repetition_penalty,
            top_log_probs: 0,
        }
    };
    lengths.iter().enumerate().map(request).collect()
}

#[test]
fn completions_are_the_same_in_any_batch_at_any_thread_count() {
    for (case, precision) in [
        ("qwen3-tied", Precision::F32),
        ("qwen3-tied-bf16", Precision::Bf16),
        ("qwen3-untied", Precision::Bf16),
        ("qwen2", Precision::F32),
        ("llama", Precision::F32),
    ] {
        for isa in Isa::available() {
            let model = open(case, true, precision, Cpu::with_isa(1, isa));
            let requests = requests(model.config().vocab_size);
            let stop: Vec<u32> = (0..16).collect();
            let alone = GeneratorOptions { max_batch: 3, prefill_rows: 512, ..WIDE };
            let expected: Vec<_> = requests
                .iter()
                .flat_map(|r| generate(&model, &stop, alone.clone(), std::slice::from_ref(r)))
                .collect();
            let ends = |reason| expected.iter().flatten().filter(|c| c.2 == Some(reason)).count();
            assert!(ends(FinishReason::Stop) > 0 && ends(FinishReason::Length) > 0, "{case}");
            for (threads, max_batch, prefill_rows) in
                [(1, 7, 512), (1, 16, 5), (2, 16, 512), (2, 3, 33), (5, 64, 64)]
            {
                let model = open(case, true, precision, Cpu::with_isa(threads, isa));
                let options = GeneratorOptions { max_batch, prefill_rows, ..WIDE };
                let got = generate(&model, &stop, options.clone(), &requests);
                assert!(got == expected, "{case} {isa} {threads} threads {options:?}");
            }
        }
    }
}

#[test]
fn decoding_gives_the_log_probs_of_one_forward_over_the_whole_sequence() {
    for (case, precision) in [("qwen3-tied", Precision::F32), ("qwen3-tied-bf16", Precision::Bf16)]
    {
        for isa in Isa::available() {
            let model = open(case, true, precision, Cpu::with_isa(2, isa));
            let mut requests = requests(model.config().vocab_size);
            // A penalty makes others of them.
            requests.iter_mut().for_each(|request| request.repetition_penalty = 1.0);
            let written = generate(&model, &[], WIDE, &requests);
            for (request, completions) in requests.iter().zip(&written) {
                for (tokens, log_probs, _) in completions {
                    let temperature = match request.sampling.temperature {
                        0.0 => 1.0,
                        temperature => temperature,
                    };
                    let ids: Vec<u32> = request.prompt.iter().chain(tokens).copied().collect();
                    let logits = logits_of_all_rows(&model, &ids);
                    let vocab = model.config().vocab_size;
                    let rows =
                        &logits[(request.prompt.len() - 1) * vocab..][..tokens.len() * vocab];
                    let (mut scored, mut entropies) =
                        (vec![0.0; tokens.len()], vec![0.0; tokens.len()]);
                    log_prob::forward(
                        &Cpu::new(1),
                        &mut scored,
                        &mut entropies,
                        rows,
                        tokens,
                        temperature,
                    )
                    .unwrap();
                    let scored: Vec<u32> = scored.iter().map(|x| x.to_bits()).collect();
                    assert_eq!(
                        &scored,
                        log_probs,
                        "{case} {isa}, prompt of {}",
                        request.prompt.len()
                    );
                }
            }
        }
    }
}

/// The logits after each of `ids`, one after the other, computed in one pass.
pub(crate) fn logits_of_all_rows(model: &Model, ids: &[u32]) -> Vec<f32> {
    let pages = KvCache::pages_for(ids.len());
    let mut cache =
        KvCache::new(model.device(), model.config(), model.cache_dtype(), pages).unwrap();
    let mut table = PageTable::default();
    cache.extend(&mut table, ids.len());
    let mut batch = Batch::default();
    batch.push(ids, 0, table.pages());
    batch.want_all_logits();
    model.forward(&batch, &mut cache).data().to_vec()
}

#[test]
fn a_prompt_is_computed_once_for_all_its_samples_and_for_prompts_that_begin_alike() {
    let model = open("qwen3-tied", true, Precision::F32, Cpu::new(1));
    let prompt: Vec<u32> = (0..100).map(|i| i * 3 % 256).collect();
    let mut other_order = prompt.clone();
    other_order[70] += 1;
    let request = |prompt: &Vec<u32>, samples: std::ops::Range<u64>| Request {
        prompt: prompt.clone(),
        samples: samples.collect(),
        seed: 0,
        max_new_tokens: 3,
        sampling: SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 },
        repetition_penalty: 1.0,
        top_log_probs: 0,
    };
    let mut generator = Generator::new(&model, &[], WIDE).unwrap();
    generator.submit(request(&prompt, 0..8)).unwrap();
    generator.submit(request(&other_order, 8..9)).unwrap();
    while !generator.is_idle() {
        generator.step(&mut |_| ()).unwrap();
    }
    let stats = generator.stats();
    assert_eq!(stats.prompt_tokens, 100 + (100 - 64), "two pages of 32 are shared");
    assert_eq!(stats.shared_tokens, 64);
    assert_eq!(stats.generated_tokens, 9 * 3);
    assert_eq!(stats.steps, 3, "both prompts in the first step, all samples side by side");
}

#[test]
fn a_small_cache_makes_requests_wait_and_changes_nothing() {
    let model = open("qwen3-tied", true, Precision::F32, Cpu::new(1));
    let requests = requests(model.config().vocab_size);
    let expected = generate(&model, &[3], WIDE, &requests);
    let page = KvCache::page_bytes(model.config(), model.cache_dtype());
    for pages in [5, 6, 9, 14] {
        let options =
            GeneratorOptions { cache_bytes: pages * page, prefill_rows: 40, max_batch: 16 };
        assert!(generate(&model, &[3], options, &requests) == expected, "{pages} pages");
    }
}

/// Completions of 400 tokens, of which a sequence is promised 256 at most: where pages run out, the youngest waits and goes on
/// later with the same bits. What ends gives its pages back.
#[test]
fn a_sequence_that_has_to_wait_goes_on_with_the_same_bits() {
    let model = open("qwen3-tied", true, Precision::F32, Cpu::new(2));
    let mut requests = requests(model.config().vocab_size);
    requests.truncate(6);
    requests.iter_mut().for_each(|request| request.max_new_tokens = 400);
    requests[4].repetition_penalty = 1.2;
    let roomy = GeneratorOptions { cache_bytes: 1 << 30, ..WIDE };
    let expected = generate(&model, &[], roomy, &requests);
    let page = KvCache::page_bytes(model.config(), model.cache_dtype());
    for (pages, rows) in [(24, 512), (31, 40), (60, 512)] {
        let options = GeneratorOptions { cache_bytes: pages * page, prefill_rows: rows, ..WIDE };
        let mut generator = Generator::new(&model, &[], options).unwrap();
        for request in &requests {
            generator.submit(request.clone()).unwrap();
        }
        let mut written: Vec<Vec<Completion>> =
            requests.iter().map(|r| vec![Completion::default(); r.samples.len()]).collect();
        while !generator.is_idle() {
            let on = &mut |event: engine::generate::TokenEvent| {
                let of = &mut written[event.request.0 as usize][event.sample];
                of.0.push(event.token);
                of.1.push(event.log_prob.to_bits());
                of.2 = event.finish;
            };
            generator.step(on).unwrap();
        }
        assert!(written == expected, "{pages} pages");
        assert!(generator.stats().preemptions > 0, "{pages} pages: nobody had to wait");
        assert_eq!(generator.cache_usage(), 0.0);
    }
}

/// A request is cancelled in the queue, in its prompt, and while it runs: no more of its tokens come, its pages are free, and the
/// others have the bits that they have alone.
#[test]
fn a_cancelled_request_is_gone_and_the_others_do_not_notice() {
    let model = open("qwen3-tied", true, Precision::F32, Cpu::new(1));
    let vocab = model.config().vocab_size;
    let request = |first: usize, length: usize, samples: std::ops::Range<u64>| Request {
        prompt: (0..length).map(|i| ((first + i * 7) % vocab) as u32).collect(),
        samples: samples.collect(),
        seed: 3,
        max_new_tokens: 60,
        sampling: SamplingParams::default(),
        repetition_penalty: 1.0,
        top_log_probs: 0,
    };
    let others = [request(0, 50, 0..2), request(9, 90, 5..6)];
    let expected: Vec<_> =
        others.iter().flat_map(|r| generate(&model, &[], WIDE, std::slice::from_ref(r))).collect();
    // A prompt of 200 rows takes five steps; the batch has room for the others and four samples.
    let options = GeneratorOptions { max_batch: 7, prefill_rows: 40, cache_bytes: 64 << 20 };
    for cancel_after in 0..12 {
        let mut generator = Generator::new(&model, &[], options.clone()).unwrap();
        let first = generator.submit(others[0].clone()).unwrap();
        let gone = generator.submit(request(3, 200, 10..18)).unwrap();
        let second = generator.submit(others[1].clone()).unwrap();
        let mut written = vec![vec![Completion::default(); 2], vec![Completion::default(); 1]];
        let mut steps = 0;
        while !generator.is_idle() {
            if steps == cancel_after {
                generator.cancel(gone);
                generator.cancel(gone);
            }
            generator
                .step(&mut |event| {
                    assert!(
                        event.request != gone || steps < cancel_after,
                        "a token of what is gone"
                    );
                    let place = [first, second].iter().position(|&id| id == event.request);
                    if let Some(place) = place {
                        let of = &mut written[place][event.sample];
                        of.0.push(event.token);
                        of.1.push(event.log_prob.to_bits());
                        of.2 = event.finish;
                    }
                })
                .unwrap();
            steps += 1;
        }
        assert!(written == expected, "cancelled after {cancel_after} steps");
        assert_eq!((generator.cache_usage(), generator.running(), generator.queued()), (0.0, 0, 0));
    }
}

/// The most probable tokens are those of the whole row, in order, with the log-probabilities that a draw of them would have.
#[test]
fn the_most_probable_tokens_come_with_the_drawn_one() {
    let model = open("qwen3-tied", true, Precision::F32, Cpu::new(2));
    for (temperature, repetition_penalty) in [(0.7, 1.0), (0.0, 1.0), (1.5, 1.3)] {
        let request = Request {
            prompt: (0..40).collect(),
            samples: vec![0, 1],
            seed: 5,
            max_new_tokens: 12,
            sampling: SamplingParams { temperature, top_k: 0, top_p: 1.0, min_p: 0.0 },
            repetition_penalty,
            top_log_probs: 5,
        };
        let without = Request { top_log_probs: 0, ..request.clone() };
        let expected = generate(&model, &[], WIDE, std::slice::from_ref(&without));
        assert!(
            generate(&model, &[], WIDE, std::slice::from_ref(&request)) == expected,
            "asking changes nothing"
        );
        let mut generator = Generator::new(&model, &[], WIDE).unwrap();
        generator.submit(request).unwrap();
        let other = generator.submit(without).unwrap();
        let mut greedy_is_first = 0;
        while !generator.is_idle() {
            generator
                .step(&mut |event| {
                    let top = event.top;
                    assert_eq!(top.len(), if event.request == other { 0 } else { 5 });
                    let is_sorted = top.is_sorted_by(|a, b| a.1 > b.1 || (a.1 == b.1 && a.0 < b.0));
                    assert!(is_sorted, "{top:?}");
                    if let Some(&(_, log_prob)) =
                        top.iter().find(|(token, _)| *token == event.token)
                    {
                        assert_eq!(log_prob.to_bits(), event.log_prob.to_bits());
                    } else if let Some(least) = top.last() {
                        assert!(event.log_prob <= least.1);
                    }
                    greedy_is_first +=
                        usize::from(top.first().is_some_and(|one| one.0 == event.token));
                })
                .unwrap();
        }
        assert!(temperature > 0.0 || greedy_is_first == 24, "{greedy_is_first} of 24");
    }
}

/// A checkpoint with a row of NaN in its embedding: prompts with that token cannot be sampled. All of those fail, in one step, and
/// the others have the bits that they have alone.
#[test]
fn logits_that_cannot_be_sampled_fail_their_own_requests() {
    let scratch = tempfile::tempdir().unwrap();
    let source = golden("qwen3-untied").join("model");
    for file in fs::read_dir(&source).unwrap() {
        let path = file.unwrap().path();
        fs::copy(&path, scratch.path().join(path.file_name().unwrap())).unwrap();
    }
    let weights = scratch.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let embedding = &tensors["model.embed_tokens.weight"];
    let start = 8 + header + embedding["data_offsets"][0].as_u64().unwrap() as usize;
    let columns = embedding["shape"][1].as_u64().unwrap() as usize;
    let row = 77 * 4 * columns;
    assert_eq!(embedding["dtype"], "F32");
    bytes[start + row..start + row + 4 * columns].fill(0xff);
    fs::write(&weights, bytes).unwrap();
    let checkpoint = Checkpoint::open(scratch.path()).unwrap();
    let config = Config::load(scratch.path()).unwrap();
    let device = Device::new(Cpu::new(1));
    let model = Model::new(&checkpoint, config, None, Precision::F32, device).unwrap();
    let request = |token: u32| Request {
        prompt: vec![1, token, 3],
        samples: vec![0, 1],
        seed: 0,
        max_new_tokens: 5,
        sampling: SamplingParams::default(),
        repetition_penalty: 1.0,
        top_log_probs: 0,
    };
    let expected = generate(&model, &[], WIDE, &[request(9)]);
    let mut generator = Generator::new(&model, &[], WIDE).unwrap();
    let ids = [9, 77, 77, 9].map(|token| generator.submit(request(token)).unwrap());
    let mut written = vec![vec![Completion::default(); 2]; 4];
    let mut failed = Vec::new();
    while !generator.is_idle() {
        let step = generator.step(&mut |event| {
            let of = &mut written[event.request.0 as usize][event.sample];
            of.0.push(event.token);
            of.1.push(event.log_prob.to_bits());
            of.2 = event.finish;
        });
        if let Err(GenerateError::Sampling { request, others, .. }) = &step {
            failed.push(*request);
            failed.extend(others);
        } else {
            step.unwrap();
        }
    }
    failed.sort_unstable();
    assert_eq!(failed, ids[1..3]);
    assert!(written[0] == expected[0] && written[3] == expected[0] && written[1][0].0.is_empty());
    assert_eq!(generator.cache_usage(), 0.0);
}

#[test]
fn requests_that_cannot_run_are_refused_with_the_reason() {
    let model = open("qwen3-tied", true, Precision::F32, Cpu::new(1));
    let limit = model.config().max_position_embeddings;
    let page = KvCache::page_bytes(model.config(), model.cache_dtype());
    let mut generator =
        Generator::new(&model, &[], GeneratorOptions { cache_bytes: 2 * page, ..WIDE.clone() })
            .unwrap();
    let request = |prompt: Vec<u32>, max_new_tokens| Request {
        prompt,
        samples: vec![0],
        seed: 0,
        max_new_tokens,
        sampling: SamplingParams::GREEDY,
        repetition_penalty: 1.0,
        top_log_probs: 0,
    };
    let mut submit = |prompt, new| generator.submit(request(prompt, new));
    assert_eq!(submit(vec![], 1), Err(GenerateError::EmptyPrompt));
    assert!(matches!(submit(vec![1], limit), Err(GenerateError::TooLong { .. })));
    let error = submit(vec![1; 33], 32).unwrap_err();
    assert!(matches!(error, GenerateError::CacheTooSmall { tokens: 65, .. }), "{error}");
    assert!(error.to_string().contains("raise the memory for them"), "{error}");
    let error = submit(vec![1, 9999], 1).unwrap_err();
    assert!(error.to_string().contains("9999"), "{error}");
    assert!(submit(vec![1; 32], 32).is_ok());
}
