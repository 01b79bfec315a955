//! Training that cannot begin, cannot go on, or cannot learn: what the program says, and what it
//! leaves alone.

use std::{fs, path::Path};

use trainer::train::settings::{Preset, Settings};

use super::{Run, files, finish, metrics, number, resume, succeeded};
use crate::cli;

#[track_caller]
fn fails(args: &[String], status: i32, says: &[&str]) {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    cli::fails(&args, status, says);
}

fn with(mut args: Vec<String>, more: &[&str]) -> Vec<String> {
    args.extend(more.iter().map(|arg| arg.to_string()));
    args
}

/// A short run.
fn short() -> Run {
    let mut run = Run::new("qwen3-tied-bf16");
    run.set(&["train.steps=2", "train.eval_every=0"]);
    run
}

#[test]
fn a_run_is_neither_begun_twice_nor_continued_as_another() {
    let run = short();
    let out = run.complete("out", 1);
    let before = files(&out);
    fails(&run.start(&out), 1, &["already holds a run", "--resume"]);
    let other = |name: &str| run.model.replace("qwen3-tied-bf16", name);
    let (model, data) = (other("qwen3-tied"), run.write_pairs("other.jsonl", 5));
    fails(&with(resume(&out), &["--model", &model, "--dtype", "bf16"]), 1, &["run.json", "model"]);
    fails(&with(resume(&out), &["--data", &data]), 1, &["run.json", "data"]);
    fails(&with(resume(&out), &["--held-out", &data]), 1, &["run.json", "held_out"]);
    fails(&with(resume(&out), &["--dtype", "f32"]), 1, &["run.json", "dtype"]);
    let set = ["--set", "optimizer.learning_rate=0.1"];
    fails(&with(resume(&out), &set), 1, &["optimizer.learning_rate = 0.1 (was 0.004)"]);
    fails(&with(resume(&out), &["--preset", "spct"]), 2, &["--preset", "--resume"]);
    let template = run.path("template.jinja");
    let text = fs::read_to_string(&template).unwrap();
    fs::write(&template, text.replace('|', "/")).unwrap();
    fails(&resume(&out), 1, &["run.json", "template"]);
    fs::write(&template, text).unwrap();
    assert!(files(&out) == before, "nothing was touched");

    // The same model and data at other places are the same.
    let moved = run.path("moved.jsonl");
    fs::rename(run.path("pairs.jsonl"), &moved).unwrap();
    fails(&resume(&out), 1, &["pairs.jsonl", "moved", "--data FILE"]);
    let args = with(resume(&out), &["--data", &moved.display().to_string()]);
    succeeded(&finish(&args));
    let expected = |name: &str, bytes: &[u8]| match name {
        "config.toml" | "run.json" => {
            String::from_utf8_lossy(bytes).replace("pairs.jsonl", "moved.jsonl").into_bytes()
        }
        _ => bytes.to_vec(),
    };
    let expected = before.iter().map(|(name, bytes)| (name.clone(), expected(name, bytes)));
    assert!(files(&out) == expected.collect(), "nothing was left to do, and the place is kept");
    succeeded(&finish(&resume(&out)));
}

#[test]
fn there_must_be_a_run_to_resume_and_room_for_a_new_one() {
    let run = short();
    let empty = run.path("empty");
    fs::create_dir(&empty).unwrap();
    for out in [&empty, &run.path("nowhere")] {
        fails(&resume(out), 1, &["holds no run to resume", "leave --resume out"]);
    }
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    let foreign = run.path("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), "mine").unwrap();
    fails(&run.start(&foreign), 1, &["thesis.tex", "--out"]);
    let file = run.path("pairs.jsonl");
    fails(&run.start(&file), 1, &["not a directory", "--out"]);
    fails(&with(run.start(&empty), &["--adapter", "./nowhere"]), 1, &["nowhere"]);
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
}

#[test]
fn a_run_at_work_is_left_alone_and_the_leftovers_of_killed_ones_go() {
    let run = short();
    let whole = run.complete("whole", 1);
    let out = run.complete("out", 1);
    // What kills leave: in the middle of a file, of a checkpoint, and of removing one.
    for directory in ["checkpoints/.step-7.tmp", "checkpoints/.step-1.old"] {
        fs::create_dir(out.join(directory)).unwrap();
        fs::write(out.join(directory).join("state.json"), "{").unwrap();
    }
    for file in [
        ".config.toml.77.tmp",
        "rollouts/.step-2.jsonl.77.tmp",
        "adapter/.adapter_config.json.77.tmp",
    ] {
        fs::write(out.join(file), "half").unwrap();
    }
    let before = files(&out);
    assert_eq!(before.len(), files(&whole).len() + 5);
    let lock = fs::File::options().write(true).open(out.join(".j1.lock")).unwrap();
    lock.lock().unwrap();
    fails(&resume(&out), 1, &["in use by another run"]);
    assert!(files(&out) == before, "another run may be writing these");
    drop(lock);
    succeeded(&finish(&resume(&out)));
    assert!(files(&out) == files(&whole));
}

#[test]
fn settings_are_printed_whole_and_read_back() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("my.toml");
    let file = path.display().to_string();
    let print = |args: &[&str]| cli::stdout(&cli::j1(&[&["train"], args].concat()));
    for (name, preset) in [
        ("j1-nano", Preset::J1Nano),
        ("j1-micro", Preset::J1Micro),
        ("cpu-0.5b", Preset::Cpu05b),
        ("spct", Preset::Spct),
        ("trl-0.15.2", Preset::Trl0152),
    ] {
        let text = print(&["--preset", name, "--print-config"]);
        let settings =
            text.strip_prefix("# --model, --adapter, --weights, --data and --held-out come before");
        assert!(settings.unwrap().ends_with(&Settings::preset(preset).to_toml()), "{text}");
        fs::write(&path, &text).unwrap();
        assert_eq!(print(&["--config", &file, "--print-config"]), text, "{name}");
    }
    let changed = print(&["--set", "lora.r=3", "--set", "loss.type=grpo", "--print-config"]);
    assert!(changed.contains("\nr = 3\n") && changed.contains("\ntype = \"grpo\"\n"), "{changed}");
    let written = |text: &str| fs::write(&path, text).unwrap();
    let refused = |says: &[&str]| {
        cli::fails(&["train", "--config", &file, "--print-config"], 1, says);
    };
    written("[optimizer]\n\nlearning_rat = 1e-5\n");
    refused(&["my.toml", "3", "did you mean optimizer.learning_rate?"]);
    written("[rollout]\nnum_generations = 4\n");
    refused(&["my.toml", "2", "did you mean rollout.group_size?"]);
    written("[lora]\nr = \"many\"\n");
    refused(&["my.toml", "2", "a whole number from 1 to 1024"]);
    written("[rollout]\nprompts_per_step = 3\n");
    refused(&["my.toml", "prompts_per_step = 3 is odd"]);
    cli::fails(&["train", "--set", "train.step=3", "--print-config"], 1, &["train.steps"]);
    cli::fails(&["train", "--preset", "j1-nano"], 2, &["--out"]);
}

#[test]
fn a_reward_out_of_reach_is_told() {
    let mut run = short();
    run.set(&["reward.weights.length=0", "train.steps=10"]);
    let out = run.path("out");
    let says = succeeded(&finish(&run.start(&out)));
    let line = |word: &str| says.lines().position(|line| line.contains(word));
    let still = line("warning: the adapter did not move in the last 5 steps");
    let zero = line("warning: B of the adapter is still zero after 10 steps");
    let step = |step: u64| {
        let is_it = |line: &str| line.split_whitespace().next() == Some(&format!("{step}/10"));
        says.lines().position(is_it)
    };
    assert_eq!(still, step(5).map(|line| line + 1), "{says}");
    assert_eq!(zero, step(10).map(|line| line + 1), "{says}");
    for line in metrics(&out) {
        assert!(
            !line.contains_key("entropy_trained") && !line.contains_key("clip_ratio/low_mean"),
            "{line:?}"
        );
        assert!(!line.contains_key("kl"), "{line:?}");
        // What was sampled has an entropy, whether it is learned from or not.
        assert!(number(&line, "entropy") > 0.1, "{line:?}");
        assert_eq!(number(&line, "grad_norm"), 0.0);
        assert_eq!(number(&line, "frac_reward_zero_std"), 1.0);
    }
    // One that is reached is not told so.
    let run = Run::new("qwen3-tied-bf16");
    let says = succeeded(&finish(&run.start(&run.path("out"))));
    assert!(!says.contains("warning: the adapter") && !says.contains("still zero"), "{says}");
}

/// Where nothing is learned because of what is left out, the advice is another.
#[test]
fn completions_that_are_all_left_out_are_told() {
    let mut run = short();
    run.set(&["loss.mask_truncated=true", "rollout.max_completion_tokens=2", "train.steps=6"]);
    run.set(&["reward.weights.length=0", "reward.weights.format=1", "train.eval_every=0"]);
    // So that none happens to end by itself.
    run.set(&["rollout.temperature=0.05"]);
    let says = succeeded(&finish(&run.start(&run.path("out"))));
    assert!(
        says.contains("every completion was cut off at rollout.max_completion_tokens = 2"),
        "{says}"
    );
    assert!(
        says.contains("loss.mask_truncated=false") && !says.contains("earned the same"),
        "{says}"
    );
    for line in metrics(&run.path("out")) {
        assert_eq!(number(&line, "completions/clipped_ratio"), 1.0);
        assert!(number(&line, "entropy") > 0.0, "{line:?}");
        let of_nothing = [
            "entropy_trained",
            "kl",
            "clip_ratio/region_mean",
            "completions/mean_terminated_length",
        ];
        assert!(of_nothing.iter().all(|name| !line.contains_key(*name)), "{line:?}");
        assert!(!format!("{line:?}").contains("-0.0"), "{line:?}");
    }
}

#[test]
fn over_long_prompts_are_counted_and_left_out() {
    let run = short();
    let long = format!(
        "{{\"prompt\": \"Say {}\", \"chosen\": \"1\", \"rejected\": \"2\"}}\n",
        "again ".repeat(20)
    );
    let path = run.path("pairs.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    // First, last, and one in between.
    let mut lines: Vec<String> = text.lines().map(|line| format!("{line}\n")).collect();
    for place in [0, 3, 8] {
        lines.insert(place.min(lines.len()), long.clone());
    }
    fs::write(&path, lines.concat()).unwrap();
    let limited = |limit: &str, more: &[&str]| {
        let set = format!("data.max_prompt_tokens={limit}");
        with(run.start(&run.path(limit)), &[&["--set", &set][..], more].concat())
    };
    let says = succeeded(&finish(&limited("60", &["--set", "train.steps=3"])));
    let expected = "3 pairs have prompts above data.max_prompt_tokens = 60 and are left out";
    assert!(says.contains(expected), "{says}");
    let rollouts = |step: u64| {
        fs::read_to_string(run.path("60").join(format!("rollouts/step-{step}.jsonl"))).unwrap()
    };
    // Three steps of one pair each, of six that are left: rows of the file as it is.
    let all: String = (1..=3).map(rollouts).collect();
    for row in [0, 3, 8] {
        assert!(!all.contains(&format!("\"row\":{row},")), "{all}");
    }
    let lines = metrics(&run.path("60"));
    assert_eq!(number(&lines[2], "epoch"), 0.5);
    fails(&limited("9", &[]), 1, &["no pair has a prompt of at most 9 tokens"]);
    let cut = ["--set", "data.over_long=truncate-left"];
    let says = succeeded(&finish(&limited("20", &cut)));
    assert!(says.contains("9 pairs have prompts above 20 tokens, cut at their left"), "{says}");
    fails(&limited("40955", &[]), 1, &["40960 positions", "max_prompt_tokens = 40955"]);
}

#[test]
fn training_goes_on_from_an_adapter_of_the_same_form() {
    let run = short();
    let adapter = run.model.replace("/model", "/adapter");
    let out = run.path("out");
    let args = with(run.start(&out), &["--adapter", &adapter]);
    let advice = "--set lora.r=8 --set lora.alpha=16 --set lora.rslora=false";
    fails(&args, 1, &["has r = 8", "the settings say r = 4", advice]);
    assert!(!out.exists());
    let args = with(args, &["--set", "lora.r=8", "--set", "lora.alpha=16"]);
    succeeded(&finish(&args));
    let weights = |path: &Path| fs::read(path.join("adapter_model.safetensors")).unwrap();
    let (trained, start) = (weights(&out.join("adapter")), weights(Path::new(&adapter)));
    assert!(trained.len() == start.len() && trained != start);
    fs::remove_dir_all(out.join("checkpoints")).unwrap();
    fs::remove_dir_all(out.join("adapter")).unwrap();
    succeeded(&finish(&resume(&out)));
    assert!(weights(&out.join("adapter")) == trained, "from the start again");
}

/// A new adapter's first values, and with them the run, are decided by the seed.
#[test]
fn one_pair_is_enough_and_the_seed_decides() {
    let run = short();
    run.write_pairs("pairs.jsonl", 1);
    let adapter = |name: &str, seed: &str| {
        let out = run.path(name);
        succeeded(&finish(&with(run.start(&out), &["--set", &format!("train.seed={seed}")])));
        assert_eq!(number(&metrics(&out)[1], "epoch"), 2.0);
        files(&out.join("checkpoints/step-2"))["adapter_model.safetensors"].clone()
    };
    let first = adapter("first", "1");
    assert!(adapter("again", "1") == first);
    assert!(adapter("other", "2") != first);
    // A alone: B starts as zero whatever the seed.
    let mut still = short();
    still.set(&["reward.weights.length=0", "train.steps=1"]);
    let untrained = |seed: &str| {
        let out = still.path(seed);
        succeeded(&finish(&with(still.start(&out), &["--set", &format!("train.seed={seed}")])));
        files(&out.join("adapter"))["adapter_model.safetensors"].clone()
    };
    assert!(untrained("1") != untrained("2"), "the first values do not depend on the seed");
}
