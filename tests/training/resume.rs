//! A run that was stopped and resumed in another process ends with the bytes of one that was not, at
//! any number of threads.

use std::{fs, io::BufRead, path::Path, process::Command};

use engine::prelude::{Device, LanguageModel};
use kernels::cpu::{Cpu, matmul::Panels};
use serde_json::Value;

use super::{
    Run, assert_same, finish, lines, metrics, number, resume, spawn, succeeded, with_threads,
};

/// The settings that change what a run has to remember.
fn runs() -> Vec<(&'static str, Run)> {
    let plain = Run::new("qwen3-tied-bf16");
    let mut iterated = Run::new("qwen3-tied");
    iterated.set(&["loss.num_iterations=2", "loss.beta=0.04", "loss.type=grpo"]);
    iterated.set(&["train.micro_batch_tokens=60", "train.gradient_checkpointing=off"]);
    let mut original = Run::new("qwen3-tied-bf16");
    original.preset = "trl-0.15.2";
    original.set(&["rollout.prompts_per_step=4", "loss.accumulation_steps=2"]);
    original.set(&["loss.beta=0.04", "data.max_prompt_tokens=25"]);
    vec![("plain", plain), ("iterated", iterated), ("original", original)]
}

/// The adapter that came out really moved.
fn assert_trained(name: &str, run: &Run, out: &Path) {
    let lines = metrics(out);
    assert_eq!(lines.len(), 20, "{name}");
    let moved = lines.iter().filter(|line| number(line, "grad_norm") > 0.0).count();
    assert!(moved >= 10, "{name}: {moved} of 20 steps had a gradient");
    let device = Device::cpu_threads(1);
    let adapter = out.join("adapter");
    let builder = LanguageModel::builder(&run.model).device(&device).adapter(adapter.as_path());
    let model = builder.open_model().unwrap();
    for (factor, values) in model.parameters() {
        let largest = values.data().iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
        assert!(largest > 1e-4, "{name}: {} is at most {largest}", factor.peft_key());
    }
    for line in lines.iter().filter(|line| number(line, "grad_norm") > 0.0) {
        let difference = line.get("sampling/sampling_logp_difference/max");
        // Not comparable: log-probabilities at another temperature, and dropout.
        let expected = if name == "original" { None } else { Some(0.0) };
        assert_eq!(difference.and_then(Value::as_f64), expected, "{name}: {line:?}");
    }
    let evaluated: Vec<u64> = super::lines(out)
        .iter()
        .filter(|line| line.contains_key("eval/accuracy"))
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(evaluated, [0, 4, 8, 12, 16, 20], "{name}");
}

fn checkpoints(out: &Path) -> Vec<u64> {
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let step = |name: String| name.strip_prefix("step-").unwrap().parse().unwrap();
    let entries = fs::read_dir(out.join("checkpoints")).unwrap();
    let mut steps: Vec<u64> = entries.map(|entry| step(name(entry.unwrap()))).collect();
    steps.sort_unstable();
    steps
}

/// Makes of a complete run one that was killed when it had taken `steps` steps, and a part of the next.
fn rewind(complete: &Path, out: &Path, steps: u64) {
    let keep = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let step = name.strip_prefix("step-").map(|step| step.trim_end_matches(".jsonl"));
        name != "adapter" && step.is_none_or(|step| step.parse::<u64>().unwrap() <= steps)
    };
    let mut pending = vec![complete.to_owned()];
    while let Some(from) = pending.pop() {
        let to = out.join(from.strip_prefix(complete).unwrap());
        fs::create_dir(&to).unwrap();
        for path in fs::read_dir(&from).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() && keep(&path) {
                pending.push(path);
            } else if path.is_file() && keep(&path) {
                fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    let path = out.join("metrics.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    // The start's and those of the steps.
    let start = usize::from(text.starts_with("{\"step\":0,"));
    let lines: Vec<&str> = text.lines().take(start + steps as usize + 1).collect();
    // The next step's line is torn.
    let kept = lines.join("\n");
    fs::write(&path, &kept[..kept.len() - 10]).unwrap();
}

#[test]
fn a_resumed_run_ends_as_one_that_never_stopped() {
    for (name, mut run) in runs() {
        run.set(&["train.keep_last=10"]);
        let whole = run.complete("whole", 1);
        assert_trained(name, &run, &whole);
        assert_same(&run.complete("threads", 2), &whole, &format!("{name} at 2 threads"));
        for (threads, steps) in [(1, 10), (2, 10), (2, 14)] {
            let out = run.path(&format!("resumed-{threads}-{steps}"));
            rewind(&whole, &out, steps);
            let says = succeeded(&finish(&with_threads(resume(&out), threads)));
            assert!(says.contains(&format!("step-{steps}")), "{says}");
            let what = format!("{name}, {steps} steps and the rest at {threads} threads");
            assert_same(&out, &whole, &what);
        }
        // Nothing is left to do, and nothing changes.
        let out = run.path("threads");
        succeeded(&finish(&resume(&out)));
        assert_same(&out, &whole, &format!("{name}, resumed after its end"));
    }
}

#[test]
fn the_last_checkpoints_and_the_best_are_kept() {
    let run = Run::new("qwen3-tied-bf16");
    let whole = run.complete("whole", 2);
    // No random model is ever right: the first evaluation stays the best.
    assert_eq!(checkpoints(&whole), [4, 18, 20]);
    let out = run.path("out");
    rewind(&whole, &out, 4);
    assert_eq!(checkpoints(&out), [4]);
    succeeded(&finish(&resume(&out)));
    assert_same(&out, &whole, "from the best on");
    for step in [4, 18, 20] {
        let directory = whole.join(format!("checkpoints/step-{step}"));
        let state: Value =
            serde_json::from_slice(&fs::read(directory.join("state.json")).unwrap()).unwrap();
        assert_eq!(state["step"], step);
        assert_eq!(state["best"]["step"], 4);
    }
    let last = whole.join("checkpoints/step-20/adapter_model.safetensors");
    let adapter = whole.join("adapter/adapter_model.safetensors");
    assert_eq!(fs::read(last).unwrap(), fs::read(adapter).unwrap());
}

/// Tests both signals.
#[cfg(unix)]
#[test]
fn a_signal_finishes_the_step_saves_and_the_run_goes_on_later() {
    let mut run = Run::new("qwen3-tied-bf16");
    run.set(&["train.steps=60", "train.save_every=7", "train.eval_every=0"]);
    let whole = run.complete("whole", 1);
    for (signal, status) in [("-INT", 130), ("-TERM", 143)] {
        let out = run.path(&format!("stopped{signal}"));
        let mut child = spawn(&with_threads(run.start(&out), 1));
        let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
        // Once a step is done, and long before all are.
        let mut says = String::new();
        while says.lines().last().is_none_or(|line| !line.trim_start().starts_with("1/60 ")) {
            assert_ne!(stderr.read_line(&mut says).unwrap(), 0, "ended before a step: {says}");
        }
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        std::io::Read::read_to_string(&mut stderr, &mut says).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status), "{says}");
        assert!(says.contains("--resume") && says.contains("stopping after this step"), "{says}");
        let steps = metrics(&out).len() as u64;
        assert!((1..50).contains(&steps), "{steps} steps: {says}");
        assert_eq!(checkpoints(&out).last(), Some(&steps));
        assert!(!out.join("adapter").exists());

        succeeded(&finish(&with_threads(resume(&out), 2)));
        assert_same(&out, &whole, &format!("stopped by {signal} after {steps} steps"));
    }
}

/// With a model of billions, it takes longer than anybody waits.
#[cfg(unix)]
#[test]
fn a_signal_stops_the_evaluation_before_the_first_step() {
    let mut run = Run::new("qwen3-tied-bf16");
    run.set(&["train.steps=1", "train.eval_pairs=400"]);
    run.write_pairs("held_out.jsonl", 400);
    let out = run.path("out");
    let mut child = spawn(&with_threads(run.start(&out), 1));
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut says = String::new();
    while !says.contains("time: about") {
        assert_ne!(stderr.read_line(&mut says).unwrap(), 0, "ended before its plan: {says}");
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    std::io::Read::read_to_string(&mut stderr, &mut says).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{says}");
    assert!(says.contains("stopped after step 0 of 1"), "{says}");
    assert_eq!(lines(&out), [], "half of an evaluation is none");
    succeeded(&finish(&with_threads(resume(&out), 2)));
    assert_eq!(lines(&out).len(), 2, "it was made again, and the step was taken");
}

/// config.toml says where a run's weights are read. Old runs do not say it, and a resumed one may read them elsewhere.
#[test]
fn a_run_says_where_its_weights_are_read_and_may_change_it() {
    let mut run = Run::new("qwen3-tied-bf16");
    run.set(&["train.steps=4"]);
    let said = |out: &Path| -> String {
        let text = fs::read_to_string(out.join("config.toml")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("weights = "));
        line.expect("config.toml has a line of model.weights").to_owned()
    };
    let packs = Panels::suit(&Cpu::new(1));
    let whole = run.complete("whole", 1);
    assert_eq!(said(&whole), if packs { "\"packed\"" } else { "\"mapped\"" });
    // Flags come before settings.
    let started = |name: &str, more: &[&str]| {
        let out = run.path(name);
        let more = more.iter().map(|arg| arg.to_string());
        succeeded(&finish(&run.start(&out).into_iter().chain(more).collect::<Vec<_>>()));
        out
    };
    assert_eq!(said(&started("set", &["--set", "model.weights=mapped"])), "\"mapped\"");
    let more = ["--set", "model.weights=packed", "--weights", "mapped"];
    let mapped = started("mapped", &more);
    assert_eq!(said(&mapped), "\"mapped\"");

    let config = |out: &Path| fs::read(out.join("config.toml")).unwrap();
    let old: String = (String::from_utf8(config(&whole)).unwrap().lines())
        .filter(|line| !line.starts_with("weights = "))
        .map(|line| line.to_owned() + "\n")
        .collect();
    for (name, text) in [("from-old", old.into_bytes()), ("from-mapped", config(&mapped))] {
        let out = run.path(name);
        rewind(&whole, &out, 2);
        fs::write(out.join("config.toml"), text).unwrap();
        let args = [resume(&out), vec!["--weights".to_owned(), "auto".to_owned()]].concat();
        succeeded(&finish(if name == "from-old" { &args } else { &args[..args.len() - 2] }));
        fs::write(out.join("config.toml"), config(&whole)).unwrap();
        assert_same(&out, &whole, name);
    }
}
