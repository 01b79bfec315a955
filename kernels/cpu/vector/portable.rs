//! Eight lanes in plain Rust. Without a guarantee of hardware FMA, `mul_add` rounds twice.

use super::{Vector, bf16, f16, methods};

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

impl Vector for Portable {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 2;

    methods! {
        fn splat(x: f32) -> Self { Portable([x; 8]) }
        fn load(from: *const f32) -> Self { Portable(from.cast::<[f32; 8]>().read_unaligned()) }
        fn load_first(from: *const f32, count: usize) -> Self {
            lanes!(i => if i < count { *from.add(i) } else { 0.0 })
        }
        fn load_bf16(from: *const bf16) -> Self { lanes!(i => widen(*from.add(i))) }
        fn load_bf16_first(from: *const bf16, count: usize) -> Self {
            lanes!(i => if i < count { widen(*from.add(i)) } else { 0.0 })
        }
        fn load_f16(from: *const f16) -> Self { lanes!(i => (*from.add(i)).to_f32()) }
        fn load_f16_first(from: *const f16, count: usize) -> Self {
            lanes!(i => if i < count { (*from.add(i)).to_f32() } else { 0.0 })
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
        fn div(self, other: Self) -> Self { lanes!(i => self.0[i] / other.0[i]) }
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
