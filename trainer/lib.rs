//! Data, prompts, judging, RewardBench.

pub mod check;
