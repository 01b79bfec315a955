//! `j1 data` as its users run it.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

fn j1(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_j1")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// With something on standard input.
fn j1_reading(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_j1"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails before it reads closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
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
    fs::write(&input, pairs(100_000)).unwrap();
    let out = scratch.path().join("out");
    let [input, to] = [&input, &out].map(|path| path.display().to_string());
    // Once the files have been begun, and long before all is written.
    crate::cli::interrupted(
        &["data", "prepare", &input, "--out", &to],
        || out.exists(),
        "nothing was written",
    );
    assert!(!out.exists());
}

/// Sound pairs with prompts of their own.
fn pairs(count: usize) -> String {
    let line = |n: usize| {
        format!("{{\"prompt\":\"What is {n}?\",\"chosen\":\"{n}\",\"rejected\":\"no\"}}\n")
    };
    (0..count).map(line).collect()
}

#[test]
fn pairs_come_from_standard_input_shards_and_columns_of_any_name() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out").display().to_string();
    let json =
        |output: Output| -> serde_json::Value { serde_json::from_str(&stdout(&output)).unwrap() };
    let seen = json(j1_reading(&["data", "inspect", "-", "--json"], pairs(7).as_bytes()));
    assert_eq!(seen["rows"], 7);
    let prepared =
        j1_reading(&["data", "prepare", "-", "--out", &out, "--json"], pairs(7).as_bytes());
    assert_eq!(json(prepared)["input"]["file"], "-");

    let shards = scratch.path().join("shards");
    fs::create_dir(&shards).unwrap();
    let question =
        pairs(3).replace("prompt", "q").replace("chosen", "good").replace("rejected", "bad");
    fs::write(shards.join("0.jsonl"), &question).unwrap();
    fs::write(shards.join("1.jsonl"), &question).unwrap();
    let columns = ["--columns", "prompt=q,chosen=good,rejected=bad", "--json"];
    for source in [shards.display().to_string(), shards.join("?.jsonl").display().to_string()] {
        let seen = json(j1(&[&["data", "inspect", &source][..], &columns].concat()));
        assert_eq!((&seen["rows"], &seen["columns"]["q"]["read"]), (&6.into(), &true.into()));
    }
    let wrong = j1(&["data", "inspect", &shards.display().to_string(), "--columns", "prompt=x"]);
    let stderr = String::from_utf8_lossy(&wrong.stderr);
    assert!(stderr.contains("no column x, which is asked for as prompt"), "{stderr}");

    let unlabeled = "{\"prompt\":\"p\",\"a\":\"12\",\"b\":\"2\"}\n";
    let seen = json(j1_reading(&["data", "inspect", "-", "--json"], unlabeled.as_bytes()));
    assert_eq!((&seen["labeled"], &seen["lengths"]["a"]["max"]), (&false.into(), &2.into()));
}

#[test]
fn a_killed_prepare_never_leaves_two_splits_that_are_taken_for_one() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    fs::write(path("pairs.jsonl"), pairs(3_000)).unwrap();
    let (input, out) = (path("pairs.jsonl").display().to_string(), path("out"));
    let out_text = out.display().to_string();
    let prepare = |seed: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_j1"));
        command.args(["data", "prepare", &input, "--out", &out_text, "--seed", &seed.to_string()]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    assert!(prepare(0).status().unwrap().success());
    let [train, held_out] = ["train.jsonl", "held_out.jsonl"].map(|name| out.join(name));
    let mut killed = 0;
    for round in 1..=30 {
        let mut child = prepare(round).spawn().unwrap();
        // Where the files are staged the rest follows at once: kills spread over the moments after.
        let begun = std::time::Instant::now();
        let staged = || {
            fs::read_dir(&out)
                .unwrap()
                .any(|entry| entry.unwrap().file_name().to_string_lossy().ends_with(".tmp"))
        };
        while !staged() && child.try_wait().unwrap().is_none() && begun.elapsed().as_secs() < 20 {
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_micros(round as u64 * 700));
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        let of_train = trainer::data::read(&train).unwrap();
        let of_held_out = trainer::data::read(&held_out).unwrap();
        match trainer::data::prepare::check_together([&train, &held_out], &of_train, &of_held_out) {
            Ok(known) => {
                assert!(known);
                assert_eq!(
                    trainer::data::prepare::shared_prompts(&of_train, &of_held_out),
                    0,
                    "{round}"
                );
            }
            Err(error) => assert!(error.to_string().contains("was killed"), "{error}"),
        }
    }
    assert!(killed > 0);
    assert!(prepare(0).status().unwrap().success());
    assert_eq!(fs::read_dir(&out).unwrap().count(), 3, "leftovers are removed");

    // Another split's file beside them.
    let other = fs::read_to_string(&train).unwrap();
    fs::write(
        &held_out,
        &other[..other.len() / 2 + other[other.len() / 2..].find('\n').unwrap() + 1],
    )
    .unwrap();
    let model =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("cli/commands/demo/model").display().to_string();
    let [train, held_out, run] =
        [train, held_out, path("run")].map(|path| path.display().to_string());
    let args =
        ["train", "--model", &model, "--data", &train, "--held-out", &held_out, "--out", &run];
    let output = j1(&args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("describes another held_out.jsonl"), "{stderr}");
    assert!(!Path::new(&run).exists());
}

#[test]
fn a_text_may_begin_with_an_at_sign() {
    let ask = |prompt: &str, a: &str| {
        j1_reading(
            &["judge", "--model", "./none", "--prompt", prompt, "--a", a, "--b", "@@b"],
            b"x",
        )
    };
    let stderr = |output: Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let named = stderr(ask("@@alice said hi", "@./nowhere"));
    assert!(
        named.contains("./nowhere, which --a names with @") && named.contains("write @@"),
        "{named}"
    );
    let twice = stderr(ask("@-", "@-"));
    assert!(twice.contains("standard input can be read once"), "{twice}");
    let model = stderr(ask("@-", "@@a"));
    assert!(model.contains("./none: no such file"), "{model}");
}

#[test]
fn several_replies_are_evaluated_together_and_continued() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    let (model, data, whole, part) =
        (crate::cli::model(), path("rb2.json"), path("whole"), path("part"));
    let rows = r#"[
        {"id": "0", "prompt": "q?", "chosen": ["good"], "rejected": ["b1", "b2", "b3"], "subset": "Focus"},
        {"id": "ref:1", "prompt": "sky?", "chosen": ["blue"], "rejected": ["red", "brown"], "subset": "Ties"},
        {"id": "tied:1", "prompt": "flag?", "chosen": ["red", "blue"], "rejected": ["brown"], "subset": "Ties"}]"#;
    fs::write(&data, rows).unwrap();
    let args = crate::cli::eval_args(&model, &data, &whole, &[]);
    let table = stdout(&j1(&args));
    for line in ["Best of all replies", "  Ties", "Mean of the subsets"] {
        assert!(table.contains(line), "{line} is not in {table}");
    }
    let read = |path: &Path| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    let scores = read(&Path::new(&whole).join("scores.json"));
    let several = &scores["j1"]["several"];
    assert_eq!(
        (&several["best_of"][0]["rows"], &several["ties"]["rows"]),
        (&1.into(), &serde_json::json!([1, 1]))
    );
    assert_eq!(scores["Ties"], several["ties"]["score"]);

    // Stopped after five of fourteen judgements.
    let outputs = fs::read_to_string(Path::new(&whole).join("outputs.jsonl")).unwrap();
    assert_eq!(outputs.lines().count(), 14);
    fs::create_dir(&part).unwrap();
    fs::copy(Path::new(&whole).join("run.json"), Path::new(&part).join("run.json")).unwrap();
    let begun: String = outputs.lines().take(5).map(|line| format!("{line}\n")).collect();
    fs::write(Path::new(&part).join("outputs.jsonl"), begun).unwrap();
    stdout(&j1(&crate::cli::eval_args(&model, &data, &part, &[])));
    assert!(crate::cli::bytes(Path::new(&part)) == crate::cli::bytes(Path::new(&whole)));
    let rescored = stdout(&j1(&["eval", "--rescore", &format!("{whole}/outputs.jsonl"), "--json"]));
    let rescored: serde_json::Value = serde_json::from_str(&rescored).unwrap();
    assert_eq!(&rescored["j1"]["several"], several);

    let refused = j1(&["judge", "--model", &model, "--data", &data]);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(
        stderr.contains("1 chosen and 3 rejected replies, which only j1 eval compares"),
        "{stderr}"
    );
}
