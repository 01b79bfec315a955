//! RMSNorm over rows of `n`: y = x·r·w, r = (mean(x²) + eps)^-1/2 (Zhang and Sennrich 2019).
//! Also QK-norm: rows·heads rows of head_dim. Bound: bytes.

use super::Cpu;
use super::pool::Disjoint;
use super::vector::{Vector, for_each_isa};

/// Normalizes each row of `x` into `y`; the rows are as long as `w`.
pub fn forward(cpu: &Cpu, y: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    let n = w.len();
    assert!(n > 0, "w is empty");
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    assert_eq!(x.len() % n, 0, "x of {} is not rows of {n}", x.len());
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
            // Two sums in turn hide the latency of the addition.
            let mut sums = [V::splat(0.0); 2];
            let mut i = 0;
            while i + 2 * V::LANES <= n {
                let (a, b) = (V::load(x.add(i)), V::load(x.add(i + V::LANES)));
                sums = [a.mul_add(a, sums[0]), b.mul_add(b, sums[1])];
                i += 2 * V::LANES;
            }
            while i + V::LANES <= n {
                let a = V::load(x.add(i));
                sums[0] = a.mul_add(a, sums[0]);
                i += V::LANES;
            }
            if i < n {
                let a = V::load_first(x.add(i), n - i);
                sums[1] = a.mul_add(a, sums[1]);
            }
            let r = (sums[0].add(sums[1]).reduce_add() / n as f32 + eps).sqrt().recip();
            let r = V::splat(r);
            i = 0;
            while i + V::LANES <= n {
                V::load(x.add(i)).mul(r).mul(V::load(w.add(i))).store(y.add(i));
                i += V::LANES;
            }
            if i < n {
                let w = V::load_first(w.add(i), n - i);
                V::load_first(x.add(i), n - i).mul(r).mul(w).store_first(y.add(i), n - i);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::twin::{assert_close, assert_same_bits, contexts, values};

    #[test]
    fn equals_the_naive_twin_with_the_same_bits_in_any_batch() {
        let eps = 1e-6;
        for (rows, n) in [(0, 8), (1, 1), (3, 33), (64, 128), (65, 80), (70, 1024), (2, 2050)] {
            let (x, w) = (values(1, rows * n), values(2, n));
            let (mut naive, mut exact) = (Vec::new(), Vec::new());
            for x in x.chunks_exact(n) {
                let r = (x.iter().map(|x| x * x).sum::<f32>() / n as f32 + eps).sqrt().recip();
                naive.extend(x.iter().zip(&w).map(|(x, w)| x * r * w));
                let sum: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
                let r = (sum / n as f64 + f64::from(eps)).sqrt().recip();
                exact.extend(x.iter().zip(&w).map(|(x, w)| f64::from(*x) * r * f64::from(*w)));
            }
            let mut first: Option<(Isa, Vec<f32>)> = None;
            for cpu in contexts() {
                let mut y = vec![f32::NAN; rows * n];
                forward(&cpu, &mut y, &x, &w, eps);
                assert_close(&y, &naive, &exact, 1e-6, &format!("{} [{rows}, {n}]", cpu.isa()));
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
