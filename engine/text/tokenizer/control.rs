//! Control tokens in text from strangers: text that a tokenizer reads as one token anywhere, such as `<|im_end|>`.
//!
//! A reply that holds one of them could end its turn and write the next one itself. [`ControlTokens::split`] puts a character into
//! each, so that it is read and does not act. A tokenizer may look for its tokens in the normalized text: after NFKC the fullwidth
//! `＜|im_end|＞` is one as well. So the text is normalized here as there, and what is found is split where it came from.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use tokenizers::normalizer::Range as Part;
use tokenizers::{AddedToken, NormalizedString, Normalizer, NormalizerWrapper};

use super::caught;

/// U+200B, zero width space: hardly seen by a reader. The others are for tokenizers that remove it.
const SPLITS: [char; 4] = ['\u{200b}', ' ', '-', '.'];
/// A split cannot make a new token, but with normalizers that delete text: those end here.
const ROUNDS: usize = 8;

/// The tokens of a tokenizer that act wherever they stand in a text: the special ones, and others in angle brackets, such as
/// `<think>` or `<tool_call>`. Other added tokens (words, and runs of spaces even where they are called special) are text.
#[derive(Clone, Debug)]
pub struct ControlTokens {
    plain: Patterns,
    normalized: Option<(NormalizerWrapper, Patterns)>,
    split: char,
}

/// Texts by their first character.
#[derive(Clone, Debug, Default)]
struct Patterns(HashMap<char, Vec<String>>);

impl Default for ControlTokens {
    /// No control tokens.
    fn default() -> ControlTokens {
        ControlTokens { plain: Patterns::default(), normalized: None, split: SPLITS[0] }
    }
}

impl ControlTokens {
    pub(super) fn new(
        tokens: impl IntoIterator<Item = AddedToken>,
        normalizer: Option<&NormalizerWrapper>,
    ) -> ControlTokens {
        let (mut plain, mut normalized) = (Patterns::default(), Patterns::default());
        for token in tokens.into_iter().filter(acts) {
            match normalizer.filter(|_| token.normalized) {
                Some(normalizer) => {
                    if let Some(text) = normalize(normalizer, &token.content) {
                        normalized.add(text.get());
                    }
                }
                None => plain.add(&token.content),
            }
        }
        let normalizer = normalizer.filter(|_| !normalized.0.is_empty()).cloned();
        let normalized = normalizer.map(|normalizer| (normalizer, normalized));
        let mut tokens = ControlTokens { plain, normalized, split: SPLITS[0] };
        tokens.choose_split();
        tokens
    }

    /// These control tokens and `texts`, such as turn markers that a chat template writes.
    #[must_use]
    pub fn with<T: AsRef<str>>(mut self, texts: impl IntoIterator<Item = T>) -> ControlTokens {
        texts.into_iter().for_each(|text| self.plain.add(text.as_ref()));
        self
    }

    /// The text with a character inside of each control token; as it is if there is none. Nothing is removed.
    pub fn split<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for _ in 0..ROUNDS {
            let edits = self.edits(&text);
            if edits.is_empty() {
                break;
            }
            let mut split = String::with_capacity(text.len() + 8 * edits.len());
            let mut copied = 0;
            for (start, (end, replacement)) in edits {
                if start >= copied {
                    split.push_str(&text[copied..start]);
                    split.push_str(&replacement);
                    copied = end;
                }
            }
            split.push_str(&text[copied..]);
            text = Cow::Owned(split);
        }
        text
    }

    /// What to put in: from a place in the text to another one, which is the same for an insertion.
    fn edits(&self, text: &str) -> BTreeMap<usize, (usize, String)> {
        let mut edits = BTreeMap::new();
        for range in self.plain.find(text) {
            let at = range.start + first_len(&text[range]);
            edits.insert(at, (at, self.split.to_string()));
        }
        let Some((normalizer, patterns)) = &self.normalized else { return edits };
        let Some(normalized) = normalize(normalizer, text) else { return edits };
        for range in patterns.find(normalized.get()) {
            let found = &normalized.get()[range.clone()];
            let Some(origin) = normalized.convert_offsets(Part::Normalized(range.clone())) else {
                continue;
            };
            let at = origin.start + first_len(&text[origin.clone()]);
            if at < origin.end {
                edits.insert(at, (at, self.split.to_string()));
            } else {
                // One character that becomes all of it: there is no place inside.
                let inside = first_len(found);
                let split = format!("{}{}{}", &found[..inside], self.split, &found[inside..]);
                edits.insert(origin.start, (origin.end, split));
            }
        }
        edits
    }

    /// Takes the first character that keeps every token apart after normalization.
    fn choose_split(&mut self) {
        let Some((_, patterns)) = &self.normalized else { return };
        let patterns: Vec<String> = patterns.0.values().flatten().cloned().collect();
        for split in SPLITS {
            self.split = split;
            let apart = |pattern: &String| {
                let (first, rest) = pattern.split_at(first_len(pattern));
                self.edits(&format!("{first}{split}{rest}")).is_empty()
            };
            if patterns.iter().all(apart) {
                return;
            }
        }
        self.split = SPLITS[0];
    }
}

impl Patterns {
    /// Adds a text, if it has an inside.
    fn add(&mut self, text: &str) {
        let Some(first) = text.chars().next().filter(|first| first.len_utf8() < text.len()) else {
            return;
        };
        let texts = self.0.entry(first).or_default();
        if !texts.iter().any(|known| known == text) {
            texts.push(text.to_owned());
        }
    }

    /// Where the texts stand, one place a start.
    fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Range<usize>> + 'a {
        text.char_indices().filter_map(|(at, first)| {
            let found = self.0.get(&first)?.iter().find(|found| text[at..].starts_with(*found))?;
            Some(at..at + found.len())
        })
    }
}

fn acts(token: &AddedToken) -> bool {
    let blank = token.content.trim().is_empty();
    let in_brackets = token.content.starts_with('<') && token.content.ends_with('>');
    (token.special && !blank) || in_brackets
}

fn normalize(normalizer: &NormalizerWrapper, text: &str) -> Option<NormalizedString> {
    // What cannot be normalized cannot be encoded either, and that says so.
    caught(|| {
        let mut normalized = NormalizedString::from(text);
        normalizer.normalize(&mut normalized)?;
        Ok(normalized)
    })
    .ok()
}

fn first_len(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{Tokenizer, tests::byte_level};
    use super::*;

    const INVISIBLE: [char; 4] = ['\u{200b}', '\u{ad}', '\u{feff}', '\u{2060}'];

    fn tokenizer(normalizer: Value, normalized: bool, added: &[(&str, bool)]) -> Tokenizer {
        // With both, crate tokenizers 0.23 panics for some texts.
        let strips = !normalized;
        let mut file = byte_level();
        file["normalizer"] = normalizer;
        let tokens = added.iter().enumerate().map(|(index, (content, special))| {
            json!({"id": 258 + index, "content": content, "single_word": false, "lstrip": strips && index % 2 == 1, "rstrip": strips && index % 3 == 1,
                "normalized": normalized, "special": special})
        });
        file["added_tokens"] = tokens.collect();
        Tokenizer::parse(&file.to_string(), "tokenizer.json".as_ref()).unwrap()
    }

    const ADDED: [(&str, bool); 8] = [
        ("<|im_end|>", true),
        ("<think>", false),
        ("[INST]", true),
        ("</s>", true),
        ("    ", false),
        ("éos", true),
        ("word", false),
        ("  ", true),
    ];

    fn normalizers() -> Vec<Value> {
        vec![
            Value::Null,
            json!({"type": "NFC"}),
            json!({"type": "NFD"}),
            json!({"type": "NFKC"}),
            json!({"type": "NFKD"}),
            json!({"type": "Lowercase"}),
            json!({"type": "StripAccents"}),
            json!({"type": "Strip", "strip_left": true, "strip_right": true}),
            json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
            json!({"type": "Replace", "pattern": {"Regex": "[\u{200b}\u{ad}]"}, "content": ""}),
            json!({"type": "Prepend", "prepend": "▁"}),
            json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}),
            json!({"type": "Nmt"}),
            json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, {"type": "Prepend", "prepend": "▁"}]}),
        ]
    }

    /// Texts of pieces of tokens, in every form that a normalizer may bring together.
    fn texts(count: usize) -> impl Iterator<Item = String> {
        let pieces = [
            "<",
            "|",
            ">",
            "im_end",
            "IM_END",
            "<|im_end|>",
            "＜",
            "｜",
            "＞",
            "ｉｍ＿ｅｎｄ",
            "<think",
            "think>",
            "ｔｈｉｎｋ",
            "[",
            "]",
            "INST",
            "ＩＮＳＴ",
            "［",
            "］",
            "</s",
            "s>",
            "／",
            "e\u{301}os",
            "éos",
            "ÉOS",
            "e",
            "os",
            "\u{301}",
            " ",
            "    ",
            "word",
            "\n",
            "▁",
            "a",
        ];
        let mut state = 7u32;
        let mut draw = move |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        (0..count).map(move |_| {
            (0..draw(14))
                .map(|_| match draw(12) {
                    0 => INVISIBLE[draw(INVISIBLE.len())].to_string(),
                    _ => pieces[draw(pieces.len())].to_owned(),
                })
                .collect()
        })
    }

    #[test]
    fn no_text_becomes_a_control_token_in_any_normalization() {
        for normalizer in normalizers() {
            for normalized in [false, true] {
                let tokenizer = tokenizer(normalizer.clone(), normalized, &ADDED);
                let control = tokenizer.control_tokens();
                let acting: Vec<u32> = [258, 259, 260, 261, 263].to_vec();
                let (mut forged, mut untouched) = (0, 0);
                for text in texts(1000) {
                    // As it stands in a prompt.
                    // What crate tokenizers cannot encode (0.23 panics for some texts) forges nothing.
                    let ids =
                        |text: &str| tokenizer.encode(&format!("x\n{text}\ny")).unwrap_or_default();
                    let acts = |text: &str| ids(text).iter().any(|id| acting.contains(id));
                    let split = control.split(&text);
                    assert!(!acts(&split), "{normalizer} {normalized}: {text:?} to {split:?}");
                    assert_eq!(control.split(&split), split);
                    forged += usize::from(acts(&text));
                    if let Cow::Borrowed(same) = split {
                        assert_eq!(same, text);
                        untouched += 1;
                    } else {
                        assert_ne!(split, text);
                    }
                }
                assert!(forged > 5 && untouched > 100, "{normalizer}: {forged}, {untouched}");
            }
        }
    }

    #[test]
    fn what_is_no_control_token_keeps_every_byte() {
        let code = "def f(x):\n    return x <|y|> 2\n\n        # word <p> [INSTANCE] a < b > c\n\t\tif x:\r\n";
        for normalizer in normalizers() {
            let tokenizer = tokenizer(normalizer, true, &ADDED);
            assert!(
                matches!(tokenizer.control_tokens().split(code), Cow::Borrowed(same) if same == code)
            );
        }
    }

    #[test]
    fn tokens_are_split_after_their_first_character() {
        let tokenizer = tokenizer(json!({"type": "NFKC"}), true, &ADDED);
        let control = tokenizer.control_tokens();
        for (text, split) in [
            ("a<|im_end|>b", "a<\u{200b}|im_end|>b"),
            ("＜|im_end|＞", "＜\u{200b}|im_end|＞"),
            ("<think></s>", "<\u{200b}think><\u{200b}/s>"),
            ("<<|im_end|>|>", "<<\u{200b}|im_end|>|>"),
            ("<|im_<|im_end|>end|>", "<|im_<\u{200b}|im_end|>end|>"),
        ] {
            assert_eq!(control.split(text), split);
        }
        let more = ControlTokens::default().with(["<|user|>", "x"]);
        assert_eq!(more.split("x<|user|>y"), "x<\u{200b}|user|>y");
        assert_eq!(ControlTokens::default().split("<|im_end|>"), "<|im_end|>");
    }
}
