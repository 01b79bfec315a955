//! Limits of a process: address space, file sizes, numbers beyond reason, a file that is cut while it is mapped. Each ends with a
//! sentence and a status, never with a panic or a bare signal.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use crate::{
    cli::{bytes, eval_args, fails, j1, model, pairs, stdout},
    training::Run,
};

/// Under limits of the shell, such as `-v 4194304` (in KiB).
fn limited(limits: &str, args: &[&str]) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit {limits}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_j1")]);
    shell.args(args).stdin(Stdio::null()).output().unwrap()
}

/// The stderr of a command that ended by itself and not by a panic.
#[track_caller]
fn ended(output: &Output, what: &str) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{what}: {} {stderr}", output.status);
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
    stderr
}

#[test]
fn a_small_address_space_is_enough_or_an_error() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 2));
    let out = |name: &str| scratch.path().join(name).display().to_string();
    let expected = out("expected");
    stdout(&j1(&eval_args(&model, &data, &expected, &[])));

    // The defaults fit what is left, and compute the same.
    let small = out("small");
    let output = limited("-v 3000000", &eval_args(&model, &data, &small, &["--threads", "2"]));
    stdout(&output);
    assert!(bytes(Path::new(&small)) == bytes(Path::new(&expected)));

    // What is asked for beyond the limit is refused with both numbers.
    let asks = ["--cache-memory", "8GB", "--threads", "2"];
    let output = limited("-v 3000000", &eval_args(&model, &data, &out("asks"), &asks));
    let stderr = ended(&output, "8 GB of 3");
    for part in ["--cache-memory", "7.45 GiB", "2929 MiB", "ulimit -v"] {
        assert!(output.status.code() == Some(1) && stderr.contains(part), "{part}: {stderr}");
    }

    // From where nothing runs to where all does.
    let train = Run::new("qwen3-tied-bf16");
    let (mut done, mut refused) = (0, 0);
    for kib in [60_000, 80_000, 100_000, 130_000, 180_000, 250_000, 400_000, 1_200_000] {
        let limit = format!("-v {kib}");
        // Where not even the program itself is loaded there is nothing to ask of it.
        if !limited(&limit, &["--version"]).status.success() {
            continue;
        }
        let run = format!("eval-{kib}");
        let eval = out(&run);
        let judge = ["judge", "--model", &model, "--prompt", "Hi", "--a", "yes", "--b", "no"];
        let train = train.start(&train.path(&format!("out-{kib}")));
        let train: Vec<&str> =
            train.iter().map(String::as_str).chain(["--set", "train.steps=2"]).collect();
        for args in [
            eval_args(&model, &data, &eval, &[]),
            [&judge[..], &["--max-new-tokens", "8"]].concat(),
            train,
        ] {
            let output = limited(&limit, &args);
            let stderr = ended(&output, &format!("{limit}: {args:?}"));
            match output.status.success() {
                true => done += 1,
                false => {
                    refused += 1;
                    assert!(stderr.contains("j1: "), "{limit}: {args:?}: {stderr}");
                }
            }
        }
    }
    assert!(done > 0 && refused > 0, "{done} done, {refused} refused");
}

/// What threads and large pages reserve, and never use, must leave room for what is used.
#[test]
fn some_hundred_megabytes_of_addresses_are_enough_for_a_small_model() {
    let train = Run::new("qwen3-tied-bf16");
    for kib in [300_000, 600_000, 800_000] {
        let args = train.start(&train.path(&format!("out-{kib}")));
        let args =
            args.iter().map(String::as_str).filter(|arg| !["--cache-memory", "8MB"].contains(arg));
        let args: Vec<&str> = args.chain(["--set", "train.steps=2", "--threads", "2"]).collect();
        stdout(&limited(&format!("-v {kib}"), &args));
    }
}

#[test]
fn numbers_beyond_reason_are_refused_or_cost_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 1));
    let judge = ["judge", "--model", &model, "--data", &data, "--max-new-tokens", "4"];
    // Of a cache no more is taken than sequences can use.
    for memory in ["1000000000000", "1000GB", "1000000GB"] {
        stdout(&j1(&[&judge[..], &["--cache-memory", memory]].concat()));
    }
    let run = Run::new("qwen3-tied-bf16");
    let info = ["info", "--train", "--shape", "qwen3-0.6b", "--preset", "j1-nano"];
    let train = run.start(&run.path("out"));
    let train: Vec<&str> = train.iter().map(String::as_str).collect();
    for key in [
        "rollout.max_completion_tokens",
        "data.max_prompt_tokens",
        "rollout.prompts_per_step",
        "rollout.group_size",
        "train.micro_batch_tokens",
        "lora.r",
        "train.steps",
    ] {
        for number in [
            "1000000",
            "1000000000",
            "1000000000000",
            "9223372036854775807",
            "18446744073709551615",
        ] {
            let set = format!("{key}={number}");
            for args in [&info[..], &train] {
                // Steps are counted, not allocated: such a run would begin.
                if key == "train.steps" && args[0] == "train" {
                    continue;
                }
                let output = j1(&[args, &["--set", &set]].concat());
                ended(&output, &format!("{} {set}", args[0]));
            }
        }
    }
    // A group larger than what runs at once.
    stdout(&j1(&[&info[..], &["--set", "rollout.group_size=1024"]].concat()));
    // More threads than there is room for.
    ended(&limited("-v 1500000", &[&judge[..], &["--threads", "1024"]].concat()), "threads");
}

#[test]
fn a_limit_of_file_sizes_is_an_error_of_the_write() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (model(), pairs(scratch.path(), 12));
    let out = |name: &str| scratch.path().join(name).display().to_string();
    let (whole, limited_out) = (out("whole"), out("limited"));
    stdout(&j1(&eval_args(&model, &data, &whole, &[])));
    let args = eval_args(&model, &data, &limited_out, &[]);
    // Blocks of 512 bytes, or of 1024.
    let output = limited("-f 4", &args);
    let stderr = ended(&output, "ulimit -f");
    assert!(stderr.contains("outputs.jsonl: File too large"), "{stderr}");
    stdout(&j1(&args));
    assert!(bytes(Path::new(&limited_out)) == bytes(Path::new(&whole)), "nothing was lost");
}

#[test]
fn a_file_that_is_cut_while_it_is_mapped_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("model\u{202e}");
    fs::create_dir(&directory).unwrap();
    for entry in fs::read_dir(model()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, directory.join(path.file_name().unwrap())).unwrap();
    }
    let (model, data) = (directory.display().to_string(), pairs(scratch.path(), 400));
    let out = scratch.path().join("out");
    let text = out.display().to_string();
    let args = eval_args(&model, &data, &text, &["--batch", "1", "--weights", "mapped"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_j1"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    while !fs::read(out.join("outputs.jsonl")).is_ok_and(|bytes| !bytes.is_empty()) {
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(child.try_wait().unwrap(), None, "ended before the file was cut");
    }
    let weights = File::options().write(true).open(directory.join("model.safetensors")).unwrap();
    weights.set_len(4096).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(135), "{}: {stderr}", output.status);
    assert!(stderr.contains("model\\u{202e}/model.safetensors was cut while"), "{stderr}");
    // The next run says so as well.
    fails(&["info", "--model", &model], 1, &["model.safetensors"]);
}
