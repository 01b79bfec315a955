//! Group relative policy optimization (Shao et al. 2024, arXiv 2402.03300) as pure functions over plain
//! numbers: from judgements to [`rewards`], from rewards to [`advantages`], from log-probabilities to a
//! [`loss`] and its derivative. No model and no tensor is in here.

pub mod advantages;
pub mod loss;
pub mod rewards;

#[cfg(test)]
mod golden;
