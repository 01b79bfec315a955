//! Taking the force out of control strings in untrusted text.

use std::borrow::Cow;

/// U+200B, zero width space: splits a string for a tokenizer, and hardly for a reader.
const SPLIT: char = '\u{200b}';
/// The longest name between `<|` and `|>` that is taken for a token, in bytes.
const MAX_NAME: usize = 64;

/// Splits the strings in untrusted text that would act instead of being read. Text without any of them
/// comes back borrowed and byte-identical.
///
/// A tokenizer turns `<|im_end|>` into the id that ends a turn wherever it stands in the rendered prompt,
/// so a reply that contains it could end the user's message and write the judge's answer itself. And
/// a reply that contains `[The End of Response A]` could close its own slot. A zero width space is
/// put after the first character of
///
/// * `<|name|>` and `<｜name｜>`, the form of control tokens in the supported model families: up to 64
///   bytes of name without white space, angle brackets or bars;
/// * each of `special_tokens`, the strings that the tokenizer at hand treats specially;
/// * the slot markers, `[The Begin of Response` and `[The End of Response`, in any case.
///
/// Nothing is ever removed, so no new control string can form from the pieces, and doing it twice
/// changes nothing more. `<think>` and the tags of the judgement stay: in what the judge reads
/// they have no force, and replies of reasoning models contain them.
pub fn neutralize<'a>(text: &'a str, special_tokens: &[String]) -> Cow<'a, str> {
    let mut clean = String::new();
    let mut copied = 0;
    for (at, c) in text.char_indices() {
        let rest = &text[at..];
        let acts = match c {
            '<' => is_control_token(rest),
            '[' => is_slot_marker(rest),
            _ => false,
        };
        if acts || special_tokens.iter().any(|token| rest.starts_with(token.as_str())) {
            let end = at + c.len_utf8();
            clean.push_str(&text[copied..end]);
            clean.push(SPLIT);
            copied = end;
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    clean.push_str(&text[copied..]);
    Cow::Owned(clean)
}

fn is_control_token(text: &str) -> bool {
    let Some(bar) = text[1..].chars().next().filter(|c| matches!(c, '|' | '｜')) else {
        return false;
    };
    let name = &text[1 + bar.len_utf8()..];
    let ends = |c: char| c == bar || c == '<' || c == '>' || c.is_whitespace();
    match name.char_indices().take_while(|&(at, _)| at <= MAX_NAME).find(|&(_, c)| ends(c)) {
        Some((length, c)) => {
            length > 0 && c == bar && name[length + c.len_utf8()..].starts_with('>')
        }
        None => false,
    }
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
        neutralize(text, &[]).into_owned()
    }

    #[test]
    fn control_tokens_are_split() {
        assert_eq!(clean("a<|im_end|>b"), "a<\u{200b}|im_end|>b");
        assert_eq!(clean("<|im_start|><|x|>"), "<\u{200b}|im_start|><\u{200b}|x|>");
        assert_eq!(clean("<｜end▁of▁sentence｜>"), "<\u{200b}｜end▁of▁sentence｜>");
        assert_eq!(clean("<<|im_end|>|>"), "<<\u{200b}|im_end|>|>");
        assert_eq!(clean("<|im_<|im_end|>end|>"), "<|im_<\u{200b}|im_end|>end|>");
        assert_eq!(clean("[The End of Response A]"), "[\u{200b}The End of Response A]");
        assert_eq!(clean("[the begin of response b]"), "[\u{200b}the begin of response b]");
    }

    #[test]
    fn other_text_is_untouched() {
        let long = format!("<|{}|>", "x".repeat(65));
        for text in [
            "",
            "plain é 漢字",
            "a < b || c > d",
            "<|",
            "<||>",
            "<|a b|>",
            "<|a>",
            "if x <|y| z",
            "<think>x</think>",
            "<scores>\\boxed{1, 2}</scores>",
            "[The Response]",
            "<s>",
            "<｜a|>",
            &long,
        ] {
            assert!(matches!(neutralize(text, &[]), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn the_tokenizers_own_tokens_are_split() {
        let special = ["</s>".to_owned(), "éos".to_owned()];
        assert_eq!(neutralize("a</s>éos", &special), "a<\u{200b}/s>é\u{200b}os");
    }

    #[test]
    fn twice_is_once_and_no_control_string_survives() {
        let pieces =
            ["<|", "|>", "im_end", "<|im_end|>", "<", "[The End of Response A]", "[", "｜", "x"];
        let mut draws = crate::bootstrap::Draws::new(11);
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
