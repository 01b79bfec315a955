//! A part of a data set that stands for the whole, for an evaluation with a limit.
//!
//! Every pair draws a number from the seed and its content (not from its place in the file, nor from its id,
//! which may be its place). A subset's pairs stand in the order of their numbers; the pair of rank r, counted
//! from 0, in a subset of n goes by r/n, the smallest first, equal ones by their numbers. The first `limit`
//! pairs are the sample, so that
//!
//! - every subset has about its share of it, and none is missing unless there are more subsets than pairs to
//!   take (the divisor method of Adams: shares are rounded up);
//! - a larger sample holds every smaller one of the same seed.
//!
//! Pairs of one row ([`super::Candidates`]) are drawn together, by the first of them: `limit` counts rows.

use std::collections::BTreeMap;

use super::{Pair, add_content};
use crate::data::fingerprint::Fingerprint;

/// How many rows pairs are made of: those of several replies make one.
pub fn row_count(pairs: &[Pair]) -> usize {
    let is_first = |pair: &&Pair| pair.candidates.is_none_or(|one| one.chosen + one.rejected == 0);
    pairs.iter().filter(is_first).count()
}

/// A sample of `limit` rows, all if there are no more, in the order of the file.
pub fn sample(pairs: Vec<Pair>, limit: usize, seed: u64) -> Vec<Pair> {
    let mut subsets: BTreeMap<Option<String>, Vec<(String, Pair)>> = BTreeMap::new();
    let mut others: BTreeMap<u64, Vec<Pair>> = BTreeMap::new();
    for pair in pairs {
        if let Some(one) = pair.candidates.filter(|one| one.chosen + one.rejected > 0) {
            others.entry(one.row).or_default().push(pair);
            continue;
        }
        let drawn = (draw(&pair, seed), pair);
        subsets.entry(drawn.1.subset.clone()).or_default().push(drawn);
    }
    let mut ranked = Vec::new();
    for mut subset in subsets.into_values() {
        subset.sort_by(|(a, first), (b, second)| (a, first.row).cmp(&(b, second.row)));
        let size = subset.len();
        ranked.extend(subset.into_iter().enumerate().map(|(rank, drawn)| (rank, size, drawn)));
    }
    ranked.sort_by(|(rank, size, (draw, pair)), (other_rank, other_size, (other_draw, other))| {
        // rank/size, as whole numbers.
        let by_share =
            (*rank as u128 * *other_size as u128).cmp(&(*other_rank as u128 * *size as u128));
        by_share.then_with(|| (draw, pair.row).cmp(&(other_draw, other.row)))
    });
    ranked.truncate(limit);
    let mut taken: Vec<Pair> = ranked.into_iter().map(|(_, _, (_, pair))| pair).collect();
    let rows: Vec<u64> = taken.iter().filter_map(|pair| Some(pair.candidates?.row)).collect();
    taken.extend(rows.iter().filter_map(|row| others.remove(row)).flatten());
    taken.sort_by_key(|pair| pair.row);
    taken
}

/// The pair's number: digits that compare as text.
fn draw(pair: &Pair, seed: u64) -> String {
    let mut fingerprint = Fingerprint::new();
    fingerprint.text("sample");
    fingerprint.text(&seed.to_string());
    add_content(&mut fingerprint, pair);
    fingerprint.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Message;

    /// Subsets of these sizes, one after the other as in RewardBench's file.
    fn pairs(sizes: &[usize]) -> Vec<Pair> {
        let subsets = sizes.iter().enumerate();
        let names = subsets.flat_map(|(subset, &size)| std::iter::repeat_n(subset, size));
        names
            .enumerate()
            .map(|(row, subset)| Pair {
                id: row.to_string(),
                row: row as u64,
                prompt: vec![Message::new("user", &format!("question {row}"))],
                chosen: "good".to_owned(),
                rejected: "bad".to_owned(),
                subset: (subset > 0).then(|| format!("subset {subset}")),
                candidates: None,
            })
            .collect()
    }

    fn sizes(pairs: &[Pair]) -> Vec<usize> {
        let mut counts: BTreeMap<&Option<String>, usize> = BTreeMap::new();
        pairs.iter().for_each(|pair| *counts.entry(&pair.subset).or_default() += 1);
        counts.into_values().collect()
    }

    fn rows(pairs: &[Pair]) -> Vec<u64> {
        pairs.iter().map(|pair| pair.row).collect()
    }

    #[test]
    fn every_subset_has_its_share() {
        let all = pairs(&[100, 600, 290, 10]);
        for (limit, expected) in [
            (4, vec![1, 1, 1, 1]),
            (10, vec![1, 5, 3, 1]),
            (100, vec![10, 60, 29, 1]),
            (1_000, vec![100, 600, 290, 10]),
            (5_000, vec![100, 600, 290, 10]),
        ] {
            let taken = sample(all.clone(), limit, 7);
            assert_eq!(sizes(&taken), expected, "{limit}");
            assert!(taken.is_sorted_by_key(|pair| pair.row));
        }
        assert_eq!(sample(all.clone(), 3, 7).len(), 3, "fewer than there are subsets");
        assert_eq!(sample(all.clone(), 5_000, 7), all);
        assert_eq!(sample(all, 0, 7), []);
    }

    #[test]
    fn the_seed_and_the_content_decide_not_the_place() {
        let all = pairs(&[40, 60]);
        let taken = sample(all.clone(), 10, 0);
        assert_eq!(sample(all.clone(), 10, 0), taken);
        assert_ne!(sample(all.clone(), 10, 1), taken);
        // The same pairs in another order, with the ids that their new places give them.
        let mut moved = all.clone();
        moved.reverse();
        for (row, pair) in moved.iter_mut().enumerate() {
            (pair.row, pair.id) = (row as u64, row.to_string());
        }
        let questions = |pairs: &[Pair]| {
            let mut questions: Vec<_> =
                pairs.iter().map(|pair| pair.prompt[0].content.clone()).collect();
            questions.sort();
            questions
        };
        assert_eq!(questions(&sample(moved, 10, 0)), questions(&taken));
        // Pairs of equal content are told apart by their rows.
        let mut equal = all;
        equal.iter_mut().for_each(|pair| pair.prompt.clear());
        assert_eq!(rows(&sample(equal, 4, 0)), [0, 1, 40, 41]);
    }

    #[test]
    fn a_larger_sample_holds_the_smaller() {
        let all = pairs(&[33, 7, 150, 1]);
        let mut smaller = Vec::new();
        for limit in 0..=all.len() {
            let taken = rows(&sample(all.clone(), limit, 3));
            assert!(taken.len() == limit && smaller.iter().all(|row| taken.contains(row)));
            smaller = taken;
        }
    }
}
