//! Flags of `j1 judge`.

use clap::{Args, ValueEnum};
use trainer::data::Columns;

use super::{GenerationArgs, MatchArg, RuntimeArgs};

/// Arguments of `j1 judge`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  j1 judge --model Qwen/Qwen3-0.6B --prompt 'What is 17*23?' --a '391' --b '381'
  j1 judge --model ./qwen3 --adapter ./j1-nano --data pairs.jsonl --order both --json > out.jsonl
  j1 judge --model ./qwen3 --prompt @question.txt --reply @a.txt --reply @b.txt --reply @c.txt
  j1 judge --model ./qwen3 --data pairs.jsonl --limit 1 --print-prompt
  j1 judge --print-template > my.jinja        # then --template my.jinja

FILE has one line per pair: {\"prompt\": \"...\" or [messages], \"a\": \"...\", \"b\": \"...\"}; chosen and \
rejected are taken for a and b. It may be .jsonl, .json, .csv (these also as .gz) or .parquet, - for \
standard input, a directory or a quoted pattern of shards.")]
pub(crate) struct Judge {
    /// Checkpoint: a directory, or a Hugging Face id such as Qwen/Qwen3-0.6B or owner/name@revision
    #[arg(
        short = 'm',
        long,
        value_name = "DIR|ID",
        required_unless_present = "print_template",
        help_heading = "Model"
    )]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArgs,

    /// What was asked: text, @FILE to read it from a file, or @- from standard input; @@ at its beginning
    /// stands for @
    #[arg(long, value_name = "TEXT", conflicts_with = "data",
          required_unless_present_any = ["data", "print_template"], help_heading = "Input")]
    pub(crate) prompt: Option<String>,
    /// Reply A: text, @FILE or @-
    #[arg(long, value_name = "TEXT", requires_all = ["prompt", "b"],
          required_unless_present_any = ["data", "print_template", "reply"], help_heading = "Input")]
    pub(crate) a: Option<String>,
    /// Reply B: text, @FILE or @-
    #[arg(long, value_name = "TEXT", requires_all = ["prompt", "a"], help_heading = "Input")]
    pub(crate) b: Option<String>,
    /// One of several replies, in the place of --a and --b: text, @FILE or @-. Give it once for each; every two
    /// are compared, and all are ranked
    #[arg(long, value_name = "TEXT", requires = "prompt", conflicts_with_all = ["a", "b", "data", "print_prompt"],
          help_heading = "Input")]
    pub(crate) reply: Vec<String>,
    /// Pairs to judge: a file (.jsonl, .json, .csv, .parquet), - for standard input, a directory or
    /// pattern of shards, a Hugging Face id (owner/name:file), or the known name rewardbench
    #[arg(short = 'd', long, value_name = "FILE|ID|NAME", help_heading = "Input")]
    pub(crate) data: Option<String>,
    /// Columns of the file under other names, such as prompt=question,chosen=better; fields are prompt,
    /// system, chosen, rejected, a, b, label, subset, id (see trainer/data/README.md)
    #[arg(long, value_name = "FIELD=COLUMN,..", requires = "data", help_heading = "Input")]
    pub(crate) columns: Option<Columns>,
    /// At most N pairs, the first of the file
    #[arg(short = 'n', long, value_name = "N", requires = "data", help_heading = "Input",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,

    /// Judge as given, or in both orders (and say whether they agree) [default: given; with --reply both]
    #[arg(long, value_enum, help_heading = "Protocol")]
    pub(crate) order: Option<JudgeOrder>,
    /// Judgements per pair, replies shuffled for each; the scores are summed as in SPCT
    #[arg(long, value_name = "K", default_value_t = 1, help_heading = "Protocol",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) votes: u32,
    /// How scores are read; what the other rule reads is shown beside it
    #[arg(long = "match", value_enum, default_value_t = MatchArg::Strict, help_heading = "Protocol")]
    pub(crate) match_rule: MatchArg,
    /// One JSON object per pair on stdout (see cli/README.md, "Judge")
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
    /// Exit status 1 if a pair has no verdict
    #[arg(long, help_heading = "Output")]
    pub(crate) fail_unparsed: bool,
    /// Write each prompt as the model would read it, with its number of tokens, and judge nothing (loads no weights)
    #[arg(long, help_heading = "Output")]
    pub(crate) print_prompt: bool,
    /// Write the template of the judge's prompt (the bundled one, or --template's) as a file for --template, and stop
    #[arg(long, help_heading = "Output")]
    pub(crate) print_template: bool,

    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JudgeOrder {
    /// Reply A in slot A
    Given,
    /// Both orders
    Both,
}
