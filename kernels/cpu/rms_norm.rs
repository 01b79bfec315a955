//! RMSNorm over rows of `n`: y = x·r·w, r = (mean(x²) + eps)^-1/2 (Zhang and Sennrich 2019).
//! Also QK-norm: rows·heads rows of head_dim. Bound: bytes.
//!
//! The sum and r are f64, and y is within half a unit in the last place, as rounding once is.

use super::Cpu;
use super::pool::Disjoint;
use super::profile::{self, Work};
use super::vector::{Doubles, Vector, for_each_isa};

/// Normalizes each row of `x` into `y`; the rows are as long as `w`.
pub fn forward(cpu: &Cpu, y: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    let n = w.len();
    assert!(n > 0, "w is empty");
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    assert_eq!(x.len() % n, 0, "x of {} is not rows of {n}", x.len());
    let shape = [x.len() / n, n];
    let _span = profile::span("rms_norm", shape, || Work::each(x.len(), 4, 8).and_bytes(4 * n));
    let y = Disjoint::new(y);
    cpu.for_rows(x.len() / n, n, &|first, count| {
        // SAFETY: row ranges of different tasks do not overlap; `Cpu::with_isa` asserts the
        // instruction set; both slices are whole rows of n by the asserts above.
        unsafe {
            let y = y.part(first * n, count * n);
            rms_norm_on(cpu.isa(), y, &x[first * n..(first + count) * n], w, eps);
        }
    });
}

for_each_isa! {
    fn rms_norm_on(y: &mut [f32], x: &[f32], w: &[f32], eps: f32) = rms_norm
}

/// # Safety
/// The CPU has the instruction set of `V`; x and y have the same length, a multiple of w's.
#[inline(always)]
unsafe fn rms_norm<V: Vector>(y: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    let n = w.len();
    let w = w.as_ptr();
    for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
        let (y, x) = (y.as_mut_ptr(), x.as_ptr());
        // SAFETY: i + the lanes read or written does not pass n, the length of y, x and w.
        unsafe {
            let mean = sum_of_squares::<V::Doubles>(x, n) / n as f64;
            let r = (mean + f64::from(eps)).sqrt().recip();
            let mut i = 0;
            while i + V::LANES <= n {
                V::load(x.add(i)).mul_f64_mul(r, V::load(w.add(i))).store(y.add(i));
                i += V::LANES;
            }
            if i < n {
                let (x, w) = (V::load_first(x.add(i), n - i), V::load_first(w.add(i), n - i));
                x.mul_f64_mul(r, w).store_first(y.add(i), n - i);
            }
        }
    }
}

/// Writes the gradient of x, given that of y: dx = r·w·dy − x·(r³/n)·Σ(dy·w·x). r is computed from x
/// again. w is frozen: its gradient is not computed.
pub fn backward(cpu: &Cpu, dx: &mut [f32], dy: &[f32], x: &[f32], w: &[f32], eps: f32) {
    let n = w.len();
    assert!(n > 0, "w is empty");
    assert_eq!(dx.len(), x.len(), "dx and x differ in length");
    assert_eq!(dy.len(), x.len(), "dy and x differ in length");
    assert_eq!(x.len() % n, 0, "x of {} is not rows of {n}", x.len());
    let work = || Work::each(x.len(), 9, 12).and_bytes(4 * n);
    let _span = profile::span("rms_norm backward", [x.len() / n, n], work);
    let dx = Disjoint::new(dx);
    cpu.for_rows(x.len() / n, 2 * n, &|first, count| {
        let rows = first * n..(first + count) * n;
        // SAFETY: row ranges of different tasks do not overlap; `Cpu::with_isa` asserts the
        // instruction set; the slices are whole rows of n by the asserts above.
        unsafe {
            let dx = dx.part(first * n, count * n);
            rms_norm_gradient_on(cpu.isa(), dx, &dy[rows.clone()], &x[rows], w, eps);
        }
    });
}

for_each_isa! {
    fn rms_norm_gradient_on(dx: &mut [f32], dy: &[f32], x: &[f32], w: &[f32], eps: f32)
        = rms_norm_gradient
}

/// # Safety
/// The CPU has the instruction set of `V`; dx, dy and x have the same length, a multiple of w's.
#[inline(always)]
unsafe fn rms_norm_gradient<V: Vector>(dx: &mut [f32], dy: &[f32], x: &[f32], w: &[f32], eps: f32) {
    let n = w.len();
    let w = w.as_ptr();
    for ((dx, dy), x) in dx.chunks_exact_mut(n).zip(dy.chunks_exact(n)).zip(x.chunks_exact(n)) {
        let (dx, dy, x) = (dx.as_mut_ptr(), dy.as_ptr(), x.as_ptr());
        // SAFETY: i + the lanes read or written does not pass n, the length of all four.
        unsafe {
            let mean = sum_of_squares::<V::Doubles>(x, n) / n as f64;
            let r = (mean + f64::from(eps)).sqrt().recip();
            let c = V::splat((r * r * r / n as f64 * triple_sum::<V::Doubles>(dy, w, x, n)) as f32);
            let r = V::splat(r as f32);
            let mut i = 0;
            while i + V::LANES <= n {
                let direct = V::load(dy.add(i)).mul(V::load(w.add(i))).mul(r);
                direct.sub(V::load(x.add(i)).mul(c)).store(dx.add(i));
                i += V::LANES;
            }
            if i < n {
                let (dy, w) = (V::load_first(dy.add(i), n - i), V::load_first(w.add(i), n - i));
                let x = V::load_first(x.add(i), n - i);
                dy.mul(w).mul(r).sub(x.mul(c)).store_first(dx.add(i), n - i);
            }
        }
    }
}

/// Σ a·b·c.
///
/// # Safety
/// The CPU has the instruction set of `V`; a, b and c have n elements.
#[inline(always)]
unsafe fn triple_sum<V: Doubles>(a: *const f32, b: *const f32, c: *const f32, n: usize) -> f64 {
    // SAFETY: i + the lanes read does not pass n.
    unsafe {
        let mut sum = V::splat(0.0);
        let mut i = 0;
        while i + V::LANES <= n {
            let product = V::widen(a.add(i)).mul(V::widen(b.add(i)));
            sum = product.mul_add(V::widen(c.add(i)), sum);
            i += V::LANES;
        }
        if i < n {
            let product = V::widen_first(a.add(i), n - i).mul(V::widen_first(b.add(i), n - i));
            sum = product.mul_add(V::widen_first(c.add(i), n - i), sum);
        }
        sum.reduce_add()
    }
}

/// # Safety
/// The CPU has the instruction set of `V`; x has n elements.
#[inline(always)]
pub(super) unsafe fn sum_of_squares<V: Doubles>(x: *const f32, n: usize) -> f64 {
    // SAFETY: i + the lanes read does not pass n.
    unsafe {
        // Four sums in turn hide the latency of the addition.
        let mut sums = [V::splat(0.0); 4];
        let mut i = 0;
        while i + 4 * V::LANES <= n {
            for (lane, sum) in sums.iter_mut().enumerate() {
                let a = V::widen(x.add(i + lane * V::LANES));
                *sum = a.add_exact_product(a, *sum);
            }
            i += 4 * V::LANES;
        }
        while i + V::LANES <= n {
            let a = V::widen(x.add(i));
            sums[0] = a.add_exact_product(a, sums[0]);
            i += V::LANES;
        }
        if i < n {
            let a = V::widen_first(x.add(i), n - i);
            sums[1] = a.add_exact_product(a, sums[1]);
        }
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).reduce_add()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::reference::{
        assert_close, assert_rounded_once, assert_same_bits, contexts, values,
    };

    #[test]
    fn equals_the_exact_result_with_the_same_bits_in_any_batch() {
        let eps = 1e-6;
        for (rows, n) in [(0, 8), (1, 1), (3, 33), (64, 128), (65, 80), (70, 1024), (2, 2050)] {
            let (x, w) = (values(1, rows * n), values(2, n));
            let mut exact = Vec::new();
            for x in x.chunks_exact(n) {
                let sum: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
                let r = (sum / n as f64 + f64::from(eps)).sqrt().recip();
                exact.extend(x.iter().zip(&w).map(|(x, w)| f64::from(*x) * r * f64::from(*w)));
            }
            let mut first: Option<(Isa, Vec<f32>)> = None;
            for cpu in contexts() {
                let mut y = vec![f32::NAN; rows * n];
                forward(&cpu, &mut y, &x, &w, eps);
                assert_rounded_once(&y, &exact, 1e-13, &format!("{} [{rows}, {n}]", cpu.isa()));
                match &first {
                    Some((isa, bits)) if *isa == cpu.isa() => assert_same_bits(&y, bits, "threads"),
                    _ => first = Some((cpu.isa(), y.clone())),
                }
                for row in 0..rows {
                    let mut alone = vec![f32::NAN; n];
                    forward(&cpu, &mut alone, &x[row * n..(row + 1) * n], &w, eps);
                    assert_same_bits(&alone, &y[row * n..(row + 1) * n], "a row alone");
                }
            }
        }
    }

    #[test]
    fn the_gradient_equals_the_formula() {
        let eps = 1e-6;
        for (rows, n) in [(0, 8), (1, 1), (3, 33), (64, 128), (65, 80), (2, 2050)] {
            let (x, w, dy) = (values(1, rows * n), values(2, n), values(3, rows * n));
            let (mut exact, mut naive) = (Vec::new(), Vec::new());
            for (x, dy) in x.chunks_exact(n).zip(dy.chunks_exact(n)) {
                let r = (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64
                    + f64::from(eps))
                .sqrt()
                .recip();
                let terms = || x.iter().zip(dy).zip(&w);
                let sum: f64 = terms()
                    .map(|((x, dy), w)| f64::from(*x) * f64::from(*dy) * f64::from(*w))
                    .sum();
                let c = r.powi(3) / n as f64 * sum;
                let narrow = (r as f32, c as f32);
                exact
                    .extend(terms().map(|((x, dy), w)| {
                        r * f64::from(*w) * f64::from(*dy) - c * f64::from(*x)
                    }));
                naive.extend(terms().map(|((x, dy), w)| narrow.0 * w * dy - narrow.1 * x));
            }
            let mut first: Option<(Isa, Vec<f32>)> = None;
            for cpu in contexts() {
                let mut dx = vec![f32::NAN; rows * n];
                backward(&cpu, &mut dx, &dy, &x, &w, eps);
                assert_close(&dx, &naive, &exact, 1e-6, &format!("{} [{rows}, {n}]", cpu.isa()));
                match &first {
                    Some((isa, bits)) if *isa == cpu.isa() => {
                        assert_same_bits(&dx, bits, "threads")
                    }
                    _ => first = Some((cpu.isa(), dx)),
                }
            }
        }
    }

    #[test]
    fn a_row_of_zeros_stays_zero() {
        for cpu in contexts() {
            let mut y = [1.0; 40];
            forward(&cpu, &mut y, &[0.0; 40], &[3.0; 20], 1e-6);
            assert_eq!(y, [0.0; 40]);
        }
    }

    #[test]
    #[should_panic(expected = "x of 10 is not rows of 4")]
    fn shapes_are_checked() {
        forward(&Cpu::new(1), &mut [0.0; 10], &[0.0; 10], &[1.0; 4], 1e-6);
    }
}
