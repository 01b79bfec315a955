//! Inputs, and the comparison of sampled outputs with a naive computation.

use half::bf16;
pub(crate) use kernels::cpu::values::values;

/// [`values`] rounded to bf16.
pub(crate) fn halves(seed: u64, len: usize) -> Vec<bf16> {
    values(seed, len).into_iter().map(bf16::from_f32).collect()
}

/// What rounding to bf16 may be off: half a unit in the last of 8 bits.
pub(crate) const BF16: f64 = 1.0 / 256.0;

pub(crate) fn rounded(x: f32) -> f64 {
    bf16::from_f32(x).to_f64()
}

/// Up to 16 indices below `len`, the first and the last among them.
pub(crate) fn sampled(len: usize) -> impl Iterator<Item = usize> {
    let count = len.min(16);
    (0..count).map(move |i| if count == 1 { 0 } else { i * (len - 1) / (count - 1) })
}

/// A sum in f64 that knows how far one in f32 may be off.
#[derive(Clone, Copy, Default)]
pub(crate) struct Exact {
    pub(crate) value: f64,
    magnitude: f64,
    terms: usize,
}

impl Exact {
    /// The sum of these terms.
    pub(crate) fn sum(terms: impl Iterator<Item = f64>) -> Exact {
        terms.fold(Exact::default(), |sum, term| Exact {
            value: sum.value + term,
            magnitude: sum.magnitude + term.abs(),
            terms: sum.terms + 1,
        })
    }

    /// A value that takes a few operations.
    pub(crate) fn of(value: f64) -> Exact {
        Exact { value, magnitude: value.abs(), terms: 16 }
    }

    /// What n additions of f32, in any order, can be off: n half units in the last place of the sum of magnitudes
    /// (Higham 2002, section 4.2).
    pub(crate) fn off(self) -> f64 {
        self.terms as f64 * f64::from(f32::EPSILON) / 2.0 * self.magnitude
    }

    /// Panics unless `got` is as near as [`Exact::off`] says.
    pub(crate) fn check(self, got: f32, case: &str, index: usize) {
        self.check_off(got, self.off(), case, index);
    }

    /// The same with a bound relative to the sum of magnitudes.
    pub(crate) fn check_within(self, got: f32, unit: f64, case: &str, index: usize) {
        self.check_off(got, unit * self.magnitude, case, index);
    }

    /// The same with a bound.
    pub(crate) fn check_off(self, got: f32, off: f64, case: &str, index: usize) {
        let bound = off + f64::from(f32::MIN_POSITIVE);
        let error = (f64::from(got) - self.value).abs();
        assert!(
            error <= bound,
            "{case}: output {index} is {got}, exactly {}, off by {error:e} where {bound:e} is allowed. The kernel is \
             wrong: nothing is timed",
            self.value
        );
    }
}
