//! Vectors of f32 lanes: each algorithm is written once over [`Vector`] and compiled per
//! instruction set by [`for_each_isa!`] (the way of the memchr crate).
//!
//! Everything here is `inline(always)`, so that it ends up inside a function that enables the
//! instruction set. Closures are not, so kernels' inner loops contain none.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, Bf16Pairs};
pub(crate) use portable::Portable;

/// A vector of f32 lanes.
///
/// # Safety
/// Callers of every function promise that the CPU has the instruction set (kernels get that from
/// the assert in `Cpu::with_isa`), that pointers are valid for the lanes read or written, and that
/// `count` of the `_first` functions is below [`Vector::LANES`]. No alignment is needed but the
/// element's.
pub(crate) trait Vector: Copy {
    /// Number of lanes, a power of two.
    const LANES: usize;
    /// Rows of the largest tile: rows × 4 accumulators and their operands fit the registers.
    const TILE_ROWS: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// The first `count` lanes; the others are zero and their memory is not touched.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    unsafe fn load_bf16(from: *const bf16) -> Self;
    unsafe fn load_bf16_first(from: *const bf16, count: usize) -> Self;
    unsafe fn load_f16(from: *const f16) -> Self;
    unsafe fn load_f16_first(from: *const f16, count: usize) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn store_first(self, to: *mut f32, count: usize);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// self · factor + term, fused where the instruction set can.
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self;
    /// The larger; `other` if either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; `other` if either is NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// To the nearest integer, ties to even; |self| < 2²².
    unsafe fn round(self) -> Self;
    /// self · 2^n, overflowing and underflowing as a product does; n is whole and |n| < 250.
    unsafe fn scale(self, n: Self) -> Self;
    /// Sum of the lanes: halves are added (lane i and i + LANES/2) until one is left.
    unsafe fn reduce_add(self) -> f32;
    /// Four sums of lanes, each in the order of [`Vector::reduce_add`].
    unsafe fn reduce_add4(of: [Self; 4]) -> [f32; 4];
    /// The largest lane; no lane may be NaN.
    unsafe fn reduce_max(self) -> f32;
}

/// An element type a vector can be loaded from. Safety as for [`Vector`].
pub(crate) trait Element: Copy + Sync {
    unsafe fn load<V: Vector>(from: *const Self) -> V;
    unsafe fn load_first<V: Vector>(from: *const Self, count: usize) -> V;
}

macro_rules! element {
    ($type:ty, $load:ident, $load_first:ident) => {
        impl Element for $type {
            #[inline(always)]
            unsafe fn load<V: Vector>(from: *const Self) -> V {
                // SAFETY: the trait's contract is the same as `Vector`'s.
                unsafe { V::$load(from) }
            }
            #[inline(always)]
            unsafe fn load_first<V: Vector>(from: *const Self, count: usize) -> V {
                // SAFETY: the trait's contract is the same as `Vector`'s.
                unsafe { V::$load_first(from, count) }
            }
        }
    };
}
element!(f32, load, load_first);
element!(bf16, load_bf16, load_bf16_first);
element!(f16, load_f16, load_f16_first);

/// Defines the `unsafe` methods of a trait's impl by their bodies alone.
macro_rules! methods {
    ($(fn $name:ident($($arguments:tt)*) -> $result:ty $body:block)*) => {
        $(
            #[inline(always)]
            unsafe fn $name($($arguments)*) -> $result {
                // SAFETY: the trait's contract: the instruction set is there, pointers are valid.
                unsafe { $body }
            }
        )*
    };
}
pub(crate) use methods;

/// Defines `unsafe fn $name(isa, arguments..)`, which runs `$kernel::<V>(arguments..)` compiled
/// for `isa`. The CPU must have `isa`; the rest of the contract is the kernel's.
macro_rules! for_each_isa {
    ($(#[$meta:meta])* fn $name:ident $(<$t:ident: $bound:path>)?
        ($($argument:ident: $type:ty),* $(,)?) = $kernel:ident) => {
        $(#[$meta])*
        unsafe fn $name $(<$t: $bound>)? (isa: $crate::cpu::Isa, $($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2 $(<$t: $bound>)? ($($argument: $type),*) {
                // SAFETY: the caller's promise, passed on.
                unsafe { $kernel::<$crate::cpu::vector::Avx2 $(, $t)?>($($argument),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
            unsafe fn avx512 $(<$t: $bound>)? ($($argument: $type),*) {
                // SAFETY: the caller's promise, passed on.
                unsafe { $kernel::<$crate::cpu::vector::Avx512 $(, $t)?>($($argument),*) }
            }
            // SAFETY: the caller's promise, passed on.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::Isa::Avx2 => avx2 $(::<$t>)? ($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::Isa::Avx512 | $crate::cpu::Isa::Avx512Bf16 => {
                        avx512 $(::<$t>)? ($($argument),*)
                    }
                    _ => $kernel::<$crate::cpu::vector::Portable $(, $t)?>($($argument),*),
                }
            }
        }
    };
}
pub(crate) use for_each_isa;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    /// Exercises every method on one vector of awkward values and writes results to `out`.
    #[inline(always)]
    unsafe fn exercise<V: Vector>(x: &[f32], out: &mut Vec<f32>) {
        // SAFETY: x holds 32 values, more than any vector's lanes; buffers are 16 long.
        unsafe {
            let half: Vec<f16> = x.iter().map(|x| f16::from_f32(*x)).collect();
            let brain: Vec<bf16> = x.iter().map(|x| bf16::from_f32(*x)).collect();
            let mut buffer = [-7.0f32; 16];
            for count in 0..V::LANES {
                V::load_first(x.as_ptr(), count).store(buffer.as_mut_ptr());
                assert_eq!(buffer[..count], x[..count]);
                assert!(buffer[count..V::LANES].iter().all(|x| *x == 0.0));
                V::load_f16_first(half.as_ptr(), count).store(buffer.as_mut_ptr());
                assert!((0..count).all(|i| buffer[i] == half[i].to_f32()));
                assert!(buffer[count..V::LANES].iter().all(|x| *x == 0.0));
                V::load_bf16_first(brain.as_ptr(), count).store(buffer.as_mut_ptr());
                assert!((0..count).all(|i| buffer[i] == brain[i].to_f32()));
                assert!(buffer[count..V::LANES].iter().all(|x| *x == 0.0));
                buffer = [-7.0; 16];
                V::load(x.as_ptr()).store_first(buffer.as_mut_ptr(), count);
                assert_eq!(buffer[..count], x[..count]);
                assert!(buffer[count..].iter().all(|x| *x == -7.0));
            }
            V::load_f16(half.as_ptr()).store(buffer.as_mut_ptr());
            assert!((0..V::LANES).all(|i| buffer[i] == half[i].to_f32()));
            V::load_bf16(brain.as_ptr()).store(buffer.as_mut_ptr());
            assert!((0..V::LANES).all(|i| buffer[i] == brain[i].to_f32()));

            let (a, b) = (V::load(x.as_ptr()), V::load(x.as_ptr().add(16)));
            let four = [a, b, a.sub(b), a.mul(b)];
            let sums = V::reduce_add4(four);
            for i in 0..4 {
                assert_eq!(sums[i].to_bits(), four[i].reduce_add().to_bits());
                let lanes: &mut [f32] = &mut buffer[..V::LANES];
                four[i].store(lanes.as_mut_ptr());
                let mut width = V::LANES / 2;
                while width > 0 {
                    (0..width).for_each(|j| lanes[j] += lanes[j + width]);
                    width /= 2;
                }
                assert_eq!(sums[i].to_bits(), lanes[0].to_bits());
            }
            let largest = x[..V::LANES].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(a.reduce_max(), largest);
            let nan = V::splat(f32::NAN);
            for v in [nan.max(a), nan.min(a), a.max(b), a.min(b), a.div(b), a.add(b)] {
                v.store(buffer.as_mut_ptr());
                out.extend(&buffer[..8]);
            }
            for v in [a.max(nan), a.min(nan)] {
                assert!(v.reduce_add().is_nan());
            }
            for x in [0.5f32, 1.5, -0.5, -2.5, 0.49999997, 123456.7, -3.0] {
                V::splat(x).round().store(buffer.as_mut_ptr());
                assert_eq!(buffer[0], x.round_ties_even());
            }
            for n in [-249.0f32, -150.0, -149.0, -127.0, -1.0, 0.0, 1.0, 127.0, 128.0, 249.0] {
                V::splat(1.5).scale(V::splat(n)).store(buffer.as_mut_ptr());
                assert_eq!(buffer[0], (1.5 * f64::from(n).exp2()) as f32, "2^{n}");
            }
        }
    }

    for_each_isa! {
        fn exercise_on(x: &[f32], out: &mut Vec<f32>) = exercise
    }

    #[test]
    fn every_method_on_every_instruction_set() {
        let x: Vec<f32> = (0..32).map(|i| ((i * 37 % 23) as f32 - 11.3) * 0.77).collect();
        let mut first = Vec::new();
        for isa in Isa::available() {
            let mut out = Vec::new();
            // SAFETY: `isa` is available, x holds 32 values.
            unsafe { exercise_on(isa, &x, &mut out) };
            if first.is_empty() {
                first = out;
            } else {
                assert_eq!(first, out, "{isa}");
            }
        }
    }
}
