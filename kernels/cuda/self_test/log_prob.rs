//! Log-probabilities, their gradients, and drawing tokens: the CPU's bits for the same logits.

use super::{Comparisons, rounded, values, widened};
use crate::cpu::lanes;
use crate::cpu::log_prob::{self, Distribution, LogitsError, VOCAB_BLOCK};
use crate::cpu::philox::{RngKey, Stream};
use crate::cpu::repetition_penalty::Penalized;
use crate::cpu::sample::{self, Sample, SamplingParams, Scratch};
use crate::cpu::{self, Cpu};
use crate::cuda::{Error, Head, Operands, SampleRequest, padded_vocab};

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

/// Rows of logits with room behind their tokens, which must not be drawn from.
fn padded(logits: &[f32], vocab: usize) -> Vec<f32> {
    let behind = vec![1e30; padded_vocab(vocab) - vocab];
    logits.chunks(vocab).flat_map(|row| [row, &behind].concat()).collect()
}

/// Logits on a grid, so that some tie; some impossible.
fn row(vocab: usize, scale: f32, seed: u64) -> Vec<f32> {
    let key = RngKey::new(seed, 0, Stream(98));
    let row = (0..vocab).map(|v| {
        let [word, other, ..] = key.words(v as u32);
        let z = ((word >> 20) as f32 / 2048.0 - 1.0) * scale;
        if other % 50 == 0 && v > 0 { f32::NEG_INFINITY } else { z }
    });
    row.collect()
}

pub(crate) fn tokens_are_those_of_the_reference(on: &mut Comparisons<'_>) -> Result<(), Error> {
    let gpu = on.gpu;
    let of = |temperature: f32, top_k: u32, top_p: f32, min_p: f32| SamplingParams {
        temperature,
        top_k,
        top_p,
        min_p,
    };
    let params = [
        SamplingParams::GREEDY,
        of(1.0, 0, 1.0, 0.0),
        of(0.7, 0, 1.0, 0.0),
        of(1.0, 1, 1.0, 0.0),
        of(0.9, 20, 1.0, 0.0),
        of(1.3, 1500, 1.0, 0.0),
        of(1.0, 0, 0.9, 0.0),
        of(0.6, 0, 0.01, 0.0),
        of(1.0, 0, 1.0, 0.1),
        of(0.8, 40, 0.95, 0.05),
        of(1.0, 0, 0.95, 0.02),
        of(1.0, 3000, 0.999, 0.0),
    ];
    for (vocab, scale) in [(1, 1.0), (33, 3.0), (VOCAB_BLOCK * 2 + 77, 6.0), (9000, 0.0)] {
        let rows = params.len() * 2;
        let mut logits: Vec<f32> = (0..rows).flat_map(|r| row(vocab, scale, r as u64)).collect();
        if vocab > 511 {
            // The greedy row's largest is found by the last of a block's threads.
            logits[511] = 2.0 * scale + 1.0;
        }
        let requests: Vec<SampleRequest> = (0..rows)
            .map(|r| SampleRequest {
                params: params[r % params.len()],
                key: RngKey::new(11 << 35 | 5, r as u64, Stream::TOKENS),
                position: 3 + r as u32,
            })
            .collect();
        let mut out = gpu.zeros(rows * 4)?;
        let on_gpu = gpu.sample_requests(&requests)?;
        let padded = gpu.upload(&padded(&logits, vocab))?;
        gpu.sample(&mut out, &padded, &on_gpu, vocab)?;
        let mut scratch = Scratch::new(vocab);
        let [mut got, mut want] = [(); 2].map(|()| Vec::with_capacity(rows));
        for (r, drawn) in gpu.samples(&out)?.into_iter().enumerate() {
            let SampleRequest { params, key, position } = requests[r];
            let logits = &logits[r * vocab..(r + 1) * vocab];
            let uniform = key.uniform_f64(position);
            let cpu = Cpu::new(1);
            let bits = |sample: Sample| {
                (sample.token, sample.log_prob.to_bits(), sample.entropy.to_bits())
            };
            got.push(drawn.map(bits));
            want.push(sample::draw(&cpu, &mut scratch, logits, &params, uniform).map(bits));
        }
        on.same(&got, &want, &format!("{rows} rows of {vocab}"));
    }
    Ok(())
}

pub(crate) fn penalized_logits_equal_their_reference_bit_for_bit(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::new(1);
    for (rows, vocab) in [(1, 1), (3, 33), (2, 2100)] {
        let logits: Vec<f32> = (0..rows).flat_map(|r| row(vocab, 9.0, r as u64)).collect();
        // None, some, all of the tokens; more than a block has threads.
        let tokens = |keep: &dyn Fn(u32) -> bool| (0..vocab as u32).filter(|v| keep(*v)).collect();
        let lists: [Vec<u32>; 3] =
            [tokens(&|v| v % 2 == 1), tokens(&|v| v % 2 == 0), tokens(&|v| v % 7 == 3)];
        let all = [
            Penalized { tokens: [&lists[0], &lists[1]], penalty: 1.1 },
            Penalized { tokens: [&[], &lists[2]], penalty: 0.8 },
            Penalized::NOT,
        ];
        let there = gpu.penalties(&all[..rows], vocab * rows + 5, vocab)?;
        let mut got = gpu.upload(&padded(&logits, vocab))?;
        gpu.repetition_penalty(&mut got, &there)?;
        let mut want = logits.clone();
        cpu::repetition_penalty::apply(&cpu, &mut want, vocab, &|row| all[row]);
        let got = gpu.download(&got)?;
        on.same_bits(&got, &padded(&want, vocab), &format!("{rows} rows of {vocab}"));

        // Others in the same place, as a captured step has them.
        let mut there = there;
        let again = vec![Penalized { tokens: [&lists[2], &[]], penalty: 3.0 }; rows];
        gpu.rewrite_penalties(&mut there, &again)?;
        let mut got = gpu.upload(&padded(&logits, vocab))?;
        gpu.repetition_penalty(&mut got, &there)?;
        let mut want = logits.clone();
        cpu::repetition_penalty::apply(&cpu, &mut want, vocab, &|row| again[row]);
        let got = gpu.download(&got)?;
        on.same_bits(&got, &padded(&want, vocab), &format!("{rows} rows of {vocab}, rewritten"));
    }
    Ok(())
}

pub(crate) fn rows_without_a_distribution_are_named(on: &mut Comparisons<'_>) -> Result<(), Error> {
    let gpu = on.gpu;
    let vocab = 2100;
    let mut logits = vec![1.0f32; 4 * vocab];
    logits[vocab + 2099] = f32::NAN;
    logits[2 * vocab + 5] = f32::INFINITY;
    logits[3 * vocab..].fill(f32::NEG_INFINITY);
    let key = RngKey::new(1, 2, Stream::TOKENS);
    let request = SampleRequest { params: SamplingParams::default(), key, position: 0 };
    let requests = gpu.sample_requests(&[request; 4])?;
    let mut out = gpu.zeros(16)?;
    let padded = gpu.upload(&padded(&logits, vocab))?;
    gpu.sample(&mut out, &padded, &requests, vocab)?;
    let errors: Vec<_> = gpu.samples(&out)?.into_iter().map(Result::err).collect();
    let want = [
        None,
        Some(LogitsError::NotANumber),
        Some(LogitsError::PositiveInfinity),
        Some(LogitsError::AllNegativeInfinity),
    ];
    on.same(&errors, &want, "not a number, infinite, all impossible");
    Ok(())
}
