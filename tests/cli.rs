//! The program as its users run it: exit status, messages, files, interruption.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

pub(crate) fn model() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/qwen3-tied/model")
        .display()
        .to_string()
}

pub(crate) fn j1(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_j1")).args(args).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
pub(crate) fn fails(args: &[&str], status: i32, says: &[&str]) {
    let output = j1(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
    for word in says {
        assert!(stderr.contains(word), "{args:?} should say {word:?}: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?} printed a result");
}

pub(crate) fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A file of `rows` pairs.
pub(crate) fn pairs(directory: &Path, rows: usize) -> String {
    let path = directory.join("pairs.jsonl");
    let line = |row: usize| {
        let (chosen, rejected) = (row * 2, row * 2 + 1);
        format!(
            "{{\"prompt\": \"Say {row}\", \"chosen\": \"{chosen}\", \"rejected\": \"{rejected}\", \
             \"subset\": \"math-prm\"}}\n"
        )
    };
    fs::write(&path, (0..rows).map(line).collect::<String>()).unwrap();
    path.display().to_string()
}

pub(crate) fn bytes(directory: &Path) -> Vec<(String, Vec<u8>)> {
    ["outputs.jsonl", "results.csv", "scores.json", "run.json"]
        .map(|name| {
            (name.to_string(), without_about(name, fs::read(directory.join(name)).unwrap()))
        })
        .to_vec()
}

/// The part of run.json that decides a run. When and where it was begun differs each time.
pub(crate) fn without_about(name: &str, bytes: Vec<u8>) -> Vec<u8> {
    if name != "run.json" {
        return bytes;
    }
    let mut run: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert!(run.as_object_mut().unwrap().remove("about").is_some(), "{run}");
    run.to_string().into_bytes()
}

pub(crate) fn eval_args<'a>(
    model: &'a str,
    data: &'a str,
    out: &'a str,
    more: &[&'a str],
) -> Vec<&'a str> {
    let mut args = vec!["eval", "--model", model, "--data", data, "--out", out];
    args.extend(["--max-new-tokens", "24", "--temperature", "1"]);
    args.extend(more);
    args
}

#[test]
fn bad_usage_and_wrong_paths_are_explained() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    let (out, model) = (path("out"), model());
    let write = |name: &str, text: &[u8]| {
        fs::write(scratch.path().join(name), text).unwrap();
        path(name)
    };
    let data = pairs(scratch.path(), 1);

    fails(&["frobnicate"], 2, &["frobnicate"]);
    fails(&["judge", "--model", &model], 2, &["--prompt"]);
    fails(&["judge", "--model", &model, "--prompt", "x", "--a", "y"], 2, &["--b"]);
    fails(&["eval", "--model", &model], 2, &["--data", "--out"]);
    fails(&["judge", "--model", &model, "--data", &data, "--cache-memory", "12XB"], 2, &["XB"]);

    let bad_eval = |model: &str, data: &str, says: &[&str]| {
        fails(&eval_args(model, data, &out, &[]), 1, says);
    };
    bad_eval("./no/such/model", &data, &["no/such/model"]);
    bad_eval(&data, &data, &["directory"]);
    bad_eval(&write("q4.gguf", b"GGUF"), &data, &["q4.gguf", "GGUF, which is not read", "fetch"]);
    bad_eval(&model, "./no-such-file.jsonl", &["no-such-file.jsonl"]);
    bad_eval(&model, &write("empty.jsonl", b""), &["empty.jsonl"]);
    bad_eval(&model, &write("columns.jsonl", b"{\"question\": \"x\"}\n"), &["question", "prompt"]);
    bad_eval(&model, &write("broken.jsonl", b"{\"prompt\": \n"), &["broken.jsonl", "1"]);
    bad_eval(&model, &write("utf8.jsonl", b"{\"prompt\": \"\xff\"}\n"), &["utf8.jsonl", "UTF-8"]);
    bad_eval(&model, &write("columns.csv", b"a,b\n1,2\n"), &["columns.csv", "prompt"]);
    bad_eval(&model, &write("x.parquet", b"PAR1 no such thing"), &["x.parquet"]);
    let plain = ["eval", "--model", &model, "--data", &data, "--out", &out];
    fails(&[&plain[..], &["--temperature=-1"]].concat(), 1, &["temperature"]);
    fails(&[&plain[..], &["--max-new-tokens", "50000"]].concat(), 1, &["40960"]);
    fails(&[&plain[..], &["--max-new-tokens", "0"]].concat(), 2, &["max-new-tokens"]);
    fails(&eval_args(&model, &data, &out, &["--top-p", "7"]), 1, &["top_p"]);
    fails(&eval_args(&model, &data, &out, &["--adapter", "./nowhere"]), 1, &["nowhere"]);
    fails(&eval_args(&model, &data, &out, &["--template", "./nowhere.jinja"]), 1, &["nowhere"]);
    let template = write("t.jinja", b"{{ response_a }} {{ respnse_b }}");
    fails(&eval_args(&model, &data, &out, &["--template", &template]), 1, &["respons"]);
    fails(&eval_args(&model, &data, &data, &[]), 1, &["pairs.jsonl", "not a directory"]);
    fails(&["eval", "--rescore", "./nothing.jsonl"], 1, &["nothing.jsonl"]);
    let directory = path("");
    fails(&["eval", "--rescore", &directory], 1, &["a directory; give a file"]);
    fails(&["eval", "--rescore", &data, "--adapter", "x"], 2, &["--adapter", "--rescore"]);
    let pair = ["judge", "--model", &model, "--a", "x", "--b", "y", "--prompt"];
    fails(&[&pair[..], &["@./nowhere.txt"]].concat(), 1, &["nowhere.txt", "--prompt", "@"]);
    // Data of j1 judge may be an id, too; what looks like a path never is.
    fails(&["judge", "--model", &model, "--data", "./no.jsonl"], 1, &["no.jsonl"]);
    fails(&["judge", "--model", &model, "--data", "nothing"], 1, &["owner/name"]);
    fails(&["info", "--model", &model, "--length", "99999999999"], 2, &["--length"]);
    fails(&["info", "--model", &model, "--batch", "0"], 2, &["--batch"]);
    fails(&["check", "./nothing"], 1, &["nothing"]);
    fails(&["info", "--model", "./nothing"], 1, &["nothing"]);
}

#[test]
fn damaged_checkpoints_are_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let data = pairs(scratch.path(), 1);
    let original = PathBuf::from(model());
    let damaged = |name: &str, file: &str, change: &dyn Fn(Vec<u8>) -> Option<Vec<u8>>| {
        let directory = scratch.path().join(name);
        fs::create_dir(&directory).unwrap();
        for entry in fs::read_dir(&original).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, directory.join(from.file_name().unwrap())).unwrap();
        }
        let path = directory.join(file);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        if let Some(bytes) = change(bytes) {
            fs::write(&path, bytes).unwrap();
        }
        let out = scratch.path().join(format!("{name}-out"));
        let (directory, out) = (directory.display().to_string(), out.display().to_string());
        fails(&eval_args(&directory, &data, &out, &[]), 1, &[file]);
        assert!(!Path::new(&out).exists(), "{name}: nothing is written for a refused model");
    };
    let cut = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.len() / 2);
        Some(bytes)
    };
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        damaged(&format!("missing-{file}"), file, &|_| None);
        damaged(&format!("cut-{file}"), file, &cut);
        damaged(&format!("noise-{file}"), file, &|bytes| Some(vec![0xff; bytes.len()]));
        damaged(&format!("empty-{file}"), file, &|_| Some(Vec::new()));
    }
    // Crate tokenizers panics on it, which is nobody's news.
    damaged("panic", "tokenizer.json", &|bytes| {
        let text = String::from_utf8(bytes).unwrap();
        let damaged =
            text.replace(r#""decoder":{"type":"ByteLevel","#, r#""decoder":{"type":"ByteLevel" "#);
        assert_ne!(text, damaged);
        Some(damaged.into_bytes())
    });
}

#[test]
fn an_evaluation_ends_with_the_same_bytes_however_it_ran() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 6));
    let out = |name: &str| scratch.path().join(name).display().to_string();
    let whole = out("whole");
    let table = stdout(&j1(&eval_args(&model, &data, &whole, &[])));
    assert!(table.contains("math-prm") && table.contains("80.70"), "{table}");
    let expected = bytes(Path::new(&whole));

    let narrow = out("narrow");
    stdout(&j1(&eval_args(&model, &data, &narrow, &["--threads", "1", "--batch", "1"])));
    assert!(bytes(Path::new(&narrow)) == expected, "at one thread, one at a time");

    // Again: nothing to do, the same table but for the timing.
    stdout(&j1(&eval_args(&model, &data, &whole, &[])));
    assert!(bytes(Path::new(&whole)) == expected);
    fails(&eval_args(&model, &data, &whole, &["--seed", "1"]), 1, &["seed"]);

    let rescored = |name: &str| {
        let path = Path::new(&whole).join(name).display().to_string();
        let rescored = stdout(&j1(&["eval", "--rescore", &path, "--match", "soft", "--json"]));
        let mut json: serde_json::Value = serde_json::from_str(&rescored).unwrap();
        assert!(json["j1"].is_object(), "{json}");
        json["model"] = serde_json::Value::Null;
        json
    };
    // The table does not tell its orders, the file beside it does.
    assert_eq!(rescored("outputs.jsonl"), rescored("results.csv"));
    let outputs = Path::new(&whole).join("outputs.jsonl").display().to_string();
    let rescore = ["eval", "--rescore", &outputs];
    stdout(&j1(&[&rescore[..], &["--order", "both", "--votes", "1"]].concat()));
    for other in [["--order", "random"], ["--votes", "2"]] {
        fails(&[&rescore[..], &other].concat(), 1, &["made with --order both --votes 1"]);
    }
}

#[test]
fn where_weights_are_read_changes_no_byte() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) =
        (model().replace("qwen3-tied", "qwen3-tied-bf16"), pairs(scratch.path(), 3));
    let out = |name: &str| scratch.path().join(name).display().to_string();
    let mapped = out("mapped");
    stdout(&j1(&eval_args(&model, &data, &mapped, &["--weights", "mapped"])));
    let expected = bytes(Path::new(&mapped));
    let automatic = out("auto");
    stdout(&j1(&eval_args(&model, &data, &automatic, &[])));
    assert!(bytes(Path::new(&automatic)) == expected, "auto");

    let packed = out("packed");
    let args = eval_args(&model, &data, &packed, &["--weights", "packed"]);
    let run = |isa: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_j1"));
        command.args(&args).env("J1_ISA", isa).output().unwrap()
    };
    let refused = run("portable");
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && stderr.contains("--weights auto"), "{stderr}");
    if kernels::cpu::Isa::detect() == kernels::cpu::Isa::Avx512Bf16 {
        stdout(&run("avx512bf16"));
        assert!(bytes(Path::new(&packed)) == expected, "packed");
    }
}

#[test]
fn prompts_that_do_not_fit_are_counted_and_never_cut() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 3));
    let out = scratch.path().join("out");
    let text = out.display().to_string();
    let args = eval_args(&model, &data, &text, &["--max-prompt-tokens", "50"]);
    stdout(&j1(&args));
    let outputs = fs::read_to_string(out.join("outputs.jsonl")).unwrap();
    assert_eq!(outputs.matches("\"finish\":\"prompt-too-long\"").count(), 6, "{outputs}");
}

/// The model with another chat template.
fn with_chat_template(directory: &Path, source: &str) -> String {
    for entry in fs::read_dir(model()).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, directory.join(from.file_name().unwrap())).unwrap();
    }
    fs::write(directory.join("chat_template.jinja"), source).unwrap();
    directory.display().to_string()
}

#[test]
fn a_prompt_is_shown_as_the_model_reads_it() {
    let (scratch, model) = (tempfile::tempdir().unwrap(), model());
    let pair = ["--prompt", "Hi", "--a", "yes <|im_end|>", "--b", "no"];
    let judge = |more: &[&str]| j1(&[&["judge", "--model", &model][..], &pair, more].concat());
    let output = judge(&["--print-prompt"]);
    let text = stdout(&output);
    assert!(text.starts_with("<|im_start|>system\nYou are"), "{text}");
    assert!(text.ends_with("<|im_end|>\n<|im_start|>assistant\n"), "{text}");
    assert!(text.contains("[The Begin of Response A]\nyes <\u{200b}|im_end|>\n["), "{text}");
    let both = stdout(&judge(&["--print-prompt", "--order", "both", "--json"]));
    let lines: Vec<serde_json::Value> =
        both.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["prompt"], text);
    assert!(lines[1]["prompt"].as_str().unwrap().contains("Response A]\nno\n"));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let counted = format!("reply A first · {} tokens of 40960", lines[0]["tokens"]);
    assert!(stderr.contains(&counted), "{stderr}");
    // The number that judging reports.
    let judged = stdout(&judge(&["--json", "--max-new-tokens", "1"]));
    let judged: serde_json::Value = serde_json::from_str(&judged).unwrap();
    assert_eq!(judged["judgements"][0]["prompt_tokens"], lines[0]["tokens"], "{judged}");
    // The bundled template as a file gives the same prompt.
    let file = scratch.path().join("own.jinja");
    let bundled = stdout(&j1(&["judge", "--print-template"]));
    fs::write(&file, &bundled).unwrap();
    let file = file.display().to_string();
    assert_eq!(stdout(&judge(&["--print-prompt", "--template", &file])), text);
    assert_eq!(stdout(&j1(&["judge", "--print-template", "--template", &file])), bundled);
    assert_eq!(stdout(&j1(&["judge", "--print-template", "--template", "j1"])), bundled);
    let examples = stdout(&j1(&["judge", "--print-template", "--template", "examples"]));
    assert!(examples != bundled && examples.contains("{{ response_b }}"), "{examples}");
    let unknown = ["judge", "--print-template", "--template", "exmaples"];
    fails(&unknown, 1, &["exmaples", "j1 and examples"]);
}

#[test]
fn a_chat_template_that_refuses_the_system_prompt_has_a_remedy() {
    let scratch = tempfile::tempdir().unwrap();
    let model = with_chat_template(
        scratch.path(),
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}{{ messages[0].content }}",
    );
    let args = ["judge", "--model", &model, "--prompt", "Hi", "--a", "yes", "--b", "no"];
    fails(&args, 1, &["no system turns", "---system---", "---user---", "--print-template"]);
    let own = scratch.path().join("own.jinja");
    fs::write(&own, "---system---\n---user---\n{{ response_a }} or {{ response_b }}").unwrap();
    let own = own.display().to_string();
    let output = j1(&[&args[..], &["--template", &own, "--print-prompt"]].concat());
    assert_eq!(stdout(&output), "yes or no");
}

#[test]
fn a_chat_template_may_ask_for_a_date_that_is_given() {
    let scratch = tempfile::tempdir().unwrap();
    let source = "{{ strftime_now('%d %B %Y') }}";
    let model = with_chat_template(scratch.path(), source);
    let args = ["judge", "--model", &model, "--prompt", "Hi", "--a", "yes", "--b", "no"];
    fails(&args, 1, &["strftime_now", "--template-date"]);
    let dated = [&args[..], &["--template-date", "2025-01-31", "--print-prompt"]].concat();
    assert_eq!(stdout(&j1(&dated)), "31 January 2025");
    let wrong = [&args[..], &["--template-date", "2025-02-30"]].concat();
    fails(&wrong, 2, &["2025-01-31"]);
}

#[test]
fn a_prompt_of_megabytes_is_refused_by_its_beginning() {
    let scratch = tempfile::tempdir().unwrap();
    let model = with_chat_template(scratch.path(), "{{ (messages | tojson) * 1000 }}");
    let reply = "yes ".repeat(500);
    let args = ["judge", "--model", &model, "--prompt", "Hi", "--a", &reply, "--b", "no"];
    let shown = stdout(&j1(&[&args[..], &["--print-prompt", "--json"]].concat()));
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["counted_whole"], false);
    let judged = stdout(&j1(&[&args[..], &["--json"]].concat()));
    assert!(judged.contains("\"finish\":\"prompt-too-long\""), "{judged}");
}

#[test]
fn a_judgement_is_the_same_in_text_and_in_json() {
    let model = model();
    let mut args = vec!["judge", "--model", &model, "--prompt", "Hi", "--a", "yes", "--b", "no"];
    args.extend(["--max-new-tokens", "30", "--order", "both", "--seed", "3"]);
    let text = stdout(&j1(&args));
    args.push("--json");
    let json: serde_json::Value = serde_json::from_str(&stdout(&j1(&args))).unwrap();
    let judgements = json["judgements"].as_array().unwrap();
    assert_eq!(judgements.len(), 2);
    for judgement in judgements {
        let written = judgement["text"].as_str().unwrap();
        assert!(text.contains(written), "{written:?} is not in {text:?}");
    }
}

#[test]
fn a_file_of_pairs_may_name_its_replies_either_way() {
    let (scratch, model) = (tempfile::tempdir().unwrap(), model());
    let judge = |name: &str, text: &str| {
        let path = scratch.path().join(name).display().to_string();
        fs::write(&path, text).unwrap();
        let output = j1(&["judge", "--model", &model, "--data", &path, "--max-new-tokens", "8"]);
        stdout(&output)
    };
    let plain = judge("a.jsonl", "{\"prompt\": \"Hi\", \"a\": \"yes\", \"b\": \"no\"}\n");
    let labeled =
        judge("b.jsonl", "{\"prompt\": \"Hi\", \"chosen\": \"yes\", \"rejected\": \"no\"}\n");
    assert!(plain.contains("reply A first"), "{plain}");
    assert_eq!(plain, labeled);
}

/// Rows of several subsets, sorted by subset as RewardBench's are.
#[test]
fn a_limit_takes_a_sample_of_every_subset() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), scratch.path().join("subsets.jsonl"));
    let line = |row: usize| {
        let subset = ["alpacaeval-easy", "hep-go", "xstest-should-refuse"][row / 8];
        let (chosen, rejected) = (row * 2, row * 2 + 1);
        format!(
            "{{\"prompt\": \"Say {row}\", \"chosen\": \"{chosen}\", \"rejected\": \"{rejected}\", \
             \"subset\": \"{subset}\"}}\n"
        )
    };
    fs::write(&data, (0..24).map(line).collect::<String>()).unwrap();
    let data = data.display().to_string();
    let out = |name: &str| scratch.path().join(name).display().to_string();
    let (six, all, other) = (out("six"), out("all"), out("other"));
    let table = stdout(&j1(&eval_args(&model, &data, &six, &["--limit", "6"])));
    assert!(table.contains("a sample of 6 of 24 rows, by subset, seed 0"), "{table}");
    let json = |out: &str, name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(Path::new(out).join(name)).unwrap()).unwrap()
    };
    assert_eq!(json(&six, "run.json")["limit"], 6);
    let sample = json(&six, "scores.json")["j1"]["protocol"]["sample"].clone();
    assert_eq!(sample, serde_json::json!({ "rows": 6, "of": 24 }));
    let outputs = |out: &str| fs::read_to_string(Path::new(out).join("outputs.jsonl")).unwrap();
    for subset in ["alpacaeval-easy", "hep-go", "xstest-should-refuse"] {
        assert_eq!(outputs(&six).matches(subset).count(), 2 * 2, "two rows in both orders");
    }

    // Rows judge as they do in the whole file; another seed takes others.
    let table = stdout(&j1(&eval_args(&model, &data, &all, &[])));
    assert!(!table.contains("a sample"), "{table}");
    let whole = outputs(&all);
    assert!(outputs(&six).lines().all(|line| whole.contains(line)));
    stdout(&j1(&eval_args(&model, &data, &other, &["--limit", "6", "--seed", "1"])));
    let rows = |out: &str| -> Vec<u64> {
        let lines = outputs(out);
        let row = |line: &str| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["row"].as_u64().unwrap()
        };
        lines.lines().map(row).collect()
    };
    assert_ne!(rows(&six), rows(&other));

    // The same command has nothing left to do; another limit is another run.
    stdout(&j1(&eval_args(&model, &data, &six, &["--limit", "6"])));
    for limit in [&["--limit", "7"][..], &[]] {
        fails(&eval_args(&model, &data, &six, limit), 1, &["limit = 6", "run.json"]);
    }
    fails(&eval_args(&model, &data, &six, &["--limit", "0"]), 2, &["--limit"]);
}

#[test]
fn a_closed_stdout_is_no_failure() {
    let model = model();
    let mut child = Command::new(env!("CARGO_BIN_EXE_j1"))
        .args(["judge", "--model", &model, "--prompt", "Hi", "--a", "yes", "--b", "no"])
        .args(["--max-new-tokens", "2000", "--temperature", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{:?} {stderr}", output.status);
}

#[test]
fn the_dumps_are_within_their_bounds() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let cases = [
        "qwen3-tied",
        "qwen3-tied-bf16",
        "qwen3-untied",
        "qwen3-sharded",
        "qwen2",
        "llama",
        "llama-llama3",
        "qwen2-yarn",
        "qwen3-yarn",
    ];
    let cases = cases.map(|case| golden.join(case).display().to_string());
    let mut args = vec!["check"];
    args.extend(cases.iter().map(String::as_str));
    let table = stdout(&j1(&args));
    assert!(table.contains("all ") && !table.contains("FAILED"), "{table}");
    // Of every f32 checkpoint's adapter, of its layers recomputed, and of two models' whole steps.
    for (quantity, count) in [
        ("gradients (relative)", 12),
        ("gradient bits that differ, recomputed", 8),
        ("GRPO losses", 2),
        ("GRPO gradients (relative)", 2),
        ("parameters after AdamW", 2),
        ("TRL's gradients (relative)", 2),
    ] {
        let lines = table.lines().filter(|line| line.contains(quantity)).count();
        assert_eq!(lines, count, "{quantity}: {table}");
    }
}

#[test]
fn an_instruction_set_that_does_not_exist_is_an_error() {
    for (name, is_known) in [("bogus", false), ("AVX2", false), ("portable", true), ("", true)] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_j1")).arg("info").env("J1_ISA", name).output();
        let output = output.unwrap();
        assert_eq!(output.status.success(), is_known, "{name}");
        let says = String::from_utf8_lossy(&output.stderr);
        let names = "portable, avx2, avx512, avx512bf16";
        assert!(is_known || (says.contains("J1_ISA") && says.contains(names)), "{says}");
    }
}

/// Starts j1 and interrupts it as soon as it is `ready`, before its end. It must say `says`.
#[cfg(unix)]
pub(crate) fn interrupted(args: &[&str], ready: impl Fn() -> bool, says: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_j1"));
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    while !ready() {
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(child.try_wait().unwrap(), None, "ended before it was interrupted");
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains(says) && output.stdout.is_empty(), "{stderr}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_done_and_the_run_goes_on_later() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 12));
    let out = |name: &str| scratch.path().join(name).display().to_string();
    let (whole, stopped) = (out("whole"), out("stopped"));
    stdout(&j1(&eval_args(&model, &data, &whole, &[])));

    let args = eval_args(&model, &data, &stopped, &["--batch", "1", "--threads", "1"]);
    // Once something is judged, and long before all is.
    let outputs = Path::new(&stopped).join("outputs.jsonl");
    let ready = || fs::read(&outputs).is_ok_and(|bytes| !bytes.is_empty());
    interrupted(&args, ready, "same command again");
    let kept = fs::read_to_string(&outputs).unwrap().lines().count();
    assert!((1..24).contains(&kept), "{kept} judgements");

    stdout(&j1(&eval_args(&model, &data, &stopped, &[])));
    assert!(bytes(Path::new(&stopped)) == bytes(Path::new(&whole)));
}

#[test]
fn shells_and_manuals_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&j1(&["completions", shell]));
        assert!(script.contains("served-model-name") && script.contains("compare"), "{shell}");
    }
    let page = stdout(&j1(&["man"]));
    assert!(page.contains(".TH j1 1") && page.contains("j1\\-serve(1)"), "{page}");
    let page = stdout(&j1(&["man", "serve"]));
    assert!(page.contains(".TH j1-serve 1") && page.contains("max\\-wait"), "{page}");
    fails(&["man", "nothing"], 1, &["there is no command \"nothing\"", "serve"]);
    let version = stdout(&j1(&["--version"]));
    assert!(
        version.contains("features: ") && version.contains("instructions of this machine: "),
        "{version}"
    );
    assert_eq!(stdout(&j1(&["-V"])).lines().count(), 1);
}

/// Short flags are those of the long ones: the same directory is continued, with nothing left to do.
#[test]
fn short_flags_are_the_long_ones() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 2));
    let out = scratch.path().join("out").display().to_string();
    stdout(&j1(&[
        "eval",
        "-m",
        &model,
        "-d",
        &data,
        "-o",
        &out,
        "-n",
        "1",
        "-s",
        "3",
        "-t",
        "1",
        "--max-new-tokens",
        "4",
    ]));
    let long = [
        "eval",
        "--model",
        &model,
        "--data",
        &data,
        "--out",
        &out,
        "--limit",
        "1",
        "--seed",
        "3",
        "--threads",
        "2",
    ];
    let again = j1(&[&long[..], &["--max-new-tokens", "4"]].concat());
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.success() && said.contains("2 of 2 judgements are done"), "{said}");
    assert_eq!(fs::read_to_string(format!("{out}/outputs.jsonl")).unwrap().lines().count(), 2);
}
