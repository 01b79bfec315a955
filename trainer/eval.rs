//! Evaluation: judgements are recorded as they come, scored as RewardBench and its successors score them, with intervals.

pub mod bootstrap;
pub mod rescore;
pub mod results;
pub mod rewardbench;
pub mod rubrics;
pub mod scores;
