//! Drawing a token from one row of logits z `[vocab]`.
//!
//! The truncations and their order are those of the logits warpers of Hugging Face transformers:
//!
//! 1. temperature: p = softmax(z / T). T = 0 is greedy: the largest logit;
//! 2. top-k: the k most probable tokens stay;
//! 3. top-p: of these, renormalized, the smallest set of the most probable whose probabilities reach
//!    top_p stays, the token that reaches it included;
//! 4. min-p: of these, tokens with p >= min_p times the largest p stay.
//!
//! Equal logits rank by id, the lowest first, so exactly k tokens survive top-k (transformers keeps
//! all that tie with the k-th). Every step then keeps a prefix of one ranking, and a single last
//! kept token describes the outcome.
//!
//! The token is the inverse of the cumulative distribution, in the order of the vocabulary, at a
//! uniform number in [0, 1). Sums have a fixed order: a row and a number give one token, on every
//! instruction set. Without truncation the sums are those of `log_prob`'s blocks, and only the
//! block that holds the token is looked into; a fused LM head can do the same.

mod truncate;

use super::Cpu;
use super::lanes::{self, LANES};
use super::log_prob::{self, Block, Distribution, LogitsError, TEMPERATURES, VOCAB_BLOCK};
use super::profile::{self, Work};
use super::vector::{Vector, for_each_isa};
use std::fmt;
use truncate::{Candidate, Truncation};

/// How to choose a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits. 0 is greedy: the rest is then without effect.
    pub temperature: f32,
    /// Keep the k most probable tokens. 0 keeps all.
    pub top_k: u32,
    /// Keep the most probable tokens that together reach this probability. 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the most probable one. 0 keeps all.
    pub min_p: f32,
}

impl Default for SamplingParams {
    /// The model's own distribution: temperature 1, nothing cut.
    fn default() -> SamplingParams {
        SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }
}

impl SamplingParams {
    /// The most probable token.
    pub const GREEDY: SamplingParams =
        SamplingParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

    /// Whether every value lies in its range. Any `top_k` does.
    pub fn validate(&self) -> Result<(), ParamsError> {
        let SamplingParams { temperature, top_k: _, top_p, min_p } = *self;
        let (lowest, highest) = TEMPERATURES;
        if temperature != 0.0 && !(lowest..=highest).contains(&temperature) {
            Err(ParamsError::Temperature { got: temperature })
        } else if !(top_p > 0.0 && top_p <= 1.0) {
            Err(ParamsError::TopP { got: top_p })
        } else if !(0.0..=1.0).contains(&min_p) {
            Err(ParamsError::MinP { got: min_p })
        } else {
            Ok(())
        }
    }

    /// Whether no token of a vocabulary is cut.
    fn keeps_all(&self, vocab: usize) -> bool {
        let SamplingParams { temperature: _, top_k, top_p, min_p } = *self;
        (top_k == 0 || top_k as usize >= vocab) && top_p == 1.0 && min_p == 0.0
    }
}

/// A sampling parameter out of its range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ParamsError {
    /// Not 0 and not in [`TEMPERATURES`].
    Temperature {
        /// The value that was asked for.
        got: f32,
    },
    /// Not above 0 and at most 1.
    TopP {
        /// The value that was asked for.
        got: f32,
    },
    /// Not 0 to 1.
    MinP {
        /// The value that was asked for.
        got: f32,
    },
}

impl fmt::Display for ParamsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lowest, highest) = TEMPERATURES;
        match self {
            ParamsError::Temperature { got } => {
                write!(f, "temperature is {got}; use 0 (greedy) or {lowest} to {highest}")
            }
            ParamsError::TopP { got } => {
                write!(f, "top_p is {got}; use a value above 0 and at most 1 (1 keeps all tokens)")
            }
            ParamsError::MinP { got } => {
                write!(f, "min_p is {got}; use 0 (keeps all tokens) to 1")
            }
        }
    }
}

impl std::error::Error for ParamsError {}

/// Largest vocabulary that [`draw`] takes; thirty times that of the largest models.
pub const MAX_VOCAB: usize = 1 << 23;

/// A drawn token. Both numbers are `log_prob`'s, of the whole softmax at the sampling temperature
/// (at 1 if greedy), whatever was cut: what a policy gradient needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Id of the token.
    pub token: u32,
    /// Its log-probability.
    pub log_prob: f32,
    /// Entropy of the distribution in nats.
    pub entropy: f32,
}

/// Working memory of [`draw`], about 24 bytes per token of the vocabulary. Grows to the largest row.
#[derive(Debug)]
pub struct Scratch {
    blocks: Vec<Block>,
    truncation: Truncation,
}

impl Scratch {
    /// For rows of up to `vocab` logits without further allocation.
    pub fn new(vocab: usize) -> Scratch {
        let mut scratch = Scratch { blocks: Vec::new(), truncation: Truncation::new() };
        scratch.clear(vocab);
        scratch
    }

    fn clear(&mut self, vocab: usize) {
        self.blocks.clear();
        self.blocks.reserve(vocab.div_ceil(VOCAB_BLOCK));
        self.truncation.clear(vocab);
    }
}

/// Draws a token at `uniform` in [0, 1). `params` are valid; greedy ignores `uniform`.
///
/// A logit of minus infinity is a token that cannot be drawn.
pub fn draw(
    cpu: &Cpu,
    scratch: &mut Scratch,
    logits: &[f32],
    params: &SamplingParams,
    uniform: f64,
) -> Result<Sample, LogitsError> {
    if let Err(error) = params.validate() {
        panic!("{error}");
    }
    assert!((0.0..1.0).contains(&uniform), "uniform number {uniform}, not in [0, 1)");
    let vocab = logits.len();
    assert!((1..=MAX_VOCAB).contains(&vocab), "{vocab} logits in a row, not 1 to {MAX_VOCAB}");
    let _span = profile::span("sample", [vocab], || Work::each(vocab, 6, 4));
    scratch.clear(vocab);

    let greedy = params.temperature == 0.0;
    let temperature = if greedy { 1.0 } else { params.temperature };
    let inverse = log_prob::inverse_of(temperature);
    let mut sums = log_prob::Sums::new(temperature);
    for logits in logits.chunks(VOCAB_BLOCK) {
        let block = log_prob::block(cpu, logits, inverse);
        sums.join(&block);
        scratch.blocks.push(block);
    }
    let distribution = sums.finish()?;

    let blocks = &scratch.blocks;
    let token = if greedy {
        first_of_largest(blocks, logits, distribution.max())
    } else if params.keeps_all(vocab) {
        token_of_all(cpu, blocks, logits, &distribution, uniform)
    } else {
        let kept = scratch.truncation.keep(cpu, blocks, logits, &distribution, params);
        token_of_kept(kept, uniform)
    };
    let log_prob = distribution.log_prob(logits[token as usize]);
    Ok(Sample { token, log_prob, entropy: distribution.entropy() })
}

/// The `most` most probable tokens of a row, the most probable first and equal ones by id, each with its log-probability:
/// what [`draw`] at the same temperature gives it if it is drawn. Tokens that cannot be drawn are left out.
pub fn most_probable(
    cpu: &Cpu,
    logits: &[f32],
    temperature: f32,
    most: usize,
) -> Result<Vec<(u32, f32)>, LogitsError> {
    let temperature = if temperature == 0.0 { 1.0 } else { temperature };
    let inverse = log_prob::inverse_of(temperature);
    let mut sums = log_prob::Sums::new(temperature);
    let blocks = logits.chunks(VOCAB_BLOCK);
    blocks.for_each(|logits| sums.join(&log_prob::block(cpu, logits, inverse)));
    let distribution = sums.finish()?;
    let mut found: Vec<(u32, f32)> = Vec::with_capacity(most + 1);
    for (token, &logit) in logits.iter().enumerate() {
        let is_least = found.len() == most && found.last().is_none_or(|&(_, least)| logit <= least);
        if is_least || logit == f32::NEG_INFINITY {
            continue;
        }
        // Behind equal ones, whose ids are smaller.
        let place = found.partition_point(|&(_, other)| other >= logit);
        found.insert(place, (token as u32, logit));
        found.truncate(most);
    }
    found.iter_mut().for_each(|(_, logit)| *logit = distribution.log_prob(*logit));
    Ok(found)
}

fn first_of_largest(blocks: &[Block], logits: &[f32], max: f32) -> u32 {
    let block = blocks.iter().position(|b| b.max == max).expect("the maximum is of a block");
    let start = block * VOCAB_BLOCK;
    let offset = logits[start..].iter().position(|&z| z == max).expect("it is in its block");
    (start + offset) as u32
}

/// The token at `uniform` of the whole distribution: first its block, then its place there.
fn token_of_all(
    cpu: &Cpu,
    blocks: &[Block],
    logits: &[f32],
    distribution: &Distribution,
    uniform: f64,
) -> u32 {
    let scale = |block: &Block| lanes::exp(distribution.shifted(block.max)) as f64;
    let mass = |block: &Block| scale(block) * block.sum as f64;
    let target = uniform * blocks.iter().map(mass).sum::<f64>();
    let mut below = 0.0;
    let mut found = None;
    for (index, block) in blocks.iter().enumerate() {
        let mass = mass(block);
        if mass > 0.0 {
            found = Some((index, (target - below) / scale(block)));
            below += mass;
            if below > target {
                break;
            }
        }
    }
    let (index, target) = found.expect("the block of the maximum has mass");
    let start = index * VOCAB_BLOCK;
    let end = logits.len().min(start + VOCAB_BLOCK);
    let inverse = distribution.inverse_temperature();
    let (logits, max) = (&logits[start..end], blocks[index].max);
    // SAFETY: `Cpu::with_isa` asserts the instruction set.
    let offset = unsafe { place_on(cpu.isa(), logits, max, inverse, target) };
    (start + offset) as u32
}

for_each_isa! {
    fn place_on(logits: &[f32], max: f32, inverse: f32, target: f64) -> usize = place
}

/// First entry of a block at which the sum of e^d, d around the block's maximum, exceeds
/// `target`. The last entry of positive weight if rounding leaves the target unreached.
#[inline(always)]
fn place<V: Vector>(logits: &[f32], max: f32, inverse: f32, target: f64) -> usize {
    let mut sum = 0.0;
    let mut last = 0;
    for (index, z) in logits.chunks(LANES).enumerate() {
        let weights = lanes::padded(z).map(|z| lanes::exp((z - max) * inverse));
        for (lane, weight) in weights.into_iter().enumerate() {
            if weight > 0.0 {
                sum += weight as f64;
                last = index * LANES + lane;
                if sum > target {
                    return last;
                }
            }
        }
    }
    last
}

/// The token at `uniform` of the kept ones, which are in the order of the vocabulary.
fn token_of_kept(kept: &[Candidate], uniform: f64) -> u32 {
    let target = uniform * kept.iter().map(|c| c.weight as f64).sum::<f64>();
    let mut sum = 0.0;
    let found = kept.iter().find(|c| {
        sum += c.weight as f64;
        sum > target
    });
    // uniform < 1 makes target < total, and `sum` ends at the same bits as the total.
    found.expect("the most probable token is always kept").token
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::philox::{RngKey, Stream};
    use crate::cpu::reference::contexts;
    use crate::cpu::values::grid_row;

    const ALL: SamplingParams =
        SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
    const LARGEST_F32: f64 = (1.0f32 - f32::EPSILON / 2.0) as f64;
    const LARGEST_F64: f64 = 1.0 - f64::EPSILON / 2.0;

    /// The kept tokens and their relative probabilities, in the order of the vocabulary, from a
    /// full sort in f64.
    fn reference(logits: &[f32], params: &SamplingParams) -> Vec<(u32, f64)> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
        let weight = |z: f32| ((z as f64 - max) / params.temperature as f64).exp();
        let finite = logits.iter().enumerate().filter(|(_, z)| z.is_finite());
        let mut kept: Vec<_> = finite.map(|(v, &z)| (v as u32, weight(z))).collect();
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if params.top_k > 0 {
            kept.truncate(params.top_k as usize);
        }
        if params.top_p < 1.0 {
            let total: f64 = kept.iter().map(|k| k.1).sum();
            let mut sum = 0.0;
            let reached = kept.iter().position(|k| {
                sum += k.1 / total;
                sum >= params.top_p as f64
            });
            kept.truncate(reached.map_or(kept.len(), |last| last + 1));
        }
        // The threshold is compared in f32; a distance of rounding must not decide.
        kept.retain(|k| k.1 >= params.min_p as f64 * (1.0 - 1e-6));
        kept.sort_by_key(|k| k.0);
        kept
    }

    /// Draws and checks the kept set and the token against `reference`.
    fn check(logits: &[f32], params: &SamplingParams, uniform: f64) -> Sample {
        let mut scratch = Scratch::new(0);
        let sample = draw(&Cpu::new(1), &mut scratch, logits, params, uniform).unwrap();
        let want = reference(logits, params);
        let context = format!("{params:?}, vocab {}, uniform {uniform}", logits.len());
        if !params.keeps_all(logits.len()) {
            let got: Vec<u32> = scratch.truncation.kept().iter().map(|c| c.token).collect();
            let want: Vec<u32> = want.iter().map(|k| k.0).collect();
            assert_eq!(got, want, "{context}");
        }
        // The cumulative probability of the tokens before the drawn one, and up to it. The
        // weights carry the error of an f32 exponential of d and of lane sums.
        let total: f64 = want.iter().map(|k| k.1).sum();
        let upto =
            |last: u32| want.iter().filter(|k| k.0 <= last).map(|k| k.1).sum::<f64>() / total;
        let own = want.iter().find(|k| k.0 == sample.token).expect("the token is kept").1 / total;
        let error = 2e-5;
        assert!(upto(sample.token) - own <= uniform + error, "{context}: {sample:?}");
        assert!(upto(sample.token) >= uniform - error, "{context}: {sample:?}");
        let full = log_prob::row(&Cpu::new(1), logits, params.temperature).unwrap();
        let log_prob = full.log_prob(logits[sample.token as usize]);
        assert_eq!(sample.log_prob.to_bits(), log_prob.to_bits(), "{context}");
        assert_eq!(sample.entropy.to_bits(), full.entropy().to_bits(), "{context}");
        sample
    }

    #[test]
    fn agrees_with_a_full_sort() {
        let key = RngKey::new(5, 5, Stream(97));
        let mut position = 0;
        for vocab in [1, 2, 17, 300, 2049, 20_000] {
            for scale in [0.0, 1.0, 6.0, 40.0] {
                let logits = grid_row(vocab, scale, position as u64);
                for (top_k, top_p, min_p) in [
                    (0, 1.0, 0.0),
                    (1, 1.0, 0.0),
                    (7, 1.0, 0.0),
                    (50, 1.0, 0.0),
                    (1500, 1.0, 0.0),
                    (u32::MAX, 0.8, 0.0),
                    (0, 1e-9, 0.0),
                    (0, 0.3, 0.0),
                    (0, 0.951, 0.0),
                    (0, 0.9993, 0.0),
                    (0, 1.0, 0.0503),
                    (0, 1.0, 1.0),
                    (0, 0.973, 0.0203),
                    (40, 0.9007, 0.0),
                    (1700, 0.5003, 0.0703),
                    (300, 0.9, 0.0103),
                ] {
                    let temperature = [0.7, 1.0, 1.6][position as usize % 3];
                    let params = SamplingParams { temperature, top_k, top_p, min_p };
                    check(&logits, &params, key.uniform_f64(position));
                    position += 1;
                }
            }
        }
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = grid_row(40, 2.0, 3);
        for (params, sequence) in [
            (ALL, 0),
            (SamplingParams { temperature: 0.8, top_k: 30, ..ALL }, 1),
            (SamplingParams { temperature: 1.3, top_p: 0.9, min_p: 0.05, ..ALL }, 2),
        ] {
            let key = RngKey::new(1234, sequence, Stream::TOKENS);
            let mut scratch = Scratch::new(logits.len());
            let n = 100_000;
            let mut counts = vec![0u32; logits.len()];
            for position in 0..n {
                let uniform = key.uniform_f64(position);
                let sample = draw(&Cpu::new(1), &mut scratch, &logits, &params, uniform);
                counts[sample.unwrap().token as usize] += 1;
            }
            let kept = reference(&logits, &params);
            let total: f64 = kept.iter().map(|k| k.1).sum();
            let mut chi_square = 0.0;
            for &(token, weight) in &kept {
                let expected = n as f64 * weight / total;
                let count = std::mem::take(&mut counts[token as usize]);
                chi_square += (count as f64 - expected).powi(2) / expected;
            }
            assert!(counts.iter().all(|&count| count == 0), "a token that was cut was drawn");
            // Laurent and Massart 2000, lemma 1: P(chi2_k >= k + 2 sqrt(k x) + 2 x) <= e^-x.
            let (k, x) = ((kept.len() - 1) as f64, 1e6f64.ln());
            let bound = k + 2.0 * (k * x).sqrt() + 2.0 * x;
            assert!(chi_square < bound, "{params:?}: {chi_square} of {k} degrees, bound {bound}");
        }
    }

    #[test]
    fn uniform_at_its_ends() {
        let logits = [f32::NEG_INFINITY, 0.0, 1.0, -200.0, 0.5, f32::NEG_INFINITY];
        for params in [ALL, SamplingParams { top_p: 0.999, ..ALL }] {
            // The first and the last token of positive weight; e^-201 is 0 in f32.
            assert_eq!(check(&logits, &params, 0.0).token, 1);
            assert_eq!(check(&logits, &params, LARGEST_F32).token, 4);
            assert_eq!(check(&logits, &params, LARGEST_F64).token, 4);
        }
        let long = grid_row(9000, 1.0, 8);
        assert_eq!(check(&long, &ALL, 0.0).token, 0);
        let last = long.iter().rposition(|z| z.is_finite()).unwrap() as u32;
        assert_eq!(check(&long, &ALL, LARGEST_F64).token, last);
    }

    #[test]
    fn a_number_between_two_tokens_takes_the_second() {
        // Token v of n equal ones owns [v / n, (v + 1) / n).
        assert_eq!(check(&[2.5; 4000], &ALL, 0.5).token, 2000);
        assert_eq!(check(&[2.5; 4096], &ALL, 0.5).token, 2048);
        let half = SamplingParams { top_k: 2000, ..ALL };
        assert_eq!(check(&[2.5; 4000], &half, 0.5).token, 1000);
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut scratch = Scratch::new(1);
        let mut logits = grid_row(9001, 3.0, 1);
        for at in [8999, 4099, 4098, 2047, 0] {
            logits[at] = 50.0;
            for uniform in [0.0, 0.7, LARGEST_F64] {
                let params = &SamplingParams::GREEDY;
                let sample = draw(&Cpu::new(1), &mut scratch, &logits, params, uniform).unwrap();
                assert_eq!(sample.token, at as u32);
                let plain = log_prob::row(&Cpu::new(1), &logits, 1.0).unwrap();
                assert_eq!(sample.log_prob, plain.log_prob(50.0));
            }
        }
    }

    #[test]
    fn one_possible_token() {
        let mut logits = [f32::NEG_INFINITY; 3000];
        logits[2222] = -7.0;
        for params in [
            ALL,
            SamplingParams::GREEDY,
            SamplingParams { top_k: 5, ..ALL },
            SamplingParams { top_p: 0.9, ..ALL },
            SamplingParams { min_p: 0.1, ..ALL },
        ] {
            for uniform in [0.0, LARGEST_F64] {
                let mut scratch = Scratch::new(3000);
                let sample = draw(&Cpu::new(1), &mut scratch, &logits, &params, uniform);
                let want = Sample { token: 2222, log_prob: 0.0, entropy: 0.0 };
                assert_eq!(sample, Ok(want), "{params:?}");
            }
        }
    }

    #[test]
    fn same_sample_on_every_instruction_set_and_from_a_used_scratch() {
        let key = RngKey::new(9, 9, Stream::TOKENS);
        let mut used = Scratch::new(0);
        for position in 0..60 {
            let logits = grid_row(1 + 613 * (position as usize % 9), 5.0, position as u64);
            let params = SamplingParams {
                temperature: 0.9,
                top_k: [0, 20, 900][position as usize % 3],
                top_p: [1.0, 0.93][position as usize % 2],
                min_p: [0.0, 0.01][position as usize / 30],
            };
            let uniform = key.uniform_f64(position);
            let fresh = &mut Scratch::new(logits.len());
            let want =
                draw(&Cpu::with_isa(1, Isa::Portable), fresh, &logits, &params, uniform).unwrap();
            for cpu in contexts() {
                let got = draw(&cpu, &mut used, &logits, &params, uniform).unwrap();
                assert_eq!(got, want, "{} {params:?}", cpu.isa());
            }
        }
    }

    #[test]
    fn rows_without_a_distribution_are_typed_errors() {
        let mut scratch = Scratch::new(3);
        for params in [ALL, SamplingParams::GREEDY, SamplingParams { top_k: 2, ..ALL }] {
            let mut error = |logits: &[f32]| {
                draw(&Cpu::new(1), &mut scratch, logits, &params, 0.5).unwrap_err()
            };
            assert_eq!(error(&[0.0, f32::NAN, 1.0]), LogitsError::NotANumber);
            assert_eq!(error(&[0.0, f32::INFINITY, 1.0]), LogitsError::PositiveInfinity);
            assert_eq!(error(&[f32::NEG_INFINITY; 3]), LogitsError::AllNegativeInfinity);
        }
        assert!(LogitsError::NotANumber.to_string().contains("NaN"));
    }

    #[test]
    fn parameters_out_of_range_are_refused_with_the_range() {
        for temperature in [-1.0, 1e-4, 1e4, f32::NAN, f32::INFINITY] {
            let error = SamplingParams { temperature, ..ALL }.validate().unwrap_err();
            assert!(matches!(error, ParamsError::Temperature { .. }));
            assert!(error.to_string().contains("0.001 to 1000"), "{error}");
        }
        for top_p in [-0.1, 0.0, 1.01, f32::NAN] {
            let error = SamplingParams { top_p, ..ALL }.validate().unwrap_err();
            assert!(error.to_string().contains("above 0 and at most 1"), "{error}");
        }
        for min_p in [-0.1, 1.01, f32::NAN] {
            let error = SamplingParams { min_p, ..ALL }.validate().unwrap_err();
            assert!(error.to_string().contains("0 (keeps all tokens) to 1"), "{error}");
        }
        for params in [ALL, SamplingParams::GREEDY, SamplingParams::default()] {
            assert_eq!(params.validate(), Ok(()));
        }
    }
}
