//! Two judges on the same judgements: what each number is of one and of the other, and their difference.
//!
//! Only judgements that both have made count, each with its counterpart of the same row, order and vote. The numbers are those
//! that [`Scores`](super::Scores) has of them. The interval of a difference is a paired percentile bootstrap over rows of the
//! data: a row is drawn with everything that both judges said about it, so that how hard a row is does not widen the interval.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Ballot, Protocol, Row, flag, rows_of};
use crate::eval::bootstrap::{Draws, Interval, hash, interval_over};
use crate::eval::results::{Finish, Key, Record};
use crate::eval::rubrics::Measures;
use crate::judge::prompt::{Order, OrderPlan};
use crate::judge::verdict::{MatchRule, Winner};
use engine::error::excerpt;

/// Why two evaluations cannot be compared.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[allow(missing_docs)] // the fields say what they hold
pub enum CompareError {
    /// They have a row in common by number, and it is not the same pair.
    #[error(
        "row {row} is the pair \"{}\" in the first and \"{}\" in the second: compare evaluations of the same data",
        excerpt(base),
        excerpt(trained)
    )]
    OtherPair { row: u64, base: String, trained: String },
    /// No judgement is in both.
    #[error("no judgement is in both: they have no row, order and vote in common")]
    NothingShared,
}

/// What one judge said, and what its criteria measured.
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    /// Its judgements.
    pub records: &'a [Record],
    /// Measures of the criteria by judgement; `None` if there are none that compare with the other judge's.
    pub rubrics: Option<&'a BTreeMap<Key, Measures>>,
}

/// One number of both judges.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// What it is, in the words of the metrics and of scores.json.
    pub name: &'static str,
    /// In what it is told.
    pub unit: Unit,
    /// How many judgements, pairs or listed criteria it is of, of each judge: a share of A is of the verdicts that prefer a slot.
    pub of: [u64; 2],
    /// Of the first judge; `None` if it has none.
    pub base: Option<f64>,
    /// Of the second.
    pub trained: Option<f64>,
    /// The second less the first; `None` where one has none.
    pub difference: Option<f64>,
    /// 95 % of the difference.
    pub interval: Option<Interval>,
}

/// In what a number is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A share, in [0, 1].
    Share,
    /// Bits, or a lift: a plain number.
    Number,
    /// Tokens.
    Tokens,
}

/// The judgements of a subset that were right before or are now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// The subset; `None` for rows without one.
    pub subset: Option<String>,
    /// Judgements in it.
    pub judgements: u64,
    /// Of those, not right before and right now.
    pub gained: u64,
    /// Right before and not right now.
    pub lost: u64,
    /// The accuracy.
    pub accuracy: Difference,
}

/// What became of a pair.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairChange {
    /// The pair's row.
    pub row: u64,
    /// Its id.
    pub id: String,
    /// Shared judgements about it.
    pub judgements: u64,
    /// Right ones of the first judge.
    pub base: u64,
    /// Right ones of the second.
    pub trained: u64,
    /// By how many points more the chosen reply leads, over all of them; no verdict is a lead of 0.
    pub lead: f64,
}

/// Two judges on the judgements that both have made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// How the shared judgements were made and are counted.
    pub protocol: Protocol,
    /// Judgements that both have made.
    pub judgements: u64,
    /// Rows of the data that they are about.
    pub rows: u64,
    /// Judgements that only the first has, and only the second: they do not count.
    pub left_out: [u64; 2],
    /// Judgements not right before and right now.
    pub gained: u64,
    /// Right before and not right now.
    pub lost: u64,
    /// The numbers.
    pub measures: Vec<Difference>,
    /// The same by subset, if there are subsets.
    pub subsets: Vec<Change>,
    /// The pairs, by row.
    #[serde(skip)]
    pub pairs: Vec<PairChange>,
}

/// What one judge said about one row of the data.
struct Side<'a> {
    records: Vec<&'a Record>,
    rows: Vec<Row<'a>>,
    /// The ballots of pairs that were judged in both orders, as often in one as in the other.
    both: Vec<(Ballot, Ballot)>,
    rubrics: Vec<&'a Measures>,
    rule: MatchRule,
}

/// A sum and what it is divided by.
type Ratio = (f64, f64);

/// A number that is compared: a sum over rows by a count over rows.
struct Measure {
    name: &'static str,
    unit: Unit,
    of: fn(&Side<'_>) -> Ratio,
}

const ACCURACY: Measure = Measure {
    name: "accuracy",
    unit: Unit::Share,
    of: |side| total(side.rows.iter().map(|row| (row.plain, 1.0))),
};

/// Everything that is compared, in the order in which it is told.
const MEASURES: [Measure; 21] = {
    const fn share(name: &'static str, of: fn(&Side<'_>) -> Ratio) -> Measure {
        Measure { name, unit: Unit::Share, of }
    }
    const fn number(name: &'static str, of: fn(&Side<'_>) -> Ratio) -> Measure {
        Measure { name, unit: Unit::Number, of }
    }
    [
        share("parsed", |side| {
            side.records(|record, rule| Some(flag(record.verdict(rule).scores().is_some())))
        }),
        ACCURACY,
        share("accuracy_chosen_first", |side| side.in_order(0)),
        share("accuracy_rejected_first", |side| side.in_order(1)),
        share("right_in_both_orders", |side| side.both(|a, b| Some(a.is_right_with(b)))),
        share("right_by_sum", |side| side.both(|a, b| Some(flag(a.with(b).is_right())))),
        share("agreement", |side| side.both(Ballot::agrees_with)),
        share("share_of_a", |side| {
            side.records(|record, rule| match record.verdict(rule).winner()? {
                Winner::A => Some(1.0),
                Winner::B => Some(0.0),
                Winner::Tie => None,
            })
        }),
        share("ties", |side| {
            side.records(|record, rule| {
                Some(flag(record.verdict(rule).winner() == Some(Winner::Tie)))
            })
        }),
        share("truncated", |side| {
            side.records(|record, _| match record.finish {
                Finish::Unknown => None,
                finish => Some(flag(finish == Finish::Length)),
            })
        }),
        Measure {
            name: "length",
            unit: Unit::Tokens,
            of: |side| {
                side.records(|record, _| match record.finish {
                    Finish::Stop | Finish::Length => Some(f64::from(record.tokens)),
                    Finish::PromptTooLong | Finish::Unknown => None,
                })
            },
        },
        share("criteria_written", |side| side.criteria(|m| (flag(m.written), 1.0))),
        number("bits", |side| side.criteria(|m| (m.bits, 1.0))),
        number("bits_shuffled", |side| side.criteria(|m| (m.bits_shuffled, 1.0))),
        number("lift", |side| side.criteria(|m| (m.lift, 1.0))),
        number("lift_shuffled", |side| side.criteria(|m| (m.lift_shuffled, 1.0))),
        number("lift_prompt", |side| side.criteria(|m| (m.lift_prompt, 1.0))),
        number("lift_replies", |side| side.criteria(|m| (m.lift_replies, 1.0))),
        share("own_criteria", |side| side.criteria(|m| (m.own.into(), m.listed.into()))),
        share("echoed", |side| side.criteria(|m| (m.echoed, flag(m.written)))),
        share("copied", |side| side.criteria(|m| (m.copied, flag(m.written)))),
    ]
};

impl<'a> Side<'a> {
    fn new(records: Vec<&'a Record>, rubrics: Vec<&'a Measures>, protocol: Protocol) -> Side<'a> {
        let rows = rows_of(&records, protocol);
        let made = |row: u64, order| {
            records.iter().filter(|record| record.row == row && record.order == order).count()
        };
        let is_balanced =
            |row: u64| made(row, Order::ChosenFirst) == made(row, Order::RejectedFirst);
        let firsts = records.chunk_by(|a, b| a.row == b.row).map(|records| records[0].row);
        let both = match protocol.order {
            OrderPlan::Both => firsts
                .zip(&rows)
                .filter(|(row, _)| is_balanced(*row))
                .filter_map(|(_, row)| row.orders[0].zip(row.orders[1]))
                .collect(),
            OrderPlan::Random | OrderPlan::ChosenFirst => Vec::new(),
        };
        Side { both, rows, rubrics, rule: protocol.rule, records }
    }

    /// The sum of what judgements are worth, of those that are worth something.
    fn records(&self, worth: impl Fn(&Record, MatchRule) -> Option<f64>) -> Ratio {
        total(self.records.iter().filter_map(|record| Some((worth(record, self.rule)?, 1.0))))
    }

    /// Right ballots of an order: 0 with the chosen reply in slot A.
    fn in_order(&self, order: usize) -> Ratio {
        let ballots = self.rows.iter().filter_map(|row| row.orders[order]);
        total(ballots.map(|ballot| (flag(ballot.is_right()), 1.0)))
    }

    fn both(&self, worth: impl Fn(Ballot, Ballot) -> Option<f64>) -> Ratio {
        total(self.both.iter().filter_map(|&(first, second)| Some((worth(first, second)?, 1.0))))
    }

    fn criteria(&self, ratio: impl Fn(&Measures) -> Ratio) -> Ratio {
        total(self.rubrics.iter().map(|measures| ratio(measures)))
    }
}

fn total(ratios: impl Iterator<Item = Ratio>) -> Ratio {
    ratios.fold((0.0, 0.0), |sum, ratio| (sum.0 + ratio.0, sum.1 + ratio.1))
}

fn is_right(record: &Record, rule: MatchRule) -> bool {
    lead(record, rule) > 0.0
}

/// By how many points the chosen reply leads; 0 without a verdict.
fn lead(record: &Record, rule: MatchRule) -> f64 {
    record.scores_by_label(rule).map_or(0.0, |(chosen, rejected)| chosen - rejected)
}

/// A judgement of both judges.
#[derive(Clone, Copy)]
struct Shared<'a> {
    /// The row of the data: a row of several replies is several pairs, which are no rows of their own.
    row: u64,
    base: &'a Record,
    trained: &'a Record,
    /// Of both, where both were measured.
    rubrics: Option<[&'a Measures; 2]>,
}

impl Comparison {
    /// Compares the judgements that both have made. The records of a judge have different keys.
    pub fn new(
        base: Judged<'_>,
        trained: Judged<'_>,
        rule: MatchRule,
        seed: u64,
    ) -> Result<Comparison, CompareError> {
        let shared = shared(base, trained)?;
        let protocol = Protocol::of(shared.iter().map(|one| one.trained), rule, seed);
        let sides = by_row(&shared, protocol);
        let only = |records: &[Record]| (records.len() - shared.len()) as u64;
        let (gained, lost) = flips(&shared, rule);
        let mut subsets: BTreeMap<Option<&str>, Vec<Shared>> = BTreeMap::new();
        for one in &shared {
            subsets.entry(one.trained.subset.as_deref()).or_default().push(*one);
        }
        let change = |(subset, shared): (Option<&str>, Vec<Shared>)| {
            let (gained, lost) = flips(&shared, rule);
            Change {
                subset: subset.map(str::to_owned),
                judgements: shared.len() as u64,
                gained,
                lost,
                accuracy: difference(&ACCURACY, &by_row(&shared, protocol), seed),
            }
        };
        Ok(Comparison {
            protocol,
            judgements: shared.len() as u64,
            rows: sides.len() as u64,
            left_out: [only(base.records), only(trained.records)],
            gained,
            lost,
            measures: MEASURES
                .iter()
                .map(|measure| difference(measure, &sides, seed))
                .filter(|measure| measure.base.is_some() || measure.trained.is_some())
                .collect(),
            subsets: match subsets.len() {
                1 => Vec::new(),
                _ => subsets.into_iter().map(change).collect(),
            },
            pairs: pair_changes(&shared, rule),
        })
    }

    /// The pairs of which more judgements are right now, the most improved first: by right judgements, then by points.
    pub fn improved(&self) -> Vec<&PairChange> {
        let gain = |pair: &PairChange| pair.trained as i64 - pair.base as i64;
        let mut pairs: Vec<&PairChange> = self.pairs.iter().filter(|pair| gain(pair) > 0).collect();
        pairs.sort_by(|a, b| {
            gain(b).cmp(&gain(a)).then(b.lead.total_cmp(&a.lead)).then(a.row.cmp(&b.row))
        });
        pairs
    }

    /// At most `count` pairs, drawn by the seed without replacement, in the order of the draw.
    pub fn drawn(&self, count: usize) -> Vec<&PairChange> {
        // "draw" keeps this stream apart from others made of the same seed.
        let mut draws = Draws::new(hash(&[0x6472_6177, self.protocol.seed]));
        let mut left: Vec<&PairChange> = self.pairs.iter().collect();
        (0..count.min(left.len())).map(|_| left.swap_remove(draws.below(left.len()))).collect()
    }
}

/// The judgements of both, by row of the data.
fn shared<'a>(base: Judged<'a>, trained: Judged<'a>) -> Result<Vec<Shared<'a>>, CompareError> {
    let of_base: BTreeMap<Key, &Record> =
        base.records.iter().map(|record| (record.key(), record)).collect();
    let mut shared = Vec::new();
    for record in trained.records {
        let Some(before) = of_base.get(&record.key()) else { continue };
        if before.id != record.id {
            let (base, trained) = (before.id.clone(), record.id.clone());
            return Err(CompareError::OtherPair { row: record.row, base, trained });
        }
        let of = |judged: Judged<'a>| judged.rubrics?.get(&record.key());
        shared.push(Shared {
            row: record.candidates.map_or(record.row, |candidates| candidates.row),
            base: before,
            trained: record,
            rubrics: of(base).zip(of(trained)).map(|(base, trained)| [base, trained]),
        });
    }
    shared.sort_by_key(|one| (one.row, one.trained.key()));
    if shared.is_empty() { Err(CompareError::NothingShared) } else { Ok(shared) }
}

/// Both sides of each row of the data.
fn by_row<'a>(shared: &[Shared<'a>], protocol: Protocol) -> Vec<[Side<'a>; 2]> {
    let of_row = |row: &[Shared<'a>]| {
        [0, 1].map(|side| {
            let records = row.iter().map(|one| [one.base, one.trained][side]).collect();
            let rubrics = row.iter().filter_map(|one| Some(one.rubrics?[side])).collect();
            Side::new(records, rubrics, protocol)
        })
    };
    shared.chunk_by(|a, b| a.row == b.row).map(of_row).collect()
}

/// How many judgements became right, and how many are not any more.
fn flips(shared: &[Shared], rule: MatchRule) -> (u64, u64) {
    let mut flips = (0, 0);
    for one in shared {
        match (is_right(one.base, rule), is_right(one.trained, rule)) {
            (false, true) => flips.0 += 1,
            (true, false) => flips.1 += 1,
            _ => {}
        }
    }
    flips
}

fn pair_changes(shared: &[Shared], rule: MatchRule) -> Vec<PairChange> {
    let mut pairs: BTreeMap<u64, PairChange> = BTreeMap::new();
    for Shared { base, trained, .. } in shared {
        let (row, id) = (trained.row, trained.id.clone());
        let none = PairChange { row, id, judgements: 0, base: 0, trained: 0, lead: 0.0 };
        let pair = pairs.entry(row).or_insert(none);
        pair.judgements += 1;
        pair.base += u64::from(is_right(base, rule));
        pair.trained += u64::from(is_right(trained, rule));
        pair.lead += lead(trained, rule) - lead(base, rule);
    }
    pairs.into_values().collect()
}

/// The measure of both judges.
fn difference(measure: &Measure, sides: &[[Side; 2]], seed: u64) -> Difference {
    let rows: Vec<[Ratio; 2]> =
        sides.iter().map(|sides| sides.each_ref().map(measure.of)).collect();
    let sums = |rows: &mut dyn Iterator<Item = &[Ratio; 2]>| -> [Ratio; 2] {
        rows.fold([(0.0, 0.0); 2], |sum, row| {
            std::array::from_fn(|side| total([sum[side], row[side]].into_iter()))
        })
    };
    let values = |sums: [Ratio; 2]| sums.map(|(sum, of)| (of > 0.0).then(|| sum / of));
    let less = |[base, trained]: [Option<f64>; 2]| Some(trained? - base?);
    let of = sums(&mut rows.iter());
    let [base, trained] = values(of);
    let difference = less([base, trained]);
    // "pair" keeps this stream apart from others made of the same seed. All measures have the same resamples.
    let draws = Draws::new(hash(&[0x7061_6972, seed]));
    let interval = || interval_over(&rows, draws, |rows| less(values(sums(rows))));
    Difference {
        name: measure.name,
        unit: measure.unit,
        of: of.map(|(_, of)| of as u64),
        base,
        trained,
        interval: difference.and_then(|_| interval()),
        difference,
    }
}

#[cfg(test)]
mod tests;
