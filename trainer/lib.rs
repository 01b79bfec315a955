//! Data, prompts, judging, RewardBench.
#![forbid(unsafe_code)]

pub mod bootstrap;
pub mod check;
pub mod data;
pub mod fingerprint;
pub mod judge;
pub mod lines;
pub mod prompt;
pub mod rescore;
pub mod results;
pub mod rewardbench;
pub mod scores;
pub mod verdict;

#[cfg(test)]
#[path = "../tests/shared.rs"]
mod shared;
