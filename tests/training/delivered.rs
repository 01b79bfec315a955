//! What a run ends with: the best step's adapter, the alarms on the way there, and a reference that training began with.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;
use trainer::train::rollout::RolloutRecord;

use super::{
    Run, assert_same, finish, lines, metrics, number, resume, scratch, succeeded, with_threads,
};

/// A few steps of the demo's judge, which is right sometimes.
struct Demo(tempfile::TempDir);

impl Demo {
    fn new() -> Demo {
        let directory = scratch();
        let pairs = fs::read_to_string(below_root("cli/commands/demo/pairs.jsonl")).unwrap();
        let all: Vec<&str> = pairs.lines().collect();
        fs::write(directory.path().join("train.jsonl"), all[..40].join("\n")).unwrap();
        fs::write(directory.path().join("held_out.jsonl"), all[40..70].join("\n")).unwrap();
        Demo(directory)
    }

    fn start(&self, out: &str, settings: &[&str], more: &[&str]) -> Vec<String> {
        let path = |name: &str| self.0.path().join(name).display().to_string();
        let [config, model, template] = ["config.toml", "model", "template.jinja"]
            .map(|name| below_root("cli/commands/demo").join(name));
        let mut args =
            vec!["train".to_owned(), "--config".to_owned(), config.display().to_string()];
        for (flag, value) in [
            ("--model", model.display().to_string()),
            ("--data", path("train.jsonl")),
            ("--held-out", path("held_out.jsonl")),
            ("--out", path(out)),
            ("--cache-memory", "64MB".to_owned()),
            ("--set", format!("data.template={:?}", template.display().to_string())),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        let small = [
            "rollout.prompts_per_step=4",
            "rollout.group_size=4",
            "train.save_every=1",
            "train.keep_last=1",
        ];
        let all =
            small.iter().chain(settings).flat_map(|set| ["--set".to_owned(), set.to_string()]);
        args.extend(all.chain(more.iter().map(|arg| arg.to_string())));
        with_threads(args, 2)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }
}

fn below_root(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn weights(directory: &Path) -> Vec<u8> {
    fs::read(directory.join("adapter_model.safetensors")).unwrap()
}

/// A rate of 1 destroys the judge in two steps.
const COLLAPSE: [&str; 6] = [
    "optimizer.learning_rate=1",
    "optimizer.warmup_steps=2",
    "optimizer.max_grad_norm=0",
    "train.steps=10",
    "train.eval_every=1",
    "loss.beta=0",
];

#[test]
fn a_collapse_is_told_and_the_best_step_is_delivered() {
    let demo = Demo::new();
    let says = succeeded(&finish(&demo.start("out", &COLLAPSE, &[])));
    let out = demo.path("out");
    let lines = lines(&out);
    assert_eq!(lines.len(), 11);
    let share = |line: &serde_json::Map<String, Value>| number(line, "eval/right_in_both_orders");
    // The line of step 0 is of the base model: an evaluation, and nothing that a step has.
    assert_eq!(lines[0]["step"], 0);
    assert!(
        lines[0].keys().all(|name| name == "step" || name.starts_with("eval/")),
        "{:?}",
        lines[0]
    );
    let steps = &lines[1..];
    // The first of the best: step 1's rate is 0 or small, and the last steps are destroyed.
    let best = steps.iter().map(share).fold(0.0, f64::max);
    let best_step = steps.iter().position(|line| share(line) == best).unwrap() as u64 + 1;
    assert!(best > 0.0 && best_step < 10 && share(&steps[9]) < best, "{best} at {best_step}");
    assert_eq!(
        weights(&out.join("adapter")),
        weights(&out.join(format!("checkpoints/step-{best_step}")))
    );
    assert_ne!(weights(&out.join("adapter")), weights(&out.join("checkpoints/step-10")));
    let told = format!("adapter/ is step {best_step} of 10, the best on held-out pairs");
    assert!(says.contains(&told), "{says}");
    assert!(says.contains(&format!("before training {:.1} %", 100.0 * share(&lines[0]))), "{says}");
    assert!(says.lines().any(|line| line.trim_start().starts_with("eval 0 ")), "{says}");
    // The best so far is in every line, and where it is new, in the table.
    for (line, step) in steps.iter().zip(1..) {
        let so_far = steps[..step].iter().map(share).fold(0.0, f64::max);
        let first = steps.iter().position(|line| share(line) == so_far).unwrap() + 1;
        assert_eq!(number(line, "eval/best_step"), first as f64, "step {step}");
        let label = format!("eval {step} ");
        let row = says.lines().find(|line| line.trim_start().starts_with(&label)).unwrap();
        assert_eq!(row.ends_with(" best"), first == step, "{row}");
        assert!(row.chars().count() <= 80, "{row}");
    }
    assert!(!lines[0].contains_key("eval/best_step"), "no step of training");
    // What a step says of its verdicts is what its rollouts hold.
    for (line, step) in steps.iter().zip(1..) {
        let text = fs::read_to_string(out.join(format!("rollouts/step-{step}.jsonl"))).unwrap();
        let records: Vec<RolloutRecord> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let right = records.iter().filter(|record| record.right).count() as f64;
        assert_eq!(number(line, "completions/right_ratio"), right / records.len() as f64);
        let advantages = || records.iter().map(|record| f64::from(record.advantage));
        assert_eq!(number(line, "advantages/min"), advantages().fold(f64::MAX, f64::min));
        assert_eq!(number(line, "advantages/max"), advantages().fold(f64::MIN, f64::max));
        let scores: Vec<(f64, f64)> =
            records.iter().filter_map(|record| record.verdict.scores()).collect();
        let count =
            |is: fn(f64, f64) -> bool| scores.iter().filter(|(a, b)| is(*a, *b)).count() as f64;
        let (for_a, for_b) = (count(|a, b| a > b), count(|a, b| a < b));
        match for_a + for_b > 0.0 {
            true => assert_eq!(number(line, "verdicts/share_of_a"), for_a / (for_a + for_b)),
            false => assert!(!line.contains_key("verdicts/share_of_a"), "step {step}"),
        }
        let distinct: BTreeSet<String> =
            scores.iter().map(|scores| format!("{scores:?}")).collect();
        assert_eq!(number(line, "verdicts/distinct_scores"), distinct.len() as f64);
    }
    // What training pays for, on held-out pairs: verdicts that are right, and in both orders.
    for line in &lines {
        assert_eq!(number(line, "eval/rewards/verdict/mean"), number(line, "eval/accuracy"));
        let both = number(line, "eval/rewards/consistency/mean");
        assert!((both - share(line)).abs() < 1e-12);
        let reward = 0.2 * number(line, "eval/rewards/format/mean") + number(line, "eval/accuracy");
        assert!((number(line, "eval/reward") - reward - both).abs() < 1e-9);
        let [least, mean, most] =
            ["min", "mean", "max"].map(|of| number(line, &format!("eval/{of}_length")));
        assert!(1.0 <= least && least <= mean && mean <= most && most <= 48.0);
    }
    // Alarms: each at one step, with what to try, in the file too.
    let begun = |name: &str| {
        let at =
            |line: &&serde_json::Map<String, Value>| line.contains_key(&format!("alarm/{name}"));
        steps.iter().filter(at).count()
    };
    assert_eq!((begun("truncation"), begun("verdicts")), (1, 1), "{says}");
    for part in [
        "% of completions were cut off in the last 3 steps",
        "no readable verdict",
        "optimizer.learning_rate",
    ] {
        assert!(says.contains(part), "{part}: {says}");
    }

    // The last is delivered where that is asked for, by the same run otherwise.
    let says = succeeded(&finish(&demo.start("last", &COLLAPSE, &["--set", "train.deliver=last"])));
    let last = demo.path("last");
    assert_eq!(weights(&last.join("adapter")), weights(&last.join("checkpoints/step-10")));
    assert!(says.contains("adapter/ is step 10, the last, as train.deliver says"), "{says}");
    assert!(says.contains(&format!("after step {best_step}, the best, ")), "{says}");
    assert_eq!(
        fs::read(last.join("rollouts/step-10.jsonl")).unwrap(),
        fs::read(out.join("rollouts/step-10.jsonl")).unwrap()
    );

    // Continued from before the collapse, it is told again, and all bytes are the same.
    let resumed = demo.path("out");
    let keep = demo.path("kept");
    fs::create_dir(&keep).unwrap();
    fs::rename(&resumed, keep.join("out")).unwrap();
    let mut stopped = COLLAPSE.to_vec();
    stopped.push("train.steps=10");
    let says = succeeded(&finish(&demo.start("out", &stopped, &["--set", "train.keep_last=20"])));
    assert!(says.contains("were cut off"), "{says}");
    for step in 5..=10 {
        fs::remove_dir_all(resumed.join(format!("checkpoints/step-{step}"))).unwrap();
        fs::remove_file(resumed.join(format!("rollouts/step-{step}.jsonl"))).unwrap();
    }
    let whole = scratch();
    copy(&resumed.join("adapter"), &whole.path().join("adapter"));
    let before = fs::read_to_string(resumed.join("metrics.jsonl")).unwrap();
    fs::remove_dir_all(resumed.join("adapter")).unwrap();
    succeeded(&finish(&resume(&resumed)));
    assert_same(&resumed.join("adapter"), &whole.path().join("adapter"), "the best of before");
    let after = fs::read_to_string(resumed.join("metrics.jsonl")).unwrap();
    let plain = |text: &str| -> Vec<_> {
        text.lines().map(|line| trainer::train::metrics::without_timing(line).unwrap()).collect()
    };
    assert_eq!(plain(&before), plain(&after), "alarms and evaluations among them");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// What is trained further is held against where it began, or against the base; a new adapter begins as the base.
#[test]
fn the_reference_is_the_start_or_the_base() {
    let mut run = Run::new("qwen3-tied");
    run.set(&[
        "lora.r=8",
        "lora.alpha=16",
        "loss.beta=0.04",
        "train.steps=6",
        "train.keep_last=10",
    ]);
    run.set(&["optimizer.learning_rate=0.02", "train.eval_every=0", "optimizer.warmup_steps=0"]);
    // Or steps whose groups tie have no KL term.
    run.set(&["reward.drop_zero_variance=false"]);
    let adapter = run.model.replace("/model", "/adapter");
    let complete = |name: &str, more: &[&str]| {
        let mut args = with_threads(run.start(&run.path(name)), 1);
        args.extend(more.iter().map(|arg| arg.to_string()));
        succeeded(&finish(&args));
        metrics(&run.path(name))
    };
    let kl = |line: &serde_json::Map<String, Value>| number(line, "kl");
    let start = complete("start", &["--adapter", &adapter]);
    assert_eq!(kl(&start[0]), 0.0, "nothing has moved yet");
    assert!(start.iter().skip(1).any(|line| kl(line) > 0.0), "and then it did");
    let base = complete("base", &["--adapter", &adapter, "--set", "loss.reference=base"]);
    assert!(kl(&base[0]) > 0.1, "the adapter is random: {}", kl(&base[0]));
    assert!(!run.path("base/start").exists());

    // A new adapter is the base: the same bits by either word, and nothing is kept.
    let new = [complete("new", &[]), complete("new-base", &["--set", "loss.reference=base"])];
    assert_eq!(new[0], new[1]);
    assert!(!run.path("new/start").exists());
    assert!(new[0][1..].iter().any(|line| kl(line) > 0.0));

    // Continued in another process, with the original gone from where it was, it is the same to the bit.
    let whole = run.path("start");
    let out = run.path("again");
    let moved = run.path("moved");
    copy(Path::new(&adapter), &moved);
    let mut args = with_threads(run.start(&out), 1);
    args.extend(["--adapter".to_owned(), moved.display().to_string()]);
    succeeded(&finish(&args));
    for step in 3..=6 {
        // Steps are saved every second.
        let _ = fs::remove_dir_all(out.join(format!("checkpoints/step-{step}")));
    }
    succeeded(&finish(&with_threads(resume(&out), 2)));
    assert_eq!(metrics(&out), metrics(&whole));
    assert_eq!(weights(&out.join("adapter")), weights(&whole.join("adapter")));
    assert_eq!(weights(&out.join("start")), weights(Path::new(&adapter)));
}

/// A run that was killed before its first step has evaluated at most: another may be started there, and evaluates anew.
#[test]
fn a_start_that_evaluated_only_is_no_run() {
    let mut run = Run::new("qwen3-tied-bf16");
    run.set(&["train.steps=2"]);
    let whole = run.complete("whole", 1);
    let out = run.path("out");
    fs::create_dir(&out).unwrap();
    for name in ["config.toml", "run.json"] {
        fs::copy(whole.join(name), out.join(name)).unwrap();
    }
    fs::write(out.join("metrics.jsonl"), "{\"step\":0,\"eval/right_in_both_orders\":0.77}\n")
        .unwrap();
    succeeded(&finish(&with_threads(run.start(&out), 1)));
    assert_eq!(lines(&out), lines(&whole));
    assert_eq!(lines(&out)[0]["step"], 0);
}
