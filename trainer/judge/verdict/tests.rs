//! Hand-made cases of both rules, a second implementation of the strict one, and a fuzz of both.

use std::sync::LazyLock;

use regex::Regex;

mod cuts;
mod forms;
mod prose;

use super::*;
use crate::shared::shared;

/// What the soft rule reads of a text of which it is not known how it ended.
fn soft(text: &str) -> Verdict {
    read(text, Finish::Unknown, VerdictForm::default()).soft
}

fn strict(text: &str) -> Verdict {
    read(text, Finish::Unknown, VerdictForm::default()).strict
}

fn scores(a: f64, b: f64) -> Verdict {
    Verdict::Scores(a, b)
}

fn in_tag(inside: &str) -> String {
    format!("<scores>{inside}</scores>")
}

/// The published rule once more, by regular expressions.
fn strict_by_regex(text: &str) -> Verdict {
    static SECTION: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?s)<scores>(.*?)</scores>").unwrap());
    static NUMBERS: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\\boxed\{([\d.]+),[\s\x1c-\x1f]*([\d.]+)\}").unwrap());
    if text.trim().is_empty() {
        return Verdict::Unparsed(UnparsedReason::Empty);
    }
    let Some(section) = SECTION.captures(text) else {
        return Verdict::Unparsed(match text.contains("<scores>") {
            true => UnparsedReason::UnclosedScoresTag,
            false => UnparsedReason::NoScoresTag,
        });
    };
    let Some(found) = NUMBERS.captures(&section[1]) else {
        return Verdict::Unparsed(UnparsedReason::NoBox);
    };
    match (digits::float(&found[1]), digits::float(&found[2])) {
        (Some(a), Some(b)) => Verdict::Scores(a, b),
        _ => Verdict::Unparsed(UnparsedReason::BadNumber),
    }
}

#[test]
fn strict_follows_the_published_rule() {
    let cases: &[(&str, Verdict)] = &[
        ("<scores>\n\\boxed{8, 6}\n</scores>", scores(8.0, 6.0)),
        ("<scores>\\boxed{8,6}</scores>", scores(8.0, 6.0)),
        ("<scores>\\boxed{8.,.5}</scores>", scores(8.0, 0.5)),
        ("<scores>\\boxed{8,\n \u{a0}\u{1f}6}</scores>", scores(8.0, 6.0)),
        // Python's digits are those of every script.
        ("<scores>\\boxed{\u{668}, \u{ff16}}</scores>", scores(8.0, 6.0)),
        ("<scores>\\boxed{\u{b2}, 6}\\boxed{3, 4}</scores>", scores(3.0, 4.0)),
        // The first box that matches, in the first section, thinking or not.
        (
            "<think><scores>\\boxed{1, 2}</scores></think><scores>\\boxed{8, 6}</scores>",
            scores(1.0, 2.0),
        ),
        ("<scores>\\boxed{x, 6} then \\boxed{7, 6} \\boxed{1, 1}</scores>", scores(7.0, 6.0)),
        ("<scores> <scores>\\boxed{3, 4}</scores>", scores(3.0, 4.0)),
        ("<scores>\\boxed{\\boxed{3, 4}</scores>", scores(3.0, 4.0)),
        // An empty first section hides the second.
        (
            "<scores></scores><scores>\\boxed{3, 4}</scores>",
            Verdict::Unparsed(UnparsedReason::NoBox),
        ),
        // A matching box that does not convert is not skipped.
        (
            "<scores>\\boxed{1.2.3, 4} \\boxed{3, 4}</scores>",
            Verdict::Unparsed(UnparsedReason::BadNumber),
        ),
        ("<scores>\\boxed{., 4}</scores>", Verdict::Unparsed(UnparsedReason::BadNumber)),
        ("<scores>\\boxed{8 , 6}</scores>", Verdict::Unparsed(UnparsedReason::NoBox)),
        ("<scores>\\boxed{8, 6 }</scores>", Verdict::Unparsed(UnparsedReason::NoBox)),
        ("<scores>\\boxed{-8, 6}</scores>", Verdict::Unparsed(UnparsedReason::NoBox)),
        ("<scores>\\boxed{8/10, 6/10}</scores>", Verdict::Unparsed(UnparsedReason::NoBox)),
        ("<scores>\\boxed{{8, 6}}</scores>", Verdict::Unparsed(UnparsedReason::NoBox)),
        ("<scores>boxed{8, 6}</scores>", Verdict::Unparsed(UnparsedReason::NoBox)),
        ("<scores>8, 6</scores>", Verdict::Unparsed(UnparsedReason::NoBox)),
        ("<Scores>\\boxed{8, 6}</Scores>", Verdict::Unparsed(UnparsedReason::NoScoresTag)),
        ("\\boxed{8, 6}", Verdict::Unparsed(UnparsedReason::NoScoresTag)),
        ("</scores>\\boxed{8, 6}<scores>", Verdict::Unparsed(UnparsedReason::UnclosedScoresTag)),
        ("<scores>\\boxed{8, 6}", Verdict::Unparsed(UnparsedReason::UnclosedScoresTag)),
        (" \n", Verdict::Unparsed(UnparsedReason::Empty)),
    ];
    for (text, expected) in cases {
        assert_eq!(published(text), *expected, "{text}");
        assert_eq!(strict_by_regex(text), *expected, "{text}");
    }
    let huge = in_tag(&format!("\\boxed{{{}, 4}}", "9".repeat(400)));
    assert_eq!(published(&huge), scores(f64::MAX, 4.0));
    assert_eq!(strict(&huge), Verdict::Unparsed(UnparsedReason::OutOfScale));
}

#[test]
fn a_verdict_has_a_winner_and_a_reason_a_sentence() {
    assert_eq!(scores(8.0, 6.0).winner(), Some(Winner::A));
    assert_eq!(scores(6.0, 6.5).winner(), Some(Winner::B));
    assert_eq!(scores(6.0, 6.0).winner(), Some(Winner::Tie));
    assert_eq!(Verdict::Unparsed(UnparsedReason::NoBox).winner(), None);
    assert_eq!("soft".parse::<MatchRule>().unwrap().other(), MatchRule::Strict);
    assert!("Soft".parse::<MatchRule>().unwrap_err().contains("strict or soft"));
    assert_eq!(format_tags("<analysis></analysis><scores><scores>"), 3);
    assert!(UnparsedReason::NoBox.sentence().contains("\\boxed{a, b}"));
}

#[test]
fn verdicts_survive_json() {
    for verdict in [scores(8.0, 6.5), Verdict::Unparsed(UnparsedReason::UnclosedScoresTag)] {
        let json = serde_json::to_string(&verdict).unwrap();
        assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), verdict, "{json}");
    }
    let json = serde_json::to_string(&Verdict::Unparsed(UnparsedReason::NoBox)).unwrap();
    assert_eq!(json, r#"{"unparsed":"no_box"}"#);
    for reason in
        [UnparsedReason::Empty, UnparsedReason::PromptTooLong, UnparsedReason::OnlyThinking]
    {
        assert_eq!(serde_json::to_value(reason).unwrap(), reason.name());
    }
}

#[test]
fn parts_are_found_whole_or_broken() {
    let whole = "<think>\nhm\n</think>\n\n<specific_criteria>\nc\n</specific_criteria>\n<analysis>\na\n\
                 </analysis>\n<scores>\n\\boxed{8, 6}\n</scores>";
    let found = parts(whole);
    assert_eq!(found.thinking, Some("hm"));
    assert_eq!(found.criteria, Some("c"));
    assert_eq!(found.analysis, Some("a"));
    assert_eq!(found.scores, Some("\\boxed{8, 6}"));
    assert!(found.answer.starts_with("<specific_criteria>"));
    // Closing tags missing, no thinking.
    let found = parts("<specific_criteria>c<analysis>a<scores>8, 6");
    assert_eq!(
        (found.thinking, found.criteria, found.analysis, found.scores),
        (None, Some("c"), Some("a"), Some("8, 6"))
    );
    // Thinking that never ends hides the rest; a rehearsal in it is not shown as the answer.
    let found = parts("<think>then <analysis>a</analysis>");
    assert_eq!((found.analysis, found.answer), (None, ""));
    assert_eq!(parts("x</think>y"), Parts { thinking: Some("x"), answer: "y", ..Parts::default() });
    assert_eq!(parts("").thinking, None);
}

#[derive(Deserialize)]
struct Judged {
    judgement: String,
    scores: [f64; 2],
    correct: bool,
}

fn agree(lines: &str) -> usize {
    for (row, line) in lines.lines().enumerate() {
        let judged: Judged = serde_json::from_str(line).unwrap();
        let expected = scores(judged.scores[0], judged.scores[1]);
        assert_eq!(strict(&judged.judgement), expected, "row {row}");
        assert_eq!(soft(&judged.judgement), expected, "row {row}");
        // The chosen reply stood in slot A.
        assert_eq!(expected.winner() == Some(Winner::A), judged.correct, "row {row}");
        assert!(parts(&judged.judgement).scores.unwrap().contains("boxed"), "row {row}");
    }
    lines.lines().count()
}

#[test]
fn the_bundled_judgements_agree() {
    assert_eq!(agree(include_str!("../../../tests/fixtures/judgements.jsonl")), 3);
}

#[test]
fn the_published_judgements_agree() {
    let Some(path) = shared("data/j1_micro_judgements_10.jsonl") else { return };
    assert_eq!(agree(&std::fs::read_to_string(path).unwrap()), 10);
}

/// SplitMix64, for the fuzz only.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

#[test]
fn no_text_panics_and_soft_reads_what_strict_reads() {
    let pieces = [
        "<scores>",
        "</scores>",
        "<think>",
        "</think>",
        "\\boxed{",
        "boxed",
        "{",
        "}",
        "8",
        "6.5",
        ".",
        ", ",
        ",",
        " ",
        "\n",
        "/10",
        " out of ",
        "10",
        "A: ",
        "B: ",
        "**",
        "é",
        "，",
        "<",
        ">",
        "/",
        "score",
        "-",
        "\u{1f}",
        "\u{200b}",
        "<analysis>",
        "<scores>\\boxed{8, 6}</scores>",
        "<scores>\n\\boxed{3, 9}\n</scores>",
        "Response B: ",
        "[[A]]",
        "回复",
        "\\frac{8}{10}",
        "x",
        "\\",
    ];
    let mut random = Random(7);
    let (mut by_strict, mut by_soft) = (0, 0);
    for round in 0..20_000 {
        // Half the rounds build a text of pieces; half damage a good one.
        let mut text = if round % 2 == 0 {
            (0..random.below(24)).map(|_| pieces[random.below(pieces.len())]).collect::<String>()
        } else {
            "<think>t</think><scores>\n\\boxed{8, 6}\n</scores>".to_owned()
        };
        for _ in 0..random.below(4) {
            let mut at = random.below(text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            match random.below(2) {
                0 => text.insert_str(at, pieces[random.below(pieces.len())]),
                _ => drop((at < text.len()).then(|| text.remove(at))),
            }
        }
        assert_eq!(published(&text), strict_by_regex(&text), "{text:?}");
        let finish = [Finish::Stop, Finish::Unknown, Finish::Length][random.below(3)];
        let form = match random.below(8) {
            0 => VerdictForm::Markers,
            1 => VerdictForm::Boxed(Scale { low: 0.0, high: 100.0 }),
            _ => VerdictForm::default(),
        };
        let Reading { strict, soft } = read(&text, finish, form);
        if strict.scores().is_some() {
            by_strict += 1;
            assert_eq!(strict, soft, "the rules differ: {text:?}");
        }
        if let (Some((a, b)), VerdictForm::Boxed(scale)) = (soft.scores(), form) {
            by_soft += 1;
            assert!(scale.contains(a) && scale.contains(b), "{text:?}");
        }
        let _ = parts(&text);
    }
    // The fuzz reaches both outcomes.
    assert!(by_strict > 1_000 && by_soft > by_strict && by_soft < 19_000, "{by_strict} {by_soft}");
}

#[test]
fn hostile_texts_take_linear_time() {
    // Each of these is quadratic under a careless scan; a megabyte would then take minutes.
    let n = 1 << 20;
    for piece in [
        "<scores>",
        "\\boxed{",
        "boxed{8",
        "<think>",
        "</think>",
        "<",
        "{",
        "boxed{8,6",
        "\\boxed{8,     ",
        "\\boxed{8} ",
        "\\",
        "[[",
        "[[A]]",
        "x<scores></scores>",
        "x <scores>8 6</scores>",
        "\\frac{",
        "Response A: \\boxed{8}, ",
    ] {
        let text = piece.repeat(n / piece.len());
        let started = std::time::Instant::now();
        let _ = (strict(&text), soft(&text), parts(&text));
        for text in [&format!("<scores>{text}</scores>"), &text] {
            for form in [VerdictForm::default(), VerdictForm::Markers] {
                let _ = read(text, Finish::Stop, form);
                let _ = read(text, Finish::Length, form);
            }
        }
        assert!(started.elapsed().as_secs() < 20, "{piece}: {:?}", started.elapsed());
    }
}
