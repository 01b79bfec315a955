//! The LM head, log-probabilities and entropies as one operation over parts of the vocabulary.

use super::entries;
use super::launch::{Grid, args, expect};
use super::{Buffer, Error, Gpu, Operands};
use crate::cpu::log_prob::{LogitsError, RowError, VOCAB_BLOCK, inverse_of};

/// Number of logits that exist at a time: 32 MB, which stay in an A100's second-level cache between the kernels.
const LOGITS: usize = 8 << 20;
/// Most blocks of the vocabulary in a part: as many as one pass of the kernel takes.
const BLOCKS: usize = 16;

/// Columns of logits that exist at a time for `rows` rows. The last part may have fewer.
pub fn logits_columns(rows: usize) -> usize {
    (LOGITS / rows.max(1) / VOCAB_BLOCK).clamp(1, BLOCKS) * VOCAB_BLOCK
}

/// The LM head: weights `[padded_vocab(vocab), k]` in bf16. Rows beyond vocab must be finite, best zeros. k is a multiple
/// of 8.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The weights.
    pub weight: &'a Buffer<u16>,
    /// Number of tokens.
    pub vocab: usize,
    /// Number of columns.
    pub k: usize,
}

/// Columns of the logits of `vocab` tokens: the next multiple of 8.
pub fn padded_vocab(vocab: usize) -> usize {
    vocab.next_multiple_of(8)
}

/// The softmax(z / T) of rows, reduced to what the backward pass needs.
#[derive(Debug)]
pub struct Distributions {
    /// `[rows, 4]`: max, S, ln S, H.
    numbers: Buffer<f64>,
    status: Buffer<u32>,
    inverse: f32,
}

/// A function that gets a part of the logits: its first token, number of tokens and number of columns.
type Visit<'a> = dyn FnMut(usize, usize, usize, &Buffer<f32>) -> Result<(), Error> + 'a;

/// The error of each status number of the kernels.
pub(super) fn error_of(status: u32) -> Option<LogitsError> {
    match status {
        0 => None,
        1 => Some(LogitsError::NotANumber),
        2 => Some(LogitsError::PositiveInfinity),
        _ => Some(LogitsError::AllNegativeInfinity),
    }
}

impl Gpu {
    /// Log-probability of each row's token and entropy, `[rows, 2]`, of x·headᵀ at a temperature, for `x` `[rows, k]`;
    /// reference: the CPU's log_prob over blocks, with its bits for the same logits. Tokens must be below vocab.
    /// Logits exist a part of the vocabulary at a time.
    pub fn log_prob(
        &self,
        out: &mut Buffer<f32>,
        x: &Buffer<u16>,
        head: Head<'_>,
        tokens: &Buffer<u32>,
        temperature: f32,
    ) -> Result<Distributions, Error> {
        let rows = tokens.len();
        let inverse = inverse_of(temperature);
        expect(self, "out", out, &[rows, 2]);
        let sums = self.uninitialized::<f64>(rows * 3)?;
        let chosen = self.uninitialized::<f32>(rows)?;
        self.parts(x, head, rows, &mut |first, width, stride, logits| {
            let args = args![&sums, &chosen, logits, tokens, width, stride, first, inverse];
            // SAFETY: a block reads `width` logits of its row and its token, and writes its row's sums and logit.
            unsafe { self.launch(&entries::LOG_PROB_JOIN, Grid::new(rows, 256), args) }
        })?;
        let numbers = self.uninitialized::<f64>(rows * 4)?;
        let status = self.uninitialized::<u32>(rows)?;
        let args = args![out, &numbers, &status, &sums, &chosen, rows, inverse];
        // SAFETY: a thread reads a row below `rows` of sums and chosen and writes the same row of the rest.
        unsafe { self.launch(&entries::LOG_PROB_FINISH, Grid::over(rows, 1, 128), args)? };
        Ok(Distributions { numbers, status, inverse })
    }

    /// Writes the gradient of x, given those of log-probability and entropy, `[rows, 2]`. The logits are computed
    /// again, a part at a time; the head is frozen: its gradient is not computed.
    pub fn log_prob_backward(
        &self,
        dx: &mut Buffer<f32>,
        gradients: &Buffer<f32>,
        x: &Buffer<u16>,
        head: Head<'_>,
        tokens: &Buffer<u32>,
        distributions: &Distributions,
    ) -> Result<(), Error> {
        let rows = tokens.len();
        expect(self, "dx", dx, &[rows, head.k]);
        expect(self, "gradients", gradients, &[rows, 2]);
        let Distributions { numbers, inverse, .. } = distributions;
        expect(self, "distributions", numbers, &[rows, 4]);
        self.parts(x, head, rows, &mut |first, width, stride, logits| {
            let dz = self.uninitialized::<u16>(rows * stride)?;
            let args =
                args![&dz, logits, numbers, gradients, tokens, width, stride, first, *inverse];
            // SAFETY: a block reads and writes `width` elements of its row, and reads its row of the rest.
            unsafe { self.launch(&entries::LOG_PROB_BACKWARD, Grid::new(rows, 256), args)? };
            let product = Operands { x: &dz, w: head.weight, first_row: first, k: stride };
            self.matmul_backward(dx, &[product], [rows, head.k], first > 0)
        })
    }

    /// The first row whose logits have no distribution, if any. Waits for the device.
    pub fn check_distributions(
        &self,
        distributions: &Distributions,
    ) -> Result<Result<(), RowError>, Error> {
        let status = self.download(&distributions.status)?;
        let wrong =
            |(row, status): (usize, &u32)| error_of(*status).map(|error| RowError { row, error });
        Ok(status.iter().enumerate().find_map(wrong).map_or(Ok(()), Err))
    }

    /// Computes logits, a part of the vocabulary at a time, and shows them: the part's first token, its width.
    fn parts(
        &self,
        x: &Buffer<u16>,
        head: Head<'_>,
        rows: usize,
        visit: &mut Visit<'_>,
    ) -> Result<(), Error> {
        let Head { weight, vocab, k } = head;
        expect(self, "the head", weight, &[padded_vocab(vocab), k]);
        let most = logits_columns(rows);
        for first in (0..vocab).step_by(most) {
            let width = (vocab - first).min(most);
            let stride = padded_vocab(width);
            let mut logits = self.uninitialized::<f32>(rows * stride)?;
            let product = Operands { x, w: weight, first_row: first, k };
            self.matmul(&mut logits, &[product], [rows, stride], false)?;
            visit(first, width, stride, &logits)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_vocabulary_by_hand() {
        assert_eq!([1, 1024, 4096].map(logits_columns), [16 * 2048, 4 * 2048, 2048]);
    }
}
