//! Comparisons computed by hand.

use super::*;
use crate::data::Candidates;
use crate::eval::bootstrap::Interval;

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
    let comparison =
        Comparison::new(judged(&base), judged(&trained), MatchRule::Strict, 3).unwrap();
    assert_eq!((comparison.judgements, comparison.rows, comparison.left_out), (4, 2, [1, 1]));
    assert_eq!((comparison.gained, comparison.lost), (1, 0));
    let values: Vec<_> =
        comparison.measures.iter().map(|m| (m.name, m.base, m.trained, m.of)).collect();
    let expected = [
        ("parsed", 0.75, 1.0, 4),
        ("accuracy", 0.25, 0.5, 4),
        ("accuracy_chosen_first", 0.5, 0.5, 2),
        ("accuracy_rejected_first", 0.0, 0.5, 2),
        ("right_in_both_orders", 0.0, 0.5, 2),
        // Base: row 0 is 10 to 10, row 1 has an order without a verdict. Trained: 17 to 5, 9 to 12.
        ("right_by_sum", 0.0, 0.5, 2),
        // Base: row 0 says A twice. Trained: row 0 agrees; a tie agrees with nothing.
        ("agreement", 0.0, 0.5, 2),
        ("share_of_a", 2.0 / 3.0, 2.0 / 3.0, 3),
        ("ties", 0.0, 0.25, 4),
        ("truncated", 0.0, 0.0, 4),
        ("length", (6.0 + 6.0 + 3.0 + 9.0) / 4.0, (8.0 + 2.0 + 5.0 + 7.0) / 4.0, 4),
    ];
    assert_eq!(values, expected);
    // A resample has row 0 twice, row 1 twice, or both: the accuracy's difference is 0.5, 0 or 0.25.
    let accuracy = &comparison.measures[ACCURACY];
    assert_eq!(accuracy.difference, 0.25);
    assert_eq!(accuracy.interval, Interval { low: 0.0, high: 0.5 });
    let subsets: Vec<_> = comparison
        .subsets
        .iter()
        .map(|s| {
            (s.subset.as_deref(), s.judgements, s.gained, s.lost, s.right.base, s.right.trained)
        })
        .collect();
    assert_eq!(subsets, [(Some("x"), 2, 1, 0, 0.5, 1.0), (Some("y"), 2, 0, 0, 0.0, 0.0)]);
    assert_eq!(comparison.subsets[0].right.interval, Interval { low: 0.5, high: 0.5 });
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
    let comparison = Comparison::new(judged(&base), judged(&base), MatchRule::Strict, 0).unwrap();
    for measure in &comparison.measures {
        assert_eq!(
            (measure.difference, measure.interval),
            (0.0, Interval { low: 0.0, high: 0.0 }),
            "{}",
            measure.name
        );
    }
    assert_eq!((comparison.gained, comparison.lost, comparison.improved().len()), (0, 0, 0));
}

#[test]
fn criteria_count_where_both_were_measured() {
    let [base, trained] = both();
    let measures = |records: &[Record], bits: f64| -> BTreeMap<Key, Measures> {
        let of = |record: &Record| {
            let written = record.row == 0;
            let (listed, own) = if written { (4, record.row as u32 + 1) } else { (0, 0) };
            (
                record.key(),
                Measures {
                    written,
                    bits: if written { bits } else { 0.0 },
                    listed,
                    own,
                    ..Measures::default()
                },
            )
        };
        records.iter().map(of).collect()
    };
    let (before, now) = (measures(&base, 1.0), measures(&trained, 3.0));
    let with = |records, rubrics| Judged { records, rubrics };
    let comparison = Comparison::new(
        with(&base, Some(&before)),
        with(&trained, Some(&now)),
        MatchRule::Strict,
        0,
    )
    .unwrap();
    let by_name = |name: &str| comparison.measures.iter().find(|m| m.name == name);
    let bits = by_name("bits").unwrap();
    assert_eq!((bits.of, bits.base, bits.trained), (4, 0.5, 1.5));
    assert_eq!(bits.interval, Interval { low: 0.0, high: 2.0 });
    let own = by_name("own_criteria").unwrap();
    assert_eq!((own.of, own.base, own.trained), (8, 0.25, 0.25));
    assert_eq!(by_name("echoed").unwrap().of, 2, "of those that wrote criteria");
    let half = Comparison::new(with(&base, Some(&before)), judged(&trained), MatchRule::Strict, 0)
        .unwrap();
    assert!(half.measures.iter().all(|measure| measure.name != "bits"));
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
    let comparison =
        Comparison::new(judged(&base), judged(&trained), MatchRule::Strict, 0).unwrap();
    assert_eq!(comparison.rows, 1);
    let accuracy = &comparison.measures[ACCURACY];
    assert_eq!((accuracy.difference, accuracy.interval), (0.5, Interval { low: 0.5, high: 0.5 }));
    let other = [several(0, "c", (3, 2))];
    let error = Comparison::new(judged(&base), judged(&other), MatchRule::Strict, 0).unwrap_err();
    assert!(
        error.to_string().contains("row 0 is the pair \"a\" in one and \"c\" in the other"),
        "{error}"
    );
    let none = Comparison::new(judged(&base), judged(&[]), MatchRule::Strict, 0).unwrap_err();
    assert_eq!(none, CompareError::NothingShared);
}
