//! What tests, benches and the GPU's self-test of kernels share: inputs, and the error of results.

use super::philox::{RngKey, Stream};

/// `len` values in [-1, 1), the same for the same seed.
pub fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// A row of logits, uniform in [-scale, scale] on a grid coarse enough for ties; some but the first are minus infinity.
pub(crate) fn grid_row(vocab: usize, scale: f32, seed: u64) -> Vec<f32> {
    let key = RngKey::new(seed, 0, Stream(98));
    let row = (0..vocab).map(|v| {
        let [word, other, ..] = key.words(v as u32);
        let z = ((word >> 20) as f32 / 2048.0 - 1.0) * scale;
        if other % 50 == 0 && v > 0 { f32::NEG_INFINITY } else { z }
    });
    row.collect()
}

/// The largest error of `x` over all elements, NaN if there is one.
pub(crate) fn largest_error(x: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(x.len(), exact.len(), "as many values as there should be");
    let errors = x.iter().zip(exact).map(|(x, exact)| (f64::from(*x) - exact).abs());
    errors.fold(
        0.0,
        |largest: f64, error| {
            if largest.is_nan() || error <= largest { largest } else { error }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_is_no_number_is_the_largest() {
        assert_eq!(largest_error(&[1.0, 2.0, 3.0], &[1.0, 2.5, 3.0]), 0.5);
        assert!(largest_error(&[1.0, f32::NAN, 3.0], &[1.0, 2.5, 5.0]).is_nan());
    }
}
