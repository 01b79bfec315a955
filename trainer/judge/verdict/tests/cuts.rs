//! Judgements that the token limit cut off: what a part says, the whole says too.

use super::*;

/// Judgements that end in a verdict, with what tempts to read one earlier.
const WHOLE: [&str; 12] = [
    "<specific_criteria>\nc\n</specific_criteria>\n<analysis>\nA is right.\n</analysis>\n<scores>\n\\boxed{9, 2}\n</scores>",
    "<think>\nA may get \\boxed{2, 9}, or <scores>\\boxed{2, 9}</scores>?\n</think>\n<analysis>a</analysis>\n\
     <scores>\n\\boxed{9, 2}\n</scores>",
    "maybe \\boxed{2, 9}\n</think>\n<scores>\n\\boxed{10, 1}\n</scores>\nThat is all.",
    "I will end with <scores>\\boxed{x, y}</scores>. A has \\boxed{3}, B has \\boxed{8}.\n<scores>\n8/10, 6/10\n</scores>",
    "The form is <scores>2/10, 9/10</scores>, as I was told.\n<analysis>a</analysis>\n<scores>9/10, 2/10</scores>",
    "Response A computes \\boxed{381} while Response B has \\boxed{391}.\n<scores>\nResponse B: \\boxed{9}\n\
     Response A: \\boxed{2}\n</scores>\nB is right. \\boxed{9, 2}",
    "<analysis>\\boxed{2, 9}</analysis>\n<Scores>\n| A | B |\n|---|---|\n| 10 | 9.5 |\n</Scores>",
    "<scores>\n\\boxed{1, 10}\n</scores>\n<scores>\n\\boxed{10, 1}\n</scores>",
    "Response A: \\boxed{2}\nResponse B: \\boxed{9}",
    "Final scores: \\boxed{10, 1}",
    "**Scores**: <scores>回复2：1分，回复1：10分</scores>",
    "<scores>\n\\boxed{8.5, 8.25}\n</scores>\n\n<scores>\n\\boxed{8.5, 8.25}\n</scores>\n\n<scores>\n\\boxed{8.5, 8.",
];

#[test]
fn no_beginning_names_another_winner() {
    let markers =
        ["A is right. [[A]]", "[[B]] would be wrong, so:\n[[A]]", "[[A]] or [[B]]?\n\n[[B]]"];
    let forms = [VerdictForm::default(), VerdictForm::Markers];
    for (form, wholes) in [(forms[0], &WHOLE[..]), (forms[1], &markers[..])] {
        for whole in wholes {
            let all = read(whole, Finish::Stop, form);
            for end in (0..=whole.len()).filter(|end| whole.is_char_boundary(*end)) {
                let part = read(&whole[..end], Finish::Length, form);
                for (part, all) in [(part.strict, all.strict), (part.soft, all.soft)] {
                    let right = part.winner().is_none() || part.winner() == all.winner();
                    assert!(right, "{part:?} of {:?}, {all:?} of the whole", &whole[..end]);
                }
                if part.strict.scores().is_some() {
                    assert_eq!(part.strict, part.soft, "{:?}", &whole[..end]);
                }
            }
        }
    }
}

#[test]
fn a_judgement_that_was_cut_off_is_truncated_unless_its_scores_section_had_closed() {
    let at_the_limit = |text: &str| read(text, Finish::Length, VerdictForm::default());
    let truncated = Verdict::Unparsed(UnparsedReason::Truncated);
    for text in [
        "",
        "<think>",
        "Response A computes \\boxed{391} while Response B has \\boxed{381}. Now",
        "\\boxed{8, 6}",
        "\\boxed{8, 6}\n\n",
        "<scores>\n\\boxed{8, 6}\n",
        "<scores>\n\\boxed{8, 6}\n</score",
        "<scores>\n8, 6\n",
        "<think>say <scores>\n\\boxed{8, 6}\n</scores> or",
        "I shall write <scores>\\boxed{8, 6}</scores>. Response A",
        "I shall write `<scores>8, 6</scores>`. Response A",
        "Response A: \\boxed{8}\nResponse B: \\boxed{6}",
    ] {
        let Reading { strict, soft } = at_the_limit(text);
        assert_eq!((strict, soft), (truncated, truncated), "{text}");
    }
    // With a closed section the judgement is there, however long what follows.
    for (text, strict) in [
        ("<scores>\n\\boxed{8, 6}\n</scores>\nso it goes on and", true),
        ("</analysis> <scores>\\boxed{8, 6}</scores><scores>\\boxed{", true),
        ("**Final scores:** <scores>\\boxed{8, 6}</scores> and so on", true),
        ("<scores>\nA: 8, B: 6\n</scores>\nand so on", false),
        (
            "<scores>\nResponse B: \\boxed{6}\nResponse A: \\boxed{8}\n</scores> \\boxed{1, 9}",
            false,
        ),
    ] {
        let reading = at_the_limit(text);
        assert_eq!(reading.soft, scores(8.0, 6.0), "{text}");
        assert_eq!(reading.strict.scores().is_some(), strict, "{text}");
    }
    // And if it holds no verdict, that is the reason.
    let reading = at_the_limit("<scores>\n\\boxed{80, 60}\n</scores> and so on");
    assert_eq!(reading.strict, Verdict::Unparsed(UnparsedReason::OutOfScale));
    assert_eq!(reading.soft, Verdict::Unparsed(UnparsedReason::OutOfScale));
    let reading = read("anything", Finish::PromptTooLong, VerdictForm::default());
    assert_eq!(reading.strict, Verdict::Unparsed(UnparsedReason::PromptTooLong));
}
