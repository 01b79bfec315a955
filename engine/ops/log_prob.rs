//! LM head, log-probability and entropy as one op, with temperature T:
//!
//! ```text
//! z     = x·Wᵀ                             x [rows, k], W [vocab, k], z [rows, vocab]
//! l     = log softmax(z / T)[token]        H = −Σ_v p_v·log p_v       p = softmax(z / T)
//! dl/dx = (onehot(token) − p)·W / T
//! dx    = dl · dl/dx                       one number per row
//! ```
//!
//! The logits of a 151,936-token vocabulary are where trainers run out of memory: here only a block
//! of rows and of the vocabulary exists at a time. As l is one number per row, dl/dx is known up to
//! that factor in the forward pass, and is summed there, block by block under a running maximum (as
//! FlashAttention sums values; Dao et al. 2022, arXiv 2205.14135): the backward pass needs no logits.
//! `W` is frozen, so there is no `dW`; H is reported, not optimized, so there is no `dH`. The result
//! has the bits of the logits' own log-probabilities.

use kernels::{
    cpu::{
        ComputeDtype, embedding,
        gather::check,
        log_prob::{self, GradientSums, RowError, Sums, VOCAB_BLOCK},
        matmul,
    },
    cuda::{Distributions, Gpu, Head},
};

use crate::{
    checkpoint::weights::Weight,
    tensor::{
        Id, Tensor,
        device::{CudaDevice, Device, DeviceError, Mirrored},
        tape::{Backward, Gradients, Saved, Tape},
    },
};

/// The most rows of logits that exist at a time, and the most logits.
const ROWS: usize = 1024;
const LOGITS: usize = 4 << 20;

/// Logits of a row in a block, at most. The matmul for dl/dx may transpose a block of W: without this bound
/// a batch of few rows would have all of it, 311 MB for Qwen3-0.6B.
const COLUMNS: usize = 8 * VOCAB_BLOCK;

/// The token of each row, and the temperature.
#[derive(Clone, Copy)]
pub struct Targets<'m> {
    /// One token per row.
    pub tokens: &'m Mirrored<u32>,
    /// T.
    pub temperature: f32,
}

/// Log-probability of each row's token, in nats, and entropy: `[rows, 2]`. The gradient of the entropy must be 0. A row with a
/// logit that is NaN or infinite is an error.
pub fn log_prob<'m>(
    tape: &mut Tape<'m>,
    x: &Tensor,
    head: &'m Weight,
    targets: Targets<'m>,
    compute: ComputeDtype,
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
    check(tokens, vocab);
    let recorded = tape.records(x.requires_grad());
    let (mut y, kept) = match x.device() {
        Device::Cpu(_) => {
            let (y, dx) = on_cpu(x, head, targets, compute, recorded)?;
            (y, dx.map(Kept::Gradient))
        }
        // The logits are computed again in the backward pass, which the tensor cores do faster than memory gives back a
        // sum of f32 for every row.
        Device::Cuda(cuda) => {
            let mut y = Tensor::uninitialized(x.device(), rows, 2);
            let input = x.for_matmul();
            let outcome = cuda.finish(|gpu| {
                let (head, tokens, y) = (on(gpu, head)?, tokens.on(gpu)?, y.f32_mut());
                let distributions = gpu.log_prob(y, input.bf16(), head, tokens, temperature)?;
                Ok((gpu.check_distributions(&distributions)?, distributions))
            });
            let distributions = match outcome {
                Ok((checked, distributions)) => checked.map(|()| Ok(distributions))?,
                Err(failure) => Err(failure),
            };
            let cuda = cuda.clone();
            let kept =
                || Kept::Distributions { cuda, x: tape.save(x), head, tokens, distributions };
            (y, recorded.then(kept))
        }
    };
    if let Some(kept) = kept {
        tape.push(&mut y, LogProb { x: x.id(), kept });
    }
    Ok(y)
}

/// y and, if `wanted`, dl/dx.
fn on_cpu(
    x: &Tensor,
    head: &Weight,
    Targets { tokens, temperature }: Targets<'_>,
    compute: ComputeDtype,
    wanted: bool,
) -> Result<(Tensor, Option<Tensor>), RowError> {
    let ([rows, k], vocab) = (x.shape(), head.rows());
    let device = x.device();
    let cpu = device.host();
    let mut y = Tensor::uninitialized(device, rows, 2);
    let mut all_dx = wanted.then(|| Tensor::zeros(device, rows, k));
    for first in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - first);
        let of_rows = first * k..(first + count) * k;
        let (x, tokens) = (&x.data()[of_rows.clone()], &tokens[first..first + count]);
        let mut sums = vec![Sums::new(temperature); count];
        let mut chosen = vec![0.0; count];
        let mut parts = vec![GradientSums::default(); count];
        // Once for all blocks, which are parts of one use.
        let w = head.for_matmul(cpu, compute, count);
        let width = block_columns(count);
        for start in (0..vocab).step_by(width) {
            let block = start..vocab.min(start + width);
            let mut logits = Tensor::uninitialized(device, count, block.len());
            let (w, shape) = (w.rows(block.clone(), k), [count, block.len(), k]);
            matmul::forward(cpu, logits.data_mut(), x, w, shape, compute, false);
            log_prob::join_rows(cpu, &mut sums, logits.data());
            let place = |token: usize| block.contains(&token).then(|| token - start);
            let places: Vec<Option<usize>> =
                tokens.iter().map(|token| place(*token as usize)).collect();
            for (row, (place, chosen)) in places.iter().zip(&mut chosen).enumerate() {
                if let Some(place) = place {
                    *chosen = logits.row(row)[*place];
                }
            }
            if let Some(all_dx) = &mut all_dx {
                let dx = &mut all_dx.data_mut()[of_rows.clone()];
                log_prob::dlogits_rows(cpu, &mut parts, &sums, logits.data_mut(), &places, dx);
                let shape = [count, block.len(), k];
                matmul::backward(cpu, dx, logits.data(), w, shape, compute, true, None);
            }
        }
        let mut distributions = Vec::with_capacity(count);
        for (row, (sums, logit)) in sums.iter().zip(chosen).enumerate() {
            let row = first + row;
            let distribution = sums.finish().map_err(|error| RowError { row, error })?;
            let values = [distribution.log_prob(logit), distribution.entropy()];
            y.data_mut()[2 * row..2 * row + 2].copy_from_slice(&values);
            distributions.push(distribution);
        }
        if let Some(all_dx) = &mut all_dx {
            let mut w = Tensor::uninitialized(device, count, k);
            embedding::forward(cpu, w.data_mut(), tokens, head.matrix(), k);
            let dx = &mut all_dx.data_mut()[of_rows];
            log_prob::finish_dx(cpu, dx, w.data(), &parts, &distributions);
        }
    }
    Ok((y, all_dx))
}

fn on<'a>(gpu: &Gpu, head: &'a Weight) -> Result<Head<'a>, DeviceError> {
    Ok(Head { weight: head.on(gpu)?, vocab: head.rows(), k: head.columns() })
}

/// Rows of the largest block for `rows` rows.
pub(crate) fn block_rows(rows: usize) -> usize {
    rows.min(ROWS)
}

/// Columns of a block of `count` rows, but for the last.
pub(crate) fn block_columns(count: usize) -> usize {
    (LOGITS / count / VOCAB_BLOCK).clamp(1, COLUMNS / VOCAB_BLOCK) * VOCAB_BLOCK
}

struct LogProb<'m> {
    x: Id,
    kept: Kept<'m>,
}

/// Saved for the backward pass.
enum Kept<'m> {
    /// dl/dx `[rows, k]`.
    Gradient(Tensor),
    /// What gives logits again on a GPU, and what softmax made of them; or why the GPU failed.
    Distributions {
        cuda: CudaDevice,
        x: Saved<'m>,
        head: &'m Weight,
        tokens: &'m Mirrored<u32>,
        distributions: Result<Distributions, DeviceError>,
    },
}

impl Backward for LogProb<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let dx = match self.kept {
            Kept::Gradient(dx) => {
                let [_, k] = dx.shape();
                let mut dx = dx.into_owned();
                dx.on_host(|dx| {
                    for (dx, dy) in dx.chunks_exact_mut(k).zip(dy.data().chunks_exact(2)) {
                        assert_eq!(dy[1], 0.0, "log_prob: the entropy is not differentiated");
                        dx.iter_mut().for_each(|dx| *dx *= dy[0]);
                    }
                });
                dx
            }
            Kept::Distributions { cuda, x, head, tokens, distributions } => {
                let mut dx = Tensor::uninitialized(dy.device(), tokens.len(), head.columns());
                let x = x.get().for_matmul();
                cuda.queue(|gpu| {
                    let (head, tokens) = (on(gpu, head)?, tokens.on(gpu)?);
                    let to = dx.f32_mut();
                    gpu.log_prob_backward(to, dy.f32(), x.bf16(), head, tokens, &distributions?)
                });
                dx
            }
        };
        gradients.add(self.x, dx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::check_gradient::{check_gradient, values};
    use kernels::cpu::Cpu;

    /// The first column of y.
    fn without_entropy(tape: &mut Tape<'_>, y: &Tensor) -> Tensor {
        struct First(Id);
        impl Backward for First {
            fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
                let both: Vec<f32> = dy.data().iter().flat_map(|dy| [*dy, 0.0]).collect();
                gradients.add(self.0, Tensor::from_slice(dy.device(), both.len() / 2, 2, &both));
            }
        }
        let first: Vec<f32> = y.data().chunks_exact(2).map(|y| y[0]).collect();
        let mut first = Tensor::from_slice(y.device(), first.len(), 1, &first);
        if tape.records(y.requires_grad()) {
            tape.push(&mut first, First(y.id()));
        }
        first
    }

    #[test]
    fn gradient() {
        for (rows, k, vocab) in [(1, 1, 2), (3, 17, 33), (2, 8, VOCAB_BLOCK * 2 + 5)] {
            let head = Weight::from_f32(vocab, k, values(3, [vocab, k]).data());
            let tokens = (0..rows).map(|row| ((row * 77 + vocab - 1) % vocab) as u32);
            let tokens = Mirrored::from(tokens.collect::<Vec<_>>());
            for temperature in [1.0, 0.7] {
                check_gradient([rows, k], |tape, x| {
                    let targets = Targets { tokens: &tokens, temperature };
                    let y = log_prob(tape, x, &head, targets, ComputeDtype::F32).unwrap();
                    without_entropy(tape, &y)
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
        let (shape, compute) = ([rows, vocab, k], ComputeDtype::F32);
        matmul::forward(device.host(), &mut logits, x.data(), head.matrix(), shape, compute, false);
        let (mut log_probs, mut entropies) = (vec![0.0; rows], vec![0.0; rows]);
        let cpu = Cpu::new(1);
        log_prob::forward(&cpu, &mut log_probs, &mut entropies, &logits, &tokens, 0.8).unwrap();
        let tokens = Mirrored::from(tokens);
        let targets = Targets { tokens: &tokens, temperature: 0.8 };
        let y = super::log_prob(&mut Tape::off(), &x, &head, targets, compute).unwrap();
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
        let tokens = Mirrored::from(vec![0, 1, 0]);
        let targets = Targets { tokens: &tokens, temperature: 1.0 };
        let error = log_prob(&mut Tape::off(), &x, &head, targets, ComputeDtype::F32).unwrap_err();
        assert_eq!(error.row, 1);
    }
}
