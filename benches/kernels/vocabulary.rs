//! Kernels over rows of logits: log-probabilities, their gradients, sampling.

use kernels::cpu::{
    log_prob::{self, Slope, Sums},
    sample::{self, SamplingParams, Scratch},
};

use super::{
    Run, Suite, VOCAB, Work,
    naive::{Exact, sampled, values},
};

/// Rows that the fused LM head takes at a time.
const ROWS: usize = 16;

const TEMPERATURE: f32 = 0.9;

pub(crate) fn bench(suite: &mut Suite) {
    forward(suite);
    join(suite);
    backward(suite);
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
fn naive(logits: &[f32], temperature: f32) -> [f64; 2] {
    let scaled = || logits.iter().map(|z| f64::from(*z) / f64::from(temperature));
    let max = scaled().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scaled().map(|z| (z - max).exp()).sum();
    let weighted: f64 = scaled().map(|z| (z - max) * (z - max).exp()).sum();
    [max + sum.ln(), sum.ln() - weighted / sum]
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
        let level = cpu.level();
        let [one, other] = [std::slice::from_mut(log_prob), std::slice::from_mut(entropy)];
        log_prob::forward(level, one, other, &logits, &[5], TEMPERATURE).expect("finite logits");
        let [log_sum, entropy] = naive(&logits, TEMPERATURE);
        let exact = f64::from(logits[5]) / f64::from(TEMPERATURE) - log_sum;
        Exact::of(exact).check(out[0], &id, 0);
        Exact::of(entropy).check(out[1], &id, 1);
        Box::new(move || {
            let [one, other] = &mut out;
            let [one, other] = [std::slice::from_mut(one), std::slice::from_mut(other)];
            let done = log_prob::forward(level, one, other, &logits, &[5], TEMPERATURE);
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
            let [log_sum, entropy] = naive(&logits[row * VOCAB..][..VOCAB], TEMPERATURE);
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
        let (mut slopes, mut dx) = (vec![Slope::default(); ROWS], vec![1.0; ROWS]);
        let mut powers = logits.clone();
        log_prob::slope_rows(cpu, &mut slopes, &sums, &mut powers, &tokens, &mut dx);
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
            log_prob::slope_rows(cpu, &mut slopes, &sums, &mut powers, &tokens, &mut dx);
        })
    });
}

fn draw(suite: &mut Suite, name: &str, params: SamplingParams) {
    let id = format!("{name}-v{VOCAB}-1t");
    suite.bench("sample", id.clone(), reads(1), move |cpu| -> Run<'_> {
        let logits = logits(1, 1);
        let mut scratch = Scratch::new(VOCAB);
        let temperature = if params.temperature == 0.0 { 1.0 } else { params.temperature };
        let [log_sum, _] = naive(&logits, temperature);
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let drawn = sample::draw(cpu.level(), &mut scratch, &logits, &params, 0.7);
        let drawn = drawn.expect("finite logits");
        let logit = logits[drawn.token as usize];
        let log_prob = f64::from(logit) / f64::from(temperature) - log_sum;
        Exact::of(log_prob).check(drawn.log_prob, &id, 0);
        assert!(params.temperature > 0.0 || logit == largest, "{id}: {logit}, not {largest}");
        let mut uniforms = (0..).map(|i| f64::from(i * 37 % 101) / 101.0);
        Box::new(move || {
            let uniform = uniforms.next().expect("without end");
            let drawn = sample::draw(cpu.level(), &mut scratch, &logits, &params, uniform);
            assert!(drawn.is_ok(), "finite logits");
        })
    });
}
