//! Measures computed by hand, and apart in Python.

use super::*;
use crate::data::{Candidates, Message};
use crate::judge::prompt::Order;

const FRUIT: RowText = RowText { prompt: "Apple pie", replies: &["apple", "Sugar."] };
const CODE: RowText = RowText { prompt: "Rust code", replies: &["borrow", "code"] };
const MOON: RowText = RowText { prompt: "The moon", replies: &["the tide", "apple"] };

fn of(source: usize, text: &str, template: &str) -> Measures {
    measure(&[FRUIT, CODE, MOON], &[Criteria { source, text: Some(text) }], template)[0]
}

fn assert_near(got: [f64; 6], want: [f64; 6]) {
    assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-12), "{got:?}");
}

fn numbers(m: Measures) -> [f64; 6] {
    [m.bits, m.bits_shuffled, m.lift, m.lift_shuffled, m.lift_prompt, m.lift_replies]
}

#[test]
fn lift_and_bits_are_those_of_the_formulas() {
    // idf(apple) = ln(4 / 2.5), idf(pie) = ln(4 / 1.5). The own source has both words, the moon's has the apple:
    // g = 1, 0, 0.470 / 1.451. Bits by the formula, computed apart in Python.
    let got = of(0, "Apple pie", "the");
    let apple = 1.6f64.ln() / (1.6f64.ln() + (8.0f64 / 3.0).ln());
    assert!((got.lift - (1.0 - apple / 2.0)).abs() < 1e-15, "{got:?}");
    assert_near(
        numbers(got),
        [
            1.58495727777356,
            -20.579347124002076,
            0.8380228229613803,
            -0.6619771770386197,
            1.0,
            0.16197717703861972,
        ],
    );
    // A word that no source has counts in what the text says, and twice said is more than once.
    assert_near(
        numbers(of(2, "the tide, unknownword; tide", "the")),
        [
            1.5842863001589207,
            -10.47440312306989,
            0.3205040726177246,
            -0.1602520363088623,
            0.0,
            0.3205040726177246,
        ],
    );
}

#[test]
fn no_criteria_and_the_templates_words_alone_say_nothing() {
    let sources = [FRUIT, CODE];
    let judgements = [None, Some(" \n")].map(|text| Criteria { source: 1, text });
    assert_eq!(measure(&sources, &judgements, ""), [Measures::default(); 2]);
    let got = of(0, "Name the apple", "Name the apple!");
    assert_eq!(numbers(got), [0.0; 6]);
    assert!(got.written && got.own == 0 && got.listed == 1);
    // What is said of every row alike lifts none.
    let same = [FRUIT; 4];
    let got = measure(&same, &[Criteria { source: 2, text: Some("apple sugar") }], "")[0];
    assert!(got.lift.abs() < 1e-15 && got.bits.abs() < 1e-12, "{got:?}");
}

#[test]
fn words_beyond_the_limit_do_not_count() {
    let long = format!("apple {}", "pie ".repeat(MAX_WORDS - 1));
    assert_eq!(numbers(of(0, &format!("{long} code"), "")), numbers(of(0, &long, "")));
}

#[test]
fn words_of_any_script() {
    assert_eq!(words("It's A-1,\tÉTÉ!"), ["it", "s", "a", "1", "été"]);
    assert_eq!(words("用户想要x你好"), ["用户想", "户想要", "x", "你好"]);
    assert_eq!(words(" ?! "), [""; 0]);
}

#[test]
fn listed_criteria_are_headings() {
    let list = "Other criteria:\n1. **Accuracy** (40 %): no invented facts\n   - of dates\n2) Tone - calm\n* Length";
    assert_eq!(headings(list), ["Accuracy** ", "Tone", "Length"]);
    assert_eq!(headings("Safety: no recipe for harm\n\nBrevity"), ["Safety", "Brevity"]);
    let template = "1. Level of Detail: depth\n2. Relevance";
    let text = "- level of detail: low\n- Relevance\n- Coconut milk is named";
    let got = of(0, text, template);
    assert_eq!((got.listed, got.own), (3, 1));
}

#[test]
fn echo_and_copy_are_shares_of_words() {
    let template = "what the reply says is correct and complete";
    let got = of(0, "Check: the reply says is correct today", template);
    // Five of seven words stand in the template in a row; four would not count.
    assert_eq!(got.echoed, 5.0 / 7.0);
    assert_eq!(of(0, "the reply says is", template).echoed, 0.0);
    let prompt = "one two three four five six seven eight nine";
    let source = [RowText { prompt, replies: &[] }, CODE];
    let text = Some("zero two three four five six seven eight nine ten");
    assert_eq!(measure(&source, &[Criteria { source: 0, text }], "")[0].copied, 0.8);
    assert_eq!(measure(&source, &[Criteria { source: 1, text }], "")[0].copied, 0.0);
}

#[test]
fn records_meet_the_pairs_that_they_are_about() {
    let pair = |row: u64, chosen: &str, candidates| Pair {
        id: row.to_string(),
        row,
        prompt: vec![Message::new("user", "Bake.")],
        chosen: chosen.to_owned(),
        rejected: "no".to_owned(),
        subset: None,
        candidates,
    };
    let several = Some(Candidates { row: 40, chosen: 0, rejected: 1 });
    let pairs = [pair(3, "apple pie", None), pair(9, "rye bread", several)];
    let record = |row: u64, finish: Finish, criteria: &str| {
        let text = format!("<specific_criteria>{criteria}</specific_criteria>");
        Record::saying(row, Order::ChosenFirst, finish, text)
    };
    let records = [
        Record { candidates: several, ..record(9, Finish::Stop, "rye") },
        record(3, Finish::PromptTooLong, ""),
        record(5, Finish::Stop, "of no pair"),
        record(3, Finish::Length, "rye"),
    ];
    let template = Template::bundled().unwrap();
    let measured = of_records(&pairs, &records, &template);
    assert_eq!(
        measured.iter().map(|one| (one.row, one.data_row)).collect::<Vec<_>>(),
        [(9, 40), (3, 3)]
    );
    let lift = |one: &Measured| one.measures.lift_replies;
    assert!(lift(&measured[0]) == 1.0 && lift(&measured[1]) == -1.0);
}

#[test]
fn means_count_what_is_missing_and_draw_rows_whole() {
    let value = |bits| Measures { written: true, bits, listed: 2, own: 1, ..Measures::default() };
    let measured = [(0, 0, value(3.0)), (1, 0, value(1.0)), (7, 7, Measures::default())].map(
        |(row, data_row, measures)| Measured {
            row,
            order: Order::ChosenFirst,
            vote: 0,
            data_row,
            measures,
        },
    );
    let means = Means::new(2, &measured, 1).unwrap();
    assert_eq!((means.judgements, means.missing, means.own_criteria), (3, 1, Some(0.5)));
    assert_eq!(means.bits.mean, 4.0 / 3.0);
    // Two rows: a resample has one of them alone, or both.
    assert_eq!(means.bits.interval, Interval { low: 0.0, high: 2.0 });
    assert_eq!(Means::new(1, &measured, 1), None);
    assert_eq!(Means::new(2, &[], 1), None);
    // Equal differences have no spread.
    let same = mean_over_rows(&[(0, 0.5), (1, 0.5), (2, 0.5)], 3);
    assert_eq!(same, Mean { mean: 0.5, interval: Interval { low: 0.5, high: 0.5 } });
}
