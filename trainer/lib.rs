//! Data, prompts, judging, RewardBench, rewards and losses.
#![forbid(unsafe_code)]

pub mod bootstrap;
pub mod check;
pub mod data;
pub mod fingerprint;
pub mod grpo;
pub mod judge;
pub mod lines;
pub mod metrics;
pub mod prepare;
pub mod prompt;
pub mod rescore;
pub mod results;
pub mod rewardbench;
pub mod rollout;
pub mod scores;
pub mod settings;
pub mod tensorboard;
pub mod train;
pub mod verdict;

#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;

#[cfg(test)]
#[path = "../tests/shared.rs"]
mod shared;
