//! `j1 data` as its users run it.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

fn j1(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_j1")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn skywork() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/prepare/skywork.parquet");
    path.display().to_string()
}

#[test]
fn prepared_data_say_what_was_dropped_and_are_read_again() {
    let scratch = tempfile::tempdir().unwrap();
    let (input, out) = (skywork(), scratch.path().join("out").display().to_string());
    let args = ["data", "prepare", &input, "--out", &out, "--held-out", "0.4", "--seed", "1"];
    let text = stdout(&j1(&args));
    for part in ["magpie", "11 of 16 rows dropped", "row 3: against row 4", "a reply is empty"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let file = |name: &str| fs::read_to_string(Path::new(&out).join(name)).unwrap();
    let [train, held_out] = ["train.jsonl", "held_out.jsonl"].map(file);
    assert_eq!(train.lines().count() + held_out.lines().count(), 5, "{train}{held_out}");
    let json = stdout(&j1(&[&args[..], &["--json"]].concat()));
    assert_eq!(json, file("prepare.json"));

    // Its own output holds nothing to drop.
    let train = Path::new(&out).join("train.jsonl").display().to_string();
    let seen = stdout(&j1(&["data", "inspect", &train, "--rows", "1"]));
    assert!(seen.contains("0 of ") && seen.contains("chosen: "), "{seen}");
    let seen = stdout(&j1(&["data", "inspect", &input, "--json"]));
    let seen: serde_json::Value = serde_json::from_str(&seen).unwrap();
    assert_eq!((&seen["rows"], &seen["format"]), (&16.into(), &"parquet".into()));
}

#[test]
fn wrong_usage_is_explained() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out").display().to_string();
    let input = skywork();
    let fails = |args: &[&str], status: i32, says: &str| {
        let output = j1(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
        assert!(stderr.contains(says) && !stderr.contains("panicked"), "{args:?}: {stderr}");
        assert!(!Path::new(&out).exists(), "{args:?}");
    };
    fails(&["data"], 2, "prepare");
    fails(&["data", "prepare", &input], 2, "--out");
    for share in ["1", "-0.1", "nan", "x"] {
        let share = format!("--held-out={share}");
        fails(&["data", "prepare", &input, "--out", &out, &share], 2, "from 0 to below 1");
    }
    fails(&["data", "prepare", &input, "--out", &out, "--keep-overlap"], 2, "--exclude");
    fails(&["data", "prepare", "./none.csv", "--out", &out], 1, "none.csv");
    let exclude = ["data", "prepare", &input, "--out", &out, "--exclude", "./none.csv"];
    fails(&exclude, 1, "none.csv");
    fails(&["data", "inspect", "./none.csv"], 1, "none.csv");
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let input = scratch.path().join("pairs.jsonl");
    let line = |n: usize| {
        format!("{{\"prompt\":\"What is {n}?\",\"chosen\":\"{n}\",\"rejected\":\"no\"}}\n")
    };
    fs::write(&input, (0..100_000).map(line).collect::<String>()).unwrap();
    let out = scratch.path().join("out");
    let child = Command::new(env!("CARGO_BIN_EXE_j1"))
        .args(["data", "prepare"])
        .arg(&input)
        .arg("--out")
        .arg(&out)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Once the files have been begun, and long before all is written.
    while !out.exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("nothing was written"), "{stderr}");
    assert!(!out.exists());
}
