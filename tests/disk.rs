//! Output that cannot be written: full disks, read-only directories, files in the way, a closed or full stdout.
//! The program says what is wrong and what to do, keeps what it has, and goes on later.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::{
    cli::{bytes, eval_args, fails, j1, model, pairs, stdout},
    shared::skipped,
    training::{Run, assert_same, finish, metrics, resume, succeeded},
};

/// A small file system in memory, unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None`, with the reason on stderr, where this user may not mount (only root may) or there is no tmpfs.
    fn mount(options: &str) -> Option<Disk> {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(directory.path());
        let why = match mount.output() {
            Ok(output) if output.status.success() => return Some(Disk(directory)),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_string(),
            Err(error) => error.to_string(),
        };
        skipped(format!("a small disk cannot be mounted: {why}"));
        None
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let status = Command::new("mount").args(["-o", &options]).arg(self.0.path()).status();
        assert!(status.unwrap().success(), "{options}");
    }

    fn out(&self) -> PathBuf {
        self.0.path().join("out")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// Rows of the data; about 350 bytes of outputs.jsonl for each of their two judgements.
const ROWS: usize = 24;

/// The files of a run on a disk with room.
fn expected(scratch: &Path, model: &str, data: &str) -> Vec<(String, Vec<u8>)> {
    let whole = scratch.join("whole");
    stdout(&j1(&eval_args(model, data, &whole.display().to_string(), &[])));
    bytes(&whole)
}

/// Words in the error of a failed write of `file`.
fn full(out: &Path, file: &str) -> [String; 4] {
    let file = out.join(file).display().to_string();
    ["the disk is full".into(), file, "free some space".into(), "run the same command again".into()]
}

/// The whole lines of outputs.jsonl, which holds nothing else.
fn lines(out: &Path) -> usize {
    let text = fs::read_to_string(out.join("outputs.jsonl")).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "a torn line is left: {text:?}");
    for line in text.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    text.lines().count()
}

#[test]
fn a_disk_that_fills_during_a_run_loses_nothing() {
    // A page each for the directory's small files, the rest for outputs.jsonl.
    let Some(disk) = Disk::mount("size=16k") else { return };
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), ROWS));
    let expected = expected(scratch.path(), &model, &data);
    let out = disk.out();
    let text = out.display().to_string();
    let args = eval_args(&model, &data, &text, &["--batch", "3"]);
    let fails_full = |file: &str| {
        let says = full(&out, file);
        fails(&args, 1, &says.each_ref().map(String::as_str));
    };

    // While judging.
    fails_full("outputs.jsonl");
    let kept = lines(&out);
    assert!(kept > 0 && kept < 2 * ROWS, "{kept} judgements");
    fails_full("outputs.jsonl");
    assert_eq!(lines(&out), kept, "nothing fits, nothing is lost");

    // Room for all judgements, none for a sorted copy of them: fails at the end.
    let outputs = expected[0].1.len() as u64;
    assert_eq!(expected[0].0, "outputs.jsonl");
    disk.remount(&format!("size={}k", outputs.div_ceil(1024) + 8));
    fails_full("outputs.jsonl");
    assert_eq!(lines(&out), 2 * ROWS);
    let mut names: Vec<_> =
        fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".j1.lock", "outputs.jsonl", "run.json"], "no half-written files");

    disk.remount("size=1m");
    stdout(&j1(&args));
    assert!(bytes(&out) == expected, "the same bytes as a run that was never stopped");
}

#[test]
fn a_merge_onto_a_full_disk_leaves_nothing() {
    // Less than the weights, of which there are 220 kB.
    let Some(disk) = Disk::mount("size=128k") else { return };
    let (model, adapter) = (model(), model().replace("/model", "/adapter"));
    let out = disk.out().display().to_string();
    let args = ["merge", "--model", &model, "--adapter", &adapter, "--out", &out];
    fails(&args, 1, &["the disk is full", "out.partial/model.safetensors", "free some space"]);
    assert_eq!(fs::read_dir(disk.0.path()).unwrap().count(), 0);
    // A directory can be renamed to any place but the disk's own root.
    let root = disk.0.path().display().to_string();
    fails(&[&args[..5], &["--out", &root]].concat(), 1, &["where a disk is mounted"]);

    disk.remount("size=1m");
    stdout(&j1(&args));
    assert!(disk.out().join("config.json").exists());
    disk.remount("ro");
    let other = disk.0.path().join("other").display().to_string();
    fails(&[&args[..5], &["--out", &other]].concat(), 1, &["choose a place", "other.partial"]);
}

#[test]
fn a_profile_that_fills_the_disk_does_not_end_the_work() {
    // A full buffer of events is some 600 kB.
    let Some(disk) = Disk::mount("size=256k") else { return };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3-untied");
    let (golden, file) =
        (golden.display().to_string(), disk.out().with_extension("json").display().to_string());
    let check = ["check", &golden];
    let output = j1(&[&check[..], &["--profile", &file]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for says in ["the profile is lost", &file, "the disk is full", "went on without it"] {
        assert!(stderr.contains(says), "{stderr}");
    }
    assert_eq!(String::from_utf8_lossy(&output.stdout), stdout(&j1(&check)));
    assert_eq!(fs::read_dir(disk.0.path()).unwrap().count(), 0);
}

#[test]
fn a_training_run_goes_on_when_there_is_room_again() {
    // Room for a checkpoint of some 80 kB, and not for two.
    let Some(disk) = Disk::mount("size=176k") else { return };
    let run = Run::new("qwen3-tied-bf16");
    let whole = run.complete("whole", 1);
    let out = disk.out();
    let fails_full = |args: &[String]| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let out = out.display().to_string();
        fails(&args, 1, &["the disk is full", &out, "free some space"]);
    };
    fails_full(&run.start(&out));
    let kept = metrics(&out).len();
    assert!((2..20).contains(&kept), "{kept} steps");
    fails_full(&resume(&out));
    let steps = fs::read_dir(out.join("checkpoints")).unwrap();
    assert_eq!(steps.count(), 1, "the checkpoint of step 2, and no half-written one");

    disk.remount("size=4m");
    succeeded(&finish(&resume(&out)));
    assert_same(&out, &whole, "after a full disk");
}

#[test]
fn a_disk_without_inodes_is_told_as_a_full_one() {
    // The root, the directory, the lock: nothing is left for run.json.
    let Some(disk) = Disk::mount("size=1m,nr_inodes=3") else { return };
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 2));
    let expected = expected(scratch.path(), &model, &data);
    let out = disk.out();
    let text = out.display().to_string();
    let args = eval_args(&model, &data, &text, &[]);
    let says = full(&out, "run.json");
    fails(&args, 1, &[&says.each_ref().map(String::as_str)[..], &["df -i"]].concat());
    disk.remount("nr_inodes=100");
    stdout(&j1(&args));
    assert!(bytes(&out) == expected);
}

#[test]
fn a_directory_that_cannot_be_written_is_refused_with_advice() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 1));
    let file = scratch.path().join("file");
    fs::write(&file, "mine").unwrap();
    for out in [file.clone(), file.join("below")] {
        let text = out.display().to_string();
        fails(&eval_args(&model, &data, &text, &[]), 1, &[&text, "not a directory", "--out"]);
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");

    let Some(disk) = Disk::mount("size=1m") else { return };
    let text = disk.out().display().to_string();
    let args = eval_args(&model, &data, &text, &[]);
    disk.remount("ro");
    fails(&args, 1, &[&text, "Read-only", "choose an --out"]);
    disk.remount("rw");
    stdout(&j1(&args));
    let before = bytes(&disk.out());
    disk.remount("ro");
    fails(&args, 1, &[&text, "Read-only", "choose an --out"]);
    assert!(bytes(&disk.out()) == before);
}

fn to(stdout: Stdio, stderr: Stdio, args: &[&str]) -> Output {
    let j1 = Command::new(env!("CARGO_BIN_EXE_j1"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn();
    j1.unwrap().wait_with_output().unwrap()
}

/// The writing end of a pipe whose reader has gone.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_stdout_is_a_failure_and_the_results_are_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 2));
    let expected = expected(scratch.path(), &model, &data);
    let out = scratch.path().join("out");
    let text = out.display().to_string();
    let judge = ["judge", "--model", &model, "--data", &data, "--max-new-tokens", "8"];
    let json = |args: &[&'static str]| [&judge[..], args].concat();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama");
    let golden = golden.display().to_string();
    for args in [
        judge.to_vec(),
        json(&["--json"]),
        eval_args(&model, &data, &text, &["--json"]),
        eval_args(&model, &data, &text, &[]),
        vec!["info"],
        vec!["check", &golden],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = to(full.into(), Stdio::piped(), &args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        let says = "j1: cannot write to stdout: No space left on device";
        assert!(stderr.contains(says) && !stderr.contains("panicked"), "{args:?}: {stderr}");
        if args[0] == "eval" {
            assert!(stderr.contains(&format!(
                "wrote outputs.jsonl, results.csv, rubrics.jsonl and scores.json to {text}"
            )));
        }
    }
    assert!(bytes(&out) == expected, "all of the results are in --out");
}

#[test]
fn a_closed_stdout_ends_quietly_and_the_results_are_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 2));
    let expected = expected(scratch.path(), &model, &data);
    let out = scratch.path().join("out");
    let text = out.display().to_string();
    let judge = ["judge", "--model", &model, "--data", &data, "--max-new-tokens", "8", "--json"];
    let eval = eval_args(&model, &data, &text, &["--json"]);
    for args in [&judge[..], &eval, &["info"], &["--help"], &["eval", "--help"], &["--version"]] {
        let output = to(closed(), Stdio::piped(), args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("rror"), "{args:?}: {stderr}");
    }
    assert!(bytes(&out) == expected);
}

#[test]
fn a_closed_stderr_does_not_end_a_run() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 2));
    let expected = expected(scratch.path(), &model, &data);
    let out = scratch.path().join("out").display().to_string();
    let args = eval_args(&model, &data, &out, &[]);
    for _ in 0..2 {
        let output = to(Stdio::piped(), closed(), &args);
        assert!(stdout(&output).contains("math-prm"));
    }
    assert!(bytes(Path::new(&out)) == expected);
    let output = to(Stdio::piped(), closed(), &["info", "--model", "./nothing"]);
    assert_eq!(output.status.code(), Some(1));
}
