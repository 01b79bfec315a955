//! From pairs of replies to a judge: everything about `j1` that is neither a tensor nor a flag.
//!
//! One module per stage, in the order in which a judge passes them:
//!
//! 1. **[`data`]** reads preference pairs from Parquet, Arrow, CSV and JSON files of any usual layout;
//!    [`data::prepare`] checks and splits them.
//! 2. **[`judge`]** asks the model: a [prompt](judge::prompt) from a pair, sampled judgements, and the
//!    [verdict](judge::verdict) that a judgement ends in.
//! 3. **[`eval`]** turns judgements into numbers: [results](eval::results) on disk, and [scores](eval::scores) as RewardBench
//!    computes them, with intervals.
//! 4. **[`train`]** makes the judge better by GRPO: [settings](train::settings), [rollouts](train::rollout),
//!    [rewards, advantages and loss](train::grpo), the [update](train::update), and the [loop](train::run) with its
//!    checkpoints. [`train::session`] opens a run as `j1 train` does.
//! 5. **[`check`]** compares all of it with dumps that PyTorch, PEFT and TRL made.
#![forbid(unsafe_code)]

pub mod check;
pub mod data;
pub mod eval;
pub mod judge;
pub mod train;

#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;

#[cfg(test)]
#[path = "../tests/shared.rs"]
mod shared;
