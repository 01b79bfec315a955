//! Compiles `kernels/cuda/*.cu` to PTX in `OUT_DIR`, for feature `cuda` of crate `kernels`, whose build script
//! this is. Without the feature it does nothing.
//!
//! The compiler is nvcc: `NVCC`, else the one on `PATH`, else `$CUDA_HOME/bin/nvcc`, else that of a Python
//! environment (`VIRTUAL_ENV`) into which PyPI's packages were installed. If none is there and `CLANG` is
//! set, clang's NVPTX backend: no header of the CUDA SDK is included, so either will do.
//!
//! PTX is for sm_80 and later GPUs run it too. nvcc 13 writes the version of its own release into the header,
//! which drivers older than it refuse, though the text needs 8.0 only: the header is rewritten.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

const HOW_TO_GET_NVCC: &str = "\
    feature `cuda` needs nvcc to compile kernels/cuda/*.cu. Without a CUDA toolkit, get it from PyPI:\n\
    \n    python3 -m venv cuda-venv\n    \
    cuda-venv/bin/pip install 'nvidia-cuda-nvcc==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-crt==13.0.*' \
    'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*'\n    \
    export VIRTUAL_ENV=$PWD/cuda-venv\n\
    \n(or set NVCC to the compiler, or CLANG to a clang with the NVPTX target), or build without the feature";

/// The version of the PTX language that the kernels need, and drivers from 525 on accept.
const VERSION: &str = ".version 8.0";

fn main() {
    let directory = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("cuda");
    // The kernels and their headers, not the host's side beside them.
    let mut sources: Vec<PathBuf> =
        directory.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    sources.retain(|path| path.extension().is_some_and(|it| it == "cu" || it == "cuh"));
    for source in &sources {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    for name in ["NVCC", "CLANG", "CUDA_HOME", "VIRTUAL_ENV", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let compiler = Compiler::find().unwrap_or_else(|| panic!("{HOW_TO_GET_NVCC}"));
    if let Compiler::Nvcc(nvcc) = &compiler {
        // Where the tests that look at compiled code find ptxas.
        let folder = nvcc.parent().unwrap_or(Path::new(""));
        println!("cargo::rustc-env=CUDA_BIN={}", folder.display());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    for source in sources {
        let ptx = out.join(source.file_stem().unwrap()).with_extension("ptx");
        let mut command = compiler.command(&source, &ptx);
        let status = command.status().map(|status: ExitStatus| status.success());
        match status {
            Ok(true) => (),
            Ok(false) => panic!("{} does not compile: {command:?}", source.display()),
            Err(error) => panic!("cannot run {command:?}: {error}\n{HOW_TO_GET_NVCC}"),
        }
        rewrite(&ptx);
    }
}

enum Compiler {
    Nvcc(PathBuf),
    Clang(PathBuf),
}

impl Compiler {
    fn find() -> Option<Compiler> {
        if let Some(nvcc) = env::var_os("NVCC") {
            return Some(Compiler::Nvcc(nvcc.into()));
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
        folders.extend(env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin")));
        if let Some(venv) = env::var_os("VIRTUAL_ENV") {
            let lib = PathBuf::from(venv).join("lib").read_dir().ok();
            let pythons = lib.into_iter().flatten().flatten().map(|entry| entry.path());
            folders.extend(pythons.map(|python| python.join("site-packages/nvidia/cu13/bin")));
        }
        let nvcc =
            folders.into_iter().map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file());
        let clang = || env::var_os("CLANG").map(|clang| Compiler::Clang(clang.into()));
        nvcc.map(Compiler::Nvcc).or_else(clang)
    }

    /// No contraction of a·b + c: every product and sum is rounded as it is written, so that a kernel
    /// has its CPU reference's bits where both add in the same order, and one function has the same bits
    /// wherever it is inlined. Where a fused multiply-add is wanted, `fmaf` says so.
    fn command(&self, source: &Path, ptx: &Path) -> Command {
        match self {
            Compiler::Nvcc(nvcc) => {
                let mut command = Command::new(nvcc);
                command
                    .args([
                        "-ptx",
                        "-arch=compute_80",
                        "-O3",
                        "-std=c++17",
                        "-lineinfo",
                        "-fmad=false",
                    ])
                    .arg("-o")
                    .args([ptx, source]);
                command
            }
            Compiler::Clang(clang) => {
                let mut command = Command::new(clang);
                command
                    .args([
                        "-x",
                        "cuda",
                        "--cuda-device-only",
                        "--cuda-gpu-arch=sm_80",
                        "-nocudainc",
                    ])
                    .args([
                        "-nocudalib",
                        "-O3",
                        "-std=c++17",
                        "-gline-tables-only",
                        "-ffp-contract=off",
                    ])
                    .args(["-Xclang", "-target-feature", "-Xclang", "+ptx80", "-S"])
                    .arg("-o")
                    .args([ptx, source]);
                command
            }
        }
    }
}

/// Gives the text the version it needs, and drops the one thing in it that would need a later one: a
/// hint that some bytes of a vector load are not used.
fn rewrite(ptx: &Path) {
    let text = fs::read_to_string(ptx).unwrap();
    let lines = text.lines().filter(|line| !line.contains("used_bytes_mask"));
    let lines = lines.map(|line| if line.starts_with(".version ") { VERSION } else { line });
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    assert!(text.contains(VERSION), "{} has no version", ptx.display());
    fs::write(ptx, text).unwrap();
}
