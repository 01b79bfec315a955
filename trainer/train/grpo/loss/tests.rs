//! The loss by hand and against central differences.

use super::*;

const CLIP: LossTerms = LossTerms {
    clip_low: 0.2,
    clip_high: 0.3,
    beta: 0.0,
    bias_corrected_kl: false,
    reasoning_weight: 1.0,
};

fn near(got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "{got} for {want}");
}

fn evaluate(settings: &LossTerms, completion: &LossInputs, weight: f64) -> (Sums, Vec<f32>) {
    let mut d = vec![f32::NAN; completion.log_probs.len()];
    let sums = completion_loss(settings, completion, weight, &mut d);
    (sums, d)
}

#[test]
fn on_policy_the_loss_is_minus_the_advantage() {
    let on = |advantage| LossInputs {
        log_probs: &[-1.0, -20.0, -0.1],
        old: None,
        reference: None,
        advantage,
        scores: [0; 2],
    };
    for advantage in [0.7, -1.5, 0.0] {
        let (sums, d) = evaluate(&CLIP, &on(advantage), 0.25);
        near(sums.loss, -0.75 * f64::from(advantage));
        d.iter().for_each(|d| near(f64::from(*d), -0.25 * f64::from(advantage)));
        assert_eq!((sums.tokens, sums.kl, sums.clipped_low, sums.clipped_high), (3, None, 0, 0));
    }
}

/// Two tokens of reasoning, one of the scores and one after them; the KL term counts in full everywhere.
#[test]
fn the_advantage_of_reasoning_counts_as_its_weight_says() {
    let completion = LossInputs {
        log_probs: &[-1.0, -2.0, -3.0, -1.0],
        old: None,
        reference: Some(&[-1.0, -1.5, -3.0, -1.0]),
        advantage: 2.0,
        scores: [2, 3],
    };
    let settings = LossTerms { beta: 0.1, reasoning_weight: 0.25, ..CLIP };
    let (sums, d) = evaluate(&settings, &completion, 0.5);
    let growth = 0.5f64.exp();
    let kl = growth - 0.5 - 1.0;
    near(sums.loss, 0.5 * (-0.5 - 0.5 - 2.0 - 0.5 + 0.1 * kl));
    let want = [-0.25, 0.5 * (-0.5 + 0.1 * (1.0 - growth)), -1.0, -0.25];
    d.iter().zip(want).for_each(|(d, want)| near(f64::from(*d), f64::from(want as f32)));
}

#[test]
fn the_ratio_is_clipped_where_that_makes_it_worse() {
    // Ratios 1/2, 1, 2 against the range [0.8, 1.3].
    let old = [1.0, 0.0, -1.0].map(|sign| -1.0 + sign * std::f32::consts::LN_2);
    let off = |advantage| LossInputs {
        log_probs: &[-1.0, -1.0, -1.0],
        old: Some(&old),
        reference: None,
        advantage,
        scores: [0; 2],
    };
    let (sums, d) = evaluate(&CLIP, &off(2.0), 1.0);
    // A > 0: r A = 1, 2, 4; only the last is above its clipped 2.6.
    near(sums.loss, -(1.0 + 2.0 + 2.6));
    assert_eq!(d.iter().map(|d| d.round()).collect::<Vec<_>>(), [-1.0, -2.0, 0.0]);
    assert_eq!((sums.clipped_low, sums.clipped_high), (0, 1));
    let (sums, d) = evaluate(&CLIP, &off(-2.0), 1.0);
    // A < 0: r A = -1, -2, -4 against -1.6, -2, -2.6: the minimum is clipped at the low end only.
    near(sums.loss, 1.6 + 2.0 + 4.0);
    assert_eq!(d.iter().map(|d| d.round()).collect::<Vec<_>>(), [0.0, 2.0, 4.0]);
    assert_eq!((sums.clipped_low, sums.clipped_high), (1, 0));
    let report = sums.report();
    assert_eq!((report.low_mean, report.high_mean), (1.0 / 3.0, 0.0));
    assert_eq!(report.region_mean, 1.0 / 3.0);
    let (sums, d) = evaluate(&CLIP, &off(0.0), 1.0);
    assert_eq!((sums.loss, sums.clipped_low + sums.clipped_high), (0.0, 0));
    assert!(d.iter().all(|d| *d == 0.0));
}

#[test]
fn the_divergence_by_hand() {
    // y - x = ln 2: exp is 2, k3 = 2 - ln 2 - 1, its derivative 1 - 2.
    let ln2 = std::f64::consts::LN_2;
    let of = |old| LossInputs {
        log_probs: &[-2.0],
        old,
        reference: Some(&[-2.0 + std::f32::consts::LN_2]),
        advantage: 0.0,
        scores: [0; 2],
    };
    let settings = LossTerms { beta: 0.5, ..CLIP };
    let (sums, d) = evaluate(&settings, &of(None), 1.0);
    near(sums.loss, 0.5 * (1.0 - ln2));
    near(sums.report().kl.unwrap(), 1.0 - ln2);
    near(f64::from(d[0]), -0.5);
    // Corrected, on policy: the value stays, the derivative gains k3.
    let corrected = LossTerms { bias_corrected_kl: true, ..settings };
    let (sums, d) = evaluate(&corrected, &of(None), 1.0);
    near(sums.loss, 0.5 * (1.0 - ln2));
    near(f64::from(d[0]), 0.5 * (1.0 - ln2 - 1.0));
    // Off policy at ratio 1/2 everything is halved.
    let old = [-2.0 + std::f32::consts::LN_2];
    let (sums, d) = evaluate(&corrected, &of(Some(&old)), 1.0);
    near(sums.loss, 0.25 * (1.0 - ln2));
    near(f64::from(d[0]), 0.25 * -ln2);
    // β = 0 measures only.
    let (sums, d) = evaluate(&CLIP, &of(None), 1.0);
    assert_eq!((sums.loss, d[0]), (0.0, 0.0));
    near(sums.kl.unwrap(), 1.0 - ln2);
}

#[test]
fn a_small_divergence_is_not_lost_and_equal_policies_have_none() {
    let settings = LossTerms { beta: 1.0, ..CLIP };
    let of = |reference| LossInputs {
        log_probs: &[-0.5],
        old: None,
        reference: Some(reference),
        advantage: 0.0,
        scores: [0; 2],
    };
    let (sums, d) = evaluate(&settings, &of(&[-0.5]), 1.0);
    assert_eq!((sums.loss, sums.kl, d[0].abs()), (0.0, Some(0.0), 0.0));
    // One unit in the last place apart: k3 is half the square, 1.8e-15.
    let apart = (-0.5f32).next_down();
    let difference = f64::from(apart) + 0.5;
    let (sums, _) = evaluate(&settings, &of(&[apart]), 1.0);
    let want = difference * difference / 2.0;
    assert!((sums.loss / want - 1.0).abs() < 0.1, "{} for {want}", sums.loss);
}

/// The policy with the gradient of exp(x - stop_gradient(x)) is off policy with old = x.
#[test]
fn derivatives_are_central_differences() {
    let x: [f32; 6] = [-0.3, -1.7, -0.02, -4.0, -2.2, -0.9];
    // Ratios 0.6 to 1.6, none within 0.05 of a bound of the range.
    let shift = [-0.51f32, -0.1, 0.0, 0.12, 0.4, 0.47];
    let old: Vec<f32> = x.iter().zip(shift).map(|(x, shift)| x - shift).collect();
    let reference: Vec<f32> =
        x.iter().zip([0.3, -0.4, 0.0, 1.1, -0.9, 0.2]).map(|(x, d)| x + d).collect();
    for advantage in [1.3f32, -0.8, 0.0] {
        for beta in [0.0, 0.04, 1.0] {
            for bias_corrected_kl in [false, true] {
                let settings = LossTerms { beta, bias_corrected_kl, ..CLIP };
                for own in [false, true] {
                    let old = if own { &x[..] } else { &old };
                    let completion = LossInputs {
                        log_probs: &x,
                        old: Some(old),
                        reference: Some(&reference),
                        advantage,
                        scores: [0; 2],
                    };
                    let (sums, d) = evaluate(&settings, &completion, 0.37);
                    for t in 0..x.len() {
                        // The largest power of two that f32 adds exactly and that is small.
                        let h = 2.0f32.powi(-12);
                        let at = |h: f32| {
                            let mut moved = x;
                            moved[t] += h;
                            let moved = LossInputs { log_probs: &moved, ..completion };
                            (evaluate(&settings, &moved, 0.37).0.loss, f64::from(x[t] + h))
                        };
                        let ((up, x_up), (down, x_down)) = (at(h), at(-h));
                        let slope = (up - down) / (x_up - x_down);
                        // The third derivative, about 3, times h²/6.
                        let error = (slope - f64::from(d[t])).abs();
                        assert!(error < 2e-7, "token {t}: {} for {slope}, {settings:?}", d[t]);
                    }
                    if own {
                        let on = LossInputs { old: None, ..completion };
                        assert_eq!(evaluate(&settings, &on, 0.37), (sums, d));
                    }
                }
            }
        }
    }
}

fn counted(tokens: &[usize]) -> Vec<MaskedCompletion> {
    tokens.iter().map(|&tokens| MaskedCompletion { tokens, part: LossMask::Full }).collect()
}

#[test]
fn weights_by_hand() {
    let step = counted(&[2, 6, 4, 1]);
    let weights = |kind, parts: &[usize]| token_weights(kind, 10, parts, &step);
    let check = |kind, parts: &[usize], want: [f64; 4]| {
        let got = weights(kind, parts);
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-15), "{kind:?}: {got:?}");
    };
    check(LossType::Grpo, &[4], [8.0, 24.0, 16.0, 4.0].map(f64::recip));
    check(LossType::Grpo, &[2, 2], [8.0, 24.0, 16.0, 4.0].map(f64::recip));
    check(LossType::Grpo, &[1, 3], [4.0, 36.0, 24.0, 6.0].map(f64::recip));
    check(LossType::Bnpo, &[4], [1.0 / 13.0; 4]);
    check(LossType::Bnpo, &[2, 2], [16.0, 16.0, 10.0, 10.0].map(f64::recip));
    check(LossType::Dapo, &[4], [1.0 / 13.0; 4]);
    check(LossType::Dapo, &[2, 2], [1.0 / 13.0; 4]);
    check(LossType::DrGrpo, &[2, 2], [1.0 / 40.0; 4]);
    check(LossType::DrGrpo, &[1, 3], [20.0, 60.0, 60.0, 60.0].map(f64::recip));
}

#[test]
fn who_takes_no_part_has_no_weight() {
    let mut step = counted(&[2, 6, 4, 1]);
    step[1].part = LossMask::NoLoss;
    step[2].part = LossMask::Masked;
    let weights = |kind| token_weights(kind, 10, &[4], &step);
    // The silent one's tokens count, the masked one's do not; both are completions.
    assert_eq!(weights(LossType::Grpo), [1.0 / 8.0, 0.0, 0.0, 1.0 / 4.0]);
    assert_eq!(weights(LossType::Bnpo), [1.0 / 9.0, 0.0, 0.0, 1.0 / 9.0]);
    assert_eq!(weights(LossType::Dapo), [1.0 / 9.0, 0.0, 0.0, 1.0 / 9.0]);
    assert_eq!(weights(LossType::DrGrpo), [1.0 / 40.0, 0.0, 0.0, 1.0 / 40.0]);
    // Nobody left, and nothing generated: no division by 0.
    step.iter_mut().for_each(|completion| completion.part = LossMask::Masked);
    assert_eq!(token_weights(LossType::Dapo, 10, &[4], &step), [0.0; 4]);
    for kind in [LossType::Grpo, LossType::Bnpo, LossType::Dapo, LossType::DrGrpo] {
        assert!(token_weights(kind, 10, &[2], &counted(&[0, 0])).iter().all(|w| w.is_finite()));
        assert!(token_weights(kind, 10, &[], &[]).is_empty());
    }
}

#[test]
fn at_weight_zero_nothing_gets_through() {
    let completion = LossInputs {
        log_probs: &[-1.0, f32::NEG_INFINITY],
        old: Some(&[-1.0, -2.0]),
        reference: Some(&[-900.0, 0.0]),
        advantage: 1.0,
        scores: [0; 2],
    };
    let settings = LossTerms { beta: 0.1, ..CLIP };
    let (sums, d) = evaluate(&settings, &completion, 0.0);
    assert_eq!((sums.loss, d), (0.0, vec![0.0, 0.0]));
    // With a weight, what is not finite shows.
    let (sums, d) = evaluate(&settings, &completion, 1.0);
    assert!(!sums.loss.is_finite() && !d[1].is_finite(), "{sums:?} {d:?}");
    // Without β, an infinite reference does not reach the loss.
    let completion = LossInputs { log_probs: &[-1.0, -1.0], ..completion };
    let completion = LossInputs { reference: Some(&[f32::NEG_INFINITY, 0.0]), ..completion };
    let (sums, d) = evaluate(&CLIP, &completion, 1.0);
    assert!(sums.loss.is_finite() && d.iter().all(|d| d.is_finite()));
}

#[test]
fn sums_are_the_steps_in_whatever_batches() {
    let old = [-1.4f32, -0.6];
    let completions = [1.0f32, -1.0, 0.5].map(|advantage| LossInputs {
        log_probs: &[-1.0, -1.0],
        old: Some(&old),
        reference: Some(&[-1.1, -0.7]),
        advantage,
        scores: [0; 2],
    });
    let settings = LossTerms { beta: 0.04, ..CLIP };
    let mut all = Sums::default();
    for completion in &completions {
        all.add(&evaluate(&settings, completion, 0.5).0);
    }
    // Ratios e^0.4 = 1.49 and e^-0.4 = 0.67: of two positive advantages the first token is clipped
    // above, of the negative one the second below.
    assert_eq!((all.tokens, all.clipped_high, all.clipped_low), (6, 2, 1));
    let report = all.report();
    assert_eq!((report.high_max, report.low_min), (0.5, 0.0));
    assert_eq!(
        (report.high_mean, report.low_mean, report.region_mean),
        (2.0 / 6.0, 1.0 / 6.0, 0.5)
    );
    let k3 = |d: f64| d.exp() - d - 1.0;
    near(report.kl.unwrap(), (k3(-0.1) + k3(0.3)) / 2.0);
    let nothing = Sums::default().report();
    assert_eq!((nothing.loss, nothing.kl, nothing.region_mean), (0.0, None, 0.0));
}

#[test]
#[should_panic(expected = "beta is 0.1 and there are no reference log-probs")]
fn a_reference_is_asked_for() {
    let completion = LossInputs {
        log_probs: &[-1.0],
        old: None,
        reference: None,
        advantage: 1.0,
        scores: [0; 2],
    };
    evaluate(&LossTerms { beta: 0.1, ..CLIP }, &completion, 1.0);
}
