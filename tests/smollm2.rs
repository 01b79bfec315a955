//! A real language model: SmolLM2-135M-Instruct writes what transformers writes. The model is not in
//! the tree; fixtures/smollm2/convert.py makes it, and J1_SMOLLM2 names its directory. Without it the
//! test says so and passes.

use std::path::{Path, PathBuf};

use engine::{
    chat::{Message, RenderOptions},
    generate::{Generator, Options, Request},
    language_model::LanguageModel,
    model::Precision,
    tensor::Device,
};
use kernels::cpu::{Cpu, sample::SamplingParams};
use serde_json::Value;

#[test]
fn greedy_answers_are_those_of_transformers_token_for_token() {
    let Some(directory) = std::env::var_os("J1_SMOLLM2").map(PathBuf::from) else {
        eprintln!(
            "skipped: set J1_SMOLLM2 to a directory made by tests/fixtures/smollm2/convert.py"
        );
        return;
    };
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smollm2/greedy.json");
    let fixture: Value = serde_json::from_str(&std::fs::read_to_string(fixture).unwrap()).unwrap();
    for precision in [Precision::Bf16, Precision::F32] {
        let device = Device::new(Cpu::new(2));
        let opened = LanguageModel::open(&directory, None, Some(precision), &device).unwrap();
        for case in fixture["cases"].as_array().unwrap() {
            compare(&opened, case, precision);
        }
    }
}

fn compare(opened: &LanguageModel, case: &Value, precision: Precision) {
    let name = &case["name"];
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let ids = |key: &str| -> Vec<u32> {
        case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let messages: Vec<Message> = case["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| Message::new(text(&message["role"]), text(&message["content"])))
        .collect();
    let options = RenderOptions { add_generation_prompt: true, enable_thinking: None, date: None };
    let prompt = opened.chat.render(&messages, options).unwrap();
    assert_eq!(prompt, text(&case["prompt"]), "{name}");
    let prompt = opened.tokenizer.encode(&prompt).unwrap();
    assert_eq!(prompt, ids("prompt_ids"), "{name}");

    let options = Options { max_batch: 1, prefill_rows: 512, cache_bytes: 1 << 30 };
    let mut generator = Generator::new(&opened.model, opened.stop_tokens(), options);
    let request = Request {
        prompt,
        samples: vec![0],
        seed: 0,
        max_new_tokens: case["max_new_tokens"].as_u64().unwrap() as usize,
        sampling: SamplingParams::GREEDY,
        repetition_penalty: 1.0,
    };
    generator.submit(request).unwrap();
    let mut written = Vec::new();
    while !generator.is_idle() {
        generator.step(&mut |event| written.push(event.token)).unwrap();
    }
    assert_eq!(written, ids("output_ids"), "{name} {precision:?}");
    let answer = opened.tokenizer.decode(&written, true).unwrap();
    assert_eq!(answer, text(&case["output_text"]), "{name} {precision:?}");
}
