//! Sum of two tensors: y += x, element by element. Gradients that meet are added so. Bound: bytes.

use super::Cpu;
use super::pool::Disjoint;
use super::profile::{self, Work};
use super::vector::{Vector, for_each_isa};

/// Adds `x` to `y` of the same length.
pub fn accumulate(cpu: &Cpu, y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    let _span = profile::span("add", [x.len()], || Work::each(x.len(), 1, 12));
    /// Elements of the unit in which work is shared out.
    const UNIT: usize = 4096;
    let y = Disjoint::new(y);
    cpu.for_rows(x.len().div_ceil(UNIT), 2 * UNIT, &|first, count| {
        let (first, end) = (first * UNIT, x.len().min((first + count) * UNIT));
        // SAFETY: ranges of different tasks do not overlap; `Cpu::with_isa` asserts the
        // instruction set.
        unsafe { add_on(cpu.isa(), y.part(first, end - first), &x[first..end]) };
    });
}

for_each_isa! {
    fn add_on(y: &mut [f32], x: &[f32]) = add
}

#[inline(always)]
fn add<V: Vector>(y: &mut [f32], x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::reference::{assert_same_bits, contexts, values};

    #[test]
    fn equals_the_plain_sum() {
        for n in [0, 1, 33, 4097, 100_000] {
            let (x, y) = (values(1, n), values(2, n));
            let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| y + x).collect();
            for cpu in contexts() {
                let mut got = y.clone();
                accumulate(&cpu, &mut got, &x);
                assert_same_bits(&got, &want, "sum");
            }
        }
    }
}
