//! Philox4x32-10: random words as a pure function of a key and a counter.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, and
//! the known-answer vectors of the authors' library Random123.
//!
//! There is no state to advance: the draw for a position is the same whatever else was drawn, in
//! whatever batch, order or thread. How a draw is addressed, exactly (a CUDA kernel reproduces it):
//!
//! | word | holds |
//! |---|---|
//! | key 0, key 1 | seed, low and high 32 bits |
//! | counter 0 | position |
//! | counter 1 | stream |
//! | counter 2, counter 3 | sequence, low and high 32 bits |
//!
//! and how words become a number in [0, 1), exactly: `((word0 << 21) | (word1 >> 11)) * 2^-53` in f64, the
//! shifts and the or in 64 bits.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Weyl increments of the key: the golden ratio and the square root of 3, minus 1.
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// The purpose of random numbers. Streams of one seed and sequence are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub u32);

impl Stream {
    /// Choosing the next token while generating.
    pub const TOKENS: Stream = Stream(0);
    /// The first values of a LoRA A.
    pub const ADAPTER: Stream = Stream(1);
    /// Dropout masks.
    pub const DROPOUT: Stream = Stream(2);
    /// The order of training pairs, and which reply stands in slot A.
    pub const DATA: Stream = Stream(3);
}

/// An RNG key: names the random words of one sequence, four for every position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RngKey {
    /// The run's seed.
    pub seed: u64,
    /// Which sequence under the seed: a completion's number, for example.
    pub sequence: u64,
    /// The purpose of the random numbers.
    pub stream: Stream,
}

impl RngKey {
    /// The key of `stream` in `sequence` under `seed`.
    pub const fn new(seed: u64, sequence: u64, stream: Stream) -> RngKey {
        RngKey { seed, sequence, stream }
    }

    /// The key as a CUDA kernel takes it: seed, stream, sequence, low words first.
    pub(crate) const fn device_words(self) -> [u32; 5] {
        let RngKey { seed, sequence, stream } = self;
        [seed as u32, (seed >> 32) as u32, stream.0, sequence as u32, (sequence >> 32) as u32]
    }

    /// The four words of `position`.
    pub const fn words(&self, position: u32) -> [u32; 4] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let counter = [position, self.stream.0, self.sequence as u32, (self.sequence >> 32) as u32];
        philox4x32_10(counter, key)
    }

    /// Uniform in [0, 1) with 53 bits. Choosing among 150,000 tokens needs them: with 24, a token
    /// of probability below 6e-8 would be drawn too often or never.
    pub const fn uniform_f64(&self, position: u32) -> f64 {
        let [first, second, ..] = self.words(position);
        let bits = ((first as u64) << 21) | (second >> 11) as u64;
        bits as f64 / (1u64 << 53) as f64
    }
}

/// The bijection itself: ten rounds, the key stepped between rounds.
pub const fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut counter = counter;
    let mut key = key;
    let mut round = 0;
    while round < ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
        }
        let first = counter[0] as u64 * MULTIPLIERS[0] as u64;
        let second = counter[2] as u64 * MULTIPLIERS[1] as u64;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        round += 1;
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_random123() {
        let answers = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, words) in answers {
            assert_eq!(philox4x32_10(counter, key), words);
        }
    }

    #[test]
    fn address_fills_key_and_counter_as_documented() {
        // The third known answer, addressed through seed, sequence, stream and position.
        let key = RngKey::new(0x299f_31d0_a409_3822, 0x0370_7344_1319_8a2e, Stream(0x85a3_08d3));
        assert_eq!(key.words(0x243f_6a88)[..2], [0xd16c_fe09, 0x94fd_cceb]);
        let bits = 0xd16c_fe09_94fd_cceb_u64 >> 11;
        assert_eq!(key.uniform_f64(0x243f_6a88), bits as f64 * 2f64.powi(-53));
    }

    #[test]
    fn extreme_words_stay_below_one() {
        // The conversion applied to words of all ones, as `uniform_f64` applies it.
        let bits = ((u32::MAX as u64) << 21) | (u32::MAX >> 11) as u64;
        assert_eq!(bits, (1 << 53) - 1);
        assert!(bits as f64 / ((1u64 << 53) as f64) < 1.0);
    }

    #[test]
    fn every_part_of_the_address_changes_the_draw() {
        let base = RngKey::new(7, 11, Stream::TOKENS).words(3);
        assert_ne!(base, RngKey::new(7 + (1 << 32), 11, Stream::TOKENS).words(3));
        assert_ne!(base, RngKey::new(7, 11 + (1 << 32), Stream::TOKENS).words(3));
        assert_ne!(base, RngKey::new(7, 11, Stream(1)).words(3));
        assert_ne!(base, RngKey::new(7, 11, Stream::TOKENS).words(4));
    }

    #[test]
    fn means_are_one_half() {
        // Standard error of the mean of n uniforms is sqrt(1 / 12n); six of them.
        let n = 100_000;
        let key = RngKey::new(1, 2, Stream::TOKENS);
        let bound = 6.0 * (1.0 / (12.0 * n as f64)).sqrt();
        let mean = (0..n).map(|p| key.uniform_f64(p)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < bound, "{mean}");
    }
}
