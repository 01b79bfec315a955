//! What kernels take of a GPU's memory, by shape: for the prediction of a run without a GPU, the same in builds
//! with and without feature `cuda`.

use crate::cpu::{
    attention::{Shape, Tree},
    log_prob::VOCAB_BLOCK,
};

/// Logits that exist at a time: 32 MB, which stay in an A100's second-level cache between the kernels.
const LOGITS: usize = 8 << 20;
/// Blocks of the vocabulary in a part, at most: those one pass of the kernel takes.
const BLOCKS: usize = 16;

/// Keys of a block of threads of attention's backward pass, and query vectors of a tile of ds: as in
/// attention_backward.cu.
pub(crate) const KEYS: usize = 64;
pub(crate) const VECTORS: usize = 32;
/// Bytes of ds that exist at a time, unless 64 keys need more: those of one sequence of 5,600 tokens and 16 heads.
pub(crate) const DS_BYTES: usize = 512 << 20;

/// Up to this many rows a product streams the weights once (in a block of 64 rows each): decoding.
pub const FEW_ROWS: usize = 128;

/// Rows of x in a chunk of a factor's gradient: eight times the blocks for a batch of 4,096 rows.
pub(crate) const CHUNK: usize = 512;

/// Elements of k in a part of a low-rank product's sums, as in matmul.cu.
pub(crate) const PART: usize = 256;

/// What a buffer of so many bytes takes. Sizes are multiples of 512 bytes, and above 4 KiB of an eighth of their
/// power of two, so that sizes which differ little share memory and at most an eighth is wasted.
pub fn buffer_bytes(bytes: usize) -> usize {
    let step = (bytes.max(1).next_power_of_two() / 16).max(512);
    bytes.max(1).next_multiple_of(step)
}

/// Bytes that the pool takes for a large buffer that lasts, of so many bytes.
pub fn lasting_bytes(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(512)
}

/// Tokens of the vocabulary whose logits exist at a time for so many rows, but for the last part.
pub fn logits_columns(rows: usize) -> usize {
    (LOGITS / rows.max(1) / VOCAB_BLOCK).clamp(1, BLOCKS) * VOCAB_BLOCK
}

/// Values of f32 that wait to be added in the gradient of a LoRA factor `[rank, n]` over `rows`.
pub fn gradient_sums(rows: usize, rank: usize, n: usize) -> usize {
    rows.div_ceil(CHUNK) * 2 * rank * n
}

/// Parts that a low-rank product l = x·Fᵀ, for `x [m, n]` and a factor `[rank, n]`, is summed in: one part of n to
/// a block where there are few, else all of them. There are `2·m·rank` values of f32 a part.
pub fn low_rank_slices([m, rank, n]: [usize; 3], multiprocessors: usize) -> usize {
    let few = m <= FEW_ROWS;
    let rows_of_block = if few { 16 } else { 128 };
    let (blocks, all) = (m.div_ceil(rows_of_block) * (2 * rank).div_ceil(32), n.div_ceil(PART));
    if few || blocks * all <= multiprocessors { all } else { 1 }
}

/// Tiles of ds that 64 keys of a tree have: those of the query vectors from row `first` to row `end`, where
/// `group` heads share a head of keys.
pub(crate) fn tiles_of_keys(first: usize, end: usize, group: usize) -> usize {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_by_at_most_an_eighth() {
        assert_eq!([0, 1, 512, 513, 4096].map(buffer_bytes), [512, 512, 512, 1024, 4096]);
        for bytes in (4096..1 << 20).step_by(1111).chain([(3 << 30) + 5]) {
            let size = buffer_bytes(bytes);
            assert!(size >= bytes && size - bytes <= bytes / 8, "{bytes} {size}");
            assert_eq!(buffer_bytes(size), size);
        }
    }

    #[test]
    fn parts_by_hand() {
        assert_eq!([1, 1024, 4096].map(logits_columns), [16 * 2048, 4 * 2048, 2048]);
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
