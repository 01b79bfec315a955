//! The first half of a step: judgements are sampled, and their rewards and advantages computed.

use std::{
    collections::BTreeMap,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use engine::{
    generate::{self, SamplingParams, Stats},
    language_model::LanguageModel,
    text::tokenizer::Encoded,
};
use kernels::cpu::profile;

use super::plan::Slot;
use crate::{
    data::Pair,
    judge::{
        Judge, JudgeError,
        prompt::{Order, Template},
    },
    train::{
        grpo::{
            advantages::{self, Advantages, advantages},
            rewards::{Entry, Reward, RewardTable, Rollout},
        },
        rollout::{Completion, RolloutError, RolloutRecord, rollouts},
        settings::{self, Orders, OverLong, Settings, Thinking},
    },
};

/// The completions of a step as rewards see them, in order.
pub(super) fn as_rewarded<'a>(
    slots: &[Slot],
    completions: &'a [Completion],
    group_size: usize,
) -> Vec<Rollout<'a>> {
    let of = |(index, completion): (usize, &'a Completion)| {
        let slot = &slots[index / group_size];
        let group = |group: usize| [group * group_size, (group + 1) * group_size];
        Rollout {
            text: &completion.text,
            verdict: completion.verdict,
            order: slot.order,
            tokens: completion.tokens.len(),
            other_order: slot.partner.map(group),
        }
    };
    completions.iter().enumerate().map(of).collect()
}

/// A policy that samples judgements, and computes their rewards.
pub struct Sampler<'a> {
    /// The policy.
    pub language_model: &'a LanguageModel,
    /// Template of the judge's prompt.
    pub template: &'a Template,
    /// How it samples, and the rewards.
    pub settings: &'a Settings,
    /// The pairs that slots refer to.
    pub pairs: &'a [Pair],
    /// How much runs at once.
    pub options: generate::GeneratorOptions,
}

/// Sampled completions with their rewards and advantages.
pub struct Sampled {
    pub(super) slots: Vec<Slot>,
    pub(super) prompts: Vec<Vec<u32>>,
    pub(super) completions: Vec<Completion>,
    pub(super) rewards: RewardTable,
    pub(super) advantages: Advantages,
    pub(super) stats: Stats,
    pub(super) elapsed: Duration,
}

/// Why nothing could be sampled.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // one variant a part
pub enum SampleError {
    #[error("{0}")]
    Prompt(#[from] JudgeError),
    #[error("{0}")]
    Rollout(#[from] RolloutError),
}

impl<'a> Sampler<'a> {
    /// The judge that samples.
    pub fn judge(&self) -> Judge<'a> {
        let rollout = &self.settings.rollout;
        Judge {
            language_model: self.language_model,
            template: self.template,
            thinking: match rollout.thinking {
                Thinking::Auto => None,
                Thinking::On => Some(true),
                Thinking::Off => Some(false),
            },
            date: rollout.template_date.parse().ok(),
            sampling: SamplingParams {
                temperature: rollout.temperature as f32,
                top_k: rollout.top_k,
                top_p: rollout.top_p as f32,
                min_p: rollout.min_p as f32,
            },
            // Those of generation_config.json would make another policy of the one that is trained.
            repetition_penalty: 1.0,
            stop_strings: &[],
            seed: self.settings.train.seed,
            max_new_tokens: rollout.max_completion_tokens,
            max_prompt_tokens: self.settings.data.max_prompt_tokens,
            options: self.options.clone(),
        }
    }

    /// Samples a group of completions for every slot. `first_sequence` numbers the first of them in the
    /// run. `None` if `stop` was raised before the end.
    pub fn sample(
        &self,
        slots: Vec<Slot>,
        first_sequence: u64,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(Stats),
    ) -> Result<Option<Sampled>, SampleError> {
        let started = Instant::now();
        let prompts = self.prompts(&slots)?;
        let group_size = self.settings.rollout.group_size;
        let _span = profile::phase("sample step", [prompts.len(), group_size]);
        let mut stats = Stats::default();
        let completions =
            rollouts(&self.judge(), &prompts, group_size, first_sequence, stop, &mut |now| {
                stats = now;
                progress(now);
            })?;
        let Some(completions) = completions else { return Ok(None) };
        let (rewards, advantages) = self.earned(&slots, &completions);
        let elapsed = started.elapsed();
        Ok(Some(Sampled { slots, prompts, completions, rewards, advantages, stats, elapsed }))
    }

    /// The slots' prompts, in their order.
    fn prompts(&self, slots: &[Slot]) -> Result<Vec<Vec<u32>>, JudgeError> {
        slots.iter().map(|slot| self.prompt(&self.pairs[slot.pair], slot.order)).collect()
    }

    /// The prompt of a pair in an order, cut at its beginning where the settings say so.
    pub fn prompt(&self, pair: &Pair, order: Order) -> Result<Vec<u32>, JudgeError> {
        let limit = self.settings.data.max_prompt_tokens;
        let mut tokens = match self.judge().prompt(pair, order)? {
            Encoded::Whole(tokens) => tokens,
            Encoded::TooLong { at_least } => {
                let positions = self.language_model.model.config().max_position_embeddings;
                let (row, id) = (pair.row, pair.id.clone());
                return Err(JudgeError::TooLong { row, id, at_least, positions });
            }
        };
        if self.settings.data.over_long == OverLong::TruncateLeft && tokens.len() > limit {
            tokens.drain(..tokens.len() - limit);
        }
        Ok(tokens)
    }

    fn earned(&self, slots: &[Slot], completions: &[Completion]) -> (RewardTable, Advantages) {
        let group_size = self.settings.rollout.group_size;
        let rollouts = as_rewarded(slots, completions, group_size);
        let table = RewardTable::new(&self.rewards_of(self.settings.data.orders), &rollouts);
        let settings = advantages::AdvantageSettings {
            scale: self.settings.reward.scale_rewards,
            per_reward: self.settings.reward.normalize_each,
        };
        let all = advantages(settings, &table.weighted(), group_size);
        (table, all)
    }

    /// The sampled completions as lines of a rollout file.
    pub fn records(&self, sampled: &Sampled, step: u64) -> Vec<RolloutRecord> {
        let group_size = self.settings.rollout.group_size;
        let Sampled { slots, prompts, completions, rewards, advantages, .. } = sampled;
        let rollouts = as_rewarded(slots, completions, group_size);
        let record = |(index, completion): (usize, &Completion)| {
            let (group, slot) = (index / group_size, &slots[index / group_size]);
            let pair = &self.pairs[slot.pair];
            let named = rewards
                .columns
                .iter()
                .map(|column| (column.entry.reward.name().to_owned(), column.values[index]));
            RolloutRecord {
                step,
                group,
                sample: index % group_size,
                id: pair.id.clone(),
                row: pair.row,
                order: slot.order,
                other_order: slot.partner,
                prompt_tokens: prompts[group].len(),
                tokens: completion.tokens.len(),
                finish: completion.finish,
                verdict: completion.verdict,
                right: rollouts[index].is_right(),
                rewards: named.collect::<BTreeMap<_, _>>(),
                reward: advantages.rewards[index],
                advantage: advantages.values[index],
                log_prob: completion.log_probs.iter().map(|l| f64::from(*l)).sum(),
                prompt: pair.prompt.clone(),
                chosen: pair.chosen.clone(),
                rejected: pair.rejected.clone(),
                text: completion.text.clone(),
            }
        };
        completions.iter().enumerate().map(record).collect()
    }

    /// The rewards that can be computed of pairs in these orders, in the order of the settings; those of weight 0 are only
    /// logged.
    pub(super) fn rewards_of(&self, orders: Orders) -> Vec<Entry> {
        let settings::RewardSettings { weights, wrong_verdict, length_from_tokens, .. } =
            &self.settings.reward;
        let max_tokens = self.settings.rollout.max_completion_tokens;
        let mut entries = vec![
            Entry { reward: Reward::Format, weight: weights.format },
            Entry { reward: Reward::Verdict { wrong: *wrong_verdict }, weight: weights.verdict },
        ];
        if orders == Orders::Both {
            entries.extend([
                Entry { reward: Reward::Consistency, weight: weights.consistency },
                Entry { reward: Reward::Agreement, weight: weights.agreement },
                Entry { reward: Reward::Summed, weight: weights.summed },
            ]);
        }
        if let Some(cache_tokens) = max_tokens.checked_sub(*length_from_tokens).filter(|n| *n > 0) {
            let length = Reward::Length { max_tokens, cache_tokens };
            entries.push(Entry { reward: length, weight: weights.length });
        }
        entries
    }
}
