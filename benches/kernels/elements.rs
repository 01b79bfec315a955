//! Kernels that pass once over their operands: norms, activations, rows, sums, dropout, the optimizer.

use half::{bf16, slice::HalfFloatSliceExt as _};
use kernels::cpu::{
    Matrix, adamw, add, dropout, embedding,
    gather::{self, Places},
    norm,
    philox::{RngKey, Stream},
    rms_norm, swiglu,
};

use super::{
    HEAD_DIM, HEADS, KV_HEADS, LAYERS, MODELS, RANK, Run, Suite, VOCAB, Widths, Work,
    naive::{Exact, halves, sampled, values},
};

/// Rows of a decoding step, and of a training batch.
pub(crate) const ROWS: [usize; 2] = [1, 512];

pub(crate) const EPS: f32 = 1e-6;

pub(crate) fn bench(suite: &mut Suite) {
    for widths in MODELS {
        let Widths { hidden, inner } = widths;
        for rows in ROWS {
            rms_norm_forward(suite, rows, hidden);
            swiglu_forward(suite, rows * inner);
            embed(suite, rows, hidden);
        }
        rms_norm_backward(suite, 512, hidden);
        swiglu_backward(suite, 512 * inner);
        take(suite, 512, hidden);
        take_back(suite, 512, hidden);
        sum(suite, 512 * hidden);
        drop_out(suite, 512 * hidden);
        let len = adapter_len(widths);
        square(suite, len);
        step(suite, len);
    }
    for rows in ROWS {
        rms_norm_forward(suite, rows * HEADS, HEAD_DIM);
    }
    rms_norm_backward(suite, 512 * HEADS, HEAD_DIM);
    draw_words(suite, 1 << 16);
}

/// Parameters of an adapter on every projection.
fn adapter_len(Widths { hidden, inner }: Widths) -> usize {
    let (query, key_value) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    LAYERS * RANK * (2 * (hidden + query) + 2 * (hidden + key_value) + 3 * (hidden + inner))
}

/// `count` f32 values read or written.
pub(crate) fn passes(count: usize) -> Work {
    Work { bytes: 4.0 * count as f64, ..Work::default() }
}

fn widened(x: &[f32]) -> impl Iterator<Item = f64> {
    x.iter().map(|x| f64::from(*x))
}

/// An element of the norm of x's rows, which are as long as w.
pub(crate) fn normed(x: &[f32], w: &[f32], index: usize) -> f64 {
    let n = w.len();
    let mean = widened(&x[index / n * n..][..n]).map(|x| x * x).sum::<f64>() / n as f64;
    f64::from(x[index]) * f64::from(w[index % n]) / (mean + f64::from(EPS)).sqrt()
}

fn rms_norm_forward(suite: &mut Suite, rows: usize, n: usize) {
    let id = format!("r{rows}-n{n}");
    let inputs = move || (values(1, rows * n), values(2, n));
    let check = move |y: &[f32], id: &str| {
        let (x, w) = inputs();
        for index in sampled(rows * n) {
            Exact::of(normed(&x, &w, index)).check(y[index], id, index);
        }
    };
    suite.bench("rms_norm", id.clone(), passes(2 * rows * n), |cpu| -> Run<'_> {
        let (x, w) = inputs();
        let mut y = vec![f32::NAN; rows * n];
        rms_norm::forward(cpu, &mut y, &x, &w, EPS);
        check(&y, &id);
        Box::new(move || rms_norm::forward(cpu, &mut y, &x, &w, EPS))
    });
    suite.bench_cuda("rms_norm", id.clone(), passes(2 * rows * n), |gpu| {
        let (x, w) = inputs();
        let (x, w) = (gpu.upload(&x)?, gpu.upload(&w)?);
        let mut y = gpu.uninitialized::<f32>(rows * n)?;
        gpu.rms_norm(&mut y, &x, &w, EPS)?;
        check(&gpu.download(&y)?, &id);
        Ok(Box::new(move || gpu.rms_norm(&mut y, &x, &w, EPS)))
    });
}

fn rms_norm_backward(suite: &mut Suite, rows: usize, n: usize) {
    let id = format!("backward-r{rows}-n{n}");
    let inputs = move || (values(1, rows * n), values(2, n), values(3, rows * n));
    let check = move |dx: &[f32], id: &str| {
        let (x, w, dy) = inputs();
        for index in sampled(rows * n) {
            let row = index / n * n..index / n * n + n;
            let mean = widened(&x[row.clone()]).map(|x| x * x).sum::<f64>() / n as f64;
            let r = (mean + f64::from(EPS)).powf(-0.5);
            let weighted = widened(&dy[row.clone()]).zip(widened(&w)).zip(widened(&x[row]));
            let scale = f64::from(x[index]) * r.powi(3) / n as f64;
            let own = r * f64::from(w[index % n]) * f64::from(dy[index]);
            let terms = weighted.map(|((dy, w), x)| -scale * dy * w * x);
            Exact::sum(std::iter::once(own).chain(terms)).check(dx[index], id, index);
        }
    };
    suite.bench("rms_norm", id.clone(), passes(3 * rows * n), |cpu| -> Run<'_> {
        let (x, w, dy) = inputs();
        let mut dx = vec![f32::NAN; rows * n];
        rms_norm::backward(cpu, &mut dx, &dy, &x, &w, EPS);
        check(&dx, &id);
        Box::new(move || rms_norm::backward(cpu, &mut dx, &dy, &x, &w, EPS))
    });
    suite.bench_cuda("rms_norm", id.clone(), passes(3 * rows * n), |gpu| {
        let (x, w, dy) = inputs();
        let (x, w, dy) = (gpu.upload(&x)?, gpu.upload(&w)?, gpu.upload(&dy)?);
        let mut dx = gpu.uninitialized(rows * n)?;
        gpu.rms_norm_backward(&mut dx, &dy, &x, &w, EPS, false)?;
        check(&gpu.download(&dx)?, &id);
        Ok(Box::new(move || gpu.rms_norm_backward(&mut dx, &dy, &x, &w, EPS, false)))
    });
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// silu(gate)·up.
pub(crate) fn gated(gate: f64, up: f64) -> f64 {
    gate * sigmoid(gate) * up
}

/// Its derivatives by gate and by up.
pub(crate) fn swiglu_derivatives(gate: f64, up: f64) -> [f64; 2] {
    let s = sigmoid(gate);
    [up * s * (1.0 + gate * (1.0 - s)), gate * s]
}

fn swiglu_forward(suite: &mut Suite, len: usize) {
    let id = format!("n{len}");
    let inputs = move || (values(1, len), values(2, len));
    let check = move |y: &[f32], id: &str| {
        let (gate, up) = inputs();
        for index in sampled(len) {
            let [g, u] = [&gate, &up].map(|x| f64::from(x[index]));
            Exact::of(gated(g, u)).check(y[index], id, index);
        }
    };
    suite.bench("swiglu", id.clone(), passes(3 * len), |cpu| -> Run<'_> {
        let (gate, up) = inputs();
        let mut y = vec![f32::NAN; len];
        swiglu::forward(cpu, &mut y, swiglu::Inputs::F32([&gate, &up]));
        check(&y, &id);
        Box::new(move || swiglu::forward(cpu, &mut y, swiglu::Inputs::F32([&gate, &up])))
    });
    suite.bench_cuda("swiglu", id.clone(), passes(3 * len), |gpu| {
        let (gate, up) = inputs();
        let (gate, up) = (gpu.upload(&gate)?, gpu.upload(&up)?);
        let mut y = gpu.uninitialized::<f32>(len)?;
        gpu.swiglu(&mut y, &gate, &up)?;
        check(&gpu.download(&y)?, &id);
        Ok(Box::new(move || gpu.swiglu(&mut y, &gate, &up)))
    });
}

fn swiglu_backward(suite: &mut Suite, len: usize) {
    let id = format!("backward-n{len}");
    let inputs = move || (values(1, len), values(2, len), values(3, len));
    let check = move |dgate: &[f32], dup: &[f32], id: &str| {
        let (gate, up, dy) = inputs();
        for index in sampled(len) {
            let [g, u, dy] = [&gate, &up, &dy].map(|x| f64::from(x[index]));
            let [to_gate, to_up] = swiglu_derivatives(g, u);
            Exact::of(dy * to_gate).check(dgate[index], id, index);
            Exact::of(dy * to_up).check(dup[index], id, index);
        }
    };
    suite.bench("swiglu", id.clone(), passes(5 * len), |cpu| -> Run<'_> {
        let (gate, up, dy) = inputs();
        let mut gradients = [(); 2].map(|()| vec![f32::NAN; len]);
        let [dgate, dup] = &mut gradients;
        swiglu::backward(cpu, [dgate, dup], &dy, swiglu::Inputs::F32([&gate, &up]));
        check(dgate, dup, &id);
        Box::new(move || {
            let [dgate, dup] = &mut gradients;
            swiglu::backward(cpu, [dgate, dup], &dy, swiglu::Inputs::F32([&gate, &up]));
        })
    });
    suite.bench_cuda("swiglu", id.clone(), passes(5 * len), |gpu| {
        let (gate, up, dy) = inputs();
        let (gate, up, dy) = (gpu.upload(&gate)?, gpu.upload(&up)?, gpu.upload(&dy)?);
        let (mut dgate, mut dup) = (gpu.uninitialized::<f32>(len)?, gpu.uninitialized(len)?);
        gpu.swiglu_backward([&mut dgate, &mut dup], &dy, &gate, &up)?;
        check(&gpu.download(&dgate)?, &gpu.download(&dup)?, &id);
        Ok(Box::new(move || gpu.swiglu_backward([&mut dgate, &mut dup], &dy, &gate, &up)))
    });
}

fn embed(suite: &mut Suite, rows: usize, n: usize) {
    let id = format!("r{rows}-n{n}-bf16");
    let work = Work { bytes: (rows * n * 6) as f64, ..Work::default() };
    let ids = move || -> Vec<u32> { (0..rows).map(|i| (i * 7919 % VOCAB) as u32).collect() };
    let check = move |y: &[f32], table: &[bf16], id: &str| {
        for index in sampled(rows * n) {
            let exact = table[ids()[index / n] as usize * n + index % n];
            Exact::of(exact.to_f64()).check_within(y[index], 0.0, id, index);
        }
    };
    suite.bench("embedding", id.clone(), work, |cpu| -> Run<'_> {
        let (table, ids) = (halves(1, VOCAB * n), ids());
        let mut y = vec![f32::NAN; rows * n];
        embedding::forward(cpu, &mut y, &ids, Matrix::Bf16(&table), n);
        check(&y, &table, &id);
        Box::new(move || embedding::forward(cpu, &mut y, &ids, Matrix::Bf16(&table), n))
    });
    suite.bench_cuda("embedding", id.clone(), work, |gpu| {
        let (table, ids) = (halves(1, VOCAB * n), gpu.upload(&ids())?);
        let there = gpu.upload::<u16>(table.reinterpret_cast())?;
        let mut y = gpu.uninitialized(rows * n)?;
        gpu.embedding(&mut y, &ids, &there, n)?;
        check(&gpu.download(&y)?, &table, &id);
        Ok(Box::new(move || gpu.embedding(&mut y, &ids, &there, n)))
    });
}

/// The rows that a gather takes of twice as many: a quarter of them, each two times.
fn taken(rows: usize) -> Vec<u32> {
    (0..rows).map(|i| (i / 2 * 7919 % (2 * rows)) as u32).collect()
}

fn take(suite: &mut Suite, rows: usize, n: usize) {
    let id = format!("r{rows}-n{n}");
    let inputs = move || (values(1, 2 * rows * n), taken(rows));
    let check = move |y: &[f32], id: &str| {
        let (x, from) = inputs();
        for index in sampled(rows * n) {
            let exact = f64::from(x[from[index / n] as usize * n + index % n]);
            Exact::of(exact).check_within(y[index], 0.0, id, index);
        }
    };
    let work = passes((rows / 2 + rows) * n);
    suite.bench("gather", id.clone(), work, |cpu| -> Run<'_> {
        let (x, from) = inputs();
        let mut y = vec![f32::NAN; rows * n];
        gather::forward(cpu, &mut y, &x, &from, n);
        check(&y, &id);
        Box::new(move || gather::forward(cpu, &mut y, &x, &from, n))
    });
    suite.bench_cuda("gather", id.clone(), work, |gpu| {
        let (x, from) = inputs();
        let (x, from) = (gpu.upload(&x)?, gpu.upload(&from)?);
        let mut y = gpu.uninitialized(rows * n)?;
        gpu.gather(&mut y, &x, &from, n)?;
        check(&gpu.download(&y)?, &id);
        Ok(Box::new(move || gpu.gather(&mut y, &x, &from, n)))
    });
}

fn take_back(suite: &mut Suite, rows: usize, n: usize) {
    let id = format!("backward-r{rows}-n{n}");
    let len = 2 * rows * n;
    let inputs = move || (values(1, rows * n), Places::new(&taken(rows), 2 * rows));
    let check = move |dx: &[f32], id: &str| {
        let (dy, from) = (values(1, rows * n), taken(rows));
        // Some of any row, and some of a row that was taken.
        for index in sampled(len).chain(sampled(n).map(|i| from[rows / 2] as usize * n + i)) {
            let sources = (0..rows).filter(|&i| from[i] as usize == index / n);
            let exact = Exact::sum(sources.map(|i| f64::from(dy[i * n + index % n])));
            exact.check(dx[index], id, index);
        }
    };
    let work = passes(rows * n + len);
    suite.bench("gather", id.clone(), work, |cpu| -> Run<'_> {
        let (dy, places) = inputs();
        let mut dx = vec![f32::NAN; len];
        gather::backward(cpu, &mut dx, &dy, &places, n);
        check(&dx, &id);
        Box::new(move || gather::backward(cpu, &mut dx, &dy, &places, n))
    });
    suite.bench_cuda("gather", id.clone(), work, |gpu| {
        let (dy, places) = inputs();
        let dy = gpu.upload(&dy)?;
        let lists = [gpu.upload(&places.starts)?, gpu.upload(&places.sources)?];
        let mut dx = gpu.uninitialized(len)?;
        gpu.gather_backward(&mut dx, &dy, lists.each_ref(), n)?;
        check(&gpu.download(&dx)?, &id);
        Ok(Box::new(move || gpu.gather_backward(&mut dx, &dy, lists.each_ref(), n)))
    });
}

fn sum(suite: &mut Suite, len: usize) {
    let id = format!("n{len}");
    let inputs = move || (values(1, len), values(2, len));
    let check = move |y: &[f32], id: &str| {
        let (old, x) = inputs();
        for index in sampled(len) {
            let terms = [&old, &x].map(|x| f64::from(x[index]));
            Exact::sum(terms.into_iter()).check(y[index], id, index);
        }
    };
    suite.bench("add", id.clone(), passes(3 * len), |cpu| -> Run<'_> {
        let (mut y, x) = inputs();
        add::accumulate(cpu, &mut y, &x);
        check(&y, &id);
        Box::new(move || add::accumulate(cpu, &mut y, &x))
    });
    suite.bench_cuda("add", id.clone(), passes(3 * len), |gpu| {
        let (y, x) = inputs();
        let (mut y, x) = (gpu.upload(&y)?, gpu.upload(&x)?);
        gpu.add(&mut y, &x)?;
        check(&gpu.download(&y)?, &id);
        Ok(Box::new(move || gpu.add(&mut y, &x)))
    });
}

pub(crate) const MASK: dropout::Mask =
    dropout::Mask { key: RngKey::new(1, 2, Stream::DROPOUT), probability: 0.1 };

fn drop_out(suite: &mut Suite, len: usize) {
    let id = format!("n{len}");
    let check = move |y: &[f32], id: &str| {
        let x = values(1, len);
        let dropped = y.iter().filter(|y| **y == 0.0).count() as f64;
        let expected = 0.1 * len as f64;
        // Four deviations of a binomial variable.
        assert!(
            (dropped - expected).abs() < 4.0 * (0.9 * expected).sqrt(),
            "{id}: {dropped} are 0"
        );
        for index in (0..len).filter(|&index| y[index] != 0.0).take(16) {
            Exact::of(f64::from(x[index]) / 0.9).check(y[index], id, index);
        }
    };
    suite.bench("dropout", id.clone(), passes(2 * len), |cpu| -> Run<'_> {
        let x = values(1, len);
        let mut y = vec![f32::NAN; len];
        dropout::forward(cpu, &mut y, &x, MASK);
        check(&y, &id);
        Box::new(move || dropout::forward(cpu, &mut y, &x, MASK))
    });
    suite.bench_cuda("dropout", id.clone(), passes(2 * len), |gpu| {
        let x = gpu.upload(&values(1, len))?;
        let mut y = gpu.uninitialized::<f32>(len)?;
        gpu.dropout(&mut y, &x, MASK)?;
        check(&gpu.download(&y)?, &id);
        Ok(Box::new(move || gpu.dropout(&mut y, &x, MASK)))
    });
}

fn square(suite: &mut Suite, len: usize) {
    let id = format!("n{len}");
    let check = move |sum: f64, x: &[f32], id: &str| {
        let exact: f64 = widened(x).map(|x| x * x).sum();
        Exact::of(exact).check(sum as f32, id, 0);
    };
    suite.bench("norm", id.clone(), passes(len), |cpu| -> Run<'_> {
        let x = values(1, len);
        check(norm::sum_of_squares(cpu, &x), &x, &id);
        Box::new(move || {
            std::hint::black_box(norm::sum_of_squares(cpu, &x));
        })
    });
    suite.bench_cuda("norm", id.clone(), passes(len), |gpu| {
        let x = values(1, len);
        let there = gpu.upload(&x)?;
        let mut sum = gpu.uninitialized(1)?;
        gpu.sum_of_squares(&mut sum, 0, &there)?;
        check(gpu.download(&sum)?[0], &x, &id);
        Ok(Box::new(move || gpu.sum_of_squares(&mut sum, 0, &there)))
    });
}

fn step(suite: &mut Suite, len: usize) {
    let id = format!("n{len}");
    let settings = adamw::Step {
        scale: 1.0,
        decay: 0.999,
        first_weight: 0.1,
        second_decay: 0.999,
        second_weight: 0.001,
        correction: 0.5,
        epsilon: 1e-8,
        step_size: 1e-5,
    };
    let inputs = move || (values(1, len), values(2, len));
    let check = move |[w, m, v]: [&[f32]; 3], id: &str| {
        let (old, dw) = inputs();
        for index in sampled(len) {
            let [w_old, g] = [&old, &dw].map(|x| f64::from(x[index]));
            let (first, second) = (0.1 * g, 0.001 * g * g);
            let exact = w_old * 0.999 - 1e-5 * first / (second.sqrt() / 0.5 + 1e-8);
            Exact::of(exact).check(w[index], id, index);
            Exact::of(first).check(m[index], id, index);
            Exact::of(second).check(v[index], id, index);
        }
    };
    suite.bench("adamw", id.clone(), passes(7 * len), |cpu| -> Run<'_> {
        let (mut w, dw) = inputs();
        let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
        adamw::step(cpu, &mut w, &mut m, &mut v, &dw, &settings);
        check([&w, &m, &v], &id);
        Box::new(move || adamw::step(cpu, &mut w, &mut m, &mut v, &dw, &settings))
    });
    suite.bench_cuda("adamw", id.clone(), passes(7 * len), |gpu| {
        let (w, dw) = inputs();
        let (mut w, dw) = (gpu.upload(&w)?, gpu.upload(&dw)?);
        let (mut m, mut v) = (gpu.zeros(len)?, gpu.zeros(len)?);
        gpu.adamw(&mut w, &mut m, &mut v, &dw, &settings)?;
        check([&gpu.download(&w)?, &gpu.download(&m)?, &gpu.download(&v)?], &id);
        Ok(Box::new(move || gpu.adamw(&mut w, &mut m, &mut v, &dw, &settings)))
    });
}

fn draw_words(suite: &mut Suite, count: usize) {
    let id = format!("n{count}");
    let work = Work { bytes: 16.0 * count as f64, ..Work::default() };
    suite.bench("philox", id, work, move |_| -> Run<'_> {
        // The known answer of Random123 for a counter and a key of zeros (Salmon et al. 2011).
        let zeros = kernels::cpu::philox::philox4x32_10([0; 4], [0; 2]);
        assert_eq!(zeros, [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8], "philox");
        let key = RngKey::new(1, 2, Stream::TOKENS);
        let mut words = vec![[0u32; 4]; count];
        Box::new(move || {
            for (position, words) in words.iter_mut().enumerate() {
                *words = key.words(position as u32);
            }
            std::hint::black_box(&words);
        })
    });
}
