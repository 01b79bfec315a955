//! Data, prompts, judging, RewardBench.
#![forbid(unsafe_code)]

pub mod verdict;
