//! Vectors of lanes: each algorithm is written once over [`Vector`] (f32) or [`Doubles`] (f64), or
//! over [`Simd`], what they share, and compiled per instruction set by [`for_each_isa!`] (the way
//! of the memchr crate).
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
pub(crate) use avx512::{Avx512, Bf16Pairs, transposed};
pub(crate) use portable::Portable;

/// The accumulate dtype: f32 or f64.
pub(crate) trait Scalar: Copy + Send + Sync + Default {
    const NEG_INFINITY: Self;
    /// n^-1/2.
    fn inverse_sqrt(n: usize) -> Self;
    fn inverse(self) -> Self;
    fn to_f32(self) -> f32;
    /// self + ln `total`, computed in f64; NaN if `total` is neither positive nor finite.
    fn plus_ln(self, total: Self) -> f32;
}

macro_rules! scalar {
    ($type:ident) => {
        impl Scalar for $type {
            const NEG_INFINITY: $type = $type::NEG_INFINITY;
            #[inline(always)]
            fn inverse_sqrt(n: usize) -> $type {
                1.0 / (n as $type).sqrt()
            }
            #[inline(always)]
            fn inverse(self) -> $type {
                1.0 / self
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn plus_ln(self, total: $type) -> f32 {
                if total.is_normal() && total > 0.0 {
                    (f64::from(self) + super::lanes::ln(f64::from(total))) as f32
                } else {
                    f32::NAN
                }
            }
        }
    };
}
scalar!(f32);
scalar!(f64);

/// A vector of f32 or f64 lanes.
///
/// # Safety
/// Callers of every function promise that the CPU has the instruction set (kernels get that from
/// the assert in `Cpu::with_isa`), that pointers are valid for the lanes read or written, and that
/// `count` of the `_first` functions is below [`Simd::LANES`]. No alignment is needed but the
/// element's.
pub(crate) trait Simd: Copy {
    type Scalar: Scalar;
    /// Number of lanes, a power of two.
    const LANES: usize;
    /// Rows of the largest tile: rows × 4 accumulators and their operands fit the registers.
    const TILE_ROWS: usize;

    unsafe fn splat(x: Self::Scalar) -> Self;
    unsafe fn load(from: *const Self::Scalar) -> Self;
    /// The first `count` lanes; the others are zero and their memory is not touched.
    unsafe fn load_first(from: *const Self::Scalar, count: usize) -> Self;
    /// Elements of any type, widened: exact.
    unsafe fn widen<T: Element>(from: *const T) -> Self;
    unsafe fn widen_first<T: Element>(from: *const T, count: usize) -> Self;
    unsafe fn store(self, to: *mut Self::Scalar);
    unsafe fn store_first(self, to: *mut Self::Scalar, count: usize);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// self · factor + term: f32 fused where the instruction set can, f64 in two roundings.
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self;
    /// The larger; `other` if either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; `other` if either is NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// To the nearest integer, ties to even; |self| < 2²² (f32) or 2⁵¹ (f64).
    unsafe fn round(self) -> Self;
    /// self · 2^n, overflowing and underflowing as a product does; n is whole and |n| < 250 (f32)
    /// or 2000 (f64).
    unsafe fn scale(self, n: Self) -> Self;
    /// e^self, see exp.rs.
    unsafe fn exp(self) -> Self;
    /// Sum of the lanes: halves are added (lane i and i + LANES/2) until one is left.
    unsafe fn reduce_add(self) -> Self::Scalar;
    /// Four sums of lanes, each in the order of [`Simd::reduce_add`].
    unsafe fn reduce_add4(of: [Self; 4]) -> [Self::Scalar; 4];
    /// The largest lane; no lane may be NaN.
    unsafe fn reduce_max(self) -> Self::Scalar;
    /// Hints that the cache line at an address, valid or not, will be read.
    unsafe fn prefetch(address: *const u8) {
        let _ = address;
    }
}

/// A vector of f32 lanes. Safety as for [`Simd`].
pub(crate) trait Vector: Simd<Scalar = f32> {
    /// The same instruction set's vector of f64.
    type Doubles: Doubles;

    unsafe fn load_bf16(from: *const bf16) -> Self;
    unsafe fn load_bf16_first(from: *const bf16, count: usize) -> Self;
    unsafe fn load_f16(from: *const f16) -> Self;
    unsafe fn load_f16_first(from: *const f16, count: usize) -> Self;
    /// Writes the transpose of `LANES` rows of `LANES` elements, widened. Strides are elements from row
    /// to row, of the result as well.
    unsafe fn transpose<T: Element>(from: *const T, stride: usize, to: *mut f32, to_stride: usize);
    unsafe fn div(self, other: Self) -> Self;
    /// The square root, correctly rounded.
    unsafe fn sqrt(self) -> Self;

    /// self · r · w with one rounding, of a value within 2^-45 of the product.
    #[inline(always)]
    unsafe fn mul_f64_mul(self, r: f64, w: Self) -> Self {
        // SAFETY: the caller's promise. Where `mul_add` is fused: with r as a sum of two f32,
        // self · r is the sum of p and its error, in half the time that conversion to f64 takes.
        unsafe {
            let high = r as f32;
            let low = Self::splat((r - f64::from(high)) as f32);
            let high = Self::splat(high);
            let p = self.mul(high);
            let error = self.mul_add(low, self.mul_add(high, Self::splat(0.0).sub(p)));
            p.mul_add(w, error.mul(w))
        }
    }
}

/// Eight f64 lanes, as many registers as that takes: with the same number of lanes and the same
/// roundings everywhere, sums have the same bits on every instruction set. Safety as for [`Simd`].
pub(crate) trait Doubles: Simd<Scalar = f64> {
    /// self · factor + term where the product is exact, as that of two widened f32 is: so it may
    /// be fused or not.
    unsafe fn add_exact_product(self, factor: Self, term: Self) -> Self;
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
    ($(fn $name:ident $(<$t:ident: $bound:path>)? ($($arguments:tt)*) -> $result:ty $body:block)*) => {
        $(
            #[inline(always)]
            #[allow(unused_unsafe)] // plain Rust needs none
            unsafe fn $name $(<$t: $bound>)? ($($arguments)*) -> $result {
                // SAFETY: the trait's contract: the instruction set is there, pointers are valid.
                unsafe { $body }
            }
        )*
    };
}
pub(crate) use methods;

/// Defines `unsafe fn $name(isa, arguments..)`, which runs `$kernel::<V>(arguments..)` compiled
/// for `isa`. The CPU must have `isa`; the rest of the contract is the kernel's. A kernel in plain
/// Rust leaves `V` unused and is safe.
macro_rules! for_each_isa {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident $(<$t:ident: $bound:path>)?
        ($($argument:ident: $type:ty),* $(,)?) $(-> $output:ty)? = $kernel:ident) => {
        $(#[$meta])*
        #[allow(unused_unsafe)] // plain Rust needs none
        $visibility unsafe fn $name $(<$t: $bound>)? (isa: $crate::cpu::Isa, $($argument: $type),*) $(-> $output)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2 $(<$t: $bound>)? ($($argument: $type),*) $(-> $output)? {
                // SAFETY: the caller's promise, passed on.
                unsafe { $kernel::<$crate::cpu::vector::Avx2 $(, $t)?>($($argument),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
            unsafe fn avx512 $(<$t: $bound>)? ($($argument: $type),*) $(-> $output)? {
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

            let rows: Vec<bf16> = (0..16 * 19).map(|i| bf16::from_f32(i as f32)).collect();
            let mut columns = [-7.0f32; 16 * 17];
            V::transpose(rows.as_ptr(), 19, columns.as_mut_ptr(), 17);
            for (i, column) in columns.chunks(17).enumerate() {
                for (j, value) in column.iter().enumerate() {
                    let inside = i < V::LANES && j < V::LANES;
                    assert_eq!(*value, if inside { rows[19 * j + i].to_f32() } else { -7.0 });
                }
            }

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
            for x in [0.0f32, 1e-45, 2.0, 3.4e38, f32::INFINITY] {
                V::splat(x).sqrt().store(buffer.as_mut_ptr());
                assert_eq!(buffer[0], x.sqrt());
            }
            for n in [-249.0f32, -150.0, -149.0, -127.0, -1.0, 0.0, 1.0, 127.0, 128.0, 249.0] {
                V::splat(1.5).scale(V::splat(n)).store(buffer.as_mut_ptr());
                assert_eq!(buffer[0], (1.5 * f64::from(n).exp2()) as f32, "2^{n}");
            }
        }
    }

    /// The same for vectors of f64.
    #[inline(always)]
    unsafe fn exercise_doubles<V: Vector>(x: &[f32], out: &mut Vec<f64>) {
        // SAFETY: x holds 32 values, more than any vector's lanes; buffers are 8 long.
        unsafe { exercise_doubles_of::<V::Doubles>(x, out) }
    }

    #[inline(always)]
    unsafe fn exercise_doubles_of<V: Doubles>(x: &[f32], out: &mut Vec<f64>) {
        // SAFETY: as above.
        unsafe {
            let half: Vec<f16> = x.iter().map(|x| f16::from_f32(*x)).collect();
            let brain: Vec<bf16> = x.iter().map(|x| bf16::from_f32(*x)).collect();
            let wide: Vec<f64> = x.iter().map(|x| f64::from(*x) / 3.0).collect();
            let mut buffer = [-7.0f64; 8];
            for count in 0..=8 {
                let partial = |whole: V, first: &dyn Fn() -> V| match count {
                    8 => whole,
                    _ => first(),
                };
                let mut check = |v: V, want: &dyn Fn(usize) -> f64| {
                    v.store(buffer.as_mut_ptr());
                    assert!((0..count).all(|i| buffer[i] == want(i)), "{buffer:?}");
                    assert!(buffer[count..].iter().all(|x| *x == 0.0), "{buffer:?}");
                };
                let p = wide.as_ptr();
                check(partial(V::load(p), &|| V::load_first(p, count)), &|i| wide[i]);
                let p = x.as_ptr();
                check(partial(V::widen(p), &|| V::widen_first(p, count)), &|i| f64::from(x[i]));
                let p = half.as_ptr();
                let want = |i: usize| half[i].to_f64();
                check(partial(V::widen(p), &|| V::widen_first(p, count)), &want);
                let p = brain.as_ptr();
                let want = |i: usize| brain[i].to_f64();
                check(partial(V::widen(p), &|| V::widen_first(p, count)), &want);
                if count < 8 {
                    buffer = [-7.0; 8];
                    V::load(wide.as_ptr()).store_first(buffer.as_mut_ptr(), count);
                    assert_eq!(buffer[..count], wide[..count]);
                    assert!(buffer[count..].iter().all(|x| *x == -7.0));
                }
            }
            let (a, b) = (V::load(wide.as_ptr()), V::load(wide.as_ptr().add(16)));
            let four = [a, b, a.sub(b), a.mul(b)];
            let sums = V::reduce_add4(four);
            for i in 0..4 {
                assert_eq!(sums[i].to_bits(), four[i].reduce_add().to_bits());
                four[i].store(buffer.as_mut_ptr());
                for width in [4, 2, 1] {
                    (0..width).for_each(|j| buffer[j] += buffer[j + width]);
                }
                assert_eq!(sums[i].to_bits(), buffer[0].to_bits());
            }
            let largest = wide[..8].iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert_eq!(a.reduce_max(), largest);
            let (nan, c) = (V::splat(f64::NAN), V::widen(x.as_ptr()));
            let products = [a.mul_add(b, a), c.add_exact_product(c, a)];
            for v in
                [nan.max(a), nan.min(a), a.max(b), a.min(b), a.add(b), products[0], products[1]]
            {
                v.store(buffer.as_mut_ptr());
                out.extend(buffer);
            }
            for v in [a.max(nan), a.min(nan)] {
                assert!(v.reduce_add().is_nan());
            }
            for x in [0.5f64, 1.5, -0.5, -2.5, 0.499_999_999_999_999_94, 123_456.7, -3.0] {
                V::splat(x).round().store(buffer.as_mut_ptr());
                assert_eq!(buffer[0], x.round_ties_even());
            }
            let steps =
                [-1999.0, -1075.0, -1074.0, -1023.0, -1.0, 0.0, 1.0, 1023.0, 1024.0, 1999.0];
            for n in steps {
                V::splat(1.5).scale(V::splat(n)).store(buffer.as_mut_ptr());
                let halves = 1.5 * (n / 2.0).floor().exp2() * (n / 2.0).ceil().exp2();
                assert_eq!(buffer[0], halves, "2^{n}");
            }
        }
    }

    for_each_isa! {
        fn exercise_on(x: &[f32], out: &mut Vec<f32>) = exercise
    }

    for_each_isa! {
        fn exercise_doubles_on(x: &[f32], out: &mut Vec<f64>) = exercise_doubles
    }

    #[test]
    fn every_method_on_every_instruction_set() {
        let x: Vec<f32> = (0..32).map(|i| ((i * 37 % 23) as f32 - 11.3) * 0.77).collect();
        let (mut first, mut first_doubles) = (Vec::new(), Vec::new());
        for isa in Isa::available() {
            let mut doubles = Vec::new();
            // SAFETY: `isa` is available, x holds 32 values.
            unsafe { exercise_doubles_on(isa, &x, &mut doubles) };
            if first_doubles.is_empty() {
                first_doubles = doubles;
            } else {
                assert_eq!(first_doubles, doubles, "{isa}");
            }
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
