//! Repetition penalty (Keskar et al. 2019, CTRL, section 4.1, as Hugging Face transformers has it): of every token that
//! a sequence holds, in its prompt or written, the logit z becomes
//!
//! ```text
//! z · p   where z < 0
//! z / p   else
//! ```
//!
//! once, however often the token stands there. It comes before temperature and truncation, and before a greedy
//! choice. A row depends on its own tokens only. Bound: latency of scattered values.

use super::Cpu;
use super::pool::Disjoint;
use super::profile::{self, Work};
use std::fmt;

/// Penalties that may be asked for; 1 changes nothing, below 1 repetition is favored.
pub const PENALTIES: (f32, f32) = (0.01, 100.0);

/// The tokens that a row of logits is penalized for, and the penalty.
#[derive(Clone, Copy, Debug)]
pub struct Penalized<'a> {
    /// Ids of the tokens. Each stands in one of the lists, and once.
    pub tokens: [&'a [u32]; 2],
    /// The penalty p, in [`PENALTIES`].
    pub penalty: f32,
}

impl Penalized<'_> {
    /// A row that stays as it is.
    pub const NOT: Penalized<'static> = Penalized { tokens: [&[], &[]], penalty: 1.0 };

    fn len(&self) -> usize {
        self.tokens.iter().map(|tokens| tokens.len()).sum()
    }
}

/// A penalty out of its range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PenaltyError {
    /// The penalty that was asked for.
    pub got: f32,
}

impl fmt::Display for PenaltyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lowest, highest) = PENALTIES;
        write!(
            f,
            "repetition penalty is {}; use {lowest} to {highest} (1 is none, 1.05 to 1.3 is usual)",
            self.got
        )
    }
}

impl std::error::Error for PenaltyError {}

/// Whether a penalty lies in its range.
pub fn validate(penalty: f32) -> Result<(), PenaltyError> {
    let (lowest, highest) = PENALTIES;
    match (lowest..=highest).contains(&penalty) {
        true => Ok(()),
        false => Err(PenaltyError { got: penalty }),
    }
}

/// Penalizes each row of `logits` `[rows, vocab]` for what `row` says of its number.
///
/// # Panics
/// If a token is not below `vocab`.
pub fn apply<'a>(
    cpu: &Cpu,
    logits: &mut [f32],
    vocab: usize,
    row: &(dyn Fn(usize) -> Penalized<'a> + Sync),
) {
    let rows = logits.len() / vocab;
    assert_eq!(logits.len(), rows * vocab, "logits are not [{rows}, {vocab}]");
    let tokens: usize = (0..rows).map(|index| row(index).len()).sum();
    let _span = profile::span("repetition penalty", [rows, tokens], || Work::each(tokens, 1, 12));
    let logits = Disjoint::new(logits);
    cpu.for_rows(rows, tokens.div_ceil(rows.max(1)), &|first, count| {
        for index in first..first + count {
            // SAFETY: rows do not overlap.
            let logits = unsafe { logits.part(index * vocab, vocab) };
            let Penalized { tokens, penalty } = row(index);
            for &token in tokens.into_iter().flatten() {
                let z = &mut logits[token as usize];
                *z = if *z < 0.0 { *z * penalty } else { *z / penalty };
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::reference::{assert_same_bits, contexts, values};

    #[test]
    fn tokens_that_are_there_are_penalized_and_no_others() {
        for (rows, vocab) in [(0, 5), (1, 1), (7, 33), (40, 1030)] {
            let before = values(1, rows * vocab);
            let prompts: Vec<Vec<u32>> = (0..rows)
                .map(|r| (0..vocab as u32).filter(|v| (v + r as u32).is_multiple_of(3)).collect())
                .collect();
            let written: Vec<Vec<u32>> = (0..rows)
                .map(|r| (0..vocab as u32).filter(|v| (v + r as u32) % 7 == 1).rev().collect())
                .collect();
            let written: Vec<Vec<u32>> = written
                .into_iter()
                .zip(&prompts)
                .map(|(list, prompt)| list.into_iter().filter(|v| !prompt.contains(v)).collect())
                .collect();
            let penalty = |row: usize| [1.1, 1.0, 0.7][row % 3];
            let mut want = before.clone();
            for (row, z) in want.chunks_mut(vocab).enumerate() {
                for (v, z) in z.iter_mut().enumerate() {
                    let there = |list: &[u32]| list.contains(&(v as u32));
                    if there(&prompts[row]) || there(&written[row]) {
                        *z = if *z < 0.0 { *z * penalty(row) } else { *z / penalty(row) };
                    }
                }
            }
            for cpu in contexts() {
                let mut got = before.clone();
                apply(&cpu, &mut got, vocab, &|row| Penalized {
                    tokens: [&prompts[row], &written[row]],
                    penalty: penalty(row),
                });
                assert_same_bits(&got, &want, "logits");
            }
        }
    }

    /// transformers' `torch.where(score < 0, score * penalty, score / penalty)`.
    #[test]
    fn signs_zeros_and_infinities() {
        let infinity = f32::INFINITY;
        let mut logits = [2.0, -2.0, 0.0, -0.0, -infinity, infinity, 3.0];
        let tokens: [&[u32]; 2] = [&[0, 1, 2, 3, 4, 5], &[]];
        apply(&Cpu::new(1), &mut logits, 7, &|_| Penalized { tokens, penalty: 4.0 });
        assert_same_bits(&logits, &[0.5, -8.0, 0.0, -0.0, -infinity, infinity, 3.0], "logits");
        apply(&Cpu::new(1), &mut logits, 7, &|_| Penalized::NOT);
        assert_eq!(logits[0], 0.5);
    }

    #[test]
    fn penalties_out_of_range_are_refused_with_the_range() {
        for penalty in [0.0, -1.0, 1e-3, 101.0, f32::NAN, f32::INFINITY] {
            let error = validate(penalty).unwrap_err().to_string();
            assert!(error.contains("0.01 to 100"), "{error}");
        }
        assert_eq!(validate(1.1), Ok(()));
    }

    #[test]
    #[should_panic(expected = "index out of bounds")]
    fn tokens_are_checked() {
        let row = |_| Penalized { tokens: [&[4], &[]], penalty: 2.0 };
        apply(&Cpu::new(1), &mut [0.0; 8], 4, &row);
    }
}
