//! Kernels that work row by row or element by element. The rule: counts, different bytes included, are a line
//! over rows (or elements), as every block of whole rows does the same. Data-dependent ways through a kernel
//! (an infinite logit, a token's own column) are those of arbitrary finite numbers.

use emulator::KernelCounters;
use kernels::cpu::adamw::Step;
use kernels::cpu::attention::Shape;
use kernels::cpu::dropout::Mask;
use kernels::cpu::philox::{RngKey, Stream};
use kernels::cpu::sample::SamplingParams;
use kernels::cuda::{Error, Head, SampleRequest};

use super::attention::{HEADS, KV_HEADS};
use super::counts::{Figure, Lab};

const D: usize = 128;
const EPS: f32 = 1e-6;
const KEY: RngKey = RngKey::new(1, 3, Stream::TOKENS);
/// A part of the vocabulary, as log_prob takes it of 4,096 rows.
pub(crate) const PART: usize = 2048;

/// Where the sizes of runs begin, which is also how far they lie apart, and what to count at which size.
struct Size {
    step: usize,
    at: usize,
    shape: String,
    fewest: usize,
}

fn figure(
    lab: &Lab,
    name: &str,
    kernel: &str,
    size: Size,
    work: impl Fn(usize) -> Result<Vec<KernelCounters>, Error>,
) -> Result<Figure, Error> {
    let Size { step, at, shape, fewest } = size;
    let counters = lab.runs(name.to_owned(), 1, step, step, work)?.at(kernel, at);
    Ok(Figure::new(shape, counters, fewest, 0))
}

pub(crate) fn rms_norm(lab: &Lab, rows: usize, n: usize) -> Result<Figure, Error> {
    let fewest = rows * n * (4 + 2) + 4 * n;
    let size = Size { step: 1, at: rows, shape: format!("r{rows} n{n}"), fewest };
    let kernel = "rms_norm_wide_bf16";
    figure(lab, &format!("{kernel} of {n}"), kernel, size, |rows| {
        let (x, w) = (lab.floats(rows * n)?, lab.floats(n)?);
        let mut y = lab.halves(rows * n)?;
        lab.count(|gpu| gpu.rms_norm(&mut y, &x, &w, EPS))
    })
}

/// Added to the gradient that passes by on the residual connection.
pub(crate) fn rms_norm_backward(lab: &Lab, rows: usize, n: usize) -> Result<Figure, Error> {
    let fewest = rows * n * 16 + 4 * n;
    let size = Size { step: 1, at: rows, shape: format!("r{rows} n{n} added"), fewest };
    let kernel = "rms_norm_wide_backward";
    figure(lab, &format!("{kernel} of {n}"), kernel, size, |rows| {
        let (x, w, dy) = (lab.floats(rows * n)?, lab.floats(n)?, lab.floats(rows * n)?);
        let mut dx = lab.floats(rows * n)?;
        lab.count(|gpu| gpu.rms_norm_backward(&mut dx, &dy, &x, &w, EPS, true))
    })
}

/// QK-norm's gradient: a row is a head.
pub(crate) fn qk_norm_backward(lab: &Lab, vectors: usize) -> Result<Figure, Error> {
    let fewest = vectors * D * 12 + 4 * D;
    let size = Size { step: 4, at: vectors, shape: format!("r{vectors} n{D}"), fewest };
    let kernel = "rms_norm_narrow_backward";
    figure(lab, kernel, kernel, size, |rows| {
        let (x, w, dy) = (lab.floats(rows * D)?, lab.floats(D)?, lab.floats(rows * D)?);
        let mut dx = lab.floats(rows * D)?;
        lab.count(|gpu| gpu.rms_norm_backward(&mut dx, &dy, &x, &w, EPS, false))
    })
}

/// QK-norm and rotation of queries, to bf16, or of keys.
pub(crate) fn rope_norm(lab: &Lab, rows: usize, keys: bool) -> Result<Figure, Error> {
    let (heads, bytes) = if keys { (KV_HEADS, 8) } else { (HEADS, 6) };
    let kernel = if keys { "rope_norm_128_f32" } else { "rope_norm_128_bf16" };
    let fewest = rows * (heads * D * bytes + 4 * D + 4) + 4 * D;
    let size = Size { step: 1, at: rows, shape: format!("r{rows} h{heads}"), fewest };
    figure(lab, kernel, kernel, size, |rows| {
        let (x, w) = (lab.floats(rows * heads * D)?, lab.floats(D)?);
        let positions = lab.gpu.upload(&(0..rows as u32).collect::<Vec<_>>())?;
        let table = lab.gpu.rope_table(&[0.5; D / 2], 1.0, rows)?;
        if keys {
            let mut y = lab.floats(rows * heads * D)?;
            lab.count(|gpu| gpu.rope_norm(&mut y, &x, &w, EPS, &positions, &table))
        } else {
            let mut y = lab.halves(rows * heads * D)?;
            lab.count(|gpu| gpu.rope_norm(&mut y, &x, &w, EPS, &positions, &table))
        }
    })
}

/// A gradient turned back in place.
pub(crate) fn rope_backward(lab: &Lab, rows: usize, heads: usize) -> Result<Figure, Error> {
    let kernel = "rope_f32";
    let fewest = rows * (heads * D * 8 + 4 * D + 4);
    let size = Size { step: 2, at: rows, shape: format!("r{rows} h{heads}"), fewest };
    figure(lab, &format!("{kernel}, {heads} heads"), kernel, size, |rows| {
        let mut x = lab.floats(rows * heads * D)?;
        let positions = lab.gpu.upload(&(0..rows as u32).collect::<Vec<_>>())?;
        let table = lab.gpu.rope_table(&[0.5; D / 2], 1.0, rows)?;
        lab.count(|gpu| gpu.rope(&mut x, &positions, &table, true))
    })
}

pub(crate) fn append(lab: &Lab, rows: usize) -> Result<Figure, Error> {
    let shape = Shape { heads: HEADS, kv_heads: KV_HEADS, head_dim: D };
    let width = KV_HEADS * D;
    let fewest = rows * (width * 2 * (4 + 2) + 4);
    let size = Size { step: 1, at: rows, shape: format!("r{rows}"), fewest };
    figure(lab, "attention_append", "attention_append", size, |rows| {
        let [k, v] = [lab.floats(rows * width)?, lab.floats(rows * width)?];
        let [mut keys, mut values] = [lab.halves(32 * width)?, lab.halves(32 * width)?];
        let slots = lab.gpu.upload(&(0..rows as u32).collect::<Vec<_>>())?;
        lab.count(|gpu| gpu.attention_append([&mut keys, &mut values], [&k, &v], &slots, shape))
    })
}

pub(crate) fn swiglu(lab: &Lab, len: usize) -> Result<Figure, Error> {
    let size = Size { step: 1024, at: len, shape: format!("e{len}"), fewest: 10 * len };
    figure(lab, "swiglu_bf16", "swiglu_bf16", size, |len| {
        let (gate, up, mut y) = (lab.floats(len)?, lab.floats(len)?, lab.halves(len)?);
        lab.count(|gpu| gpu.swiglu(&mut y, &gate, &up))
    })
}

pub(crate) fn swiglu_backward(lab: &Lab, len: usize) -> Result<Figure, Error> {
    let size = Size { step: 1024, at: len, shape: format!("e{len}"), fewest: 16 * len };
    figure(lab, "swiglu_backward_bf16", "swiglu_backward_bf16", size, |len| {
        let (dy, gate, up) = (lab.floats(len)?, lab.floats(len)?, lab.floats(len)?);
        let [mut dgate, mut dup] = [lab.halves(len)?, lab.halves(len)?];
        lab.count(|gpu| gpu.swiglu_backward([&mut dgate, &mut dup], &dy, &gate, &up))
    })
}

pub(crate) fn embedding(lab: &Lab, rows: usize, n: usize) -> Result<Figure, Error> {
    let kernel = "embedding_forward";
    let fewest = rows * (n * 6 + 4);
    let size = Size { step: 1, at: rows, shape: format!("r{rows} n{n}"), fewest };
    figure(lab, &format!("{kernel} of {n}"), kernel, size, |rows| {
        let (table, mut y) = (lab.halves(rows * n)?, lab.floats(rows * n)?);
        let ids = lab.gpu.upload(&(0..rows as u32).collect::<Vec<_>>())?;
        lab.count(|gpu| gpu.embedding(&mut y, &ids, &table, n))
    })
}

/// f32 to bf16, on its way to a product.
pub(crate) fn round(lab: &Lab, len: usize) -> Result<Figure, Error> {
    let size = Size { step: 1024, at: len, shape: format!("e{len}"), fewest: 6 * len };
    figure(lab, "matmul_round", "matmul_round", size, |len| {
        let (x, mut y) = (lab.floats(len)?, lab.halves(len)?);
        lab.count(|gpu| gpu.round(&mut y, &x))
    })
}

pub(crate) fn add(lab: &Lab, len: usize) -> Result<Figure, Error> {
    let size = Size { step: 1024, at: len, shape: format!("e{len}"), fewest: 12 * len };
    figure(lab, "add_accumulate", "add_accumulate", size, |len| {
        let (x, mut y) = (lab.floats(len)?, lab.floats(len)?);
        lab.count(|gpu| gpu.add(&mut y, &x))
    })
}

pub(crate) fn dropout(lab: &Lab, len: usize) -> Result<Figure, Error> {
    let size = Size { step: 1024, at: len, shape: format!("e{len}"), fewest: 6 * len };
    figure(lab, "dropout_bf16", "dropout_bf16", size, |len| {
        let (x, mut y) = (lab.floats(len)?, lab.halves(len)?);
        lab.count(|gpu| gpu.dropout(&mut y, &x, Mask { key: KEY, probability: 0.1 }))
    })
}

pub(crate) fn adamw(lab: &Lab, len: usize) -> Result<Figure, Error> {
    let size = Size { step: 1024, at: len, shape: format!("e{len}"), fewest: 28 * len };
    figure(lab, "adamw_step", "adamw_step", size, |len| {
        let [mut w, mut m, dw] = [lab.floats(len)?, lab.floats(len)?, lab.floats(len)?];
        let mut v = lab.gpu.zeros(len)?;
        let step = Step {
            scale: 1.0,
            decay: 1.0,
            first_weight: 0.1,
            second_decay: 0.99,
            second_weight: 0.01,
            correction: 1.0,
            epsilon: 1e-8,
            step_size: 1e-4,
        };
        lab.count(|gpu| gpu.adamw(&mut w, &mut m, &mut v, &dw, &step))
    })
}

/// Sum of squares. Its grid is fixed and takes 2^18 elements per turn: other lengths count as the next multiple.
pub(crate) fn norm(lab: &Lab, len: usize) -> Result<Figure, Error> {
    let at = len.next_multiple_of(1 << 18);
    let size = Size { step: 1 << 18, at, shape: format!("e{at}"), fewest: 4 * at + 256 * 8 };
    figure(lab, "norm_parts", "norm_parts", size, |len| {
        let (x, mut out) = (lab.floats(len)?, lab.gpu.zeros::<f64>(1)?);
        lab.count(|gpu| gpu.sum_of_squares(&mut out, 0, &x))
    })
}

/// What follows the head's product for a part of the vocabulary, forward and backward: sums of a row's logits,
/// the end of it, and their gradient. The first part: others read a row's sums as well, 24 bytes.
pub(crate) fn log_prob(lab: &Lab, rows: usize) -> Result<[Figure; 3], Error> {
    let work = |rows: usize| {
        let (k, vocab) = (8, PART);
        let (x, weight) = (lab.halves(rows * k)?, lab.halves(vocab * k)?);
        let head = Head { weight: &weight, vocab, k };
        let tokens = lab.gpu.upload(&(0..rows as u32).collect::<Vec<_>>())?;
        let (mut out, gradients) = (lab.floats(rows * 2)?, lab.floats(rows * 2)?);
        let mut dx = lab.floats(rows * k)?;
        lab.count(|gpu| {
            let distributions = gpu.log_prob(&mut out, &x, head, &tokens, 0.9)?;
            gpu.log_prob_backward(&mut dx, &gradients, &x, head, &tokens, &distributions)
        })
    };
    let of = |kernel: &str, fewest: usize| {
        let size = Size { step: 128, at: rows, shape: format!("r{rows} v{PART}"), fewest };
        figure(lab, "log_prob", kernel, size, work)
    };
    Ok([
        of("log_prob_join", rows * (PART * 4 + 24 + 4 + 4))?,
        of("log_prob_finish", rows * (24 + 4 + 8 + 32 + 4))?,
        // Of a row's distribution three of four numbers, and 4 + 8 bytes of token and gradients.
        of("log_prob_backward", rows * (PART * 6 + 32 + 4 + 8))?,
    ])
}

/// A token from each row of logits, at a temperature alone.
pub(crate) fn sample(lab: &Lab, rows: usize, vocab: usize) -> Result<Figure, Error> {
    let fewest = rows * (vocab * 4 + 48 + 16);
    let size = Size { step: 1, at: rows, shape: format!("r{rows} v{vocab}"), fewest };
    figure(lab, "sample_draw", "sample_draw", size, |rows| {
        // Every row has the same logits and the same number drawn.
        let row: Vec<f32> = (0..vocab).map(|i| (i * 37 % 1009) as f32 / 100.0).collect();
        let logits = lab.gpu.upload(&row.repeat(rows))?;
        let params = SamplingParams { temperature: 0.9, ..SamplingParams::default() };
        let request = SampleRequest { params, key: KEY, position: 4 };
        let requests = lab.gpu.sample_requests(&vec![request; rows])?;
        let mut out = lab.gpu.zeros::<u32>(rows * 4)?;
        lab.count(|gpu| gpu.sample(&mut out, &logits, &requests, vocab))
    })
}
