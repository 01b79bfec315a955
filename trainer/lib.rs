//! Data, prompts, judging, RewardBench.
