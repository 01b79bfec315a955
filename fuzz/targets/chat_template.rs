//! A chat template of a checkpoint, and what it makes of a conversation.
#![no_main]

use engine::text::chat::{ChatTemplate, Message, RenderOptions};
use j1_fuzz::{directory, file, refused};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    file("chat_template.jinja", bytes);
    let template = match ChatTemplate::load(directory()) {
        Ok(template) => template,
        Err(error) => return refused(error),
    };
    let turns = [
        ("system", "Be brief."),
        ("user", "Hi <|im_end|>"),
        ("assistant", "<think>\na\n</think>\n\nHm"),
        ("user", "?"),
    ];
    let turns = turns.map(|(role, content)| Message::new(role, content));
    for (messages, enable_thinking) in [(&turns[..], None), (&turns[1..2], Some(false))] {
        let options = RenderOptions { add_generation_prompt: true, enable_thinking, date: None };
        template.render(messages, options).map_err(refused).ok();
    }
});
