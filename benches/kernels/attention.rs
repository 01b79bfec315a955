//! Attention from a paged cache: prefill, decoding, writing the cache, and the backward pass.

use half::bf16;
use kernels::cpu::{
    Cpu, Isa,
    attention::{self, Cache, CacheMut, PAGE, Saved, Shape, Span, Tree},
};

use super::{
    HEAD_DIM, HEADS, KV_HEADS, LAYERS, Run, Suite, Work,
    naive::{Exact, sampled, values},
};

const SHAPE: Shape = Shape { heads: HEADS, kv_heads: KV_HEADS, head_dim: HEAD_DIM };
const WIDTH: usize = HEADS * HEAD_DIM;
const KV_WIDTH: usize = KV_HEADS * HEAD_DIM;

/// What a product of bf16 may be off, relative to the sum of its terms' magnitudes.
const UNIT: f64 = 1.0 / 256.0;

/// Bytes of keys and values that no cache keeps from one use to the next.
const STREAMED: usize = 256 << 20;

pub(crate) fn bench(suite: &mut Suite) {
    for (batch, context) in [(1, 1024), (4, 1024), (16, 1024), (16, 256), (1, 4096)] {
        decode(suite, batch, context);
    }
    for rows in [512, 1024] {
        prefill(suite, rows);
    }
    for rows in [1, 512] {
        append(suite, rows);
    }
    backward(suite, Tree { first_row: 0, prompt: 512, branches: vec![] });
    backward(suite, Tree { first_row: 0, prompt: 256, branches: vec![64; 8] });
}

// The only calls of the kernel.

fn attend(cpu: &Cpu, out: &mut [f32], log_sums: Option<&mut [f32]>, kv: &Layer, batch: &Batch) {
    let cache = Cache::Bf16 { keys: &kv.keys, values: &kv.values };
    let Batch { q, tables, spans } = batch;
    attention::forward(cpu, out, log_sums, q, cache, tables, spans, SHAPE);
}

fn write(cpu: &Cpu, kv: &mut Layer, k: &[f32], v: &[f32], slots: &[u32]) {
    let Layer { keys, values } = kv;
    attention::append(cpu, CacheMut::Bf16 { keys, values }, k, v, slots, SHAPE);
}

fn attend_back(cpu: &Cpu, gradients: &mut [Vec<f32>; 3], dy: &[f32], saved: Saved, tree: &Tree) {
    let [dq, dk, dv] = gradients;
    attention::backward(cpu, [dq, dk, dv], dy, saved, std::slice::from_ref(tree), SHAPE);
}

/// A layer's cache.
#[derive(Clone)]
struct Layer {
    keys: Vec<bf16>,
    values: Vec<bf16>,
}

impl Layer {
    fn new(pages: usize) -> Layer {
        let zeros = vec![bf16::ZERO; pages * PAGE * KV_WIDTH];
        Layer { keys: zeros.clone(), values: zeros }
    }
}

struct Batch {
    q: Vec<f32>,
    tables: Vec<u32>,
    spans: Vec<Span>,
}

/// `sequences` of `context` tokens, of which the last `rows` are queries, in a cache of their own.
struct Sequences {
    k: Vec<f32>,
    v: Vec<f32>,
    slots: Vec<u32>,
    layer: Layer,
    batch: Batch,
}

impl Sequences {
    fn new(cpu: &Cpu, sequences: usize, context: usize, rows: usize) -> Sequences {
        let pages = context.div_ceil(PAGE);
        let slot = |token: usize| (token / context * pages * PAGE + token % context) as u32;
        let span = |sequence: usize| Span {
            first_row: sequence * rows,
            rows,
            first_position: context - rows,
            table: sequence * pages..(sequence + 1) * pages,
        };
        let mut made = Sequences {
            k: values(1, sequences * context * KV_WIDTH),
            v: values(2, sequences * context * KV_WIDTH),
            slots: (0..sequences * context).map(slot).collect(),
            layer: Layer::new(sequences * pages),
            batch: Batch {
                q: values(3, sequences * rows * WIDTH),
                tables: (0..(sequences * pages) as u32).collect(),
                spans: (0..sequences).map(span).collect(),
            },
        };
        write(cpu, &mut made.layer, &made.k, &made.v, &made.slots);
        made
    }

    /// Compares some outputs, of queries that are the last `rows` of `context` tokens.
    fn check(&self, out: &[f32], context: usize, rows: usize, id: &str) {
        for index in sampled(out.len()) {
            let (row, head, lane) = (index / WIDTH, index % WIDTH / HEAD_DIM, index % HEAD_DIM);
            let (sequence, last) = (row / rows, context - rows + row % rows);
            let kv_head = head / (HEADS / KV_HEADS);
            let q = vector(&self.batch.q, row, head, HEADS);
            let first = sequence * context;
            let keys = (first..=first + last).map(|j| vector(&self.k, j, kv_head, KV_HEADS));
            let scores: Vec<f64> = keys.map(|k| score(q, k)).collect();
            let log_sum = log_sum(&scores);
            let terms = scores.iter().enumerate().map(|(j, s)| {
                let v = vector(&self.v, first + j, kv_head, KV_HEADS);
                (s - log_sum).exp() * rounded(v[lane])
            });
            Exact::sum(terms).check_within(out[index], UNIT, id, index);
        }
    }
}

fn vector(of: &[f32], row: usize, head: usize, heads: usize) -> &[f32] {
    &of[(row * heads + head) * HEAD_DIM..][..HEAD_DIM]
}

fn rounded(x: f32) -> f64 {
    bf16::from_f32(x).to_f64()
}

fn score(q: &[f32], k: &[f32]) -> f64 {
    let dot: f64 = q.iter().zip(k).map(|(q, k)| rounded(*q) * rounded(*k)).sum();
    dot / (HEAD_DIM as f64).sqrt()
}

fn log_sum(scores: &[f64]) -> f64 {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln()
}

/// Queries times keys they see: two products of width head_dim each, and what is read and written.
fn work(pairs: usize, keys: usize, rows: usize) -> Work {
    Work {
        flops: 4.0 * (pairs * WIDTH) as f64,
        bf16: true,
        bytes: (4 * keys * KV_WIDTH + 8 * rows * WIDTH) as f64,
    }
}

fn decode(suite: &mut Suite, batch: usize, context: usize) {
    let id = format!("decode-b{batch}-c{context}");
    let work = work(batch * context, batch * context, batch);
    suite.bench("attention", id.clone(), work, move |cpu| -> Run<'_> {
        let made = Sequences::new(cpu, batch, context, 1);
        let mut out = vec![f32::NAN; batch * WIDTH];
        attend(cpu, &mut out, None, &made.layer, &made.batch);
        made.check(&out, context, 1, &id);
        let bytes = 2 * size_of_val(made.layer.keys.as_slice());
        let layers = vec![made.layer.clone(); STREAMED.div_ceil(bytes).clamp(1, LAYERS)];
        let mut layer = 0;
        Box::new(move || {
            layer = (layer + 1) % layers.len();
            attend(cpu, &mut out, None, &layers[layer], &made.batch);
        })
    });
}

fn prefill(suite: &mut Suite, rows: usize) {
    let id = format!("prefill-t{rows}");
    let work = work(rows * (rows + 1) / 2, rows, rows);
    suite.bench("attention", id.clone(), work, move |cpu| -> Run<'_> {
        let made = Sequences::new(cpu, 1, rows, rows);
        let mut out = vec![f32::NAN; rows * WIDTH];
        attend(cpu, &mut out, None, &made.layer, &made.batch);
        made.check(&out, rows, rows, &id);
        Box::new(move || attend(cpu, &mut out, None, &made.layer, &made.batch))
    });
}

fn append(suite: &mut Suite, rows: usize) {
    let id = format!("append-t{rows}");
    let work = Work { bytes: 12.0 * (rows * KV_WIDTH) as f64, ..Work::default() };
    suite.bench("attention", id.clone(), work, move |cpu| -> Run<'_> {
        let mut made = Sequences::new(cpu, 1, rows, rows);
        for index in sampled(rows * KV_WIDTH) {
            let (token, head, lane) =
                (index / KV_WIDTH, index % KV_WIDTH / HEAD_DIM, index % HEAD_DIM);
            let slot = token % PAGE;
            // Pairs along the head, and pairs of slots, where products take pairs of bf16.
            let [key, value] = match cpu.isa() {
                Isa::Avx512Bf16 => [
                    (lane / 2 * PAGE + slot) * 2 + lane % 2,
                    (slot / 2 * HEAD_DIM + lane) * 2 + slot % 2,
                ],
                _ => [slot * HEAD_DIM + lane; 2],
            };
            let page = (token / PAGE * KV_HEADS + head) * PAGE * HEAD_DIM;
            let (keys, values) = (&made.layer.keys, &made.layer.values);
            for (at, cache, from) in [(key, keys, &made.k), (value, values, &made.v)] {
                let got = cache[page + at].to_f32();
                Exact::of(rounded(from[index])).check_within(got, 0.0, &id, index);
            }
        }
        Box::new(move || write(cpu, &mut made.layer, &made.k, &made.v, &made.slots))
    });
}

/// Whether a row sees a key: both of the prompt or of one branch and in order, or the key of the prompt.
fn sees(tree: &Tree, row: usize, key: usize) -> bool {
    let branch = |row: usize| {
        let mut end = tree.prompt;
        tree.branches.iter().position(|len| {
            end += len;
            row < end
        })
    };
    key <= row && (key < tree.prompt || branch(row) == branch(key))
}

fn backward(suite: &mut Suite, tree: Tree) {
    let rows = tree.rows();
    let (branches, len) = (tree.branches.len(), tree.branches.first().copied().unwrap_or(0));
    let id = format!("backward-p{}-g{branches}-c{len}", tree.prompt);
    let in_branch = len * tree.prompt + len * (len + 1) / 2;
    let pairs = tree.prompt * (tree.prompt + 1) / 2 + branches * in_branch;
    let work = Work {
        // Five products.
        flops: 10.0 * (pairs * WIDTH) as f64,
        bf16: suite.cpu.isa() == Isa::Avx512Bf16,
        bytes: 4.0 * (rows * (4 * WIDTH + 4 * KV_WIDTH)) as f64,
    };
    suite.bench("attention", id.clone(), work, move |cpu| -> Run<'_> {
        let (q, dy) = (values(3, rows * WIDTH), values(4, rows * WIDTH));
        let (k, v) = (values(1, rows * KV_WIDTH), values(2, rows * KV_WIDTH));
        let (y, log_sums) = forward_of(&tree, &q, &k, &v);
        let saved = Saved { q: &q, k: &k, v: &v, y: &y, log_sums: &log_sums, rounded: true };
        let mut gradients = [WIDTH, KV_WIDTH, KV_WIDTH].map(|width| vec![f32::NAN; rows * width]);
        attend_back(cpu, &mut gradients, &dy, saved, &tree);
        check_backward(&tree, &gradients, &dy, saved, &id);
        Box::new(move || {
            let saved = Saved { q: &q, k: &k, v: &v, y: &y, log_sums: &log_sums, rounded: true };
            attend_back(cpu, &mut gradients, &dy, saved, &tree);
        })
    });
}

/// Outputs and log-sums of a tree, the naive way.
fn forward_of(tree: &Tree, q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut y, mut log_sums) = (vec![0.0; q.len()], vec![0.0; q.len() / HEAD_DIM]);
    for (index, (y, log_sum)) in y.chunks_mut(HEAD_DIM).zip(&mut log_sums).enumerate() {
        let (row, head) = (index / HEADS, index % HEADS);
        let kv_head = head / (HEADS / KV_HEADS);
        let keys: Vec<usize> = (0..=row).filter(|&key| sees(tree, row, key)).collect();
        let query = vector(q, row, head, HEADS);
        let scores = keys.iter().map(|&key| score(query, vector(k, key, kv_head, KV_HEADS)));
        let scores: Vec<f64> = scores.collect();
        let total = self::log_sum(&scores);
        *log_sum = total as f32;
        for (s, &key) in scores.iter().zip(&keys) {
            let p = (s - total).exp() as f32;
            for (y, v) in y.iter_mut().zip(vector(v, key, kv_head, KV_HEADS)) {
                *y += p * bf16::from_f32(*v).to_f32();
            }
        }
    }
    (y, log_sums)
}

/// Compares some gradients with the formulas at the top of kernels/cpu/attention/backward.rs.
fn check_backward(tree: &Tree, gradients: &[Vec<f32>; 3], dy: &[f32], saved: Saved, id: &str) {
    let Saved { q, k, v, y, log_sums, .. } = saved;
    let scale = (HEAD_DIM as f64).sqrt();
    // Probability of a query vector at a key, and the two terms of ds, which may cancel; then what cancels
    // for certain, as large as the terms of dy·v, whose rounding counts.
    let at = |row: usize, head: usize, key: usize| {
        let kv_head = head / (HEADS / KV_HEADS);
        let (query, dy) = (vector(q, row, head, HEADS), vector(dy, row, head, HEADS));
        let (k, v) = (vector(k, key, kv_head, KV_HEADS), vector(v, key, kv_head, KV_HEADS));
        let p = (score(query, k) - f64::from(log_sums[row * HEADS + head])).exp();
        let terms = || dy.iter().zip(v).map(|(dy, v)| f64::from(*dy) * rounded(*v));
        let dot: f64 = terms().sum();
        let magnitude = p * terms().map(f64::abs).sum::<f64>() / scale / 2.0;
        let y = vector(y, row, head, HEADS);
        let delta: f64 = dy.iter().zip(y).map(|(dy, y)| f64::from(*dy) * f64::from(*y)).sum();
        (p, [p * dot / scale, -p * delta / scale, magnitude, -magnitude])
    };
    for index in sampled(gradients[0].len()) {
        let (row, head, lane) = (index / WIDTH, index % WIDTH / HEAD_DIM, index % HEAD_DIM);
        let keys = (0..=row).filter(|&key| sees(tree, row, key));
        let kv_head = head / (HEADS / KV_HEADS);
        let key = |key: usize| rounded(vector(k, key, kv_head, KV_HEADS)[lane]);
        let exact = Exact::sum(keys.flat_map(|j| at(row, head, j).1.map(|ds| ds * key(j))));
        exact.check_within(gradients[0][index], UNIT, id, index);
    }
    for index in sampled(gradients[1].len()) {
        let (key, kv_head, lane) =
            (index / KV_WIDTH, index % KV_WIDTH / HEAD_DIM, index % HEAD_DIM);
        let group = HEADS / KV_HEADS;
        let seers = (key..tree.rows()).filter(|&row| sees(tree, row, key));
        let queries = seers.flat_map(|row| (0..group).map(move |h| (row, kv_head * group + h)));
        let (mut dk, mut dv) = (Vec::new(), Vec::new());
        for (row, head) in queries {
            let (p, ds) = at(row, head, key);
            dk.extend(ds.map(|ds| ds * rounded(vector(q, row, head, HEADS)[lane])));
            dv.push(p * f64::from(vector(dy, row, head, HEADS)[lane]));
        }
        Exact::sum(dk.into_iter()).check_within(gradients[1][index], UNIT, id, index);
        Exact::sum(dv.into_iter()).check_within(gradients[2][index], UNIT, id, index);
    }
}
