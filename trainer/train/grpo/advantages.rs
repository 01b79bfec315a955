//! From rewards to advantages, group by group.
//!
//! A group is the G completions of one prompt, G consecutive entries. With R the weighted sum of a
//! completion's rewards, mean and std (unbiased, over n - 1) of the group or of the whole step:
//!
//! ```text
//! scale = group   A = (R - mean_group) / (std_group + 1e-4)
//! scale = batch   A = (R - mean_group) / (std_batch + 1e-4)      (arXiv 2508.08221)
//! scale = none    A =  R - mean_group                            (Dr. GRPO, arXiv 2503.20783)
//! ```
//!
//! With `per_reward`, each reward k of weight c_k is standardized in its group before it is summed, so that a
//! reward of small spread pulls as hard as its weight says, not as its size (TRL's `normalize_then_sum`;
//! GDPO):
//!
//! ```text
//! S = Σ_k c_k (r_k - mean_group,k) / (std_group,k + 1e-4)
//! scale = group, none   A = S
//! scale = batch         A = (S - mean_batch) / (std_batch + 1e-4)
//! ```
//!
//! A group in which every completion has the same R (with `per_reward`: the same of each reward) has no
//! variance: its advantages are exactly 0 and it is flagged. The trainer leaves flagged groups out of the
//! loss ([`super::loss::LossMask::NoLoss`]) unless the configuration wants their KL term.

use serde::{Deserialize, Serialize};

/// Added to a standard deviation before it divides, as in TRL.
const EPSILON: f64 = 1e-4;

/// A standard deviation up to this is none: rounding of equal sums (TRL: `isclose` to 0).
const ZERO: f64 = 1e-8;

/// The completions whose standard deviation divides advantages: TRL's `scale_rewards`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// The completions of a group.
    #[default]
    Group,
    /// All completions of the step.
    Batch,
    /// Nothing: differences are taken as they are.
    None,
}

/// How advantages are made of rewards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AdvantageSettings {
    /// The standard deviation that divides.
    pub scale: ScaleRewards,
    /// Whether each reward is standardized in its group before the sum.
    pub per_reward: bool,
}

/// One reward of every completion of the step, and its weight in the sum.
#[derive(Clone, Copy, Debug)]
pub struct Weighted<'a> {
    /// The weight c_k.
    pub weight: f64,
    /// r_k, one value per completion.
    pub values: &'a [f64],
}

/// The advantages of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Advantages {
    /// A, one value per completion.
    pub values: Vec<f32>,
    /// R, one value per completion: the weighted sum of the rewards as they are.
    pub rewards: Vec<f64>,
    /// For each group, whether its rewards have no variance.
    pub zero_variance: Vec<bool>,
    /// `reward`: the mean of R over the step.
    pub reward_mean: f64,
    /// `reward_std`: the standard deviation of R over the step, as TRL 1.16 logs it (0.15.2 logged the
    /// mean of the groups' own).
    pub reward_std: f64,
    /// `frac_reward_zero_std`: the share of groups without variance.
    pub zero_variance_share: f64,
}

/// Advantages of completions in groups of `group_size`.
///
/// # Panics
/// If there is no reward, rewards differ in length, or that is not whole groups.
pub fn advantages(
    settings: AdvantageSettings,
    rewards: &[Weighted<'_>],
    group_size: usize,
) -> Advantages {
    let n = rewards.first().expect("at least one reward").values.len();
    assert!(rewards.iter().all(|reward| reward.values.len() == n), "rewards differ in length");
    assert!(group_size > 0 && n.is_multiple_of(group_size), "{n} are not groups of {group_size}");
    let total = |i: usize| rewards.iter().map(|r| r.weight * r.values[i]).sum::<f64>();
    let totals: Vec<f64> = (0..n).map(total).collect();

    let ranges = (0..n / group_size).map(|group| group * group_size..(group + 1) * group_size);
    let mut zero_variance = Vec::new();
    let mut values = Vec::with_capacity(n);
    for group in ranges {
        let flat = if settings.per_reward {
            let counts = |reward: &&Weighted| reward.weight != 0.0;
            rewards.iter().filter(counts).all(|r| std(&r.values[group.clone()]) <= ZERO)
        } else {
            std(&totals[group.clone()]) <= ZERO
        };
        zero_variance.push(flat);
        values.extend(group.clone().map(|i| {
            if settings.per_reward {
                let standardized = |r: &Weighted| {
                    let of = &r.values[group.clone()];
                    r.weight * (r.values[i] - mean(of)) / (std(of) + EPSILON)
                };
                rewards.iter().map(standardized).sum::<f64>()
            } else {
                let of = &totals[group.clone()];
                let spread = match settings.scale {
                    ScaleRewards::Group => std(of) + EPSILON,
                    ScaleRewards::Batch => std(&totals) + EPSILON,
                    ScaleRewards::None => 1.0,
                };
                (totals[i] - mean(of)) / spread
            }
        }));
    }
    if settings.per_reward && settings.scale == ScaleRewards::Batch {
        let (center, spread) = (mean(&values), std(&values) + EPSILON);
        values.iter_mut().for_each(|value| *value = (*value - center) / spread);
    }
    // Rounding leaves a trace of equal rewards, which ε would blow up.
    for (group, _) in zero_variance.iter().enumerate().filter(|(_, flat)| **flat) {
        values[group * group_size..(group + 1) * group_size].fill(0.0);
    }

    let flat = zero_variance.iter().filter(|flat| **flat).count();
    Advantages {
        values: values.iter().map(|value| *value as f32).collect(),
        reward_mean: mean(&totals),
        reward_std: std(&totals),
        zero_variance_share: flat as f64 / zero_variance.len().max(1) as f64,
        rewards: totals,
        zero_variance,
    }
}

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    // From 0: the sum of nothing is -0.
    values.iter().fold(0.0, |sum, value| sum + value) / values.len().max(1) as f64
}

/// The unbiased standard deviation, √(Σ (x - mean)² / (n - 1)); 0 of a single value, as newer TRL has it.
pub fn std(values: &[f64]) -> f64 {
    let center = mean(values);
    let squares: f64 = values.iter().map(|value| (value - center).powi(2)).sum();
    (squares / values.len().saturating_sub(1).max(1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(
        scale: ScaleRewards,
        per_reward: bool,
        rewards: &[(f64, &[f64])],
        g: usize,
    ) -> Advantages {
        let rewards: Vec<_> =
            rewards.iter().map(|&(weight, values)| Weighted { weight, values }).collect();
        advantages(AdvantageSettings { scale, per_reward }, &rewards, g)
    }

    fn assert_near(got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        let near = |(got, want): (&f32, &f64)| (f64::from(*got) - want).abs() < 1e-6;
        assert!(got.iter().zip(want).all(near), "{got:?} for {want:?}");
    }

    #[test]
    fn mean_and_std_by_hand() {
        assert_eq!((mean(&[1.0, 2.0, 6.0]), mean(&[])), (3.0, 0.0));
        // Squares 4, 1, 9 over n - 1 = 2.
        assert_eq!((std(&[1.0, 2.0, 6.0]), std(&[5.0]), std(&[])), (7.0f64.sqrt(), 0.0, 0.0));
    }

    #[test]
    fn a_pair_is_plus_and_minus_root_half_whatever_the_difference() {
        // FACTS: at G = 2 any difference gives ±0.7071 (but for ε).
        for difference in [1.0, 0.5, 0.2] {
            let got = of(ScaleRewards::Group, false, &[(1.0, &[difference, 0.0])], 2);
            let std = difference * 0.5f64.sqrt();
            let want = difference / 2.0 / (std + 1e-4);
            assert_near(&got.values, &[want, -want]);
            assert!((got.values[0] - std::f32::consts::FRAC_1_SQRT_2).abs() < 6e-4, "{got:?}");
        }
    }

    #[test]
    fn the_three_scales_by_hand() {
        // Groups (0, 4) and (1, 1) with std √8 and 0; the step's mean 1.5, squares 2.25 + 6.25 + 0.5.
        let rewards: &[(f64, &[f64])] = &[(1.0, &[0.0, 4.0, 1.0, 1.0])];
        let group = of(ScaleRewards::Group, false, rewards, 2);
        let want = 2.0 / (8.0f64.sqrt() + 1e-4);
        assert_near(&group.values, &[-want, want, 0.0, 0.0]);
        let batch = of(ScaleRewards::Batch, false, rewards, 2);
        let want = 2.0 / (3.0f64.sqrt() + 1e-4);
        assert_near(&batch.values, &[-want, want, 0.0, 0.0]);
        let none = of(ScaleRewards::None, false, rewards, 2);
        assert_near(&none.values, &[-2.0, 2.0, 0.0, 0.0]);
        for got in [group, batch, none] {
            assert_eq!(got.zero_variance, [false, true]);
            assert_eq!((got.zero_variance_share, got.reward_mean), (0.5, 1.5));
            assert!((got.reward_std - 3.0f64.sqrt()).abs() < 1e-15);
        }
    }

    #[test]
    fn rewards_are_weighted_before_the_difference() {
        let format: &[f64] = &[0.2, 0.1, 0.2, 0.0];
        let verdict: &[f64] = &[1.0, 0.0, 0.0, 1.0];
        let got = of(ScaleRewards::None, false, &[(0.5, format), (2.0, verdict)], 4);
        // Sums 2.1, 0.05, 0.1, 2 with mean 1.0625.
        assert_near(&got.values, &[1.0375, -1.0125, -0.9625, 0.9375]);
        assert_eq!(got.rewards, [2.1, 0.05, 0.1, 2.0]);
    }

    #[test]
    fn per_reward_a_small_spread_pulls_as_its_weight_says() {
        // One tag too few against a wrong verdict, and both at once.
        let format: &[f64] = &[0.2, 0.175, 0.2, 0.175];
        let verdict: &[f64] = &[1.0, 1.0, 0.0, 0.0];
        let rewards: &[(f64, &[f64])] = &[(0.5, format), (1.0, verdict)];
        let got = of(ScaleRewards::Group, true, rewards, 4);
        // Each reward's std is its half difference · √(4/3).
        let root = (4.0f64 / 3.0).sqrt();
        let f = 0.5 * 0.0125 / (0.0125 * root + 1e-4);
        let v = 0.5 / (0.5 * root + 1e-4);
        let want = [f + v, v - f, f - v, -f - v];
        assert_near(&got.values, &want);
        assert_near(&of(ScaleRewards::None, true, rewards, 4).values, &want);
        // GDPO: divided by the spread over the step besides.
        let spread = std(&want) + 1e-4;
        assert_near(&of(ScaleRewards::Batch, true, rewards, 4).values, &want.map(|a| a / spread));
        // What is summed first hardly sees the tag.
        let summed = of(ScaleRewards::Group, false, rewards, 4).values;
        assert!(summed[0] - summed[1] < 0.03 && got.values[0] - got.values[1] > 0.8);
    }

    #[test]
    fn equal_rewards_give_exact_zeros_though_they_round() {
        // 0.1 + 0.1 + 0.1 is not 3 · 0.1: the mean misses the values by a trace.
        let equal: &[f64] = &[0.1; 3];
        let sums: (&[f64], &[f64]) = (&[0.1, 0.3, 0.2], &[0.3, 0.1, 0.2]);
        for scale in [ScaleRewards::Group, ScaleRewards::Batch, ScaleRewards::None] {
            for rewards in [&[(1.0, equal)][..], &[(1.0, sums.0), (1.0, sums.1)]] {
                let got = of(scale, false, rewards, 3);
                assert_eq!((got.values, got.zero_variance_share), (vec![0.0; 3], 1.0));
            }
            let got = of(scale, true, &[(1.0, equal), (0.0, sums.0)], 3);
            assert_eq!(got.values, [0.0; 3], "a reward without weight does not count");
            // Different rewards of one sum have variance where each is standardized, and cancel.
            let got = of(scale, true, &[(1.0, sums.0), (1.0, sums.1)], 3);
            assert!(!got.zero_variance[0] && got.values.iter().all(|a| a.abs() < 1e-6));
        }
    }

    #[test]
    fn a_group_of_one_has_no_variance() {
        let got = of(ScaleRewards::Group, false, &[(1.0, &[3.0, -1.0])], 1);
        assert_eq!((got.values, got.zero_variance), (vec![0.0; 2], vec![true; 2]));
        let none = of(ScaleRewards::Group, false, &[(1.0, &[])], 2);
        assert_eq!((none.zero_variance_share, none.reward_mean), (0.0, 0.0));
    }

    #[test]
    #[should_panic(expected = "5 are not groups of 2")]
    fn groups_are_whole() {
        of(ScaleRewards::Group, false, &[(1.0, &[0.0; 5])], 2);
    }
}
