//! What a run is: settings that may change and those that may not, checkpoints that are held to their word, starts that fail.

use std::{fs, path::Path, process::Command};

use engine::prelude::{Device, Isa, LanguageModel};
use serde_json::Value;

use super::{Run, assert_same, files, finish, metrics, resume, succeeded};
use crate::{cli, shared::skipped};

#[track_caller]
fn fails(args: &[String], says: &[&str]) {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    cli::fails(&args, 1, says);
}

fn with(mut args: Vec<String>, more: &[&str]) -> Vec<String> {
    args.extend(more.iter().map(|arg| arg.to_string()));
    args
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Four steps, and a rate that does not depend on how many there are.
fn short() -> Run {
    let mut run = Run::new("qwen3-tied-bf16");
    run.set(&["optimizer.schedule=constant", "train.eval_every=2", "train.steps=4"]);
    run
}

#[test]
fn a_finished_run_is_made_longer_and_ends_as_one_that_was_begun_so() {
    let mut run = short();
    let out = run.complete("out", 1);
    let says = succeeded(&finish(&resume(&out)));
    assert!(says.contains("--set train.steps="), "{says}");
    run.set(&["train.steps=8"]);
    let whole = run.complete("whole", 1);
    let says = succeeded(&finish(&with(resume(&out), &["--set", "train.steps=8"])));
    assert!(says.contains("train.steps = 8 (was 4)") && says.contains("8 steps"), "{says}");
    assert!(!says.contains("not bit for bit"), "{says}");
    assert_same(&out, &whole, "4 steps and 4 more");
    // It is the run's now.
    fs::remove_dir_all(out.join("adapter")).unwrap();
    succeeded(&finish(&resume(&out)));
    assert_same(&out, &whole, "resumed again");
    // Fewer than it has taken are not what it is.
    let less = with(resume(&out), &["--set", "train.steps=6"]);
    fails(&less, &["has taken 8 steps", "ask for 6"]);
    let resumed = &json(&out.join("run.json"))["about"]["resumed"];
    assert_eq!(resumed[1]["changed"][0], "train.steps = 8 (was 4)", "{resumed}");
    assert_eq!(resumed[1]["from_step"], 4);

    // Where the rate depends on the length, it is said.
    run.set(&["train.steps=4", "optimizer.schedule=cosine"]);
    let cosine = run.complete("cosine", 1);
    let args = ["--set", "train.steps=6", "--set", "train.save_every=1"];
    let says = succeeded(&finish(&with(resume(&cosine), &args)));
    assert!(says.contains("cosine") && says.contains("not bit for bit"), "{says}");
    assert_eq!(metrics(&cosine).len(), 6);
}

#[test]
fn settings_that_were_changed_or_lost_are_named() {
    let run = short();
    let out = run.complete("out", 1);
    let before = files(&out);
    let config = out.join("config.toml");
    let whole = fs::read_to_string(&config).unwrap();
    let edited =
        whole.replace("\nseed = 0\n", "\nseed = 9\n").replace("\nsteps = 4\n", "\nsteps = 6\n");
    fs::write(&config, &edited).unwrap();
    fails(&resume(&out), &["config.toml", "train.seed = 9 (was 0)", "--out OTHER"]);
    fs::write(&config, &whole[..whole.find("[optimizer]").unwrap()]).unwrap();
    fails(&resume(&out), &["config.toml", "train.steps", "cut or edited", "remove"]);
    fs::remove_file(&config).unwrap();
    let says = succeeded(&finish(&resume(&out)));
    assert!(says.contains("config.toml is missing"), "{says}");
    assert!(files(&out) == before);

    let metrics = out.join("metrics.jsonl");
    let lines = fs::read_to_string(&metrics).unwrap();
    for left in [None, Some(""), Some(lines.lines().next().unwrap())] {
        match left {
            Some(text) => fs::write(&metrics, text).unwrap(),
            None => fs::remove_file(&metrics).unwrap(),
        }
        fails(&resume(&out), &["metrics.jsonl", "taken 4", "--resume --from step-4"]);
    }
    succeeded(&finish(&with(resume(&out), &["--from", "step-4", "--set", "train.steps=5"])));
    let kept: Vec<u64> =
        super::metrics(&out).iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(kept, [5]);
    succeeded(&finish(&resume(&out)));
    fs::write(&metrics, "{\"step\":1}\nnonsense\n").unwrap();
    fails(&resume(&out), &["metrics.jsonl is damaged", "line 2", "move it away"]);
}

/// A byte of any file, its end, or all of it.
#[test]
fn a_damaged_checkpoint_is_named_with_the_way_on() {
    let mut run = short();
    run.set(&["train.keep_last=3"]);
    let whole = run.complete("whole", 1);
    let out = run.complete("out", 1);
    let last = out.join("checkpoints/step-4");
    for name in
        ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json"]
    {
        let path = last.join(name);
        let bytes = fs::read(&path).unwrap();
        let advice = [name, "step-2", "--resume --from step-2"];
        let with_byte = |at: usize| {
            let mut changed = bytes.clone();
            changed[at] ^= 4;
            changed
        };
        for damage in [
            bytes[..bytes.len() / 2].to_vec(),
            Vec::new(),
            with_byte(bytes.len() - 3),
            with_byte(bytes.len() / 2),
        ] {
            fs::write(&path, damage).unwrap();
            fails(&resume(&out), &advice);
        }
        fs::remove_file(&path).unwrap();
        fails(&resume(&out), &advice);
        fs::write(&path, bytes).unwrap();
    }
    for part in fs::read_dir(&last).unwrap() {
        fs::remove_file(part.unwrap().path()).unwrap();
    }
    fails(&resume(&out), &["state.json", "missing", "--from step-2"]);
    fails(&with(resume(&out), &["--from", "step-3"]), &["no checkpoint step-3", "step-2, step-4"]);
    let says = succeeded(&finish(&with(resume(&out), &["--from", "step-2"])));
    assert!(says.contains("step-2"), "{says}");
    assert_same(&out, &whole, "from the checkpoint before");

    // Nothing to go back to is said, too.
    for step in ["step-2", "step-4"] {
        fs::write(out.join("checkpoints").join(step).join("state.json"), "{").unwrap();
    }
    fails(&resume(&out), &["state.json", "No whole checkpoint", "--config", "--out OTHER"]);
}

#[test]
fn what_was_taken_out_of_a_run_is_named() {
    let mut run = short();
    run.set(&["train.keep_last=1"]);
    let out = run.complete("out", 1);
    // A line between others.
    let metrics = out.join("metrics.jsonl");
    let whole = fs::read_to_string(&metrics).unwrap();
    let without: String =
        whole.split_inclusive('\n').filter(|line| !line.starts_with("{\"step\":2,")).collect();
    fs::write(&metrics, without).unwrap();
    let says = succeeded(&finish(&resume(&out)));
    assert!(says.contains("metrics.jsonl has no lines of the steps 2 to 2"), "{says}");
    fs::write(&metrics, &whole).unwrap();

    // All checkpoints: taking all steps again would replace what is there.
    fs::remove_dir_all(out.join("checkpoints")).unwrap();
    let before = files(&out);
    fails(&resume(&out), &["holds no checkpoint", "taken 4 steps", "put the checkpoints back"]);
    assert!(files(&out) == before, "nothing was touched");
    fs::remove_dir_all(out.join("adapter")).unwrap();
    fails(&resume(&out), &["holds no checkpoint", "--config", "--out OTHER"]);
    // A run that was killed before its first checkpoint has none.
    let early: String = whole
        .split_inclusive('\n')
        .filter(|line| {
            ["0", "1", "2"].iter().any(|n| line.starts_with(&format!("{{\"step\":{n},")))
        })
        .collect();
    fs::write(&metrics, early).unwrap();
    let says = succeeded(&finish(&resume(&out)));
    assert!(says.contains("no checkpoint was written yet"), "{says}");
    assert!(files(&out)["metrics.jsonl"] == before["metrics.jsonl"]);
}

#[test]
fn a_run_on_a_pattern_of_shards_goes_on_from_any_directory() {
    let run = short();
    let text = fs::read_to_string(run.write_pairs("pairs.jsonl", 6)).unwrap();
    fs::create_dir(run.path("shards")).unwrap();
    for (part, lines) in text.split_inclusive('\n').collect::<Vec<_>>().chunks(3).enumerate() {
        fs::write(run.path(&format!("shards/{part}.jsonl")), lines.concat()).unwrap();
    }
    let at = |directory: &str, args: &[String]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_j1"));
        let output = command.args(args).current_dir(run.path(directory)).output().unwrap();
        succeeded(&output)
    };
    let out = run.path("out");
    let mut start = run.start(&out);
    let data = start.iter().position(|arg| arg == "--data").unwrap() + 1;
    start[data] = "shards/*.jsonl".to_owned();
    at("", &start);
    at("shards", &with(resume(&out), &["--set", "train.steps=5"]));
    assert_eq!(super::metrics(&out).len(), 5);
}

/// Of versions before there were checksums, and with numbers that nobody writes.
#[test]
fn checkpoints_without_checksums_load_and_numbers_that_are_not_finite_do_not() {
    let mut run = short();
    run.set(&["train.keep_last=3", "train.save_every=1"]);
    let whole = run.complete("whole", 1);
    let out = run.complete("out", 1);
    fs::remove_dir_all(out.join("checkpoints/step-4")).unwrap();
    let last = out.join("checkpoints/step-3");
    let mut state = json(&last.join("state.json"));
    let sums = state.as_object_mut().unwrap().remove("sha256").unwrap();
    assert_eq!(sums.as_object().unwrap().len(), 4, "{sums}");
    fs::write(last.join("state.json"), state.to_string()).unwrap();
    for name in ["optimizer.safetensors", "adapter_model.safetensors"] {
        let path = last.join(name);
        let bytes = fs::read(&path).unwrap();
        for value in [f32::NAN, f32::INFINITY] {
            let mut changed = bytes.clone();
            let end = changed.len();
            changed[end - 4..].copy_from_slice(&value.to_le_bytes());
            fs::write(&path, changed).unwrap();
            fails(&resume(&out), &[name, "--from step-2"]);
        }
        fs::write(&path, bytes).unwrap();
    }
    succeeded(&finish(&resume(&out)));
    let steps = |out: &Path| files(&out.join("checkpoints/step-4"));
    assert!(steps(&out) == steps(&whole));
}

#[test]
fn a_start_that_fails_leaves_its_directory_free() {
    let run = short();
    let out = run.path("out");
    let start = |more: &[&str]| with(run.start(&out), more);
    fails(&start(&["--set", "data.max_prompt_tokens=9"]), &["at most 9 tokens", "the longest of"]);
    let other = |ours: &str, other: &str| -> Vec<String> {
        let args = run.start(&out).into_iter();
        args.map(|arg| if arg == ours { other.to_owned() } else { arg }).collect()
    };
    fails(&other(&run.model, "./nowhere"), &["nowhere"]);
    fails(&start(&["--adapter", "./nowhere"]), &["nowhere"]);
    fails(&start(&["--set", "data.max_prompt_tokens=40955"]), &["40960 positions"]);
    let bad = run.path("bad.jsonl");
    fs::write(&bad, "{\"prompt\": 3}\n").unwrap();
    let (data, bad) = (run.path("pairs.jsonl"), bad.display().to_string());
    fails(&other(&data.display().to_string(), &bad), &["bad.jsonl"]);
    let huge = ["--set", "rollout.max_completion_tokens=18446744073709551615"];
    fails(&start(&huge), &["from 1 to 1048576"]);
    assert!(!out.exists(), "nothing was claimed");

    // Of the first step itself: the same directory, other flags.
    let whole = run.complete("whole", 1);
    let args = start(&["--set", "train.seed=5"]);
    let mut child = super::spawn(&args);
    while !out.join("config.toml").exists() {
        assert!(child.try_wait().unwrap().is_none());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let stepped = out.join("metrics.jsonl").exists() && !metrics(&out).is_empty();
    if !stepped && !out.join("checkpoints").exists() {
        succeeded(&finish(&start(&[])));
        assert_same(&out, &whole, "begun again");
    }
    fails(&start(&[]), &["already holds a run"]);
}

#[test]
fn a_dry_run_tells_what_a_run_would_be_and_writes_nothing() {
    let run = short();
    let out = run.path("out");
    let args = with(run.start(&out), &["--dry-run"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = cli::j1(&args);
    let (shown, says) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{says}");
    for part in [
        "6 pairs, prompts of",
        "4 steps (0.67 epochs of 6 pairs) of 2 prompts (both orders of 1 pairs) x 4 completions",
        "tokens: up to ",
        "memory: a peak of about",
        "time: about",
        "tokens; --dry-run ends here",
    ] {
        assert!(says.contains(part), "{part}: {says}");
    }
    assert!(shown.contains("Say 0|0|1"), "{shown}");
    assert!(!out.exists());
    assert!(!says.contains("share_a"), "{says}");
    // The same is told by a run, whose lines say how long it takes.
    let says = succeeded(&finish(&run.start(&out)));
    assert!(says.contains("4 steps (0.67 epochs") && says.contains("time: about"), "{says}");
    let line = says.lines().find(|line| line.trim_start().starts_with("2/4 ")).unwrap();
    assert!(line.trim_end().ends_with('s'), "{line}");
    let title = says.lines().find(|line| line.trim_start().starts_with("step ")).unwrap();
    assert!(title.contains("share_a") && title.trim_end().ends_with("left"), "{says}");
}

/// Decay that makes parameters a million times larger in a step: they leave f32 after some.
#[test]
fn numbers_that_are_not_finite_are_never_saved_and_the_way_on_exists() {
    let mut run = short();
    run.set(&["train.steps=40", "train.eval_every=0", "optimizer.warmup_steps=0"]);
    run.set(&["optimizer.learning_rate=1", "optimizer.weight_decay=1000000"]);
    let fails = |name: &str, more: &[&str]| {
        let out = run.path(name);
        let output = finish(&with(run.start(&out), more));
        let says = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{says}");
        assert!(says.contains("j1: step ") && says.contains("learning_rate"), "{says}");
        (out, says)
    };
    let (out, says) =
        fails("saved", &["--set", "train.save_every=1", "--set", "train.keep_last=1"]);
    let kept = fs::read_dir(out.join("checkpoints")).unwrap().next().unwrap().unwrap().path();
    assert!(says.contains(&format!("--adapter {}", kept.display())), "{says}");
    // An adapter that is not finite is refused.
    let device = Device::cpu_threads(1);
    let builder = LanguageModel::builder(&run.model).device(&device).adapter(kept.as_path());
    builder.open_model().unwrap();

    let (out, says) = fails("unsaved", &["--set", "train.save_every=1000"]);
    assert!(!out.join("checkpoints").exists(), "{says}");
    assert!(
        says.contains("No checkpoint was written yet") && says.contains("--out OTHER"),
        "{says}"
    );
    assert!(!says.contains("--adapter"), "{says}");
}

/// As `j1 demo` writes it: wherever the command is given.
#[test]
fn a_template_lies_beside_the_config_that_names_it() {
    let run = short();
    let config = run.path("my.toml");
    fs::write(&config, "[data]\ntemplate = \"template.jinja\"\n").unwrap();
    let (config, data) =
        (config.display().to_string(), run.path("pairs.jsonl").display().to_string());
    let args = ["train", "--config", &config, "--model", &run.model, "--data", &data, "--dry-run"];
    let output = cli::j1(&[&args[..], &["--cache-memory", "8MB"]].concat());
    assert!(cli::stdout(&output).contains("Say 0|0|1"));
}

/// What was run, on what, when and where, beside the fingerprints.
#[test]
fn run_json_says_what_people_ask() {
    let run = short();
    let out = run.complete("out", 1);
    let about = &json(&out.join("run.json"))["about"]["started"];
    assert_eq!(about["model"], Value::from(run.model.as_str()));
    assert!(about["data"].as_str().unwrap().ends_with("/pairs.jsonl"), "{about}");
    assert!(about["command"].as_array().unwrap().contains(&Value::from("--held-out")), "{about}");
    let at = about["at"].as_str().unwrap();
    assert!(at.starts_with("20") && at.ends_with('Z') && at.len() == 20, "{at}");
    assert!(about["host"].is_string() && about["version"].is_string(), "{about}");
}

#[test]
fn an_adapter_to_start_from_has_the_matrices_and_the_dropout_of_the_settings() {
    let run = short();
    let adapter = run.model.replace("/model", "/adapter");
    let out = run.path("out");
    let more = ["--adapter", &adapter, "--set", "lora.r=8", "--set", "lora.alpha=16"];
    // As some tools convert one: no setting could be the same.
    let empty = run.path("empty");
    fs::create_dir(&empty).unwrap();
    let config = fs::read_to_string(Path::new(&adapter).join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["lora_alpha"] = 0.into();
    fs::write(empty.join("adapter_config.json"), config.to_string()).unwrap();
    let weights = "adapter_model.safetensors";
    fs::copy(Path::new(&adapter).join(weights), empty.join(weights)).unwrap();
    let from = ["--adapter", &empty.display().to_string()];
    fails(&with(run.start(&out), &from), &["lora_alpha = 0", "adapter_config.json"]);
    let one =
        with(run.start(&out), &[&more[..], &["--set", "lora.target_modules=['q_proj']"]].concat());
    fails(
        &one,
        &["target_modules = [\"q_proj\"]", "--set 'lora.target_modules=[\"q_proj\", \"k_proj\""],
    );
    assert!(!out.exists());
    let dropout = ["--set", "lora.dropout=0.25"];
    succeeded(&finish(&with(run.start(&out), &[&more[..], &dropout].concat())));
    assert_eq!(json(&out.join("adapter/adapter_config.json"))["lora_dropout"], 0.25);
}

/// The adapter was moved from one instruction set to another.
#[test]
fn other_instructions_need_a_flag() {
    let run = short();
    let out = run.complete("out", 1);
    if Isa::detect() == Isa::Portable {
        skipped("this CPU has one instruction set only");
        return;
    }
    let portable = |more: &[&str]| {
        let args = with(resume(&out), more);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_j1"));
        command.args(&args).env("J1_ISA", "portable").output().unwrap()
    };
    let longer = ["--set", "train.steps=5"];
    let says = String::from_utf8(portable(&longer).stderr).unwrap();
    assert!(says.contains("J1_ISA=") && says.contains("--allow-other-instructions"), "{says}");
    let allowed = [&longer[..], &["--allow-other-instructions"]].concat();
    succeeded(&portable(&allowed));
    let noted = json(&out.join("run.json"));
    assert_eq!(noted["instructions"], "portable");
    assert_eq!(noted["about"]["resumed"][0]["instructions"]["now"], "portable", "{noted}");
    assert_eq!(metrics(&out).len(), 5);
}
