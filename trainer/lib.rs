//! Data, prompts, judging, RewardBench.
#![forbid(unsafe_code)]

pub mod bootstrap;
pub mod data;
pub mod fingerprint;
pub mod lines;
pub mod verdict;
