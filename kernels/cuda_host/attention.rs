//! Attention over paged keys and values, and its gradients.

use super::launch::{Grid, args, expect};
use super::{Buffer, Error, Gpu};
use crate::cpu::attention::{PAGE, Shape, Span, Tree};
use crate::ptx::{self, Entry};

/// Keys of a partition, as in attention.cu.
const PARTITION: usize = 512;
/// Query vectors (rows × heads of a kv head) of a block of threads, and of a warp.
const VECTORS: usize = 128;
const WARP_VECTORS: usize = 16;

/// Where the query rows of a pass stand, as the kernels want it: made once a pass, for all of its layers.
#[derive(Debug)]
pub struct AttentionPlan {
    shape: Shape,
    /// Pages the cache has.
    pages: usize,
    /// Partitions that runs of few rows get at least; more do not change a bit.
    partitions: usize,
    lists: Lists<Buffer<u32>>,
    /// Rows that q must have.
    rows: usize,
}

/// Work items.
#[derive(Clone, Debug, Default)]
struct Lists<T> {
    /// Blocks of many vectors, which take all partitions: 5 numbers each.
    many: T,
    /// Partitions of runs of few rows: 5 numbers each.
    parts: T,
    /// Those runs: 4 numbers each.
    runs: T,
    tables: T,
}

impl<T> Lists<T> {
    fn each(&self) -> [&T; 4] {
        [&self.many, &self.parts, &self.runs, &self.tables]
    }
}

impl Lists<Vec<u32>> {
    fn new(spans: &[Span], tables: &[u32], pages: usize, shape: Shape, partitions: usize) -> Self {
        let group = shape.heads / shape.kv_heads;
        let mut lists = Lists { tables: tables.to_vec(), ..Lists::default() };
        let mut many = Vec::new();
        let mut next_row = 0;
        for span in spans {
            let Span { first_row, rows, first_position, ref table } = *span;
            assert!(next_row <= first_row, "rows of spans overlap or descend");
            next_row = first_row + rows;
            let len = first_position + rows;
            let held = &tables[table.clone()];
            let needed = if rows > 0 { len.div_ceil(PAGE) } else { 0 };
            assert!(needed <= held.len(), "{len} positions in {} pages", held.len());
            for &page in &held[..needed] {
                assert!((page as usize) < pages, "page {page} in a cache of {pages} pages");
            }
            let item = |first: usize, rows: usize, partition: usize| {
                [first_row + first, rows, first_position + first, table.start, partition]
                    .map(|number| number as u32)
            };
            if rows == 0 {
                continue;
            }
            if rows * group <= WARP_VECTORS {
                let first_item = lists.parts.len() / 5;
                let count = len.div_ceil(PARTITION).max(partitions);
                (0..count).for_each(|partition| lists.parts.extend(item(0, rows, partition)));
                let run = [first_row, rows, first_item, count];
                lists.runs.extend(run.map(|number| number as u32));
                continue;
            }
            let step = VECTORS / group;
            for first in (0..rows).step_by(step) {
                many.push(item(first, step.min(rows - first), 0));
            }
        }
        // Those with the most keys first: small ones then fill the gaps.
        many.sort_by_key(|[_, rows, position, ..]| std::cmp::Reverse(position + rows));
        lists.many = many.into_iter().flatten().collect();
        lists
    }
}

/// Queries, keys and values of a training batch as its gradients need them, and what forward gave.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a> {
    /// `[rows, heads, head_dim]`, bf16, as forward took them.
    pub q: &'a Buffer<u16>,
    /// `[rows, kv_heads, head_dim]`, bf16, row by row (not in pages).
    pub k: &'a Buffer<u16>,
    /// As k.
    pub v: &'a Buffer<u16>,
    /// Forward's result in f32, as q.
    pub y: &'a Buffer<f32>,
    /// `[rows, heads]`.
    pub log_sums: &'a Buffer<f32>,
}

/// The trees of a training batch, as the gradients' kernels want them.
#[derive(Debug)]
pub struct BackwardPlan {
    shape: Shape,
    keys: Buffer<u32>,
    queries: Buffer<u32>,
    rows: usize,
}

fn check(shape: Shape) -> usize {
    let Shape { heads, kv_heads, head_dim } = shape;
    assert!(heads > 0 && kv_heads > 0 && heads.is_multiple_of(kv_heads), "{shape:?}");
    assert!(WIDTHS.contains(&head_dim), "kernels have a head_dim of {WIDTHS:?}, not {head_dim}");
    let group = heads / kv_heads;
    assert!(group <= WARP_VECTORS, "{group} query heads for a kv head: more than 16");
    group
}

/// Head sizes that there are kernels for, and the kernel for each.
const WIDTHS: [usize; 4] = [16, 32, 64, 128];
type ByWidth = [&'static Entry; 4];

macro_rules! by_width {
    ($($name:ident = $d16:ident $d32:ident $d64:ident $d128:ident;)*) => { $(
        static $name: ByWidth = [&ptx::$d16, &ptx::$d32, &ptx::$d64, &ptx::$d128];
    )* };
}

by_width! {
    ROWS = ATTENTION_ROWS_16 ATTENTION_ROWS_32 ATTENTION_ROWS_64 ATTENTION_ROWS_128;
    PART = ATTENTION_PART_16 ATTENTION_PART_32 ATTENTION_PART_64 ATTENTION_PART_128;
    DELTAS = ATTENTION_BACKWARD_DELTAS_16 ATTENTION_BACKWARD_DELTAS_32
        ATTENTION_BACKWARD_DELTAS_64 ATTENTION_BACKWARD_DELTAS_128;
    OF_KEYS = ATTENTION_BACKWARD_KEYS_16 ATTENTION_BACKWARD_KEYS_32
        ATTENTION_BACKWARD_KEYS_64 ATTENTION_BACKWARD_KEYS_128;
    OF_QUERIES = ATTENTION_BACKWARD_QUERIES_16 ATTENTION_BACKWARD_QUERIES_32
        ATTENTION_BACKWARD_QUERIES_64 ATTENTION_BACKWARD_QUERIES_128;
}

fn pick(shape: Shape, by_width: &ByWidth) -> &'static Entry {
    let width = WIDTHS.iter().position(|width| *width == shape.head_dim);
    by_width[width.expect("head_dim was checked")]
}

impl Gpu {
    /// Twin of [`crate::cpu::attention::append`]: writes rows of `k` and `v` `[rows, kv_heads, head_dim]`, rounded
    /// to bf16, to `slots` (page · PAGE + place) of keys and values `[pages, kv_heads, PAGE, head_dim]`. The slots
    /// must lie in the cache and differ from each other.
    pub fn attention_append(
        &self,
        [keys, values]: [&mut Buffer<u16>; 2],
        [k, v]: [&Buffer<f32>; 2],
        slots: &Buffer<u32>,
        shape: Shape,
    ) -> Result<(), Error> {
        check(shape);
        let Shape { kv_heads, head_dim, .. } = shape;
        let rows = slots.len();
        expect(self, "k", k, &[rows, kv_heads, head_dim]);
        expect(self, "v", v, &[rows, kv_heads, head_dim]);
        let pages = keys.len() / (kv_heads * PAGE * head_dim);
        expect(self, "keys", keys, &[pages, kv_heads, PAGE, head_dim]);
        expect(self, "values", values, &[pages, kv_heads, PAGE, head_dim]);
        expect(self, "slots", slots, &[rows]);
        let args = args![keys, values, k, v, slots, rows, kv_heads, head_dim];
        let grid = Grid::over(rows * kv_heads * head_dim, 4, 256);
        // SAFETY: a thread reads four elements of a row below `rows` and writes them to its slot, which the
        // caller keeps within the cache.
        unsafe { self.launch(&ptx::ATTENTION_APPEND, grid, args) }
    }

    /// Lays out the work of attention for the rows of `spans` (in ascending order), whose page tables lie in
    /// `tables`, over a cache of `pages` pages. `longest` is a number of keys that runs of few rows get room for:
    /// the plan can then be [rewritten](Gpu::rewrite_plan) for any sequences up to that length, as a recorded
    /// decoding step needs.
    pub fn attention_plan(
        &self,
        spans: &[Span],
        tables: &[u32],
        pages: usize,
        shape: Shape,
        longest: usize,
    ) -> Result<AttentionPlan, Error> {
        check(shape);
        let partitions = longest.div_ceil(PARTITION);
        let lists = Lists::new(spans, tables, pages, shape, partitions);
        let [many, parts, runs, tables] = lists.each().map(|list| self.upload(list));
        let lists = Lists { many: many?, parts: parts?, runs: runs?, tables: tables? };
        let rows = spans.last().map_or(0, |span| span.first_row + span.rows);
        Ok(AttentionPlan { shape, pages, partitions, lists, rows })
    }

    /// Makes a plan that of other sequences, in place: as many, of as many rows, with tables as long.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn rewrite_plan(
        &self,
        plan: &mut AttentionPlan,
        spans: &[Span],
        tables: &[u32],
    ) -> Result<(), Error> {
        let AttentionPlan { shape, pages, partitions, .. } = *plan;
        let lists = Lists::new(spans, tables, pages, shape, partitions);
        let Lists { many, parts, runs, tables } = &mut plan.lists;
        for (to, from) in [many, parts, runs, tables].into_iter().zip(lists.each()) {
            assert_eq!(to.len(), from.len(), "a plan for other sequences than it was made for");
            self.write(to, 0, from)?;
        }
        plan.rows = spans.last().map_or(0, |span| span.first_row + span.rows);
        Ok(())
    }

    /// Twin of [`crate::cpu::attention::forward`] over a bf16 cache: attention of the plan's rows of `q`
    /// `[rows, heads, head_dim]` to `out` `[rows, heads · head_dim]`, rounded to bf16. `kept`, if given, becomes
    /// the result in f32 and ln Σ e^score `[rows, heads]`, which [`Gpu::attention_backward`] needs.
    pub fn attention(
        &self,
        out: &mut Buffer<u16>,
        kept: Option<[&mut Buffer<f32>; 2]>,
        q: &Buffer<u16>,
        [keys, values]: [&Buffer<u16>; 2],
        plan: &AttentionPlan,
    ) -> Result<(), Error> {
        let shape = plan.shape;
        let Shape { heads, kv_heads, head_dim } = shape;
        let group = check(shape);
        let rows = q.len() / (heads * head_dim);
        expect(self, "q", q, &[rows, heads, head_dim]);
        expect(self, "out", out, &[rows, heads, head_dim]);
        assert!(plan.rows <= rows, "a plan of {} rows, q has {rows}", plan.rows);
        expect(self, "keys", keys, &[plan.pages, kv_heads, PAGE, head_dim]);
        expect(self, "values", values, &[plan.pages, kv_heads, PAGE, head_dim]);
        let [exact, log_sums] = match kept {
            Some([exact, log_sums]) => {
                expect(self, "out in f32", exact, &[rows, heads, head_dim]);
                expect(self, "log-sums", log_sums, &[rows, heads]);
                [Some(&*exact), Some(&*log_sums)]
            }
            None => [None; 2],
        };
        // Where sums of a row's first partitions wait for the others.
        let waiting = match exact {
            None if !plan.lists.many.is_empty() => Some(self.uninitialized::<f32>(q.len())?),
            _ => None,
        };
        let scale = std::f32::consts::LOG2_E / (head_dim as f32).sqrt();
        let Lists { many, parts, runs, tables } = &plan.lists;
        let row_bytes = head_dim * size_of::<u16>();
        if !many.is_empty() {
            let entry = pick(shape, &ROWS);
            let blocks = [many.len() / 5, kv_heads, 1];
            // Tiles of keys, values and queries; maxima and sums of 4 vectors a thread.
            let shared_bytes = (64 + 64 + VECTORS) * row_bytes + 128 * 8 * size_of::<f32>();
            let grid = Grid { blocks, threads: 128, shared_bytes };
            let waiting = exact.or(waiting.as_ref());
            let args = args![
                &*out, waiting, log_sums, q, keys, values, tables, many, kv_heads, group, scale
            ];
            // SAFETY: items name rows of q and pages of the cache that exist, by the plan's asserts and those
            // above.
            unsafe { self.launch(entry, grid, args)? };
        }
        if !parts.is_empty() {
            let items = parts.len() / 5;
            let slots = items * kv_heads * WARP_VECTORS;
            let sums = self.uninitialized::<f32>(slots * head_dim)?;
            let ends = self.uninitialized::<f32>(slots * 2)?;
            let entry = pick(shape, &PART);
            let shared_bytes = (64 + 64 + WARP_VECTORS) * row_bytes;
            let grid = Grid { blocks: [items, kv_heads, 1], threads: 32, shared_bytes };
            let args = args![&sums, &ends, q, keys, values, tables, parts, kv_heads, group, scale];
            // SAFETY: as above; an item has its own slots.
            unsafe { self.launch(entry, grid, args)? };
            let grid =
                Grid { blocks: [runs.len() / 4, kv_heads, 1], threads: 128, shared_bytes: 0 };
            let args =
                args![out, exact, log_sums, &sums, &ends, runs, kv_heads, group, head_dim, scale];
            // SAFETY: runs name rows of q and items that exist.
            unsafe { self.launch(&ptx::ATTENTION_JOIN, grid, args)? };
        }
        Ok(())
    }

    /// Lays out the work of [`Gpu::attention_backward`].
    pub fn backward_plan(&self, trees: &[Tree], shape: Shape) -> Result<BackwardPlan, Error> {
        let group = check(shape);
        let (mut keys, mut queries) = (Vec::new(), Vec::new());
        let mut next = 0;
        for tree in trees {
            let Tree { first_row, prompt, ref branches } = *tree;
            assert!(next <= first_row, "rows of trees overlap");
            next = first_row + tree.rows();
            let mut segment = first_row;
            for (index, len) in std::iter::once(prompt).chain(branches.iter().copied()).enumerate()
            {
                let (before, end) = if index == 0 { (0, next) } else { (prompt, segment + len) };
                for first in (0..len).step_by(64) {
                    keys.push([segment + first, 64.min(len - first), end]);
                }
                let step = 64 / group;
                for first in (0..len).step_by(step) {
                    let count = step.min(len - first);
                    queries.push([segment + first, count, first_row, before, segment]);
                }
                segment += len;
            }
        }
        // The longest first: small ones then fill the gaps.
        keys.sort_by_key(|[first, _, end]| std::cmp::Reverse(end - first));
        queries.sort_by_key(|[first, _, _, prompt, segment]| {
            std::cmp::Reverse(prompt + first - segment)
        });
        let keys: Vec<u32> = keys.iter().flatten().map(|number| *number as u32).collect();
        let queries: Vec<u32> = queries.iter().flatten().map(|number| *number as u32).collect();
        Ok(BackwardPlan {
            shape,
            keys: self.upload(&keys)?,
            queries: self.upload(&queries)?,
            rows: next,
        })
    }

    /// Twin of [`crate::cpu::attention::backward`]: the gradients of q, k and v, given that of y, for the rows
    /// of the plan's trees; other rows are left alone.
    pub fn attention_backward(
        &self,
        [dq, dk, dv]: [&mut Buffer<f32>; 3],
        dy: &Buffer<f32>,
        saved: AttentionSaved<'_>,
        plan: &BackwardPlan,
    ) -> Result<(), Error> {
        let shape = plan.shape;
        let Shape { heads, kv_heads, head_dim } = shape;
        let group = check(shape);
        let AttentionSaved { q, k, v, y, log_sums } = saved;
        let rows = dy.len() / (heads * head_dim);
        for (name, x) in [("dy", dy), ("y", y), ("dq", &*dq)] {
            expect(self, name, x, &[rows, heads, head_dim]);
        }
        expect(self, "q", q, &[rows, heads, head_dim]);
        for (name, x) in [("k", k), ("v", v)] {
            expect(self, name, x, &[rows, kv_heads, head_dim]);
        }
        for (name, x) in [("dk", &*dk), ("dv", &*dv)] {
            expect(self, name, x, &[rows, kv_heads, head_dim]);
        }
        expect(self, "log-sums", log_sums, &[rows, heads]);
        assert!(plan.rows <= rows, "trees of {} rows, dy has {rows}", plan.rows);
        let delta = self.uninitialized::<f32>(rows * heads)?;
        let rounded = self.uninitialized::<u16>(dy.len())?;
        let args = args![&delta, &rounded, dy, y, rows * heads];
        let grid = Grid::new((rows * heads).div_ceil(4), 128);
        // SAFETY: a warp reads a vector of dy and y below rows·heads and writes its delta and copy.
        unsafe { self.launch(pick(shape, &DELTAS), grid, args)? };

        let scale = 1.0 / (head_dim as f32).sqrt();
        let row_bytes = head_dim * size_of::<u16>();
        // Two tiles of 64 rows, a ring of two stages of two tiles of 32; with keys, L and delta of a stage.
        let shared_bytes = (2 * 64 + 4 * 32) * row_bytes;
        let blocks = [plan.keys.len() / 3, kv_heads, 1];
        let grid = Grid { blocks, threads: 128, shared_bytes: shared_bytes + 4 * 32 * 4 };
        let args =
            args![dk, dv, q, k, v, &rounded, log_sums, &delta, &plan.keys, kv_heads, group, scale];
        // SAFETY: items name rows that exist, by the plan and the assert above.
        unsafe { self.launch(pick(shape, &OF_KEYS), grid, args)? };
        let blocks = [plan.queries.len() / 5, kv_heads, 1];
        let grid = Grid { blocks, threads: 128, shared_bytes };
        let args =
            args![dq, q, k, v, &rounded, log_sums, &delta, &plan.queries, kv_heads, group, scale];
        // SAFETY: as above.
        unsafe { self.launch(pick(shape, &OF_QUERIES), grid, args) }
    }
}
