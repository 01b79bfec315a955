//! Log-probability of a token and entropy of its distribution, from rows of logits z `[rows, vocab]`
//! and a temperature T.
//!
//! ```text
//! d_v = (z_v - max z) / T          S = sum_v e^d_v          W = sum_v d_v e^d_v
//! log p_v = d_v - ln S             H = ln S - W / S   (nats)
//! ```
//!
//! One order of summation, so that a kernel which only ever sees blocks of the vocabulary (the
//! fused LM head) gets the same bits, as does any batch, thread count and instruction set:
//!
//! 1. A row is cut into blocks of `VOCAB_BLOCK` entries, the last one shorter. Entry i of a block
//!    belongs to lane i % 16.
//! 2. A block's S and W are taken around the block's own maximum: d = (z - block max) * (1 / T),
//!    with 1 / T rounded once; each lane adds its terms in order; `lanes::reduce_sum` adds the
//!    lanes. All in f32, exponentials by `lanes::exp`. In W, d is held at `EXP_LOWEST` or above, so
//!    that an entry of probability 0 contributes 0.
//! 3. Blocks are joined in order in f64: with M the larger maximum and c = (m - M) * (1 / T), held
//!    at `EXP_LOWEST` or above, a side becomes S e^c and (W + c S) e^c; then the sides are added.
//!    A block of nothing but minus infinity is passed over.
//!
//! Subtracting the maximum before dividing by T keeps the error of d relative to d, not to z.

mod gradient;

use super::Cpu;
use super::lanes::{self, EXP_LOWEST, LANES, Lanes};
use super::pool::Disjoint;
use super::profile::{self, Work};
use super::vector::{Vector, for_each_isa};
pub use gradient::{GradientSums, dlogits_rows, finish_dx};
use std::fmt;

/// Entries of a vocabulary block: 8 KB of logits, which stay in the first-level cache between the
/// maximum and the sum.
pub const VOCAB_BLOCK: usize = 2048;

/// Smallest and largest temperature a distribution may be computed at. Beyond them one token has
/// all of the probability, or all have the same.
pub const TEMPERATURES: (f32, f32) = (1e-3, 1e3);

/// A row of logits that has no distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsError {
    /// At least one logit is NaN.
    NotANumber,
    /// At least one logit is plus infinity (others may be NaN).
    PositiveInfinity,
    /// No token is possible: every logit is minus infinity.
    AllNegativeInfinity,
}

impl fmt::Display for LogitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fact = match self {
            LogitsError::NotANumber => "a logit is NaN",
            LogitsError::PositiveInfinity => "a logit is plus infinity",
            LogitsError::AllNegativeInfinity => "every logit is minus infinity",
        };
        write!(
            f,
            "{fact}, so the row has no probabilities: the model's weights or activations are not \
             finite; check the checkpoint and the adapter"
        )
    }
}

impl std::error::Error for LogitsError {}

/// A row of [`forward`] that has no distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowError {
    /// Index of the first such row.
    pub row: usize,
    /// Why it has no distribution.
    pub error: LogitsError,
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "logits of row {}: {}", self.row, self.error)
    }
}

impl std::error::Error for RowError {}

/// Sums over one block of a row, around the block's own maximum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Block {
    /// Largest logit of each lane, minus infinity in an empty one.
    pub(crate) lane_max: Lanes,
    /// Largest logit.
    pub(crate) max: f32,
    /// S; NaN if a logit of the block is NaN or plus infinity.
    pub(crate) sum: f32,
    /// W of the block.
    pub(crate) weighted: f32,
}

/// Sums over one block of at most `VOCAB_BLOCK` logits at temperature 1 / `inverse`.
pub(crate) fn block(cpu: &Cpu, logits: &[f32], inverse: f32) -> Block {
    // SAFETY: `Cpu::with_isa` asserts the instruction set.
    unsafe { block_on(cpu.isa(), logits, inverse) }
}

for_each_isa! {
    fn block_on(logits: &[f32], inverse: f32) -> Block = block_of
}

/// The sums of a row, joined block by block.
#[derive(Clone, Copy, Debug)]
pub struct Sums {
    inverse: f32,
    max: f32,
    sum: f64,
    weighted: f64,
}

impl Sums {
    /// No blocks yet. `temperature` lies in [`TEMPERATURES`].
    pub fn new(temperature: f32) -> Sums {
        let inverse = inverse_of(temperature);
        Sums { inverse, max: f32::NEG_INFINITY, sum: 0.0, weighted: 0.0 }
    }

    /// Joins the next block of the row, computed at the same temperature.
    pub(crate) fn join(&mut self, block: &Block) {
        if block.max == f32::NEG_INFINITY {
            self.sum += block.sum as f64; // 0, or NaN
            return;
        }
        let max = if block.max > self.max { block.max } else { self.max };
        let (sum, weighted) = self.around(max, self.max, self.sum, self.weighted);
        let (block_sum, block_weighted) =
            self.around(max, block.max, block.sum as f64, block.weighted as f64);
        self.max = max;
        self.sum = sum + block_sum;
        self.weighted = weighted + block_weighted;
    }

    /// The row's distribution, once all of its blocks are joined.
    pub fn finish(&self) -> Result<Distribution, LogitsError> {
        if self.max == f32::INFINITY {
            Err(LogitsError::PositiveInfinity)
        } else if self.sum.is_nan() {
            Err(LogitsError::NotANumber)
        } else if self.max == f32::NEG_INFINITY {
            Err(LogitsError::AllNegativeInfinity)
        } else {
            let Sums { inverse, max, sum, weighted } = *self;
            let log_sum = lanes::ln(sum);
            Ok(Distribution { inverse, max, sum, log_sum, entropy: log_sum - weighted / sum })
        }
    }

    /// S and W taken around `from`, taken around `to` instead.
    fn around(&self, to: f32, from: f32, sum: f64, weighted: f64) -> (f64, f64) {
        let shift = (from - to) * self.inverse;
        let scale = lanes::exp(shift) as f64;
        let shift = if shift < EXP_LOWEST { EXP_LOWEST } else { shift };
        (sum * scale, (weighted + shift as f64 * sum) * scale)
    }
}

/// softmax(z / T) of one row, as far as it takes to ask for single tokens.
#[derive(Clone, Copy, Debug)]
pub struct Distribution {
    inverse: f32,
    max: f32,
    sum: f64,
    log_sum: f64,
    entropy: f64,
}

impl Distribution {
    /// Log-probability of a token of the row that has this logit. Minus infinity at minus infinity.
    pub fn log_prob(&self, logit: f32) -> f32 {
        (self.shifted(logit) as f64 - self.log_sum) as f32
    }

    /// Entropy in nats.
    pub fn entropy(&self) -> f32 {
        self.entropy as f32
    }

    /// ln of the sum of e^(z / T).
    pub fn log_sum_exp(&self) -> f32 {
        (self.max as f64 * self.inverse as f64 + self.log_sum) as f32
    }

    /// The largest logit.
    pub(crate) fn max(&self) -> f32 {
        self.max
    }

    /// S: the sum of e^d, at least 1.
    pub(crate) fn sum(&self) -> f64 {
        self.sum
    }

    /// 1 / T.
    pub(crate) fn inverse_temperature(&self) -> f32 {
        self.inverse
    }

    /// d of a token that has this logit: at most 0.
    #[inline(always)]
    pub(crate) fn shifted(&self, logit: f32) -> f32 {
        (logit - self.max) * self.inverse
    }
}

/// The distribution of one row. `temperature` lies in [`TEMPERATURES`].
pub(crate) fn row(
    cpu: &Cpu,
    logits: &[f32],
    temperature: f32,
) -> Result<Distribution, LogitsError> {
    let mut sums = Sums::new(temperature);
    for logits in logits.chunks(VOCAB_BLOCK) {
        sums.join(&block(cpu, logits, sums.inverse));
    }
    sums.finish()
}

/// Log-probability of `tokens[i]` and entropy for every row i of `logits` `[rows, vocab]`.
///
/// On an error the outputs of the rows before it are written.
pub fn forward(
    cpu: &Cpu,
    log_probs: &mut [f32],
    entropies: &mut [f32],
    logits: &[f32],
    tokens: &[u32],
    temperature: f32,
) -> Result<(), RowError> {
    let rows = tokens.len();
    assert_eq!(log_probs.len(), rows, "log-probabilities of {rows} rows");
    assert_eq!(entropies.len(), rows, "entropies of {rows} rows");
    if rows == 0 {
        assert!(logits.is_empty(), "{} logits for no rows", logits.len());
        return Ok(());
    }
    let vocab = logits.len() / rows;
    assert!(vocab > 0 && logits.len() == rows * vocab, "{} logits, {rows} rows", logits.len());
    let _span = profile::span("log_prob", [rows, vocab], || Work::each(logits.len(), 6, 4));
    let outputs = log_probs.iter_mut().zip(entropies);
    for (index, (logits, (log_prob, entropy))) in logits.chunks(vocab).zip(outputs).enumerate() {
        let distribution =
            row(cpu, logits, temperature).map_err(|error| RowError { row: index, error })?;
        let token = tokens[index] as usize;
        assert!(token < vocab, "token {token} of row {index}, vocabulary of {vocab}");
        *log_prob = distribution.log_prob(logits[token]);
        *entropy = distribution.entropy();
    }
    Ok(())
}

/// Joins the next part of each row: `logits [sums.len(), _]`, a multiple of `VOCAB_BLOCK` wide
/// unless it is the last part.
pub fn join_rows(cpu: &Cpu, sums: &mut [Sums], logits: &[f32]) {
    let Some(width) = logits.len().checked_div(sums.len()) else { return };
    let _span = profile::span("log_prob", [sums.len(), width], || Work::each(logits.len(), 6, 4));
    let rows = logits.len() / width.max(1);
    if cpu.counts() {
        // Any distribution will do.
        const ONE_LOGIT: Block =
            Block { lane_max: [0.0; LANES], max: 0.0, sum: 1.0, weighted: 0.0 };
        return sums.iter_mut().for_each(|sums| sums.join(&ONE_LOGIT));
    }
    let sums = Disjoint::new(sums);
    cpu.for_rows(rows, 4 * width, &|first, count| {
        // SAFETY: ranges of different tasks do not overlap.
        let sums = unsafe { sums.part(first, count) };
        for (sums, logits) in sums.iter_mut().zip(logits[first * width..].chunks(width)) {
            for logits in logits.chunks(VOCAB_BLOCK) {
                sums.join(&block(cpu, logits, sums.inverse));
            }
        }
    });
}

/// 1 / T, rounded once; the factor that `block` takes.
pub(crate) fn inverse_of(temperature: f32) -> f32 {
    let (lowest, highest) = TEMPERATURES;
    assert!(
        (lowest..=highest).contains(&temperature),
        "temperature {temperature}, not {lowest} to {highest}"
    );
    1.0 / temperature
}

#[inline(always)]
fn block_of<V: Vector>(logits: &[f32], inverse: f32) -> Block {
    assert!(
        (1..=VOCAB_BLOCK).contains(&logits.len()),
        "{} logits in a block, not 1 to {VOCAB_BLOCK}",
        logits.len()
    );
    let (vectors, tail) = logits.as_chunks::<LANES>();
    let tail = lanes::padded(tail);
    let mut lane_max = [f32::NEG_INFINITY; LANES];
    for z in vectors {
        lane_max = lanes::max(lane_max, z);
    }
    lane_max = lanes::max(lane_max, &tail);
    let max = lanes::reduce_max(&lane_max);
    if max == f32::NEG_INFINITY {
        let sum = if logits.iter().any(|z| z.is_nan()) { f32::NAN } else { 0.0 };
        return Block { lane_max, max, sum, weighted: 0.0 };
    }
    let mut sum = [0.0; LANES];
    let mut weighted = [0.0; LANES];
    for z in vectors {
        add_terms(&mut sum, &mut weighted, z, max, inverse);
    }
    add_terms(&mut sum, &mut weighted, &tail, max, inverse);
    let (sum, weighted) = (lanes::reduce_sum(&sum), lanes::reduce_sum(&weighted));
    Block { lane_max, max, sum, weighted }
}

#[inline(always)]
fn add_terms(sum: &mut Lanes, weighted: &mut Lanes, z: &Lanes, max: f32, inverse: f32) {
    for ((sum, weighted), z) in sum.iter_mut().zip(weighted).zip(z) {
        let d = (z - max) * inverse;
        let power = lanes::exp(d);
        *sum += power;
        *weighted += if d < EXP_LOWEST { EXP_LOWEST } else { d } * power;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::philox::{RngKey, Stream};
    use crate::cpu::reference::contexts;

    /// Normal-ish logits (sums of four uniforms) of standard deviation `scale`.
    pub(super) fn random_row(vocab: usize, scale: f32, seed: u64) -> Vec<f32> {
        let key = RngKey::new(seed, 0, Stream(99));
        (0..vocab)
            .map(|v| {
                let sum: f64 = key.words(v as u32).iter().map(|&w| w as f64 / 2f64.powi(32)).sum();
                ((sum - 2.0) * 3f64.sqrt()) as f32 * scale
            })
            .collect()
    }

    /// log p of `token` and entropy, in f64, straight from the definition.
    fn reference(logits: &[f32], token: usize, temperature: f32) -> (f64, f64) {
        let z: Vec<f64> = logits.iter().map(|&z| z as f64 / temperature as f64).collect();
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        let entropy = z.iter().map(|z| z - log_sum).filter(|l| l.is_finite());
        (z[token] - log_sum, entropy.map(|l| -l * l.exp()).sum())
    }

    const VOCABS: [usize; 10] = [1, 2, 15, 16, 17, 33, 2047, 2048, 2049, 9001];

    #[test]
    fn agrees_with_the_definition() {
        for (seed, vocab) in VOCABS.into_iter().enumerate() {
            for temperature in [0.3, 0.9, 1.0, 7.0] {
                let logits = random_row(vocab, 5.0, seed as u64);
                let token = vocab / 3;
                let (log_prob, entropy) = reference(&logits, token, temperature);
                let got = row(&Cpu::new(1), &logits, temperature).unwrap();
                // d carries three roundings (difference, 1 / T, product). S: 2 ulp an exponential,
                // d's error times its weight, 128 + 4 additions per lane. Output: one more rounding.
                let unit = f32::EPSILON as f64 / 2.0;
                let d_max = logits.iter().fold(0f32, |a, &z| a.max(-got.shifted(z))) as f64;
                let bound = unit * (3.0 * d_max + 4.0 + 132.0 + log_prob.abs() + 1.0);
                let error = (got.log_prob(logits[token]) as f64 - log_prob).abs();
                assert!(error <= bound, "vocab {vocab}, T {temperature}: {error} > {bound}");
                let bound = bound * (1.0 + d_max);
                let error = (got.entropy() as f64 - entropy).abs();
                assert!(error <= bound, "vocab {vocab}, T {temperature}: {error} > {bound}");
                let sum_exp: f64 =
                    logits.iter().map(|&z| (z as f64 / temperature as f64).exp()).sum();
                assert!((got.log_sum_exp() as f64 - sum_exp.ln()).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn same_bits_on_every_instruction_set_and_at_any_number_of_rows() {
        for vocab in VOCABS {
            let rows = 3;
            let logits: Vec<f32> =
                (0..rows).flat_map(|r| random_row(vocab, 4.0, 50 + r as u64)).collect();
            let tokens: Vec<u32> = (0..rows).map(|r| (r * 7 % vocab) as u32).collect();
            let mut want = None;
            for cpu in contexts() {
                let (mut log_probs, mut entropies) = ([0.0; 3], [0.0; 3]);
                forward(&cpu, &mut log_probs, &mut entropies, &logits, &tokens, 0.9).unwrap();
                for r in 0..rows {
                    let logits = &logits[r * vocab..][..vocab];
                    let alone = row(&cpu, logits, 0.9).unwrap();
                    let log_prob = alone.log_prob(logits[tokens[r] as usize]);
                    assert_eq!(log_prob.to_bits(), log_probs[r].to_bits());
                    assert_eq!(alone.entropy().to_bits(), entropies[r].to_bits());
                }
                let bits = (log_probs.map(f32::to_bits), entropies.map(f32::to_bits));
                assert_eq!(*want.get_or_insert(bits), bits, "vocab {vocab}, {}", cpu.isa());
            }
        }
    }

    #[test]
    fn order_of_summation_is_the_documented_one() {
        // The module doc, coded as plainly as possible: a change of order must not go unseen.
        let logits = random_row(5000, 3.0, 4);
        let inverse = 1.0 / 0.7f32;
        let (mut max, mut sum, mut weighted) = (f32::NEG_INFINITY, 0f64, 0f64);
        for block in logits.chunks(2048) {
            let top = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let (mut s, mut w) = ([0f32; 16], [0f32; 16]);
            for (i, z) in block.iter().enumerate() {
                let d = (z - top) * inverse;
                s[i % 16] += lanes::exp(d);
                w[i % 16] += d.max(EXP_LOWEST) * lanes::exp(d);
            }
            let (s, w) = (lanes::reduce_sum(&s) as f64, lanes::reduce_sum(&w) as f64);
            let joined = max.max(top);
            let (a, b) = ((max - joined) * inverse, (top - joined) * inverse);
            let (ea, eb) = (lanes::exp(a) as f64, lanes::exp(b) as f64);
            let (a, b) = (a.max(EXP_LOWEST) as f64, b.max(EXP_LOWEST) as f64);
            weighted = (weighted + a * sum) * ea + (w + b * s) * eb;
            sum = sum * ea + s * eb;
            max = joined;
        }
        let got = row(&Cpu::new(1), &logits, 0.7).unwrap();
        assert_eq!(got.max().to_bits(), max.to_bits());
        assert_eq!(got.sum().to_bits(), sum.to_bits());
        let entropy = lanes::ln(sum) - weighted / sum;
        assert_eq!(got.entropy().to_bits(), (entropy as f32).to_bits());
        let log_prob = ((logits[9] - max) * inverse) as f64 - lanes::ln(sum);
        assert_eq!(got.log_prob(logits[9]).to_bits(), (log_prob as f32).to_bits());
    }

    #[test]
    fn impossible_tokens_have_no_weight() {
        let mut logits = vec![f32::NEG_INFINITY; 5000];
        logits[4097] = -3.5;
        let one = row(&Cpu::new(1), &logits, 0.9).unwrap();
        assert_eq!(one.log_prob(-3.5).to_bits(), 0);
        assert_eq!(one.log_prob(f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert_eq!(one.entropy(), 0.0);
        logits[3] = -3.5;
        let two = row(&Cpu::new(1), &logits, 0.9).unwrap();
        assert_eq!(two.log_prob(-3.5), -std::f32::consts::LN_2);
        assert_eq!(two.entropy(), std::f32::consts::LN_2);
    }

    #[test]
    fn extreme_but_finite_rows() {
        let spread = [f32::MAX, f32::MIN, 0.0];
        for temperature in [TEMPERATURES.0, 1.0, TEMPERATURES.1] {
            let got = row(&Cpu::new(1), &spread, temperature).unwrap();
            assert_eq!(got.log_prob(f32::MAX), 0.0);
            assert_eq!(got.entropy(), 0.0);
        }
        let mut far_apart = vec![-1e30; 5000];
        far_apart[4999] = 1e30;
        let got = row(&Cpu::new(1), &far_apart, 1.0).unwrap();
        assert_eq!((got.log_prob(1e30), got.entropy()), (0.0, 0.0));
        let equal = vec![7.25; 5000];
        let got = row(&Cpu::new(1), &equal, 0.5).unwrap();
        assert_eq!(got.log_prob(7.25), -(5000f64.ln() as f32));
        assert_eq!(got.entropy(), 5000f64.ln() as f32);
    }

    #[test]
    fn rows_without_a_distribution_are_typed_errors() {
        let infinite = [f32::NEG_INFINITY; 4100];
        for cpu in contexts() {
            let error = row(&cpu, &infinite, 1.0).unwrap_err();
            assert_eq!(error, LogitsError::AllNegativeInfinity);
            // In the first lane, in the middle, in the padded tail; among minus infinities too.
            for at in [0, 7, 2048, 4090, 4099] {
                for base in [f32::NEG_INFINITY, 1.0] {
                    let mut logits = [base; 4100];
                    logits[at] = f32::NAN;
                    let error = row(&cpu, &logits, 1.0).unwrap_err();
                    assert_eq!(error, LogitsError::NotANumber, "NaN at {at} among {base}");
                    logits[at] = f32::INFINITY;
                    let error = row(&cpu, &logits, 1.0).unwrap_err();
                    assert_eq!(error, LogitsError::PositiveInfinity, "at {at} among {base}");
                }
            }
        }
        let logits = [0.0, 1.0, f32::NAN, 0.0];
        let error = forward(&Cpu::new(1), &mut [0.0; 2], &mut [0.0; 2], &logits, &[0, 0], 1.0);
        let error = error.unwrap_err();
        assert_eq!(error, RowError { row: 1, error: LogitsError::NotANumber });
        assert!(error.to_string().contains("row 1: a logit is NaN"), "{error}");
    }

    #[test]
    fn no_rows() {
        forward(&Cpu::new(1), &mut [], &mut [], &[], &[], 1.0).unwrap();
    }
}
