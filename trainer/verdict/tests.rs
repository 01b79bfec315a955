//! Hand-made cases of both rules, a second implementation of the strict one, and a fuzz of both.

use std::sync::LazyLock;

use regex::Regex;

use super::*;
use crate::shared::shared;

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
        return Verdict::Unparsed(Reason::Empty);
    }
    let Some(section) = SECTION.captures(text) else {
        return Verdict::Unparsed(match text.contains("<scores>") {
            true => Reason::UnclosedScoresTag,
            false => Reason::NoScoresTag,
        });
    };
    let Some(found) = NUMBERS.captures(&section[1]) else {
        return Verdict::Unparsed(Reason::NoBox);
    };
    match (digits::float(&found[1]), digits::float(&found[2])) {
        (Some(a), Some(b)) => Verdict::Scores(a, b),
        _ => Verdict::Unparsed(Reason::BadNumber),
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
        ("<scores></scores><scores>\\boxed{3, 4}</scores>", Verdict::Unparsed(Reason::NoBox)),
        // A matching box that does not convert is not skipped.
        ("<scores>\\boxed{1.2.3, 4} \\boxed{3, 4}</scores>", Verdict::Unparsed(Reason::BadNumber)),
        ("<scores>\\boxed{., 4}</scores>", Verdict::Unparsed(Reason::BadNumber)),
        ("<scores>\\boxed{8 , 6}</scores>", Verdict::Unparsed(Reason::NoBox)),
        ("<scores>\\boxed{8, 6 }</scores>", Verdict::Unparsed(Reason::NoBox)),
        ("<scores>\\boxed{-8, 6}</scores>", Verdict::Unparsed(Reason::NoBox)),
        ("<scores>\\boxed{8/10, 6/10}</scores>", Verdict::Unparsed(Reason::NoBox)),
        ("<scores>\\boxed{{8, 6}}</scores>", Verdict::Unparsed(Reason::NoBox)),
        ("<scores>boxed{8, 6}</scores>", Verdict::Unparsed(Reason::NoBox)),
        ("<scores>8, 6</scores>", Verdict::Unparsed(Reason::NoBox)),
        ("<Scores>\\boxed{8, 6}</Scores>", Verdict::Unparsed(Reason::NoScoresTag)),
        ("\\boxed{8, 6}", Verdict::Unparsed(Reason::NoScoresTag)),
        ("</scores>\\boxed{8, 6}<scores>", Verdict::Unparsed(Reason::UnclosedScoresTag)),
        ("<scores>\\boxed{8, 6}", Verdict::Unparsed(Reason::UnclosedScoresTag)),
        (" \n", Verdict::Unparsed(Reason::Empty)),
    ];
    for (text, expected) in cases {
        assert_eq!(parse_strict(text), *expected, "{text}");
        assert_eq!(strict_by_regex(text), *expected, "{text}");
    }
    let huge = in_tag(&format!("\\boxed{{{}, 4}}", "9".repeat(400)));
    assert_eq!(parse_strict(&huge), scores(f64::MAX, 4.0));
}

#[test]
fn soft_reads_boxes_that_are_not_to_the_letter() {
    let cases: &[(&str, (f64, f64))] = &[
        ("\\boxed{8, 6}", (8.0, 6.0)),
        ("\\boxed{ 8 , 6 }", (8.0, 6.0)),
        ("\\boxed{8 6}", (8.0, 6.0)),
        ("\\boxed{8; 6}", (8.0, 6.0)),
        ("\\boxed{8 | 6}", (8.0, 6.0)),
        ("\\boxed{8 and 6}", (8.0, 6.0)),
        ("\\boxed{8 vs 6}", (8.0, 6.0)),
        ("\\boxed{8，6}", (8.0, 6.0)),
        ("\\boxed{8.5, 6.25}", (8.5, 6.25)),
        ("\\boxed{8., 6.}", (8.0, 6.0)),
        ("\\boxed{8/10, 6/10}", (8.0, 6.0)),
        ("\\boxed{8 / 10, 6}", (8.0, 6.0)),
        ("\\boxed{4/5, 3/5}", (4.0, 3.0)),
        ("\\boxed{8 out of 10, 6 out of 10}", (8.0, 6.0)),
        ("\\boxed{A: 8, B: 6}", (8.0, 6.0)),
        ("\\boxed{B: 6, A: 8}", (8.0, 6.0)),
        ("\\boxed{Response A: 8, Response B: 6}", (8.0, 6.0)),
        ("\\boxed{\\text{A}: 8, \\text{B}: 6}", (8.0, 6.0)),
        ("\\boxed{**8**, *6*}", (8.0, 6.0)),
        ("**\\boxed{8, 6}**", (8.0, 6.0)),
        ("$\\boxed{8, 6}$", (8.0, 6.0)),
        ("\\\\boxed{8, 6}", (8.0, 6.0)),
        ("boxed{8, 6}", (8.0, 6.0)),
        ("\\boxed{{8, 6}}", (8.0, 6.0)),
        ("\\boxed{[8, 6]}", (8.0, 6.0)),
        ("\\boxed{(8, 6)}", (8.0, 6.0)),
        ("\\boxed{8, 6\n</scores>", (8.0, 6.0)),
        ("\\boxed{8,\n6}", (8.0, 6.0)),
        ("\\boxed{\n8\n6\n}", (8.0, 6.0)),
        ("\\boxed{8, 6\n so it {is}", (8.0, 6.0)),
        ("\\boxed{9} and \\boxed{8,\n6}", (8.0, 6.0)),
        ("\\boxed{8, 6</scores>", (8.0, 6.0)),
        // The last readable box, also when a broken one follows.
        ("\\boxed{1, 2} ... \\boxed{8, 6}", (8.0, 6.0)),
        ("\\boxed{8, 6} ... \\boxed{x, y}", (8.0, 6.0)),
        ("<scores>\\boxed{1, 2}</scores><scores>\\boxed{8, 6}</scores>", (8.0, 6.0)),
        // Two boxes of one number each.
        ("A: \\boxed{8}\nB: \\boxed{6}", (8.0, 6.0)),
        ("**Response B**: $\\boxed{6}$, **Response A**: $\\boxed{8}$", (8.0, 6.0)),
        ("\\boxed{8}, \\boxed{6}", (8.0, 6.0)),
    ];
    for (text, (a, b)) in cases {
        assert_eq!(parse_soft(text), scores(*a, *b), "{text}");
    }
}

#[test]
fn soft_reads_sections_without_a_box() {
    let cases: &[(&str, (f64, f64))] = &[
        ("<scores>8, 6</scores>", (8.0, 6.0)),
        ("<scores>\n8/10, 6/10\n</scores>", (8.0, 6.0)),
        ("<scores>\n**Response A:** 8\n**Response B:** 6\n</scores>", (8.0, 6.0)),
        ("<scores>\n- A: 8\n- B: 6\n</scores>", (8.0, 6.0)),
        ("<scores>Response B: 6/10\nResponse A: 8/10</scores>", (8.0, 6.0)),
        ("<score>8, 6</score>", (8.0, 6.0)),
        ("< Scores >8, 6</ scores >", (8.0, 6.0)),
        ("<scores>[8, 6]\n", (8.0, 6.0)),
        ("<scores>1, 2</scores> revised: <scores>8, 6</scores>", (8.0, 6.0)),
        ("<think>hm</think><scores>8, 6</scores><think>again 1, 2</think>", (8.0, 6.0)),
    ];
    for (text, (a, b)) in cases {
        assert_eq!(parse_soft(text), scores(*a, *b), "{text}");
    }
}

#[test]
fn soft_looks_outside_thinking_first() {
    let rehearsed = "<think>maybe <scores>\\boxed{1, 2}</scores></think>\\boxed{8, 6}";
    assert_eq!(parse_soft(rehearsed), scores(8.0, 6.0));
    assert_eq!(parse_strict(rehearsed), scores(1.0, 2.0));
    // The prompt opened the thinking.
    assert_eq!(parse_soft("maybe \\boxed{1, 2}</think>\\boxed{8, 6}"), scores(8.0, 6.0));
    // Two stretches of thinking.
    assert_eq!(
        parse_soft("<think>\\boxed{1, 2}</think>\\boxed{8, 6}<think>\\boxed{3, 4}</think>"),
        scores(8.0, 6.0)
    );
    // Never closed: a bare box is no verdict, a whole section is; the last one counts.
    assert_eq!(parse_soft("<think>maybe \\boxed{1, 2}"), Verdict::Unparsed(Reason::OnlyThinking));
    assert_eq!(
        parse_soft("<think>or <scores>\\boxed{1, 2}</scores> so <scores>\\boxed{8, 6}</scores>"),
        scores(8.0, 6.0)
    );
    // Nothing outside: what strict finds is still found.
    assert_eq!(parse_soft("<think><scores>\\boxed{8, 6}</scores></think>done"), scores(8.0, 6.0));
}

#[test]
fn soft_does_not_guess() {
    let cases: &[(&str, Reason)] = &[
        ("", Reason::Empty),
        ("Response A is better.", Reason::NoScoresTag),
        ("Scores: 8, 6", Reason::NoScoresTag),
        ("\\boxed{8}", Reason::BadNumber),
        ("\\boxed{8, 6, 7}", Reason::BadNumber),
        ("\\boxed{-8, 6}", Reason::BadNumber),
        ("\\boxed{8-6}", Reason::BadNumber),
        ("\\boxed{8 of 10}", Reason::BadNumber),
        ("\\boxed{80%, 60%}", Reason::BadNumber),
        ("\\boxed{1.2.3, 4}", Reason::BadNumber),
        ("\\boxed{8/10, 6/5}", Reason::BadNumber),
        ("\\boxed{8/10/10, 6}", Reason::BadNumber),
        ("\\boxed{8, 6/}", Reason::BadNumber),
        ("\\boxed{A: 8, A: 6}", Reason::BadNumber),
        ("\\boxed{B: 8, 6}", Reason::BadNumber),
        ("\\boxed{eight, six}", Reason::BadNumber),
        ("\\boxed{Response A}", Reason::BadNumber),
        ("<scores>A has 3 flaws, B 2</scores>", Reason::NoBox),
        ("<scores></scores>", Reason::NoBox),
        // The text's end may have cut the last number.
        ("\\boxed{8, 1", Reason::NoScoresTag),
        ("<scores>8, 1", Reason::UnclosedScoresTag),
        ("<think>thinking", Reason::OnlyThinking),
    ];
    for (text, reason) in cases {
        assert_eq!(parse_soft(text), Verdict::Unparsed(*reason), "{text}");
    }
    let far = format!("\\boxed{{8}}{}\\boxed{{6}}", " ".repeat(81));
    assert_eq!(parse_soft(&far), Verdict::Unparsed(Reason::BadNumber));
}

#[test]
fn a_verdict_has_a_winner_and_a_truncation_a_reason() {
    assert_eq!(scores(8.0, 6.0).winner(), Some(Winner::A));
    assert_eq!(scores(6.0, 6.5).winner(), Some(Winner::B));
    assert_eq!(scores(6.0, 6.0).winner(), Some(Winner::Tie));
    assert_eq!(Verdict::Unparsed(Reason::NoBox).winner(), None);
    let cut = Verdict::Unparsed(Reason::NoScoresTag).or_truncated(true);
    assert_eq!(cut, Verdict::Unparsed(Reason::Truncated));
    assert_eq!(scores(8.0, 6.0).or_truncated(true), scores(8.0, 6.0));
    assert_eq!("soft".parse::<MatchRule>().unwrap().parse("\\boxed{8 6}"), scores(8.0, 6.0));
    assert!("Soft".parse::<MatchRule>().unwrap_err().contains("strict or soft"));
    assert_eq!(format_tags("<analysis></analysis><scores><scores>"), 3);
}

#[test]
fn verdicts_survive_json() {
    for verdict in [scores(8.0, 6.5), Verdict::Unparsed(Reason::UnclosedScoresTag)] {
        let json = serde_json::to_string(&verdict).unwrap();
        assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), verdict, "{json}");
    }
    let json = serde_json::to_string(&Verdict::Unparsed(Reason::NoBox)).unwrap();
    assert_eq!(json, r#"{"unparsed":"no_box"}"#);
    for reason in [Reason::Empty, Reason::PromptTooLong, Reason::OnlyThinking] {
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
        assert_eq!(parse_strict(&judged.judgement), expected, "row {row}");
        assert_eq!(parse_soft(&judged.judgement), expected, "row {row}");
        // The chosen reply stood in slot A.
        assert_eq!(expected.winner() == Some(Winner::A), judged.correct, "row {row}");
        assert!(parts(&judged.judgement).scores.unwrap().contains("boxed"), "row {row}");
    }
    lines.lines().count()
}

#[test]
fn the_bundled_judgements_agree() {
    assert_eq!(agree(include_str!("../fixtures/judgements.jsonl")), 3);
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
fn no_text_panics_and_strict_equals_its_twin() {
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
        "x",
        "\\",
    ];
    let mut random = Random(7);
    let (mut strict, mut soft) = (0, 0);
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
        let verdict = parse_strict(&text);
        assert_eq!(verdict, strict_by_regex(&text), "{text:?}");
        let recovered = parse_soft(&text);
        if verdict.scores().is_some() {
            strict += 1;
            assert!(recovered.scores().is_some(), "soft lost what strict read: {text:?}");
        }
        soft += usize::from(recovered.scores().is_some());
        let _ = parts(&text);
    }
    // The fuzz reaches both outcomes.
    assert!(strict > 1_000 && soft > strict && soft < 19_000, "{strict} {soft}");
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
    ] {
        let text = piece.repeat(n / piece.len());
        let started = std::time::Instant::now();
        let _ = (parse_strict(&text), parse_soft(&text), parts(&text));
        let _ = parse_strict(&format!("<scores>{text}</scores>"));
        assert!(started.elapsed().as_secs() < 20, "{piece}: {:?}", started.elapsed());
    }
}
