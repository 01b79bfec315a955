//! Matrix product y += a·b whose right side lies row by row along the reduction:
//! `y[i,j] += Σ_l a[i,l]·b[l,j]`, with a read along its rows or its columns.
//!
//! It is what backward passes need beside [`super::matmul`]: LoRA's gradients dA = dhiddenᵀ·x and
//! dx += dhidden·A, and in attention every product but the scores. A value of a is broadcast against
//! vectors of b, so no lane is ever summed with another: each output is one chain of additions in
//! the order of l, the same for any tiling and any number of threads.
//!
//! Bound: the multipliers, 24 accumulators in registers (six rows, four vectors).

#![allow(clippy::needless_range_loop)] // indices of tiles, as in the formulas

use super::Cpu;
use super::dot::Rows;
use super::pool::Disjoint;
use super::profile::{self, Work};
use super::vector::{Element, Simd, Vector, for_each_isa};

/// Rows and columns of y that a task computes: its part of y stays in L1, of b in L2.
const ROW_BLOCK: usize = 48;
const COLUMN_BLOCK: usize = 256;

/// Products below which waking another thread costs more than it saves.
const WORTH: usize = 64 * 1024;

/// How the left side lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// `[m, k]`, row after row.
    Rows,
    /// `[k, m]`: its transpose, row after row.
    Columns,
}

/// Adds a·b to `y`. Shapes: `y [m,n]`, `a [m,k]` or `[k,m]` as `left` says, `b [k,n]`.
pub fn accumulate(
    cpu: &Cpu,
    y: &mut [f32],
    a: &[f32],
    left: Left,
    b: &[f32],
    [m, n, k]: [usize; 3],
) {
    assert_eq!(Some(y.len()), m.checked_mul(n), "y is not [{m}, {n}]");
    assert_eq!(Some(a.len()), m.checked_mul(k), "a is not of {m} x {k}");
    assert_eq!(Some(b.len()), k.checked_mul(n), "b is not [{k}, {n}]");
    let bytes = [size_of_val(a), size_of_val(b)];
    let _span = profile::span("product", [m, n, k], || Work::product([m, n, k], bytes, true));
    let (row, step) = match left {
        Left::Rows => (k, 1),
        Left::Columns => (1, m),
    };
    let y = Disjoint::new(y);
    let column_blocks = n.div_ceil(COLUMN_BLOCK);
    let task = |_: usize, task: usize| {
        let (i, j) = (task / column_blocks * ROW_BLOCK, task % column_blocks * COLUMN_BLOCK);
        let (rows, columns) = (ROW_BLOCK.min(m - i), COLUMN_BLOCK.min(n - j));
        // SAFETY: `Cpu::with_isa` asserts the instruction set; rows and columns of the block lie
        // inside y, a and b by the asserts above; blocks of different tasks do not overlap.
        unsafe {
            product_on(
                cpu.isa(),
                Rows { start: y.as_mut_ptr().add(i * n + j), stride: n },
                Strided { start: a.as_ptr().add(i * row), row, step },
                Rows { start: b.as_ptr().add(j), stride: n },
                [rows, columns, k],
            );
        }
    };
    let tasks = m.div_ceil(ROW_BLOCK) * column_blocks;
    if m * n * k <= WORTH {
        (0..tasks).for_each(|index| task(0, index));
    } else {
        cpu.pool().for_each(tasks, &task);
    }
}

for_each_isa! {
    fn product_on(
        y: Rows<*mut f32>,
        a: Strided<f32>,
        b: Rows<*const f32>,
        shape: [usize; 3],
    ) = product_f32
}

/// # Safety
/// As for [`product`].
#[inline(always)]
unsafe fn product_f32<V: Vector>(
    y: Rows<*mut f32>,
    a: Strided<f32>,
    b: Rows<*const f32>,
    shape: [usize; 3],
) {
    // SAFETY: the caller's promise, passed on.
    unsafe { product::<V, f32>(y, a, b, shape) }
}

/// A left side: element (i, l) lies `i·row + l·step` elements after `start`.
pub(crate) struct Strided<T> {
    pub(crate) start: *const T,
    pub(crate) row: usize,
    pub(crate) step: usize,
}

impl<T> Clone for Strided<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Strided<T> {}

/// Adds a·b, of shape m × n over k, to y on this thread.
///
/// # Safety
/// The CPU has the instruction set of `V`; y has m rows of n elements, a m × k, b k rows of n.
#[inline(always)]
pub(crate) unsafe fn product<V: Simd, T: Element>(
    y: Rows<*mut V::Scalar>,
    a: Strided<V::Scalar>,
    b: Rows<*const T>,
    [m, n, k]: [usize; 3],
) {
    let mut i = 0;
    // SAFETY: rows i .. i + count are below m; every arm takes exactly the rows there are.
    unsafe {
        while i < m {
            let count = V::TILE_ROWS.min(m - i);
            let y = Rows { start: y.start.add(i * y.stride), stride: y.stride };
            let a = Strided { start: a.start.add(i * a.row), ..a };
            match count {
                1 => strip::<V, T, 1>(y, a, b, n, k),
                2 if V::TILE_ROWS >= 2 => strip::<V, T, 2>(y, a, b, n, k),
                3 if V::TILE_ROWS >= 3 => strip::<V, T, 3>(y, a, b, n, k),
                4 if V::TILE_ROWS >= 4 => strip::<V, T, 4>(y, a, b, n, k),
                5 if V::TILE_ROWS >= 5 => strip::<V, T, 5>(y, a, b, n, k),
                6 if V::TILE_ROWS >= 6 => strip::<V, T, 6>(y, a, b, n, k),
                _ => unreachable!("a tile of {count} rows"),
            }
            i += count;
        }
    }
}

/// # Safety
/// As for [`product`], with m = M.
#[inline(always)]
unsafe fn strip<V: Simd, T: Element, const M: usize>(
    y: Rows<*mut V::Scalar>,
    a: Strided<V::Scalar>,
    b: Rows<*const T>,
    n: usize,
    k: usize,
) {
    let mut j = 0;
    // SAFETY: j + the lanes read or written does not pass n.
    unsafe {
        while j < n {
            let y = Rows { start: y.start.add(j), stride: y.stride };
            let b = Rows { start: b.start.add(j), stride: b.stride };
            if j + 4 * V::LANES <= n {
                tile::<V, T, M, 4>(y, a, b, k, V::LANES);
                j += 4 * V::LANES;
            } else {
                let lanes = V::LANES.min(n - j);
                tile::<V, T, M, 1>(y, a, b, k, lanes);
                j += lanes;
            }
        }
    }
}

/// N vectors of lanes of M rows; with N = 1 only the first `lanes`.
///
/// # Safety
/// As for [`strip`], from the column that `y` and `b` point to.
#[inline(always)]
unsafe fn tile<V: Simd, T: Element, const M: usize, const N: usize>(
    y: Rows<*mut V::Scalar>,
    a: Strided<V::Scalar>,
    b: Rows<*const T>,
    k: usize,
    lanes: usize,
) {
    // SAFETY: the caller's promise: whole vectors exist unless N is 1, then the first `lanes` do.
    unsafe {
        let partial = N == 1 && lanes < V::LANES;
        let mut sums = [[V::splat(V::Scalar::default()); N]; M];
        for i in 0..M {
            for n in 0..N {
                let from = y.start.add(i * y.stride + n * V::LANES);
                sums[i][n] = if partial { V::load_first(from, lanes) } else { V::load(from) };
            }
        }
        for l in 0..k {
            let mut row = [V::splat(V::Scalar::default()); N];
            for n in 0..N {
                let from = b.start.add(l * b.stride + n * V::LANES);
                row[n] = if partial { V::widen_first(from, lanes) } else { V::widen(from) };
            }
            for i in 0..M {
                let left = V::splat(*a.start.add(i * a.row + l * a.step));
                for n in 0..N {
                    sums[i][n] = left.mul_add(row[n], sums[i][n]);
                }
            }
        }
        for i in 0..M {
            for n in 0..N {
                let to = y.start.add(i * y.stride + n * V::LANES);
                if partial {
                    sums[i][n].store_first(to, lanes);
                } else {
                    sums[i][n].store(to);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::reference::{assert_close, assert_same_bits, contexts, values};

    #[test]
    fn equals_the_naive_reference_on_awkward_shapes_with_the_same_bits_on_any_threads() {
        let contexts = contexts();
        let shapes = [
            [0, 5, 3],
            [3, 0, 4],
            [2, 3, 0],
            [1, 1, 1],
            [5, 33, 7],
            [7, 64, 100],
            [13, 300, 9],
            [50, 17, 40],
            [100, 520, 16],
        ];
        for [m, n, k] in shapes {
            let (a, b, old) = (values(1, m * k), values(2, k * n), values(3, m * n));
            for left in [Left::Rows, Left::Columns] {
                let at = |i: usize, l: usize| match left {
                    Left::Rows => a[i * k + l],
                    Left::Columns => a[l * m + i],
                };
                let (mut naive, mut exact) = (old.clone(), Vec::new());
                for i in 0..m {
                    for j in 0..n {
                        let mut sum = f64::from(old[i * n + j]);
                        for l in 0..k {
                            naive[i * n + j] += at(i, l) * b[l * n + j];
                            sum += f64::from(at(i, l)) * f64::from(b[l * n + j]);
                        }
                        exact.push(sum);
                    }
                }
                let mut first: Option<(Isa, Vec<f32>)> = None;
                for cpu in &contexts {
                    let mut y = old.clone();
                    accumulate(cpu, &mut y, &a, left, &b, [m, n, k]);
                    let case = format!("{} [{m}, {n}, {k}] {left:?}", cpu.isa());
                    assert_close(&y, &naive, &exact, 1e-6, &case);
                    match &first {
                        Some((isa, bits)) if *isa == cpu.isa() => assert_same_bits(&y, bits, &case),
                        _ => first = Some((cpu.isa(), y)),
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "b is not [3, 4]")]
    fn shapes_are_checked() {
        let cpu = Cpu::new(1);
        accumulate(&cpu, &mut [0.0; 8], &[0.0; 6], Left::Rows, &[0.0; 11], [2, 4, 3]);
    }
}
