//! The command line: every flag once, with its help.

mod bench;
mod compare;
mod generation;
mod judge;
mod serve;
mod train;
mod values;

use std::path::PathBuf;

pub(crate) use bench::{Bench, BenchWork, Recompute};
use clap::{Args, Parser, Subcommand, ValueEnum};
pub(crate) use compare::Compare;
use engine::tensor::device::Isa;
pub(crate) use generation::{GenerationArgs, OnOff};
pub(crate) use judge::{Judge, JudgeOrder};
pub(crate) use serve::Serve;
pub(crate) use train::{Demo, PresetArg, Rollout, SettingsArgs, Train};
use trainer::{
    data::Columns,
    judge::{prompt::OrderPlan, verdict::MatchRule},
    train::settings::Weights,
};
pub(crate) use values::DeviceArg;
use values::{parse_device, parse_share, parse_size, parse_step};

/// Tiny reasoning reward models: judge, evaluate, train.
#[derive(Parser, Debug)]
#[command(
    name = "j1",
    version,
    long_version = long_version(),
    about,
    propagate_version = true,
    after_help = "\
A judge is a Hugging Face checkpoint (Qwen3, Qwen2 or Llama), with or without a PEFT LoRA adapter. \
Results go to stdout and files, progress and logs to stderr.

Exit status: 0 done, 1 failed, 2 bad usage, 130 interrupted, 143 terminated (what was \
done is kept)."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Record what every thread does when, as a Chrome trace that ui.perfetto.dev opens: one slice
    /// per kernel, with its GFLOP/s and GB/s. Results stay the same. FILE grows by some megabytes per
    /// second: take a short run (see cli/README.md, "Profile"). Until the command ends, the trace is
    /// FILE.partial. A command that is killed leaves that file with all that was written; it opens as
    /// well, and the next run replaces it
    #[arg(long, value_name = "FILE", global = true, help_heading = "Diagnostics")]
    pub(crate) profile: Option<PathBuf>,
}

/// The version with what decides how the program computes.
fn long_version() -> &'static str {
    static TEXT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        let all: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        format!(
            "{}\nfeatures: {}\ninstructions of this machine: {}\ntarget: {} {}",
            env!("CARGO_PKG_VERSION"),
            if cfg!(feature = "cuda") { "cuda" } else { "none (cuda is one)" },
            all.join(", "),
            std::env::consts::ARCH,
            std::env::consts::OS,
        )
    });
    &TEXT
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Watch a tiny bundled judge learn: the whole pipeline, offline, in under a minute
    Demo(Demo),
    /// Judge one pair of replies, or a file of pairs, and show the reasoning
    Judge(Judge),
    /// Evaluate a judge on preference pairs and print a RewardBench table
    Eval(Eval),
    /// Serve a judge over HTTP: scores for replies, and completions as OpenAI's API has them
    Serve(Serve),
    /// Compare two evaluations: each number of both, and the difference with its interval
    Compare(Compare),
    /// Train a judge with GRPO on preference pairs, from a base model to a LoRA adapter
    Train(Box<Train>),
    /// Sample judgements and compute their rewards: the first half of a training step, alone
    Rollout(Box<Rollout>),
    /// Check, split and inspect preference data
    Data(Data),
    /// Merge an adapter into its base: a checkpoint for programs that know no adapters
    Merge(Merge),
    /// Compare this engine with dumps made by PyTorch, and a GPU's kernels with the CPU's
    Check(Check),
    /// Show the CPU features in use, the size of a model, and the memory that a run needs
    Info(Info),
    /// Measure prefill, decoding and training, beside the peak of the machine
    Bench(Box<Bench>),
    /// Print a shell's completions of this command line
    Completions(Completions),
    /// Print the manual page, of all or of one command
    Man(Man),
}

impl Command {
    /// The command as it is typed.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Command::Demo(_) => "demo",
            Command::Judge(_) => "judge",
            Command::Eval(_) => "eval",
            Command::Compare(_) => "compare",
            Command::Serve(_) => "serve",
            Command::Train(_) => "train",
            Command::Rollout(_) => "rollout",
            Command::Data(_) => "data",
            Command::Merge(_) => "merge",
            Command::Check(_) => "check",
            Command::Info(_) => "info",
            Command::Bench(_) => "bench",
            Command::Completions(_) => "completions",
            Command::Man(_) => "man",
        }
    }
}

/// How the model is run.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Model")]
pub(crate) struct RuntimeArgs {
    /// LoRA adapter in PEFT form: a directory, or a Hugging Face id
    #[arg(short = 'a', long, value_name = "DIR|ID")]
    pub(crate) adapter: Option<String>,

    /// Where the model runs: cpu, cuda, cuda:N, or auto (a GPU if there is one)
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = parse_device)]
    pub(crate) device: DeviceArg,

    /// Precision of matmul inputs, keys and values; auto: f32 for f32 checkpoints, else bf16
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    pub(crate) dtype: DtypeArg,

    /// Where the CPU reads weights; results are the same
    #[arg(long, value_enum, default_value_t = WeightsArg::Auto)]
    pub(crate) weights: WeightsArg,

    /// Threads; results are the same at any number [default: all cores]
    #[arg(short = 't', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

#[derive(ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum WeightsArg {
    /// Mapped until tokens are generated, then packed if memory and CPU allow
    #[default]
    Auto,
    /// In the checkpoint's files: nothing is copied
    Mapped,
    /// In a packed copy from the first use on, whose pages are larger and read in one stream
    Packed,
}

impl From<Weights> for WeightsArg {
    fn from(weights: Weights) -> WeightsArg {
        match weights {
            Weights::Auto => WeightsArg::Auto,
            Weights::Mapped => WeightsArg::Mapped,
            Weights::Packed => WeightsArg::Packed,
        }
    }
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DtypeArg {
    Auto,
    Bf16,
    F32,
}

/// The reply in slot A.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrderArg {
    /// Both orders are judged
    Both,
    /// Drawn for each pair from the seed (RewardBench's protocol for generative judges)
    Random,
    /// The chosen reply always comes first (the published j1 protocol; favors a judge that prefers A)
    ChosenFirst,
}

/// How the scores are read from a judgement.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MatchArg {
    /// \boxed{x, y} inside <scores>, as the judge was told: the published rule
    Strict,
    /// The same and, where it reads nothing, the last pair of scores outside <think> that is written in
    /// another clear way
    Soft,
}

impl From<OrderArg> for OrderPlan {
    fn from(arg: OrderArg) -> OrderPlan {
        match arg {
            OrderArg::Both => OrderPlan::Both,
            OrderArg::Random => OrderPlan::Random,
            OrderArg::ChosenFirst => OrderPlan::ChosenFirst,
        }
    }
}

impl From<MatchArg> for MatchRule {
    fn from(arg: MatchArg) -> MatchRule {
        match arg {
            MatchArg::Strict => MatchRule::Strict,
            MatchArg::Soft => MatchRule::Soft,
        }
    }
}

/// Arguments of `j1 eval`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  j1 eval --model Qwen/Qwen3-0.6B --data rewardbench --out runs/base
  j1 eval --model ./qwen3 --adapter ./j1-nano --data pairs.jsonl --out runs/nano --limit 100
  j1 eval --rescore runs/nano/outputs.jsonl --match soft

Stop it at any time (Ctrl-C) and run the same command again: it goes on where it was, and the files \
end as if it had never stopped.

DIR gets outputs.jsonl (one line per judgement), results.csv, rubrics.jsonl (measures of the criteria), \
scores.json (RewardBench's format and ours), run.json (the settings) and timing.json.")]
pub(crate) struct Eval {
    /// Checkpoint: a directory, or a Hugging Face id
    #[arg(
        short = 'm',
        long,
        value_name = "DIR|ID",
        required_unless_present = "rescore",
        help_heading = "Model"
    )]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArgs,

    /// Pairs: a file (.jsonl, .json, .csv, .parquet), - for standard input, a directory or pattern of shards,
    /// a Hugging Face id (owner/name:file or :'data/train-*'), or a known name: rewardbench, rewardbench2
    #[arg(
        short = 'd',
        long,
        value_name = "FILE|ID|NAME",
        required_unless_present = "rescore",
        help_heading = "Input"
    )]
    pub(crate) data: Option<String>,
    /// Columns of the file under other names, such as prompt=question,chosen=better; fields are prompt,
    /// system, chosen, rejected, a, b, label, subset, id (see trainer/data/README.md)
    #[arg(long, value_name = "FIELD=COLUMN,..", requires = "data", help_heading = "Input")]
    pub(crate) columns: Option<Columns>,
    /// Score judgements that are already written (outputs.jsonl, or a results.csv), without a model
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "adapter", "data", "out", "limit"],
          help_heading = "Input")]
    pub(crate) rescore: Option<PathBuf>,
    /// At most N rows: a sample in which every subset has its share, drawn by --seed and the rows'
    /// content; a larger N adds rows to those of a smaller one
    #[arg(short = 'n', long, value_name = "N", help_heading = "Input",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
    /// At most N prompt tokens; longer rows are counted as unparsed and reported, never cut
    /// [default: what the model's positions leave]
    #[arg(long, value_name = "N", help_heading = "Input")]
    pub(crate) max_prompt_tokens: Option<usize>,

    /// Directory of the results; an interrupted run in it is continued
    #[arg(
        short = 'o',
        long,
        value_name = "DIR",
        required_unless_present = "rescore",
        help_heading = "Output"
    )]
    pub(crate) out: Option<PathBuf>,
    /// Print the scores as JSON instead of the table
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// The reply in slot A [default: both]
    #[arg(long, value_enum, help_heading = "Protocol")]
    pub(crate) order: Option<OrderArg>,
    /// How scores are read; what the other rule reads is shown beside it
    #[arg(long = "match", value_enum, default_value_t = MatchArg::Strict, help_heading = "Protocol")]
    pub(crate) match_rule: MatchArg,
    /// Judgements per pair and order, their scores summed as in SPCT [default: 1]
    #[arg(long, value_name = "K", help_heading = "Protocol",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) votes: Option<u32>,

    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

/// Arguments of `j1 data`.
#[derive(Args, Debug)]
pub(crate) struct Data {
    #[command(subcommand)]
    pub(crate) command: DataCommand,
}

#[derive(Subcommand, Debug)]
pub(crate) enum DataCommand {
    /// Check pairs and write the usable ones as JSONL, split into training and held-out
    Prepare(Prepare),
    /// Show what is in a file of pairs: columns, lengths, duplicates, sources
    Inspect(Inspect),
}

/// Arguments of `j1 data prepare`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  j1 data prepare skywork --out data/skywork --exclude rewardbench
  j1 data prepare pairs.csv --out data/mine --held-out 0.1 --max-chars 20000

DIR gets train.jsonl, held_out.jsonl (one line per pair: id, source, prompt, chosen, rejected) and \
prepare.json (settings, counts by reason and source, fingerprints). Which side a pair falls on \
depends on its prompt and the seed alone. The files appear whole or not at all; prepare.json says so \
while they are replaced, and train refuses files that it does not describe.")]
pub(crate) struct Prepare {
    /// Pairs: .parquet (Skywork's nested messages, too), .csv, .jsonl or .json, - for standard input, a
    /// directory or pattern of shards, or a known name: skywork, rewardbench
    #[arg(value_name = "FILE|NAME")]
    pub(crate) input: String,
    /// Columns of the file under other names, such as prompt=question,chosen=better; fields are prompt,
    /// system, chosen, rejected, a, b, label, subset, id (see trainer/data/README.md)
    #[arg(long, value_name = "FIELD=COLUMN,..")]
    pub(crate) columns: Option<Columns>,
    /// Directory of the files
    #[arg(short = 'o', long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Share of the prompts to hold out, from 0 to below 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, value_parser = parse_share)]
    pub(crate) held_out: f64,
    /// Seed of that split
    #[arg(short = 's', long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Drop pairs with more characters in prompt and replies together
    #[arg(long, value_name = "N")]
    pub(crate) max_chars: Option<usize>,
    /// Drop pairs whose prompt is in this benchmark; may be given several times
    #[arg(long, value_name = "FILE|NAME")]
    pub(crate) exclude: Vec<String>,
    /// Keep pairs that overlap with --exclude, and count them
    #[arg(long, requires = "exclude")]
    pub(crate) keep_overlap: bool,
    /// Print prepare.json instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `j1 data inspect`.
#[derive(Args, Debug)]
pub(crate) struct Inspect {
    /// Pairs: .parquet, .csv, .jsonl or .json, - for standard input, a directory or pattern of shards, or
    /// a known name: skywork, rewardbench
    #[arg(value_name = "FILE|NAME")]
    pub(crate) input: String,
    /// Columns of the file under other names, such as prompt=question,chosen=better; fields are prompt,
    /// system, chosen, rejected, a, b, label, subset, id (see trainer/data/README.md)
    #[arg(long, value_name = "FIELD=COLUMN,..")]
    pub(crate) columns: Option<Columns>,
    /// Pairs to show
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) rows: usize,
    /// Print JSON, with the pairs in full
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `j1 merge`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  j1 merge --model Qwen/Qwen3-0.6B --adapter ./j1-nano --out ./j1-nano-merged

DIR gets the checkpoint's files with the same names, shards and types; it appears when all of it is \
written.")]
pub(crate) struct Merge {
    /// Checkpoint: a directory, or a Hugging Face id
    #[arg(short = 'm', long, value_name = "DIR|ID")]
    pub(crate) model: String,
    /// LoRA adapter in PEFT form: a directory, or a Hugging Face id
    #[arg(short = 'a', long, value_name = "DIR|ID")]
    pub(crate) adapter: String,
    /// Directory of the merged checkpoint; it must be empty or not exist
    #[arg(short = 'o', long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

/// Arguments of `j1 check`.
#[derive(Args, Debug)]
#[command(after_help = "\
A dump directory holds model/, adapter/, case.json and safetensors with what PyTorch computed: \
hidden states, logits, log-probabilities, entropies, greedy tokens. tests/golden has some, with the \
scripts that make them.

Examples:
  j1 check tests/golden/*/
  j1 check --device cuda --self        every CUDA kernel against its CPU reference, on this GPU

Exit status 1 if anything is out of its bounds.")]
pub(crate) struct Check {
    /// Directories of dumps
    #[arg(required_unless_present = "self_test", value_name = "DIR")]
    pub(crate) directories: Vec<PathBuf>,
    /// Compare every kernel of the GPU with its CPU reference
    #[arg(long = "self")]
    pub(crate) self_test: bool,
    /// What is checked: cpu, cuda, cuda:N, or auto (a GPU if there is one) [default: cpu; with --self cuda]
    #[arg(long, value_name = "DEVICE", value_parser = parse_device)]
    pub(crate) device: Option<DeviceArg>,
    /// Threads [default: all cores]
    #[arg(short = 't', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Print the table as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `j1 info`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  j1 info --model Qwen/Qwen3-0.6B --batch 16 --length 4096
  j1 info --train                                        preset j1-nano on Qwen3-0.6B; nothing is read
  j1 info --train --shape qwen3-1.7b --set rollout.group_size=8
  j1 info --train --config my.toml --model ./qwen3 --json

The peak of training is that of a step in which every prompt and completion has the length that the \
settings allow, with activations recomputed (train.gradient_checkpointing = on) and kept (off).")]
pub(crate) struct Info {
    /// Checkpoint: a directory, or a Hugging Face id
    #[arg(short = 'm', long, value_name = "DIR|ID")]
    pub(crate) model: Option<String>,
    /// Number of sequences that run at once, for the memory estimate
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) batch: u32,
    /// Tokens of a prompt and its completion, for the memory estimate
    #[arg(long, value_name = "N", default_value_t = 4096,
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) length: u32,
    /// The memory that `j1 train` needs with these settings
    #[arg(long, conflicts_with_all = ["batch", "length"], help_heading = "Training")]
    pub(crate) train: bool,
    /// A model by its shape, without a checkpoint [default: the settings' model]
    #[arg(
        long,
        value_enum,
        value_name = "NAME",
        requires = "train",
        conflicts_with = "model",
        help_heading = "Training"
    )]
    pub(crate) shape: Option<ShapeArg>,
    /// Recipe to start from
    #[arg(
        long,
        value_enum,
        value_name = "NAME",
        requires = "train",
        conflicts_with = "config",
        help_heading = "Training"
    )]
    pub(crate) preset: Option<PresetArg>,
    /// Settings in TOML
    #[arg(long, value_name = "FILE", requires = "train", help_heading = "Training")]
    pub(crate) config: Option<PathBuf>,
    /// Replace one setting; may be given several times
    #[arg(long, value_name = "KEY=VALUE", requires = "train", help_heading = "Training")]
    pub(crate) set: Vec<String>,
    /// Precision, as in `j1 train`
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto, requires = "train",
          help_heading = "Training")]
    pub(crate) dtype: DtypeArg,
    /// Threads [default: all cores]
    #[arg(short = 't', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024),
          requires = "train", help_heading = "Training")]
    pub(crate) threads: Option<u16>,
    /// Memory for keys and values, such as 512MB or 8GB [default: a quarter of what is free, of a GPU half]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "train",
          help_heading = "Training")]
    pub(crate) cache_memory: Option<u64>,
    /// The same for a GPU with this much memory, such as 80GB; the machine needs none
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "train",
          conflicts_with_all = ["dtype", "threads"], help_heading = "Training")]
    pub(crate) device_memory: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `j1 completions`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  j1 completions bash > ~/.local/share/bash-completion/completions/j1
  j1 completions fish > ~/.config/fish/completions/j1.fish
  j1 completions zsh > \"${fpath[1]}/_j1\"")]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// Arguments of `j1 man`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  j1 man | man -l -
  j1 man train > ~/.local/share/man/man1/j1-train.1")]
pub(crate) struct Man {
    /// A command; without one, the program
    #[arg(value_name = "COMMAND")]
    pub(crate) command: Option<String>,
}

/// Published shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShapeArg {
    /// Qwen/Qwen3-0.6B
    #[value(name = "qwen3-0.6b")]
    Qwen3_0_6b,
    /// Qwen/Qwen3-1.7B
    #[value(name = "qwen3-1.7b")]
    Qwen3_1_7b,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
