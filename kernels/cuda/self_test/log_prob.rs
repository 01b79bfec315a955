//! Log-probabilities: the CPU's bits for the same logits. And their gradients.

use super::{Comparisons, rounded, values, widened};
use crate::cpu::Cpu;
use crate::cpu::lanes;
use crate::cpu::log_prob::{self, Distribution, VOCAB_BLOCK};
use crate::cuda::{Error, Head, Operands, padded_vocab};

pub(crate) fn log_prob_has_the_bits_of_the_reference_on_the_same_logits(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    for (rows, k, vocab) in
        [(1, 8, 16), (3, 24, VOCAB_BLOCK + 43), (9, 8, 631), (131, 8, 17 * VOCAB_BLOCK + 8)]
    {
        let x = gpu.upload(&rounded(&values(1, rows * k)))?;
        let stride = padded_vocab(vocab);
        let w: Vec<f32> = values(2, stride * k).iter().map(|w| 4.0 * w).collect();
        let weight = gpu.upload(&rounded(&w))?;
        let host_tokens: Vec<u32> = (0..rows).map(|row| (row * 997 % vocab) as u32).collect();
        let tokens = gpu.upload(&host_tokens)?;
        let head = Head { weight: &weight, vocab, k };
        let mut logits = gpu.zeros(rows * stride)?;
        let product = Operands { x: &x, w: &weight, first_row: 0, k };
        gpu.matmul(&mut logits, &[product], [rows, stride], false)?;
        let logits = tokens_only(&gpu.download(&logits)?, vocab);

        let temperature = 0.9;
        let mut out = gpu.zeros(rows * 2)?;
        let distributions = gpu.log_prob(&mut out, &x, head, &tokens, temperature)?;
        let found = gpu.check_distributions(&distributions)?;
        let (mut log_probs, mut entropies) = (vec![0.0; rows], vec![0.0; rows]);
        let (cpu, tokens_) = (Cpu::new(1), &host_tokens);
        let reference =
            log_prob::forward(&cpu, &mut log_probs, &mut entropies, &logits, tokens_, temperature);
        on.same(&[found, reference], &[Ok(()); 2], "logits are finite");
        if reference.is_err() {
            continue;
        }
        let want: Vec<f32> = log_probs.iter().zip(&entropies).flat_map(|(l, h)| [*l, *h]).collect();
        on.same_bits(&gpu.download(&out)?, &want, &format!("[{rows}, {k}, {vocab}]"));

        // Backward: dz has the bits of the formula, so dx is a product of that dz.
        let gradients = values(5, rows * 2);
        let mut dz = logits.clone();
        for row in 0..rows {
            let logits = &logits[row * vocab..(row + 1) * vocab];
            let distribution = log_prob::row(&cpu, logits, temperature).expect("finite logits");
            let dz = &mut dz[row * vocab..(row + 1) * vocab];
            let of_row = [gradients[2 * row], gradients[2 * row + 1]];
            gradient(dz, &distribution, of_row, host_tokens[row] as usize);
        }
        let (dz, w) = (widened(&rounded(&dz)), widened(&rounded(&w)));
        let (mut naive, mut exact) = (vec![0.0f32; rows * k], vec![0.0f64; rows * k]);
        for row in 0..rows {
            for token in 0..vocab {
                let dz = dz[row * vocab + token];
                for c in 0..k {
                    naive[row * k + c] += dz * w[token * k + c];
                    exact[row * k + c] += f64::from(dz) * f64::from(w[token * k + c]);
                }
            }
        }
        let gradients = gpu.upload(&gradients)?;
        let mut dx = gpu.zeros(rows * k)?;
        gpu.log_prob_backward(&mut dx, &gradients, &x, head, &tokens, &distributions)?;
        on.close(&gpu.download(&dx)?, &naive, &exact, 1e-6, "dx");
    }
    Ok(())
}

/// Turns a row's logits into dz = (g·(onehot(token) − p) − h·p·(log p + H)) / T, with g the gradient of the
/// log-probability and h that of the entropy H.
fn gradient(row: &mut [f32], of: &Distribution, [g, h]: [f32; 2], token: usize) {
    let (inverse, scale) = (of.inverse_temperature(), (1.0 / of.sum()) as f32);
    let (log_sum, entropy) = (lanes::ln(of.sum()) as f32, of.entropy());
    for z in &mut *row {
        let d = of.shifted(*z);
        let p = lanes::exp(d) * scale;
        let d = if d < lanes::EXP_LOWEST { lanes::EXP_LOWEST } else { d };
        *z = -p * (g + h * (d - log_sum + entropy)) * inverse;
    }
    row[token] += g * inverse;
}

/// Rows of logits without what lies behind their tokens.
fn tokens_only(logits: &[f32], vocab: usize) -> Vec<f32> {
    logits.chunks(padded_vocab(vocab)).flat_map(|row| row[..vocab].to_vec()).collect()
}
