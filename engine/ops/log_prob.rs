//! LM head, log-probability and entropy as one op, with temperature T:
//!
//! ```text
//! z   = x·Wᵀ                               x [rows, k], W [vocab, k], z [rows, vocab]
//! l   = log softmax(z / T)[token]          H = −Σ_v p_v·log p_v       p = softmax(z / T)
//! dz  = (dl·(onehot(token) − p) − dH·p·(log p + H)) / T
//! dx  = dz·W
//! ```
//!
//! The logits of a 151,936-token vocabulary are where trainers run out of memory: here only a block
//! of rows and of the vocabulary exists at a time, and the backward pass computes it again. `W` is
//! frozen, so there is no `dW`. The result has the bits of the logits' own log-probabilities.

use kernels::cpu::{
    Matrix, Rounding,
    log_prob::{self, Distribution, RowError, RowGradient, Sums, VOCAB_BLOCK},
    matmul,
};

use crate::{
    tape::{Backward, Gradients, Tape},
    tensor::{Device, Tensor},
    weights::Weight,
};

/// Rows of logits that exist at a time, at most, and logits.
const ROWS: usize = 1024;
const LOGITS: usize = 4 << 20;

/// Logits of a row in a block, at most. The backward pass has a block of W transposed: without this bound
/// a batch of few rows would have all of it, 311 MB for Qwen3-0.6B.
const COLUMNS: usize = 8 * VOCAB_BLOCK;

/// What is asked of the rows.
#[derive(Clone, Copy)]
pub struct Targets<'m> {
    /// A token a row.
    pub tokens: &'m [u32],
    /// T.
    pub temperature: f32,
}

/// Log-probability of each row's token, and entropy: `[rows, 2]`. A row without a distribution (a
/// logit is NaN or infinite) is an error.
pub fn log_prob<'m>(
    tape: &mut Tape<'m>,
    x: &Tensor,
    head: &'m Weight,
    targets: Targets<'m>,
    rounding: Rounding,
) -> Result<Tensor, RowError> {
    let [rows, k] = x.shape();
    let Targets { tokens, temperature } = targets;
    assert_eq!(tokens.len(), rows, "log_prob: x is {:?}", x.shape());
    assert_eq!(
        head.columns(),
        k,
        "log_prob: x is {:?}, the head [_, {}]",
        x.shape(),
        head.columns()
    );
    let vocab = head.rows();
    assert!(tokens.iter().all(|&token| (token as usize) < vocab), "a token beyond {vocab}");

    let device = x.device();
    let mut y = Tensor::uninitialized(device, rows, 2);
    let mut distributions = Vec::with_capacity(rows);
    for first in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - first);
        let mut sums = vec![Sums::new(temperature); count];
        let mut chosen = vec![0.0; count];
        blocks(device, x, head, first, count, rounding, &mut |block, _, logits| {
            log_prob::join_rows(device.cpu(), &mut sums, logits.data());
            for (row, chosen) in chosen.iter_mut().enumerate() {
                let token = tokens[first + row] as usize;
                if block.contains(&token) {
                    *chosen = logits.row(row)[token - block.start];
                }
            }
        });
        for (row, (sums, logit)) in sums.iter().zip(chosen).enumerate() {
            let row = first + row;
            let distribution = sums.finish().map_err(|error| RowError { row, error })?;
            let values = [distribution.log_prob(logit), distribution.entropy()];
            y.data_mut()[2 * row..2 * row + 2].copy_from_slice(&values);
            distributions.push(distribution);
        }
    }
    if tape.records(x.requires_grad()) {
        tape.push(&mut y, LogProb { x: x.clone(), head, tokens, rounding, distributions });
    }
    Ok(y)
}

/// Rows of the largest block for `rows` rows.
pub(crate) fn block_rows(rows: usize) -> usize {
    rows.min(ROWS)
}

/// Columns of a block of `count` rows, but for the last.
pub(crate) fn block_columns(count: usize) -> usize {
    (LOGITS / count / VOCAB_BLOCK).clamp(1, COLUMNS / VOCAB_BLOCK) * VOCAB_BLOCK
}

/// Computes the logits of rows `first..first + count` of x, a block of the vocabulary at a time, and shows
/// them with the block's rows of the head.
fn blocks(
    device: &Device,
    x: &Tensor,
    head: &Weight,
    first: usize,
    count: usize,
    rounding: Rounding,
    visit: &mut dyn FnMut(std::ops::Range<usize>, Matrix<'_>, &mut Tensor),
) {
    let (k, vocab) = (head.columns(), head.rows());
    let width = block_columns(count);
    let x = &x.data()[first * k..(first + count) * k];
    // Once for all blocks, which are parts of one use.
    let w = head.for_product(device.cpu(), rounding, count);
    for start in (0..vocab).step_by(width) {
        let block = start..vocab.min(start + width);
        let mut logits = Tensor::uninitialized(device, count, block.len());
        let w = w.rows(block.clone(), k);
        let shape = [count, block.len(), k];
        matmul::forward(device.cpu(), logits.data_mut(), x, w, shape, rounding, false);
        visit(block, w, &mut logits);
    }
}

struct LogProb<'m> {
    x: Tensor,
    head: &'m Weight,
    tokens: &'m [u32],
    rounding: Rounding,
    distributions: Vec<Distribution>,
}

impl Backward for LogProb<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let LogProb { x, head, tokens, rounding, distributions } = *self;
        let [rows, k] = x.shape();
        let device = x.device();
        let of_row = |(distribution, dy): (&Distribution, &[f32])| RowGradient {
            distribution: *distribution,
            log_prob: dy[0],
            entropy: dy[1],
        };
        let of_rows: Vec<RowGradient> =
            distributions.iter().zip(dy.data().chunks_exact(2)).map(of_row).collect();
        let mut dx = Tensor::zeros(device, rows, k);
        for first in (0..rows).step_by(ROWS) {
            let count = ROWS.min(rows - first);
            let of_rows = &of_rows[first..first + count];
            blocks(device, &x, head, first, count, rounding, &mut |block, w, logits| {
                let width = block.len();
                log_prob::backward_rows(device.cpu(), logits.data_mut(), of_rows);
                for (row, of_row) in of_rows.iter().enumerate() {
                    let token = tokens[first + row] as usize;
                    if block.contains(&token) {
                        let at = row * width + token - block.start;
                        logits.data_mut()[at] += log_prob::token_gradient(of_row);
                    }
                }
                let dx = &mut dx.data_mut()[first * k..(first + count) * k];
                let shape = [count, width, k];
                let logits = logits.data();
                matmul::backward(device.cpu(), dx, logits, w, shape, rounding, true, None);
            });
        }
        gradients.add(x.id(), dx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check_gradient::{check_gradient, values};
    use kernels::cpu::{Cpu, lanes::Level};

    #[test]
    fn gradient() {
        for (rows, k, vocab) in [(1, 1, 2), (3, 17, 33), (2, 8, VOCAB_BLOCK * 2 + 5)] {
            let head = Weight::from_f32(vocab, k, values(3, [vocab, k]).data());
            let tokens: Vec<u32> =
                (0..rows).map(|row| ((row * 77 + vocab - 1) % vocab) as u32).collect();
            for temperature in [1.0, 0.7] {
                check_gradient([rows, k], |tape, x| {
                    let targets = Targets { tokens: &tokens, temperature };
                    log_prob(tape, x, &head, targets, Rounding::F32).unwrap()
                });
            }
        }
    }

    #[test]
    fn has_the_bits_of_the_whole_logits_in_blocks_of_rows_and_vocabulary() {
        let device = Device::new(Cpu::new(2));
        let (rows, k, vocab) = (ROWS + 3, 4, 2 * VOCAB_BLOCK + 9);
        let (x, w) = (values(1, [rows, k]), values(2, [vocab, k]));
        let head = Weight::from_f32(vocab, k, w.data());
        let tokens: Vec<u32> = (0..rows).map(|row| (row * 97 % vocab) as u32).collect();
        let mut logits = vec![0.0; rows * vocab];
        let (shape, rounding) = ([rows, vocab, k], Rounding::F32);
        matmul::forward(device.cpu(), &mut logits, x.data(), head.matrix(), shape, rounding, false);
        let (mut log_probs, mut entropies) = (vec![0.0; rows], vec![0.0; rows]);
        let level = Level::detect();
        log_prob::forward(level, &mut log_probs, &mut entropies, &logits, &tokens, 0.8).unwrap();
        let targets = Targets { tokens: &tokens, temperature: 0.8 };
        let y = super::log_prob(&mut Tape::off(), &x, &head, targets, rounding).unwrap();
        for row in 0..rows {
            assert_eq!(y.row(row)[0].to_bits(), log_probs[row].to_bits());
            assert_eq!(y.row(row)[1].to_bits(), entropies[row].to_bits());
        }
    }

    #[test]
    fn a_row_without_a_distribution_is_named() {
        let head = Weight::from_f32(2, 1, &[1.0, -1.0]);
        let mut x = values(1, [3, 1]);
        x.data_mut()[1] = f32::NAN;
        let targets = Targets { tokens: &[0, 1, 0], temperature: 1.0 };
        let error = log_prob(&mut Tape::off(), &x, &head, targets, Rounding::F32).unwrap_err();
        assert_eq!(error.row, 1);
    }
}
