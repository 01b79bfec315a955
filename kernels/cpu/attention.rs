//! Causal attention with grouped query heads against a paged cache of keys and values.
//!
//! For a query row at position p, head h of kv head g = h / (heads / kv_heads):
//! out = Σ_{j≤p} softmax_j(q·k_j / √head_dim) v_j.
//!
//! A layer's cache is keys and values, each [pages, kv_heads, PAGE, head_dim] (where
//! products take pairs of bf16, a head of a page holds its elements in another order: bf16_dot.rs). A sequence has a page
//! table; its token at position p lies in page table[p / PAGE], slot p % PAGE.
//!
//! All scores of a row are kept, so softmax takes its maximum first and no sum is ever rescaled
//! (unlike flash attention). Every sum runs over absolute positions in one order, so a row has the
//! same bits in a prefill, in a chunk of one, and alone in decode. A task is some query rows of one
//! kv head: its pages are read once for all of the task's rows and heads.
//!
//! With an f32 cache, the reference precision, scores, softmax and weighted sums are f64 and each
//! output is rounded once; its bits are the same on every instruction set.

mod backward;
#[cfg(target_arch = "x86_64")]
mod bf16_dot;
mod block;
mod work;

use half::bf16;

use super::context::{Scratch, grown};
use super::pool::Disjoint;
use super::profile;
use super::vector::Scalar;
use super::{Cpu, elements, round};
pub(crate) use backward::{Place, tree};
pub use backward::{Saved, Segment, Tree, backward};
use block::{Block, Kernel};

/// Tokens in a page of the cache.
pub const PAGE: usize = 32;

/// Query vectors (rows × heads of a kv head) of a task: eight tiles of six.
const VECTORS: usize = 48;

/// Bytes of scores a task keeps, if one query row does not need more: half an L2 cache.
const SCORES: usize = 512 * 1024;

/// Sizes of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Consecutive query rows of one sequence at consecutive positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Row of q and out of the first.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Position of the first row in its sequence.
    pub first_position: usize,
    /// Where the sequence's page table lies in `tables`.
    pub table: std::ops::Range<usize>,
}

/// A layer's keys and values, each [pages, kv_heads, PAGE, head_dim]. Read by the instruction set
/// that wrote it: the order of a bf16 page's elements may depend on it.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // the fields are what the type says
pub enum Cache<'a> {
    /// Rounded to bf16.
    Bf16 { keys: &'a [bf16], values: &'a [bf16] },
    /// As computed.
    F32 { keys: &'a [f32], values: &'a [f32] },
}

/// A layer's keys and values, as in [`Cache`], to be written.
#[derive(Debug)]
#[allow(missing_docs)] // the fields are what the type says
pub enum CacheMut<'a> {
    /// Rounded to bf16.
    Bf16 { keys: &'a mut [bf16], values: &'a mut [bf16] },
    /// As computed.
    F32 { keys: &'a mut [f32], values: &'a mut [f32] },
}

/// Writes rows of `k` and `v` [rows, kv_heads, head_dim] to the cache, rounded to nearest even
/// where it is bf16. `slots[i]` = page · PAGE + slot is where row i goes; where two rows share a
/// slot the later one stays.
pub fn append(cpu: &Cpu, cache: CacheMut<'_>, k: &[f32], v: &[f32], slots: &[u32], shape: Shape) {
    let Shape { kv_heads, head_dim, .. } = shape;
    let rows = slots.len();
    shape.check();
    let len = elements([rows, kv_heads, head_dim]);
    assert_eq!(k.len(), len, "k is not [{rows}, {kv_heads}, {head_dim}]");
    assert_eq!(v.len(), len, "v is not [{rows}, {kv_heads}, {head_dim}]");
    let _span = profile::span("attention append", [rows, kv_heads, head_dim], || {
        work::append(&cache, rows, shape)
    });
    match cache {
        #[cfg(target_arch = "x86_64")]
        CacheMut::Bf16 { keys, values } if bf16_dot::suits(cpu.isa(), shape) => {
            bf16_dot::append(cpu, [keys, values], [k, v], slots, shape);
        }
        CacheMut::Bf16 { keys, values } => {
            write(cpu, [keys, values], [k, v], slots, shape, round::row);
        }
        CacheMut::F32 { keys, values } => write(cpu, [keys, values], [k, v], slots, shape, copy),
    }
}

/// Writes attention of each row of `q` [rows, heads, head_dim] to `out` [rows, heads · head_dim].
/// The spans' own keys and values must have been appended. Rows in no span are left alone; spans
/// are in ascending order of rows. With a bf16 cache q is rounded to bf16 first; with an f32 cache
/// everything is computed in f64. `log_sums` [rows, heads], if given, becomes
/// ln Σ_j e^(q·k_j / √head_dim), from which [`backward`] recomputes the probabilities.
#[allow(clippy::too_many_arguments)] // two results, three operands, and where they lie
pub fn forward(
    cpu: &Cpu,
    out: &mut [f32],
    log_sums: Option<&mut [f32]>,
    q: &[f32],
    cache: Cache<'_>,
    tables: &[u32],
    spans: &[Span],
    shape: Shape,
) {
    shape.check();
    let Shape { heads, head_dim, .. } = shape;
    let width = heads * head_dim;
    assert_eq!(q.len() % width, 0, "q of {} is not rows of [{heads}, {head_dim}]", q.len());
    assert_eq!(out.len(), q.len(), "out and q differ in length");
    if let Some(log_sums) = &log_sums {
        assert_eq!(log_sums.len(), q.len() / head_dim, "log-sums are not [rows, {heads}]");
    }
    let _span = profile::span("attention", [q.len() / width, heads, head_dim], || {
        work::forward(cache, q.len(), spans, shape)
    });
    let pages = shape.pages(cache);
    let (mut next_row, mut longest, mut cost) = (0, 0, 0usize);
    for span in spans {
        let Span { first_row, rows, first_position, .. } = *span;
        assert!(
            next_row <= first_row && rows <= (q.len() / width).saturating_sub(first_row),
            "rows {first_row}..+{rows} of {} after row {next_row}",
            q.len() / width
        );
        next_row = first_row + rows;
        if rows == 0 {
            continue;
        }
        let len = first_position.checked_add(rows).expect("positions that can be counted");
        let table = &tables[span.table.clone()];
        assert!(
            len <= table.len() * PAGE,
            "{len} positions in a page table of {} pages",
            table.len()
        );
        for &page in &table[..len.div_ceil(PAGE)] {
            assert!((page as usize) < pages, "page {page} in a cache of {pages} pages");
        }
        longest = longest.max(len);
        cost = cost.saturating_add(rows.saturating_mul(len).saturating_mul(width));
    }
    let scalar = match cache {
        Cache::Bf16 { .. } => size_of::<f32>(),
        Cache::F32 { .. } => size_of::<f64>(),
    };
    let layout = Layout::new(shape, longest, scalar);
    let threads = cpu.threads();
    let Scratch { bf16, f32, scores, scores_f64, log_sums: own_log_sums, .. } = &mut *cpu.scratch();
    let (queries, scores_len) = (threads * layout.queries, threads * layout.scores);
    let vectors = layout.queries / head_dim;
    let log_sums = log_sums.map(|all| LogSums {
        all: Disjoint::new(all),
        own: Disjoint::new(grown(own_log_sums, threads * vectors)),
    });
    let out = Disjoint::new(out);
    let call = Call { cpu, out, log_sums, q, tables, spans, shape, layout, cost };
    match cache {
        #[cfg(target_arch = "x86_64")]
        Cache::Bf16 { keys, values } if bf16_dot::suits(cpu.isa(), shape) => {
            let (rounded, scores) = (grown(bf16, queries), grown(scores, scores_len));
            call.run(rounded, scores, [keys, values], round::row, bf16_dot::attend);
        }
        #[cfg(target_arch = "x86_64")]
        Cache::Bf16 { keys, values } if cpu.isa() == super::Isa::Avx512Bf16 => {
            let (rounded, scores) = (grown(bf16, queries), grown(scores, scores_len));
            call.run(rounded, scores, [keys, values], round::row, block::attend_avx512_bf16);
        }
        Cache::Bf16 { keys, values } => {
            let (rounded, scores) = (grown(f32, queries), grown(scores, scores_len));
            call.run(rounded, scores, [keys, values], round::row, block::attend_widened_on);
        }
        Cache::F32 { keys, values } => {
            let (copied, scores) = (grown(f32, queries), grown(scores_f64, scores_len));
            call.run(copied, scores, [keys, values], copy, block::attend_exact_on);
        }
    }
}

impl Shape {
    fn check(self) {
        let Shape { heads, kv_heads, head_dim } = self;
        assert!(heads > 0 && kv_heads > 0 && head_dim > 0, "empty shape {self:?}");
        assert_eq!(heads % kv_heads, 0, "{heads} heads over {kv_heads} kv heads");
        elements([heads, PAGE, head_dim]);
    }

    /// Number of pages in the cache.
    fn pages(self, cache: Cache<'_>) -> usize {
        let (keys, values) = match cache {
            Cache::Bf16 { keys, values } => (keys.len(), values.len()),
            Cache::F32 { keys, values } => (keys.len(), values.len()),
        };
        let page = self.page();
        assert_eq!(keys, values, "keys and values differ in length");
        assert_eq!(keys % page, 0, "a cache of {keys} is not pages of {page}");
        keys / page
    }

    /// Elements per page.
    fn page(self) -> usize {
        self.kv_heads * PAGE * self.head_dim
    }
}

fn copy(_: &Cpu, y: &mut [f32], x: &[f32]) {
    y.copy_from_slice(x);
}

/// Converts a row to the type of the result: rounds or copies it.
type Convert<T> = fn(&Cpu, &mut [T], &[f32]);

fn write<T: Copy + Send>(
    cpu: &Cpu,
    caches: [&mut [T]; 2],
    inputs: [&[f32]; 2],
    slots: &[u32],
    shape: Shape,
    convert: Convert<T>,
) {
    let Shape { kv_heads, head_dim, .. } = shape;
    let caches = caches.map(Disjoint::new);
    // By kv head, not by row: whatever the slots are, no two tasks write the same place.
    let cost = 2 * slots.len() * head_dim;
    cpu.for_rows(kv_heads, cost, &|first, count| {
        for (cache, x) in caches.iter().zip(inputs) {
            for (row, &slot) in slots.iter().enumerate() {
                let (page, slot) = (slot as usize / PAGE, slot as usize % PAGE);
                for head in first..first + count {
                    let x = &x[(row * kv_heads + head) * head_dim..][..head_dim];
                    let to = ((page * kv_heads + head) * PAGE + slot) * head_dim;
                    // SAFETY: tasks have different heads, whose places in a cache do not overlap.
                    convert(cpu, unsafe { cache.part(to, head_dim) }, x);
                }
            }
        }
    });
}

/// How much a task works on, and the scratch memory a thread has for it.
#[derive(Clone, Copy)]
struct Layout {
    /// Query rows of a task.
    rows: usize,
    /// Elements of scores and weighted sums.
    scores: usize,
    /// Elements of rounded queries.
    queries: usize,
}

impl Layout {
    /// For sequences up to `longest` and scores of `scalar` bytes.
    fn new(shape: Shape, longest: usize, scalar: usize) -> Layout {
        let group = shape.heads / shape.kv_heads;
        let stride = block::stride(longest);
        let rows = (VECTORS / group).min(SCORES / scalar / (group * stride).max(1)).max(1);
        let vectors = rows * group;
        let queries = vectors * shape.head_dim;
        Layout { rows, scores: vectors * stride + queries, queries }
    }
}

/// Destinations of the logarithms of sums.
struct LogSums<'a> {
    /// [rows, heads].
    all: Disjoint<'a, f32>,
    /// Those of the current task, for each thread.
    own: Disjoint<'a, f32>,
}

/// What every task of a call needs.
struct Call<'a> {
    cpu: &'a Cpu,
    out: Disjoint<'a, f32>,
    log_sums: Option<LogSums<'a>>,
    q: &'a [f32],
    tables: &'a [u32],
    spans: &'a [Span],
    shape: Shape,
    layout: Layout,
    cost: usize,
}

impl Call<'_> {
    fn run<X: Copy + Send, T: Sync, S: Scalar>(
        &self,
        queries: &mut [X],
        scores: &mut [S],
        [keys, values]: [&[T]; 2],
        convert: Convert<X>,
        kernel: Kernel<X, T, S>,
    ) {
        /// Products below which waking another thread costs more than it saves.
        const WORTH: usize = 64 * 1024;
        let Call { cpu, shape, layout, .. } = *self;
        let (queries, scores) = (Disjoint::new(queries), Disjoint::new(scores));
        let chunks: usize = self.spans.iter().map(|span| span.rows.div_ceil(layout.rows)).sum();
        let task = |thread: usize, task: usize| {
            // SAFETY: each thread has a part of its own.
            let queries = unsafe { queries.part(thread * layout.queries, layout.queries) };
            // SAFETY: as above.
            let scores = unsafe { scores.part(thread * layout.scores, layout.scores) };
            // The last rows first: they see the most keys, and the small tasks then fill the gaps.
            let (chunk, kv_head) = (chunks - 1 - task / shape.kv_heads, task % shape.kv_heads);
            let vectors = layout.queries / shape.head_dim;
            let log_sums = match &self.log_sums {
                // SAFETY: as above.
                Some(log_sums) => unsafe { log_sums.own.part(thread * vectors, vectors) },
                None => &mut [],
            };
            self.task(chunk, kv_head, queries, scores, log_sums, [keys, values], convert, kernel);
        };
        let tasks = chunks * shape.kv_heads;
        if self.cost <= WORTH {
            (0..tasks).for_each(|index| task(0, index));
        } else {
            cpu.pool().for_each(tasks, &task);
        }
    }

    #[allow(clippy::too_many_arguments)] // one call site; a struct would only rename them
    fn task<X: Copy, T, S: Scalar>(
        &self,
        mut chunk: usize,
        kv_head: usize,
        queries: &mut [X],
        scores: &mut [S],
        log_sums: &mut [f32],
        [keys, values]: [&[T]; 2],
        convert: Convert<X>,
        kernel: Kernel<X, T, S>,
    ) {
        let Shape { heads, kv_heads, head_dim } = self.shape;
        let group = heads / kv_heads;
        let span = self.spans.iter().find(|span| {
            let chunks = span.rows.div_ceil(self.layout.rows);
            let here = chunk < chunks;
            chunk -= if here { 0 } else { chunks };
            here
        });
        let span = span.expect("chunks were counted over the spans");
        let first = chunk * self.layout.rows;
        let rows = self.layout.rows.min(span.rows - first);
        let place =
            |row: usize| ((span.first_row + first + row) * heads + kv_head * group) * head_dim;
        let width = group * head_dim;
        for row in 0..rows {
            let q = &self.q[place(row)..][..width];
            convert(self.cpu, &mut queries[row * width..(row + 1) * width], q);
        }
        let last_len = span.first_position + first + rows;
        let (sums, scores) = scores.split_at_mut(rows * width);
        let table = &self.tables[span.table.clone()][..last_len.div_ceil(PAGE)];
        let wanted = (rows * group).min(log_sums.len());
        let block = Block {
            queries: &queries[..rows * width],
            scores,
            sums: &mut *sums,
            log_sums: &mut log_sums[..wanted],
            keys,
            values,
            table,
            page_stride: self.shape.page(),
            head_offset: kv_head * PAGE * head_dim,
            first_len: last_len + 1 - rows,
            rows,
            group,
            head_dim,
        };
        // SAFETY: `Cpu::with_isa` asserts the instruction set; `forward` asserts that the table's
        // pages exist, and `Block::check` the rest.
        unsafe { kernel(self.cpu.isa(), block.check()) };
        for row in 0..rows {
            // SAFETY: `forward` asserts that spans do not overlap, and tasks differ in rows or head.
            let out = unsafe { self.out.part(place(row), width) };
            for (out, sum) in out.iter_mut().zip(&sums[row * width..(row + 1) * width]) {
                *out = sum.to_f32();
            }
            if let Some(to) = &self.log_sums {
                // SAFETY: as above.
                let to = unsafe { to.all.part(place(row) / head_dim, group) };
                to.copy_from_slice(&log_sums[row * group..(row + 1) * group]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
