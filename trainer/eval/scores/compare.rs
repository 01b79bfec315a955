//! Two judges on the same judgements: what each number is of one and of the other, and their difference.
//!
//! Only judgements that both have made count, each with its counterpart of the same row, order and vote. A number is a share or
//! a mean over them; it is told only where both judges have it. The interval of a difference is a paired percentile bootstrap
//! over rows of the data: a row is drawn with everything that both judges said about it, so that how hard a row is does not
//! widen the interval.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Preference, Protocol, Row, flag, rows_of};
use crate::eval::bootstrap::{Draws, Interval, RESAMPLES, hash, percentile_interval};
use crate::eval::results::{Finish, Key, Record};
use crate::eval::rubrics::Measures;
use crate::judge::prompt::{Order, OrderPlan};
use crate::judge::verdict::{MatchRule, Winner};

/// Why two evaluations cannot be compared.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[allow(missing_docs)] // the fields say what they hold
pub enum CompareError {
    /// They have a row in common by number, and it is not the same pair.
    #[error(
        "row {row} is the pair {base:?} in one and {trained:?} in the other: they are not of the same data"
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
    /// Measures of the criteria by judgement; `None` if there are none of the same pool of rows.
    pub rubrics: Option<&'a BTreeMap<Key, Measures>>,
}

/// One number of both judges.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// What it is: [`MEASURES`] has the names.
    pub name: &'static str,
    /// In what it is told.
    pub unit: Unit,
    /// How many judgements or rows it is of, of the judge that has more.
    pub of: u64,
    /// Of the first judge.
    pub base: f64,
    /// Of the second.
    pub trained: f64,
    /// The second less the first.
    pub difference: f64,
    /// 95 % of the difference.
    pub interval: Interval,
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
    /// The share of right ones.
    pub right: Difference,
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
    /// Which rule reads the verdicts.
    #[serde(rename = "match")]
    pub rule: MatchRule,
    /// Seed of the bootstrap.
    pub seed: u64,
    /// Judgements that both have made.
    pub judgements: u64,
    /// Rows of the data that they are about.
    pub rows: u64,
    /// Judgements that only the first has, and only the second: they do not count.
    pub left_out: [u64; 2],
    /// Not right before and right now.
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

/// Everything that is compared, in the order in which it is told.
const MEASURES: [Measure; 20] = {
    const fn share(name: &'static str, of: fn(&Side<'_>) -> Ratio) -> Measure {
        Measure { name, unit: Unit::Share, of }
    }
    const fn number(name: &'static str, of: fn(&Side<'_>) -> Ratio) -> Measure {
        Measure { name, unit: Unit::Number, of }
    }
    [
        share("parsed", |side| {
            side.over_records(|record, rule| Some(flag(record.verdict(rule).scores().is_some())))
        }),
        share("accuracy", |side| {
            side.over_records(|record, rule| Some(flag(is_right(record, rule))))
        }),
        share("accuracy_chosen_first", |side| side.right_in(Order::ChosenFirst)),
        share("accuracy_rejected_first", |side| side.right_in(Order::RejectedFirst)),
        share("right_in_both_orders", |side| {
            side.over_pairs(|first, second| Some(flag(first.is_right() && second.is_right())))
        }),
        share("right_by_sum", |side| {
            side.over_pairs(|first, second| Some(flag(first.with(second).is_right())))
        }),
        share("agreement", |side| {
            side.over_pairs(|first, second| {
                let (first, second) = first.preference().zip(second.preference())?;
                Some(flag(first == second && first != Preference::Neither))
            })
        }),
        share("share_of_a", |side| {
            side.over_records(|record, rule| match record.verdict(rule).winner()? {
                Winner::A => Some(1.0),
                Winner::B => Some(0.0),
                Winner::Tie => None,
            })
        }),
        share("ties", |side| {
            side.over_records(|record, rule| {
                Some(flag(record.verdict(rule).winner() == Some(Winner::Tie)))
            })
        }),
        share("truncated", |side| {
            side.over_records(|record, _| Some(flag(record.finish == Finish::Length)))
        }),
        Measure {
            name: "length",
            unit: Unit::Tokens,
            of: |side| {
                side.over_records(|record, _| {
                    matches!(record.finish, Finish::Stop | Finish::Length)
                        .then_some(f64::from(record.tokens))
                })
            },
        },
        share("criteria_written", |side| side.over_rubrics(|m| (flag(m.written), 1.0))),
        number("bits", |side| side.over_rubrics(|m| (m.bits, 1.0))),
        number("bits_shuffled", |side| side.over_rubrics(|m| (m.bits_shuffled, 1.0))),
        number("lift", |side| side.over_rubrics(|m| (m.lift, 1.0))),
        number("lift_prompt", |side| side.over_rubrics(|m| (m.lift_prompt, 1.0))),
        number("lift_replies", |side| side.over_rubrics(|m| (m.lift_replies, 1.0))),
        share("own_criteria", |side| {
            side.over_rubrics(|m| (f64::from(m.own), f64::from(m.listed)))
        }),
        share("echoed", |side| side.over_rubrics(|m| (m.echoed, flag(m.written)))),
        share("copied", |side| side.over_rubrics(|m| (m.copied, flag(m.written)))),
    ]
};

/// The measure that subsets are compared by.
const ACCURACY: usize = 1;

impl Side<'_> {
    /// The sum of what records are worth, of those that are worth something.
    fn over_records(&self, worth: impl Fn(&Record, MatchRule) -> Option<f64>) -> Ratio {
        total(self.records.iter().filter_map(|record| Some((worth(record, self.rule)?, 1.0))))
    }

    fn right_in(&self, order: Order) -> Ratio {
        self.over_records(|record, rule| {
            (record.order == order).then(|| flag(is_right(record, rule)))
        })
    }

    /// The same of pairs that were judged in both orders, by the ballots of each.
    fn over_pairs(&self, worth: impl Fn(super::Ballot, super::Ballot) -> Option<f64>) -> Ratio {
        let pairs = self.rows.iter().filter_map(|row| row.orders[0].zip(row.orders[1]));
        total(pairs.filter_map(|(first, second)| Some((worth(first, second)?, 1.0))))
    }

    fn over_rubrics(&self, ratio: impl Fn(&Measures) -> Ratio) -> Ratio {
        total(self.rubrics.iter().map(|measures| ratio(measures)))
    }
}

fn total(ratios: impl Iterator<Item = Ratio>) -> Ratio {
    ratios.fold((0.0, 0.0), |sum, ratio| (sum.0 + ratio.0, sum.1 + ratio.1))
}

fn is_right(record: &Record, rule: MatchRule) -> bool {
    record.scores_by_label(rule).is_some_and(|(chosen, rejected)| chosen > rejected)
}

/// By how many points the chosen reply leads.
fn lead(record: &Record, rule: MatchRule) -> f64 {
    record.scores_by_label(rule).map_or(0.0, |(chosen, rejected)| chosen - rejected)
}

/// A row of the data, and a judgement of both judges.
type Shared<'a> = (u64, &'a Record, &'a Record);

impl Comparison {
    /// Compares the judgements that both have made. The records of a judge have different keys.
    pub fn new(
        base: Judged<'_>,
        trained: Judged<'_>,
        rule: MatchRule,
        seed: u64,
    ) -> Result<Comparison, CompareError> {
        let of_base: BTreeMap<Key, &Record> =
            base.records.iter().map(|record| (record.key(), record)).collect();
        let mut shared: Vec<Shared> = Vec::new();
        for record in trained.records {
            if let Some(before) = of_base.get(&record.key()) {
                if before.id != record.id {
                    let (base, trained) = (before.id.clone(), record.id.clone());
                    return Err(CompareError::OtherPair { row: record.row, base, trained });
                }
                // A row of several replies is several pairs, which are no rows of their own.
                let row = record.candidates.map_or(record.row, |candidates| candidates.row);
                shared.push((row, before, record));
            }
        }
        if shared.is_empty() {
            return Err(CompareError::NothingShared);
        }
        shared.sort_by_key(|(row, _, record)| (*row, record.key()));
        let rows: Vec<[Side; 2]> = shared
            .chunk_by(|a, b| a.0 == b.0)
            .map(|row| {
                let before: Vec<&Record> = row.iter().map(|(_, before, _)| *before).collect();
                let now: Vec<&Record> = row.iter().map(|(_, _, now)| *now).collect();
                // Measures are of a pool of rows: without those of the other judge they would say nothing.
                let both = base.rubrics.zip(trained.rubrics);
                [(before, both.map(|both| both.0)), (now, both.map(|both| both.1))]
                    .map(|(records, rubrics)| side(records, rubrics, rule))
            })
            .collect();
        let subsets: BTreeSet<Option<&str>> =
            shared.iter().map(|(_, _, record)| record.subset.as_deref()).collect();
        let only = |records: &[Record]| (records.len() - shared.len()) as u64;
        let (gained, lost) = flips(&shared, rule);
        Ok(Comparison {
            rule,
            seed,
            judgements: shared.len() as u64,
            rows: rows.len() as u64,
            left_out: [only(base.records), only(trained.records)],
            gained,
            lost,
            measures: MEASURES
                .iter()
                .filter_map(|measure| difference(measure, &rows, seed))
                .collect(),
            subsets: match subsets.len() {
                1 => Vec::new(),
                _ => subsets
                    .into_iter()
                    .filter_map(|name| change(name, &shared, rule, seed))
                    .collect(),
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
        let mut draws = Draws::new(hash(&[0x6472_6177, self.seed]));
        let mut left: Vec<&PairChange> = self.pairs.iter().collect();
        (0..count.min(left.len())).map(|_| left.swap_remove(draws.below(left.len()))).collect()
    }
}

fn side<'a>(
    records: Vec<&'a Record>,
    rubrics: Option<&'a BTreeMap<Key, Measures>>,
    rule: MatchRule,
) -> Side<'a> {
    // By order, whatever order was asked for: the two ballots of a pair are what is compared.
    let protocol = Protocol { rule, order: OrderPlan::Both, votes: 1, seed: 0, sample: None };
    let rubrics = rubrics
        .iter()
        .flat_map(|by_key| records.iter().filter_map(|record| by_key.get(&record.key())));
    Side { rubrics: rubrics.collect(), rows: rows_of(&records, protocol), records, rule }
}

/// How many judgements became right, and how many are not any more.
fn flips(shared: &[Shared], rule: MatchRule) -> (u64, u64) {
    let mut flips = (0, 0);
    for (_, before, now) in shared {
        match (is_right(before, rule), is_right(now, rule)) {
            (false, true) => flips.0 += 1,
            (true, false) => flips.1 += 1,
            _ => {}
        }
    }
    flips
}

fn change(subset: Option<&str>, shared: &[Shared], rule: MatchRule, seed: u64) -> Option<Change> {
    let shared: Vec<Shared> = shared
        .iter()
        .filter(|(_, _, record)| record.subset.as_deref() == subset)
        .copied()
        .collect();
    let rows: Vec<[Side; 2]> = shared
        .chunk_by(|a, b| a.0 == b.0)
        .map(|row| {
            [
                row.iter().map(|(_, before, _)| *before).collect(),
                row.iter().map(|(_, _, now)| *now).collect(),
            ]
            .map(|records| side(records, None, rule))
        })
        .collect();
    let (gained, lost) = flips(&shared, rule);
    Some(Change {
        subset: subset.map(str::to_owned),
        judgements: shared.len() as u64,
        gained,
        lost,
        right: difference(&MEASURES[ACCURACY], &rows, seed)?,
    })
}

fn pair_changes(shared: &[Shared], rule: MatchRule) -> Vec<PairChange> {
    let mut pairs: BTreeMap<u64, PairChange> = BTreeMap::new();
    for (_, before, now) in shared {
        let (row, id) = (now.row, now.id.clone());
        let pair = pairs.entry(row).or_insert(PairChange {
            row,
            id,
            judgements: 0,
            base: 0,
            trained: 0,
            lead: 0.0,
        });
        pair.judgements += 1;
        pair.base += u64::from(is_right(before, rule));
        pair.trained += u64::from(is_right(now, rule));
        pair.lead += lead(now, rule) - lead(before, rule);
    }
    pairs.into_values().collect()
}

/// The measure of both judges; `None` where one of them does not have it.
fn difference(measure: &Measure, rows: &[[Side; 2]], seed: u64) -> Option<Difference> {
    let ratios: Vec<[Ratio; 2]> =
        rows.iter().map(|sides| sides.each_ref().map(measure.of)).collect();
    let values = |rows: &mut dyn Iterator<Item = &[Ratio; 2]>| {
        let [base, trained] = rows.fold([(0.0, 0.0); 2], |sum, row| {
            std::array::from_fn(|side| (sum[side].0 + row[side].0, sum[side].1 + row[side].1))
        });
        (base.1 > 0.0 && trained.1 > 0.0)
            .then(|| (base.0 / base.1, trained.0 / trained.1, base.1.max(trained.1)))
    };
    let (base, trained, of) = values(&mut ratios.iter())?;
    // "pair" keeps this stream apart from others made of the same seed. All measures have the same resamples.
    let mut draws = Draws::new(hash(&[0x7061_6972, seed]));
    let mut resampled: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let drawn: Vec<usize> = ratios.iter().map(|_| draws.below(ratios.len())).collect();
            let (base, trained, _) = values(&mut drawn.into_iter().map(|row| &ratios[row]))?;
            Some(trained - base)
        })
        .collect();
    Some(Difference {
        name: measure.name,
        unit: measure.unit,
        of: of as u64,
        base,
        trained,
        difference: trained - base,
        interval: percentile_interval(&mut resampled)?,
    })
}

#[cfg(test)]
mod tests;
