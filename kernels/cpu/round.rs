//! Rounding of f32 rows to bf16, to nearest even: inputs of products, keys and values. And rows widened to f32.

use half::bf16;

use super::profile::{self, Work};
use super::vector::{Element, Vector, for_each_isa};
use super::{Cpu, elements, pool::Disjoint};

/// Elements of the unit in which work is shared out.
const UNIT: usize = 4096;

/// An output of rounding: bf16, or f32 that holds the bf16 value.
pub(crate) trait Rounded: Copy + Send + Default {
    fn round(x: f32) -> Self;
}

impl Rounded for bf16 {
    /// Equal to `bf16::from_f32`, written so that it vectorizes.
    #[inline(always)]
    fn round(x: f32) -> bf16 {
        let bits = x.to_bits();
        let quiet = (bits >> 16) | 0x40;
        let nearest = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
        let is_nan = bits & 0x7FFF_FFFF > 0x7F80_0000;
        bf16::from_bits((if is_nan { quiet } else { nearest }) as u16)
    }
}

impl Rounded for f32 {
    #[inline(always)]
    fn round(x: f32) -> f32 {
        f32::from_bits(u32::from(bf16::round(x).to_bits()) << 16)
    }
}

/// Rounds `x` into `y` of the same length, on all threads.
pub fn to_bf16(cpu: &Cpu, y: &mut [bf16], x: &[f32]) {
    let _span = profile::span("round", [x.len()], || Work::each(x.len(), 0, 6));
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    let y = Disjoint::new(y);
    cpu.for_rows(x.len().div_ceil(UNIT), UNIT, &|first, count| {
        let (first, end) = (first * UNIT, x.len().min((first + count) * UNIT));
        // SAFETY: ranges of different tasks do not overlap.
        row(cpu, unsafe { y.part(first, end - first) }, &x[first..end]);
    });
}

/// Widens `x` into `y` of the same length, on all threads. Exact.
pub fn from_bf16(cpu: &Cpu, y: &mut [f32], x: &[bf16]) {
    let _span = profile::span("round", [x.len()], || Work::each(x.len(), 0, 6));
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    let y = Disjoint::new(y);
    cpu.for_rows(x.len().div_ceil(UNIT), UNIT, &|first, count| {
        let (first, end) = (first * UNIT, x.len().min((first + count) * UNIT));
        // SAFETY: ranges of different tasks do not overlap.
        widen_row(cpu, unsafe { y.part(first, end - first) }, &x[first..end]);
    });
}

/// Widens `x` into `y` of the same length on this thread. Exact.
pub(crate) fn widen_row<T: Element>(cpu: &Cpu, y: &mut [f32], x: &[T]) {
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    // SAFETY: `Cpu::with_isa` asserts that this CPU has the instruction set; the assert above.
    unsafe { widen_on(cpu.isa(), y, x) }
}

/// Rounds `x` into `y` of the same length on this thread.
pub(crate) fn row<T: Rounded>(cpu: &Cpu, y: &mut [T], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    // SAFETY: `Cpu::with_isa` asserts that this CPU has the instruction set.
    unsafe { round_on(cpu.isa(), y, x) }
}

/// Rounds rows of `x`, of length k, into `y`, whose rows are `stride` apart, on all threads.
pub(crate) fn rows<T: Rounded>(cpu: &Cpu, y: &mut [T], stride: usize, x: &[f32], k: usize) {
    if k == 0 {
        return;
    }
    let count = x.len() / k;
    assert!(stride >= k && x.len() == count * k, "{stride}, {k}");
    assert_eq!(y.len(), elements([count, stride]), "y is not [{count}, {stride}]");
    let y = Disjoint::new(y);
    cpu.for_rows(count, k, &|first, count| {
        for row in first..first + count {
            // SAFETY: rows do not overlap, since the stride is at least their length.
            self::row(cpu, unsafe { y.part(row * stride, k) }, &x[row * k..(row + 1) * k]);
        }
    });
}

for_each_isa! {
    fn round_on<T: Rounded>(y: &mut [T], x: &[f32]) = round
}

#[inline(always)]
fn round<V: Vector, T: Rounded>(y: &mut [T], x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = T::round(x);
    }
}

for_each_isa! {
    fn widen_on<T: Element>(y: &mut [f32], x: &[T]) = widen
}

/// # Safety
/// The CPU has the instruction set of `V`, and the slices have the same length.
#[inline(always)]
unsafe fn widen<V: Vector, T: Element>(y: &mut [f32], x: &[T]) {
    let (y, x, n) = (y.as_mut_ptr(), x.as_ptr(), x.len());
    // SAFETY: i + the lanes read or written does not pass n.
    unsafe {
        let mut i = 0;
        while i + V::LANES <= n {
            T::load::<V>(x.add(i)).store(y.add(i));
            i += V::LANES;
        }
        if i < n {
            T::load_first::<V>(x.add(i), n - i).store_first(y.add(i), n - i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    #[test]
    fn equals_half_on_every_kind_of_number() {
        // Every upper half with lower halves around the tie; all signs, subnormals, inf and NaN.
        let lower = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF];
        let x: Vec<f32> = (0..=0xFFFFu32)
            .flat_map(|upper| lower.map(|lower| f32::from_bits((upper << 16) | lower)))
            .collect();
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(2, isa);
            let mut narrow = vec![bf16::ZERO; x.len()];
            let mut wide = vec![0f32; x.len()];
            rows(&cpu, &mut narrow, 64, &x, 64);
            row(&cpu, &mut wide, &x);
            let mut whole = vec![bf16::ZERO; x.len()];
            to_bf16(&cpu, &mut whole, &x);
            assert!(whole.iter().zip(&narrow).all(|(a, b)| a.to_bits() == b.to_bits()));
            let mut back = vec![0f32; x.len()];
            from_bf16(&cpu, &mut back, &whole);
            assert!(back.iter().zip(&wide).all(|(a, b)| a.to_bits() == b.to_bits()));
            for i in 0..x.len() {
                let want = bf16::from_f32(x[i]);
                assert_eq!(narrow[i].to_bits(), want.to_bits(), "{:#x}", x[i].to_bits());
                assert_eq!(wide[i].to_bits(), u32::from(want.to_bits()) << 16);
            }
        }
    }
}
