//! What tests of kernels share: values, and the comparison with a naive twin.

use super::{Cpu, Isa};

/// `len` values in [-1, 1), the same for the same seed.
pub(crate) fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Asserts that `got` is at most twice as far from `exact` as the `naive` f32 result is, plus
/// `floor`, in the largest error over all elements.
pub(crate) fn assert_close(got: &[f32], naive: &[f32], exact: &[f64], floor: f64, case: &str) {
    assert_eq!((got.len(), naive.len()), (exact.len(), exact.len()), "{case}");
    let error = |of: &[f32]| {
        let errors = of.iter().zip(exact).map(|(x, exact)| (f64::from(*x) - exact).abs());
        errors.fold(0.0, |largest, e| if e <= largest { largest } else { e }) // NaN counts
    };
    let (error, bound) = (error(got), 2.0 * error(naive) + floor);
    assert!(error <= bound, "{case}: error {error:e} above {bound:e}");
}

/// Asserts that every element of `got` is `exact` rounded to f32 once: at most half a unit in the
/// last place off, plus `floor` for the f64 sums of both.
pub(crate) fn assert_rounded_once(got: &[f32], exact: &[f64], floor: f64, case: &str) {
    assert_eq!(got.len(), exact.len(), "{case}");
    for (i, (got, exact)) in got.iter().zip(exact).enumerate() {
        let nearest = (*exact as f32).abs();
        let half = (f64::from(nearest.next_up()) - f64::from(nearest)) / 2.0;
        let error = (f64::from(*got) - exact).abs();
        assert!(error <= half + floor, "{case}: element {i}: {got} for {exact}, {error:e} off");
    }
}

/// Asserts that two results have the same bits.
pub(crate) fn assert_same_bits(a: &[f32], b: &[f32], case: &str) {
    assert_eq!(a.len(), b.len(), "{case}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "{case}: element {i}: {a} and {b}");
    }
}

/// Contexts of every instruction set this CPU has, on 1, 2 and 5 threads.
pub(crate) fn contexts() -> Vec<Cpu> {
    let isas = Isa::available().into_iter();
    isas.flat_map(|isa| [1, 2, 5].map(|threads| Cpu::with_isa(threads, isa))).collect()
}
