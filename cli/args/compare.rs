//! Arguments of `j1 compare`.

use std::path::PathBuf;

use clap::Args;

use super::MatchArg;

/// Arguments of `j1 compare`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  j1 compare runs/base runs/nano
  j1 compare runs/base runs/nano --show 10 > rows.txt

Only judgements that both have made count: the same row, order and vote of the same data. The \
interval of a change is a paired bootstrap over rows: how far the choice of rows alone could move \
it. Of twenty such intervals one misses by chance, those of few rows more often, and how tokens were \
drawn and judges were trained is not in them. Criteria are compared if rubrics.jsonl, which `j1 eval` \
writes, is there for both, of the same rows and template.")]
pub(crate) struct Compare {
    /// Directory of `j1 eval`, or a file of judgements: what is compared with
    #[arg(value_name = "BASE")]
    pub(crate) base: PathBuf,
    /// Directory or file: what is compared
    #[arg(value_name = "TRAINED")]
    pub(crate) trained: PathBuf,
    /// How scores are read
    #[arg(long = "match", value_enum, default_value_t = MatchArg::Strict)]
    pub(crate) match_rule: MatchArg,
    /// Print both judgements of the N pairs that got better most, and of N drawn by --seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) show: usize,
    /// Seed of the bootstrap and of the drawn pairs
    #[arg(short = 's', long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print the numbers as JSON
    #[arg(long, conflicts_with = "show")]
    pub(crate) json: bool,
}
