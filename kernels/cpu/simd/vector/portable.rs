//! Eight lanes in plain Rust. Without a guarantee of hardware FMA, `mul_add` rounds twice.

use super::{Doubles, Element, Simd, Vector, bf16, f16, methods};
use crate::cpu::exp;

#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

/// Applies `$f` lane by lane.
macro_rules! lanes {
    ($i:ident => $value:expr) => {{
        let mut out = [0.0; 8];
        for $i in 0..8 {
            out[$i] = $value;
        }
        Portable(out)
    }};
}

/// The same for f64.
macro_rules! doubles {
    ($i:ident => $value:expr) => {{
        let mut out = [0.0; 8];
        for $i in 0..8 {
            out[$i] = $value;
        }
        PortableDoubles(out)
    }};
}

impl Simd for Portable {
    type Scalar = f32;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 2;

    methods! {
        fn splat(x: f32) -> Self { Portable([x; 8]) }
        fn load(from: *const f32) -> Self { Portable(from.cast::<[f32; 8]>().read_unaligned()) }
        fn load_first(from: *const f32, count: usize) -> Self {
            lanes!(i => if i < count { *from.add(i) } else { 0.0 })
        }
        fn store(self, to: *mut f32) -> () { to.cast::<[f32; 8]>().write_unaligned(self.0) }
        fn store_first(self, to: *mut f32, count: usize) -> () {
            for i in 0..count {
                *to.add(i) = self.0[i];
            }
        }
        fn add(self, other: Self) -> Self { lanes!(i => self.0[i] + other.0[i]) }
        fn sub(self, other: Self) -> Self { lanes!(i => self.0[i] - other.0[i]) }
        fn mul(self, other: Self) -> Self { lanes!(i => self.0[i] * other.0[i]) }
        fn mul_add(self, factor: Self, term: Self) -> Self {
            lanes!(i => self.0[i] * factor.0[i] + term.0[i])
        }
        fn max(self, other: Self) -> Self {
            lanes!(i => if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] })
        }
        fn min(self, other: Self) -> Self {
            lanes!(i => if self.0[i] < other.0[i] { self.0[i] } else { other.0[i] })
        }
        fn round(self) -> Self {
            // Adding 1.5·2²³ leaves no bits for a fraction.
            lanes!(i => (self.0[i] + 12_582_912.0) - 12_582_912.0)
        }
        fn scale(self, n: Self) -> Self {
            // In two steps, so that each factor is a normal number.
            lanes!(i => {
                let n = n.0[i] as i32;
                let half = n >> 1;
                self.0[i] * power_of_two(half) * power_of_two(n - half)
            })
        }
        fn reduce_add(self) -> f32 {
            let a = self.0;
            ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
        }
        fn reduce_add4(of: [Self; 4]) -> [f32; 4] {
            [of[0].reduce_add(), of[1].reduce_add(), of[2].reduce_add(), of[3].reduce_add()]
        }
        fn reduce_max(self) -> f32 {
            let mut largest = self.0[0];
            for i in 1..8 {
                largest = if self.0[i] > largest { self.0[i] } else { largest };
            }
            largest
        }
        fn widen<T: Element>(from: *const T) -> Self { T::load(from) }
        fn widen_first<T: Element>(from: *const T, count: usize) -> Self {
            T::load_first(from, count)
        }
        fn exp(self) -> Self { exp::exp(self) }
    }
}

impl Vector for Portable {
    type Doubles = PortableDoubles;

    methods! {
        fn mul_f64_mul(self, r: f64, w: Self) -> Self {
            lanes!(i => (f64::from(self.0[i]) * r * f64::from(w.0[i])) as f32)
        }
        fn load_bf16(from: *const bf16) -> Self { lanes!(i => widen(*from.add(i))) }
        fn load_bf16_first(from: *const bf16, count: usize) -> Self {
            lanes!(i => if i < count { widen(*from.add(i)) } else { 0.0 })
        }
        fn load_f16(from: *const f16) -> Self { lanes!(i => (*from.add(i)).to_f32()) }
        fn load_f16_first(from: *const f16, count: usize) -> Self {
            lanes!(i => if i < count { (*from.add(i)).to_f32() } else { 0.0 })
        }
        fn transpose<T: Element>(
            from: *const T, stride: usize, to: *mut f32, to_stride: usize
        ) -> () {
            for i in 0..8 {
                let row = T::load::<Self>(from.add(i * stride)).0;
                for (j, value) in row.into_iter().enumerate() {
                    *to.add(j * to_stride + i) = value;
                }
            }
        }
        fn div(self, other: Self) -> Self { lanes!(i => self.0[i] / other.0[i]) }
        fn sqrt(self) -> Self { lanes!(i => self.0[i].sqrt()) }
    }
}

#[inline(always)]
fn widen(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// Eight f64 lanes.
#[derive(Clone, Copy)]
pub(crate) struct PortableDoubles([f64; 8]);

impl Simd for PortableDoubles {
    type Scalar = f64;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 1;

    methods! {
        fn splat(x: f64) -> Self { PortableDoubles([x; 8]) }
        fn load(from: *const f64) -> Self {
            PortableDoubles(from.cast::<[f64; 8]>().read_unaligned())
        }
        fn load_first(from: *const f64, count: usize) -> Self {
            doubles!(i => if i < count { *from.add(i) } else { 0.0 })
        }
        fn widen<T: Element>(from: *const T) -> Self {
            let narrow = T::load::<Portable>(from).0;
            doubles!(i => f64::from(narrow[i]))
        }
        fn widen_first<T: Element>(from: *const T, count: usize) -> Self {
            let narrow = T::load_first::<Portable>(from, count).0;
            doubles!(i => f64::from(narrow[i]))
        }
        fn store(self, to: *mut f64) -> () { to.cast::<[f64; 8]>().write_unaligned(self.0) }
        fn store_first(self, to: *mut f64, count: usize) -> () {
            for i in 0..count {
                *to.add(i) = self.0[i];
            }
        }
        fn add(self, other: Self) -> Self { doubles!(i => self.0[i] + other.0[i]) }
        fn sub(self, other: Self) -> Self { doubles!(i => self.0[i] - other.0[i]) }
        fn mul(self, other: Self) -> Self { doubles!(i => self.0[i] * other.0[i]) }
        fn mul_add(self, factor: Self, term: Self) -> Self { self.mul(factor).add(term) }
        fn max(self, other: Self) -> Self {
            doubles!(i => if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] })
        }
        fn min(self, other: Self) -> Self {
            doubles!(i => if self.0[i] < other.0[i] { self.0[i] } else { other.0[i] })
        }
        fn round(self) -> Self {
            // Adding 1.5·2⁵² leaves no bits for a fraction.
            const ROUND: f64 = 6_755_399_441_055_744.0;
            doubles!(i => (self.0[i] + ROUND) - ROUND)
        }
        fn scale(self, n: Self) -> Self {
            // In two steps, so that each factor is a normal number.
            doubles!(i => {
                let n = n.0[i] as i64;
                let half = n >> 1;
                self.0[i] * power_of_two_f64(half) * power_of_two_f64(n - half)
            })
        }
        fn reduce_add(self) -> f64 {
            let a = self.0;
            ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
        }
        fn reduce_add4(of: [Self; 4]) -> [f64; 4] {
            [of[0].reduce_add(), of[1].reduce_add(), of[2].reduce_add(), of[3].reduce_add()]
        }
        fn reduce_max(self) -> f64 {
            let mut largest = self.0[0];
            for i in 1..8 {
                largest = if self.0[i] > largest { self.0[i] } else { largest };
            }
            largest
        }
        fn exp(self) -> Self { exp::exp_f64(self) }
    }
}

impl Doubles for PortableDoubles {
    methods! {
        fn add_exact_product(self, factor: Self, term: Self) -> Self { self.mul_add(factor, term) }
    }
}

#[inline(always)]
fn power_of_two_f64(n: i64) -> f64 {
    f64::from_bits(((n + 1023) as u64) << 52)
}
