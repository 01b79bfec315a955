//! Gradients of attention over sequences that share their prompt.

use std::cmp::Reverse;
use std::ops::Range;

use super::attention::{by_width, check, pick};
use super::launch::{Grid, args, expect};
use super::{Buffer, Error, Gpu};
use crate::cpu::attention::{Shape, Tree};

/// Keys of a block of threads of attention's backward pass, and query vectors of a tile of ds: as in
/// attention_backward.cu.
const KEYS: usize = 64;
const VECTORS: usize = 32;
/// Bytes of ds that exist at a time, unless 64 keys need more: those of one sequence of 5,600 tokens and 16 heads.
const DS_BYTES: usize = 512 << 20;

/// Tiles of ds that 64 keys of a tree have: those of the query vectors from row `first` to row `end`, where
/// `group` heads share a head of keys.
fn tiles_of_keys(first: usize, end: usize, group: usize) -> usize {
    (end * group).div_ceil(VECTORS) - first * group / VECTORS
}

/// Bytes of attention's ds in the backward pass over these trees, at most.
pub fn attention_backward_bytes(trees: &[Tree], shape: Shape) -> usize {
    let group = shape.heads / shape.kv_heads;
    let tile = shape.kv_heads * KEYS * VECTORS * size_of::<u16>();
    let (mut tiles, mut most) = (0, 0);
    for tree in trees {
        let mut begin = 0;
        for (index, len) in
            std::iter::once(tree.prompt).chain(tree.branches.iter().copied()).enumerate()
        {
            let end = if index == 0 { tree.rows() } else { begin + len };
            for first in (begin..begin + len).step_by(KEYS) {
                let seen = tiles_of_keys(first, end, group);
                if tiles > 0 && tiles + seen > DS_BYTES / tile {
                    tiles = 0;
                }
                tiles += seen;
                most = tiles.max(most);
            }
            begin += len;
        }
    }
    most * tile
}

/// Tiles of a block of query vectors, as in attention_backward.cu.
const TILES: usize = 4;

/// Saved tensors: queries, keys and values of a training batch, and the results of the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a> {
    /// `[rows, heads, head_dim]`, bf16, as forward took them.
    pub q: &'a Buffer<u16>,
    /// `[rows, kv_heads, head_dim]`, bf16, row by row (not in pages).
    pub k: &'a Buffer<u16>,
    /// Values, shaped as k.
    pub v: &'a Buffer<u16>,
    /// The result of the forward pass in f32, shaped as q.
    pub y: &'a Buffer<f32>,
    /// ln Σ e^score, `[rows, heads]`.
    pub log_sums: &'a Buffer<f32>,
}

/// The trees of a training batch, as the kernels read them.
#[derive(Debug)]
pub struct BackwardPlan {
    shape: Shape,
    /// Blocks of 64 keys in the order of rows: first row, rows, the tree's first row, end of the rows that see them,
    /// tiles of ds before.
    table: Buffer<u32>,
    chunks: Vec<Chunk<Buffer<u32>>>,
    rows: usize,
}

/// A part of the table whose ds exist at the same time.
#[derive(Debug)]
struct Chunk<T> {
    /// Its places in the table, the longest first.
    keys: T,
    /// Query vectors that see some of them, the longest first: eight numbers each.
    queries: T,
    /// Tiles of ds of a kv head.
    tiles: usize,
}

/// Segments of a tree as rows from its first on, and their blocks of keys.
struct Segment {
    rows: Range<usize>,
    blocks: Range<usize>,
}

struct Lists {
    table: Vec<[usize; 5]>,
    chunks: Vec<Chunk<Vec<u32>>>,
    rows: usize,
}

impl Lists {
    fn new(trees: &[Tree], group: usize, most_tiles: usize) -> Lists {
        let (mut table, mut segments) = (Vec::new(), Vec::new());
        // Ends of chunks in the table.
        let (mut cuts, mut tiles, mut chunk_tiles) = (Vec::new(), 0, Vec::new());
        let mut next = 0;
        for tree in trees {
            let Tree { first_row, prompt, ref branches } = *tree;
            assert!(next <= first_row, "rows of trees overlap");
            next = first_row + tree.rows();
            let (mut of_tree, mut begin) = (Vec::new(), 0);
            for (index, len) in std::iter::once(prompt).chain(branches.iter().copied()).enumerate()
            {
                let rows = begin..begin + len;
                let end = if index == 0 { tree.rows() } else { rows.end };
                let first_block = table.len();
                for first in rows.clone().step_by(KEYS) {
                    let seen = tiles_of_keys(first, end, group);
                    if tiles > 0 && tiles + seen > most_tiles {
                        cuts.push(table.len());
                        chunk_tiles.push(std::mem::take(&mut tiles));
                    }
                    let count = KEYS.min(rows.end - first);
                    table.push([first_row + first, count, first_row, first_row + end, tiles]);
                    tiles += seen;
                }
                begin = rows.end;
                of_tree.push(Segment { rows, blocks: first_block..table.len() });
            }
            segments.push(of_tree);
        }
        if tiles > 0 {
            cuts.push(table.len());
            chunk_tiles.push(tiles);
        }
        let mut queries = vec![Vec::new(); cuts.len()];
        for (tree, segments) in trees.iter().zip(&segments) {
            Self::queries(tree, segments, group, &cuts, &mut queries);
        }
        let mut begin = 0;
        let chunks =
            cuts.iter().zip(chunk_tiles).zip(queries).map(|((end, tiles), mut queries)| {
                let mut keys: Vec<usize> = (std::mem::replace(&mut begin, *end)..*end).collect();
                // The longest first: small ones then fill the gaps.
                keys.sort_by_key(|key| Reverse(table[*key][3] - table[*key][0]));
                queries.sort_by_key(|[_, _, _, a, b, c, d, _]| Reverse(b - a + d - c));
                let narrow = |number: usize| u32::try_from(number).expect("rows fit 32 bits");
                let keys = keys.into_iter().map(narrow).collect();
                let queries = queries.into_iter().flatten().map(narrow).collect();
                Chunk { keys, queries, tiles }
            });
        let chunks = chunks.collect();
        Lists { table, chunks, rows: next }
    }

    /// A tree's query vectors, to each chunk of the table that has keys they may see.
    fn queries(
        tree: &Tree,
        segments: &[Segment],
        group: usize,
        cuts: &[usize],
        lists: &mut [Vec<[usize; 8]>],
    ) {
        let vectors = tree.rows() * group;
        let prompt = &segments[0];
        for first in (0..vectors).step_by(TILES * VECTORS) {
            let [first_row, last_row] =
                [first, (first + TILES * VECTORS).min(vectors) - 1].map(|vector| vector / group);
            let seen = prompt.blocks.len().min(last_row / KEYS + 1);
            let of_prompt = prompt.blocks.start..prompt.blocks.start + seen;
            let has = |row: usize| segments.iter().find(|segment| segment.rows.contains(&row));
            let others = if last_row < prompt.rows.end {
                0..0
            } else {
                let [begin, end] = [first_row.max(prompt.rows.end), last_row]
                    .map(|row| has(row).expect("every row has a segment"));
                begin.blocks.start..end.blocks.start + (last_row - end.rows.start) / KEYS + 1
            };
            let within = |range: &Range<usize>, chunk: usize| {
                let begin = if chunk == 0 { 0 } else { cuts[chunk - 1] };
                let start = range.start.clamp(begin, cuts[chunk]);
                start..range.end.clamp(start, cuts[chunk])
            };
            let parts: Vec<_> = (0..cuts.len())
                .map(|chunk| (chunk, within(&of_prompt, chunk), within(&others, chunk)))
                .filter(|(_, a, b)| a.len() + b.len() > 0)
                .collect();
            for (index, (chunk, a, b)) in parts.iter().enumerate() {
                let ends = usize::from(index == 0) + 2 * usize::from(index + 1 == parts.len());
                let tile = first / VECTORS;
                lists[*chunk].push([
                    tree.first_row,
                    tile,
                    vectors,
                    a.start,
                    a.end,
                    b.start,
                    b.end,
                    ends,
                ]);
            }
        }
    }
}

by_width! {
    DELTAS = ATTENTION_BACKWARD_DELTAS_16 ATTENTION_BACKWARD_DELTAS_32
        ATTENTION_BACKWARD_DELTAS_64 ATTENTION_BACKWARD_DELTAS_128;
    OF_KEYS = ATTENTION_BACKWARD_KEYS_16 ATTENTION_BACKWARD_KEYS_32
        ATTENTION_BACKWARD_KEYS_64 ATTENTION_BACKWARD_KEYS_128;
    OF_QUERIES = ATTENTION_BACKWARD_QUERIES_16 ATTENTION_BACKWARD_QUERIES_32
        ATTENTION_BACKWARD_QUERIES_64 ATTENTION_BACKWARD_QUERIES_128;
}

impl Gpu {
    /// Lays out the work of [`Gpu::attention_backward`].
    pub fn backward_plan(&self, trees: &[Tree], shape: Shape) -> Result<BackwardPlan, Error> {
        self.backward_plan_within(trees, shape, DS_BYTES)
    }

    /// As [`Gpu::backward_plan`], with at most `ds_bytes` bytes of ds at a time. No bit depends on it.
    pub(crate) fn backward_plan_within(
        &self,
        trees: &[Tree],
        shape: Shape,
        ds_bytes: usize,
    ) -> Result<BackwardPlan, Error> {
        let group = check(shape);
        let most_tiles = ds_bytes / (shape.kv_heads * KEYS * VECTORS * size_of::<u16>());
        let lists = Lists::new(trees, group, most_tiles);
        assert!(lists.rows * group < 1 << 27, "{} rows: too many for a pass", lists.rows);
        let table: Vec<u32> = lists.table.iter().flatten().map(|number| *number as u32).collect();
        let chunks = lists.chunks.into_iter().map(|Chunk { keys, queries, tiles }| {
            Ok(Chunk { keys: self.upload(&keys)?, queries: self.upload(&queries)?, tiles })
        });
        let chunks = chunks.collect::<Result<_, Error>>()?;
        Ok(BackwardPlan { shape, table: self.upload(&table)?, chunks, rows: lists.rows })
    }

    /// Reference: [`crate::cpu::attention::backward`]: the gradients of q, k and v, given that of y, for the rows
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
        // L log2(e) and delta of every query vector.
        let numbers = self.uninitialized::<f32>(rows * heads * 2)?;
        let rounded = self.uninitialized::<u16>(dy.len())?;
        let args = args![&numbers, &rounded, dy, y, log_sums, rows * heads];
        let grid = Grid::new((rows * heads).div_ceil(4), 128);
        // SAFETY: a warp reads a vector of dy and y below rows·heads and writes its numbers and copy.
        unsafe { self.launch(pick(shape, &DELTAS), grid, args)? };

        let scale = 1.0 / (head_dim as f32).sqrt();
        let row_bytes = head_dim * size_of::<u16>();
        let tile_bytes = KEYS * VECTORS * size_of::<u16>();
        let most = plan.chunks.iter().map(|chunk| chunk.tiles).max().unwrap_or(0);
        let ds = self.uninitialized::<u16>(most * kv_heads * KEYS * VECTORS)?;
        let table = &plan.table;
        for Chunk { keys, queries, tiles } in &plan.chunks {
            let tiles = *tiles;
            // Two stages of q, dy and numbers of 32 vectors, where keys and values lie first.
            let shared_bytes = 2 * (2 * VECTORS * row_bytes + VECTORS * 8);
            // A warp has 16 keys, or 32 of small heads.
            let threads = if head_dim > 64 { 128 } else { 64 };
            let grid = Grid { blocks: [keys.len(), kv_heads, 1], threads, shared_bytes };
            let args = args![
                &*dk, &*dv, &ds, q, k, v, &rounded, &numbers, table, keys, kv_heads, group, tiles,
                scale
            ];
            // SAFETY: the table names rows that exist, by the plan and the assert above, and as many tiles of ds as
            // the largest chunk has.
            unsafe { self.launch(pick(shape, &OF_KEYS), grid, args)? };
            // Two stages of keys and of four tiles of ds.
            let shared_bytes = 2 * (KEYS * row_bytes + TILES * tile_bytes);
            let blocks = [queries.len() / 8, kv_heads, 1];
            let grid = Grid { blocks, threads: 128, shared_bytes };
            let args = args![
                &*dq, &ds, q, k, v, &rounded, &numbers, table, queries, kv_heads, group, tiles,
                scale
            ];
            // SAFETY: as above; of ds those tiles are read that the keys of this chunk have written.
            unsafe { self.launch(pick(shape, &OF_QUERIES), grid, args)? };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_of_scores_by_hand() {
        let shape = Shape { heads: 4, kv_heads: 2, head_dim: 16 };
        // 64 keys: 128 and then 8 vectors in 5 tiles; 4 keys: 8 vectors in 1.
        let tree = Tree { first_row: 0, prompt: 68, branches: vec![] };
        let tile = 2 * 64 * 32 * 2;
        assert_eq!(attention_backward_bytes(&[tree], shape), 6 * tile);
        // Of one long sequence a part.
        let shape = Shape { heads: 16, kv_heads: 8, head_dim: 128 };
        let long = Tree { first_row: 0, prompt: 8192, branches: vec![] };
        let bytes = attention_backward_bytes(&[long], shape);
        assert!((DS_BYTES * 9 / 10..=DS_BYTES).contains(&bytes), "{bytes}");
    }
}
