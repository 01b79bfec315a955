//! Losses, derivatives and advantages against PyTorch and TRL.

use std::{collections::BTreeMap, path::Path};

use safetensors::SafeTensors;
use serde_json::Value;

use super::{
    advantages::{self, ScaleRewards, Weighted},
    loss::{
        LossInputs, LossMask, LossTerms, LossType, MaskedCompletion, Sums, completion_loss,
        token_weights,
    },
};
use crate::shared::shared;

/// The tensors of a file, flat; ids and masks of i64 as numbers.
fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |view: safetensors::tensor::TensorView| -> Vec<f32> {
        match view.dtype() {
            safetensors::Dtype::F32 => {
                view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
            safetensors::Dtype::I64 => {
                let ids = view.data().as_chunks::<8>().0.iter();
                ids.map(|b| i64::from_le_bytes(*b) as f32).collect()
            }
            other => panic!("{other:?} in {}", path.display()),
        }
    };
    file.iter().map(|(name, view)| (name.to_string(), values(view))).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn kind(name: &str) -> LossType {
    serde_json::from_value(name.into()).unwrap()
}

/// Rows of a right-padded matrix without their padding.
fn rows<'a>(matrix: &'a [f32], lens: &[usize]) -> Vec<&'a [f32]> {
    let width = matrix.len() / lens.len();
    lens.iter().zip(matrix.chunks(width)).map(|(len, row)| &row[..*len]).collect()
}

fn row_lens(mask: &[f32], rows: usize) -> Vec<usize> {
    mask.chunks(mask.len() / rows).map(|row| row.iter().sum::<f32>() as usize).collect()
}

fn weights(kind: LossType, max_len: usize, parts: &[usize], lens: &[usize]) -> Vec<f64> {
    let counted = lens.iter().map(|&tokens| MaskedCompletion { tokens, part: LossMask::Full });
    token_weights(kind, max_len, parts, &counted.collect::<Vec<_>>())
}

/// One slice per completion.
type Rows<'a> = &'a [&'a [f32]];

/// The sums over all completions, and each one's derivative by its log-probabilities: of the policy, of the one that
/// sampled, of the reference.
fn losses(
    settings: &LossTerms,
    (new, old, reference): (Rows, Option<Rows>, Rows),
    advantages: &[f32],
    weights: &[f64],
) -> (Sums, Vec<Vec<f32>>) {
    let mut sums = Sums::default();
    let derivative = |i: usize| {
        let completion = LossInputs {
            log_probs: new[i],
            old: old.map(|old| old[i]),
            reference: Some(reference[i]),
            advantage: advantages[i],
            scores: [0; 2],
        };
        let mut d = vec![f32::NAN; new[i].len()];
        sums.add(&completion_loss(settings, &completion, weights[i], &mut d));
        d
    };
    let derivatives = (0..new.len()).map(derivative).collect();
    (sums, derivatives)
}

#[test]
fn losses_and_derivatives_are_pytorchs() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let tensors = tensors(&golden.join("learning.safetensors"));
    let info = &json(&golden.join("learning.json"))["loss"];
    let numbers = |key: &str| -> Vec<usize> {
        info[key].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
    };
    let (parts, lens) = (numbers("parts"), numbers("tokens"));
    let max_len = info["max_completion_length"].as_u64().unwrap() as usize;
    let [new, old, reference] = ["new", "old", "ref"].map(|name| rows(&tensors[name], &lens));
    let cases = info["cases"].as_object().unwrap();
    assert_eq!(cases.len(), 4 * 3 * 2);
    let mut clipped = [0, 0];
    for (case, want) in cases {
        let [kind_name, kl, policy] = case.split('.').collect::<Vec<_>>()[..] else { panic!() };
        let settings = LossTerms {
            clip_low: info["clip_low"].as_f64().unwrap(),
            clip_high: info["clip_high"].as_f64().unwrap(),
            beta: if kl == "none" { 0.0 } else { info["beta"].as_f64().unwrap() },
            bias_corrected_kl: kl == "corrected",
            reasoning_weight: 1.0,
        };
        let weights = weights(kind(kind_name), max_len, &parts, &lens);
        let d_new = rows(&tensors[&format!("{case}.d_new")], &lens);
        let old = (policy == "off").then_some(&old[..]);
        let (sums, d) =
            losses(&settings, (&new, old, &reference), &tensors["advantages"], &weights);
        for (i, d) in d.iter().enumerate() {
            for (t, (got, want)) in d.iter().zip(d_new[i]).enumerate() {
                // Both are f64 rounded to f32 once.
                let bound = want.abs() * f32::EPSILON + 1e-12;
                assert!((got - want).abs() <= bound, "{case} {i} {t}: {got} for {want}");
            }
        }
        let want = want.as_f64().unwrap();
        assert!((sums.loss - want).abs() < 1e-12, "{case}: {} for {want}", sums.loss);
        clipped[0] += sums.clipped_low;
        clipped[1] += sums.clipped_high;
    }
    assert!(clipped.iter().all(|n| *n > 0), "the case clips on both sides: {clipped:?}");
}

#[test]
fn the_shared_dumps_losses_are_pytorchs() {
    for case in ["tied-s0", "untied-s0"] {
        let Some(directory) = shared(&format!("golden/{case}")) else { continue };
        let tensors = tensors(&directory.join("grpo.safetensors"));
        let info = json(&directory.join("case.json"));
        let advantages = &tensors["advantages"];
        let lens = row_lens(&tensors["mask"], advantages.len());
        let [new, old, reference] =
            ["cur_logps", "old_logps", "ref_logps"].map(|name| rows(&tensors[name], &lens));
        let parameters = &info["grpo_params"];
        let epsilon = parameters["epsilon"].as_f64().unwrap();
        let max_len = parameters["max_completion_length_for_dr_grpo"].as_u64().unwrap() as usize;
        let cases = info["grpo"].as_object().unwrap();
        assert_eq!(cases.len(), 12, "{case}");
        for (name, golden) in cases {
            let (kind_name, rest) = name.split_once(".beta").unwrap();
            let (beta, policy) = rest.rsplit_once('.').unwrap();
            let settings = LossTerms {
                clip_low: epsilon,
                clip_high: epsilon,
                beta: beta.parse().unwrap(),
                bias_corrected_kl: false,
                reasoning_weight: 1.0,
            };
            let mut kinds = vec![kind(kind_name)];
            // One part: every token of it is every token of the step.
            kinds.extend((kind_name == "bnpo").then_some(LossType::Dapo));
            for kind in kinds {
                let weights = weights(kind, max_len, &[lens.len()], &lens);
                let old = (policy == "off").then_some(&old[..]);
                let (sums, _) = losses(&settings, (&new, old, &reference), advantages, &weights);
                let want = golden["loss"].as_f64().unwrap();
                // The dump is f32, of about thirty terms of size 1.
                assert!((sums.loss - want).abs() < 1e-6, "{name}: {} for {want}", sums.loss);
            }
        }
    }
}

#[test]
fn advantages_and_losses_are_trls() {
    for (case, kind, parts) in [
        ("trl-grpo-beta0.04-T1.0-acc1-it1-s0-eos60", LossType::Grpo, 1),
        ("trl-dr_grpo-beta0.0-T1.0-acc2-it1-s0-eos60", LossType::DrGrpo, 2),
        ("trl-bnpo-beta0.04-T0.9-acc1-it1-s0-eos60", LossType::Bnpo, 1),
    ] {
        let Some(directory) = shared(&format!("golden/{case}")) else { continue };
        let tensors = tensors(&directory.join("step.safetensors"));
        let info = json(&directory.join("case.json"));
        let rewards: Vec<f64> = info["rewards_in_generation_order"][0]
            .as_array()
            .unwrap()
            .iter()
            .map(|reward| reward.as_f64().unwrap())
            .collect();
        let settings =
            advantages::AdvantageSettings { scale: ScaleRewards::Group, per_reward: false };
        let weighted = [Weighted { weight: 1.0, values: &rewards }];
        let ours = advantages::advantages(settings, &weighted, 4);
        let log = &info["log"][0];
        for (got, name) in [
            (ours.reward_mean, "reward"),
            (ours.reward_std, "reward_std"),
            (ours.zero_variance_share, "frac_reward_zero_std"),
        ] {
            let want = log[name].as_f64().unwrap();
            assert!((got - want).abs() < 1e-6, "{case}: {name} {got} for {want}");
        }
        // TRL shuffles what it generated before it cuts micro-batches.
        let dumped = |key: &str| -> Vec<Vec<f32>> {
            (0..parts).map(|part| tensors[&format!("micro{part}.{key}")].clone()).collect()
        };
        let theirs = dumped("advantages");
        let sorted = |mut values: Vec<f32>| {
            values.sort_by(f32::total_cmp);
            values
        };
        for (got, want) in sorted(ours.values).iter().zip(sorted(theirs.concat())) {
            assert!((got - want).abs() < 2e-6, "{case}: advantage {got} for {want}");
        }
        let lens: Vec<usize> =
            dumped("completion_mask").iter().flat_map(|mask| row_lens(mask, 4)).collect();
        let max_len = info["max_completion_length"].as_u64().unwrap() as usize;
        let weights = weights(kind, max_len, &vec![4; parts], &lens);
        let beta = info["args"]["beta"].as_f64().unwrap();
        if beta != 0.0 {
            // Its KL needs the policy's log-probs, which only a forward pass gives.
            continue;
        }
        // On policy and without KL, log-probs do not matter.
        let losses = dumped("loss").concat();
        for (part, want) in losses.iter().enumerate() {
            let mut sums = Sums::default();
            for (row, &advantage) in theirs[part].iter().enumerate() {
                let i = 4 * part + row;
                let log_probs = vec![-1.5; lens[i]];
                let completion = LossInputs {
                    log_probs: &log_probs,
                    old: None,
                    reference: None,
                    advantage,
                    scores: [0; 2],
                };
                let mut d = vec![0.0; lens[i]];
                sums.add(&completion_loss(&LossTerms::default(), &completion, weights[i], &mut d));
            }
            let want = f64::from(*want);
            assert!((sums.loss - want).abs() < 1e-7, "{case} {part}: {} for {want}", sums.loss);
        }
    }
}
