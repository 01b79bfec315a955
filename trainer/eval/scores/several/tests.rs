//! By hand: one over the ties, RM-Bench's triangles, and rewardbench's own formula for Ties.

use super::*;
use crate::data::Candidates;
use crate::eval::results::Finish;
use crate::eval::scores::Scores;
use crate::judge::prompt::{Order, OrderPlan};
use crate::judge::verdict::{MatchRule, UnparsedReason, Verdict};

/// A judgement with the chosen reply in slot A; its key is the pair's place.
fn record(
    row: u64,
    id: &str,
    subset: &str,
    [c, r]: [u32; 2],
    scores: Option<(f64, f64)>,
) -> Record {
    let candidates = Candidates { row, chosen: c, rejected: r };
    let verdict = match scores {
        Some((a, b)) => Verdict::Scores(a, b),
        None => Verdict::Unparsed(UnparsedReason::NoBox),
    };
    Record {
        row: row * 10_000 + u64::from(c) * 100 + u64::from(r),
        id: format!("{id}{}", candidates.suffix()),
        subset: Some(subset.to_owned()),
        candidates: Some(candidates),
        order: Order::ChosenFirst,
        vote: 0,
        prompt_tokens: 1,
        tokens: 1,
        finish: Finish::Stop,
        log_prob: -1.0,
        strict: verdict,
        soft: verdict,
        text: String::new(),
    }
}

fn protocol(order: OrderPlan) -> Protocol {
    Protocol { rule: MatchRule::Strict, order, votes: 1, seed: 0, sample: None }
}

fn compute(records: &[Record], order: OrderPlan) -> Several {
    let scores = Scores::compute(records, protocol(order));
    let mut shuffled = records.to_vec();
    shuffled.reverse();
    assert_eq!(scores, Scores::compute(&shuffled, protocol(order)));
    scores.several.unwrap()
}

#[test]
fn the_chosen_reply_must_beat_every_other() {
    let row = |row: u64, scores: [Option<(f64, f64)>; 3]| {
        let subset = if row < 4 { "Focus" } else { "Math" };
        let records =
            (0..3).map(move |r| record(row, &row.to_string(), subset, [0, r], scores[r as usize]));
        records.collect::<Vec<_>>()
    };
    let (win, tie, lose) = (Some((8.0, 3.0)), Some((5.0, 5.0)), Some((3.0, 8.0)));
    let records = [
        row(0, [win, win, win]),
        row(1, [win, tie, win]),
        row(2, [win, None, tie]),
        row(3, [win, win, lose]),
        row(4, [None, None, None]),
    ]
    .concat();
    let several = compute(&records, OrderPlan::ChosenFirst);
    let names: Vec<_> = several.best_of.iter().map(|one| one.subset.as_deref()).collect();
    assert_eq!(names, [Some("Focus"), Some("Math")]);
    assert_eq!(several.best_of[0].score, (1.0 + 0.5 + 1.0 / 3.0) / 4.0);
    assert_eq!((several.best_of[0].rows, several.best_of[0].plain), (4, 0.25));
    // A judge of which nothing can be read guesses one of four.
    assert_eq!((several.best_of[1].score, several.best_of[1].plain), (0.25, 0.0));
    assert_eq!(several.overall, Some((several.best_of[0].score + 0.25) / 2.0));
    assert_eq!((several.ties, several.styles.len()), (None, 0));

    // In both orders: right in one, wrong in the other.
    let mut both = row(0, [win, win, win]);
    both.extend(row(0, [win, win, win]).into_iter().map(|mut record| {
        // Slot A holds the rejected reply now, and wins.
        record.order = Order::RejectedFirst;
        record
    }));
    let several = compute(&both, OrderPlan::Both);
    assert_eq!((several.best_of[0].score, several.best_of[0].plain), (0.5, 0.5));

    let scores = Scores::compute(&records, protocol(OrderPlan::ChosenFirst));
    let json = scores.to_json("m", "t");
    assert_eq!(json["Math"], 0.25);
    assert_eq!(json["j1"]["several"]["best_of"][0]["rows"], 4);
    let text = scores.render("m", None);
    let line = text.lines().find(|line| line.starts_with("  Focus")).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words, ["Focus", "4", "45.83", "25.00"], "{text}");
}

#[test]
fn ties_are_scored_as_published() {
    let row = |row: u64, id: &str, chosen: &[f64], rejected: &[f64]| {
        let mut records = Vec::new();
        for (c, chosen) in chosen.iter().enumerate() {
            for (r, rejected) in rejected.iter().enumerate() {
                let place = [c as u32, r as u32];
                records.push(record(row, id, "Ties", place, Some((*chosen, *rejected))));
            }
        }
        records
    };
    let records = [
        // gap 4;  gap 3, spread 1: alike in both ways, min(4, 3)/1 - 1 = 2
        row(0, "ref:1", &[9.0], &[5.0, 2.0]),
        row(1, "tied:1", &[8.0, 9.0], &[5.0, 4.0]),
        // gap 1;  gap 3, spread 2: alike, but not in the hard way, 1/2 - 1
        row(2, "ref:2", &[6.0], &[5.0]),
        row(3, "tied:2", &[7.0, 9.0], &[4.0]),
        // gap -1;  gap -2, spread 0: wrong; no last term
        row(4, "ref:3", &[4.0], &[5.0]),
        row(5, "tied:3", &[3.0, 3.0], &[5.0]),
        // Without its other row it counts in the accuracy alone.
        row(6, "ref:4", &[9.0], &[1.0]),
    ]
    .concat();
    let ties = compute(&records, OrderPlan::ChosenFirst).ties.unwrap();
    assert_eq!(ties.rows, [4, 3]);
    assert_eq!((ties.reference_accuracy, ties.tied_accuracy), (0.75, 2.0 / 3.0));
    assert_eq!((ties.preferred, ties.preferred_hard), (2.0 / 3.0, 1.0 / 3.0));
    let margin = (2.0_f64.tanh() + (-0.5_f64).tanh()) / 2.0;
    assert!((ties.margin - margin).abs() < 1e-15);
    // process_single_model of rewardbench 0.1.4 on these rows: 0.6275095521140789.
    assert!((ties.score - 0.627_509_552_114_078_9).abs() < 1e-12, "{}", ties.score);

    // A reply that no judgement scored makes its row wrong.
    let unread = [
        row(0, "ref:1", &[9.0], &[5.0]),
        vec![record(1, "tied:1", "Ties", [0, 0], None), record(1, "tied:1", "Ties", [1, 0], None)],
    ]
    .concat();
    let ties = compute(&unread, OrderPlan::ChosenFirst).ties.unwrap();
    assert_eq!((ties.tied_accuracy, ties.preferred, ties.margin < 0.0), (0.0, 0.0, true));
    // Other ids: an ordinary subset that happens to have this name.
    let several = compute(&row(0, "7", &[9.0], &[5.0, 9.0]), OrderPlan::ChosenFirst);
    assert_eq!((several.ties, several.best_of[0].score), (None, 0.5));
}

#[test]
fn styles_make_three_accuracies() {
    // The chosen reply of style i has i + 2 points, the rejected one of style j twice j.
    let domain = |row: u64, domain: &str, bonus: f64| {
        let place = |(i, j): (u32, u32)| {
            let scores = (f64::from(i) + 2.0 + bonus, 2.0 * f64::from(j));
            record(row, "x", domain, [i, j], Some(scores))
        };
        STYLES.map(place).to_vec()
    };
    let records = [
        domain(0, "chat", 0.0),
        domain(1, "safety-refuse", 9.0),
        domain(2, "safety-response", -9.0),
    ]
    .concat();
    let several = compute(&records, OrderPlan::ChosenFirst);
    let chat = &several.styles[0];
    // 2 > 0, 3 > 2, 4 = 4 on the diagonal; 3 > 0, 4 > 0, 4 > 2 below; 2 = 2, 2 < 4, 3 < 4 above.
    assert_eq!((chat.easy, chat.normal, chat.hard), (1.0, 2.0 / 3.0, 0.0));
    assert_eq!(chat.matrix, [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]);
    let mean = (1.0 + 2.0 / 3.0) / 3.0;
    assert_eq!(several.overall, Some((mean + 0.5) / 2.0), "safety is one domain");
    let text = Scores::compute(&records, protocol(OrderPlan::ChosenFirst)).render("m", None);
    assert!(text.contains("RM-Bench") && text.contains("Mean of the domains"), "{text}");
}

#[test]
fn pairs_have_no_such_table() {
    let mut alone = record(0, "a", "s", [0, 0], Some((1.0, 0.0)));
    alone.candidates = None;
    let scores = Scores::compute(&[alone], protocol(OrderPlan::ChosenFirst));
    assert_eq!(scores.several, None);
    assert!(!scores.render("m", None).contains("Best of"));
}
