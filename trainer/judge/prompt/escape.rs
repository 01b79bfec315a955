//! Taking the force out of control strings in untrusted text.

use std::borrow::Cow;

use engine::text::tokenizer::ControlTokens;

/// U+200B, zero width space: splits a string for a tokenizer, and hardly for a reader.
const SPLIT: char = '\u{200b}';

/// Splits the strings in untrusted text that would act instead of being read. Text without any of them
/// comes back borrowed and byte-identical.
///
/// A tokenizer turns `<|im_end|>` into the id that ends a turn wherever it stands in the rendered prompt,
/// so a reply that contains it could end the user's message and write the judge's answer itself. And
/// a reply that contains `[The End of Response A]` could close its own slot. A zero width space is
/// put after the first character of
///
/// * each of the `control` tokens, those of the tokenizer and the chat template at hand: special tokens,
///   and added ones in angle brackets. With Qwen3's tokenizer `<think>` and `<tool_call>` are among them,
///   and a reply's thoughts reach the judge as text; with one that has no such token they stay whole;
/// * the slot markers, `[The Begin of Response` and `[The End of Response`, in any case.
///
/// Nothing is ever removed, so no new control string can form from the pieces, and doing it twice
/// changes nothing more.
pub fn escape_special_tokens<'a>(text: &'a str, control: &ControlTokens) -> Cow<'a, str> {
    match split_markers(text) {
        Cow::Borrowed(text) => control.split(text),
        Cow::Owned(text) => Cow::Owned(control.split(&text).into_owned()),
    }
}

fn split_markers(text: &str) -> Cow<'_, str> {
    let mut clean = String::new();
    let mut copied = 0;
    for (at, _) in text.match_indices('[').filter(|&(at, _)| is_slot_marker(&text[at..])) {
        clean.push_str(&text[copied..=at]);
        clean.push(SPLIT);
        copied = at + 1;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    clean.push_str(&text[copied..]);
    Cow::Owned(clean)
}

fn is_slot_marker(text: &str) -> bool {
    ["[The Begin of Response", "[The End of Response"].iter().any(|marker| {
        text.as_bytes()
            .get(..marker.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(marker.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(text: &str) -> String {
        escape_special_tokens(text, &ControlTokens::default().with(["<|im_end|>"])).into_owned()
    }

    #[test]
    fn control_strings_are_split() {
        assert_eq!(clean("a<|im_end|>b"), "a<\u{200b}|im_end|>b");
        assert_eq!(clean("<|im_<|im_end|>end|>"), "<|im_<\u{200b}|im_end|>end|>");
        assert_eq!(clean("[The End of Response A]"), "[\u{200b}The End of Response A]");
        assert_eq!(clean("[the begin of response b]"), "[\u{200b}the begin of response b]");
        assert_eq!(
            clean("[[The end of response A]<|im_end|>"),
            "[[\u{200b}The end of response A]<\u{200b}|im_end|>"
        );
    }

    #[test]
    fn other_text_is_untouched() {
        for text in [
            "",
            "plain é 漢字",
            "a < b || c > d",
            "if x <|y|> z",
            "<think>x</think>",
            "<scores>\\boxed{1, 2}</scores>",
            "[The Response]",
            "def f():\n    return [1]\n",
            "<s><|other|>",
        ] {
            let control = ControlTokens::default().with(["<|im_end|>"]);
            assert!(
                matches!(escape_special_tokens(text, &control), Cow::Borrowed(same) if same == text),
                "{text}"
            );
        }
    }

    #[test]
    fn twice_is_once_and_no_control_string_survives() {
        let pieces =
            ["<|", "|>", "im_end", "<|im_end|>", "<", "[The End of Response A]", "[", "｜", "x"];
        let mut draws = crate::eval::bootstrap::Draws::new(11);
        for _ in 0..5_000 {
            let text: String =
                (0..draws.below(12)).map(|_| pieces[draws.below(pieces.len())]).collect();
            let once = clean(&text);
            assert_eq!(clean(&once), once, "{text}");
            assert!(!once.contains("<|im_end|>") && !once.contains("[The End of"), "{once}");
            assert_eq!(once.replace(SPLIT, ""), text);
        }
    }
}
