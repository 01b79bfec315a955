//! Flags of `j1 train` and `j1 rollout`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use trainer::{
    data::Columns,
    train::settings::{Choice, Preset},
};

use super::{DeviceArg, DtypeArg, RuntimeArgs, WeightsArg, parse_device, parse_size, parse_step};

/// Where settings come from.
#[derive(Args, Debug)]
pub(crate) struct SettingsArgs {
    /// Recipe to start from
    #[arg(
        long,
        value_enum,
        value_name = "NAME",
        conflicts_with = "config",
        help_heading = "Settings"
    )]
    pub(crate) preset: Option<PresetArg>,
    /// Settings in TOML; keys that the file leaves out have the values of its preset
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    pub(crate) config: Option<PathBuf>,
    /// Replace one setting, such as optimizer.learning_rate=3e-5; may be given several times
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Settings")]
    pub(crate) set: Vec<String>,
}

/// Arguments of `j1 train`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  j1 train --preset j1-nano --data data/skywork/train.jsonl --held-out data/skywork/held_out.jsonl \\
           --out runs/nano
  j1 train --preset j1-nano --print-config > my.toml     then edit it, and
  j1 train --config my.toml --model ./qwen3 --data pairs.jsonl --out runs/mine
  j1 train --config my.toml --model ./qwen3 --data pairs.jsonl --dry-run
  j1 train --out runs/mine --resume
  j1 train --out runs/mine --resume --set train.steps=2000

Ctrl-C ends the run after the step under way, with a checkpoint; --resume goes on as if it had never \
stopped, to the bit.

DIR gets config.toml (every setting), metrics.jsonl (one line per step), TensorBoard events, \
rollouts/step-N.jsonl (every judgement with what it earned), checkpoints/step-N and, at the end, \
adapter/ in PEFT's form: that of the best step on held-out pairs, or the last (train.deliver).

Each step prints a line, and each evaluation of held-out pairs one that begins with eval; as many columns \
as fit. Numbers are those of metrics.jsonl:
  column       of a step                              of held-out pairs
  reward       reward                                 eval/reward
  right        completions/right_ratio                eval/accuracy
  both         rewards/consistency/mean               eval/right_in_both_orders
  share_a      verdicts/share_of_a                    eval/share_of_a
  agree        rewards/agreement/mean                 eval/rewards/agreement/mean
  distinct     verdicts/distinct_scores               eval/distinct_scores
  tied         verdicts/tied_ratio                    eval/ties
  unparsed     completions/unparsed_ratio             eval/unparsed
  length       completions/mean_length                eval/mean_length
  clip         completions/clipped_ratio              eval/truncated
  entropy      entropy
  zero_std     frac_reward_zero_std
  kl           kl
  grad_norm    grad_norm
  format       rewards/format/mean                    eval/rewards/format/mean
  logp_diff    sampling/sampling_logp_difference/max
  gen_tok/s    time/generated_tokens_per_s
  train_tok/s  time/trained_tokens_per_s
  step_time    step_time
  left         the time for the steps to come; best: of the evaluations so far
--set train.show_every=N prints the best and the worst judgement of a group every N steps.")]
pub(crate) struct Train {
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    /// Print all settings, each with its meaning, and end
    #[arg(long, help_heading = "Settings")]
    pub(crate) print_config: bool,
    /// Check everything that a start checks, estimate steps, tokens, time and memory, show one prompt as
    /// the model reads it, and end. Nothing is written
    #[arg(long, conflicts_with = "resume", help_heading = "Run")]
    pub(crate) dry_run: bool,

    /// Checkpoint of the base model: a directory, or a Hugging Face id [default: the settings']
    #[arg(short = 'm', long, value_name = "DIR|ID", help_heading = "Model")]
    pub(crate) model: Option<String>,
    /// Adapter to start from [default: a new one]
    #[arg(short = 'a', long, value_name = "DIR|ID", help_heading = "Model")]
    pub(crate) adapter: Option<String>,
    /// Precision of matmul inputs, keys and values; auto: f32 for f32 checkpoints, else bf16
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto, help_heading = "Model")]
    pub(crate) dtype: DtypeArg,
    /// Where weights are read; results are the same [default: the settings', which are auto]
    #[arg(long, value_enum, help_heading = "Model")]
    pub(crate) weights: Option<WeightsArg>,

    /// Training pairs: .jsonl, .csv or .parquet, or the known name skywork [default: the settings']
    #[arg(short = 'd', long, value_name = "FILE|NAME", help_heading = "Data")]
    pub(crate) data: Option<String>,
    /// Pairs for evaluation, judged in both orders every train.eval_every steps
    #[arg(long, value_name = "FILE|NAME", help_heading = "Data")]
    pub(crate) held_out: Option<String>,

    /// Directory of the run
    #[arg(
        short = 'o', long,
        value_name = "DIR",
        required_unless_present_any = ["print_config", "dry_run"],
        help_heading = "Run"
    )]
    pub(crate) out: Option<PathBuf>,
    /// Continue the run in --out, with the settings it has. --set may change train.steps, train.epochs, and
    /// what is saved and evaluated; --model, --adapter, --data and --held-out say where things are now
    #[arg(long, conflicts_with_all = ["preset", "config", "print_config"], help_heading = "Run")]
    pub(crate) resume: bool,
    /// Continue from this checkpoint and not from the newest; those after it are removed once the next one
    /// is written
    #[arg(long, value_name = "step-N", requires = "resume", value_parser = parse_step,
          help_heading = "Run")]
    pub(crate) from: Option<u64>,
    /// Continue on another instruction set or device than the run began on, which changes last bits; run.json notes it
    #[arg(long, requires = "resume", help_heading = "Run")]
    pub(crate) allow_other_instructions: bool,
    /// Where the model runs: cpu, cuda, cuda:N, or auto (a GPU if there is one)
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = parse_device, help_heading = "Run")]
    pub(crate) device: DeviceArg,
    /// Threads; results are the same at any number [default: all cores]
    #[arg(short = 't', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024),
          help_heading = "Run")]
    pub(crate) threads: Option<u16>,
    /// Memory for keys and values, such as 512MB or 8GB [default: a quarter of what is free, of a GPU half]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Run")]
    pub(crate) cache_memory: Option<u64>,
}

/// Arguments of `j1 rollout`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  j1 rollout --model ./qwen3 --data pairs.jsonl --group 8 --limit 50 --out rollouts.jsonl

One line per judgement: its pair, text, verdict, rewards, and the advantage it would have in training. The file \
appears whole or not at all.")]
pub(crate) struct Rollout {
    /// Checkpoint: a directory, or a Hugging Face id
    #[arg(short = 'm', long, value_name = "DIR|ID", help_heading = "Model")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArgs,

    /// Pairs: .jsonl, .csv or .parquet, or a known name
    #[arg(short = 'd', long, value_name = "FILE|NAME", help_heading = "Data")]
    pub(crate) data: String,
    /// Columns of the file under other names, such as prompt=question,chosen=better; fields are prompt,
    /// system, chosen, rejected, a, b, label, subset, id (see trainer/data/README.md)
    #[arg(long, value_name = "FIELD=COLUMN,..", help_heading = "Data")]
    pub(crate) columns: Option<Columns>,
    /// At most N pairs, from the start of the file
    #[arg(short = 'n', long, value_name = "N", help_heading = "Data")]
    pub(crate) limit: Option<usize>,

    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    /// Completions per prompt [default: the settings']
    #[arg(long, value_name = "G", help_heading = "Settings",
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) group: Option<u32>,
    /// Seed [default: the settings']
    #[arg(short = 's', long, value_name = "S", help_heading = "Settings")]
    pub(crate) seed: Option<u64>,

    /// The file to write
    #[arg(short = 'o', long, value_name = "FILE", help_heading = "Output")]
    pub(crate) out: PathBuf,
    /// Memory for keys and values, such as 512MB or 8GB [default: a quarter of what is free, of a GPU half]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Output")]
    pub(crate) cache_memory: Option<u64>,
}

/// Arguments of `j1 demo`.
#[derive(Args, Debug)]
#[command(after_help = "\
A judge of a million parameters, bundled with j1, names a criterion almost at random; it learns to name \
the one that the user asked for: GRPO on 800 pairs, half a minute on two free cores, no network. What \
it did is in --out, with the configuration to copy.")]
pub(crate) struct Demo {
    /// Directory of all files
    #[arg(short = 'o', long, value_name = "DIR", default_value = "j1-demo")]
    pub(crate) out: PathBuf,
    /// Seed of sampling, of the data's order and of the new adapter
    #[arg(short = 's', long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Replace one setting of the demo, such as train.steps=4; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Where the model runs: cpu, cuda, cuda:N, or auto (a GPU if there is one)
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = parse_device)]
    pub(crate) device: DeviceArg,
    /// Threads; results are the same at any number [default: all cores]
    #[arg(short = 't', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

/// The recipes, by their names in settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PresetArg(pub(crate) Preset);

impl ValueEnum for PresetArg {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [PresetArg; 5] = [
            PresetArg(Preset::J1Nano),
            PresetArg(Preset::J1Micro),
            PresetArg(Preset::Cpu05b),
            PresetArg(Preset::Spct),
            PresetArg(Preset::Trl0152),
        ];
        &ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        let help = match self.0 {
            Preset::J1Nano => "the j1 recipe on Qwen3-0.6B, its faults mended",
            Preset::J1Micro => "the same on Qwen3-1.7B",
            Preset::Cpu05b => "for Qwen2.5-Coder-0.5B-Instruct on two cores, in hours",
            Preset::Spct => "SPCT's RL stage: G = 4, +1 or -1, no format reward",
            Preset::Trl0152 => "the original, as it ran on TRL 0.15.2",
        };
        Some(clap::builder::PossibleValue::new(self.0.name()).help(help))
    }
}
