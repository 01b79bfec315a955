//! The whole configuration of a training run: typed, read from TOML, written out with a comment on every key.
//!
//! A file names a preset and what differs from it; keys that it leaves out have the preset's values. What is
//! unknown, of the wrong type or out of range is refused with its line, never ignored: a misspelled key would
//! train with another value than its author believes. [`Settings::to_toml`] writes every key, so that the
//! config of a run says all of it, and `parse` of that gives the same settings back.
//!
//! `settings/keys.rs` tells each setting once: its key, field and type, its meaning, and what is allowed.

mod choices;
mod error;
mod keys;
mod presets;
mod value;

use std::{collections::BTreeSet, path::Path};

pub use choices::{
    Choice, Deliver, GradientCheckpointing, Orders, OverLong, Preset, Reference, Thinking, Weights,
};
pub use error::SettingsError;
pub use keys::{
    DataSettings, LoraSettings, LossSettings, ModelSettings, OptimizerSettings, RewardSettings,
    RewardWeights, RolloutSettings, TrainSettings,
};
use serde_json::{Map, Value};

use crate::judge::prompt::Template;

/// Completions of a step at most: a list of them is made before it.
const MAX_COMPLETIONS: usize = 1 << 20;

/// The largest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// The settings of a training run.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Preset that gives the keys which a file leaves out.
    pub preset: Preset,
    /// Section `[model]`.
    pub model: ModelSettings,
    /// Section `[lora]`.
    pub lora: LoraSettings,
    /// Section `[data]`.
    pub data: DataSettings,
    /// Section `[rollout]`.
    pub rollout: RolloutSettings,
    /// Section `[reward]`.
    pub reward: RewardSettings,
    /// Section `[loss]`.
    pub loss: LossSettings,
    /// Section `[optimizer]`.
    pub optimizer: OptimizerSettings,
    /// Section `[train]`.
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
            && !Template::is_bundled(template)
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
        let both = [
            ("consistency", weights.consistency),
            ("agreement", weights.agreement),
            ("summed", weights.summed),
        ];
        let alone = [weights.format, weights.verdict, weights.length];
        if alone.into_iter().chain(both.map(|(_, weight)| weight)).all(|weight| weight == 0.0) {
            return Err("all of reward.weights are 0, so there is nothing to learn from".to_owned());
        }
        let paired = both.iter().find(|(_, weight)| *weight != 0.0);
        if let Some((name, _)) = paired.filter(|_| self.data.orders != Orders::Both) {
            return Err(format!("reward.weights.{name} needs data.orders = \"both\""));
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
