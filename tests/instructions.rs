//! Instructions per multiply-add of the hottest kernels, counted by valgrind's callgrind: they may not grow by more
//! than a tenth over tests/instructions.csv.
//!
//! Counts do not depend on what else the machine does, so a change that makes the compiler forget a vector is seen
//! where timings are not to be trusted. Valgrind knows no AVX-512: the AVX2 and the portable variant are counted, in
//! the profile that the tests were built with. `J1_RECORD_INSTRUCTIONS=1` writes this profile's counts anew.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use crate::shared::skipped;

use half::bf16;
use kernels::cpu::{
    ComputeDtype, Cpu, Isa, Matrix, adamw,
    attention::{self, Cache, PAGE, Saved, Shape, Span, Tree},
    matmul, rms_norm, swiglu,
};

/// Growth that is allowed over the recorded count.
const GROWTH: f64 = 1.1;

const ISAS: [Isa; 2] = [Isa::Portable, Isa::Avx2];

/// Says to the counted program that it is one.
const COUNTED: &str = "J1_COUNTED";

const PROFILE: &str = if cfg!(debug_assertions) { "dev" } else { "release" };

/// A kernel on fixed operands, and the multiply-adds (or elements) that one call has.
struct Subject {
    name: &'static str,
    per_call: usize,
    call: Box<dyn FnMut(&Cpu)>,
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect()
}

fn halves(len: usize) -> Vec<bf16> {
    values(len).into_iter().map(bf16::from_f32).collect()
}

fn matmul_forward([m, n, k]: [usize; 3]) -> Box<dyn FnMut(&Cpu)> {
    let (mut y, x, w) = (vec![0.0; m * n], values(m * k), halves(n * k));
    Box::new(move |cpu| {
        matmul::forward(cpu, &mut y, &x, Matrix::Bf16(&w), [m, n, k], ComputeDtype::Bf16, false);
    })
}

fn matmul_backward([m, n, k]: [usize; 3]) -> Box<dyn FnMut(&Cpu)> {
    let (mut dx, dy, w) = (vec![0.0; m * k], values(m * n), halves(n * k));
    Box::new(move |cpu| {
        matmul::backward(
            cpu,
            &mut dx,
            &dy,
            Matrix::Bf16(&w),
            [m, n, k],
            ComputeDtype::Bf16,
            false,
            None,
        );
    })
}

const SHAPE: Shape = Shape { heads: 4, kv_heads: 2, head_dim: 64 };

/// The last `rows` of `context` tokens attend to all before them.
fn attention_forward(rows: usize, context: usize) -> Box<dyn FnMut(&Cpu)> {
    let width = SHAPE.heads * SHAPE.head_dim;
    let pages = context.div_ceil(PAGE);
    let cache = halves(pages * PAGE * SHAPE.kv_heads * SHAPE.head_dim);
    let (mut out, q) = (vec![0.0; rows * width], values(rows * width));
    let tables: Vec<u32> = (0..pages as u32).collect();
    let first_position = context - rows;
    let spans = [Span { first_row: 0, rows, first_position, table: 0..pages }];
    Box::new(move |cpu| {
        let cache = Cache::Bf16 { keys: &cache, values: &cache };
        attention::forward(cpu, &mut out, None, &q, cache, &tables, &spans, SHAPE);
    })
}

fn attention_backward(rows: usize) -> Box<dyn FnMut(&Cpu)> {
    let (width, kv_width) = (SHAPE.heads * SHAPE.head_dim, SHAPE.kv_heads * SHAPE.head_dim);
    let (q, kv, log_sums) =
        (values(rows * width), values(rows * kv_width), vec![5.0; rows * SHAPE.heads]);
    let mut gradients = [width, kv_width, kv_width].map(|width| vec![0.0; rows * width]);
    let trees = [Tree::of_prompt(0, rows, &[])];
    Box::new(move |cpu| {
        let [dq, dk, dv] = &mut gradients;
        let saved = Saved { q: &q, k: &kv, v: &kv, y: &q, log_sums: &log_sums, rounded: true };
        attention::backward(cpu, [dq, dk, dv], &q, saved, &trees, SHAPE);
    })
}

fn subjects() -> Vec<Subject> {
    let pairs = |rows: usize, context: usize| {
        rows * (2 * context - rows + 1) / 2 * SHAPE.heads * SHAPE.head_dim
    };
    let n = 64 * 1024;
    let (x, w) = (values(n), values(1024));
    let (mut normed, mut gated, gate, up) = (vec![0.0; n], vec![0.0; n], values(n), values(n));
    let [mut p, mut m, mut v] = [(); 3].map(|()| vec![0.5; n]);
    let gradient = values(n);
    let step = adamw::Step {
        scale: 1.0,
        decay: 0.999,
        first_weight: 0.1,
        second_decay: 0.999,
        second_weight: 0.001,
        correction: 0.5,
        epsilon: 1e-8,
        step_size: 1e-5,
    };
    let subject = |name, per_call, call| Subject { name, per_call, call };
    vec![
        subject("matmul/m1-n256-k1024-bf16", 256 * 1024, matmul_forward([1, 256, 1024])),
        subject("matmul/m48-n64-k512-bf16", 48 * 64 * 512, matmul_forward([48, 64, 512])),
        subject("matmul/backward-m48-n64-k512-bf16", 48 * 64 * 512, matmul_backward([48, 64, 512])),
        subject("attention/decode-c512", 2 * pairs(1, 512), attention_forward(1, 512)),
        subject("attention/prefill-t128", 2 * pairs(128, 128), attention_forward(128, 128)),
        subject("attention/backward-p96", 5 * pairs(96, 96), attention_backward(96)),
        subject(
            "rms_norm/n1024",
            n,
            Box::new(move |cpu| rms_norm::forward(cpu, &mut normed, &x, &w, 1e-6)),
        ),
        subject(
            "swiglu/n65536",
            n,
            Box::new(move |cpu| {
                swiglu::forward(cpu, &mut gated, swiglu::Inputs::F32([&gate, &up]))
            }),
        ),
        subject(
            "adamw/n65536",
            n,
            Box::new(move |cpu| adamw::step(cpu, &mut p, &mut m, &mut v, &gradient, &step)),
        ),
    ]
}

/// Callgrind counts what runs in here.
#[inline(never)]
fn counted_call(subject: &mut Subject, cpu: &Cpu) {
    (subject.call)(cpu);
    written_down();
    // Not the last thing in here, or the call might become a jump.
    std::hint::black_box(cpu);
}

/// Where callgrind writes down what it counted, and begins at 0 again.
#[inline(never)]
fn written_down() {
    std::hint::black_box(());
}

/// What runs under valgrind. The first call of each subject makes room in scratch memory, and is not counted.
#[test]
fn counted_program() {
    if std::env::var_os(COUNTED).is_none() {
        return;
    }
    for isa in ISAS {
        let cpu = Cpu::with_isa(1, isa);
        for mut subject in subjects() {
            (subject.call)(&cpu);
            counted_call(&mut subject, &cpu);
        }
    }
}

/// Instructions per multiply-add or element, by kernel and instruction set; `None` without valgrind.
fn count() -> Option<Vec<(String, f64)>> {
    let directory = tempfile::tempdir().unwrap();
    let function = |name| format!("*{}::{name}*", module_path!());
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={}", function("counted_call")))
        .arg(format!("--dump-before={}", function("written_down")))
        .arg(format!("--callgrind-out-file={}/out", directory.path().display()))
        .arg(std::env::current_exe().unwrap())
        .args(["instructions::counted_program", "--exact", "--test-threads=1"])
        .env(COUNTED, "1")
        .output()
        .ok()?;
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "valgrind failed:\n{log}");
    let names = ISAS.into_iter().flat_map(|isa| {
        subjects().into_iter().map(move |subject| (format!("{}/{isa}", subject.name), subject))
    });
    let counts = names.enumerate().map(|(index, (name, subject))| {
        // Parts are numbered from 1.
        let path = directory.path().join(format!("out.{}", index + 1));
        let text =
            fs::read_to_string(&path).unwrap_or_else(|_| panic!("no count of {name}:\n{log}"));
        let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
        let totals: f64 = totals.expect("callgrind says totals").trim().parse().unwrap();
        (name, totals / subject.per_call as f64)
    });
    Some(counts.collect())
}

/// The recorded counts: kernel with instruction set, profile, count.
fn recorded(path: &Path) -> Vec<(String, String, f64)> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let row = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let [name, profile, count] = fields[..] else { panic!("{line}: not name,profile,count") };
        (name.to_owned(), profile.to_owned(), count.parse().unwrap())
    };
    text.lines().skip(1).map(row).collect()
}

#[test]
fn kernels_take_no_more_instructions_than_recorded() {
    if !Isa::Avx2.is_available() {
        skipped("this CPU has no AVX2");
        return;
    }
    let Some(counts) = count() else {
        skipped("there is no valgrind to count with");
        return;
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/instructions.csv");
    let mut all = recorded(&path);
    if std::env::var_os("J1_RECORD_INSTRUCTIONS").is_some() {
        all.retain(|(_, profile, _)| profile != PROFILE);
        all.extend(counts.into_iter().map(|(name, count)| (name, PROFILE.to_owned(), count)));
        let mut text = "kernel,profile,instructions\n".to_owned();
        for (name, profile, count) in all {
            writeln!(text, "{name},{profile},{count:.4}").unwrap();
        }
        fs::write(path, text).unwrap();
        return;
    }
    let mut grown = String::new();
    for (name, count) in counts {
        let old = all.iter().find(|(old, profile, _)| *old == name && profile == PROFILE);
        let (_, _, old) = old.unwrap_or_else(|| panic!("{name} is not in {}", path.display()));
        if count > GROWTH * old {
            writeln!(grown, "{name}: {count:.3} instructions, recorded are {old:.3}").unwrap();
        }
    }
    assert!(
        grown.is_empty(),
        "more instructions per multiply-add or element:\n{grown}If that is meant, record them with \
         J1_RECORD_INSTRUCTIONS=1 cargo test instructions (and with --release)"
    );
}
