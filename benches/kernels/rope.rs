//! The rotation of heads, alone and behind QK-norm.

use kernels::{
    cpu::{
        Cpu, rms_norm,
        rope::{self, RopeTable},
    },
    cuda::Buffer,
};

use super::{
    HEAD_DIM, HEADS, KV_HEADS, Run, Suite,
    elements::{EPS, ROWS, normed, passes},
    naive::{Exact, sampled, values},
    rounded::Case,
};

pub(crate) fn bench(suite: &mut Suite) {
    for rows in ROWS {
        rotate(suite, rows, false);
        rotate_rounded(suite, rows);
        norm_and_rotate(suite, rows);
        norm_and_rotate_rounded(suite, rows);
    }
    rotate(suite, 512, true);
}

/// Positions that tables have.
const POSITIONS: usize = 4096;

const HALF: usize = HEAD_DIM / 2;

fn frequency(i: usize) -> f32 {
    1e6f64.powf(-(i as f64) / HALF as f64) as f32
}

fn frequencies() -> Vec<f32> {
    (0..HALF).map(frequency).collect()
}

fn position(row: usize) -> u32 {
    row as u32 + 100
}

fn positions(rows: usize) -> Vec<u32> {
    (0..rows).map(position).collect()
}

/// An element of x `[rows, heads, HEAD_DIM]` after the rotation, or the one back.
fn rotated(x: impl Fn(usize) -> f64, index: usize, heads: usize, back: bool) -> Exact {
    let (row, i) = (index / (heads * HEAD_DIM), index % HEAD_DIM);
    // PyTorch has the angle in f32, and so have we.
    let angle = f64::from(position(row) as f32 * frequency(i % HALF));
    let sine = if back { -angle.sin() } else { angle.sin() };
    let other = if i < HALF { -x(index + HALF) } else { x(index - HALF) };
    Exact::sum([x(index) * angle.cos(), other * sine].into_iter())
}

fn rotate(suite: &mut Suite, rows: usize, backward: bool) {
    let id = format!("{}r{rows}-h{HEADS}-d{HEAD_DIM}", if backward { "backward-" } else { "" });
    let inputs = move || values(1, rows * HEADS * HEAD_DIM);
    let check = |x: &[f32], id: &str| {
        let old = inputs();
        for index in sampled(x.len()) {
            let exact = rotated(|i| old[i].into(), index, HEADS, backward);
            // Cosine, sine and products are rounded as well.
            exact.check_within(x[index], 4.0 * f64::from(f32::EPSILON), id, index);
        }
    };
    let work = passes(2 * rows * HEADS * HEAD_DIM);
    suite.bench("rope", id.clone(), work, |cpu| -> Run<'_> {
        let (table, positions) = (RopeTable::new(&frequencies(), 1.0, POSITIONS), positions(rows));
        let kernel = if backward { rope::backward } else { rope::forward };
        let mut x = inputs();
        kernel(cpu, &mut x, &positions, &table, HEADS);
        check(&x, &id);
        Box::new(move || kernel(cpu, &mut x, &positions, &table, HEADS))
    });
    suite.bench_cuda("rope", id.clone(), work, |gpu| {
        let table = gpu.rope_table(&frequencies(), 1.0, POSITIONS)?;
        let (positions, mut x) = (gpu.upload(&positions(rows))?, gpu.upload(&inputs())?);
        gpu.rope(&mut x, &positions, &table, backward)?;
        check(&gpu.download(&x)?, &id);
        Ok(Box::new(move || gpu.rope(&mut x, &positions, &table, backward)))
    });
}

/// From x into y, which a CPU, that rotates in place, copies x to.
fn rotate_rounded(suite: &mut Suite, rows: usize) {
    let (id, len) = (format!("r{rows}-h{HEADS}-d{HEAD_DIM}-bf16"), rows * HEADS * HEAD_DIM);
    Case { kernel: "rope", id, len, read: 4 }.bench(
        suite,
        || {
            let x = values(1, len);
            move |index| [rotated(|i| x[i].into(), index, HEADS, false)]
        },
        || {
            let (table, positions) =
                (RopeTable::new(&frequencies(), 1.0, POSITIONS), positions(rows));
            let x = values(1, len);
            move |cpu: &Cpu, [y]: &mut [Vec<f32>; 1]| {
                y.copy_from_slice(&x);
                rope::forward(cpu, y, &positions, &table, HEADS);
            }
        },
        |gpu| {
            let table = gpu.rope_table(&frequencies(), 1.0, POSITIONS)?;
            let (positions, x) = (gpu.upload(&positions(rows))?, gpu.upload(&values(1, len))?);
            Ok(move |[y]: &mut [Buffer<u16>; 1]| gpu.rope_into(y, &x, &positions, &table))
        },
    );
}

/// QK-norm and the rotation of keys, which stay f32.
fn norm_and_rotate(suite: &mut Suite, rows: usize) {
    let (id, len) = (format!("norm-r{rows}-h{KV_HEADS}-d{HEAD_DIM}"), rows * KV_HEADS * HEAD_DIM);
    let inputs = move || (values(1, len), values(2, HEAD_DIM));
    let check = |y: &[f32], id: &str| {
        let (x, w) = inputs();
        for index in sampled(len) {
            let exact = rotated(|i| normed(&x, &w, i), index, KV_HEADS, false);
            // The norm's rounding, and the rotation's.
            exact.check_within(y[index], 12.0 * f64::from(f32::EPSILON), id, index);
        }
    };
    suite.bench("rope", id.clone(), passes(2 * len), |cpu| -> Run<'_> {
        let (table, positions) = (RopeTable::new(&frequencies(), 1.0, POSITIONS), positions(rows));
        let (x, w) = inputs();
        let mut y = vec![f32::NAN; len];
        let run = move |y: &mut [f32]| {
            rms_norm::forward(cpu, y, &x, &w, EPS);
            rope::forward(cpu, y, &positions, &table, KV_HEADS);
        };
        run(&mut y);
        check(&y, &id);
        Box::new(move || run(&mut y))
    });
    suite.bench_cuda("rope", id.clone(), passes(2 * len), |gpu| {
        let (x, w) = inputs();
        let (x, w) = (gpu.upload(&x)?, gpu.upload(&w)?);
        let table = gpu.rope_table(&frequencies(), 1.0, POSITIONS)?;
        let positions = gpu.upload(&positions(rows))?;
        let mut y = gpu.uninitialized::<f32>(len)?;
        gpu.rope_norm(&mut y, &x, &w, EPS, &positions, &table)?;
        check(&gpu.download(&y)?, &id);
        Ok(Box::new(move || gpu.rope_norm(&mut y, &x, &w, EPS, &positions, &table)))
    });
}

/// The same of queries, for attention.
fn norm_and_rotate_rounded(suite: &mut Suite, rows: usize) {
    let (id, len) = (format!("norm-r{rows}-h{HEADS}-d{HEAD_DIM}-bf16"), rows * HEADS * HEAD_DIM);
    let inputs = move || (values(1, len), values(2, HEAD_DIM));
    Case { kernel: "rope", id, len, read: 4 }.bench(
        suite,
        || {
            let (x, w) = inputs();
            move |index| [rotated(|i| normed(&x, &w, i), index, HEADS, false)]
        },
        || {
            let (table, positions) =
                (RopeTable::new(&frequencies(), 1.0, POSITIONS), positions(rows));
            let (x, w) = inputs();
            move |cpu: &Cpu, [y]: &mut [Vec<f32>; 1]| {
                rms_norm::forward(cpu, y, &x, &w, EPS);
                rope::forward(cpu, y, &positions, &table, HEADS);
            }
        },
        |gpu| {
            let (x, w) = inputs();
            let (x, w) = (gpu.upload(&x)?, gpu.upload(&w)?);
            let table = gpu.rope_table(&frequencies(), 1.0, POSITIONS)?;
            let positions = gpu.upload(&positions(rows))?;
            Ok(move |[y]: &mut [Buffer<u16>; 1]| gpu.rope_norm(y, &x, &w, EPS, &positions, &table))
        },
    );
}
