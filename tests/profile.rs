//! `--profile`: a trace that says what ran, on every command and however it ends, and that changes nothing else.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::cli::{bytes, eval_args, fails, j1, model, pairs, stdout};

fn golden(case: &str) -> String {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    golden.join(case).display().to_string()
}

/// The events of a whole trace, beside which nothing is left.
pub(crate) fn events(path: &Path) -> Vec<Value> {
    let trace: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert!(!partial(path).exists());
    trace.as_array().unwrap().clone()
}

fn partial(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.partial", path.display()))
}

/// The names of metadata events of a kind.
fn names(events: &[Value], kind: &str) -> Vec<String> {
    let of_kind = events.iter().filter(|event| event["ph"] == "M" && event["name"] == kind);
    let mut names: Vec<_> =
        of_kind.map(|event| event["args"]["name"].as_str().unwrap().to_string()).collect();
    names.sort();
    names
}

#[test]
fn a_check_is_the_same_with_a_profile_of_its_kernels() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("trace.json");
    let (text, bf16, f32) =
        (file.display().to_string(), golden("qwen3-tied-bf16"), golden("qwen3-untied"));
    let check = ["check", &bf16, &f32, "--threads", "3"];
    let plain = stdout(&j1(&check));
    let output = j1(&[&check[..], &["--profile", &text]].concat());
    assert_eq!(stdout(&output), plain);
    assert!(String::from_utf8_lossy(&output.stderr).contains("ui.perfetto.dev"));

    let events = events(&file);
    assert_eq!(names(&events, "process_name"), ["j1 check"]);
    assert_eq!(names(&events, "thread_name"), ["kernel-1", "kernel-2", "main"]);
    let slices = |name: &str, category: &str| -> Vec<&Value> {
        let named = events.iter().filter(|event| event["ph"] == "X" && event["name"] == name);
        named.filter(|event| event["cat"] == category).collect()
    };
    for kernel in [
        "embedding",
        "matmul",
        "matmul backward",
        "product",
        "attention append",
        "attention",
        "attention backward",
        "rms_norm",
        "rms_norm backward",
        "rope",
        "rope backward",
        "swiglu",
        "swiglu backward",
        "log_prob",
        "log_prob backward",
        "sample",
        "norm",
        "adamw",
    ] {
        let slices = slices(kernel, "kernel");
        assert!(!slices.is_empty(), "no slice of {kernel}");
        let moves_only = ["embedding", "attention append"].contains(&kernel);
        for slice in slices {
            let args = &slice["args"];
            assert_eq!(args["flops"].as_u64().unwrap() == 0, moves_only, "{slice}");
            assert!(args["bytes"].as_u64().unwrap() > 0, "{slice}");
            assert!(!args["shape"].as_str().unwrap().is_empty(), "{slice}");
            assert!(slice["ts"].is_f64() && slice["dur"].as_f64().unwrap() > 0.0, "{slice}");
        }
    }
    for phase in ["forward", "backward", "decode", "prefill and decode", "optimizer step"] {
        assert!(!slices(phase, "phase").is_empty(), "no slice of {phase}");
    }
    // What a matmul has to do follows from its shape.
    for matmul in slices("matmul", "kernel") {
        let shape = matmul["args"]["shape"].as_str().unwrap().split(" x ");
        let product: u64 = shape.map(|size| size.parse::<u64>().unwrap()).product();
        assert_eq!(matmul["args"]["flops"], 2 * product);
    }
}

#[test]
fn an_evaluation_writes_the_same_bytes_with_a_profile() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 4));
    let path = |name: &str| scratch.path().join(name).display().to_string();
    let (plain, profiled, file) = (path("plain"), path("profiled"), path("trace.json"));
    stdout(&j1(&eval_args(&model, &data, &plain, &[])));
    // An older profile is replaced.
    fs::write(&file, "old").unwrap();
    stdout(&j1(&eval_args(&model, &data, &profiled, &["--profile", &file])));
    assert!(bytes(Path::new(&profiled)) == bytes(Path::new(&plain)));
    assert!(events(Path::new(&file)).iter().any(|event| event["name"] == "decode"));
}

#[test]
fn a_command_that_fails_leaves_a_whole_profile() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("trace.json");
    let text = file.display().to_string();
    let says = ["nothing", "profile: "];
    fails(&["--profile", &text, "check", &golden("llama"), "./nothing"], 1, &says);
    assert!(events(&file).iter().any(|event| event["name"] == "matmul"));
}

#[test]
fn a_profile_that_cannot_be_written_is_refused_before_the_work() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 1));
    let out = scratch.path().join("out").display().to_string();
    let refused = |file: &str, says: &str| {
        fails(&eval_args(&model, &data, &out, &["--profile", file]), 1, &[file, says]);
        assert!(!Path::new(&out).exists(), "{file}: the work began");
    };
    let path = |name: &str| scratch.path().join(name).display().to_string();
    refused(&path("no/such/directory/trace.json"), "choose a file in a directory that exists");
    refused(&path(""), "not a regular file");
    #[cfg(unix)]
    refused("/dev/null", "not a regular file");
    // One that is being written.
    let busy = path("busy.json");
    let other = fs::File::create(partial(Path::new(&busy))).unwrap();
    other.lock().unwrap();
    refused(&busy, "another j1 is writing");
    drop(other);
    stdout(&j1(&eval_args(&model, &data, &out, &["--profile", &busy])));
    events(Path::new(&busy));
}

/// Runs `j1 args --profile file` and sends it a signal once events were written, long before the end.
#[cfg(unix)]
fn stopped(args: &[&str], file: &Path, signal: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_j1"))
        .args(args)
        .arg("--profile")
        .arg(file)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while fs::metadata(partial(file)).map_or(0, |there| there.len()) == 0 {
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(child.try_wait().unwrap(), None, "{args:?} ended before it was stopped");
    }
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    child.wait_with_output().unwrap()
}

/// Both where the command looks at the flag that signals raise, and where it does not.
#[cfg(unix)]
#[test]
fn ctrl_c_and_termination_leave_a_whole_profile() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 12));
    let path = |name: &str| scratch.path().join(name).display().to_string();
    let llama = golden("llama");
    let check = [&["check"][..], &[llama.as_str(); 1000]].concat();
    for (signal, status) in [("-INT", 130), ("-TERM", 143)] {
        let out = path(signal);
        let eval = eval_args(&model, &data, &out, &["--batch", "1", "--threads", "1"]);
        for (name, args) in [("eval", &eval), ("check", &check)] {
            let file = scratch.path().join(format!("{name}{signal}.json"));
            let output = stopped(args, &file, signal);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(status), "{name}: {stderr}");
            assert!(stderr.contains("profile: "), "{name}: {stderr}");
            assert!(events(&file).iter().any(|event| event["name"] == "matmul"), "{name}");
        }
    }
}

/// What a killed run leaves is an array of whole events that lacks its end, and in nobody's way.
#[cfg(unix)]
#[test]
fn a_killed_run_leaves_a_partial_profile_that_can_be_read_and_is_replaced() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("trace.json");
    let llama = golden("llama");
    let output = stopped(&[&["check"][..], &[llama.as_str(); 1000]].concat(), &file, "-KILL");
    assert_eq!(output.status.code(), None);
    assert!(!file.exists());
    let there = fs::read_to_string(partial(&file)).unwrap();
    // The system may have taken a part of the last write.
    let whole = &there[..there.rfind(",\n{").unwrap()];
    let read: Vec<Value> = serde_json::from_str(&format!("{whole}]")).unwrap();
    assert!(read.len() > 1000, "{} events", read.len());
    assert!(read.iter().any(|event| event["name"] == "matmul"));

    stdout(&j1(&["check", &llama, "--profile", &file.display().to_string()]));
    assert!(events(&file).iter().any(|event| event["name"] == "matmul"));
}
