//! Verdicts as users see them: both rules side by side, reasons in words, forms that a template names.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::cli::{fails, j1, model, stdout};

/// A table of judgements about one pair each, and what `eval --rescore` makes of it.
fn rescored(directory: &Path, judgements: &[&str], more: &[&str]) -> Value {
    let path = directory.join("judgements.jsonl");
    let line = |judgement: &&str| {
        let row = json!({"prompt": "q", "chosen": "c", "rejected": "r", "judgement": judgement});
        format!("{row}\n")
    };
    fs::write(&path, judgements.iter().map(line).collect::<String>()).unwrap();
    let path = path.display().to_string();
    let args = [&["eval", "--rescore", &path, "--json"][..], more].concat();
    serde_json::from_str(&stdout(&j1(&args))).unwrap()
}

#[test]
fn a_label_a_quotation_or_an_earlier_box_reverses_no_winner() {
    let scratch = tempfile::tempdir().unwrap();
    // Slot B wins in the first two; the others say nothing.
    let judgements = [
        "<scores>\nResponse B's score: \\boxed{8}\nResponse A's score: \\boxed{5}\n</scores>",
        "<scores>Assistant 2: \\boxed{8}\nAssistant 1: \\boxed{5}</scores>",
        "Response A says \\boxed{42, 7} as its answer. <scores>\\boxed{B}</scores>",
        "Response B gives \\boxed{42} and Response A gives \\boxed{7}.",
        "Response A accuracy: \\boxed{4}, clarity: \\boxed{9}.",
    ];
    let scores = rescored(scratch.path(), &judgements, &["--match", "soft"]);
    let ours = &scores["j1"];
    assert_eq!(ours["verdicts"], json!({"a": 0, "b": 2, "ties": 0}), "{ours}");
    assert_eq!(ours["unparsed_soft"]["total"], 3);
    assert_eq!(ours["other_rule"]["match"], "strict");
    assert_eq!(ours["unparsed_strict"]["total"], 5);
    assert!(ours["warning"].as_str().unwrap().contains("3 of 5 judgements (60 %)"), "{ours}");
    // Strict is the default, and reads none of them: 50 by RewardBench's rule, and said to be nothing.
    let path = scratch.path().join("judgements.jsonl").display().to_string();
    let table = stdout(&j1(&["eval", "--rescore", &path]));
    assert!(table.contains("match strict") && table.contains("WARNING: no verdict"), "{table}");
    assert!(table.contains("The soft rule reads"), "{table}");
    assert!(table.lines().skip(1).all(|line| line.chars().count() <= 80), "{table}");
}

#[test]
fn a_templates_form_is_read_when_judgements_are_scored_again() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path();
    let line = |row: u64, order: &str, finish: &str, text: &str| {
        let none = json!({"unparsed": "empty"});
        let line = json!({
            "row": row, "id": row.to_string(), "subset": null, "order": order, "vote": 0, "prompt_tokens": 1,
            "tokens": 2, "finish": finish, "log_prob": -1.0, "strict": none, "soft": none, "text": text,
        });
        format!("{line}\n")
    };
    let lines = [
        line(0, "chosen-first", "stop", "A it is. [[A]]"),
        line(1, "chosen-first", "stop", "[[B]]? No: a tie.\n[[C]]"),
        line(2, "chosen-first", "length", "[[A]], as I"),
        line(3, "chosen-first", "stop", "<scores>\\boxed{85, 20}</scores>"),
    ];
    let outputs = out.join("outputs.jsonl");
    fs::write(&outputs, lines.concat()).unwrap();
    let outputs = outputs.display().to_string();
    let again = |more: &[&str]| -> Value {
        let args = [&["eval", "--rescore", &outputs, "--json"][..], more].concat();
        serde_json::from_str::<Value>(&stdout(&j1(&args))).unwrap()["j1"].clone()
    };
    let reasons = |scores: &Value| scores["unparsed_strict"]["reasons"].clone();
    // Nothing says what the judge was asked for: the j1 prompt's form.
    let default = again(&[]);
    assert_eq!(reasons(&default), json!({"no_scores_tag": 2, "truncated": 1, "out_of_scale": 1}));
    // The run says so.
    let run = |form: &str| fs::write(out.join("run.json"), json!({"verdict": form}).to_string());
    run("[[A]], [[B]] or [[C]]").unwrap();
    let markers = again(&[]);
    assert_eq!(markers["verdicts"], json!({"a": 1, "b": 0, "ties": 1}));
    assert_eq!(reasons(&markers), json!({"no_marker": 1, "truncated": 1}));
    // A template does, and comes first.
    let template = out.join("t.jinja");
    let source = "---verdict: \\boxed{a, b} from 0 to 100---\n{{ response_a }}{{ response_b }}";
    fs::write(&template, source).unwrap();
    let template = template.display().to_string();
    let hundred = again(&["--template", &template]);
    assert_eq!(hundred["verdicts"], json!({"a": 1, "b": 0, "ties": 0}));
    fs::write(&template, source.replace("0 to 100", "100 to 0")).unwrap();
    fails(
        &["eval", "--rescore", &outputs, "--template", &template],
        1,
        &["line 1", "from 0 to 100"],
    );
}

/// The tiny model writes no verdict: the file's run holds its form, and every reason is a sentence.
#[test]
fn a_missing_verdict_is_told_in_words_and_can_fail_the_command() {
    let (scratch, model) = (tempfile::tempdir().unwrap(), model());
    let template = scratch.path().join("t.jinja").display().to_string();
    fs::write(&template, "---verdict: [[A]]---\n{{ response_a }}{{ response_b }}").unwrap();
    let judge = ["judge", "--model", &model, "--prompt", "Hi", "--a", "yes", "--b", "no"];
    let judge = [&judge[..], &["--max-new-tokens", "8", "--order", "both"]].concat();
    let text = stdout(&j1(&judge));
    assert!(text.contains("[no verdict: cut off at the token limit; 8 tokens]"), "{text}");
    assert!(text.contains("No verdict could be read in 2 judgements."), "{text}");
    let json: Value =
        serde_json::from_str(&stdout(&j1(&[&judge[..], &["--json"]].concat()))).unwrap();
    assert_eq!((&json["schema"], &json["match"]), (&json!(1), &json!("strict")));
    assert_eq!(
        (&json["winner"], &json["scores"], &json["means"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!(json["other"]["match"], "soft");
    assert_eq!(json["judgements"][1]["unparsed"], "truncated");
    let failed =
        j1(&[&judge[..], &["--json", "--fail-unparsed", "--template", &template]].concat());
    let stderr = String::from_utf8_lossy(&failed.stderr);
    assert_eq!(failed.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("1 of 1 pairs have no verdict") && !failed.stdout.is_empty(),
        "{stderr}"
    );

    let out = scratch.path().join("out");
    let data = crate::cli::pairs(scratch.path(), 2);
    let out_text = out.display().to_string();
    let args = ["eval", "--model", &model, "--data", &data, "--out", &out_text];
    let table =
        stdout(&j1(&[&args[..], &["--max-new-tokens", "4", "--template", &template]].concat()));
    assert!(table.contains("WARNING: no verdict was read in any of the 4 judgements"), "{table}");
    let run: Value = serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(run["verdict"], "[[A]], [[B]] or [[C]]");
}

/// Every two of three replies are judged, in both orders; the judgements of the first two are those of `--a` and `--b`.
#[test]
fn several_replies_are_ranked() {
    let (scratch, model) = (tempfile::tempdir().unwrap(), model());
    let template = scratch.path().join("t.jinja").display().to_string();
    fs::write(
        &template,
        "---system---\n---user---\n{{ conversation }}|{{ response_a }}|{{ response_b }}",
    )
    .unwrap();
    let judge = [
        "judge",
        "--model",
        &model,
        "--prompt",
        "Hi",
        "--template",
        &template,
        "--max-new-tokens",
        "8",
    ];
    let with = |more: &[&str]| -> Value {
        serde_json::from_str(&stdout(&j1(&[&judge[..], more, &["--json"]].concat()))).unwrap()
    };
    let three = with(&["--reply", "yes", "--reply", "no", "--reply", "@@home"]);
    let both = with(&["--a", "yes", "--b", "no", "--order", "both"]);
    let texts = |value: &Value, of: &[usize]| -> Vec<Value> {
        of.iter().map(|&index| value["judgements"][index]["text"].clone()).collect()
    };
    assert_eq!(texts(&three, &[0, 1]), texts(&both, &[0, 1]));
    let replies: Vec<Value> =
        three["judgements"].as_array().unwrap().iter().map(|one| one["replies"].clone()).collect();
    let expected = [[0, 1], [1, 0], [0, 2], [2, 0], [1, 2], [2, 1]].map(|slots| json!(slots));
    assert_eq!(replies, expected);
    assert_eq!((&three["winner"], &three["ranking"][0]["mean"]), (&Value::Null, &Value::Null));
    let text = stdout(&j1(
        &[&judge[..], &["--reply", "yes", "--reply", "no", "--order", "given"]].concat()
    ));
    assert!(
        text.contains("── reply 1 and reply 2 ──")
            && text.contains("No verdict could be read in 1 judgements"),
        "{text}"
    );
    let refused =
        |more: &[&str], status, says: &[&str]| fails(&[&judge[..], more].concat(), status, says);
    refused(&["--reply", "yes"], 1, &["--reply", "at least two"]);
    refused(&["--reply", "yes", "--a", "no", "--b", "x"], 2, &["--reply", "--a"]);
    refused(&["--reply", "@-", "--reply", "@-"], 1, &["standard input can be read once"]);
    refused(&["--a", "x"], 2, &["--b"]);
    let failed =
        j1(&[&judge[..], &["--reply", "yes", "--reply", "no", "--fail-unparsed"]].concat());
    assert_eq!(failed.status.code(), Some(1));
}
