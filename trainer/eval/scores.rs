//! From judgements to the numbers that `j1 eval` prints. Pure functions over [`Record`]s.
//!
//! Scores are read by label: `c` of the chosen reply, `r` of the rejected one. The scores of all votes that decide
//! together are summed, unparsed votes add nothing (SPCT's voting, arXiv 2504.02495):
//!
//! ```text
//! decided together   both, chosen-first: the votes of a row in one order
//!                    random:             the votes of a row, whatever order each of them drew
//! value              1 if c > r;  0.5 if c = r or no vote was parsed;  0 if c < r    (RewardBench, generative)
//! plain value        1 if c > r;  0 otherwise                                        (the original evaluation)
//! ```
//!
//! A row that was judged in both orders counts with the mean of its two values; beside that stands what the sum of both
//! orders' scores decides, which a preference for a slot does not change ([`Summed`]). Subsets are means over their
//! rows, sections and overall as in [`rewardbench`]; plain accuracy is the mean over all rows. Everything that is
//! told by order counts plainly, so that with every row in both orders the two average to the plain accuracy.
//! No judgement outweighs the others of its ballot: scores off the template's scale are not read
//! ([`crate::judge::verdict`]).
//!
//! Intervals are percentile bootstraps over rows (pairs): a row is drawn with everything that was judged
//! about it. Results do not depend on the order of the records.

pub mod compare;
mod render;
mod several;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::eval::bootstrap::{Draws, Interval, RESAMPLES, hash, percentile_interval};
use crate::eval::results::{Finish, Record};
use crate::eval::rewardbench::{self, PUBLISHED, SUBSETS, ScoreTable, SubsetScore};
use crate::eval::rubrics;
use crate::judge::prompt::{Order, OrderPlan};
use crate::judge::verdict::{MatchRule, UnparsedReason, Verdict, Winner};
pub use several::{BestOf, Several, Styles, Ties};

/// How judgements were made and are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Protocol {
    /// Which rule reads the verdicts.
    #[serde(rename = "match")]
    pub rule: MatchRule,
    /// In which orders pairs were judged.
    pub order: OrderPlan,
    /// Judgements of each row and order.
    pub votes: u32,
    /// Seeds the bootstrap too.
    pub seed: u64,
    /// The part of the data that was judged; `None` for all, or if it is not known.
    pub sample: Option<Sample>,
}

/// A part of the data, drawn by [`crate::data::sample`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Number of rows that were taken.
    pub rows: u64,
    /// Number of rows in the data.
    pub of: u64,
}

impl Protocol {
    /// The orders and votes that records were made with, as far as they show it.
    pub fn of<'a>(
        records: impl IntoIterator<Item = &'a Record>,
        rule: MatchRule,
        seed: u64,
    ) -> Protocol {
        let mut orders: BTreeMap<(u64, u32), Order> = BTreeMap::new();
        let (mut order, mut votes) = (OrderPlan::ChosenFirst, 1);
        for record in records {
            votes = votes.max(record.vote.saturating_add(1));
            let first = *orders.entry((record.row, record.vote)).or_insert(record.order);
            if first != record.order {
                order = OrderPlan::Both;
            } else if record.order == Order::RejectedFirst && order == OrderPlan::ChosenFirst {
                order = OrderPlan::Random;
            }
        }
        Protocol { rule, order, votes, seed, sample: None }
    }
}

/// Speed of a run: printed and kept in timing.json, not in scores.json.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Wall-clock time of the judging.
    pub seconds: f64,
    /// Tokens of prompts that were read.
    pub prompt_tokens: u64,
    /// Tokens that were generated.
    pub tokens: u64,
}

impl Timing {
    /// Generated tokens a second; `None` for no time at all.
    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.tokens as f64 / self.seconds)
    }
}

/// A mean and how many it is the mean of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Share {
    /// The share, in [0, 1].
    pub share: f64,
    /// How many were counted.
    pub of: u64,
}

/// Judgements by the slot that they prefer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Slots {
    /// Slot A scored higher.
    pub a: u64,
    /// Slot B scored higher.
    pub b: u64,
    /// The scores are equal.
    pub ties: u64,
}

/// Rows by what the scores of both orders decide together, as a judge that is asked in both orders decides. A row with an
/// order without a verdict is no tie: it is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Summed {
    /// The chosen reply has more points.
    pub right: u64,
    /// Both have the same.
    pub ties: u64,
    /// The rejected reply has more points.
    pub wrong: u64,
    /// Of these rows, an order has no verdict.
    pub unparsed: u64,
}

impl Summed {
    /// Of rows by the ballots of both orders.
    fn of(rows: impl Iterator<Item = (Ballot, Ballot)>) -> Option<Summed> {
        let mut summed = None;
        for (first, second) in rows {
            let summed: &mut Summed = summed.get_or_insert_default();
            match first.with(second).preference() {
                Some(Preference::Chosen) => summed.right += 1,
                Some(Preference::Neither) => summed.ties += 1,
                Some(Preference::Rejected) => summed.wrong += 1,
                None => summed.unparsed += 1,
            }
        }
        summed
    }

    /// Share of right ones, of all rows: a tie or an order without a verdict is not right.
    pub fn accuracy(&self) -> f64 {
        let all = self.right + self.ties + self.wrong + self.unparsed;
        self.right as f64 / all.max(1) as f64
    }
}

/// Judgements without a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Unparsed {
    /// Number of all of them.
    pub total: u64,
    /// Number by reason.
    pub reasons: BTreeMap<UnparsedReason, u64>,
}

impl Slots {
    /// Counts of the judgements' verdicts by a rule.
    fn of(records: &[&Record], rule: MatchRule) -> Slots {
        let mut slots = Slots::default();
        for record in records {
            match record.verdict(rule).winner() {
                Some(Winner::A) => slots.a += 1,
                Some(Winner::B) => slots.b += 1,
                Some(Winner::Tie) => slots.ties += 1,
                None => {}
            }
        }
        slots
    }
}

impl Unparsed {
    /// Counts of the judgements' verdicts by a rule.
    fn of(records: &[&Record], rule: MatchRule) -> Unparsed {
        let mut unparsed = Unparsed::default();
        records.iter().for_each(|record| unparsed.add(record.verdict(rule)));
        unparsed
    }

    fn add(&mut self, verdict: Verdict) {
        if let Verdict::Unparsed(reason) = verdict {
            self.total += 1;
            *self.reasons.entry(reason).or_default() += 1;
        }
    }
}

/// The same judgements, read by the rule that was not asked for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OtherRule {
    /// Which one that is.
    #[serde(rename = "match")]
    pub rule: MatchRule,
    /// Mean of the rows' plain values.
    pub plain_accuracy: Option<f64>,
    /// RewardBench's overall score.
    pub overall: Option<f64>,
    /// Judgements by preferred slot.
    pub verdicts: Slots,
}

/// Everything that is computed from the judgements of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scores {
    /// How they were made and counted.
    pub protocol: Protocol,
    /// Rows with at least one judgement.
    pub rows: u64,
    /// Number of judgements.
    pub judgements: u64,
    /// RewardBench's table: subsets, sections, overall.
    pub rewardbench: ScoreTable,
    /// Scores of benchmarks with several replies to a prompt; `None` for pairs.
    pub several: Option<Several>,
    /// Interval of the overall score; `None` if there is none.
    pub overall_interval: Option<Interval>,
    /// Mean of the rows' values; for data without RewardBench's subsets this is the score. `None` without rows.
    pub accuracy: Option<f64>,
    /// Mean of the rows' plain values.
    pub plain_accuracy: Option<f64>,
    /// Interval of the plain accuracy.
    pub plain_interval: Option<Interval>,
    /// Plain accuracy of the rows judged with the chosen reply in slot A: what the published j1 numbers are.
    pub chosen_first: Option<Share>,
    /// Plain accuracy of the rows judged with the rejected reply in slot A.
    pub rejected_first: Option<Share>,
    /// Rows whose two orders prefer the same reply, of those where both were parsed (a tie prefers none).
    pub agreement: Option<Share>,
    /// Rows right in both orders, of those judged in both.
    pub consistent: Option<Share>,
    /// What the sum of both orders' scores decides; `None` unless every row was judged in both.
    pub summed: Option<Summed>,
    /// Judgements that prefer slot A, of those that prefer a slot.
    pub share_of_a: Option<Share>,
    /// Judgements by preferred slot.
    pub verdicts: Slots,
    /// Scores of the same judgements by the other rule.
    pub other_rule: OtherRule,
    /// Without a verdict by the strict rule.
    pub unparsed_strict: Unparsed,
    /// Without a verdict by the soft rule.
    pub unparsed_soft: Unparsed,
    /// Mean length of the completions in tokens; `None` if no length is known.
    pub mean_tokens: Option<f64>,
    /// Completions that the token limit ended.
    pub truncated: u64,
    /// Judgements that were not made because their prompt did not fit.
    pub prompts_too_long: u64,
    /// Whether the criteria speak of their rows; `None` where the rows are not known, or there is only one.
    pub rubrics: Option<rubrics::Means>,
}

/// The summed scores of votes that decide together.
#[derive(Debug, Clone, Copy, Default)]
struct Ballot {
    chosen: f64,
    rejected: f64,
    parsed: u64,
}

impl Ballot {
    fn of<'a>(records: impl Iterator<Item = &'a Record>, rule: MatchRule) -> Option<Ballot> {
        let mut ballot = None;
        for record in records {
            let ballot: &mut Ballot = ballot.get_or_insert_default();
            if let Some((chosen, rejected)) = record.scores_by_label(rule) {
                ballot.chosen += chosen;
                ballot.rejected += rejected;
                ballot.parsed += 1;
            }
        }
        ballot
    }

    /// Whether both orders' ballots prefer the same reply, as 1 or 0. A tie prefers none; `None` if one has no verdict.
    fn agrees_with(self, other: Ballot) -> Option<f64> {
        let (first, second) = self.preference().zip(other.preference())?;
        Some(flag(first == second && first != Preference::Neither))
    }

    /// Whether both orders' ballots are right, as 1 or 0.
    fn is_right_with(self, other: Ballot) -> f64 {
        flag(self.is_right() && other.is_right())
    }

    /// The sum of both orders' ballots; without a vote if one of them has none.
    fn with(self, other: Ballot) -> Ballot {
        Ballot {
            chosen: self.chosen + other.chosen,
            rejected: self.rejected + other.rejected,
            parsed: self.parsed.min(other.parsed),
        }
    }

    /// Which reply it prefers; `None` if no vote was parsed.
    fn preference(self) -> Option<Preference> {
        (self.parsed > 0).then_some(if self.chosen > self.rejected {
            Preference::Chosen
        } else if self.chosen < self.rejected {
            Preference::Rejected
        } else {
            Preference::Neither
        })
    }

    fn value(self) -> f64 {
        match self.preference() {
            Some(Preference::Chosen) => 1.0,
            Some(Preference::Rejected) => 0.0,
            Some(Preference::Neither) | None => 0.5,
        }
    }

    fn is_right(self) -> bool {
        self.preference() == Some(Preference::Chosen)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preference {
    Chosen,
    Rejected,
    Neither,
}

/// A row's contribution.
struct Row<'a> {
    subset: Option<&'a str>,
    value: f64,
    plain: f64,
    /// Chosen first, rejected first.
    orders: [Option<Ballot>; 2],
}

impl Scores {
    /// Computes all of it. No two records may have the same key.
    pub fn compute(records: &[Record], protocol: Protocol) -> Scores {
        let mut sorted: Vec<&Record> = records.iter().collect();
        sorted.sort_by_key(|record| record.key());
        let rows = rows_of(&sorted, protocol);
        let in_order = |index: usize| {
            let ballots = rows.iter().filter_map(|row| row.orders[index]);
            Share::of(ballots.map(|ballot| flag(ballot.is_right())))
        };
        let both = || rows.iter().filter_map(|row| row.orders[0].zip(row.orders[1]));
        let paired = protocol.order == OrderPlan::Both;
        let agreement = both().filter_map(|(first, second)| first.agrees_with(second));
        let consistent = both().map(|(first, second)| first.is_right_with(second));
        let verdicts = Slots::of(&sorted, protocol.rule);
        let other = protocol.rule.other();
        let other_rows = rows_of(&sorted, Protocol { rule: other, ..protocol });
        let other_rule = OtherRule {
            rule: other,
            plain_accuracy: mean(other_rows.iter().map(|row| row.plain)),
            overall: rewardbench::table(subsets(&other_rows)).overall,
            verdicts: Slots::of(&sorted, other),
        };
        let preferring = verdicts.a + verdicts.b;
        let lengths = sorted
            .iter()
            .filter(|record| matches!(record.finish, Finish::Stop | Finish::Length))
            .map(|record| f64::from(record.tokens));
        let finished = |finish| sorted.iter().filter(|r| r.finish == finish).count() as u64;
        let (overall_interval, plain_interval) = intervals(&rows, protocol.seed);
        Scores {
            protocol,
            rows: rows.len() as u64,
            judgements: sorted.len() as u64,
            rewardbench: rewardbench::table(subsets(&rows)),
            several: Several::compute(&sorted, protocol),
            overall_interval,
            accuracy: mean(rows.iter().map(|row| row.value)),
            plain_accuracy: mean(rows.iter().map(|row| row.plain)),
            plain_interval,
            chosen_first: in_order(0),
            rejected_first: in_order(1),
            agreement: if paired { Share::of(agreement) } else { None },
            consistent: if paired { Share::of(consistent) } else { None },
            summed: if paired { Summed::of(both()) } else { None },
            share_of_a: (preferring > 0)
                .then(|| Share { share: verdicts.a as f64 / preferring as f64, of: preferring }),
            verdicts,
            other_rule,
            unparsed_strict: Unparsed::of(&sorted, MatchRule::Strict),
            unparsed_soft: Unparsed::of(&sorted, MatchRule::Soft),
            mean_tokens: mean(lengths),
            truncated: finished(Finish::Length),
            prompts_too_long: finished(Finish::PromptTooLong),
            rubrics: None,
        }
    }

    /// With what [`rubrics::of_records`] measured.
    pub fn with_rubrics(self, rubrics: Option<rubrics::Means>) -> Scores {
        Scores { rubrics, ..self }
    }

    /// Judgements without a verdict by the rule that was asked for.
    pub fn unparsed(&self) -> &Unparsed {
        match self.protocol.rule {
            MatchRule::Strict => &self.unparsed_strict,
            MatchRule::Soft => &self.unparsed_soft,
        }
    }

    /// What makes the numbers say less than they seem to, if anything does: more than a tenth of the judgements
    /// without a verdict.
    pub fn warning(&self) -> Option<String> {
        let (unparsed, all) = (self.unparsed().total, self.judgements);
        let rule = self.protocol.rule;
        if unparsed == 0 || unparsed * 10 <= all {
            return None;
        }
        if unparsed == all {
            return Some(format!(
                "no verdict was read in any of the {all} judgements ({rule} rule): a RewardBench score of 50 is half a \
                 point for each missing verdict and says nothing about the judge"
            ));
        }
        let percent = 100.0 * unparsed as f64 / all as f64;
        Some(format!(
            "{unparsed} of {all} judgements ({percent:.0} %) have no verdict by the {rule} rule: each counts as wrong in \
             the accuracy and as half a point in RewardBench's score, which therefore leans towards 50"
        ))
    }

    /// The content of scores.json: RewardBench's results format (accuracies by subset beside `model`, `model_type`
    /// and `chat_template`), and everything of ours under `j1`.
    pub fn to_json(&self, model: &str, chat_template: &str) -> Value {
        let sections = self.rewardbench.sections.iter().flat_map(|section| &section.subsets);
        let mut json: Map<String, Value> = sections
            .chain(&self.rewardbench.other)
            .filter_map(|subset| Some((subset.name.clone()?, json!(subset.accuracy))))
            .collect();
        let several = self.several.iter().flat_map(Several::subset_scores);
        json.extend(several.map(|(name, score)| (name.to_owned(), json!(score))));
        // After the subsets: data cannot put a subset in the place of these.
        json.insert("model".to_owned(), model.into());
        json.insert("model_type".to_owned(), "Generative RM".into());
        json.insert("chat_template".to_owned(), chat_template.into());
        let mut ours = json!(self);
        ours["published"] = json!(PUBLISHED);
        ours["warning"] = json!(self.warning());
        json.insert("j1".to_owned(), ours);
        Value::Object(json)
    }

    /// The table for the terminal, with a line feed at its end.
    pub fn render(&self, model: &str, timing: Option<&Timing>) -> String {
        render::render(self, model, timing)
    }
}

impl Share {
    fn of(values: impl Iterator<Item = f64>) -> Option<Share> {
        let (mut sum, mut of) = (0.0, 0);
        for value in values {
            sum += value;
            of += 1;
        }
        (of > 0).then(|| Share { share: sum / of as f64, of })
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    Share::of(values).map(|share| share.share)
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// The rows of records that are sorted by row.
fn rows_of<'a>(sorted: &[&'a Record], protocol: Protocol) -> Vec<Row<'a>> {
    sorted.chunk_by(|a, b| a.row == b.row).map(|records| row(records, protocol)).collect()
}

/// The row that these records, at least one, are about.
fn row<'a>(records: &[&'a Record], protocol: Protocol) -> Row<'a> {
    let orders = in_orders(records, protocol.rule);
    let deciding = deciding(records, protocol);
    let over = |value: fn(Ballot) -> f64| {
        mean(deciding.iter().flatten().copied().map(value)).expect("a row has a record")
    };
    Row {
        subset: records[0].subset.as_deref(),
        value: over(Ballot::value),
        plain: over(|ballot| flag(ballot.is_right())),
        orders,
    }
}

/// The ballots with the chosen reply first, and with the rejected one first.
fn in_orders(records: &[&Record], rule: MatchRule) -> [Option<Ballot>; 2] {
    [Order::ChosenFirst, Order::RejectedFirst].map(|order| {
        Ballot::of(records.iter().copied().filter(|record| record.order == order), rule)
    })
}

/// The ballots that decide about a pair together.
fn deciding(records: &[&Record], protocol: Protocol) -> [Option<Ballot>; 2] {
    match protocol.order {
        OrderPlan::Random => [Ballot::of(records.iter().copied(), protocol.rule), None],
        OrderPlan::Both | OrderPlan::ChosenFirst => in_orders(records, protocol.rule),
    }
}

fn subsets(rows: &[Row<'_>]) -> Vec<SubsetScore> {
    let mut by_name: BTreeMap<Option<&str>, Vec<&Row<'_>>> = BTreeMap::new();
    for row in rows {
        by_name.entry(row.subset).or_default().push(row);
    }
    let score = |(name, rows): (Option<&str>, Vec<&Row<'_>>)| {
        let share = |value: fn(&Row<'_>) -> f64| {
            rows.iter().copied().map(value).sum::<f64>() / rows.len() as f64
        };
        SubsetScore {
            name: name.map(str::to_owned),
            rows: rows.len() as u64,
            accuracy: share(|row| row.value),
            plain_accuracy: share(|row| row.plain),
        }
    };
    by_name.into_iter().map(score).collect()
}

/// The intervals of the overall score and of the plain accuracy, from the same resamples. A resample may
/// miss a subset; its section then does without, as the table does.
fn intervals(rows: &[Row<'_>], seed: u64) -> (Option<Interval>, Option<Interval>) {
    let place = |row: &Row<'_>| SUBSETS.iter().position(|known| Some(known.name) == row.subset);
    let rows: Vec<(usize, f64, f64)> =
        // Subsets outside of the benchmark share one more place, which is not looked at.
        rows.iter().map(|row| (place(row).unwrap_or(SUBSETS.len()), row.value, row.plain)).collect();
    if rows.is_empty() {
        return (None, None);
    }
    // "boot" keeps this stream apart from others made of the same seed.
    let mut draws = Draws::new(hash(&[0x626f_6f74, seed]));
    let mut overall = Vec::new();
    let mut plain = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let mut sums = [(0.0, 0.0); SUBSETS.len() + 1];
        let mut right = 0.0;
        for _ in 0..rows.len() {
            let (subset, value, row_plain) = rows[draws.below(rows.len())];
            sums[subset].0 += value;
            sums[subset].1 += 1.0;
            right += row_plain;
        }
        let means = std::array::from_fn(|subset| {
            let (sum, count) = sums[subset];
            (count > 0.0).then(|| sum / count)
        });
        overall.extend(rewardbench::overall(&means));
        plain.push(right / rows.len() as f64);
    }
    (percentile_interval(&mut overall), percentile_interval(&mut plain))
}

#[cfg(test)]
mod tests;
