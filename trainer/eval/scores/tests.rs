//! Scores computed by hand.

use std::time::Instant;

use super::*;
use crate::judge::verdict::{Reading, VerdictForm, read};

const A: Order = Order::ChosenFirst;
const B: Order = Order::RejectedFirst;

/// A judgement that gives slot A `a` and slot B `b`, or none.
fn record(row: u64, subset: &str, order: Order, vote: u32, scores: Option<(f64, f64)>) -> Record {
    let text =
        scores.map_or("?".to_owned(), |(a, b)| format!("<scores>\\boxed{{{a}, {b}}}</scores>"));
    let subset = (!subset.is_empty()).then(|| subset.to_owned());
    let (prompt_tokens, tokens) = (100, 10 * (row as u32 + 1));
    let said = Record::saying(row, order, Finish::Stop, text);
    Record { subset, vote, prompt_tokens, tokens, ..said }
}

fn protocol(order: OrderPlan, votes: u32) -> Protocol {
    Protocol { rule: MatchRule::Strict, order, votes, seed: 7, sample: None }
}

fn share(share: f64, of: u64) -> Option<Share> {
    Some(Share { share, of })
}

/// Four rows in both orders, by hand:
///
/// | row | subset | chosen in A | rejected in A | value | plain |
/// |---|---|---|---|---|---|
/// | 0 | math-prm | 9, 3 right | 2, 8 right | 1 | 1 |
/// | 1 | math-prm | 9, 3 right | 7, 5 wrong | 0.5 | 0.5 |
/// | 2 | hep-go | 4, 4 tie | unparsed | 0.5 | 0 |
/// | 3 | alpacaeval-easy | 1, 5 wrong | 5, 5 tie | 0.25 | 0 |
fn both() -> Vec<Record> {
    vec![
        record(0, "math-prm", A, 0, Some((9.0, 3.0))),
        record(0, "math-prm", B, 0, Some((2.0, 8.0))),
        record(1, "math-prm", A, 0, Some((9.0, 3.0))),
        record(1, "math-prm", B, 0, Some((7.0, 5.0))),
        record(2, "hep-go", A, 0, Some((4.0, 4.0))),
        record(2, "hep-go", B, 0, None),
        record(3, "alpacaeval-easy", A, 0, Some((1.0, 5.0))),
        record(3, "alpacaeval-easy", B, 0, Some((5.0, 5.0))),
    ]
}

#[test]
fn both_orders_by_hand() {
    let scores = Scores::compute(&both(), protocol(OrderPlan::Both, 1));
    assert_eq!((scores.rows, scores.judgements), (4, 8));
    let sections: Vec<_> =
        scores.rewardbench.sections.iter().map(|s| (s.section.name(), s.score)).collect();
    // Reasoning: (984 x 0.75 + 164 x 0.5) / 1148 = 820 / 1148.
    assert_eq!(sections, [("Chat", 0.25), ("Reasoning", 820.0 / 1148.0)]);
    assert_eq!(scores.rewardbench.overall, Some((0.25 + 820.0 / 1148.0) / 2.0));
    assert_eq!(scores.accuracy, Some(2.25 / 4.0));
    assert_eq!(scores.plain_accuracy, Some(1.5 / 4.0));
    // Points of the chosen reply and of the other: 17 to 5, 14 to 10, an order without a verdict, 6 to 10.
    let summed = Summed { right: 2, ties: 0, wrong: 1, unparsed: 1 };
    assert_eq!((scores.summed, summed.accuracy()), (Some(summed), 0.5));
    let tie = [(A, Some((9.0, 7.0))), (B, Some((9.0, 7.0)))];
    let tie = tie.map(|(order, scores)| record(0, "", order, 0, scores));
    let tie = Scores::compute(&tie, protocol(OrderPlan::Both, 1)).summed.unwrap();
    assert_eq!((tie.ties, tie.accuracy()), (1, 0.0));
    assert_eq!(Scores::compute(&both()[..1], protocol(OrderPlan::ChosenFirst, 1)).summed, None);
    assert_eq!(scores.rewardbench.sections[1].subsets[0].plain_accuracy, 0.75);
    // Chosen in A: right, right, a tie, wrong. Rejected in A: right, wrong, nothing, a tie.
    assert_eq!(scores.chosen_first, share(2.0 / 4.0, 4));
    assert_eq!(scores.rejected_first, share(1.0 / 4.0, 4));
    // Row 0 agrees; rows 1 and 3 do not; row 2 was not parsed in both.
    assert_eq!(scores.agreement, share(1.0 / 3.0, 3));
    assert_eq!(scores.consistent, share(1.0 / 4.0, 4));
    // A: rows 0, 1, 1. B: rows 0, 3.
    assert_eq!(scores.verdicts, Slots { a: 3, b: 2, ties: 2 });
    assert_eq!(scores.share_of_a, share(0.6, 5));
    assert_eq!((scores.unparsed_strict.total, scores.unparsed_soft.total), (1, 1));
    assert_eq!(scores.unparsed_strict.reasons, BTreeMap::from([(UnparsedReason::NoScoresTag, 1)]));
    assert_eq!(scores.mean_tokens, Some(25.0));
}

#[test]
fn the_order_of_the_records_does_not_matter() {
    let mut records = both();
    let expected = Scores::compute(&records, protocol(OrderPlan::Both, 1));
    records.reverse();
    assert_eq!(Scores::compute(&records, protocol(OrderPlan::Both, 1)), expected);
    records.swap(0, 5);
    assert_eq!(Scores::compute(&records, protocol(OrderPlan::Both, 1)), expected);
}

#[test]
fn one_order_has_no_agreement_and_a_missing_verdict_is_half_a_point() {
    let records: Vec<_> = both().into_iter().filter(|record| record.order == A).collect();
    let scores = Scores::compute(&records, protocol(OrderPlan::ChosenFirst, 1));
    assert_eq!((scores.agreement, scores.consistent, scores.rejected_first), (None, None, None));
    assert_eq!(scores.chosen_first, share(2.0 / 4.0, 4));
    assert_eq!(scores.accuracy, Some(2.5 / 4.0));
    assert_eq!(scores.plain_accuracy, Some(0.5));
}

#[test]
fn votes_are_summed_by_label() {
    // Chosen in A. 9 : 3, 4 : 8, and one unparsed: 13 : 11, right, though only one of three votes is.
    let vote = |order, number, scores| record(0, "hep-go", order, number, scores);
    let mut records =
        vec![vote(A, 0, Some((9.0, 3.0))), vote(A, 1, Some((4.0, 8.0))), vote(A, 2, None)];
    let scores = Scores::compute(&records, protocol(OrderPlan::ChosenFirst, 3));
    assert_eq!((scores.plain_accuracy, scores.rows, scores.judgements), (Some(1.0), 1, 3));
    // Drawn orders decide together: B says 1 : 6 in slots, 6 : 1 by label. 15 : 4 in all.
    records = vec![vote(A, 0, Some((9.0, 3.0))), vote(B, 1, Some((1.0, 6.0)))];
    let scores = Scores::compute(&records, protocol(OrderPlan::Random, 2));
    assert_eq!((scores.accuracy, scores.agreement), (Some(1.0), None));
    // 3 : 9 and 6 : 1 are 9 : 10 together, wrong; judged in both orders they are one right, one wrong.
    records = vec![vote(A, 0, Some((3.0, 9.0))), vote(B, 1, Some((1.0, 6.0)))];
    assert_eq!(Scores::compute(&records, protocol(OrderPlan::Random, 2)).accuracy, Some(0.0));
    assert_eq!(Scores::compute(&records, protocol(OrderPlan::Both, 1)).accuracy, Some(0.5));
    // A wild judgement is no vote: 1173 : 1 would outweigh the two others, 9 : 3 and 8 : 7.
    let wild = [Some((3.0, 9.0)), Some((7.0, 8.0)), Some((1173.0, 1.0))];
    let records: Vec<_> = (0..3).map(|number| vote(A, number, wild[number as usize])).collect();
    let scores = Scores::compute(&records, protocol(OrderPlan::ChosenFirst, 3));
    assert_eq!((scores.accuracy, scores.unparsed_strict.total), (Some(0.0), 1));
    assert_eq!(scores.unparsed_soft.reasons, BTreeMap::from([(UnparsedReason::OutOfScale, 1)]));
}

#[test]
fn the_soft_rule_counts_what_the_strict_rule_cannot_read() {
    let mut loose = record(0, "", A, 0, None);
    loose.text = "\\boxed{8/10, 3/10}".to_owned();
    Reading { strict: loose.strict, soft: loose.soft } =
        read(&loose.text, Finish::Stop, VerdictForm::default());
    let mut cut = record(1, "", A, 0, None);
    cut.finish = Finish::Length;
    Reading { strict: cut.strict, soft: cut.soft } =
        read(&cut.text, Finish::Length, VerdictForm::default());
    let mut long = record(2, "", A, 0, None);
    (long.finish, long.tokens) = (Finish::PromptTooLong, 0);
    Reading { strict: long.strict, soft: long.soft } =
        read("", Finish::PromptTooLong, VerdictForm::default());
    let records = [loose, cut, long];
    let strict = Scores::compute(&records, protocol(OrderPlan::ChosenFirst, 1));
    let rule = MatchRule::Soft;
    let soft = Scores::compute(&records, Protocol { rule, ..protocol(OrderPlan::ChosenFirst, 1) });
    assert_eq!((strict.plain_accuracy, soft.plain_accuracy), (Some(0.0), Some(1.0 / 3.0)));
    assert_eq!((strict.unparsed_strict.total, strict.unparsed_soft.total), (3, 2));
    // Each tells what the other reads.
    let other = strict.other_rule;
    assert_eq!((other.rule, other.plain_accuracy), (MatchRule::Soft, soft.plain_accuracy));
    assert_eq!((other.verdicts, other.overall), (soft.verdicts, soft.rewardbench.overall));
    assert_eq!(soft.other_rule.plain_accuracy, strict.plain_accuracy);
    assert_eq!((strict.truncated, strict.prompts_too_long), (1, 1));
    // 10 and 20 tokens; a prompt that did not fit has no completion.
    assert_eq!(strict.mean_tokens, Some(15.0));
    assert_eq!(strict.rewardbench.overall, None);
    assert_eq!(
        (strict.rewardbench.other[0].name.as_deref(), strict.overall_interval),
        (None, None)
    );
}

#[test]
fn the_protocol_of_records_is_recognized() {
    let of = |records: &[Record]| {
        let protocol = Protocol::of(records, MatchRule::Strict, 0);
        (protocol.order, protocol.votes)
    };
    assert_eq!(of(&both()), (OrderPlan::Both, 1));
    let first = |order, vote| record(0, "", order, vote, None);
    assert_eq!(of(&[first(A, 0), first(A, 1)]), (OrderPlan::ChosenFirst, 2));
    assert_eq!(of(&[first(A, 0), first(B, 1)]), (OrderPlan::Random, 2));
    assert_eq!(of(&[first(B, 0), first(A, 0), first(B, 1)]), (OrderPlan::Both, 2));
    assert_eq!(of(&[]), (OrderPlan::ChosenFirst, 1));
}

#[test]
fn intervals_are_seeded_and_have_the_width_that_theory_says() {
    // 400 of 500 right: the standard error is sqrt(0.8 x 0.2 / 500) = 0.01789.
    let right = Some((9.0, 1.0));
    let records: Vec<_> = (0..500)
        .map(|row| record(row, "hep-go", A, 0, if row % 5 == 0 { Some((1.0, 9.0)) } else { right }))
        .collect();
    let scores = Scores::compute(&records, protocol(OrderPlan::ChosenFirst, 1));
    let interval = scores.plain_interval.unwrap();
    // A percentile of 2,000 draws is off by about 3 % of the width; three times that is allowed.
    let expected = 2.0 * 1.96 * 0.01789;
    assert!((interval.high - interval.low - expected).abs() < 0.09 * expected, "{interval:?}");
    assert!(interval.low < 0.8 && 0.8 < interval.high);
    // One subset alone: the overall score is the plain accuracy, in every resample.
    let overall = scores.overall_interval.unwrap();
    assert!(
        (overall.low - interval.low).abs() < 1e-12 && (overall.high - interval.high).abs() < 1e-12
    );
    let again = Scores::compute(&records, protocol(OrderPlan::ChosenFirst, 1));
    assert_eq!(again, scores);
    let seed = 8;
    let other = Scores::compute(&records, Protocol { seed, ..protocol(OrderPlan::ChosenFirst, 1) });
    assert_ne!(other.plain_interval, scores.plain_interval);
    let certain: Vec<_> = (0..5).map(|row| record(row, "hep-go", A, 0, right)).collect();
    let certain = Scores::compute(&certain, protocol(OrderPlan::ChosenFirst, 1));
    assert_eq!(certain.overall_interval, Some(Interval { low: 1.0, high: 1.0 }));
}

#[test]
fn the_whole_benchmark_takes_little_time() {
    let mut records = Vec::new();
    for subset in &SUBSETS {
        for _ in 0..subset.rows {
            let row = records.len() as u64;
            let scores = if row.is_multiple_of(3) { (2.0, 7.0) } else { (7.0, 2.0) };
            records.push(record(row, subset.name, A, 0, Some(scores)));
        }
    }
    let begin = Instant::now();
    let scores = Scores::compute(&records, protocol(OrderPlan::ChosenFirst, 1));
    eprintln!("2,985 rows in {:?}", begin.elapsed());
    assert!(scores.rewardbench.complete && scores.rows == 2_985);
    let text = scores.render("m", None);
    for part in ["Chat Hard", "math-prm", "overall", "j1-micro (1.7B)", "80.70"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(!text.contains("not the whole benchmark") && !text.contains("of 4 sections"), "{text}");
}

#[test]
fn the_table_shows_what_was_computed() {
    let mean = |mean: f64| rubrics::Mean { mean, interval: Interval { low: -mean, high: 11.5 } };
    let rubrics = rubrics::Means {
        judgements: 8,
        missing: 1,
        sources: 2985,
        bits: mean(3.08),
        bits_shuffled: mean(-0.14),
        lift: mean(0.275),
        lift_shuffled: mean(0.036),
        lift_prompt: mean(0.035),
        lift_replies: mean(0.3),
        own_criteria: Some(0.81),
        echoed: 0.05,
        copied: 0.0,
    };
    let scores = Scores::compute(&both(), protocol(OrderPlan::Both, 1)).with_rubrics(Some(rubrics));
    let timing = Timing { seconds: 4.0, prompt_tokens: 800, tokens: 200 };
    let text = scores.render("my\u{1b}[31mjudge\u{202e}", Some(&timing));
    assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text}");
    let line = |start: &str| {
        let found = text.lines().find(|line| line.trim_start().starts_with(start));
        let words =
            found.unwrap_or_else(|| panic!("no line {start} in\n{text}")).split_whitespace();
        words.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("hep-go"), "hep-go 1 0.00 50.00");
    assert_eq!(line("Reasoning"), "Reasoning 3 71.43");
    assert!(line("Accuracy (plain)").starts_with("Accuracy (plain) 37.50 ["), "{text}");
    assert!(line("RewardBench score, ov").starts_with("RewardBench score, overall 48.21 ["));
    assert_eq!(line("RewardBench score, all"), "RewardBench score, all rows 56.25");
    assert!(text.contains("a tie or no verdict") && text.contains("2 of 4 sections"), "{text}");
    // The orders average to the plain accuracy.
    assert_eq!(line("Accuracy, chosen"), "Accuracy, chosen in slot A 50.00 of 4 rows");
    assert_eq!(line("Accuracy, rejected"), "Accuracy, rejected in slot A 25.00 of 4 rows");
    assert_eq!(line("Both orders"), "Both orders prefer the same 33.33 of 3 rows");
    assert_eq!(line("Right in both"), "Right in both orders 25.00 of 4 rows");
    assert_eq!(line("Right by both"), "Right by both orders' sum 50.00");
    assert_eq!(line("2 right"), "2 right, 0 ties, 1 wrong, 1 without a verdict in an order");
    let bits = "Criteria match their row 3.08 [-3.08, 11.50] 95 %, of 11.54 bits";
    assert_eq!(line("Criteria"), bits);
    assert_eq!(line("shuffled"), "shuffled -0.14 [0.14, 11.50] 95 %");
    assert_eq!(line("81.00"), "81.00 % own, 5.00 % echoed, 0.00 % copied, 1 missing");
    assert_eq!(line("Verdicts for"), "Verdicts for slot A 60.00 of 5 that prefer a slot");
    assert_eq!(line("Ties"), "Ties 2 25.0 % of 8 judgements");
    assert_eq!(line("Unparsed"), "Unparsed 1 12.5 % of 8 judgements");
    assert_eq!(line("1  there is"), "1 there is no <scores> section");
    assert_eq!(line("The soft rule"), "The soft rule reads 37.50 accuracy, 1 unparsed, 2 ties");
    assert!(line("WARNING").starts_with("WARNING: 1 of 8 judgements (12 %)"), "{text}");
    assert_eq!(line("Speed"), "Speed 50.0 tokens/s (200 in 4.0 s)");
    assert!(line("j1-nano").contains("chosen reply in slot A"));
    assert!(text.contains("compare with \"Accuracy, chosen in slot A\" above, 50.00"), "{text}");
    assert!(!text.contains("chosen-first"), "{text}");
    assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");

    let first: Vec<_> = both().into_iter().filter(|record| record.order == A).collect();
    let text = Scores::compute(&first, protocol(OrderPlan::ChosenFirst, 1)).render("m", None);
    assert!(text.replace('\n', " ").contains("slot A in 66.67 % of its verdicts"), "{text}");
    assert!(!text.contains("Speed") && text.lines().all(|line| line.chars().count() <= 80));
    let empty = Scores::compute(&[], protocol(OrderPlan::ChosenFirst, 1));
    assert!(empty.render("m", None).contains("Nothing was judged"));
    assert_eq!((empty.accuracy, empty.plain_interval), (None, None));
}

/// A judge that wrote nothing readable has 50 by RewardBench's rule; it must not pass for half right.
#[test]
fn a_score_of_nothing_says_so() {
    let nothing: Vec<_> =
        (0..3).flat_map(|row| [A, B].map(|order| record(row, "hep-go", order, 0, None))).collect();
    let scores = Scores::compute(&nothing, protocol(OrderPlan::Both, 1));
    assert_eq!((scores.rewardbench.overall, scores.plain_accuracy), (Some(0.5), Some(0.0)));
    let text = scores.render("m", None);
    let headline: Vec<&str> =
        text.lines().filter(|line| line.starts_with("RewardBench score, ")).collect();
    assert!(headline.len() == 2 && headline.iter().all(|l| l.ends_with("no verdict was read")));
    assert!(text.contains("WARNING: no verdict was read in any of the 6 judgements"), "{text}");
    assert!(scores.to_json("m", "t")["j1"]["warning"].as_str().unwrap().contains("no verdict"));
    // A tenth is no warning, more than that is one.
    let some = |missing: u64| {
        let given = |row| if row < missing { None } else { Some((9.0, 1.0)) };
        let records: Vec<_> = (0..10).map(|row| record(row, "hep-go", A, 0, given(row))).collect();
        Scores::compute(&records, protocol(OrderPlan::ChosenFirst, 1)).warning()
    };
    assert_eq!(some(1), None);
    assert!(some(2).unwrap().contains("2 of 10 judgements (20 %)"));
}

#[test]
fn the_json_has_rewardbenchs_form_and_no_timing() {
    let mut records = both();
    records.push(record(4, "model", A, 0, Some((1.0, 2.0))));
    let scores = Scores::compute(&records, protocol(OrderPlan::Both, 1));
    let json = scores.to_json("my judge", "j1");
    assert_eq!(json["model"], "my judge");
    assert_eq!(json["model_type"], "Generative RM");
    assert_eq!(json["chat_template"], "j1");
    assert_eq!(json["math-prm"], 0.75);
    assert_eq!(json["alpacaeval-easy"], 0.25);
    let ours = &json["j1"];
    assert_eq!(ours["protocol"]["match"], "strict");
    assert_eq!(ours["agreement"], json!({"share": 1.0 / 3.0, "of": 3}));
    assert_eq!(ours["rewardbench"]["other"][0]["name"], "model");
    assert_eq!(ours["unparsed_strict"]["reasons"]["no_scores_tag"], 1);
    assert_eq!(ours["published"].as_array().unwrap().len(), 8);
    assert!(!json.to_string().contains("seconds"));
}
