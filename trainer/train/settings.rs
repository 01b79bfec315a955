//! The whole configuration of a training run: typed, read from TOML, written out with a comment on every key.
//!
//! A file names a preset and what differs from it; keys that it leaves out have the preset's values. What is
//! unknown, of the wrong type or out of range is refused with its line, never ignored: a misspelled key would
//! train with another value than its author believes. [`Settings::to_toml`] writes every key, so that the
//! config of a run says all of it, and `parse` of that gives the same settings back.
//!
//! Each key is told once, in `settings/keys.rs`, with its meaning and what is allowed.

mod choices;
mod error;
mod keys;
mod presets;
mod value;

use std::{collections::BTreeSet, path::Path};

pub use choices::{
    Choice, Deliver, GradientCheckpointing, Orders, OverLong, Preset, Reference, Thinking, Weights,
};
use engine::{
    checkpoint::adapter::{AdapterSettings, Projection},
    optimizer::schedule::Shape,
};
pub use error::SettingsError;
use serde_json::{Map, Value};

use crate::train::grpo::{advantages::ScaleRewards, loss::LossType};

/// Completions of a step at most: a list of them is made before it.
const MAX_COMPLETIONS: usize = 1 << 20;

/// The largest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Paths of model and adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSettings {
    /// Checkpoint: a directory or a Hugging Face id. Empty: given apart.
    pub path: String,
    /// Adapter to start from. Empty: a new one.
    pub adapter: String,
    /// Place that weights are read from.
    pub weights: Weights,
}

/// The adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSettings {
    /// Rank.
    pub r: usize,
    /// The update is scaled by alpha / r, or alpha / sqrt(r).
    pub alpha: f64,
    /// Share of the adapter's inputs that is dropped in training.
    pub dropout: f64,
    /// The projections that get one.
    pub target_modules: Vec<String>,
    /// Scale by alpha / sqrt(r).
    pub rslora: bool,
}

impl LoraSettings {
    /// Shape of a new adapter.
    pub fn adapter(&self) -> AdapterSettings {
        let targets = Projection::ALL.into_iter().filter(|projection| {
            let name = projection.module().rsplit('.').next().unwrap_or_default();
            self.target_modules.iter().any(|module| module == name)
        });
        AdapterSettings {
            rank: self.r,
            alpha: self.alpha,
            rank_stabilized: self.rslora,
            dropout: self.dropout,
            targets: targets.collect(),
        }
    }
}

/// Training data.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSettings {
    /// Training pairs. Empty: given apart.
    pub train: String,
    /// Pairs for evaluation. Empty: no evaluation.
    pub held_out: String,
    /// The longest prompt, in tokens.
    pub max_prompt_tokens: usize,
    /// Treatment of longer prompts.
    pub over_long: OverLong,
    /// In which order the replies are shown.
    pub orders: Orders,
    /// A template file. Empty: the j1 template.
    pub template: String,
}

/// How completions are sampled.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutSettings {
    /// Completions of each prompt.
    pub group_size: usize,
    /// Prompts of each step; a pair in both orders is two.
    pub prompts_per_step: usize,
    /// Sampling temperature.
    pub temperature: f64,
    /// Nucleus; 1 is everything.
    pub top_p: f64,
    /// The likeliest tokens; 0 is everything.
    pub top_k: u32,
    /// Least probability relative to the likeliest; 0 is everything.
    pub min_p: f64,
    /// The longest completion, in tokens.
    pub max_completion_tokens: usize,
    /// Whether the model thinks first.
    pub thinking: Thinking,
    /// The day that a chat template's `strftime_now` is told, YYYY-MM-DD. Empty: none.
    pub template_date: String,
}

/// Weights of the rewards in the sum; 0 computes and logs a reward without learning from it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RewardWeights {
    /// Tags and box: 0 to 0.2.
    pub format: f64,
    /// Chosen strictly above rejected: 1, else `wrong_verdict`.
    pub verdict: f64,
    /// Right: the share of right verdicts in the other order, else 0.
    pub consistency: f64,
    /// From 0 down to -1 as a completion nears the limit.
    pub length: f64,
}

/// Rewards of completions.
#[derive(Debug, Clone, PartialEq)]
pub struct RewardSettings {
    /// Weights by name.
    pub weights: RewardWeights,
    /// Reward of a wrong, tied or unparsed verdict.
    pub wrong_verdict: f64,
    /// The longest completion that costs nothing, in tokens.
    pub length_from_tokens: usize,
    /// Standardize each reward in its group before the weighted sum.
    pub normalize_each: bool,
    /// Leave groups out in which all earned the same.
    pub drop_zero_variance: bool,
    /// The standard deviation that divides advantages.
    pub scale_rewards: ScaleRewards,
}

/// The loss.
#[derive(Debug, Clone, PartialEq)]
pub struct LossSettings {
    /// How tokens are averaged.
    pub kind: LossType,
    /// Weight of the KL divergence from the reference.
    pub beta: f64,
    /// Reference policy of that divergence.
    pub reference: Reference,
    /// The importance ratio is clipped below 1 - this.
    pub epsilon_low: f64,
    /// The importance ratio is clipped above 1 + this.
    pub epsilon_high: f64,
    /// Multiply the KL term by the ratio.
    pub bias_corrected_kl: bool,
    /// Updates on the same completions.
    pub num_iterations: usize,
    /// Leave completions out that the length limit ended.
    pub mask_truncated: bool,
    /// Take log-probabilities at the sampling temperature.
    pub temperature_scaled: bool,
    /// Parts of a step that the loss is averaged over: TRL's gradient accumulation.
    pub accumulation_steps: usize,
}

/// AdamW and its rate.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizerSettings {
    /// The highest rate.
    pub learning_rate: f64,
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The gradient's norm is clipped to this; 0 clips nothing.
    pub max_grad_norm: f64,
    /// Learning rate schedule after the warm-up.
    pub schedule: Shape,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
}

/// The run.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSettings {
    /// Optimizer steps; 0: as many as `epochs` ask for.
    pub steps: u64,
    /// Passes over the data, where `steps` is 0.
    pub epochs: f64,
    /// Seed of everything that is random.
    pub seed: u64,
    /// Tokens of a packed batch at most; 0: see [`Settings::micro_batch_tokens`].
    pub micro_batch_tokens: usize,
    /// Recompute activations in the backward pass.
    pub gradient_checkpointing: GradientCheckpointing,
    /// Steps between two checkpoints.
    pub save_every: u64,
    /// Checkpoints that are kept, beside the best.
    pub keep_last: usize,
    /// Steps between two evaluations; 0: none.
    pub eval_every: u64,
    /// Held-out pairs of an evaluation; 0: all.
    pub eval_pairs: usize,
    /// Which step's adapter is the result.
    pub deliver: Deliver,
}

/// The settings of a training run.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Preset that gives the keys which a file leaves out.
    pub preset: Preset,
    /// `[model]`
    pub model: ModelSettings,
    /// `[lora]`
    pub lora: LoraSettings,
    /// `[data]`
    pub data: DataSettings,
    /// `[rollout]`
    pub rollout: RolloutSettings,
    /// `[reward]`
    pub reward: RewardSettings,
    /// `[loss]`
    pub loss: LossSettings,
    /// `[optimizer]`
    pub optimizer: OptimizerSettings,
    /// `[train]`
    pub train: TrainSettings,
}

impl Settings {
    /// The settings of a preset.
    pub fn preset(preset: Preset) -> Settings {
        presets::settings(preset)
    }

    /// Reads a file. A relative path of a template starts at its directory.
    pub fn from_file(path: &Path) -> Result<Settings, SettingsError> {
        Ok(Settings::from_file_with_keys(path)?.0)
    }

    /// Reads a file, and returns the keys that it has.
    pub fn from_file_with_keys(
        path: &Path,
    ) -> Result<(Settings, BTreeSet<&'static str>), SettingsError> {
        use std::io::Read;
        let read = |source| SettingsError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(read)?;
        file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(read)?;
        if text.len() as u64 > MAX_FILE {
            return Err(SettingsError::TooLarge { path: path.to_owned() });
        }
        let (mut settings, keys) = Settings::parse_with_keys(&path.display().to_string(), &text)?;
        let template = &mut settings.data.template;
        let beside = path.parent().map(|directory| directory.join(template.as_str()));
        if let Some(beside) = beside.as_deref().and_then(Path::to_str)
            && !template.is_empty()
        {
            *template = beside.to_owned();
        }
        Ok((settings, keys))
    }

    /// Reads settings from text; errors name `name`.
    pub fn parse(name: &str, text: &str) -> Result<Settings, SettingsError> {
        Ok(Settings::parse_with_keys(name, text)?.0)
    }

    fn parse_with_keys(
        name: &str,
        text: &str,
    ) -> Result<(Settings, BTreeSet<&'static str>), SettingsError> {
        let (settings, keys) = keys::parse(name, text, None)?;
        settings
            .validate()
            .map_err(|problem| SettingsError::Conflict { name: name.to_owned(), problem })?;
        Ok((settings, keys))
    }

    /// Every key and its value, as [`Settings::from_values`] reads them.
    pub fn values(&self) -> Map<String, Value> {
        keys::values(self)
    }

    /// Settings of which [`Settings::values`] gave these; errors name `name`.
    pub fn from_values(name: &str, values: &Map<String, Value>) -> Result<Settings, SettingsError> {
        Settings::parse(name, &keys::from_values(values))
    }

    /// Whether a run that is continued may have another value of this key: where things are, how long it is, and
    /// what is saved, evaluated and recomputed.
    pub fn may_change(key: &str) -> bool {
        keys::may_change(key)
    }

    /// These settings with `KEY=VALUE` in place of one value, such as `loss.type=grpo`. A word needs no quotes.
    pub fn with(&self, assignment: &str) -> Result<Settings, SettingsError> {
        let parse = |text: &str| Ok(keys::parse(assignment, text, Some(self))?.0);
        match (parse(assignment), assignment.split_once('=')) {
            (Err(SettingsError::Syntax { .. }), Some((key, value))) => {
                parse(&format!("{key} = {:?}", value.trim()))
            }
            (result, _) => result,
        }
    }

    /// Tokens of a packed batch at most. 0 picks a size from the settings alone: which sums are taken
    /// together decides the last bits of gradients, and a run has the same bits everywhere.
    pub fn micro_batch_tokens(&self) -> usize {
        const LEAST: usize = 4096;
        match self.train.micro_batch_tokens {
            0 => LEAST.max(
                self.data.max_prompt_tokens.saturating_add(self.rollout.max_completion_tokens),
            ),
            tokens => tokens,
        }
    }

    /// Every key with its meaning, what is allowed, and its value.
    pub fn to_toml(&self) -> String {
        keys::write(self)
    }

    /// Checks rules that concern several keys. The error names the keys that disagree.
    pub fn validate(&self) -> Result<(), String> {
        let (reward, rollout) = (&self.reward, &self.rollout);
        let weights = &reward.weights;
        if [weights.format, weights.verdict, weights.consistency, weights.length] == [0.0; 4] {
            return Err("all of reward.weights are 0, so there is nothing to learn from".to_owned());
        }
        if weights.consistency != 0.0 && self.data.orders != Orders::Both {
            return Err("reward.weights.consistency needs data.orders = \"both\"".to_owned());
        }
        if self.data.orders == Orders::Both && !rollout.prompts_per_step.is_multiple_of(2) {
            return Err(format!(
                "rollout.prompts_per_step = {} is odd, and data.orders = \"both\" makes two prompts of each pair",
                rollout.prompts_per_step
            ));
        }
        let completions = rollout.prompts_per_step.saturating_mul(rollout.group_size);
        if completions > MAX_COMPLETIONS {
            return Err(format!(
                "rollout.prompts_per_step = {} times rollout.group_size = {} are {completions} completions a step; at \
                 most {MAX_COMPLETIONS} are made",
                rollout.prompts_per_step, rollout.group_size
            ));
        }
        if weights.length != 0.0 && reward.length_from_tokens >= rollout.max_completion_tokens {
            return Err(format!(
                "reward.length_from_tokens = {} must be below rollout.max_completion_tokens = {}",
                reward.length_from_tokens, rollout.max_completion_tokens
            ));
        }
        if !rollout.prompts_per_step.is_multiple_of(self.loss.accumulation_steps) {
            return Err(format!(
                "loss.accumulation_steps = {} must divide rollout.prompts_per_step = {}",
                self.loss.accumulation_steps, rollout.prompts_per_step
            ));
        }
        if reward.wrong_verdict >= 1.0 {
            return Err(
                "reward.wrong_verdict must be below the 1 that a right verdict earns".into()
            );
        }
        if self.train.steps == 0 && self.train.epochs == 0.0 {
            return Err("train.steps and train.epochs are both 0: nothing would be trained".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
