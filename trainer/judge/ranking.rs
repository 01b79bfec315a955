//! Several replies to one prompt: every two are compared, and all comparisons together rank them.
//!
//! A reply's score is the mean of what it got over all judgements with a verdict, whatever it was compared with, and it is ranked
//! by that. Points are not won against an opponent: a judge that gives 9 to 7 says more for both than one that gives 4 to 2.

use super::{prompt::Order, verdict::MatchRule};
use crate::{
    data::{Message, Pair},
    eval::results::Record,
};

/// Every two of so many replies: indices, the earlier first.
pub fn every_two(replies: usize) -> Vec<(usize, usize)> {
    let after = |first| (first + 1..replies).map(move |second| (first, second));
    (0..replies).flat_map(after).collect()
}

/// The pairs of every two replies to a prompt, the earlier one in the place of the chosen. Their rows are their places in
/// [`every_two`].
pub fn pairs(id: &str, prompt: &[Message], replies: &[String]) -> Vec<Pair> {
    let pair = |(row, (first, second)): (usize, (usize, usize))| Pair {
        id: id.to_owned(),
        row: row as u64,
        prompt: prompt.to_vec(),
        chosen: replies[first].clone(),
        rejected: replies[second].clone(),
        subset: None,
        candidates: None,
    };
    every_two(replies.len()).into_iter().enumerate().map(pair).collect()
}

/// All judgements of the replies to one prompt.
#[derive(Clone, Debug)]
pub struct Comparisons {
    replies: usize,
    places: Vec<(usize, usize)>,
    /// By pair, order and vote; the row is the pair's place.
    records: Vec<Record>,
    rule: MatchRule,
}

/// What became of one reply.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// Which one.
    pub reply: usize,
    /// Mean of its scores; `None` if no judgement about it has a verdict.
    pub mean: Option<f64>,
    /// Their sum.
    pub points: f64,
    /// Judgements about it with a verdict.
    pub verdicts: usize,
    /// Other replies that it has more points than, over all judgements of the two.
    pub wins: usize,
}

impl Comparisons {
    /// The judgements of every two of so many replies.
    pub fn new(replies: usize, mut records: Vec<Record>, rule: MatchRule) -> Comparisons {
        records.sort_by_key(Record::key);
        Comparisons { replies, places: every_two(replies), records, rule }
    }

    /// Its judgements, by pair, order and vote.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The pairs, as indices of replies.
    pub fn places(&self) -> &[(usize, usize)] {
        &self.places
    }

    /// The replies in slots A and B of a judgement.
    pub fn slots(&self, record: &Record) -> [usize; 2] {
        let (first, second) = self.places[record.row as usize];
        match record.order {
            Order::ChosenFirst => [first, second],
            Order::RejectedFirst => [second, first],
        }
    }

    /// Points of a pair's replies, the earlier first, over its judgements with a verdict, and how many those are.
    fn points(&self, pair: usize, order: Option<Order>) -> (f64, f64, usize) {
        let of_pair = self.records.iter().filter(|record| record.row == pair as u64);
        let wanted = of_pair.filter(|record| order.is_none_or(|order| record.order == order));
        let scores = wanted.filter_map(|record| record.scores_by_label(self.rule));
        scores.fold((0.0, 0.0, 0), |(a, b, n), scores| (a + scores.0, b + scores.1, n + 1))
    }

    /// The reply of a pair that has more points; `None` for a tie, or without a verdict.
    pub fn winner_of(&self, pair: usize) -> Option<usize> {
        let ((a, b, _), (first, second)) = (self.points(pair, None), self.places[pair]);
        if a > b {
            Some(first)
        } else if b > a {
            Some(second)
        } else {
            None
        }
    }

    /// Whether both orders of a pair prefer the same reply, a tie being a preference of its own; `None` if one of them has no
    /// verdict.
    pub fn agreement_of(&self, pair: usize) -> Option<bool> {
        let preference = |order| match self.points(pair, Some(order)) {
            (_, _, 0) => None,
            (a, b, _) => a.partial_cmp(&b),
        };
        Some(preference(Order::ChosenFirst)? == preference(Order::RejectedFirst)?)
    }

    /// Whether both orders of every pair prefer the same reply; `None` if one of them has no verdict.
    pub fn agreement(&self) -> Option<bool> {
        let all = (0..self.places.len()).map(|pair| self.agreement_of(pair));
        all.reduce(|a, b| a.zip(b).map(|(a, b)| a && b)).flatten()
    }

    /// Judgements with a verdict.
    pub fn verdicts(&self) -> usize {
        self.records.iter().filter(|record| record.verdict(self.rule).scores().is_some()).count()
    }

    /// What became of each reply, in their order.
    pub fn standings(&self) -> Vec<Standing> {
        let none = |reply| Standing { reply, mean: None, points: 0.0, verdicts: 0, wins: 0 };
        let mut standings: Vec<Standing> = (0..self.replies).map(none).collect();
        for (pair, &(first, second)) in self.places.iter().enumerate() {
            let (a, b, count) = self.points(pair, None);
            for (reply, points) in [(first, a), (second, b)] {
                standings[reply].points += points;
                standings[reply].verdicts += count;
            }
            if let Some(winner) = self.winner_of(pair) {
                standings[winner].wins += 1;
            }
        }
        for standing in &mut standings {
            standing.mean =
                (standing.verdicts > 0).then(|| standing.points / standing.verdicts as f64);
        }
        standings
    }

    /// The replies by their mean score, the best first, equal ones in their order, those without a verdict last.
    pub fn ranking(&self) -> Vec<Standing> {
        let mut ranking = self.standings();
        ranking.sort_by(|a, b| match (a.mean, b.mean) {
            (Some(a), Some(b)) => b.total_cmp(&a),
            (a, b) => a.is_none().cmp(&b.is_none()),
        });
        ranking
    }

    /// The reply with the best mean; `None` if it shares that with another, or if none has a verdict.
    pub fn winner(&self) -> Option<usize> {
        match self.ranking()[..] {
            [best, next, ..] if best.mean.is_some() && best.mean > next.mean => Some(best.reply),
            _ => None,
        }
    }

    /// By how many points the best mean leads the next; `None` if there are not two.
    pub fn margin(&self) -> Option<f64> {
        match self.ranking()[..] {
            [best, next, ..] => best.mean.zip(next.mean).map(|(best, next)| best - next),
            _ => None,
        }
    }

    /// Of two replies: the mean lead of the first in points, and the share of judgements that prefer it, ties as half. `None`
    /// without a verdict.
    pub fn lead(&self) -> Option<(f64, f64)> {
        let scores = self.records.iter().filter_map(|record| record.scores_by_label(self.rule));
        let scores: Vec<(f64, f64)> = scores.collect();
        let count = scores.len() as f64;
        let wins = |(a, b): &(f64, f64)| if a == b { 0.5 } else { f64::from(u8::from(a > b)) };
        (count > 0.0).then(|| {
            let lead = scores.iter().map(|(a, b)| a - b).sum::<f64>() / count;
            (lead, scores.iter().map(wins).sum::<f64>() / count)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        eval::results::Finish,
        judge::{prompt::OrderPlan, tasks_of},
    };

    fn record(row: u64, order: Order, scores: Option<(u32, u32)>) -> Record {
        let text =
            scores.map_or(String::new(), |(a, b)| format!("<scores>\\boxed{{{a}, {b}}}</scores>"));
        Record::saying(row, order, Finish::Stop, text)
    }

    /// Three replies, so three pairs (0, 1), (0, 2), (1, 2), each in both orders. Scores are of slots.
    fn three() -> Comparisons {
        let records = vec![
            record(2, Order::RejectedFirst, None),
            record(0, Order::ChosenFirst, Some((8, 4))),
            record(0, Order::RejectedFirst, Some((5, 9))),
            record(1, Order::ChosenFirst, Some((6, 6))),
            record(1, Order::RejectedFirst, Some((7, 3))),
            record(2, Order::ChosenFirst, Some((2, 9))),
        ];
        Comparisons::new(3, records, MatchRule::Strict)
    }

    #[test]
    fn replies_are_ranked_by_their_means() {
        let all = three();
        assert_eq!(all.places(), [(0, 1), (0, 2), (1, 2)]);
        let standing = |reply, points, verdicts, wins| Standing {
            reply,
            mean: Some(points / verdicts as f64),
            points,
            verdicts,
            wins,
        };
        // 0 gets 8 and 9 from 1, 6 and 3 from 2; 1 gets 4, 5 and 2; 2 gets 6, 7 and 9.
        let expected = [standing(0, 26.0, 4, 1), standing(1, 11.0, 3, 0), standing(2, 22.0, 3, 2)];
        assert_eq!(all.standings(), expected);
        assert_eq!(all.ranking().iter().map(|one| one.reply).collect::<Vec<_>>(), [2, 0, 1]);
        assert_eq!((all.winner(), all.verdicts()), (Some(2), 5));
        assert_eq!(all.margin(), Some(22.0 / 3.0 - 26.0 / 4.0));
        let agreements: Vec<_> = (0..3).map(|pair| all.agreement_of(pair)).collect();
        assert_eq!(agreements, [Some(true), Some(false), None]);
        assert_eq!(all.agreement(), None);
        assert_eq!(all.slots(&all.records()[1]), [1, 0]);
    }

    #[test]
    fn two_replies_have_a_lead() {
        let records = vec![
            record(0, Order::ChosenFirst, Some((8, 4))),
            record(0, Order::RejectedFirst, Some((5, 5))),
        ];
        let both = Comparisons::new(2, records, MatchRule::Strict);
        assert_eq!(
            (both.lead(), both.winner(), both.margin()),
            (Some((2.0, 0.75)), Some(0), Some(2.0))
        );
        let none =
            Comparisons::new(2, vec![record(0, Order::ChosenFirst, None)], MatchRule::Strict);
        assert_eq!((none.lead(), none.winner(), none.margin()), (None, None, None));
        let tie = Comparisons::new(
            2,
            vec![record(0, Order::ChosenFirst, Some((5, 5)))],
            MatchRule::Strict,
        );
        assert_eq!((tie.winner(), tie.margin()), (None, Some(0.0)));
    }

    #[test]
    fn every_two_replies_are_a_pair_of_their_own() {
        let replies = ["a", "b", "c"].map(str::to_owned);
        let pairs = pairs("q", &[Message::new("user", "Q")], &replies);
        let slots: Vec<_> =
            pairs.iter().map(|p| (p.row, p.chosen.as_str(), p.rejected.as_str())).collect();
        assert_eq!(slots, [(0, "a", "b"), (1, "a", "c"), (2, "b", "c")]);
        let both = tasks_of(1, 1, OrderPlan::Both, 2, 0);
        let keys: Vec<_> = both.iter().map(|task| (task.pair, task.order, task.vote)).collect();
        let (a, b) = (Order::ChosenFirst, Order::RejectedFirst);
        assert_eq!(keys, [(1, a, 0), (1, a, 1), (1, b, 0), (1, b, 1)]);
    }
}
