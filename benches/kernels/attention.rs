//! Attention from a paged cache: prefill, decoding, writing the cache, and the backward pass.

use half::{bf16, slice::HalfBitsSliceExt as _};
use kernels::{
    cpu::{
        Cpu, Isa,
        attention::{self, Cache, CacheMut, PAGE, Saved, Shape, Span, Tree},
    },
    cuda::{AttentionPlan, AttentionSaved, Buffer, Error},
};

use super::{
    HEAD_DIM, HEADS, KV_HEADS, Run, Suite, Work, copies,
    cuda::Cuda,
    naive::{BF16, Exact, rounded, sampled, values},
};

const SHAPE: Shape = Shape { heads: HEADS, kv_heads: KV_HEADS, head_dim: HEAD_DIM };
const WIDTH: usize = HEADS * HEAD_DIM;
const KV_WIDTH: usize = KV_HEADS * HEAD_DIM;

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
    backward(suite, Tree::of_prompt(0, 512, &[]));
    backward(suite, Tree::of_prompt(0, 256, &[64; 8]));
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

struct Batch {
    q: Vec<f32>,
    tables: Vec<u32>,
    spans: Vec<Span>,
}

/// `sequences` of `context` tokens, of which the last `rows` are queries.
struct Sequences {
    k: Vec<f32>,
    v: Vec<f32>,
    slots: Vec<u32>,
    batch: Batch,
}

impl Sequences {
    fn new(sequences: usize, context: usize, rows: usize) -> Sequences {
        let pages = context.div_ceil(PAGE);
        let slot = |token: usize| (token / context * pages * PAGE + token % context) as u32;
        let span = |sequence: usize| Span {
            first_row: sequence * rows,
            rows,
            first_position: context - rows,
            table: sequence * pages..(sequence + 1) * pages,
        };
        Sequences {
            k: values(1, sequences * context * KV_WIDTH),
            v: values(2, sequences * context * KV_WIDTH),
            slots: (0..sequences * context).map(slot).collect(),
            batch: Batch {
                q: values(3, sequences * rows * WIDTH),
                tables: (0..(sequences * pages) as u32).collect(),
                spans: (0..sequences).map(span).collect(),
            },
        }
    }

    /// Elements of keys in a cache of them alone.
    fn elements(&self) -> usize {
        self.batch.tables.len() * PAGE * KV_WIDTH
    }

    fn layer(&self, cpu: &Cpu) -> Layer {
        let zeros = vec![bf16::ZERO; self.elements()];
        let mut layer = Layer { keys: zeros.clone(), values: zeros };
        write(cpu, &mut layer, &self.k, &self.v, &self.slots);
        layer
    }

    fn layer_on_gpu(&self, gpu: Cuda) -> Result<[Buffer<u16>; 2], Error> {
        let [mut keys, mut values] = [gpu.zeros(self.elements())?, gpu.zeros(self.elements())?];
        let [k, v] = [gpu.upload(&self.k)?, gpu.upload(&self.v)?];
        let slots = gpu.upload(&self.slots)?;
        gpu.attention_append([&mut keys, &mut values], [&k, &v], &slots, SHAPE)?;
        Ok([keys, values])
    }

    fn plan(&self, gpu: Cuda) -> Result<AttentionPlan, Error> {
        let Batch { tables, spans, .. } = &self.batch;
        gpu.attention_plan(spans, tables, tables.len(), SHAPE, 0)
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
            Exact::sum(terms).check_within(out[index], BF16, id, index);
        }
    }
}

fn vector(of: &[f32], row: usize, head: usize, heads: usize) -> &[f32] {
    &of[(row * heads + head) * HEAD_DIM..][..HEAD_DIM]
}

fn score(q: &[f32], k: &[f32]) -> f64 {
    let dot: f64 = q.iter().zip(k).map(|(q, k)| rounded(*q) * rounded(*k)).sum();
    dot / (HEAD_DIM as f64).sqrt()
}

fn log_sum(scores: &[f64]) -> f64 {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln()
}

/// Queries times keys they see: two products of width head_dim each, and what is read and written, queries and
/// results in so many bytes.
fn work(pairs: usize, keys: usize, rows: usize, row_bytes: usize) -> Work {
    Work {
        flops: 4.0 * (pairs * WIDTH) as f64,
        bf16: true,
        bytes: (4 * keys * KV_WIDTH + 2 * row_bytes * rows * WIDTH) as f64,
    }
}

fn decode(suite: &mut Suite, batch: usize, context: usize) {
    let id = format!("decode-b{batch}-c{context}");
    let work = |row_bytes: usize| work(batch * context, batch * context, batch, row_bytes);
    suite.bench("attention", id.clone(), work(4), |cpu| -> Run<'_> {
        let made = Sequences::new(batch, context, 1);
        let layer = made.layer(cpu);
        let mut out = vec![f32::NAN; batch * WIDTH];
        attend(cpu, &mut out, None, &layer, &made.batch);
        made.check(&out, context, 1, &id);
        let count = copies(2 * size_of_val(layer.keys.as_slice()));
        let layers = vec![layer; count];
        let mut layer = 0;
        Box::new(move || {
            layer = (layer + 1) % layers.len();
            attend(cpu, &mut out, None, &layers[layer], &made.batch);
        })
    });
    suite.bench_cuda("attention", id.clone(), work(2), |gpu| {
        let made = Sequences::new(batch, context, 1);
        let count = gpu.copies(2 * made.elements() * size_of::<u16>());
        let layers: Vec<_> =
            (0..count).map(|_| made.layer_on_gpu(gpu)).collect::<Result<_, _>>()?;
        let (plan, q) = (made.plan(gpu)?, gpu.rounded(&made.batch.q)?);
        let mut out = gpu.uninitialized(batch * WIDTH)?;
        gpu.attention(&mut out, None, &q, layers[0].each_ref(), &plan)?;
        made.check(&gpu.widened(&out)?, context, 1, &id);
        let mut layer = 0;
        Ok(Box::new(move || {
            layer = (layer + 1) % layers.len();
            gpu.attention(&mut out, None, &q, layers[layer].each_ref(), &plan)
        }))
    });
}

fn prefill(suite: &mut Suite, rows: usize) {
    let id = format!("prefill-t{rows}");
    let work = |row_bytes: usize| work(rows * (rows + 1) / 2, rows, rows, row_bytes);
    suite.bench("attention", id.clone(), work(4), |cpu| -> Run<'_> {
        let made = Sequences::new(1, rows, rows);
        let layer = made.layer(cpu);
        let mut out = vec![f32::NAN; rows * WIDTH];
        attend(cpu, &mut out, None, &layer, &made.batch);
        made.check(&out, rows, rows, &id);
        Box::new(move || attend(cpu, &mut out, None, &layer, &made.batch))
    });
    suite.bench_cuda("attention", id.clone(), work(2), |gpu| {
        let made = Sequences::new(1, rows, rows);
        let (layer, plan) = (made.layer_on_gpu(gpu)?, made.plan(gpu)?);
        let q = gpu.rounded(&made.batch.q)?;
        let mut out = gpu.uninitialized(rows * WIDTH)?;
        gpu.attention(&mut out, None, &q, layer.each_ref(), &plan)?;
        made.check(&gpu.widened(&out)?, rows, rows, &id);
        Ok(Box::new(move || gpu.attention(&mut out, None, &q, layer.each_ref(), &plan)))
    });
}

fn append(suite: &mut Suite, rows: usize) {
    let id = format!("append-t{rows}");
    let work = Work { bytes: 12.0 * (rows * KV_WIDTH) as f64, ..Work::default() };
    let check = |made: &Sequences, [keys, values]: [&[bf16]; 2], paired: bool| {
        for index in sampled(rows * KV_WIDTH) {
            let (token, head, lane) =
                (index / KV_WIDTH, index % KV_WIDTH / HEAD_DIM, index % HEAD_DIM);
            let slot = token % PAGE;
            // Pairs along the head, and pairs of slots, where a CPU's products take pairs of bf16.
            let [key, value] = match paired {
                true => [
                    (lane / 2 * PAGE + slot) * 2 + lane % 2,
                    (slot / 2 * HEAD_DIM + lane) * 2 + slot % 2,
                ],
                false => [slot * HEAD_DIM + lane; 2],
            };
            let page = (token / PAGE * KV_HEADS + head) * PAGE * HEAD_DIM;
            for (at, cache, from) in [(key, keys, &made.k), (value, values, &made.v)] {
                let got = cache[page + at].to_f32();
                Exact::of(rounded(from[index])).check_within(got, 0.0, &id, index);
            }
        }
    };
    suite.bench("attention", id.clone(), work, |cpu| -> Run<'_> {
        let made = Sequences::new(1, rows, rows);
        let mut layer = made.layer(cpu);
        check(&made, [&layer.keys, &layer.values], cpu.isa() == Isa::Avx512Bf16);
        Box::new(move || write(cpu, &mut layer, &made.k, &made.v, &made.slots))
    });
    suite.bench_cuda("attention", id.clone(), work, |gpu| {
        let made = Sequences::new(1, rows, rows);
        let [mut keys, mut values] = made.layer_on_gpu(gpu)?;
        let [got_keys, got_values] = [gpu.download(&keys)?, gpu.download(&values)?];
        check(&made, [got_keys.reinterpret_cast(), got_values.reinterpret_cast()], false);
        let [k, v] = [gpu.upload(&made.k)?, gpu.upload(&made.v)?];
        let slots = gpu.upload(&made.slots)?;
        Ok(Box::new(move || {
            gpu.attention_append([&mut keys, &mut values], [&k, &v], &slots, SHAPE)
        }))
    });
}

/// Whether a row sees a key: one before it of its own segment, or of a segment that this continues.
fn sees(tree: &Tree, row: usize, key: usize) -> bool {
    let segment = |row: usize| {
        let ends = tree.segments.iter().scan(0, |end, segment| {
            *end += segment.rows;
            Some(*end)
        });
        ends.take_while(|end| *end <= row).count()
    };
    let parent = |segment: &usize| tree.segments[*segment].parent;
    let of_key = segment(key);
    key <= row && std::iter::successors(Some(segment(row)), parent).any(|seen| seen == of_key)
}

fn backward(suite: &mut Suite, tree: Tree) {
    let rows = tree.rows();
    let prompt = tree.segments[0].rows;
    let (branches, len) = match tree.segments[1..] {
        [] => (0, 0),
        [first, ..] => (tree.segments.len() - 1, first.rows),
    };
    let id = format!("backward-p{prompt}-g{branches}-c{len}");
    let in_branch = len * prompt + len * (len + 1) / 2;
    let pairs = prompt * (prompt + 1) / 2 + branches * in_branch;
    let work = Work {
        // Five products.
        flops: 10.0 * (pairs * WIDTH) as f64,
        bf16: suite.cpu.isa() == Isa::Avx512Bf16,
        bytes: 4.0 * (rows * (4 * WIDTH + 4 * KV_WIDTH)) as f64,
    };
    // q, k and v are bf16 there.
    let bytes = work.bytes - 2.0 * (rows * (WIDTH + 2 * KV_WIDTH)) as f64;
    let work_on_gpu = Work { bf16: true, bytes, ..work };
    let inputs = || {
        let (q, dy) = (values(3, rows * WIDTH), values(4, rows * WIDTH));
        let (k, v) = (values(1, rows * KV_WIDTH), values(2, rows * KV_WIDTH));
        let (y, log_sums) = forward_of(&tree, &q, &k, &v);
        (dy, [q, k, v, y, log_sums])
    };
    fn saved([q, k, v, y, log_sums]: &[Vec<f32>; 5]) -> Saved<'_> {
        Saved { q, k, v, y, log_sums, rounded: true }
    }
    suite.bench("attention", id.clone(), work, |cpu| -> Run<'_> {
        let (dy, kept) = inputs();
        let mut gradients = [WIDTH, KV_WIDTH, KV_WIDTH].map(|width| vec![f32::NAN; rows * width]);
        attend_back(cpu, &mut gradients, &dy, saved(&kept), &tree);
        check_backward(&tree, &gradients, &dy, saved(&kept), &id);
        let tree = tree.clone();
        Box::new(move || attend_back(cpu, &mut gradients, &dy, saved(&kept), &tree))
    });
    suite.bench_cuda("attention", id.clone(), work_on_gpu, |gpu| {
        let (dy, kept) = inputs();
        let [q, k, v, y, log_sums] = &kept;
        let (q, k, v) = (gpu.rounded(q)?, gpu.rounded(k)?, gpu.rounded(v)?);
        let (y, log_sums) = (gpu.upload(y)?, gpu.upload(log_sums)?);
        let plan = gpu.backward_plan(std::slice::from_ref(&tree), SHAPE)?;
        let dy_there = gpu.upload(&dy)?;
        let mut dq = gpu.uninitialized(rows * WIDTH)?;
        let (mut dk, mut dv) =
            (gpu.uninitialized(rows * KV_WIDTH)?, gpu.uninitialized(rows * KV_WIDTH)?);
        let mut run = move |gradients: Option<&mut [Vec<f32>; 3]>| {
            let saved = AttentionSaved { q: &q, k: &k, v: &v, y: &y, log_sums: &log_sums };
            gpu.attention_backward([&mut dq, &mut dk, &mut dv], &dy_there, saved, &plan)?;
            if let Some(gradients) = gradients {
                *gradients = [gpu.download(&dq)?, gpu.download(&dk)?, gpu.download(&dv)?];
            }
            Ok(())
        };
        let mut gradients = [const { Vec::new() }; 3];
        run(Some(&mut gradients))?;
        check_backward(&tree, &gradients, &dy, saved(&kept), &id);
        Ok(Box::new(move || run(None)))
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
        exact.check_within(gradients[0][index], BF16, id, index);
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
        Exact::sum(dk.into_iter()).check_within(gradients[1][index], BF16, id, index);
        Exact::sum(dv.into_iter()).check_within(gradients[2][index], BF16, id, index);
    }
}
