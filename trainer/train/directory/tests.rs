//! What may change, what may not, and who holds a directory.

use super::*;
use crate::train::settings::Preset;

fn settings() -> Settings {
    Settings::preset(Preset::J1Nano)
}

fn fingerprints() -> Map<String, Value> {
    let all = json!({"model": "m", "data": "d", "instructions": "avx2"});
    all.as_object().cloned().unwrap()
}

fn about(at: &str) -> Map<String, Value> {
    json!({"at": at}).as_object().cloned().unwrap()
}

fn started() -> (tempfile::TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    RunDirectory::start(&out, &settings(), &fingerprints(), about("Monday")).unwrap();
    (scratch, out)
}

fn resume(
    out: &Path,
    fingerprints: &Map<String, Value>,
    assignments: &[&str],
    allow: bool,
) -> Result<Vec<String>, DirectoryError> {
    let (directory, begun) = RunDirectory::open(out)?;
    let changed = assignments
        .iter()
        .fold(begun.settings.clone(), |settings, assignment| settings.with(assignment).unwrap());
    begun.check(out, &changed)?;
    directory.go_on(&begun, &changed, fingerprints, allow, None, about("Tuesday"))
}

fn run_json(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join(RUN)).unwrap()).unwrap()
}

#[test]
fn what_may_change_is_kept_and_written_whole() {
    let (_scratch, out) = started();
    assert_eq!(run_json(&out)[ABOUT], json!({"started": {"at": "Monday"}}));
    assert_eq!(run_json(&out)[SETTINGS]["optimizer.learning_rate"], json!(1e-4));
    let changed = resume(&out, &fingerprints(), &["train.steps=8", "train.eval_every=0"], false);
    let says = ["train.eval_every = 0 (was 100)", "train.steps = 8 (was 1000)"];
    assert_eq!(changed.unwrap(), says);
    let expected = settings().with("train.steps=8").unwrap().with("train.eval_every=0").unwrap();
    assert_eq!(fs::read_to_string(out.join(CONFIG)).unwrap(), expected.to_toml());
    let run = run_json(&out);
    assert_eq!(run[SETTINGS]["train.steps"], json!(8));
    let resumed = json!([{"at": "Tuesday", "from_step": 0, "changed": says}]);
    assert_eq!(run[ABOUT], json!({"started": {"at": "Monday"}, "resumed": resumed}));
    // By hand, in the file, too.
    let edited = expected.with("train.save_every=7").unwrap();
    fs::write(out.join(CONFIG), edited.to_toml()).unwrap();
    let changed = resume(&out, &fingerprints(), &[], false).unwrap();
    assert_eq!(changed, ["train.save_every = 7 (was 100)"]);
    assert!(resume(&out, &fingerprints(), &[], false).unwrap().is_empty());
    for _ in 0..2 * RESUMPTIONS {
        resume(&out, &fingerprints(), &[], false).unwrap();
    }
    let resumed = run_json(&out)[ABOUT]["resumed"].as_array().unwrap().len();
    assert_eq!(resumed, RESUMPTIONS, "it does not grow for ever");
}

/// Every key that decides what steps are, by the flag and in the file.
#[test]
fn what_decides_the_steps_is_refused_by_name_and_both_values() {
    let (_scratch, out) = started();
    let (config, whole) = (out.join(CONFIG), settings().to_toml());
    let before = (fs::read(&config).unwrap(), fs::read(out.join(RUN)).unwrap());
    for (assignment, says) in [
        ("train.seed=9", "train.seed = 9 (was 0)"),
        ("rollout.group_size=8", "rollout.group_size = 8 (was 2)"),
        ("loss.beta=0.1", "loss.beta = 0.1 (was 0.0005)"),
        ("lora.dropout=0.1", "lora.dropout = 0.1 (was 0.0)"),
        ("lora.target_modules=['q_proj']", "lora.target_modules = [\"q_proj\"] (was [\"q_proj\","),
        ("optimizer.schedule=linear", "optimizer.schedule = \"linear\" (was \"cosine\")"),
        ("data.max_prompt_tokens=100", "data.max_prompt_tokens = 100 (was 2048)"),
        ("train.micro_batch_tokens=9000", "train.micro_batch_tokens = 9000 (was 0)"),
        ("reward.weights.length=0.5", "reward.weights.length = 0.5 (was 0.0)"),
    ] {
        let error = resume(&out, &fingerprints(), &["train.steps=3", assignment], false);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("another directory"), "{error}");
        assert!(!error.contains("train.steps = 3"), "{error}");
        fs::write(&config, settings().with(assignment).unwrap().to_toml()).unwrap();
        let error = resume(&out, &fingerprints(), &[], false).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("config.toml"), "{error}");
        fs::write(&config, &whole).unwrap();
    }
    let two = settings().with("train.seed=9").unwrap().with("loss.beta=1").unwrap();
    fs::write(&config, two.to_toml()).unwrap();
    let error = resume(&out, &fingerprints(), &[], false).unwrap_err().to_string();
    assert!(error.contains("train.seed = 9") && error.contains("loss.beta = 1.0"), "{error}");
    fs::write(&config, &whole).unwrap();
    assert_eq!((fs::read(&config).unwrap(), fs::read(out.join(RUN)).unwrap()), before);
}

#[test]
fn a_cut_config_is_seen_at_any_line_and_written_again() {
    let (_scratch, out) = started();
    let (config, whole) = (out.join(CONFIG), settings().to_toml());
    let last = whole.lines().count() - 1;
    assert!(whole.lines().last().is_some_and(|line| line.contains(" = ")));
    for lines in 0..last {
        let text: String = whole.lines().take(lines).map(|line| format!("{line}\n")).collect();
        // And in the middle of the next line.
        for cut in [&text[..], &whole[..text.len() + 1]] {
            fs::write(&config, cut).unwrap();
            let error = resume(&out, &fingerprints(), &[], false).unwrap_err().to_string();
            let says = ["config.toml", "remove"];
            assert!(says.iter().all(|part| error.contains(part)), "{lines}: {error}");
        }
    }
    fs::remove_file(&config).unwrap();
    assert!(RunDirectory::open(&out).unwrap().1.restored);
    assert!(resume(&out, &fingerprints(), &[], false).unwrap().is_empty());
    assert_eq!(fs::read_to_string(&config).unwrap(), whole);
    let run = fs::read_to_string(out.join(RUN)).unwrap();
    fs::write(out.join(RUN), &run[..run.len() / 2]).unwrap();
    let error = RunDirectory::open(&out).err().unwrap().to_string();
    assert!(
        error.contains("run.json is damaged") && error.contains("start another run"),
        "{error}"
    );
    fs::remove_file(out.join(RUN)).unwrap();
    let error = RunDirectory::open(&out).err().unwrap().to_string();
    assert!(error.contains("run.json is missing"), "{error}");
}

#[test]
fn other_instructions_are_allowed_by_a_flag_and_noted() {
    let (_scratch, out) = started();
    let with = |name: &str| {
        let mut all = fingerprints();
        all.insert(INSTRUCTIONS.to_owned(), json!(name));
        all
    };
    let error = resume(&out, &with("portable"), &[], false).unwrap_err().to_string();
    for part in ["avx2", "portable", "J1_ISA=avx2", "run.json"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    resume(&out, &with("portable"), &[], true).unwrap();
    let run = run_json(&out);
    assert_eq!(run[INSTRUCTIONS], "portable");
    let noted = &run[ABOUT]["resumed"][0][INSTRUCTIONS];
    assert_eq!(*noted, json!({"before": "avx2", "now": "portable"}));
    // It is what the run has now.
    resume(&out, &with("portable"), &[], false).unwrap();
    assert!(resume(&out, &with("avx2"), &[], false).is_err());
    let mut other = with("portable");
    other.insert("data".to_owned(), json!("e"));
    let error = resume(&out, &other, &[], true).unwrap_err().to_string();
    assert!(error.contains("data = \"d\""), "the flag allows nothing else: {error}");
}

/// As runs of versions before were: fingerprints alone.
#[test]
fn a_run_that_knows_no_settings_goes_on() {
    let (_scratch, out) = started();
    fs::write(out.join(RUN), pretty(&Value::from(fingerprints()))).unwrap();
    resume(&out, &fingerprints(), &["train.steps=9"], false).unwrap();
    assert!(resume(&out, &fingerprints(), &["train.seed=9"], false).is_err());
    assert_eq!(run_json(&out)[SETTINGS]["train.steps"], json!(9));
}

#[test]
fn a_start_without_a_step_does_not_hold_its_directory() {
    let (_scratch, out) = started();
    let again = || {
        let other = settings().with("train.seed=4").unwrap();
        RunDirectory::start(&out, &other, &fingerprints(), about("Tuesday"))
    };
    // What a failure in the first step leaves.
    fs::create_dir(out.join(ROLLOUTS)).unwrap();
    fs::write(out.join(ROLLOUTS).join("step-1.jsonl"), "{}\n").unwrap();
    fs::write(out.join(METRICS), "").unwrap();
    fs::write(out.join("events.out.tfevents.1"), "x").unwrap();
    let first = again().unwrap();
    assert_eq!(run_json(&out)[SETTINGS]["train.seed"], json!(4));
    let second = again().err().unwrap().to_string();
    assert!(second.contains("in use"), "{second}");
    drop(first);
    let holds = |made: &Path| {
        let error = again().err().unwrap().to_string();
        assert!(error.contains("already holds a run"), "{}: {error}", made.display());
    };
    for made in [out.join(CHECKPOINTS).join("step-1"), out.join(ADAPTER)] {
        fs::create_dir_all(&made).unwrap();
        holds(&made);
        fs::remove_dir_all(&made).unwrap();
    }
    // An evaluation, or whatever else has a run.json.
    fs::write(out.join("outputs.jsonl"), "").unwrap();
    let error = again().err().unwrap().to_string();
    assert!(error.contains("outputs.jsonl") && error.contains("another directory"), "{error}");
    fs::remove_file(out.join("outputs.jsonl")).unwrap();
    for made in [out.join(ROLLOUTS).join("step-2.jsonl"), out.join(METRICS)] {
        fs::write(&made, "{\"step\":1}\n").unwrap();
        holds(&made);
        fs::write(&made, "").unwrap();
        let _ = fs::remove_file(&made);
    }
    again().unwrap();
}
