//! `j1 bench` as its users run it.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::cli::{fails, j1, model, stdout};

/// Every kind of work, so small that it takes no time.
const SMALL: [&str; 18] = [
    "--prompt",
    "8,20",
    "--gen",
    "4",
    "--batch",
    "1,3",
    "--depth",
    "40",
    "--train",
    "12",
    "--group",
    "2",
    "--completion",
    "5",
    "--repeat",
    "2",
    "--threads",
    "2",
];

const NAMES: [&str; 6] = [
    "prefill 8",
    "prefill 20",
    "decode 1 x 4 after 40",
    "decode 3 x 4 after 40",
    "lora 12",
    "grpo 12 + 2 x 5",
];

#[test]
fn every_row_is_measured_and_its_numbers_agree() {
    let model = model();
    let mut args = vec!["bench", "--model", &model];
    args.extend(SMALL);
    let table = stdout(&j1(&args));
    for name in NAMES {
        assert!(table.contains(name), "no {name} in {table}");
    }

    args.extend(["--json", "--gradient-checkpointing", "on"]);
    let report: Value = serde_json::from_str(&stdout(&j1(&args))).unwrap();
    assert_eq!(report["dtype"], "f32");
    assert_eq!(report["threads"], 2);
    assert_eq!(report["random_weights"], false);
    let peak = |key: &str| report["peak"][key].as_f64().unwrap();
    let (flops, bytes) = (peak("f32_flops"), peak("read_bytes_per_second"));
    assert!(flops > 0.0 && bytes > 0.0);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| &row["name"]).collect::<Vec<_>>(), NAMES);
    let tokens = [8, 20, 4, 12, 12, 12 + 2 * 5];
    for (row, tokens) in rows.iter().zip(tokens) {
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"));
        assert_eq!(row["seconds"].as_array().unwrap().len(), 2, "{row}");
        assert_eq!(number("tokens"), f64::from(tokens), "{row}");
        let rate = number("tokens") / number("median_seconds");
        assert_eq!(number("tokens_per_second"), rate, "{row}");
        let least = (number("flops") / flops).max(number("bytes") / bytes);
        assert_eq!(number("least_seconds"), least, "{row}");
        assert_eq!(number("of_peak"), least / number("median_seconds"), "{row}");
        let trains = ["lora", "grpo"].contains(&row["work"].as_str().unwrap());
        assert_eq!(row["recomputed"].as_bool(), trains.then_some(true), "{row}");
    }
}

#[test]
fn some_rows_alone_and_with_an_adapter() {
    let (model, adapter) = (model(), model().replace("/model", "/adapter"));
    let mut args = vec!["bench", "--model", &model, "--adapter", &adapter];
    args.extend(SMALL);
    args.extend(["--only", "decode,lora", "--json"]);
    let report: Value = serde_json::from_str(&stdout(&j1(&args))).unwrap();
    let names = report["rows"].as_array().unwrap().iter().map(|row| &row["name"]);
    assert_eq!(names.collect::<Vec<_>>(), NAMES[2..5]);
}

#[test]
fn what_cannot_be_measured_is_explained() {
    let model = model();
    fails(&["bench"], 2, &["--model", "--shape"]);
    fails(&["bench", "--model", &model, "--shape", "qwen3-0.6b"], 2, &["--shape"]);
    fails(&["bench", "--model", &model, "--group", "4"], 2, &["--train"]);
    fails(&["bench", "--model", &model, "--only", "grpo"], 1, &["--train N --group G"]);
    fails(&["bench", "--model", &model, "--prompt", "50000"], 1, &["50001", "40960"]);
    fails(&["bench", "--model", "./nothing"], 1, &["nothing"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_prints_the_rows_that_are_whole() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_j1"))
        .args(["bench", "--model", &model(), "--prompt", "8,4000", "--repeat", "1000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut notes = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("prefill 8:") {
        line.clear();
        assert!(notes.read_line(&mut line).unwrap() > 0, "ended before it was interrupted");
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let mut rest = String::new();
    notes.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{rest}");
    assert!(rest.contains("1 of 5 rows"), "{rest}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("prefill 8 ") && !table.contains("prefill 4000"), "{table}");
}
