//! The derivative of a row's log-probability with respect to the input of the LM head, which is summed while
//! blocks of logits pass by.

use super::{Distribution, Sums, VOCAB_BLOCK};
use crate::cpu::lanes::{self, LANES};
use crate::cpu::pool::Disjoint;
use crate::cpu::{
    Cpu,
    profile::{self, Work},
    vector::{Vector, for_each_isa},
};

/// What is known, part by part of the vocabulary, of the slope of a row's log-probability: of its
/// derivative with respect to the head's input x, with `w_v` a row of the head and t the token,
///
/// ```text
/// d log p_t / dx = (R·w_t − Σ_{v≠t} e_v·w_v) / (S·T)      e_v = e^((z_v − M) / T)
/// ```
///
/// where M is the largest logit so far. R = Σ_{v≠t} e_v is S without the token's own term: the
/// difference S − e_t would lose all of R where the token is nearly certain.
#[derive(Clone, Copy, Debug)]
pub struct Slope {
    max: f32,
    others: f64,
}

impl Default for Slope {
    fn default() -> Slope {
        Slope { max: f32::NEG_INFINITY, others: 0.0 }
    }
}

/// The next part of each row for its [`Slope`]. `logits [rows, _]` become the part's e_v, 0 for a
/// token in the part, whose place is `tokens[row]`; `dx [rows, k]`, the sum of e_v·w_v so far, is
/// scaled to the new M. `sums` have [joined](join_rows) the part.
pub fn slope_rows(
    cpu: &Cpu,
    slopes: &mut [Slope],
    sums: &[Sums],
    logits: &mut [f32],
    tokens: &[Option<usize>],
    dx: &mut [f32],
) {
    let rows = slopes.len();
    let Some(width) = logits.len().checked_div(rows) else { return };
    let k = dx.len() / rows;
    assert!(sums.len() == rows && tokens.len() == rows, "{rows} slopes");
    assert!(logits.len() == rows * width && dx.len() == rows * k, "logits and dx of {rows} rows");
    let work = || Work::each(logits.len(), 6, 8);
    let _span = profile::span("log_prob backward", [rows, width], work);
    let (slopes, logits, dx) = (Disjoint::new(slopes), Disjoint::new(logits), Disjoint::new(dx));
    cpu.for_rows(rows, 4 * width, &|first, count| {
        for row in first..first + count {
            // SAFETY: rows do not overlap.
            let (slope, logits, dx) = unsafe {
                (slopes.part(row, 1), logits.part(row * width, width), dx.part(row * k, k))
            };
            let (slope, Sums { inverse, max, .. }) = (&mut slope[0], sums[row]);
            if max == f32::NEG_INFINITY {
                // Nothing is possible so far.
                logits.fill(0.0);
                continue;
            }
            if max != slope.max {
                let scale = lanes::exp((slope.max - max) * inverse);
                dx.iter_mut().for_each(|dx| *dx *= scale);
                slope.others *= f64::from(scale);
                slope.max = max;
            }
            if let Some(token) = tokens[row] {
                logits[token] = f32::NEG_INFINITY;
            }
            for logits in logits.chunks_mut(VOCAB_BLOCK) {
                // SAFETY: `Cpu::with_isa` asserts the instruction set.
                let sum = unsafe { exponentials_on(cpu.isa(), logits, max, inverse) };
                slope.others += f64::from(sum);
            }
        }
    });
}

/// Finishes the slopes of rows whose distributions are these: `dx [rows, k]` from Σ e_v·w_v to
/// d log p / dx. `w [rows, k]` holds the head's rows of the tokens.
pub fn finish_slopes(
    cpu: &Cpu,
    dx: &mut [f32],
    w: &[f32],
    slopes: &[Slope],
    distributions: &[Distribution],
) {
    let Some(k) = dx.len().checked_div(slopes.len()) else { return };
    assert!(dx.len() == w.len() && slopes.len() == distributions.len(), "{} slopes", slopes.len());
    let _span =
        profile::span("log_prob backward", [slopes.len(), k], || Work::each(w.len(), 3, 12));
    let dx = Disjoint::new(dx);
    cpu.for_rows(slopes.len(), k, &|first, count| {
        for row in first..first + count {
            // SAFETY: rows do not overlap.
            let dx = unsafe { dx.part(row * k, k) };
            let Distribution { inverse, sum, .. } = distributions[row];
            let (others, scale) = (slopes[row].others as f32, (f64::from(inverse) / sum) as f32);
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

    /// The slope of row 0 of `logits`, whose parts are given by their ends; `w [vocab, k]`.
    fn slope(
        logits: &[f32],
        token: usize,
        temperature: f32,
        w: &[f32],
        ends: &[usize],
    ) -> Vec<f32> {
        let (cpu, k) = (Cpu::new(1), w.len() / logits.len());
        let (mut sums, mut slopes) = ([Sums::new(temperature)], [Slope::default()]);
        let mut dx = vec![0.0; k];
        let mut start = 0;
        for &end in ends {
            let mut part = logits[start..end].to_vec();
            join_rows(&cpu, &mut sums, &part);
            let place = (start..end).contains(&token).then(|| token - start);
            slope_rows(&cpu, &mut slopes, &sums, &mut part, &[place], &mut dx);
            for (e, w) in part.iter().zip(w[start * k..].chunks(k)) {
                dx.iter_mut().zip(w).for_each(|(dx, w)| *dx += e * w);
            }
            start = end;
        }
        let distribution = row(&cpu, logits, temperature).unwrap();
        finish_slopes(&cpu, &mut dx, &w[token * k..][..k], &slopes, &[distribution]);
        dx
    }

    #[test]
    fn slopes_agree_with_central_differences() {
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
                    let got = slope(&logits, token, temperature, &w, &ends);
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
    fn the_slope_of_a_token_that_is_nearly_certain_keeps_its_precision() {
        // p of the other token is e^-20, far below the last place of 1.
        let got = slope(&[0.0, 20.0], 1, 1.0, &[3.0, 1.0], &[2]);
        let want = -2.0 * (-20f64).exp();
        assert!((f64::from(got[0]) / want - 1.0).abs() < 1e-6, "{got:?} {want}");
        // What is impossible has no part in it.
        let logits = [f32::NEG_INFINITY, 0.0, 1.0];
        let got = slope(&logits, 2, 1.0, &[1e30, 0.0, 1.0], &[1, 2, 3]);
        let want = 1.0 / (1.0 + 1f32.exp());
        assert!((got[0] - want).abs() < 1e-6, "{got:?} {want}");
    }
}
