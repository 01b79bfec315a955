//! The GRPO loss and its derivative with respect to each token's log-probability.
//!
//! A step is a list of completions i of tokens t. With x = log π, x' = log π_old and y = log π_ref of a
//! token, and A the completion's advantage:
//!
//! ```text
//! r = exp(x - x')               1 on policy, where x' is x itself, held fixed
//! policy = -min(r A, clip(r, 1 - low, 1 + high) A)
//! k3 = exp(y - x) - (y - x) - 1                      (Schulman 2020; eq. 4 of the GRPO paper)
//! kl = k3, or r k3 bias-corrected                    (DeepSeek-V3.2, arXiv 2512.02556)
//! loss = Σ_i w_i Σ_t (policy + β kl)
//!
//! A is ρ A for tokens outside of the scores         ρ = 1, unless set
//!
//! d policy / dx = -r A where the minimum is r A, else 0
//! d kl / dx = 1 - exp(y - x), or r (k3 + 1 - exp(y - x)) bias-corrected
//! ```
//!
//! The loss types differ only in w_i, the weight of a completion's tokens, which [`token_weights`]
//! computes up front from the step's completions and its parts. A *part* is what TRL calls a
//! micro-batch, of which a step accumulates M; part m has B_m completions, n_i is the number of tokens
//! of completion i:
//!
//! ```text
//! grpo     1 / (M B_m n_i)                   mean over tokens, then over completions, then over parts
//! bnpo     1 / (M Σ_{j in m} n_j)            mean over a part's tokens, then over parts
//! dapo     1 / Σ_j n_j                       mean over the step's tokens     (arXiv 2503.14476)
//! dr_grpo  1 / (M B_m max_completion_length)                                 (arXiv 2503.20783)
//! ```
//!
//! As the weights are known before the first forward pass, a step's loss is the plain sum over its
//! completions, however many of them the trainer packs into a batch: parts are arithmetic, not memory.
//! With one part, or parts of equal size, grpo and dr_grpo do not depend on the parts at all.
//!
//! # The weight of reasoning
//!
//! The policy gradient is a sum over tokens: E[Σ_t A d log π(t)]. Tokens before the scores matter by what they make of
//! them. Where a small model's verdict hardly depends on what it wrote, their terms have an expectation near zero and the
//! noise of all of them, sixty against the few in which the verdict is said. ρ below 1 weighs them less, and what is written
//! after the scores: the terms of the scores' own tokens, given what was written, stay a gradient of the expected reward
//! by themselves. It is not the whole gradient any more. At 0 only the scores are trained, and what comes before them as
//! far as parameters are shared. Where nothing opens the scores, all tokens have the weight ρ.
//!
//! Log-probabilities are f32; everything between is f64, and a derivative is rounded once. TRL
//! computes in f32: the difference is rounding.

use serde::{Deserialize, Serialize};

/// How tokens are averaged; TRL's `loss_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Every completion weighs the same, so tokens of long ones weigh less.
    Grpo,
    /// Every token of a part weighs the same.
    Bnpo,
    /// Every token of the step weighs the same.
    #[default]
    Dapo,
    /// Every token weighs the same in every step: the denominator is a constant.
    DrGrpo,
}

/// The terms of a token's loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossTerms {
    /// The ratio is clipped below 1 - `clip_low`.
    pub clip_low: f64,
    /// The ratio is clipped above 1 + `clip_high`.
    pub clip_high: f64,
    /// Weight of the KL divergence from the reference. At 0, reference log-probs are only measured.
    pub beta: f64,
    /// Multiplies k3 by the ratio, so that it is unbiased off policy (and its gradient is, on policy).
    pub bias_corrected_kl: bool,
    /// ρ, the weight of the advantage outside of the scores.
    pub reasoning_weight: f64,
}

impl Default for LossTerms {
    /// TRL's clip range, no KL.
    fn default() -> LossTerms {
        LossTerms {
            clip_low: 0.2,
            clip_high: 0.2,
            beta: 0.0,
            bias_corrected_kl: false,
            reasoning_weight: 1.0,
        }
    }
}

/// Length and loss mask of a completion, for [`token_weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskedCompletion {
    /// Generated tokens, the end token included.
    pub tokens: usize,
    /// The loss mask.
    pub part: LossMask,
}

/// Whether a completion carries loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossMask {
    /// The completion carries loss.
    Full,
    /// The completion carries no loss, but its tokens count in the denominators: a completion of a group without variance,
    /// whose policy term is 0 anyway. Without a KL term, the step is then exactly what it would be
    /// with the group in it, and the group's forward pass is saved.
    NoLoss,
    /// The completion carries no loss and counts as a completion of no tokens: one that was cut by the token limit,
    /// where `mask_truncated` is on (TRL's `mask_truncated_completions`; DAPO's overlong filtering).
    Masked,
}

/// The weight w_i of each completion's tokens in the step's loss; 0 where it does not take part.
///
/// `parts` are the sizes of consecutive parts, in completions; their sum is the number of completions.
/// `max_completion_length` is dr_grpo's constant, in tokens. Where TRL divides by a count, it is at least
/// 1 here too.
pub fn token_weights(
    kind: LossType,
    max_completion_length: usize,
    parts: &[usize],
    completions: &[MaskedCompletion],
) -> Vec<f64> {
    assert_eq!(parts.iter().sum::<usize>(), completions.len(), "parts {parts:?} of the step");
    let counted = |completion: &MaskedCompletion| match completion.part {
        LossMask::Masked => 0,
        _ => completion.tokens,
    };
    let tokens = |of: &[MaskedCompletion]| of.iter().map(counted).sum::<usize>().max(1) as f64;
    let step_tokens = tokens(completions);
    let mut weights = Vec::with_capacity(completions.len());
    let mut rest = completions;
    for &size in parts {
        let (part, after) = rest.split_at(size);
        rest = after;
        let part_tokens = tokens(part);
        for completion in part {
            let denominator = match kind {
                LossType::Grpo => (parts.len() * size) as f64 * counted(completion).max(1) as f64,
                LossType::Bnpo => parts.len() as f64 * part_tokens,
                LossType::Dapo => step_tokens,
                LossType::DrGrpo => (parts.len() * size) as f64 * max_completion_length as f64,
            };
            let takes_part = completion.part == LossMask::Full;
            weights.push(if takes_part { 1.0 / denominator } else { 0.0 });
        }
    }
    weights
}

/// One completion's log-probabilities, one per token; all slices have the same length.
#[derive(Clone, Copy, Debug)]
pub struct LossInputs<'a> {
    /// Log-probabilities of the policy that is trained.
    pub log_probs: &'a [f32],
    /// Log-probabilities of the policy that sampled, where the trained one has moved since (`num_iterations` > 1). Without
    /// them the ratio is 1 and its derivative that of exp(x - stop_gradient(x)).
    pub old: Option<&'a [f32]>,
    /// Log-probabilities of the reference policy (the base, adapter off).
    pub reference: Option<&'a [f32]>,
    /// The advantage A.
    pub advantage: f32,
    /// Its tokens that say the scores.
    pub scores: [usize; 2],
}

/// Returns the completion's part of the step's loss with its statistics, and writes its
/// derivative with respect to each of `log_probs` to `d_log_probs`.
///
/// `weight` is the completion's of [`token_weights`]. At weight 0 loss and derivative are exactly 0,
/// whatever the log-probabilities are.
///
/// # Panics
/// If slices differ in length, or β is not 0 and there is no reference.
pub fn completion_loss(
    settings: &LossTerms,
    completion: &LossInputs<'_>,
    weight: f64,
    d_log_probs: &mut [f32],
) -> Sums {
    let n = completion.log_probs.len();
    assert_eq!(d_log_probs.len(), n, "d_log_probs");
    assert!(completion.old.is_none_or(|old| old.len() == n), "old log-probs are not {n}");
    assert!(completion.reference.is_none_or(|r| r.len() == n), "reference log-probs are not {n}");
    assert!(
        settings.beta == 0.0 || completion.reference.is_some(),
        "beta is {} and there are no reference log-probs",
        settings.beta
    );
    let mut sums = Sums { tokens: n, ..Sums::default() };
    let mut loss = 0.0;
    for (t, d) in d_log_probs.iter_mut().enumerate() {
        let token = token_loss(settings, completion, t);
        loss += token.loss;
        *d = if weight == 0.0 { 0.0 } else { (weight * token.derivative) as f32 };
        if let Some(kl) = token.kl {
            *sums.kl.get_or_insert(0.0) += kl;
        }
        sums.clipped_low += usize::from(token.clipped == Some(Side::Low));
        sums.clipped_high += usize::from(token.clipped == Some(Side::High));
    }
    if weight != 0.0 {
        sums.loss = weight * loss;
    }
    if n > 0 {
        sums.lowest_share = Some(sums.clipped_low as f64 / n as f64);
        sums.highest_share = Some(sums.clipped_high as f64 / n as f64);
    }
    sums
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Low,
    High,
}

struct Token {
    loss: f64,
    derivative: f64,
    kl: Option<f64>,
    clipped: Option<Side>,
}

/// The formulas at the top for token `t`.
fn token_loss(settings: &LossTerms, completion: &LossInputs<'_>, t: usize) -> Token {
    let x = f64::from(completion.log_probs[t]);
    let [first, end] = completion.scores;
    let share = if (first..end).contains(&t) { 1.0 } else { settings.reasoning_weight };
    let advantage = share * f64::from(completion.advantage);
    let ratio = completion.old.map_or(1.0, |old| (x - f64::from(old[t])).exp());
    let (lowest, highest) = (1.0 - settings.clip_low, 1.0 + settings.clip_high);
    // Outside the range and where the clipped term is the smaller one; a ratio that is NaN is not
    // clipped, so that it shows.
    let clipped = if ratio < lowest && advantage < 0.0 {
        Some(Side::Low)
    } else if ratio > highest && advantage > 0.0 {
        Some(Side::High)
    } else {
        None
    };
    let (mut loss, mut derivative) = match clipped {
        Some(Side::Low) => (-lowest * advantage, 0.0),
        Some(Side::High) => (-highest * advantage, 0.0),
        None => (-ratio * advantage, -ratio * advantage),
    };
    let kl = completion.reference.map(|reference| {
        let difference = f64::from(reference[t]) - x;
        // exp(d) - 1: without it, a small divergence would be lost in rounding.
        let growth = difference.exp_m1();
        let (k3, d_k3) = (growth - difference, -growth);
        if settings.bias_corrected_kl { (ratio * k3, ratio * (k3 + d_k3)) } else { (k3, d_k3) }
    });
    // Without β nothing of the reference may reach the loss, not even 0 times infinity.
    if let (Some((kl, d_kl)), true) = (kl, settings.beta != 0.0) {
        loss += settings.beta * kl;
        derivative += settings.beta * d_kl;
    }
    Token { loss, derivative, kl: kl.map(|(kl, _)| kl), clipped }
}

/// Sums over completions. Sums of completions in the step's order are the step's, to the bit,
/// however they were batched.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Σ w (policy + β kl).
    pub loss: f64,
    /// Tokens looked at.
    pub tokens: usize,
    /// Σ kl over tokens, as it enters the loss (bias-corrected or not); `None` without a reference.
    pub kl: Option<f64>,
    /// Tokens whose ratio was clipped below.
    pub clipped_low: usize,
    /// Tokens whose ratio was clipped above.
    pub clipped_high: usize,
    /// The smallest share of tokens clipped below in any completion.
    pub lowest_share: Option<f64>,
    /// The largest share of tokens clipped above in any completion.
    pub highest_share: Option<f64>,
}

impl Sums {
    /// Adds what comes after.
    pub fn add(&mut self, other: &Sums) {
        self.loss += other.loss;
        self.tokens += other.tokens;
        if let Some(kl) = other.kl {
            *self.kl.get_or_insert(0.0) += kl;
        }
        self.clipped_low += other.clipped_low;
        self.clipped_high += other.clipped_high;
        let both = |a: Option<f64>, b: Option<f64>, of: fn(f64, f64) -> f64| match (a, b) {
            (Some(a), Some(b)) => Some(of(a, b)),
            (a, b) => a.or(b),
        };
        self.lowest_share = both(self.lowest_share, other.lowest_share, f64::min);
        self.highest_share = both(self.highest_share, other.highest_share, f64::max);
    }

    /// Means over tokens under TRL's names; 0 where there is no token, as TRL has it.
    pub fn report(&self) -> LossMetrics {
        let tokens = self.tokens.max(1) as f64;
        LossMetrics {
            loss: self.loss,
            kl: self.kl.map(|kl| kl / tokens),
            low_mean: self.clipped_low as f64 / tokens,
            low_min: self.lowest_share.unwrap_or(0.0),
            high_mean: self.clipped_high as f64 / tokens,
            high_max: self.highest_share.unwrap_or(0.0),
            region_mean: (self.clipped_low + self.clipped_high) as f64 / tokens,
        }
    }
}

/// A step's loss and its statistics, over the completions that were looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossMetrics {
    /// The metric `loss`.
    pub loss: f64,
    /// `kl`; `None` without a reference.
    pub kl: Option<f64>,
    /// `clip_ratio/low_mean`: the share of tokens clipped below.
    pub low_mean: f64,
    /// `clip_ratio/low_min`: the same of the completion with the smallest share.
    pub low_min: f64,
    /// `clip_ratio/high_mean`: the share of tokens clipped above.
    pub high_mean: f64,
    /// `clip_ratio/high_max`: the same of the completion with the largest share.
    pub high_max: f64,
    /// `clip_ratio/region_mean`: clipped at either side.
    pub region_mean: f64,
}

#[cfg(test)]
mod tests;
