//! `j1 rollout`: the first half of a step alone.

use std::{collections::BTreeMap, fs};

use serde_json::Value;
use trainer::{data::Message, train::rollout::RolloutRecord};

use super::{CACHE, Run, files, finish, succeeded, with_threads};

const GROUP: usize = 3;

fn rollout(run: &Run, out: &str, more: &[&str]) -> Vec<String> {
    let path = |name: &str| run.path(name).display().to_string();
    let (data, out) = (path("pairs.jsonl"), path(out));
    let mut args = vec!["rollout", "--model", &run.model, "--data", &data, "--out", &out];
    args.extend(CACHE);
    args.extend(more);
    let mut args: Vec<String> = args.into_iter().map(str::to_owned).collect();
    args.extend(run.settings.iter().flat_map(|set| ["--set".to_owned(), set.clone()]));
    args
}

#[test]
fn rollouts_are_written_whole_and_the_same_at_any_number_of_threads() {
    let run = Run::new("qwen3-tied-bf16");
    let group = GROUP.to_string();
    let mut written = Vec::new();
    for threads in ["1", "2"] {
        let more = ["--group", &group, "--seed", "5", "--threads", threads];
        let says = succeeded(&finish(&rollout(&run, "rollouts.jsonl", &more)));
        assert!(says.contains("wrote 36 judgements") && says.contains("mean reward"), "{says}");
        written.push(fs::read_to_string(run.path("rollouts.jsonl")).unwrap());
        fs::remove_file(run.path("rollouts.jsonl")).unwrap();
    }
    assert!(written[0] == written[1], "at 2 threads");
    let records: Vec<RolloutRecord> =
        written[0].lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Six pairs in both orders.
    assert_eq!(records.len(), 6 * 2 * GROUP);
    for (index, record) in records.iter().enumerate() {
        assert_eq!((record.step, record.group, record.sample), (0, index / GROUP, index % GROUP));
        assert_eq!(record.row, index as u64 / (2 * GROUP as u64), "as the file has them");
        assert!((1..=12).contains(&record.tokens) && record.log_prob < 0.0, "{record:?}");
        // A line is read alone: what was asked, what was answered, and where the other order of both is.
        let row = record.row;
        assert_eq!(record.prompt, [Message::new("user", &format!("Say {row}"))]);
        assert_eq!(record.chosen, (2 * row).to_string());
        assert_eq!(record.rejected, (2 * row + 1).to_string());
        let other = record.other_order.unwrap();
        let back = &records[other * GROUP];
        assert_eq!((back.row, back.group, back.other_order), (row, other, Some(record.group)));
        assert_ne!(back.order, record.order);
        let length = -(record.tokens as f64) / 12.0;
        assert_eq!(record.rewards["length"], length);
        let names: Vec<&str> = record.rewards.keys().map(String::as_str).collect();
        assert_eq!(names, ["agreement", "consistency", "format", "length", "summed", "verdict"]);
        // Neither form nor a verdict: what is left is the length, at its weight of 1.
        assert_eq!((record.right, record.rewards["verdict"]), (false, 0.0));
        assert!((record.reward - length - 0.2 * record.rewards["format"]).abs() < 1e-12);
    }
    // Lines of older versions have no texts and no links.
    let mut old: Value = serde_json::from_str(written[0].lines().next().unwrap()).unwrap();
    for name in ["prompt", "chosen", "rejected", "other_order"] {
        assert!(old.as_object_mut().unwrap().remove(name).is_some(), "{name}");
    }
    let old: RolloutRecord = serde_json::from_value(old).unwrap();
    assert_eq!((old.other_order, old.prompt.len(), old.text), (None, 0, records[0].text.clone()));
    let mut texts: BTreeMap<&str, usize> = BTreeMap::new();
    records.iter().for_each(|record| *texts.entry(&record.text).or_default() += 1);
    assert!(texts.len() > records.len() / 2, "every sample draws its own: {texts:?}");
    for group in records.chunks(GROUP) {
        let sum: f32 = group.iter().map(|record| record.advantage).sum();
        assert!(sum.abs() < 1e-5, "advantages of a group add up to {sum}");
    }

    // Another seed and another policy write other judgements; a limit takes the first pairs.
    let limited = |name: &str, more: &[&str]| {
        let more = [&["--group", &group, "--limit", "2"][..], more].concat();
        succeeded(&finish(&rollout(&run, name, &more)));
        fs::read_to_string(run.path(name)).unwrap()
    };
    let first = limited("first.jsonl", &["--seed", "5"]);
    assert!(written[0].starts_with(&first) && first.lines().count() == 2 * 2 * GROUP);
    assert_ne!(limited("seed.jsonl", &["--seed", "6"]), first);
    let adapter = run.model.replace("/model", "/adapter");
    assert_ne!(limited("adapter.jsonl", &["--seed", "5", "--adapter", &adapter]), first);
}

#[test]
fn rollouts_that_cannot_be_made_are_explained() {
    let run = Run::new("qwen3-tied-bf16");
    let fails = |more: &[&str], says: &[&str]| {
        let output = finish(&rollout(&run, "out.jsonl", more));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && !stderr.contains("panicked"), "{stderr}");
        assert!(says.iter().all(|word| stderr.contains(word)), "{says:?}: {stderr}");
        assert!(!run.path("out.jsonl").exists());
    };
    fails(&["--set", "data.max_prompt_tokens=3"], &["data.max_prompt_tokens"]);
    fails(&["--set", "rollout.grup_size=3"], &["did you mean rollout.group_size?"]);
    fails(&["--adapter", "./nowhere"], &["nowhere"]);
    let long = run.path("long.jsonl");
    let pair =
        "{\"prompt\": \"Say a very much longer thing\", \"chosen\": \"1\", \"rejected\": \"2\"}\n";
    let short = fs::read_to_string(run.path("pairs.jsonl")).unwrap();
    fs::write(&long, short.clone() + pair).unwrap();
    fs::rename(&long, run.path("pairs.jsonl")).unwrap();
    let more = ["--set", "data.max_prompt_tokens=30"];
    let says = succeeded(&finish(&rollout(&run, "out.jsonl", &more)));
    assert!(says.contains("1 pairs have prompts above 30 tokens"), "{says}");
    assert_eq!(fs::read_to_string(run.path("out.jsonl")).unwrap().lines().count(), 6 * 2 * 4);
}

/// What is shown is on stderr only: every file but the settings has the bytes of a run that shows nothing. A pair in one
/// order has no link.
#[test]
fn judgements_are_shown_now_and_then_and_change_nothing() {
    let mut run = Run::new("qwen3-tied-bf16");
    run.set(&["train.steps=6", "data.orders=random", "rollout.max_completion_tokens=60"]);
    let quiet = run.complete("quiet", 1);
    let shown = run.path("shown");
    let mut args = with_threads(run.start(&shown), 1);
    args.extend(["--set", "train.show_every=3"].map(str::to_owned));
    let says = succeeded(&finish(&args));
    let steps: Vec<&str> = says.lines().filter(|line| line.starts_with("── step")).collect();
    assert!(steps.len() == 2 && steps[0].starts_with("── step 3, "), "{says}");
    assert!(steps[1].starts_with("── step 6, "), "{says}");
    let (quiet, shown) = (files(&quiet), files(&shown));
    let differing: Vec<&String> =
        shown.keys().filter(|name| quiet[*name] != shown[*name]).collect();
    assert_eq!(differing, ["config.toml", "run.json"]);
    assert_eq!(quiet.len(), shown.len());

    // The best and the worst of the group whose rewards differ most.
    let text = String::from_utf8(shown["rollouts/step-3.jsonl"].clone()).unwrap();
    let records: Vec<RolloutRecord> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(records.iter().all(|record| record.other_order.is_none()), "{text}");
    let ends = |group: &[RolloutRecord]| {
        let rewards = group.iter().map(|record| record.reward);
        (rewards.clone().fold(f64::MIN, f64::max), rewards.fold(f64::MAX, f64::min))
    };
    let groups: Vec<(f64, f64)> = records.chunks(4).map(ends).collect();
    let widest = groups.iter().map(|(best, worst)| best - worst).fold(0.0, f64::max);
    let (best, worst) = groups.iter().find(|(best, worst)| best - worst == widest).unwrap();
    assert!(widest > 0.0);
    for expected in
        [format!("── best: reward {best:.3}, "), format!("── worst: reward {worst:.3}, ")]
    {
        assert!(says.lines().any(|line| line.starts_with(&expected)), "{expected}: {says}");
    }
    // No line of it is wider than a log's 80 columns; sentences are on one line.
    let from = says.lines().position(|line| line.starts_with("── step 3")).unwrap();
    let length = says.lines().skip(from).position(|line| line == "──").unwrap();
    for line in says.lines().skip(from).take(length) {
        assert!(line.chars().count() <= 80, "{line}");
    }
}
