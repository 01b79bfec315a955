//! A run that is killed at any moment, again and again, ends with the bytes of one that never was.

use std::{
    fs,
    io::BufRead,
    path::Path,
    time::{Duration, Instant},
};

use super::{Run, assert_same, finish, resume, spawn, succeeded, with_threads};

/// Every checkpoint is whole, whatever was under way.
fn assert_whole_checkpoints(out: &Path) {
    let Ok(entries) = fs::read_dir(out.join("checkpoints")) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(step) = name.strip_prefix("step-") else {
            assert!(name.starts_with(".step-"), "{name}");
            continue;
        };
        let files = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name());
        let mut files: Vec<_> = files.map(|name| name.into_string().unwrap()).collect();
        files.sort();
        assert_eq!(
            files,
            [
                "adapter_config.json",
                "adapter_model.safetensors",
                "optimizer.safetensors",
                "state.json"
            ],
            "{name}"
        );
        let state = fs::read(path.join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        assert_eq!(state["step"].to_string(), step);
    }
}

#[test]
fn a_run_killed_at_random_moments_ends_as_one_that_never_was() {
    let mut run = Run::new("qwen3-tied-bf16");
    run.set(&["train.steps=40", "train.save_every=3", "train.eval_every=6"]);
    let started = Instant::now();
    let whole = run.complete("whole", 1);
    let all = started.elapsed();
    let started = Instant::now();
    succeeded(&finish(&with_threads(resume(&whole), 1)));
    let start = started.elapsed();
    let step = all.saturating_sub(start).max(Duration::from_millis(40)) / 40;

    let out = run.path("killed");
    let (count, mut draws) = crate::kill::kills(25);
    let (mut kills, mut resumed, mut completed) = (0, 0, 0);
    while kills < count {
        // A run that was killed before its first file is one that was never started.
        let is_run = out.join("config.toml").exists();
        let args = if is_run { resume(&out) } else { run.start(&out) };
        let mut child = spawn(&with_threads(args, 1));
        if kills % 2 == 0 {
            // Within a step: after some of them, each of which is a line.
            let lines = 2 + (draws.next() * 5.0) as usize;
            let stderr = std::io::BufReader::new(child.stderr.as_mut().unwrap());
            let _ = stderr.lines().take(lines).count();
            std::thread::sleep(step.mul_f64(draws.next()));
        } else {
            // Before the first one.
            std::thread::sleep(start.mul_f64(draws.next()));
        }
        child.kill().unwrap();
        // It may have come to its end before that.
        if child.wait().unwrap().success() {
            completed += 1;
            assert_same(&out, &whole, &format!("after {kills} kills"));
            fs::remove_dir_all(&out).unwrap();
            continue;
        }
        kills += 1;
        resumed += usize::from(is_run);
        assert_whole_checkpoints(&out);
    }
    eprintln!("{kills} kills, {resumed} of them of resumed runs, {completed} runs completed");
    let args = if out.join("config.toml").exists() { resume(&out) } else { run.start(&out) };
    succeeded(&finish(&with_threads(args, 1)));
    assert_same(&out, &whole, "killed and resumed");
}
