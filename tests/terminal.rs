//! What strangers wrote (models, data, configurations, checkpoints) steers no terminal, and is in files and pipes as it is.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    cli::{eval_args, j1, model, pairs},
    shared::skipped,
};

/// Sets a title, rings, colors by a C1 byte, and turns the text around.
const HOSTILE: &str = "\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}\u{2066}";

fn steers(text: &str) -> Option<char> {
    let direction = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().find(|&c| (c.is_control() && !"\n\t".contains(c)) || direction(c))
}

/// What `args` print to a terminal. `None`, said on stderr, where there is no program `script` to make one.
fn on_terminal(args: &[&str]) -> Option<String> {
    let quoted = |arg: &&str| format!("'{}'", arg.replace('\'', r"'\''"));
    let all: Vec<String> =
        [&[env!("CARGO_BIN_EXE_j1")], args].concat().iter().map(quoted).collect();
    // Progress on stderr moves the cursor, and may.
    let command = format!("{} 2>/dev/null", all.join(" "));
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &command, "/dev/null"]).stdin(Stdio::null());
    match script.output() {
        Ok(output) => {
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success(), "{args:?}: {text}");
            // The terminal's own line ends.
            Some(text.replace("\r\n", "\n"))
        }
        Err(error) => {
            skipped(format!("script cannot be started: {error}"));
            None
        }
    }
}

#[test]
fn a_judgement_on_a_terminal_is_escaped_and_in_a_pipe_it_is_not() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), scratch.path().join("pairs.jsonl"));
    let row = json!({ "id": HOSTILE, "prompt": "Hi", "a": "yes", "b": "no" });
    fs::write(&data, format!("{row}\n")).unwrap();
    let data = data.display().to_string();
    // Tokens of random weights are bytes of all kinds, a fifth of them control characters.
    let args = ["judge", "--model", &model, "--data", &data, "--order", "both"];
    let args = [&args[..], &["--max-new-tokens", "200", "--temperature", "1.5"]].concat();
    let piped = String::from_utf8(j1(&args).stdout).unwrap();
    let controls = piped.chars().filter(|c| c.is_control() && !"\n\t".contains(*c)).count();
    assert!(controls > 20 && piped.contains(HOSTILE), "{piped:?}");
    let Some(shown) = on_terminal(&args) else { return };
    assert_eq!(steers(&shown), None, "{shown:?}");
    // All of it is there, streamed piece by piece.
    assert_eq!(shown, engine::error::printable(&piped));
    assert!(shown.contains("\\u{1b}]0;owned\\u{7}\\u{9b}31m\\u{202e}\\u{2066}"), "{shown:?}");
}

#[test]
fn tables_of_strangers_names_are_escaped() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("pairs.jsonl");
    let row = json!({ "id": HOSTILE, "subset": HOSTILE, "source": HOSTILE, HOSTILE: 1,
        "prompt": HOSTILE, "chosen": HOSTILE, "rejected": "no" });
    fs::write(&path, format!("{row}\n")).unwrap();
    let (model, data) = (model(), path.display().to_string());
    let inspected = j1(&["data", "inspect", &data]);
    let text = String::from_utf8(inspected.stdout).unwrap();
    assert_eq!(steers(&text), None, "{text:?}");
    assert!(text.matches("\\u{1b}]0;owned").count() >= 4, "{text}");
    let out = scratch.path().join("out").display().to_string();
    let text = String::from_utf8(j1(&eval_args(&model, &data, &out, &[])).stdout).unwrap();
    assert_eq!(steers(&text), None, "{text:?}");
    assert!(text.contains("\\u{202e}"), "{text}");
    // Files hold what the data hold.
    let outputs = fs::read_to_string(Path::new(&out).join("outputs.jsonl")).unwrap();
    let record: Value = serde_json::from_str(outputs.lines().next().unwrap()).unwrap();
    assert_eq!((&record["id"], &record["subset"]), (&json!(HOSTILE), &json!(HOSTILE)));
}

/// A safetensors file of one tensor that is described so.
fn safetensors(name: &str, dtype: &str) -> Vec<u8> {
    let header = json!({ name: { "dtype": dtype, "shape": [1], "data_offsets": [0, 4] } });
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat()
}

#[test]
fn errors_quote_strangers_escaped() {
    let scratch = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = scratch.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let copy = |name: &str| {
        for entry in fs::read_dir(model()).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap();
            write(&format!("{name}/{file}"), &fs::read(&path).unwrap());
        }
        scratch.path().join(name).display().to_string()
    };
    let (model, good) = (model(), pairs(scratch.path(), 1));
    let out = scratch.path().join("out").display().to_string();
    let refused = |args: &[&str]| {
        let output = j1(args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            matches!(output.status.code(), Some(1 | 2)),
            "{args:?}: {:?} {text}",
            output.status
        );
        assert_eq!(steers(&text), None, "{args:?}: {text:?}");
        assert!(text.contains("\\u{1b}]0;owned"), "{args:?} should quote: {text:?}");
    };
    let eval = |model: &str, data: &str| refused(&eval_args(model, data, &out, &[]));

    let names = json!({ HOSTILE: 1, "x": 2 }).to_string() + "\n";
    eval(&model, &write("columns.jsonl", names.as_bytes()));
    eval(&model, &write("columns.csv", format!("{HOSTILE},x\n1,2\n").as_bytes()));
    let train = ["train", "--preset", "j1-nano", "--model", &model, "--data", &good, "--out", &out];
    refused(&[&train[..], &["--set", &format!("\"{}\"=1", toml_escaped(HOSTILE))]].concat());
    let toml = write("u.toml", format!("[lora]\n\"{}\" = 1\n", toml_escaped(HOSTILE)).as_bytes());
    let config = ["train", "--config", &toml, "--model", &model, "--data", &good, "--out", &out];
    refused(&config);

    let dtype = copy("dtype");
    write("dtype/model.safetensors", &safetensors("x", HOSTILE));
    eval(&dtype, &good);
    let key = copy("key");
    let config = json!({ "model_type": HOSTILE }).to_string();
    write("key/config.json", config.as_bytes());
    eval(&key, &good);
    let order = json!({ "row": 0, "id": "0", "order": HOSTILE, "text": "" }).to_string() + "\n";
    refused(&["eval", "--rescore", &write("rescore/outputs.jsonl", order.as_bytes())]);
    for file in fs::read_dir(Path::new(&model).parent().unwrap()).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            let name = path.file_name().unwrap().to_str().unwrap();
            write(&format!("case/{name}"), &fs::read(&path).unwrap());
        }
    }
    copy("case/model");
    let offsets =
        json!({ HOSTILE: { "dtype": "F32", "shape": [1], "data_offsets": [4, 8] } }).to_string();
    let bytes = [&(offsets.len() as u64).to_le_bytes()[..], offsets.as_bytes(), &[0; 8]].concat();
    write("case/base.safetensors", &bytes);
    refused(&["check", &scratch.path().join("case").display().to_string()]);
    // Names of files and arguments.
    refused(&["info", "--model", &format!("./{HOSTILE}")]);
    let named = j1(&["judge", &format!("--{HOSTILE}")]);
    let text = String::from_utf8(named.stderr).unwrap();
    assert!(steers(&text).is_none() && text.contains("\\u{202e}"), "{text:?}");
}

fn toml_escaped(text: &str) -> String {
    text.chars().map(|c| format!("\\U{:08x}", u32::from(c))).collect()
}

/// A training run on a terminal of 60 columns, whose pairs come from a stranger: the table, what is shown of judgements and
/// the warnings fit it, and nothing but the progress bar moves the cursor.
#[test]
fn a_training_run_fits_its_terminal() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    let row = json!({ "id": HOSTILE, "prompt": format!("Hi {HOSTILE}"), "chosen": "yes",
        "rejected": HOSTILE });
    fs::write(path("pairs.jsonl"), format!("{row}\n")).unwrap();
    let template = "---system---\n---user---\n{{ question }}|{{ response_a }}|{{ response_b }}\n";
    fs::write(path("template.jinja"), template).unwrap();
    let set = [
        format!("data.template={}", path("template.jinja")),
        "train.steps=5".to_owned(),
        "train.show_every=1".to_owned(),
        "rollout.prompts_per_step=2".to_owned(),
        "rollout.max_completion_tokens=40".to_owned(),
        "rollout.temperature=1.5".to_owned(),
        "reward.weights.length=0".to_owned(),
        "reward.length_from_tokens=0".to_owned(),
    ];
    let set: Vec<String> = set.iter().map(|set| format!("--set '{set}'")).collect();
    let run = format!(
        "stty rows 24 cols 60; '{}' train --preset j1-nano --model '{}' --data '{}' --out '{}' --cache-memory 8MB {}",
        env!("CARGO_BIN_EXE_j1"),
        model(),
        path("pairs.jsonl"),
        path("out"),
        set.join(" ")
    );
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &run, "/dev/null"]).stdin(Stdio::null());
    let output = match script.output() {
        Ok(output) => output,
        Err(error) => return skipped(format!("script cannot be started: {error}")),
    };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    // What the progress bar moves the cursor with.
    let mut plain = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("\u{1b}[") {
        plain += &rest[..at];
        let end = rest[at + 2..].find(|c: char| c.is_ascii_alphabetic()).unwrap();
        rest = &rest[at + 3 + end..];
    }
    let plain = (plain + rest).replace('\r', "\n");
    assert_eq!(steers(&plain), None, "{plain:?}");
    let from = plain.lines().position(|line| line.starts_with("1 pairs, prompts")).unwrap();
    let lines: Vec<&str> = plain.lines().skip(from).collect();
    let after = lines.iter().position(|line| line.starts_with("the adapter is in")).unwrap();
    for line in &lines[..after] {
        assert!(line.chars().count() <= 60, "{line:?}");
    }
    let begin =
        |start: &str| lines.iter().filter(|line| line.trim_start().starts_with(start)).count();
    // After a judgement there is a heading again.
    assert_eq!((begin("step "), begin("── step")), (5, 5), "{plain}");
    assert!(plain.contains("reply A: ") && plain.contains("\\u{1b}]0;owned"), "{plain}");
    assert_eq!(begin("warning: the adapter did not move in the last 5 steps"), 1, "{plain}");
}
