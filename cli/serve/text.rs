//! From tokens to the text that a client gets: no half character, nothing of a stop string.

use engine::text::tokenizer::{DecodeStream, Tokenizer, TokenizerError};

/// What ends a sample before its time, besides the model's own stop tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Stops {
    /// Texts, none of them empty.
    pub(super) strings: Vec<String>,
    pub(super) tokens: Vec<u32>,
    /// Whether the text keeps what ended it.
    pub(super) is_kept: bool,
}

/// What ended a sample.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum StoppedBy {
    Text(String),
    Token(u32),
}

/// The text of one sample as it grows.
pub(super) struct Writer<'a> {
    decode: DecodeStream<'a>,
    stops: &'a Stops,
    /// Text that may be the beginning of a stop string.
    held: String,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        tokenizer: &'a Tokenizer,
        stops: &'a Stops,
        skip_special: bool,
    ) -> Writer<'a> {
        Writer { decode: tokenizer.stream(skip_special), stops, held: String::new() }
    }

    /// Takes a token; gives the text that is sure with it, and what it ended by.
    pub(super) fn push(&mut self, id: u32) -> Result<(String, Option<StoppedBy>), TokenizerError> {
        if self.stops.tokens.contains(&id) {
            let mut text = self.finish()?.0;
            if self.stops.is_kept {
                text += &self.decode.push(id)?;
            }
            return Ok((text, Some(StoppedBy::Token(id))));
        }
        self.held += &self.decode.push(id)?;
        Ok(self.sure(false))
    }

    /// The rest, when no more tokens come. A stop string may still be found in it.
    pub(super) fn finish(&mut self) -> Result<(String, Option<StoppedBy>), TokenizerError> {
        self.held += &self.decode.clone().finish()?;
        Ok(self.sure(true))
    }

    fn sure(&mut self, is_last: bool) -> (String, Option<StoppedBy>) {
        let strings = &self.stops.strings;
        let found =
            strings.iter().filter_map(|string| Some((self.held.find(string.as_str())?, string)));
        // The one that ends first, as it would have been seen first.
        if let Some((at, string)) = found.min_by_key(|(at, string)| at + string.len()) {
            let end = if self.stops.is_kept { at + string.len() } else { at };
            let text = self.held[..end].to_owned();
            self.held.clear();
            return (text, Some(StoppedBy::Text(string.clone())));
        }
        let held = if is_last { 0 } else { self.beginning_of_a_stop() };
        let rest = self.held.split_off(self.held.len() - held);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// Bytes at the end of the text with which a stop string may begin.
    fn beginning_of_a_stop(&self) -> usize {
        let longest = |string: &String| {
            let most = (string.len() - 1).min(self.held.len());
            (1..=most).rev().find(|&bytes| {
                string.is_char_boundary(bytes) && self.held.ends_with(&string[..bytes])
            })
        };
        self.stops.strings.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::language_model::LanguageModel;

    fn written(text: &str, stops: &Stops) -> (Vec<String>, Option<StoppedBy>) {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/qwen3-tied/model");
        let tokenizer = LanguageModel::open(model).unwrap().tokenizer;
        let mut writer = Writer::new(&tokenizer, stops, true);
        let mut pieces = Vec::new();
        for id in tokenizer.encode(text).unwrap() {
            let (piece, stopped) = writer.push(id).unwrap();
            pieces.push(piece);
            if stopped.is_some() {
                return (pieces, stopped);
            }
        }
        let (piece, stopped) = writer.finish().unwrap();
        pieces.push(piece);
        (pieces, stopped)
    }

    #[test]
    fn text_ends_before_the_stop_string_that_ends_first() {
        let stops = |strings: &[&str], is_kept| Stops {
            strings: strings.iter().map(|s| (*s).to_owned()).collect(),
            tokens: Vec::new(),
            is_kept,
        };
        for (text, strings, kept, expected, by) in [
            ("one two three", &["two"][..], false, "one ", Some("two")),
            ("one two three", &["two"], true, "one two", Some("two")),
            ("one two three", &["three", "o t"], false, "one tw", Some("o t")),
            ("one two thr", &["three"], false, "one two thr", None),
            ("one é two", &["é t"], false, "one ", Some("é t")),
            ("aaab", &["aab"], false, "a", Some("aab")),
            ("no stop", &[], false, "no stop", None),
        ] {
            let stops = stops(strings, kept);
            let (pieces, stopped) = written(text, &stops);
            assert_eq!(pieces.concat(), expected, "{text} {strings:?}");
            assert_eq!(stopped, by.map(|by| StoppedBy::Text(by.to_owned())), "{text} {strings:?}");
            // Nothing that is sure is held back, and nothing is taken back.
            let mut so_far = String::new();
            for piece in &pieces {
                so_far += piece;
                assert!(text.starts_with(&so_far), "{so_far:?}");
            }
        }
    }
}
