//! Conversations to prompts: a checkpoint's chat template, rendered as transformers' `apply_chat_template` does.
//!
//! The template is Jinja: chat_template.jinja, "chat_template" in tokenizer_config.json, or chat_template.json, the first that is
//! there; of several named ones (in additional_chat_templates/ or in a list) the default. It sees `messages`,
//! `add_generation_prompt`, `enable_thinking` where given, and the special tokens of tokenizer_config.json by name. Python's string
//! methods, `tojson` as `json.dumps(ensure_ascii=False)`, loop controls and `raise_exception` are there as in transformers.
//! `strftime_now` renders the date that the caller gives ([`RenderOptions::date`]), not the day's, because a prompt that depends on
//! the day cannot be reproduced; without one it is undefined, for which many templates have a date of their own.
//!
//! A template comes from a stranger: its size, its work and its memory are bounded ([`crate::text::template`]), and what exceeds the bounds
//! is an error. Contents of messages are put in as they are, special tokens in them included.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;

pub use date::{BadDate, Date};

use crate::error::{FileError, excerpt, parse_json, read_text};
use crate::text::template::{SOURCE_LIMIT_BYTES, Template, TemplateError, Value, fuel_for};

/// Llama 3's has 50 KB, others list thousands of added tokens.
const CONFIG_LIMIT_BYTES: u64 = 16 << 20;
const NAME: &str = "chat_template";
/// Names of templates that a message shows.
const NAMES_SHOWN: usize = 8;
/// Variables that a template may print, from tokenizer_config.json.
const TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

mod date;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The speaker: system, user, assistant or tool, or another that the template knows.
    pub role: String,
    /// The text of the turn.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// Variables that a template gets besides the messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenderOptions {
    /// Whether the prompt ends with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Qwen3's switch; `None` leaves the variable undefined, which it reads as on.
    pub enable_thinking: Option<bool>,
    /// What `strftime_now` calls today; `None` leaves that function undefined.
    pub date: Option<Date>,
}

/// The chat template of a checkpoint directory.
#[derive(Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    template: Template,
    tokens: Vec<(&'static str, String)>,
}

/// A template that cannot be loaded, refuses the conversation, or exceeds its bounds.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum ChatError {
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// No file holds a template.
    #[error(
        "{}: no chat template, neither chat_template.jinja nor \"chat_template\" in tokenizer_config.json or chat_template.json; this \
         may be a base model: take the chat_template.jinja of its instruction-tuned variant",
        directory.display()
    )]
    NoTemplate { directory: PathBuf },
    /// A value in tokenizer_config.json of a wrong type.
    #[error("{}: {key:?} should be {expected}, got {got}", path.display())]
    WrongType { path: PathBuf, key: String, expected: &'static str, got: String },
    /// Several templates, none of them the default.
    #[error(
        "{}: the chat templates are named {names:?}, none of them \"default\"; copy the one you mean to chat_template.jinja beside \
         config.json",
        path.display()
    )]
    NoDefault { path: PathBuf, names: Vec<String> },
    /// A template longer than any sound one.
    #[error("{}: a chat template of {len_bytes} bytes, more than the {limit_bytes} that one may have", path.display())]
    TooLarge { path: PathBuf, len_bytes: usize, limit_bytes: u64 },
    /// Not Jinja.
    #[error("{}: line {line} of the chat template: {message}", path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
    /// The template called `raise_exception`.
    #[error("{}: the chat template refuses this conversation: {message}", path.display())]
    Refused { path: PathBuf, message: String },
    /// An unknown filter, an undefined value used, a recursion too deep.
    #[error("{}: line {line} of the chat template: {message}", path.display())]
    Render { path: PathBuf, line: usize, message: String },
    /// The template asks for the date, and none was given.
    #[error(
        "{}: line {line} of the chat template asks for today's date (strftime_now); give one that stays the same, such as \
         2025-01-31 (in training rollout.template_date)",
        path.display()
    )]
    NoDate { path: PathBuf, line: usize },
    /// More work than any sound template does for such a conversation.
    #[error("{}: line {line} of the chat template: stopped after {fuel} steps; the template may never end", path.display())]
    OutOfFuel { path: PathBuf, line: usize, fuel: u64 },
    /// The operating system gives no thread to render in.
    #[error("{}: no thread with a stack of {stack_bytes} bytes for the chat template: {source}", path.display())]
    NoThread { path: PathBuf, stack_bytes: u64, source: std::io::Error },
}

/// The folder of a checkpoint with chat templates that have names.
pub const ADDITIONAL_TEMPLATES: &str = "additional_chat_templates";

impl ChatTemplate {
    /// Reads the default template of `directory`, and its special tokens. transformers' order: chat_template.jinja (or
    /// additional_chat_templates/default.jinja), then tokenizer_config.json, then chat_template.json, a processor's.
    pub fn load(directory: &Path) -> Result<ChatTemplate, ChatError> {
        let config_path = directory.join("tokenizer_config.json");
        let config = read_object(&config_path)?;
        let tokens = special_tokens(&config_path, &config)?;
        let additional = directory.join(ADDITIONAL_TEMPLATES);
        for path in [additional.join("default.jinja"), directory.join("chat_template.jinja")] {
            match read_text(&path, SOURCE_LIMIT_BYTES) {
                Ok(source) => return ChatTemplate::parse(path, source, tokens),
                Err(FileError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(source) = configured_template(&config_path, &config)? {
            return ChatTemplate::parse(config_path, source, tokens);
        }
        let path = directory.join("chat_template.json");
        if let Some(source) = configured_template(&path, &read_object(&path)?)? {
            return ChatTemplate::parse(path, source, tokens);
        }
        match names_in(&additional) {
            names if names.is_empty() => {
                Err(ChatError::NoTemplate { directory: directory.to_owned() })
            }
            names => Err(ChatError::NoDefault { path: additional, names }),
        }
    }

    /// The prompt of a conversation.
    pub fn render(
        &self,
        messages: &[Message],
        options: RenderOptions,
    ) -> Result<String, ChatError> {
        let len_bytes = messages.iter().map(|turn| turn.role.len() + turn.content.len()).sum();
        let values = messages.iter().map(|turn| {
            Value::from_pairs([("role", turn.role.as_str()), ("content", turn.content.as_str())])
        });
        self.render_values(values.collect(), len_bytes, options)
    }

    /// Whether a prompt holds what the user says, and what the system prompt says. A template may leave either out without a
    /// word: one for content in parts (`{% for part in message.content %}`) finds none in a text. It reports its own refusals.
    pub fn reads(&self, options: RenderOptions) -> [bool; 2] {
        let [system, user] = ["system", "user"].map(|role| Message {
            role: role.to_owned(),
            content: format!("What the {role} says."),
        });
        let holds = |messages: &[Message], wanted: &Message| {
            let prompt = self.render(messages, options);
            prompt.map_or(true, |prompt| prompt.contains(&wanted.content))
        };
        [holds(std::slice::from_ref(&user), &user), holds(&[system.clone(), user], &system)]
    }

    /// The file that the template comes from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The turn markers that the template writes down, such as `<|user|>`: not every tokenizer has tokens for them.
    pub fn markers(&self) -> BTreeSet<&str> {
        static MARKER: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(r"<\|[^\s<>|]{1,64}\|>|<｜[^\s<>｜]{1,64}｜>").expect("sound")
        });
        MARKER.find_iter(&self.source).map(|marker| marker.as_str()).collect()
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    fn parse(
        path: PathBuf,
        source: String,
        tokens: Vec<(&'static str, String)>,
    ) -> Result<ChatTemplate, ChatError> {
        if source.len() as u64 > SOURCE_LIMIT_BYTES {
            let (len_bytes, limit_bytes) = (source.len(), SOURCE_LIMIT_BYTES);
            return Err(ChatError::TooLarge { path, len_bytes, limit_bytes });
        }
        match Template::compile(NAME, &source, false) {
            Ok(template) => Ok(ChatTemplate { path, source, template, tokens }),
            Err(error) => Err(failure(&path, error)),
        }
    }

    fn render_values(
        &self,
        messages: Vec<Value>,
        len_bytes: usize,
        options: RenderOptions,
    ) -> Result<String, ChatError> {
        let fuel = fuel_for(messages.len(), len_bytes);
        let mut variables = vec![
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        variables.extend(options.enable_thinking.map(|on| ("enable_thinking", Value::from(on))));
        variables.extend(options.date.map(|date| ("strftime_now", date.function())));
        variables.extend(self.tokens.iter().map(|(name, token)| (*name, Value::from(token))));
        self.template.render(variables, fuel).map_err(|error| failure(&self.path, error))
    }
}

fn failure(path: &Path, error: TemplateError) -> ChatError {
    let path = path.to_owned();
    match error {
        TemplateError::Syntax { line, message } => ChatError::Syntax { path, line, message },
        TemplateError::Undefined { line, expression } => {
            ChatError::Render { path, line, message: format!("'{expression}' is undefined") }
        }
        TemplateError::Refused { message } => ChatError::Refused { path, message },
        TemplateError::Render { line, message } if message.contains("strftime_now is unknown") => {
            ChatError::NoDate { path, line }
        }
        TemplateError::Render { line, message } => ChatError::Render { path, line, message },
        TemplateError::OutOfFuel { line, fuel } => ChatError::OutOfFuel { path, line, fuel },
        TemplateError::NoThread { stack_bytes, source } => {
            ChatError::NoThread { path, stack_bytes, source }
        }
    }
}

/// The object in a JSON file; an empty one if there is no file.
fn read_object(path: &Path) -> Result<serde_json::Value, ChatError> {
    let object = match read_text(path, CONFIG_LIMIT_BYTES) {
        Ok(text) => parse_json(path, &text)?,
        Err(FileError::NotFound { .. }) => serde_json::json!({}),
        Err(error) => return Err(error.into()),
    };
    if object.is_object() {
        Ok(object)
    } else {
        Err(wrong_type(path, "the file", "a JSON object", &object))
    }
}

/// The names of the templates in a directory, if there is one, as many as a message may show.
fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(excerpt(entry.file_name().to_str()?.strip_suffix(".jinja")?)))
        .take(1000)
        .collect();
    names.sort();
    names.truncate(NAMES_SHOWN);
    names
}

/// "chat_template": a text, or named ones of which "default" counts, as a list or an object.
fn configured_template(
    path: &Path,
    config: &serde_json::Value,
) -> Result<Option<String>, ChatError> {
    const KEY: &str = "chat_template";
    let expected = "a template, a list of {\"name\", \"template\"}, or an object of templates";
    let list = match config.get(KEY) {
        None | Some(serde_json::Value::Null) => return Ok(None),
        Some(serde_json::Value::String(source)) => return Ok(Some(source.clone())),
        Some(serde_json::Value::Array(list)) => list,
        Some(serde_json::Value::Object(named)) => {
            return match named.get("default") {
                Some(serde_json::Value::String(source)) => Ok(Some(source.clone())),
                Some(other) => Err(wrong_type(path, KEY, expected, other)),
                None => {
                    let names = named.keys().take(NAMES_SHOWN).map(|name| excerpt(name)).collect();
                    Err(ChatError::NoDefault { path: path.to_owned(), names })
                }
            };
        }
        Some(other) => return Err(wrong_type(path, KEY, expected, other)),
    };
    let mut names = Vec::new();
    for entry in list {
        let text = |key: &str| entry.get(key).and_then(serde_json::Value::as_str);
        let (Some(name), Some(source)) = (text("name"), text("template")) else {
            return Err(wrong_type(path, KEY, expected, entry));
        };
        if name == "default" {
            return Ok(Some(source.to_owned()));
        }
        names.push(excerpt(name));
    }
    names.truncate(NAMES_SHOWN);
    Err(ChatError::NoDefault { path: path.to_owned(), names })
}

/// The special tokens that are given, as text or as an AddedToken's JSON.
fn special_tokens(
    path: &Path,
    config: &serde_json::Value,
) -> Result<Vec<(&'static str, String)>, ChatError> {
    let mut tokens = Vec::new();
    for key in TOKENS {
        let Some(value) = config.get(key).filter(|value| !value.is_null()) else { continue };
        let content = value.as_str().or_else(|| value.get("content")?.as_str());
        match content {
            Some(content) => tokens.push((key, content.to_owned())),
            None => return Err(wrong_type(path, key, "a token or {\"content\": token}", value)),
        }
    }
    Ok(tokens)
}

fn wrong_type(
    path: &Path,
    key: &str,
    expected: &'static str,
    got: &serde_json::Value,
) -> ChatError {
    let got = excerpt(&got.to_string());
    ChatError::WrongType { path: path.to_owned(), key: key.to_owned(), expected, got }
}

#[cfg(test)]
mod fixture_tests;
#[cfg(test)]
mod tests;
