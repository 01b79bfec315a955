//! From a conversation to tokens: the chat template, which is rendered as Jinja2 renders it, and the tokenizer.

pub mod chat;
pub mod template;
pub mod tokenizer;
