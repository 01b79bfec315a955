//! Rotary position embedding in its rotate-half form (Su et al. 2021, as GPT-NeoX and transformers
//! pair the dimensions). For i < h = head_dim/2 and the angle a = position · inv_freq\[i\]:
//!
//!   x\[i\] ← x\[i\]·cos a − x\[i+h\]·sin a,   x\[i+h\] ← x\[i+h\]·cos a + x\[i\]·sin a
//!
//! The angle is the f32 product, as transformers computes it. Its cosine and sine are taken in f64
//! and rounded, so they do not depend on the platform's libm.

use std::sync::OnceLock;

use super::Cpu;
use super::pool::Disjoint;

/// Positions a block of the table covers.
const BLOCK: usize = 256;

/// Cosines and sines by position, computed when first needed, in blocks of 256 positions.
#[derive(Debug)]
pub struct RopeTable {
    inv_freq: Box<[f32]>,
    positions: usize,
    /// [position][cos of h angles, sin of h angles]
    blocks: Box<[OnceLock<Box<[f32]>>]>,
}

impl RopeTable {
    /// A table for `positions` positions; `inv_freq` has head_dim/2 entries. Takes memory only
    /// for the blocks of positions that are used.
    pub fn new(inv_freq: &[f32], positions: usize) -> RopeTable {
        assert!(!inv_freq.is_empty(), "inv_freq is empty");
        let blocks = (0..positions.div_ceil(BLOCK)).map(|_| OnceLock::new()).collect();
        RopeTable { inv_freq: inv_freq.into(), positions, blocks }
    }

    /// The number of positions the table can hold.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// head_dim.
    pub fn head_dim(&self) -> usize {
        self.inv_freq.len() * 2
    }

    /// Cosines and sines of a position's angles.
    fn row(&self, position: usize) -> (&[f32], &[f32]) {
        assert!(
            position < self.positions,
            "position {position} in a rope table of {} positions",
            self.positions
        );
        let h = self.inv_freq.len();
        let block = self.blocks[position / BLOCK].get_or_init(|| {
            let mut block = vec![0.0; BLOCK * 2 * h].into_boxed_slice();
            let first = position / BLOCK * BLOCK;
            for (i, row) in block.chunks_exact_mut(2 * h).enumerate() {
                let (cos, sin) = row.split_at_mut(h);
                for j in 0..h {
                    let angle = f64::from((first + i) as f32 * self.inv_freq[j]);
                    cos[j] = angle.cos() as f32;
                    sin[j] = angle.sin() as f32;
                }
            }
            block
        });
        block[position % BLOCK * 2 * h..][..2 * h].split_at(h)
    }
}

/// Rotates `x` [rows, heads, head_dim] in place, each row by its position.
pub fn forward(cpu: &Cpu, x: &mut [f32], positions: &[u32], table: &RopeTable, heads: usize) {
    let (rows, head_dim) = (positions.len(), table.head_dim());
    assert_eq!(x.len(), rows * heads * head_dim, "x is not [{rows}, {heads}, {head_dim}]");
    let x = Disjoint::new(x);
    let width = heads * head_dim;
    cpu.for_rows(rows, width, &|first, count| {
        // SAFETY: row ranges of different tasks do not overlap.
        let x = unsafe { x.part(first * width, count * width) };
        for (x, &position) in x.chunks_exact_mut(width.max(1)).zip(&positions[first..]) {
            let (cos, sin) = table.row(position as usize);
            for head in x.chunks_exact_mut(head_dim) {
                rotate(head, cos, sin);
            }
        }
    });
}

/// Products and sums are rounded one by one, as transformers does, so every instruction set and
/// any vectorization gives the same bits.
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (a, b) = (*low, *high);
        *low = a * cos - b * sin;
        *high = b * cos + a * sin;
    }
}
