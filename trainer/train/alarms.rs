//! Signs that a run has collapsed or is about to, in the numbers of `metrics.jsonl`.
//!
//! [`Alarms`] is fed the steps of a run in their order and answers with what begins to be wrong. It looks at nothing else,
//! so that a run that is continued from its file says what an uninterrupted one says. Nothing is stopped.
//!
//! | alarm | when (means over the last steps that have the number) |
//! |---|---|
//! | reward | below half of the best five steps' mean, by more than sampling explains |
//! | truncation | three steps with more than 90 % of completions cut off |
//! | verdicts | three steps with more than 90 % of completions without a readable verdict |
//! | slots | more than 90 % of verdicts for one slot, where most completions prefer one: in three steps, or in an evaluation of held-out pairs with 20 such verdicts |
//! | entropy | five steps below a tenth of the first five's, or above three times it and half a nat more |
//! | kl | five steps above 1 nat a token |
//! | length | five steps below a quarter or above four times the first five's, and no more reward than those |
//! | gradient | three steps with ten times the norm of the twenty before |
//!
//! An alarm goes off once; it has to be quiet for `QUIET` steps before it can go off again.

use std::collections::{BTreeMap, VecDeque};

/// Steps that reward, entropy, divergence and length are averaged over.
const WINDOW: usize = 5;
/// Steps for shares, which say more alone.
const SHORT: usize = 3;
/// Steps whose gradients are the usual ones.
const USUAL: usize = 20;
/// Verdicts of an evaluation by which a slot is told from chance: 19 of 20 for one slot are once in 25,000 by a coin.
const VERDICTS: f64 = 20.0;
/// Steps without its sign that end an alarm.
const QUIET: u32 = 10;

/// The kind of an alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmKind {
    /// The reward fell.
    Reward,
    /// Completions run to their limit.
    Truncation,
    /// Verdicts cannot be read.
    Verdicts,
    /// Verdicts name one slot, whatever stands there.
    Slots,
    /// The policy always says the same.
    EntropyCollapse,
    /// The policy says anything.
    EntropyExplosion,
    /// The policy is far from the reference.
    Divergence,
    /// Completions became short.
    Short,
    /// Completions became long.
    Long,
    /// The gradient is unusually large.
    Gradient,
}

/// An alarm that goes off.
#[derive(Clone, Debug, PartialEq)]
pub struct Alarm {
    /// Kind of the alarm.
    pub kind: AlarmKind,
    /// The observation, and what to try.
    pub message: String,
}

impl AlarmKind {
    /// Its name in metrics: `alarm/<name>` is 1 at the step at which it goes off.
    pub fn name(self) -> &'static str {
        match self {
            AlarmKind::Reward => "reward",
            AlarmKind::Truncation => "truncation",
            AlarmKind::Verdicts => "verdicts",
            AlarmKind::Slots => "slots",
            AlarmKind::EntropyCollapse => "entropy_collapse",
            AlarmKind::EntropyExplosion => "entropy_explosion",
            AlarmKind::Divergence => "kl",
            AlarmKind::Short => "length_short",
            AlarmKind::Long => "length_long",
            AlarmKind::Gradient => "grad_norm",
        }
    }
}

/// The names of the metrics that are looked at.
const REWARD: &str = "reward";
const REWARD_STD: &str = "reward_std";
const TRUNCATED: &str = "completions/clipped_ratio";
const UNPARSED: &str = "completions/unparsed_ratio";
const ENTROPY: &str = "entropy";
const KL: &str = "kl";
const LENGTH: &str = "completions/mean_length";
const GRADIENT: &str = "grad_norm";
const SHARE_OF_A: &str = "verdicts/share_of_a";
const TIED: &str = "verdicts/tied_ratio";
const HELD_OUT: &str = "eval/judgements";
const HELD_OUT_SHARE_OF_A: &str = "eval/share_of_a";
const HELD_OUT_TIES: &str = "eval/ties";
const HELD_OUT_UNPARSED: &str = "eval/unparsed";
const NAMES: [&str; 14] = [
    REWARD,
    REWARD_STD,
    TRUNCATED,
    UNPARSED,
    SHARE_OF_A,
    TIED,
    ENTROPY,
    KL,
    LENGTH,
    GRADIENT,
    HELD_OUT,
    HELD_OUT_SHARE_OF_A,
    HELD_OUT_TIES,
    HELD_OUT_UNPARSED,
];

/// The slot that has more than 90 % of what prefers one, by the share of A.
fn nearly_all(share_of_a: f64) -> Option<(char, f64)> {
    let (slot, share) = if share_of_a > 0.5 { ('A', share_of_a) } else { ('B', 1.0 - share_of_a) };
    (share > 0.9).then_some((slot, share))
}

/// The last values of one metric.
#[derive(Clone, Debug, Default)]
struct Series {
    last: VecDeque<f64>,
    /// Mean of the first [`WINDOW`].
    first: Option<f64>,
    /// Steps that had it.
    count: u64,
}

impl Series {
    fn push(&mut self, value: f64) {
        self.last.push_back(value);
        if self.last.len() > USUAL + SHORT {
            self.last.pop_front();
        }
        self.count += 1;
        if self.first.is_none() {
            self.first = self.mean(WINDOW);
        }
    }

    /// Of the last `steps`, if there are as many.
    fn mean(&self, steps: usize) -> Option<f64> {
        let from = self.last.len().checked_sub(steps)?;
        Some(self.last.range(from..).sum::<f64>() / steps as f64)
    }

    /// Of the first and the last [`WINDOW`] steps, if they have none in common.
    fn change(&self) -> Option<(f64, f64)> {
        if self.count < 2 * WINDOW as u64 {
            return None;
        }
        Some((self.first?, self.mean(WINDOW)?))
    }
}

/// The best mean of [`WINDOW`] rewards, and the spread of rewards within groups then.
#[derive(Clone, Copy, Debug)]
struct Best {
    step: u64,
    reward: f64,
    std: f64,
}

/// Watches a run.
#[derive(Clone, Debug)]
pub struct Alarms {
    /// Completions of a step.
    completions: usize,
    series: BTreeMap<&'static str, Series>,
    best: Option<Best>,
    /// The alarms that went off, and for how many steps they have been quiet since.
    going: BTreeMap<AlarmKind, u32>,
}

impl Alarms {
    /// Alarms of a run with `completions` per step.
    pub fn new(completions: usize) -> Alarms {
        let (series, going) = Default::default();
        Alarms { completions, series, best: None, going }
    }

    /// Takes the metrics of the next step, under their names in `metrics.jsonl`. Returns what goes off.
    pub fn after(&mut self, step: u64, metrics: &[(String, f64)]) -> Vec<Alarm> {
        for name in NAMES {
            let found = metrics.iter().find(|(other, value)| other == name && value.is_finite());
            if let Some((_, value)) = found {
                self.series.entry(name).or_default().push(*value);
            }
        }
        let found = self.signs();
        let mut begun = Vec::new();
        self.going.retain(|kind, quiet| {
            *quiet = if found.iter().any(|alarm| alarm.kind == *kind) { 0 } else { *quiet + 1 };
            *quiet < QUIET
        });
        for alarm in found {
            if self.going.insert(alarm.kind, 0).is_none() {
                begun.push(alarm);
            }
        }
        self.remember_best(step);
        begun
    }

    fn mean(&self, name: &str, steps: usize) -> Option<f64> {
        self.series.get(name)?.mean(steps)
    }

    fn change(&self, name: &str) -> Option<(f64, f64)> {
        self.series.get(name)?.change()
    }

    fn remember_best(&mut self, step: u64) {
        let (Some(reward), Some(std)) = (self.mean(REWARD, WINDOW), self.mean(REWARD_STD, WINDOW))
        else {
            return;
        };
        if self.best.is_none_or(|best| reward > best.reward) {
            self.best = Some(Best { step, reward, std });
        }
    }

    /// All that is wrong now, whether it was said before or not.
    fn signs(&self) -> Vec<Alarm> {
        let mut found = Vec::new();
        let mut say = |kind, message: String| found.push(Alarm { kind, message });
        if let Some(message) = self.fallen_reward() {
            say(AlarmKind::Reward, message);
        }
        if let Some(share) = self.mean(TRUNCATED, SHORT).filter(|share| *share > 0.9) {
            say(
                AlarmKind::Truncation,
                format!(
                    "{:.0} % of completions were cut off in the last {SHORT} steps: their verdicts, which stand at the end, are \
                     missing. If completions were longer all the time, raise rollout.max_completion_tokens; if they became \
                     so, the policy forgot how to end: lower optimizer.learning_rate, give reward.weights.length a weight, \
                     or go back to an earlier checkpoint",
                    100.0 * share
                ),
            );
        }
        if let Some(share) = self.mean(UNPARSED, SHORT).filter(|share| *share > 0.9) {
            say(
                AlarmKind::Verdicts,
                format!(
                    "{:.0} % of completions in the last {SHORT} steps have no readable verdict. Read some in rollouts/: a model \
                     that never wrote the form needs reward.weights.format, a larger rollout.group_size, or an adapter \
                     that was taught the form; one that did needs a lower optimizer.learning_rate",
                    100.0 * share
                ),
            );
        }
        let sampled =
            self.one_slot().map(|found| (found, format!("verdicts in the last {SHORT} steps")));
        let held_out =
            || Some((self.one_held_out_slot()?, "verdicts on held-out pairs".to_owned()));
        if let Some(((slot, share), of)) = sampled.or_else(held_out) {
            say(
                AlarmKind::Slots,
                format!(
                    "{:.0} % of {of} are for slot {slot}, and each reply stands there in half of the prompts: the judge does \
                     not read what it judges. Start another run from a checkpoint before that (model.adapter), with \
                     data.orders=both, reward.weights.consistency=1, reward.weights.verdict=0 and \
                     reward.scale_rewards=batch, with which one slot earns nothing; with more pairs in a step \
                     (rollout.prompts_per_step) and a lower optimizer.learning_rate if it has these",
                    100.0 * share
                ),
            );
        }
        if let Some((first, now)) = self.change(ENTROPY) {
            if now < first / 10.0 {
                say(
                    AlarmKind::EntropyCollapse,
                    format!(
                        "entropy fell from {first:.3} to {now:.4} nats a token: completions of a prompt are nearly the same, and \
                         there is nothing left to choose between. Raise loss.epsilon_high or loss.beta, lower \
                         optimizer.learning_rate, or raise rollout.temperature"
                    ),
                );
            }
            if now > 3.0 * first && now > first + 0.5 {
                say(
                    AlarmKind::EntropyExplosion,
                    format!(
                        "entropy rose from {first:.3} to {now:.3} nats a token: the policy comes apart. Lower \
                         optimizer.learning_rate or loss.epsilon_high, raise loss.beta, or set loss.mask_truncated=true"
                    ),
                );
            }
        }
        if let Some(kl) = self.mean(KL, WINDOW).filter(|kl| *kl > 1.0) {
            say(
                AlarmKind::Divergence,
                format!(
                    "kl is {kl:.2} nats a token over the last {WINDOW} steps: the policy is far from the reference. Raise \
                     loss.beta or lower optimizer.learning_rate"
                ),
            );
        }
        if let Some((kind, message)) = self.changed_length() {
            say(kind, message);
        }
        if let Some(message) = self.large_gradient() {
            say(AlarmKind::Gradient, message);
        }
        found
    }

    /// The slot that nearly all verdicts of the last steps prefer, and their share of those that prefer one.
    fn one_slot(&self) -> Option<(char, f64)> {
        if self.mean(UNPARSED, SHORT)? > 0.5 || self.mean(TIED, SHORT)? > 0.5 {
            return None;
        }
        nearly_all(self.mean(SHARE_OF_A, SHORT)?)
    }

    /// The same of the last evaluation. It is greedy: a slot that sampling swings about may have all of its verdicts.
    fn one_held_out_slot(&self) -> Option<(char, f64)> {
        let decided = 1.0 - self.mean(HELD_OUT_UNPARSED, 1)? - self.mean(HELD_OUT_TIES, 1)?;
        if decided < 0.5 || decided * self.mean(HELD_OUT, 1)? < VERDICTS {
            return None;
        }
        nearly_all(self.mean(HELD_OUT_SHARE_OF_A, 1)?)
    }

    fn fallen_reward(&self) -> Option<String> {
        let best = self.best?;
        let now = self.mean(REWARD, WINDOW)?;
        let drop = best.reward - now;
        let noise = best.std / ((WINDOW * self.completions) as f64).sqrt();
        let half =
            if best.reward > 0.0 { now < best.reward / 2.0 } else { now < 2.0 * best.reward };
        let tiny = 1e-9 * best.reward.abs();
        (half && drop > 4.0 * noise + tiny).then(|| {
            format!(
                "reward fell to a mean of {now:.3} over the last {WINDOW} steps, from {:.3} over those up to step {}. Go back to a checkpoint \
                 before the fall with a lower optimizer.learning_rate, or a higher loss.beta; read rollouts/ for what the \
                 policy writes now",
                best.reward, best.step
            )
        })
    }

    fn changed_length(&self) -> Option<(AlarmKind, String)> {
        let (first, now) = self.change(LENGTH)?;
        let (reward_first, reward_now) = self.change(REWARD)?;
        // What pays is no collapse: a judge that learns to end its text may well write a tenth of it.
        if reward_now > reward_first {
            return None;
        }
        if now < first / 4.0 {
            let message = format!(
                "completions shrank from {first:.0} to {now:.0} tokens and earn no more: the policy may have stopped to \
                 reason. Lower reward.weights.length and optimizer.learning_rate, or raise loss.beta"
            );
            return Some((AlarmKind::Short, message));
        }
        (now > 4.0 * first).then(|| {
            let message = format!(
                "completions grew from {first:.0} to {now:.0} tokens and earn no more. Give reward.weights.length a weight, \
                 use loss.type=dr_grpo, or lower optimizer.learning_rate"
            );
            (AlarmKind::Long, message)
        })
    }

    fn large_gradient(&self) -> Option<String> {
        let series = self.series.get(GRADIENT)?;
        let now = series.mean(SHORT)?;
        let before = series.last.range(..series.last.len().saturating_sub(SHORT));
        // A step without a gradient says nothing about its usual size.
        let before: Vec<f64> = before.copied().filter(|norm| *norm > 0.0).collect();
        if before.len() < USUAL / 2 {
            return None;
        }
        let usual = before.iter().sum::<f64>() / before.len() as f64;
        (now > 10.0 * usual).then(|| {
            format!(
                "the gradient's norm is {now:.3} over the last {SHORT} steps, {:.0} times that of the {} before. Lower \
                 optimizer.learning_rate, or set optimizer.max_grad_norm near {usual:.3}",
                now / usual,
                before.len()
            )
        })
    }
}

#[cfg(test)]
mod tests;
