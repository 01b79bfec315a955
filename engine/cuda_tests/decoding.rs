//! Captured decoding steps against the same steps launched kernel by kernel.

use std::collections::BTreeMap;

use kernels::{
    cpu::{Cpu, attention::PAGE, sample::SamplingParams},
    cuda::Queued,
};

use super::*;
use crate::generate::{RequestId, TokenEvent};

/// A device of its own, so that what is counted is the test's.
fn device() -> Option<Device> {
    gpu().map(|_| Device::cuda(0, Cpu::new(1)).unwrap())
}

const OPTIONS: GeneratorOptions =
    GeneratorOptions { max_batch: 16, prefill_rows: 1024, cache_bytes: 4 << 20 };

/// A prompt of `prompt` tokens, with `samples` samples of at most `new` tokens.
fn request(prompt: usize, samples: u64, new: usize, sampling: SamplingParams) -> Request {
    Request {
        prompt: (0..prompt as u32).map(|i| (i * 7 + prompt as u32) % 203).collect(),
        samples: (0..samples).map(|sample| 100 * prompt as u64 + sample).collect(),
        seed: 5,
        max_new_tokens: new,
        sampling,
        repetition_penalty: 1.0,
        top_log_probs: 0,
    }
}

const PLAIN: SamplingParams = SamplingParams { temperature: 0.9, top_k: 0, top_p: 1.0, min_p: 0.0 };

/// Tokens and bits of log-probabilities by request and sample.
type Written = BTreeMap<(RequestId, usize), Vec<(u32, u32)>>;

/// Runs the requests, the i-th submitted before step `3·i`; at most `most` graphs. Shows `seen` the
/// generator after every step.
fn generate(
    model: &Model,
    requests: &[Request],
    most: usize,
    seen: &mut dyn FnMut(&Generator<'_>),
) -> Written {
    generate_with(OPTIONS, model, requests, most, seen)
}

fn generate_with(
    options: GeneratorOptions,
    model: &Model,
    requests: &[Request],
    most: usize,
    seen: &mut dyn FnMut(&Generator<'_>),
) -> Written {
    let mut generator = Generator::new(model, &[], options).unwrap();
    generator.limit_captures(most);
    let mut written = Written::new();
    let mut waiting = requests.iter();
    for step in 0.. {
        if step % 3 == 0
            && let Some(request) = waiting.next()
        {
            generator.submit(request.clone()).unwrap();
        }
        if generator.is_idle() {
            break;
        }
        let mut on = |event: TokenEvent| {
            let of = written.entry((event.request, event.sample)).or_default();
            of.push((event.token, event.log_prob.to_bits()));
        };
        generator.step(&mut on).unwrap();
        seen(&generator);
    }
    assert_eq!(waiting.len(), 0, "requests that were never submitted");
    written
}

/// Sequences join and leave, cross a page and the shortest bucket's end, and are drawn in every way.
#[test]
fn captured_steps_have_the_bits_of_others() {
    let Some(device) = device() else { return };
    for (family, head_dim) in [(Family::Qwen3, 16), (Family::Qwen2, 64)] {
        let fixture = Fixture::new(family, head_dim, 8);
        let model = fixture.model(Precision::Bf16, &device);
        let narrow = SamplingParams { temperature: 0.7, top_k: 20, top_p: 0.9, min_p: 0.02 };
        let requests = [
            request(PAGE - 2, 3, 13, PLAIN),
            request(508, 1, 8, narrow),
            request(5, 6, 4, PLAIN),
            request(PAGE, 1, 5, SamplingParams::GREEDY),
        ];
        let plain = generate(&model, &requests, 0, &mut |generator| {
            assert!(generator.captures().is_empty());
        });
        let mut buckets = Vec::new();
        let captured = generate(&model, &requests, 16, &mut |generator| {
            buckets = generator.captures();
        });
        assert_eq!(captured, plain, "{family:?}");
        buckets.sort();
        let want = [[1, 512], [4, 512], [8, 1024], [16, 512], [16, 1024]];
        assert_eq!(buckets, want, "rows and tokens of a sequence");
        // With room for one, each is made again and again.
        let one = generate(&model, &requests, 1, &mut |generator| {
            assert!(generator.captures().len() <= 1);
        });
        assert_eq!(one, plain, "{family:?}, one at a time");
    }
}

/// Where pages run out a sequence waits, and goes on with the same bits; captured steps take what is left of the batch.
#[test]
fn a_sequence_that_has_to_wait_goes_on_with_the_same_bits() {
    let Some(device) = device() else { return };
    let fixture = Fixture::new(Family::Qwen3, 16, 8);
    let model = fixture.model(Precision::Bf16, &device);
    let requests = [request(10, 1, 290, PLAIN), request(20, 1, 280, PLAIN)];
    let expected = generate(&model, &requests, 16, &mut |_| ());
    let page = KvCache::page_bytes(model.config(), model.cache_dtype());
    let options = GeneratorOptions { cache_bytes: 18 * page, ..OPTIONS };
    let mut preemptions = 0;
    let waited = generate_with(options, &model, &requests, 16, &mut |generator| {
        preemptions = generator.stats().preemptions;
    });
    assert!(waited == expected && preemptions > 0, "{preemptions} times");
}

/// The most probable tokens are those of the row that was drawn from, penalties included.
#[test]
fn the_most_probable_tokens_come_with_the_drawn_one() {
    let Some(device) = device() else { return };
    let fixture = Fixture::new(Family::Qwen3, 16, 8);
    let model = fixture.model(Precision::Bf16, &device);
    let greedy = request(30, 1, 6, SamplingParams::GREEDY);
    let asking = Request { top_log_probs: 3, repetition_penalty: 1.3, ..greedy.clone() };
    let mut generator = Generator::new(&model, &[], OPTIONS).unwrap();
    let asked = generator.submit(asking).unwrap();
    generator.submit(request(8, 2, 9, PLAIN)).unwrap();
    let mut seen = 0;
    while !generator.is_idle() {
        let mut on = |event: TokenEvent| match event.request == asked {
            false => assert!(event.top.is_empty()),
            true => {
                let (token, log_prob) = event.top[0];
                assert_eq!((token, event.top.len()), (event.token, 3));
                // The row's sums are those of another device.
                assert!((log_prob - event.log_prob).abs() < 1e-4, "{log_prob} {}", event.log_prob);
                seen += 1;
            }
        };
        generator.step(&mut on).unwrap();
    }
    assert_eq!(seen, 6);
}

/// Samples of one prompt, others that are not penalized beside them, more distinct tokens with every step.
#[test]
fn captured_steps_penalize_repetition() {
    let Some(device) = device() else { return };
    let fixture = Fixture::new(Family::Qwen3, 16, 8);
    let model = fixture.model(Precision::Bf16, &device);
    let narrow = SamplingParams { temperature: 0.7, top_k: 20, top_p: 0.9, min_p: 0.02 };
    let with = |repetition_penalty, request| Request { repetition_penalty, ..request };
    let requests = [
        with(1.3, request(PAGE - 2, 3, 9, PLAIN)),
        with(1.0, request(7, 2, 12, narrow)),
        with(0.8, request(5, 1, 14, SamplingParams::GREEDY)),
        with(1.5, request(40, 1, 12, SamplingParams::GREEDY)),
    ];
    let plain = generate(&model, &requests, 0, &mut |_| ());
    let captured = generate(&model, &requests, 16, &mut |_| ());
    assert_eq!(captured, plain);
    let unpenalized = requests.clone().map(|request| with(1.0, request));
    let others = generate(&model, &unpenalized, 16, &mut |_| ());
    let of = |written: &Written, request: u64| -> Vec<_> {
        written
            .iter()
            .filter(|(key, _)| key.0 == RequestId(request))
            .map(|(_, t)| t.clone())
            .collect()
    };
    assert_eq!(of(&others, 1), of(&plain, 1), "it was not penalized before either");
    for request in [0, 2, 3] {
        assert_ne!(of(&others, request), of(&plain, request), "request {request}");
    }
    // One more copy and launch a step.
    let Device::Cuda(cuda) = model.device() else { panic!("a model on a CPU") };
    let mut queued = Vec::new();
    let one = [with(1.3, request(5, 3, 4, PLAIN))];
    generate(&model, &one, 16, &mut |_| queued.push(cuda.gpu().queued()));
    let [.., before, last] = queued[..] else { panic!("two steps and more") };
    let difference = (last.kernels - before.kernels, last.copies - before.copies);
    assert_eq!((difference, last.graphs - before.graphs), ((0, 7), 1));
}

/// Three sequences fill the cache; the row that pads has a page beside it.
#[test]
fn rows_that_pad_take_no_page_of_the_caches() {
    let Some(device) = device() else { return };
    let fixture = Fixture::new(Family::Qwen3, 16, 8);
    let model = fixture.model(Precision::Bf16, &device);
    let requests = [request(20, 3, 5, PLAIN)];
    let pages = 3 * KvCache::page_bytes(model.config(), model.cache_dtype());
    let options = GeneratorOptions { cache_bytes: pages, ..OPTIONS };
    let mut buckets = Vec::new();
    let tight = generate_with(options, &model, &requests, 16, &mut |generator| {
        buckets = generator.captures();
    });
    assert_eq!(buckets, [[4, 512]], "rows and tokens of a sequence");
    assert_eq!(tight, generate(&model, &requests, 0, &mut |_| ()));
}

/// A generator borrows its model, so no graph sees factors change; its memory goes back.
#[test]
fn after_a_step_of_the_optimizer_graphs_have_the_new_weights() {
    let Some(device) = device() else { return };
    let fixture = Fixture::new(Family::Qwen3, 16, 8);
    let mut model = fixture.model(Precision::Bf16, &device);
    let requests = [request(20, 3, 5, PLAIN)];
    let captured = |model: &Model| {
        let mut most = 0;
        let written = generate(model, &requests, 16, &mut |generator| {
            most = most.max(generator.captures().len());
        });
        assert!(most > 0, "nothing was captured");
        written
    };
    let before = captured(&model);
    let in_use = device.allocated_bytes();
    assert_eq!(captured(&model), before);
    assert_eq!(device.allocated_bytes(), in_use, "what captures held");

    let (_, values) = learned(&model, PASS);
    let mut gradients = Gradients::default();
    for ((_, factor), values) in model.parameters().zip(&values) {
        let [rows, columns] = factor.shape();
        gradients.add(factor.id(), Tensor::from_slice(&device, rows, columns, values));
    }
    let mut adamw = model.optimizer(AdamWSettings::default());
    let outcome = model.step(&mut adamw, &gradients, 1e-2).unwrap();
    assert!(matches!(outcome, StepOutcome::Updated { .. }), "{outcome:?}");

    let after = captured(&model);
    assert_ne!(after, before);
    assert_eq!(after, generate(&model, &requests, 0, &mut |_| ()));
}

/// The work that the host queues in the last of some decoding steps of four sequences, one of which pads.
fn queued_of_a_step(model: &Model, most: usize) -> Queued {
    let Device::Cuda(cuda) = model.device() else { panic!("a model on a CPU") };
    let (mut at, mut last) = (Queued::default(), Queued::default());
    generate(model, &[request(5, 3, 4, PLAIN)], most, &mut |_| {
        let now = cuda.gpu().queued();
        last = Queued {
            kernels: now.kernels - at.kernels,
            copies: now.copies - at.copies,
            graphs: now.graphs - at.graphs,
        };
        at = now;
    });
    last
}

/// Of Qwen3-0.6B's depth and head_dim; the other widths change no count.
#[test]
fn a_decoding_step_is_one_launch_and_a_few_copies() {
    let Some(device) = device() else { return };
    let fixture = Fixture::of_layers(28, Family::Qwen3, 128, 8);
    let adapted = fixture.model(Precision::Bf16, &device);
    let checkpoint = Checkpoint::open(fixture.directory.path()).unwrap();
    let base =
        Model::new(&checkpoint, fixture.config.clone(), None, Precision::Bf16, device).unwrap();
    for (model, kernels) in [(&base, 28 * 14 + 4), (&adapted, 28 * 28 + 4)] {
        let apart = queued_of_a_step(model, 0);
        assert_eq!(apart, Queued { kernels, copies: 8, graphs: 0 });
        // Tokens, positions, slots, attention's items, requests; and what was drawn.
        assert_eq!(queued_of_a_step(model, 16), Queued { kernels: 0, copies: 6, graphs: 1 });
    }
}
