//! The usual tokenizer.json, read in a quarter of the time.
//!
//! Crate `tokenizers` reads a model's vocabulary and merges through three intermediate forms, as its file could be of five kinds:
//! 0.3 s for Qwen3's, most of what `j1 judge` does before its first token. Here a file that is byte-pair encoding as that crate
//! writes it today, vocabulary and merges last, is read straight into the crate's own types: by two threads, with strings and
//! tables side by side in large pages. Any other, a faulty one included, is left to the crate.

use std::{fmt, ops::Range};

use memchr::{memchr_iter, memmem};
use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer,
    models::bpe::{BPE, Merges, Vocab},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File<'a> {
    version: &'a str,
    #[serde(rename = "truncation")]
    _truncation: serde::de::IgnoredAny,
    #[serde(rename = "padding")]
    _padding: serde::de::IgnoredAny,
    added_tokens: Vec<AddedToken>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
    #[serde(borrow)]
    model: Model<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model<'a> {
    r#type: &'a str,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(borrow)]
    vocab: &'a RawValue,
    #[serde(borrow)]
    merges: &'a RawValue,
}

/// The tokenizer, and the largest id of its vocabulary; `None` if the file is not of this form.
pub(super) fn read(text: &str) -> Option<(Tokenizer, u32)> {
    let [vocab_at, merges_at] = large_values(text)?;
    let (vocab, merges) = (&text[vocab_at.clone()], &text[merges_at.clone()]);
    // The file with numbers in their places is small. JSON has no context: where a number may stand, there may they.
    let mut small = text[..vocab_at.start].to_owned() + "0";
    small += &text[vocab_at.end..merges_at.start];
    let small_merges_at = small.len();
    small += "0";
    small += &text[merges_at.end..];
    let file: File<'_> = serde_json::from_str(&small).ok()?;
    let model = file.model;
    let place = |value: &RawValue| value.get().as_ptr() as usize - small.as_ptr() as usize;
    let as_found = [place(model.vocab), place(model.merges)] == [vocab_at.start, small_merges_at];
    if !as_found || file.version != "1.0" || model.r#type != "BPE" {
        return None;
    }
    let (bpe, largest) = {
        let (vocab, merges) = std::thread::scope(|scope| {
            let read = || read_merges(merges);
            let thread = std::thread::Builder::new().spawn_scoped(scope, read);
            let vocab = read_vocab(vocab);
            // Where the system has no thread for it, it is read after the other.
            (vocab, thread.map_or_else(|_| read(), |thread| thread.join().ok().flatten()))
        });
        let (vocab, merges) = (vocab?, merges?);
        let largest = vocab.values().copied().max()?;
        let mut bpe = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .fuse_unk(model.fuse_unk)
            .byte_fallback(model.byte_fallback)
            .ignore_merges(model.ignore_merges);
        if let Some(dropout) = model.dropout {
            bpe = bpe.dropout(dropout);
        }
        if let Some(token) = model.unk_token {
            bpe = bpe.unk_token(token);
        }
        if let Some(prefix) = model.continuing_subword_prefix {
            bpe = bpe.continuing_subword_prefix(prefix);
        }
        if let Some(suffix) = model.end_of_word_suffix {
            bpe = bpe.end_of_word_suffix(suffix);
        }
        (bpe.build().ok()?, largest)
    };
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_normalizer(file.normalizer).ok()?;
    tokenizer.with_pre_tokenizer(file.pre_tokenizer);
    tokenizer.with_post_processor(file.post_processor);
    tokenizer.with_decoder(file.decoder);
    tokenizer.add_tokens(file.added_tokens).ok()?;
    Some((tokenizer, largest))
}

/// Where the vocabulary and the merges stand, if they are the last two values of the file: never wrong about which bytes
/// belong to another value if both turn out to be JSON and so does the rest.
fn large_values(text: &str) -> Option<[Range<usize>; 2]> {
    // "vocab" and "merges" may be tokens of the vocabulary too, with a number for a value.
    let value = |from: usize, key: &str, open: char| {
        memmem::find_iter(&text.as_bytes()[from..], key).find_map(|at| {
            let after = &text[from + at + key.len()..];
            let value = after.trim_start().strip_prefix(':')?.trim_start();
            value.starts_with(open).then(|| (from + at, text.len() - value.len()))
        })
    };
    let (_, vocab) = value(0, "\"vocab\"", '{')?;
    let (merges_key, merges) = value(vocab, "\"merges\"", '[')?;
    let vocab_end = text[..merges_key].trim_end().strip_suffix(',')?.trim_end().len();
    let rest = text.trim_end().strip_suffix('}')?.trim_end().strip_suffix('}')?;
    let merges_end = rest.trim_end().len();
    (vocab < vocab_end && merges < merges_end).then_some([vocab..vocab_end, merges..merges_end])
}

/// A JSON object of tokens and their ids.
fn read_vocab(json: &str) -> Option<Vocab> {
    struct Tokens(Vocab);

    impl<'de> Visitor<'de> for Tokens {
        type Value = Vocab;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Vocab, A::Error> {
            while let Some((token, id)) = map.next_entry()? {
                self.0.insert(token, id);
            }
            Ok(self.0)
        }
    }

    // Made large enough at once: `"a":0,` is the shortest entry.
    let colons = memchr_iter(b':', json.as_bytes()).count();
    let tokens = Tokens(Vocab::with_capacity(colons.min(json.len() / 6)));
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let vocab = deserializer.deserialize_map(tokens).ok()?;
    deserializer.end().ok()?;
    Some(vocab)
}

/// A JSON array of pairs of tokens.
fn read_merges(json: &str) -> Option<Merges> {
    struct Pairs(Merges);

    impl<'de> Visitor<'de> for Pairs {
        type Value = Merges;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut array: A) -> Result<Merges, A::Error> {
            while let Some(pair) = array.next_element()? {
                self.0.push(pair);
            }
            Ok(self.0)
        }
    }

    // As above: `["a","b"],`.
    let brackets = memchr_iter(b'[', json.as_bytes()).count();
    let pairs = Pairs(Merges::with_capacity(brackets.min(json.len() / 10)));
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let merges = deserializer.deserialize_seq(pairs).ok()?;
    deserializer.end().ok()?;
    Some(merges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::shared;

    #[test]
    fn reads_what_the_crate_reads() {
        let Some(shared) = shared("tokenizer/qwen3") else { return };
        let text = std::fs::read_to_string(shared.join("tokenizer.json")).unwrap();
        let (fast, largest) = read(&text).expect("of this form");
        let slow = Tokenizer::from_bytes(&text).unwrap();
        assert_eq!(largest, slow.get_vocab(false).into_values().max().unwrap());
        assert_eq!(fast.get_vocab(true), slow.get_vocab(true));
        let words = "Grüße, 你好!\n\n  def f(x):\treturn 12345 <|im_start|>user<think> \u{1F980}\u{0301}e\u{301}";
        let ids = |t: &Tokenizer| t.encode_fast(words, false).unwrap().get_ids().to_vec();
        assert_eq!(ids(&fast), ids(&slow));
        let ids: Vec<u32> = (0..slow.get_vocab_size(true) as u32).step_by(37).collect();
        assert_eq!(fast.decode(&ids, false).unwrap(), slow.decode(&ids, false).unwrap());
        assert_eq!(fast.decode(&ids, true).unwrap(), slow.decode(&ids, true).unwrap());
        // All settings, the vocabulary in order of ids, the merges in order of rank.
        assert_eq!(fast.to_string(false).unwrap(), slow.to_string(false).unwrap());
    }

    #[test]
    fn other_forms_are_left_to_the_crate() {
        let sound = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": {"type": "BPE", "dropout": null,
            "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": {"a": 0, "b": 7, "ab": 2}, "merges": [["a", "b"]]}}"#;
        let (tokenizer, largest) = read(sound).expect("of this form");
        assert_eq!((tokenizer.encode_fast("ab", false).unwrap().get_ids(), largest), (&[2][..], 7));
        for (from, to) in [
            ("\"1.0\"", "\"2.0\""),
            ("\"BPE\"", "\"WordLevel\""),
            ("[[\"a\", \"b\"]]", "[\"a b\"]"),
            ("[[\"a\", \"b\"]]", "[[\"a\", \"c\"]]"),
            ("\"b\": 7", "\"b\": -7"),
            ("\"vocab\"", "\"words\""),
            ("\"padding\": null", "\"padding\": null, \"other\": 1"),
            ("{\"a\": 0, \"b\": 7, \"ab\": 2}", "{}"),
            ("\"merges\": [", "\"merges\": [[\"a\", \"b\"]], \"other\": ["),
            ("\"ab\": 2}", "\"ab\": 2}}"),
            ("]]}}", "]]], \"merges\": []}}"),
        ] {
            assert!(sound.contains(from), "{from}");
            assert!(read(&sound.replace(from, to)).is_none(), "{to}");
        }
    }
}
