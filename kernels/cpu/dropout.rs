//! Dropout (Srivastava et al. 2014): y = x·m / (1 − p), where each m is 0 with probability p and 1
//! otherwise.
//!
//! Masks are draws of [`super::philox`], addressed by element: they are computed again in the
//! backward pass and never stored. Element i takes word i % 4 of position i / 4; it is dropped if
//! the word is below p·2³². Bound: the generator.

use super::Cpu;
use super::philox::RngKey;
use super::pool::Disjoint;
use super::profile::{self, Work};

/// Which elements are dropped.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// The key of the mask's random words.
    pub key: RngKey,
    /// Probability that an element is dropped, at least 0 and below 1.
    pub probability: f32,
}

/// Writes `x` through the mask to `y`. The gradient of x is that of y through the same mask.
///
/// # Panics
/// If the lengths differ or are above 2³⁴, or the probability is out of range.
pub fn forward(cpu: &Cpu, y: &mut [f32], x: &[f32], mask: Mask) {
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    let Mask { key, probability } = mask;
    assert!((0.0..1.0).contains(&probability), "dropout of {probability}");
    assert!(u32::try_from(x.len() / 4).is_ok(), "{} elements under one mask", x.len());
    let _span = profile::span("dropout", [x.len()], || Work::each(x.len(), 1, 8));
    let threshold = (f64::from(probability) * f64::from(u32::MAX)).round() as u32;
    let scale = 1.0 / (1.0 - probability);
    /// Elements of the unit in which work is shared out; a multiple of four.
    const UNIT: usize = 1024;
    let y = Disjoint::new(y);
    cpu.for_rows(x.len().div_ceil(UNIT), 16 * UNIT, &|first, count| {
        let (first, end) = (first * UNIT, x.len().min((first + count) * UNIT));
        // SAFETY: ranges of different tasks do not overlap.
        let y = unsafe { y.part(first, end - first) };
        for (index, (y, x)) in y.chunks_mut(4).zip(x[first..end].chunks(4)).enumerate() {
            let words = key.words((first / 4 + index) as u32);
            for ((y, x), word) in y.iter_mut().zip(x).zip(words) {
                *y = if word < threshold { 0.0 } else { x * scale };
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::philox::Stream;
    use crate::cpu::reference::{assert_same_bits, contexts, values};

    #[test]
    fn the_same_elements_are_dropped_on_any_number_of_threads_and_scaled_elements_stay() {
        let n = 100_003;
        let x: Vec<f32> = values(1, n).iter().map(|x| x + 2.0).collect();
        let mask = Mask { key: RngKey::new(7, 3, Stream(9)), probability: 0.1 };
        let mut first: Option<Vec<f32>> = None;
        for cpu in contexts() {
            let mut y = vec![f32::NAN; n];
            forward(&cpu, &mut y, &x, mask);
            assert_same_bits(&y, first.get_or_insert_with(|| y.clone()), "threads");
        }
        let y = first.unwrap();
        let dropped = y.iter().filter(|y| **y == 0.0).count() as f64;
        // Five standard deviations of the binomial.
        assert!((dropped - 0.1 * n as f64).abs() < 5.0 * (0.09 * n as f64).sqrt(), "{dropped}");
        let kept = y.iter().zip(&x).filter(|(y, _)| **y != 0.0);
        assert!(kept.map(|(y, x)| (y - x / 0.9).abs()).fold(0.0, f32::max) < 1e-6);
        let other = Mask { key: RngKey::new(7, 4, Stream(9)), ..mask };
        let mut again = vec![0.0; n];
        forward(&contexts()[0], &mut again, &x, other);
        assert_ne!(again, y);
    }

    #[test]
    fn a_probability_of_zero_keeps_everything() {
        let x = values(2, 50);
        let mut y = vec![0.0; 50];
        let mask = Mask { key: RngKey::new(0, 0, Stream(0)), probability: 0.0 };
        forward(&Cpu::new(1), &mut y, &x, mask);
        assert_eq!(y, x);
    }
}
