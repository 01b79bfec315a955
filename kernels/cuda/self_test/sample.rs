//! Drawing tokens: those of the CPU for the same logits.

use super::Comparisons;
use crate::cpu::Cpu;
use crate::cpu::log_prob::{LogitsError, VOCAB_BLOCK};
use crate::cpu::philox::{RngKey, Stream};
use crate::cpu::sample::{self, Sample, SamplingParams, Scratch};
use crate::cpu::values::grid_row;
use crate::cuda::{Error, SampleRequest, padded_vocab};

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
        let mut logits: Vec<f32> =
            (0..rows).flat_map(|r| grid_row(vocab, scale, r as u64)).collect();
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

/// Rows of logits with room behind their tokens, which must not be drawn from.
pub(super) fn padded(logits: &[f32], vocab: usize) -> Vec<f32> {
    let behind = vec![1e30; padded_vocab(vocab) - vocab];
    logits.chunks(vocab).flat_map(|row| [row, &behind].concat()).collect()
}
