//! How judgements are written.

use clap::{Args, ValueEnum};
use engine::text::chat::Date;

use super::values::{parse_size, parse_stop};

/// How judgements are written.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Generation")]
pub(crate) struct GenerationArgs {
    /// At most N tokens per judgement [default: 2048, or half of the model's positions if that is less]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_new_tokens: Option<u32>,

    /// Sampling temperature, 0 for greedy [default: that of a generation_config.json with do_sample
    /// true (1 if it names none), else 0]
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f32>,

    /// Keep the likeliest tokens that hold this much probability, 1 for all
    /// [default: generation_config.json's, else 1]
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f32>,

    /// Keep the K likeliest tokens, 0 for all
    /// [default: generation_config.json's (50 where do_sample is true, as in transformers), else 0]
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<u32>,

    /// Keep tokens at least this likely relative to the likeliest, 0 for all
    /// [default: generation_config.json's, else 0]
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f32>,

    /// Penalty for tokens that the prompt or the judgement already holds: it divides positive logits and
    /// multiplies negative ones, before all else and for greedy too; 1 is none
    /// [default: generation_config.json's, else 1]
    #[arg(long, value_name = "P")]
    pub(crate) repetition_penalty: Option<f32>,

    /// End a judgement after this text, which stays in it. May be given several times; an empty text
    /// stands for none [default: generation_config.json's stop_strings]
    #[arg(long, value_name = "TEXT", value_parser = parse_stop, allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,

    /// Seed: the same seed gives the same judgements, in any batch and at any number of threads
    #[arg(short = 's', long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Whether the model may think before it answers (Qwen3's enable_thinking)
    /// [default: as the chat template has it]
    #[arg(long, value_enum, value_name = "on|off")]
    pub(crate) thinking: Option<OnOff>,

    /// The day that a chat template is told when it asks for today's (strftime_now) [default: none]
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub(crate) template_date: Option<Date>,

    /// The judge's prompt: j1; examples, for models that do not know the form; or your own, a minijinja file (see
    /// trainer/judge/prompt/README.md). Scores are read from 1 to 10, unless its first line names another
    /// verdict, such as ---verdict: \boxed{a, b} from 0 to 100--- or ---verdict: [[A]], [[B]] or [[C]]---
    /// [default: j1]
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) template: Option<String>,

    /// Number of judgements that are written at once
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) batch: u32,

    /// Memory for keys and values, such as 512MB or 8GB [default: a quarter of what is free, of a GPU half]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) cache_memory: Option<u64>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnOff {
    On,
    Off,
}
