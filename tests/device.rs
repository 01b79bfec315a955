//! `--device` of `j1 check` and `j1 bench`: without a GPU, and on the emulator.

use std::process::{Command, Stdio};

use crate::cli::{fails, model};

#[test]
fn without_a_gpu_the_commands_say_what_to_do() {
    let model = model();
    for args in [
        &["check", "--self"][..],
        &["check", "--self", "--device", "auto", "--json"],
        &["check", "--device", "cuda", &model],
        &["bench", "--device", "cuda", "--model", &model],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_j1"))
            .args(args)
            .env("CUDA_DRIVER_LIB", "no-such-driver.so")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        let feature = if cfg!(feature = "cuda") { "no CUDA driver" } else { "--features cuda" };
        assert!(stderr.contains(feature) && stderr.contains("use --device cpu"), "{stderr}");
        assert!(output.stdout.is_empty(), "{args:?} printed a result");
    }
    fails(&["check", "--self", "--device", "cpu"], 1, &["use --device cuda"]);
    fails(&["check"], 2, &["DIR"]);
}

#[cfg(feature = "cuda")]
mod emulated {
    use std::{
        path::{Path, PathBuf},
        process::Command,
        sync::OnceLock,
    };

    use serde_json::Value;

    use crate::cli::{model, stdout};

    /// The emulator as a driver, beside the program under test; cargo does not build it for a test of this package.
    fn driver() -> &'static Path {
        static DRIVER: OnceLock<PathBuf> = OnceLock::new();
        DRIVER.get_or_init(|| {
            let folder = Path::new(env!("CARGO_BIN_EXE_j1")).parent().unwrap();
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args(["build", "--package", "emulator-driver", "--target-dir"]);
            cargo.arg(folder.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
            if folder.ends_with("release") {
                cargo.arg("--release");
            }
            assert!(cargo.status().unwrap().success(), "the emulator does not build");
            folder.join("libemulator_driver.so")
        })
    }

    fn j1(args: &[&str]) -> String {
        let mut j1 = Command::new(env!("CARGO_BIN_EXE_j1"));
        stdout(&j1.args(args).env("CUDA_DRIVER_LIB", driver()).output().unwrap())
    }

    #[test]
    fn the_self_test_names_every_kernel() {
        let report: Value =
            serde_json::from_str(&j1(&["check", "--device", "cuda", "--self", "--json"])).unwrap();
        assert_eq!(report["passed"], true);
        let rows = report["self"]["kernels"].as_array().unwrap();
        let names: Vec<_> = rows.iter().map(|row| row["kernel"].as_str().unwrap()).collect();
        // That none is missing, the tests of crate kernels hold.
        let all = kernels::cuda::entries::ENTRIES;
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|entry| names.contains(&entry.symbol)));
        assert!(rows.iter().all(|row| row["passed"] == true), "{rows:?}");
    }

    #[test]
    fn every_kind_of_work_is_timed_and_no_peak_is_claimed() {
        let model = model();
        let report: Value = serde_json::from_str(&j1(&[
            "bench",
            "--device",
            "cuda",
            "--model",
            &model,
            "--prompt",
            "8",
            "--gen",
            "2",
            "--batch",
            "1,3",
            "--depth",
            "20",
            "--train",
            "12",
            "--group",
            "2",
            "--completion",
            "5",
            "--repeat",
            "1",
            "--json",
        ]))
        .unwrap();
        assert_eq!(report["device"], "cuda:0 (Emulated A100-SXM4-80GB)");
        assert_eq!((&report["dtype"], &report["peak"]), (&"bf16".into(), &Value::Null));
        let rows = report["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 5);
        for row in rows {
            assert!(row["median_seconds"].as_f64().unwrap() > 0.0, "{row}");
            assert!(row["peak_memory_bytes"].as_u64().unwrap() > 0, "{row}");
            assert_eq!((&row["of_peak"], &row["least_seconds"]), (&Value::Null, &Value::Null));
        }
    }
}
