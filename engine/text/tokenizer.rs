//! Text to token ids and back: tokenizer.json through crate `tokenizers`, and text that grows as tokens arrive.
//!
//! Encoding recognizes special tokens in the text and adds none (no BOS, no EOS): the chat template writes them, as transformers'
//! `apply_chat_template` does. Decoding is the tokenizer's own decoder without transformers' `clean_up_tokenization_spaces` (off
//! for the Qwen models); ids without a token decode to nothing and broken UTF-8 to U+FFFD, both as there.
//!
//! The crate may panic on a hostile tokenizer.json: every call into it is caught and becomes a typed error (this takes
//! `panic = "unwind"`, Rust's default).

mod bpe;
mod control;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

pub use control::ControlTokens;

use crate::error::{FileError, excerpt, read_text};

/// Qwen3's has 11 MB, the largest of the field 33 MB.
const LIMIT_BYTES: u64 = 64 << 20;

/// The tokenizer of a checkpoint directory.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    /// The largest id of its vocabulary, without added tokens; `None` if it has none.
    largest_id: Option<u32>,
}

/// More bytes than a token has on average in any language.
const BYTES_PER_TOKEN: usize = 8;

/// The result of [`Tokenizer::encode_up_to`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// The ids of the whole text.
    Whole(Vec<u32>),
    /// The text has more ids than were wanted.
    TooLong {
        /// The number of ids of its beginning.
        at_least: usize,
    },
}

impl Encoded {
    /// How many ids there are, at the least.
    #[allow(clippy::len_without_is_empty)] // no caller asks
    pub fn len(&self) -> usize {
        match self {
            Encoded::Whole(ids) => ids.len(),
            Encoded::TooLong { at_least } => *at_least,
        }
    }
}

/// A tokenizer that cannot be loaded or used, or that does not fit the model.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum TokenizerError {
    /// The file itself.
    #[error(transparent)]
    File(#[from] FileError),
    /// No tokenizer.json.
    #[error("{}: no tokenizer.json in this directory{advice}", directory.display())]
    NoTokenizer { directory: PathBuf, advice: &'static str },
    /// Not a tokenizer.json that crate `tokenizers` understands.
    #[error("{}: not a sound tokenizer: {message}", path.display())]
    Unsound { path: PathBuf, message: String },
    /// A token for which the model has no row.
    #[error(
        "{}: token {token:?} has id {id}, but the model's embedding has {vocab_size} rows; the tokenizer belongs to another model",
        path.display()
    )]
    OutsideVocabulary { path: PathBuf, token: String, id: u32, vocab_size: usize },
    /// The text could not be encoded, or the ids not decoded.
    #[error("{}: {operation} failed: {message}", path.display())]
    Failed { path: PathBuf, operation: &'static str, message: String },
}

impl Tokenizer {
    /// Reads `directory`/tokenizer.json. Truncation and padding that it asks for are switched off.
    pub fn load(directory: &Path) -> Result<Tokenizer, TokenizerError> {
        let path = directory.join("tokenizer.json");
        let text = match read_text(&path, LIMIT_BYTES) {
            Err(FileError::NotFound { .. }) => {
                let has = |name: &str| directory.join(name).exists();
                let older = has("tokenizer.model") || has("vocab.json");
                let advice = if older {
                    ", only an older form of it: convert it with Python's transformers, `AutoTokenizer.from_pretrained(dir).save_pretrained(out)`"
                } else {
                    ""
                };
                return Err(TokenizerError::NoTokenizer {
                    directory: directory.to_owned(),
                    advice,
                });
            }
            result => result?,
        };
        Tokenizer::parse(&text, &path)
    }

    /// Parses the text of a tokenizer.json; `path` is for messages only.
    pub fn parse(text: &str, path: &Path) -> Result<Tokenizer, TokenizerError> {
        let parsed = caught(|| {
            if let Some((inner, largest)) = bpe::read(text) {
                return Ok((inner, Some(largest)));
            }
            let mut inner = tokenizers::Tokenizer::from_bytes(text)?;
            inner.with_truncation(None)?.with_padding(None);
            let largest_id = inner.get_vocab(false).into_values().max();
            Ok((inner, largest_id))
        });
        match parsed {
            Ok((inner, largest_id)) => Ok(Tokenizer { path: path.to_owned(), inner, largest_id }),
            Err(message) => Err(TokenizerError::Unsound { path: path.to_owned(), message }),
        }
    }

    /// Checks that every token has a row in an embedding table of `vocab_size` rows.
    pub fn check_against(&self, vocab_size: usize) -> Result<(), TokenizerError> {
        let added = self.inner.get_added_tokens_decoder();
        let largest = added.keys().copied().chain(self.largest_id).max();
        if largest.is_none_or(|id| (id as usize) < vocab_size) {
            return Ok(());
        }
        let vocabulary = self.inner.get_vocab(true);
        match vocabulary.into_iter().max_by_key(|(_, id)| *id) {
            Some((token, id)) if id as usize >= vocab_size => {
                Err(TokenizerError::OutsideVocabulary {
                    path: self.path.clone(),
                    token: excerpt(&token),
                    id,
                    vocab_size,
                })
            }
            _ => Ok(()),
        }
    }

    /// The ids of a text. Special tokens that stand in it become their ids; none are added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        caught(|| Ok(self.inner.encode_fast(text, false)?.get_ids().to_vec()))
            .map_err(|message| self.failed("encoding", message))
    }

    /// The ids of a text as [`Tokenizer::encode`] gives them, if it has about `most` of them or fewer. Encoding takes some hundred
    /// times the text's memory, so a text that is far too long is found out by its beginning.
    pub fn encode_up_to(&self, text: &str, most: usize) -> Result<Encoded, TokenizerError> {
        let mut len = most.saturating_mul(BYTES_PER_TOKEN).max(1 << 16);
        while len < text.len() {
            // The last word of a beginning may have more tokens than it has in the text.
            let end = (0..=len).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            let at_least = self.encode(&text[..end])?.len();
            if at_least > most.saturating_add(most / 8) {
                return Ok(Encoded::TooLong { at_least });
            }
            len = len.saturating_mul(4);
        }
        Ok(Encoded::Whole(self.encode(text)?))
    }

    /// The text of these ids, with or without special tokens.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        caught(|| self.inner.decode(ids, skip_special_tokens))
            .map_err(|message| self.failed("decoding", message))
    }

    /// The tokens that act wherever they stand in a text, such as `<|im_end|>` or `<think>`.
    pub fn control_tokens(&self) -> ControlTokens {
        let added = self.inner.get_added_tokens_decoder();
        ControlTokens::new(added.into_values(), self.inner.get_normalizer())
    }

    /// Text that grows as tokens arrive, from none.
    pub fn stream(&self, skip_special_tokens: bool) -> DecodeStream<'_> {
        DecodeStream {
            tokenizer: self,
            skip_special_tokens,
            ids: Vec::new(),
            text: String::new(),
            piece: (0, 0),
            piece_text: String::new(),
            broken: false,
        }
    }

    /// Whether decoding passes over this id.
    fn is_silent(&self, id: u32, skip_special_tokens: bool) -> bool {
        match self.inner.id_to_token(id) {
            None => true,
            Some(token) => {
                skip_special_tokens && self.inner.get_added_vocabulary().is_special_token(&token)
            }
        }
    }

    fn failed(&self, operation: &'static str, message: String) -> TokenizerError {
        TokenizerError::Failed { path: self.path.clone(), operation, message }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tokenizer").field("path", &self.path).finish_non_exhaustive()
    }
}

/// While at most this many tokens are held back, they are decoded with each new one. Beyond, they are decoded only if the new
/// token may complete them, so that thousands of broken tokens take linear time.
const EAGER_TOKENS: usize = 32;

/// Text that grows as tokens arrive. Only whole characters come out; everything that came out, joined, is what [`Tokenizer::decode`]
/// gives for all ids at once.
///
/// A token is decoded together with the tokens of the last piece, because decoders treat the first token of a text differently.
/// Text is held back while it ends in U+FFFD (a character that may not be whole yet, or a genuine U+FFFD until the next token)
/// and after a byte token such as `<0xE4>` (one bad byte spoils its whole run).
#[derive(Clone, Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special_tokens: bool,
    /// The tokens so far that decoding does not pass over.
    ids: Vec<u32>,
    /// All text that came out so far.
    text: String,
    /// First id of the last piece that came out, and the first id after it.
    piece: (usize, usize),
    /// The last piece, decoded alone.
    piece_text: String,
    /// Whether the held text ended in U+FFFD when last decoded.
    broken: bool,
}

impl DecodeStream<'_> {
    /// Takes a token and returns the text that became whole with it: often all of the token's, sometimes none.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        if self.tokenizer.is_silent(id, self.skip_special_tokens) {
            return Ok(String::new());
        }
        self.ids.push(id);
        if is_byte_token(self.tokenizer, id) || !self.is_due(id)? {
            return Ok(String::new());
        }
        let window = self.decode(&self.ids[self.piece.0..])?;
        self.broken = window.ends_with(char::REPLACEMENT_CHARACTER);
        match window.strip_prefix(self.piece_text.as_str()) {
            Some(fresh) if !self.broken && !fresh.is_empty() => {
                let fresh = fresh.to_owned();
                self.text.push_str(&fresh);
                self.piece = (self.piece.1, self.ids.len());
                self.piece_text = self.decode(&self.ids[self.piece.0..])?;
                Ok(fresh)
            }
            _ => Ok(String::new()),
        }
    }

    /// Everything that came out so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Ends the stream and returns what was held back, an unfinished character as U+FFFD.
    pub fn finish(self) -> Result<String, TokenizerError> {
        let mut whole = self.decode(&self.ids)?;
        if !whole.starts_with(&self.text) {
            let message = "the text of all tokens does not begin with the text of the first ones";
            return Err(self.tokenizer.failed("decoding piece by piece", message.to_owned()));
        }
        Ok(whole.split_off(self.text.len()))
    }

    /// Whether decoding the held tokens may give text, now that `id` is the last one.
    fn is_due(&self, id: u32) -> Result<bool, TokenizerError> {
        let held = self.ids.len() - self.piece.1;
        if held <= EAGER_TOKENS || held.is_power_of_two() {
            return Ok(true);
        }
        // A token that is whole text by itself ends a run of broken ones.
        let alone = if self.broken { self.decode(&[id])? } else { String::new() };
        Ok(!alone.is_empty() && !alone.contains(char::REPLACEMENT_CHARACTER))
    }

    fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.tokenizer.decode(ids, self.skip_special_tokens)
    }
}

/// `<0x00>` to `<0xFF>`, with which SentencePiece vocabularies spell bytes.
fn is_byte_token(tokenizer: &Tokenizer, id: u32) -> bool {
    tokenizer
        .inner
        .id_to_token(id)
        .is_some_and(|token| token.len() == 6 && token.starts_with("<0x") && token.ends_with('>'))
}

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread, now, would be the crate's and become an error: a panic hook need not tell of it.
pub fn catches_panics() -> bool {
    CATCHING.get()
}

/// Runs `call`; an error or a panic of the crate becomes its message.
fn caught<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    // What a panic may leave half done is dropped (parsing) or immutable but for the crate's cache of encoded words, whose entries
    // are written whole.
    let outer = CATCHING.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    CATCHING.set(outer);
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(excerpt(&error.to_string())),
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(format!("crate tokenizers gave up: {}", excerpt(message)))
        }
    }
}

#[cfg(test)]
mod tests;
