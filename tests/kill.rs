//! Runs that are killed at any moment, again and again, end with the bytes of those that never were: eval and merge here, train in
//! training/kill.rs. J1_KILLS says how often each is killed, where seconds will not do (kill_loops.sh).

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    cli::{bytes, eval_args, j1, model, pairs, stdout},
    merge::{adapter_of_rank, large_model},
};

/// SplitMix64 (Steele et al. 2014), as a share of 1.
pub(crate) struct Draws(pub(crate) u64);

impl Draws {
    pub(crate) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How often a run is killed: so often, or as J1_KILLS says. Then the moments are others each time.
pub(crate) fn kills(so_often: usize) -> (usize, Draws) {
    let asked = std::env::var("J1_KILLS").ok().and_then(|kills| kills.parse().ok());
    let seed = asked.map_or(25, |_: usize| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |time| time.as_nanos() as u64)
    });
    if asked.is_some() {
        eprintln!("moments of seed {seed}");
    }
    (asked.unwrap_or(so_often), Draws(seed))
}

fn spawn(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_j1"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Kills a run at a moment that is drawn. Whether it had ended before.
fn killed(args: &[&str], whole: Duration, draws: &mut Draws) -> bool {
    let mut child = spawn(args);
    std::thread::sleep(whole.mul_f64(draws.next()));
    child.kill().unwrap();
    child.wait().unwrap().success()
}

#[test]
fn an_evaluation_killed_at_random_moments_ends_as_one_that_never_was() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 6));
    let path = |name: &str| scratch.path().join(name);
    let (whole, out) = (path("whole").display().to_string(), path("out").display().to_string());
    let started = Instant::now();
    stdout(&j1(&eval_args(&model, &data, &whole, &["--batch", "2"])));
    let (whole, elapsed) = (bytes(Path::new(&whole)), started.elapsed());

    let args = eval_args(&model, &data, &out, &["--batch", "2"]);
    let (count, mut draws) = kills(10);
    let (mut made, mut completed) = (0, 0);
    while made < count {
        if killed(&args, elapsed, &mut draws) {
            completed += 1;
            assert!(bytes(Path::new(&out)) == whole, "after {made} kills");
            fs::remove_dir_all(&out).unwrap();
        } else {
            made += 1;
        }
    }
    stdout(&j1(&args));
    assert!(bytes(Path::new(&out)) == whole, "killed and continued");
    eprintln!("{made} kills, {completed} runs completed before theirs");
}

#[test]
fn a_merge_killed_at_random_moments_is_whole_or_not_there() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let text = |name: &str| path(name).display().to_string();
    large_model(&path("model"));
    adapter_of_rank(8, &path("model"), &path("adapter"));
    let (model, adapter, whole, out) = (text("model"), text("adapter"), text("whole"), text("out"));
    let args = ["merge", "--model", &model, "--adapter", &adapter, "--out"];
    let (into_whole, into_out) =
        ([&args[..], &[whole.as_str()]].concat(), [&args[..], &[out.as_str()]].concat());
    let started = Instant::now();
    stdout(&j1(&into_whole));
    let elapsed = started.elapsed();
    let files = |directory: &Path| {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = entries
            .map(|path| (path.file_name().unwrap().to_owned(), fs::read(&path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let whole = files(&path("whole"));
    let (count, mut draws) = kills(6);
    let mut appeared = 0;
    for kill in 0..count {
        killed(&into_out, elapsed, &mut draws);
        if path("out").exists() {
            appeared += 1;
            assert!(files(&path("out")) == whole, "after {kill} kills");
            fs::remove_dir_all(path("out")).unwrap();
        }
    }
    stdout(&j1(&into_out));
    assert!(files(&path("out")) == whole && !path("out.partial").exists());
    eprintln!("{count} kills, {appeared} merges completed before theirs");
}
