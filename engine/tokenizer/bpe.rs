//! The usual tokenizer.json, read in a third of the time.
//!
//! Crate `tokenizers` reads a model's vocabulary and merges through three intermediate forms, as its file could be of five kinds:
//! 0.3 s for Qwen3's, most of what `j1 judge` does before its first token. Here a file that is byte-pair encoding in the form of
//! today is read straight into that crate's own types. Any other, a faulty one included, is left to the crate.

use serde::Deserialize;
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
    let file: File<'_> = serde_json::from_str(text).ok()?;
    let model = file.model;
    if file.version != "1.0" || model.r#type != "BPE" {
        return None;
    }
    // Half of the time each.
    let (vocab, merges) = std::thread::scope(|scope| {
        let merges = scope.spawn(|| serde_json::from_str::<Merges>(model.merges.get()));
        let vocab = serde_json::from_str::<Vocab>(model.vocab.get());
        (vocab, merges.join())
    });
    let (vocab, merges) = (vocab.ok()?, merges.ok()?.ok()?);
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
    let mut tokenizer = Tokenizer::new(bpe.build().ok()?);
    tokenizer.with_normalizer(file.normalizer).ok()?;
    tokenizer.with_pre_tokenizer(file.pre_tokenizer);
    tokenizer.with_post_processor(file.post_processor);
    tokenizer.with_decoder(file.decoder);
    tokenizer.add_tokens(file.added_tokens).ok()?;
    Some((tokenizer, largest))
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
        ] {
            assert!(sound.contains(from), "{from}");
            assert!(read(&sound.replace(from, to)).is_none(), "{to}");
        }
    }
}
