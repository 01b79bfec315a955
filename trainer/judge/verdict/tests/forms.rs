//! The many ways in which judges write two scores, and what looks like it and is none.

use super::*;

const A_SCORE: f64 = 8.0;
const B_SCORE: f64 = 5.0;

#[track_caller]
fn reads(text: &str, a: f64, b: f64) {
    assert_eq!(soft(text), scores(a, b), "{text}");
}

#[track_caller]
fn refuses(text: &str) {
    assert_eq!(soft(text).scores(), None, "{text}");
}

/// What may stand inside a box or, alone, in a section: A has 8, B has 5.
const PAIRS: &[&str] = &[
    "8, 5",
    " 8 , 5 ",
    "8 5",
    "8; 5",
    "8 | 5",
    "8 and 5",
    "8 vs 5",
    "8 vs. 5",
    "8，5",
    "８，５",
    "8、5",
    "8, ~5",
    "8 \\quad 5",
    "8,\\,5",
    "8\u{a0},\u{a0}5",
    "8\u{2009}5",
    "٨, ٥",
    "8., 5.",
    "8.0, 5.00",
    "8/10, 5/10",
    "8 / 10, 5",
    "8／10，5／10",
    "8\u{a0}/\u{a0}10, 5/10",
    "4/5, 2.5/5",
    "80/100, 50/100",
    "80%, 50%",
    "80\\%, 50\\%",
    "\\frac{8}{10}, \\frac{5}{10}",
    "\\dfrac{4}{5}, \\tfrac{5}{10}x",
    "8 out of 10, 5 out of 10",
    "A: 8, B: 5",
    "B: 5, A: 8",
    "A = 8, B = 5",
    "A=8,B=5",
    "x = 8, y = 5",
    "y = 5, x = 8",
    "A: 8 B: 5",
    "a: 8, b: 5",
    "(A) 8, (B) 5",
    "8 (A), 5 (B)",
    "5 (B), 8 (A)",
    "A 8, B 5",
    "A, B: 8, 5",
    "(B, A): 5, 8",
    "8, 5 (A, B)",
    "5 and 8 for B and A, respectively",
    "Response A: 8, Response B: 5",
    "Response B: 5; Response A: 8",
    "response 1: 8, response 2: 5",
    "Response 2: 5, Response 1: 8",
    "The second response gets 5, the first response gets 8",
    "Assistant A's score is 8 and Assistant B's score is 5",
    "\\text{A}: 8, \\text{B}: 5",
    "\\mathrm{B}: 5, \\mathrm{A}: 8",
    "\\textbf{Response B}: 5, \\textbf{Response A}: 8",
    "**8**, *5*",
    "`8`, `5`",
    "{8, 5}",
    "[8, 5]",
    "(8, 5)",
    "$8$, $5$",
    "\"A\": 8, \"B\": 5",
    "{\"score_b\": 5, \"score_a\": 8}",
    "{'response_a': 8, 'response_b': 5}",
    "回复A：8，回复B：5",
    "回复B：5分，回复A：8分",
    "回复2：5，回复1：8",
    "助手一：8分；助手二：5分",
    "第二个回复得分为5，第一个回复得分为8",
    "A得8分，B得5分",
    "回答B的得分是5，回答A的得分是8",
    "\n8\n5\n",
    "\n- A: 8\n- B: 5\n",
    "\n* Response B – 5\n* Response A – 8\n",
    "\n| A | B |\n|---|---|\n| 8 | 5 |\n",
    "\n| Response | Score |\n|---|---|\n| B | 5 |\n| A | 8 |\n",
];

#[test]
fn pairs_are_read_in_boxes_and_in_sections() {
    for pair in PAIRS {
        let (a, b) = (A_SCORE, B_SCORE);
        if pair.ends_with('x') {
            // 8 of 10 against 5 of 10, but of different wholes, and a letter that means nothing.
            refuses(&format!("<scores>{pair}</scores>"));
            continue;
        }
        reads(&format!("<scores>{pair}</scores>"), a, b);
        reads(&format!("<Scores>\n{pair}\n</scores>\n"), a, b);
        reads(&format!("<scores>\n{pair}\n"), a, b);
        if pair.contains(['{', '|']) && pair.contains('\n') {
            continue;
        }
        for text in [
            format!("<scores>\n\\boxed{{{pair}}}\n</scores>"),
            format!("<scores>\nFinal scores: $\\boxed{{{pair}}}$.\n</scores>"),
            format!("Response A is better than Response B.\n\n\\boxed{{{pair}}}"),
            format!("**Scores:** **\\boxed{{{pair}}}**"),
            format!("The final answer is: $$\\boxed{{{pair}}}$$\n"),
            format!("First \\boxed{{3, 9}}. After all:\n<score>boxed{{{pair}}}</score>"),
            format!("<think>\\boxed{{3, 9}}</think>\\\\boxed {{{pair}}}"),
        ] {
            reads(&text, a, b);
        }
    }
}

/// Names for the two replies.
const NAMES: &[(&str, &str)] = &[
    ("A", "B"),
    ("(A)", "(B)"),
    ("**A**", "**B**"),
    ("[A]", "[B]"),
    ("Response A", "Response B"),
    ("response a", "response b"),
    ("RESPONSE A", "RESPONSE B"),
    ("**Response A**", "**Response B**"),
    ("Reply A", "Reply B"),
    ("Assistant A", "Assistant B"),
    ("Assistant 1", "Assistant 2"),
    ("Assistant #1", "Assistant #2"),
    ("Response 1", "Response 2"),
    ("Response1", "Response2"),
    ("Response One", "Response Two"),
    ("Candidate A", "Candidate B"),
    ("Model A", "Model B"),
    ("Answer A", "Answer B"),
    ("Answer 1", "Answer 2"),
    ("The first response", "The second response"),
    ("1st reply", "2nd reply"),
    ("\\text{Response A}", "\\text{Response B}"),
    ("回复A", "回复B"),
    ("回复 1", "回复 2"),
    ("回复一", "回复二"),
    ("助手A", "助手B"),
    ("助手2的回复", "助手1的回复"),
    ("第一个回答", "第二个回答"),
    ("回答Ａ", "回答Ｂ"),
    ("答案A", "答案B"),
];
const AFTER_A_NAME: [&str; 14] = [
    ": ",
    " : ",
    "：",
    " = ",
    " - ",
    " – ",
    " — ",
    " -> ",
    " gets ",
    " receives ",
    "'s score: ",
    " score: ",
    " is ",
    ":\n",
];
const BETWEEN: [&str; 7] = [", ", "; ", "\n", " and ", "\n\n- ", ". ", " | "];

/// Every wording is read as it is meant, whichever reply comes first, or not at all; and most are read.
#[test]
fn names_decide_which_score_is_whose() {
    let (mut read, mut all) = (0, 0);
    let mut check = |text: String, a: f64, b: f64| {
        all += 1;
        let verdict = soft(&text);
        read += usize::from(verdict.scores().is_some());
        assert!(verdict.scores().is_none_or(|scores| scores == (a, b)), "{text}: {verdict:?}");
    };
    for &(a, b) in NAMES {
        // "Assistant 2's reply" stands first in one of them.
        let (a, b) = if a.contains('2') { (b, a) } else { (a, b) };
        for then in AFTER_A_NAME {
            for between in BETWEEN {
                for (first, second, x, y) in
                    [(a, b, 8, 5), (b, a, 8, 5), (a, b, 5, 8), (b, a, 5, 8)]
                {
                    let (of_a, of_b) = if first == a { (x, y) } else { (y, x) };
                    let (of_a, of_b) = (f64::from(of_a), f64::from(of_b));
                    let boxes =
                        format!("{first}{then}\\boxed{{{x}}}{between}{second}{then}\\boxed{{{y}}}");
                    check(format!("<scores>\n{boxes}\n</scores>"), of_a, of_b);
                    check(format!("I compared both.\n\n{boxes}"), of_a, of_b);
                    let numbers = format!("{first}{then}{x}{between}{second}{then}{y}");
                    check(format!("<scores>{numbers}</scores>"), of_a, of_b);
                    check(format!("<scores>\\boxed{{{numbers}}}</scores>"), of_a, of_b);
                }
            }
        }
        for then in [" for ", " (", " to ", " - ", " "] {
            for between in [", ", " and ", "; ", "\n"] {
                for (first, second, x, y) in [(a, b, 8, 5), (b, a, 8, 5)] {
                    let (of_a, of_b) = if first == a { (x, y) } else { (y, x) };
                    let (of_a, of_b) = (f64::from(of_a), f64::from(of_b));
                    let close = if then == " (" { ")" } else { "" };
                    let boxes = format!(
                        "\\boxed{{{x}}}{then}{first}{close}{between}\\boxed{{{y}}}{then}{second}{close}"
                    );
                    check(format!("<scores>{boxes}</scores>"), of_a, of_b);
                    check(format!("So I give\n{boxes}"), of_a, of_b);
                }
            }
        }
        for (first, second, x, y) in [(a, b, 8, 5), (b, a, 5, 8)] {
            for list in [
                format!("{first} and {second}: \\boxed{{{x}}} and \\boxed{{{y}}}"),
                format!("{first}, {second}:\n\\boxed{{{x}}}\n\\boxed{{{y}}}"),
                format!("\\boxed{{{x}}} and \\boxed{{{y}}} for {first} and {second} respectively"),
            ] {
                check(format!("<scores>\n{list}\n</scores>"), 8.0, 5.0);
                check(list, 8.0, 5.0);
            }
        }
    }
    assert!(all > 40_000 && read > all * 3 / 4, "{read} of {all}");
}

#[test]
fn without_names_the_first_box_is_a() {
    for text in [
        "<scores>\\boxed{8}, \\boxed{5}</scores>",
        "<scores>\n\\boxed{8}\n\\boxed{5}\n</scores>",
        "<scores>\\boxed{8} and \\boxed{5}</scores>",
        "<scores>Scores: \\boxed{8}/10 and \\boxed{5}/10</scores>",
        "<scores>$\\boxed{8}$ | $\\boxed{5}$",
        "\\boxed{8}, \\boxed{5}",
        "All considered.\n\n\\boxed{8} \\boxed{5}\n",
        "Final scores:\n\\boxed{8}\n\\boxed{5}",
    ] {
        reads(text, 8.0, 5.0);
    }
}

#[test]
fn reasons_may_follow_a_named_score_in_a_section() {
    reads(
        "<scores>\nResponse B: \\boxed{5} - three errors, see above\nResponse A: \\boxed{8} (clear, correct)\n</scores>",
        8.0,
        5.0,
    );
    reads("<scores>\n1. Response B: \\boxed{5}\n2. Response A: \\boxed{8}\n</scores>", 8.0, 5.0);
    reads("**Response B, Response A**\n\n\\boxed{5}, \\boxed{8}", 8.0, 5.0);
    reads("<scores>\n2. \\boxed{5}\n1. \\boxed{8}\n</scores>", 8.0, 5.0);
    reads("<scores>\n\\boxed{5}\n\\boxed{8}\n(Response B, Response A)</scores>", 8.0, 5.0);
    reads(
        "<scores>\nResponse B (clear, but wrong): \\boxed{5}\nResponse A (right): \\boxed{8}\n</scores>",
        8.0,
        5.0,
    );
    refuses(
        "<scores>\nResponse B (accuracy): \\boxed{5}\nResponse A (accuracy): \\boxed{8}</scores>",
    );
    refuses(
        "<scores>\nResponse B (3 errors): \\boxed{5}\nResponse A (none): \\boxed{8}\n</scores>",
    );
    refuses(
        "<scores>\nResponse B (worse than A): \\boxed{5}\nResponse A (ok): \\boxed{8}\n</scores>",
    );
    refuses("<scores>\nResponse B: \\boxed{5}, worse than A\nResponse A: \\boxed{8}\n</scores>");
    refuses(
        "<scores>\nResponse B: \\boxed{5} for A's clarity of Response A: \\boxed{8}\n</scores>",
    );
}

#[test]
fn what_is_not_two_scores_is_not_read() {
    for pair in [
        "8",
        "8, 5, 7",
        "-8, 5",
        "8, -5",
        "−8, 5",
        "+8, 5",
        "8-5",
        "8 - 5",
        "7-8, 5-6",
        "7–8, 5–6",
        "7 to 8",
        "8~5",
        "8 of 10",
        "8*5",
        "8 * 5",
        "8 = 5",
        "8 > 5",
        "Responses 1, 2",
        "2^3, 5",
        "1.2.3, 4",
        "8,5; 7,5",
        "1e1, 5",
        "8th, 5th",
        "000, 5",
        "1,000",
        "8/10/10, 5",
        "8, 5/",
        "8/10, 3/5",
        "8/0, 5/0",
        "A: 8, A: 5",
        "B: 8, 5",
        "A: 8, 5",
        "B, 8, 5",
        "8, B: 5, A",
        "x, y",
        "..., ...",
        "eight, five",
        "Response A",
        "A",
        "N/A",
        "",
        "8, ?",
        "accuracy: 8, clarity: 5",
        "Response A accuracy: 8, clarity: 5",
        "A has 3 flaws, B 2",
        "½, 5",
        "∞, 5",
        "8 ± 1, 5 ± 1",
    ] {
        refuses(&format!("<scores>{pair}</scores>"));
        refuses(&format!("<scores>\\boxed{{{pair}}}</scores>"));
        refuses(&format!("\\boxed{{{pair}}}"));
        // And no earlier box stands in for it.
        refuses(&format!("Form: \\boxed{{8, 5}}\n\n\\boxed{{{pair}}}"));
        refuses(&format!("Form: \\boxed{{8, 5}}\n<scores>\\boxed{{{pair}}}</scores>"));
        refuses(&format!("<scores>8, 5</scores>\n<scores>\\boxed{{{pair}}}</scores>"));
        refuses(&format!(
            "<analysis>\\boxed{{8}}, \\boxed{{5}}</analysis><scores>\\boxed{{{pair}}}</scores>"
        ));
    }
}

/// What stands around boxes of one number decides, and where it is not clear nothing is read.
#[test]
fn unclear_names_are_refused() {
    for inside in [
        "Response A accuracy: \\boxed{4}, clarity: \\boxed{9}",
        "Accuracy: \\boxed{4}\nClarity: \\boxed{9}",
        "Response A: accuracy \\boxed{4}\nResponse B: accuracy \\boxed{9}",
        "Response A is better than Response B: \\boxed{8}, \\boxed{5}",
        "A: \\boxed{8}, \\boxed{5}",
        "\\boxed{8}, B: \\boxed{5}",
        "A: \\boxed{8}, A: \\boxed{5}",
        "B: \\boxed{8} (A), \\boxed{5}",
        "\\boxed{8}\nB: \\boxed{5} (A)",
        "Response: \\boxed{8}, Reply: \\boxed{5}",
        "Response X: \\boxed{8}\nResponse Y: \\boxed{5}",
        "Former: \\boxed{8}, latter: \\boxed{5}",
        "\\boxed{8} = \\boxed{5}",
        "\\boxed{8} \\cdot \\boxed{5}",
        "\\boxed{3}, \\boxed{8}, \\boxed{5}",
        "A: \\boxed{3} \\boxed{8}\nB: \\boxed{5} \\boxed{6}",
        "\\boxed{8}",
        "\\boxed{8 5} \\boxed{7}",
        "\\boxed{B} \\boxed{7}",
        "回复A：准确 \\boxed{4}，清晰 \\boxed{9}",
    ] {
        refuses(&format!("<scores>{inside}</scores>"));
        refuses(inside);
    }
    // Decimal commas in two boxes.
    refuses("Response A: \\boxed{7,5}\nResponse B: \\boxed{8,5}");
    refuses("<scores>A: $\\boxed{ 7,5}$; \nB: $\\boxed{ 8,5}$ </scores> <scores>");
    assert_eq!(soft("\\boxed{8, 5} \\boxed{x}"), Verdict::Unparsed(UnparsedReason::BadNumber));
}

#[test]
fn quoted_answers_and_echoes_are_no_verdicts() {
    for text in [
        "Response B gives \\boxed{42} and Response A gives \\boxed{7}.",
        "Response B gives \\boxed{4} and Response A gives \\boxed{7}.",
        "Response A answers \\boxed{391}, Response B \\boxed{381}.",
        "Response A's answer: \\boxed{3}\nResponse B's answer: \\boxed{5}",
        "Response A's answer is \\boxed{3}. Response B's is \\boxed{5}.",
        "The answer of A is \\boxed{3} and that of B is \\boxed{5}, so both are wrong.",
        "A got \\boxed{2}\nB got \\boxed{3}",
        "Response A gets \\boxed{3} and Response B gets \\boxed{5}.",
        "Results: \\boxed{3}, \\boxed{5}",
        "Answers: \\boxed{3}, \\boxed{5}",
        "x = \\boxed{3}, y = \\boxed{5}",
        "A = \\boxed{3}, B = \\boxed{5}",
        "(A, B) = \\boxed{3, 5}",
        "(1) \\boxed{3} (2) \\boxed{5}",
        "1. \\boxed{3}\n2. \\boxed{5}",
        "Response A's final answer: \\boxed{3}\nResponse B's final answer: \\boxed{5}",
        "Response A's final answer: \\boxed{3, 5}",
        "Final answer of A: \\boxed{3}\nFinal answer of B: \\boxed{5}",
        "<scores>Final answer of A: \\boxed{3}\nFinal answer of B: \\boxed{5}</scores>",
        "Response A says the roots are \\boxed{2, 3}.",
        "Response A: \\boxed{2, 3}",
        "Response A's roots:\n\\boxed{2, 3}",
        "The correct answer is (2, 3), and \\boxed{2, 3} is what Response A has.",
        "\\boxed{2, 3} is the answer of Response B",
        "Solving gives x = 2 and x = 3, thus the set \\boxed{2, 3}.",
        "Scores (B, A): \\boxed{8, 5}",
        "Response B, Response A\n\n\\boxed{8}, \\boxed{5}, both for clarity",
        "**Response A**\n\\boxed{3, 5}",
        "Response B. \\boxed{8} \\boxed{5}",
        "I shall end with \\boxed{x, y}.",
        "<scores>\n\\boxed{..., ...}\n</scores>",
        "<scores>\n[The overall scores of both replies in order, A before B, separated by a comma in one box, as in \
         \\boxed{x, y}.]\n</scores>",
        "Response A says \\boxed{42, 7} as its answer. <scores>\\boxed{B}</scores>",
        "Response A computes \\boxed{391} while Response B has \\boxed{381}. Now",
        "<scores>\n17*23 = 391, so A has \\boxed{391} and B \\boxed{381}\n</scores>",
        "<scores>Response A's answer: \\boxed{3}, Response B's answer: \\boxed{5}</scores>",
        "<scores>Response A has \\boxed{3}, Response B has \\boxed{5}</scores>",
        "<scores>A的答案：\\boxed{3}，B的答案：\\boxed{5}</scores>",
        "<scores>[17*23, 391, 381, 381]</scores>",
        "<scores>\\boxed{391, 381}</scores>",
        "用 \\boxed{2, 3} 作为回复A的答案。",
    ] {
        refuses(text);
        assert_eq!(strict(text).scores(), None, "{text}");
    }
}

#[test]
fn one_place_decides() {
    for (text, a, b) in [
        // The last section, and in it the last box.
        ("<scores>3/10, 9/10</scores> revised: <scores>8/10, 5/10</scores>", 8.0, 5.0),
        ("<scores>so \\boxed{3 9}, no, \\boxed{8 5}</scores>", 8.0, 5.0),
        // A section without scores leaves it to the last box of the text.
        ("<scores>see below</scores>\n\\boxed{8, 5}", 8.0, 5.0),
        ("\\boxed{3, 9}\n\\boxed{8, 5}\nas asked in <scores> tags", 8.0, 5.0),
        // What follows a section does not count.
        ("<scores>8/10, 5/10</scores> (A has \\boxed{3, 9})", 8.0, 5.0),
        // Thinking does not count.
        ("<think>\\boxed{3, 9}</think>\\boxed{8, 5}<think>\\boxed{3, 9}</think>", 8.0, 5.0),
        ("maybe <scores>3/10, 9/10</scores></think><scores>8/10, 5/10</scores>", 8.0, 5.0),
        ("a</think>b</think>\\boxed{8, 5}", 8.0, 5.0),
        // A box that is never closed ends with its line or at a tag.
        ("\\boxed{8, 5\n</scores>", 8.0, 5.0),
        ("\\boxed{8, 5</scores>", 8.0, 5.0),
        ("\\boxed{8, 5\n so it {is}", 8.0, 5.0),
        ("\\boxed{8,\n5}", 8.0, 5.0),
        // Where strict reads a verdict, soft reads the same one.
        ("<think><scores>\\boxed{8, 5}</scores></think><scores>\\boxed{3, 9}</scores>", 8.0, 5.0),
        ("<scores>\\boxed{8, 5}</scores> revised: <scores>\\boxed{3, 9}</scores>", 8.0, 5.0),
        ("<scores>\\boxed{8, 5}, not \\boxed{3 9}</scores>", 8.0, 5.0),
        ("I will answer as \\boxed{3, 9}. <scores>\\boxed{8.,5}</scores>", 8.0, 5.0),
        ("<think>or <scores>\\boxed{8, 5}</scores> so <scores>3, 9</scores>", 8.0, 5.0),
    ] {
        reads(text, a, b);
    }
    for (text, reason) in [
        ("", UnparsedReason::Empty),
        ("Response A is better.", UnparsedReason::NoScoresTag),
        ("Scores: 8, 5", UnparsedReason::NoScoresTag),
        ("the boxed answer {8, 5}", UnparsedReason::NoScoresTag),
        ("<scores></scores>", UnparsedReason::NoBox),
        ("<scores>8, 5</scores><scores></scores>", UnparsedReason::NoBox),
        ("<scores>A has 3 flaws, B 2</scores>", UnparsedReason::NoBox),
        ("<scores>8, 1", UnparsedReason::UnclosedScoresTag),
        ("<think>thinking", UnparsedReason::OnlyThinking),
        ("<think>\\boxed{8, 5}</think> ", UnparsedReason::OnlyThinking),
        ("<think><scores>8, 5</scores>", UnparsedReason::OnlyThinking),
        ("\\boxed{8, 1", UnparsedReason::BadNumber),
        ("\\boxed{5, 8} \\boxed{8, 1", UnparsedReason::BadNumber),
        ("\\boxed{5, 8}. It is \\boxed", UnparsedReason::BadNumber),
        ("\\boxed{8}", UnparsedReason::BadNumber),
        ("A has \\boxed{8}, B has \\boxed{5}", UnparsedReason::Quoted),
        ("<scores>A: \\boxed{8}, \\boxed{5}</scores>", UnparsedReason::Ambiguous),
        ("<scores>\\boxed{80 50}</scores>", UnparsedReason::OutOfScale),
    ] {
        assert_eq!(soft(text), Verdict::Unparsed(reason), "{text}");
    }
    let complete = read("<scores>8, 5", Finish::Stop, VerdictForm::default());
    assert_eq!(complete.soft, scores(8.0, 5.0), "it is known that nothing is missing");
}

#[test]
fn scores_are_on_the_templates_scale() {
    let hundred = VerdictForm::Boxed(Scale { low: 0.0, high: 100.0 });
    let five = VerdictForm::Boxed(Scale { low: 1.0, high: 5.0 });
    type Case = (&'static str, VerdictForm, Option<(f64, f64)>);
    let cases: &[Case] = &[
        ("<scores>\\boxed{10, 1}</scores>", VerdictForm::default(), Some((10.0, 1.0))),
        ("<scores>\\boxed{10.5, 1}</scores>", VerdictForm::default(), None),
        ("<scores>\\boxed{11, 1}</scores>", VerdictForm::default(), None),
        ("<scores>\\boxed{5, 0}</scores>", VerdictForm::default(), None),
        ("<scores>\\boxed{0.9, 5}</scores>", VerdictForm::default(), None),
        ("<scores>\\boxed{100, 0}</scores>", hundred, Some((100.0, 0.0))),
        ("<scores>\\boxed{101, 0}</scores>", hundred, None),
        ("<scores>\\boxed{5, 1}</scores>", five, Some((5.0, 1.0))),
        ("<scores>\\boxed{6, 1}</scores>", five, None),
        // Another scale is converted, and its own bound holds.
        ("<scores>\\boxed{8/10, 5/10}</scores>", hundred, Some((80.0, 50.0))),
        ("<scores>\\boxed{8/10, 5/10}</scores>", five, Some((4.0, 2.5))),
        ("<scores>\\boxed{4/5, 2/5}</scores>", VerdictForm::default(), Some((8.0, 4.0))),
        ("<scores>\\boxed{85/100, 60/100}</scores>", VerdictForm::default(), Some((8.5, 6.0))),
        ("<scores>\\boxed{12/10, 5/10}</scores>", VerdictForm::default(), None),
        ("<scores>\\boxed{12/10, 5/10}</scores>", hundred, None),
        ("<scores>\\boxed{0/10, 5/10}</scores>", VerdictForm::default(), None),
        ("<scores>\\boxed{8/10, 5}</scores>", hundred, None),
        ("<scores>\\boxed{120\\%, 50\\%}</scores>", hundred, None),
    ];
    for (text, form, expected) in cases {
        let reading = read(text, Finish::Stop, *form);
        assert_eq!(reading.soft.scores(), *expected, "{text} {form}");
        if expected.is_none() && !text.contains('/') && !text.contains('%') {
            let out = Verdict::Unparsed(UnparsedReason::OutOfScale);
            assert_eq!((reading.strict, reading.soft), (out, out), "{text} {form}");
        }
    }
}

#[test]
fn markers_are_votes() {
    let (a, b, tie) = (Some((1.0, 0.0)), Some((0.0, 1.0)), Some((0.5, 0.5)));
    for (text, strict, soft) in [
        ("A is better. [[A]]", a, a),
        ("Final verdict: [[B]]", b, b),
        ("[[C]]", tie, tie),
        ("**[[A]]**", a, a),
        ("I first thought [[A]].\nNow: [[B]].", b, b),
        ("<think>[[A]]</think>[[B]]", b, b),
        ("[[A]]\nsee m = [[1, 2], [3, 4]] and [[1]]", a, a),
        ("[[ a ]]", None, a),
        ("[[**B**]]", None, b),
        ("[[Tie]]", None, tie),
        ("[[Response B]]", None, b),
        ("[[\"Assistant A\"]]", None, a),
        ("[[Ｂ]]", None, b),
        ("[[A and B]]", None, None),
        ("[[A wins]]", None, None),
        // The last one decides, readable or not.
        ("[[A]]\n[[D]]", None, None),
        ("[[A]]\n[[A>B]]", None, None),
        // An echo of what may be said.
        ("I say \"[[A]]\" if A is better, \"[[B]]\" if B is, and \"[[C]]\" for a tie.", None, None),
        ("[[A]] or [[B]]?", None, None),
        (
            "\"[[A]]\" if A is better,\n\"[[B]]\" if B is better,\nand \"[[C]]\" for a tie.",
            None,
            None,
        ),
        ("If A is better, [[A]]\nIf B is better, [[B]]", None, None),
        ("Options:\n[[A]]\n[[B]]\n[[C]]", None, None),
        ("Options:\n[[A]]\n[[B]]\n[[C]]\n\n[[A]]", a, a),
        ("If I have to choose: [[A]]", a, a),
        ("[A]", None, None),
        ("\\boxed{8, 5}", None, None),
        ("<think>[[A]]", None, None),
        ("", None, None),
    ] {
        let reading = read(text, Finish::Stop, VerdictForm::Markers);
        assert_eq!((reading.strict.scores(), reading.soft.scores()), (strict, soft), "{text}");
        let cut = read(text, Finish::Length, VerdictForm::Markers);
        assert_eq!(cut.soft, Verdict::Unparsed(UnparsedReason::Truncated), "{text}");
    }
}
