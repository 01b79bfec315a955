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
//! | slots | three steps with more than 90 % of verdicts for one slot, where most completions have one |
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
const NAMES: [&str; 10] =
    [REWARD, REWARD_STD, TRUNCATED, UNPARSED, SHARE_OF_A, TIED, ENTROPY, KL, LENGTH, GRADIENT];

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
        if let Some((slot, share)) = self.one_slot() {
            say(
                AlarmKind::Slots,
                format!(
                    "{:.0} % of verdicts in the last {SHORT} steps are for slot {slot}, and each reply stands there in half of the \
                     prompts: the judge does not read what it judges. Train with data.orders=both, \
                     reward.weights.consistency=1, reward.weights.verdict=0 and reward.scale_rewards=batch, with more pairs \
                     in a step or a lower optimizer.learning_rate, from a checkpoint before that",
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

    /// The slot that nearly all verdicts prefer, and their share of all that are no ties.
    fn one_slot(&self) -> Option<(char, f64)> {
        let of_verdicts = self.mean(SHARE_OF_A, SHORT)?;
        let decided = 1.0 - self.mean(TIED, SHORT)?;
        if self.mean(UNPARSED, SHORT)? > 0.5 || decided < 0.5 {
            return None;
        }
        let share = of_verdicts / decided;
        let (slot, share) = if share > 0.5 { ('A', share) } else { ('B', 1.0 - share) };
        (share > 0.9).then_some((slot, share))
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
mod tests {
    use super::*;

    /// A step whose metrics are what `of` gives for their names.
    fn step(of: impl Fn(&str) -> Option<f64>) -> Vec<(String, f64)> {
        NAMES.iter().filter_map(|name| Some((name.to_string(), of(name)?))).collect()
    }

    /// What goes off at each step of a run whose metric takes these values; other metrics are sound.
    fn run(name: &str, values: &[f64]) -> Vec<(u64, AlarmKind)> {
        let mut alarms = Alarms::new(100);
        let mut found = Vec::new();
        for (number, &value) in (1..).zip(values) {
            let metric = |asked: &str| match asked {
                _ if asked == name => Some(value),
                REWARD => Some(0.5),
                REWARD_STD => Some(0.4),
                _ => None,
            };
            let begun = alarms.after(number, &step(metric));
            found.extend(begun.into_iter().map(|alarm| (number, alarm.kind)));
        }
        found
    }

    /// `count` times each value.
    fn times(parts: &[(usize, f64)]) -> Vec<f64> {
        parts.iter().flat_map(|&(count, value)| std::iter::repeat_n(value, count)).collect()
    }

    #[test]
    fn a_reward_that_falls_goes_off_once() {
        // Of five steps, three are at 0.01: (2·0.3 + 3·0.01) / 5 = 0.126 < 0.15.
        assert_eq!(run(REWARD, &times(&[(5, 0.3), (10, 0.01)])), [(8, AlarmKind::Reward)]);
        // A slow decline to a little above half, and one below it.
        assert_eq!(run(REWARD, &times(&[(5, 0.4), (20, 0.21)])), []);
        assert_eq!(
            run(REWARD, &times(&[(5, 0.4), (5, 0.25), (5, 0.19)])),
            [(15, AlarmKind::Reward)]
        );
        // Sampling explains it: four standard errors are 4·0.4 / √(5·100) = 0.072.
        assert_eq!(run(REWARD, &times(&[(5, 0.07), (10, 0.0)])), []);
        assert_eq!(run(REWARD, &times(&[(5, 0.08), (10, 0.0)])), [(10, AlarmKind::Reward)]);
        // Costs: from -0.1 to below -0.2.
        assert_eq!(run(REWARD, &times(&[(5, -0.1), (5, -0.19)])), []);
        assert_eq!(run(REWARD, &times(&[(5, -0.1), (5, -0.9)])), [(6, AlarmKind::Reward)]);
        // It recovers for ten steps of means above half, and falls again.
        let twice = times(&[(5, 0.3), (5, 0.0), (14, 0.3), (5, 0.0)]);
        assert_eq!(run(REWARD, &twice), [(8, AlarmKind::Reward), (27, AlarmKind::Reward)]);
        // A shorter recovery is the same episode.
        let once = times(&[(5, 0.3), (5, 0.0), (6, 0.3), (5, 0.0)]);
        assert_eq!(run(REWARD, &once), [(8, AlarmKind::Reward)]);
        assert_eq!(run(REWARD, &[f64::NAN; 30]), []);
    }

    #[test]
    fn shares_above_nine_tenths_go_off_after_three_steps() {
        for (name, kind) in [(TRUNCATED, AlarmKind::Truncation), (UNPARSED, AlarmKind::Verdicts)] {
            assert_eq!(run(name, &[1.0, 1.0, 1.0, 1.0]), [(3, kind)]);
            // (1 + 0.65 + 1) / 3 is 0.88.
            assert_eq!(run(name, &[0.0, 1.0, 1.0, 0.65, 1.0, 1.0, 1.0]), [(7, kind)]);
            assert_eq!(run(name, &[0.9; 30]), []);
        }
    }

    #[test]
    fn a_slot_that_has_nearly_all_verdicts_goes_off() {
        let of = |share_of_a: &[f64], tied: f64, unparsed: f64| {
            let mut alarms = Alarms::new(100);
            let mut found = Vec::new();
            for (number, &share) in (1..).zip(share_of_a) {
                let metric = |name: &str| match name {
                    SHARE_OF_A => Some(share),
                    TIED => Some(tied),
                    UNPARSED => Some(unparsed),
                    _ => None,
                };
                let begun = alarms.after(number, &step(metric));
                found.extend(begun.into_iter().map(|alarm| (number, alarm.kind)));
            }
            found
        };
        assert_eq!(of(&[0.95; 4], 0.0, 0.0), [(3, AlarmKind::Slots)]);
        assert_eq!(of(&[0.5, 0.05, 0.05, 0.02], 0.0, 0.0), [(4, AlarmKind::Slots)]);
        assert_eq!(of(&[0.89; 9], 0.0, 0.0), []);
        // 0.6 of the verdicts, and all that are no ties.
        assert_eq!(of(&[0.6; 3], 0.4, 0.0), [(3, AlarmKind::Slots)]);
        // Few verdicts, or mostly ties, say nothing of slots.
        assert_eq!(of(&[1.0; 9], 0.0, 0.6), []);
        assert_eq!(of(&[0.3; 9], 0.7, 0.0), []);
    }

    #[test]
    fn entropy_is_held_against_the_first_steps() {
        let of = |values: &[f64]| run(ENTROPY, values);
        assert_eq!(of(&times(&[(5, 0.5), (5, 0.051)])), []);
        assert_eq!(of(&times(&[(5, 0.5), (5, 0.049)])), [(10, AlarmKind::EntropyCollapse)]);
        assert_eq!(of(&times(&[(5, 0.5), (5, 1.51)])), [(10, AlarmKind::EntropyExplosion)]);
        assert_eq!(of(&times(&[(5, 0.5), (5, 1.49)])), []);
        // Three times very little is little.
        assert_eq!(of(&times(&[(5, 0.01), (5, 0.05)])), []);
        // Not before there are ten steps: the first would be held against themselves.
        assert_eq!(of(&times(&[(5, 0.5), (4, 0.0)])), []);
    }

    #[test]
    fn a_step_without_a_number_is_left_out() {
        let mut alarms = Alarms::new(10);
        let mut found = Vec::new();
        for number in 1..=20 {
            // Every second step had no token that was trained on.
            let value = if number <= 10 { 0.5 } else { 0.01 };
            let metric = |name: &str| (name == ENTROPY && number % 2 == 0).then_some(value);
            let begun = alarms.after(number, &step(metric));
            found.extend(begun.into_iter().map(|alarm| (number, alarm.kind)));
        }
        assert_eq!(found, [(20, AlarmKind::EntropyCollapse)]);
    }

    #[test]
    fn divergence_length_and_gradients() {
        assert_eq!(run(KL, &times(&[(5, 0.9), (20, 1.05)])), [(9, AlarmKind::Divergence)]); // (0.9 + 4·1.05) / 5 = 1.02
        assert_eq!(run(KL, &[1.0; 20]), []);
        assert_eq!(run(LENGTH, &times(&[(5, 400.0), (5, 99.0)])), [(10, AlarmKind::Short)]);
        assert_eq!(run(LENGTH, &times(&[(5, 400.0), (5, 101.0)])), []);
        assert_eq!(run(LENGTH, &times(&[(5, 100.0), (5, 401.0)])), [(10, AlarmKind::Long)]);
        let usual = times(&[(20, 0.1), (3, 1.1)]);
        assert_eq!(run(GRADIENT, &usual), [(23, AlarmKind::Gradient)]);
        assert_eq!(run(GRADIENT, &times(&[(20, 0.1), (3, 0.9)])), []);
        // One spike of thirty times: (0.1 + 0.1 + 3.1) / 3 = 1.1.
        assert_eq!(run(GRADIENT, &times(&[(20, 0.1), (1, 3.1)])), [(21, AlarmKind::Gradient)]);
        // Steps without a gradient are not usual ones; nor is the start.
        assert_eq!(run(GRADIENT, &times(&[(20, 0.0), (10, 1.0)])), []);
        assert_eq!(run(GRADIENT, &times(&[(5, 0.1), (5, 5.0)])), []);
    }

    #[test]
    fn a_length_that_pays_is_no_collapse() {
        let mut alarms = Alarms::new(100);
        for number in 1..=20 {
            let (length, reward) = if number <= 5 { (2000.0, 0.1) } else { (300.0, 0.6) };
            let metric = |name: &str| match name {
                LENGTH => Some(length),
                REWARD => Some(reward),
                REWARD_STD => Some(0.3),
                _ => None,
            };
            assert_eq!(alarms.after(number, &step(metric)), [], "step {number}");
        }
    }

    #[test]
    fn every_alarm_says_what_to_try() {
        let collapsed = |name: &str| match name {
            REWARD => Some(0.0),
            REWARD_STD => Some(0.0),
            TRUNCATED | UNPARSED => Some(1.0),
            KL => Some(3.0),
            LENGTH => Some(2048.0),
            GRADIENT => Some(50.0),
            _ => Some(4.0),
        };
        let sound = |name: &str| match name {
            REWARD => Some(0.5),
            REWARD_STD => Some(0.3),
            LENGTH => Some(200.0),
            ENTROPY => Some(0.5),
            GRADIENT => Some(0.1),
            // One slot all the time is a collapse from the third step on.
            SHARE_OF_A => Some(1.0),
            _ => Some(0.0),
        };
        let mut alarms = Alarms::new(64);
        let mut said = Vec::new();
        for number in 1..=60 {
            let metrics = if number <= 30 { step(sound) } else { step(collapsed) };
            said.extend(alarms.after(number, &metrics));
        }
        let mut kinds: Vec<AlarmKind> = said.iter().map(|alarm| alarm.kind).collect();
        kinds.sort_unstable();
        assert_eq!(
            kinds,
            [
                AlarmKind::Reward,
                AlarmKind::Truncation,
                AlarmKind::Verdicts,
                AlarmKind::Slots,
                AlarmKind::EntropyExplosion,
                AlarmKind::Divergence,
                AlarmKind::Long,
                AlarmKind::Gradient
            ]
        );
        for alarm in said {
            let names_a_setting = ["optimizer.", "loss.", "reward.", "rollout."];
            let names = names_a_setting.iter().any(|section| alarm.message.contains(section));
            assert!(names, "{alarm:?}");
        }
    }
}
