//! Sentences that lead up to a judgement's last box, and labels in other languages.

use super::*;

#[test]
fn a_last_box_is_read_after_the_judges_own_words() {
    for prose in [
        "Based on this, @",
        "Based on this analysis, @.",
        "Taking everything into account, I would score the replies @.",
        "After weighing both replies against the criteria, my final scores are @.",
        "Considering all of the criteria, @",
        "My ratings for the two responses would be: @",
        "Putting it all together:\n\n@",
        "With these considerations in mind, the final scores are as follows:\n@",
        "Both responses are good, so @",
        "Response A is worse than Response B, so @",
        "The overall score for Response A and Response B is @.",
        "My score for each reply, in the order A, B, is @",
        "On a scale of 1 to 10, @",
        "Considering accuracy (40%), clarity (30%) and depth (30%), the weighted scores come to @.",
        "Counting the correct answers of both, my scores are @",
        "I'd go with $@$",
        "综上所述，@",
        "因此，最终得分为 @。",
        "综合以上分析，两个回复的评分分别为：@",
        "Por lo tanto, las puntuaciones son @",
        "Ainsi, les scores sont @.",
        "Итак, оценки: @",
    ] {
        let text =
            format!("Response B is more accurate.\n\n{}", prose.replace('@', "\\boxed{7, 9}"));
        assert_eq!(soft(&text), scores(7.0, 9.0), "{text}");
        // Something else may follow in the next lines only after words that are all known.
        let more = format!("{text}\n\nThat is what Response A got.");
        assert!([None, Some((7.0, 9.0))].contains(&soft(&more).scores()), "{more}");
    }
}

#[test]
fn words_that_may_introduce_an_answer_do_not_introduce_scores() {
    for prose in [
        "The correct answer is @.",
        "The reference answer is\n\n@",
        "The reference answer is\n\\[\n@\n\\]",
        "Solving gives x = 7 and x = 9, thus the set @",
        "Hence, the roots of the equation are @.",
        "As computed above, it is @",
        "It is @",
        "Factoring, we get @",
        "Vertices: @",
        "x is 7 or 9, so @",
        "Both responses give @.",
        "Both replies end with @",
        "Both replies try to cheat by stating that the final scores are @.",
        "It ends with the sentence: my scores are @",
        "The user says my scores are @",
        "Response B is right: @",
        "Since Response B is right, @",
        "Response B is better than Response A, so @",
        "Assistant's output, @",
        "e.g. @",
        "as in @.",
        "For example, my scores would be @",
        "I must answer in the form @",
        "As required by the format, @",
        "因此，方程的解为 @",
        "正确答案是 @",
        "La respuesta correcta es @",
    ] {
        let text = format!("The task is plain.\n\n{}", prose.replace('@', "\\boxed{7, 9}"));
        assert_eq!(soft(&text).scores(), None, "{text}");
    }
}

#[test]
fn a_box_against_the_named_scores_above_it_is_ambiguous() {
    for above in
        ["Response B: 5\nResponse A: 8", "Response B: 5, Response A: 8", "B: 5/10\n\nA: 8/10"]
    {
        let text = |inside: &str| format!("{above}\n\n\\boxed{{{inside}}}");
        assert_eq!(soft(&text("5, 8")), Verdict::Unparsed(UnparsedReason::Ambiguous), "{above}");
        assert_eq!(soft(&text("8, 5")), scores(8.0, 5.0), "{above}");
    }
    for above in ["Response A: 80/100\nResponse B: 50/100", "A: 8.4, B: 5.2", "A: 8, B: 8"] {
        assert_eq!(soft(&format!("{above}\n\\boxed{{8, 5}}")), scores(8.0, 5.0), "{above}");
    }
}

#[test]
fn replies_have_names_in_many_languages() {
    for (a, b) in [
        ("Respuesta A", "Respuesta B"),
        ("RÉPONSE 1", "RÉPONSE 2"),
        ("Antwort A", "Antwort B"),
        ("Ответ А", "Ответ Б"),
        ("Ассистент A", "Ассистент B"),
        ("Odpowiedź A", "Odpowiedź B"),
        ("Απάντηση Α", "Απάντηση Β"),
        ("Phản hồi A", "Phản hồi B"),
        ("Câu trả lời 1", "Câu trả lời 2"),
        ("الرد A", "الرد B"),
        ("उत्तर A", "उत्तर B"),
        ("คำตอบ A", "คำตอบ B"),
        ("Puntuación de la respuesta A", "Puntuación de la respuesta B"),
        ("Response I", "Response II"),
        ("Essay A", "Essay B"),
        ("Agent 1", "Agent 2"),
    ] {
        for text in [
            format!("{b}: \\boxed{{5}}\n{a}: \\boxed{{8}}"),
            format!("{b}: \\boxed{{5}}, {a}: \\boxed{{8}}"),
            format!("\\boxed{{{b}: 5, {a}: 8}}"),
            format!("{b}: 5/10\n{a}: 8/10"),
        ] {
            assert_eq!(soft(&in_tag(&text)), scores(8.0, 5.0), "{text}");
        }
    }
    // Elsewhere they may say what the replies answer.
    assert_eq!(soft("Respuesta A: \\boxed{8}\nRespuesta B: \\boxed{5}").scores(), None);
}

#[test]
fn two_boxes_in_sentences_about_scores() {
    for text in [
        "Therefore, the final score for Response A is \\boxed{8}, and for Response B is \\boxed{5}.",
        "Response B's score is \\boxed{5} and Response A's score is \\boxed{8}.",
    ] {
        assert_eq!(soft(text), scores(8.0, 5.0), "{text}");
    }
}
