//! What tests of kernels share: the comparison with a naive reference, contexts.

pub(crate) use super::values::values;
use super::{Cpu, Isa, values::largest_error};

/// Asserts that `got` is at most twice as far from `exact` as the `naive` f32 result is, plus
/// `floor`, in the largest error over all elements.
pub(crate) fn assert_close(got: &[f32], naive: &[f32], exact: &[f64], floor: f64, case: &str) {
    let bound = 2.0 * largest_error(naive, exact) + floor;
    let error = largest_error(got, exact);
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
