//! Training: GRPO (Shao et al. 2024, arXiv 2402.03300) on preference pairs, with a LoRA adapter.
//!
//! A step is a function of the parameters, the optimizer's moments, the settings and its number:
//!
//! ```text
//! plan      which pairs, in which orders                                      plan.rs
//! sample    G judgements of each prompt, all in one generation                ../rollout.rs
//! reward    from judgements to advantages                                     ../grpo
//! update    log-probabilities, loss, gradient, clip, AdamW                    update.rs
//! ```
//!
//! So a run is continued from a checkpoint bit for bit, at any number of threads, and nothing of a
//! random generator has to be kept. [`run`] is the loop around it: evaluation, checkpoints, logs.

pub mod alarms;
pub mod checkpoint;
pub mod checkpointing;
pub mod deliver;
pub mod directory;
pub mod estimate;
pub mod grpo;
pub mod held_out;
pub mod memory;
pub mod metrics;
pub mod plan;
pub(crate) mod prompts;
pub mod rollout;
pub mod run;
pub mod sample;
pub mod session;
pub mod settings;
pub(crate) mod tensorboard;
pub mod update;

use std::{
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use engine::{
    checkpoint::adapter::Adapter,
    generate::{self, Stats},
    language_model::LanguageModel,
    model::{Model, kv_cache::KvCache},
    optimizer::{self, AdamW, schedule::Schedule},
    tensor::Tensor,
};

use crate::{
    data::Pair,
    eval::results::Finish,
    judge::prompt::Template,
    train::{
        grpo::{
            advantages,
            loss::{self, LossMask, MaskedCompletion, token_weights},
        },
        metrics::{ClipMetrics, CompletionMetrics, RewardMetrics, StepMetrics},
        rollout::{Completion, RolloutError, RolloutRecord},
        settings::{GradientCheckpointing, Settings},
    },
};
use plan::Plan;
use sample::{SampleError, Sampled, Sampler};
use update::{PromptGroup, TrainedCompletion, UpdateError, UpdateReport, UpdateSettings, update};

/// Sequences that run at once, at most.
fn running_sequences(settings: &Settings) -> usize {
    let rollout = &settings.rollout;
    rollout.prompts_per_step.saturating_mul(rollout.group_size).min(256).max(rollout.group_size)
}

/// Pages that a step's rollouts can use. Of a tiny model's pages, all memory would hold millions, and listing them
/// takes longer than its steps.
fn cache_pages(settings: &Settings) -> usize {
    let rollout = &settings.rollout;
    let tokens = settings.data.max_prompt_tokens.saturating_add(rollout.max_completion_tokens);
    running_sequences(settings).saturating_mul(KvCache::pages_for(tokens))
}

/// A policy under training.
pub struct Trainer {
    language_model: LanguageModel,
    template: Template,
    settings: Settings,
    pairs: Vec<Pair>,
    plan: Plan,
    schedule: Schedule,
    optimizer: AdamW,
    options: generate::GeneratorOptions,
    /// Steps taken.
    step: u64,
    /// Steps of the whole run.
    steps: u64,
    /// Tokens of prompts and completions so far.
    tokens: u64,
    /// The factors that the KL term compares with; `None` for the model without its adapter.
    reference: Option<Vec<Tensor>>,
}

/// StepProgress within a training step.
#[derive(Clone, Copy, Debug)]
pub enum StepProgress {
    /// A forward pass of generation ended.
    Sampling(Stats),
    /// Micro-batches done, of all.
    Updating(usize, usize),
}

/// The result of a training step.
pub struct StepReport {
    /// For metrics.jsonl.
    pub metrics: StepMetrics,
    /// For rollouts/step-N.jsonl.
    pub rollouts: Vec<RolloutRecord>,
    /// Whether any completion had a gradient.
    pub moved: bool,
    /// Completions that were left out because they were cut off.
    pub masked: usize,
}

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // one variant a part
pub enum StepError {
    #[error("step {step}: {source}")]
    Sample { step: u64, source: Box<SampleError> },
    #[error("step {step}: {source}")]
    Update { step: u64, source: UpdateError },
}

impl StepError {
    /// Whether numbers left their range, which they do again in a step that is taken again.
    pub fn is_numeric(&self) -> bool {
        match self {
            StepError::Sample { source, .. } => matches!(
                **source,
                SampleError::Rollout(RolloutError::Generate {
                    source: generate::GenerateError::Sampling { .. },
                    ..
                })
            ),
            StepError::Update { source, .. } => !matches!(source, UpdateError::Device(_)),
        }
    }
}

impl Trainer {
    /// A trainer at step 0. The model's adapter is what is trained; `pairs` have prompts that fit (see
    /// `prompts::length_filter`).
    ///
    /// # Panics
    /// If there are no pairs, or the model has no adapter.
    pub fn new(
        mut language_model: LanguageModel,
        template: Template,
        settings: Settings,
        pairs: Vec<Pair>,
        cache_bytes: usize,
    ) -> Trainer {
        language_model.model.train_adapter();
        let (rollout, train) = (&settings.rollout, &settings.train);
        let plan =
            Plan::new(pairs.len(), rollout.prompts_per_step, settings.data.orders, train.seed);
        let steps = match train.steps {
            0 => plan.steps(train.epochs),
            steps => steps,
        };
        assert!(language_model.model.parameters().next().is_some(), "the model has no adapter");
        let optimizer = language_model.model.optimizer(optimizer_settings(&settings));
        let schedule = Schedule {
            peak: settings.optimizer.learning_rate,
            shape: settings.optimizer.schedule,
            warmup_steps: settings.optimizer.warmup_steps,
            total_steps: steps * settings.loss.num_iterations as u64,
        };
        let options = sampling_options(&language_model.model, &settings, cache_bytes);
        Trainer {
            language_model,
            template,
            settings,
            pairs,
            plan,
            schedule,
            optimizer,
            options,
            step: 0,
            steps,
            tokens: 0,
            reference: None,
        }
    }

    /// Lets the KL term compare with the model under `adapter`, which has the factors that are trained, instead of with the
    /// model without one.
    ///
    /// # Panics
    /// If the adapter has other matrices or ranks.
    pub fn set_reference(&mut self, adapter: &Adapter) {
        self.reference = Some(self.language_model.model.factors_of(adapter));
    }

    /// Steps taken.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The model, as trained so far.
    pub fn language_model(&self) -> &LanguageModel {
        &self.language_model
    }

    /// The sampler and rewards of the current policy.
    pub fn sampler(&self) -> Sampler<'_> {
        Sampler {
            language_model: &self.language_model,
            template: &self.template,
            settings: &self.settings,
            pairs: &self.pairs,
            options: self.options.clone(),
        }
    }

    /// Samples the completions of the next step and computes their rewards, without training on
    /// them. `None` if `stop` was raised.
    pub fn sample(
        &self,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(StepProgress),
    ) -> Result<Option<Sampled>, StepError> {
        let step = self.step + 1;
        let slots = self.plan.step(self.step);
        let first = self.step * (slots.len() * self.settings.rollout.group_size) as u64;
        self.sampler()
            .sample(slots, first, stop, &mut |stats| progress(StepProgress::Sampling(stats)))
            .map_err(|source| StepError::Sample { step, source: Box::new(source) })
    }

    /// Learns from what was sampled with the parameters as they are.
    pub fn train_on(
        &mut self,
        sampled: &Sampled,
        progress: &mut dyn FnMut(StepProgress),
    ) -> Result<StepReport, StepError> {
        let started = Instant::now();
        let step = self.step + 1;
        let groups = self.groups(sampled);
        let settings = self.update_settings();
        let learns = |item: &TrainedCompletion| {
            item.weight != 0.0 && (item.advantage != 0.0 || settings.loss.beta != 0.0)
        };
        let moved = groups.iter().flat_map(|group| &group.items).any(learns);
        let schedule = self.schedule;
        // Sampling's buffers fit no pass of training, nor the other way round.
        let device = self.language_model.model.device().clone();
        device.trim();
        let report = update(
            &mut self.language_model.model,
            &mut self.optimizer,
            self.reference.as_deref_mut(),
            &groups,
            &settings,
            self.step * settings.iterations as u64,
            &|update| schedule.rate(update),
            &mut |done, all| progress(StepProgress::Updating(done, all)),
        )
        .map_err(|source| StepError::Update { step, source })?;
        device.trim();
        self.step = step;
        let completion_tokens: usize = sampled.completions.iter().map(|c| c.tokens.len()).sum();
        let group_size = self.settings.rollout.group_size;
        let prompt_tokens: usize = sampled.prompts.iter().map(|prompt| prompt.len()).sum();
        self.tokens += (completion_tokens + prompt_tokens * group_size) as u64;
        let metrics = self.metrics(sampled, &report, started.elapsed());
        let masked = sampled.completions.iter().filter(|completion| self.masks(completion)).count();
        Ok(StepReport { metrics, rollouts: self.sampler().records(sampled, step), moved, masked })
    }

    /// Whether a completion is left out because it was cut off.
    fn masks(&self, completion: &Completion) -> bool {
        self.settings.loss.mask_truncated && completion.finish == Finish::Length
    }

    /// The completions with their advantages and weights, as the update takes them.
    fn groups<'a>(&self, sampled: &'a Sampled) -> Vec<PromptGroup<'a>> {
        let Settings { loss, reward, rollout, .. } = &self.settings;
        let Sampled { prompts, completions, advantages, .. } = sampled;
        let group_size = rollout.group_size;
        let counted: Vec<MaskedCompletion> = completions
            .iter()
            .enumerate()
            .map(|(index, completion)| {
                let silent =
                    reward.drop_zero_variance && advantages.zero_variance[index / group_size];
                let part = if self.masks(completion) {
                    LossMask::Masked
                } else if silent {
                    LossMask::NoLoss
                } else {
                    LossMask::Full
                };
                MaskedCompletion { tokens: completion.tokens.len(), part }
            })
            .collect();
        let parts = vec![completions.len() / loss.accumulation_steps; loss.accumulation_steps];
        let weights = token_weights(loss.kind, rollout.max_completion_tokens, &parts, &counted);
        let comparable = self.update_settings().temperature == self.sampling_temperature();
        let item = |index: usize| {
            let completion = &completions[index];
            TrainedCompletion {
                tokens: &completion.tokens,
                sampled: comparable.then_some(&completion.log_probs),
                advantage: advantages.values[index],
                weight: weights[index],
                scores: completion.scores,
            }
        };
        let of_prompt = |(group, prompt): (usize, &'a Vec<u32>)| PromptGroup {
            prompt,
            items: (group * group_size..(group + 1) * group_size).map(item).collect(),
        };
        prompts.iter().enumerate().map(of_prompt).collect()
    }

    fn sampling_temperature(&self) -> f32 {
        // Greedy completions carry the log-probabilities of temperature 1.
        match self.settings.rollout.temperature as f32 {
            0.0 => 1.0,
            temperature => temperature,
        }
    }

    fn update_settings(&self) -> UpdateSettings {
        let Settings { loss, lora, train, .. } = &self.settings;
        UpdateSettings {
            loss: loss::LossTerms {
                clip_low: loss.epsilon_low,
                clip_high: loss.epsilon_high,
                beta: loss.beta,
                bias_corrected_kl: loss.bias_corrected_kl,
                reasoning_weight: loss.reasoning_weight,
            },
            iterations: loss.num_iterations,
            temperature: if loss.temperature_scaled { self.sampling_temperature() } else { 1.0 },
            dropout: lora.dropout as f32,
            seed: train.seed,
            micro_batch_tokens: self.settings.micro_batch_tokens(),
            // Recomputing changes no bit: `auto` may be decided by the machine, before (memory.rs).
            checkpoint: train.gradient_checkpointing != GradientCheckpointing::Off,
        }
    }

    fn metrics(&self, sampled: &Sampled, report: &UpdateReport, update: Duration) -> StepMetrics {
        let Sampled { completions, rewards, advantages, stats, .. } = sampled;
        let lengths: Vec<f64> = completions.iter().map(|c| c.tokens.len() as f64).collect();
        let terminated: Vec<f64> = completions
            .iter()
            .filter(|completion| completion.finish == Finish::Stop)
            .map(|completion| completion.tokens.len() as f64)
            .collect();
        let least = |of: &[f64]| of.iter().copied().reduce(f64::min);
        let most = |of: &[f64]| of.iter().copied().reduce(f64::max);
        let loss = report.sums.report();
        let share = |count: usize| count as f64 / completions.len().max(1) as f64;
        let unparsed =
            completions.iter().filter(|completion| completion.verdict.scores().is_none()).count();
        let mut more = Vec::new();
        let mut add = |name: &str, value: Option<f64>| {
            more.extend(value.map(|value| (name.to_owned(), value)));
        };
        let mean = (!terminated.is_empty()).then(|| advantages::mean(&terminated));
        add("completions/mean_terminated_length", mean);
        add("completions/min_terminated_length", least(&terminated));
        add("completions/max_terminated_length", most(&terminated));
        add("completions/unparsed_ratio", Some(share(unparsed)));
        let rollouts =
            sample::as_rewarded(&sampled.slots, completions, self.settings.rollout.group_size);
        let right = rollouts.iter().filter(|rollout| rollout.is_right()).count();
        add("completions/right_ratio", Some(share(right)));
        let scores: Vec<(f64, f64)> =
            completions.iter().filter_map(|completion| completion.verdict.scores()).collect();
        let count = |is: fn(&(f64, f64)) -> bool| scores.iter().filter(|s| is(s)).count();
        let ratio = |part: usize, of: usize| (of > 0).then(|| part as f64 / of as f64);
        let (for_a, ties) = (count(|(a, b)| a > b), count(|(a, b)| a == b));
        add("verdicts/share_of_a", ratio(for_a, scores.len() - ties));
        add("verdicts/tied_ratio", ratio(ties, scores.len()));
        let distinct = metrics::distinct_scores(scores.iter().copied());
        add("verdicts/distinct_scores", Some(distinct as f64));
        let advantages_of = advantages.values.iter().copied();
        add("advantages/min", advantages_of.clone().reduce(f32::min).map(f64::from));
        add("advantages/max", advantages_of.reduce(f32::max).map(f64::from));
        add("sampling/sampling_logp_difference/max", report.log_prob_difference);
        let (generation_s, update_s) = (sampled.elapsed.as_secs_f64(), update.as_secs_f64());
        let mut timing = vec![
            ("generation_s".to_owned(), generation_s),
            ("update_s".to_owned(), update_s),
            (
                "generated_tokens_per_s".to_owned(),
                stats.generated_tokens as f64 / generation_s.max(1e-9),
            ),
            ("trained_tokens_per_s".to_owned(), report.trained_rows as f64 / update_s.max(1e-9)),
        ];
        if let Some(peak) = peak_memory_bytes() {
            timing.push(("peak_memory_bytes".to_owned(), peak as f64));
        }
        StepMetrics {
            step: self.step,
            epoch: self.plan.epoch_after(self.step),
            loss: loss.loss,
            reward: advantages.reward_mean,
            reward_std: advantages.reward_std,
            rewards: rewards
                .columns
                .iter()
                .map(|column| RewardMetrics {
                    name: column.entry.reward.name().to_owned(),
                    mean: column.mean(),
                    std: column.std(),
                })
                .collect(),
            frac_reward_zero_std: advantages.zero_variance_share,
            completions: CompletionMetrics {
                mean_length: advantages::mean(&lengths),
                min_length: least(&lengths).unwrap_or(0.0),
                max_length: most(&lengths).unwrap_or(0.0),
                clipped_ratio: share(completions.len() - terminated.len()),
            },
            kl: loss.kl,
            entropy: completions.iter().map(|completion| completion.entropy).sum::<f64>()
                / lengths.iter().sum::<f64>(),
            entropy_trained: (report.entropy.1 > 0)
                .then(|| report.entropy.0 / report.entropy.1 as f64),
            clip_ratio: (report.sums.tokens > 0).then_some(ClipMetrics {
                low_mean: loss.low_mean,
                low_min: loss.low_min,
                high_mean: loss.high_mean,
                high_max: loss.high_max,
                region_mean: loss.region_mean,
            }),
            grad_norm: report.gradient_norm,
            learning_rate: report.learning_rate,
            num_tokens: self.tokens,
            more,
            step_time: generation_s + update_s,
            timing,
        }
    }
}

/// How much runs at once when a step's judgements are sampled.
pub fn sampling_options(
    model: &Model,
    settings: &Settings,
    cache_bytes: usize,
) -> generate::GeneratorOptions {
    let max_batch = running_sequences(settings);
    let page_bytes = KvCache::page_bytes(model.config(), model.cache_dtype());
    let most = cache_pages(settings).saturating_mul(page_bytes);
    let cache_bytes = cache_bytes.min(most);
    generate::GeneratorOptions {
        max_batch,
        prefill_rows: generate::GeneratorOptions::PREFILL_ROWS,
        cache_bytes,
    }
}

fn optimizer_settings(settings: &Settings) -> optimizer::AdamWSettings {
    let settings::OptimizerSettings { betas, eps, weight_decay, max_grad_norm, .. } =
        settings.optimizer;
    optimizer::AdamWSettings {
        beta1: betas[0],
        beta2: betas[1],
        epsilon: eps,
        weight_decay,
        max_norm: (max_grad_norm > 0.0).then_some(max_grad_norm),
    }
}

/// The most memory that the process had at a time; unknown on systems without /proc.
pub fn peak_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
