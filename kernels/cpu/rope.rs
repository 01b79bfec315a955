//! Rotary position embedding in its rotate-half form (Su et al. 2021, as GPT-NeoX and transformers
//! pair the dimensions). For i < h = head_dim/2 and the angle a = position · inv_freq\[i\]:
//!
//!   x\[i\] ← x\[i\]·cos a − x\[i+h\]·sin a,   x\[i+h\] ← x\[i+h\]·cos a + x\[i\]·sin a
//!
//! The angle is the f32 product, as transformers computes it. Its cosine and sine are taken in f64
//! and rounded, so they do not depend on the platform's libm; then both are multiplied by a scale
//! (YaRN's attention factor; 1 leaves their bits).

use std::sync::OnceLock;

use super::pool::Disjoint;
use super::profile::{self, Work};
use super::vector::{Vector, for_each_isa};
use super::{Cpu, elements};

/// Positions a block of the table covers.
const BLOCK: usize = 256;

/// Cosines and sines by position, computed when first needed, in blocks of 256 positions.
#[derive(Debug)]
pub struct RopeTable {
    inv_freq: Box<[f32]>,
    scale: f32,
    positions: usize,
    /// [position][cos of h angles, sin of h angles]
    blocks: Box<[OnceLock<Box<[f32]>>]>,
}

impl RopeTable {
    /// A table for `positions` positions; `inv_freq` has head_dim/2 entries, and `scale` multiplies
    /// what is turned. Takes memory only for the blocks of positions that are used.
    pub fn new(inv_freq: &[f32], scale: f32, positions: usize) -> RopeTable {
        assert!(!inv_freq.is_empty(), "inv_freq is empty");
        let blocks = (0..positions.div_ceil(BLOCK)).map(|_| OnceLock::new()).collect();
        RopeTable { inv_freq: inv_freq.into(), scale, positions, blocks }
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
                    cos[j] = angle.cos() as f32 * self.scale;
                    sin[j] = angle.sin() as f32 * self.scale;
                }
            }
            block
        });
        block[position % BLOCK * 2 * h..][..2 * h].split_at(h)
    }
}

/// Rotates `x` [rows, heads, head_dim] in place, each row by its position.
pub fn forward(cpu: &Cpu, x: &mut [f32], positions: &[u32], table: &RopeTable, heads: usize) {
    let shape = [positions.len(), heads, table.head_dim()];
    let _span = profile::span("rope", shape, || Work::each(x.len(), 3, 8));
    turn(cpu, x, positions, table, heads, 1.0);
}

/// Turns the gradient of the result into that of the input, in place: the rotation back, scaled as
/// the rotation is.
pub fn backward(cpu: &Cpu, dx: &mut [f32], positions: &[u32], table: &RopeTable, heads: usize) {
    let shape = [positions.len(), heads, table.head_dim()];
    let _span = profile::span("rope backward", shape, || Work::each(dx.len(), 3, 8));
    turn(cpu, dx, positions, table, heads, -1.0);
}

fn turn(
    cpu: &Cpu,
    x: &mut [f32],
    positions: &[u32],
    table: &RopeTable,
    heads: usize,
    direction: f32,
) {
    let (rows, head_dim) = (positions.len(), table.head_dim());
    assert_eq!(
        x.len(),
        elements([rows, heads, head_dim]),
        "x is not [{rows}, {heads}, {head_dim}]"
    );
    let x = Disjoint::new(x);
    let width = heads * head_dim;
    cpu.for_rows(rows, width, &|first, count| {
        // SAFETY: row ranges of different tasks do not overlap.
        let x = unsafe { x.part(first * width, count * width) };
        for (x, &position) in x.chunks_exact_mut(width.max(1)).zip(&positions[first..]) {
            let (cos, sin) = table.row(position as usize);
            for head in x.chunks_exact_mut(head_dim) {
                // SAFETY: `Cpu::with_isa` asserts the instruction set.
                unsafe { rotate_on(cpu.isa(), head, cos, sin, direction) };
            }
        }
    });
}

for_each_isa! {
    fn rotate_on(head: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) = rotate
}

/// Products and sums are rounded one by one, as transformers does, so every instruction set and
/// any vectorization by the compiler gives the same bits.
#[inline(always)]
fn rotate<V: Vector>(head: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (a, b, sin) = (*low, *high, sin * direction);
        *low = a * cos - b * sin;
        *high = b * cos + a * sin;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::reference::{assert_close, assert_same_bits, contexts, values};

    fn inv_freq(head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2).map(|i| 1e6f32.powf(-2.0 * i as f32 / head_dim as f32)).collect()
    }

    #[test]
    fn equals_the_formula_on_awkward_shapes_with_the_same_bits_everywhere() {
        for (rows, heads, head_dim) in [(0, 2, 4), (1, 1, 2), (3, 5, 80), (65, 4, 128), (300, 1, 6)]
        {
            let x = values(1, rows * heads * head_dim);
            let positions: Vec<u32> = (0..rows as u32).map(|i| (i * 37 + 255) % 5000).collect();
            let inv_freq = inv_freq(head_dim);
            let h = head_dim / 2;
            let (mut naive, mut exact) = (x.clone(), vec![0.0; x.len()]);
            for (row, &position) in positions.iter().enumerate() {
                for head in 0..heads {
                    let first = (row * heads + head) * head_dim;
                    for i in first..first + h {
                        let angle = position as f32 * inv_freq[i - first];
                        let (sin, cos) = angle.sin_cos();
                        naive[i] = x[i] * cos - x[i + h] * sin;
                        naive[i + h] = x[i + h] * cos + x[i] * sin;
                        let (sin, cos) = f64::from(angle).sin_cos();
                        let (a, b) = (f64::from(x[i]), f64::from(x[i + h]));
                        exact[i] = a * cos - b * sin;
                        exact[i + h] = b * cos + a * sin;
                    }
                }
            }
            let mut first: Option<Vec<f32>> = None;
            for cpu in contexts() {
                let table = RopeTable::new(&inv_freq, 1.0, 5000);
                let mut y = x.clone();
                forward(&cpu, &mut y, &positions, &table, heads);
                assert_close(&y, &naive, &exact, 1e-6, "rope");
                match &first {
                    Some(bits) => assert_same_bits(&y, bits, "instruction sets and threads"),
                    None => first = Some(y),
                }
            }
        }
    }

    #[test]
    fn position_zero_is_the_identity_and_length_is_kept() {
        let table = RopeTable::new(&inv_freq(64), 1.0, 41);
        let x = values(3, 128);
        let mut y = x.clone();
        forward(&Cpu::new(1), &mut y, &[0, 40], &table, 1);
        assert_eq!(x[..64], y[..64]);
        let squares = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        assert!((squares(&x[64..]) - squares(&y[64..])).abs() < 1e-5);
        assert_ne!(x[64..], y[64..]);
    }

    #[test]
    fn a_scale_multiplies_what_is_turned_and_its_gradient() {
        let (positions, x) = ([3, 499, 0], values(9, 3 * 128));
        for cpu in contexts() {
            let turned = |scale, turn: fn(&Cpu, &mut [f32], &[u32], &RopeTable, usize)| {
                let mut y = x.clone();
                turn(&cpu, &mut y, &positions, &RopeTable::new(&inv_freq(64), scale, 500), 2);
                y
            };
            // A power of two, so that every product is exact.
            for turn in [forward, backward] {
                let twice: Vec<f32> = turned(1.0, turn).iter().map(|y| 2.0 * y).collect();
                assert_same_bits(&turned(2.0, turn), &twice, "scaled");
            }
            // At position 0 nothing is turned: what is left is the scale.
            let (y, first) = (turned(1.25, forward), 2 * 128);
            assert!(x[first..].iter().zip(&y[first..]).all(|(x, y)| *y == x * 1.25));
        }
    }

    #[test]
    fn the_gradient_is_the_rotation_back() {
        let table = RopeTable::new(&inv_freq(64), 1.0, 500);
        let (positions, x) = ([3, 499, 0], values(5, 3 * 128));
        for cpu in contexts() {
            // The Jacobian is a rotation, so its transpose is its inverse.
            let mut y = x.clone();
            forward(&cpu, &mut y, &positions, &table, 2);
            backward(&cpu, &mut y, &positions, &table, 2);
            let errors = x.iter().zip(&y).map(|(a, b)| (a - b).abs());
            assert!(errors.fold(0.0, f32::max) < 3e-7);
        }
    }

    #[test]
    #[should_panic(expected = "beyond any memory")]
    fn a_shape_that_wraps_is_refused() {
        let table = RopeTable::new(&[1.0; 4], 1.0, 41);
        forward(&Cpu::new(1), &mut [], &[0; 4], &table, 1 << 59);
    }

    #[test]
    #[should_panic(expected = "position 41 in a rope table of 41 positions")]
    fn positions_are_checked() {
        let table = RopeTable::new(&inv_freq(4), 1.0, 41);
        forward(&Cpu::new(1), &mut [0.0; 4], &[41], &table, 1);
    }
}
