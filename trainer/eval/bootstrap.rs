//! Percentile bootstrap with a counter-based generator: the same seed gives the same interval on any machine.

use serde::Serialize;

/// How many resamples an interval is made of.
pub const RESAMPLES: usize = 2_000;

/// A 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The 2.5 % quantile of the resampled statistic.
    pub low: f64,
    /// The 97.5 % quantile.
    pub high: f64,
}

/// SplitMix64 (Steele, Lea, Flood 2014) as a counter: draw `i` of a stream is a hash of `(seed, i)`.
#[derive(Debug, Clone)]
pub struct Draws {
    state: u64,
}

impl Draws {
    /// A stream of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Draws { state: mix(seed) }
    }

    /// The next 64 bits.
    pub fn next_bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// A number below `n`, without modulo bias worth naming (below 2^-32 for `n` under 2^32).
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "a draw needs something to draw from");
        ((self.next_bits() as u128 * n as u128) >> 64) as usize
    }
}

/// One hash of several numbers, for decisions that must not depend on what was drawn before.
pub fn hash(parts: &[u64]) -> u64 {
    parts.iter().fold(0, |state, &part| mix(state.wrapping_add(GOLDEN) ^ mix(part)))
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The interval of a statistic of rows by resamples of as many, drawn with replacement. Resamples in which it is not defined
/// are left out; `None` if it is in none.
pub fn interval_over<T>(
    rows: &[T],
    mut draws: Draws,
    statistic: impl Fn(&mut dyn Iterator<Item = &T>) -> Option<f64>,
) -> Option<Interval> {
    let mut drawn = Vec::with_capacity(rows.len());
    let resample = |_| {
        drawn.clear();
        drawn.extend(rows.iter().map(|_| &rows[draws.below(rows.len())]));
        statistic(&mut drawn.iter().copied())
    };
    let mut resampled: Vec<f64> = (0..RESAMPLES).filter_map(resample).collect();
    percentile_interval(&mut resampled)
}

/// The percentile interval of a statistic's resampled values, which are sorted here. Quantiles are
/// interpolated linearly between order statistics (type 7, the default of R and NumPy). `None` for
/// no values.
pub fn percentile_interval(values: &mut [f64]) -> Option<Interval> {
    values.sort_unstable_by(f64::total_cmp);
    Some(Interval { low: quantile(values, 0.025)?, high: quantile(values, 0.975)? })
}

fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = q * last as f64;
    let low = at.floor() as usize;
    let high = (low + 1).min(last);
    Some(sorted[low] + (at - low as f64) * (sorted[high] - sorted[low]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_a_pure_function_of_the_seed() {
        let draw = |seed| {
            let mut draws = Draws::new(seed);
            (0..5).map(|_| draws.next_bits()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        // SplitMix64's published first output for state 0 (mix(0) is 0).
        assert_eq!(draw(0)[0], 0xe220_a839_7b1d_cdaf);
        assert_ne!(hash(&[1, 2]), hash(&[2, 1]));
        assert_ne!(hash(&[0]), hash(&[0, 0]));
    }

    #[test]
    fn draws_below_reach_every_value_about_equally() {
        let mut draws = Draws::new(3);
        let mut counts = [0; 7];
        for _ in 0..70_000 {
            counts[draws.below(7)] += 1;
        }
        // 10,000 expected, standard deviation 93: five of them either way.
        assert!(counts.iter().all(|&count| (9_535..=10_465).contains(&count)), "{counts:?}");
    }

    #[test]
    fn quantiles_are_interpolated() {
        let mut values = (0..=100).rev().map(f64::from).collect::<Vec<_>>();
        let interval = percentile_interval(&mut values).unwrap();
        assert!((interval.low - 2.5).abs() < 1e-12 && (interval.high - 97.5).abs() < 1e-12);
        assert_eq!(percentile_interval(&mut [4.0]), Some(Interval { low: 4.0, high: 4.0 }));
        assert_eq!(percentile_interval(&mut []), None);
    }
}
