//! Real language models compute and write what transformers computes and writes. The models are not in the tree:
//! fixtures/real_models/convert.py makes them, and J1_SMOLLM2 and J1_QWEN25_CODER name their directories. Without them the
//! tests say so and pass.

use std::path::{Path, PathBuf};

use engine::{
    generate::{Generator, GeneratorOptions, Request, SamplingParams},
    language_model::LanguageModel,
    model::Precision,
    tensor::Device,
    text::chat::{Message, RenderOptions},
};
use serde::Deserialize;
use trainer::data::fingerprint;

use crate::{generation::logits_of_all_rows, shared::skipped};

#[test]
fn smollm2_is_what_transformers_makes_of_it() {
    is_what_transformers_makes_of_it("J1_SMOLLM2", "smollm2.json");
}

#[test]
fn qwen25_coder_is_what_transformers_makes_of_it() {
    is_what_transformers_makes_of_it("J1_QWEN25_CODER", "qwen25_coder.json");
}

#[derive(Deserialize)]
struct Expected {
    model_sha256: String,
    repetition_penalty: f32,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    messages: Vec<Said>,
    max_new_tokens: usize,
    prompt: String,
    prompt_ids: Vec<u32>,
    output: Output,
    /// With the model's own repetition penalty.
    penalized: Option<Output>,
    margins: Vec<f32>,
    logits: Vec<Logits>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: String,
}

#[derive(Deserialize)]
struct Output {
    ids: Vec<u32>,
    text: String,
}

/// Logits of some tokens in one place, in f32, and torch's largest error in them when it computes in bf16.
#[derive(Deserialize)]
struct Logits {
    ids: Vec<usize>,
    values: Vec<f32>,
    bfloat16_error: f32,
}

fn is_what_transformers_makes_of_it(variable: &str, fixture: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/real_models");
    let Some(directory) = std::env::var_os(variable).map(PathBuf::from) else {
        skipped(format!(
            "{variable} is not set to a directory made by {}/convert.py",
            folder.display()
        ));
        return;
    };
    let expected = std::fs::read_to_string(folder.join(fixture)).unwrap();
    let expected: Expected = serde_json::from_str(&expected).unwrap();
    let weights = fingerprint::of_file(&directory.join("model.safetensors")).unwrap();
    assert!(
        expected.model_sha256.starts_with(&weights),
        "{variable} names other weights than the fixture's"
    );
    for precision in [Precision::Bf16, Precision::F32] {
        let device = Device::cpu_threads(2);
        let builder = LanguageModel::builder(&directory).device(&device).precision(precision);
        let opened = builder.open().unwrap();
        for case in &expected.cases {
            prompt_is_the_same(&opened, case);
            logits_are_near(&opened, case, precision);
            // In f32 token for token: there no permitted error is as large as a margin.
            if precision == Precision::F32 {
                greedy_answer_is(&opened, case, 1.0, &case.output);
                if let Some(penalized) = &case.penalized {
                    greedy_answer_is(&opened, case, expected.repetition_penalty, penalized);
                }
            }
        }
    }
}

fn prompt_is_the_same(opened: &LanguageModel, case: &Case) {
    let messages: Vec<Message> = case
        .messages
        .iter()
        .map(|said| Message::new(said.role.as_str(), said.content.as_str()))
        .collect();
    let options = RenderOptions { add_generation_prompt: true, enable_thinking: None, date: None };
    let prompt = opened.chat.render(&messages, options).unwrap();
    assert_eq!(prompt, case.prompt, "{}", case.name);
    assert_eq!(opened.tokenizer.encode(&prompt).unwrap(), case.prompt_ids, "{}", case.name);
}

/// What an error of a logit may be. In bf16 twice torch's own; in f32 both round in their own order, and a hundredth of that
/// is ample.
fn bound(case: &Case, precision: Precision) -> f32 {
    let torch_error = case.logits.iter().map(|row| row.bfloat16_error).fold(0.0, f32::max);
    match precision {
        Precision::Bf16 => 2.0 * torch_error,
        Precision::F32 => 0.01 * torch_error,
    }
}

/// The logits before each output token, when all of them are given, against those of transformers: near, and with the same
/// largest one wherever a permitted error cannot change it.
fn logits_are_near(opened: &LanguageModel, case: &Case, precision: Precision) {
    let output = &case.output.ids;
    let tokens = [&case.prompt_ids[..], &output[..output.len() - 1]].concat();
    let computed = logits_of_all_rows(&opened.model, &tokens);
    let vocab = opened.model.config().vocab_size;
    let rows: Vec<&[f32]> = computed.chunks_exact(vocab).skip(case.prompt_ids.len() - 1).collect();
    let (name, bound) = (&case.name, bound(case, precision));
    let mut largest: f32 = 0.0;
    for (row, expected) in rows.iter().zip(&case.logits) {
        for (&id, &value) in expected.ids.iter().zip(&expected.values) {
            largest = largest.max((row[id] - value).abs());
        }
    }
    let mut certain = 0;
    for ((row, &token), &margin) in rows.iter().zip(output).zip(&case.margins) {
        if margin > 2.0 * bound {
            certain += 1;
            let best = (0..vocab).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            assert_eq!(best, token as usize, "{name} {precision:?}");
        }
    }
    let all = output.len();
    eprintln!(
        "{name} {precision:?}: largest error {largest:.5} of {bound:.5}; {certain} of {all} tokens certain"
    );
    assert!(largest <= bound, "{name} {precision:?}: a logit is off by {largest}, above {bound}");
}

fn greedy_answer_is(opened: &LanguageModel, case: &Case, repetition_penalty: f32, output: &Output) {
    let options = GeneratorOptions { max_batch: 1, prefill_rows: 512, cache_bytes: 1 << 30 };
    let mut generator = Generator::new(&opened.model, opened.stop_tokens(), options).unwrap();
    let request = Request {
        prompt: case.prompt_ids.clone(),
        samples: vec![0],
        seed: 0,
        max_new_tokens: case.max_new_tokens,
        sampling: SamplingParams::GREEDY,
        repetition_penalty,
        top_log_probs: 0,
    };
    generator.submit(request).unwrap();
    let mut written = Vec::new();
    while !generator.is_idle() {
        generator.step(&mut |event| written.push(event.token)).unwrap();
    }
    let name = &case.name;
    assert_eq!(written, output.ids, "{name}, penalty {repetition_penalty}");
    assert_eq!(opened.tokenizer.decode(&written, true).unwrap(), output.text, "{name}");
}
