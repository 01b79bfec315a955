//! Sum of squares of a slice, in f64: what the norm of the gradient is made of. Bound: bytes.
//!
//! The slice is cut into 64 parts by its length alone, each summed in one order, so the result
//! has the same bits at any number of threads and on every instruction set. Squares of f32 are exact
//! in f64 and cannot overflow: the sum is infinite or NaN only if an element is.

use super::Cpu;
use super::pool::Disjoint;
use super::profile::{self, Work};
use super::rms_norm;
use super::vector::{Vector, for_each_isa};

/// Parts a slice is cut into: more than the threads of most machines, few enough for the stack.
const PARTS: usize = 64;

/// Elements a part has at least.
const UNIT: usize = 1024;

/// Σ x².
pub fn sum_of_squares(cpu: &Cpu, x: &[f32]) -> f64 {
    let _span = profile::span("norm", [x.len()], || Work::each(x.len(), 2, 4));
    let part = x.len().div_ceil(PARTS).next_multiple_of(UNIT);
    let mut sums = [0.0; PARTS];
    let slots = Disjoint::new(&mut sums);
    let parts = x.len().div_ceil(part.max(1));
    cpu.for_rows(parts, part, &|first, count| {
        for index in first..first + count {
            let x = &x[index * part..x.len().min((index + 1) * part)];
            // SAFETY: every part has its own slot; `Cpu::with_isa` asserts the instruction set.
            unsafe { sum_on(cpu.isa(), &mut slots.part(index, 1)[0], x) };
        }
    });
    sums.iter().sum()
}

for_each_isa! {
    fn sum_on(out: &mut f64, x: &[f32]) = sum
}

/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn sum<V: Vector>(out: &mut f64, x: &[f32]) {
    // SAFETY: the caller's promise, and x has x.len() elements.
    *out = unsafe { rms_norm::sum_of_squares::<V::Doubles>(x.as_ptr(), x.len()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::reference::{contexts, values};

    #[test]
    fn equals_the_naive_reference_with_the_same_bits_everywhere() {
        for n in [0, 1, 7, 8, 33, 1023, 1025, 40_000, 65_537, 300_001] {
            let x = values(3, n);
            let naive: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            let mut first = None;
            for cpu in contexts() {
                let got = sum_of_squares(&cpu, &x);
                // Both err by less than n half units in the last place of sums of positive numbers.
                let bound = naive * f64::EPSILON * n as f64;
                assert!((got - naive).abs() <= bound, "{} {n}: {got} {naive}", cpu.isa());
                let first = *first.get_or_insert(got);
                assert_eq!(got.to_bits(), first.to_bits(), "{} {}", cpu.isa(), cpu.threads());
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_not_hidden() {
        for cpu in contexts() {
            for at in [0, 15, 5_000, 70_000] {
                let mut x = vec![f32::MAX; 70_001];
                assert!(sum_of_squares(&cpu, &x).is_finite(), "squares of the largest f32");
                x[at] = f32::NEG_INFINITY;
                assert_eq!(sum_of_squares(&cpu, &x), f64::INFINITY, "{at}");
                x[at] = f32::NAN;
                assert!(sum_of_squares(&cpu, &x).is_nan(), "{at}");
            }
        }
    }
}
