//! Comparisons computed by hand.

use super::*;
use crate::data::Candidates;
use crate::eval::scores::Scores;

const A: Order = Order::ChosenFirst;
const B: Order = Order::RejectedFirst;

fn record(row: u64, subset: &str, order: Order, scores: Option<(u32, u32)>) -> Record {
    let text =
        scores.map_or("?".to_owned(), |(a, b)| format!("<scores>\\boxed{{{a}, {b}}}</scores>"));
    let tokens = scores.map_or(9, |(a, _)| a);
    let said = Record::saying(row, order, Finish::Stop, text);
    Record { subset: Some(subset.to_owned()), tokens, ..said }
}

fn judged(records: &[Record]) -> Judged<'_> {
    Judged { records, rubrics: None }
}

fn compare(base: &[Record], trained: &[Record]) -> Comparison {
    Comparison::new(judged(base), judged(trained), MatchRule::Strict, 3).unwrap()
}

fn measure<'a>(comparison: &'a Comparison, name: &str) -> Option<&'a Difference> {
    comparison.measures.iter().find(|measure| measure.name == name)
}

fn interval(low: f64, high: f64) -> Option<Interval> {
    Some(Interval { low, high })
}

/// Two rows in both orders; the first judge has a third row besides, the second a fourth.
///
/// | row | subset | base: chosen in A, in B | trained |
/// |---|---|---|---|
/// | 0 | x | 6, 4 right; 6, 4 wrong | 8, 3 right; 2, 9 right |
/// | 1 | y | 3, 7 wrong; no verdict | 5, 5 tie; 7, 4 wrong |
fn both() -> [Vec<Record>; 2] {
    let base = vec![
        record(0, "x", A, Some((6, 4))),
        record(0, "x", B, Some((6, 4))),
        record(1, "y", A, Some((3, 7))),
        record(1, "y", B, None),
        record(2, "y", A, Some((1, 2))),
    ];
    let trained = vec![
        record(3, "y", A, Some((1, 2))),
        record(1, "y", B, Some((7, 4))),
        record(1, "y", A, Some((5, 5))),
        record(0, "x", B, Some((2, 9))),
        record(0, "x", A, Some((8, 3))),
    ];
    [base, trained]
}

#[test]
fn differences_by_hand() {
    let [base, trained] = both();
    let comparison = compare(&base, &trained);
    assert_eq!((comparison.judgements, comparison.rows, comparison.left_out), (4, 2, [1, 1]));
    assert_eq!((comparison.gained, comparison.lost), (1, 0));
    let values: Vec<_> = comparison
        .measures
        .iter()
        .map(|m| (m.name, m.base.unwrap(), m.trained.unwrap(), m.of))
        .collect();
    let expected = [
        ("parsed", 0.75, 1.0, [4, 4]),
        ("accuracy", 0.25, 0.5, [2, 2]),
        ("accuracy_chosen_first", 0.5, 0.5, [2, 2]),
        ("accuracy_rejected_first", 0.0, 0.5, [2, 2]),
        ("right_in_both_orders", 0.0, 0.5, [2, 2]),
        // Base: row 0 is 10 to 10, row 1 has an order without a verdict. Trained: 17 to 5, 9 to 12.
        ("right_by_sum", 0.0, 0.5, [2, 2]),
        // Base: row 0 says A twice, row 1 has one verdict. Trained: row 0 agrees; a tie agrees with nothing.
        ("agreement", 0.0, 0.5, [1, 2]),
        ("share_of_a", 2.0 / 3.0, 2.0 / 3.0, [3, 3]),
        ("ties", 0.0, 0.25, [4, 4]),
        ("truncated", 0.0, 0.0, [4, 4]),
        ("length", (6.0 + 6.0 + 3.0 + 9.0) / 4.0, (8.0 + 2.0 + 5.0 + 7.0) / 4.0, [4, 4]),
    ];
    assert_eq!(values, expected);
    // A resample has row 0 twice, row 1 twice, or both: the accuracy's difference is 0.5, 0 or 0.25.
    let accuracy = measure(&comparison, "accuracy").unwrap();
    assert_eq!((accuracy.difference, accuracy.interval), (Some(0.25), interval(0.0, 0.5)));
    let of_subset = |s: &Change| {
        (
            s.subset.clone().unwrap(),
            s.judgements,
            s.gained,
            s.lost,
            s.accuracy.base.unwrap(),
            s.accuracy.trained.unwrap(),
        )
    };
    let subsets: Vec<_> = comparison.subsets.iter().map(of_subset).collect();
    let expected = [("x".to_owned(), 2, 1, 0, 0.5, 1.0), ("y".to_owned(), 2, 0, 0, 0.0, 0.0)];
    assert_eq!(subsets, expected);
    assert_eq!(comparison.subsets[0].accuracy.interval, interval(0.5, 0.5));
    // Row 0: leads of 2 and -2 before, 5 and 7 now. Row 1: -4 and none before, 0 and -3 now.
    let pairs: Vec<_> =
        comparison.pairs.iter().map(|p| (p.row, p.judgements, p.base, p.trained, p.lead)).collect();
    assert_eq!(pairs, [(0, 2, 1, 2, 12.0), (1, 2, 0, 0, 1.0)]);
    assert_eq!(comparison.improved().iter().map(|pair| pair.row).collect::<Vec<_>>(), [0]);
    assert_eq!(comparison.drawn(9).len(), 2);
    assert_eq!(comparison.drawn(1), comparison.drawn(1));
}

#[test]
fn a_judge_differs_from_itself_in_nothing() {
    let [base, _] = both();
    let comparison = compare(&base, &base);
    for measure in &comparison.measures {
        let nothing = (Some(0.0), interval(0.0, 0.0));
        assert_eq!((measure.difference, measure.interval), nothing, "{}", measure.name);
    }
    assert_eq!((comparison.gained, comparison.lost, comparison.improved().len()), (0, 0, 0));
}

/// A number of the same name is the same number, whatever the order and the votes.
#[test]
fn numbers_are_those_of_an_evaluation() {
    let vote = |row, order, vote, scores| Record { vote, ..record(row, "x", order, Some(scores)) };
    // Three votes, of which two say slot A by a little and one says B by much.
    let votes =
        |order| [vote(0, order, 0, (6, 4)), vote(0, order, 1, (6, 4)), vote(0, order, 2, (1, 9))];
    let in_both = [votes(A), votes(B)].concat();
    let random = [vote(0, A, 0, (6, 4)), vote(0, A, 1, (6, 4)), vote(0, B, 2, (1, 9))].to_vec();
    let first = [vote(0, A, 0, (6, 4)), vote(1, A, 0, (1, 9))].to_vec();
    for records in [in_both, random, first] {
        let protocol = Protocol::of(&records, MatchRule::Strict, 3);
        let scores = Scores::compute(&records, protocol);
        let comparison = compare(&records, &records);
        assert_eq!(comparison.protocol, protocol);
        let share = |share: Option<crate::eval::scores::Share>| share.map(|share| share.share);
        for (name, expected) in [
            ("accuracy", scores.plain_accuracy),
            ("accuracy_chosen_first", share(scores.chosen_first)),
            ("accuracy_rejected_first", share(scores.rejected_first)),
            ("right_in_both_orders", share(scores.consistent)),
            ("right_by_sum", scores.summed.map(|summed| summed.accuracy())),
            ("agreement", share(scores.agreement)),
            ("share_of_a", share(scores.share_of_a)),
            ("length", scores.mean_tokens),
        ] {
            let got = measure(&comparison, name).and_then(|measure| measure.base);
            assert_eq!(got, expected, "{name}, order {}", protocol.order);
        }
    }
}

/// A pair that was judged more often in one order than in the other has no sum that a preference for a slot does not change.
#[test]
fn a_pair_needs_as_many_votes_in_each_order() {
    let vote = |order, vote| Record { vote, ..record(0, "x", order, Some((9, 2))) };
    let (whole, part) =
        ([vote(A, 0), vote(A, 1), vote(B, 0), vote(B, 1)], [vote(A, 0), vote(A, 1), vote(B, 0)]);
    let comparison = compare(&whole, &part);
    assert_eq!(comparison.judgements, 3);
    assert_eq!(measure(&comparison, "right_by_sum"), None);
    assert_eq!(measure(&compare(&whole, &whole), "right_by_sum").unwrap().base, Some(0.0));
}

/// A judge that wrote no verdict has no share of A; the other's is told.
#[test]
fn what_one_has_not_is_told_of_the_other() {
    let (base, trained) = ([record(0, "x", A, None)], [record(0, "x", A, Some((3, 2)))]);
    let comparison = compare(&base, &trained);
    let share_of_a = measure(&comparison, "share_of_a").unwrap();
    assert_eq!((share_of_a.base, share_of_a.trained, share_of_a.of), (None, Some(1.0), [0, 1]));
    assert_eq!((share_of_a.difference, share_of_a.interval), (None, None));
    // How a judgement of another program ended is not known.
    let unknown = Record { finish: Finish::Unknown, ..record(0, "x", A, Some((3, 2))) };
    let comparison = compare(std::slice::from_ref(&unknown), std::slice::from_ref(&unknown));
    assert!(
        measure(&comparison, "truncated").is_none() && measure(&comparison, "length").is_none()
    );
}

#[test]
fn criteria_count_where_both_were_measured() {
    let [base, trained] = both();
    let measures = |records: &[Record], bits: f64| -> BTreeMap<Key, Measures> {
        let of = |record: &Record| {
            let measures = match record.row {
                0 => Measures { written: true, bits, listed: 4, own: 1, ..Measures::default() },
                _ => Measures::default(),
            };
            (record.key(), measures)
        };
        records.iter().map(of).collect()
    };
    let (before, mut now) = (measures(&base, 1.0), measures(&trained, 3.0));
    let compared = |now: &BTreeMap<Key, Measures>| {
        let judges = (
            Judged { records: &base, rubrics: Some(&before) },
            Judged { records: &trained, rubrics: Some(now) },
        );
        Comparison::new(judges.0, judges.1, MatchRule::Strict, 0).unwrap()
    };
    let comparison = compared(&now);
    let bits = measure(&comparison, "bits").unwrap();
    assert_eq!((bits.of, bits.base, bits.trained), ([4, 4], Some(0.5), Some(1.5)));
    assert_eq!(bits.interval, interval(0.0, 2.0));
    let own = measure(&comparison, "own_criteria").unwrap();
    assert_eq!((own.of, own.base, own.trained), ([8, 8], Some(0.25), Some(0.25)));
    let echoed = measure(&comparison, "echoed").unwrap();
    assert_eq!(echoed.of, [2, 2], "of those that wrote criteria");
    // Row 1 was not measured of the second, so it does not count for the first either.
    now.retain(|(row, ..), _| *row == 0);
    let bits = measure(&compared(&now), "bits").unwrap().clone();
    assert_eq!((bits.of, bits.base, bits.trained), ([2, 2], Some(1.0), Some(3.0)));
    assert!(measure(&compared(&BTreeMap::new()), "bits").is_none());
}

#[test]
fn rows_of_several_replies_are_drawn_whole_and_other_data_is_refused() {
    let several = |row, id: &str, scores| Record {
        candidates: Some(Candidates { row: 5, chosen: 0, rejected: row as u32 }),
        id: id.to_owned(),
        ..record(row, "x", A, Some(scores))
    };
    let base = [several(0, "a", (1, 2)), several(1, "b", (1, 2))];
    let trained = [several(0, "a", (3, 2)), several(1, "b", (1, 2))];
    let comparison = compare(&base, &trained);
    assert_eq!(comparison.rows, 1);
    let accuracy = measure(&comparison, "accuracy").unwrap();
    assert_eq!((accuracy.difference, accuracy.interval), (Some(0.5), interval(0.5, 0.5)));
    let error = |trained: &[Record]| {
        Comparison::new(judged(&base), judged(trained), MatchRule::Strict, 0).unwrap_err()
    };
    let message = error(&[several(0, &"c\u{1b}".repeat(999), (3, 2))]).to_string();
    assert!(
        message.starts_with("row 0 is the pair \"a\" in the first and \"c\\u{1b}c"),
        "{message}"
    );
    assert!(message.len() < 1000, "{message}");
    assert_eq!(error(&[]), CompareError::NothingShared);
}
