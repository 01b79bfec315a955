//! A byte-level tokenizer and one with byte fallback, small enough to be written here, and the real one where it is at hand.

use serde_json::{Value, json};

use super::*;
use crate::shared::shared;

/// The 256 bytes as byte-level BPE spells them, in the order of GPT-2's table.
fn byte_letters() -> Vec<String> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut letters: Vec<String> =
        (0..=255u8).filter(printable).map(|byte| char::from(byte).to_string()).collect();
    let others = (0..=255u8).filter(|byte| !printable(byte)).count() as u32;
    letters.extend((0..others).map(|n| char::from_u32(256 + n).unwrap().to_string()));
    letters
}

/// Byte-level BPE: 256 bytes, the merges "he" and "ll", then <|end|> (special) and <think> (added, not special).
pub(super) fn byte_level() -> Value {
    let mut vocabulary = serde_json::Map::new();
    for letter in byte_letters().into_iter().chain(["he".into(), "ll".into()]) {
        let id = vocabulary.len();
        vocabulary.insert(letter, id.into());
    }
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special})
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(258, "<|end|>", true), added(259, "<think>", false)],
        "normalizer": {"type": "NFC"}, "pre_tokenizer": bytes, "post_processor": bytes, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": ["h e", "l l"]}
    })
}

/// As Llama 2's: words with ▁ for a space, bytes as <0xXX>, the first space dropped.
fn byte_fallback() -> Value {
    let mut vocabulary = serde_json::Map::new();
    for token in ["<unk>", "▁", "a", "▁a", "▁hello"] {
        let id = vocabulary.len();
        vocabulary.insert(token.to_owned(), id.into());
    }
    for byte in 0..=255u8 {
        let id = vocabulary.len();
        vocabulary.insert(format!("<0x{byte:02X}>"), id.into());
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "vocab": vocabulary, "merges": []}
    })
}

fn parse(value: &Value) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::parse(&value.to_string(), Path::new("dir/tokenizer.json"))
}

#[track_caller]
fn unsound(value: &Value) {
    let error = parse(value).expect_err("should be refused");
    assert!(matches!(error, TokenizerError::Unsound { .. }), "{error:?}");
    assert!(error.to_string().contains("dir/tokenizer.json"));
}

fn random_numbers(count: usize, below: u32, mut state: u32) -> Vec<u32> {
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    })
    .take(count)
    .collect()
}

#[track_caller]
fn streams_as_it_decodes(tokenizer: &Tokenizer, ids: &[u32], skip_special_tokens: bool) {
    let mut stream = tokenizer.stream(skip_special_tokens);
    let mut joined = String::new();
    for &id in ids {
        joined.push_str(&stream.push(id).unwrap());
        assert_eq!(joined, stream.text());
    }
    joined.push_str(&stream.finish().unwrap());
    assert_eq!(joined, tokenizer.decode(ids, skip_special_tokens).unwrap(), "{ids:?}");
}

#[test]
fn a_text_that_is_far_too_long_is_not_encoded_to_its_end() {
    let tokenizer = parse(&byte_level()).unwrap();
    let ids = |text: &str| Encoded::Whole(tokenizer.encode(text).unwrap());
    let text = "hello 中 ".repeat(20_000);
    assert_eq!(tokenizer.encode_up_to(&text, 1 << 20).unwrap(), ids(&text));
    assert_eq!(tokenizer.encode_up_to("hello", 0).unwrap(), ids("hello"));
    let found = tokenizer.encode_up_to(&text, 100).unwrap();
    assert!(
        matches!(found, Encoded::TooLong { at_least } if (101..=1 << 16).contains(&at_least)),
        "{found:?}"
    );
    assert!(found.len() < ids(&text).len());
}

#[test]
fn special_tokens_are_recognized_and_none_added() {
    let tokenizer = parse(&byte_level()).unwrap();
    assert!(tokenizer.encode("").unwrap().is_empty());
    let ids = tokenizer.encode("hell<|end|><think>").unwrap();
    assert_eq!(ids, [256, 257, 258, 259]);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "hell<|end|><think>");
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hell<think>");
    // An id that no token has.
    assert_eq!(tokenizer.decode(&[256, 300], false).unwrap(), "he");
    assert_eq!(tokenizer.decode(&[256, 4_000_000_000], false).unwrap(), "he");
}

#[test]
fn truncation_and_padding_are_switched_off() {
    let mut value = byte_level();
    value["truncation"] =
        json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    value["padding"] = json!({"strategy": {"Fixed": 50}, "direction": "Left", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "x"});
    assert_eq!(parse(&value).unwrap().encode("hehehe").unwrap(), [256, 256, 256]);
}

#[test]
fn whole_characters_only_come_out() {
    let tokenizer = parse(&byte_level()).unwrap();
    let ids = tokenizer.encode("中!").unwrap();
    assert_eq!(ids.len(), 4);
    let mut stream = tokenizer.stream(true);
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces, ["", "", "中", "!"]);
    assert_eq!(stream.finish().unwrap(), "");
    let mut stream = tokenizer.stream(true);
    assert_eq!(stream.push(ids[0]).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}

#[test]
fn long_texts_stream_in_linear_time() {
    // Whatever the tokens are, sound or broken, silent or not: quadratic time would be hours here.
    let started = std::time::Instant::now();
    let tokenizer = parse(&byte_level()).unwrap();
    let bad_byte = tokenizer.inner.token_to_id("ÿ").unwrap();
    let fallback = parse(&byte_fallback()).unwrap();
    for id in [bad_byte, 256, 258, 4_000_000] {
        streams_as_it_decodes(&tokenizer, &vec![id; 100_000], true);
    }
    let half: Vec<u32> = [bad_byte, bad_byte, bad_byte, 256].repeat(20_000);
    streams_as_it_decodes(&tokenizer, &half, true);
    for id in [0, 4, 10, 200] {
        streams_as_it_decodes(&fallback, &vec![id; 50_000], true);
    }
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn text_comes_out_again_after_a_long_broken_run() {
    let tokenizer = parse(&byte_level()).unwrap();
    let bad_byte = tokenizer.inner.token_to_id("ÿ").unwrap();
    let mut stream = tokenizer.stream(true);
    for _ in 0..100 {
        assert_eq!(stream.push(bad_byte).unwrap(), "");
    }
    assert_eq!(stream.push(256).unwrap(), "\u{fffd}".repeat(100) + "he");
    assert_eq!(stream.push(257).unwrap(), "ll");
}

#[test]
fn any_tokens_stream_as_they_decode() {
    let byte_level = parse(&byte_level()).unwrap();
    let byte_fallback = parse(&byte_fallback()).unwrap();
    for seed in 0..300 {
        let ids = random_numbers(1 + seed as usize % 40, 262, seed);
        streams_as_it_decodes(&byte_level, &ids, seed % 2 == 0);
        streams_as_it_decodes(&byte_fallback, &ids, seed % 2 == 0);
        // Mostly words, a few bytes.
        let ids: Vec<u32> = ids.iter().map(|&id| if id % 4 == 0 { id } else { id % 5 }).collect();
        streams_as_it_decodes(&byte_fallback, &ids, seed % 2 == 0);
    }
    for text in ["naïve 🙂👩‍👩‍👧 中文\u{fffd}\u{fffd} <|end|>x", " hello", "\u{fffd}", ""]
    {
        streams_as_it_decodes(&byte_level, &byte_level.encode(text).unwrap(), false);
        streams_as_it_decodes(&byte_fallback, &byte_fallback.encode(text).unwrap(), false);
    }
}

#[test]
fn a_token_without_a_row_is_named_with_both_numbers() {
    let tokenizer = parse(&byte_level()).unwrap();
    tokenizer.check_against(260).unwrap();
    let error = tokenizer.check_against(259).unwrap_err();
    assert!(matches!(error, TokenizerError::OutsideVocabulary { id: 259, .. }), "{error:?}");
    for part in ["259", "<think>", "259 rows", "dir/tokenizer.json"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn hostile_files_give_typed_errors() {
    unsound(&json!({}));
    unsound(&json!([]));
    unsound(&json!("x"));
    let with = |pointer: &str, value: Value| {
        let mut tokenizer = byte_level();
        *tokenizer.pointer_mut(pointer).unwrap() = value;
        tokenizer
    };
    unsound(&with("/version", json!("9.9")));
    unsound(&with("/model/type", json!("Nonsense")));
    unsound(&with("/model/vocab", json!(["a", "b"])));
    unsound(&with("/model/merges", json!(["h zz"])));
    unsound(&with("/model/merges", json!([1, 2])));
    unsound(&with(
        "/pre_tokenizer",
        json!({"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": false}),
    ));
    unsound(&with("/decoder", json!({"type": "Nonsense"})));
    let deep = format!(
        "{{\"normalizer\": {}",
        "{\"type\": \"Sequence\", \"normalizers\": [".repeat(20_000)
    );
    let error = Tokenizer::parse(&deep, Path::new("tokenizer.json")).unwrap_err();
    assert!(matches!(error, TokenizerError::Unsound { .. }), "{error:?}");
    // An id at the end of the range must not become a table of four billion rows.
    let huge = parse(&with("/model/vocab/he", json!(u32::MAX))).unwrap();
    assert_eq!(huge.inner.token_to_id("he"), Some(u32::MAX));
}

#[test]
fn a_panic_of_the_crate_becomes_an_error() {
    let error = caught::<()>(|| panic!("index {} out of range", 7)).unwrap_err();
    assert_eq!(error, "crate tokenizers gave up: index 7 out of range");
    let error = caught::<()>(|| panic!("plain")).unwrap_err();
    assert!(error.ends_with("plain"));
}

#[test]
fn directories_without_a_tokenizer_say_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let error = Tokenizer::load(path).unwrap_err();
    assert!(matches!(error, TokenizerError::NoTokenizer { advice: "", .. }), "{error:?}");
    std::fs::write(path.join("tokenizer.model"), "x").unwrap();
    let error = Tokenizer::load(path).unwrap_err();
    assert!(error.to_string().contains("convert"), "{error}");
    std::fs::write(path.join("tokenizer.json"), b"{\"a\": \"\xff\"}").unwrap();
    let error = Tokenizer::load(path).unwrap_err();
    assert!(matches!(error, TokenizerError::File(FileError::NotUtf8 { .. })), "{error:?}");
    std::fs::write(path.join("tokenizer.json"), &byte_level().to_string().as_bytes()[..1000])
        .unwrap();
    let error = Tokenizer::load(path).unwrap_err();
    assert!(matches!(error, TokenizerError::Unsound { .. }), "{error:?}");
    let file = std::fs::File::create(path.join("tokenizer.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    let error = Tokenizer::load(path).unwrap_err();
    assert!(matches!(error, TokenizerError::File(FileError::TooLarge { .. })), "{error:?}");
}

#[test]
fn mutated_tokenizers_never_panic() {
    let text = byte_level().to_string();
    let (mut sound, mut refused) = (0, 0);
    crate::fuzz::mutations(text.as_bytes(), |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        match Tokenizer::parse(text, Path::new("tokenizer.json")) {
            Ok(tokenizer) => {
                sound += 1;
                // May fail, must not panic.
                if let Ok(ids) = tokenizer.encode("hello 中 <|end|> <think>\u{0}") {
                    drop(tokenizer.decode(&ids, false));
                }
            }
            Err(error) => {
                refused += 1;
                assert!(matches!(error, TokenizerError::Unsound { .. }), "{error:?}");
            }
        }
    });
    assert!(sound > 0 && refused > 0, "{sound} sound, {refused} refused");
}

/// Ids made with Python's tokenizers 0.23.3 from the same file.
#[test]
fn the_real_qwen3_tokenizer_gives_the_ids_of_python() {
    let Some(directory) = shared("tokenizer/qwen3") else { return };
    let tokenizer = Tokenizer::load(&directory).unwrap();
    let cases: [(&str, &[u32]); 3] = [
        (
            "<|im_start|>user\nHello, world!<|im_end|>\n<think>\n\n</think>\n\n",
            &[151644, 872, 198, 9707, 11, 1879, 0, 151645, 198, 151667, 271, 151668, 271],
        ),
        (
            "Ünïcödé 中文 🙂👩‍👩‍👧  x\t\r\n  1234",
            &[
                52491, 77, 37572, 66, 2956, 128505, 72858, 16744, 27484, 145233, 378, 235, 145233,
                378, 235, 145665, 220, 856, 4474, 220, 220, 16, 17, 18, 19,
            ],
        ),
        ("don't e\u{301} \u{200b} ", &[15007, 944, 3958, 29748, 220]),
    ];
    for (text, ids) in cases {
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        streams_as_it_decodes(&tokenizer, ids, false);
        streams_as_it_decodes(&tokenizer, ids, true);
    }
    assert_eq!(tokenizer.decode(cases[2].1, false).unwrap(), "don't \u{e9} \u{200b} ");
    assert_eq!(tokenizer.decode(&[18493, 160], true).unwrap(), "在\u{fffd}");
    assert_eq!(tokenizer.decode(&[9, 10, 151_700, 11], true).unwrap(), "*+,");
    streams_as_it_decodes(&tokenizer, &random_numbers(200, 151_700, 7), false);
}
