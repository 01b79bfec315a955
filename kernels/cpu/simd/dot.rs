//! Tiles of dot products y[i,j] = x[i]·w[j] over contiguous rows: what matmul and attention's
//! scores share.
//!
//! Each output has one vector of partial sums that runs over the row in steps, a masked last step,
//! and one reduction tree. So its bits depend on its two rows alone, not on the tile around it.

#![allow(clippy::needless_range_loop)] // indices of tiles, as in the formulas

use std::marker::PhantomData;

use super::vector::{Doubles, Element, Simd, Vector, methods};

/// A way to multiply and add: operand types, and one step of a sum of products. Safety as for
/// [`Vector`]; `count` is below [`Dot::STEP`].
pub(crate) trait Dot {
    type X: Copy + Sync;
    type W: Copy + Sync;
    type XRegister: Copy;
    type WRegister: Copy;
    type Sum: Simd;
    /// Elements a step takes from each row.
    const STEP: usize;

    unsafe fn load_x(from: *const Self::X) -> Self::XRegister;
    unsafe fn load_x_first(from: *const Self::X, count: usize) -> Self::XRegister;
    unsafe fn load_w(from: *const Self::W) -> Self::WRegister;
    unsafe fn load_w_first(from: *const Self::W, count: usize) -> Self::WRegister;
    unsafe fn accumulate(sum: Self::Sum, x: Self::XRegister, w: Self::WRegister) -> Self::Sum;
}

/// f32 inputs times weights of any element type, widened on the way.
pub(crate) struct Widened<V, W>(PhantomData<(V, W)>);

impl<V: Vector, W: Element> Dot for Widened<V, W> {
    type X = f32;
    type W = W;
    type XRegister = V;
    type WRegister = V;
    type Sum = V;
    const STEP: usize = V::LANES;

    methods! {
        fn load_x(from: *const f32) -> V { V::load(from) }
        fn load_x_first(from: *const f32, count: usize) -> V { V::load_first(from, count) }
        fn load_w(from: *const W) -> V { W::load(from) }
        fn load_w_first(from: *const W, count: usize) -> V { W::load_first(from, count) }
        fn accumulate(sum: V, x: V, w: V) -> V { x.mul_add(w, sum) }
    }
}

/// f32 inputs times weights of any element type, with exact products and sums in f64.
pub(crate) struct WidenedDoubles<V, W>(PhantomData<(V, W)>);

impl<V: Doubles, W: Element> Dot for WidenedDoubles<V, W> {
    type X = f32;
    type W = W;
    type XRegister = V;
    type WRegister = V;
    type Sum = V;
    const STEP: usize = V::LANES;

    methods! {
        fn load_x(from: *const f32) -> V { V::widen(from) }
        fn load_x_first(from: *const f32, count: usize) -> V { V::widen_first(from, count) }
        fn load_w(from: *const W) -> V { V::widen(from) }
        fn load_w_first(from: *const W, count: usize) -> V { V::widen_first(from, count) }
        fn accumulate(sum: V, x: V, w: V) -> V { x.add_exact_product(w, sum) }
    }
}

/// The accumulate dtype of `D`.
pub(crate) type Scalar<D> = <<D as Dot>::Sum as Simd>::Scalar;

/// Where a sum of type S is written or added, with one rounding if the types differ.
pub(crate) trait Output<S>: Copy {
    fn of(sum: S) -> Self;
    fn plus(self, sum: S) -> Self;
}

macro_rules! output {
    ($type:ty, $sum:ty) => {
        impl Output<$sum> for $type {
            #[inline(always)]
            fn of(sum: $sum) -> $type {
                sum as $type
            }
            #[inline(always)]
            fn plus(self, sum: $sum) -> $type {
                (<$sum>::from(self) + sum) as $type
            }
        }
    };
}
output!(f32, f32);
output!(f32, f64);
output!(f64, f64);

/// Rows starting at `start`, `stride` elements apart.
pub(crate) struct Rows<T> {
    pub(crate) start: T,
    pub(crate) stride: usize,
}

impl<T: Copy> Clone for Rows<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Copy> Copy for Rows<T> {}

/// Writes (or adds, if `add`) m × n dot products of length k to `y`; m is at most TILE_ROWS.
///
/// While four rows of w are used, as much is prefetched in one run from `ahead` elements after the
/// first of them on, unless that is 0: rows of w are too short for the hardware to see the next
/// ones coming (one row of x, w [151936, 1024] in bf16, one thread: 11 GB/s without, 22 with).
///
/// # Safety
/// The CPU has the instruction set of `D`; x has m rows and w n rows of k elements, y m rows of n.
#[allow(clippy::too_many_arguments)] // three operands, their sizes, and how
#[inline(always)]
pub(crate) unsafe fn strip<D: Dot, Y: Output<Scalar<D>>>(
    y: Rows<*mut Y>,
    x: Rows<*const D::X>,
    m: usize,
    w: Rows<*const D::W>,
    n: usize,
    k: usize,
    add: bool,
    ahead: usize,
) {
    // SAFETY: the caller's promise, passed on; every arm takes exactly the m rows there are.
    unsafe {
        match m {
            1 => strip_of::<D, Y, 1>(y, x, w, n, k, add, ahead),
            2 if D::Sum::TILE_ROWS >= 2 => strip_of::<D, Y, 2>(y, x, w, n, k, add, ahead),
            3 if D::Sum::TILE_ROWS >= 3 => strip_of::<D, Y, 3>(y, x, w, n, k, add, ahead),
            4 if D::Sum::TILE_ROWS >= 4 => strip_of::<D, Y, 4>(y, x, w, n, k, add, ahead),
            5 if D::Sum::TILE_ROWS >= 5 => strip_of::<D, Y, 5>(y, x, w, n, k, add, ahead),
            6 if D::Sum::TILE_ROWS >= 6 => strip_of::<D, Y, 6>(y, x, w, n, k, add, ahead),
            _ => unreachable!("a tile of {m} rows"),
        }
    }
}

/// # Safety
/// As for [`strip`], with m = M.
#[inline(always)]
unsafe fn strip_of<D: Dot, Y: Output<Scalar<D>>, const M: usize>(
    y: Rows<*mut Y>,
    x: Rows<*const D::X>,
    w: Rows<*const D::W>,
    n: usize,
    k: usize,
    add: bool,
    ahead: usize,
) {
    let mut j = 0;
    // SAFETY: columns j .. j + 4 (or j) are below n, so rows of w and elements of y exist.
    unsafe {
        while j + 4 <= n {
            let w = Rows { start: w.start.add(j * w.stride), stride: w.stride };
            let sums = tile::<D, M, 4>(x, w, k, ahead);
            for i in 0..M {
                let sums = D::Sum::reduce_add4(sums[i]);
                let y = y.start.add(i * y.stride + j).cast::<[Y; 4]>();
                let mut new = sums.map(Y::of);
                if add {
                    let old = y.read_unaligned();
                    for j in 0..4 {
                        new[j] = old[j].plus(sums[j]);
                    }
                }
                y.write_unaligned(new);
            }
            j += 4;
        }
        while j < n {
            let w = Rows { start: w.start.add(j * w.stride), stride: w.stride };
            let sums = tile::<D, M, 1>(x, w, k, ahead);
            for i in 0..M {
                let sum = sums[i][0].reduce_add();
                let y = y.start.add(i * y.stride + j);
                *y = if add { (*y).plus(sum) } else { Y::of(sum) };
            }
            j += 1;
        }
    }
}

/// Partial sums of M × N dot products of length k.
///
/// # Safety
/// As for [`strip`], with m = M and n = N.
#[inline(always)]
unsafe fn tile<D: Dot, const M: usize, const N: usize>(
    x: Rows<*const D::X>,
    w: Rows<*const D::W>,
    k: usize,
    ahead: usize,
) -> [[D::Sum; N]; M] {
    // SAFETY: elements l .. l + STEP (or the count that is left of k) of each row exist.
    unsafe {
        let mut sums = [[D::Sum::splat(Scalar::<D>::default()); N]; M];
        let mut l = 0;
        while l + D::STEP <= k {
            let mut ws = [D::load_w(w.start.add(l)); N];
            for j in 1..N {
                ws[j] = D::load_w(w.start.add(j * w.stride + l));
            }
            if N == 4 && ahead != 0 {
                let next = w.start.wrapping_add(ahead + 4 * l);
                for j in 0..N {
                    D::Sum::prefetch(next.wrapping_add(j * D::STEP).cast());
                }
            }
            for i in 0..M {
                let x = D::load_x(x.start.add(i * x.stride + l));
                for j in 0..N {
                    sums[i][j] = D::accumulate(sums[i][j], x, ws[j]);
                }
            }
            l += D::STEP;
        }
        if l < k {
            let count = k - l;
            let mut ws = [D::load_w_first(w.start.add(l), count); N];
            for j in 1..N {
                ws[j] = D::load_w_first(w.start.add(j * w.stride + l), count);
            }
            for i in 0..M {
                let x = D::load_x_first(x.start.add(i * x.stride + l), count);
                for j in 0..N {
                    sums[i][j] = D::accumulate(sums[i][j], x, ws[j]);
                }
            }
        }
        sums
    }
}
