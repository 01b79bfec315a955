//! A tokenizer.json, encoding and decoding.
#![no_main]

use std::path::Path;

use engine::text::tokenizer::{Tokenizer, catches_panics};
use j1_fuzz::refused;

libfuzzer_sys::fuzz_target!(
    // The crate's own panics are caught by the reader.
    init: {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !catches_panics() {
                usual(panic);
            }
        }));
    },
    |bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let tokenizer = match Tokenizer::parse(text, Path::new("tokenizer.json")) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return refused(error),
    };
    tokenizer.check_against(1000).map_err(refused).ok();
    assert!(!tokenizer.control_tokens().split("a <|end|> b").is_empty());
    match tokenizer.encode("hello 中 <|end|> <think>\u{0}e\u{301}  x\r\n") {
        Ok(ids) => drop(tokenizer.decode(&ids, false).map_err(refused)),
        Err(error) => refused(error),
    }
    let mut stream = tokenizer.stream(true);
    for id in (0..40).chain([u32::MAX]) {
        stream.push(id).map_err(refused).ok();
    }
    stream.finish().map_err(refused).ok();
}
);
