//! Every setting, told once: its key, field and type, its meaning, and what is allowed.

use std::{cell::RefCell, collections::BTreeSet};

use serde_json::{Map, Value as Json};
use toml::de::{DeTable, DeValue};

use engine::{
    checkpoint::adapter::{AdapterSettings, Projection},
    optimizer::schedule::Shape,
};

use super::{
    Deliver, GradientCheckpointing, Orders, OverLong, Preset, Reference, Settings, SettingsError,
    Thinking, Weights, value::Value,
};
use crate::train::grpo::{advantages::ScaleRewards, loss::LossType};

/// The projections of a decoder layer.
pub(super) const MODULES: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Other names for our keys: TRL's, PEFT's and what comes to mind, so that the hint is right where the
/// spelling is not near.
const ALIASES: [(&str, &str); 15] = [
    ("lr", "optimizer.learning_rate"),
    ("adam_beta1", "optimizer.betas"),
    ("adam_beta2", "optimizer.betas"),
    ("adam_epsilon", "optimizer.eps"),
    ("lr_scheduler_type", "optimizer.schedule"),
    ("rank", "lora.r"),
    ("use_rslora", "lora.rslora"),
    ("num_generations", "rollout.group_size"),
    ("max_new_tokens", "rollout.max_completion_tokens"),
    ("enable_thinking", "rollout.thinking"),
    ("loss_type", "loss.type"),
    ("mask_truncated_completions", "loss.mask_truncated"),
    ("max_steps", "train.steps"),
    ("num_train_epochs", "train.epochs"),
    ("save_total_limit", "train.keep_last"),
];

/// One key.
struct Key {
    /// With its section.
    path: &'static str,
    meaning: &'static str,
    allowed: String,
    place: Box<dyn Place>,
}

/// A key's value in [`Settings`].
trait Place {
    fn write(&self, settings: &Settings) -> String;
    /// Whether the value is allowed; if it is, it is set.
    fn read(&self, settings: &mut Settings, value: &DeValue<'_>) -> bool;
}

struct Field<T> {
    get: fn(&Settings) -> &T,
    get_mut: fn(&mut Settings) -> &mut T,
    is_allowed: fn(&T) -> bool,
}

impl<T: Value> Place for Field<T> {
    fn write(&self, settings: &Settings) -> String {
        (self.get)(settings).write()
    }

    fn read(&self, settings: &mut Settings, value: &DeValue<'_>) -> bool {
        match T::read(value).filter(self.is_allowed) {
            Some(value) => {
                *(self.get_mut)(settings) = value;
                true
            }
            None => false,
        }
    }
}

/// What is allowed: `allowed` in words and `is_allowed`, or what the type says.
fn key<T: Value + 'static>(
    path: &'static str,
    meaning: &'static str,
    allowed: &str,
    field: Field<T>,
) -> Key {
    let allowed = T::allowed().unwrap_or_else(|| allowed.to_owned());
    Key { path, meaning, allowed, place: Box::new(field) }
}

/// The place of a setting: `settings.reward.weights.format`.
macro_rules! place {
    ($settings:ident, ($($section:ident).+), $field:ident) => { $settings.$($section).+.$field };
}

/// The sections as structs and the keys of all of them. A line is: key in the file => field: type = meaning; what is
/// allowed, in words and as a test.
macro_rules! settings {
    ($(
        $(#[$attribute:meta])*
        $section:literal => $place:tt $name:ident $(with $inner:ident: $inner_type:ty)? {
            $($key:literal => $field:ident: $type:ty = $meaning:literal; $allowed:expr, $is_allowed:expr;)+
        }
    )+) => {
        $(
            $(#[$attribute])*
            #[derive(Debug, Clone, PartialEq)]
            pub struct $name {
                $(
                    /// The section of this name.
                    pub $inner: $inner_type,
                )?
                $(#[doc = $meaning] pub $field: $type,)+
            }
        )+

        fn keys() -> Vec<Key> {
            let preset = Field {
                get: |settings| &settings.preset,
                get_mut: |settings| &mut settings.preset,
                is_allowed: |_| true,
            };
            vec![
                key("preset", "What keys that are left out are taken from.", ANY, preset),
                $($(key(concat!($section, ".", $key), $meaning, $allowed, Field {
                    get: |settings| &place!(settings, $place, $field),
                    get_mut: |settings| &mut place!(settings, $place, $field),
                    is_allowed: $is_allowed,
                }),)+)+
            ]
        }
    };
}

const ANY: &str = "text";
const SHARE: &str = "a number from 0 to 1";
// Beyond what anybody trains, and below what sums and products of them could overflow: a number with some zeros too
// many is named here, where its key is known, and not by the allocation that fails for it.
const COUNT: &str = "a whole number from 1 to 1000000000";
const FROM_0: &str = "a whole number from 0 to 1000000000";
const SEED: &str = "a whole number from 0 to 18446744073709551615";
const TOKENS: &str = "a whole number from 1 to 1048576";
const PROMPTS: &str = "a whole number from 1 to 65536";
const AMOUNT: &str = "a number from 0 to 1000000";

fn is_count(number: u64) -> bool {
    (1..=1_000_000_000).contains(&number)
}

fn is_from_0(number: u64) -> bool {
    number <= 1_000_000_000
}

fn is_amount(number: f64) -> bool {
    (0.0..=1e6).contains(&number)
}

#[rustfmt::skip]
settings! {
    /// Paths of model and adapter.
    "model" => (model) ModelSettings {
        "path" => path: String = "Checkpoint: a directory or a Hugging Face id."; ANY, |_| true;
        "adapter" => adapter: String = "PEFT adapter to start from; empty: a new one."; ANY, |_| true;
        "weights" => weights: Weights = "Where weights are read: in the checkpoint's files, or in a packed copy; auto: in the copy once\ntokens are generated, if memory and CPU allow. It changes no bit; config.toml of a run has what came\nof it."; ANY, |_| true;
    }

    /// The adapter.
    "lora" => (lora) LoraSettings {
        "r" => r: usize = "Rank of the adapter."; "a whole number from 1 to 1024", |n| (1..=1024).contains(n);
        "alpha" => alpha: f64 = "The adapter's update is scaled by alpha / r."; "a number above 0, up to 1000000", |x| *x > 0.0 && is_amount(*x);
        "dropout" => dropout: f64 = "Share of the adapter's inputs dropped in training. Above 0, the policy that is trained is\nnot the one that sampled: importance ratios are not 1."; "a number from 0 to below 1", |x| (0.0..1.0).contains(x);
        "target_modules" => target_modules: Vec<String> = "The projections that are adapted."; "a list of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj", |list| are_modules(list);
        "rslora" => rslora: bool = "Scale by alpha / sqrt(r) instead."; ANY, |_| true;
    }

    /// Training data.
    "data" => (data) DataSettings {
        "train" => train: String = "Training pairs, as j1 data prepare writes them."; ANY, |_| true;
        "held_out" => held_out: String = "Pairs for evaluation; empty: no evaluation."; ANY, |_| true;
        "max_prompt_tokens" => max_prompt_tokens: usize = "The longest prompt, in tokens, chat template included."; TOKENS, |n| (1..=1 << 20).contains(n);
        "over_long" => over_long: OverLong = "Longer prompts: left out before the run and counted, or cut at their beginning."; ANY, |_| true;
        "orders" => orders: Orders = "Every pair in both orders within a step, or in one drawn for it."; ANY, |_| true;
        "template" => template: String = "The judge's prompt: j1 (or empty); examples, for models that do not know the form; or a template file."; ANY, |_| true;
    }

    /// How completions are sampled.
    "rollout" => (rollout) RolloutSettings {
        "group_size" => group_size: usize = "Completions of each prompt (G)."; "a whole number from 2 to 1024", |n| (2..=1024).contains(n);
        "prompts_per_step" => prompts_per_step: usize = "Prompts of an optimizer step; a pair in both orders is two."; PROMPTS, |n| (1..=1 << 16).contains(n);
        "temperature" => temperature: f64 = "Sampling temperature."; "a number from 0.01 to 10", |x| (0.01..=10.0).contains(x);
        "top_p" => top_p: f64 = "Sample from the likeliest tokens that hold this much probability; 1: from all."; "a number above 0, up to 1", |x| *x > 0.0 && *x <= 1.0;
        "top_k" => top_k: u32 = "Sample from the K likeliest tokens; 0: from all."; FROM_0, |n| is_from_0((*n).into());
        "min_p" => min_p: f64 = "Sample from tokens at least this likely relative to the likeliest; 0: from all."; SHARE, |x| (0.0..=1.0).contains(x);
        "max_completion_tokens" => max_completion_tokens: usize = "The longest completion, in tokens."; TOKENS, |n| (1..=1 << 20).contains(n);
        "thinking" => thinking: Thinking = "Whether the model thinks first; auto: as its chat template has it."; ANY, |_| true;
        "template_date" => template_date: String = "The day that a chat template's strftime_now is told, such as 2025-01-31; empty: none."; "a day such as \"2025-01-31\", or \"\"", |text| text.is_empty() || text.parse::<engine::text::chat::Date>().is_ok();
    }

    /// Rewards of completions.
    "reward" => (reward) RewardSettings with weights: RewardWeights {
        "wrong_verdict" => wrong_verdict: f64 = "What a wrong, tied or unparsed verdict earns; a right one earns 1."; "a number from -1000000 to below 1", |x| (-1e6..1.0).contains(x);
        "length_from_tokens" => length_from_tokens: usize = "Reward length falls from 0 at this many tokens to -1 at max_completion_tokens."; FROM_0, |n| is_from_0(*n as u64);
        "normalize_each" => normalize_each: bool = "Standardize each reward in its group before the weighted sum, so that a missing tag cannot pull\nas hard as a wrong verdict."; ANY, |_| true;
        "drop_zero_variance" => drop_zero_variance: bool = "Leave groups out in which all completions earned the same; else their KL term stays."; ANY, |_| true;
        "scale_rewards" => scale_rewards: ScaleRewards = "Divide advantages by the standard deviation of the group, of the step, or not at all."; ANY, |_| true;
    }

    /// Weights of the rewards in the sum; 0 computes and logs a reward without learning from it.
    #[derive(Default)]
    "reward.weights" => (reward.weights) RewardWeights {
        "format" => format: f64 = "Tags and box, a reward from 0 to 0.2."; AMOUNT, |x| is_amount(*x);
        "verdict" => verdict: f64 = "The chosen reply scored strictly above the other."; AMOUNT, |x| is_amount(*x);
        "consistency" => consistency: f64 = "Of a right verdict, the share of right ones in the pair's other order; needs data.orders = \"both\"."; AMOUNT, |x| is_amount(*x);
        "agreement" => agreement: f64 = "The share of the pair's other order that prefers the same reply, right or wrong; needs\ndata.orders = \"both\"."; AMOUNT, |x| is_amount(*x);
        "summed" => summed: f64 = "The share of the pair's other order with which the sum of scores is right, a tie half; needs\ndata.orders = \"both\"."; AMOUNT, |x| is_amount(*x);
        "length" => length: f64 = "The soft penalty for long completions."; AMOUNT, |x| is_amount(*x);
    }

    /// The loss.
    "loss" => (loss) LossSettings {
        "type" => kind: LossType = "How tokens are averaged: in each completion first, over each part, over the step, or by the\nmost there could be."; ANY, |_| true;
        "beta" => beta: f64 = "Weight of the KL divergence from the reference."; AMOUNT, |x| is_amount(*x);
        "reference" => reference: Reference = "What that divergence is from: the policy as training began, or the base model. They differ where an\nadapter is trained further (model.adapter): from \"base\", its earlier training is pulled back."; ANY, |_| true;
        "epsilon_low" => epsilon_low: f64 = "The importance ratio is clipped below 1 - epsilon_low."; SHARE, |x| (0.0..=1.0).contains(x);
        "epsilon_high" => epsilon_high: f64 = "The importance ratio is clipped above 1 + epsilon_high."; AMOUNT, |x| is_amount(*x);
        "bias_corrected_kl" => bias_corrected_kl: bool = "Multiply the KL term by the importance ratio."; ANY, |_| true;
        "reasoning_weight" => reasoning_weight: f64 = "The advantage of tokens outside of the scores is multiplied by it. Below 1, the verdict is trained more than\nwhat leads to it; at 0 it alone is.";  SHARE, |x| (0.0..=1.0).contains(x);
        "num_iterations" => num_iterations: usize = "Updates on the same completions."; "a whole number from 1 to 64", |n| (1..=64).contains(n);
        "mask_truncated" => mask_truncated: bool = "Leave completions out of the loss that the length limit ended."; ANY, |_| true;
        "temperature_scaled" => temperature_scaled: bool = "Take log-probabilities at the sampling temperature."; ANY, |_| true;
        "accumulation_steps" => accumulation_steps: usize = "Parts of a step that the loss is averaged over, TRL's gradient accumulation. It decides what\nbnpo divides by, not how much memory is used."; PROMPTS, |n| (1..=1 << 16).contains(n);
    }

    /// AdamW and its rate.
    "optimizer" => (optimizer) OptimizerSettings {
        "learning_rate" => learning_rate: f64 = "AdamW's rate after the warm-up."; "a number above 0, up to 1", |x| *x > 0.0 && *x <= 1.0;
        "betas" => betas: [f64; 2] = "Decay of the mean and of the mean square of gradients."; "two numbers from 0 to below 1", |b| b.iter().all(|x| (0.0..1.0).contains(x));
        "eps" => eps: f64 = "Added to the root of the mean square."; "a number from 1e-30 to 1", |x| (1e-30..=1.0).contains(x);
        "weight_decay" => weight_decay: f64 = "Decoupled weight decay."; AMOUNT, |x| is_amount(*x);
        "max_grad_norm" => max_grad_norm: f64 = "The norm of the whole gradient is clipped to this; 0: never."; AMOUNT, |x| is_amount(*x);
        "schedule" => schedule: Shape = "The rate after the warm-up: down to 0, or unchanged."; ANY, |_| true;
        "warmup_steps" => warmup_steps: u64 = "Steps in which the rate rises from 0."; FROM_0, |n| is_from_0(*n);
    }

    /// The run.
    "train" => (train) TrainSettings {
        "steps" => steps: u64 = "Optimizer steps; 0: as many as epochs asks for."; FROM_0, |n| is_from_0(*n);
        "epochs" => epochs: f64 = "Passes over the data, where steps is 0. A file or an assignment that gives epochs and not steps sets\nsteps to 0."; "a number from 0 to 10000", |x| (0.0..=1e4).contains(x);
        "seed" => seed: u64 = "Decides the data's order, the completions and the adapter's first values."; SEED, |_| true;
        "micro_batch_tokens" => micro_batch_tokens: usize = "Tokens of a packed batch at most; 0: the longest prompt and completion, at least 4096. It changes\nmemory, and the last bits of gradients; config.toml of a run has the number."; FROM_0, |n| is_from_0(*n as u64);
        "gradient_checkpointing" => gradient_checkpointing: GradientCheckpointing = "Recompute activations in the backward pass; auto: unless training without it would fit half of the\nmemory that is free at the start. It changes no bit."; ANY, |_| true;
        "save_every" => save_every: u64 = "Steps between two checkpoints."; COUNT, |n| is_count(*n);
        "keep_last" => keep_last: usize = "Checkpoints that are kept, beside the best one."; COUNT, |n| is_count(*n as u64);
        "eval_every" => eval_every: u64 = "Steps between two evaluations on held-out pairs, in both orders, the first before any step; 0: none."; FROM_0, |n| is_from_0(*n);
        "eval_pairs" => eval_pairs: usize = "Held-out pairs of an evaluation; 0: all."; FROM_0, |n| is_from_0(*n as u64);
        "show_every" => show_every: u64 = "Steps between two looks at judgements: the best and the worst of the group whose rewards differ most are\nprinted. 0: none. It changes nothing that the run computes."; FROM_0, |n| is_from_0(*n);
        "deliver" => deliver: Deliver = "Which step's adapter becomes adapter/: of those evaluated, the one right in both orders most often; or\nthe last. Without held-out pairs it is the last."; ANY, |_| true;
    }
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

fn are_modules(list: &[String]) -> bool {
    let known = |name: &String| MODULES.contains(&name.as_str());
    let once = |name: &String| list.iter().filter(|other| *other == name).count() == 1;
    !list.is_empty() && list.iter().all(|name| known(name) && once(name))
}

/// Every key, section by section.
pub(super) fn write(settings: &Settings) -> String {
    let mut text = String::new();
    let mut section = "";
    for key in keys() {
        let (its_section, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        if its_section != section {
            section = its_section;
            text += &format!("\n[{section}]\n");
        }
        for line in key.meaning.lines() {
            text += &format!("# {line}\n");
        }
        if key.allowed != ANY {
            text += &format!("# {}\n", key.allowed);
        }
        text += &format!("{name} = {}\n", key.place.write(settings));
    }
    text
}

/// Whether a run may go on with another value: where things are, how long it is, what is saved, evaluated and
/// recomputed. Everything else decides what its steps are.
pub(super) fn may_change(path: &str) -> bool {
    match path.split_once('.') {
        Some(("model", _)) => true,
        Some(("data", key)) => ["train", "held_out", "template"].contains(&key),
        Some(("train", key)) => !["seed", "micro_batch_tokens"].contains(&key),
        _ => false,
    }
}

/// Every key and its value.
pub(super) fn values(settings: &Settings) -> Map<String, Json> {
    let value = |key: Key| {
        let text = key.place.write(settings);
        let value = serde_json::from_str(&text).expect("TOML as it is written here is JSON too");
        (key.path.to_owned(), value)
    };
    keys().into_iter().map(value).collect()
}

/// The TOML of keys and values as [`values`] gave them.
pub(super) fn from_values(values: &Map<String, Json>) -> String {
    // DEL: see the TOML of a string.
    let line = |(key, value): (&String, &Json)| format!("{key} = {value}\n");
    values.iter().map(line).collect::<String>().replace('\u{7f}', "\\u007F")
}

/// Settings from a file's text, and the keys that it has; keys that are left out have the preset's values.
pub(super) fn parse(
    name: &str,
    text: &str,
    base: Option<&Settings>,
) -> Result<(Settings, BTreeSet<&'static str>), SettingsError> {
    let line = |at: usize| text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| SettingsError::Syntax {
        name: name.to_owned(),
        line: error.span().map_or(1, |span| line(span.start.min(text.len()))),
        message: error.message().to_owned(),
    })?;
    let table = table.into_inner();
    // The preset comes before all others, wherever it is in the file. If it is none, it is refused below.
    let preset = table.get("preset").and_then(|value| Preset::read(value.get_ref()));
    let mut settings = match base {
        Some(base) => base.clone(),
        None => Settings::preset(preset.unwrap_or(Preset::J1Nano)),
    };
    let parser = Parser { name, text, line: &line, keys: keys(), found: RefCell::default() };
    parser.table("", &table, &mut settings)?;
    let found = parser.found.into_inner();
    if found.contains("train.epochs") && !found.contains("train.steps") {
        settings.train.steps = 0;
    }
    Ok((settings, found))
}

struct Parser<'a> {
    name: &'a str,
    text: &'a str,
    line: &'a dyn Fn(usize) -> usize,
    keys: Vec<Key>,
    found: RefCell<BTreeSet<&'static str>>,
}

impl Parser<'_> {
    fn table(
        &self,
        section: &str,
        table: &DeTable<'_>,
        settings: &mut Settings,
    ) -> Result<(), SettingsError> {
        for (key, value) in table {
            let separator = if section.is_empty() { "" } else { "." };
            let path = format!("{section}{separator}{}", key.get_ref());
            let line = (self.line)(key.span().start);
            let name = self.name.to_owned();
            let is_section = self.keys.iter().any(|key| key.path.starts_with(&format!("{path}.")));
            match (value.get_ref(), self.keys.iter().find(|key| key.path == path)) {
                (DeValue::Table(inner), _) if is_section => self.table(&path, inner, settings)?,
                (_, None) if is_section => {
                    let (found, allowed) = (self.shown(value.span()), "a section".to_owned());
                    return Err(SettingsError::Value { name, line, key: path, found, allowed });
                }
                (_, None) => {
                    let hint = self.hint(section, &path);
                    return Err(SettingsError::Unknown { name, line, key: path, hint });
                }
                (value_read, Some(key)) => {
                    if !key.place.read(settings, value_read) {
                        let (found, allowed) = (self.shown(value.span()), key.allowed.clone());
                        return Err(SettingsError::Value { name, line, key: path, found, allowed });
                    }
                    self.found.borrow_mut().insert(key.path);
                }
            }
        }
        Ok(())
    }

    /// The text of a value in the file, cut if it is long.
    fn shown(&self, span: std::ops::Range<usize>) -> String {
        let text = self.text.get(span).unwrap_or("").trim();
        match text.chars().count() <= 60 && !text.contains('\n') {
            true => text.to_owned(),
            false => format!(
                "{}...",
                text.chars().take_while(|&c| c != '\n').take(57).collect::<String>()
            ),
        }
    }

    /// The key that was meant, or all that could have been.
    fn hint(&self, section: &str, path: &str) -> String {
        let last = |path: &str| path.rsplit('.').next().unwrap_or("").to_owned();
        let wrong = last(path);
        let alias = ALIASES.iter().find(|(other, _)| *other == wrong).map(|(_, ours)| *ours);
        let same_name = self.keys.iter().find(|key| last(key.path) == wrong).map(|key| key.path);
        let mut sections: Vec<&str> =
            self.keys.iter().filter_map(|key| key.path.rsplit_once('.')).map(|s| s.0).collect();
        sections.dedup();
        let paths = self.keys.iter().map(|key| key.path).chain(sections.iter().copied());
        let near = paths.map(|key| (edit_distance(key, path), key)).min();
        // As many slips as a third of the name is another word.
        let near = near.filter(|(distance, _)| *distance <= (wrong.chars().count() / 3).max(2));
        if let Some(meant) = same_name.or(near.map(|(_, key)| key)).or(alias) {
            return format!("did you mean {meant}?");
        }
        let inside: Vec<String> = (self.keys.iter())
            .filter(|key| key.path.rsplit_once('.').is_some_and(|(its, _)| its == section))
            .map(|key| last(key.path))
            .collect();
        match inside.is_empty() {
            true => format!("there are preset and the sections {}", sections.join(", ")),
            false => format!("[{section}] has {}", inside.join(", ")),
        }
    }
}

/// Insertions, deletions and substitutions that make one word of the other (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(200).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, distance) in [
            ("", "", 0),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
            ("lora.r", "lora.r", 0),
            ("é", "e", 1),
        ] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
            assert_eq!(edit_distance(b, a), distance, "{b} {a}");
        }
    }

    #[test]
    fn aliases_name_keys() {
        let keys = keys();
        for (other, ours) in ALIASES {
            assert!(keys.iter().any(|key| key.path == ours), "{other}: {ours}");
        }
    }
}
