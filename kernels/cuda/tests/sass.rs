//! What ptxas makes of every kernel: no spills, no local memory, registers within what the intended occupancy
//! leaves, and the instructions that a kernel relies on. For sm_80 and sm_90, and with an older ptxas if `OLD_PTXAS`
//! names one. Skipped, with a message, where the CUDA tools are not beside the nvcc that built this.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cuda::entries::{ENTRIES, Entry};

/// Threads of a block, blocks that a multiprocessor should hold, and of the compiled code, on sm_80 with CUDA 13.0:
/// mma, asynchronous copies, ldmatrix, and 128-bit global loads and stores.
const TABLE: &str = include_str!("sass.csv");

/// Columns of the table after the kernel's name.
struct Row {
    threads: usize,
    blocks: usize,
    instructions: [usize; 5],
}

fn table() -> BTreeMap<&'static str, Row> {
    let rows = TABLE.lines().filter(|line| !line.starts_with('#')).skip(1).map(|line| {
        let (name, numbers) = line.split_once(',').expect("a name and numbers");
        let numbers: Vec<usize> = numbers.split(',').map(|n| n.parse().unwrap()).collect();
        let instructions = numbers[2..].try_into().expect("five counts");
        (name, Row { threads: numbers[0], blocks: numbers[1], instructions })
    });
    rows.collect()
}

fn tool(name: &str) -> Option<PathBuf> {
    let beside = Path::new(option_env!("CUDA_BIN")?).join(name);
    beside.is_file().then_some(beside)
}

fn modules() -> BTreeMap<&'static str, &'static str> {
    ENTRIES.iter().map(|entry| (entry.stem, entry.module)).collect()
}

/// A folder that goes when this does.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("j1-sass-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Assembles PTX; returns what ptxas says of registers and memory.
fn assemble(ptxas: &Path, arch: &str, ptx: &str, cubin: &Path) -> String {
    let source = cubin.with_extension("ptx");
    std::fs::write(&source, ptx).unwrap();
    let mut command = Command::new(ptxas);
    command.args(["-v", "-arch", arch, "-o"]).args([cubin, &source]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}\n{text}");
    text
}

/// Registers by kernel; asserts that nothing is spilled and no stack is used.
fn registers(verbose: &str, arch: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    let mut kernel = "";
    for line in verbose.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().unwrap();
        }
        if line.contains("bytes stack frame") {
            let clean = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
            assert_eq!(line.trim(), clean, "{kernel} on {arch}");
        }
        if let Some((before, _)) = line.split_once(" registers") {
            let number = before.rsplit(' ').next().unwrap().parse().unwrap();
            found.insert(kernel.to_string(), number);
        }
    }
    found
}

/// Instructions by kernel, from nvdisasm's text.
fn instructions(sass: &str) -> BTreeMap<String, [usize; 6]> {
    let mut found = BTreeMap::new();
    let mut kernel = String::new();
    for line in sass.lines() {
        if let Some(label) = line.trim().strip_prefix(".text.") {
            kernel = label.trim_end_matches(':').to_string();
        }
        let code = line.split("*/").nth(1).unwrap_or(line).trim();
        let mut words = code.split_whitespace().skip_while(|word| word.starts_with('@'));
        let operation = words.next().unwrap_or_default();
        let counts: &mut [usize; 6] = found.entry(kernel.clone()).or_default();
        let is = |name: &str| operation.split('.').next() == Some(name);
        let wide = operation.split('.').any(|part| part == "128");
        counts[0] += usize::from(is("HMMA"));
        counts[1] += usize::from(is("LDGSTS"));
        counts[2] += usize::from(is("LDSM"));
        counts[3] += usize::from(is("LDG") && wide);
        counts[4] += usize::from(is("STG") && wide);
        counts[5] += usize::from(is("LDL") || is("STL"));
    }
    found
}

#[test]
fn every_kernel_assembles_without_spills_within_its_registers() {
    let (Some(ptxas), Some(nvdisasm)) = (tool("ptxas"), tool("nvdisasm")) else {
        crate::shared::skipped("no ptxas and nvdisasm are beside nvcc");
        return;
    };
    let table = table();
    let folder = Folder::new("assemble");
    let (mut seen, mut printed, mut wrong) = (0, String::new(), Vec::new());
    for (stem, ptx) in modules() {
        let cubin = folder.0.join(stem).with_extension("cubin");
        registers(&assemble(&ptxas, "sm_90", ptx, &cubin), "sm_90");
        if let Some(old) = std::env::var_os("OLD_PTXAS") {
            registers(&assemble(Path::new(&old), "sm_80", ptx, &cubin), "sm_80, old ptxas");
        }
        let registers = registers(&assemble(&ptxas, "sm_80", ptx, &cubin), "sm_80");
        let output = Command::new(&nvdisasm).arg("-c").arg(&cubin).output().unwrap();
        assert!(output.status.success(), "nvdisasm {stem}");
        let instructions = instructions(&String::from_utf8_lossy(&output.stdout));
        let of_stem = |entry: &&&Entry| entry.stem == stem;
        for Entry { symbol, .. } in ENTRIES.iter().filter(of_stem) {
            seen += 1;
            let (registers, counts) = (registers[*symbol], instructions[*symbol]);
            assert_eq!(counts[5], 0, "{symbol} uses local memory");
            let columns =
                |counts: &[usize]| counts.iter().map(|n| format!(",{n}")).collect::<String>();
            let Some(row) = table.get(symbol) else {
                wrong.push(format!("{symbol} is not in sass.csv"));
                printed += &format!("{symbol},0,0{}\n", columns(&counts[..5]));
                continue;
            };
            printed +=
                &format!("{symbol},{},{}{}\n", row.threads, row.blocks, columns(&counts[..5]));
            // The register file has 65,536; a thread gets eights of them.
            let budget = (65_536 / (row.threads * row.blocks) / 8 * 8).min(255);
            if registers > budget {
                wrong.push(format!(
                    "{symbol}: {registers} registers, {budget} for {} blocks",
                    row.blocks
                ));
            }
            if counts[..5] != row.instructions {
                wrong.push(format!("{symbol}: {:?}, not {:?}", &counts[..5], row.instructions));
            }
        }
    }
    assert_eq!(seen, ENTRIES.len());
    assert!(wrong.is_empty(), "{wrong:#?}\nfound:\n{printed}");
    assert_eq!(table.len(), seen, "sass.csv names kernels that are gone");
}
