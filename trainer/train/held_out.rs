//! Held-out pairs: they are judged greedily in both orders, and what comes of it is logged with the step under `eval/`.

use std::sync::atomic::AtomicBool;

use kernels::cpu::profile;

use super::{
    grpo::rewards::{Entry, RewardTable, Rollout},
    metrics::distinct_scores,
};
use crate::{
    data::Pair,
    eval::{
        results::{Finish, Record},
        scores::{Protocol, Scores},
    },
    judge::{
        Judge, JudgeError, JudgeEvent, RunStatus, Task,
        prompt::{Order, OrderPlan},
        verdict::MatchRule,
    },
};

/// The metric that says which step is best.
pub const RIGHT_IN_BOTH: &str = "eval/right_in_both_orders";
/// The step that is best so far, from step 1 on; absent while none had a pair that was right in both orders.
pub const BEST_STEP: &str = "eval/best_step";

/// Judges pairs greedily in both orders: the records by row, and their scores by the published rule; `None` if `stop` was
/// raised. `done` is told how many judgements of how many are made.
pub fn evaluate(
    mut judge: Judge,
    pairs: &[Pair],
    stop: &AtomicBool,
    done: &mut dyn FnMut(usize, usize),
) -> Result<Option<(Vec<Record>, Scores)>, JudgeError> {
    judge.sampling.temperature = 0.0;
    let _span = profile::phase("evaluate", [pairs.len()]);
    let orders = [Order::ChosenFirst, Order::RejectedFirst];
    let tasks: Vec<Task> = (0..pairs.len())
        .flat_map(|pair| orders.map(|order| Task { pair, order, vote: 0 }))
        .collect();
    let mut records: Vec<Record> = Vec::with_capacity(tasks.len());
    let end = judge.run(pairs, &tasks, stop, &mut |event| {
        if let JudgeEvent::Done(_, record) = event {
            records.push(record);
            done(records.len(), tasks.len());
        }
        Ok(())
    });
    if end? == RunStatus::Interrupted {
        return Ok(None);
    }
    records.sort_by_key(Record::key);
    let (rule, order, seed) = (MatchRule::Strict, OrderPlan::Both, judge.seed);
    let protocol = Protocol { rule, order, votes: 1, seed, sample: None };
    let scores = Scores::compute(&records, protocol);
    Ok(Some((records, scores)))
}

/// The metrics of an evaluation, logged with the step. One rule counts everywhere: right is 1, a tie or no verdict 0, so
/// that the two orders average to the whole. `records` are sorted by their keys; `rewards` are those of training, and
/// here both orders of every pair are there.
pub(super) fn metrics(
    records: &[Record],
    scores: &Scores,
    rewards: &[Entry],
) -> Vec<(String, f64)> {
    let all = scores.judgements;
    let share = |count: u64| (all > 0).then(|| count as f64 / all as f64);
    let lengths = records
        .iter()
        .filter(|record| matches!(record.finish, Finish::Stop | Finish::Length))
        .map(|record| f64::from(record.tokens));
    let verdicts = records.iter().filter_map(|record| record.strict.scores());
    let table = RewardTable::new(rewards, &rollouts(records));
    let reward = table.columns.iter().map(|column| column.entry.weight * column.mean()).sum();
    let named = |name: &str, value: Option<f64>| Some((format!("eval/{name}"), value?));
    let mut metrics: Vec<(String, f64)> = [
        named("judgements", Some(all as f64)),
        named("accuracy", scores.plain_accuracy),
        named("accuracy_chosen_first", scores.chosen_first.map(|share| share.share)),
        named("accuracy_rejected_first", scores.rejected_first.map(|share| share.share)),
        named("right_in_both_orders", scores.consistent.map(|share| share.share)),
        named("right_by_sum", scores.summed.map(|summed| summed.accuracy())),
        named("agreement", scores.agreement.map(|share| share.share)),
        named("share_of_a", scores.share_of_a.map(|share| share.share)),
        named("distinct_scores", Some(distinct_scores(verdicts) as f64)),
        named("unparsed", share(scores.unparsed().total)),
        named("ties", share(scores.verdicts.ties)),
        named("truncated", share(scores.truncated)),
        named("mean_length", scores.mean_tokens),
        named("min_length", lengths.clone().reduce(f64::min)),
        named("max_length", lengths.reduce(f64::max)),
        named("reward", (all > 0).then_some(reward)),
    ]
    .into_iter()
    .flatten()
    .collect();
    metrics.extend(table.columns.iter().filter(|_| all > 0).map(|column| {
        (format!("eval/rewards/{}/mean", column.entry.reward.name()), column.mean())
    }));
    metrics
}

/// Judgements as rewards see them.
fn rollouts(records: &[Record]) -> Vec<Rollout<'_>> {
    let mut rollouts = Vec::with_capacity(records.len());
    for row in records.chunk_by(|a, b| a.row == b.row) {
        let start = rollouts.len();
        let second = start + row.partition_point(|record| record.order == Order::ChosenFirst);
        let end = start + row.len();
        rollouts.extend(row.iter().map(|record| Rollout {
            text: &record.text,
            verdict: record.strict,
            order: record.order,
            tokens: record.tokens as usize,
            other_order: Some(match record.order {
                Order::ChosenFirst => [second, end],
                Order::RejectedFirst => [start, second],
            }),
        }));
    }
    rollouts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::grpo::rewards::Reward;

    type Judged = (Order, Option<(u32, u32)>);

    /// Metrics of one judgement per row and order: the scores of slots A and B, or none.
    fn of(judged: &[Judged]) -> std::collections::BTreeMap<String, f64> {
        let record = |(index, (order, scores)): (usize, &Judged)| {
            let text = scores.map_or("no verdict".to_owned(), |(a, b)| {
                format!("<scores>\\boxed{{{a}, {b}}}</scores>")
            });
            let finish = if scores.is_some() { Finish::Stop } else { Finish::Length };
            let tokens = 10 * (index as u32 + 1);
            Record { tokens, ..Record::saying(index as u64 / 2, *order, finish, text) }
        };
        let records: Vec<Record> = judged.iter().enumerate().map(record).collect();
        let (rule, order) = (MatchRule::Strict, OrderPlan::Both);
        let protocol = Protocol { rule, order, votes: 1, seed: 0, sample: None };
        let rewards = [
            Entry { reward: Reward::Format, weight: 1.0 },
            Entry { reward: Reward::Verdict { wrong: -1.0 }, weight: 0.0 },
            Entry { reward: Reward::Consistency, weight: 2.0 },
            Entry { reward: Reward::Agreement, weight: 0.0 },
            Entry { reward: Reward::Length { max_tokens: 80, cache_tokens: 20 }, weight: 0.5 },
        ];
        metrics(&records, &Scores::compute(&records, protocol), &rewards).into_iter().collect()
    }

    const A: Order = Order::ChosenFirst;
    const B: Order = Order::RejectedFirst;

    #[test]
    fn the_orders_of_an_evaluation_average_to_the_whole() {
        // No verdict at all: nothing is right in either order.
        let nothing = of(&[(A, None), (B, None), (A, None), (B, None)]);
        for name in ["accuracy", "accuracy_chosen_first", "accuracy_rejected_first"] {
            assert_eq!(nothing[&format!("eval/{name}")], 0.0, "{name}");
        }
        assert_eq!((nothing["eval/unparsed"], nothing["eval/truncated"]), (1.0, 1.0));
        for of_none in ["eval/share_of_a", "eval/agreement"] {
            assert!(!nothing.contains_key(of_none), "nothing prefers a slot");
        }
        assert_eq!(nothing["eval/distinct_scores"], 0.0);
        assert!(of(&[]).iter().all(|(_, value)| *value == 0.0), "{:?}", of(&[]));
        let mixed = of(&mixed());
        let by_order = (mixed["eval/accuracy_chosen_first"], mixed["eval/accuracy_rejected_first"]);
        assert_eq!(by_order, (0.5, 0.5));
        assert_eq!(mixed["eval/accuracy"], 0.5);
        assert_eq!(mixed["eval/right_in_both_orders"], 0.25);
        // Sums of rows: a tie; no verdict in one order; a tie; 17 to 3.
        assert_eq!(mixed["eval/right_by_sum"], 0.25);
        assert_eq!((mixed["eval/unparsed"], mixed["eval/ties"]), (0.125, 0.125));
        // Slot A: rows 0, 0 and 3. Slot B: rows 2, 2 and 3.
        assert_eq!(mixed["eval/share_of_a"], 0.5);
    }

    /// Right and wrong; a tie and no verdict; wrong and right; right twice. By order 2 and 2 of 4.
    fn mixed() -> [Judged; 8] {
        [
            (A, Some((9, 1))),
            (B, Some((9, 1))),
            (A, Some((4, 4))),
            (B, None),
            (A, Some((1, 9))),
            (B, Some((1, 9))),
            (A, Some((9, 1))),
            (B, Some((2, 8))),
        ]
    }

    #[test]
    fn an_evaluation_has_lengths_agreement_and_the_rewards_of_training() {
        let mixed = of(&mixed());
        let lengths = ["min", "mean", "max"].map(|of| mixed[&format!("eval/{of}_length")]);
        assert_eq!(lengths, [10.0, 45.0, 80.0]);
        assert_eq!(mixed["eval/judgements"], 8.0);
        // 9, 1; 4, 4; 1, 9; 2, 8.
        assert_eq!(mixed["eval/distinct_scores"], 4.0);
        // Of the three rows with two verdicts, the last prefers one reply.
        assert_eq!(mixed["eval/agreement"], 1.0 / 3.0);
        let reward = |name: &str| mixed[&format!("eval/rewards/{name}/mean")];
        // Four right ones at 1, four others at -1.
        assert_eq!(reward("verdict"), 0.0);
        // Both judgements of the last row, of eight.
        assert_eq!((reward("consistency"), reward("agreement")), (0.25, 0.25));
        // Seven with two of eight parts, a box and its tags: (2 + 2) / 8 / 5 = 0.1.
        assert!((reward("format") - 0.0875).abs() < 1e-15);
        // 70 and 80 tokens: -1/2 and -1, of eight.
        assert_eq!(reward("length"), -0.1875);
        assert!((mixed["eval/reward"] - (0.0875 + 2.0 * 0.25 - 0.5 * 0.1875)).abs() < 1e-15);
    }
}
