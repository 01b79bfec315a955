//! Gradients of attention over sequences that share what they begin with.

use std::cmp::Reverse;
use std::ops::Range;

use super::attention::{by_width, check, pick};
use super::launch::{Grid, args, expect};
use super::{Buffer, Error, Gpu};
use crate::cpu::attention::{Place, Shape, Tree, tree};

/// Keys of a block of threads of attention's backward pass, and query vectors of a tile of ds: as in
/// attention_backward.cu.
const KEYS: usize = 64;
const VECTORS: usize = 32;
/// Bytes of ds that exist at a time, unless 64 keys need more: those of one sequence of 5,600 tokens and 16 heads.
const DS_BYTES: usize = 512 << 20;

/// A block of at most 64 keys of a segment. Queries are counted from the tree's first.
#[derive(Clone, Copy)]
struct KeyBlock {
    /// Row of the first key, and how many there are.
    first_row: usize,
    count: usize,
    /// Row of the tree's first query.
    first_query: usize,
    /// The query whose own key is the first. Less than `least`, also less than 0, where the key has none.
    diagonal: isize,
    /// No query before this one sees the block.
    least: usize,
    /// The queries that see it end here.
    end: usize,
}

/// As the kernels read it, with the tiles of ds before.
const OF_BLOCK: usize = 7;

impl KeyBlock {
    /// The blocks of each of the tree's segments.
    fn of(tree: &Tree) -> impl Iterator<Item = Vec<KeyBlock>> {
        let (first_row, first_query) = (tree.first_row, tree.first_query);
        tree.places().into_iter().map(move |Place { rows, queries, end }| {
            let without = rows.len() - queries.len();
            let block = |first: usize| KeyBlock {
                first_row: first_row + rows.start + first,
                count: KEYS.min(rows.len() - first),
                first_query,
                diagonal: (queries.start + first) as isize - without as isize,
                least: queries.start,
                end,
            };
            (0..rows.len()).step_by(KEYS).map(block).collect()
        })
    }

    /// Tiles of ds that it has, where `group` heads share a head of keys.
    fn tiles(&self, group: usize) -> usize {
        let first = usize::try_from(self.diagonal).unwrap_or(0).max(self.least);
        (self.end * group).div_ceil(VECTORS) - first * group / VECTORS
    }

    fn numbers(&self, tiles_before: usize) -> [u32; OF_BLOCK] {
        let KeyBlock { first_row, count, first_query, diagonal, least, end } = *self;
        let narrow = |number: usize| u32::try_from(number).expect("rows fit 32 bits");
        let diagonal = i32::try_from(diagonal).expect("rows fit 31 bits").cast_unsigned();
        let [first_row, count, first_query] = [first_row, count, first_query].map(narrow);
        let [least, end, tiles_before] = [least, end, tiles_before].map(narrow);
        [first_row, count, first_query, diagonal, least, end, tiles_before]
    }
}

/// Bytes of attention's ds in the backward pass over these trees, at most.
pub fn attention_backward_bytes(trees: &[Tree], shape: Shape) -> usize {
    let group = shape.heads / shape.kv_heads;
    let tile = shape.kv_heads * KEYS * VECTORS * size_of::<u16>();
    let (mut tiles, mut most) = (0, 0);
    for block in trees.iter().flat_map(KeyBlock::of).flatten() {
        let own = block.tiles(group);
        if tiles > 0 && tiles + own > DS_BYTES / tile {
            tiles = 0;
        }
        tiles += own;
        most = tiles.max(most);
    }
    most * tile
}

/// Tiles of a block of query vectors, as in attention_backward.cu.
const TILES: usize = 4;

/// Saved tensors: queries, keys and values of a training batch, and the results of the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a> {
    /// `[queries, heads, head_dim]`, bf16, as forward took them.
    pub q: &'a Buffer<u16>,
    /// `[rows, kv_heads, head_dim]`, bf16, row by row (not in pages).
    pub k: &'a Buffer<u16>,
    /// Values, shaped as k.
    pub v: &'a Buffer<u16>,
    /// The result of the forward pass in f32, shaped as q.
    pub y: &'a Buffer<f32>,
    /// ln Σ e^score, `[queries, heads]`.
    pub log_sums: &'a Buffer<f32>,
}

/// The trees of a training batch, as the kernels read them.
#[derive(Debug)]
pub struct BackwardPlan {
    shape: Shape,
    /// Blocks of 64 keys in the order of rows (see [`KeyBlock::numbers`]).
    table: Buffer<u32>,
    chunks: Vec<Chunk<Buffer<u32>>>,
    rows: usize,
    queries: usize,
}

/// A part of the table whose ds exist at the same time.
#[derive(Debug)]
struct Chunk<T> {
    /// Its places in the table, the longest first.
    keys: T,
    /// Query vectors that see some of them, the longest first: the tree's first query, the tile, the tree's vectors, where in
    /// `seen` their blocks begin, how many they are, and whether these are the first (1) and the last (2) that they see.
    queries: T,
    /// Places in the table.
    seen: T,
    /// Tiles of ds of a kv head.
    tiles: usize,
}

/// Numbers of a chunk's item of query vectors.
const OF_QUERIES_ITEM: usize = 6;

struct Lists {
    table: Vec<[u32; OF_BLOCK]>,
    chunks: Vec<Chunk<Vec<u32>>>,
    rows: usize,
    queries: usize,
}

impl Lists {
    fn new(trees: &[Tree], group: usize, most_tiles: usize) -> Lists {
        tree::check(trees, usize::MAX, usize::MAX);
        let mut table: Vec<[u32; OF_BLOCK]> = Vec::new();
        // Where chunks of the table end, and the tiles of each.
        let (mut cuts, mut chunk_tiles, mut tiles) = (Vec::new(), Vec::new(), 0);
        // How many queries a block serves: what its work is.
        let mut work = Vec::new();
        let mut blocks_of_trees = Vec::new();
        for tree in trees {
            let mut of_tree = Vec::new();
            for blocks in KeyBlock::of(tree) {
                let first = table.len();
                for block in blocks {
                    let own = block.tiles(group);
                    if tiles > 0 && tiles + own > most_tiles {
                        cuts.push(table.len());
                        chunk_tiles.push(std::mem::take(&mut tiles));
                    }
                    table.push(block.numbers(tiles));
                    work.push(own);
                    tiles += own;
                }
                of_tree.push(first..table.len());
            }
            blocks_of_trees.push(of_tree);
        }
        if cuts.last().copied().unwrap_or(0) < table.len() {
            cuts.push(table.len());
            chunk_tiles.push(tiles);
        }
        let mut queries = vec![Vec::new(); cuts.len()];
        for (tree, blocks) in trees.iter().zip(&blocks_of_trees) {
            Lists::queries(tree, blocks, group, &cuts, &mut queries);
        }
        let mut begin = 0;
        let chunks = cuts.iter().zip(chunk_tiles).zip(queries).map(|((&end, tiles), mut items)| {
            let mut keys: Vec<usize> = (std::mem::replace(&mut begin, end)..end).collect();
            // The longest first: small ones then fill the gaps.
            keys.sort_by_key(|&key| Reverse(work[key]));
            items.sort_by_key(|item: &Item| Reverse(item.seen.len()));
            let narrow = |number: usize| u32::try_from(number).expect("rows fit 32 bits");
            let (mut queries, mut seen) = (Vec::new(), Vec::new());
            for Item { first_query, tile, vectors, seen: blocks, ends } in items {
                let item = [first_query, tile, vectors, seen.len(), blocks.len(), ends];
                queries.extend(item.map(narrow));
                seen.extend(blocks.into_iter().map(narrow));
            }
            Chunk { keys: keys.into_iter().map(narrow).collect(), queries, seen, tiles }
        });
        let chunks = chunks.collect();
        let end = |of: fn(&Tree) -> usize| trees.last().map_or(0, of);
        let rows = end(|tree| tree.first_row + tree.rows());
        let queries = end(|tree| tree.first_query + tree.queries());
        Lists { table, chunks, rows, queries }
    }

    /// A tree's query vectors, to each chunk of the table that has keys they may see. `blocks` are the places of each
    /// segment's keys in the table.
    fn queries(
        tree: &Tree,
        blocks: &[Range<usize>],
        group: usize,
        cuts: &[usize],
        lists: &mut [Vec<Item>],
    ) {
        let places = tree.places();
        let vectors = tree.queries() * group;
        for first in (0..vectors).step_by(TILES * VECTORS) {
            let [first_query, last_query] =
                [first, (first + TILES * VECTORS).min(vectors) - 1].map(|vector| vector / group);
            let mut seen: Vec<usize> = Vec::new();
            for (index, Place { rows, queries, .. }) in places.iter().enumerate() {
                if queries.is_empty() || queries.end <= first_query || last_query < queries.start {
                    continue;
                }
                seen.extend(tree.ancestors(index).into_iter().flat_map(|of| blocks[of].clone()));
                let last = last_query.min(queries.end - 1);
                let last_key = rows.len() - (queries.end - last);
                seen.extend(blocks[index].start..=blocks[index].start + last_key / KEYS);
            }
            seen.sort_unstable();
            seen.dedup();
            let mut parts: Vec<(usize, Vec<usize>)> = Vec::new();
            for block in seen {
                let chunk = cuts.partition_point(|&end| end <= block);
                match parts.last_mut() {
                    Some((last, part)) if *last == chunk => part.push(block),
                    _ => parts.push((chunk, vec![block])),
                }
            }
            let count = parts.len();
            for (index, (chunk, seen)) in parts.into_iter().enumerate() {
                let ends = usize::from(index == 0) + 2 * usize::from(index + 1 == count);
                let tile = first / VECTORS;
                let first_query = tree.first_query;
                lists[chunk].push(Item { first_query, tile, vectors, seen, ends });
            }
        }
    }
}

/// An item of a chunk's queries, see [`Chunk`].
#[derive(Clone)]
struct Item {
    first_query: usize,
    tile: usize,
    vectors: usize,
    seen: Vec<usize>,
    ends: usize,
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
        let Lists { table, chunks, rows, queries } = Lists::new(trees, group, most_tiles);
        assert!(rows.max(queries) * group < 1 << 27, "{rows} rows: too many for a pass");
        let chunks = chunks.into_iter().map(|Chunk { keys, queries, seen, tiles }| {
            let [keys, queries, seen] = [&keys, &queries, &seen].map(|list| self.upload(list));
            Ok(Chunk { keys: keys?, queries: queries?, seen: seen?, tiles })
        });
        let chunks = chunks.collect::<Result<_, Error>>()?;
        Ok(BackwardPlan { shape, table: self.upload(table.as_flattened())?, chunks, rows, queries })
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
        let (queries, rows) = (dy.len() / (heads * head_dim), k.len() / (kv_heads * head_dim));
        for (name, x) in [("dy", dy), ("y", y), ("dq", &*dq)] {
            expect(self, name, x, &[queries, heads, head_dim]);
        }
        expect(self, "q", q, &[queries, heads, head_dim]);
        for (name, x) in [("k", k), ("v", v)] {
            expect(self, name, x, &[rows, kv_heads, head_dim]);
        }
        for (name, x) in [("dk", &*dk), ("dv", &*dv)] {
            expect(self, name, x, &[rows, kv_heads, head_dim]);
        }
        expect(self, "log-sums", log_sums, &[queries, heads]);
        assert!(plan.rows <= rows, "trees of {} rows, k has {rows}", plan.rows);
        assert!(plan.queries <= queries, "trees of {} queries, dy has {queries}", plan.queries);
        // L log2(e) and delta of every query vector.
        let numbers = self.uninitialized::<f32>(queries * heads * 2)?;
        let rounded = self.uninitialized::<u16>(dy.len())?;
        let args = args![&numbers, &rounded, dy, y, log_sums, queries * heads];
        let grid = Grid::new((queries * heads).div_ceil(4), 128);
        // SAFETY: a warp reads a vector of dy and y below queries·heads and writes its numbers and copy.
        unsafe { self.launch(pick(shape, &DELTAS), grid, args)? };

        let scale = 1.0 / (head_dim as f32).sqrt();
        let row_bytes = head_dim * size_of::<u16>();
        let tile_bytes = KEYS * VECTORS * size_of::<u16>();
        let most = plan.chunks.iter().map(|chunk| chunk.tiles).max().unwrap_or(0);
        let ds = self.uninitialized::<u16>(most * kv_heads * KEYS * VECTORS)?;
        let table = &plan.table;
        for Chunk { keys, queries, seen, tiles } in &plan.chunks {
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
            let blocks = [queries.len() / OF_QUERIES_ITEM, kv_heads, 1];
            let grid = Grid { blocks, threads: 128, shared_bytes };
            let args = args![
                &*dq, &ds, seen, q, k, v, &rounded, &numbers, table, queries, kv_heads, group,
                tiles, scale
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
        let tree = Tree::of_prompt(0, 68, &[]);
        let tile = 2 * 64 * 32 * 2;
        assert_eq!(attention_backward_bytes(&[tree], shape), 6 * tile);
        // Of one long sequence a part.
        let shape = Shape { heads: 16, kv_heads: 8, head_dim: 128 };
        let long = Tree::of_prompt(0, 8192, &[]);
        let bytes = attention_backward_bytes(&[long], shape);
        assert!((DS_BYTES * 9 / 10..=DS_BYTES).contains(&bytes), "{bytes}");
    }
}
