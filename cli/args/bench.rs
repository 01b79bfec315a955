//! Flags of `j1 bench`.

use clap::{ArgGroup, Args, ValueEnum};

use super::{RuntimeArgs, ShapeArg};

/// Arguments of `j1 bench`.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("subject").required(true).args(["model", "shape"])), after_help = "\
Examples:
  j1 bench --shape qwen3-0.6b                            prefill and decoding, nothing is downloaded
  j1 bench --device cuda --shape qwen3-0.6b              the same on a GPU
  j1 bench --model ./qwen3 --adapter ./j1-nano --prompt 2048 --batch 1,16 --gen 32
  j1 bench --shape qwen3-0.6b --train 1024 --group 8     the same, and a LoRA step, and a GRPO update
  j1 bench --shape qwen3-1.7b --train 1024 --only lora --repeat 3 --json > lora.json

What is measured, each once to warm up and then --repeat times:
  prefill   a prompt of N tokens, in steps of 512, until its first token is drawn
  decode    --gen tokens of each of B sequences, whose prompts of --depth tokens are computed before
  lora      forward, backward and AdamW on N tokens with the loss on all of them
  grpo      the same on a prompt of --train tokens and --group completions of --completion tokens, which
            share it; and the reference's forward pass, for the KL term

Rates are medians, taken when the device is done. `spread` is (slowest - fastest) / median. `memory` is \
the most that the process had resident, the mapped weights with it; on a GPU, the most that buffers took \
there. `of peak` says how much of the time the machine would need at least: the work's own multiply-adds \
at the rate that its registers reach, or the bytes that must be read once at the rate that its memory \
gives, whichever takes longer; both rates are measured first, and nothing that is computed twice counts \
as work. A GPU's rates are those of its data sheet, by its name (A100, H100, H200), else left out.

Other programs on the same cores show in the spread. Ctrl-C ends after the pass under way and prints the \
rows that are whole.")]
pub(crate) struct Bench {
    /// Checkpoint: a directory, or a Hugging Face id
    #[arg(short = 'm', long, value_name = "DIR|ID", help_heading = "Model")]
    pub(crate) model: Option<String>,
    /// A published shape with random weights in bf16, written to a temporary directory that is gone
    /// before anything is measured
    #[arg(long, value_enum, value_name = "NAME", help_heading = "Model")]
    pub(crate) shape: Option<ShapeArg>,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArgs,

    /// Prompt lengths in tokens
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "512,1024",
          value_parser = clap::value_parser!(u32).range(1..=1 << 20), help_heading = "Inference")]
    pub(crate) prompt: Vec<u32>,
    /// Number of sequences that are decoded at once
    #[arg(long, value_name = "B,..", value_delimiter = ',', default_value = "1,4,16",
          value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "Inference")]
    pub(crate) batch: Vec<u32>,
    /// Tokens that each sequence decodes
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=1 << 20), help_heading = "Inference")]
    pub(crate) r#gen: u32,
    /// Tokens of each prompt before decoding
    #[arg(long, value_name = "N", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..=1 << 20), help_heading = "Inference")]
    pub(crate) depth: u32,

    /// Tokens of a LoRA step, and of the prompt of a GRPO update [default: neither is measured]
    #[arg(long, value_name = "N", help_heading = "Training",
          value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) train: Option<u32>,
    /// Completions of a GRPO update [default: it is not measured]
    #[arg(long, value_name = "G", requires = "train", help_heading = "Training",
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) group: Option<u32>,
    /// Tokens of each completion
    #[arg(long, value_name = "N", default_value_t = 128, requires = "group",
          value_parser = clap::value_parser!(u32).range(1..=1 << 20), help_heading = "Training")]
    pub(crate) completion: u32,
    /// Whether layers are computed again in the backward pass; auto: where half of the free memory
    /// does not hold their activations
    #[arg(long, value_enum, default_value_t = Recompute::Auto, help_heading = "Training")]
    pub(crate) gradient_checkpointing: Recompute,

    /// Measure only these
    #[arg(long, value_enum, value_name = "WORK,..", value_delimiter = ',', help_heading = "Run")]
    pub(crate) only: Vec<BenchWork>,
    /// Repetitions of each measurement
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Run")]
    pub(crate) repeat: u32,
    /// Print JSON, with the seconds of every pass
    #[arg(long, help_heading = "Run")]
    pub(crate) json: bool,
}

/// Kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchWork {
    /// Prompts
    Prefill,
    /// Completions
    Decode,
    /// A LoRA step
    Lora,
    /// A GRPO update
    Grpo,
}

/// Whether activations are recomputed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Recompute {
    Auto,
    On,
    Off,
}
