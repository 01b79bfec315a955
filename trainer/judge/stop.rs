//! Texts that end a judgement, looked for as it grows.

use engine::text::tokenizer::{DecodeStream, Tokenizer, TokenizerError};

/// Looks for stop strings in the text of one sample. Special tokens count as the text they are written in, so that one
/// of them can be a stop string, as with transformers.
#[derive(Clone, Debug)]
pub(super) struct Watch<'a> {
    strings: &'a [String],
    text: DecodeStream<'a>,
    /// The end of the text, which may be the beginning of a stop string.
    tail: String,
}

impl<'a> Watch<'a> {
    /// `None` without anything to look for.
    pub(super) fn new(strings: &'a [String], tokenizer: &'a Tokenizer) -> Option<Watch<'a>> {
        let (text, tail) = (tokenizer.stream(false), String::new());
        (!strings.is_empty()).then_some(Watch { strings, text, tail })
    }

    /// Takes a token. If with it a string stands in the text, the bytes of text behind the one that ends first.
    pub(super) fn push(&mut self, token: u32) -> Result<Option<usize>, TokenizerError> {
        let fresh = self.text.push(token)?;
        Ok(self.look(&fresh))
    }

    /// The same of text that was held back when the sample ended otherwise.
    pub(super) fn finish(&mut self) -> Result<Option<usize>, TokenizerError> {
        let fresh = self.text.clone().finish()?;
        Ok(self.look(&fresh))
    }

    fn look(&mut self, fresh: &str) -> Option<usize> {
        if fresh.is_empty() {
            return None;
        }
        self.tail.push_str(fresh);
        let end = |string: &String| self.tail.find(string.as_str()).map(|at| at + string.len());
        if let Some(end) = self.strings.iter().filter_map(end).min() {
            return Some(self.tail.len() - end);
        }
        // All but the last byte of the longest string may stand there.
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let done = whole_characters(&self.tail, (self.tail.len() + 1).saturating_sub(longest));
        self.tail.drain(..done);
        None
    }
}

/// How much of `fresh`, the last text of a sample, stays where `behind` bytes follow a stop string.
pub(super) fn kept(fresh: &str, behind: usize) -> &str {
    // A special token among them is no text.
    &fresh[..whole_characters(fresh, fresh.len().saturating_sub(behind))]
}

/// The most bytes, `most` at most, that are whole characters at the beginning of a text.
fn whole_characters(text: &str, most: usize) -> usize {
    (0..=most).rev().find(|&bytes| text.is_char_boundary(bytes)).expect("none are whole")
}
