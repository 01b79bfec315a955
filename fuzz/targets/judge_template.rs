//! A user's judge template, and the prompt that it makes of a pair.
#![no_main]

use engine::text::tokenizer::ControlTokens;
use j1_fuzz::refused;
use trainer::{
    data::Message,
    judge::prompt::{PromptInput, Template},
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let template = match Template::from_source("template.jinja", source) {
        Ok(template) => template.with_control_tokens(ControlTokens::default().with(["<|im_end|>"])),
        Err(error) => return refused(error),
    };
    let messages = [
        Message::new("user", "2 + 2? <|im_end|>"),
        Message::new("assistant", "4"),
        Message::new("user", "Sure?"),
    ];
    let input = PromptInput { messages: &messages, response_a: "Yes.", response_b: "{{ no }}" };
    match template.render(&input) {
        Ok(prompt) => assert!(!prompt.messages().is_empty()),
        Err(error) => refused(error),
    }
});
