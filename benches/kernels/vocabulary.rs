//! Kernels over rows of logits: log-probabilities, their gradients, sampling.

use half::{bf16, slice::HalfFloatSliceExt as _};
use kernels::{
    cpu::{
        log_prob::{self, GradientSums, Sums},
        philox::{RngKey, Stream},
        repetition_penalty::{self, Penalized},
        sample::{self, Sample, SamplingParams, Scratch},
    },
    cuda::{Error, Head, SampleRequest, padded_vocab},
};

use super::{
    MODELS, Run, Suite, VOCAB, Widths, Work,
    cuda::{self, Cuda},
    naive::{Exact, halves, sampled, values},
};

/// Rows that the fused LM head takes at a time.
const ROWS: usize = 16;

const TEMPERATURE: f32 = 0.9;

pub(crate) fn bench(suite: &mut Suite) {
    forward(suite);
    join(suite);
    backward(suite);
    for Widths { hidden, .. } in MODELS {
        with_head(suite, hidden);
    }
    penalty(suite);
    let all = SamplingParams { temperature: 0.9, ..SamplingParams::default() };
    draw(suite, "greedy", SamplingParams::GREEDY);
    draw(suite, "all", all);
    draw(suite, "top_k20-top_p0.95", SamplingParams { top_k: 20, top_p: 0.95, ..all });
    draw(suite, "top_p0.9", SamplingParams { top_p: 0.9, ..all });
}

/// Logits as spread as those of a model.
fn logits(seed: u64, rows: usize) -> Vec<f32> {
    values(seed, rows * VOCAB).into_iter().map(|z| 8.0 * z).collect()
}

/// Log-sum of a row's exponentials, and its entropy, in f64.
fn naive(logits: &[f64], temperature: f32) -> [f64; 2] {
    let scaled = || logits.iter().map(|z| z / f64::from(temperature));
    let max = scaled().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scaled().map(|z| (z - max).exp()).sum();
    let weighted: f64 = scaled().map(|z| (z - max) * (z - max).exp()).sum();
    [max + sum.ln(), sum.ln() - weighted / sum]
}

fn wide(logits: &[f32]) -> Vec<f64> {
    logits.iter().map(|z| f64::from(*z)).collect()
}

fn reads(rows: usize) -> Work {
    Work { bytes: 4.0 * (rows * VOCAB) as f64, ..Work::default() }
}

fn forward(suite: &mut Suite) {
    let id = format!("r1-v{VOCAB}-1t");
    suite.bench("log_prob", id.clone(), reads(1), move |cpu| -> Run<'_> {
        let logits = logits(1, 1);
        let mut out = [f32::NAN; 2];
        let [log_prob, entropy] = &mut out;
        let [one, other] = [std::slice::from_mut(log_prob), std::slice::from_mut(entropy)];
        log_prob::forward(cpu, one, other, &logits, &[5], TEMPERATURE).expect("finite logits");
        let [log_sum, entropy] = naive(&wide(&logits), TEMPERATURE);
        let exact = f64::from(logits[5]) / f64::from(TEMPERATURE) - log_sum;
        Exact::of(exact).check(out[0], &id, 0);
        Exact::of(entropy).check(out[1], &id, 1);
        Box::new(move || {
            let [one, other] = &mut out;
            let [one, other] = [std::slice::from_mut(one), std::slice::from_mut(other)];
            let done = log_prob::forward(cpu, one, other, &logits, &[5], TEMPERATURE);
            assert!(done.is_ok(), "finite logits");
        })
    });
}

fn join(suite: &mut Suite) {
    let id = format!("r{ROWS}-v{VOCAB}");
    suite.bench("log_prob", id.clone(), reads(ROWS), move |cpu| -> Run<'_> {
        let logits = logits(1, ROWS);
        let start = vec![Sums::new(TEMPERATURE); ROWS];
        let mut sums = start.clone();
        log_prob::join_rows(cpu, &mut sums, &logits);
        for row in [0, ROWS - 1] {
            let [log_sum, entropy] = naive(&wide(&logits[row * VOCAB..][..VOCAB]), TEMPERATURE);
            let distribution = sums[row].finish().expect("finite logits");
            Exact::of(log_sum).check(distribution.log_sum_exp(), &id, row);
            Exact::of(entropy).check(distribution.entropy(), &id, row);
        }
        Box::new(move || {
            sums.copy_from_slice(&start);
            log_prob::join_rows(cpu, &mut sums, &logits);
        })
    });
}

fn backward(suite: &mut Suite) {
    let id = format!("backward-r{ROWS}-v{VOCAB}");
    let work = Work { bytes: 2.0 * reads(ROWS).bytes, ..Work::default() };
    suite.bench("log_prob", id.clone(), work, move |cpu| -> Run<'_> {
        let logits = logits(1, ROWS);
        let mut sums = vec![Sums::new(TEMPERATURE); ROWS];
        log_prob::join_rows(cpu, &mut sums, &logits);
        let tokens: Vec<Option<usize>> = (0..ROWS).map(|row| Some(97 * row)).collect();
        let (mut partial, mut dx) = (vec![GradientSums::default(); ROWS], vec![1.0; ROWS]);
        let mut powers = logits.clone();
        log_prob::dlogits_rows(cpu, &mut partial, &sums, &mut powers, &tokens, &mut dx);
        let scaled = |z: &f32| f64::from(*z) / f64::from(TEMPERATURE);
        let max = logits[..VOCAB].iter().map(scaled).fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(powers[0], 0.0, "{id}: the token's own");
        for index in sampled(VOCAB).filter(|index| *index != 0) {
            let exact = Exact::of((scaled(&logits[index]) - max).exp());
            // e^d has a few units in the last place, and d is about 20.
            exact.check_within(powers[index], 32.0 * f64::from(f32::EPSILON), &id, index);
        }
        Box::new(move || {
            // Whatever powers hold is finite, and taken for logits again.
            log_prob::dlogits_rows(cpu, &mut partial, &sums, &mut powers, &tokens, &mut dx);
        })
    });
}

/// Operands of log-probabilities behind the LM head, which a GPU computes as one: rows and weights of so many columns.
struct Headed<'c> {
    gpu: Cuda<'c>,
    k: usize,
    x: Vec<f32>,
    weight: Vec<bf16>,
}

impl<'c> Headed<'c> {
    fn new(gpu: Cuda<'c>, k: usize) -> Headed<'c> {
        Headed { gpu, k, x: values(1, ROWS * k), weight: halves(2, VOCAB * k) }
    }

    /// Tokens whose log-probabilities are wanted.
    fn tokens() -> Vec<u32> {
        (0..ROWS as u32).map(|row| 97 * row).collect()
    }

    /// A row's logits, and what those of f32 may be off: as [`Exact::check`] says, of the largest.
    fn logits(&self, row: usize) -> (Vec<f64>, f64) {
        let x: Vec<f64> =
            self.x[row * self.k..][..self.k].iter().map(|x| bf16::from_f32(*x).to_f64()).collect();
        let mut largest = 0.0f64;
        let logit = |w: &[bf16]| {
            let terms = || x.iter().zip(w).map(|(x, w)| x * w.to_f64());
            largest = largest.max(terms().map(f64::abs).sum());
            terms().sum()
        };
        let logits = self.weight.chunks(self.k).map(logit).collect();
        (logits, self.k as f64 * f64::from(f32::EPSILON) / 2.0 * largest)
    }

    /// The forward pass and, if asked for, the backward pass behind it, ready to run; checked.
    fn run(self, backward: bool, id: &str) -> Result<cuda::Run<'c>, Error> {
        let (gpu, k) = (self.gpu, self.k);
        let weight = gpu.upload::<u16>(self.weight.reinterpret_cast())?;
        let (x, tokens) = (gpu.rounded(&self.x)?, gpu.upload(&Self::tokens())?);
        let gradients = gpu.upload(&[1.0, 0.0].repeat(ROWS))?;
        let (mut out, mut dx) = (gpu.uninitialized(2 * ROWS)?, gpu.uninitialized(ROWS * k)?);
        let head = Head { weight: &weight, vocab: VOCAB, k };
        let distributions = gpu.log_prob(&mut out, &x, head, &tokens, TEMPERATURE)?;
        if backward {
            gpu.log_prob_backward(&mut dx, &gradients, &x, head, &tokens, &distributions)?;
            self.check_backward(&gpu.download(&dx)?, id);
        } else {
            self.check_forward(&gpu.download(&out)?, id);
        }
        Ok(Box::new(move || {
            let head = Head { weight: &weight, vocab: VOCAB, k };
            match backward {
                true => {
                    gpu.log_prob_backward(&mut dx, &gradients, &x, head, &tokens, &distributions)
                }
                false => gpu.log_prob(&mut out, &x, head, &tokens, TEMPERATURE).map(drop),
            }
        }))
    }

    fn check_forward(&self, out: &[f32], id: &str) {
        for row in [0, ROWS - 1] {
            let (logits, off) = self.logits(row);
            let [log_sum, _] = naive(&logits, TEMPERATURE);
            let scaled = logits[Self::tokens()[row] as usize] / f64::from(TEMPERATURE);
            let terms = Exact::sum([scaled, -log_sum].into_iter());
            // Of the token's logit and of the others; and the results' own rounding.
            let off = 2.0 * off / f64::from(TEMPERATURE);
            let unit = off / (scaled.abs() + log_sum.abs()) + f64::from(f32::EPSILON);
            terms.check_within(out[2 * row], unit, id, row);
        }
    }

    fn check_backward(&self, dx: &[f32], id: &str) {
        for row in [0, ROWS - 1] {
            let (logits, off) = self.logits(row);
            let [log_sum, _] = naive(&logits, TEMPERATURE);
            // dz = (onehot - p) / T, rounded to bf16; p is off as much as the logits are.
            let dz = |token: usize| {
                let own = f64::from(u8::from(token == Self::tokens()[row] as usize));
                let p = (logits[token] / f64::from(TEMPERATURE) - log_sum).exp();
                (own - p) / f64::from(TEMPERATURE)
            };
            let sums = VOCAB as f64 * f64::from(f32::EPSILON) / 2.0;
            let unit = 2.0 * off / f64::from(TEMPERATURE) + 2f64.powi(-9) + sums;
            for column in sampled(self.k) {
                let w = self.weight[column..].iter().step_by(self.k).enumerate();
                let exact = Exact::sum(w.map(|(token, w)| dz(token) * w.to_f64()));
                exact.check_within(dx[row * self.k + column], unit, id, row * self.k + column);
            }
        }
    }
}

fn with_head(suite: &mut Suite, k: usize) {
    for (prefix, backward, products) in [("", false, 1.0), ("backward-", true, 2.0)] {
        let id = format!("{prefix}r{ROWS}-v{VOCAB}-k{k}");
        // The backward pass computes the logits again.
        let flops = products * 2.0 * (ROWS * VOCAB * k) as f64;
        let work = Work { flops, bf16: true, bytes: products * 2.0 * (VOCAB * k) as f64 };
        suite
            .bench_cuda("log_prob", id.clone(), work, |gpu| Headed::new(gpu, k).run(backward, &id));
    }
}

/// A step of 16 sequences that hold 1024 tokens each. The penalty is taken back in every second run, so that logits
/// stay what they are.
fn penalty(suite: &mut Suite) {
    const TOKENS: usize = 1024;
    let id = format!("r{ROWS}-v{VOCAB}-t{TOKENS}");
    // An id, a logit read and one written.
    let work = Work { bytes: 12.0 * (ROWS * TOKENS) as f64, ..Work::default() };
    let tokens: Vec<u32> = (0..TOKENS).map(|i| (i * 131 % VOCAB) as u32).collect();
    let turns = [1.25f32, 0.8];
    let check = |got: &[f32], logits: &[f32], stride: usize, tokens: &[u32], id: &str| {
        for row in [0, ROWS - 1] {
            for &token in [&tokens[..4], &tokens[TOKENS - 4..]].concat().iter() {
                let z = f64::from(logits[row * stride + token as usize]);
                let exact = if z < 0.0 { z * 1.25 } else { z / 1.25 };
                Exact::of(exact).check(got[row * stride + token as usize], id, row);
            }
            let other = row * stride + 1;
            Exact::of(f64::from(logits[other])).check(got[other], id, other);
        }
    };
    suite.bench("repetition_penalty", id.clone(), work, |cpu| -> Run<'_> {
        let (before, tokens) = (logits(1, ROWS), tokens.clone());
        let mut z = before.clone();
        let mut turn = 0;
        let mut run = move |z: &mut [f32]| {
            let penalized = Penalized { tokens: [&tokens, &[]], penalty: turns[turn % 2] };
            repetition_penalty::apply(cpu, z, VOCAB, &|_| penalized);
            turn += 1;
        };
        run(&mut z);
        let first: Vec<u32> = (0..TOKENS).map(|i| (i * 131 % VOCAB) as u32).collect();
        check(&z, &before, VOCAB, &first, &id);
        Box::new(move || run(&mut z))
    });
    suite.bench_cuda("repetition_penalty", id.clone(), work, |gpu| {
        let stride = padded_vocab(VOCAB);
        let before: Vec<f32> = values(1, ROWS * stride).into_iter().map(|z| 8.0 * z).collect();
        let mut z = gpu.upload(&before)?;
        let [there, back] = turns.map(|penalty| {
            let rows = [Penalized { tokens: [&tokens, &[]], penalty }; ROWS];
            gpu.penalties(&rows, ROWS * TOKENS, VOCAB)
        });
        let turns = [there?, back?];
        gpu.repetition_penalty(&mut z, &turns[0])?;
        check(&gpu.download(&z)?, &before, stride, &tokens, &id);
        let mut turn = 0;
        Ok(Box::new(move || {
            turn += 1;
            gpu.repetition_penalty(&mut z, &turns[turn % 2])
        }))
    });
}

fn draw(suite: &mut Suite, name: &str, params: SamplingParams) {
    let id = format!("{name}-v{VOCAB}");
    let check = move |drawn: Sample, logits: &[f32], id: &str| {
        let temperature = if params.temperature == 0.0 { 1.0 } else { params.temperature };
        let [log_sum, _] = naive(&wide(logits), temperature);
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let logit = logits[drawn.token as usize];
        let log_prob = f64::from(logit) / f64::from(temperature) - log_sum;
        Exact::of(log_prob).check(drawn.log_prob, id, 0);
        assert!(params.temperature > 0.0 || logit == largest, "{id}: {logit}, not {largest}");
    };
    suite.bench("sample", format!("{id}-1t"), reads(1), |cpu| -> Run<'_> {
        let logits = logits(1, 1);
        let mut scratch = Scratch::new(VOCAB);
        let drawn = sample::draw(cpu, &mut scratch, &logits, &params, 0.7);
        check(drawn.expect("finite logits"), &logits, &id);
        let mut uniforms = (0..).map(|i| f64::from(i * 37 % 101) / 101.0);
        Box::new(move || {
            let uniform = uniforms.next().expect("without end");
            let drawn = sample::draw(cpu, &mut scratch, &logits, &params, uniform);
            assert!(drawn.is_ok(), "finite logits");
        })
    });
    suite.bench_cuda("sample", id.clone(), reads(1), |gpu| {
        let logits = logits(1, 1);
        let key = RngKey::new(1, 2, Stream::TOKENS);
        let requests = gpu.sample_requests(&[SampleRequest { params, key, position: 0 }])?;
        let there = gpu.upload(&logits)?;
        let mut out = gpu.uninitialized(4)?;
        gpu.sample(&mut out, &there, &requests, VOCAB)?;
        let [drawn] = gpu.samples(&out)?[..] else { unreachable!("one row") };
        check(drawn.expect("finite logits"), &logits, &id);
        Ok(Box::new(move || gpu.sample(&mut out, &there, &requests, VOCAB)))
    });
}
