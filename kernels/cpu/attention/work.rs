//! What attention has to do at least, for profiles. A query and a key that it sees cost 2·head_dim
//! operations in every product they meet in; softmax is not counted.

use super::{Cache, CacheMut, Shape, Span, Tree};
use crate::cpu::profile::Work;

/// Keys and values are read as f32 and written as the cache has them.
pub(super) fn append(cache: &CacheMut<'_>, rows: usize, shape: Shape) -> Work {
    let element = match cache {
        CacheMut::Bf16 { .. } => 2,
        CacheMut::F32 { .. } => 4,
    };
    Work::each(2 * rows * shape.kv_heads * shape.head_dim, 0, 4 + element)
}

/// Two products. Each span reads its sequence's keys and values once, also where sequences share them.
pub(super) fn forward(cache: Cache<'_>, queries: usize, spans: &[Span], shape: Shape) -> Work {
    let element = match cache {
        Cache::Bf16 { .. } => 2,
        Cache::F32 { .. } => 4,
    };
    let Shape { heads, kv_heads, head_dim } = shape;
    let (mut pairs, mut keys) = (0, 0);
    for &Span { rows, first_position, .. } in spans {
        pairs += rows * first_position + triangle(rows);
        keys += if rows > 0 { first_position + rows } else { 0 };
    }
    Work::each(pairs * heads, 4 * head_dim as u64, 0)
        .and_bytes(2 * 4 * queries + 2 * element * keys * kv_heads * head_dim)
}

/// Five products: scores again, and the gradients of probabilities, queries, keys and values. Reads q, k,
/// v, y, dy and the logarithms of sums, writes dq, dk and dv.
pub(super) fn backward(trees: &[Tree], shape: Shape) -> Work {
    let Shape { heads, kv_heads, head_dim } = shape;
    let (mut pairs, mut rows, mut queries) = (0, 0, 0);
    for tree in trees {
        for (index, segment) in tree.segments.iter().enumerate() {
            let shared = tree.ancestors(index).into_iter().map(|of| tree.segments[of].rows);
            let before = shared.sum::<usize>() + segment.rows - segment.queries;
            pairs += segment.queries * before + triangle(segment.queries);
        }
        rows += tree.rows();
        queries += tree.queries();
    }
    let elements = queries * (4 * heads * head_dim + heads) + rows * 4 * kv_heads * head_dim;
    Work::each(pairs * heads, 10 * head_dim as u64, 0).and_bytes(4 * elements)
}

/// Pairs of `rows` queries and as many keys, of which each sees those up to its own.
fn triangle(rows: usize) -> usize {
    rows * (rows + 1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    const SHAPE: Shape = Shape { heads: 4, kv_heads: 2, head_dim: 8 };

    #[test]
    fn work_by_hand() {
        let memory = [bf16::ZERO; 0];
        let cache = Cache::Bf16 { keys: &memory, values: &memory };
        let span = |rows, first_position| Span { first_row: 0, rows, first_position, table: 0..9 };
        // Three rows see 1, 2 and 3 keys; one row after ten others sees 11.
        let work = forward(cache, 4 * 32, &[span(3, 0), span(1, 10), span(0, 7)], SHAPE);
        assert_eq!(work.flops, (6 + 11) * 4 * 2 * 2 * 8);
        assert_eq!(work.bytes, 2 * 4 * (4 * 32) + 2 * 2 * (3 + 11) * 16);

        // A prompt of 2 and branches of 1 and 2: 3 pairs, then 2 + 1, then 4 + 3.
        let tree = Tree::of_prompt(0, 2, &[1, 2]);
        let work = backward(&[tree], SHAPE);
        assert_eq!(work.flops, (3 + 3 + 7) * 4 * 5 * 2 * 8);
        assert_eq!(work.bytes, 4 * 5 * (4 * 32 + 4 * 16 + 4));

        let mut memory = [0.0; 0];
        let (keys, values) = memory.split_at_mut(0);
        let work = append(&CacheMut::F32 { keys, values }, 3, SHAPE);
        assert_eq!((work.flops, work.bytes), (0, 2 * 3 * 16 * 8));
    }
}
