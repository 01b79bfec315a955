//! Attention over paged keys and values.

use super::entries::{self, Entry};
use super::launch::{Grid, args, expect};
use super::{Buffer, Error, Gpu};
use crate::cpu::attention::{PAGE, Shape, Span};

/// Keys of a partition, as in attention.cu.
const PARTITION: usize = 512;
/// Query vectors (rows × heads of a kv head) of a block of threads, and of a warp.
const VECTORS: usize = 128;
const WARP_VECTORS: usize = 16;

/// Where the query rows of a pass lie, as the kernels read it. It is made once per pass, for all layers.
#[derive(Debug)]
pub struct AttentionPlan {
    shape: Shape,
    /// Number of pages in the cache.
    pages: usize,
    /// Partitions that runs of few rows get at least; more do not change a bit.
    partitions: usize,
    lists: Lists<Buffer<u32>>,
    /// The same numbers on the host.
    numbers: Lists<Vec<u32>>,
    /// Number of rows of q.
    rows: usize,
}

/// The work items of the kernels.
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

pub(super) fn check(shape: Shape) -> usize {
    let Shape { heads, kv_heads, head_dim } = shape;
    assert!(heads > 0 && kv_heads > 0 && heads.is_multiple_of(kv_heads), "{shape:?}");
    assert!(WIDTHS.contains(&head_dim), "kernels have a head_dim of {WIDTHS:?}, not {head_dim}");
    let group = heads / kv_heads;
    assert!(group <= WARP_VECTORS, "{group} query heads for a kv head: more than 16");
    group
}

/// Head dimensions that have kernels, and the kernel of each.
const WIDTHS: [usize; 4] = [16, 32, 64, 128];
pub(super) type ByWidth = [&'static Entry; 4];

macro_rules! by_width {
    ($($name:ident = $d16:ident $d32:ident $d64:ident $d128:ident;)*) => { $(
        static $name: $crate::cuda::attention::ByWidth =
            [&$crate::cuda::entries::$d16, &$crate::cuda::entries::$d32, &$crate::cuda::entries::$d64, &$crate::cuda::entries::$d128];
    )* };
}
pub(super) use by_width;

by_width! {
    ROWS = ATTENTION_ROWS_16 ATTENTION_ROWS_32 ATTENTION_ROWS_64 ATTENTION_ROWS_128;
    PART = ATTENTION_PART_16 ATTENTION_PART_32 ATTENTION_PART_64 ATTENTION_PART_128;
}

pub(super) fn pick(shape: Shape, by_width: &ByWidth) -> &'static Entry {
    let width = WIDTHS.iter().position(|width| *width == shape.head_dim);
    by_width[width.expect("head_dim was checked")]
}

impl Gpu {
    /// Reference: [`crate::cpu::attention::append`]: writes rows of `k` and `v` `[rows, kv_heads, head_dim]`, rounded
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
        unsafe { self.launch(&entries::ATTENTION_APPEND, grid, args) }
    }

    /// Lays out the work of attention for the rows of `spans` (in ascending order), whose page tables lie in
    /// `tables`, over a cache of `pages` pages. `longest` is a number of keys that runs of few rows get room for:
    /// the plan can then be [rewritten](Gpu::rewrite_plan) for any sequences up to that length, as a captured
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
        let numbers = Lists::new(spans, tables, pages, shape, partitions);
        let [many, parts, runs, tables] = numbers.each().map(|list| self.upload(list));
        let lists = Lists { many: many?, parts: parts?, runs: runs?, tables: tables? };
        let rows = spans.last().map_or(0, |span| span.first_row + span.rows);
        Ok(AttentionPlan { shape, pages, partitions, lists, numbers, rows })
    }

    /// Changes a plan in place to one for other sequences, whose numbers, rows and table lengths are the same. Lists that
    /// stay the same are not copied.
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
        let numbers = Lists::new(spans, tables, pages, shape, partitions);
        let Lists { many, parts, runs, tables } = &mut plan.lists;
        let all = [many, parts, runs, tables].into_iter().zip(plan.numbers.each());
        for ((to, held), list) in all.zip(numbers.each()) {
            assert_eq!(to.len(), list.len(), "a plan for other sequences than it was made for");
            if held != list {
                self.write(to, 0, list)?;
            }
        }
        plan.numbers = numbers;
        plan.rows = spans.last().map_or(0, |span| span.first_row + span.rows);
        Ok(())
    }

    /// Reference: [`crate::cpu::attention::forward`] over a bf16 cache: attention of the plan's rows of `q`
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
        // The sums of a row's partitions, until they are joined.
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
            // Tiles of keys, values and queries; maxima and sums of 4 vectors per thread.
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
            unsafe { self.launch(&entries::ATTENTION_JOIN, grid, args)? };
        }
        Ok(())
    }
}
