//! The gradient of a row's log-probability with respect to x, the input of the LM head. It is summed while blocks of
//! logits pass by.

use super::{Distribution, Sums, VOCAB_BLOCK};
use crate::cpu::lanes::{self, LANES};
use crate::cpu::pool::Disjoint;
use crate::cpu::{
    Cpu,
    profile::{self, Work},
    vector::{Vector, for_each_isa},
};

/// The running sums of one row's gradient, for the parts of the vocabulary so far. With w_v a row of the head and t the
/// token, the gradient is
///
/// ```text
/// d log p_t / dx = (R·w_t − Σ_{v≠t} e_v·w_v) / (S·T)      e_v = e^((z_v − M) / T)
/// ```
///
/// where M is the largest logit so far. R = Σ_{v≠t} e_v is S without the token's own term: the
/// difference S − e_t would lose all of R where the token is nearly certain.
#[derive(Clone, Copy, Debug)]
pub struct GradientSums {
    max: f32,
    others: f64,
}

impl Default for GradientSums {
    fn default() -> GradientSums {
        GradientSums { max: f32::NEG_INFINITY, others: 0.0 }
    }
}

/// Turns the next part of each row into its gradient dlogits, up to sign and scale. `logits [rows, _]` become the part's
/// e_v, and 0 at the token, whose place in the part is `tokens[row]`. `dx [rows, k]`, the sum of e_v·w_v so far, is scaled
/// to the new M. `sums` have [joined](super::join_rows) the part.
pub fn dlogits_rows(
    cpu: &Cpu,
    partials: &mut [GradientSums],
    sums: &[Sums],
    logits: &mut [f32],
    tokens: &[Option<usize>],
    dx: &mut [f32],
) {
    let rows = partials.len();
    let Some(width) = logits.len().checked_div(rows) else { return };
    let k = dx.len() / rows;
    assert!(sums.len() == rows && tokens.len() == rows, "sums and tokens of {rows} rows");
    assert!(logits.len() == rows * width && dx.len() == rows * k, "logits and dx of {rows} rows");
    let work = || Work::each(logits.len(), 6, 8);
    let _span = profile::span("log_prob backward", [rows, width], work);
    let (partials, logits, dx) =
        (Disjoint::new(partials), Disjoint::new(logits), Disjoint::new(dx));
    cpu.for_rows(rows, 4 * width, &|first, count| {
        for row in first..first + count {
            // SAFETY: rows do not overlap.
            let (partial, logits, dx) = unsafe {
                (partials.part(row, 1), logits.part(row * width, width), dx.part(row * k, k))
            };
            let (partial, Sums { inverse, max, .. }) = (&mut partial[0], sums[row]);
            if max == f32::NEG_INFINITY {
                // Nothing is possible so far.
                logits.fill(0.0);
                continue;
            }
            if max != partial.max {
                let scale = lanes::exp((partial.max - max) * inverse);
                dx.iter_mut().for_each(|dx| *dx *= scale);
                partial.others *= f64::from(scale);
                partial.max = max;
            }
            if let Some(token) = tokens[row] {
                logits[token] = f32::NEG_INFINITY;
            }
            for logits in logits.chunks_mut(VOCAB_BLOCK) {
                // SAFETY: `Cpu::with_isa` asserts the instruction set.
                let sum = unsafe { exponentials_on(cpu.isa(), logits, max, inverse) };
                partial.others += f64::from(sum);
            }
        }
    });
}

/// Turns `dx [rows, k]` from Σ e_v·w_v into d log p / dx, for rows of these distributions. `w [rows, k]` holds the
/// head's rows of the tokens.
pub fn finish_dx(
    cpu: &Cpu,
    dx: &mut [f32],
    w: &[f32],
    partials: &[GradientSums],
    distributions: &[Distribution],
) {
    let Some(k) = dx.len().checked_div(partials.len()) else { return };
    assert!(
        dx.len() == w.len() && partials.len() == distributions.len(),
        "w and distributions of {} rows",
        partials.len()
    );
    let _span =
        profile::span("log_prob backward", [partials.len(), k], || Work::each(w.len(), 3, 12));
    let dx = Disjoint::new(dx);
    cpu.for_rows(partials.len(), k, &|first, count| {
        for row in first..first + count {
            // SAFETY: rows do not overlap.
            let dx = unsafe { dx.part(row * k, k) };
            let Distribution { inverse, sum, .. } = distributions[row];
            let (others, scale) = (partials[row].others as f32, (f64::from(inverse) / sum) as f32);
            for (dx, w) in dx.iter_mut().zip(&w[row * k..]) {
                *dx = (others * w - *dx) * scale;
            }
        }
    });
}

for_each_isa! {
    fn exponentials_on(logits: &mut [f32], max: f32, inverse: f32) -> f32 = exponentials
}

/// Turns a block of logits into their e^((z − max) / T), and returns the sum.
#[inline(always)]
fn exponentials<V: Vector>(logits: &mut [f32], max: f32, inverse: f32) -> f32 {
    let (vectors, tail) = logits.as_chunks_mut::<LANES>();
    let mut sum = [0.0; LANES];
    for lanes in vectors {
        for (z, sum) in lanes.iter_mut().zip(&mut sum) {
            *z = lanes::exp((*z - max) * inverse);
            *sum += *z;
        }
    }
    for (z, sum) in tail.iter_mut().zip(&mut sum) {
        *z = lanes::exp((*z - max) * inverse);
        *sum += *z;
    }
    lanes::reduce_sum(&sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::log_prob::{join_rows, row, tests::random_row};

    /// The gradient of row 0 of `logits`, whose parts are given by their ends; `w [vocab, k]`.
    fn gradient(
        logits: &[f32],
        token: usize,
        temperature: f32,
        w: &[f32],
        ends: &[usize],
    ) -> Vec<f32> {
        let (cpu, k) = (Cpu::new(1), w.len() / logits.len());
        let (mut sums, mut partials) = ([Sums::new(temperature)], [GradientSums::default()]);
        let mut dx = vec![0.0; k];
        let mut start = 0;
        for &end in ends {
            let mut part = logits[start..end].to_vec();
            join_rows(&cpu, &mut sums, &part);
            let place = (start..end).contains(&token).then(|| token - start);
            dlogits_rows(&cpu, &mut partials, &sums, &mut part, &[place], &mut dx);
            for (e, w) in part.iter().zip(w[start * k..].chunks(k)) {
                dx.iter_mut().zip(w).for_each(|(dx, w)| *dx += e * w);
            }
            start = end;
        }
        let distribution = row(&cpu, logits, temperature).unwrap();
        finish_dx(&cpu, &mut dx, &w[token * k..][..k], &partials, &[distribution]);
        dx
    }

    #[test]
    fn gradients_agree_with_central_differences() {
        let k = 3;
        for vocab in [1, 5, 33, 2500] {
            let w = random_row(vocab * k, 1.0, 77);
            for temperature in [0.6, 1.0] {
                // In rising and in falling order, so that the maximum moves and does not.
                for rising in [false, true] {
                    let mut logits = random_row(vocab, 2.0, vocab as u64);
                    logits.sort_by(f32::total_cmp);
                    if !rising {
                        logits.reverse();
                    }
                    let token = vocab / 2;
                    let ends = [vocab.div_ceil(3), vocab.div_ceil(2), vocab];
                    let got = gradient(&logits, token, temperature, &w, &ends);
                    for (j, got) in got.into_iter().enumerate() {
                        let log_prob = |step: f64| {
                            let moved =
                                |(z, w): (&f32, &[f32])| f64::from(*z) + step * f64::from(w[j]);
                            let z: Vec<f64> = logits.iter().zip(w.chunks(k)).map(moved).collect();
                            let t = f64::from(temperature);
                            z[token] / t - z.iter().map(|z| (z / t).exp()).sum::<f64>().ln()
                        };
                        let want = (log_prob(1e-4) - log_prob(-1e-4)) / 2e-4;
                        let error = (f64::from(got) - want).abs();
                        assert!(error < 4e-6, "{vocab} {temperature} {j}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_gradient_of_a_token_that_is_nearly_certain_keeps_its_precision() {
        // p of the other token is e^-20, far below the last place of 1.
        let got = gradient(&[0.0, 20.0], 1, 1.0, &[3.0, 1.0], &[2]);
        let want = -2.0 * (-20f64).exp();
        assert!((f64::from(got[0]) / want - 1.0).abs() < 1e-6, "{got:?} {want}");
        // What is impossible has no part in it.
        let logits = [f32::NEG_INFINITY, 0.0, 1.0];
        let got = gradient(&logits, 2, 1.0, &[1e30, 0.0, 1.0], &[1, 2, 3]);
        let want = 1.0 / (1.0 + 1f32.exp());
        assert!((got[0] - want).abs() < 1e-6, "{got:?} {want}");
    }
}
