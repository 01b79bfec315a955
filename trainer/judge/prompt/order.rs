//! Orders: the candidate in slot A.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data::Pair;
use crate::eval::bootstrap::hash;

/// The candidate that was in slot A. For replies without a label, the first one given
/// takes the place of the chosen one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The chosen reply is A.
    ChosenFirst,
    /// The rejected reply is A.
    RejectedFirst,
}

impl Order {
    /// `chosen-first` or `rejected-first`, as in files.
    pub fn name(self) -> &'static str {
        match self {
            Order::ChosenFirst => "chosen-first",
            Order::RejectedFirst => "rejected-first",
        }
    }

    /// The replies of slots A and B.
    pub fn slots(self, pair: &Pair) -> (&str, &str) {
        match self {
            Order::ChosenFirst => (&pair.chosen, &pair.rejected),
            Order::RejectedFirst => (&pair.rejected, &pair.chosen),
        }
    }

    /// Scores of slots A and B as scores of the chosen and the rejected reply.
    pub fn by_label(self, (a, b): (f64, f64)) -> (f64, f64) {
        match self {
            Order::ChosenFirst => (a, b),
            Order::RejectedFirst => (b, a),
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Order {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "chosen-first" => Ok(Order::ChosenFirst),
            "rejected-first" => Ok(Order::RejectedFirst),
            _ => Err(format!("unknown order '{name}': it is chosen-first or rejected-first")),
        }
    }
}

/// In which orders pairs are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrderPlan {
    /// Each pair in both orders.
    #[default]
    Both,
    /// One order for each row and vote, drawn from the seed: RewardBench's way, and SPCT's for votes.
    Random,
    /// Chosen always in slot A, as the original evaluation did. A judge that always says A then scores
    /// 100 %.
    ChosenFirst,
}

impl OrderPlan {
    /// The orders in which vote `vote` of row `row` is judged.
    pub fn orders(self, seed: u64, row: u64, vote: u32) -> &'static [Order] {
        match self {
            OrderPlan::Both => &[Order::ChosenFirst, Order::RejectedFirst],
            OrderPlan::ChosenFirst => &[Order::ChosenFirst],
            // "order" keeps this stream apart from others made of the same numbers.
            OrderPlan::Random if hash(&[0x006f_7264_6572, seed, row, vote.into()]) >> 63 == 0 => {
                &[Order::ChosenFirst]
            }
            OrderPlan::Random => &[Order::RejectedFirst],
        }
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            OrderPlan::Both => "both",
            OrderPlan::Random => "random",
            OrderPlan::ChosenFirst => "chosen-first",
        }
    }
}

impl fmt::Display for OrderPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for OrderPlan {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "both" => Ok(OrderPlan::Both),
            "random" => Ok(OrderPlan::Random),
            "chosen-first" => Ok(OrderPlan::ChosenFirst),
            _ => Err(format!("unknown order '{name}': it is both, random or chosen-first")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_order_is_fair_and_does_not_depend_on_other_rows() {
        let first = |seed, row, vote| OrderPlan::Random.orders(seed, row, vote)[0];
        let chosen = (0..10_000).filter(|&row| first(1, row, 0) == Order::ChosenFirst).count();
        // Half of 10,000, five standard deviations of 50 either way.
        assert!((4_750..=5_250).contains(&chosen), "{chosen}");
        assert_eq!(first(1, 77, 3), first(1, 77, 3));
        assert!((0..64).any(|vote| first(1, 0, vote) != first(1, 0, 0)));
        assert!((0..64).any(|seed| first(seed, 0, 0) != first(0, 0, 0)));
        assert_eq!(OrderPlan::Both.orders(1, 2, 3).len(), 2);
        assert_eq!(OrderPlan::ChosenFirst.orders(1, 2, 3), [Order::ChosenFirst]);
    }

    #[test]
    fn names_round_trip() {
        for plan in [OrderPlan::Both, OrderPlan::Random, OrderPlan::ChosenFirst] {
            assert_eq!(plan.name().parse(), Ok(plan));
            assert_eq!(serde_json::to_value(plan).unwrap(), plan.name());
        }
        for order in [Order::ChosenFirst, Order::RejectedFirst] {
            assert_eq!(order.name().parse(), Ok(order));
            assert_eq!(serde_json::to_value(order).unwrap(), order.name());
        }
        assert!("a-first".parse::<OrderPlan>().unwrap_err().contains("both, random"));
        assert_eq!(Order::RejectedFirst.by_label((8.0, 6.0)), (6.0, 8.0));
    }
}
