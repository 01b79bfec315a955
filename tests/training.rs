//! Training as its users run it: what a group computes, and that a run ends with the same bytes whatever
//! happened to it.

mod delivered;
mod kill;
mod log_probs;
mod packed;
mod refusals;
mod resume;
mod rollouts;
mod settings;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::{Map, Value};
use trainer::train::metrics::without_timing;

use crate::cli::without_about;

/// Prompts of a few tokens, so that a step takes milliseconds.
const TEMPLATE: &str =
    "---system---\n---user---\n{{ question }}|{{ response_a }}|{{ response_b }}\n";

/// A small run. Random weights never write a verdict; how long they write, they can learn.
const SETTINGS: [&str; 13] = [
    "lora.r=4",
    "lora.alpha=8",
    "rollout.prompts_per_step=2",
    "rollout.group_size=4",
    "rollout.max_completion_tokens=12",
    "reward.length_from_tokens=0",
    "reward.weights.length=1",
    "train.steps=20",
    "train.save_every=2",
    "train.eval_every=4",
    "train.keep_last=2",
    "optimizer.warmup_steps=2",
    "optimizer.learning_rate=0.004",
];

/// A directory in memory, where there is one: most of a step of so small a model is waiting for a disk.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap()
}

/// How a run is started, and where its inputs and outputs are.
pub(crate) struct Run {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) model: String,
    preset: &'static str,
    settings: Vec<String>,
}

impl Run {
    /// With a model of tests/golden.
    pub(crate) fn new(case: &str) -> Run {
        let directory = scratch();
        fs::write(directory.path().join("template.jinja"), TEMPLATE).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        let template = directory.path().join("template.jinja").display().to_string();
        let mut run = Run {
            directory,
            model: root.join("model").display().to_string(),
            preset: "j1-nano",
            settings: vec![format!("data.template={template:?}")],
        };
        run.set(&SETTINGS);
        run.write_pairs("pairs.jsonl", 6);
        run.write_pairs("held_out.jsonl", 2);
        run
    }

    pub(crate) fn set(&mut self, settings: &[&str]) {
        self.settings.extend(settings.iter().map(|setting| setting.to_string()));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write_pairs(&self, name: &str, rows: usize) -> String {
        let line = |row: usize| {
            let (chosen, rejected) = (row * 2, row * 2 + 1);
            format!(
                "{{\"prompt\": \"Say {row}\", \"chosen\": \"{chosen}\", \"rejected\": \"{rejected}\"}}\n"
            )
        };
        fs::write(self.path(name), (0..rows).map(line).collect::<String>()).unwrap();
        self.path(name).display().to_string()
    }

    /// The arguments that start the run in `out`.
    pub(crate) fn start(&self, out: &Path) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let (data, held_out, out) =
            (path("pairs.jsonl"), path("held_out.jsonl"), out.display().to_string());
        let mut args = vec!["train", "--preset", self.preset, "--model", &self.model];
        args.extend(["--data", &data, "--held-out", &held_out, "--out", &out]);
        args.extend(CACHE);
        let mut args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        args.extend(self.settings.iter().flat_map(|set| ["--set".to_owned(), set.clone()]));
        args
    }

    /// Starts the run in a directory of this name and waits for its end.
    pub(crate) fn complete(&self, name: &str, threads: usize) -> PathBuf {
        let out = self.path(name);
        let output = finish(&with_threads(self.start(&out), threads));
        succeeded(&output);
        out
    }
}

/// The cache for a whole machine would be a list of millions of pages.
const CACHE: [&str; 2] = ["--cache-memory", "8MB"];

/// The arguments that continue the run in `out`.
pub(crate) fn resume(out: &Path) -> Vec<String> {
    let out = out.display().to_string();
    let args = ["train", "--resume", "--out", &out].into_iter().chain(CACHE);
    args.map(str::to_owned).collect()
}

pub(crate) fn with_threads(mut args: Vec<String>, threads: usize) -> Vec<String> {
    args.extend(["--threads".to_owned(), threads.to_string()]);
    args
}

pub(crate) fn spawn(args: &[String]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_j1"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

pub(crate) fn finish(args: &[String]) -> Output {
    spawn(args).wait_with_output().unwrap()
}

/// The stderr of a run that succeeded.
#[track_caller]
pub(crate) fn succeeded(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {stderr}", output.status);
    stderr
}

/// The lines of metrics.jsonl without what depends on the machine; the first may be of step 0.
pub(crate) fn lines(out: &Path) -> Vec<Map<String, Value>> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| without_timing(line).unwrap()).collect()
}

/// Those of the steps taken.
pub(crate) fn metrics(out: &Path) -> Vec<Map<String, Value>> {
    lines(out).into_iter().filter(|line| line["step"] != 0).collect()
}

#[track_caller]
pub(crate) fn number(line: &Map<String, Value>, name: &str) -> f64 {
    line.get(name).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {name} in {line:?}"))
}

/// All files of a run that do not depend on the machine and the day, by their paths.
pub(crate) fn files(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut pending) = (BTreeMap::new(), vec![out.to_owned()]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(out).unwrap().display().to_string();
            if path.is_dir() {
                pending.push(path);
            } else if name == "metrics.jsonl" {
                let all = lines(out).into_iter().map(|line| Value::from(line).to_string());
                found.insert(name, all.collect::<Vec<_>>().join("\n").into_bytes());
            } else if name != ".j1.lock" && !name.starts_with("events.out.tfevents.") {
                let bytes = without_about(&name, fs::read(&path).unwrap());
                found.insert(name, bytes);
            }
        }
    }
    found
}

#[track_caller]
pub(crate) fn assert_same(out: &Path, expected: &Path, what: &str) {
    let (ours, expected) = (files(out), files(expected));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&expected), "{what}: files");
    let differing: Vec<&String> =
        ours.iter().filter(|(name, bytes)| expected[*name] != **bytes).map(|f| f.0).collect();
    assert!(differing.is_empty(), "{what}: {differing:?} have other bytes");
}
