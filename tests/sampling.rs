//! Tokens are chosen as transformers chooses them: `fixtures/sampling` has what it did.

use std::{
    fs,
    path::{Path, PathBuf},
};

use engine::{
    checkpoint::config::{Config, GenerationConfig},
    generate::{Generator, GeneratorOptions, Request},
    model::Precision,
};
use kernels::cpu::{
    Cpu,
    repetition_penalty::{self, Penalized},
    sample::{self, SamplingParams, Scratch},
};
use serde_json::{Value, json};

use crate::{
    cli::{j1, model, stdout},
    generation::open,
};

fn fixture() -> Value {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("tests/fixtures/sampling/sampling.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|id| id as u32).collect()
}

/// All continuations of a model side by side, at two numbers of threads.
#[test]
fn greedy_tokens_under_a_repetition_penalty_are_those_of_transformers() {
    for (case, wanted) in fixture()["greedy"].as_object().unwrap() {
        let wanted = wanted.as_array().unwrap();
        for threads in [1, 3] {
            let model = open(case, false, Precision::F32, Cpu::new(threads));
            let options = GeneratorOptions { max_batch: 5, prefill_rows: 64, cache_bytes: 8 << 20 };
            let mut generator = Generator::new(&model, &[], options).unwrap();
            for one in wanted {
                let request = Request {
                    prompt: ids(&one["prompt"]),
                    // Samples of one prompt share what is known of it.
                    samples: vec![0, 1],
                    seed: 0,
                    max_new_tokens: one["tokens"].as_array().unwrap().len(),
                    sampling: SamplingParams::GREEDY,
                    repetition_penalty: one["penalty"].as_f64().unwrap() as f32,
                    top_log_probs: 0,
                };
                generator.submit(request).unwrap();
            }
            let mut written = vec![[const { Vec::new() }; 2]; wanted.len()];
            while !generator.is_idle() {
                let mut on = |event: engine::generate::TokenEvent| {
                    written[event.request.0 as usize][event.sample].push(event.token);
                };
                generator.step(&mut on).unwrap();
            }
            for (written, one) in written.iter().zip(wanted) {
                let want = ids(&one["tokens"]);
                assert_eq!(written, &[want.clone(), want], "{case}, penalty {}", one["penalty"]);
            }
        }
    }
}

/// The tokens that remain, and where the draw goes from each to the next, found by bisecting the number drawn at.
#[test]
fn penalty_temperature_and_truncation_leave_the_distribution_of_transformers() {
    for (index, one) in fixture()["distributions"].as_array().unwrap().iter().enumerate() {
        let file = &one["config"];
        let number = |key: &str, neutral: f64| file[key].as_f64().unwrap_or(neutral) as f32;
        let drawn = file["do_sample"].as_bool().unwrap();
        let params = SamplingParams {
            temperature: number("temperature", 1.0),
            top_k: file["top_k"].as_u64().unwrap_or(if drawn { 50 } else { 0 }) as u32,
            top_p: number("top_p", 1.0),
            min_p: number("min_p", 0.0),
        };
        let mut logits: Vec<f32> = numbers(&one["logits"]).iter().map(|z| *z as f32).collect();
        let mut seen = ids(&one["seen"]);
        seen.sort_unstable();
        seen.dedup();
        let (written, prompt) = seen.split_at(seen.len() / 2);
        let penalized =
            Penalized { tokens: [prompt, written], penalty: number("repetition_penalty", 1.0) };
        let vocab = logits.len();
        repetition_penalty::apply(&Cpu::new(1), &mut logits, vocab, &|_| penalized);

        let mut scratch = Scratch::new(vocab);
        let mut draw = |params: &SamplingParams, uniform: f64| {
            sample::draw(&Cpu::new(1), &mut scratch, &logits, params, uniform).unwrap().token
        };
        let largest = draw(&SamplingParams::GREEDY, 0.5);
        assert_eq!(u64::from(largest), one["largest"].as_u64().unwrap(), "case {index}");
        let kept = ids(&one["kept"]);
        for (pair, cumulative) in kept.windows(2).zip(numbers(&one["cumulative"])) {
            let (mut low, mut high) = (0.0, 1.0);
            for _ in 0..40 {
                let middle = (low + high) / 2.0;
                match draw(&params, middle) <= pair[0] {
                    true => low = middle,
                    false => high = middle,
                }
            }
            // Exponentials and sums of f32.
            assert!((low - cumulative).abs() < 2e-6, "case {index}: {low}, not {cumulative}");
            assert!(draw(&params, (cumulative + 4e-6).min(0.999_999_9)) >= pair[1], "{index}");
        }
        assert_eq!(draw(&params, 0.0), kept[0], "case {index}");
        assert_eq!(Some(&draw(&params, 1.0 - 1e-9)), kept.last(), "case {index}");
    }
}

/// The model of the tests with another generation_config.json.
fn with_generation(directory: &Path, generation: &Value) -> String {
    let copy = directory.join("model");
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(model()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    let ids = &json!([317, 315]);
    let mut generation = generation.clone();
    if generation.get("eos_token_id").is_none() {
        generation["eos_token_id"] = ids.clone();
    }
    fs::write(copy.join("generation_config.json"), generation.to_string()).unwrap();
    copy.display().to_string()
}

/// A judgement in JSON, and what was said on stderr.
fn judge(model: &str, more: &[&str]) -> (Value, String) {
    let args = ["judge", "--model", model, "--prompt", "q", "--a", "x", "--b", "y", "--json"];
    let limit = ["--max-new-tokens", "60"];
    let output = j1(&[&args, &limit[..], more].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (serde_json::from_str(&stdout(&output)).unwrap(), said)
}

fn text(judged: &Value) -> String {
    judged["judgements"][0]["text"].as_str().unwrap().to_owned()
}

/// The files of the fixture, whose meaning transformers gave, through the program: run.json has the numbers.
#[test]
fn generation_config_means_what_it_means_to_transformers() {
    for one in fixture()["configs"].as_array().unwrap() {
        let scratch = tempfile::tempdir().unwrap();
        let model = with_generation(scratch.path(), &one["file"]);
        let config = Config::load(Path::new(&model)).unwrap();
        let read = GenerationConfig::load(Path::new(&model), &config).unwrap();
        assert_eq!(Value::from(read.do_sample), one["do_sample"]);
        let pairs = crate::cli::pairs(scratch.path(), 1);
        let out = scratch.path().join("out").display().to_string();
        let args = ["eval", "--model", &model, "--data", &pairs, "--out", &out];
        stdout(&j1(&[&args[..], &["--max-new-tokens", "2"]].concat()));
        let run = fs::read_to_string(scratch.path().join("out/run.json")).unwrap();
        let run: Value = serde_json::from_str(&run).unwrap();
        for key in ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"] {
            let (got, want) = (run[key].as_f64().unwrap(), one[key].as_f64().unwrap());
            assert_eq!(got as f32, want as f32, "{key} of {}", one["file"]);
        }
    }
}

#[test]
fn a_seed_draws_only_where_the_file_or_a_flag_says_so() {
    let scratch = tempfile::tempdir().unwrap();
    let texts = |model: &str, more: &[&str]| {
        let of = |seed: &&str| text(&judge(model, &[&["--seed", seed], more].concat()).0);
        ["0", "1", "2"].iter().map(of).collect::<std::collections::BTreeSet<_>>().len()
    };
    let undrawn = json!({"do_sample": false, "temperature": 1.5, "top_p": 0.9});
    let model = with_generation(scratch.path(), &undrawn);
    assert_eq!(texts(&model, &[]), 1);
    assert!(texts(&model, &["--temperature", "1.5"]) > 1);
    let said = judge(&model, &[]).1;
    assert!(said.contains("temperature 1.5 but not do_sample"), "{said}");
    let model = with_generation(scratch.path(), &json!({"do_sample": true}));
    assert!(texts(&model, &[]) > 1);
    assert_eq!(texts(&model, &["--temperature", "0"]), 1);
    let said = judge(&model, &[]).1;
    assert!(said.contains("from generation_config.json: temperature 1, top_k 50"), "{said}");
}

#[test]
fn a_repetition_penalty_changes_judgements_and_is_a_setting_of_a_run() {
    let scratch = tempfile::tempdir().unwrap();
    let model = with_generation(scratch.path(), &json!({"repetition_penalty": 1.3}));
    let (from_file, said) = judge(&model, &[]);
    assert!(said.contains("repetition penalty 1.3"), "{said}");
    let (from_flag, said) =
        judge(&self::model(), &["--temperature", "0", "--repetition-penalty", "1.3"]);
    assert!(!said.contains("repetition penalty"), "{said}");
    assert_eq!(text(&from_file), text(&from_flag));
    let (without, _) = judge(&model, &["--repetition-penalty", "1"]);
    assert_ne!(text(&from_file), text(&without));
    crate::cli::fails(
        &[
            "judge",
            "--model",
            &model,
            "--prompt",
            "q",
            "--a",
            "x",
            "--b",
            "y",
            "--repetition-penalty",
            "0",
        ],
        1,
        &["repetition penalty is 0", "0.01 to 100"],
    );

    let pairs = crate::cli::pairs(scratch.path(), 2);
    let out = scratch.path().join("out").display().to_string();
    let args =
        ["eval", "--model", &model, "--data", &pairs, "--out", &out, "--max-new-tokens", "4"];
    stdout(&j1(&args));
    for (more, says) in [
        (["--repetition-penalty", "1"], "repetition_penalty"),
        (["--stop", "END"], "stop_strings"),
        (["--min-p", "0.1"], "min_p"),
    ] {
        crate::cli::fails(&[&args[..], &more].concat(), 1, &["was made with", says]);
    }
    stdout(&j1(&args));
}

/// Whatever tokens a stop string spans, it ends the text, and nothing else of the text changes.
#[test]
fn a_judgement_ends_with_the_first_of_its_stop_strings() {
    let greedy = ["--temperature", "0"];
    let (whole, _) = judge(&model(), &greedy);
    let whole = text(&whole);
    assert!(whole.len() > 60, "too short to cut: {whole:?}");
    let middle: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
    for (from, to) in [(10, 11), (10, 25), (3, 20), (20, 22)] {
        let stop = &whole[middle[from]..middle[to]];
        let end = whole.find(stop).unwrap() + stop.len();
        let (judged, _) =
            judge(&model(), &[&greedy[..], &["--stop", "not there", "--stop", stop]].concat());
        assert_eq!(text(&judged), whole[..end], "{stop:?}");
        assert_eq!(judged["judgements"][0]["finish"], "stop");
    }
    let (judged, _) = judge(&model(), &[&greedy[..], &["--stop", "not there"]].concat());
    assert_eq!(text(&judged), whole);

    // What streams ends there too.
    let stop = &whole[middle[10]..middle[25]];
    let end = whole.find(stop).unwrap() + stop.len();
    let model = model();
    let args = [
        "judge",
        "--model",
        &model,
        "--prompt",
        "q",
        "--a",
        "x",
        "--b",
        "y",
        "--max-new-tokens",
        "60",
    ];
    let shown = stdout(&j1(&[&args[..], &greedy, &["--stop", stop]].concat()));
    assert!(shown.contains(&format!("{}\n[", &whole[..end])), "{shown}");

    // From the file, and taken back by an empty flag.
    let scratch = tempfile::tempdir().unwrap();
    let model = with_generation(scratch.path(), &json!({"stop_strings": [stop]}));
    let (judged, said) = judge(&model, &[]);
    assert_eq!(text(&judged), whole[..end]);
    assert!(said.contains("stop string"), "{said}");
    assert_eq!(text(&judge(&model, &["--stop", ""]).0), whole);
}

#[test]
fn the_default_length_leaves_room_in_a_short_model() {
    let scratch = tempfile::tempdir().unwrap();
    let model = with_generation(scratch.path(), &json!({}));
    let path = Path::new(&model).join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = json!(2048);
    fs::write(&path, config.to_string()).unwrap();
    let pairs = crate::cli::pairs(scratch.path(), 1);
    let out = scratch.path().join("out").display().to_string();
    stdout(&j1(&["eval", "--model", &model, "--data", &pairs, "--out", &out]));
    let run = fs::read_to_string(scratch.path().join("out/run.json")).unwrap();
    let run: Value = serde_json::from_str(&run).unwrap();
    assert_eq!((&run["max_new_tokens"], &run["max_prompt_tokens"]), (&json!(1024), &json!(1024)));
}
